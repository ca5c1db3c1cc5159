"""etcd's v3 API over gRPC: for clients that speak protobuf, as etcdctl does.

A call is the same request as at the JSON gateway, in another spelling: this translates and
decides nothing.  So a machine without a vote serves it as well, through its own HTTP door.
The protocol is that of grpc/doc/PROTOCOL-HTTP2.md: messages with a length before them, and
the outcome in trailers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from typing import Any
from urllib.parse import quote

import httptools
from google.protobuf.message import DecodeError

from . import v3
from .http import UNREAD_BYTES_MAX, HttpServer, Request
from .http2 import KEPT_BYTES_MAX, STREAM_WINDOW, Headers, Stream
from .protobuf import CLASSES, from_document, to_document
from .v3_messages import SERVICES, STREAMED, STREAMS, Method

logger = logging.getLogger("argosy.grpc")

#: Bytes of one request, as etcd has it, and of what is read at all before it is refused.
REQUEST_BYTES_MAX, RECEIVE_BYTES_MAX = 1536 * 1024, 2 * 1024 * 1024
OK, CANCELED, DEADLINE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 1, 4, 12, 13, 14
CODE_NAMES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
#: gRPC codes of answers that name none, by their HTTP status.
_CODES_OF_STATUS = {403: 7, 404: 12, 413: 8, 503: 14}
#: Opens a watch stream before there is a watch: one that may not be is canceled then, as etcd does it.
_PRELUDE = b'{"cancel_request":{"watch_id":"-1"}}'
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_HEAD: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_METHODS: dict[str, tuple[str, str, Method]] = {
    f"/{service}/{name}": (service, name, method)
    for service, methods in SERVICES.items()
    for name, method in methods.items()
}
_HEALTH = Method("/health", "HealthCheckRequest", "HealthCheckResponse")
_METHODS["/grpc.health.v1.Health/Check"] = ("grpc.health.v1.Health", "Check", _HEALTH)


class _Refused(Exception):
    """A call ends without what was asked: gRPC code and sentence."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class GrpcDoor:
    """Gives each new stream of the door its handler, and counts calls."""

    def __init__(self, server: HttpServer) -> None:
        """``server``: what answers at the HTTP door."""
        self.server = server
        #: Calls by (service, method), and those that ended by (service, method, code).
        self.started: Counter[tuple[str, str]] = Counter()
        self.handled: Counter[tuple[str, str, str]] = Counter()

    def __call__(self, stream: Stream) -> None:
        """Answer a stream."""
        path = stream.headers.get(b":path", b"").decode("latin-1")
        if stream.headers.get(b":method") != b"POST" or not stream.headers.get(b"content-type", b"").startswith(b"application/grpc"):
            _Wrong(stream, [(b":status", b"415"), (b"content-length", b"0")])
        elif (known := _METHODS.get(path)) is None:
            _Wrong(stream, _outcome(UNIMPLEMENTED, f"unknown method {path[:200]}"))
        else:
            _Call(self, stream, *known)


class _Wrong:
    """A request that is answered before it is read."""

    def __init__(self, stream: Stream, answer: Headers) -> None:
        self._stream = stream
        stream.handler = self
        asyncio.get_running_loop().call_soon(stream.begin, answer, True)

    def received(self, data: bytes) -> None:
        self._stream.taken(len(data))

    def ended(self) -> None:
        pass

    def drained(self) -> None:
        pass

    def gone(self) -> None:
        pass


class _Call:
    """One call: the handler of its stream, and in the place of the connection that a :class:`Request` has."""

    user = -1

    def __init__(self, door: GrpcDoor, stream: Stream, service: str, name: str, method: Method) -> None:
        self._door = door
        self._stream = stream
        stream.handler = self
        self._name = (service, name)
        self._method = method
        self._in = bytearray()  # of the client, not yet a whole message
        self._asked: bytes | None = None  # the message of a call that has one
        self._client_streams = method.path in STREAMS
        self._streams = method.path in STREAMED
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._body = bytearray()  # of the answer
        self._whole = False  # the answer did not break off
        self._begun = False
        self._over = False
        self._held = 0  # bytes of the client's messages that were not taken yet
        self.local = stream.local
        self.request = Request(self)  # type: ignore[arg-type]
        self._expiry = self._until(stream.headers.get(b"grpc-timeout", b"").decode("latin-1"))
        door.started[self._name] += 1
        if self._client_streams:
            self._ask(_PRELUDE if method.path == "/watch" else b"", True)

    def _until(self, timeout: str) -> asyncio.TimerHandle | None:
        found = _TIMEOUT.fullmatch(timeout)
        if found is None:
            return None
        seconds = int(found[1]) * _UNITS[found[2]]
        return asyncio.get_running_loop().call_later(seconds, self._refuse, _Refused(DEADLINE, "context deadline exceeded"))

    # -- what the client says ------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of messages, each with a flag and its length before it."""
        self._in += data
        try:
            if not self._client_streams and not self._stream.keep(len(data)):
                raise _Refused(8, f"kept_bytes_max: {KEPT_BYTES_MAX} bytes of requests that are not whole on this connection")
            self._split()
        except _Refused as refused:
            self._refuse(refused)

    def _split(self) -> None:
        while len(self._in) >= 5 and not self._over:
            size = int.from_bytes(self._in[1:5])
            if self._in[0]:
                raise _Refused(UNIMPLEMENTED, "messages are taken without compression only")
            most = STREAM_WINDOW // 2 if self._client_streams else RECEIVE_BYTES_MAX
            if size > most:
                raise _Refused(8, f"receive_bytes_max: a message has at most {most} bytes here, not {size}")
            if len(self._in) < 5 + size:
                return
            message = bytes(self._in[5 : 5 + size])
            del self._in[: 5 + size]
            if self._client_streams:
                self._feed(self._document(message), True, 5 + size)
            elif self._asked is not None:
                raise _Refused(INTERNAL, "this method takes one message")
            else:
                self._asked = message

    def ended(self) -> None:
        """The client has said all."""
        if self._over:
            return
        try:
            if self._in:
                raise _Refused(INTERNAL, "the request ends within a message")
            if self._method.path == "/watch":  # etcd ends a watch stream with the client's half of it
                self._finish(OK, "")
            elif self._client_streams:
                self._feed(b"", False, 0)
            elif self._asked is None:
                raise _Refused(INTERNAL, "the request has no message")
            else:
                self._ask(self._document(self._asked), False)
        except _Refused as refused:
            self._refuse(refused)

    def _document(self, message: bytes) -> bytes:
        """A message as the JSON gateway takes it; raises :class:`_Refused`."""
        if len(message) > REQUEST_BYTES_MAX:
            raise _Refused(*v3.ERRORS["too_large"])
        try:
            document = to_document(CLASSES[self._method.request].FromString(message))
        except DecodeError as error:
            raise _Refused(INTERNAL, f"the message cannot be read: {error}") from None
        return json.dumps(document, separators=(",", ":")).encode()

    def _ask(self, body: bytes, is_open: bool) -> None:
        """Hand the request to the door."""
        given = self._stream.headers
        token = given.get(b"token") or given.get(b"authorization")
        headers = {b"authorization": token} if token else {}
        is_health = self._method is _HEALTH
        path = self._method.path if is_health else f"/v3{self._method.path}"
        self.request.take_over("GET" if is_health else "POST", path, "", headers, b"" if is_health else body, is_open, True)
        self._door.server.take(self.request)
        self._hand()

    def _feed(self, document: bytes, more: bool, size: int) -> None:
        """One more message of an open body; the client may send on when it is taken."""
        request = self.request
        if request.unread is None or request.done:
            self._stream.taken(size)
            return
        request.unread += document
        request.open = more
        self._held += size
        if len(request.unread) > UNREAD_BYTES_MAX * 4:
            raise _Refused(8, f"unread_bytes_max: more than {UNREAD_BYTES_MAX * 4} bytes of requests wait to be taken")
        self._hand()

    def _hand(self) -> None:
        request = self.request
        if request.held or request.on_body is None or request.unread is None:
            return
        data, more = bytes(request.unread), request.open
        if data or not more:
            request.unread.clear()
            held, self._held = self._held, 0
            if held:
                self._stream.taken(held)
            self._door.server.hand(request, data, more)

    # -- as the connection of a request --------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the client is behind."""
        return self._stream.full

    def write(self, request: Request, data: bytes) -> bool:
        """A part of the answer."""
        if self._over:
            return False
        self._parser.feed_data(data)
        return not self._over

    def finish(self, request: Request, data: bytes) -> None:
        """The last part."""
        if self._over:
            return
        if data:
            self._parser.feed_data(data)
        if not self._over:
            self._conclude()

    def hold(self, request: Request, waits: bool) -> None:
        """Whether messages of the client are kept for now."""
        request.held = waits
        if not waits:
            self._hand()

    def on_headers_complete(self) -> None:
        """The parser's."""
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """The parser's: a stream has a line for each message."""
        self._body += body
        if self._streams and self._status == 200:
            *lines, rest = self._body.split(b"\n")
            self._body = rest
            for line in filter(None, lines):
                if not self._over:
                    self._pass_on(json.loads(line))

    def on_message_complete(self) -> None:
        """The parser's: the answer is whole."""
        self._whole = True

    # -- what the client is told -----------------------------------------------------------------------

    def _pass_on(self, said: dict[str, Any]) -> None:
        if "error" in said:
            self._refuse(_Refused(int(said["error"]["grpc_code"]), str(said["error"]["message"])))
        else:
            self._send(said["result"])

    def _send(self, document: dict[str, Any]) -> None:
        data = from_document(self._method.response, document).SerializeToString()
        self._begin()
        self._stream.write(b"\0" + len(data).to_bytes(4) + data)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._stream.begin(_HEAD)

    def _conclude(self) -> None:
        try:
            if not self._whole:
                raise _Refused(UNAVAILABLE, "etcdserver: the answer broke off; ask again")
            if self._method is _HEALTH:
                self._send({"status": "SERVING" if self._status == 200 else "NOT_SERVING"})
            elif self._status != 200:
                raise self._refusal()
            elif not self._streams:
                self._send(json.loads(self._body))
        except _Refused as refused:
            self._refuse(refused)
            return
        self._finish(OK, "")

    def _refusal(self) -> _Refused:
        try:
            said = json.loads(self._body)
            return _Refused(int(said["code"]), str(said["message"]))
        except (ValueError, TypeError, KeyError):
            text = self._body.decode(errors="replace").strip()
            return _Refused(_CODES_OF_STATUS.get(self._status, INTERNAL), f"HTTP status {self._status}: {text[:500]}")

    def _refuse(self, refused: _Refused) -> None:
        self._finish(refused.code, str(refused))

    def _finish(self, code: int, text: str) -> None:
        """The outcome goes to the client; whoever was asked hears that nobody waits."""
        if self._over:
            return
        self._end(code)
        if self._begun:
            self._stream.end(_outcome(code, text)[2:])
        else:
            self._begun = True
            self._stream.begin(_outcome(code, text), True)

    def _end(self, code: int) -> None:
        self._over = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._door.handled[(*self._name, CODE_NAMES[code] if code < len(CODE_NAMES) else "Unknown")] += 1
        if not self.request.done and self.request.on_close is not None:
            self.request.on_close()

    def drained(self) -> None:
        """The client has caught up."""
        if not self._over and self.request.on_drain is not None:
            self.request.on_drain()

    def gone(self) -> None:
        """The client has hung up, or has its answer."""
        if not self._over:
            self._end(CANCELED)


def _outcome(code: int, text: str) -> Headers:
    """Head and trailers of an answer without messages; the text as the protocol wants it."""
    out = [*_HEAD, (b"grpc-status", str(code).encode())]
    if text:
        out.append((b"grpc-message", quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode()))
    return out
