"""The scheduler's picture is kept up to date key by key: it must be what one made anew would be."""

from __future__ import annotations

from typing import Any

import pytest

from actors import picture, scheduler
from actors.picture import View
from actors.scheduler import Scheduler
from kernel.sim import Faults, World

from .fleet import FleetFailure, play
from .stage import Stage


def _filled(sets: dict[str, set[str]]) -> dict[str, set[str]]:
    return {key: set(members) for key, members in sets.items() if members}


def told(view: View) -> dict[str, Any]:
    """Everything in a picture that decisions are made from."""
    state = view.state
    return {
        "units": view.units, "specs": view.specs, "places": view.places, "alive": view.alive, "involved": view.involved,
        "by unit": {unit: set(pairs) for unit, pairs in view.by_unit.items()}, "by machine": _filled(view.by_machine),
        "holders": _filled(view.holders), "where": _filled(state.where), "on": _filled(state.on),
        "leaving": _filled(state.leaving), "machines": {m: c.metadata for m, c in state.machines.items()},
        "draining": {m for m, c in state.machines.items() if c.draining}, "placed specs": state.units,
        "states": {unit: view.states(unit) for unit in view.units},
        "kinds": [view.related, view.followers, view.globals, view.watched],
        "by load": list(state.by_load()) == [m for _, m in sorted((len(state.on.get(m, ())), m) for m in state.machines)],
        "binding": {m: state.binding(m) == {u for u in state.on.get(m, ()) if _binds(state, u)} for m in state.machines},
    }  # fmt: skip


def _binds(state: Any, unit: str) -> bool:
    spec = state.units.get(unit)
    return spec is not None and bool(spec.conflicts or spec.replaces)


class Compared:
    """How often pictures that were not new were compared, and how they differed."""

    def __init__(self) -> None:
        self.count = 0
        self.differences: list[str] = []  # an error raised in an actor would only start it again


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Compared:
    """Compare at each pass."""
    original = Scheduler._look
    seen = Compared()

    def look(self: Scheduler) -> View:
        was_kept = self._view is not None
        view = original(self)
        if was_kept:
            seen.count += 1
            kept, anew = told(view), told(View(self.items, self._spec, view.now))
            seen.differences += [f"{what}: kept {kept[what]}, anew {value}" for what, value in anew.items() if kept[what] != value]
        return view

    monkeypatch.setattr(Scheduler, "_look", look)
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_under_chaos(seed: int, compared: Compared) -> None:
    play(seed, agents=seed % 2)
    assert compared.count > 2 and not compared.differences


def test_under_all_that_an_operator_does(compared: Compared) -> None:
    """Rules, relations, jobs, global units, drains, metadata, other files, names: and each of them taken away again."""
    world = World(5, Faults())
    with world:
        stage = Stage(world, 5)
        stage.put(a_="[X-Fleet]\nConflicts=a@*.service", b="[X-Fleet]\nMachineOf=a@1.service", g="[X-Fleet]\nGlobal=yes")
        stage.put(job="Type=oneshot\n[X-Argosy]\nRemoveAfter=5s", c="[Unit]\nAfter=b.service\nBindsTo=b.service")
        stage.do("unit.start", "a@1", "a@2", "a@3", "a@4", "b", "g", "c", no_block=True)
        world.run(8)
        stage.fleet.do("machine.metadata", machine="m2", metadata={"zone": "x"})
        stage.put(replace=True, b="[X-Fleet]\nMachineMetadata=zone=x")
        world.run(6)
        stage.fleet.do("machine.drain", machine="m1", reason="test", deadline_s=20, no_block=True)
        world.run(6)
        stage.fleet.do("machine.undrain", machine="m1")
        stage.put(replace=True, g="# global no more", c="[Install]\nAlias=other.service")
        world.run(6)
        lost = stage.fleet.machines[2]
        lost.crash()
        world.run(12)
        lost.start()
        stage.do("unit.destroy", "b", "c", "a@2")
        world.run(8)
    assert compared.count > 40 and not compared.differences


def test_a_picture_that_forgets_a_state_is_noticed(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails when one kind of change is passed over."""
    original = View.update

    def forgetful(self: View, key: bytes) -> Any:
        return set() if key.startswith(picture.STATES) else original(self, key)

    monkeypatch.setattr(View, "update", forgetful)
    try:
        play(1, rounds=4)
    except FleetFailure:
        pass
    assert any("states: kept" in difference for difference in compared.differences)


def test_what_one_pass_cannot_look_at_has_its_turn_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also units that found no machine: with room for a few at a time, all are placed in the end."""
    monkeypatch.setattr(scheduler, "PASS_UNITS_MAX", 7)
    monkeypatch.setattr(scheduler, "RETRY_MIN", 3)
    monkeypatch.setattr(scheduler, "RETRY_COMPARISONS", 3)
    world = World(3, Faults())
    with world:
        stage = Stage(world, 3)
        stage.put(t_="[X-Fleet]\nMachineMetadata=kind=big")
        names = [f"t@{n}" for n in range(40)]
        stage.do("unit.start", *names, no_block=True)
        world.run(5)
        assert not stage.running()
        stage.fleet.do("machine.metadata", machine="m3", metadata={"kind": "big"})
        stage.wait(lambda: len(stage.running()) == 40, 60)
