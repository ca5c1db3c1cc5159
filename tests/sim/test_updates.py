"""Machines that renew themselves, with every actor of a host, in the simulator (behaviours L7 to L17, U4, U5, R1, R2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.sim import Faults, World

from .slots import Publisher
from .stage import Stage

FAST = {"soak": 1.0, "waves": [50, 100], "canaries": 1}
WEB = "Restart=always\n[X-Argosy]\nHealthCheck=tcp://:PORT\nPort=http\n"


def yard(world: World, folder: Path, size: int = 3) -> tuple[Stage, Publisher]:
    """Machines with slots, and the founding units on them."""
    made: list[Publisher] = []
    stage = Stage(world, 1, size, before=lambda fleet: made.append(Publisher(fleet, folder)))
    [publisher] = made
    stage.put(web_=WEB, agent="[X-Fleet]\nGlobal=yes")
    stage.fleet.do("unit.start", units=["web@{1..6}", "agent"])
    stage.fleet.do("release.policy", policy={"commit_after": 2.0, "drain_limit": 30.0, "trial_limit": 20.0})
    return stage, publisher


@pytest.fixture
def world() -> Iterator[World]:
    with World(3, Faults()) as world:
        yield world


def states(stage: Stage) -> dict[str, Any]:
    return {row["machine"]: row["state"] for row in stage.fleet.do("release.status")["machines"]}


def test_a_version_reaches_every_machine_one_at_a_time_and_nobody_notices(world: World, tmp_path: Path) -> None:
    """At most one is away, five of six instances always run, the lock is free at the end."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    world.run(5)
    assert set(publisher.versions().values()) == {"factory"}, "published is not rolled out"
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    fewest, most = [6], [0]
    seen: set[str] = set()

    def over() -> bool:
        fewest.append(sum(unit.startswith("web@") for unit in stage.running()))
        most.append(sum(not machine.alive for machine in stage.fleet.machines))
        if all(machine.alive for machine in stage.fleet.machines):
            seen.update(states(stage).values())
        return set(publisher.versions().values()) == {"2.0"} and set(states(stage).values()) == {"idle"}

    stage.wait(over, 300)
    assert min(fewest) >= 5 and max(most) == 1
    assert {"wait-permit", "draining", "trial"} <= seen
    [lock] = stage.fleet.do("lock.status")
    assert not lock["holders"] and not lock["queue"]
    assert [row["event"] for row in lock["history"] if row["event"] != "phase"] == ["granted", "released"] * 3
    assert {row["state"] for row in stage.fleet.do("machine.list")} == {"ready"}
    stage.wait(lambda: stage.where("agent") == "m1m2m3")
    world.run(10)
    assert sum(" loses power" in line for line in world.log) == 3


@pytest.mark.parametrize("version", ["crash", "sick"])
def test_u4_u5_a_version_that_does_not_work_rolls_back_once_and_a_newer_one_is_taken(world: World, tmp_path: Path, version: str) -> None:
    """It crashes at its start, or a required check fails: back by itself, never again by itself, the rollout halted."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish(version, 1)
    stage.fleet.do("release.rollout", version=version, plan={**FAST, "failures_max": 1})
    stage.wait(lambda: stage.fleet.do("release.status").get("halted"), 300)
    stage.wait(lambda: set(publisher.versions().values()) == {"factory"} and not stage.fleet.do("lock.status")[0]["holders"], 120)
    tried = [line for line in world.log if f"runs version {version}" in line]
    assert len({line.split()[1] for line in tried}) == 1, "only the canary"
    assert len(tried) == (3 if version == "crash" else 1)
    world.run(60)
    assert len([line for line in world.log if f"runs version {version}" in line]) == len(tried)
    canary = tried[0].split()[1]
    row = next(row for row in stage.fleet.do("release.status")["machines"] if row["machine"] == canary)
    assert row["failed"] == [version] and row["state"] in ("refused", "halted") and "did not work here" in row["reason"]
    assert {row["state"] for row in stage.fleet.do("machine.list")} == {"ready"}
    publisher.publish("3.0", 2)
    stage.fleet.do("release.rollout", version="3.0", plan=FAST)
    stage.wait(lambda: set(publisher.versions().values()) == {"3.0"}, 300)


def test_a_floor_is_never_skipped(world: World, tmp_path: Path) -> None:
    """From the first version through the second to the third, though the third was asked for."""
    stage, publisher = yard(world, tmp_path)
    for number, floor in ((1, 0), (2, 1), (3, 2)):
        publisher.publish(f"v{number}", number, floor)
    stage.fleet.do("release.rollout", version="v3", plan={**FAST, "soak": 0.0})
    stage.wait(lambda: set(publisher.versions().values()) == {"v3"}, 900)
    for machine in ("m1", "m2", "m3"):
        runs = [line.split()[-1] for line in world.log if f" {machine} runs version" in line]
        assert runs == ["factory", "v1", "v2", "v3"]


def test_l14_l15_a_closed_window_and_a_blocker_take_no_lock(world: World, tmp_path: Path) -> None:
    """One that comes after the grant gives the lock back, and units come back."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.policy", policy={"windows": ["2031-01-01 00:00 UTC for 1h"]})
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: "wait-window" in states(stage).values(), 60)
    world.run(10)
    assert not stage.fleet.do("lock.status")[0]["history"]
    stage.put(backup="[X-Fleet]\nGlobal=yes")
    stage.fleet.do("unit.start", units=["backup"])
    stage.fleet.do("release.policy", policy={"windows": [], "block_units": ["backup.service"]})
    stage.wait(lambda: "wait-blocker" in states(stage).values(), 60)
    world.run(10)
    assert not stage.fleet.do("lock.status")[0]["history"]
    stage.fleet.do("release.policy", policy={"block_units": [], "drain_limit": 3000.0})
    stage.put(pinned="[X-Fleet]\nMachineMetadata=nobody=1")
    stage.wait(lambda: "draining" in states(stage).values(), 60)
    stage.fleet.do("release.policy", policy={"windows": ["2031-01-01 00:00 UTC for 1h"]})
    stage.wait(lambda: not stage.fleet.do("lock.status")[0]["holders"] and {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"}, 60)
    assert set(publisher.versions().values()) == {"factory"}
    stage.wait(lambda: len(stage.running()) == 8)


def test_l11_a_machine_whose_lock_was_taken_away_does_not_reboot(world: World, tmp_path: Path) -> None:
    """An operator releases it by force in the middle of the drain."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.put(slow="[X-Fleet]\nGlobal=yes\n[Service]\nTimeoutStopSec=60s")
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: bool(stage.fleet.do("lock.status")[0]["holders"]), 120)
    [holder] = stage.fleet.do("lock.status")[0]["holders"]
    stage.fleet.do("lock.set-max", max=0)
    stage.fleet.do("lock.release", machine=holder["machine"], force=True)
    stage.wait(lambda: {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"} and len(stage.running()) == 7, 60)
    assert set(publisher.versions().values()) == {"factory"}
    stage.wait(lambda: set(states(stage).values()) == {"wait-lock", "wait-permit"}, 60)
    stage.fleet.do("lock.set-max", max=1)
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"}, 300)


def test_an_updater_that_is_killed_at_any_moment_goes_on(world: World, tmp_path: Path) -> None:
    """And so does the whole host process: L7."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)

    def disturb() -> bool:
        machine = world.random.choice([m for m in stage.fleet.machines if m.alive] or [None])
        if machine is not None and world.random.random() < 0.7:
            for box in machine.host.system.mailboxes():
                if box.path.endswith("updater"):
                    box.ref.kill()
        elif machine is not None and sum(m.alive for m in stage.fleet.machines) == 3:
            machine.crash(power=False)
            world.call_later(1.0, lambda: machine.alive or machine.start())
        return set(publisher.versions().values()) == {"2.0"} and len(publisher.versions()) == 3

    for _ in range(200):
        world.run(1.7)
        if disturb():
            break
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"} and not stage.fleet.do("lock.status")[0]["holders"], 200)
    stage.wait(lambda: {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"}, 60)
