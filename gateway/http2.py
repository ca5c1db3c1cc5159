"""HTTP/2 on a connection of the HTTP door, for gRPC: h2 parses, streams go to whoever answers them.

What a client may make this hold is bounded: streams, headers, what was not taken yet, and what it
does not read.  Everything of one turn of the loop leaves in one write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

#: How every HTTP/2 connection begins (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: Streams that a client may have open on one connection.
STREAMS_MAX = 10_000
#: Bytes of the headers of one request.
HEADERS_BYTES_MAX = 64 * 1024
#: Bytes that a client may send on one stream, and on the connection, before they are taken.
STREAM_WINDOW, CONNECTION_WINDOW = 1024 * 1024, 16 * 1024 * 1024
#: Bytes that wait for a slow client before streams are told, and before it is cut off.
WAITING_BYTES_FULL, WAITING_BYTES_MAX = 1024 * 1024, 64 * 1024 * 1024
#: Bytes of requests that are not whole yet, of all streams of a connection.
KEPT_BYTES_MAX = 64 * 1024 * 1024
#: Streams that a client may take back at once, and a second (CVE-2023-44487).
RESETS_MAX, RESETS_PER_S = 1000, 100.0
#: What comes in is checked; what goes out is ours, written as it must be.
_CONFIG = h2.config.H2Configuration(
    client_side=False, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
)
_SETTINGS = {
    h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
    h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: HEADERS_BYTES_MAX,
}
Headers = list[tuple[bytes, bytes]]


class Handler(Protocol):
    """What answers one stream; every call comes on the loop's thread."""

    def received(self, data: bytes) -> None:
        """Bytes of the body; :meth:`Stream.taken` makes room for as many more."""

    def ended(self) -> None:
        """The body is whole."""

    def drained(self) -> None:
        """The client has caught up with what was written."""

    def gone(self) -> None:
        """Nobody waits for an answer any more.  The last call."""


class Stream:
    """One request of a connection, and the means to answer it."""

    __slots__ = ("_connection", "_ending", "_out", "closed", "handler", "headers", "kept", "number", "waiting")

    def __init__(self, connection: Http2, number: int, headers: Headers) -> None:
        self._connection = connection
        self._out: deque[memoryview] = deque()
        self._ending: Headers | None = None
        self.number = number
        self.headers = dict(headers)
        self.handler: Handler = None  # type: ignore[assignment]
        self.waiting = 0  # bytes that were written and not sent
        self.kept = 0  # bytes of the request that whoever answers keeps
        self.closed = False

    @property
    def local(self) -> bool:
        """Whether the client is on this host."""
        return self._connection.local

    @property
    def full(self) -> bool:
        """Whether the client is behind: ``drained`` is called when it is not any more."""
        return self.waiting > WAITING_BYTES_FULL

    def begin(self, headers: Headers, end: bool = False) -> None:
        """Send the head of the answer, or all of it."""
        if not self.closed:
            self._connection.send_headers(self, headers, end)

    def write(self, data: bytes) -> None:
        """Send bytes of the body, as the client takes them; one that is too far behind is cut off."""
        if self.waiting > WAITING_BYTES_MAX:
            self.cancel(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        if not self.closed:
            self._out.append(memoryview(data))
            self.waiting += len(data)
            self._connection.pump(self)

    def end(self, trailers: Headers) -> None:
        """Send the trailers when all of the body is sent."""
        self._ending = trailers
        if not self.closed:
            self._connection.pump(self)

    def cancel(self, code: h2.errors.ErrorCodes) -> None:
        """Give it up."""
        if not self.closed:
            self._connection.reset(self, code)

    def taken(self, size: int) -> None:
        """So much of what was received needs no room any more."""
        self._connection.acknowledge(self, size)

    def keep(self, size: int) -> bool:
        """So much of what was received is kept until the end of the stream; False if that is too much by now."""
        self.kept += size
        self._connection.kept += size
        self.taken(size)
        return self._connection.kept <= KEPT_BYTES_MAX

    def next_piece(self, room: int) -> bytes | None:
        """The next bytes to send, no more than ``room``; None when there are none."""
        if not self._out:
            return None
        data = self._out.popleft()
        if len(data) > room:
            self._out.appendleft(data[room:])
            data = data[:room]
        self.waiting -= len(data)
        return bytes(data)

    @property
    def trailers(self) -> Headers | None:
        """What is to be sent now that nothing waits; None before the end."""
        return None if self._out else self._ending


class Http2(asyncio.Protocol):
    """One connection, taken over from HTTP/1.1 when its first bytes were the preface."""

    def __init__(self, transport: Any, local: bool, serve: Callable[[Stream], None], left: Callable[[Http2], None]) -> None:
        """``serve`` gives a new stream its handler, before anything else; ``left`` is called at the end."""
        self.local = local
        self._transport = transport
        self._serve = serve
        self._left = left
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, Stream] = {}
        self.kept = 0  # bytes, of all streams
        self._resets, self._resets_at = float(RESETS_MAX), self._loop.time()  # how many are left, as of when
        self._flushing = False
        self._pending = 0  # bytes of bodies since the last flush
        self._starved = False  # whether some wait because of that
        self._h2 = h2.connection.H2Connection(_CONFIG)
        self._h2.local_settings = h2.settings.Settings(client=False, initial_values=_SETTINGS)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW)
        self.flush()

    # -- asyncio -----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Frames of the client."""
        try:
            for event in self._h2.receive_data(data):
                handle = _HANDLERS.get(type(event))
                if handle is not None:
                    handle(self, event)
        except h2.exceptions.ProtocolError:  # h2 has said goodbye, and why
            self._flush()
            self.close()
            return
        self.flush()

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._starved = False
        for stream in list(self._streams.values()):
            self.pump(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """Everybody who was to be answered is gone."""
        self._left(self)
        for stream in list(self._streams.values()):
            self._forget(stream)

    def close(self) -> None:
        """Hang up, when what was written is sent."""
        if not self._transport.is_closing():
            self._transport.close()

    # -- events ------------------------------------------------------------------------------------

    def _requested(self, event: Any) -> None:
        stream = self._streams[event.stream_id] = Stream(self, event.stream_id, event.headers)
        self._serve(stream)

    def _received(self, event: Any) -> None:
        padding = event.flow_controlled_length - len(event.data)
        stream = self._streams.get(event.stream_id)
        if stream is None:  # answered already, or given up
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return
        if padding:
            self._h2.acknowledge_received_data(padding, event.stream_id)
        stream.handler.received(event.data)

    def _ended(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.handler.ended()

    def _reset(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            now = self._loop.time()
            self._resets = min(RESETS_MAX, self._resets + (now - self._resets_at) * RESETS_PER_S) - 1
            self._resets_at = now
            self._forget(stream)
        if self._resets < 0:
            self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            self._flush()
            self.close()

    def _opened(self, event: Any) -> None:
        """A window has grown: of one stream, or of the connection and so of all."""
        stream = self._streams.get(getattr(event, "stream_id", 0))
        for one in [stream] if stream is not None else list(self._streams.values()):
            self.pump(one)

    # -- for streams ----------------------------------------------------------------------------------

    def send_headers(self, stream: Stream, headers: Headers, end: bool) -> None:
        """Headers or trailers."""
        try:
            self._h2.send_headers(stream.number, headers, end_stream=end)
        except h2.exceptions.ProtocolError:  # it was reset meanwhile
            self._forget(stream)
            return
        if end:
            self._forget(stream)
        self.flush()

    def pump(self, stream: Stream) -> None:
        """Send what the windows and the socket have room for."""
        was_full = stream.full
        try:
            while stream.waiting:
                if self._pending + self._transport.get_write_buffer_size() > WAITING_BYTES_FULL:
                    self._starved = True
                    break
                room = min(self._h2.local_flow_control_window(stream.number), self._h2.max_outbound_frame_size)
                data = stream.next_piece(room) if room > 0 else None
                if data is None:
                    break
                self._pending += len(data)
                self._h2.send_data(stream.number, data)
        except h2.exceptions.ProtocolError:
            self._forget(stream)
            return
        trailers = stream.trailers
        if trailers is not None:
            self.send_headers(stream, trailers, True)
        elif was_full and not stream.full:
            stream.handler.drained()
        self.flush()

    def reset(self, stream: Stream, code: h2.errors.ErrorCodes) -> None:
        """End a stream without an answer, or without the rest of one."""
        try:
            self._h2.reset_stream(stream.number, code)
        except h2.exceptions.ProtocolError:
            pass
        self._forget(stream)
        self.flush()

    def acknowledge(self, stream: Stream, size: int) -> None:
        """Let the client send as much again."""
        try:
            self._h2.acknowledge_received_data(size, stream.number)
        except h2.exceptions.ProtocolError:
            return
        self.flush()

    def _forget(self, stream: Stream) -> None:
        if not stream.closed:
            stream.closed = True
            self.kept -= stream.kept
            self._streams.pop(stream.number, None)
            stream.handler.gone()

    def flush(self) -> None:
        """Write at the end of this turn of the loop."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._pending = 0
        data = self._h2.data_to_send()
        if not data or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > WAITING_BYTES_MAX:  # it asks and does not read
            self._transport.abort()
            return
        self._transport.write(data)
        if self._starved and self._transport.get_write_buffer_size() <= WAITING_BYTES_FULL:
            self._loop.call_soon(self.resume_writing)


_HANDLERS: dict[type, Callable[[Http2, Any], None]] = {
    h2.events.RequestReceived: Http2._requested,  # noqa: SLF001
    h2.events.DataReceived: Http2._received,  # noqa: SLF001
    h2.events.StreamEnded: Http2._ended,  # noqa: SLF001
    h2.events.StreamReset: Http2._reset,  # noqa: SLF001
    h2.events.WindowUpdated: Http2._opened,  # noqa: SLF001
    h2.events.RemoteSettingsChanged: Http2._opened,  # noqa: SLF001
}
