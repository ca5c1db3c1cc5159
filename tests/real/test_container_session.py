"""A session inside a container, at the engine's stream, without an engine."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from runners.sessions import ContainerSession

from ..waiting import wait_until


class Stream:
    def __init__(self, end: socket.socket) -> None:
        self._sock = end

    def close(self) -> None:
        self._sock.close()


class Engine:
    """It answers when it may, and its command does not read."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.asked, self.may_answer = threading.Event(), threading.Event()

    def enter(self, *_: Any) -> tuple[str, Stream]:
        self.asked.set()
        assert self.may_answer.wait(10)
        return "id", Stream(self.ours)

    def entered(self, _: str) -> tuple[bool, int, int]:
        return False, 0, 0


def _threads() -> int:
    return sum(thread.name == "exec session" and thread.is_alive() for thread in threading.enumerate())


def test_input_that_is_not_read_costs_one_timer() -> None:
    """However many small pieces of it come."""

    async def play() -> int:
        loop, engine = asyncio.new_event_loop(), Engine()
        engine.may_answer.set()
        timers: list[Any] = []
        real = loop.call_later
        loop.call_later = lambda *words: timers.append(words) or real(*words)  # type: ignore[method-assign, func-returns-value]
        done = threading.Event()

        def run() -> None:
            session = ContainerSession(loop, engine, "c", ["sleep"], {}, None, lambda: None, lambda made: None)
            loop.run_until_complete(asyncio.sleep(0.2))
            timers.clear()
            for _ in range(1000):
                session.write(b"x" * 500)
            session.close()
            loop.run_until_complete(asyncio.sleep(0.2))
            loop.close()
            done.set()

        threading.Thread(target=run).start()
        await asyncio.to_thread(done.wait, 10)
        engine.theirs.close()
        return len(timers)

    assert asyncio.run(play()) <= 3


def test_one_that_is_closed_before_the_engine_answers_is_expelled() -> None:
    """No thread and no command is left."""
    expelled: list[str] = []

    async def play() -> None:
        engine = Engine()
        session = ContainerSession(asyncio.get_running_loop(), engine, "c", ["cat"], {}, None, lambda: None, expelled.append)
        await asyncio.to_thread(engine.asked.wait, 10)
        session.close()
        engine.may_answer.set()
        await asyncio.to_thread(wait_until, "its thread ends", lambda: not _threads(), 10)
        engine.theirs.close()

    asyncio.run(play())
    assert expelled == ["id"]
