"""Placement, drains and failover with every actor of a host, in the simulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernel.sim import Faults, World

from .stage import Stage

GIB = 1024**3


@pytest.fixture(params=[1, 2])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(request.param, Faults()) as world:
        yield world


def test_a_drained_machine_is_emptied_an_instance_at_a_time_and_used_again(world: World) -> None:
    """Never fewer than all but one of a template; global units last; nothing comes until it is undrained."""
    stage = Stage(world, 1)
    stage.put(api_="Restart=always\n[X-Argosy]\nSpread=machine", agent="[X-Fleet]\nGlobal=yes", one="")
    stage.fleet.do("unit.start", units=["api@{1..6}", "agent", "one"])
    assert sorted(stage.homes()[f"api@{n}"] for n in range(1, 7)) == ["m1", "m1", "m2", "m2", "m3", "m3"]
    victim = stage.where("one")
    fewest = [6]

    def watch() -> bool:
        apis = sum(unit.startswith("api@") for unit in stage.running())
        fewest.append(apis)
        return stage.state(victim) == "drained"

    begun = len(stage.log())
    stage.fleet.do("machine.drain", machine=victim, reason="new disks", no_block=True)
    stage.wait(watch)
    assert min(fewest) == 5
    assert victim not in stage.homes().values() and len(stage.homes()["agent"]) == 4  # two names of two letters
    assert stage.log()[-1] == "-agent" or stage.log()[begun:].index("-agent") > stage.log()[begun:].index("-one")
    assert "drained (new disks)" in stage.fleet.do("unit.history", unit="one.service")[0]["detail"]
    stage.fleet.do("unit.start", units=["api@7"])
    assert stage.where("api@7") != victim
    stage.fleet.do("machine.undrain", machine=victim)
    stage.wait(lambda: victim in stage.where("agent"))
    moves = stage.fleet.do("cluster.rebalance")["moves"]
    assert moves and {move["to"] for move in moves} == {victim}
    stage.fleet.do("cluster.rebalance", apply=True, per_minute=600)
    stage.wait(lambda: list(stage.homes().values()).count(victim) == len(moves) and len(stage.running()) == 9)
    assert not stage.fleet.do("cluster.rebalance")["moves"]


def test_what_can_run_nowhere_else_stays_until_the_deadline(world: World) -> None:
    """And is placed again when the machine is used again."""
    stage = Stage(world, 1)
    stage.put(pinned="[X-Fleet]\nMachineID=m2")
    stage.fleet.do("unit.start", units=["pinned"])
    stage.fleet.do("machine.drain", machine="m2", deadline_s=20, no_block=True)
    world.run(10)
    assert stage.where("pinned") == "m2" and stage.state("m2") == "draining"
    stage.wait(lambda: stage.state("m2") == "drained")
    assert "no machine qualifies" in stage.why("pinned")
    stage.fleet.do("machine.undrain", machine="m2")
    stage.until("pinned")


def test_metadata_that_an_operator_sets_moves_units(world: World) -> None:
    """Over what the machine says of itself, and after its host was restarted."""
    stage = Stage(world, 1, m1={"metadata": {"disk": "hdd"}})
    stage.put(db='[X-Fleet]\nMachineMetadata="disk in ssd|nvme" rack!=r9')
    stage.fleet.do("unit.start", units=["db"], no_block=True)
    world.run(2)
    assert not stage.running()
    assert stage.fleet.do("unit.why", unit="db")["machines"]["m1"] == "MachineMetadata=disk in ssd|nvme: it is hdd"
    stage.fleet.do("machine.metadata", machine="m1", metadata={"disk": "ssd"})
    stage.wait(lambda: stage.where("db") == "m1")
    stage.machine("m1").crash(power=False)
    world.run(1)
    stage.machine("m1").start()
    stage.fleet.do("machine.metadata", machine="m2", metadata={"disk": "nvme"})
    world.run(3)
    assert stage.where("db") == "m1"
    stage.fleet.do("machine.metadata", machine="m1", metadata={"rack": "r9"})
    stage.wait(lambda: stage.where("db") == "m2")
    stage.fleet.do("machine.metadata", machine="m1", metadata={"disk": "", "rack": ""})
    assert stage.fleet.do("machine.show", machine="m1")["metadata"] == {}


def test_reservations_are_kept_and_the_more_important_takes_room(world: World) -> None:
    """No overcommitment at any time: who makes room has ended before the other begins."""
    small = {"cpus": 2.0, "memory": 4 * GIB}
    stage = Stage(world, 1, m1=small, m2=small, m3=small)
    stage.put(low_="[X-Argosy]\nMemory=2G\nPriority=20", high="[X-Argosy]\nMemory=3G\nPriority=80", wide="[X-Argosy]\nCpu=2500m")
    stage.fleet.do("unit.start", units=["low@{1..6}"])
    stage.fleet.do("unit.start", units=["low@7", "wide"], no_block=True)
    world.run(2)
    assert "low@7" not in stage.running() and len(stage.running()) == 6
    assert stage.fleet.do("unit.why", unit="low@7")["machines"]["m1"] == "Memory=2G: 0B of 4G are free"
    assert stage.fleet.do("unit.why", unit="wide")["machines"]["m1"] == "Cpu=2.5: 2 of 2 are free"

    def fits() -> bool:
        for name in ("m1", "m2", "m3"):
            here = [unit for unit, home in stage.homes().items() if home == name]
            assert sum(3 if unit == "high" else 2 for unit in here) <= 4, here
        return stage.where("high") != ""

    stage.fleet.do("unit.start", units=["high"], no_block=True)
    stage.wait(fits)
    assert len(stage.running()) == 5
    assert "makes room for high.service" in stage.fleet.do("unit.history", unit="low@1")[-1]["detail"]
    world.run(5)
    assert len(stage.running()) == 5, "those of lower priority do not push each other around"


def test_replaces_is_fleets(world: World) -> None:
    """fleet's functional tests 25 and 26: the one moves away, and a circle is no loop."""
    stage = Stage(world, 1, 2)
    stage.put(old="[X-Fleet]\nMachineMetadata=a=1", new="[X-Fleet]\nReplaces=old.service\nMachineMetadata=b=1",
              a="[X-Fleet]\nReplaces=b.service\nMachineMetadata=c=1", b="[X-Fleet]\nReplaces=a.service\nMachineMetadata=c=1")  # fmt: skip
    for machine in ("m1", "m2"):
        stage.fleet.do("machine.metadata", machine=machine, metadata={"a": "1"})
    stage.fleet.do("unit.start", units=["old"])
    home = stage.where("old")
    stage.fleet.do("machine.metadata", machine=home, metadata={"b": "1", "c": "1"})
    stage.fleet.do("unit.start", units=["new"])
    stage.wait(lambda: stage.where("new") == home and stage.where("old") not in ("", home))
    stage.fleet.do("unit.start", units=["a", "b"], no_block=True)
    world.run(5)
    assert len(stage.running() & {"a", "b"}) == 1
    begun = len(stage.log())
    world.run(5)
    assert len(stage.log()) == begun


def test_lost_after_is_waited_for_and_a_machine_that_returns_keeps_its_unit(world: World) -> None:
    """A unit with much state is not moved for every reboot."""
    stage = Stage(world, 1)
    stage.put(db="Restart=always\n[X-Argosy]\nLostAfter=60s", web="Restart=always")
    stage.fleet.do("unit.start", units=["db", "web"])
    home = stage.where("db")
    stage.fleet.do("machine.metadata", machine=home, metadata={"x": "1"})
    stage.machine(home).crash(power=True)
    world.run(20)
    assert stage.where("db") == "" and "LostAfter" not in stage.why("web")
    assert "is lost" in stage.why("db")
    stage.machine(home).start()
    stage.wait(lambda: stage.where("db") == home)
    stage.machine(home).crash(power=True)
    world.run(50)
    assert stage.where("db") == ""
    world.run(30)
    assert stage.where("db") not in ("", home)


def test_a_unit_that_fails_is_tried_elsewhere_so_often_as_it_says(world: World) -> None:
    """With a pause that grows, counted by what is stored, so that a new leader goes on."""
    stage = Stage(world, 1)
    stage.put(picky="[X-Argosy]\nReschedule=2")
    stage.fleet.do("unit.start", units=["picky"])
    homes = [stage.where("picky")]
    for _ in range(2):
        stage.end("picky")
        leader = next(m for m in stage.fleet.machines if m.alive and m.host.raft._mailbox.actor.raft.role == 3)
        leader.crash(power=False)
        world.run(2)
        leader.start()
        stage.wait(lambda: stage.where("picky") not in ("", homes[-1]), 60)
        homes.append(stage.where("picky"))
    assert len(set(homes)) == 3
    stage.end("picky")
    world.run(60)
    assert stage.where("picky") == "" and "failed" in stage.why("picky")


def test_a_job_that_is_done_is_not_run_again(world: World) -> None:
    """Its machine may be lost, and come back; another start is another run, and RemoveAfter= cleans up."""
    stage = Stage(world, 1)
    stage.put(job="Type=oneshot", brief="Type=oneshot\n[X-Argosy]\nRemoveAfter=30s")
    stage.fleet.do("unit.start", units=["job", "brief"])
    world.run(3)
    home = next(row["machine"] for row in stage.fleet.do("unit.list") if row["unit"] == "job.service")
    assert stage.runs("job") == 1
    stage.machine(home).crash(power=True)
    world.run(10)
    assert stage.runs("job") == 1
    stage.machine(home).start()
    world.run(10)
    assert stage.runs("job") == 1 and f"done its work on {home}" in stage.why("job")
    stage.fleet.do("unit.start", units=["job"], no_block=True)
    world.run(3)
    assert stage.runs("job") == 2
    world.run(20)
    assert "brief.service" not in [row["unit"] for row in stage.fleet.do("unit.list")]


def test_l9_a_machine_that_is_removed_holds_no_lock_of_any_group(world: World) -> None:
    """And the next one in the queue has it."""
    stage = Stage(world, 1)
    stage.wait(lambda: [row["state"] for row in stage.fleet.do("machine.list")] == ["ready"] * 3)
    for group in ("default", "web"):
        assert stage.fleet.do("lock.acquire", machine="m3", group=group)["granted"]
    stage.machine("m3").crash(power=True)
    stage.wait(lambda: stage.state("m3") == "lost")
    stage.fleet.do("machine.remove", machine="m3")
    stage.wait(lambda: not any(row["holders"] for row in stage.fleet.do("lock.status")), 10)
    assert [row["group"] for row in stage.fleet.do("lock.status")] == ["default", "web"]


def test_a_pair_that_is_bound_moves_together_when_its_machine_is_lost(world: World) -> None:
    """What is decided of both in one pass is written, though it is about the same keys."""
    stage = Stage(world, 1)
    stage.fleet.do("unit.submit", files=[
        {"name": "a.service", "content": "[Service]\nExecStart=/bin/a\n[X-Fleet]\nMachineMetadata=name!=m9\n"},
        {"name": "b.service", "content": "[Unit]\nBindsTo=a.service\n[Service]\nExecStart=/bin/b\n[X-Fleet]\nMachineOf=a.service\n"},
    ])  # fmt: skip
    stage.fleet.do("unit.start", units=["a", "b"])
    home = stage.where("a")
    stage.machine(home).crash(power=True)
    stage.wait(lambda: stage.where("a") == stage.where("b") != "" and stage.where("a") != home, 60)


def test_a_global_unit_that_becomes_a_plain_one_runs_once(world: World) -> None:
    """An exclusive unit has one copy, whatever it was before."""
    stage = Stage(world, 1)
    stage.put(agent="[X-Fleet]\nGlobal=yes")
    stage.fleet.do("unit.start", units=["agent"])
    stage.wait(lambda: stage.where("agent") == "m1m2m3")
    stage.put(replace=True, agent="Restart=always\n")
    stage.wait(lambda: len(stage.where("agent")) == 2, 30)
    world.run(10)
    assert len(stage.where("agent")) == 2


def test_a_rebalance_whose_machine_is_lost_goes_on(world: World) -> None:
    """The scheduler does not stumble over a move from a machine that is not there."""
    stage = Stage(world, 1)
    stage.put(web_="Restart=always\n[X-Argosy]\nLostAfter=1h")
    stage.fleet.do("machine.drain", machine="m1", no_block=True)
    stage.fleet.do("unit.start", units=["web@{1..6}"])
    stage.fleet.do("machine.undrain", machine="m1")
    assert stage.fleet.do("cluster.rebalance", apply=True, per_minute=6)["moves"]
    stage.machine("m3").crash(power=True)
    stage.machine("m2").crash(power=True)
    world.run(5)
    stage.machine("m2").start()
    world.run(30)
    assert all(machine.failure is None for machine in stage.fleet.machines if machine.alive)


def test_followers_are_as_important_as_they_say_and_what_they_follow_with_them(world: World) -> None:
    """One that makes room for a follower does not come back before it."""
    small = {"cpus": 2.0, "memory": 4 * GIB}
    stage = Stage(world, 1, m1=small, m2=small, m3=small)
    stage.put(db="[X-Fleet]\nMachineID=m1", low="[X-Fleet]\nMachineID=m1\n[X-Argosy]\nMemory=3G\nPriority=20",
              side="[X-Fleet]\nMachineOf=db.service\n[X-Argosy]\nMemory=3G\nPriority=80")  # fmt: skip
    stage.fleet.do("unit.start", units=["low", "db"])
    stage.fleet.do("unit.start", units=["side"], no_block=True)
    stage.wait(lambda: stage.where("side") == "m1")
    world.run(20)
    assert stage.homes() == {"db": "m1", "side": "m1"} and stage.log().count("+low") == 1


def test_two_that_fail_together_start_the_same_mourner_once(world: World) -> None:
    """And a preempted unit that is restarted in the same moment holds nothing up."""
    small = {"cpus": 2.0, "memory": 4 * GIB}
    stage = Stage(world, 1, m1=small, m2=small, m3=small)
    stage.fleet.do("unit.submit", files=[
        {"name": "alert.service", "content": "[Service]\nExecStart=/bin/serve\n"},
        {"name": "u@.service", "content": "[Unit]\nOnFailure=alert.service\n[Service]\nExecStart=/bin/serve\n"},
    ])  # fmt: skip
    stage.put(low_="[X-Argosy]\nMemory=3G\nPriority=20", high="[X-Argosy]\nMemory=3G\nPriority=80", other="")
    stage.fleet.do("unit.start", units=["u@1", "u@2", "low@{1..3}"])
    stage.end("u@1")
    stage.end("u@2")
    stage.wait(lambda: "alert" in stage.running())
    stage.fleet.do("unit.restart", units=["low@{1..3}", "high"], no_block=True)
    stage.wait(lambda: "high" in stage.running())
    stage.fleet.do("unit.start", units=["other"])
    world.run(5)
    assert stage.log().count("+alert") == 1 and len([unit for unit in stage.running() if unit.startswith("low@")]) == 2


def test_the_unit_of_a_machine_that_was_removed_waits_no_longer(world: World) -> None:
    """Whatever its LostAfter= is."""
    stage = Stage(world, 1)
    stage.put(db="Restart=always\n[X-Argosy]\nLostAfter=infinity")
    stage.fleet.do("unit.start", units=["db"])
    home = stage.where("db")
    stage.machine(home).crash(power=True)
    world.run(20)
    assert not stage.running()
    stage.fleet.do("machine.remove", machine=home)
    stage.wait(lambda: stage.where("db") not in ("", home))
