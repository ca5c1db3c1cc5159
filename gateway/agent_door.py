"""The HTTP door of a machine without a vote: the same addresses and answers, given by a voter.

Its own metrics are answered here.  When a voter is gone before it answered a read, another is
asked; a write is refused then, for nobody knows whether it was done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from metrics.exporter import CONTENT_TYPE, Exporter
from transport.router import BULK, Router

from .door import Doors
from .http import Request
from .relay import WAIT_S_MAX, RelayBody, RelayClose, RelayMore, RelayOpen

#: Seconds beyond its wait that a voter may take for an answer.
GRACE_S = 3.0
#: Voters that are asked for one read before it is refused.
TRIES_MAX = 3
#: Headers that are about one connection, not about the request.
_OF_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"te", b"trailer", b"upgrade"})


class AgentDoor(Doors):
    """See the module docstring."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, addresses: list[tuple[str, int]], agent_ref: Any, router: Router,
        exporter: Exporter, on_open: Callable[[BaseException | None], None],
    ) -> None:  # fmt: skip
        super().__init__(loop, addresses, on_open, self._dispatch)
        self._agent = agent_ref
        self.router = router
        self._exporter = exporter

    def _dispatch(self, request: Request) -> None:
        self.requests[request.method] = self.requests.get(request.method, 0) + 1
        if request.path == "/metrics" and request.method in ("GET", "HEAD"):
            request.answer(200, self._exporter.render(), CONTENT_TYPE)
        else:
            _Passage(self, request).begin()

    def voters(self) -> list[str]:
        """Ids of the voters, the one that is asked now first."""
        peer = self._agent._mailbox.actor  # noqa: SLF001 - read only, of the same thread
        if peer is None:
            return []
        return sorted(peer.voters, key=lambda voter: (voter != peer.asks, voter))


class _Passage:
    """One request, on its way to a voter and back."""

    def __init__(self, door: AgentDoor, request: Request) -> None:
        self._door = door
        self._request = request
        self._voters = door.voters()[:TRIES_MAX]
        self._number = 0
        self._kept: list[tuple[bytes, bool]] = []  # of the body, until the voter has the request

    def begin(self) -> None:
        """Hand it to a voter."""
        request = self._request
        request.on_close = self._closed
        if request.unread is not None:
            request.on_body = self._on_body
        self._try()

    def _try(self) -> None:
        request = self._request
        if not self._voters:
            request.answer(503, b'{"message":"no voter of the cluster answers"}\n')
            return
        headers = [[name, value] for name, value in request.all_headers().items() if name not in _OF_CONNECTION]
        message = RelayOpen(
            request.method, request.path, request.query, headers, request.body, request.unread is not None, request.keep_alive
        )
        self._ask(message, WAIT_S_MAX + GRACE_S)

    def _ask(self, message: Any, timeout: float) -> None:
        future = self._door.router.ask(self._voters[0], BULK, "relay", message, timeout)
        future.on_done(lambda f: self._answered(f.value if f.error is None else None, f.error))

    def _answered(self, value: Any, error: BaseException | None) -> None:
        request = self._request
        if request.done:
            return
        if error is not None or type(value) is not list or len(value) != 3:
            self._failed(error)
            return
        is_first = not self._number
        self._number, data, is_all = value
        if is_first:
            kept, self._kept = self._kept, []
            for piece, more in kept:
                self._send(RelayBody(self._number, piece, more))
        if data or is_all:
            request.pass_on(data, is_all)
        if is_all:
            return
        if request.full:
            request.on_drain = self._more
        else:
            self._more()

    def _more(self) -> None:
        self._request.on_drain = None
        self._ask(RelayMore(self._number, int(WAIT_S_MAX * 1000)), WAIT_S_MAX + GRACE_S)

    def _failed(self, error: BaseException | None) -> None:
        request = self._request
        if request.begun or self._number:
            request.give_up()
        elif request.method in ("GET", "HEAD") and len(self._voters) > 1:
            self._voters = self._voters[1:]
            self._try()
        else:
            request.answer(503, f'{{"message":"the voter did not answer: {type(error).__name__}"}}\n'.encode())

    def _send(self, message: Any) -> None:
        self._door.router.ask(self._voters[0], BULK, "relay", message, GRACE_S)  # what it answers is of no consequence

    def _on_body(self, data: bytes, more: bool) -> None:
        if self._number:
            self._send(RelayBody(self._number, data, more))
        else:
            self._kept.append((data, more))

    def _closed(self) -> None:
        if self._number:
            self._send(RelayClose(self._number))
