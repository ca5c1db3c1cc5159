"""Raft peers on simulated machines, for tests of what the core alone cannot show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.raft_messages import ChangeConfig, Propose
from actors.raft_peer import PeerSettings, RaftPeer
from brain import snapshot
from brain.raft import Config, Role
from brain.snapshot import Meta
from brain.store import Store
from kernel.actor import Ref
from kernel.ports import DiskError, Ports
from kernel.sim import SimDispatcher, SimMachine, World
from kernel.system import System
from transport.router import Router

NAMES = "abcd"
INFO = tuple((name, (name, name, "")) for name in NAMES)


class Host:
    """A machine with a Raft peer."""

    def __init__(self, machine: SimMachine, settings: PeerSettings | None = None) -> None:
        assert machine.net is not None
        dispatcher = SimDispatcher(machine)
        self.fatal: list[BaseException] = []
        self.system = System(machine.name, {"loop": dispatcher, "pool": dispatcher}, self.fatal.append)
        router = Router(self.system, machine.net, dispatcher, machine.name)
        machine.net.on_link(router.link_changed)
        ports = Ports(machine, machine, machine.disk, machine.net, None)
        self.peer = self.system.spawn(RaftPeer, machine.name, ports, router, settings, name="raft")


class Cluster:
    """Four machines, of which some are the first voters."""

    def __init__(self, voters: str, seed: int = 1, settings: PeerSettings | None = None) -> None:
        self.world = World(seed)
        self.machines = {
            name: SimMachine(self.world, name, lambda machine: Host(machine, settings)) for name in NAMES
        }
        config = Config(frozenset(voters), info=INFO)
        first = snapshot.dump(Meta(0, 0, config), Store())
        for machine in self.machines.values():
            machine.disk.install(snapshot.file_name(0), first)
            machine.start()

    def ref(self, name: str) -> Ref:
        """The peer of a machine."""
        ref: Ref = self.machines[name].host.peer
        return ref

    def peer(self, name: str) -> Any:
        """The actor itself, for looking at."""
        return self.ref(name)._mailbox.actor  # type: ignore[union-attr] # noqa: SLF001

    def raft(self, name: str) -> Any:
        """Its core; None while it starts."""
        return self.peer(name).raft

    def leader(self, among: str = "abc") -> str:
        """Who leads, once somebody does."""
        self.until(lambda: any(self.leads(name) for name in among), "no leader")
        return next(name for name in among if self.leads(name))

    def put(self, through: str, key: bytes, value: bytes = b"", timeout: float = 5.0) -> Any:
        """The future of a write."""
        return self.ref(through).ask(Propose(["put", key, value, 0], timeout), block=False)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let time pass until it holds."""
        assert self.world.run_until(condition, 30), what

    def cut_off(self, name: str) -> None:
        """Nobody hears this machine, and it hears nobody."""
        rest = [other for other in NAMES if other != name]
        self.world.cut = {(name, other) for other in rest} | {(other, name) for other in rest}

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
        return [item.value for _, item in self.peer(name).store.range(b"k")]


class HeldDisk:
    """A disk that is full: what waits for room waits, what does not is refused."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._disk: Any = cluster.machines[name].disk
        self._real = self._disk.submit
        self._held: list[tuple[Any, Any]] = []
        self._disk.submit = self._submit
        self._disk.full = "disk full: /data/wal could not be written"
        self.refused = 0

    def _submit(self, operations: Any, done: Any, if_room: bool = False) -> None:
        if if_room and not self._held:  # behind what waits it does not even come to that
            self.refused += 1
            self._real([], lambda error: done(error or DiskError("disk full: a piece", full=True)))
        else:
            self._held.append((operations, done))

    def make_room(self) -> None:
        """Everything that waits is done."""
        self._disk.full = ""
        self._disk.submit = self._real
        for operations, done in self._held:
            self._real(operations, done)
