"""A small HTTP/1.1 server on the event loop: httptools parses, handlers answer.

One connection is one protocol object; requests of a connection are answered in order.
Limits are named; a client that breaks one is told so and disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httptools

from .http2 import PREFACE, Http2, Stream

logger = logging.getLogger("argosy.http")

#: Largest request body, in bytes (etcd's limit for forms).
BODY_BYTES_MAX = 10 * 1024 * 1024
#: Bytes of headers and URL of one request.
HEAD_BYTES_MAX = 64 * 1024
#: Connections one door serves.
CONNECTIONS_MAX = 20_000
#: Requests that may wait on one connection.
PIPELINE_MAX = 64
#: Bytes that may wait for a slow reader of a stream before it is told to wait, and before it is cut off.
STREAM_BYTES_FULL = 1024 * 1024
STREAM_BYTES_MAX = 64 * 1024 * 1024
#: Bytes of an open body that may wait until whoever answers takes them.
UNREAD_BYTES_MAX = 1024 * 1024
#: Seconds in which a client may read the answer to a request that it is still sending.
LINGER_S_MAX = 2.0

REASONS = {
    200: "OK", 201: "Created", 204: "No Content", 301: "Moved Permanently", 304: "Not Modified", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    412: "Precondition Failed", 413: "Payload Too Large", 415: "Unsupported Media Type",
    423: "Locked", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    408: "Request Timeout", 410: "Gone", 429: "Too Many Requests", 501: "Not Implemented",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


def _kernel_form(address: tuple[Any, ...]) -> str:
    """An address and port as /proc/net/tcp and tcp6 show them: words of four bytes in the host's order."""
    packed = ip_address(address[0]).packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    ordered = words if sys.byteorder == "big" else [word[::-1] for word in words]
    return f"{b''.join(ordered).hex().upper()}:{address[1]:04X}"


_STATUS_LINES = {status: f"HTTP/1.1 {status} {text}\r\n".encode() for status, text in REASONS.items()}


class Request:
    """One request, and the means to answer it once."""

    __slots__ = (
        "_answered", "_chunked", "_connection", "_headers", "body", "held", "keep_alive", "method",
        "on_body", "on_close", "on_drain", "open", "path", "query", "unread",
    )  # fmt: skip

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._answered = False
        self._chunked = False
        self.method = ""
        self.path = ""
        self.query = ""
        self._headers: dict[bytes, bytes] = {}
        self.body = b""
        self.keep_alive = True
        self.on_close: Callable[[], None] | None = None
        self.on_drain: Callable[[], None] | None = None
        #: Whether more of the body may come; then ``on_body(data, more)`` gets it, and ``body`` is empty.
        self.open = False
        self.on_body: Callable[[bytes, bool], None] | None = None
        self.unread: bytearray | None = None
        self.held = False

    def header(self, name: str) -> str:
        """A header of the request by its lower-case name; empty when it was not sent."""
        return self._headers.get(name.encode(), b"").decode("latin-1")

    def answer_with(self, status: int, head: bytes, body: bytes) -> None:
        """:meth:`answer` with header lines that are rendered already."""
        if self._answered:
            return
        self._answered = True
        close = b"" if self.keep_alive and not self.open else b"Connection: close\r\n"
        data = b"%b%b%bContent-Length: %d\r\n\r\n" % (_STATUS_LINES[status], head, close, len(body))
        self._connection.finish(self, data if self.method == "HEAD" else data + body)

    def answer(
        self, status: int, body: bytes = b"", content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Send the whole answer; a second one is ignored."""
        if self._answered:
            return
        self._answered = True
        head = [f"HTTP/1.1 {status} {REASONS.get(status, 'Unknown')}"]
        if headers:
            head += [f"{name}: {value}" for name, value in headers.items()]
        if content_type:
            head.append(f"Content-Type: {content_type}")
        head.append(f"Content-Length: {len(body)}")
        if not self.keep_alive or self.open:
            head.append("Connection: close")
        data = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1", "replace")
        if self.method != "HEAD":
            data += body
        self._connection.finish(self, data)

    def begin(
        self, headers: dict[str, str], content_type: str = "application/json", status: int = 200
    ) -> None:
        """Send the head of a stream; :meth:`chunk` and :meth:`end` follow."""
        if self._answered or self._chunked:
            return
        self._chunked = True
        head = [f"HTTP/1.1 {status} {REASONS[status]}", *[f"{name}: {value}" for name, value in headers.items()]]
        head += [f"Content-Type: {content_type}", "Transfer-Encoding: chunked"]
        self._connection.write(self, ("\r\n".join(head) + "\r\n\r\n").encode("latin-1"))

    def chunk(self, data: bytes) -> bool:
        """Send one piece; False if the reader is gone or too slow (then it is cut off)."""
        if self._answered:
            return False
        return self._connection.write(self, b"%x\r\n%b\r\n" % (len(data), data))

    def take_over(
        self, method: str, path: str, query: str, headers: dict[bytes, bytes], body: bytes, is_open: bool, keep_alive: bool
    ) -> None:  # fmt: skip
        """Become a request that was received elsewhere."""
        self.method, self.path, self.query, self._headers = method, path, query, headers
        self.keep_alive, self.open = keep_alive, is_open
        self.body, self.unread = (b"", bytearray(body)) if is_open else (body, None)

    def all_headers(self) -> dict[bytes, bytes]:
        """The headers, by their names in lower case."""
        return self._headers

    def pass_on(self, data: bytes, is_all: bool) -> None:
        """Send bytes of an answer that was rendered elsewhere, head and all."""
        if self._answered:
            return
        self._chunked = True
        if is_all:
            self._answered = True
            self._connection.finish(self, data)
        else:
            self._connection.write(self, data)

    def give_up(self) -> None:
        """The rest of the answer will not come: the connection is closed, so that the client sees it."""
        self.keep_alive = False
        self.pass_on(b"", True)

    def hold(self, waits: bool) -> None:
        """Take no more of an open body for now, or go on with what came meanwhile."""
        waits = waits and not self._answered
        if self.unread is not None and waits != self.held:
            self._connection.hold(self, waits)

    @property
    def local(self) -> bool:
        """Whether the client is on this host."""
        return self._connection.local

    @property
    def user(self) -> int:
        """The client's user, if it is on this host; else -1."""
        return self._connection.user

    @property
    def begun(self) -> bool:
        """Whether a stream has been started."""
        return self._chunked

    @property
    def full(self) -> bool:
        """Whether the reader of a stream is behind: ``on_drain`` is called when it is not any more."""
        return self._connection.full

    def end(self) -> None:
        """End a stream."""
        if not self._answered:
            self._answered = True
            self._connection.finish(self, b"0\r\n\r\n")

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self._answered


class _Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: Any = None
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None
        self._url = b""
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._waiting: deque[Request] = deque()
        self._active: Request | None = None
        self._refused = False
        self._first = b""  # what may become the preface of HTTP/2
        self.full = False

    # asyncio
    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(STREAM_BYTES_FULL, STREAM_BYTES_FULL // 4)
        self._server.connections.add(self)
        if len(self._server.connections) > CONNECTIONS_MAX:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._request is None and self._server.streams_of_http2 is not None:
            data, self._first = self._first + data, b""
            if data.startswith(PREFACE[: len(data)]):
                if len(data) < len(PREFACE):
                    self._first = data
                else:
                    self._become_http2(data)
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "upgrades are not supported here")
        except httptools.HttpParserError as error:
            limit = error.__context__  # what a callback of ours raised
            if isinstance(limit, _TooLarge):
                self._refuse(limit.status, str(limit))
            else:
                self._refuse(400, f"not HTTP/1.1: {error}")

    def _become_http2(self, data: bytes) -> None:
        assert self._server.streams_of_http2 is not None
        connections = self._server.connections
        heir = Http2(self._transport, self.local, self._server.streams_of_http2, connections.discard)
        connections.discard(self)
        connections.add(heir)
        self._transport.set_protocol(heir)
        heir.data_received(data)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._active is not None and self._active.on_drain is not None:
            self._active.on_drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        active, self._active = self._active, None
        if active is not None and active.on_close is not None:
            active.on_close()
        self._waiting.clear()

    def _refuse(self, status: int, text: str) -> None:
        self._refused = True
        self._waiting.clear()
        active, self._active = self._active, None
        if active is not None and active.on_close is not None:
            active.on_close()
        if active is not None and active.begun:  # an answer in the midst of another one says nothing
            self._transport.close()
            return
        request = Request(self)
        request.open = True  # whatever else it wanted
        self._active = request
        request.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8")

    # httptools
    def on_message_begin(self) -> None:
        self._request = Request(self)
        self._url = b""
        self._head_bytes = 0
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        assert self._request is not None
        self._request._headers[name.lower()] = value  # noqa: SLF001

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _TooLarge(431, f"head_bytes_max: {HEAD_BYTES_MAX} bytes of URL and headers")

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        request.path, _, request.query = self._url.decode("latin-1").partition("?")
        request.method = self._parser.get_method().decode()
        request.keep_alive = self._parser.should_keep_alive()
        if request.header("expect").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.path in self._server.streams and request.method == "POST" and request.header("transfer-encoding"):
            request.open = True
            request.unread = bytearray()
            self._queue(request)

    def on_body(self, body: bytes) -> None:
        request = self._request
        if request is not None and request.unread is not None:
            if request.done:
                return
            request.unread += body
            if len(request.unread) > UNREAD_BYTES_MAX:
                raise _TooLarge(413, f"unread_bytes_max: {UNREAD_BYTES_MAX} bytes of a body wait to be taken")
            self._hand(request)
            return
        self._body_bytes += len(body)
        if self._body_bytes > BODY_BYTES_MAX:
            raise _TooLarge(413, f"body_bytes_max: {BODY_BYTES_MAX} bytes in a request")
        self._body.append(body)

    def on_message_complete(self) -> None:
        request = self._request
        assert request is not None
        if request.unread is None:
            request.body = b"".join(self._body)
            self._queue(request)
            return
        request.open = False
        if request in self._waiting:  # it came whole before its turn
            request.body, request.unread = bytes(request.unread), None
        else:
            self._hand(request)

    def _queue(self, request: Request) -> None:
        if self._refused:
            return
        if self._active is None:
            self._take(request)
        elif len(self._waiting) >= PIPELINE_MAX:
            raise _TooLarge(400, f"pipeline_max: {PIPELINE_MAX} requests wait on this connection")
        else:
            self._waiting.append(request)

    def _take(self, request: Request) -> None:
        self._active = request
        self._server.take(request)
        self._hand(request)

    def _hand(self, request: Request) -> None:
        """What came of an open body goes to whoever answers, and so does its end."""
        if request is not self._active or request.held or request.on_body is None or request.unread is None:
            return
        data, more = bytes(request.unread), request.open
        if data or not more:
            request.unread.clear()
            self._server.hand(request, data, more)

    # requests
    @property
    def local(self) -> bool:
        """Whether the other end is on this host, by its address."""
        try:
            address = ip_address(self._transport.get_extra_info("peername")[0])
        except (TypeError, ValueError):
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)

    @property
    def user(self) -> int:
        """The user of a client on this host, as the kernel knows it; -1 for one elsewhere, or unknown."""
        theirs, ours = (self._transport.get_extra_info(name) for name in ("peername", "sockname"))
        if not self.local or not theirs or not ours:
            return -1
        wanted = (_kernel_form(theirs), _kernel_form(ours))
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            try:
                rows = Path(table).read_text().splitlines()[1:]
            except OSError:
                continue
            for row in rows:
                fields = row.split()
                if (fields[1], fields[2]) == wanted:
                    return int(fields[7])
        return -1

    def hold(self, request: Request, waits: bool) -> None:
        """Stop reading while an open body waits to be taken."""
        request.held = waits
        if self._transport.is_closing():
            return
        if waits:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            self._hand(request)

    def write(self, request: Request, data: bytes) -> bool:
        if request is not self._active or self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > STREAM_BYTES_MAX:
            self._server.cut_off += 1
            self._transport.abort()
            return False
        self._transport.write(data)
        return True

    def finish(self, request: Request, data: bytes) -> None:
        if request is not self._active or self._transport.is_closing():
            return
        self._transport.write(data)
        self._active = None
        request.hold(False)
        if request.open:
            self._linger()
        elif not request.keep_alive:
            self._transport.close()
        elif self._waiting:
            self._take(self._waiting.popleft())

    def _linger(self) -> None:
        """Pass over what still comes of a request that is answered: hanging up could destroy the answer on its way."""
        self._refused = True
        self._waiting.clear()
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(LINGER_S_MAX, self._transport.close)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _TooLarge(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpServer:
    """Hands requests to ``dispatch``; owns the listening sockets and connections.

    Requests to ``streams`` whose body comes in chunks are handed over before their body is whole.
    """

    def __init__(self, dispatch: Callable[[Request], None], streams: frozenset[str] = frozenset()) -> None:
        self.dispatch = dispatch
        self.streams = streams
        self.connections: set[_Connection | Http2] = set()
        self.cut_off = 0
        #: What answers streams of HTTP/2; None: connections that begin so are refused.
        self.streams_of_http2: Callable[[Stream], None] | None = None
        self._servers: list[asyncio.AbstractServer] = []

    def take(self, request: Request) -> None:
        """Hand one over; a fault in what answers it is one refused request, and no more."""
        try:
            self.dispatch(request)
        except Exception:
            self._failed(request)

    def hand(self, request: Request, data: bytes, more: bool) -> None:
        """The same with a piece of an open body."""
        assert request.on_body is not None
        try:
            request.on_body(data, more)
        except Exception:
            self._failed(request)

    @staticmethod
    def _failed(request: Request) -> None:
        logger.exception("%s %s could not be answered", request.method, request.path[:200])
        if request.begun:
            request.end()
            return
        request.answer(500, b"the request could not be answered; the host's log says why\n", "text/plain; charset=utf-8")

    async def listen(self, host: str, port: int) -> None:
        """Open one address; raises ``OSError`` if it is taken."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _Connection(self), host, port, reuse_address=True, backlog=1024
        )
        self._servers.append(server)

    def close(self) -> None:
        """Close every door and connection."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.close()
