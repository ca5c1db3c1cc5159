"""fleet's functional scenarios by their numbers, and those that it never wrote, on three machines.

Left out here: 1 to 5 and 14, 20 (ssh, the command line's own words; other tests have them), 18 (systemd
alone), 22, 25, 26 (``test_placement``), 36 to 38 (tests with real hosts), 39 to 43 (``test_fleet_door``); 34 is
not made: machine ids are drawn at random when a host joins, and its certificate is for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from actors.brain_client import PLACES, STATES
from kernel.sim import Faults, World

from .stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    world = World(11, Faults())
    with world:
        yield Stage(world, 11)


def _rows(stage: Stage) -> dict[str, dict[str, Any]]:
    return {row["unit"].removesuffix(".service"): row for row in stage.fleet.do("unit.list")}


def _alive(stage: Stage) -> list[Any]:
    return [m for m in stage.fleet.machines if m.alive]


def _machine(stage: Stage, name: str) -> Any:
    return next(m for m in stage.fleet.machines if m.name == name)


def _starts(stage: Stage, unit: str) -> int:
    return sum(f" {unit}.service starts on" in line for line in stage.world.log)


def _keys(stage: Stage) -> list[bytes]:
    store = _alive(stage)[0].host.raft._mailbox.actor.store
    return [key for key in store.live if key.startswith((PLACES, STATES))]


def test_06_a_unit_that_is_started_is_active(stage: Stage) -> None:
    stage.put(hello="")
    stage.do("unit.start", "hello")
    row = _rows(stage)["hello"]
    assert (row["desired"], row["load"], row["active"], row["sub"]) == ("launched", "loaded", "active", "running")


def test_07_17_nine_units_are_listed_in_order_destroyed_and_submitted_again(stage: Stage) -> None:
    names = [f"u{n}" for n in range(9, 0, -1)]
    for _ in range(2):
        stage.put(**dict.fromkeys(names, ""))
        assert [row["unit"] for row in stage.fleet.do("unit.list")] == sorted(f"{name}.service" for name in names)
        stage.do("unit.destroy", *names)
        assert stage.fleet.do("unit.list") == [] and not _keys(stage)


def test_08_six_units_are_loaded_unloaded_and_loaded_again(stage: Stage) -> None:
    names = [f"u{n}" for n in range(6)]
    stage.put(**dict.fromkeys(names, ""))
    for _ in range(2):
        stage.do("unit.load", *names)
        assert {(row["desired"], row["active"]) for row in _rows(stage).values()} == {("loaded", "inactive")}
        stage.do("unit.unload", *names)
        assert {row["machine"] for row in _rows(stage).values()} == {""}


def test_09_13_three_units_start_stop_start_and_restart(stage: Stage) -> None:
    stage.put(a="", b="", c="")
    stage.do("unit.start", "a", "b", "c")
    stage.until("a", "b", "c")
    stage.do("unit.stop", "a", "b", "c")
    stage.until()
    stage.do("unit.start", "a", "b", "c")
    stage.until("a", "b", "c")
    before = {name: row["pid_or_container"] for name, row in _rows(stage).items()}
    stage.do("unit.restart", "a", "b", "c")
    stage.wait(lambda: {n: r["sub"] for n, r in _rows(stage).items()} == dict.fromkeys("abc", "running"))
    assert all(row["pid_or_container"] != before[name] for name, row in _rows(stage).items())


@pytest.mark.parametrize("verb", ["unit.submit", "unit.load", "unit.start"])
def test_10_12_replace_changes_the_content_and_nothing_else(stage: Stage, verb: str) -> None:
    stage.put(a="Environment=V=1", other="Environment=V=1")
    stage.do("unit.start", "other")
    if verb != "unit.submit":
        stage.do(verb, "a")
    before = _rows(stage)
    stage.put(a="Environment=V=2")
    assert _rows(stage)["a"]["hash"] == before["a"]["hash"], "changed without --replace"
    stage.put(replace=True, a="Environment=V=2")
    assert "V=2" in stage.fleet.do("unit.cat", unit="a.service")
    stage.wait(lambda: _rows(stage)["a"]["hash"] != before["a"]["hash"])
    stage.world.run(3)
    after = _rows(stage)
    assert after["a"]["desired"] == before["a"]["desired"]
    assert after["other"] | {"since_s": 0} == before["other"] | {"since_s": 0}


def test_16_a_loaded_unit_has_a_status(stage: Stage) -> None:
    stage.put(a="")
    stage.do("unit.load", "a")
    [row] = stage.fleet.do("unit.status", unit="a.service")["rows"]
    assert (row["load"], row["active"], row["sub"]) == ("loaded", "inactive", "dead")


def test_19_a_sidekick_starts_and_stops_with_its_unit() -> None:
    world = World(11, Faults())
    with world:
        stage = Stage(world, 11)
        stage.submit(main="Wants=side.service", side="BindsTo=main.service\nAfter=main.service")
        stage.do("unit.start", "main")
        stage.until("main", "side")
        stage.do("unit.stop", "main")
        stage.until()


def test_21_pairs_that_belong_together_move_together(stage: Stage) -> None:
    stage.put(ping_="", pong_="[X-Fleet]\nMachineOf=ping@%i.service\nConflicts=pong@*.service")
    names = [f"{kind}@{n}" for kind in ("ping", "pong") for n in (1, 2)]
    stage.do("unit.start", *names)
    stage.until(*names)
    assert all(stage.where(f"ping@{n}") == stage.where(f"pong@{n}") for n in (1, 2))
    victim = stage.where("ping@1")
    other = stage.where("ping@2")
    _machine(stage, victim).crash()
    stage.wait(lambda: stage.where("ping@1") not in ("", victim) and stage.where("ping@1") == stage.where("pong@1"), 60)
    assert stage.where("ping@2") == stage.where("pong@2") == other


def test_23_a_conflict_of_one_side_blocks_the_other_until_it_is_destroyed(stage: Stage) -> None:
    stage.fleet.do("machine.metadata", machine="m1", metadata={"x": "1"})
    stage.put(guard="[X-Fleet]\nConflicts=free*\nMachineMetadata=x=1", free="[X-Fleet]\nMachineMetadata=x=1")
    stage.do("unit.start", "guard")
    stage.do("unit.start", "free", no_block=True)
    stage.world.run(4)
    assert stage.running() == {"guard"} and "Conflicts=free*" in stage.fleet.do("unit.why", unit="free.service")["machines"]["m1"]
    stage.do("unit.destroy", "guard")
    stage.until("free")


def test_24_several_names_on_one_line_of_conflicts(stage: Stage) -> None:
    rules = {name: "[X-Fleet]\nConflicts=" + " ".join(f"{o}.service" for o in "abc" if o != name) for name in "abc"}
    stage.put(**rules)
    stage.do("unit.start", "a", "b", "c")
    assert {stage.where(name) for name in "abc"} == {"m1", "m2", "m3"}


def test_27_units_go_where_they_are_pinned(stage: Stage) -> None:
    stage.put(**{f"u{n}": f"[X-Fleet]\nMachineID=m{n}" for n in (1, 2, 3)})
    stage.do("unit.start", "u1", "u2", "u3")
    assert [stage.where(f"u{n}") for n in (1, 2, 3)] == ["m1", "m2", "m3"]


def test_28_29_global_units_beside_others_and_one_that_conflicts_never_starts(stage: Stage) -> None:
    stage.put(g="[X-Fleet]\nGlobal=yes", h="[X-Fleet]\nGlobal=yes\nConflicts=g.service", a="", b="")
    stage.do("unit.start", "g", "a", "b")
    stage.wait(lambda: stage.where("g") == "m1m2m3")
    stage.do("unit.start", "h", no_block=True)
    stage.do("unit.restart", "g")
    stage.world.run(5)
    assert stage.where("h") == "" and stage.where("g") == "m1m2m3" and {"a", "b"} <= stage.running()
    assert len(stage.fleet.do("unit.status", unit="g.service")["rows"]) == 3


def test_30_a_template_in_metadata_goes_to_the_right_host_and_an_impossible_one_says_so(stage: Stage) -> None:
    stage.fleet.do("machine.metadata", machine="m2", metadata={"kind": "big"})
    stage.put(t_="[X-Fleet]\nMachineMetadata=kind=%i")
    stage.do("unit.start", "t@big")
    assert stage.where("t@big") == "m2"
    text = stage.refusal("unit.start", "t@small", within=1.0)
    assert "MachineMetadata=kind=small" in text and "it is big" in text


def test_31_32_only_the_units_of_the_machine_that_leaves_move(stage: Stage) -> None:
    names = [f"u@{n}" for n in range(6)]
    stage.put(u_="")
    stage.do("unit.start", *names)
    stage.until(*names)
    homes = {name: stage.where(name) for name in names}
    _machine(stage, "m3").crash()
    stage.wait(lambda: all(stage.where(name) in ("m1", "m2") for name in names), 60)
    assert all(stage.where(name) == home for name, home in homes.items() if home != "m3")
    assert all(_starts(stage, name) == 1 for name, home in homes.items() if home != "m3")
    _machine(stage, "m3").start()
    stage.world.run(10)
    assert all(_starts(stage, name) == (2 if home == "m3" else 1) for name, home in homes.items())


def test_33_a_machine_whose_host_is_stopped_leaves_the_list_with_its_states(stage: Stage) -> None:
    stage.put(a="[X-Fleet]\nMachineID=m3")
    stage.do("unit.start", "a")
    _machine(stage, "m3").crash()
    stage.wait(lambda: {r["name"]: r["state"] for r in stage.fleet.do("machine.list")}["m3"] == "lost", 30)
    stage.wait(lambda: not [key for key in _keys(stage) if key.startswith(STATES + b"m3/")], 30)


def test_35_a_store_that_cannot_be_reached_for_longer_than_a_lease_costs_nothing_that_is_kept(stage: Stage) -> None:
    """Loaded, not started and started, single and global: after the whole store's absence all is as it was."""
    keep = "[X-Argosy]\nOnPartition=keep"
    stage.put(single=keep, loaded=keep, idle=keep, everywhere=f"[X-Fleet]\nGlobal=yes\n{keep}")
    stage.do("unit.start", "single", "everywhere")
    stage.do("unit.load", "loaded")
    stage.wait(lambda: stage.where("everywhere") == "m1m2m3")
    before = {n: (r["desired"], r["machine"], r["sub"]) for n, r in _rows(stage).items()}
    starts = stage.fleet.books.starts
    everybody = [m.name for m in stage.fleet.machines]
    stage.world.cut = frozenset((a, b) for a in everybody for b in everybody if a != b)  # no two of them hear each other
    stage.world.run(20)
    assert stage.running() == {"single", "everywhere"}
    stage.world.heal()
    stage.world.run(15)
    assert {n: (r["desired"], r["machine"], r["sub"]) for n, r in _rows(stage).items()} == before
    assert stage.fleet.books.starts == starts and not [line for line in stage.world.log if " ends on " in line]


# -- what fleet never wrote --------------------------------------------------------------------------


def test_a_replaced_unit_ends_wholly_before_the_new_one_begins(stage: Stage) -> None:
    """The old ExecStopPost= has run before the new ExecStartPre=."""
    stage.put(a="ExecStartPre=/bin/pre\nExecStopPost=/bin/post\nEnvironment=V=1")
    stage.do("unit.start", "a")
    stage.world.log.clear()
    stage.put(replace=True, a="ExecStartPre=/bin/pre\nExecStopPost=/bin/post\nEnvironment=V=2")
    stage.wait(lambda: any("a.service starts on" in line for line in stage.world.log))
    steps = [word for line in stage.world.log for word in ("stop-post", "start-pre", "starts on") if "a.service" in line and word in line]
    assert steps == ["stop-post", "start-pre", "starts on"]


def test_the_majority_goes_on_during_a_partition(stage: Stage) -> None:
    stage.put(a="[X-Fleet]\nMachineID=m1", b="", c="")
    stage.do("unit.start", "a")
    stage.world.partition({"m1"})
    stage.world.run(10)
    majority = [m for m in stage.fleet.machines if m.name != "m1"]
    stage.fleet.machines[:] = majority + [m for m in stage.fleet.machines if m.name == "m1"]
    stage.do("unit.start", "b", "c")
    assert {stage.where("b"), stage.where("c")} <= {"m2", "m3"}
    stage.world.heal()
    stage.until("a", "b", "c")


def test_a_leader_that_dies_in_the_middle_of_many_starts_loses_none(stage: Stage) -> None:
    names = [f"u@{n}" for n in range(120)]
    stage.put(u_="")
    stage.do("unit.start", *names, no_block=True)
    stage.world.run(0.05)
    leader = next(m for m in stage.fleet.machines if m.host.raft._mailbox.actor.raft.role == 3)
    leader.crash()
    stage.world.run(3)
    leader.start()
    stage.wait(lambda: stage.running() == set(names), 60)
    assert not stage.fleet.books.violations


def test_a_unit_that_kills_every_host_it_meets_meets_only_one(stage: Stage) -> None:
    """A poison unit, whose machine dies whenever it starts: after the first losses it waits, and others run on."""
    stage.put(poison="[X-Argosy]\nReschedule=2", a="", b="")
    stage.do("unit.start", "a", "b")
    original = stage.fleet.books.started
    killed: list[str] = []

    def started(unit: str, machine: str, fence: int) -> None:
        original(unit, machine, fence)
        if unit == "poison.service" and len(killed) < 1:
            killed.append(machine)
            stage.world.call_later(0.01, _machine(stage, machine).crash)

    stage.fleet.books.started = started  # type: ignore[method-assign]
    stage.do("unit.start", "poison", no_block=True)
    stage.wait(lambda: bool(killed) and not _machine(stage, killed[0]).alive)
    stage.wait(lambda: {"a", "b", "poison"} <= stage.running(), 60)
    assert stage.where("poison") != killed[0]


def test_866_1073_what_is_destroyed_and_submitted_with_another_content_runs_as_the_new_one(stage: Stage) -> None:
    for version in range(4):
        stage.put(a=f"Environment=V={version}")
        stage.do("unit.start", "a")
        assert f"V={version}" in stage.fleet.do("unit.cat", unit="a.service")
        assert _rows(stage)["a"]["active"] == "active"
        stage.do("unit.destroy", "a")
    assert _starts(stage, "a") == 4 and not stage.running()
