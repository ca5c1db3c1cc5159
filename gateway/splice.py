"""A connection that turns out to be HTTP/2 goes on to the gRPC door: one port for both, as etcd has it.

Bytes are passed on as they come, and no faster than the other side takes them.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from typing import Any

#: How every HTTP/2 connection begins (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: In the address of a connection whose client is of another host.
FAR = ".far."
#: Bytes that wait for a side that is slow before the other one is not read any more.
WAITING_BYTES_MAX = 1024 * 1024


class Splice(asyncio.Protocol):
    """The inner side of one connection; the outer one tells it what happens there."""

    def __init__(self, outer: Any) -> None:
        self._outer = outer
        self._inner: Any = None
        self._early = bytearray()
        self._closed = False

    def open(self, loop: asyncio.AbstractEventLoop, address: str, local: bool) -> None:
        """Connect to the gRPC door of this host; ``local``: the client is of this host, too."""
        inner = socket.socket(socket.AF_UNIX)
        inner.setblocking(False)
        try:
            if not local:  # whoever else connects there is: an abstract address is of one host alone
                inner.bind(f"{address}{FAR}{secrets.token_hex(8)}")
            inner.connect(address)
        except OSError:  # it ends, or more connections wait than it takes
            inner.close()
            self._outer.abort()
            return
        task = loop.create_task(loop.create_unix_connection(lambda: self, sock=inner))  # type: ignore[arg-type,var-annotated]
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._outer.abort()

    # -- the inner side ------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """What came meanwhile goes first."""
        self._inner = transport
        transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        if self._closed:
            transport.abort()
            return
        transport.write(bytes(self._early))
        self._early.clear()
        self._outer.resume_reading()

    def data_received(self, data: bytes) -> None:
        """From the gRPC door to the client."""
        self._outer.write(data)

    def pause_writing(self) -> None:
        """The gRPC door is slow."""
        self._outer.pause_reading()

    def resume_writing(self) -> None:
        """It is not, any more."""
        self._outer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The gRPC door has hung up."""
        self._outer.close()

    # -- the outer side ------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """From the client to the gRPC door."""
        if self._inner is None:
            self._early += data
            self._outer.pause_reading()
        else:
            self._inner.write(data)

    def wait(self, waits: bool) -> None:
        """The client is slow, or is not any more."""
        if self._inner is not None and not self._inner.is_closing():
            (self._inner.pause_reading if waits else self._inner.resume_reading)()

    def close(self) -> None:
        """The client has hung up."""
        self._closed = True
        if self._inner is not None:
            self._inner.close()
