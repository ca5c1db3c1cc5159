"""The disk port for real: files of one directory, written by one thread, in order.

``fdatasync`` blocks for as long as the disk likes, so it never runs on the event loop:
heartbeats do not wait for it.  After one failed operation nothing more is written: what a
failed sync left behind is unknown, and going on would be a guess.  A full disk is no such
failure: files get their room before anything is promised on them, so the operation that
found none is tried again until there is some, and all that comes after it waits.  A batch
that can be done without (a piece of a snapshot) is given up instead, also long before the last
byte is gone, and what was written of it goes as soon as something waits for room.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernel.ports import DiskError, Operations

Done = Callable[[DiskError | None], None]
_ZEROS = bytes(1024 * 1024)
#: Seconds between two looks at whether a full disk has room again.
FULL_RETRY_S = 0.25
#: Bytes of a disk that are kept for what cannot be done without: two segments of the log, and a little.
RESERVE_BYTES = 40 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Operations that may be repeated from the start when there was no room.
_REPEATABLE = ("create", "write", "rename")


class RealDisk:
    """See the module docstring."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self._loop = loop
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._queue: queue.SimpleQueue[tuple[Operations, Done, bool] | None] = queue.SimpleQueue()
        self._handles: dict[str, int] = {}
        self._failed: DiskError | None = None
        # used by the thread alone
        self._spare: set[str] = set()  # files that can be done without
        self._dropped: set[str] = set()  # of them, those that made room for something else
        self._closing = False
        self.full = ""
        self._thread = threading.Thread(target=self._serve, name="disk", daemon=True)
        self._thread.start()

    def list(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(path.name for path in self._folder.iterdir())

    def read(self, name: str) -> bytes:
        """The whole file."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise DiskError(f"{self._folder / name}: {error.strerror}") from None

    def submit(self, operations: Operations, done: Done, if_room: bool = False) -> None:
        """Queue a batch; ``done`` is called on the loop thread."""
        self._queue.put((operations, done, if_room))

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        self._closing = True
        self._queue.put(None)
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            batch = self._queue.get()
            if batch is None:
                return
            operations, done, if_room = batch
            refused = None
            if self._failed is None:
                try:
                    for operation in operations:
                        if if_room:
                            self._look_for_room(operation)
                        self._perform(operation, not if_room)
                except OSError as error:
                    if if_room and error.errno in _FULL:
                        refused = self._explain(error, operation)
                    else:
                        self._failed = self._explain(error, operation)
            try:
                self._loop.call_soon_threadsafe(done, self._failed or refused)
            except RuntimeError:  # the loop is closed: the process is ending
                return

    def _perform(self, operation: tuple[Any, ...], waits: bool) -> None:
        while True:
            try:
                self._execute(operation)
            except OSError as error:
                if error.errno not in _FULL or operation[0] not in _REPEATABLE or self._closing or not waits:
                    raise
                self.full = str(self._explain(error, operation))
                if not self._drop_spare():
                    time.sleep(FULL_RETRY_S)
            else:
                self.full = ""
                return

    def _look_for_room(self, operation: tuple[Any, ...]) -> None:
        """Raise ``OSError`` for a write that would take from the reserve, or whose file made room."""
        if operation[0] == "create":
            self._dropped.discard(operation[1])
            self._spare.add(operation[1])
        elif operation[1] in self._dropped:
            raise OSError(errno.ENOSPC, "it made room for the log")
        if operation[0] == "write":
            there = os.statvfs(self._folder)
            if there.f_bavail * there.f_frsize < RESERVE_BYTES + len(operation[3]):
                raise OSError(errno.ENOSPC, f"less than {RESERVE_BYTES >> 20} MB would be left for the log")

    def _drop_spare(self) -> bool:
        """Remove what can be done without; whether there was any."""
        spare, self._spare = self._spare, set()
        for name in spare:
            self._forget(name)
            (self._folder / name).unlink(missing_ok=True)
        self._dropped |= spare
        return bool(spare)

    def _explain(self, error: OSError, operation: tuple[Any, ...]) -> DiskError:
        path = self._folder / operation[1] if len(operation) > 1 else self._folder
        if error.errno in _FULL:
            return DiskError(f"disk full: {path} could not be written ({error.strerror})", full=True)
        return DiskError(f"disk fault: {operation[0]} of {path}: {error.strerror}")

    def _handle(self, name: str) -> int:
        handle = self._handles.get(name)
        if handle is None:
            handle = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
            self._handles[name] = handle
        return handle

    def _execute(self, operation: tuple[Any, ...]) -> None:
        verb = operation[0]
        if verb == "write":
            _write_all(self._handle(operation[1]), operation[3], operation[2])
        elif verb == "sync":
            os.fdatasync(self._handle(operation[1]))
        elif verb == "create":
            self._forget(operation[1])
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            handle = os.open(self._folder / operation[1], flags, 0o600)
            self._handles[operation[1]] = handle
            try:
                for at in range(0, operation[2], len(_ZEROS)):
                    _write_all(handle, _ZEROS[: operation[2] - at], at)
                os.fsync(handle)
            except OSError:  # what room it got, others may need
                self._forget(operation[1])
                (self._folder / operation[1]).unlink(missing_ok=True)
                raise
        elif verb == "rename":
            self._forget(operation[1])
            self._forget(operation[2])
            os.replace(self._folder / operation[1], self._folder / operation[2])
        elif verb == "remove":
            self._forget(operation[1])
            (self._folder / operation[1]).unlink(missing_ok=True)
        elif verb == "keep":
            self._spare.discard(operation[1])
        elif verb == "sync_dir":
            _sync_folder(self._folder)
        else:
            raise AssertionError(f"no disk operation {verb!r}")

    def _forget(self, name: str) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            os.close(handle)


def _write_all(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
