"""HTTP requests of machines without a vote: a voter's door answers them over the transport.

A request travels whole, with its head; the answer comes back as the bytes that the door
wrote, piece by piece as the agent asks for them.  To the door such a request is one from
elsewhere: it has no user of this host, and none of the rights of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernel.actor import Actor, Timer, handles
from kernel.mailbox import Promise
from transport.codec import wire
from transport.router import FromAgent

from .http import BODY_BYTES_MAX, STREAM_BYTES_FULL, STREAM_BYTES_MAX, UNREAD_BYTES_MAX, HttpServer, Request

#: Requests of agents that may be under way on one voter, and of one agent.
RELAYED_MAX, RELAYED_EACH_MAX = 20_000, 2_000
#: Bytes of an answer that are handed over at once.
PIECE_BYTES_MAX = 4 * 1024 * 1024
#: Longest wait for the next piece, and after how many seconds without a question a request is given up.
WAIT_S_MAX, ABANDONED_S = 20.0, 40.0


class RelayError(Exception):
    """A request of an agent is not taken; ``code`` is stable."""

    code = "relay"


@wire(45)
@dataclass(frozen=True, slots=True)
class RelayOpen:
    """Ask: answer an HTTP request.  Answer: ``[number, bytes, whether that is all]``.

    ``headers``: pairs of bytes, names in lower case; ``is_open``: more of the body follows.
    """

    method: str
    path: str
    query: str
    headers: list[Any]
    body: bytes
    is_open: bool
    keep_alive: bool


@wire(46)
@dataclass(frozen=True, slots=True)
class RelayMore:
    """Ask: the next piece of an answer, which may take ``wait_ms``.  Answer as of :class:`RelayOpen`."""

    number: int
    wait_ms: int


@wire(47)
@dataclass(frozen=True, slots=True)
class RelayBody:
    """Ask: take the next piece of a request's body; ``more``: others follow."""

    number: int
    data: bytes
    more: bool


@wire(48)
@dataclass(frozen=True, slots=True)
class RelayClose:
    """Ask: give it up, the client is gone."""

    number: int


class _Far:
    """What a request takes for its connection: keeps what is written until the agent fetches it."""

    local = False
    user = -1

    def __init__(self, relay: Relay, agent: str, number: int) -> None:
        self._relay = relay
        self.agent = agent
        self.number = number
        self.request: Request | None = None
        self.waiting = bytearray()
        self.is_over = False
        self.asker: Promise | None = None
        self.patience: Timer | None = None
        self.used = 0.0

    @property
    def full(self) -> bool:
        return len(self.waiting) > STREAM_BYTES_FULL

    def write(self, request: Request, data: bytes) -> bool:
        """A part of the answer."""
        if self.is_over:
            return False
        if len(self.waiting) > STREAM_BYTES_MAX:
            self._relay.drop(self)
            return False
        self.waiting += data
        self.answer()
        return True

    def finish(self, request: Request, data: bytes) -> None:
        """The last part."""
        if not self.is_over:
            self.waiting += data
            self.is_over = True
            self.answer()

    def hold(self, request: Request, waits: bool) -> None:
        """Whether pieces of the body are kept for now."""
        request.held = waits
        if not waits:
            self._relay.hand(self)

    def answer(self) -> None:
        """Whoever asks gets what there is."""
        asker, self.asker = self.asker, None
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None
        if asker is None:
            return
        piece = bytes(self.waiting[:PIECE_BYTES_MAX])
        del self.waiting[:PIECE_BYTES_MAX]
        is_all = self.is_over and not self.waiting
        asker.reply([self.number, piece, is_all])
        if is_all:
            self._relay.forget(self)
        elif self.request is not None and self.request.on_drain is not None and not self.full:
            self.request.on_drain()


class Relay(Actor):
    """See the module docstring; beside the door of a voter."""

    def __init__(self, server: Callable[[], HttpServer], is_agent: Callable[[str], bool]) -> None:
        """``server``: gives the door's; ``is_agent``: whether a machine is one of this cluster (still)."""
        super().__init__()
        self._server = server
        self._is_agent = is_agent
        self._open: dict[int, _Far] = {}
        self._number = 0

    def on_start(self) -> None:
        """Give up what nobody asks for any more."""
        self._number = self.actor_inbox.incarnation << 32
        self.every(ABANDONED_S / 4, self._give_up)

    @handles(FromAgent)
    def _from_agent(self, envelope: FromAgent) -> Any:
        message, agent = envelope.message, envelope.agent
        if not self._is_agent(agent):
            raise RelayError(f"machine {agent} is no agent of this cluster")
        if isinstance(message, RelayOpen):
            return self._begin(agent, message)
        far = self._open.get(message.number) if isinstance(message, RelayMore | RelayBody | RelayClose) else None
        if far is None or far.agent != agent:
            raise RelayError("no request of this agent has that number")
        far.used = self.now()
        if isinstance(message, RelayMore):
            return self._ask(far, message.wait_ms / 1000)
        if isinstance(message, RelayBody):
            self._take(far, message)
        else:
            self.drop(far)
        return None

    def _begin(self, agent: str, message: RelayOpen) -> Promise:
        if len(self._open) >= RELAYED_MAX or sum(far.agent == agent for far in self._open.values()) >= RELAYED_EACH_MAX:
            raise RelayError(f"relayed_max: {RELAYED_EACH_MAX} requests of one agent, {RELAYED_MAX} of all")
        texts = (message.method, message.path, message.query)
        pairs = [tuple(pair) for pair in message.headers]
        if not all(type(text) is str for text in texts) or type(message.body) is not bytes:
            raise RelayError("a request has a method, a path, a query and a body")
        if len(message.body) > BODY_BYTES_MAX or not all(len(p) == 2 and type(p[0]) is type(p[1]) is bytes for p in pairs):
            raise RelayError(f"body_bytes_max: {BODY_BYTES_MAX}; headers are pairs of bytes")
        self._number += 1
        far = self._open[self._number] = _Far(self, agent, self._number)
        far.used = self.now()
        request = far.request = Request(far)  # type: ignore[arg-type]
        request.take_over(*texts, dict(pairs), message.body, bool(message.is_open), bool(message.keep_alive))
        # an open body says nothing before its first piece, which comes only when the agent knows the number
        promise = self._ask(far, 0.0 if message.is_open else WAIT_S_MAX)
        self._server().take(request)
        self.hand(far)
        return promise

    def _ask(self, far: _Far, wait: float) -> Promise:
        far.answer()  # of two questions only the later counts
        promise = far.asker = Promise()
        if far.waiting or far.is_over:
            far.answer()
        else:
            far.patience = self.after(min(max(wait, 0.0), WAIT_S_MAX), far.answer)
        return promise

    def _take(self, far: _Far, message: RelayBody) -> None:
        request = far.request
        if request is None or request.unread is None or not request.open or type(message.data) is not bytes:
            return
        request.unread += message.data
        request.open = bool(message.more)
        if len(request.unread) > UNREAD_BYTES_MAX:
            self.drop(far)
        else:
            self.hand(far)

    def hand(self, far: _Far) -> None:
        """What came of an open body goes to whoever answers."""
        request = far.request
        if request is None or request.held or request.on_body is None or request.unread is None:
            return
        data, more = bytes(request.unread), request.open
        if data or not more:
            request.unread.clear()
            self._server().hand(request, data, more)

    def drop(self, far: _Far) -> None:
        """Nobody reads the answer any more."""
        far.is_over = True
        far.waiting.clear()
        self.forget(far)
        if far.asker is not None:
            far.asker.fail(RelayError("the answer was not fetched in time"))
        if far.request is not None and far.request.on_close is not None:
            far.request.on_close()

    def forget(self, far: _Far) -> None:
        """It is answered."""
        self._open.pop(far.number, None)

    def _give_up(self) -> None:
        for far in list(self._open.values()):
            if far.asker is None and self.now() - far.used > ABANDONED_S:
                self.drop(far)
