"""Waiting with a deadline, and children that do not outlive the benchmark."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import TypeVar

from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

T = TypeVar("T")
#: Seconds that anything but the measured work may take.
PATIENCE_S = 60.0


class OverdueError(Exception):
    """Something did not come about in time; the text says what."""


def until(what: str, condition: Callable[[], T], seconds: float = PATIENCE_S, look_s: float = 0.02) -> T:
    """Look again and again until the condition gives something true, and return that."""
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            seen = condition()
            if seen:
                return seen
            last = seen
        except (OSError, HTTPException, ValueError, RemoteError, ClientTimeout, UnreachableError) as error:
            last = error
        if time.monotonic() > deadline:
            raise OverdueError(f"{what}: not within {seconds:g} s (last seen: {last!r})")
        time.sleep(look_s)


def bound(signal_name: str) -> list[str]:
    """What comes before a command that shall get this signal when the benchmark ends."""
    return ["setpriv", "--pdeathsig", signal_name, "--"] if shutil.which("setpriv") else []
