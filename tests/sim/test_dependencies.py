"""Dependencies between units on different machines, with every actor of a host, in the simulator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kernel.sim import Faults, World

from .stage import FORM, Stage


@pytest.fixture(params=[1, 2])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    world = World(request.param, Faults())
    with world:
        yield Stage(world, request.param)


def test_a_start_pulls_in_what_is_needed_first_and_a_stop_goes_the_other_way(stage: Stage) -> None:
    """Each on a machine of its own."""
    stage.submit(web="Requires=db.service\nAfter=db.service", db="Wants=disk.service\nAfter=disk.service network.target", disk="")
    stage.do("unit.start", "web")
    stage.until("web", "db", "disk")
    assert stage.log() == ["+disk", "+db", "+web"]
    stage.do("unit.stop", "db")  # and with it what requires it; what it wants stays
    stage.until("disk")
    assert stage.log()[3:] == ["-web", "-db"]
    stage.do("unit.start", "web")
    stage.do("unit.restart", "db")
    stage.until("web", "db", "disk")
    assert stage.log()[5:] == ["+db", "+web", "-web", "-db", "+db", "+web"]


def test_a_unit_waits_where_it_is_placed_and_says_for_what(stage: Stage) -> None:
    """Nobody need wait for what will not be."""
    nowhere = "\n[X-Fleet]\nMachineMetadata=disk=ssd"
    stage.submit(web="Requires=db.service\nAfter=db.service", db=nowhere, picky="Requisite=db.service", sad="Requires=bad.service\nAfter=bad.service", bad="")
    stage.do("unit.start", "web", no_block=True)
    stage.world.run(3)
    assert "it comes after db.service, which is about to start" in stage.why("web") and not stage.running()
    assert "Requisite=db.service, which is not active" in stage.refusal("unit.start", "picky")
    stage.do("unit.start", "bad")
    stage.end("bad")
    stage.world.run(1)
    stage.do("unit.stop", "web", no_block=True)
    stage.do("unit.start", "sad")  # that starts bad again
    stage.until("bad", "sad")


def test_what_is_bound_follows(stage: Stage) -> None:
    """Down when the other fails, and up when that is started again, wherever that is."""
    stage.submit(web="BindsTo=db.service", db="")
    stage.do("unit.start", "web")
    stage.end("db")
    stage.until()
    assert "BindsTo=db.service, which is failed" in stage.why("web")
    stage.do("unit.start", "db")
    stage.until("web", "db")
    [home] = stage.fleet.books.running["db.service"]
    next(m for m in stage.fleet.machines if m.name == home).crash(power=True)
    stage.world.run(10)
    stage.until("web", "db")
    assert stage.log()[6] == "-db" and set(stage.log()[7:9]) == {"+db", "-web"} and stage.log()[9:] == ["+web"]


def test_a_failure_is_acted_on_once(stage: Stage) -> None:
    """Also when the leader changes right then; the next failure is another."""
    stage.submit(web="OnFailure=mourner.service\nOnSuccess=feast.service", mourner="", feast="")
    stage.do("unit.start", "web")
    for round_ in (1, 2):
        stage.end("web")
        stage.until("mourner")
        leader = next(m for m in stage.fleet.machines if m.host.raft._mailbox.actor.raft.role == 3)
        leader.crash(power=False)
        stage.world.run(0.5)
        leader.start()
        stage.world.run(8)
        assert stage.log().count("+mourner") == round_
        assert stage.desired("feast")["desired"] == "inactive"
        stage.do("unit.stop", "mourner")
        stage.do("unit.start", "web")
        stage.until("web")


def test_what_is_upheld_is_started_again(stage: Stage) -> None:
    """As long as who upholds it is up."""
    stage.submit(keeper="Upholds=kept.service", kept="")
    stage.do("unit.start", "keeper")
    stage.until("keeper", "kept")
    stage.end("kept")
    stage.world.run(1)
    stage.until("keeper", "kept")
    stage.do("unit.stop", "keeper")
    stage.end("kept")
    stage.world.run(12)
    assert not stage.running()


def test_units_that_exclude_each_other(stage: Stage) -> None:
    """[Unit] Conflicts=: the start of one stops the other, in both directions."""
    stage.submit(day="Conflicts=night.service", night="")
    for first, then in (("night", "day"), ("day", "night")):
        stage.do("unit.start", first)
        stage.do("unit.start", then)
        stage.until(then)


def test_units_that_would_wait_for_each_other_are_refused(stage: Stage) -> None:
    """With the loop, and nothing is stored."""
    stage.submit(a="After=b.service", c="After=a.service")
    stage.submit(d="")
    loop = [{"name": "b.service", "content": FORM.format(unit="After=c.service", restart="no", fleet="")}]
    assert "b.service after c.service after a.service after b.service" in stage.refusal("unit.submit", files=loop)
    assert "b.service" not in {file["unit"] for file in stage.fleet.do("unit.files")}


def test_what_starts_without_an_operator_is_started_as_by_one(stage: Stage) -> None:
    """What it excludes is stopped."""
    stage.submit(web="OnFailure=night.service", night="Conflicts=day.service", day="")
    stage.do("unit.start", "day")
    stage.do("unit.start", "web")
    stage.until("web", "day")
    stage.end("web")
    stage.until("night")
