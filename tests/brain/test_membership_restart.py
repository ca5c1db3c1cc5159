"""A voter that restarts after a change of members must not fall back to the members before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.raft_messages import ChangeConfig, Propose, TransferLeadership
from actors.raft_peer import RaftPeer
from brain import snapshot
from brain.raft import Config, Role
from brain.snapshot import Meta
from brain.store import Store
from kernel.actor import Ref
from kernel.ports import Ports
from kernel.sim import SimDispatcher, SimMachine, World
from kernel.system import System
from transport.router import Router

NAMES = "abcd"
INFO = tuple((name, (name, name, "")) for name in NAMES)


class Host:
    """A machine with a Raft peer."""

    def __init__(self, machine: SimMachine) -> None:
        assert machine.net is not None
        dispatcher = SimDispatcher(machine)
        self.system = System(machine.name, {"loop": dispatcher, "pool": dispatcher})
        router = Router(self.system, machine.net, dispatcher, machine.name)
        machine.net.on_link(router.link_changed)
        ports = Ports(machine, machine, machine.disk, machine.net, None)
        self.peer = self.system.spawn(RaftPeer, machine.name, ports, router, name="raft")


class Cluster:
    """Four machines, of which some are the first voters."""

    def __init__(self, voters: str, seed: int = 1) -> None:
        self.world = World(seed)
        self.machines = {name: SimMachine(self.world, name, Host) for name in NAMES}
        config = Config(frozenset(voters), info=INFO)
        first = snapshot.dump(Meta(0, 0, config), Store())
        for machine in self.machines.values():
            machine.disk.install(snapshot.file_name(0), first)
            machine.start()

    def ref(self, name: str) -> Ref:
        """The peer of a machine."""
        ref: Ref = self.machines[name].host.peer
        return ref

    def raft(self, name: str) -> Any:
        """Its core; None while it starts."""
        return self.ref(name)._mailbox.actor.raft  # type: ignore[union-attr] # noqa: SLF001

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let time pass until it holds."""
        assert self.world.run_until(condition, 30), what

    def leads(self, name: str) -> bool:
        """Whether this machine believes to lead."""
        core = self.raft(name)
        return core is not None and core.role is Role.LEADER

    def change(self, verb: str, member: str, expected: Callable[[Config], bool]) -> None:
        """One step of a membership change, through a, tried until it holds there and is complete."""

        def holds() -> bool:
            config = self.raft("a").config
            return expected(config) and not config.outgoing

        for _ in range(50):
            self.ref("a").ask(ChangeConfig(verb, member, (member, member, "")), block=False)
            if self.world.run_until(holds, 0.5):
                return
        raise AssertionError(f"{verb} {member} does not come to pass")

    def value(self, name: str) -> list[bytes]:
        """What a machine's store has for the key."""
        store = self.ref(name)._mailbox.actor.store  # type: ignore[union-attr] # noqa: SLF001
        return [item.value for _, item in store.range(b"k")]


def test_a_restarted_voter_does_not_elect_with_those_that_were_removed() -> None:
    """c was replaced by d; then a and d are cut off from b and c, and b restarts.

    a and d are the majority of a, b, d.  If b went back to a, b, c it would win with the
    removed c's vote: two leaders would commit different entries at the same index.
    """
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        for name in "bc":
            if cluster.leads(name):
                cluster.ref(name).tell(TransferLeadership("a"))
        cluster.until(lambda: cluster.leads("a"), "a does not lead")
        cluster.change("add_learner", "d", lambda config: "d" in config.learners)
        cluster.change("promote", "d", lambda config: config.voters == frozenset("abcd"))
        cluster.change("remove", "c", lambda config: config.voters == frozenset("abd"))
        cluster.until(lambda: cluster.raft("b").config.voters == frozenset("abd"), "b has not heard")
        cluster.world.run(0.5)
        cluster.world.partition({"a", "d"}, {"b", "c"})
        cluster.machines["b"].crash()
        cluster.machines["b"].start()
        written = cluster.ref("a").ask(Propose(["put", b"k", b"by the majority"], 5.0), block=False)
        for _ in range(30):
            cluster.world.run(0.1)
            assert not cluster.leads("b"), "b was elected by a machine that is no member any more"
            assert not cluster.leads("c")
        assert written.error is None
        cluster.world.heal()
        cluster.world.run(2)
        assert cluster.value("a") == cluster.value("b") == cluster.value("d") == [b"by the majority"]


def test_the_founder_of_a_cluster_does_not_elect_itself_when_it_restarts() -> None:
    """a began alone and was joined by b and c; it restarts while they have a leader.

    If it went back to being alone it would lead at once, by its own vote, perhaps in the
    very term of the other leader.
    """
    cluster = Cluster("a")
    with cluster.world:
        cluster.until(lambda: cluster.leads("a"), "a does not lead")
        for name in "bc":
            cluster.change("add_learner", name, lambda config: bool(config.learners))
            cluster.change("promote", name, lambda config: not config.learners)
        cluster.until(lambda: cluster.raft("b").config.voters == frozenset("abc"), "b has not heard")
        cluster.until(lambda: cluster.raft("c").config.voters == frozenset("abc"), "c has not heard")
        cluster.machines["a"].crash()
        cluster.until(lambda: cluster.leads("b") or cluster.leads("c"), "no new leader")
        leader = "b" if cluster.leads("b") else "c"
        written = cluster.ref(leader).ask(Propose(["put", b"k", b"by the majority"], 5.0), block=False)
        cluster.until(lambda: written.done, "the write hangs")
        assert written.error is None
        cluster.machines["a"].start()
        for _ in range(200):
            cluster.world.run(0.005)
            assert not cluster.leads("a"), "a elected itself"
        cluster.until(lambda: cluster.value("a") == [b"by the majority"], "a has lost the write")
