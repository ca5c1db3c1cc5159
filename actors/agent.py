"""The brain as a machine without a vote has it: no log, no store, a few voters that it knows.

It answers what a Raft peer answers to the actors of its host, by asking the desk of one
voter; when that one is silent, cut off or ailing, the next.  Watches are long questions from
a revision on, so that another voter goes on exactly where the last one stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from brain.store import Change, Event, Item, StoreError
from kernel.actor import Actor, handles
from kernel.mailbox import Promise
from kernel.ports import Ports
from transport.router import LinkLostError, RemoteError, Router

from .agent_rights import NotAllowed, UnknownAgent
from .desk import AgentFollow, AgentPropose, AgentRange, AgentStatus, unpacked
from .membership import RemovedError
from .raft_messages import (
    CORRUPT,
    NO_LEADER,
    NO_SPACE,
    OVERLOADED,
    TIMED_OUT,
    TOO_LARGE,
    BrainError,
    BrainUp,
    KeepAlive,
    Propose,
    Query,
    Range,
    Status,
    TimeToLive,
    TransferLeadership,
    Unwatch,
    Watch,
    Watched,
    Watching,
)

logger = logging.getLogger("argosy.agent")

#: Seconds that one voter has to answer before another is asked.
VOTER_S = 1.0
#: Seconds that a question for events may wait, and that its answer may take beyond that.
FOLLOW_S, FOLLOW_GRACE_S = 20.0, 3.0
#: Seconds before a question is asked again after a failure, and between two looks for the voters.
AGAIN_S, VOTERS_S = 0.1, 5.0
#: Seconds during which every voter must say that this machine is no agent before it believes it.
REMOVED_S = 3.0
#: Refusals after which another voter may do better, and nothing has been done.
_ELSEWHERE = frozenset({NO_LEADER, CORRUPT, OVERLOADED, "not_found", "dead", "asks_max"})
#: Refusals of the brain itself: asking another voter gives the same.
_OF_BRAIN = frozenset({TIMED_OUT, TOO_LARGE, NO_SPACE, NotAllowed.code})

Then = Callable[[Any, BaseException | None], None]


@dataclass(slots=True)
class _Follower:
    """A watch of an actor of this host."""

    message: Watch
    next: int  # the first revision that it was not told of
    round: int = 0  # of questions: an answer to an earlier one counts no more
    asked: float = 0.0


class Agent(Actor):
    """See the module docstring; spawned where a voter has its Raft peer."""

    def __init__(self, machine: str, ports: Ports, router: Router, seeds: dict[str, str]) -> None:
        """``seeds``: transport addresses of members known from before, by id."""
        super().__init__()
        self.machine = machine
        self._ports = ports
        self._router = router
        self._voters = dict(seeds)
        self._voter = ""
        self._follows: dict[int, _Follower] = {}
        self._number = 0
        self._refused_at: dict[str, float] = {}  # voters that say this machine is no agent
        self.status: dict[str, Any] = {}  # the last that a voter said
        self.failovers = 0

    @property
    def asks(self) -> str:
        """The voter that is asked now."""
        return self._voter

    @property
    def voters(self) -> dict[str, str]:
        """Transport addresses of the voters that are known, by id."""
        return dict(self._voters)

    def on_start(self) -> None:
        """Open links to the voters; let everybody list anew."""
        self._number = self.actor_inbox.incarnation << 32
        self._ports.net.set_peers(self._voters)
        self._choose()
        self.every(VOTERS_S, self._look)
        self._look()
        self.system.publish(BrainUp())

    # -- one voter after the other ---------------------------------------------------------------

    def _choose(self) -> None:
        """Any of the voters but the one that failed: a thousand agents spread over all of them."""
        others = sorted(set(self._voters) - {self._voter}) or sorted(self._voters)
        if others:
            self._voter = others[self._ports.rng.below(len(others))]
        for watch in list(self._follows):  # the one that failed may be cut off, and answer them for a while all the same
            self._follow(watch)

    def _ask(self, message: Any, patience: float, then: Then, may_repeat: bool = True, once: bool = False) -> None:
        """Ask one voter, and others as long as ``patience`` (seconds) lasts and nothing can be done twice.

        ``once``: whoever asks does so again by itself.
        """
        voter = self._voter
        until = self.now() + patience
        each = min(VOTER_S, patience) if may_repeat and not once else patience

        def answered(value: Any, error: BaseException | None) -> None:
            if error is None:
                self._refused_at.clear()
                then(value, None)
                return
            code = error.code if isinstance(error, RemoteError) else ""
            was_not_sent = isinstance(error, LinkLostError) and str(error).startswith("no link")
            is_undone = code in _ELSEWHERE or was_not_sent
            if code == UnknownAgent.code:
                self._note_refusal(voter)
                is_undone = True
            elif code and code not in _ELSEWHERE:
                then(None, BrainError(code, str(error)) if code in _OF_BRAIN else StoreError(code, str(error)))
                return
            if voter == self._voter:
                self.failovers += 1
                self._choose()
            left = until - self.now()
            if (may_repeat or is_undone) and left > AGAIN_S and not once:
                self.after(AGAIN_S, lambda: self._ask(message, left - AGAIN_S, then, may_repeat))
            elif is_undone or may_repeat:
                then(None, BrainError(NO_LEADER, f"no voter could answer: {error}"))
            else:
                then(None, BrainError(TIMED_OUT, f"the voter did not answer, it may have been done: {error}"))

        self.ask_then(self._router.ref(voter, "desk"), message, each, answered)

    def _note_refusal(self, voter: str) -> None:
        first = self._refused_at.setdefault(voter, self.now())
        if set(self._voters) <= set(self._refused_at) and self.now() - first > REMOVED_S:
            self.system.fatal(RemovedError(self.machine, 0))

    def _promise(self, message: Any, patience: float, may_repeat: bool = True) -> Promise:
        promise = Promise()

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                promise.reply(value)

        self._ask(message, patience, done, may_repeat)
        return promise

    def _look(self) -> None:
        """Who votes now, and where; a member that lost its vote is asked no more."""
        for watch, follower in list(self._follows.items()):
            if self.now() - follower.asked > FOLLOW_S + 2 * FOLLOW_GRACE_S:  # an answer was lost: it costs nothing to ask again
                self._follow(watch)

        def have(status: Any, error: BaseException | None) -> None:
            if error is not None or not isinstance(status, dict):
                return
            self.status = status
            info = status.get("info", {})
            voters = {m: info[m][1] for m in status.get("voters", ()) if m in info and info[m][1]}
            if voters and voters != self._voters:
                self._voters = voters
                self._ports.net.set_peers(voters)
                if self._voter not in voters:
                    self._choose()

        self._ask(AgentStatus(), VOTERS_S - 1.0, have)

    # -- what a peer is asked ----------------------------------------------------------------------

    @handles(Propose)
    def _on_propose(self, message: Propose) -> Promise:
        if message.term:
            raise BrainError(NO_LEADER, "a machine without a vote does not lead")
        command = AgentPropose(message.command, int(message.timeout * 1000))
        return self._promise(command, message.timeout, may_repeat=False)

    @handles(KeepAlive)
    def _on_keep_alive(self, message: KeepAlive) -> Promise:
        return self._promise(message, 2.0)

    @handles(TimeToLive)
    def _on_time_to_live(self, message: TimeToLive) -> Promise:
        return self._promise(message, 2.0)

    @handles(Status)
    def _on_status(self, _: Status) -> Promise:
        promise = Promise()

        def have(status: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                promise.reply({**status, "id": self.machine, "role": "agent"})

        self._ask(AgentStatus(), 3.0, have)
        return promise

    @handles(Range)
    def _on_range(self, message: Range) -> Promise:
        """Always what a quorum confirms: there is no copy here that could be older."""
        promise = Promise()
        found: list[tuple[bytes, Item | None]] = []

        def have(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
                return
            try:
                revision, items, more = answer
                found.extend(map(unpacked, items))
            except (TypeError, ValueError) as failure:
                promise.fail(BrainError(CORRUPT, f"a voter's answer cannot be read: {failure}"))
                return
            if more and not (message.limit and len(found) >= message.limit):
                self._ask(AgentRange(found[-1][0] + b"\0", message.end, revision), 6.0, have)
            else:
                promise.reply((revision, found[: message.limit or None]))

        self._ask(AgentRange(message.key, message.end, message.revision), 6.0, have)
        return promise

    @handles(Query)
    def _on_query(self, _: Query) -> Any:
        raise BrainError(NO_LEADER, "a machine without a vote has no store that could be asked")

    @handles(TransferLeadership)
    def _on_transfer(self, _: TransferLeadership) -> None:
        """There is none to hand over."""

    # -- watches ---------------------------------------------------------------------------------

    @handles(Watch)
    def _on_watch(self, message: Watch) -> Watching:
        if not message.start:
            raise BrainError(NO_LEADER, "a machine without a vote watches from a revision on")
        self._number += 1
        self._follows[self._number] = _Follower(message, message.start)
        self._follow(self._number)
        return Watching(self._number, message.start - 1)

    @handles(Unwatch)
    def _on_unwatch(self, message: Unwatch) -> None:
        self._follows.pop(message.watch, None)

    def _follow(self, watch: int) -> None:
        follower = self._follows.get(watch)
        if follower is None:
            return
        wanted = follower.message
        follower.round += 1
        now = follower.round
        follower.asked = self.now()

        def have(answer: Any, error: BaseException | None) -> None:
            if self._follows.get(watch) is not follower or follower.round != now:
                return
            if isinstance(error, StoreError):  # what came after that revision is not known any more
                self._follows.clear()
                self.system.publish(BrainUp())
                return
            try:
                events = [_event(fields) for fields in answer] if error is None else []
            except (TypeError, ValueError) as failure:
                error = failure
                logger.warning("voter %s: what it tells of events cannot be read: %s", self._voter, failure)
                events = []
            if events:
                follower.next = events[-1].revision + 1
                if not wanted.subscriber.offer(Watched(watch, events)):
                    self._follows.pop(watch, None)
                    return
            if error is not None:
                self.after(AGAIN_S, lambda: self._follow(watch) if follower.round == now else None)
            else:
                self._follow(watch)

        question = AgentFollow(watch, wanted.key, wanted.end, follower.next, int(FOLLOW_S * 1000))
        self._ask(question, FOLLOW_S + FOLLOW_GRACE_S, have, once=True)


def _event(fields: Any) -> Event:
    revision, changes = fields
    if type(revision) is not int:
        raise ValueError("a revision is a number")
    return Event(revision, tuple(Change(*unpacked(change), None) for change in changes), None)
