"""The disk port for real, on a disk that is full."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.ports import DiskError
from runners import disk
from runners.disk import RESERVE_BYTES, RealDisk


class Room:
    """So many bytes, of which only files that a test names take any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.begin = threading.Event()
        real = disk._write_all

        def write(handle: int, data: bytes, offset: int) -> None:
            self.begin.wait()
            if self.used() + len(data) > self.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle, data, offset)

        monkeypatch.setattr(disk, "_write_all", write)
        about = os.statvfs(folder)

        def left(_: Any) -> os.statvfs_result:
            values = list(about)
            values[0] = values[1] = 1
            values[4] = max(self.size - self.used(), 0)
            return os.statvfs_result(values)

        monkeypatch.setattr(disk.os, "statvfs", left)

    def used(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())


def run(room: Room, *batches: tuple[list[Any], bool], until: Callable[[], bool] | None = None) -> list[Any]:
    """What each batch ended with; all are queued before the first of them begins.

    With ``until``, the last does not end before there is more room, which comes once it holds.
    """

    async def work() -> list[Any]:
        loop = asyncio.get_running_loop()
        port = RealDisk(loop, room.folder)
        ends: list[asyncio.Future[DiskError | None]] = []
        for operations, if_room in batches:
            end = loop.create_future()
            ends.append(end)
            port.submit(operations, end.set_result, if_room)
        room.begin.set()
        if until is not None:
            while not (port.full and until()):
                await asyncio.sleep(0.01)
            room.size *= 2
        found = [await asyncio.wait_for(end, 20) for end in ends]
        port.close()
        return found

    return asyncio.run(work())


def piece(name: str, offset: int, size: int, last: bool = False) -> list[Any]:
    """A piece of something that can be done without."""
    begun = [("create", name, 0)] if not offset else []
    return [*begun, ("write", name, offset, bytes(size)), ("sync", name), *([("keep", name)] if last else [])]


def test_what_can_be_done_without_leaves_room_for_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused long before the last byte is gone, and the log goes on."""
    room = Room(monkeypatch, tmp_path, RESERVE_BYTES + 5000)
    first, second, third = run(
        room, (piece("a.part", 0, 3000), True), (piece("a.part", 3000, 3000), True), ([("create", "log", 8000)], False),
    )  # fmt: skip
    assert first is None and third is None
    assert second.full and "for the log" in str(second)


def test_what_waits_for_room_gets_it_from_what_can_be_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its later pieces are refused, until it is begun again; nothing of that is a fault of the disk."""
    monkeypatch.setattr(disk, "RESERVE_BYTES", 0)
    room = Room(monkeypatch, tmp_path, 10_000)
    found = run(
        room, (piece("a.part", 0, 5000), True), ([("create", "log", 8000)], False),
        (piece("a.part", 5000, 100), True), ([("remove", "a.part")], False), (piece("a.part", 0, 100, last=True), True),
        ([("rename", "a.part", "a")], False),
    )  # fmt: skip
    assert [error is None for error in found] == [True, True, False, True, True, True]
    assert found[2].full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "log"]


def test_what_is_awaited_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of which every piece is written is only to be given its name."""
    monkeypatch.setattr(disk, "RESERVE_BYTES", 0)
    monkeypatch.setattr(disk, "FULL_RETRY_S", 0.01)
    room = Room(monkeypatch, tmp_path, 10_000)
    found = run(
        room, (piece("a.part", 0, 5000, last=True), True), ([("create", "log", 8000)], False),
        ([("rename", "a.part", "a")], False),
        until=(tmp_path / "a.part").exists,
    )  # fmt: skip
    assert found == [None, None, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "log"]
