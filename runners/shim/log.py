"""The log of a unit: lines with their time, in files that are rotated by size."""

import mmap
import os
import struct
import time

#: Bytes of one log file, and how many older ones are kept.
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_KEPT = 3
#: Longest line that is kept in one piece, and most that is read from a unit at a time, in bytes.
LINE_BYTES_MAX = READ_BYTES = 65536
_USED = struct.Struct("I")
_HALF_BYTES = LINE_BYTES_MAX + READ_BYTES


class Log:
    """Lines with their time, in a file that is rotated by size."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.partial = b""
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self.size = os.fstat(self.fd).st_size

    def feed(self, data: bytes) -> None:
        lines = (self.partial + data).split(b"\n")
        self.partial = lines.pop()
        if len(self.partial) > LINE_BYTES_MAX:
            lines.append(self.partial)
            self.partial = b""
        if lines:
            self.write(lines)

    def flush(self) -> None:
        """The last line, which nobody will end any more."""
        if self.partial:
            partial, self.partial = self.partial, b""
            self.write([partial])

    def write(self, lines: list[bytes]) -> None:
        stamp = b"%.6f " % time.time()
        out = b"".join(stamp + line + b"\n" for line in lines)
        if self.size + len(out) > LOG_BYTES_MAX:
            self._rotate()
        try:
            os.write(self.fd, out)
            self.size += len(out)
        except OSError:
            pass  # a full disk loses log lines, not the unit

    def _rotate(self) -> None:
        """Begin a new file, if there is room for one; else it goes on with the old."""
        try:
            new = os.open(f"{self.path}.new", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError:
            self.size = 0  # tried again after as much
            return
        for number in range(LOG_FILES_KEPT, 0, -1):
            older = f"{self.path}.{number}"
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            try:
                os.replace(newer, older)
            except OSError:
                pass
        try:
            os.replace(f"{self.path}.new", self.path)
        except OSError:
            pass
        os.close(self.fd)
        self.fd, self.size = new, 0


class Spool:
    """Output that was taken from its pipe and is not in the log yet, in memory that a shim and its guard share.

    Two halves in turn, each the beginning of a line and room for what is read after it, zero where nothing is; so
    whenever the shim is killed, no byte is lost (the last lines may be in the log twice).
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16 + 2 * _HALF_BYTES)  # byte 0: the half in use; 1: whether the shim had begun

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on with."""
        return bool(self.memory[1])

    @begun.setter
    def begun(self, value: bool) -> None:
        self.memory[1] = int(value)

    def _half(self) -> tuple[int, int]:
        """(where the half in use begins, bytes of the line in it)."""
        half = self.memory[0]
        return 16 + half * _HALF_BYTES, _USED.unpack_from(self.memory, 8 + 4 * half)[0]

    def take(self, pipe: int, log: Log) -> bool:
        """Bring what waits in a pipe to the log; False if there is nobody left to write into it.

        Raises ``BlockingIOError`` if nothing waits.
        """
        at, used = self._half()
        with memoryview(self.memory) as view:
            count = os.readv(pipe, [view[at + used : at + used + READ_BYTES]])
        if count:
            log.feed(self.memory[at + used : at + used + count])
            self.keep(log.partial, used + count)
        return count > 0

    def keep(self, partial: bytes, filled: int = _HALF_BYTES) -> None:
        """All is in the log but the beginning of a line; ``filled``: bytes of the half in use that are not zero."""
        at, _ = self._half()
        new = 1 - self.memory[0]
        there = 16 + new * _HALF_BYTES
        self.memory[there : there + len(partial)] = partial
        _USED.pack_into(self.memory, 8 + 4 * new, len(partial))
        self.memory[0] = new
        self.memory[at : at + filled] = bytes(filled)

    def left(self) -> bytes:
        """What may not be in the log."""
        at, used = self._half()
        return self.memory[at : at + used] + self.memory[at + used : at + _HALF_BYTES].rstrip(b"\0")
