"""Waiting in tests: a test says what must become true and by when, never how long something takes.

:func:`wait_until` is the only place that sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, TypeVar

from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

T = TypeVar("T")

#: Seconds within which whatever a healthy cluster does is done, on a machine that is busy.
PATIENCE_S = 40.0
#: Seconds between two looks.
LOOK_S = 0.05
#: What may go wrong with a question to a cluster that is being hurt: it is asked again.
NOT_YET = (RemoteError, ClientTimeout, UnreachableError, OSError, HTTPException, ValueError)


def wait_until(what: str, condition: Callable[[], T | None], seconds: float = PATIENCE_S) -> T:
    """Look until the condition gives something true, and return that; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    last: Any = None
    while True:
        try:
            seen = condition()
            if seen:
                return seen
            last = seen
        except NOT_YET as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s; last seen: {last!r}")
        time.sleep(LOOK_S)
