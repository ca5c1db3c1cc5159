"""Disks for the brain's tests: one that does everything at once, one whose power can be cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from kernel.ports import DiskError

Operations = list[tuple[Any, ...]]
Done = Callable[[DiskError | None], None]
SECTOR = 512


class MemoryDisk:
    """The disk port in memory; every operation is done, and durable, when ``submit`` returns."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {name: bytearray(data) for name, data in (files or {}).items()}
        self.submitted: list[Operations] = []

    def list(self) -> list[str]:
        """Names, sorted."""
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        """The whole file."""
        if name not in self.files:
            raise DiskError(f"{name}: no such file")
        return bytes(self.files[name])

    def submit(self, operations: Operations, done: Done, if_room: bool = False) -> None:
        """Do everything now."""
        self.submitted.append(operations)
        for operation in operations:
            self.perform(operation)
        done(None)

    def perform(self, operation: tuple[Any, ...]) -> None:
        """One operation."""
        verb = operation[0]
        if verb == "create":
            self.files[operation[1]] = bytearray(operation[2])
        elif verb == "write":
            _, name, offset, data = operation
            file = self.files[name]
            file.extend(bytes(max(0, offset + len(data) - len(file))))
            file[offset : offset + len(data)] = data
        elif verb == "rename":
            self.files[operation[2]] = self.files.pop(operation[1])
        elif verb == "remove":
            self.files.pop(operation[1], None)
        else:
            assert verb in ("sync", "sync_dir", "keep"), verb

    def image(self) -> dict[str, bytes]:
        """A copy of all files."""
        return {name: bytes(data) for name, data in self.files.items()}


class PowerCut(Exception):
    """The power failed before the next operation."""


class CuttableDisk(MemoryDisk):
    """Loses power after a given number of operations; what was not synced is then at stake.

    Operations are done strictly in order, one at a time, as the disk port promises.  At the
    cut every unsynced write is kept, lost or torn at a sector, and the last few changes of
    the directory may be undone, as drawn.
    """

    def __init__(self, files: dict[str, bytes] | None, cut_after: int | None, rng: random.Random) -> None:
        super().__init__(files)
        self._left = cut_after
        self._rng = rng
        self._durable = self.image()
        self._unsynced: list[tuple[str, int, bytes]] = []
        self._directory: list[tuple[str, bytes | None]] = []  # what a name was before
        self.performed = 0
        self.dead = False
        self.fail_syncs = False  # the process is about to die: its syncs never begin

    def submit(self, operations: Operations, done: Done, if_room: bool = False) -> None:
        """Do everything, unless the power fails on the way; then nobody hears of it."""
        if self.dead:
            return
        for operation in operations:
            if self.fail_syncs and operation[0] in ("sync", "sync_dir"):
                return
            if self._left == 0:
                self._cut()
                return
            if self._left is not None:
                self._left -= 1
            self.performed += 1
            self.perform(operation)
            self._note(operation)
        done(None)

    def perform(self, operation: tuple[Any, ...]) -> None:
        """Remember what a name was before it is changed."""
        names = {"create": [1], "remove": [1], "rename": [2, 1]}.get(operation[0], [])
        for name in (operation[at] for at in names):
            before = self.files.get(name)
            self._directory.append((name, None if before is None else self._durable_of(name)))
        super().perform(operation)

    def _durable_of(self, name: str) -> bytes:
        return self._durable.get(name, b"")

    def _note(self, operation: tuple[Any, ...]) -> None:
        verb = operation[0]
        if verb == "write":
            self._unsynced.append((operation[1], operation[2], operation[3]))
        elif verb == "sync":
            name = operation[1]
            self._durable[name] = bytes(self.files[name])
            self._unsynced = [entry for entry in self._unsynced if entry[0] != name]
        elif verb == "create":
            self._durable[operation[1]] = bytes(operation[2])
        elif verb == "rename":
            self._durable[operation[2]] = self._durable.pop(operation[1])
            self._unsynced = [
                (operation[2] if name == operation[1] else name, at, data)
                for name, at, data in self._unsynced if name != operation[2]
            ]  # fmt: skip
        elif verb == "remove":
            self._durable.pop(operation[1], None)
            self._unsynced = [entry for entry in self._unsynced if entry[0] != operation[1]]
        else:
            self._directory.clear()

    def cut(self) -> None:
        """The power fails now."""
        if not self.dead:
            self._cut()

    def _cut(self) -> None:
        self.dead = True
        files = {name: bytearray(data) for name, data in self._durable.items()}
        for name, offset, data in self._unsynced:
            fate = self._rng.random()
            at = 0
            while at < len(data):
                stop = min(((offset + at) // SECTOR + 1) * SECTOR - offset, len(data))
                if fate > 0.6 or (fate > 0.3 and self._rng.random() < 0.5):
                    file = files[name]
                    file.extend(bytes(max(0, offset + stop - len(file))))
                    file[offset + at : offset + stop] = data[at:stop]
                at = stop
        undone = self._rng.randint(0, len(self._directory))
        for name, before in reversed(self._directory[len(self._directory) - undone :]):
            if before is None:
                files.pop(name, None)
            else:
                files[name] = bytearray(before)
        self.files = files

    def reboot(self, cut_after: int | None = None) -> CuttableDisk:
        """The same disk after the power is back."""
        return CuttableDisk(self.image(), cut_after, self._rng)
