"""Raft peers on simulated machines, for tests of what the core alone cannot show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.raft_messages import ChangeConfig
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
