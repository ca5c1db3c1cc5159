"""Reads of the store: at once from what is here, or behind a point that a quorum confirms.

A part of the Raft peer, not an actor of its own: it runs in the peer's turns.  All
linearizable reads that wait share one round: the leader's own, or one question to the leader.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from brain.raft import Role
from kernel.mailbox import Promise

from .raft_messages import NO_LEADER, NO_SPACE, OVERLOADED, BrainError, Query, ReadIndex

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

#: Seconds that the leader has to name a read point, and until it is asked again after an error.
ASK_S, AGAIN_S = 1.0, 0.02
#: Seconds that a restarted peer waits for its first read point before it asks again.
CATCH_UP_S = 60.0
#: Reads that wait for their point, or for their turn.
READS_MAX = 50_000


class _Read(NamedTuple):
    """A read that waits for its point."""

    serve: Callable[[int], None]
    fail: Callable[[BaseException], None]
    deadline: float


class Reads:
    """See the module docstring."""

    def __init__(self, peer: RaftPeer) -> None:
        self._peer = peer
        self._next = 1
        self._reads: dict[int, _Read] = {}
        self._waiting: list[int] = []
        self._asked: list[int] = []  # of the leader, whose answer has not come
        self._handed: dict[int, None] = {}  # to this peer's own Raft, as the leader, in order
        self._round = 0  # of questions to leaders: an answer to an earlier one counts no more
        self._after_apply: list[tuple[int, int]] = []  # (index, read), in order
        self._current = False  # whether the store has been up to date in this life

    def catch_up(self) -> None:
        """The store that was read is the past until a leader says how far the log is decided."""

        def there(_: int) -> None:
            self._current = True

        self.queue(there, lambda error: self.catch_up(), CATCH_UP_S)

    def query(self, message: Query) -> Any:
        """What the message's function finds, or a promise of it."""
        if not message.linearizable and self._current:
            return message.function(self._peer.store)
        if len(self._reads) >= READS_MAX:
            raise BrainError(OVERLOADED, f"reads_max: {READS_MAX} reads wait already")
        promise = Promise()

        def serve(_: int) -> None:
            try:
                promise.reply(message.function(self._peer.store))
            except Exception as error:  # the asker's fault: it must not end this peer
                promise.fail(error)

        self.queue(serve, promise.fail, message.timeout)
        return promise

    def queue(
        self, serve: Callable[[int], None], fail: Callable[[BaseException], None], timeout: float
    ) -> None:
        """Call ``serve`` with a read point once it is applied here, or ``fail``."""
        read = self._next
        self._next += 1
        self._reads[read] = _Read(serve, fail, self._peer.now() + timeout)
        self._waiting.append(read)
        self._peer.kick()

    def send(self) -> None:
        """Begin a round for what waits, unless one is under way."""
        raft = self._peer.raft
        if not self._waiting or not raft.leader:
            return
        if raft.role is Role.LEADER:
            waiting, self._waiting = self._waiting, []
            self._handed.update(dict.fromkeys(waiting))
            for read in waiting:
                raft.read(read)
        elif not self._asked:
            self._ask(raft.leader)

    def _ask(self, leader: str) -> None:
        peer = self._peer
        self._round += 1
        now = self._round
        self._asked, self._waiting = self._waiting, []

        def answered(index: Any, error: BaseException | None) -> None:
            if now != self._round:
                return
            asked, self._asked = self._asked, []
            if error is not None or type(index) is not int:
                self._waiting[:0] = asked  # tried again until their deadline
                peer.after(AGAIN_S, peer.kick)
                return
            for read in asked:
                self.point(read, index)
            peer.kick()

        peer.ask_then(peer.router.ref(leader, "raft"), ReadIndex(), ASK_S, answered)

    def new_term(self) -> None:
        """Another leadership has begun: nobody waits for the old leader's answer, or for our own round."""
        self._round += 1
        self._waiting[:0] = [*self._handed, *self._asked]
        self._asked = []
        self._handed = {}
        self.send()

    def point(self, read: int, index: int) -> None:
        """A read may be served once ``index`` is applied."""
        self._handed.pop(read, None)
        if self._peer.raft.log.applied >= index:
            self._serve(read, index)
        else:
            insort(self._after_apply, (index, read))

    def reached(self, index: int) -> None:
        """Serve reads that waited for this index."""
        while self._after_apply and self._after_apply[0][0] <= index:
            self._serve(self._after_apply.pop(0)[1], index)

    def _serve(self, read: int, index: int) -> None:
        waiting = self._reads.pop(read, None)
        if waiting is not None:
            waiting.serve(index)

    def fail_overdue(self, now: float) -> None:
        """What has waited too long is refused, as exactly as it can be said."""
        overdue = [read for read, waiting in self._reads.items() if waiting.deadline <= now]
        if not overdue:
            return
        behind = {read for _, read in self._after_apply}
        full = self._peer.disk_full
        for read in overdue:
            if read in behind and full:
                error = BrainError(NO_SPACE, f"{full}; what was decided since is not known here")
            elif read in behind:
                error = BrainError(NO_LEADER, "this peer lacks what was decided and did not get it in time")
            else:
                error = BrainError(NO_LEADER, "no quorum confirmed the read in time")
            self._reads.pop(read).fail(error)
        self._waiting = [read for read in self._waiting if read in self._reads]
        self._asked = [read for read in self._asked if read in self._reads]
        self._handed = {read: None for read in self._handed if read in self._reads}
        self._after_apply = [pair for pair in self._after_apply if pair[1] in self._reads]
