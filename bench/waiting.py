"""Waiting with a deadline, and children that do not outlive the benchmark."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import TypeVar

from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

T = TypeVar("T")
#: Seconds that anything but the measured work may take.
PATIENCE_S = 60.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


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


def die_with_parent(number: int) -> None:
    """For a child before it executes: get this signal when the benchmark ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, number)
