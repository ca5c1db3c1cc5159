"""One measurement of actors in a fresh process; prints one line of JSON.

usage: python -m bench.actor_child argosy|pykka tell|start COUNT
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pykka
import uvloop

from kernel.actor import Actor, handles
from kernel.dispatch import LoopDispatcher, PoolDispatcher
from kernel.system import System

_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Tick:
    """The message that is told."""


class Tally:
    """Counts, and says when all have been seen."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.seen = 0
        self.complete = threading.Event()

    def one(self) -> None:
        """One more; called by one thread at a time."""
        self.seen += 1
        if self.seen == self.wanted:
            self.complete.set()

    def wait(self) -> None:
        """Until all were seen."""
        assert self.complete.wait(_PATIENCE_S), f"{self.seen} of {self.wanted}"


class Ours(Actor):
    """On the event loop, as most actors of a host."""

    mailbox_messages_max = 10_000_000

    def __init__(self, tally: Tally, counts_starts: bool) -> None:
        super().__init__()
        self._tally = tally
        self._counts_starts = counts_starts

    def on_start(self) -> None:
        """Alive."""
        if self._counts_starts:
            self._tally.one()

    @handles(Tick)
    def _on_tick(self, _: Tick) -> None:
        self._tally.one()


class Theirs(pykka.ThreadingActor):
    """A thread of its own, as Pykka's standard actor."""

    use_daemon_thread = True
    _starts = threading.Lock()

    def __init__(self, tally: Tally, counts_starts: bool) -> None:
        super().__init__()
        self._tally = tally
        self._counts_starts = counts_starts

    def on_start(self) -> None:
        """Alive."""
        if self._counts_starts:
            with self._starts:
                self._tally.one()

    def on_receive(self, message: Any) -> None:
        """A tick."""
        self._tally.one()


def _on_loop() -> tuple[System, Callable[[Callable[[], None]], None]]:
    """A system on a loop that runs in a thread of its own, and the means to call there."""
    sys.setswitchinterval(1e-4)  # as every host does, and so are the collector's thresholds
    gc.set_threshold(50_000, 20, 20)
    loop = uvloop.new_event_loop()
    dispatcher = LoopDispatcher(loop)
    ready = threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        dispatcher.adopt_thread()
        loop.call_soon(ready.set)
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    ready.wait(_PATIENCE_S)
    system = System("bench", {"loop": dispatcher, "pool": PoolDispatcher("bench")})

    def call(action: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(action)

    return system, call


def tell(kind: str, count: int) -> dict[str, float]:
    """Messages from another thread to one actor, to the last one handled."""
    tally = Tally(count)
    if kind == "argosy":
        system, _ = _on_loop()
        ref: Any = system.spawn(Ours, tally, False, name="counter")
    else:
        ref = Theirs.start(tally, False)
    message = Tick()
    gc.collect()
    gc.freeze()
    begun = time.perf_counter()
    for _ in range(count):
        ref.tell(message)
    tally.wait()
    return {"per_s": count / (time.perf_counter() - begun)}


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(kind: str, count: int) -> dict[str, float]:
    """Actors, to the last one's ``on_start``; and what each of them weighs."""
    tally = Tally(count)
    refs: list[Any] = []
    if kind == "argosy":
        system, call = _on_loop()

        def begin() -> None:
            for number in range(count):
                refs.append(system.spawn(Ours, tally, True, name=f"actor-{number}"))

        gc.collect()
        before = _resident()
        begun = time.perf_counter()
        call(begin)
    else:
        gc.collect()
        before = _resident()
        begun = time.perf_counter()
        for _ in range(count):
            refs.append(Theirs.start(tally, True))
    tally.wait()
    taken = time.perf_counter() - begun
    gc.collect()
    return {"per_s": count / taken, "bytes_each": (_resident() - before) / count}


if __name__ == "__main__":
    _, system_, work_, count_ = sys.argv
    print(json.dumps({"tell": tell, "start": start}[work_](system_, int(count_))), flush=True)
    os._exit(0)  # thousands of threads: nothing to take leave of
