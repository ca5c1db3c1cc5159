"""Do all peers hold the same state?  The leader asks from time to time, and the odd one out rests.

Every store keeps a rolling hash over all it ever wrote, so one number at one revision says
it.  A part of the Raft peer: it runs in the peer's turns.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from brain.raft import Role

from .raft_messages import Quarantine, StateHash

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

logger = logging.getLogger("argosy.raft")

#: Seconds between two comparisons, and how long one answer may take.
COMPARE_S, ANSWER_S = 10.0, 2.0


class Comparison:
    """See the module docstring."""

    def __init__(self, peer: RaftPeer) -> None:
        self._peer = peer
        self.done = 0

    def begin(self) -> None:
        """Ask every voter, and judge when all have answered or not."""
        peer = self._peer
        others = sorted(peer.raft.config.voters - {peer.machine})
        if peer.raft.role is not Role.LEADER or not others or peer.quarantine:
            return
        verdicts: dict[str, tuple[int, bool] | None] = {}

        def answered(member: str, answer: Any, error: BaseException | None) -> None:
            verdicts[member] = None if error is not None else self._compare(answer)
            if len(verdicts) == len(others):
                self._judge(verdicts)

        for member in others:
            peer.ask_then(
                peer.router.ref(member, "raft"), StateHash(), ANSWER_S,
                partial(answered, member),
            )  # fmt: skip

    def _compare(self, answer: Any) -> tuple[int, bool] | None:
        """(revision, whether it is as here); None where this peer does not know its own hash."""
        if type(answer) is not list or len(answer) != 2 or not all(type(n) is int for n in answer):
            return None
        mine = self._peer.store.digest_at(answer[0])
        return None if mine is None else (answer[0], mine == answer[1])

    def _judge(self, verdicts: dict[str, tuple[int, bool] | None]) -> None:
        self.done += 1
        peer = self._peer
        odd = {member: v[0] for member, v in verdicts.items() if v is not None and not v[1]}
        alike = 1 + sum(v is not None and v[1] for v in verdicts.values())
        if not odd:
            return
        if alike > len(odd):
            for member, revision in odd.items():
                logger.error("the store of %s differs from the others' at revision %d", member, revision)
                peer.router.ref(member, "raft").tell(Quarantine(revision))
        elif len(odd) > alike:
            peer.rest(min(odd.values()))
        else:
            logger.error("the stores differ and no majority agrees: %s", odd)
