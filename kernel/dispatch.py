"""Who runs mailboxes: the event loop, a pool of threads, or (in ``sim``) a seeded stepper.

``loop`` runs many actors on one thread and must never be blocked; ``pool`` runs actors
whose handlers may block, each on a thread of its own while it runs.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .mailbox import Mailbox

logger = logging.getLogger("argosy.actor")

#: Messages one mailbox may handle before others get their turn.
MAILBOX_BUDGET = 64
#: Mailbox runs in one turn of the event loop before I/O gets its turn.
RUNS_PER_TURN_MAX = 128
#: Threads one pool may grow to.
POOL_THREADS_MAX = 64


def run_safely(mailbox: Mailbox) -> None:
    """Run a mailbox; a fault of the kernel itself must not end everybody's thread."""
    try:
        mailbox.run(MAILBOX_BUDGET)
    except Exception:
        logger.exception("running mailbox %s failed", mailbox.path)


class Cancellable(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None:
        """Do not call."""


class Dispatcher(Protocol):
    """Runs mailboxes and keeps time for them."""

    may_block: bool

    def enqueue(self, mailbox: Mailbox) -> None:
        """Run this mailbox soon; any thread may call."""

    def call_later(self, delay: float, action: Callable[[], None]) -> Cancellable:
        """Call after ``delay`` seconds on a thread of this dispatcher."""

    def clock(self) -> float:
        """Monotonic seconds."""

    def spare(self, action: Callable[[], None]) -> None:
        """Run something that may block, outside every mailbox."""


class LoopDispatcher:
    """Every mailbox on one asyncio loop, in order of arrival, fairly."""

    may_block = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Mailbox] = deque()
        self._armed = False
        self._thread = threading.get_ident()
        self.clock = time.monotonic
        self.turns = 0

    def adopt_thread(self) -> None:
        """Call once from the thread that runs the loop."""
        self._thread = threading.get_ident()

    def enqueue(self, mailbox: Mailbox) -> None:
        """Queue the mailbox and wake the loop if needed."""
        self._ready.append(mailbox)
        if not self._armed:
            self._armed = True
            if threading.get_ident() == self._thread:
                self._loop.call_soon(self._drain)
            else:
                try:
                    self._loop.call_soon_threadsafe(self._drain)
                except RuntimeError:  # the loop is closed: the process is ending
                    pass

    def _drain(self) -> None:
        ready = self._ready
        self.turns += 1
        try:
            for _ in range(RUNS_PER_TURN_MAX):
                try:
                    mailbox = ready.popleft()
                except IndexError:
                    break
                run_safely(mailbox)
        finally:  # whatever escapes, the others must get their turn
            self._armed = False
            if ready and not self._armed:
                self._armed = True
                self._loop.call_soon(self._drain)

    def call_later(self, delay: float, action: Callable[[], None]) -> Cancellable:
        """A loop timer; from another thread it is handed over first."""
        if threading.get_ident() == self._thread:
            return self._loop.call_later(delay, action)
        handle = _Handed()

        def arm() -> None:
            if not handle.cancelled:
                handle.inner = self._loop.call_later(delay, action)

        self._loop.call_soon_threadsafe(arm)
        return handle

    def spare(self, action: Callable[[], None]) -> None:
        """On a thread of its own."""
        threading.Thread(target=action, daemon=True).start()


class _Handed:
    """A timer that is being handed to another thread."""

    def __init__(self) -> None:
        self.cancelled = False
        self.inner: Any = None

    def cancel(self) -> None:
        """Cancel now or as soon as it is armed."""
        self.cancelled = True
        if self.inner is not None:
            self.inner.cancel()


class _PoolTimer:
    __slots__ = ("action", "cancelled")

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class PoolDispatcher:
    """Threads, started when work waits and none is idle; handlers may block."""

    may_block = True

    def __init__(self, name: str = "pool", threads_max: int = POOL_THREADS_MAX) -> None:
        self._name = name
        self._threads_max = threads_max
        self._ready: deque[Mailbox] = deque()
        self._work = threading.Condition()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._timers: list[tuple[float, int, _PoolTimer]] = []
        self._timer_ids = itertools.count()
        self._timer_work = threading.Condition()
        self._timer_thread: threading.Thread | None = None
        self.clock = time.monotonic

    def enqueue(self, mailbox: Mailbox) -> None:
        """Queue the mailbox; start a thread if all are busy."""
        with self._work:
            self._ready.append(mailbox)
            if self._idle:
                self._idle -= 1  # spoken for, from this moment
                self._work.notify()
                return
            if self._threads >= self._threads_max or self._closed:
                return
            self._threads += 1
            number = self._threads
        threading.Thread(target=self._serve, name=f"{self._name}-{number}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._work:
                while not self._ready:
                    if self._closed:
                        self._threads -= 1
                        return
                    self._idle += 1
                    self._work.wait()
                mailbox = self._ready.popleft()
            run_safely(mailbox)

    def close(self) -> None:
        """Let idle threads end; what runs is finished first."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        with self._timer_work:
            self._timer_work.notify_all()

    def call_later(self, delay: float, action: Callable[[], None]) -> Cancellable:
        """A timer on one thread shared by the pool's timers."""
        timer = _PoolTimer(action)
        with self._timer_work:
            heapq.heappush(self._timers, (time.monotonic() + delay, next(self._timer_ids), timer))
            if self._timer_thread is None:
                self._timer_thread = threading.Thread(
                    target=self._serve_timers, name=f"{self._name}-timer", daemon=True
                )
                self._timer_thread.start()
            self._timer_work.notify()
        return timer

    def _serve_timers(self) -> None:
        while True:
            with self._timer_work:
                if self._closed:
                    return
                if not self._timers:
                    self._timer_work.wait()
                    continue
                wait = self._timers[0][0] - time.monotonic()
                if wait > 0:
                    self._timer_work.wait(wait)
                    continue
                timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                try:
                    timer.action()
                except Exception:
                    logger.exception("a timer failed")

    def spare(self, action: Callable[[], None]) -> None:
        """On a thread of its own."""
        threading.Thread(target=action, daemon=True).start()


_default: PoolDispatcher | None = None
_default_lock = threading.Lock()


def default_dispatcher() -> PoolDispatcher:
    """Where an actor started without a system runs."""
    global _default  # noqa: PLW0603 - one per process, like Pykka's registry
    with _default_lock:
        if _default is None:
            _default = PoolDispatcher("argosy-default")
        return _default
