"""Machines without a vote in the simulator: chaos, one silent voter, thousands of keys, rights."""

from __future__ import annotations

from typing import Any

import pytest

from actors import agent
from actors.agent_rights import NotAllowed, check_command, check_range
from actors.brain_client import ALIVE, MACHINES, PLACES, SECRETS, STATES, UNITS
from actors.raft_messages import Propose, Range
from brain.store import prefix_end
from kernel.mailbox import Promise
from kernel.sim import Faults, World

from .fleet import UNIT, Fleet, FleetFailure, play


#: Seed 14: the claim of an earlier life was carried out after the next one's states.
@pytest.mark.parametrize("seed", [*range(12), 14])
def test_the_laws_hold_with_machines_without_a_vote(seed: int) -> None:
    """Three voters and three agents under crashes, pauses, partitions and operators; see ``fleet.play``."""
    play(seed, agents=3)


def _fleet(world: World, agents: int = 1) -> Fleet:
    fleet = Fleet(1, 3, world, agents=agents)
    fleet.start()
    return fleet


def _unit_on_agent(fleet: Fleet) -> None:
    fleet.do("unit.submit", files=[{"name": "u.service", "content": UNIT + "[X-Fleet]\nMachineID=a1\n"}])
    fleet.do("unit.start", units=["u.service"])


def _asked(fleet: Fleet, name: str = "a1") -> Any:
    [machine] = [m for m in fleet.machines if m.name == name]
    return machine.host.raft._mailbox.actor


@pytest.mark.parametrize("how", ["pause", "crash", "cut"])
def test_a_voter_falls_silent_and_no_unit_of_its_agents_is_touched(how: str) -> None:
    """Another voter answers before the lease can run out, whatever befell the first."""
    world = World(1, Faults())
    with world:
        fleet = _fleet(world)
        _unit_on_agent(fleet)
        for _ in range(3):
            starts = fleet.books.starts
            [silent] = [m for m in fleet.machines if m.name == _asked(fleet).asks]
            if how == "pause":
                silent.pause(15)
            elif how == "crash":
                silent.crash()
            else:
                world.cut = frozenset({("a1", silent.name), (silent.name, "a1")})
            world.run(12)
            assert _asked(fleet).asks != silent.name
            assert fleet.books.starts == starts and fleet.books.running["u.service"], "its unit was stopped"
            world.heal()
            if not silent.alive:
                silent.start()
            world.run(8)
        assert _asked(fleet).failovers >= 3


@pytest.mark.parametrize("what", ["the claim", "the end"])
def test_a_write_that_was_left_behind_changes_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voter carries out what an earlier life of a machine asked for only when the next one has spoken already.

    Late, the claim would hide that the unit runs; the end would let another machine start it.
    """
    from actors import desk

    held: list[Any] = []
    serve = desk.Desk._propose

    def hold(self: Any, machine: str, message: Any) -> Any:
        first = message.command[2][0] if message.command[0] == "txn" and message.command[2] else []
        wanted = ["put", "delete"][what == "the end"]
        if not held and first and first[0] == wanted and first[1] == STATES + b"a1/u.service":
            held.append(message.command)
            return Promise()  # which nobody answers
        return serve(self, machine, message)

    monkeypatch.setitem(desk._SERVES, desk.AgentPropose, hold)
    world = World(1, Faults())
    with world:
        fleet = _fleet(world)
        [a1] = [m for m in fleet.machines if m.name == "a1"]
        fleet.do("unit.submit", files=[{"name": "u.service", "content": UNIT + "[X-Fleet]\nMachineID=a1\n"}])
        if what == "the end":
            fleet.do("unit.start", units=["u.service"])
            fleet.command("unit.unload", units=["u.service"], no_block=True)
        else:
            fleet.command("unit.start", units=["u.service"], no_block=True)
        assert world.run_until(lambda: bool(held), 20.0)
        a1.crash(power=False)
        world.run(0.5)
        a1.start()
        fleet.do("unit.start", units=["u.service"])
        before = fleet.do("unit.list")
        fleet._until(lambda m: m.host.raft.ask(Propose(held[0]), block=False), 10.0, "what was held")
        world.run(3.0)
        assert [(row["active"], row["machine"]) for row in fleet.do("unit.list")] == [("active", "a1")], before
        stored = fleet._until(lambda m: m.host.raft.ask(Range(STATES + b"a1/u.service", linearizable=True), block=False), 10.0, "the state")
        assert b'"active":"active"' in stored[1][0][1].value


def test_an_agent_that_never_asks_another_voter_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The story above fails when the choice of another voter is taken out."""
    monkeypatch.setattr(agent.Agent, "_choose", lambda self: setattr(self, "_voter", self._voter or min(self._voters)))
    with pytest.raises((AssertionError, FleetFailure)):
        test_a_voter_falls_silent_and_no_unit_of_its_agents_is_touched("crash")


def test_an_agent_reads_more_than_one_answer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A range comes in pieces of one revision; a watch goes on over many answers."""
    from actors import desk

    monkeypatch.setattr(desk, "ANSWER_KEYS_MAX", 7)
    monkeypatch.setattr(desk, "ANSWER_BYTES_MAX", 400)
    world = World(1, Faults())
    with world:
        fleet = _fleet(world)
        names = [f"u@{n}.service" for n in range(60)]
        fleet.do("unit.submit", files=[{"name": "u@.service", "content": UNIT + "[X-Fleet]\nMachineID=a1\n"}])
        fleet.do("unit.start", units=names, seconds=60.0)
        mine = PLACES + b"a1/"
        answers: list[Any] = []
        [machine] = [m for m in fleet.machines if m.name == "a1"]
        future = machine.host.raft.ask(Range(mine, prefix_end(mine)), block=False)
        future.on_done(lambda f: answers.append(f.value))
        world.run(2)
        assert [key[len(mine) :].decode() for key, _ in answers[0][1]] == sorted(names)


def test_what_an_agent_asks_for_beyond_its_rights_is_refused() -> None:
    """Over the wire, not only in the rules: the brain stays as it was."""
    world = World(1, Faults())
    with world:
        fleet = _fleet(world)
        _unit_on_agent(fleet)
        [machine] = [m for m in fleet.machines if m.name == "a1"]
        told: list[Any] = []
        for message in (Propose(["delete", UNITS + b"u.service"]), Range(SECRETS + b"password"), Range(UNITS, prefix_end(UNITS))):
            machine.host.raft.ask(message, block=False).on_done(lambda f: told.append(f.error))
        world.run(4)
        assert [getattr(error, "code", None) for error in told] == ["not_allowed"] * 3
        assert fleet.do("unit.cat", unit="u.service")


ME, OTHER = "a" * 32, "b" * 32


@pytest.mark.parametrize("command", [
    ["put", STATES + f"{ME}/u.service".encode(), b"x", 7], ["delete", STATES + f"{ME}/u.service".encode()],
    ["put", b"/services/web/1", b"x", 7], ["lease_grant", 7, 4000],
    ["txn", [[PLACES + f"{ME}/u.service".encode(), "create", "=", 3]], [["put", ALIVE + ME.encode(), b"x", 7]], []],
    ["lock", "default", "acquire", {"machine": "me", "reason": "r", "boot_id": "b", "wait": True}],
])  # fmt: skip
def test_an_agent_may_change_what_is_its_own(command: list[Any]) -> None:
    check_command(ME, "me", command)


@pytest.mark.parametrize("command", [
    ["put", STATES + f"{OTHER}/u.service".encode(), b"x", 7], ["put", UNITS + b"u.service", b"{}"],
    ["put", PLACES + f"{ME}/u.service".encode(), b"{}"], ["delete", STATES, b""], ["delete", b"/services/", b"/services0"],
    ["put", MACHINES + OTHER.encode(), b"{}"], ["put", b"/_argosy/anything", b""], ["compact", 5], ["auth", "enable", {}],
    ["txn", [[SECRETS + b"s", "value", "=", b"guess"]], [], []], ["txn", [], [["range", UNITS, b""]], []],
    ["txn", [], [["txn", [], [["put", UNITS + b"u", b""]], []]], []], ["txn", [], [["delete", b"/services/", b"0"]], []],
    ["lock", "default", "set_max", {"max_holders": 9}], ["lock", "default", "release", {"machine": "other", "token": 0, "force": False}],
    ["lock", "default", "release", {"machine": "me", "token": 0, "force": True}], ["v2_set", "/x", b"", None, False], [], "put", [[]],
    ["put", b"/coreos.com/updateengine/rebootlock/semaphore", b"{}"],
])  # fmt: skip
def test_an_agent_may_change_nothing_else(command: Any) -> None:
    with pytest.raises(NotAllowed):
        check_command(ME, "me", command)


def test_an_agent_sees_its_own_and_what_all_may_see() -> None:
    mine = PLACES + f"{ME}/".encode()
    check_range(ME, mine, prefix_end(mine))
    check_range(ME, ALIVE, prefix_end(ALIVE))
    check_range(ME, SECRETS + b"one", None)
    for key, end in ((PLACES, prefix_end(PLACES)), (SECRETS, prefix_end(SECRETS)), (mine, b""), (mine, prefix_end(PLACES)), (b"/app", None)):
        with pytest.raises(NotAllowed):
            check_range(ME, key, end)


def test_a_voter_that_is_cut_off_from_the_others_does_not_keep_news_from_its_agents() -> None:
    """The agent reaches it still; what it waits for there is asked of another voter at once."""
    world = World(1, Faults())
    with world:
        fleet = _fleet(world)
        fleet.do("unit.submit", files=[{"name": "u.service", "content": UNIT + "[X-Fleet]\nMachineID=a1\n"}])
        world.run(3)
        silent = _asked(fleet).asks
        voters = [name for name in fleet.members if name != silent]
        world.cut = frozenset(pair for other in voters for pair in ((silent, other), (other, silent)))
        world.run(5)
        fleet.machines.sort(key=lambda machine: machine.name == silent)
        fleet.do("unit.start", units=["u.service"], within=8.0, seconds=9.0)
        assert fleet.books.running["u.service"] == {"a1": fleet.books.highest_fence["u.service"]}


def test_two_who_follow_one_range_from_different_revisions_do_not_disturb_each_other() -> None:
    """As when an actor of the agent was started again: each has its own questions, and no voter is given up for it."""
    world = World(1, Faults())
    with world:
        fleet = _fleet(world)
        _unit_on_agent(fleet)
        [machine] = [m for m in fleet.machines if m.name == "a1"]
        before = _asked(fleet).failovers
        for box in machine.host.system.mailboxes():
            if box.path.endswith(("lock-manager", "updater", "control")):
                box.ref.kill()
        world.run(30)
        assert _asked(fleet).failovers == before
        fleet.do("unit.stop", units=["u.service"])
        assert not fleet.books.running["u.service"]
