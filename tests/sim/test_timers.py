"""Timers of the whole cluster: each elapse is acted on once, whoever leads when."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.brain_client import TIMERS, UNITS
from kernel.sim import Faults, World

from .fleet import Fleet

TIMER = "[Timer]\nOnCalendar=*:*:0/5\n"
JOB = "[Service]\nType=oneshot\nExecStart=/bin/job\n"
SECONDS = 90


def store_of(fleet: Fleet) -> Any:
    """The newest store of a living host."""
    peers = [m.host.raft._mailbox.actor for m in fleet.machines if m.alive]
    return max((peer.store for peer in peers), key=lambda store: store.revision)


def files(**units: str) -> list[dict[str, str]]:
    """What a submit is given."""
    return [{"name": name.replace("_", "."), "content": text} for name, text in units.items()]


@pytest.mark.parametrize("seed", range(6))
def test_each_elapse_is_acted_on_once_though_leaders_come_and_go(seed: int) -> None:
    """Crashes of whoever leads, with messages lost and late: no elapse twice, and none forgotten."""
    world = World(seed, Faults(loss=0.02, duplicate=0.05, delay_s_max=0.02))
    fleet = Fleet(seed, 3, world)
    with world:
        for machine in fleet.machines:
            machine.start()
        fleet.do("unit.submit", files=files(job_timer=TIMER, job_service=JOB))
        fleet.do("unit.start", units=["job.timer"])
        began = world.now
        while world.now < began + SECONDS:
            world.run(world.random.uniform(2, 9))
            leaders = [m for m in fleet.machines if m.alive and m.host.timers._mailbox.actor.active]
            if leaders and world.random.random() < 0.7:
                victim = leaders[0]
                victim.crash()
                world.call_later(world.random.uniform(0.5, 1.9), victim.start)  # before the next look
        world.heal()
        world.run(15)
        store = store_of(fleet)
        acted: list[float] = []
        started: list[int] = []
        for event in store.events:
            keys = {change.key: change.item for change in event.changes}
            record = keys.get(TIMERS + b"job.timer")
            if record is not None and json.loads(record.value)["last"]:
                acted.append(json.loads(record.value)["last"])
                if UNITS + b"job.service" in keys:
                    started.append(json.loads(keys[UNITS + b"job.service"].value)["restarts"])
        assert acted == sorted(set(acted)), "an elapse was acted on twice"
        assert all(later - earlier == 5 for earlier, later in zip(acted, acted[1:], strict=False)), acted
        assert started == list(range(1, len(started) + 1))
        assert len(started) >= SECONDS / 5 * 0.6


def test_a_timer_that_was_stopped_starts_nothing() -> None:
    """And begins anew when it is started again; between two elapses nothing is written."""
    world = World(1, Faults())
    fleet = Fleet(1, 3, world)
    with world:
        for machine in fleet.machines:
            machine.start()
        fleet.do("unit.submit", files=files(job_timer="[Timer]\nOnActiveSec=4\n", job_service=JOB))
        fleet.do("unit.start", units=["job.timer"])
        [row] = fleet.do("unit.status", unit="job.timer")["rows"]
        assert (row["active"], row["sub"], row["machine"]) == ("active", "waiting", "")
        assert "starts job.service at" in fleet.do("unit.why", unit="job.timer")["reason"]
        fleet.do("unit.stop", units=["job.timer"])
        world.run(10)
        assert json.loads(store_of(fleet).live[UNITS + b"job.service"].value)["restarts"] == 0
        fleet.do("unit.start", units=["job.timer"])
        world.run(6)
        assert json.loads(store_of(fleet).live[UNITS + b"job.service"].value)["restarts"] == 1
        log = [m.host.raft._mailbox.actor.raft.log for m in fleet.machines]
        before = [one.last_index for one in log]
        world.run(60)
        assert [one.last_index for one in log] == before
