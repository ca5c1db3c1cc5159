"""Asking: every ask is answered, in the asker's own turn, once; what Pykka leaves open is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pykka
import pytest
from pykka import ActorDeadError
from pykka._envelope import Envelope

from kernel.actor import Actor, AskTimeout, Ref, handles
from kernel.current import BlockingWaitError, current
from kernel.future import Future
from kernel.mailbox import Promise
from kernel.system import System

from .world import PATIENCE_S, LoopThread, Recorder, Simulated


class Asker(Actor):
    """Asks with ``ask_then`` and writes down what comes back, and in whose turn."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.log = log

    def on_receive(self, message: tuple[Any, Any, float]) -> None:
        """``(ref, message, timeout)``: ask and record."""
        ref, what, timeout = message

        def reply(value: Any, error: BaseException | None) -> None:
            assert current.mailbox is self.actor_inbox
            self.log.append((round(self.now(), 3), value, error))

        self.ask_then(ref, what, timeout, reply)


class Later(Actor):
    """Answers every ask with a promise that the test completes."""

    def __init__(self, promises: list[Promise]) -> None:
        super().__init__()
        self.promises = promises

    def on_receive(self, message: Any) -> Promise:
        """Promise an answer; ``now`` is answered before the mailbox sees the promise."""
        promise = Promise()
        if message == "now":
            promise.reply("at once")
        self.promises.append(promise)
        return promise


def test_an_ask_of_a_stopped_actor_is_refused_at_once(sim: Simulated) -> None:
    """After the end of an actor both forms of ask give ActorDeadError and nobody waits."""
    ref = sim.system.spawn(Recorder, [], name="a")
    ref.stop()
    future = ref.ask("late", block=False)
    assert future.done
    assert isinstance(future.error, ActorDeadError)
    with pytest.raises(ActorDeadError):
        ref.ask("late", timeout=1)
    with pytest.raises(ActorDeadError):
        ref.tell("late")
    assert ref.offer("late") is False


def test_an_ask_that_lands_after_teardown_is_answered(sim: Simulated) -> None:
    """The race of Pykka: the asker saw a living actor, its envelope arrives after the end."""
    log: list[Any] = []
    ref = sim.system.spawn(Recorder, log, name="a")
    ref.stop()
    future: Future[Any] = Future()
    ref.actor_inbox.put(Envelope("late", reply_to=future))
    sim.settle()
    assert isinstance(future.error, ActorDeadError)
    assert log == []


def test_asks_queued_behind_a_stop_are_answered(sim: Simulated) -> None:
    """What was sent before the stop is handled, what came after it is told that it was not."""
    log: list[Any] = []
    ref = sim.system.spawn(Recorder, log, name="a")
    before = ref.ask("before", block=False)
    stopped = ref.stop(block=False)
    after = ref.ask("after", block=False)
    again = ref.stop(block=False)
    sim.settle()
    assert before.get() == "before"
    assert isinstance(after.error, ActorDeadError)
    assert stopped.get() is True
    assert again.get() is True
    assert log == ["before"]


def test_no_ask_is_lost_between_many_askers_and_the_end(pool_system: System) -> None:
    """Real threads ask while the actor stops: each future completes, with a value or the refusal."""
    for round_ in range(20):
        ref = pool_system.spawn(Recorder, [], name=f"a{round_}")
        futures: list[Any] = []
        begin = threading.Barrier(5)

        def ask_many(ref: Ref = ref, begin: threading.Barrier = begin, futures: list[Any] = futures) -> None:
            begin.wait()
            for number in range(30):
                futures.append(ref.ask(number, block=False))

        threads = [threading.Thread(target=ask_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        begin.wait()
        ref.stop(block=False)
        for thread in threads:
            thread.join(PATIENCE_S)
        for future in futures:
            try:
                future.get(timeout=PATIENCE_S)
            except ActorDeadError:
                pass


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_promise_is_broken_when_its_actor_ends(sim: Simulated, end: str) -> None:
    """Whoever waits for a promised answer learns that the actor's life ended before it came."""
    promises: list[Promise] = []
    ref = sim.system.spawn(Later, promises, name="a")
    future = ref.ask("x", block=False)
    sim.settle()
    assert not future.done
    if end == "stop":
        ref.stop()
    else:
        ref.kill()
    sim.world.run(1)
    assert isinstance(future.error, ActorDeadError)


def test_base_exception_in_an_ask_answers_and_fails_only_the_supervised_actor(sim: Simulated) -> None:
    """SystemExit in a handler reaches the asker; the actor restarts; nobody else is touched."""
    log: list[Any] = []
    ref = sim.system.spawn(Recorder, log, name="a")
    other = sim.system.spawn(Recorder, log, name="other")
    with pytest.raises(SystemExit, match="halt"):
        ref.ask("halt", timeout=1)
    sim.world.run(1)
    assert sim.mailbox(ref).restarts == 1
    assert ref.ask("on", timeout=1) == "on"
    assert sim.mailbox(other).restarts == 0
    assert other.ask("too", timeout=1) == "too"
    assert sim.fatal == []


def test_base_exception_in_a_tell_fails_only_the_supervised_actor(sim: Simulated) -> None:
    """The same for a message without an asker."""
    log: list[Any] = []
    ref = sim.system.spawn(Recorder, log, name="a")
    other = sim.system.spawn(Recorder, log, name="other")
    ref.tell("halt")
    sim.world.run(1)
    assert sim.mailbox(ref).restarts == 1
    assert ref.is_alive()
    assert sim.mailbox(other).restarts == 0


class ExitsOnStart(Actor):
    """Fails with a BaseException in its first on_start only."""

    def __init__(self, starts: list[int]) -> None:
        super().__init__()
        self.starts = starts

    def on_start(self) -> None:
        """SystemExit the first time."""
        self.starts.append(1)
        if len(self.starts) == 1:
            raise SystemExit("in on_start")

    def on_receive(self, message: Any) -> Any:
        """Echo."""
        return message


def test_base_exception_in_on_start_fails_only_the_supervised_actor(sim: Simulated) -> None:
    """It must not escape from the dispatcher: on a loop that would end every actor there."""
    ref = sim.system.spawn(ExitsOnStart, [], name="a")
    other = sim.system.spawn(Recorder, [], name="other")
    sim.world.run(1)
    assert sim.mailbox(ref).restarts == 1
    assert ref.ask("on", timeout=1) == "on"
    assert other.ask("too", timeout=1) == "too"


def test_an_exception_in_an_ask_leaves_the_actor_as_it_was(sim: Simulated) -> None:
    """Pykka's rule: the asker gets the exception, the actor keeps its state and lives on."""
    ref = sim.system.spawn(Recorder, [], name="a")
    ref.ask("x", timeout=1)
    with pytest.raises(ValueError, match="boom"):
        ref.ask("boom", timeout=1)
    assert sim.mailbox(ref).restarts == 0
    assert ref.proxy().seen.get(timeout=1) == 1


def test_a_callback_that_fails_does_not_escape_from_the_answering_actor(sim: Simulated) -> None:
    """``on_done`` runs in the turn of whoever answers; its error is not the dispatcher's end."""
    ref = sim.system.spawn(Recorder, [], name="a")

    def burst(_: Any) -> None:
        raise RuntimeError("the callback failed")

    ref.ask("x", block=False).on_done(burst)
    sim.settle()
    assert ref.ask("y", timeout=1) == "y"


def test_ask_then_gives_the_reply_in_the_askers_turn_once(sim: Simulated) -> None:
    """The callback runs inside the asker, with the value; the timer of the deadline is gone."""
    log: list[Any] = []
    target = sim.system.spawn(Recorder, [], name="target")
    asker = sim.system.spawn(Asker, log, name="asker")
    asker.tell((target, "hello", 5.0))
    sim.world.run(10)
    assert [(value, error) for _, value, error in log] == [("hello", None)]
    assert not sim.mailbox(asker).timers


def test_ask_then_gives_the_error_of_the_asked_actor(sim: Simulated) -> None:
    """A refusal arrives as the error, a dead target as ActorDeadError."""
    log: list[Any] = []
    target = sim.system.spawn(Recorder, [], name="target")
    asker = sim.system.spawn(Asker, log, name="asker")
    asker.tell((target, "boom", 5.0))
    sim.settle()
    target.stop()
    asker.tell((target, "hello", 5.0))
    sim.settle()
    assert [value for _, value, _ in log] == [None, None]
    assert isinstance(log[0][2], ValueError)
    assert isinstance(log[1][2], ActorDeadError)


def test_ask_then_times_out_exactly_once_and_a_late_reply_is_dropped(sim: Simulated) -> None:
    """After the deadline the asker hears AskTimeout naming target and message, then nothing."""
    log: list[Any] = []
    promises: list[Promise] = []
    target = sim.system.spawn(Later, promises, name="target")
    asker = sim.system.spawn(Asker, log, name="asker")
    begun = sim.machine.monotonic()
    asker.tell((target, "hello", 2.5))
    sim.world.run(2.4)
    assert log == []
    sim.world.run(0.2)
    [(at, value, error)] = log
    assert at == pytest.approx(begun + 2.5, abs=0.001)
    assert value is None
    assert isinstance(error, AskTimeout)
    assert "Later" in str(error)
    assert "str within 2.5 s" in str(error)
    promises[0].reply("too late")
    sim.world.run(5)
    assert len(log) == 1


def test_an_ask_then_reply_after_a_restart_is_dropped(sim: Simulated) -> None:
    """Neither the reply nor the deadline of an earlier life reaches the new one."""
    log: list[Any] = []
    promises: list[Promise] = []
    target = sim.system.spawn(Later, promises, name="target")
    asker = sim.system.spawn(Asker, log, name="asker")
    asker.tell((target, "hello", 2.0))
    sim.settle()
    asker.kill()
    sim.world.run(0.1)
    assert sim.mailbox(asker).restarts == 1
    promises[0].reply("for the dead")
    sim.world.run(5)
    assert log == []
    asker.tell((target, "again", 2.0))
    sim.settle()
    promises[1].reply("for the living")
    sim.settle()
    assert [value for _, value, _ in log] == ["for the living"]


def test_an_ask_then_reply_after_a_stop_is_dropped(sim: Simulated) -> None:
    """A stopped actor runs nothing any more."""
    log: list[Any] = []
    promises: list[Promise] = []
    target = sim.system.spawn(Later, promises, name="target")
    asker = sim.system.spawn(Asker, log, name="asker")
    asker.tell((target, "hello", 2.0))
    sim.settle()
    asker.stop()
    promises[0].reply("for the dead")
    sim.world.run(5)
    assert log == []


class Blocker(Actor):
    """Blocks in its handler, which is forbidden on a shared dispatcher."""

    def on_receive(self, message: Callable[[], Any]) -> Any:
        """Call what was sent."""
        return message()


def test_a_blocking_get_in_a_handler_names_the_waiter_and_its_target(sim: Simulated) -> None:
    """It raises at once instead of standing still for ever, and the text says who waits for whom."""
    target = sim.system.spawn(Recorder, [], name="target")
    ref = sim.system.spawn(Blocker, name="waiter")
    with pytest.raises(BlockingWaitError) as caught:
        ref.ask(lambda: target.ask("x"), timeout=1)
    assert "m1/waiter" in str(caught.value)
    assert target.actor_urn in str(caught.value)
    assert "ask_then" in str(caught.value)
    with pytest.raises(BlockingWaitError):
        ref.ask(lambda: target.proxy().seen.get(), timeout=1)
    with pytest.raises(BlockingWaitError):
        ref.ask(lambda: ref.ask("oneself"), timeout=1)


def test_a_blocking_get_on_a_real_loop_is_refused_too(loop_thread: LoopThread) -> None:
    """The same on a real event loop, which keeps turning; an answer that is there may be read."""
    system = System("host", {"loop": loop_thread.dispatcher})
    target = system.spawn(Recorder, [], name="target")
    ref = system.spawn(Blocker, name="waiter")
    with pytest.raises(BlockingWaitError, match="host/waiter"):
        ref.ask(lambda: target.ask("x"), timeout=PATIENCE_S)
    ready: Future[str] = Future()
    ready.set("there already")
    assert ref.ask(ready.get, timeout=PATIENCE_S) == "there already"
    assert loop_thread.problems == []


def test_a_handler_on_the_pool_may_block(pool_system: System) -> None:
    """The pool is for handlers that wait: one actor asks another and gets its answer."""
    target = pool_system.spawn(Recorder, [], name="target")
    ref = pool_system.spawn(Blocker, name="waiter")
    assert ref.ask(lambda: target.ask("x", timeout=PATIENCE_S), timeout=PATIENCE_S) == "x"


def test_a_promise_answers_later_and_only_once(sim: Simulated) -> None:
    """The first outcome counts; later ones, good or bad, are passed over."""
    promises: list[Promise] = []
    ref = sim.system.spawn(Later, promises, name="a")
    future = ref.ask("x", block=False)
    sim.settle()
    assert not future.done
    assert not promises[0].done
    promises[0].reply("first")
    promises[0].reply("second")
    promises[0].fail(ValueError("third"))
    assert promises[0].done
    assert future.get() == "first"


def test_a_promise_can_fail(sim: Simulated) -> None:
    """The asker gets the very exception."""
    promises: list[Promise] = []
    ref = sim.system.spawn(Later, promises, name="a")
    future = ref.ask("x", block=False)
    sim.settle()
    error = ValueError("no")
    promises[0].fail(error)
    assert future.error is error
    with pytest.raises(ValueError, match="no"):
        future.get()


def test_a_promise_may_be_answered_before_it_is_returned_or_for_nobody(sim: Simulated) -> None:
    """Completed inside the handler, or returned for a tell: both are in order."""
    promises: list[Promise] = []
    ref = sim.system.spawn(Later, promises, name="a")
    assert ref.ask("now", timeout=1) == "at once"
    ref.tell("nobody waits")
    sim.settle()
    promises[1].reply("to nobody")
    assert ref.is_alive()


def test_a_blocking_ask_in_the_simulator_takes_virtual_time(sim: Simulated) -> None:
    """The time-out of a test's own ask passes in the simulator, not on the wall."""
    ref = sim.system.spawn(Later, [], name="a")
    before = sim.world.now
    with pytest.raises(pykka.Timeout):
        ref.ask("x", timeout=30)
    assert sim.world.now - before == pytest.approx(30, abs=0.01)


class Numbered(Actor):
    """A handler per type; anything else goes Pykka's way."""

    @handles(int, float)
    def _on_number(self, message: float) -> float:
        return message * 2

    def on_receive(self, message: Any) -> Any:
        """The rest."""
        return f"rest: {message}"


class Refined(Numbered):
    """A subclass takes one type over and inherits the other."""

    @handles(int)
    def _on_int(self, message: int) -> int:
        return -message


def test_handlers_are_found_by_type_and_inherited(sim: Simulated) -> None:
    """``handles`` dispatches on the exact type; a subclass overrides only what it names."""
    base = sim.system.spawn(Numbered, name="base")
    refined = sim.system.spawn(Refined, name="refined")
    assert [base.ask(m, timeout=1) for m in (2, 1.5, "x")] == [4, 3.0, "rest: x"]
    assert [refined.ask(m, timeout=1) for m in (2, 1.5, True)] == [-2, 3.0, "rest: True"]
