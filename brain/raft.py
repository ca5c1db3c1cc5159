"""Raft as a pure state machine: messages and ticks in, one :class:`Ready` out.

Responsible for elections, log replication, commitment, linearizable read points and
membership, as in Ongaro's dissertation (chapters 3, 4, 6, 9) with PreVote (9.6) and
CheckQuorum.  It never touches a disk, a socket, a clock or a random source of its own:
the actor around it does what a ``Ready`` says, in this order:

1. send ``messages`` at once;
2. write ``hard_state`` and ``entries`` and sync them, in the order of the Readies;
3. when that sync is done, send ``after_sync`` (messages to oneself are stepped);
4. apply ``committed``, in order.

Everything that promises durability (a vote, an acknowledged append, the leader's own
acknowledgement) is in ``after_sync``; that is what lets a leader send before its own sync.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

from .codec import decode, encode
from .raftlog import Entry, EntryKind, RaftLog


class Kind(IntEnum):
    """Message kinds; the numbers go over the wire, so only ever append."""

    APPEND = 1
    APPEND_REPLY = 2
    HEARTBEAT = 3
    HEARTBEAT_REPLY = 4
    VOTE = 5
    VOTE_REPLY = 6
    PRE_VOTE = 7
    PRE_VOTE_REPLY = 8
    SNAPSHOT_DONE = 9
    TIMEOUT_NOW = 10
    RECEIVED = 11


class Role(IntEnum):
    """What a peer is at the moment."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class Message(NamedTuple):
    """One message between peers; unused fields are zero."""

    kind: int
    frm: str
    to: str
    term: int
    index: int = 0  # type: ignore[assignment]
    log_term: int = 0
    commit: int = 0
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    hint: int = 0
    context: int = 0


def supersedes(later: Message, earlier: Message) -> bool:
    """Whether the later of two messages that wait for one sync says all that the earlier would."""
    if later == earlier:
        return True
    acknowledged = later.kind == earlier.kind == Kind.APPEND_REPLY and not later.reject and not earlier.reject
    return acknowledged and (later.to, later.term) == (earlier.to, earlier.term) and later.index >= earlier.index


class NotLeaderError(Exception):
    """Only the leader takes proposals; ``leader`` is who that is, or empty."""

    def __init__(self, leader: str) -> None:
        super().__init__(f"not the leader; the leader is {leader or 'unknown'}")
        self.leader = leader


class ProposalDroppedError(Exception):
    """The proposal was not appended, so it will never be applied."""


@dataclass(frozen=True, slots=True)
class Config:
    """Who takes part.  ``outgoing`` is non-empty only in a joint configuration (4.3)."""

    voters: frozenset[str]
    learners: frozenset[str] = frozenset()
    outgoing: frozenset[str] = frozenset()
    #: name, transport address and client URL of each member, by id
    info: tuple[tuple[str, tuple[str, str, str]], ...] = ()

    @property
    def everyone(self) -> frozenset[str]:
        """All members that receive the log."""
        return self.voters | self.learners | self.outgoing

    def has_quorum(self, ids: Iterable[str]) -> bool:
        """Whether ``ids`` hold a majority of the voters (of both sets, if joint)."""
        members = set(ids)

        def majority(voters: frozenset[str]) -> bool:
            return not voters or len(members & voters) > len(voters) // 2

        return majority(self.voters) and majority(self.outgoing)

    def committed(self, match: dict[str, int]) -> int:
        """The highest index that a quorum has (both majorities, if joint)."""

        def of(voters: frozenset[str]) -> int:
            acked = sorted((match.get(v, 0) for v in voters), reverse=True)
            return acked[len(voters) // 2]

        point = of(self.voters)
        return min(point, of(self.outgoing)) if self.outgoing else point

    def dump(self) -> list[object]:
        """A plain form for entries and snapshots."""
        return [
            sorted(self.voters),
            sorted(self.learners),
            sorted(self.outgoing),
            [[member, list(fields)] for member, fields in self.info],
        ]

    @classmethod
    def load(cls, plain: list) -> Config:  # type: ignore[type-arg]
        """The reverse of :meth:`dump`."""
        voters, learners, outgoing, info = plain
        return cls(
            frozenset(voters),
            frozenset(learners),
            frozenset(outgoing),
            tuple((member, (f[0], f[1], f[2])) for member, f in info),
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and timing, in ticks and bytes; checked by :meth:`validate`."""

    #: ticks between heartbeats; lower finds a dead peer sooner and costs messages
    heartbeat_ticks: int = 2
    #: ticks without a leader before an election, drawn from [1x, 2x)
    election_ticks: int = 12
    #: ticks before an election once the link to the leader is lost, drawn from [1, this]
    lost_link_ticks: int = 4
    #: bytes of entries in one append message
    append_bytes_max: int = 512 * 1024
    #: append messages in flight to one follower; more helps on long links, fewer batches better
    inflight_appends_max: int = 2
    #: bytes of entries appended and not yet committed; beyond it proposals are dropped
    uncommitted_bytes_max: int = 64 * 1024 * 1024
    #: bytes of entries that a follower may have and not acknowledge, because its disk is slow or full
    unsynced_bytes_max: int = 16 * 1024 * 1024
    #: bytes of committed entries handed out in one Ready
    apply_bytes_max: int = 4 * 1024 * 1024

    def validate(self) -> None:
        """Raise ``ValueError`` with a sentence if the values do not fit together."""
        if self.heartbeat_ticks < 1:
            raise ValueError("heartbeat_ticks must be at least 1")
        if self.election_ticks < 5 * self.heartbeat_ticks:
            raise ValueError("election_ticks must be at least 5 times heartbeat_ticks")
        if self.lost_link_ticks < 1:
            raise ValueError("lost_link_ticks must be at least 1")
        if self.inflight_appends_max < 1 or self.append_bytes_max < 1:
            raise ValueError("inflight_appends_max and append_bytes_max must be at least 1")


class HardState(NamedTuple):
    """What must be on disk before any promise made in this term leaves the host."""

    term: int
    vote: str


@dataclass(slots=True)
class Ready:
    """What the actor must do now; see the module docstring for the order."""

    hard_state: HardState | None = None
    first_index: int = 0
    entries: list[Entry] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    after_sync: list[Message] = field(default_factory=list)
    committed: list[tuple[int, Entry]] = field(default_factory=list)
    #: contexts of reads that may be served once ``index`` is applied
    reads: list[tuple[int, int]] = field(default_factory=list)
    #: followers that need a snapshot
    snapshots: list[str] = field(default_factory=list)

    @property
    def must_sync(self) -> bool:
        """Whether there is anything to write."""
        return self.hard_state is not None or bool(self.entries)


class Progress:
    """What the leader knows of one follower (etcd-io/raft's probe/replicate/snapshot)."""

    __slots__ = (
        "active", "counted", "durable", "inflight", "inflight_at_heartbeat", "match", "next", "probe_sent", "state",
    )  # fmt: skip

    def __init__(self, next_index: int) -> None:
        self.match = 0
        self.next = next_index
        self.state = "probe"
        self.probe_sent = False
        self.inflight: deque[int] = deque()
        self.inflight_at_heartbeat = 0
        self.durable = 0  # what it says to have on disk; no promise
        self.counted = (0, 0, 0)  # bytes of entries between two indexes, as last asked for
        self.active = True


class Raft:
    """One peer.  ``draw(n)`` gives a random number in [0, n) for election timeouts."""

    def __init__(
        self,
        peer: str,
        config: Config,
        log: RaftLog,
        hard_state: HardState,
        draw: Callable[[int], int],
        settings: Settings | None = None,
    ) -> None:
        self.id = peer
        self.log = log
        #: (index, configuration) of the snapshot and of every configuration entry in the log
        self._configs: list[tuple[int, Config]] = [(log.snapshot_index, config)]
        self.config = config
        self.term, self.vote = hard_state
        self.settings = settings or Settings()
        self.settings.validate()
        self._draw = draw
        self.role = Role.FOLLOWER
        self.leader = ""
        self.progress: dict[str, Progress] = {}
        self._votes: dict[str, bool] = {}
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._timeout = 0
        self._saved = hard_state
        self._messages: list[Message] = []
        self._after_sync: list[Message] = []
        self._snapshots: list[str] = []
        self._applied_handed = log.applied
        self._config_index = 0  # an unapplied configuration entry, at most one
        self._transfer_to = ""
        self._uncommitted_bytes = 0
        # reads: one quorum round in flight serves all that wait
        self._read_round = 0
        self._read_round_index = 0
        self._read_acks: set[str] = set()
        self._reads_in_round: list[int] = []
        self._read_quick: frozenset[str] = frozenset()  # who confirmed the last round
        self._read_asked: frozenset[str] = frozenset()  # who alone was asked in this one; empty: everybody was
        self._reads_waiting: list[int] = []
        self._reads_done: list[tuple[int, int]] = []
        self.elections = 0
        #: set by the actor while its disk has not answered for a while
        self.lagging = False
        self._reset(self.term)
        self._find_configs(log.snapshot_index + 1)

    # -- entrances ---------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        self._elapsed += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout and self.id in self._voting():
            self._campaign(pre=True)

    def unreachable(self, peer: str) -> None:
        """The link to ``peer`` was lost.  If it leads, do not wait out its whole timeout.

        Its promise to hold still is over for this peer alone: whoever still hears the leader
        refuses the pre-vote, so a cut link costs nothing and a dead process no waiting.
        """
        if self.role is Role.FOLLOWER and peer == self.leader:
            self._elapsed = max(self._elapsed, self.settings.election_ticks)
            self._timeout = self._elapsed + 1 + self._draw(self.settings.lost_link_ticks)

    def step(self, m: Message) -> None:
        """Take one message from a peer (or from oneself, after a sync)."""
        if m.term > self.term:
            if self._ignores_disturbance(m):
                return
            self._meet_higher_term(m)
        elif m.term < self.term:
            self._answer_lower_term(m)
            return
        if m.kind in (Kind.VOTE, Kind.PRE_VOTE):
            self._on_vote_request(m)
        elif self.role is Role.LEADER:
            self._step_leader(m)
        elif self.role is Role.FOLLOWER:
            self._step_follower(m)
        else:
            self._step_candidate(m)

    def propose(self, datas: list[bytes]) -> int:
        """Append commands; returns the index of the first.  Leader only.

        Raises :class:`NotLeaderError` or :class:`ProposalDroppedError`; then nothing was
        appended.
        """
        return self._append([(self.term, EntryKind.COMMAND, data) for data in datas])

    def propose_config(self, config: Config) -> int:
        """Start a membership change to ``config``; returns the index of its entry.

        A change of voters goes through a joint configuration (4.3) that the leader leaves
        by itself.  One change at a time: raises :class:`ProposalDroppedError` otherwise.
        """
        if self.role is not Role.LEADER:
            raise NotLeaderError(self.leader)
        if self._config_index > self.log.applied or self.config.outgoing:
            raise ProposalDroppedError("another membership change is under way")
        if not config.voters:
            raise ProposalDroppedError("a configuration needs at least one voter")
        outgoing = self.config.voters if config.voters != self.config.voters else frozenset[str]()
        target = replace(config, outgoing=outgoing)
        return self._append([(self.term, EntryKind.CONFIG, encode(target.dump()))])

    def forget_progress(self, member: str) -> None:
        """A member has lost its log: nothing that it once acknowledged counts any more."""
        if member in self.progress:
            self.progress[member] = Progress(self.log.last_index + 1)

    @property
    def config_index(self) -> int:
        """Where in the log the configuration in force stands (or the snapshot that brought it)."""
        return self._configs[-1][0]

    @property
    def hears_leader(self) -> bool:
        """Whether a leader is known and has been heard of lately, or is this peer."""
        return bool(self.leader) and (
            self.role is Role.LEADER or self._elapsed < self.settings.election_ticks
        )

    def config_at(self, index: int) -> Config:
        """The configuration as of an index: what a snapshot there must carry."""
        return next(config for at, config in reversed(self._configs) if at <= index)

    def _find_configs(self, first_index: int) -> None:
        """Entries from ``first_index`` on are new or replaced: the latest configuration in
        the log is in force, committed or not (4.1), and goes when its entry is cut."""
        self._configs = [pair for pair in self._configs if pair[0] < first_index] or self._configs[:1]
        for index, data in self.log.configs_from(first_index):
            self._configs.append((index, Config.load(decode(data))))
        self.config = self._configs[-1][1]
        if self.role is Role.LEADER:
            for peer in sorted(self.config.everyone - {self.id}):
                if peer not in self.progress:
                    self.progress[peer] = Progress(self.log.last_index + 1)
            for peer in set(self.progress) - self.config.everyone:
                del self.progress[peer]

    def read(self, context: int) -> None:
        """Ask for a linearizable read point (6.4); it comes in ``Ready.reads``."""
        if self.role is not Role.LEADER:
            raise NotLeaderError(self.leader)
        self._reads_waiting.append(context)
        self._start_read_round()

    def transfer(self, to: str) -> None:
        """Hand leadership to a voter (3.10): it is caught up, then told to stand at once."""
        if self.role is not Role.LEADER or to == self.id or to not in self.config.voters:
            return
        self._transfer_to = to
        self._elapsed = 0
        if self.progress[to].match == self.log.last_index:
            self._send(to, Kind.TIMEOUT_NOW)
        else:
            self._send_append(to)

    @property
    def handing_over(self) -> bool:
        """Whether leadership is being handed over; until that ends, one way or the other, nothing is appended."""
        return bool(self._transfer_to)

    def applied(self, index: int) -> None:
        """The actor has applied everything up to ``index``."""
        self.log.applied = index
        self._leave_joint()

    def _leave_joint(self) -> None:
        """The second half of a change of voters (4.3), once the joint half is applied."""
        if (
            self.role is Role.LEADER
            and self.config.outgoing
            and self._config_index <= self.log.applied
            and not self._transfer_to
        ):
            leave = replace(self.config, outgoing=frozenset())
            self._append([(self.term, EntryKind.CONFIG, encode(leave.dump()))], bounded=False)

    def apply_config(self, data: bytes) -> Config:
        """A configuration entry is committed (it is in force already); returns it."""
        config = Config.load(decode(data))
        left_out = self.id not in config.voters | config.outgoing and self.id not in self._voting()
        if self.role is Role.LEADER and left_out:  # not by an entry of the past, before it was added again
            self._become_follower(self.term, "")  # a removed leader steps down (4.2.2)
        return config

    def restored(self, index: int, term: int, config: Config, leader: str) -> None:
        """A snapshot up to ``index`` has been installed and is durable."""
        self.log.restore(index, term)
        self._applied_handed = index
        kept = [pair for pair in self._configs if index < pair[0] <= self.log.last_index]
        self._configs = [(index, config), *kept]
        self.config = self._configs[-1][1]
        self.leader = leader
        self._after_sync.append(
            Message(Kind.APPEND_REPLY, self.id, leader, self.term, index=index)
        )

    def snapshot_sent(self, peer: str, index: int, ok: bool) -> None:
        """The actor has finished (or failed) sending a snapshot to ``peer``."""
        progress = self.progress.get(peer)
        if progress is None or progress.state != "snapshot":
            return
        progress.state = "probe"
        progress.probe_sent = not ok  # after a failure wait for the next heartbeat reply
        progress.next = (index if ok else progress.match) + 1
        if ok:
            self._send_append(peer)

    def persisted(self, hard_state: HardState | None, last_index: int, last_term: int) -> None:
        """Everything of a Ready is on disk; call before its ``after_sync`` is sent."""
        if last_index:
            self.log.stabilise(last_index, last_term)

    @property
    def has_ready(self) -> bool:
        """Whether :meth:`ready` would return anything."""
        return bool(
            self._messages
            or self._after_sync
            or self._snapshots
            or self._reads_done
            or self.log.has_unwritten
            or (self.term, self.vote) != self._saved
            or self.log.appliable > self._applied_handed
        )

    def ready(self) -> Ready:
        """Everything to be done since the last call; each item is handed out once."""
        out = Ready(
            messages=self._messages,
            after_sync=self._after_sync,
            snapshots=self._snapshots,
            reads=self._reads_done,
        )
        self._messages, self._after_sync = [], []
        self._snapshots, self._reads_done = [], []
        state = HardState(self.term, self.vote)
        if state != self._saved:
            out.hard_state = self._saved = state
        out.first_index, out.entries = self.log.take_unwritten()
        out.committed = self.log.slice_bounded(
            self._applied_handed + 1, self.log.appliable + 1, self.settings.apply_bytes_max
        )
        self._applied_handed += len(out.committed)
        return out

    # -- time ----------------------------------------------------------------------------

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        self._leave_joint()
        if self._elapsed >= self.settings.election_ticks:
            self._elapsed = 0
            self._transfer_to = ""
            active = {p for p, progress in self.progress.items() if progress.active}
            if not self.config.has_quorum(active | {self.id}):
                self._become_follower(self.term, "")  # CheckQuorum
                return
            for progress in self.progress.values():
                progress.active = False
        if self._heartbeat_elapsed >= self.settings.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._broadcast_heartbeat(self.progress)
        elif self._reads_in_round and self._read_asked:  # those who are quick otherwise are not: ask the others, too
            self._broadcast_heartbeat([peer for peer in self.progress if peer not in self._read_asked])
        self._read_asked = frozenset()

    def _voting(self) -> frozenset[str]:
        return self.config.voters | self.config.outgoing

    # -- terms and roles -----------------------------------------------------------------

    def _ignores_disturbance(self, m: Message) -> bool:
        """A peer that hears its leader does not let a candidate disturb it (9.6)."""
        return (
            m.kind in (Kind.VOTE, Kind.PRE_VOTE)
            and not m.context  # set when leadership is being transferred on purpose
            and self.hears_leader
        )

    def _meet_higher_term(self, m: Message) -> None:
        if m.kind == Kind.PRE_VOTE or (m.kind == Kind.PRE_VOTE_REPLY and not m.reject):
            return  # a pre-vote speaks of a term that does not exist yet
        leads = m.kind in (Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT_DONE)
        self._become_follower(m.term, m.frm if leads else "")

    def _answer_lower_term(self, m: Message) -> None:
        """Tell a deposed leader, or a candidate of the past, which term it is."""
        if m.kind in (Kind.APPEND, Kind.HEARTBEAT):
            self._send(m.frm, Kind.APPEND_REPLY, reject=True, index=m.index, hint=0)
        elif m.kind == Kind.PRE_VOTE:
            self._send(m.frm, Kind.PRE_VOTE_REPLY, reject=True)

    def _reset(self, term: int) -> None:
        if term != self.term:
            self.term = term
            self.vote = ""
        self.leader = ""
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._timeout = self.settings.election_ticks + self._draw(self.settings.election_ticks)
        self._votes = {}
        self._transfer_to = ""
        self._uncommitted_bytes = 0
        self._reads_in_round = []
        self._reads_waiting = []
        self._read_acks = set()
        self._read_asked = frozenset()

    def _become_follower(self, term: int, leader: str) -> None:
        self._reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader
        self.progress = {}

    def _campaign(self, pre: bool, forced: bool = False) -> None:
        """Stand for election; ``pre`` first asks whether it could be won (9.6)."""
        term = self.term + 1
        if pre:
            self._elapsed = 0
            self._timeout = self.settings.election_ticks + self._draw(self.settings.election_ticks)
            self.role = Role.PRE_CANDIDATE
            self.leader = ""
            self._votes = {}
        else:
            self._reset(term)
            self.role = Role.CANDIDATE
            self.vote = self.id
            self.elections += 1
        kind = Kind.PRE_VOTE if pre else Kind.VOTE
        own = Message(kind + 1, self.id, self.id, term)
        last, last_term = self.log.last_index, self.log.last_term
        requests = [
            Message(kind, self.id, peer, term, last, last_term, context=int(forced))
            for peer in sorted(self._voting() - {self.id})
        ]
        if pre:
            self._messages.extend(requests)
            self._on_vote_reply(own)
        else:  # the vote for oneself counts, and is spoken of, only once it is on disk
            self._after_sync.append(own)
            self._after_sync.extend(requests)

    def _become_leader(self) -> None:
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        self.progress = {
            peer: Progress(self.log.last_index + 1)
            for peer in sorted(self.config.everyone - {self.id})
        }
        self._config_index = self.log.last_index  # until then, assume one may be pending
        self._append([(self.term, EntryKind.EMPTY, b"")], bounded=False)  # commits what earlier terms left (5.4.2)

    # -- voting --------------------------------------------------------------------------

    def _on_vote_request(self, m: Message) -> None:
        pre = m.kind == Kind.PRE_VOTE
        up_to_date = (m.log_term, m.index) >= (self.log.last_term, self.log.last_index)
        if pre:
            # grant when it could win: nobody leads us, or its term is beyond ours
            free = m.term > self.term or (not self.leader and self.vote in ("", m.frm))
        else:
            free = self.vote == m.frm or (not self.vote and not self.leader)
        granted = up_to_date and free
        if pre:
            reply_term = m.term if granted else self.term
            self._messages.append(
                Message(Kind.PRE_VOTE_REPLY, self.id, m.frm, reply_term, reject=not granted)
            )
            return
        if granted:
            self.vote = m.frm
            self._elapsed = 0
        self._after_sync.append(
            Message(Kind.VOTE_REPLY, self.id, m.frm, self.term, reject=not granted)
        )

    def _on_vote_reply(self, m: Message) -> None:
        self._votes.setdefault(m.frm, not m.reject)
        granted = {peer for peer, yes in self._votes.items() if yes}
        refused = set(self._votes) - granted
        if self.config.has_quorum(granted):
            if self.role is Role.PRE_CANDIDATE:
                self._campaign(pre=False)
            else:
                self._become_leader()
        elif self.config.has_quorum(refused):
            self._become_follower(self.term, "")

    # -- steps by role -------------------------------------------------------------------

    def _step_follower(self, m: Message) -> None:
        if m.kind == Kind.APPEND:
            self._hear(m.frm)
            self._on_append(m)
        elif m.kind == Kind.HEARTBEAT:
            self._hear(m.frm)
            self.log.commit_to(min(m.commit, self.log.last_index))
            self._send(m.frm, Kind.HEARTBEAT_REPLY, context=m.context, index=self.log.last_index)
        elif m.kind == Kind.SNAPSHOT_DONE:
            self._hear(m.frm)
        elif m.kind == Kind.TIMEOUT_NOW and self.id in self._voting():
            self._campaign(pre=False, forced=True)

    def _step_candidate(self, m: Message) -> None:
        if m.kind in (Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT_DONE):
            self._become_follower(m.term, m.frm)
            self._step_follower(m)
        elif (m.kind == Kind.PRE_VOTE_REPLY and self.role is Role.PRE_CANDIDATE) or (
            m.kind == Kind.VOTE_REPLY and self.role is Role.CANDIDATE
        ):
            self._on_vote_reply(m)

    def _step_leader(self, m: Message) -> None:
        if m.kind == Kind.APPEND_REPLY and m.frm == self.id:
            if self._advance_commit():
                self._broadcast_append(even_empty=True)
            return
        progress = self.progress.get(m.frm)
        if progress is None:
            return
        progress.active = True
        if m.kind == Kind.APPEND_REPLY:
            self._on_append_reply(m, progress)
        elif m.kind == Kind.HEARTBEAT_REPLY:
            self._on_heartbeat_reply(m, progress)
        elif m.kind == Kind.RECEIVED:
            self._on_received(m, progress)

    def _hear(self, leader: str) -> None:
        self._elapsed = 0
        self.leader = leader

    # -- replication ---------------------------------------------------------------------

    def _on_append(self, m: Message) -> None:
        if m.index < self.log.commit:  # all of that is decided: say how far we are
            self._acknowledge(m.frm, self.log.commit)
            return
        if self.log.matches(m.index, m.log_term):
            last_new = self.log.merge(m.index, m.entries)
            if self._configs[-1][0] > m.index or any(e[1] == EntryKind.CONFIG for e in m.entries):
                self._find_configs(m.index + 1)
            self.log.commit_to(min(m.commit, last_new))
            self._acknowledge(m.frm, last_new)
            return
        hint = self.log.conflict_hint(min(m.index, self.log.last_index), m.log_term)
        self._send(
            m.frm, Kind.APPEND_REPLY, reject=True, index=m.index, hint=hint,
            log_term=self.log.term(hint),
        )  # fmt: skip

    def _acknowledge(self, leader: str, index: int) -> None:
        """Promise entries up to ``index`` once they are on disk; say at once that a slow disk has them to do."""
        self._after_sync.append(
            Message(Kind.APPEND_REPLY, self.id, leader, self.term, index=index)
        )
        if self.lagging and index > self.log.stable:
            self._messages.append(
                Message(Kind.RECEIVED, self.id, leader, self.term, index, commit=self.log.stable)
            )

    def _on_append_reply(self, m: Message, progress: Progress) -> None:
        if m.reject:
            if m.index <= progress.match or (progress.state == "probe" and m.index != progress.next - 1):
                return  # an old answer
            floor = self.log.conflict_hint(m.hint, m.log_term) if m.log_term else m.hint
            progress.next = max(min(m.index, floor + 1), progress.match + 1)
            progress.state = "probe"
            progress.probe_sent = False
            progress.inflight.clear()
            self._send_append(m.frm)
            return
        if m.index > self.log.last_index:
            raise AssertionError(f"{m.frm} acknowledged {m.index}, beyond the leader's log")
        was_probing = progress.state != "replicate"
        moved = m.index > progress.match
        progress.match = max(progress.match, m.index)
        progress.next = max(progress.next, m.index + 1)
        if progress.state == "snapshot" and progress.match < self.log.snapshot_index:
            return
        if was_probing and (moved or progress.state == "probe"):
            progress.state = "replicate"
            progress.probe_sent = False
            progress.inflight.clear()
            progress.next = progress.match + 1
        while progress.inflight and progress.inflight[0] <= m.index:
            progress.inflight.popleft()
        if moved and self._advance_commit():
            self._broadcast_append(even_empty=True)  # followers' clients wait for the news
        elif progress.next <= self.log.last_index:
            self._send_append(m.frm)
        if m.frm == self._transfer_to and progress.match == self.log.last_index:
            self._send(m.frm, Kind.TIMEOUT_NOW)

    def _on_heartbeat_reply(self, m: Message, progress: Progress) -> None:
        progress.probe_sent = False
        if progress.match < self.log.last_index and progress.state != "snapshot":
            self._send_more(m.frm, progress, m.index)
        if m.context and m.context == self._read_round and self._reads_in_round:
            self._read_acks.add(m.frm)
            self._finish_read_round()

    def _on_received(self, m: Message, progress: Progress) -> None:
        """A follower has entries up to ``index`` in memory; its disk does not, and has up to ``commit``.

        That counts for nothing, but its log is known to agree: it need not be probed any more.
        """
        progress.durable = max(progress.durable, m.commit)
        if progress.state == "probe" and progress.match <= m.index <= self.log.last_index:
            progress.state = "replicate"
            progress.probe_sent = False
            progress.inflight.clear()
            progress.inflight.append(m.index)
            progress.next = m.index + 1
            self._send_append(m.frm)

    def _send_more(self, to: str, progress: Progress, received: int) -> None:
        """A follower lacks entries, or says nothing of them: its log ends at ``received``.

        What it has and does not acknowledge waits for its disk; that may be so much and no more.
        Should its log end in other entries, the next append finds out.
        """
        if len(progress.inflight) >= self.settings.inflight_appends_max:
            oldest = progress.inflight[0]
            if received < oldest:
                if oldest != progress.inflight_at_heartbeat:
                    return  # it may still be on its way
                progress.inflight.clear()  # lost, from where its log ends
                progress.next = min(max(progress.match, received), self.log.last_index) + 1
            elif self._unsynced_bytes(progress) < self.settings.unsynced_bytes_max:
                progress.inflight.popleft()
            else:
                self._send_entries(to, progress.next - 1, ())  # how far the log is decided
                return
        self._send_append(to, even_empty=True)

    def _unsynced_bytes(self, progress: Progress) -> int:
        low, high = max(progress.match, progress.durable), progress.next - 1
        counted_low, counted_high, size = progress.counted
        if self.log.snapshot_index <= counted_low <= low and counted_high <= high:
            size += self.log.bytes_between(counted_high, high) - self.log.bytes_between(counted_low, low)
        else:
            size = self.log.bytes_between(low, high)
        progress.counted = (low, high, size)
        return size

    def _append(self, entries: list[Entry], bounded: bool = True) -> int:
        if self.role is not Role.LEADER:
            raise NotLeaderError(self.leader)
        if self._transfer_to:
            raise ProposalDroppedError("leadership is being handed over")
        size = sum(len(entry[2]) for entry in entries)
        if bounded and self._uncommitted_bytes and (
            self._uncommitted_bytes + size > self.settings.uncommitted_bytes_max
        ):
            raise ProposalDroppedError(
                f"uncommitted_bytes_max: {self.settings.uncommitted_bytes_max} bytes wait for commit"
            )
        self._uncommitted_bytes += size
        first = self.log.last_index + 1
        self.log.append(entries)
        for offset, entry in enumerate(entries):
            if entry[1] == EntryKind.CONFIG:
                self._config_index = first + offset
                self._find_configs(first + offset)
        # the leader's own acknowledgement, due when these entries are on its disk
        self._after_sync.append(
            Message(Kind.APPEND_REPLY, self.id, self.id, self.term, index=self.log.last_index)
        )
        self._broadcast_append()
        return first

    def _broadcast_append(self, even_empty: bool = False) -> None:
        for peer in self.progress:
            self._send_append(peer, even_empty)

    def _send_append(self, to: str, even_empty: bool = False) -> None:
        progress = self.progress[to]
        if progress.state == "snapshot":
            return
        if progress.state == "probe" and progress.probe_sent:
            return
        limit = self.settings.inflight_appends_max
        while True:
            if progress.state == "replicate" and len(progress.inflight) >= limit:
                return
            before = progress.next - 1
            if before < self.log.snapshot_index:
                if progress.active:
                    progress.state = "snapshot"
                    self._snapshots.append(to)
                return
            entries = self.log.entries_from(progress.next, self.settings.append_bytes_max)
            if not entries and progress.state == "replicate" and not even_empty:
                return
            even_empty = False
            self._send_entries(to, before, entries)
            if progress.state == "probe":
                progress.probe_sent = True
                return
            if not entries:
                return
            progress.next += len(entries)
            progress.inflight.append(progress.next - 1)

    def _send_entries(self, to: str, before: int, entries: tuple[Entry, ...]) -> None:
        term_before, commit = self.log.term(before), self.log.commit
        self._messages.append(
            Message(Kind.APPEND, self.id, to, self.term, before, term_before, commit, entries)
        )

    def _advance_commit(self) -> bool:
        """Commit what a quorum has on disk, if it is of this term (5.4.2)."""
        match = {peer: progress.match for peer, progress in self.progress.items()}
        match[self.id] = self.log.stable
        index = self.config.committed(match)
        if index <= self.log.commit or self.log.term(index) != self.term:
            return False
        self._uncommitted_bytes = max(
            0, self._uncommitted_bytes - self.log.bytes_between(self.log.commit, index)
        )
        self.log.commit_to(index)
        if self._reads_waiting:
            self._start_read_round()
        return True

    # -- heartbeats and reads ------------------------------------------------------------

    def _broadcast_heartbeat(self, peers: Iterable[str]) -> None:
        context = self._read_round if self._reads_in_round else 0
        for peer in peers:
            progress = self.progress[peer]
            commit = min(progress.match, self.log.commit)
            progress.inflight_at_heartbeat = progress.inflight[0] if progress.inflight else 0
            self._messages.append(
                Message(Kind.HEARTBEAT, self.id, peer, self.term, commit=commit, context=context)
            )

    def _start_read_round(self) -> None:
        if self._reads_in_round or not self._reads_waiting:
            return
        if self.log.term(self.log.commit) != self.term:
            return  # not known yet what earlier terms committed (6.4, step 1)
        self._read_round += 1
        self._read_round_index = self.log.commit
        self._read_acks = {self.id}
        self._reads_in_round, self._reads_waiting = self._reads_waiting, []
        if self._finish_read_round():
            return
        # A quorum is enough to confirm (6.4), so those who answered first the last time are asked alone; who
        # is silent this time costs a tick.
        quick = self._read_quick & self._voting()
        self._read_asked = quick if self.config.has_quorum(quick | {self.id}) else frozenset()
        self._broadcast_heartbeat(sorted(quick) if self._read_asked else self.progress)

    def _finish_read_round(self) -> bool:
        if not self.config.has_quorum(self._read_acks):
            return False
        index = self._read_round_index
        self._reads_done.extend((context, index) for context in self._reads_in_round)
        self._reads_in_round = []
        self._read_quick = frozenset(self._read_acks - {self.id})
        self._start_read_round()
        return True

    # -- sending ---------------------------------------------------------------------------

    def _send(
        self, to: str, kind: Kind, *, index: int = 0, log_term: int = 0, reject: bool = False,
        hint: int = 0, context: int = 0,
    ) -> None:  # fmt: skip
        self._messages.append(
            Message(kind, self.id, to, self.term, index, log_term, 0, (), reject, hint, context)
        )
