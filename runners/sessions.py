"""Sessions of operators inside a unit: a command with a terminal, or with pipes, and its two ends.

A session is handed to its command as paths (a terminal's, or named pipes'), so that the shim
that runs it needs no more than to open them.  Output is read no faster than it is fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Output that waits to be fetched, and input that waits to be read, in bytes of one session.
OUTPUT_BYTES_MAX = 256 * 1024
INPUT_BYTES_MAX = 1024 * 1024
#: What is read at once.
_READ_BYTES = 64 * 1024
#: Seconds until input is offered again to an engine that took no more.
_AGAIN_S = 0.05
#: Seconds that the engine has to know how a command ended.
_STATUS_S_MAX = 5.0
#: Seconds between a hang-up and the end of a command that does not care.
_HANG_UP_S = 1.0
#: Reads of what a command that has ended left in its pipes.
_LAST_READS_MAX = 16
STDOUT, STDERR = "stdout", "stderr"


class Session(ABC):
    """What both kinds share: output that waits, and how it ended.  On the loop's thread."""

    #: whether it ends with the unit's shim
    needs_shim = False

    def __init__(self, on_news: Callable[[], None]) -> None:
        """``on_news`` is called when there is something to fetch."""
        self._on_news = on_news
        self._output: list[tuple[str, bytes]] = []
        self._waiting = 0
        self.code: int | None = None  # once it ended: its exit status, or 128 and the signal
        self.error = ""

    def fetch(self) -> list[tuple[str, bytes]]:
        """(stream, bytes) since this was asked last."""
        out, self._output, self._waiting = self._output, [], 0
        self._go_on()
        return out

    @property
    def has_news(self) -> bool:
        """Whether there is output, or the end."""
        return bool(self._output) or self.code is not None

    def ended(self, code: int, error: str = "") -> None:
        """Nothing more comes."""
        if self.code is None:
            self.code, self.error = code, error
            self._on_news()

    def _take(self, stream: str, data: bytes) -> None:
        self._output.append((stream, data))
        self._waiting += len(data)
        self._on_news()

    @property
    def _is_full(self) -> bool:
        return self._waiting >= OUTPUT_BYTES_MAX

    @abstractmethod
    def _go_on(self) -> None:
        """There is room for output again."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Input for the command; raises ``BufferError`` if it does not read."""

    @abstractmethod
    def end_input(self) -> None:
        """The command reads an end of file."""

    @abstractmethod
    def resize(self, rows: int, columns: int) -> None:
        """The operator's window has another size."""

    @abstractmethod
    def hang_up(self) -> None:
        """The unit ends: what an operator left in it does not hold that up."""

    @abstractmethod
    def close(self) -> None:
        """End it."""


class ProcessSession(Session):
    """Of a command that a shim runs: see :attr:`streams`."""

    needs_shim = True

    def __init__(
        self, loop: asyncio.AbstractEventLoop, folder: Path, name: str, size: tuple[int, int] | None,
        on_news: Callable[[], None], end: Callable[[int], None],
    ) -> None:  # fmt: skip
        """``size``: rows and columns of a terminal, None for pipes.  ``end(signal)`` ends the command."""
        super().__init__(on_news)
        self._loop = loop
        self._end = end
        self._closed = False
        self._readers: dict[int, str] = {}  # descriptors that are read
        self._backlog = b""
        self._input_over = False
        self._paths: list[str] = []
        self._spare: list[int] = []  # our ends of what the command has not opened yet
        self._input = -1
        try:
            self._make(folder / name, size)
        except OSError:
            self._shut()
            raise
        for handle in {self._input, *self._readers}:
            os.set_blocking(handle, False)
        self._go_on()

    def _make(self, path: Path, size: tuple[int, int] | None) -> None:
        if size is None:
            self._make_pipes(path)
            return
        self._input, spare = os.openpty()
        self._spare = [spare]
        self._readers[self._input] = STDOUT
        self.streams: dict[str, Any] = {"tty": os.ttyname(spare)}
        self.resize(*size)

    def _make_pipes(self, path: Path) -> None:
        names = [f"{path}.{stream}" for stream in ("stdin", STDOUT, STDERR)]
        for name in names:
            os.mkfifo(name, 0o600)
            self._paths.append(name)
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        for name, stream in zip(names[1:], (STDOUT, STDERR), strict=True):
            self._readers[os.open(name, os.O_RDONLY | flags)] = stream
            self._spare.append(os.open(name, os.O_WRONLY | flags))  # until the command has it: no end of file
        self._spare.append(os.open(names[0], os.O_RDONLY | flags))
        self._input = os.open(names[0], os.O_WRONLY | flags)
        self.streams = {"stdin": names[0], STDOUT: ["fifo", names[1]], STDERR: ["fifo", names[2]]}

    def begun(self) -> None:
        """The command has opened its ends: ours of them, and their names, go."""
        for handle in self._spare:
            os.close(handle)
        for path in self._paths:
            Path(path).unlink(missing_ok=True)
        self._spare, self._paths = [], []

    def ended(self, code: int, error: str = "") -> None:
        """The command ended; what it had said is read first."""
        if self.code is not None or self._closed:
            return
        for handle in list(self._readers):
            with contextlib.suppress(BlockingIOError):
                for _ in range(_LAST_READS_MAX):
                    if not self._read(handle):
                        break
        super().ended(code, error)
        self._shut()

    def write(self, data: bytes) -> None:
        """See :class:`Session`."""
        if len(self._backlog) + len(data) > INPUT_BYTES_MAX:
            raise BufferError(f"input_bytes_max: {INPUT_BYTES_MAX} bytes wait for the command to read them")
        if not self._closed and not self._input_over:
            self._backlog += data
            self._push()

    def _push(self) -> None:
        try:
            while self._backlog:
                self._backlog = self._backlog[os.write(self._input, self._backlog) :]
        except BlockingIOError:
            self._loop.add_writer(self._input, self._push)
            return
        except OSError:
            self._backlog = b""
        self._loop.remove_writer(self._input)
        if self._input_over and self._input not in self._readers and self._input >= 0:
            os.close(self._input)
            self._input = -1

    def end_input(self) -> None:
        """See :class:`Session`; a terminal is told by its own character for it."""
        if self._closed or self._input_over:
            return
        if self._input in self._readers:
            self._backlog += b"\x04"
        self._input_over = True
        self._push()

    def resize(self, rows: int, columns: int) -> None:
        """See :class:`Session`."""
        if not self._closed and (self._input in self._readers or not self._readers):
            fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def _go_on(self) -> None:
        if not self._closed and self.code is None:
            for handle in self._readers:
                self._loop.add_reader(handle, self._ready, handle)

    def _ready(self, handle: int) -> None:
        try:
            more = not self._is_full and self._read(handle)
        except BlockingIOError:
            return  # it was read already
        if not more:
            self._loop.remove_reader(handle)

    def _read(self, handle: int) -> bool:
        """Whether there was something; raises ``BlockingIOError`` if there may be later."""
        try:
            data = os.read(handle, _READ_BYTES)
        except BlockingIOError:
            raise
        except OSError:  # a terminal that nobody holds any more
            return False
        if data:
            self._take(self._readers[handle], data)
        return bool(data)

    def close(self) -> None:
        """See :class:`Session`: its processes are told to hang up, and then are ended."""
        self.hang_up()
        self._shut()

    def hang_up(self) -> None:
        """See :class:`Session`."""
        if not self._closed and self.code is None:
            self._end(signal.SIGHUP)
            self._loop.call_later(_HANG_UP_S, self._end, int(signal.SIGKILL))

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        for handle in {self._input, *self._readers} - {-1}:
            self._loop.remove_reader(handle)
            self._loop.remove_writer(handle)
            os.close(handle)
        self.begun()


class ContainerSession(Session):
    """Of a command that the engine runs inside a container, over the engine's own stream."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: Any, container: str, argv: list[str],
        environment: dict[str, str], size: tuple[int, int] | None, on_news: Callable[[], None],
        expel: Callable[[str], None],
    ) -> None:  # fmt: skip
        """``expel(id)``, in a thread, ends what the engine runs under this id."""
        super().__init__(on_news)
        self._expel = expel
        self._loop = loop
        self._engine = engine
        self._size = size
        self._made = ""
        self._socket: socket.socket | None = None
        self._stream: Any = None
        self._room = threading.Event()
        self._room.set()
        self._closed = False
        self._again: asyncio.TimerHandle | None = None
        self._backlog = b""
        self._input_over = False
        self._container, self._argv, self._environment = container, argv, environment
        threading.Thread(target=self._work, name="exec session", daemon=True).start()

    # -- in its thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        code, error = 126, ""
        try:
            self._made, self._stream = self._engine.enter(
                self._container, self._argv, self._environment, self._size is not None
            )
            if self._closed:  # the operator was gone before the engine had answered
                self._expel(self._made)
                return
            self._say(self._opened)
            self._receive(self._stream._sock)
            code = self._status()
        except Exception as failure:  # noqa: BLE001 - whatever it is, the session is over and says why
            error = str(failure)
        finally:
            self._say(lambda: super(ContainerSession, self).ended(code, error))
            if self._stream is not None:
                self._stream.close()

    def _status(self) -> int:
        """The stream may end a moment before the engine knows how the command did."""
        deadline = time.monotonic() + _STATUS_S_MAX
        while True:
            runs, _, code = self._engine.entered(self._made)
            if not runs or self._closed or time.monotonic() > deadline:
                return int(code)
            time.sleep(_AGAIN_S)

    def _say(self, work: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(work)

    def _receive(self, stream: socket.socket) -> None:
        """The engine marks what is which in frames of eight bytes, where there is no terminal."""
        stream.settimeout(None)
        while True:
            kind, size = STDOUT, _READ_BYTES
            if self._size is None:
                header = _exactly(stream, 8)
                if header is None:
                    return
                kind, size = (STDERR if header[0] == 2 else STDOUT), int.from_bytes(header[4:])
            while size:
                data = stream.recv(min(size, _READ_BYTES))
                if not data:
                    return
                size = size - len(data) if self._size is None else 0
                self._say(lambda kind=kind, data=data: self._hear(kind, data))  # type: ignore[misc]
                self._room.wait()
                if self._closed:
                    return

    # -- on the loop's thread -------------------------------------------------------------------------

    def _hear(self, kind: str, data: bytes) -> None:
        self._take(kind, data)
        if self._is_full:
            self._room.clear()

    def _opened(self) -> None:
        self._socket = self._stream._sock
        if self._closed:
            self._cut()
            return
        if self._size is not None:
            self.resize(*self._size)
        self._push()

    def _go_on(self) -> None:
        self._room.set()

    def write(self, data: bytes) -> None:
        """See :class:`Session`."""
        if len(self._backlog) + len(data) > INPUT_BYTES_MAX:
            raise BufferError(f"input_bytes_max: {INPUT_BYTES_MAX} bytes wait for the command to read them")
        self._backlog += data
        self._push()

    def _push(self) -> None:
        """As much as the engine takes now; the rest a little later."""
        if self._socket is None or self._closed or self.code is not None:
            return
        try:
            while self._backlog:  # the thread that receives waits in the same socket: its mode stays
                self._backlog = self._backlog[self._socket.send(self._backlog, socket.MSG_DONTWAIT) :]
            if self._input_over:
                self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            if self._again is None:
                self._again = self._loop.call_later(_AGAIN_S, self._push_again)
        except OSError:
            self._backlog = b""  # it is over

    def _push_again(self) -> None:
        self._again = None
        self._push()

    def end_input(self) -> None:
        """See :class:`Session`."""
        if self._size is not None:
            self.write(b"\x04")
        else:
            self._input_over = True
            self._push()

    def resize(self, rows: int, columns: int) -> None:
        """See :class:`Session`."""
        made = self._made
        if made and self._size is not None:
            self._loop.run_in_executor(None, self._engine.resize, made, rows, columns)

    def hang_up(self) -> None:
        """See :class:`Session`: it ends with its container."""

    def close(self) -> None:
        """See :class:`Session`: the engine has no word for it, so its process is told."""
        if self._closed:
            return
        self._closed = True
        self._room.set()
        if self.code is None and self._made:
            self._loop.run_in_executor(None, self._expel, self._made)
        self._cut()

    def _cut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _exactly(stream: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            return None
        data += more
    return data
