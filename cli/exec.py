"""A command inside a unit, with this terminal as its own."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from typing import Any

from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

from .session import FAILED, UNREACHABLE, Session, die

#: Seconds that one question for output waits on the other side.
WAIT_S = 5.0
#: Seconds until input that the command did not take is offered again.
AGAIN_S = 0.05
_READ_BYTES = 64 * 1024


def run(session: Session, unit: str, machine: str, argv: list[str], with_terminal: bool) -> int:
    """Run it to its end; its exit status."""
    size = _size() if with_terminal else None
    opened = session.ask("unit.enter", unit=unit, machine=machine, argv=argv, size=size)
    about = {key: opened[key] for key in ("unit", "machine", "session")}
    with _raw(with_terminal):
        sender = _Sender(session.twin(), about, with_terminal)
        sender.start()
        return _receive(session, about)


def _size() -> list[int]:
    columns, rows = shutil.get_terminal_size()
    return [rows, columns]


@contextlib.contextmanager
def _raw(wanted: bool) -> Iterator[None]:
    """Every key is for the command, Ctrl-C too."""
    if not wanted or not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _receive(session: Session, about: dict[str, Any]) -> int:
    while True:
        try:
            news = session.try_ask("unit.exchange", WAIT_S + 10.0, wait=WAIT_S, **about)
        except RemoteError as error:
            die(f"the session was lost: {error}", FAILED)
        except (ClientTimeout, UnreachableError) as error:
            die(f"the session was lost: {error}", UNREACHABLE)
        for stream, data in news["output"]:
            out = sys.stderr.buffer if stream == "stderr" else sys.stdout.buffer
            out.write(data)
            out.flush()
        if news["code"] is not None:
            if news["error"]:
                print(f"argosy: {about['unit']}: {news['error']}", file=sys.stderr)
            return int(news["code"])


class _Sender(threading.Thread):
    """Hands on what is typed, and the size of the window, over a link of its own."""

    def __init__(self, session: Session, about: dict[str, Any], with_terminal: bool) -> None:
        super().__init__(name="input", daemon=True)
        self._session = session
        self._about = about
        self._resized, self._resize = os.pipe()
        if with_terminal:
            signal.signal(signal.SIGWINCH, lambda *_: os.write(self._resize, b"."))

    def run(self) -> None:
        """Until there is no more input, or no session."""
        try:
            while True:
                ready, _, _ = select.select([0, self._resized], [], [])
                if self._resized in ready:
                    os.read(self._resized, 64)
                    self._send(size=_size())
                if 0 in ready:
                    data = os.read(0, _READ_BYTES)
                    self._send(data=data) if data else self._send(is_over=True)
                    if not data:
                        return
        except (OSError, RemoteError, ClientTimeout, UnreachableError):
            return  # whoever receives says how it ended

    def _send(self, **what: Any) -> None:
        while True:
            try:
                self._session.try_ask("unit.exchange", 10.0, **self._about, **what)
                return
            except RemoteError as error:
                if error.code != "input_busy":
                    raise
            time.sleep(AGAIN_S)
