"""Updates of units with every actor of a host, in the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kernel.sim import Faults, World

from .stage import Stage

GOOD = "Restart=always\nEnvironment=V={version}\n[X-Argosy]\nUpdate=monitor 2s, deadline 20s{more}\n{keys}"


@pytest.fixture(params=[1, 2])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with World(request.param, Faults()) as world:
        yield Stage(world, request.param)


def file(version: str, more: str = "", keys: str = "", name: str = "api@.service") -> dict[str, Any]:
    text = GOOD.format(version=version, more=more and f", {more}", keys=keys)
    return {"name": name, "content": "[Service]\nExecStart=/bin/serve\n" + text}


def begin(stage: Stage, count: int = 4, **how: str) -> None:
    stage.fleet.do("unit.submit", files=[file("1", **how)])
    stage.fleet.do("unit.scale", unit="api@", count=count)
    stage.fleet.do("unit.start", units=[f"api@{{1..{count}}}"])


def hashes(stage: Stage) -> set[str]:
    """Of what runs, or is about to."""
    return {row["hash"] for row in stage.fleet.do("unit.list") if row["unit"].startswith("api@")}


def until(stage: Stage, *phases: str, unit: str = "api@") -> dict[str, Any]:
    last: list[dict[str, Any]] = [{}]

    def over() -> bool:
        last[0] = stage.fleet.do("unit.rollout", unit=unit)
        assert last[0]["phase"] in phases or last[0]["ended"] is None, last[0]
        return last[0]["phase"] in phases

    stage.wait(over, 120)
    return last[0]


def crash_leader(stage: Stage) -> None:
    """Its host process comes back before the lease ends: its units are not stopped by their fence meanwhile."""
    leader = next(m for m in stage.fleet.machines if m.alive and m.host.raft._mailbox.actor.raft.role == 3)
    leader.crash(power=False)
    stage.world.call_later(1.5, leader.start)


def test_an_update_goes_one_by_one_also_over_a_change_of_leaders(stage: Stage) -> None:
    """Three of four run at any time; the template has the new version at the end."""
    begin(stage)
    fewest: list[int] = []
    assert stage.fleet.do("unit.update", files=[file("2")])["units"] == [{"unit": "api@.service", "change": "rollout"}]
    stage.world.call_later(3.0, lambda: crash_leader(stage))

    def over() -> bool:
        fewest.append(len(stage.running()))
        return stage.fleet.do("unit.rollout", unit="api@")["phase"] == "done"

    stage.wait(over, 120)
    assert min(fewest) == 3 and len(hashes(stage)) == 1
    cat = stage.fleet.do("unit.cat", unit="api@")
    assert "V=2" in cat and all(stage.fleet.do("unit.cat", unit=f"api@{n}") == cat for n in range(1, 5))
    assert [row["state"] for row in stage.fleet.do("unit.versions", unit="api@")] == ["good", "current"]
    assert stage.fleet.do("unit.update", files=[file("2")])["units"][0]["change"] == "none"


def test_a_version_that_fails_is_taken_back_by_itself(stage: Stage) -> None:
    """After the first instance: the others were never touched."""
    begin(stage)
    old = hashes(stage)
    bad = file("2")
    bad["content"] = bad["content"].replace("Restart=always", "Restart=no")
    stage.fleet.do("unit.update", files=[bad])
    stage.wait(lambda: len(hashes(stage)) == 2)
    stage.world.run(0.5)
    stage.end("api@1")
    record = until(stage, "rolled-back")
    assert "api@1.service" in record["reason"] and hashes(stage) == old
    stage.until("api@1", "api@2", "api@3", "api@4")
    assert [row["state"] for row in stage.fleet.do("unit.versions", unit="api@")] == ["current", "bad"]
    assert sum(line == "-api@4" for line in stage.log()) == 0


def test_a_canary_waits_to_be_promoted_and_a_rollback_returns(stage: Stage) -> None:
    """By an operator; and once it is done, to the last good version."""
    begin(stage, more="canary 1, parallel 2")
    stage.fleet.do("unit.update", files=[file("2", more="canary 1, parallel 2")])
    assert until(stage, "waiting")["changed"] == 1
    stage.world.run(20)
    assert stage.fleet.do("unit.rollout", unit="api@3")["phase"] == "waiting"
    stage.fleet.do("unit.rollout", unit="api@", action="promote")
    stage.world.run(1.0)
    stage.fleet.do("unit.rollout", unit="api@", action="pause")
    stage.world.run(20)
    assert until(stage, "paused")["changed"] == 3
    stage.fleet.do("unit.rollout", unit="api@", action="resume")
    until(stage, "done")
    stage.fleet.do("unit.rollback", unit="api@")
    until(stage, "waiting")
    stage.fleet.do("unit.rollout", unit="api@", action="promote")
    until(stage, "done")
    assert "V=1" in stage.fleet.do("unit.cat", unit="api@4") and "V=1" in stage.fleet.do("unit.cat", unit="api@")
    assert stage.refusal("unit.rollout", unit="api@", action="resume") == "api@.service: nothing to resume: its rollout is done"


def test_start_first_has_one_more_while_it_lasts(stage: Stage) -> None:
    """Never fewer than shall run."""
    begin(stage)
    stage.fleet.do("unit.update", files=[file("2", more="order start-first")])
    fewest: list[int] = []

    def over() -> bool:
        fewest.append(len(stage.running()))
        return stage.fleet.do("unit.rollout", unit="api@")["phase"] == "done"

    stage.wait(over, 120)
    assert min(fewest) == 4
    stage.until("api@1", "api@2", "api@3", "api@4")


def test_a_global_unit_goes_machine_by_machine_and_back(stage: Stage) -> None:
    """Two of three machines run it at any time."""
    name = "agent.service"
    keys = "[X-Fleet]\nGlobal=yes"
    stage.fleet.books.everywhere.add(name)
    stage.fleet.do("unit.submit", files=[file("1", keys=keys, name=name)])
    stage.fleet.do("unit.start", units=[name])
    stage.wait(lambda: stage.where("agent") == "m1m2m3")
    stage.fleet.do("unit.update", files=[file("2", keys=keys, name=name)])
    fewest: list[int] = []

    def over() -> bool:
        fewest.append(len(stage.where("agent")) // 2)
        return stage.fleet.do("unit.rollout", unit=name)["phase"] == "done"

    stage.wait(over, 120)
    assert min(fewest) == 2 and "V=2" in stage.fleet.do("unit.cat", unit=name)
    starts = stage.log().count("+agent")
    stage.world.run(5)
    assert stage.log().count("+agent") == starts == 6
    bad = file("3", keys=keys, name=name)
    bad["content"] = bad["content"].replace("Restart=always", "Restart=no")
    stage.fleet.do("unit.update", files=[bad])
    stage.wait(lambda: stage.log().count("+agent") == 7)
    home = next(line.split()[4] for line in reversed(list(stage.world.log)) if "agent.service starts on" in line)
    stage.machine(home).place.shims[name].end(0)
    assert until(stage, "rolled-back", unit=name)["targets"] == 3
    stage.wait(lambda: stage.where("agent") == "m1m2m3")
    assert "V=2" in stage.fleet.do("unit.cat", unit=name) and stage.log().count("+agent") == 8


def test_scale_goes_up_and_down_and_replicas_are_kept(stage: Stage) -> None:
    """Replicas= says how many; unit scale says otherwise, and both are heeded by start."""
    stage.fleet.do("unit.submit", files=[file("1", keys="Replicas=3")])
    stage.fleet.do("unit.start", units=["api@"])
    stage.until("api@1", "api@2", "api@3")
    stage.fleet.do("unit.scale", unit="api@", count=5)
    stage.until("api@1", "api@2", "api@3", "api@4", "api@5")
    answer = stage.fleet.do("unit.scale", unit="api@", count=1)
    assert answer["destroyed"] == [f"api@{n}.service" for n in range(2, 6)]
    stage.until("api@1")
    stage.fleet.do("unit.stop", units=["api@"])
    stage.until()
    stage.fleet.do("unit.start", units=["api@"])
    stage.until("api@1")


def runs_new(stage: Stage, unit: str, number: str = "2") -> bool:
    """Whether what runs of a unit is of this version."""
    if version(stage, unit) != number:
        return False
    wanted = next(row["hash"] for row in stage.fleet.do("unit.files") if row["unit"] == f"{unit}.service")
    row = next(row for row in stage.fleet.do("unit.list") if row["unit"] == f"{unit}.service")
    return (row["active"], row["hash"]) == ("active", wanted) and unit in stage.running()


def version(stage: Stage, unit: str) -> str:
    """Which one is stored of a unit."""
    text = str(stage.fleet.do("unit.cat", unit=unit))
    return next(line for line in text.splitlines() if line.startswith("Environment=V")).removeprefix("Environment=V=")


def test_what_cannot_run_before_an_update_does_not_hold_up_its_return(stage: Stage) -> None:
    """A fourth instance on three machines, and a version that fails on the second."""
    keys = "MaxPerMachine=1"
    stage.fleet.do("unit.submit", files=[file("1", keys=keys)])
    stage.fleet.do("unit.scale", unit="api@", count=4)
    stage.fleet.do("unit.start", units=["api@{1..4}"], no_block=True)
    stage.wait(lambda: len(stage.running()) == 3)
    bad = file("2", keys=keys)
    bad["content"] = bad["content"].replace("Restart=always", "Restart=no")
    stage.fleet.do("unit.update", files=[bad])
    able = sorted(stage.running())
    stage.wait(lambda: runs_new(stage, able[1]), 60)
    stage.end(able[1])
    record = until(stage, "rolled-back", "failed")
    assert record["phase"] == "rolled-back", record
    assert {version(stage, f"api@{n}") for n in range(1, 5)} == {"1"}


def test_a_newer_file_for_units_at_rest_ends_what_was_under_way(stage: Stage) -> None:
    """Nothing brings the older one back."""
    begin(stage, 3, more="canary 1")
    stage.fleet.do("unit.update", files=[file("2", more="canary 1")])
    until(stage, "waiting")
    stage.fleet.do("unit.stop", units=["api@{1..3}"])
    assert stage.fleet.do("unit.update", files=[file("3", more="canary 1")])["units"][0]["change"] == "replaced"
    stage.world.run(10)
    assert stage.fleet.do("unit.rollout", unit="api@")["phase"] == "failed"
    assert {version(stage, name) for name in ("api@", "api@1", "api@2", "api@3")} == {"3"}


def test_a_file_that_is_being_rolled_out_is_not_replaced_behind_its_back(stage: Stage) -> None:
    """By submit, which says what to use; a plan of before is void, too."""
    begin(stage, 3)
    plan = stage.fleet.do("unit.plan", files=[file("3")])
    stage.fleet.do("unit.update", files=[file("2")])
    stage.wait(lambda: version(stage, "api@1") == "2")
    assert "unit update takes the new file" in stage.refusal("unit.submit", files=[file("4")], replace=True)
    assert "changed since plan" in stage.refusal("unit.apply", files=[file("3")], plan=plan["token"])
    until(stage, "done")
    assert {version(stage, name) for name in ("api@", "api@1", "api@2", "api@3")} == {"2"}


def test_what_runs_beside_an_update_goes_with_its_template(stage: Stage) -> None:
    """And is no more than twenty, and never begins again while the update is taken back."""
    begin(stage)
    stage.fleet.do("unit.update", files=[file("2", more="order start-first, parallel 150")])
    stage.wait(lambda: {f"api@surge-{n}" for n in range(1, 5)} <= stage.running())
    stage.fleet.do("unit.rollback", unit="api@")
    stage.wait(lambda: not any("surge" in unit for unit in stage.running()))
    stage.fleet.do("unit.rollout", unit="api@", action="pause") if until(stage, "rolling-back", "rolled-back")["phase"] == "rolling-back" else None
    stage.world.run(10)
    assert not any("surge" in unit for unit in stage.running())
    stage.fleet.do("unit.update", files=[file("3", more="order start-first")])
    stage.wait(lambda: "api@surge-1" in stage.running())
    stage.fleet.do("unit.destroy", units=["api@{1..4}", "api@"], no_block=True)
    stage.wait(lambda: not stage.running(), 60)
    stage.wait(lambda: not stage.fleet.do("unit.rollouts"))


def test_a_pause_after_a_failure_is_resumed_with_another_start(stage: Stage) -> None:
    """Of what failed; and with no instances left there is nothing to wait for."""
    begin(stage, 3)
    bad = file("2", more="on-failure pause")
    bad["content"] = bad["content"].replace("Restart=always", "Restart=no")
    stage.fleet.do("unit.update", files=[bad])
    stage.wait(lambda: runs_new(stage, "api@1"))
    stage.end("api@1")
    until(stage, "paused")
    stage.fleet.do("unit.rollout", unit="api@", action="resume")
    until(stage, "done")
    stage.fleet.do("unit.update", files=[file("3", more="canary 1")])
    stage.fleet.do("unit.scale", unit="api@", count=0)
    until(stage, "done")


def test_a_rollback_goes_to_a_version_that_was_found_good(stage: Stage) -> None:
    """Not to one that was given up half way."""
    begin(stage, 3)
    stage.fleet.do("unit.update", files=[file("2")])
    until(stage, "done")
    stage.fleet.do("unit.update", files=[file("3")])
    stage.wait(lambda: version(stage, "api@1") == "3")
    stage.fleet.do("unit.update", files=[file("2")])
    until(stage, "done")
    stage.fleet.do("unit.rollback", unit="api@")
    until(stage, "done")
    assert {version(stage, name) for name in ("api@", "api@1", "api@2", "api@3")} == {"1"}
