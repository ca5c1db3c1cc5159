"""Membership changes as operators name them, turned into configurations and seen through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from brain.raft import Config, NotLeaderError, ProposalDroppedError, Role
from kernel.mailbox import Promise

from .raft_messages import TIMED_OUT, BrainError, ChangeConfig, StillMember

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

#: Seconds that a change of members may take before whoever asked is told to look again.
CHANGE_S = 5.0
#: A learner may vote when it lacks no more entries than this.
CAUGHT_UP_ENTRIES = 100
#: Seconds without a leader after which a member asks whether it still is one, and between two questions.
ALONE_S = 3.0


class RemovedError(Exception):
    """This machine is no member of its cluster any more, and must not serve."""

    def __init__(self, machine: str, index: int) -> None:
        super().__init__(
            f"this machine ({machine}) was removed from the cluster{f' (entry {index} of the log)' if index else ''}; to use it "
            "again, empty its data directory and join it with a token"
        )
        self.index = index


class _Change(NamedTuple):
    """A change of members that somebody waits for."""

    index: int  # type: ignore[assignment]
    term: int
    promise: Promise
    deadline: float


def changed(config: Config, message: ChangeConfig, caught_up: Callable[[str], bool]) -> Config:
    """The configuration after a change; raises :class:`BrainError` for one that cannot be made.

    ``add_learner`` adds a member without a vote, ``promote`` gives it one when it has caught
    up, ``replace`` does so and takes the vote of the voter that ``info`` names, ``demote``
    leaves a member without its vote, ``renew`` does so with one that has forgotten all it knew,
    ``remove`` takes it out, ``update`` changes its name and addresses.
    """
    member = message.member
    others = tuple(entry for entry in config.info if entry[0] != member)
    if message.change == "add_learner":
        if member in config.voters:
            return replace(config, info=(*others, (member, message.info)))
        learners = config.learners | {member}
        return replace(config, learners=learners, info=(*others, (member, message.info)))
    if message.change == "update":
        if member not in config.everyone:
            raise BrainError("missing", f"no member has the id {member}")
        return replace(config, info=(*others, (member, message.info)))
    if message.change == "promote":
        if member not in config.learners:
            return config
        if not caught_up(member):
            raise BrainError("not_caught_up", f"{member} has not caught up with the log yet")
        return replace(config, voters=config.voters | {member}, learners=config.learners - {member})
    if message.change == "replace":
        instead_of = message.info[0]
        if member not in config.learners or instead_of not in config.voters:
            raise BrainError("missing", f"{member} has no vote to be given, or {instead_of} none to give")
        if not caught_up(member):
            raise BrainError("not_caught_up", f"{member} has not caught up with the log yet")
        return replace(config, voters=config.voters - {instead_of} | {member}, learners=config.learners - {member} | {instead_of})
    if message.change == "demote":
        if member not in config.voters or len(config.voters) == 1:
            raise BrainError("missing", f"{member} has no vote, or the only one")
        return replace(config, voters=config.voters - {member}, learners=config.learners | {member})
    if message.change == "renew":
        if member not in config.everyone or config.voters == {member}:
            raise BrainError("missing", f"{member} is no member, or the only one")
        return replace(config, voters=config.voters - {member}, learners=config.learners | {member}, info=(*others, (member, message.info)))
    if message.change == "remove":
        # its address stays known: until the joint configuration is left its vote may be needed
        return replace(config, voters=config.voters - {member}, learners=config.learners - {member})
    raise BrainError("config_change", f"no membership change is called {message.change!r}")


class Membership:
    """Changes of members under way, and whether this machine is one itself.

    A part of the Raft peer, not an actor of its own: it runs in the peer's turns.
    """

    def __init__(self, peer: RaftPeer) -> None:
        self._peer = peer
        self._changing: _Change | None = None
        self._led_at = 0.0  # when a leader was last known
        self._asked_at = 0.0

    def change(self, message: ChangeConfig) -> Any:
        """Answered when the change holds: decided, and the joint configuration left.  Leader only."""
        peer, raft = self._peer, self._peer.raft
        config = changed(raft.config, message, self._caught_up)
        if message.change == "renew":
            raft.forget_progress(message.member)
        if config == raft.config:
            return True
        try:
            index = raft.propose_config(config)
        except (ProposalDroppedError, NotLeaderError) as error:
            raise BrainError("config_busy", str(error)) from None
        peer.kick()
        self._changing = _Change(index, raft.term, Promise(), peer.now() + CHANGE_S)
        return self._changing.promise

    def _caught_up(self, member: str) -> bool:
        progress = self._peer.raft.progress.get(member)
        if progress is None or not progress.active or not progress.match:
            return False  # it has never been heard of
        return progress.match + CAUGHT_UP_ENTRIES >= self._peer.raft.log.commit

    def settle(self) -> None:
        """Answer a change that holds, or cannot any more."""
        if self._changing is None:
            return
        raft = self._peer.raft
        index, term, promise, deadline = self._changing
        if raft.role is not Role.LEADER or raft.term != term:
            promise.fail(BrainError(TIMED_OUT, "leadership was lost meanwhile; it may still happen"))
        elif raft.log.applied >= index and not raft.config.outgoing:
            promise.reply(True)
        elif self._peer.now() > deadline:
            promise.fail(BrainError(TIMED_OUT, "no quorum in time; it may still happen"))
        else:
            return
        self._changing = None

    # -- who was left out ------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """A member that hears no leader asks whether it still is one.

        The leader stops sending to a machine as soon as it is left out, so that machine never
        gets the entry which says so.
        """
        peer = self._peer
        if peer.raft.hears_leader or not self._led_at:
            self._led_at = now
            return
        if now - self._led_at < ALONE_S or now - self._asked_at < ALONE_S:
            return
        self._asked_at = now
        question = StillMember(peer.machine)
        for voter in sorted(peer.raft.config.voters - {peer.machine}):
            peer.ask_then(peer.router.ref(voter, "raft"), question, ALONE_S, self._answered)

    def _answered(self, left_out_at: Any, error: BaseException | None) -> None:
        raft, machine = self._peer.raft, self._peer.machine
        if error is not None or type(left_out_at) is not int or not left_out_at:
            return
        # who removed itself, as the leader, has the entry which says so, or a snapshot of it
        if left_out_at > raft.config_index or machine not in raft.config.everyone:
            self._peer.system.fatal(RemovedError(machine, left_out_at))

    def left_out(self, member: str) -> int | Promise:
        """Where in the log the configuration stands that has no such member; 0 for none, or unknown.

        Only a leader that a quorum still follows can say so.
        """
        raft = self._peer.raft
        if raft.role is not Role.LEADER or member in raft.config.everyone:
            return 0
        promise = Promise()
        term = raft.term

        def confirmed(_: int) -> None:
            if (raft.role, raft.term) != (Role.LEADER, term):
                promise.reply(0)
                return
            holds = raft.config_index <= raft.log.applied and not raft.config.outgoing
            gone = holds and member not in raft.config.everyone
            promise.reply(raft.config_index if gone else 0)

        self._peer.reads.queue(confirmed, promise.fail, ALONE_S)
        return promise
