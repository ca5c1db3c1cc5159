"""The slots as actors use them: work in a thread of its own, one piece after another."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import boot
from .boot import SLOTS
from .slots import Slots


class SlotsPort:
    """``call(work, done)``: ``done(value, error)`` follows on the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, slots: Slots, reboot: Callable[[], None]) -> None:
        """``reboot`` ends this process so that the launcher, or the machine, starts from the record."""
        self._loop = loop
        self._slots = slots
        self._reboot = reboot
        self._threads = ThreadPoolExecutor(1, "slots")

    def call(self, work: Callable[[Slots], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Do something with the slots."""

        def ended(future: asyncio.Future[Any]) -> None:
            if not future.cancelled():
                error = future.exception()
                done(None if error else future.result(), error)

        self._loop.run_in_executor(self._threads, work, self._slots).add_done_callback(ended)

    def reboot(self) -> None:
        """Start anew from what the boot record names."""
        self._loop.call_soon_threadsafe(self._reboot)

    @property
    def running(self) -> str:
        """The slot that this process was started from; ``-``: what was installed first; empty: not by the launcher."""
        return os.environ.get("ARGOSY_SLOT", "")

    def check_commands(self) -> list[str]:
        """The programs of the image that runs which must succeed before it is kept: ``checks/required.d/*``."""
        slot = os.environ.get("ARGOSY_SLOT", "")
        if slot not in SLOTS:
            return []
        folder = boot.root_of(self._slots.folder, slot, self._slots.record()) / "checks" / "required.d"
        return sorted(shlex.quote(str(path)) for path in folder.glob("*") if os.access(path, os.X_OK))

    def close(self) -> None:
        """No more of it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
