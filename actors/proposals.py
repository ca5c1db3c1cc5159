"""Commands on their way: from whoever asks to the leader's log, and their outcomes back.

A part of the Raft peer, not an actor of its own: it runs in the peer's turns.  A command is
sent to one leader only; it is sent to another only once a later leader's first entry proves
that the earlier one can no longer commit it, so nothing happens twice.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Any

from brain.codec import decode, encode
from brain.raft import ProposalDroppedError, Role
from brain.store import StoreError
from kernel.mailbox import Promise
from kernel.stats import Histogram

from .raft_messages import (
    NO_LEADER,
    NO_SPACE,
    OVERLOADED,
    TIMED_OUT,
    TOO_LARGE,
    BrainError,
    Forward,
    Propose,
)

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

#: The log's time in milliseconds, before every command in its entry.
STAMP = struct.Struct("<Q")
#: Largest command, in bytes.
COMMAND_BYTES_MAX = 8 * 1024 * 1024
#: Forwarded commands a leader remembers, to know one that comes twice.
TAKEN_MAX = 20_000
#: Commands that may wait for their outcome on one peer.
PENDING_MAX = 50_000
#: Seconds that a leader has to take what is forwarded to it.
FORWARD_S = 2.0


class _Pending:
    """A command whose outcome somebody awaits."""

    __slots__ = ("begun", "command", "deadline", "only_term", "promise", "sent_term")

    def __init__(
        self, promise: Promise, command: bytes, begun: float, deadline: float, only_term: int
    ) -> None:
        self.promise = promise
        self.begun = begun
        self.command = command
        self.deadline = deadline
        self.sent_term = 0  # 0: not handed to any leader
        self.only_term = only_term


class Proposals:
    """See the module docstring."""

    def __init__(self, peer: RaftPeer, origin: str) -> None:
        self._peer = peer
        self._origin = origin
        self._next_seq = 1
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[int] = deque()
        self._forwarding = False
        self._round = 0  # of what was forwarded: an answer to an earlier one counts no more
        self._forwarded: deque[tuple[int, bytes]] = deque()  # (term it was taken in, command)
        self._taken: dict[bytes, None] = {}  # forwarded commands of this leadership, newest last
        self.commit_seconds = Histogram()
        self.counts = {"committed": 0, "failed": 0, "applied": 0}

    def __len__(self) -> int:
        return len(self._pending)

    def propose(self, message: Propose) -> Promise:
        """Take a command in, or refuse it at once."""
        promise = Promise()
        peer = self._peer
        seq = self._next_seq
        self._next_seq += 1
        try:
            command = encode([self._origin, seq, *message.command])
        except ValueError as error:  # once in the log, every peer would have to read it
            promise.fail(BrainError("malformed", f"the command is not plain data: {error}"))
            return promise
        refusal = self._refusal(message, len(command))
        if refusal is not None:
            promise.fail(refusal)
            return promise
        now = peer.now()
        self._pending[seq] = _Pending(promise, command, now, now + message.timeout, message.term)
        self._unsent.append(seq)
        peer.kick()
        return promise

    def _refusal(self, message: Propose, size: int) -> BrainError | None:
        peer = self._peer
        if size > COMMAND_BYTES_MAX:
            return BrainError(TOO_LARGE, f"command_bytes_max: {COMMAND_BYTES_MAX} bytes, this has {size}")
        if message.bounded and peer.raft.role is Role.LEADER and peer.disk_full:
            return BrainError(NO_SPACE, peer.disk_full)
        if message.bounded and peer.store.size > peer.settings.quota_bytes:
            text = f"quota_bytes: {peer.settings.quota_bytes} bytes are taken; delete or compact"
            return BrainError(NO_SPACE, text)
        if len(self._pending) >= PENDING_MAX:
            return BrainError(OVERLOADED, f"pending_max: {PENDING_MAX} commands wait already")
        if message.term and (peer.raft.role, peer.raft.term) != (Role.LEADER, message.term):
            return BrainError(NO_LEADER, f"this peer does not lead in term {message.term}")
        return None

    def applied(self, origin: str, seq: int, result: Any) -> None:
        """A command has an outcome; if it was made here, whoever asked hears it."""
        pending = self._pending.pop(seq, None) if origin == self._origin else None
        if pending is None:
            return
        self.counts["committed"] += 1
        self.commit_seconds.observe(self._peer.now() - pending.begun)
        if isinstance(result, StoreError):
            pending.promise.fail(result)
        else:
            pending.promise.reply(result)

    def send(self) -> None:
        """Hand what waits to the leader: this peer's own log, or another's."""
        if self._peer.raft.role is Role.LEADER:
            self._append()
        elif self._unsent and self._peer.raft.leader and not self._forwarding:
            self._forward()

    def _append(self) -> None:
        raft = self._peer.raft
        if raft.handing_over:
            return  # it succeeds, and the next leader gets them, or it ends soon
        stamp = STAMP.pack(self._peer.log_time_ms())
        taken = [command for term, command in self._forwarded if term == raft.term]
        self._forwarded.clear()  # those of an earlier term are sent again by who made them
        batch: list[bytes] = []
        while self._unsent:
            seq = self._unsent.popleft()
            pending = self._pending.get(seq)
            if pending is not None and pending.only_term not in (0, raft.term):
                self._fail(seq, BrainError(NO_LEADER, "leadership was lost meanwhile"))
            elif pending is not None:
                pending.sent_term = raft.term
                batch.append(stamp + pending.command)
        batch += [stamp + command for command in taken]
        if not batch:
            return
        try:
            raft.propose(batch)
        except ProposalDroppedError as error:
            self._forwarded.extend((raft.term, command) for command in taken)  # they were promised to be
            for seq, pending in list(self._pending.items()):
                if pending.sent_term == raft.term and stamp + pending.command in batch:
                    self._fail(seq, BrainError(OVERLOADED, str(error)))

    def _forward(self) -> None:
        sent: list[int] = []
        size = 0
        while self._unsent and size < self._peer.settings.raft.append_bytes_max:
            seq = self._unsent.popleft()
            pending = self._pending.get(seq)
            if pending is None:
                continue
            if pending.only_term:
                self._fail(seq, BrainError(NO_LEADER, "this peer no longer leads"))
                continue
            pending.sent_term = self._peer.raft.term
            sent.append(seq)
            size += len(pending.command)
        if not sent:
            return
        self._forwarding = True
        self._round += 1
        now = self._round
        message = Forward(self._peer.raft.term, [self._pending[seq].command for seq in sent])
        leader = self._peer.router.ref(self._peer.raft.leader, "raft")

        def answered(taken: Any, error: BaseException | None) -> None:
            # A refusal proves nothing: the frame may have come twice, and been taken the first
            # time.  What was not appended is proposed again when a new leader's entry shows it.
            if now == self._round:
                self._forwarding = False
                self._peer.kick()

        self._peer.ask_then(leader, message, FORWARD_S, answered)

    def _requeue(self, seqs: list[int]) -> None:
        for seq in seqs:
            pending = self._pending.get(seq)
            if pending is not None:
                pending.sent_term = 0
                self._unsent.append(seq)

    def take(self, message: Forward) -> bool:
        """Commands of another peer; answers whether they are in this leader's hands."""
        raft = self._peer.raft
        if raft.role is not Role.LEADER or raft.term != message.term:
            raise BrainError("not_taken", f"not the leader of term {message.term}")
        if len(self._forwarded) >= PENDING_MAX:
            raise BrainError("not_taken", f"pending_max: {PENDING_MAX} commands wait already")
        for command in message.commands:  # a frame that came twice must not count twice
            decode(command)  # strictly, here: once it is in the log, every peer reads it
            if command not in self._taken:
                self._taken[command] = None
                self._forwarded.append((raft.term, command))
        while len(self._taken) > TAKEN_MAX:
            del self._taken[next(iter(self._taken))]
        self._append()
        self._peer.kick()
        return True

    def resend_older_than(self, term: int) -> None:
        """A new leader's first entry is applied: what an older one took and did not commit
        before it never will be, so it may be proposed again without happening twice."""
        dead = [s for s, p in self._pending.items() if 0 < p.sent_term < term]
        for seq in dead:
            if self._pending[seq].only_term:
                self._fail(seq, BrainError(NO_LEADER, "leadership was lost meanwhile"))
        self._requeue(dead)
        if dead:
            self._peer.kick()

    def _fail(self, seq: int, error: BaseException) -> None:
        pending = self._pending.pop(seq, None)
        if pending is not None:
            self.counts["failed"] += 1
            pending.promise.fail(error)

    def fail_overdue(self, now: float) -> None:
        """What has waited too long is refused, as exactly as it can be said."""
        overdue = [s for s, p in self._pending.items() if p.deadline <= now]
        for seq in overdue:
            if self._pending[seq].sent_term and self._peer.disk_full:
                error = BrainError(NO_SPACE, f"{self._peer.disk_full}; it may still happen")
            elif self._pending[seq].sent_term:
                error = BrainError(TIMED_OUT, "no answer from a quorum in time; it may still happen")
            else:
                error = BrainError(NO_LEADER, "no leader in time; nothing was changed")
            self._fail(seq, error)
        if overdue:
            self._unsent = deque(seq for seq in self._unsent if seq in self._pending)

    def fail_sent(self, error: BaseException) -> None:
        """Nobody can say any more what became of those that a leader had."""
        for seq in [s for s, p in self._pending.items() if p.sent_term]:
            self._fail(seq, error)

    def new_term(self) -> None:
        """Another leadership has begun: nobody waits for the old leader's answer."""
        self._taken.clear()
        self._round += 1
        self._forwarding = False
        self.send()
