"""A fixed set of seeds of the brain, and the proof that a seed is one run."""

from __future__ import annotations

import pytest

from .cluster import run_seed


@pytest.mark.parametrize("seed", range(40))
def test_three_peers(seed: int) -> None:
    """Crashes, partitions, slow and torn disks: every promise is kept, and the cluster heals."""
    run_seed(seed, 3)


@pytest.mark.parametrize("seed", range(20))
def test_five_peers(seed: int) -> None:
    """The same with five."""
    run_seed(seed, 5)


@pytest.mark.parametrize("seed", [310, 348, 445])
def test_members_that_came_while_a_peer_was_off(seed: int) -> None:
    """Their addresses are in no configuration that it has: it could hear a leader and not answer."""
    run_seed(seed, 5)


@pytest.mark.parametrize("seed", [192, 324])
def test_a_snapshot_is_made_and_another_received_at_the_same_index(seed: int) -> None:
    """Neither writes into the other's file, nor removes it."""
    run_seed(seed, 3)


@pytest.mark.parametrize(("seed", "size"), [(1, 3), (2, 3), (3, 5)])
def test_a_seed_is_one_run(seed: int, size: int) -> None:
    """Twice the same trace, step for step, and the same outcome."""
    assert run_seed(seed, size) == run_seed(seed, size)
