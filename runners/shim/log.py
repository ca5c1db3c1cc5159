"""The log of a unit: lines with their time, in files that are rotated by size."""

import os
import time

#: Bytes of one log file, and how many older ones are kept.
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_KEPT = 3


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
        if len(self.partial) > 65536:
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
