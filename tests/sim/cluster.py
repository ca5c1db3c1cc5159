"""A whole brain in one thread: machines with Raft peers, clients, faults, and what must hold.

One seed is one run, in two phases.  Safety: clients work while faults happen, and the
watchtower looks at every step.  Liveness: the faults end (at first perhaps only for a
majority), and within a bound of virtual time the machines must take writes and agree.
Then the history that the clients saw is judged.
"""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from actors.membership import RemovedError
from actors.raft_messages import BrainUp, ChangeConfig, LeaderChanged, Propose, Query
from actors.raft_peer import RaftPeer
from brain import snapshot
from brain.raft import Config, Message, Raft, Role
from brain.snapshot import Meta
from brain.store import Store
from kernel.actor import Killed, Ref
from kernel.ports import DiskError, Ports
from kernel.sim import SimDispatcher, SimMachine, World
from kernel.system import System
from transport.router import Router

from . import invariants, linearizability
from .clients import Client, History
from .disk import StepwiseDisk
from .invariants import Violation, Watcher, Watchtower
from .linearizability import Verdict
from .nemesis import Nemesis
from .options import Options, draw

#: Virtual seconds after the end of the faults until a majority must take a write.
WRITE_WITHIN_S = 20.0
#: Virtual seconds after everything works until all peers must be equal.
AGREE_WITHIN_S = 30.0
#: Virtual seconds until leases that nobody keeps alive must be gone.
LEASES_GONE_WITHIN_S = 15.0
#: Lines of the world's log in a report.
REPORT_LINES = 200

_FRAME_TELL = b"\x83\x00"


class SimFailure(AssertionError):
    """A run that broke a promise; the text is the report, with the command to replay it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a good run was like; two runs of one seed give equal ones."""

    seed: int
    size: int
    trace: str
    steps: int
    virtual_s: float
    calls: int
    acknowledged: int
    entries: int
    revision: int
    state_hash: int
    leaders: int
    lives: int
    checked: dict[str, int] = field(default_factory=dict)


class SimWorld(World):
    """The world with the network's contract: what it may do to which frame.

    A link delivers at most once and in order, so an ask and its answer may be lost or late
    but are never doubled or overtaken.  Raft's own messages must survive more than that.
    """

    def carry(self, source: SimMachine, target: str, lane: int, frame: bytes) -> None:
        """Take a frame across a link; doubling and reordering are for Raft messages only."""
        if frame.startswith(_FRAME_TELL):
            super().carry(source, target, lane, frame)
            return
        faults = self.faults
        duplicate, reorder = faults.duplicate, faults.reorder
        faults.duplicate = faults.reorder = 0.0
        super().carry(source, target, lane, frame)
        faults.duplicate, faults.reorder = duplicate, reorder


class ObservedPeer(RaftPeer):
    """The product's peer; reports a failure of its own, which no run may have."""

    def __init__(self, *args: Any, on_error: Callable[[BaseException], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_error = on_error

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        """Called by the mailbox when a handler raised."""
        if not isinstance(exception_value, Killed):
            self._on_error(exception_value)


class ObservedRouter(Router):
    """The product's router; shows each Raft message that leaves the machine."""

    on_send: Callable[[str, str, Message], None]

    def tell(self, machine: str, lane: int, path: str, message: Any) -> None:
        """Send one message."""
        if type(message) is Message:
            self.on_send(self.machine, machine, message)
        super().tell(machine, lane, path, message)


@dataclass(slots=True)
class Host:
    """What runs on one machine during one of its lives."""

    system: System
    router: Router
    peer: Ref


class _LeaderListener:
    """Hears on one machine whether its peer leads, as a scheduler would."""

    def __init__(self, cluster: SimCluster, machine: str) -> None:
        self.path = f"scheduler-{machine}"
        self._leading = cluster.leading
        self._machine = machine

    def offer(self, message: LeaderChanged) -> bool:
        self._leading[self._machine] = message.term if message.leading else 0
        return True


class _Probe:
    """Writes through one machine and reads it back there, until that works once."""

    def __init__(self, cluster: SimCluster, machine: str) -> None:
        self.machine = machine
        self.passed = False
        self._cluster = cluster
        self._world = cluster.world
        self._attempt = 0
        self._try()

    def stop(self) -> None:
        """No further attempts."""
        self._attempt = -1

    def _try(self) -> None:
        if self.passed or self._attempt < 0:
            return
        self._attempt += 1
        attempt = self._attempt
        ref = self._cluster.peer_ref(self.machine)
        if ref is None:
            self._world.call_later(0.05, self._try)
            return
        key = b"/live/%d" % self._cluster.history.tick()

        def again(why: str) -> None:
            if attempt == self._attempt and not self.passed:
                self._world.note(f"through {self.machine}: {why}")
                self._world.call_later(0.05, self._try)

        def written(future: Any) -> None:
            if future.error is not None:
                again(f"write failed: {future.error}")
                return
            read = Query(lambda store: store.range(key), True, 2.0)
            ref.ask(read, block=False).on_done(shown)

        def shown(future: Any) -> None:
            if future.error is not None:
                again(f"read failed: {future.error}")
            elif not future.value:
                self._cluster.watchtower.accuse(f"{self.machine} does not show its own write")
            else:
                self.passed = True

        ref.ask(Propose(["put", key, b"", 0], 2.0), block=False).on_done(written)
        self._world.call_later(4.5, lambda: again("no answer; the machine went down"))


class SimCluster:
    """One run; see the module docstring."""

    def __init__(
        self, seed: int, size: int, options: Options | None = None,
        raft_class: type[Raft] = Raft, white_box: bool = True,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.size = size
        self.options = options or draw(seed, size)
        self.names = [chr(ord("a") + number) for number in range(size)]
        info = tuple((name, (name, name, "")) for name in self.names)
        self.config = Config(frozenset(self.names), info=info)
        self.world = SimWorld(seed, self.options.faults)
        self.history = History()
        self.leading: dict[str, int] = {}
        self.watchtower = Watchtower(self, white_box)
        self._raft_class = raft_class
        self._watchers = {name: Watcher(self, name) for name in self.names}
        first = snapshot.dump(Meta(0, 0, self.config), Store())
        for name in self.names:
            machine = SimMachine(self.world, name, self._boot)
            if self.options.stepwise_disk:
                rng = random.Random(f"disk {size} {seed} {name}")
                machine.disk = StepwiseDisk(machine, rng, self.options.disk_errors)
            machine.disk.install(snapshot.file_name(0), first)
        self._clients = [Client(self, number) for number in range(1, self.options.clients + 1)]
        self._nemesis = Nemesis(self)
        self._rng = random.Random(f"cluster {size} {seed}")

    # -- machines ---------------------------------------------------------------------------

    def _boot(self, machine: SimMachine) -> Host:
        dispatcher = SimDispatcher(machine)

        def fatal(error: BaseException) -> None:
            if isinstance(error, DiskError):  # the right answer to a disk that fails
                self._nemesis.ends(machine.name)
            elif isinstance(error, RemovedError):
                self.watchtower.removed(machine.name, error.index)
                self._nemesis.ends(machine.name)
            else:
                self.watchtower.accuse(f"{machine.name} gives up: {error}")

        def failed(error: BaseException) -> None:
            self.watchtower.accuse(f"the peer on {machine.name} failed: {error!r}")

        assert machine.net is not None
        system = System(machine.name, {"loop": dispatcher, "pool": dispatcher}, fatal)
        router = ObservedRouter(system, machine.net, dispatcher, machine.name)
        router.on_send = self.watchtower.on_send
        machine.net.on_link(router.link_changed)
        ports = Ports(machine, machine, machine.disk, machine.net, None)
        self.leading[machine.name] = 0
        system.subscribe(LeaderChanged, _LeaderListener(self, machine.name))  # type: ignore[arg-type]
        system.subscribe(BrainUp, self._watchers[machine.name])  # type: ignore[arg-type]
        peer = system.spawn(
            ObservedPeer, machine.name, ports, router, self.options.peer, self._raft_class,
            on_error=failed, name="raft",
        )  # fmt: skip
        return Host(system, router, peer)

    def power_on(self, name: str) -> None:
        """Start a machine unless it runs."""
        machine = self.world.machines[name]
        if not machine.alive:
            machine.start()

    def change_member(self, change: str, name: str, through: str) -> None:
        """Ask for a step of a membership change; whether it comes to pass is left open."""
        ref = self.peer_ref(through)
        if ref is not None:
            self.world.note(f"through {through}: {change} {name}")
            ask = ref.ask(ChangeConfig(change, name, (name, name, "")), block=False)
            ask.on_done(lambda f: self.world.note(f"{change} {name}: {f.error or f.value}"))

    def peer_ref(self, name: str) -> Ref | None:
        """The peer of a running machine."""
        machine = self.world.machines[name]
        if not machine.alive or machine.host is None:
            return None
        ref: Ref = machine.host.peer
        return None if ref._mailbox.closed else ref  # noqa: SLF001

    def peer(self, name: str) -> Any:
        """The peer's actor itself, for looking at."""
        ref = self.peer_ref(name)
        return ref._mailbox.actor if ref is not None else None  # noqa: SLF001

    # -- running ------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """The whole run; raises :class:`SimFailure` with a report."""
        try:
            with _calm(self.options), self.world:
                self.world.on_step = self._on_step
                self._safety()
                self._liveness()
                self._judge()
                return self._outcome()
        except Exception as error:
            raise SimFailure(self._report(error)) from error

    def _on_step(self) -> None:
        self.watchtower.look()
        self._nemesis.on_step()

    def _safety(self) -> None:
        for name in self.names:
            self.power_on(name)
        for client in self._clients:
            client.start()
        self._nemesis.start()
        self.world.run(self.options.seconds)

    def _liveness(self) -> None:
        """The faults end, and the machines must make progress within a bound."""
        self._nemesis.stop()
        for client in self._clients:
            client.stop()
        world = self.world
        world.healed = True
        world.heal()
        broken = self._break_minority() if self.options.minority_stays_broken else []
        core = [name for name in self.names if name not in broken]
        for name in core:
            self.power_on(name)
        self._demand_writes(core, WRITE_WITHIN_S)
        world.heal()
        for name in self.names:
            self.power_on(name)
        self._bring_back_members()
        if not world.run_until(self._agreed, AGREE_WITHIN_S):
            raise Violation(f"after {AGREE_WITHIN_S} s without faults: {self._summary()}")
        self._demand_writes(self.names, 3.0)
        if not world.run_until(self._leases_gone, LEASES_GONE_WITHIN_S):
            left = sorted(self.watchtower.chronicle.store.leases)
            raise Violation(f"leases {left} outlive their time by far")
        if not world.run_until(self._agreed, 3.0):
            raise Violation(f"the peers do not agree at the end: {self._summary()}")

    def _break_minority(self) -> list[str]:
        """Some machines stay down, or cut off, perhaps in one direction only."""
        broken = self._rng.sample(self.names, self._rng.randint(1, (self.size - 1) // 2))
        how = self._rng.choice(["down", "cut", "deaf", "mute"])
        self.world.note(f"{sorted(broken)} stay broken: {how}")
        for name in broken:
            if how == "down":
                self.world.machines[name].crash()
            else:
                self.power_on(name)
        links = {(a, b) for a in self.names for b in self.names if a != b}
        into = {link for link in links if link[1] in broken}
        out = {link for link in links if link[0] in broken}
        self.world.cut = {"down": into | out, "cut": into | out, "deaf": into, "mute": out}[how]
        return broken

    def _bring_back_members(self) -> None:
        """Every machine that was taken out must become a voter again within a bound."""
        chronicle = self.watchtower.chronicle
        whole = frozenset(self.names)
        tried = 0

        def press() -> None:
            nonlocal tried
            config = chronicle.config
            for name in sorted(whole - config.voters):
                change = "promote" if name in config.learners else "add_learner"
                self.change_member(change, name, through=self.names[tried % self.size])
            tried += 1
            if config.voters != whole:
                self.world.call_later(0.5, press)

        press()
        back = self.world.run_until(lambda: chronicle.config.voters == whole, AGREE_WITHIN_S)
        if not back:
            raise Violation(f"the machines are not all voters again: {self._summary()}")

    def _demand_writes(self, names: list[str], seconds: float) -> None:
        """Each of these that is a voter must take a write, and show it in a linearizable read."""
        probes = [_Probe(self, name) for name in names]

        def missing() -> list[str]:
            voters = self.watchtower.chronicle.config.voters
            return [p.machine for p in probes if p.machine in voters and not p.passed]

        self.world.run_until(lambda: not missing(), seconds)
        for probe in probes:
            probe.stop()
        if missing():
            raise Violation(
                f"no write and read through {missing()} within {seconds} s "
                f"without faults: {self._summary()}"
            )

    def _agreed(self) -> bool:
        peers = [self.peer(name) for name in self.names]
        if any(peer is None or peer.raft is None for peer in peers):
            return False
        logs = [peer.raft.log for peer in peers]
        ends = {(log.applied, log.commit, log.last_index, log.last_term) for log in logs}
        if len(ends) != 1 or logs[0].applied != logs[0].last_index:
            return False
        leaders = [peer for peer in peers if peer.raft.role is Role.LEADER]
        return (
            len(leaders) == 1
            and {(p.raft.term, p.raft.leader) for p in peers}
            == {(leaders[0].raft.term, leaders[0].machine)}
            and logs[0].applied == self.watchtower.chronicle.last
        )

    def _leases_gone(self) -> bool:
        return not self.watchtower.chronicle.store.leases

    def _summary(self) -> str:
        parts = []
        for name in self.names:
            peer = self.peer(name)
            if peer is None or peer.raft is None:
                parts.append(f"{name} down")
                continue
            raft, log = peer.raft, peer.raft.log
            parts.append(
                f"{name} {raft.role.name.lower()} of {raft.leader or '?'} in term {raft.term}, "
                f"snapshot {log.snapshot_index} applied {log.applied} commit {log.commit} "
                f"stable {log.stable} last {log.last_index}"
            )
        return "; ".join(parts)

    # -- judging --------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Everything that can only be known at the end."""
        chronicle = self.watchtower.chronicle
        truth = list(chronicle.store.dump())
        for name in self.names:
            if list(self.peer(name).store.dump()) != truth:
                raise Violation(f"the store of {name} differs from the true one at the end")
        calls = self.history.calls
        completed = self.history.completed()
        invariants.check_answers(completed, chronicle)
        invariants.check_never(calls, chronicle)
        invariants.check_fences(calls, chronicle)
        invariants.check_revisions(completed)
        invariants.check_holders(calls)
        self.watchtower.check_leases()
        for watcher in self._watchers.values():
            if watcher.last != chronicle.store.revision:
                raise Violation(f"the watch on {watcher.machine} ended at {watcher.last}")
        operations = self.history.operations()
        operations += invariants.lease_ends(calls, chronicle)
        for finding in linearizability.check(operations):
            if finding.verdict is not Verdict.LEGAL:
                raise Violation(str(finding))

    def _outcome(self) -> Outcome:
        chronicle = self.watchtower.chronicle
        return Outcome(
            seed=self.seed,
            size=self.size,
            trace=self.world.trace,
            steps=self.world.steps,
            virtual_s=self.world.now,
            calls=len(self.history.calls),
            acknowledged=len(self.history.completed()),
            entries=chronicle.last,
            revision=chronicle.store.revision,
            state_hash=chronicle.store.hash,
            leaders=len(self.watchtower.leaders),
            lives=sum(machine.life for machine in self.world.machines.values()),
            checked=dict(self.watchtower.checked),
        )

    def _report(self, error: BaseException) -> str:
        what = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
        lines = [
            *list(self.world.log)[-REPORT_LINES:],
            "",
            what,
            f"seed {self.seed}, size {self.size}, at {self.world.now:.4f} s, step {self.world.steps}",
            str(self.options),
            f"replay: python -m tests.sim.run --size {self.size} --seed {self.seed}",
        ]
        return "\n".join(lines)


@contextmanager
def _calm(options: Options) -> Iterator[None]:
    """Small pieces of snapshots, no logging and no garbage collection during a run."""
    chunk_bytes, snapshot.CHUNK_BYTES = snapshot.CHUNK_BYTES, options.chunk_bytes
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        snapshot.CHUNK_BYTES = chunk_bytes
        logging.disable(disabled)
        if collecting:
            gc.enable()
            gc.collect()


def run_seed(
    seed: int, size: int, raft_class: type[Raft] = Raft, white_box: bool = True,
    options: Options | None = None,
) -> Outcome:  # fmt: skip
    """Run one seed; raises :class:`SimFailure` with a report."""
    return SimCluster(seed, size, options, raft_class, white_box).run()
