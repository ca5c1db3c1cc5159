"""Fixtures of the kernel's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pykka import ActorRegistry

from kernel.dispatch import PoolDispatcher
from kernel.system import System

from .world import PATIENCE_S, LoopThread, Simulated, simulated


@pytest.fixture(autouse=True)
def _registry_is_left_empty() -> Iterator[None]:
    """Pykka's registry is one per process: what a test leaves there would meet the next one."""
    before = {ref.actor_urn for ref in ActorRegistry.get_all()}
    yield
    for ref in ActorRegistry.get_all():
        if ref.actor_urn not in before:
            ActorRegistry.unregister(ref)


@pytest.fixture
def sim() -> Iterator[Simulated]:
    """One simulated machine."""
    with simulated() as made:
        yield made


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    """A running event loop with a dispatcher."""
    made = LoopThread()
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[PoolDispatcher]:
    """A pool of threads."""
    made = PoolDispatcher("test-pool")
    yield made
    made.close()


@pytest.fixture
def pool_system(pool: PoolDispatcher) -> Iterator[System]:
    """A system whose actors run on real threads."""
    system = System("host", {"loop": pool, "pool": pool})
    yield system
    for mailbox in system.mailboxes():
        assert mailbox.ref is not None
        mailbox.ref.stop(block=True, timeout=PATIENCE_S)
