"""Futures: set once, call back once, and stay Pykka's."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pykka
import pytest

from kernel.future import Future

from .world import PATIENCE_S


def test_callbacks_run_once_before_and_after_completion() -> None:
    """Registered early they run at completion, registered late they run at once."""
    future: Future[int] = Future()
    seen: list[tuple[str, Any]] = []
    future.on_done(lambda f: seen.append(("early", f.value)))
    future.on_done(lambda f: seen.append(("second", f.value)))
    assert seen == []
    future.set(7)
    future.on_done(lambda f: seen.append(("late", f.value)))
    assert seen == [("early", 7), ("second", 7), ("late", 7)]


def test_a_future_is_set_once() -> None:
    """A second outcome is an error for whoever sets it, and changes nothing."""
    future: Future[int] = Future()
    future.set(1)
    with pytest.raises(queue.Full):
        future.set(2)
    with pytest.raises(queue.Full):
        future.fail(ValueError())
    assert future.get() == 1
    assert future.error is None


def test_a_failed_future_raises_the_same_exception_each_time() -> None:
    """``error`` shows it without raising."""
    future: Future[int] = Future()
    error = ValueError("no")
    future.fail(error)
    for _ in range(2):
        with pytest.raises(ValueError, match="no") as caught:
            future.get(timeout=0)
        assert caught.value is error
    assert future.done
    assert future.error is error
    assert future.value is None


def test_get_waits_for_another_thread() -> None:
    """At the edge a thread may block; the time-out is Pykka's."""
    future: Future[int] = Future()
    with pytest.raises(pykka.Timeout):
        future.get(timeout=0.01)
    thread = threading.Thread(target=future.set, args=(5,))
    thread.start()
    assert future.get(timeout=PATIENCE_S) == 5
    thread.join(PATIENCE_S)


def test_completion_and_registration_may_race() -> None:
    """Two threads, one completing and one registering: the callback runs exactly once."""
    for _ in range(200):
        future: Future[int] = Future()
        seen: list[int] = []
        barrier = threading.Barrier(2)

        def complete(future: Future[int] = future, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            future.set(1)

        thread = threading.Thread(target=complete)
        thread.start()
        barrier.wait()
        future.on_done(lambda f, seen=seen: seen.append(f.value))  # type: ignore[misc]
        thread.join(PATIENCE_S)
        assert seen == [1]


def test_pykkas_combinators_work() -> None:
    """``map``, ``filter``, ``join`` and ``reduce`` come from Pykka and see our values."""
    first: Future[Any] = Future()
    second: Future[Any] = Future()
    both = first.join(second)
    first.set([1, 2, 3])
    second.set(4)
    assert first.map(len).get() == 3
    assert first.filter(lambda x: x > 1).get() == [2, 3]
    assert first.reduce(lambda x, y: x + y).get() == 6
    assert both.get() == [[1, 2, 3], 4]
