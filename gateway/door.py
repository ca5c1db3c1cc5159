"""The HTTP door of a host: etcd v2 and v3, metrics, health and version; and gRPC at the same port.

The actor owns the listening sockets; a request becomes an ask to the brain and the reply
is written when it comes.  Nothing is decided here, and nothing blocks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from actors.raft_messages import BrainUp, Query
from brain import auth
from brain.store import Store
from kernel.actor import Actor, handles
from metrics.exporter import CONTENT_TYPE, Exporter

from . import fleet_door, lock_door, page_door, v2
from .access import Access, hash_password
from .feed import Feed
from .grpc_door import GrpcDoor
from .http import HttpServer, Request
from .members import number_of
from .v2_door import COUNTERS, AdminRequest, KeysRequest
from .v3_door import V3Request
from .v3_messages import STREAMS
from .v3json import lean

logger = logging.getLogger("argosy.door")

#: Seconds a health check waits for a quorum.
HEALTH_S_MAX = 2.0
#: Threads that verify passwords; more would only take the processor from the brain.
PASSWORD_THREADS = 1
ETCD_VERSION = {"etcdserver": "3.4.23", "etcdcluster": "3.4.0"}
CORS = {
    "Access-Control-Allow-Headers": "accept, content-type, authorization",
    "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Origin": "*",
}
#: Requests whose bodies stay open.
STREAMED = frozenset(version + path for version in ("/v3", "/v3beta") for path in STREAMS)
_ADMIN = ("/v2/machines", "/v2/members", "/v2/stats", "/v2/auth")


class Doors(Actor):
    """The listening sockets of a host's doors; what answers is the subclass's."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, addresses: list[tuple[str, int]],
        on_open: Callable[[BaseException | None], None], dispatch: Callable[[Request], None],
    ) -> None:  # fmt: skip
        """``addresses``: each serves HTTP/1.1 and gRPC."""
        super().__init__()
        self._loop = loop
        self._addresses = addresses
        self._on_open = on_open
        self._task: Any = None
        self.server = HttpServer(dispatch, STREAMED)
        self.grpc = GrpcDoor(self.server)
        self.server.streams_of_http2 = self.grpc
        self.requests: dict[str, int] = {}

    def on_start(self) -> None:
        """Open the doors."""
        self._task = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        for host, port in self._addresses:
            for attempt in range(20):
                try:
                    await self.server.listen(host, port)
                    break
                except OSError as error:
                    if attempt == 19 or self.actor_inbox.incarnation == 0:
                        self._on_open(OSError(f"the door {host}:{port} cannot be opened: {error.strerror}"))
                        return
                    await asyncio.sleep(0.1)  # a former life's socket is about to close
        self._on_open(None)

    def on_stop(self) -> None:
        """Close the doors."""
        self.server.close()
        self._task.cancel()

    def on_failure(self, *_: Any) -> None:
        """The next life opens them again."""
        self.on_stop()


class Gateway(Doors):
    """See the module docstring."""

    cors = CORS
    v3_headers = {**CORS, "Grpc-Metadata-Content-Type": "application/grpc"}
    etcd_version = ETCD_VERSION["etcdserver"]
    hash_password = staticmethod(hash_password)

    def __init__(
        self, loop: asyncio.AbstractEventLoop, addresses: list[tuple[str, int]], cluster: str, secure: bool,
        raft_ref: Any, exporter: Exporter, on_open: Callable[[BaseException | None], None], control: Any = None,
    ) -> None:  # fmt: skip
        """``control``: whom operators ask; None where only the brain runs, which has no doors of the fleet."""
        super().__init__(loop, addresses, on_open, self._dispatch)
        self.control = control
        self._raft = raft_ref
        self._exporter = exporter
        self._threads = ThreadPoolExecutor(PASSWORD_THREADS, "passwords")
        self.cluster_id = cluster[:16]
        fixed = {**CORS, "Content-Type": "application/json", "X-Etcd-Cluster-Id": self.cluster_id}
        self._keys_head = "".join(f"{name}: {value}\r\n" for name, value in fixed.items()).encode()
        self.secure = secure
        self.started_ms = int(time.time() * 1000)
        self.feeds: set[Feed] = set()
        self.look = page_door.Look(control, loop.time)
        self.access = Access(lambda: self.store().live.get(auth.KEY), self._elsewhere, time.time)
        self.operations = {name: [0, 0] for name in COUNTERS}  # [done, refused]

    def on_start(self) -> None:
        """Open the doors."""
        super().on_start()
        self.system.subscribe(BrainUp, self.actor_ref)

    def on_stop(self) -> None:
        """Close the doors."""
        super().on_stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @handles(BrainUp)
    def _on_brain_up(self, _: BrainUp) -> None:
        """The peer lives anew and knows no watch: those that are open go on where they were."""
        for feed in list(self.feeds):
            feed.renew()

    # -- dispatch ------------------------------------------------------------------------

    def _dispatch(self, request: Request) -> None:
        path = request.path
        self.requests[request.method] = self.requests.get(request.method, 0) + 1
        if path == "/v2/keys" or path.startswith("/v2/keys/"):
            KeysRequest(self, request).run()
        elif path in ("/v3", "/v3beta") or (path.startswith("/v3") and "//" in path):
            clean = "/".join(["", *filter(None, path.split("/"))]) if "//" in path else path + "/"
            request.answer(301, b"", "", {**CORS, "Location": clean})
        elif path.startswith("/v3/"):
            V3Request(self, request).run(path[3:])
        elif path.startswith("/v3beta/"):
            V3Request(self, request).run(path[7:])
        elif path.startswith(_ADMIN):
            AdminRequest(self, request).run()
        elif self.control is not None and path.startswith(fleet_door.PREFIXES):
            fleet_door.FleetRequest(self, request).run()
        elif self.control is not None and path in lock_door.PATHS:
            lock_door.LockRequest(self, request).run()
        elif self.control is not None and page_door.is_page(path):
            page_door.PageRequest(self, request).run()
        elif path not in _PAGES:
            self.plain(request, 404, "404 page not found")
        elif request.method != "GET" and (request.method, path) != ("HEAD", "/metrics"):
            self.plain(request, 405, "Method Not Allowed", "GET")
        else:
            _PAGES[path](self, request)

    @staticmethod
    def plain(request: Request, status: int, text: str, allow: str = "HEAD,GET,PUT,POST,DELETE") -> None:
        """A line of text; ``allow`` goes with status 405."""
        headers = {**CORS, "X-Content-Type-Options": "nosniff"}
        if status == 405 and allow:
            headers["Allow"] = allow
        request.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8", headers)

    # -- what requests use -----------------------------------------------------------------

    def ask(self, message: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        """Ask the brain; the reply comes on the loop thread."""
        self._raft.ask_back(message, then)

    def tell(self, message: Any) -> None:
        """Tell the brain."""
        self._raft.offer(message)

    def peer(self) -> Any:
        """The peer itself: same thread, read only."""
        return self._raft._mailbox.actor  # noqa: SLF001

    def store(self) -> Store:
        """This host's copy of the store: read only, for what needs no promise."""
        return self.peer().store  # type: ignore[no-any-return]

    def count(self, name: str, done: bool) -> None:
        """One operation of v2."""
        self.operations[name][not done] += 1

    def _elsewhere(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                return
            if future.exception() is not None:
                logger.error("work for the door failed", exc_info=future.exception())
            then(None if future.exception() else future.result())

        self._loop.run_in_executor(self._threads, work).add_done_callback(done)

    def headers(self, revision: int, raft: tuple[int, int] | None) -> dict[str, str]:
        """etcd v2's headers of an answer about keys."""
        out = {**CORS, "X-Etcd-Cluster-Id": self.cluster_id, "X-Etcd-Index": str(revision)}
        if raft is not None:
            out["X-Raft-Index"], out["X-Raft-Term"] = str(raft[0]), str(raft[1])
        return out

    def keys_head(self, revision: int, index: int, term: int) -> bytes:
        """The same with all of them, rendered."""
        return b"%bX-Etcd-Index: %d\r\nX-Raft-Index: %d\r\nX-Raft-Term: %d\r\n" % (
            self._keys_head, revision, index, term,
        )  # fmt: skip

    def v3_header(self, revision: int | None) -> dict[str, Any]:
        """etcd v3's header of an answer; ``revision`` None is the store's now."""
        peer = self.peer()
        term = peer.raft.term if peer.raft is not None else 0
        at = peer.store.revision if revision is None else revision
        return lean(
            cluster_id=number_of(self.cluster_id), member_id=number_of(peer.machine), revision=at, raft_term=term
        )

    def raft_position(self) -> tuple[int, int, int]:
        """(raft index, term, log time): for headers and TTLs, of this very moment."""
        peer = self.peer()
        if peer.raft is None:
            return 0, 0, 0
        return peer.raft.log.applied, peer.raft.term, peer.log_time_ms()

    # -- pages ---------------------------------------------------------------------------

    def _metrics(self, request: Request) -> None:
        request.answer(200, self._exporter.render(), CONTENT_TYPE)

    def _version(self, request: Request) -> None:
        request.answer(200, v2.dumps(ETCD_VERSION)[:-1], headers=CORS)

    def _health(self, request: Request) -> None:
        """Healthy when a quorum confirms a read, and there is room to write."""

        def done(full: Any, error: BaseException | None) -> None:
            if error is None and not full:
                request.answer(200, b'{"health":"true"}', "text/plain; charset=utf-8", CORS)
            else:
                request.answer(503, b'{"health":"false"}', "text/plain; charset=utf-8", CORS)

        quota = self.peer().settings.quota_bytes
        self.ask(Query(lambda store: store.size > quota, True, HEALTH_S_MAX), done)


_PAGES: dict[str, Callable[[Gateway, Request], None]] = {
    "/metrics": Gateway._metrics,  # noqa: SLF001
    "/version": Gateway._version,  # noqa: SLF001
    "/health": Gateway._health,  # noqa: SLF001
}
