"""The output of a container, copied from the engine into the unit's log.

The log has the form and the rotation of the shim's.  It takes up again where it was left,
also in another life of the host process, without a gap and without saying a line twice.
"""

from __future__ import annotations

import calendar
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .engine import QUESTION_S_MAX, Engine, Missing, Refused, finish, shut
from .shim.log import LOG_BYTES_MAX, LOG_FILES_KEPT, Log

#: Seconds of output whose lines are counted, to find the place again where it was left.
COUNTED_SECONDS = 5


class _EngineLog(Log):
    """The unit's log, with the time at which the engine read each line."""

    def put(self, stamp: bytes, line: bytes) -> None:
        """One line; a full disk loses it, not the unit."""
        out = stamp + b" " + line + b"\n"
        if self.size + len(out) > LOG_BYTES_MAX:
            self._rotate()
        try:
            os.write(self.fd, out)
            self.size += len(out)
        except OSError:
            pass


class Tail:
    """The output of one container, followed into the unit's log.

    One line of the engine is one line there, with the engine's time, so that the log itself
    says how far it was read: the lines of the last seconds are counted, and as many of these
    seconds are passed over when the engine is asked again from there on.
    """

    def __init__(self, engine: Engine, folder: Path, container: str, left: dict[str, Any] | None) -> None:
        self._engine = engine
        self._container = container
        self._lock = threading.Lock()
        self._closed = False
        self._stream: Any = None
        self.readable = True
        self._counts: dict[int, int] = {}  # lines copied of each of the last seconds
        self._counted_from = 0
        self._second: tuple[bytes, int] = (b"", 0)
        path = folder / "log"
        if left is not None and left["id"] == container:
            for line in _lines_since(path, left["inode"], left["offset"]):
                self._count_back(line)
        self._log = _EngineLog(str(path))
        self.begun = left if left is not None and left["id"] == container else {
            "id": container, "inode": os.fstat(self._log.fd).st_ino, "offset": self._log.size,
        }  # fmt: skip

    def _count_back(self, line: bytes) -> None:
        stamp, _, text = line.partition(b" ")
        if not text.startswith(b"argosy: "):
            try:
                self._count(int(stamp.partition(b".")[0]))
            except ValueError:
                return

    def _count(self, second: int) -> None:
        if second < self._counted_from:
            return
        self._counts[second] = self._counts.get(second, 0) + 1
        if len(self._counts) > COUNTED_SECONDS:
            oldest = min(self._counts)
            del self._counts[oldest]
            self._counted_from = oldest + 1

    def note(self, text: str) -> None:
        """A line of our own."""
        with self._lock:
            if not self._closed:
                self._log.put(b"%.6f" % time.time(), b"argosy: " + text.encode())

    def read(self, follow: bool) -> None:
        """Copy what is new; with ``follow`` until the container ends.  Blocks."""
        since = min(self._counts, default=0)
        passed = dict(self._counts)
        options = {"since": since} if since else {}
        try:
            frames = self._engine.call(QUESTION_S_MAX, lambda client: client.logs(
                self._container, stream=True, follow=follow, timestamps=True, **options))  # fmt: skip
        except Refused as error:
            self.readable = isinstance(error, Missing) or error.status == 409
            return
        from .docker_api import BROKEN

        with self._lock:
            self._stream = frames
            if self._closed:
                shut(frames)
        try:
            for frame in frames:
                if not self._take(frame, since, passed):
                    return
        except (*BROKEN, ValueError):
            return  # the stream broke: it is taken up again
        finally:
            with self._lock:
                self._stream = None
            finish(frames)

    def _take(self, frame: bytes, since: int, passed: dict[int, int]) -> bool:
        stamp, _, line = frame.partition(b" ")
        second = self._seconds(stamp[:19])
        if second < since:
            return True
        if passed.get(second, 0) > 0:
            passed[second] -= 1
            return True
        fraction = stamp[20:].rstrip(b"Z")[:6].ljust(6, b"0")
        with self._lock:
            if self._closed:
                return False
            self._log.put(b"%d.%s" % (second, fraction), line.rstrip(b"\n"))
            self._count(second)
        return True

    def _seconds(self, text: bytes) -> int:
        if self._second[0] != text:
            moment = time.strptime(text.decode("ascii", "replace"), "%Y-%m-%dT%H:%M:%S")
            self._second = (text, calendar.timegm(moment))
        return self._second[1]

    def stop(self) -> None:
        """End a ``read`` that waits; another may follow."""
        with self._lock:
            stream = self._stream
        if stream is not None:
            shut(stream)

    def close(self) -> None:
        """Nothing is written after this."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._log.fd)
        self.stop()


def write_note(folder: Path, text: str) -> None:
    """A line of our own while no container is there."""
    log = Log(str(folder / "log"))
    log.write([b"argosy: " + line.encode() for line in text.splitlines()])
    os.close(log.fd)


def _lines_since(path: Path, inode: int, offset: int) -> Iterator[bytes]:
    """Lines of a log from a place on, through its rotations."""
    files = [path.with_name(f"{path.name}.{n}") for n in range(LOG_FILES_KEPT, 0, -1)] + [path]
    found = [file for file in files if file.exists()]
    at = [number for number, file in enumerate(found) if file.stat().st_ino == inode]
    for number, file in enumerate(found[at[0] if at else 0 :]):
        with file.open("rb") as f:
            f.seek(offset if at and number == 0 else 0)
            yield from f
