"""A host process comes before what it runs: its lease and the brain's heartbeats must not wait for a unit that works hard."""

from __future__ import annotations

import contextlib
import os
import threading

#: Of the host process, if it may; its units have 0, or what their Nice= says.
HOST_NICE = -10


def raise_host() -> None:
    """Call it before there are threads, which inherit it; without the right to do so everything stays."""
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) == 0:
            os.setpriority(os.PRIO_PROCESS, 0, HOST_NICE)


def calm(process: int = 0) -> None:
    """A process, or this thread and what it starts, has the usual priority again."""
    number = process or threading.get_native_id()
    with contextlib.suppress(OSError):  # it ended already
        if os.getpriority(os.PRIO_PROCESS, number) < 0:
            os.setpriority(os.PRIO_PROCESS, number, 0)
