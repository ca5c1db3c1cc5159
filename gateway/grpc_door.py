"""The gRPC door of a host: etcd's v3 API for clients that speak protobuf, as etcdctl does.

A call is the same request as at the JSON gateway, in another spelling: this door translates
and decides nothing.  So a machine without a vote serves it as well, through its own HTTP door.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import httptools
from google.protobuf.message import DecodeError, Message

from kernel.actor import Actor

from . import v3
from .http import STREAM_BYTES_FULL, UNREAD_BYTES_MAX, HttpServer, Request
from .protobuf import CLASSES, from_document, to_document
from .splice import FAR
from .v3_messages import SERVICES, STREAMED, STREAMS, Method

logger = logging.getLogger("argosy.grpc")

#: Bytes of one request, as etcd has it, and of what is read at all before it is refused.
REQUEST_BYTES_MAX, RECEIVE_BYTES_MAX = 1536 * 1024, 2 * 1024 * 1024
#: Calls that may be under way at one door, watches and other streams among them.
CALLS_MAX = 20_000
#: Milliseconds between two pings of a client that has nothing to say (etcd's grpc-keepalive-min-time).
PING_MS_MIN = 5_000
#: Attempts to open the door, a tenth of a second apart: a former life's may be about to close.
ATTEMPTS = 20
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two hosts on one port would each get some of the clients
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_MS_MIN),
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}
#: gRPC codes of answers that name none, by their HTTP status.
_CODES_OF_STATUS = {403: 7, 404: 12, 413: 8, 503: 14}
#: Opens a watch stream before there is a watch: one that may not be is canceled then, as etcd does it.
_PRELUDE = b'{"cancel_request":{"watch_id":"-1"}}'


class _Refused(Exception):
    """A call ends without what was asked: gRPC code and sentence."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def _document(method: Method, message: bytes) -> bytes:
    """A request as the JSON gateway takes it; raises :class:`_Refused`."""
    if len(message) > REQUEST_BYTES_MAX:
        raise _Refused(*v3.ERRORS["too_large"])
    try:
        document = to_document(CLASSES[method.request].FromString(message))
    except DecodeError as error:
        raise _Refused(13, f"the message cannot be read: {error}") from None
    return json.dumps(document, separators=(",", ":")).encode()


class _Call:
    """One gRPC call in the place of the connection that a :class:`Request` has."""

    user = -1

    def __init__(self, server: HttpServer, path: str, headers: dict[bytes, bytes], local: bool, streamed: bool) -> None:
        """``path``: of the HTTP door; ``streamed``: whether the answer is a line for each message."""
        self.local = local
        self.left = False  # the client wants no more
        self.refused: _Refused | None = None  # what it said cannot be taken
        self.status = 0
        self._server = server
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._over = False
        self._whole = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._streamed = streamed
        self.request = Request(self)  # type: ignore[arg-type]
        self._head = (path, headers)

    def begin(self, body: bytes, is_open: bool = False, method: str = "POST") -> None:
        """Hand it to the door."""
        path, headers = self._head
        self.request.take_over(method, path, "", headers, body, is_open, True)
        self._server.take(self.request)
        self._hand()

    # -- as a connection -----------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the client is behind."""
        return self._size > STREAM_BYTES_FULL

    def write(self, request: Request, data: bytes) -> bool:
        """A part of the answer."""
        if self._over:
            return False
        self._parser.feed_data(data)
        return True

    def finish(self, request: Request, data: bytes) -> None:
        """The last part."""
        if not self._over:
            if data:
                self._parser.feed_data(data)
            self._over = True
            self._news.set()
            self._room.set()

    def hold(self, request: Request, waits: bool) -> None:
        """Whether messages of the client are kept for now."""
        request.held = waits
        if not waits:
            self._hand()

    def on_headers_complete(self) -> None:
        """The parser's."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """The parser's."""
        self._body += body
        if self._streamed and self.status == 200:
            *lines, rest = self._body.split(b"\n")
            self._lines.extend(map(bytes, filter(None, lines)))
            self._size += sum(map(len, lines))
            self._body = rest
            self._news.set()

    def on_message_complete(self) -> None:
        """The parser's: the answer did not break off."""
        self._whole = True

    # -- for the two ends of the call --------------------------------------------------------------

    def _hand(self) -> None:
        request = self.request
        if request.held or request.on_body is None or request.unread is None:
            return
        data, more = bytes(request.unread), request.open
        if data or not more:
            request.unread.clear()
            self._room.set()
            self._server.hand(request, data, more)

    async def feed(self, data: bytes, more: bool = True) -> None:
        """One more message of the client, when there is room for it."""
        request = self.request
        if len(request.unread or b"") > UNREAD_BYTES_MAX // 2:
            self._room.clear()
            await self._room.wait()
        if self._over or request.unread is None:
            return
        request.unread += data
        request.open = more
        self._hand()

    async def line(self) -> bytes | None:
        """The next message of a stream; None at its end."""
        while not self._lines and not self._over:
            self._news.clear()
            await self._news.wait()
        if not self._lines:
            return None
        line = self._lines.popleft()
        was_full = self.full
        self._size -= len(line)
        if was_full and not self.full and self.request.on_drain is not None:
            self.request.on_drain()
        return line

    async def answer(self) -> bytes:
        """The whole answer, or what there is of one that was refused or broke off."""
        while not self._over:
            self._news.clear()
            await self._news.wait()
        return bytes(self._body)

    def check(self) -> None:
        """Raise what an answer says that is none, or that broke off."""
        if not self._whole:
            raise _Refused(14, "etcdserver: the answer broke off; ask again")
        if self.status == 200:
            return
        try:
            said = json.loads(self._body)
            refused = _Refused(int(said["code"]), str(said["message"]))
        except (ValueError, TypeError, KeyError):
            text = self._body.decode(errors="replace").strip()
            refused = _Refused(_CODES_OF_STATUS.get(self.status, 13), f"HTTP status {self.status}: {text[:500]}")
        raise refused

    def close(self) -> None:
        """The client is gone, or has its answer."""
        self.left = True
        if not self._over:
            self._over = True
            self._news.set()
            if self.request.on_close is not None:
                self.request.on_close()


class GrpcDoor(Actor):
    """See the module docstring; a child of the HTTP door, with which it ends."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, addresses: list[tuple[str, int]], server: HttpServer,
        on_open: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        """``server``: what answers at the HTTP door; it hands connections that begin with HTTP/2 to this one."""
        super().__init__()
        self._loop = loop
        self._addresses = addresses
        self._http = server
        self._on_open = on_open
        self._grpc: Any = None
        self._task: asyncio.Task[None] | None = None
        self._name = f"argosy-grpc-{secrets.token_hex(8)}"
        #: Calls by (service, method), and those that ended by (service, method, code).
        self.started: Counter[tuple[str, str]] = Counter()
        self.handled: Counter[tuple[str, str, str]] = Counter()

    def on_start(self) -> None:
        """Open the door."""
        self._task = self._loop.create_task(self._serve())

    def on_stop(self) -> None:
        """Close it; the calls that are under way end."""
        self._http.http2 = ""
        if self._task is not None:
            self._task.cancel()

    def on_failure(self, *_: Any) -> None:
        """The next life opens it again."""
        self.on_stop()

    async def _serve(self) -> None:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)
        for service, methods in SERVICES.items():
            handlers = {name: self._handler(method, (service, name)) for name, method in methods.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        health = grpc.unary_unary_rpc_method_handler(
            self._health, None, CLASSES["HealthCheckResponse"].SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),))
        try:
            server.add_insecure_port(f"unix-abstract:{self._name}")
            for host, port in self._addresses:
                await self._bind(server, host, port)
            await server.start()
        except (RuntimeError, OSError) as error:
            self._on_open(OSError(f"the gRPC door cannot be opened: {error}"))
            return
        self._http.http2 = f"\0{self._name}"
        self._on_open(None)
        try:
            await server.wait_for_termination()
        finally:
            await server.stop(None)

    async def _bind(self, server: Any, host: str, port: int) -> None:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for attempt in range(ATTEMPTS):
            try:
                server.add_insecure_port(where)
                return
            except RuntimeError:
                if attempt == ATTEMPTS - 1 or self.actor_inbox.incarnation == 0:
                    raise OSError(f"{where} is taken, or no address of this machine") from None
                await asyncio.sleep(0.1)

    def _handler(self, method: Method, name: tuple[str, str]) -> Any:
        serve: Callable[..., Awaitable[Any]]
        if method.path in STREAMS:
            serve, made = self._both, grpc.stream_stream_rpc_method_handler
        elif method.path in STREAMED:
            serve, made = self._many, grpc.unary_stream_rpc_method_handler
        else:
            serve, made = self._one, grpc.unary_unary_rpc_method_handler

        async def counted(asked: Any, context: Any) -> Any:
            self.started[name] += 1
            code = "OK"
            try:
                return await serve(method, asked, context)
            except asyncio.CancelledError:
                code = "Canceled"
                raise
            except _Refused as refused:
                status = _CODES.get(refused.code, grpc.StatusCode.UNKNOWN)
                code = "".join(part.capitalize() for part in status.name.split("_"))  # as etcd's metrics have it
                await context.abort(status, str(refused))
            except BaseException:
                code = "Unknown"
                raise
            finally:
                self.handled[(*name, code)] += 1

        return made(counted, None, CLASSES[method.response].SerializeToString)

    # -- calls -----------------------------------------------------------------------------------

    def _call(self, path: str, context: Any, below: str = "/v3") -> _Call:
        given = dict(context.invocation_metadata() or ())
        token = given.get("token") or given.get("authorization") or ""
        headers = {b"authorization": token.encode() if isinstance(token, str) else bytes(token)} if token else {}
        return _Call(self._http, below + path, headers, _is_local(context.peer()), path in STREAMED)

    async def _one(self, method: Method, message: bytes, context: Any) -> Message:
        call = self._call(method.path, context)
        try:
            call.begin(_document(method, message))
            body = await call.answer()
        finally:
            call.close()
        call.check()
        return from_document(method.response, json.loads(body))

    async def _many(self, method: Method, message: bytes, context: Any) -> None:
        call = self._call(method.path, context)
        try:
            call.begin(_document(method, message))
            await self._pour(method, call, context)
        finally:
            call.close()

    async def _both(self, method: Method, messages: AsyncIterator[bytes], context: Any) -> None:
        call = self._call(method.path, context)
        reader = self._loop.create_task(self._read(method, call, messages))
        try:
            call.begin(_PRELUDE if method.path == "/watch" else b"", is_open=True)
            await self._pour(method, call, context)
        finally:
            reader.cancel()
            call.close()

    async def _read(self, method: Method, call: _Call, messages: AsyncIterator[bytes]) -> None:
        try:
            async for message in messages:
                await call.feed(_document(method, message))
        except _Refused as refused:
            call.refused = refused
            call.close()
            return
        if method.path == "/watch":
            call.close()  # etcd ends a watch stream with the client's half of it
        else:
            await call.feed(b"", more=False)

    async def _pour(self, method: Method, call: _Call, context: Any) -> None:
        """Every message of the answer goes to the client, as it takes them."""
        while (line := await call.line()) is not None:
            said = json.loads(line)
            if "error" in said:
                raise _Refused(int(said["error"]["grpc_code"]), str(said["error"]["message"]))
            await context.write(from_document(method.response, said["result"]))
        if call.refused is not None:
            raise call.refused
        if not call.left:
            call.check()

    async def _health(self, _: bytes, context: Any) -> Message:
        """``grpc.health.v1.Health/Check``: as ``/health`` says."""
        call = self._call("/health", context, below="")
        try:
            call.begin(b"", method="GET")
            await call.answer()
        finally:
            call.close()
        return CLASSES["HealthCheckResponse"](status=1 if call.status == 200 else 2)


def _is_local(peer: str) -> bool:
    """Whether a client is of this host, by its address as gRPC spells it."""
    kind, _, where = unquote(peer).partition(":")
    return FAR not in where if kind.startswith("unix") else where.startswith(("127.", "[::1]", "[::ffff:127."))
