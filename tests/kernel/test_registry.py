"""Pykka's registry stays exact, and does not cost a walk over all actors for each stop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pykka import ActorRegistry

from kernel import actor as actor_module
from kernel.actor import Ref

from .world import Recorder, Simulated

ACTORS = 10_000


class Walks:
    """Counts every step over the registry's references, however it is stored."""

    def __init__(self) -> None:
        self.steps = 0


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Walks]:
    """Counters in the index (a walk costs its length) and in the references' comparison."""
    counted = Walks()
    index: Any = actor_module._RefIndex  # noqa: SLF001
    for name in ("__iter__", "__getitem__"):

        def walk(self: Any, *args: Any, original: Any = getattr(index, name)) -> Any:
            counted.steps += len(self)
            return original(self, *args)

        monkeypatch.setattr(index, name, walk)

    def equal(self: Ref, other: object) -> bool:
        counted.steps += 1
        return self is other

    monkeypatch.setattr(Ref, "__eq__", equal)
    monkeypatch.setattr(Ref, "__hash__", object.__hash__)
    yield counted


def test_stopping_ten_thousand_actors_walks_the_registry_a_few_times_only(
    sim: Simulated, walks: Walks
) -> None:
    """Starting and stopping n actors takes a number of steps that grows with n, not with n²."""
    for number in range(ACTORS):
        sim.system.spawn(Recorder, [], name=f"a{number}")
    assert len(ActorRegistry.get_all()) == ACTORS
    sim.system.stop()
    sim.settle()
    assert ActorRegistry.get_all() == []
    assert sim.system.mailboxes() == []
    assert walks.steps <= 5 * ACTORS


def test_stop_all_of_pykka_is_not_quadratic_either(sim: Simulated, walks: Walks) -> None:
    """The same by Pykka's own broadcast stop."""
    for number in range(ACTORS):
        sim.system.spawn(Recorder, [], name=f"a{number}")
    ActorRegistry.stop_all(block=False)
    sim.settle()
    assert ActorRegistry.get_all() == []
    assert walks.steps <= 5 * ACTORS


def test_the_registry_answers_as_pykkas_own(sim: Simulated) -> None:
    """Look-ups, order of registration, double and missing entries."""
    refs = [sim.system.spawn(Recorder, [], name=f"a{i}") for i in range(3)]
    assert ActorRegistry.get_all() == refs
    assert ActorRegistry.get_by_class(Recorder) == refs
    assert ActorRegistry.get_by_urn(refs[1].actor_urn) is refs[1]
    ActorRegistry.unregister(refs[1])
    ActorRegistry.unregister(refs[1])
    assert ActorRegistry.get_all() == [refs[0], refs[2]]
    assert ActorRegistry.get_by_urn(refs[1].actor_urn) is None
