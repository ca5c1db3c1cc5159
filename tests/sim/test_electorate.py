"""Votes that are given and taken by themselves, in the simulator."""

from __future__ import annotations

from typing import Any

import pytest

from actors.command import Command
from actors.raft_messages import ForwardedChange, Quarantine, ReadIndex, StateHash
from brain.raft import Role
from fleet.electorate import REPLACE_S
from kernel.sim import Faults, SimMachine, World

from .fleet import Fleet


def _leader(fleet: Fleet) -> SimMachine:
    peers = ((m, m.host.raft._mailbox.actor) for m in fleet.machines if m.alive)
    return next(m for m, peer in peers if peer is not None and peer.raft is not None and peer.raft.role == Role.LEADER)


def _config(fleet: Fleet) -> Any:
    return _leader(fleet).host.raft._mailbox.actor.raft.config


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Any:
    world = World(7, Faults())
    with world:
        made = Fleet(7, 5, world, standbys=4)
        made.start()
        yield made


def _until(fleet: Fleet, condition: Any, seconds: float) -> None:
    def holds() -> bool:
        try:
            return bool(condition())
        except StopIteration:  # nobody leads
            return False

    assert fleet.world.run_until(holds, seconds), fleet.report("not so")


def test_machines_that_join_get_votes_up_to_an_odd_number(fleet: Fleet) -> None:
    """One, two, three, three, five."""
    for name, expected in (("m2", 2), ("m3", 3), ("m4", 3), ("m5", 5)):
        fleet.join(name)
        fleet.world.run(5)
        _until(fleet, lambda expected=expected: len(_config(fleet).voters) == expected, 10)  # type: ignore[misc]


def test_a_lost_voter_gives_its_vote_to_one_that_stands_by_and_comes_back_without(fleet: Fleet) -> None:
    """With three voters and one that stands by two losses, one after the other, cost nothing."""
    for name in ("m2", "m3", "m4"):
        fleet.join(name)
        fleet.world.run(4)
    _until(fleet, lambda: len(_config(fleet).voters) == 3, 10)
    victim = next(m for m in fleet.machines if m.name in _config(fleet).voters and m is not _leader(fleet))
    victim.crash()
    fleet.world.run(REPLACE_S / 2)
    assert victim.name in _config(fleet).voters, "it was replaced too early"
    _until(fleet, lambda: victim.name not in _config(fleet).voters and not _config(fleet).outgoing, REPLACE_S)
    assert len(_config(fleet).voters) == 3
    _leader(fleet).crash()  # the quorum bears another loss
    fleet.do("unit.submit", files=[{"name": "u.service", "content": "[Service]\nExecStart=/bin/serve\n"}])
    victim.start()
    _until(fleet, lambda: victim.host.raft._mailbox.actor.store.revision == _leader(fleet).host.raft._mailbox.actor.store.revision, 30)
    assert victim.name in _config(fleet).learners


def test_an_operator_states_another_number(fleet: Fleet) -> None:
    """Fewer: votes are taken; a number that is even or absurd changes nothing."""
    for name in ("m2", "m3", "m4", "m5"):
        fleet.join(name)
        fleet.world.run(3)
    _until(fleet, lambda: len(_config(fleet).voters) == 5, 10)
    assert fleet.do("cluster.voters", size=3)["size"] == 3
    _until(fleet, lambda: len(_config(fleet).voters) == 3, 20)
    told = fleet.do("cluster.voters")
    assert len(told["voters"]) == 3 and len(told["standby"]) == 2
    assert fleet.do("cluster.voters", size=5)["size"] == 5
    _until(fleet, lambda: len(_config(fleet).voters) == 5, 20)


def test_a_machine_that_was_removed_is_not_heard_though_its_certificate_is_good() -> None:
    """Neither what it asks nor what it tells; it is told that it is no member, and ends."""
    with World(3, Faults()) as world:
        fleet = Fleet(3, 3, world)
        fleet.start()
        fleet.do("cluster.status")
        world.run(3)
        gone, left = fleet.machines[2], fleet.machines[:2]
        ask = gone.host.router.ref("m1", "control").ask
        assert ask(Command("machine.list", {})).error is None or world.run(1) is None
        gone.crash()
        world.run(8)
        fleet.do("machine.remove", machine="m3")
        fleet.members.pop("m3")
        gone.start()
        world.run(0.5)
        asked = [gone.host.router.ref(other.name, path).ask(message) for other in left
                 for path, message in (("control", Command("machine.list", {})), ("raft", ReadIndex()), ("raft", StateHash()),
                                       ("raft", ForwardedChange("add_learner", "m3", ["m3", "m3", ""])))]  # fmt: skip
        for other in left:
            gone.host.router.ref(other.name, "raft").tell(Quarantine(1))
        world.run(2)
        assert all(future.done and "is no member of this cluster" in str(future.error) for future in asked)
        world.run(10)
        assert "was removed from the cluster" in str(gone.failure)
        assert not any(other.host.raft._mailbox.actor.quarantine for other in left)
