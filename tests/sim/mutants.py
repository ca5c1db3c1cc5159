"""Planted bugs, each a broken Raft: the suite is only worth something if it catches them.

Used by tests alone.  Each is a mistake that somebody could make, and that no test of a
single peer would show.
"""

from __future__ import annotations

from collections.abc import Callable

from brain.raft import Config, HardState, Kind, NotLeaderError, Raft, Ready, Role, Settings
from brain.raftlog import RaftLog


class VoteWithoutSync(Raft):
    """Votes and acknowledged appends leave before they are on disk."""

    def ready(self) -> Ready:
        """Nothing waits for the sync, but what the peer says to itself."""
        out = super().ready()
        out.messages = out.messages + [m for m in out.after_sync if m.to != self.id]
        out.after_sync = [m for m in out.after_sync if m.to == self.id]
        return out


class AckWithoutSync(Raft):
    """Only acknowledged appends leave early; votes wait for the disk."""

    def ready(self) -> Ready:
        """What a follower acknowledges does not wait for the sync."""
        out = super().ready()
        early = [m for m in out.after_sync if m.kind == Kind.APPEND_REPLY and m.to != self.id]
        out.messages = out.messages + early
        out.after_sync = [m for m in out.after_sync if m not in early]
        return out


class ReadWithoutQuorum(Raft):
    """A leader answers linearizable reads at once, without asking whether it still leads."""

    def read(self, context: int) -> None:
        """The read point is whatever this peer believes is committed."""
        if self.role is not Role.LEADER:
            raise NotLeaderError(self.leader)
        self._reads_done.append((context, self.log.commit))


class _EagerLog(RaftLog):
    @property
    def appliable(self) -> int:
        """On this peer's own disk; whether anybody else has it does not matter."""
        return self.stable


class ApplyBeforeCommit(Raft):
    """Entries are applied, and answered, as soon as they are on the peer's own disk."""

    def __init__(
        self, peer: str, config: Config, log: RaftLog, hard_state: HardState,
        draw: Callable[[int], int], settings: Settings | None = None,
    ) -> None:  # fmt: skip
        log.__class__ = _EagerLog
        super().__init__(peer, config, log, hard_state, draw, settings)


MUTANTS: dict[str, type[Raft]] = {
    "vote_without_sync": VoteWithoutSync,
    "ack_without_sync": AckWithoutSync,
    "read_without_quorum": ReadWithoutQuorum,
    "apply_before_commit": ApplyBeforeCommit,
}
