"""The desk: where machines without a vote get what they need of the brain.

Every voter has one.  Agents ask for commits, reads, keepalives and for what happened since
a revision.  What the desk remembers of an agent only spares it a look at history: any voter may
answer the next question.  What an agent may see and change is its own: see ``agent_rights.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from brain.store import Event, Item, Store
from kernel.actor import Timer, handles
from kernel.mailbox import Promise
from transport.codec import wire
from transport.router import FromAgent

from . import agent_rights
from .agent_rights import NotAllowed, UnknownAgent
from .brain_client import AGENTS, BrainActor
from .raft_messages import (
    OVERLOADED,
    BrainError,
    BrainUp,
    KeepAlive,
    Propose,
    Query,
    Range,
    Status,
    TimeToLive,
    Unwatch,
    Watch,
    Watched,
    Watching,
)

#: Bytes of keys and values in one answer; an agent asks again for the rest.
ANSWER_BYTES_MAX = 2 * 1024 * 1024
#: Keys in one answer.
ANSWER_KEYS_MAX = 10_000
#: Longest wait of one question for events, in seconds.
WAIT_S_MAX = 30.0
#: Ranges that are followed here at once, by all agents.
FOLLOWS_MAX = 50_000
#: Events that are kept for one who does not fetch them, and seconds after which a range is not followed any more.
NEWS_MAX, UNUSED_S = 2_000, 60.0
#: Revisions of history that are looked through for one question: who lacks more reads its range anew.
BEHIND_MAX = 1_000


@wire(40)
@dataclass(frozen=True, slots=True)
class AgentPropose:
    """Ask: commit a command of an agent.  Answer: its result."""

    command: list[Any]
    timeout_ms: int


@wire(41)
@dataclass(frozen=True, slots=True)
class AgentRange:
    """Ask: keys as they are now, or as they were.  Answer: ``[revision, items, more]``; ``items`` as :func:`packed`."""

    key: bytes
    end: bytes | None
    revision: int


@wire(42)
@dataclass(frozen=True, slots=True)
class AgentFollow:
    """Ask: what happens to a range from a revision on, as soon as something does.

    ``watch``: the agent's own number for it, for several may follow one range.  Answer: a list of ``[revision, [[key, item or None], ...]]``, empty if nothing did in time.
    """

    watch: int
    key: bytes
    end: bytes | None
    start: int
    wait_ms: int


@wire(43)
@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Ask: the voter's status (see :class:`Status`); also where the voters are."""


def packed(key: bytes, item: Item | None) -> list[Any]:
    """A key's version for the wire."""
    return [key, list(item) if item is not None else None]


def unpacked(fields: Any) -> tuple[bytes, Item | None]:
    """The reverse; raises ``ValueError``."""
    key, item = fields
    if type(key) is not bytes or (item is not None and (type(item) is not list or len(item) != len(Item._fields))):
        raise ValueError("not a key and its version")
    return key, Item(*item) if item is not None else None


@dataclass(slots=True)
class _Follow:
    """What an agent follows: kept from one question to the next."""

    range: tuple[bytes, bytes | None]
    since: int  # what happened from this revision on is known here
    used: float
    watch: int = 0  # 0 while it is being made
    news: list[Event] = field(default_factory=list)  # what the agent did not confirm yet
    asker: Promise | None = None
    timer: Timer | None = None


def is_known(raft_ref: Any, agent: str) -> bool:
    """Whether a machine is an agent of this cluster, as far as this host's peer has heard."""
    peer = raft_ref._mailbox.actor  # noqa: SLF001 - read only, of the same thread
    return peer is not None and AGENTS + agent.encode() in peer.store.live


class Desk(BrainActor):
    """See the module docstring."""

    def __init__(self, raft_ref: Any) -> None:
        super().__init__(raft_ref)
        self._known: Any = None
        self._follows: dict[tuple[str, int], _Follow] = {}
        self._by_watch: dict[int, _Follow] = {}
        self._early_news: dict[int, list[Event]] = {}
        self._starting = 0
        self.asked: dict[str, int] = {}

    def on_start(self) -> None:
        """Know who the agents are."""
        self._known = self.mirror(AGENTS, lambda items: None, lambda *_: None)
        self.every(UNUSED_S / 4, self._end_unused)

    @handles(FromAgent)
    def _from_agent(self, envelope: FromAgent) -> Any:
        agent, message = envelope.agent, envelope.message
        serve = _SERVES.get(type(message))
        if serve is None:
            raise NotAllowed(f"an agent does not ask for {type(message).__name__}")
        kind = type(message).__name__
        self.asked[kind] = self.asked.get(kind, 0) + 1
        if AGENTS + agent.encode() in self._known.items:
            return serve(self, agent, message)
        promise = Promise()  # it may have joined a moment ago

        def have(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            elif not answer[1]:
                promise.fail(UnknownAgent(f"machine {agent} is no agent of this cluster"))
            else:
                try:
                    value = serve(self, agent, message)
                except Exception as refusal:  # noqa: BLE001 - the asker must hear of it
                    promise.fail(refusal)
                    return
                if isinstance(value, Promise):
                    value.chain(promise)
                else:
                    promise.reply(value)

        self.ask_then(self.raft_ref, Range(AGENTS + agent.encode(), linearizable=True), 6.0, have)
        return promise

    def _relay(self, message: Any, timeout: float) -> Promise:
        promise = Promise()

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                promise.reply(value)

        self.ask_then(self.raft_ref, message, timeout, done)
        return promise

    def _propose(self, agent: str, message: AgentPropose) -> Promise:
        known = self._known.items.get(AGENTS + agent.encode())
        agent_rights.check_command(agent, json.loads(known.value)["name"] if known is not None else "", message.command)
        timeout = min(max(message.timeout_ms, 100), 30_000) / 1000
        return self._relay(Propose(message.command, timeout), timeout + 1.0)

    def _range(self, agent: str, message: AgentRange) -> Promise:
        agent_rights.check_range(agent, message.key, message.end)
        guard = agent_rights.secret_named(message.key)

        def read(store: Store) -> Any:
            if guard and not agent_rights.uses_secret(store, agent, guard):
                raise NotAllowed(f"no unit on machine {agent} uses the secret {guard}")
            revision = message.revision or store.revision
            items: list[Any] = []
            size = 0
            for key, item in store.range(message.key, message.end, message.revision, ANSWER_KEYS_MAX + 1):
                size += len(key) + len(item.value)
                if items and (size > ANSWER_BYTES_MAX or len(items) == ANSWER_KEYS_MAX):
                    return [revision, items, True]
                items.append(packed(key, item))
            return [revision, items, False]

        return self._relay(Query(read, linearizable=True), 6.0)

    def _keep_alive(self, _: str, message: KeepAlive) -> Promise:
        return self._relay(message, 3.0)

    def _time_to_live(self, _: str, message: TimeToLive) -> Promise:
        return self._relay(message, 3.0)

    def _status(self, _: str, message: AgentStatus) -> Promise:
        return self._relay(Status(), 3.0)

    # -- events ----------------------------------------------------------------------------------

    def _follow(self, agent: str, message: AgentFollow) -> Promise:
        agent_rights.check_range(agent, message.key, message.end)
        key = (agent, message.watch)
        follow = self._follows.get(key)
        if follow is not None and (follow.since > message.start or follow.range != (message.key, message.end)):
            self._end(key)
            follow = None
        if follow is None:
            if len(self._follows) >= FOLLOWS_MAX:
                raise NotAllowed(f"follows_max: {FOLLOWS_MAX} ranges are followed here already")
            follow = self._follows[key] = _Follow((message.key, message.end), message.start, self.now())
            self._begin(key, follow, message)
        self._answer(follow)  # of two questions only the later counts
        follow.used = self.now()
        promise = follow.asker = Promise()
        follow.since = message.start
        follow.news = [event for event in follow.news if event.revision >= message.start]
        if follow.news:
            self._answer(follow)
        else:
            wait = min(max(message.wait_ms, 0) / 1000, WAIT_S_MAX)
            follow.timer = self.after(wait, lambda: self._answer(follow))
        return promise

    def _begin(self, key: tuple[str, int], follow: _Follow, message: AgentFollow) -> None:
        self._starting += 1

        def watching(answer: Any, error: BaseException | None) -> None:
            self._starting -= 1
            early = self._early_news
            if not self._starting:
                self._early_news = {}
            if self._follows.get(key) is not follow:
                if error is None:
                    self.raft_ref.offer(Unwatch(answer.watch))
                return
            if error is not None:
                self._end(key, error)
                return
            assert isinstance(answer, Watching)
            follow.watch = answer.watch
            self._by_watch[answer.watch] = follow
            self._add(follow, early.pop(answer.watch, []))

        start = Watch(message.key, message.end, message.start, self.actor_ref, behind_max=BEHIND_MAX)
        self.ask_then(self.raft_ref, start, 5.0, watching)

    @handles(Watched)
    def _on_watched(self, message: Watched) -> None:
        if message.watch in self._by_watch:
            self._add(self._by_watch[message.watch], message.events)
        elif message.watch in self.mirrors:
            self.mirrors[message.watch].take(message.events)
        else:
            if self._starting:  # what came before the watch's number
                self._early_news.setdefault(message.watch, []).extend(message.events)
            if self.watches_starting or not self._starting:
                super()._on_watched(message)

    def _add(self, follow: _Follow, events: list[Event]) -> None:
        follow.news += events
        if follow.news:
            self._answer(follow)
        if len(follow.news) > NEWS_MAX:  # nobody fetches it
            self._end(next(key for key, known in self._follows.items() if known is follow))

    def _answer(self, follow: _Follow) -> None:
        """Whoever asks gets what there is."""
        if follow.timer is not None:
            follow.timer.cancel()
            follow.timer = None
        asker, follow.asker = follow.asker, None
        if asker is not None:
            asker.reply(_told(follow.news))

    def _end(self, key: tuple[str, int], error: BaseException | None = None) -> None:
        follow = self._follows.pop(key)
        if follow.watch:
            self._by_watch.pop(follow.watch, None)
            self.raft_ref.offer(Unwatch(follow.watch))
        asker, follow.asker = follow.asker, None
        if follow.timer is not None:
            follow.timer.cancel()
        if asker is not None:
            asker.fail(error or BrainError(OVERLOADED, "too much happened meanwhile; ask once more"))

    def _end_unused(self) -> None:
        for key, follow in list(self._follows.items()):
            if follow.asker is None and self.now() - follow.used > UNUSED_S:
                self._end(key)

    @handles(BrainUp)
    def _on_brain_up(self, message: BrainUp) -> None:
        """The peer lives anew: who waits asks again."""
        super()._on_brain_up(message)
        for key in list(self._follows):
            self._end(key, BrainError(OVERLOADED, "the voter's peer was started again; ask once more"))


def _told(events: list[Event]) -> list[Any]:
    """As many events as one answer takes; the rest is asked for again."""
    out: list[Any] = []
    size = 0
    for event in events:
        size += sum(len(c.key) + (len(c.item.value) if c.item is not None else 0) for c in event.changes)
        if out and size > ANSWER_BYTES_MAX:
            break
        out.append([event.revision, [packed(change.key, change.item) for change in event.changes]])
    return out


_SERVES: dict[type, Any] = {
    AgentPropose: Desk._propose,  # noqa: SLF001
    AgentRange: Desk._range,  # noqa: SLF001
    AgentFollow: Desk._follow,  # noqa: SLF001
    AgentStatus: Desk._status,  # noqa: SLF001
    KeepAlive: Desk._keep_alive,  # noqa: SLF001
    TimeToLive: Desk._time_to_live,  # noqa: SLF001
}
