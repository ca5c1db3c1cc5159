"""The logs of units on one machine: read across rotated files, and kept when a unit is gone.

A unit's folder has ``log`` and its older parts ``log.1`` and so on (see ``shim/log.py``), each line
with its time in front; ``runs`` says from when on which invocation wrote.  A position names the
file by the time of its first line, so that a reader who follows loses nothing when the log is
rotated (an inode would not do: it is used again).
"""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .shim.log import LOG_FILES_KEPT

#: Lines that one request returns at most, and bytes of their text: of the last ones, and of what follows.
LINES_MAX = 100_000
LAST_BYTES_MAX = 4 * 1024 * 1024
BYTES_MAX = 1024 * 1024
#: Bytes of logs of units that are gone, and how many such units; the oldest go first.
KEPT_BYTES_MAX = 256 * 1024 * 1024
KEPT_MAX = 1000


class Line(NamedTuple):
    """One line of a log."""

    time: float
    text: str
    invocation: str = ""


class Page(NamedTuple):
    """Lines, and where the next ones will be."""

    position: str
    lines: list[Line]


def parts(folder: Path) -> list[Path]:
    """The files of a log, oldest first."""
    names = [f"log.{number}" for number in range(LOG_FILES_KEPT, 0, -1)]
    return [path for path in (folder / name for name in [*names, "log"]) if path.exists()]


def last(folder: Path, lines: int, since: float = 0.0) -> Page:
    """The last ``lines`` that were written at ``since`` (Unix time) or later, as far as bytes allow."""
    found: deque[Line] = deque()
    size = 0
    position = ""
    runs = _Runs(folder)
    for path in parts(folder):
        try:
            if since and path.stat().st_mtime < since:
                continue
            with path.open("rb") as file:
                for raw in _whole_lines(file):
                    line = runs.line(raw)
                    if line is None or line.time < since:
                        continue
                    found.append(line)
                    size += len(line.text)
                    while found and (len(found) > min(lines, LINES_MAX) or size > LAST_BYTES_MAX):
                        size -= len(found.popleft().text)
                position = _position(file)
        except OSError:
            continue  # rotated away meanwhile
    return Page(position, list(found))


def following(folder: Path, position: str) -> Page:
    """What came after a position: at most :data:`BYTES_MAX` of it, in whole lines."""
    name, _, text = position.partition(":")
    offset = int(text) if text.isdigit() else 0
    runs = _Runs(folder)
    files = parts(folder)
    names = [_name(path) for path in files]
    if name and name in names:
        files = files[names.index(name) :]
    else:
        offset = 0  # it was rotated away altogether: everything that there is comes after it
    lines: list[Line] = []
    size = 0
    for path in files:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                for raw in _whole_lines(file):
                    size += len(raw)
                    line = runs.line(raw)
                    if line is not None:
                        lines.append(line)
                    if size >= BYTES_MAX or len(lines) >= LINES_MAX:
                        break
                position = _position(file)
        except OSError:
            continue
        offset = 0
        if size >= BYTES_MAX or len(lines) >= LINES_MAX:
            break
    return Page(position, lines)


def _position(file: Any) -> str:
    """Where an open file stands."""
    offset = file.tell()
    file.seek(0)
    return f"{_first_time(file)}:{offset}"


def _name(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _first_time(file)
    except OSError:
        return ""  # rotated away meanwhile


def _first_time(file: Any) -> str:
    head, space, _ = file.read(32).partition(b" ")
    return head.decode("ascii", "replace") if space else ""


def _whole_lines(file: Any) -> Iterator[bytes]:
    """Lines that are complete; the file stands behind the last of them."""
    while True:
        at = file.tell()
        raw = file.readline()
        if not raw.endswith(b"\n"):
            file.seek(at)
            return
        yield raw[:-1]


class _Runs:
    """Which invocation of the unit wrote when."""

    def __init__(self, folder: Path) -> None:
        self._times: list[float] = []
        self._names: list[str] = []
        try:
            for row in (folder / "runs").read_text().splitlines():
                stamp, _, name = row.partition(" ")
                self._times.append(float(stamp))
                self._names.append(name)
        except (OSError, ValueError):
            pass

    def line(self, raw: bytes) -> Line | None:
        """A line of the file; None for one that has no time."""
        stamp, _, text = raw.partition(b" ")
        try:
            time = float(stamp)
        except ValueError:
            return None
        at = bisect_right(self._times, time)
        return Line(time, text.decode("utf-8", "replace"), self._names[at - 1] if at else "")


def keep(folder: Path, kept: Path) -> None:
    """A unit is gone: its log stays in ``kept``, until :func:`prune` finds too much of such logs."""
    files = [*parts(folder), folder / "runs"]
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in files:
        try:
            os.replace(path, kept / path.name)
        except OSError:
            pass


def prune(folder: Path) -> None:
    """Remove the logs that were kept longest, until the rest is within its limits."""
    found = []
    for unit in folder.iterdir():
        try:
            files = [path.stat() for path in unit.iterdir()] if unit.is_dir() else []
        except OSError:
            continue  # the unit came back or was pruned meanwhile
        found.append((max((s.st_mtime for s in files), default=0.0), sum(s.st_size for s in files), unit))
    total = sum(size for _, size, _ in found)
    for done, (_, size, unit) in enumerate(sorted(found)):
        if total <= KEPT_BYTES_MAX and len(found) - done <= KEPT_MAX:
            return
        shutil.rmtree(unit, ignore_errors=True)
        total -= size
