"""What the kernel's tests share: one simulated machine, one real event loop, small actors."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kernel.actor import Actor, Ref
from kernel.dispatch import Dispatcher, LoopDispatcher
from kernel.messages import Terminated
from kernel.sim import SimDispatcher, SimMachine, World
from kernel.system import System

#: Seconds a test on real threads waits before it calls something stuck.
PATIENCE_S = 10.0
#: Seconds one thread keeps the interpreter from another; long ones starve the test's own thread.
SWITCH_S = 0.0001


class Host:
    """What a boot function returns: the machine's system."""

    def __init__(self, system: System) -> None:
        self.system = system


class Simulated:
    """A world with one machine, and what its system reported as fatal."""

    def __init__(self, seed: int = 1, name: str = "m1") -> None:
        self.world = World(seed)
        self.fatal: list[BaseException] = []
        self.machine = SimMachine(self.world, name, self._boot)
        self.machine.start()

    def _boot(self, machine: SimMachine) -> Host:
        dispatcher: Dispatcher = SimDispatcher(machine)
        return Host(System(machine.name, {"loop": dispatcher, "pool": dispatcher}, self.fatal.append))

    @property
    def system(self) -> System:
        """The system of the machine's present life."""
        system: System = self.machine.host.system
        return system

    def settle(self) -> None:
        """Run until no mailbox is ready; virtual time stands still."""
        while self.world._ready:  # noqa: SLF001
            self.world.step()

    def mailbox(self, ref: Ref) -> Any:
        """The mailbox behind a reference."""
        return ref._mailbox  # noqa: SLF001


@contextmanager
def simulated(seed: int = 1) -> Iterator[Simulated]:
    """A simulated machine in which a blocking ``get`` of the test makes progress."""
    sim = Simulated(seed)
    with sim.world:
        yield sim


class Recorder(Actor):
    """Writes down what it receives; ``boom`` and ``halt`` make it fail."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.log = log
        self.seen = 0

    def on_receive(self, message: Any) -> Any:
        """Record, or fail as told."""
        if message == "boom":
            raise ValueError("boom")
        if message == "halt":
            raise SystemExit("halt")
        self.seen += 1
        self.log.append(message)
        return message


class Watcher(Actor):
    """Keeps the death notices of everything it was told to watch."""

    def __init__(self, log: list[Terminated]) -> None:
        super().__init__()
        self.log = log

    def on_receive(self, message: Any) -> None:
        """Watch a reference, or take a notice."""
        if isinstance(message, Terminated):
            self.log.append(message)
        else:
            self.watch(message)


class LoopThread:
    """A real asyncio loop on a thread of its own, with a dispatcher on it."""

    def __init__(self) -> None:
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self.loop = asyncio.new_event_loop()
        self.dispatcher = LoopDispatcher(self.loop)
        self.problems: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        self.thread = threading.Thread(target=self._run, name="test-loop", daemon=True)
        self.thread.start()
        self.call(lambda: None)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.dispatcher.adopt_thread()
        self.loop.run_forever()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function on the loop's thread and return what it returns."""
        done = threading.Event()
        out: list[Any] = []

        def run() -> None:
            out.append(function())
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(PATIENCE_S), "the loop does not turn"
        return out[0]

    def close(self) -> None:
        """Stop the loop and its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE_S)
        self.loop.close()
        sys.setswitchinterval(self._switch_s)
