"""The suite catches planted bugs: each is found within a few seeds."""

from __future__ import annotations

import pytest

from .cluster import SimFailure, run_seed
from .mutants import MUTANTS

#: mutant -> the seed that is known to find it; the next ones are tried as the product changes.
FOUND_BY = {"vote_without_sync": 0, "ack_without_sync": 0, "read_without_quorum": 3, "apply_before_commit": 0}
SEEDS_TRIED = 60


@pytest.mark.parametrize("mutant", sorted(FOUND_BY))
def test_a_planted_bug_is_caught(mutant: str) -> None:
    """Vote or acknowledgement before the sync, a read without a quorum, an early apply."""
    for seed in range(FOUND_BY[mutant], FOUND_BY[mutant] + SEEDS_TRIED):
        try:
            run_seed(seed, 3, MUTANTS[mutant])
        except SimFailure:
            return
    pytest.fail(f"{SEEDS_TRIED} seeds did not notice {mutant}")
