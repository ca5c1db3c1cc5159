"""Where an image is put together: a directory, or a block device.  All of it blocks: in a thread."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from fleet.release import CHUNK_BYTES, Entry, ReleaseError, digest

from . import boot

#: Bytes of free space that an update leaves on the disk.
RESERVE_BYTES = 64 * 1024 * 1024

Fetch = Callable[[str], bytes | None]
Say = Callable[[str], None]


class Place(Protocol):
    """What a slot is made of."""

    source: str  #: the file system that is to be mounted to start what is in it; empty for a directory's files

    def write(self, entries: list[Entry], fetch: Fetch, say: Say) -> None:
        """Put an image here; ``fetch`` gives a chunk.  Raises ``OSError``, and :class:`ReleaseError` for a chunk that is missing."""

    def difference(self, entries: list[Entry]) -> str:
        """What of an image is not as it should be, read anew; empty if all of it is."""

    def piece(self, entry: Entry, number: int) -> bytes:
        """A chunk of a file of the image as it lies here; empty if it cannot be read."""


def is_file_system(entries: list[Entry]) -> bool:
    """Whether an image is one file that holds a file system, and not a tree of files."""
    return [(entry.kind, entry.path) for entry in entries] == [("file", boot.IMAGE)]


class Tree:
    """A slot that is a directory."""

    def __init__(self, root: Path, entries: list[Entry]) -> None:
        self.root = root
        self.source = str(root / boot.IMAGE) if is_file_system(entries) else ""

    def write(self, entries: list[Entry], fetch: Fetch, say: Say) -> None:
        """All files, each synced."""
        shutil.rmtree(self.root, ignore_errors=True)
        needed = sum(len(entry.chunks) for entry in entries) * CHUNK_BYTES
        if shutil.disk_usage(self.root.parent).free < RESERVE_BYTES + needed:
            raise OSError(errno.ENOSPC, f"an image of {needed // 1024**2} MiB leaves less than {RESERVE_BYTES // 1024**2} MiB free", str(self.root))
        self.root.mkdir(mode=0o755)
        for number, entry in enumerate(sorted(entries, key=lambda one: one.path)):
            self._write_entry(entry, fetch)
            if number % 200 == 0:
                say(f"writing {number} of {len(entries)} files")
        for folder in [self.root, *(self.root / entry.path for entry in entries if entry.kind == "dir"), self.root.parent]:
            boot.sync_folder(folder)

    def _write_entry(self, entry: Entry, fetch: Fetch) -> None:
        path = self.root / entry.path
        if entry.kind == "dir":
            path.mkdir(mode=entry.mode | 0o700)
        elif entry.kind == "link":
            path.symlink_to(entry.target)
        else:
            with open(path, "xb") as file:
                for chunk in entry.chunks:
                    file.write(_fetched(fetch, chunk, entry))
                os.fchmod(file.fileno(), entry.mode)
                file.flush()
                os.fsync(file.fileno())

    def difference(self, entries: list[Entry]) -> str:
        """Names, kinds, modes and contents."""
        there = {str(path.relative_to(self.root)) for path in self.root.rglob("*")} if self.root.is_dir() else set()
        known = {entry.path for entry in entries}
        if there != known:
            return f"{sorted(there ^ known)[0]} is there too much, or is missing"
        for entry in entries:
            path = self.root / entry.path
            if entry.kind == "link":
                same = path.is_symlink() and os.readlink(path) == entry.target
            elif entry.kind == "dir":
                same = path.is_dir() and not path.is_symlink()
            else:
                same = not path.is_symlink() and tuple(digest(data) for data in pieces(path)) == entry.chunks
                same = same and path.stat().st_mode & 0o777 == entry.mode
            if not same:
                return f"{entry.path} is not as it was signed"
        return ""

    def piece(self, entry: Entry, number: int) -> bytes:
        """From the file."""
        return piece_of(self.root / entry.path, number)


class Device:
    """A slot that is a block device: the image, one file that holds a file system, lies on it from its first byte on."""

    def __init__(self, path: str) -> None:
        self.source = path

    def write(self, entries: list[Entry], fetch: Fetch, say: Say) -> None:
        """The chunks that are not there yet; refused while the device is in use."""
        if not is_file_system(entries):
            raise ReleaseError("malformed", f"a slot on {self.source} takes a file system (release build FILE), not a tree of files")
        [entry] = entries
        handle = os.open(self.source, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        try:
            if not stat.S_ISBLK(os.fstat(handle).st_mode):
                raise OSError(errno.ENOTBLK, "this is no block device", self.source)
            room = os.lseek(handle, 0, os.SEEK_END)
            if room < entry.size:
                raise OSError(errno.ENOSPC, f"an image of {entry.size} bytes does not fit into {room}", self.source)
            for number, chunk in enumerate(entry.chunks):
                length = min(CHUNK_BYTES, entry.size - number * CHUNK_BYTES)
                if digest(os.pread(handle, length, number * CHUNK_BYTES)) != chunk:
                    _write_all(handle, _fetched(fetch, chunk, entry), number * CHUNK_BYTES)
                if number % 1000 == 0:
                    say(f"writing {number} of {len(entry.chunks)} pieces")
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read back comes from the device
        finally:
            os.close(handle)

    def difference(self, entries: list[Entry]) -> str:
        """Its bytes, as far as the image goes."""
        if not is_file_system(entries):
            return "a block device holds no tree of files"
        [entry] = entries
        for number, chunk in enumerate(entry.chunks):
            if digest(self.piece(entry, number)) != chunk:
                return f"piece {number} on {self.source} is not as it was signed"
        return ""

    def piece(self, entry: Entry, number: int) -> bytes:
        """From its place on the device."""
        return piece_of(Path(self.source), number)[: max(0, entry.size - number * CHUNK_BYTES)]


def _fetched(fetch: Fetch, chunk: str, entry: Entry) -> bytes:
    data = fetch(chunk)
    if data is None:
        raise ReleaseError("damaged", f"a chunk of {entry.path} is not here")
    return data


def _write_all(handle: int, data: bytes, at: int) -> None:
    while data:
        done = os.pwrite(handle, data, at)
        data, at = data[done:], at + done


def piece_of(path: Path, number: int) -> bytes:
    """A chunk's worth of a file, by its number; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(number * CHUNK_BYTES)
            return file.read(CHUNK_BYTES)
    except OSError:
        return b""


def pieces(path: Path) -> Iterator[bytes]:
    """A file, a chunk at a time."""
    with open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield data
