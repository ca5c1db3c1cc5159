"""Machines that renew themselves, with every actor of a host, in the simulator (behaviours L7 to L17, U4, U5, R1, R2)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.brain_client import RELEASES, ROLLOUTS_OF_RELEASES, TRUST, UPDATES, to_json
from actors.command import Command
from actors.raft_messages import Propose
from fleet import release
from kernel.sim import Faults, World
from runners import boot

from .fleet import FleetFailure
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
    crashes: Counter[str] = Counter()  # a version that ends three times on a machine is bad for it, and rightly so

    def disturb() -> bool:
        machine = world.random.choice([m for m in stage.fleet.machines if m.alive] or [None])
        if machine is not None and world.random.random() < 0.7:
            for box in machine.host.system.mailboxes():
                if box.path.endswith("updater"):
                    box.ref.kill()
        elif machine is not None and crashes[machine.name] < boot.TRIES - 1 and sum(m.alive for m in stage.fleet.machines) == 3:
            crashes[machine.name] += 1
            machine.crash(power=False)
            world.call_later(1.0, lambda: machine.alive or machine.start())
        return set(publisher.versions().values()) == {"2.0"} and len(publisher.versions()) == 3

    for _ in range(200):
        world.run(1.7)
        if disturb():
            break
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"} and not stage.fleet.do("lock.status")[0]["holders"], 200)
    stage.wait(lambda: {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"}, 60)


def _holders(stage: Stage) -> list[dict[str, Any]]:
    holders: list[dict[str, Any]] = stage.fleet.do("lock.status")[0]["holders"]
    return holders


def _page(stage: Stage) -> str:
    """What the metrics of the machines say, without their comments."""
    from gateway import observe
    from metrics.exporter import Exporter

    pages = []
    for machine in stage.fleet.machines:
        if machine.alive:
            company = machine.host
            pages.append(Exporter(lambda c=company: observe.lock_families(c), lambda c=company: observe.update_families(c)).render().decode())  # type: ignore[misc]
    return "\n".join(line for page in pages for line in page.splitlines() if not line.startswith("#"))


def test_l8_a_holder_that_never_returns_is_overdue_and_still_holds(world: World, tmp_path: Path) -> None:
    """Its machine is lost; the page and the status say so; nobody else is granted the lock."""
    stage, _ = yard(world, tmp_path)
    stage.fleet.do("lock.acquire", machine="m3", reason="by hand", wait=0.0)
    stage.fleet.machines[2].crash()
    world.run(60)
    assert not _holders(stage)[0]["overdue"] and 'argosy_lock_overdue{group="default"} 0' in _page(stage)
    world.run(900)
    [holder] = _holders(stage)
    assert holder["overdue"] and holder["machine"] == "m3"
    assert 'argosy_lock_overdue{group="default"} 1' in _page(stage)
    assert not stage.fleet.do("lock.acquire", machine="m1", reason="update", wait=0.0)["granted"]


def test_l12_the_lock_is_kept_until_the_machine_is_well(world: World, tmp_path: Path) -> None:
    """A required check fails for half a minute after the reboot; the version is kept all the same."""
    stage, publisher = yard(world, tmp_path)
    stage.fleet.do("release.policy", policy={"trial_limit": 120.0})
    publisher.sick = {"m1", "m2", "m3"}
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: "trial" in states(stage).values(), 120)
    [holder] = _holders(stage)
    for _ in range(30):
        world.run(1.0)
        assert [h["machine"] for h in _holders(stage)] == [holder["machine"]] and states(stage)[holder["machine"]] == "trial"
    publisher.sick = set()
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"} and not _holders(stage), 300)


def test_l12_a_machine_that_stays_unwell_keeps_the_lock(world: World, tmp_path: Path) -> None:
    """Also after it went back to the old version: another one in its place would be the next to fall."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: bool(_holders(stage)), 120)
    publisher.sick = {"m1", "m2", "m3"}
    stage.wait(lambda: "settling" in states(stage).values(), 200)
    [holder] = _holders(stage)
    world.run(60)
    assert [h["machine"] for h in _holders(stage)] == [holder["machine"]]
    row = next(r for r in stage.fleet.do("release.status")["machines"] if r["machine"] == holder["machine"])
    assert "the lock is kept until the machine is well" in row["reason"]
    assert 'argosy_update_bad_versions{found="unwell"} 1' in _page(stage)
    publisher.sick = set()
    stage.wait(lambda: not _holders(stage), 60)


def test_l13_an_update_that_is_pending_at_boot_does_not_pin_the_lock(world: World, tmp_path: Path) -> None:
    """The machine loses power in its drain, the window closes meanwhile: its lock is free soon after it is back."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.put(pinned="[X-Fleet]\nGlobal=yes\n[Service]\nTimeoutStopSec=60s\nExecStop=/bin/slow")
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: "draining" in states(stage).values(), 120)
    [holder] = _holders(stage)
    victim = next(m for m in stage.fleet.machines if m.name == holder["machine"])
    victim.crash()
    stage.fleet.do("release.policy", policy={"windows": ["2031-01-01 00:00 UTC for 1h"]})
    world.run(8)
    assert [h["machine"] for h in _holders(stage)] == [victim.name], "its lock was freed while it was away"
    victim.start()
    stage.wait(lambda: not _holders(stage), 15)
    stage.wait(lambda: {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"}, 15)
    assert set(publisher.versions().values()) == {"factory"}


def test_l16_a_drain_that_does_not_end_is_called_off(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine takes units again, then the lock is free; nothing is started anew, and the next attempt comes later."""
    from runners.simulated import SimHandle

    stage, publisher = yard(world, tmp_path)
    original = SimHandle.kill
    stuck = True

    def kill(self: SimHandle, number: int, whole: bool) -> None:
        if not (stuck and self._unit == "stuck.service"):
            original(self, number, whole)

    monkeypatch.setattr(SimHandle, "kill", kill)
    publisher.publish("2.0", 1)
    stage.put(stuck="[X-Fleet]\nGlobal=yes")
    stage.fleet.do("unit.start", units=["stuck"])
    stage.fleet.do("release.policy", policy={"drain_limit": 5.0})
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: bool(_holders(stage)), 120)
    stage.wait(lambda: not _holders(stage), 120)
    assert {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"}, "the lock was free before units could come back"
    assert set(publisher.versions().values()) == {"factory"}

    def told() -> bool:
        reasons = [row["reason"] for row in stage.fleet.do("release.status")["machines"]]
        return any("the last drain did not end; trying again in" in reason for reason in reasons)

    stage.wait(told, 5)
    stuck = False
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"} and not _holders(stage), 2000)


def test_l16_what_an_operator_drained_stays_so(world: World, tmp_path: Path) -> None:
    """The machine is updated as well, and is as empty afterwards."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("machine.drain", machine="m2", reason="by hand", deadline_s=20, no_block=True)
    stage.wait(lambda: not [u for u, where in stage.fleet.books.running.items() if "m2" in where], 60)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"} and not _holders(stage), 400)
    assert {r["name"]: r["state"] for r in stage.fleet.do("machine.list")}["m2"] in ("draining", "drained")
    assert not [u for u, where in stage.fleet.books.running.items() if "m2" in where]


def test_r2_every_machine_is_in_one_state_and_it_is_counted(world: World, tmp_path: Path) -> None:
    """One label of the metric is 1 at any moment, and it is the one that the status shows."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    seen: set[str] = set()

    def over() -> bool:
        for machine in stage.fleet.machines:
            if machine.alive:
                lines = [line for line in _page_of(machine).splitlines() if line.startswith("argosy_update_state{")]
                ones = [line for line in lines if float(line.split()[-1]) == 1]
                assert len(ones) == 1 and len(lines) > 10, lines
                seen.add(ones[0].split('"')[1])
        return set(publisher.versions().values()) == {"2.0"} and not _holders(stage)

    stage.wait(over, 300)
    assert {"idle", "wait-permit", "wait-lock", "draining", "trial"} <= seen


def _page_of(machine: Any) -> str:
    from gateway import observe
    from metrics.exporter import Exporter

    return Exporter(lambda: observe.update_families(machine.host)).render().decode()


# -- found by looking for ways to break it ---------------------------------------------------------------


def test_a_plan_that_is_no_numbers_is_refused_and_one_that_is_stored_ends_no_host(world: World, tmp_path: Path) -> None:
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    for plan in ({"canaries": 1.5}, {"waves": [50.5, 100]}, {"canaries": True}, {"waves": "100"}, {"soak": "1"}):
        with pytest.raises(FleetFailure):
            stage.fleet.do("release.rollout", version="2.0", plan=plan, seconds=2.0)
    record = {"sequence": 1, "version": "2.0", "plan": {"canaries": 1.5}, "state": "running", "reason": "", "began": 0.0}
    stage.fleet.machines[0].host.raft.ask(Propose(["put", ROLLOUTS_OF_RELEASES + b"stable", to_json(record)]), block=False)
    world.run(20)
    assert all(machine.failure is None for machine in stage.fleet.machines)
    assert set(states(stage).values()) == {"halted"}


def test_what_was_never_started_is_not_kept(world: World, tmp_path: Path) -> None:
    """The updater dies between the order and the reboot; and where no launcher switches slots nothing is done at all."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("crash", 1)
    [port] = [publisher.ports["m1"]]
    port.slots.write(_statement(stage))
    port.slots.begin_trial("A", 60.0)
    for box in stage.fleet.machines[0].host.system.mailboxes():
        if box.path.endswith("updater"):
            box.ref.kill()
    world.run(30)
    record = port.slots.record()
    assert not record.trial and not record.active and not record.last and not record.bad
    for other in publisher.ports.values():
        other.running = ""
    stage.fleet.do("release.rollout", version="crash", plan=FAST)
    world.run(30)
    assert set(states(stage).values()) == {"refused"} and not stage.fleet.do("lock.status")[0]["history"]


def _statement(stage: Stage) -> Any:
    store = stage.fleet.machines[0].host.raft._mailbox.actor.store
    [item] = [item for key, item in store.live.items() if key.startswith(RELEASES)]
    return release.statement(json.loads(item.value)["signed"])


def test_the_lock_of_somebody_else_is_not_the_updaters(world: World, tmp_path: Path) -> None:
    """An operator holds it for the canary: it is not given back, and not used."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    token = stage.fleet.do("lock.acquire", machine="m2", reason="by hand", wait=0.0)["token"]
    stage.fleet.do("release.rollout", version="2.0", plan={**FAST, "canaries": 0, "waves": [100]})
    world.run(40)
    [holder] = _holders(stage)
    assert (holder["machine"], holder["token"]) == ("m2", token)
    assert set(publisher.versions().values()) == {"factory"}
    row = next(r for r in stage.fleet.do("release.status")["machines"] if r["machine"] == "m2")
    assert row["state"] == "wait-lock" and "held for this machine by operator" in row["reason"]
    stage.fleet.do("lock.release", machine="m2", token=token)
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"}, 300)


def test_only_the_release_that_was_named_is_taken(world: World, tmp_path: Path) -> None:
    """It expires before a machine has it: an older one that nobody rolled out is not taken in its place."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("withdrawn", 1)
    publisher.publish("2.0", 2)
    stage.fleet.do("lock.set-max", max=0)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    world.run(10)
    for machine in stage.fleet.machines:
        machine.offset += 86400 * 400
    stage.fleet.do("lock.set-max", max=1)
    world.run(60)
    assert set(publisher.versions().values()) == {"factory"}
    assert set(states(stage).values()) == {"refused"}
    assert all("expired" in row["reason"] for row in stage.fleet.do("release.status")["machines"])


def test_a_failure_that_was_seen_or_forgotten_holds_up_nobody(world: World, tmp_path: Path) -> None:
    """resume goes on past the machines that failed; forget lets one try again; a removed machine does not count."""
    stage, publisher = yard(world, tmp_path)
    publisher.sick = {"m1", "m2", "m3"}
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan={**FAST, "failures_max": 1})
    stage.wait(lambda: stage.fleet.do("release.status").get("halted"), 300)
    publisher.sick = set()
    stage.wait(lambda: not _holders(stage), 200)
    [failed] = [row["machine"] for row in stage.fleet.do("release.status")["machines"] if row["failed"]]
    stage.fleet.do("release.halt")
    stage.fleet.do("release.resume")
    stage.wait(lambda: sorted(publisher.versions().values()) == ["2.0", "2.0", "factory"], 300)
    assert publisher.versions()[failed] == "factory"
    stage.fleet.do("release.forget", machine=failed)
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"}, 300)


def test_keys_that_changed_twice_while_a_machine_was_away_reach_it(world: World, tmp_path: Path) -> None:
    from fleet import release
    from runners import artefact

    stage, publisher = yard(world, tmp_path)
    publisher.publish("1.0", 1)
    world.run(5)
    stage.fleet.machines[2].crash()
    private = publisher.private
    for version in (2, 3):
        fresh, public = artefact.make_key()
        signed = {"signed": release.Trust(version, 1, (public,)).record()}
        stage.fleet.do("release.trust", envelope=release.sign(release.sign(signed, private), fresh))
        private = fresh
    publisher.private = private
    stage.fleet.machines[2].start()
    world.run(15)
    publisher.publish("2.0", 2)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"}, 400)


def test_l17_the_quorum_is_asked_again_before_the_reboot(world: World, tmp_path: Path) -> None:
    """Another voter is lost during the drain: the update is called off, the majority stays."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: bool(_holders(stage)), 120)
    [holder] = _holders(stage)
    other = next(m for m in stage.fleet.machines if m.name != holder["machine"])
    other.crash()
    for _ in range(40):
        world.run(1.0)
        assert sum(machine.alive for machine in stage.fleet.machines) == 2
    other.start()
    stage.wait(lambda: set(publisher.versions().values()) == {"2.0"}, 600)


def test_a_release_is_offered_when_all_of_it_can_be_fetched(world: World, tmp_path: Path) -> None:
    """Pieces first; and a name that is used again means the newest."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    first = _statement(stage)
    made = replace(first, sequence=2, manifest="ab" * 32)
    envelope = release.sign({"signed": json.loads(made.signed())}, publisher.private)
    with pytest.raises(FleetFailure, match="1 pieces of version 2.0 are not on this machine"):
        stage.fleet.do("release.publish", envelope=envelope, seconds=2.0)
    with pytest.raises(FleetFailure, match="is no hash"):
        stage.fleet.do("release.missing", manifest="zz", seconds=2.0)
    again = replace(first, sequence=2)
    stage.fleet.do("release.publish", envelope=release.sign({"signed": json.loads(again.signed())}, publisher.private))
    assert stage.fleet.do("release.rollout", version="2.0", plan=FAST)["sequence"] == 2


def test_a_lock_is_waited_for_so_many_seconds(world: World, tmp_path: Path) -> None:
    """A time that is no number is refused."""
    stage, _ = yard(world, tmp_path)
    for wait in (float("nan"), -1.0, 1e9):
        with pytest.raises(FleetFailure, match="seconds from 0 to 86400"):
            stage.fleet.do("lock.acquire", machine="x", wait=wait, seconds=2.0)


def test_keys_that_a_disk_lost_stop_updates_with_a_sentence(world: World, tmp_path: Path) -> None:
    """And nothing else; the machine is seen."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    world.run(5)
    machine = stage.fleet.machines[1]
    (tmp_path / machine.name / "slots" / "trust.json").write_text("")
    machine.crash(power=False)
    machine.start()
    stage.fleet.do("release.rollout", version="2.0", plan={**FAST, "canaries": 3})

    def row() -> Any:
        return next(row for row in stage.fleet.do("release.status")["machines"] if row["machine"] == machine.name)

    stage.wait(lambda: "trust.json is damaged" in row()["reason"], 120)
    stage.wait(lambda: sorted(publisher.versions().values()) == ["2.0", "2.0", "factory"], 300)


def test_l10_machines_that_die_in_their_reboots_are_never_two(world: World, tmp_path: Path) -> None:
    """Nothing is reaped: who died holding is overdue and holds, until an operator takes the machine out."""
    stage, publisher = yard(world, tmp_path, size=5)
    publisher.publish("2.0", 1)
    publisher.lost = True  # no machine comes back from a reboot
    stage.fleet.do("release.rollout", version="2.0", plan={**FAST, "canaries": 5, "failures_max": 5})
    removed: set[str] = set()
    for _ in range(3):
        stage.wait(lambda: any(not m.alive and m.name not in removed for m in stage.fleet.machines), 300)
        for _ in range(50):
            world.run(5.0)
            assert sum(not m.alive and m.name not in removed for m in stage.fleet.machines) == 1
        [holder] = _holders(stage)
        assert holder["overdue"]
        stage.fleet.do("lock.acquire", machine="x", wait=0.0)
        assert 'argosy_lock_refusals_total{kind="held"} 0' not in _page_of(next(m for m in stage.fleet.machines if m.alive))
        stage.fleet.do("machine.remove", machine=holder["machine"])
        removed.add(holder["machine"])


def test_l15_users_and_metrics_block_one_machine_and_the_others_go_on(world: World, tmp_path: Path) -> None:
    """Somebody is logged in on one; a query that gives something stops everybody; after the grant it gives the lock back."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.policy", policy={"block_queries": ["http://prometheus:9090 bad"]})
    stage.fleet.do("release.rollout", version="2.0", plan={**FAST, "canaries": 3})
    stage.wait(lambda: set(states(stage).values()) == {"wait-blocker"}, 60)
    world.run(10)
    assert not stage.fleet.do("lock.status")[0]["history"]
    where = stage.fleet.machines[1].place  # type: ignore[attr-defined]
    where.users.append("alice on tty1")
    stage.fleet.do("release.policy", policy={"block_queries": ["http://prometheus:9090 good"], "block_users": True})
    stage.wait(lambda: sorted(publisher.versions().values()) == ["2.0", "2.0", "factory"], 300)
    world.run(10)
    row = next(row for row in stage.fleet.do("release.status")["machines"] if row["machine"] == "m2")
    assert row["state"] == "wait-blocker" and row["reason"].endswith("logged in: alice on tty1")
    where.users.clear()
    stage.fleet.do("release.policy", policy={"drain_limit": 3000.0})
    stage.put(pinned="[X-Fleet]\nMachineMetadata=nobody=1")
    stage.wait(lambda: states(stage)["m2"] == "draining", 60)
    where.users.append("bob on pts/0")
    stage.wait(lambda: not _holders(stage) and {r["state"] for r in stage.fleet.do("machine.list")} == {"ready"}, 60)
    assert publisher.versions()["m2"] == "factory"
    where.users.clear()
    stage.wait(lambda: publisher.versions()["m2"] == "2.0", 300)


def test_l6_without_a_quorum_nobody_is_granted_and_nobody_reboots(world: World, tmp_path: Path) -> None:
    """Asking fails in its time, the status says that it is stale; an update that has begun goes no further."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("2.0", 1)
    stage.fleet.do("release.rollout", version="2.0", plan=FAST)
    stage.wait(lambda: "draining" in states(stage).values(), 60)
    [holder] = _holders(stage)
    machine = stage.machine(holder["machine"])
    for other in stage.fleet.machines:
        if other is not machine:
            other.crash()
    reboots = sum(f"{machine.name} loses power" in line for line in world.log)
    world.run(10)
    asked = machine.host.control.ask(Command("lock.acquire", {"machine": "x"}), block=False)
    told = machine.host.control.ask(Command("lock.status", {}), block=False)
    world.run(20)
    assert asked.error is not None and told.value[0]["stale"]
    world.run(120)
    assert sum(f"{machine.name} loses power" in line for line in world.log) == reboots and machine.alive
    assert publisher.versions()[machine.name] == "factory"


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("no-key", {}), ("forged", {"manifest": "cd" * 32}), ("threshold", {}), ("expired", {"expires": 1_600_000_000}),
        ("product", {"product": "other"}), ("floor", {"sequence": 5, "floor": 3}), ("malformed", {"size": -1}), ("damaged", {}),
    ],
)  # fmt: skip
def test_u1_what_was_tampered_with_changes_no_slot(world: World, tmp_path: Path, code: str, change: dict[str, Any]) -> None:
    """Written past the checks of the door, straight into the brain: each machine refuses by itself, with the reason."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("1.0", 1)
    signed = {**json.loads(_statement(stage).signed()), "sequence": 2, "version": "2.0", **change}
    if signed["expires"] < signed["created"]:
        signed["created"] = signed["expires"] - 1000
    envelope = release.sign({"signed": signed}, publisher.private)
    if code == "forged":
        envelope["signed"]["manifest"] = "ab" * 32
    elif code == "threshold":
        envelope["signatures"] = {}
    elif code == "damaged":
        bad = tmp_path / "m1" / "releases"
        path = next(bad.glob(f"??/{signed['manifest']}"))
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    number = signed["sequence"]
    record = {"sequence": number, "version": "2.0", "plan": {**FAST, "canaries": 3, "failures_max": 2, "failure_percent": 10}, "state": "running",
              "reason": "", "began": 0.0}  # fmt: skip
    puts = [["put", RELEASES + b"stable/%016d" % number, to_json(envelope)], ["put", ROLLOUTS_OF_RELEASES + b"stable", to_json(record)]]
    if code == "floor":  # nor does another lead to it
        puts.append(["delete", RELEASES + b"stable/%016d" % 1])
    if code == "no-key":
        puts.append(["delete", TRUST])
        for machine in stage.fleet.machines:
            (tmp_path / machine.name / "slots" / "trust.json").unlink(missing_ok=True)
            machine.crash()
    before = {m.name: _slots_of(tmp_path / m.name) for m in stage.fleet.machines}
    for machine in stage.fleet.machines:
        machine.alive or machine.start()
    stage.wait(lambda: stage.fleet.do("cluster.status")["leader"])
    stage.fleet._until(lambda m: m.host.raft.ask(Propose(["txn", [], puts, []]), block=False), 30.0, "the tampered release")
    world.run(30)
    assert {m.name: _slots_of(tmp_path / m.name) for m in stage.fleet.machines} == before
    assert not stage.fleet.do("lock.status")[0]["history"]
    [reason] = {row["reason"] for row in stage.fleet.do("release.status")["machines"]}
    assert reason.startswith({"floor": "no release that is offered leads", "damaged": "version 2.0: 1 pieces"}.get(code, f"{code}: ")), reason


def _slots_of(home: Path) -> dict[str, bytes]:
    """Every file of both slots."""
    return {str(path): path.read_bytes() for slot in boot.SLOTS for path in sorted((home / "slots" / slot).rglob("*")) if path.is_file()}


def test_machines_follow_channels_and_locks_of_their_own(world: World, tmp_path: Path) -> None:
    """As their metadata say, also when an operator changes them; who follows another channel is not waited for."""
    stage, publisher = yard(world, tmp_path)
    publisher.publish("1.0", 1)
    publisher.publish("9.0", 9, channel="beta")
    stage.fleet.do("machine.metadata", machine="m3", metadata={"update-channel": "beta", "reboot-group": "rack2"})
    stage.wait(lambda: {row["machine"] for row in stage.fleet.do("release.status", channel="beta")["machines"]} == {"m3"})
    stage.fleet.do("release.rollout", version="1.0", plan={**FAST, "canaries": 2, "waves": [100]})
    stage.wait(lambda: [publisher.versions()[name] for name in ("m1", "m2", "m3")] == ["1.0", "1.0", "factory"], 300)
    stage.fleet.do("lock.acquire", machine="somebody")  # of the default group, which is none of m3's business
    stage.fleet.do("release.rollout", version="9.0", channel="beta", plan=FAST)
    stage.wait(lambda: publisher.versions()["m3"] == "9.0", 300)
    stage.wait(lambda: states_of(stage, "beta") == {"m3": "idle"}, 60)
    rows = {row["group"]: row for row in stage.fleet.do("lock.status")}
    assert [(e["event"], e["machine"]) for e in rows["rack2"]["history"] if e["event"] != "phase"] == [("granted", "m3"), ("released", "m3")]
    assert "m3" not in {entry["machine"] for entry in rows["default"]["history"]}
    stage.fleet.do("machine.metadata", machine="m2", metadata={"update-channel": "No Such"})
    stage.wait(lambda: any("metadata update-channel: 'No Such' is no channel" in row["reason"] for row in _rows(stage, "No Such")), 10)
    stage.fleet.do("machine.metadata", machine="m2", metadata={"update-channel": ""})
    stage.wait(lambda: states(stage) == {"m1": "idle", "m2": "idle"}, 10)


def states_of(stage: Stage, channel: str) -> dict[str, Any]:
    return {row["machine"]: row["state"] for row in stage.fleet.do("release.status", channel=channel)["machines"]}


def _rows(stage: Stage, channel: str) -> list[dict[str, Any]]:
    """What machines say that name a channel, whether there can be such a one or not."""
    store = stage.fleet.machines[0].host.raft._mailbox.actor.store
    said = [json.loads(item.value) for key, item in store.live.items() if key.startswith(UPDATES)]
    return [row for row in said if row["channel"] == channel]
