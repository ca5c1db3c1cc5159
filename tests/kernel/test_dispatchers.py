"""The real dispatchers: an event loop on one thread, and a pool whose handlers may block."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kernel.actor import Actor
from kernel.dispatch import PoolDispatcher
from kernel.system import System

from ..waiting import wait_until
from .world import PATIENCE_S, LoopThread, Recorder

pytestmark = pytest.mark.timeout(30)


class Where(Actor):
    """Answers on which thread it runs."""

    def on_receive(self, message: Any) -> int:
        """The thread's identity."""
        return threading.get_ident()


class Flood(Actor):
    """Keeps itself busy for ever by telling itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0

    def on_receive(self, message: Any) -> Any:
        """Go on, or report."""
        if message == "rounds":
            return self.rounds
        self.rounds += 1
        self.actor_ref.tell("again")
        return None


class Exclusive(Actor):
    """Notices if two threads run it at once, or if messages of one sender change places."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        self.overlaps = 0
        self.last: dict[str, int] = {}
        self.disorder = 0
        self.count = 0

    def on_receive(self, message: tuple[str, int]) -> None:
        """Take the next number of a sender."""
        self.inside += 1
        if self.inside != 1:
            self.overlaps += 1
        sender, number = message
        if number != self.last.get(sender, -1) + 1:
            self.disorder += 1
        self.last[sender] = number
        self.count += 1
        self.inside -= 1


def _from_many_threads(system: System, senders: int, messages: int) -> tuple[int, int, int]:
    ref = system.spawn(Exclusive, name="exclusive")

    def send(name: str) -> None:
        for number in range(messages):
            ref.tell((name, number))

    threads = [threading.Thread(target=send, args=(f"s{i}",)) for i in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    proxy = ref.proxy()
    return (
        proxy.count.get(timeout=PATIENCE_S),
        proxy.overlaps.get(timeout=PATIENCE_S),
        proxy.disorder.get(timeout=PATIENCE_S),
    )


def test_one_actor_on_the_pool_never_runs_twice_at_once(pool_system: System) -> None:
    """Many threads send: each message is handled once, in its sender's order, one at a time."""
    assert _from_many_threads(pool_system, 4, 1000) == (4000, 0, 0)


def test_one_actor_on_the_loop_gets_everything_from_other_threads(loop_thread: LoopThread) -> None:
    """The same on the event loop, which other threads must wake."""
    system = System("host", {"loop": loop_thread.dispatcher})
    assert _from_many_threads(system, 4, 1000) == (4000, 0, 0)


def test_all_actors_of_a_loop_share_its_thread(loop_thread: LoopThread) -> None:
    """No handler runs anywhere else, whoever sent."""
    system = System("host", {"loop": loop_thread.dispatcher})
    refs = [system.spawn(Where, name=f"a{i}") for i in range(5)]
    assert {ref.ask("where", timeout=PATIENCE_S) for ref in refs} == {loop_thread.thread.ident}


def test_a_busy_actor_starves_neither_its_neighbours_nor_the_loop(loop_thread: LoopThread) -> None:
    """A mailbox has a budget per run and a turn has a limit of runs, so I/O gets its turn too."""
    system = System("host", {"loop": loop_thread.dispatcher})
    flood = system.spawn(Flood, name="flood")
    flood.tell("go")
    where = system.spawn(Where, name="where")
    for _ in range(3):
        assert where.ask("x", timeout=PATIENCE_S)
        assert loop_thread.call(lambda: "the loop turns") == "the loop turns"
    assert flood.ask("rounds", timeout=PATIENCE_S) > 0
    flood.stop(timeout=PATIENCE_S)


class Fragile(Actor):
    """Its hooks fail with exceptions that nobody expects."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def on_start(self) -> None:
        """Fail, if told so, once."""
        if self.where == "on_start" and not self.actor_inbox.restarts:
            raise GeneratorExit("in on_start")

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        """Fail, if told so."""
        if self.where == "on_failure":
            raise GeneratorExit("in on_failure")

    def on_receive(self, message: Any) -> Any:
        """Fail or answer."""
        if message == "fail":
            raise ValueError("in a handler")
        return message


@pytest.mark.parametrize("where", ["on_start", "on_failure"])
def test_the_loop_survives_whatever_a_hook_raises(loop_thread: LoopThread, where: str) -> None:
    """One bad hook must not silence every other actor of the host."""
    system = System("host", {"loop": loop_thread.dispatcher})
    healthy = system.spawn(Where, name="healthy")
    bad = system.spawn(Fragile, where, name="bad")
    bad.tell("fail")
    assert healthy.ask("x", timeout=1) == loop_thread.thread.ident
    assert bad.ask("back", timeout=1) == "back"


def test_a_reply_callback_that_fails_does_not_end_the_loop(loop_thread: LoopThread) -> None:
    """Whoever hangs a faulty callback on a future harms only himself."""
    system = System("host", {"loop": loop_thread.dispatcher})
    healthy = system.spawn(Where, name="healthy")

    def burst(_: Any) -> None:
        raise RuntimeError("the callback failed")

    gate = threading.Event()
    loop_thread.loop.call_soon_threadsafe(gate.wait, PATIENCE_S)
    healthy.ask("x", block=False).on_done(burst)
    gate.set()
    assert healthy.ask("x", timeout=1) == loop_thread.thread.ident


def test_loop_timers_from_another_thread_fire_on_the_loop(loop_thread: LoopThread) -> None:
    """``call_later`` is handed over, and a cancel that comes in time is heeded."""
    fired: list[int] = []
    done = threading.Event()

    def fire() -> None:
        fired.append(threading.get_ident())
        done.set()

    cancelled = loop_thread.dispatcher.call_later(0.001, lambda: fired.append(-1))
    cancelled.cancel()
    loop_thread.dispatcher.call_later(0.01, fire)
    assert done.wait(PATIENCE_S)
    assert fired == [loop_thread.thread.ident]


def test_a_closed_loop_is_no_error_for_whoever_still_sends() -> None:
    """At the end of a process a late message is lost without a traceback."""
    made = LoopThread()
    system = System("host", {"loop": made.dispatcher})
    ref = system.spawn(Recorder, [], name="a")
    ref.ask("x", timeout=PATIENCE_S)
    made.close()
    ref.tell("late")


def test_pool_timers_fire_in_order_and_can_be_cancelled(pool: PoolDispatcher) -> None:
    """The later-set, earlier-due one comes first."""
    fired: list[str] = []
    done = threading.Event()

    def second() -> None:
        fired.append("second")
        done.set()

    pool.call_later(0.03, second)
    pool.call_later(0.01, lambda: fired.append("first"))
    pool.call_later(0.02, lambda: fired.append("never")).cancel()
    assert done.wait(PATIENCE_S)
    assert fired == ["first", "second"]


def test_a_pool_timer_that_fails_does_not_end_the_others(pool: PoolDispatcher) -> None:
    """All timers of a pool share one thread; it must outlive a faulty one."""
    done = threading.Event()

    def burst() -> None:
        raise RuntimeError("a faulty timer")

    previous, threading.excepthook = threading.excepthook, lambda _: None
    try:
        pool.call_later(0.001, burst)
        pool.call_later(0.01, done.set)
        assert done.wait(1)
    finally:
        threading.excepthook = previous


class _Run:
    """Stands for a mailbox whose run is any function."""

    def __init__(self, action: Any) -> None:
        self._action = action

    def run(self, budget: int) -> None:
        """What the dispatcher calls."""
        del budget
        self._action()


def test_the_pool_grows_when_the_only_idle_thread_is_already_spoken_for(pool: PoolDispatcher) -> None:
    """Two mailboxes arrive before the idle thread wakes: one waits for the other, both must run."""
    warm = threading.Event()
    pool.enqueue(_Run(warm.set))  # type: ignore[arg-type]
    assert warm.wait(PATIENCE_S)
    wait_until("the thread to go idle", lambda: pool._idle, PATIENCE_S)  # noqa: SLF001 - right after its run
    second_ran, first_saw = threading.Event(), threading.Event()

    def first() -> None:
        if second_ran.wait(1):
            first_saw.set()

    with pool._work:  # noqa: SLF001 - so that the idle thread cannot wake in between
        pool.enqueue(_Run(first))  # type: ignore[arg-type]
        pool.enqueue(_Run(second_ran.set))  # type: ignore[arg-type]
    assert first_saw.wait(1), "the second mailbox had no thread"


def test_a_pool_that_is_closed_lets_its_idle_threads_end() -> None:
    """Nothing of a closed pool stays behind."""
    pool = PoolDispatcher("closing-pool")
    ran = threading.Event()
    pool.enqueue(_Run(ran.set))  # type: ignore[arg-type]
    assert ran.wait(PATIENCE_S)
    pool.call_later(30, lambda: None)
    pool.close()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("closing-pool")]
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)


def test_restarts_work_on_a_real_loop(loop_thread: LoopThread) -> None:
    """Supervision as in the simulator, with the loop's own timers."""
    system = System("host", {"loop": loop_thread.dispatcher})
    log: list[Any] = []
    ref = system.spawn(Recorder, log, name="a")
    ref.tell("one")
    ref.kill()
    assert ref.ask("two", timeout=PATIENCE_S) == "two"
    assert ref.proxy().seen.get(timeout=PATIENCE_S) <= 2
    assert ref.stop(timeout=PATIENCE_S) is True
