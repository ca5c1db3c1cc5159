"""The HTTP door of a host: etcd v2, metrics, health and version.

The actor owns the listening sockets; a request becomes an ask to the brain and the reply
is written when it comes.  Nothing is decided here, and nothing blocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from actors.raft_messages import (
    BrainError,
    BrainUp,
    Propose,
    Query,
    Status,
    Unwatch,
    Watch,
    Watched,
    Watching,
)
from brain import tree
from brain.store import OWN_PREFIX, Event, Store, StoreError
from brain.tree import TreeError
from kernel.actor import Actor, handles
from metrics.exporter import CONTENT_TYPE, Exporter

from . import v2
from .http import HttpServer, Request
from .v2 import Form, FormError

logger = logging.getLogger("argosy.door")

#: Seconds a write or a quorum read may take before it is answered with an error.
REQUEST_S_MAX = 5.0
ETCD_VERSION = {"etcdserver": "3.4.23", "etcdcluster": "3.4.0"}
CORS = {
    "Access-Control-Allow-Headers": "accept, content-type, authorization",
    "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Origin": "*",
}


class Gateway(Actor):
    """See the module docstring."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, addresses: list[tuple[str, int]], cluster: str,
        raft_ref: Any, exporter: Exporter, on_open: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        super().__init__()
        self._loop = loop
        self._addresses = addresses
        self._raft = raft_ref
        self._exporter = exporter
        self._on_open = on_open
        self._cluster_id = cluster[:16]
        self._task: Any = None
        self.server = HttpServer(self._dispatch)
        self.requests: dict[str, int] = {}
        self.watches: set[_WatchRequest] = set()

    def on_start(self) -> None:
        """Open the doors."""
        self.system.subscribe(BrainUp, self.actor_ref)
        self._task = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        for host, port in self._addresses:
            for attempt in range(20):
                try:
                    await self.server.listen(host, port)
                    break
                except OSError as error:
                    if attempt == 19 or self.actor_inbox.incarnation == 0:
                        self._on_open(OSError(f"the HTTP door {host}:{port} cannot be opened: {error.strerror}"))
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

    @handles(BrainUp)
    def _on_brain_up(self, _: BrainUp) -> None:
        """The peer lives anew and knows no watch: those that are open go on where they were."""
        for watch in list(self.watches):
            watch.renew()

    # -- dispatch ------------------------------------------------------------------------

    def _dispatch(self, request: Request) -> None:
        path = request.path
        self.requests[request.method] = self.requests.get(request.method, 0) + 1
        if path == "/v2/keys" or path.startswith("/v2/keys/"):
            _KeysRequest(self, request).run()
        elif request.method not in ("GET", "HEAD"):
            _plain(request, 404 if path not in _PAGES else 405, "404 page not found" if path not in _PAGES else "Method Not Allowed")
        elif path in _PAGES:
            _PAGES[path](self, request)
        else:
            _plain(request, 404, "404 page not found")

    def ask(self, message: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        """Ask the brain; the reply comes on the loop thread."""
        future = self._raft.ask(message, block=False)
        future.on_done(lambda f: then(f.value, f.error))

    def headers(self, revision: int, raft: tuple[int, int] | None) -> dict[str, str]:
        """etcd's headers of an answer about keys."""
        out = {**CORS, "X-Etcd-Cluster-Id": self._cluster_id, "X-Etcd-Index": str(revision)}
        if raft is not None:
            out["X-Raft-Index"], out["X-Raft-Term"] = str(raft[0]), str(raft[1])
        return out

    def raft_position(self) -> tuple[int, int, int]:
        """(raft index, term, log time): for headers and TTLs, of this very moment."""
        peer: Any = self._raft._mailbox.actor  # noqa: SLF001 - same thread, read only
        if peer.raft is None:
            return 0, 0, 0
        return peer.raft.log.applied, peer.raft.term, peer.log_time_ms()

    # -- pages ---------------------------------------------------------------------------

    def _metrics(self, request: Request) -> None:
        request.answer(200, self._exporter.render(), CONTENT_TYPE)

    def _version(self, request: Request) -> None:
        request.answer(200, v2.dumps(ETCD_VERSION)[:-1], headers=CORS)

    def _health(self, request: Request) -> None:
        """Healthy when a quorum confirms a read."""

        def done(_: Any, error: BaseException | None) -> None:
            if error is None:
                request.answer(200, b'{"health":"true"}', headers=CORS)
            else:
                request.answer(503, b'{"health":"false"}', headers=CORS)

        self.ask(Query(lambda store: store.revision, True, 2.0), done)

    def _machines(self, request: Request) -> None:
        def done(status: Any, error: BaseException | None) -> None:
            if error is not None:
                _plain(request, 503, str(error))
                return
            urls = sorted(url for _, _, url in status["info"].values() if url)
            request.answer(200, ", ".join(urls).encode(), "text/plain; charset=utf-8", CORS)

        self.ask(Status(), done)

    def _members(self, request: Request) -> None:
        def done(status: Any, error: BaseException | None) -> None:
            if error is not None:
                _plain(request, 503, str(error))
                return
            members = [
                {"id": member[:16], "name": name, "peerURLs": [f"https://{address}"], "clientURLs": [url]}
                for member, (name, address, url) in sorted(status["info"].items())
            ]
            request.answer(200, v2.dumps({"members": members}), headers=CORS)

        self.ask(Status(), done)


_PAGES: dict[str, Callable[[Gateway, Request], None]] = {
    "/metrics": Gateway._metrics,  # noqa: SLF001
    "/version": Gateway._version,  # noqa: SLF001
    "/health": Gateway._health,  # noqa: SLF001
    "/v2/machines": Gateway._machines,  # noqa: SLF001
    "/v2/members": Gateway._members,  # noqa: SLF001
}


def _plain(request: Request, status: int, text: str) -> None:
    headers = {**CORS, "X-Content-Type-Options": "nosniff"} if status == 404 else dict(CORS)
    if status == 405:
        headers["Allow"] = "HEAD,GET,PUT,POST,DELETE"
    request.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8", headers)


class _KeysRequest:
    """One request to ``/v2/keys``."""

    def __init__(self, door: Gateway, request: Request) -> None:
        self.door = door
        self.request = request
        self.path = ""
        self.form: Form = None  # type: ignore[assignment]

    def run(self) -> None:
        request = self.request
        method = request.method
        if method == "OPTIONS":
            request.answer(200, b"", "", CORS)
            return
        if method not in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            _plain(request, 405, "Method Not Allowed")
            return
        try:
            self.path = v2.path_of(request.path)
            content_type = request.headers.get("content-type", "")
            self.form = Form(request.query, request.body, content_type)
            own = (self.path.encode("utf-8", "surrogateescape") + b"/").startswith(OWN_PREFIX)
            if own:
                raise FormError(110, "keys below /_argosy are Argosy's own")
            self.path.encode("utf-8")  # a key of the tree is text
            if method in ("GET", "HEAD"):
                self._get()
            else:
                self._write(v2.command_of(method, self.path, self.form))
        except FormError as error:
            self._refuse(error.number, error.cause, 0)
        except UnicodeEncodeError:
            self._refuse(210, "the key is not UTF-8", 0)

    def _refuse(self, number: int, cause: str, index: int) -> None:
        status = v2.HTTP_STATUS.get(number, 400)
        headers = self.door.headers(index, None)
        self.request.answer(status, v2.dumps(v2.error_json(number, cause, index)), headers=headers)

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, TreeError):
            self._refuse(error.number, error.cause, error.index)
        elif isinstance(error, StoreError) and error.code == "compacted":
            self._refuse(401, str(error), 0)
        elif isinstance(error, (BrainError, StoreError)):
            self._refuse(300, f"{error.code}: {error}", 0)
        else:
            logger.error("request for %s failed", self.path, exc_info=error)
            self._refuse(300, "the brain is not available on this host just now", 0)

    # -- writing -------------------------------------------------------------------------

    def _write(self, command: list[Any]) -> None:
        no_value = self.form.flag("noValueOnSuccess")

        def done(outcome: Any, error: BaseException | None) -> None:
            if error is not None:
                self._fail(error)
                return
            index, term, now_ms = self.door.raft_position()
            body = v2.dumps(v2.outcome_json(outcome, now_ms, no_value))
            headers = self.door.headers(outcome.index, (index, term))
            self.request.answer(v2.outcome_status(outcome), body, headers=headers)

        self.door.ask(Propose(command, REQUEST_S_MAX), done)

    # -- reading -------------------------------------------------------------------------

    def _get(self) -> None:
        form = self.form
        recursive, sort = form.flag("recursive"), form.flag("sorted")
        quorum, wait, stream = form.flag("quorum"), form.flag("wait"), form.flag("stream")
        index = form.number("waitIndex", 203)
        if wait:
            _WatchRequest(self, recursive, stream, index).start()
            return
        path = self.path

        def read(store: Store) -> Any:
            return store.revision, tree.get(store, path, recursive, sort)

        def done(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                self._fail(error)
                return
            revision, node = answer
            applied, term, now_ms = self.door.raft_position()
            body = v2.dumps({"action": "get", "node": v2.node_json(node, now_ms)})
            self.request.answer(200, body, headers=self.door.headers(revision, (applied, term)))

        self.door.ask(Query(read, quorum, REQUEST_S_MAX), done)


class _WatchRequest:
    """A long poll or a stream; ends when the client goes."""

    def __init__(self, keys: _KeysRequest, recursive: bool, stream: bool, index: int) -> None:
        self._keys = keys
        self._door = keys.door
        self._request = keys.request
        self._recursive = recursive
        self._stream = stream
        self._index = index
        self._next = index  # the first revision that was not looked at; 0: from now on
        self._watch = 0
        self._early: list[Event] = []
        self._open = False

    def start(self) -> None:
        self._request.on_close = self._close
        if self._next:
            self._ask(self._watching)
        else:
            self._door.ask(Query(lambda store: store.revision, False, REQUEST_S_MAX), self._from_now)

    def _from_now(self, revision: Any, error: BaseException | None) -> None:
        if error is not None:
            self._keys._fail(error)  # noqa: SLF001 - one request, two halves
            return
        self._next = revision + 1
        self._ask(self._watching)

    def _ask(self, then: Callable[[Any, BaseException | None], None]) -> None:
        low, end = v2.watch_range(self._keys.path, self._recursive)
        self._door.ask(Watch(low, end, self._next, self), then)

    def renew(self) -> None:
        """Watch again, from where the watch that is gone had come to."""

        def renewed(answer: Any, error: BaseException | None) -> None:
            if self._request.done:
                return
            if error is not None:  # what happened meanwhile is not known any more: the client looks anew
                self._request.end()
                self._close()
            else:
                self._watch = answer.watch

        self._ask(renewed)

    def offer(self, message: Watched) -> bool:
        """The brain delivers; False ends the watch."""
        if self._request.done:
            return False
        if not self._open:
            self._early += message.events
            return True
        return self._send(message.events)

    def _watching(self, answer: Any, error: BaseException | None) -> None:
        if isinstance(error, StoreError) and error.code == "compacted":
            self._too_old()
            return
        if error is not None:
            self._keys._fail(error)  # noqa: SLF001 - one request, two halves
            return
        assert isinstance(answer, Watching)
        self._watch = answer.watch
        applied, term, _ = self._door.raft_position()
        self._next = max(self._next, answer.revision + 1)
        self._request.begin(self._door.headers(answer.revision, (applied, term)))
        self._open = True
        self._door.watches.add(self)
        if self._early and not self._send(self._early):
            self._close()

    def _too_old(self) -> None:
        def read(store: Store) -> Any:
            return store.compacted + 1, store.revision

        def done(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                self._keys._fail(error)  # noqa: SLF001
                return
            first, revision = answer
            cause = f"the requested history has been cleared [{first}/{self._index}]"
            self._keys._refuse(401, cause, revision)  # noqa: SLF001

        self._door.ask(Query(read), done)

    def _send(self, events: list[Event]) -> bool:
        _, _, now_ms = self._door.raft_position()
        for event in events:
            self._next = max(self._next, event.revision + 1)
            for shown in v2.watch_events(event, self._keys.path, self._recursive, now_ms):
                if not self._request.chunk(v2.dumps(shown)):
                    return False
                if not self._stream:
                    self._request.end()
                    self._close()
                    return False
        return True

    def _close(self) -> None:
        self._door.watches.discard(self)
        if self._watch:
            self._door._raft.offer(Unwatch(self._watch))  # noqa: SLF001
