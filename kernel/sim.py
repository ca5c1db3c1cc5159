"""The simulator: many machines in one thread, in virtual time, with drawn faults.

It implements the ports (clock, disk, net, rng) and a dispatcher, so the same actors boot
here by the same function as in production.  One seed is one run: the order in which ready
mailboxes run, every delay and every fault come from it, and running it twice gives the
same trace.

Faults: crash and restart of machines; per-link delay, loss, duplication, reordering;
partitions, also one-way; pauses; slow disks; and at a crash every write that was not
synced is kept, lost or torn at a sector, and directory changes not synced may revert.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from .current import current
from .ports import DiskError

if TYPE_CHECKING:
    from .mailbox import Mailbox

SECTOR = 512
Operations = list[tuple[Any, ...]]


@dataclass(slots=True)
class Faults:
    """Rates of one run; drawn per seed so that runs differ in kind (swarm testing)."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_s_max: float = 0.002
    disk_s_max: float = 0.002
    disk_stall: float = 0.0
    disk_stall_s_max: float = 1.0
    #: how often there is no room for a batch that does not wait for any
    disk_full: float = 0.0
    clock_rate_spread: float = 0.0
    clock_offset_s_max: float = 0.0


class SimTimer:
    """A pending callback; cancelling is lazy."""

    __slots__ = ("action", "cancelled")

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        """Do not call."""
        self.cancelled = True


class World:
    """Virtual time, the ready mailboxes, the network and the machines."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.now_ns = 0
        self.steps = 0
        self._heap: list[tuple[int, int, SimTimer]] = []
        self._sequence = 0
        self._ready: list[Mailbox] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self.log: deque[str] = deque(maxlen=400)
        self.machines: dict[str, SimMachine] = {}
        self.cut: set[tuple[str, str]] = set()
        self.healed = False
        self.on_step: Callable[[], None] | None = None

    # -- running -------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self.now_ns / 1e9

    def call_later(self, delay_s: float, action: Callable[[], None]) -> SimTimer:
        """Call in ``delay_s`` virtual seconds."""
        timer = SimTimer(action)
        self._sequence += 1
        due = self.now_ns + max(0, int(delay_s * 1e9))
        heapq.heappush(self._heap, (due, self._sequence, timer))
        return timer

    def enqueue(self, mailbox: Mailbox) -> None:
        """A mailbox is ready to run."""
        self._ready.append(mailbox)

    def step(self) -> bool:
        """Run one mailbox, or let time pass to the next timer; False if nothing is left."""
        self.steps += 1
        ready = self._ready
        if ready:
            at = self.random.randrange(len(ready)) if len(ready) > 1 else 0
            ready[at], ready[-1] = ready[-1], ready[at]
            mailbox = ready.pop()
            if mailbox.closed and not mailbox.user:
                return True
            self._trace(mailbox.path)
            mailbox.run(1)
        else:
            while self._heap and self._heap[0][2].cancelled:
                heapq.heappop(self._heap)
            if not self._heap:
                return False
            due, number, timer = heapq.heappop(self._heap)
            self.now_ns = max(self.now_ns, due)
            self._trace(f"timer {number}")
            timer.action()
        if self.on_step is not None:
            self.on_step()
        return True

    def _trace(self, what: str) -> None:
        self._digest.update(b"%d %s\n" % (self.now_ns, what.encode()))

    @property
    def trace(self) -> str:
        """A digest of everything that ran, in order."""
        return self._digest.hexdigest()

    def note(self, text: str) -> None:
        """Remember a line for the report of a failing seed."""
        self.log.append(f"{self.now:10.4f} {text}")

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now_ns + int(seconds * 1e9)
        stop = self.call_later(seconds, lambda: None)
        while self.now_ns < end or self._ready:
            if not self.step():
                break
        stop.cancel()

    def run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Run until the condition holds, at most ``seconds``; whether it held."""
        end = self.now_ns + int(seconds * 1e9)
        self.call_later(seconds, lambda: None)
        while not condition():
            if self.now_ns >= end or not self.step():
                return condition()
        return True

    def __enter__(self) -> World:
        current.pump = lambda done, timeout: self.run_until(done, timeout or 60.0)
        return self

    def __exit__(self, *_: object) -> None:
        current.pump = None
        for machine in self.machines.values():
            machine.crash()

    # -- the network -----------------------------------------------------------------------

    def partition(self, *groups: set[str]) -> None:
        """Cut every link between machines of different groups; the unnamed are together."""
        named = set().union(*groups)
        rest = set(self.machines) - named
        sides = [*groups, rest] if rest else list(groups)
        self.cut = {
            (a, b) for i, one in enumerate(sides) for j, two in enumerate(sides) if i != j
            for a in one for b in two
        }  # fmt: skip
        self.note(f"partition {sorted(map(sorted, sides))}")

    def heal(self) -> None:
        """All links work, nothing is lost any more."""
        self.cut = set()
        self.note("healed")

    def carry(self, source: SimMachine, target: str, lane: int, frame: bytes) -> None:
        """Take a frame across a link, with this run's faults."""
        faults, draw = self.faults, self.random.random
        if not self.healed and draw() < faults.loss:
            return
        copies = 2 if not self.healed and draw() < faults.duplicate else 1
        for _ in range(copies):
            arrives = self.now + 0.0001 + draw() * faults.delay_s_max
            key = (source.name, target, lane)
            if self.healed or draw() >= faults.reorder:
                arrives = max(arrives, source.last_arrival.get(key, 0.0))
                source.last_arrival[key] = arrives
            self.call_later(arrives - self.now, lambda: self._arrive(source.name, target, frame))

    def calls(self, machine: str, target: str) -> bool:
        """Whether ``machine`` runs and keeps a link to ``target``."""
        other = self.machines.get(machine)
        return other is not None and other.alive and other.net is not None and other.net.keeps(target)

    def _arrive(self, source: str, target: str, frame: bytes) -> None:
        if (source, target) in self.cut:
            return
        machine = self.machines.get(target)
        if machine is not None and machine.net is not None and machine.alive:
            if machine.paused:
                machine.held.append(lambda: self._arrive(source, target, frame))
            else:
                machine.net.on_frame(self.machines[source].sender if source in self.machines else source, frame)


class SimMachine:
    """One machine: a disk that outlives crashes, and a life that does not."""

    def __init__(self, world: World, name: str, boot: Callable[[SimMachine], Any]) -> None:
        self.world = world
        self.name = name
        self.sender = name  # how others see who sent a frame
        self._boot = boot
        self.alive = False
        self.paused = False
        self.held: list[Callable[[], None]] = []
        self.life = 0
        self.disk = SimDisk(self)
        self.net: SimNet | None = None
        self.host: Any = None
        self.failure: BaseException | None = None
        self.on_power_off: Callable[[], None] | None = None
        self.last_arrival: dict[tuple[str, str, int], float] = {}
        spread = world.faults.clock_rate_spread
        self.rate = 1.0 + world.random.uniform(-spread, spread)
        self.offset = world.random.uniform(-1, 1) * world.faults.clock_offset_s_max
        world.machines[name] = self

    def start(self) -> None:
        """Power on: boot the same way as production does."""
        assert not self.alive
        self.life += 1
        self.alive = True
        self.failure = None
        self.net = SimNet(self)
        self.world.note(f"{self.name} starts")
        self.host = self._boot(self)

    def crash(self, power: bool = True) -> None:
        """Power loss: everything in memory is gone, unsynced writes are at stake.

        Without ``power`` only the host process dies: what it had written to files stays.
        """
        if not self.alive:
            return
        self.world.note(f"{self.name} {'loses power' if power else 'crashes'}")
        self.alive = False
        self.paused = False
        self.held.clear()
        self.host.system.crash()
        if power:
            self.disk.crash()
            if self.on_power_off is not None:
                self.on_power_off()
        else:
            self.disk.abandon()
        for other in self.world.machines.values():
            if other is not self and other.alive and other.net is not None:
                self.world.call_later(0.001, partial(other.net.link_down, self.name))

    def pause(self, seconds: float) -> None:
        """SIGSTOP for a while: timers and frames wait, then come all at once."""
        if not self.alive or self.paused:
            return
        self.world.note(f"{self.name} pauses for {seconds:.1f} s")
        self.paused = True
        life = self.life

        def resume() -> None:
            if self.life == life and self.paused:
                self.paused = False
                held, self.held = self.held, []
                for action in held:
                    action()

        self.world.call_later(seconds, resume)

    # -- clock, rng ---------------------------------------------------------------------------

    def monotonic(self) -> float:
        """Seconds on this machine's own clock."""
        return self.world.now * self.rate + 1000.0

    def wall(self) -> float:
        """Wall time as this machine believes."""
        return 1_700_000_000.0 + self.world.now * self.rate + self.offset

    def below(self, n: int) -> int:
        """A number in [0, n)."""
        return self.world.random.randrange(n)

    def token(self) -> str:
        """32 hexadecimal digits."""
        return f"{self.world.random.getrandbits(128):032x}"

    def later(self, delay_s: float, action: Callable[[], None]) -> SimTimer:
        """A timer of this life of the machine; it waits while the machine is paused."""
        life = self.life

        def due() -> None:
            if self.life != life or not self.alive:
                return
            if self.paused:
                self.held.append(fire)
            else:
                action()

        def fire() -> None:
            if not timer.cancelled:
                due()

        timer = self.world.call_later(delay_s / self.rate, due)
        return timer


class SimDispatcher:
    """Runs the mailboxes of one life of one machine."""

    may_block = False

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine
        self._life = machine.life
        self.clock = machine.monotonic

    def enqueue(self, mailbox: Mailbox) -> None:
        """Ready, unless this life is over."""
        machine = self._machine
        if machine.life != self._life or not machine.alive:
            return
        if machine.paused:
            machine.held.append(lambda: self.enqueue(mailbox))
        else:
            machine.world.enqueue(mailbox)

    def call_later(self, delay: float, action: Callable[[], None]) -> SimTimer:
        """A timer of this life."""
        return self._machine.later(delay, action)

    def spare(self, action: Callable[[], None]) -> None:
        """At once; nothing blocks here."""
        action()


class SimNet:
    """The net port of one life of one machine."""

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine
        self._peers: dict[str, str] = {}
        self._on_frame: Callable[[str, bytes], None] = lambda machine, frame: None
        self._on_link: Callable[[str, bool], None] = lambda machine, up: None

    def send(self, machine: str, lane: int, frame: bytes) -> bool:
        """Into the network; False only if neither of the two keeps a link to the other."""
        if machine not in self._peers and not self._machine.world.calls(machine, self._machine.name):
            return False
        self._machine.world.carry(self._machine, machine, lane, frame)
        return True

    def keeps(self, machine: str) -> bool:
        """Whether a link to ``machine`` is kept."""
        return machine in self._peers

    def set_peers(self, addresses: dict[str, str]) -> None:
        """Machines to keep links to."""
        self._peers = dict(addresses)

    def listen(self, on_frame: Callable[[str, bytes], None]) -> None:
        """Where incoming frames go."""
        self._on_frame = on_frame

    def on_link(self, callback: Callable[[str, bool], None]) -> None:
        """Called when a link goes down."""
        self._on_link = callback

    def on_frame(self, source: str, frame: bytes) -> None:
        """A frame arrives."""
        self._on_frame(source, frame)

    def link_down(self, machine: str) -> None:
        """The other side crashed: the operating system resets its connections."""
        self._on_link(machine, False)


class _File:
    __slots__ = ("cached", "durable", "unsynced")

    def __init__(self, data: bytes = b"") -> None:
        self.cached = bytearray(data)
        self.durable = bytearray(data)
        self.unsynced: list[tuple[int, bytes]] = []


Changes = list[tuple[str, str, _File | None]]


class SimDisk:
    """The disk port: what was synced survives, what was not is at stake."""

    full = ""

    def __init__(self, machine: SimMachine) -> None:
        self._machine = machine
        self._files: dict[str, _File] = {}
        self._directory: Changes = []  # unsynced directory changes
        self._queue: deque[tuple[Operations, Callable[[DiskError | None], None]]] = deque()
        self._busy = False

    def install(self, name: str, data: bytes) -> None:
        """Put a durable file there before the machine is first started."""
        self._files[name] = _File(data)

    def list(self) -> list[str]:
        """Names, sorted."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """The whole file as the running system sees it."""
        if name not in self._files:
            raise DiskError(f"{self._machine.name}:{name}: no such file")
        return bytes(self._files[name].cached)

    def submit(
        self, operations: Operations, done: Callable[[DiskError | None], None], if_room: bool = False
    ) -> None:
        """Queue a batch; it takes a drawn time.  Now and then there is no room."""
        world = self._machine.world
        if if_room and not world.healed and world.random.random() < world.faults.disk_full:
            operations, done = self._refused(operations, done)
        self._queue.append((operations, done))
        if not self._busy:
            self._start()

    def _refused(
        self, operations: Operations, done: Callable[[DiskError | None], None]
    ) -> tuple[Operations, Callable[[DiskError | None], None]]:
        """Half of the operations, and then the answer that there was no room."""

        def refuse(error: DiskError | None) -> None:
            done(error or DiskError(f"disk full: {self._machine.name}", full=True))

        return operations[: len(operations) // 2], refuse

    def _start(self) -> None:
        if not self._queue:
            self._busy = False
            return
        self._busy = True
        operations, done = self._queue.popleft()
        world = self._machine.world
        delay = world.random.random() * world.faults.disk_s_max
        if not world.healed and world.random.random() < world.faults.disk_stall:
            delay += world.random.random() * world.faults.disk_stall_s_max
        # the first writes reach the cache at some moment before the rest is done
        life = self._machine.life
        rest = next((n for n, op in enumerate(operations) if op[0] not in ("write", "create")), len(operations))

        def begin() -> None:
            if self._machine.life == life and self._machine.alive:
                for operation in operations[:rest]:
                    self._execute(operation)
                world.call_later(delay / 2, finish)

        def finish() -> None:
            if self._machine.life != life or not self._machine.alive:
                return
            for operation in operations[rest:]:
                self._execute(operation)
            if self._machine.paused:
                self._machine.held.append(lambda: done(None))
            else:
                done(None)
            self._start()

        world.call_later(delay / 2, begin)

    def _execute(self, operation: tuple[Any, ...]) -> None:
        verb = operation[0]
        if verb == "sync_dir":
            self._directory.clear()
            return
        name = operation[1]
        if verb == "create":
            self._directory.append(("create", name, self._files.get(name)))
            self._files[name] = _File(bytes(operation[2]))
        elif verb == "write":
            file = self._files[name]
            offset, data = operation[2], operation[3]
            if len(file.cached) < offset + len(data):
                file.cached.extend(bytes(offset + len(data) - len(file.cached)))
            file.cached[offset : offset + len(data)] = data
            file.unsynced.append((offset, data))
        elif verb == "keep":
            pass  # nothing makes room here
        elif verb == "sync":
            file = self._files[name]
            file.durable = bytearray(file.cached)
            file.unsynced.clear()
        elif verb == "rename":
            after = operation[2]
            self._directory.append(("replace", after, self._files.get(after)))
            self._files[after] = self._files[name]
            self._directory.append(("remove", name, self._files.pop(name)))
        elif verb == "remove":
            self._directory.append(("remove", name, self._files.pop(name, None)))
        else:
            raise AssertionError(f"no disk operation {verb!r}")

    def abandon(self) -> None:
        """The process that wrote is gone: what had reached the cache stays there."""
        self._queue.clear()
        self._busy = False

    def crash(self) -> None:
        """Decide the fate of everything that was not synced."""
        rng = self._machine.world.random
        self._queue.clear()
        self._busy = False
        kept = rng.randint(0, len(self._directory))
        for verb, name, before in reversed(self._directory[kept:]):
            del verb
            if before is None:
                self._files.pop(name, None)
            else:
                self._files[name] = before
        self._directory.clear()
        for file in self._files.values():
            for offset, data in file.unsynced:
                self._tear(file, offset, data, rng)
            file.unsynced.clear()
            file.cached = bytearray(file.durable)

    @staticmethod
    def _tear(file: _File, offset: int, data: bytes, rng: random.Random) -> None:
        fate = rng.random()
        if fate < 0.3:
            return  # lost
        at = 0
        while at < len(data):
            stop = min(((offset + at) // SECTOR + 1) * SECTOR - offset, len(data))
            if fate > 0.7 or rng.random() < 0.5:  # kept whole, or torn sector by sector
                end = offset + stop
                if len(file.durable) < end:
                    file.durable.extend(bytes(end - len(file.durable)))
                file.durable[offset + at : end] = data[at:stop]
            at = stop
