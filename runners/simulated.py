"""The processes port in the simulator: shims and workloads that obey the same rules.

A shim here outlives the host process, dies with the machine's power, and ends its workload
when the machine's lease is not renewed, exactly as ``runners/shim`` does.  What runs
where is in ``World``-wide books, so a test can see two copies the moment they exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernel.sim import SimMachine, SimTimer, World

from .logs import Page

Event = dict[str, Any]


class Books:
    """Every main process of the simulated world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.running: dict[str, dict[str, int]] = {}  # unit -> machine -> fence
        self.violations: list[str] = []
        self.starts = 0
        self.highest_fence: dict[str, int] = {}
        self.everywhere: set[str] = set()  # units that run on every machine

    def started(self, unit: str, machine: str, fence: int) -> None:
        """A main process begins; a second one elsewhere is what must never be."""
        self.starts += 1
        where = self.running.setdefault(unit, {})
        others = sorted(m for m in where if m != machine) if unit not in self.everywhere else []
        self.world.note(f"{unit} starts on {machine} (fence {fence})")
        if others:
            self.violations.append(
                f"{self.world.now:.4f}: {unit} starts on {machine} while it runs on {', '.join(others)}"
            )
        if fence < self.highest_fence.get(unit, 0) and unit not in self.everywhere:
            self.violations.append(f"{self.world.now:.4f}: the fence of {unit} went back to {fence}")
        self.highest_fence[unit] = max(fence, self.highest_fence.get(unit, 0))
        where[machine] = fence

    def ended(self, unit: str, machine: str) -> None:
        """A main process is gone."""
        self.world.note(f"{unit} ends on {machine}")
        self.running.get(unit, {}).pop(machine, None)


class _Shim:
    """One unit's shim on one machine; survives the host process."""

    def __init__(self, place: Workloads, unit: str, fenced: bool) -> None:
        self.place = place
        self.unit = unit
        self.fenced = fenced
        self.meta: dict[str, Any] = {}
        self.main: dict[str, Any] | None = None
        self.pid = 0
        self.listener: SimHandle | None = None
        self.pending: list[Event] = []
        self.ends: dict[str, Event] = {}
        self.alive = True
        self.was_fenced = False
        self._fence_timer: SimTimer | None = None

    def emit(self, event: Event) -> None:
        if self.listener is not None and self.listener.report(event):
            return
        self.pending.append(event)

    def start(self, step: str, environment: dict[str, str], main: bool) -> None:
        world = self.place.world
        self.place.next_pid += 1
        if not main:
            world.note(f"{self.unit} runs {step} on {self.place.machine.name}")
            self.emit({"ev": "started", "step": step, "main": False, "pid": self.place.next_pid})
            world.call_later(0.01, lambda: self.emit(
                {"ev": "ended", "step": step, "main": False, "code": 0, "signal": 0}))  # fmt: skip
            return
        if self.fenced and world.now >= self.place.stop_at:
            self.emit({"ev": "ended", "step": step, "main": True, "code": 0, "signal": 9, "fenced": True})
            return
        self.pid = self.place.next_pid
        self.main = {"step": step, "main": True, "start": str(self.pid)}
        self.was_fenced = False
        self.place.books.started(self.unit, self.place.machine.name, int(environment["ARGOSY_FENCE"]))
        self.emit({"ev": "started", "step": step, "main": True, "pid": self.pid})
        self.watch_lease()

    def end(self, number: int) -> None:
        """The main process ends by a signal (0: of itself, with status 1)."""
        main, self.main = self.main, None
        if main is not None:
            self.place.books.ended(self.unit, self.place.machine.name)
            event = {"ev": "ended", "step": main["step"], "main": True,
                     "code": 0 if number else 1, "signal": number}  # fmt: skip
            if self.was_fenced:
                event["fenced"] = True
            self.ends["main"] = event
            self.emit(event)
        self.emit({"ev": "empty"})

    def watch_lease(self) -> None:
        """Look again when the lease, as it is known now, runs out: SIGTERM, and SIGKILL once it is over."""
        world, main = self.place.world, self.main
        if not self.fenced or main is None or not self.alive:
            return
        if world.now >= self.place.kill_at:
            self.was_fenced = True
            self.end(9)
            return
        due = self.place.kill_at
        if world.now < self.place.stop_at:
            due = self.place.stop_at
        elif not self.was_fenced:
            self.was_fenced = True
            world.call_later(world.random.random() * 2, lambda: self.end(15) if self.main is main else None)
        world.call_later(due - world.now + 0.001, self.watch_lease)

    def die(self) -> None:
        """The shim is killed, and its workload with it."""
        self.alive = False
        self.place.shims.pop(self.unit, None)
        if self.main is not None:
            self.main = None
            self.place.books.ended(self.unit, self.place.machine.name)
        if self.listener is not None:
            self.listener.report({"ev": "lost", "error": "the shim ended"})

    def lose_link(self, seconds: float) -> None:
        """What is said meanwhile, on either side, is not heard; then a new link begins."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.break_link(seconds)


class Workloads:
    """The shims of one machine: they live as long as its power does."""

    def __init__(self, machine: SimMachine, books: Books) -> None:
        self.machine = machine
        self.world = machine.world
        self.books = books
        self.shims: dict[str, _Shim] = {}
        self.stop_at = 0.0
        self.kill_at = 0.0
        self.next_pid = 100
        self.boots = 0
        #: who is logged in
        self.users: list[str] = []

    def power_off(self) -> None:
        """Everything is gone at once."""
        for shim in self.shims.values():
            shim.alive = False
            if shim.main is not None:
                shim.main = None  # a signal that is still on its way finds nobody
                self.books.ended(shim.unit, self.machine.name)
        self.shims.clear()
        self.stop_at = self.kill_at = 0.0
        self.boots += 1


class SimHandle:
    """What ``open`` returns; valid for one life of the host process."""

    def __init__(self, owner: SimProcesses, unit: str, fenced: bool, on_event: Callable[[Event], None]) -> None:
        self._owner = owner
        self._unit = unit
        self._fenced = fenced
        self._on_event = on_event
        self._closed = False
        self._shim: _Shim | None = None
        owner.machine.later(0.02, self._reach)

    def _reach(self) -> None:
        if self._closed:
            return
        shims = self._owner.place.shims
        shim = shims.get(self._unit)
        if shim is None:
            shim = shims[self._unit] = _Shim(self._owner.place, self._unit, self._fenced)
        self._shim = shim
        shim.listener = self
        pending, shim.pending = shim.pending, []
        processes = {str(shim.pid): shim.main} if shim.main is not None else {}
        self.report({"ev": "hello", "me": {}, "meta": shim.meta, "pending": pending,
                     "processes": processes, "ends": shim.ends, "empty": shim.main is None})  # fmt: skip

    def break_link(self, seconds: float) -> None:
        """As when the real handle's connection ends, and a new one says hello."""
        self._shim = None

        def again() -> None:
            shim = self._owner.place.shims.get(self._unit)
            if shim is None:
                self.report({"ev": "lost", "error": "the shim ended"})
            elif shim.listener is None:
                shim.pending.clear()
                self._reach()

        self._owner.machine.later(seconds, again)

    def report(self, event: Event) -> bool:
        """Deliver, unless this host process is gone (then the shim keeps the event)."""
        machine = self._owner.machine
        if self._closed or not machine.alive or machine.life != self._owner.life:
            return False
        if machine.paused:
            machine.held.append(lambda: self._on_event(event))
        else:
            self._on_event(event)
        return True

    def run(self, step: str, argv: list[str], environment: dict[str, str], main: bool, **_: Any) -> None:
        """Start a command."""
        del argv
        if self._shim is not None and self._shim.alive and not self._closed:
            self._shim.start(step, environment, main)

    def kill(self, number: int, whole: bool) -> None:
        """Signal; the workload takes a moment to end."""
        del whole
        shim = self._shim
        if shim is None or self._closed:
            return
        delay = 0.001 if number == 9 else self._owner.machine.world.random.random() * 0.3
        main = shim.main

        def arrive() -> None:
            if shim.alive and shim.main is main:  # a signal is for what ran when it was sent
                shim.end(number)

        self._owner.machine.world.call_later(delay, arrive)

    def remember(self, meta: dict[str, Any]) -> None:
        """Keep a note in the shim."""
        if self._shim is not None:
            if meta.get("invocation") != self._shim.meta.get("invocation"):
                self._shim.ends = {}
            self._shim.meta = dict(meta)

    def find_main(self, pid_file: str, guess: bool) -> None:
        """Simulated workloads do not fork."""

    def tidy(self, directories: list[str], files: list[str]) -> None:
        """Nothing is left behind."""

    def quit(self) -> None:
        """End the shim."""
        shim = self._shim
        if shim is None:
            return
        if shim.main is not None:
            shim.end(9)
        shim.alive = False
        self._owner.place.shims.pop(self._unit, None)
        self.report({"ev": "lost", "error": "the shim ended"})

    def close(self) -> None:
        """Let go of the shim."""
        self._closed = True
        if self._shim is not None and self._shim.listener is self:
            self._shim.listener = None


class SimProcesses:
    """The processes port of one life of a host."""

    def __init__(self, machine: SimMachine, place: Workloads) -> None:
        self.machine = machine
        self.place = place
        self.life = machine.life
        self.boot_id = f"{machine.name}-{place.boots}"
        self._next_port = 20_000

    def open(self, unit: str, fenced: bool, on_event: Callable[[Event], None]) -> SimHandle:
        """Reach a unit's shim; ``hello`` follows."""
        return SimHandle(self, unit, fenced, on_event)

    def existing(self) -> list[str]:
        """Units that have a shim here."""
        return sorted(self.place.shims)

    def forget(self, unit: str) -> None:
        """The unit left this machine."""
        self.place.shims.pop(unit, None)

    def set_lease(self, stop_in: float, kill_in: float) -> None:
        """How long, in this machine's seconds, its lease is good."""
        self.place.stop_at = self.machine.world.now + stop_in / self.machine.rate
        self.place.kill_at = self.machine.world.now + kill_in / self.machine.rate

    def free_port(self) -> int:
        """The next one."""
        self._next_port += 1
        return self._next_port

    def probe(
        self, kind: str, target: str, environment: dict[str, str], timeout: float,
        done: Callable[[bool, str], None],
    ) -> None:  # fmt: skip
        """Well as long as the unit's main process runs; a program succeeds unless it is called ``bad``, a query too."""
        del timeout
        if kind == "users":
            users = ", ".join(self.place.users)
            self.machine.later(0.005, lambda: done(not users, users))
            return
        if kind in ("exec", "query"):
            self.machine.later(0.005, lambda: done(not target.endswith("bad"), "exit status 1"))
            return
        unit = environment["ARGOSY_UNIT"]
        shim = self.place.shims.get(unit)
        well = shim is not None and shim.main is not None
        self.machine.later(0.005, lambda: done(well, "simulated"))

    def read_environment(self, path: str) -> dict[str, str]:
        """No files here."""
        raise OSError(path)

    def variable(self, name: str) -> None:
        """No environment here."""

    def unmet(self, wanted: list[Any], host: tuple[str, ...], done: Callable[[Any], None]) -> None:
        """All conditions hold."""
        del wanted, host
        self.machine.later(0.001, lambda: done(None))

    def read_log(self, unit: str, lines: int, after: str, since: float, done: Callable[[Any], None]) -> None:
        """Simulated workloads print nothing."""
        del unit, lines, after, since
        self.machine.later(0.001, lambda: done(Page("", [])))
