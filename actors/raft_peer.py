"""The Raft peer: the actor around the brain's pure core.

Owns this host's log, snapshots and copy of the store; moves messages between peers,
commits commands for any local actor, serves reads, watches and lease keepalives.  It
decides nothing that Raft or the store decide, and it may be killed at any moment: all it
needs is on disk or comes from its peers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from brain import auth, kv, tree  # noqa: F401 - they register their commands with the store
from brain.codec import decode_own
from brain.journal import Journal, Opened
from brain.leases import LeaseKeeper, LogClock
from brain.raft import (
    Config,
    HardState,
    Kind,
    Message,
    Raft,
    Ready,
    Role,
    Settings,
    supersedes,
)
from brain.raftlog import EntryKind
from brain.snapshot import Meta
from brain.store import Event, Store
from brain.wal import DamagedLogError
from kernel.actor import Actor, handles
from kernel.mailbox import Promise
from kernel.ports import DiskError, Ports
from kernel.stats import Histogram, Latency
from transport.router import LinkDown, RemoteError, Router

from .comparison import COMPARE_S, Comparison
from .membership import Membership
from .proposals import STAMP, Proposals
from .raft_messages import (
    CORRUPT,
    NO_LEADER,
    BrainError,
    BrainUp,
    ChangeConfig,
    Forward,
    ForwardedChange,
    KeepAlive,
    LeaderChanged,
    Propose,
    Quarantine,
    Query,
    Range,
    ReadIndex,
    Save,
    SnapshotChunk,
    StateHash,
    Status,
    StillMember,
    TimeToLive,
    TransferLeadership,
    Unwatch,
    Watch,
    Watching,
)
from .reads import ASK_S, Reads
from .snapshots import OVERTAKEN, Snapshots
from .watches import Watches

logger = logging.getLogger("argosy.raft")

#: Seconds of a Raft tick.
TICK_S = 0.05
#: A gap between ticks longer than this is a pause of the process, not the passing of leases.
PAUSE_S = 0.5
#: A leader whose disk has not finished a write for so long (seconds) hands over.
DISK_STALL_S = 1.0
#: Seconds that the leader has to answer in a follower's stead.
RELAY_S = 6.0
#: Seconds that a quorum has to confirm that leases may be kept alive, or a backup begun.
KEEP_ALIVE_S, SAVE_S = 2.0, 5.0
#: Seconds that an entry of the leader's own making (the end of leases) may take.
OWN_S = 5.0
#: What a leader may refuse, which its follower passes on word for word.
REFUSALS = ("config_busy", "not_caught_up", "missing", "config_change", "no_space", "overloaded", CORRUPT)


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Limits of the actor; Raft's own are in ``brain.raft.Settings``."""

    raft: Settings = field(default_factory=Settings)
    tick_s: float = TICK_S
    #: entries applied, or bytes of log written, since the last snapshot before the next is made
    snapshot_entries: int = 100_000
    snapshot_bytes: int = 64 * 1024 * 1024
    #: entries, and bytes of them, kept before a snapshot for followers that lag
    trailing_entries: int = 5_000
    trailing_bytes: int = 16 * 1024 * 1024
    segment_bytes: int = 16 * 1024 * 1024
    #: bytes of the store at which writes from outside that make it grow are refused
    quota_bytes: int = 2 * 1024 * 1024 * 1024
    #: (id, address) of members, for a host that joined and has no configuration of its own yet
    seeds: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Pump:
    """To itself: everything that arrived before this is in; act on it as one batch."""


class RaftPeer(Actor):
    """See the module docstring; its messages are in ``raft_messages``."""

    mailbox_messages_max = 200_000

    def __init__(
        self, machine: str, ports: Ports, router: Router, settings: PeerSettings | None = None,
        raft_class: type[Raft] = Raft,
    ) -> None:  # fmt: skip
        super().__init__()
        self.machine = machine
        self._ports = ports
        self.router = router
        self.settings = settings or PeerSettings()
        self._raft_class = raft_class
        self.raft: Raft = None  # type: ignore[assignment]
        self.store = Store()
        self.journal = Journal(ports.disk, self.settings.segment_bytes)
        self._pumping = False
        self._syncing = False
        self._sync_begun = 0.0
        self._handed_over = 0.0  # when leadership was last offered because of a slow disk
        self._sync_queue: deque[Ready] = deque()
        self.snapshots = Snapshots(self)
        self.proposals = Proposals(self, ports.rng.token()[:12])
        self.reads = Reads(self)
        self.watches = Watches(self)
        self.membership = Membership(self)
        self._leases = LeaseKeeper()
        self._log_clock = LogClock()
        self._expiring = False
        self._compacting = False
        self._last_tick = 0.0
        self._connected: Config | None = None
        self._published: tuple[str, int] | None = None
        self._last_leader = ""
        self.comparison = Comparison(self)
        self.quarantine = ""  # why this peer must not serve
        # for metrics
        self.sync_seconds = Histogram()
        self.append_seconds = Histogram()
        self.round_trip_seconds: dict[str, Histogram] = {}
        self.latency: dict[str, Latency] = {}
        self._append_sent: dict[str, tuple[int, float]] = {}  # one sample at a time per follower
        self._heartbeat_sent: dict[str, float] = {}
        self.leader_changes = 0
        self.leader_since = 0.0
        self.appends_sent = self.appends_received = 0

    # -- life -----------------------------------------------------------------------------

    def on_start(self) -> None:
        """Wait for writes of an earlier life, then read the disk; messages wait meanwhile."""
        self.actor_inbox.suspended = True
        self.watches.begin(self.actor_inbox.incarnation)
        self._ports.disk.submit([], self.turn(lambda _: self._open()))

    def turn(self, action: Callable[[DiskError | None], None]) -> Callable[[DiskError | None], None]:
        """A callback for the disk that runs ``action`` in this actor's turn, in this life only."""
        inbox = self.actor_inbox
        incarnation = inbox.incarnation

        def done(error: DiskError | None) -> None:
            if inbox.incarnation == incarnation:
                inbox.post(lambda: action(error))

        return done

    def _open(self) -> None:
        try:
            opened = self.journal.open()
        except (DamagedLogError, DiskError) as error:
            self.system.fatal(error)  # no restart makes a damaged file whole
            return
        durable = self.turn(lambda error: self._begin(opened, error))
        self._ports.disk.submit(self.journal.settle(), durable)

    def _begin(self, opened: Opened, error: DiskError | None) -> None:
        """Everything that was read is durable: take part."""
        if error is not None:
            self.system.fatal(error)
            return
        config = opened.meta.config if opened.meta is not None else Config(frozenset())
        self.store = opened.store
        self.snapshots.index = opened.log.snapshot_index
        self.raft = self._raft_class(
            self.machine, config, opened.log, opened.hard_state, self._ports.rng.below,
            self.settings.raft,
        )  # fmt: skip
        if config.voters == {self.machine}:
            for _ in range(self.settings.raft.election_ticks * 2):  # alone: no need to wait
                if self.raft.role is Role.FOLLOWER:
                    self.raft.tick()
        self._last_tick = self.now()
        self.every(self.settings.tick_s, self._tick)
        self.every(COMPARE_S, self.comparison.begin)
        self._connect()
        self.actor_inbox.suspended = False
        self.system.subscribe(LinkDown, self.actor_ref)
        self.system.publish(BrainUp())
        self.reads.catch_up()
        self.kick()

    def _connect(self) -> None:
        """Keep links to all members."""
        self._connected = self.raft.config
        members = self.raft.config.everyone
        known = {member: info[1] for member, info in self.raft.config.info if member in members}
        known = known or dict(self.settings.seeds)
        known.pop(self.machine, None)
        self._ports.net.set_peers(known)

    def _tick(self) -> None:
        now = self.now()
        gap = now - self._last_tick
        self._last_tick = now
        if gap > PAUSE_S:  # this process stood still: leases did not pass meanwhile
            self._leases.forgive(gap)
        if not self.snapshots.installing:
            self.raft.tick()
            self.membership.tick(now)
        if self.raft.role is Role.LEADER:
            self._expire()
            self._make_room()
        self._look_at_disk(now)
        self.proposals.fail_overdue(now)
        self.reads.fail_overdue(now)
        self.snapshots.abandon_idle(now)
        self.kick()

    @handles(LinkDown)
    def _on_link_down(self, message: LinkDown) -> None:
        self.raft.unreachable(message.machine)

    def _look_at_disk(self, now: float) -> None:
        """A leader whose disk stands still hands over, when the others' disks do not."""
        raft = self.raft
        raft.lagging = self._syncing and now - self._sync_begun > DISK_STALL_S
        if not raft.lagging or raft.role is not Role.LEADER or now - self._handed_over < DISK_STALL_S:
            return
        if raft.log.commit > raft.log.stable:
            self._handed_over = now  # ask again after as long
            logger.warning("the disk has not answered for %g s: leadership is handed over", DISK_STALL_S)
            self._on_transfer(TransferLeadership())

    def kick(self) -> None:
        """Act soon on what has come in."""
        if not self._pumping:
            self._pumping = True
            self.actor_inbox.push(_Pump())

    # -- the loop around Ready ----------------------------------------------------------------

    @handles(_Pump)
    def _pump(self, _: _Pump) -> None:
        self._pumping = False
        self.proposals.send()
        self.reads.send()
        raft = self.raft
        while raft.has_ready:
            ready = raft.ready()
            for message in ready.messages:
                self._send(message)
            if ready.must_sync or ready.after_sync:
                self._queue(ready)
                self.sync()
            self._apply(ready)
            for context, index in ready.reads:
                self.reads.point(context, index)
            for peer in ready.snapshots:
                self.snapshots.send(peer)
        if self.snapshots.installing:
            self.sync()
        if raft.config is not self._connected:
            self._connect()
        self.membership.settle()
        self._publish()

    def _send(self, message: Message) -> None:
        if message.to == self.machine:
            self.raft.step(message)
            self.kick()
            return
        if message.kind == Kind.APPEND and message.entries:
            self.appends_sent += 1
            last = message.index + len(message.entries)
            self._append_sent.setdefault(message.to, (last, self.now()))
        elif message.kind == Kind.HEARTBEAT:
            self._heartbeat_sent[message.to] = self.now()
        self.router.tell(message.to, 0, "raft", message)

    def _queue(self, ready: Ready) -> None:
        """What is only to be sent goes with the last that is to be written: a full disk may wait for hours."""
        if ready.must_sync or not self._sync_queue:
            self._sync_queue.append(ready)
            return
        last = self._sync_queue[-1]
        for message in ready.after_sync:
            last.after_sync = [m for m in last.after_sync if not supersedes(message, m)]
            last.after_sync.append(message)

    def sync(self) -> None:
        """Write everything that waits as one batch; what promises it leaves afterwards."""
        while self._sync_queue and not self._syncing:
            if not self._sync_queue[0].must_sync:
                for message in self._sync_queue.popleft().after_sync:
                    self._send(message)
                continue
            batch = list(self._sync_queue)
            self._sync_queue.clear()
            self._syncing = True
            self._write(batch)
        if not self._syncing:
            self.snapshots.log_is_quiet()

    def _write(self, batch: list[Ready]) -> None:
        state: HardState | None = None
        first = 0
        entries: list[Any] = []
        for ready in batch:
            state = ready.hard_state or state
            if ready.entries:
                if entries:  # a later Ready may replace the end of an earlier one, or all of it
                    del entries[max(0, ready.first_index - first) :]
                if not entries:
                    first = ready.first_index
                entries += ready.entries
        begun = self._sync_begun = self.now()
        done = self.turn(lambda error: self._synced(batch, state, first, entries, begun, error))
        self.journal.write(state, first, entries, done)

    def _synced(
        self, batch: list[Ready], state: HardState | None, first: int, entries: list[Any],
        begun: float, error: DiskError | None,
    ) -> None:  # fmt: skip
        if error is not None:  # a failed sync may have lost anything: never go on from it
            self.system.fatal(error)
            return
        self.sync_seconds.observe(self.now() - begun)
        self._syncing = False
        last = first + len(entries) - 1 if entries else 0
        self.raft.persisted(state, last, entries[-1][0] if entries else 0)
        for ready in batch:
            for message in ready.after_sync:
                self._send(message)
        self.sync()
        self.kick()

    @handles(Message)
    def _on_message(self, message: Message) -> None:
        if self.snapshots.installing:
            return  # as if it were lost: the log is about to be replaced
        if message.kind == Kind.APPEND_REPLY:
            sent = self._append_sent.get(message.frm)
            if sent is not None and (message.index >= sent[0] or message.reject):
                del self._append_sent[message.frm]
                self.append_seconds.observe(self.now() - sent[1])
        elif message.kind == Kind.HEARTBEAT_REPLY:
            at = self._heartbeat_sent.pop(message.frm, None)
            if at is not None:
                trips = self.round_trip_seconds.setdefault(message.frm, Histogram())
                trips.observe(self.now() - at)
                self.latency.setdefault(message.frm, Latency()).observe(self.now() - at)
        elif message.kind == Kind.APPEND:
            self.appends_received += 1
        self.raft.step(message)
        self.kick()

    # -- applying ---------------------------------------------------------------------------

    def _apply(self, ready: Ready) -> None:
        if not ready.committed:
            return
        events: list[Event] = []
        for index, (term, kind, data) in ready.committed:
            if kind == EntryKind.COMMAND:
                self._apply_command(data, events)
            elif kind == EntryKind.CONFIG:
                self.raft.apply_config(data)
            elif kind == EntryKind.EMPTY:
                self.proposals.resend_older_than(term)
            self.raft.applied(index)
            self.reads.reached(index)
        self.proposals.counts["applied"] += len(ready.committed)
        if self.raft.role is not Role.LEADER:
            self._log_clock.seen(self.store.log_time_ms, self.now())
        if events:
            self.watches.notify(events)
        self.snapshots.maybe_save()

    def _apply_command(self, data: bytes, events: list[Event]) -> None:
        (now_ms,) = STAMP.unpack_from(data)
        try:
            command = decode_own(data[STAMP.size :])
            origin, seq = command[0], command[1]
        except Exception:  # whatever a library makes of bytes that are no command
            logger.exception("an entry of the log cannot be read; every peer passes it over alike")
            return
        result, fresh = self.store.apply(now_ms, command[2:])
        events += fresh
        if command[2] == "lease_grant" and self.raft.role is Role.LEADER:
            self._arm_lease(command[3])
        self.proposals.applied(origin, seq, result)

    # -- proposals -----------------------------------------------------------------------------

    @handles(Propose)
    def _on_propose(self, message: Propose) -> Promise:
        self._refuse_in_quarantine()
        return self.proposals.propose(message)

    @handles(Forward)
    def _on_forward(self, message: Forward) -> bool:
        return self.proposals.take(message)

    @property
    def disk_full(self) -> str:
        """What waits for room on the disk; empty for nothing."""
        return self._ports.disk.full

    # -- log time and expiry -----------------------------------------------------------------------

    def _log_now_ms(self) -> int:
        """Log time for a new entry."""
        wall_ms = int(self._ports.clock.wall() * 1000)
        return self._log_clock.now_ms(self.store.log_time_ms, wall_ms, self.now())

    def log_time_ms(self) -> int:
        """The log's time as this peer believes; what a TTL is measured against."""
        return self._log_now_ms()

    def _arm_lease(self, lease: int) -> None:
        held = self.store.leases.get(lease)
        if held is not None:
            self._leases.arm(lease, held.ttl_ms, self.now())

    def _expire(self) -> None:
        """The leader alone ends leases and TTLs, by entries in the log."""
        due = self._leases.due(self.now())
        if due:
            self._propose_own(
                ["lease_revoke", due], lambda: self._leases.settled(due, self.store.leases)
            )
        if not self._expiring:
            first = self.store.next_expiry_ms()
            if first and first <= self._log_now_ms():
                self._expiring = True
                self._propose_own(["expire"], self._expired)

    def _make_room(self) -> None:
        """Over the quota only because of history: that goes first, and the alarm with it."""
        store, quota = self.store, self.settings.quota_bytes
        if store.size > quota >= store.bytes_live and store.events and not self._compacting:
            self._compacting = True

            def compacted() -> None:
                self._compacting = False

            self._propose_own(["compact", store.revision, True], compacted)

    def _expired(self) -> None:
        self._expiring = False

    def _propose_own(self, command: list[Any], after: Callable[[], None]) -> None:
        promise = self.proposals.propose(Propose(command, OWN_S, self.raft.term))
        inbox = self.actor_inbox

        class _Then:
            def set(self, value: Any) -> None:
                inbox.post(after)

            def set_exception(self, exc_info: Any) -> None:
                inbox.post(after)

        promise.bind(_Then())

    @handles(KeepAlive)
    def _on_keep_alive(self, message: KeepAlive) -> Promise:
        """Extend leases once a quorum confirms that this peer still leads.

        Without that round a deposed leader could promise time that its successor does not give.
        """
        promise = Promise()
        if self.raft.role is not Role.LEADER:
            self._relay(message, promise)
            return promise

        term = self.raft.term

        def confirmed(_: int) -> None:
            if (self.raft.role, self.raft.term) != (Role.LEADER, term):  # another ends the leases now
                promise.fail(BrainError(NO_LEADER, "this peer no longer leads"))
                return
            answer: dict[str, int] = {}
            for lease in message.leases:
                held = self.store.leases.get(lease)
                if held is None or self._leases.is_ending(lease):
                    answer[str(lease)] = 0
                else:
                    answer[str(lease)] = held.ttl_ms
                    self._arm_lease(lease)
            promise.reply(answer)

        self.reads.queue(confirmed, promise.fail, KEEP_ALIVE_S)
        return promise

    @handles(TimeToLive)
    def _on_time_to_live(self, message: TimeToLive) -> Any:
        if self.raft.role is not Role.LEADER:
            promise = Promise()
            self._relay(message, promise)
            return promise
        held = self.store.leases.get(message.lease)
        if held is None:
            return [-1, 0]
        return [self._leases.left_ms(message.lease, self.now()), held.ttl_ms]

    def _relay(self, message: Any, promise: Promise) -> None:
        """Ask the leader in the asker's stead."""
        if not self.raft.leader:
            promise.fail(BrainError(NO_LEADER, "no leader is known"))
            return

        def answered(value: Any, error: BaseException | None) -> None:
            if error is None:
                promise.reply(value)
            elif isinstance(error, RemoteError) and error.code in REFUSALS:
                promise.fail(BrainError(error.code, str(error)))  # the leader's own word
            else:
                promise.fail(BrainError(NO_LEADER, f"the leader did not answer: {error}"))

        self.ask_then(self.router.ref(self.raft.leader, "raft"), message, RELAY_S, answered)

    # -- reads ----------------------------------------------------------------------------------

    @handles(Range)
    def _on_range(self, message: Range) -> Any:
        def read(store: Store) -> Any:
            found = store.range(message.key, message.end, message.revision, message.limit)
            return store.revision, found

        return self._on_query(Query(read, message.linearizable))

    @handles(Query)
    def _on_query(self, message: Query) -> Any:
        self._refuse_in_quarantine()
        return self.reads.query(message)

    @handles(ReadIndex)
    def _on_read_index(self, _: ReadIndex) -> Promise:
        promise = Promise()
        if self.raft.role is Role.LEADER:
            self.reads.queue(promise.reply, promise.fail, ASK_S)
        else:
            promise.fail(BrainError(NO_LEADER, "not the leader"))
        return promise

    # -- watches ------------------------------------------------------------------------------------

    @handles(Watch)
    def _on_watch(self, message: Watch) -> Watching:
        self._refuse_in_quarantine()
        return self.watches.add(message)

    @handles(Unwatch)
    def _on_unwatch(self, message: Unwatch) -> None:
        self.watches.remove(message.watch)

    # -- snapshots (see ``snapshots.py``) --------------------------------------------------------------

    @handles(Save)
    def _on_save(self, _: Save) -> Promise:
        self._refuse_in_quarantine()
        promise = Promise()

        def begin(_: int) -> None:
            try:
                self.snapshots.read_out(promise.reply)
            except BrainError as error:
                promise.fail(error)

        self.reads.queue(begin, promise.fail, SAVE_S)
        return promise

    @handles(SnapshotChunk)
    def _on_snapshot_chunk(self, message: SnapshotChunk) -> Any:
        return self.snapshots.take(message)

    def restored(self, meta: Meta, store: Store, leader: str) -> None:
        """A snapshot of the leader is durable: go on from it."""
        self._last_tick = self.now()
        self.raft.restored(meta.index, meta.term, meta.config, leader)
        for image in list(self.store.images):
            image.close()
        self.store = store
        self.reads.reached(meta.index)
        self.proposals.fail_sent(OVERTAKEN)
        self._connect()
        self.watches.clear()
        self.system.publish(BrainUp())
        self.kick()

    # -- membership and status -------------------------------------------------------------------------

    @handles(ChangeConfig)
    def _on_change_config(self, message: ChangeConfig) -> Any:
        if self.raft.role is Role.LEADER:
            return self.membership.change(message)
        promise = Promise()
        self._relay(ForwardedChange(message.change, message.member, list(message.info)), promise)
        return promise

    @handles(ForwardedChange)
    def _on_forwarded_change(self, message: ForwardedChange) -> Any:
        name, address, url = message.info
        return self._on_change_config(
            ChangeConfig(message.change, message.member, (name, address, url))
        )

    @handles(StillMember)
    def _on_still_member(self, message: StillMember) -> int | Promise:
        return self.membership.left_out(message.member)

    @handles(StateHash)
    def _on_state_hash(self, _: StateHash) -> list[int]:
        return [self.store.revision, self.store.hash]

    @handles(Quarantine)
    def _on_quarantine(self, message: Quarantine) -> None:
        self.rest(message.revision)

    def rest(self, revision: int) -> None:
        """Serve nobody: this store is not what the others decided.  The log is still kept."""
        if not self.quarantine:
            self.quarantine = (
                f"this peer's store differs from the others' at revision {revision}: it serves nobody; "
                "start its host again, with --resync if that does not help"
            )
            logger.critical("%s", self.quarantine)
            self._on_transfer(TransferLeadership())

    def _refuse_in_quarantine(self) -> None:
        if self.quarantine:
            raise BrainError(CORRUPT, self.quarantine)

    @handles(TransferLeadership)
    def _on_transfer(self, message: TransferLeadership) -> None:
        if self.raft.role is not Role.LEADER:
            return
        best = message.to
        if not best:
            ahead = [
                (p.match, peer) for peer, p in self.raft.progress.items()
                if p.active and peer in self.raft.config.voters
            ]  # fmt: skip
            best = max(ahead)[1] if ahead else ""
        if best:
            self.raft.transfer(best)
            self.kick()

    @handles(Status)
    def _on_status(self, _: Status) -> dict[str, Any]:
        raft = self.raft
        return {
            "id": self.machine,
            "role": raft.role.name.lower(),
            "leader": raft.leader,
            "term": raft.term,
            "commit_index": raft.log.commit,
            "applied_index": raft.log.applied,
            "revision": self.store.revision,
            "bytes": self.store.size,
            "bytes_live": self.store.bytes_live,
            "quota_bytes": self.settings.quota_bytes,
            "disk_full": self._ports.disk.full,
            "quarantine": self.quarantine,
            "hash": self.store.hash,
            "voters": sorted(raft.config.voters),
            "learners": sorted(raft.config.learners),
            "info": {m: list(fields) for m, fields in raft.config.info if m in raft.config.everyone},
            "active": sorted(p for p, progress in raft.progress.items() if progress.active),
            "match": {p: progress.match for p, progress in raft.progress.items()},
        }

    def _publish(self) -> None:
        raft = self.raft
        now = (raft.leader, raft.term)
        if now == self._published:
            return
        if raft.leader and raft.leader != self._last_leader:
            self.leader_changes += 1
            self.leader_since = self.now()
            self._last_leader = raft.leader
        self._published = now
        leading = raft.role is Role.LEADER
        self._expiring = False
        self._compacting = False
        if leading:
            held = ((lease, entry.ttl_ms) for lease, entry in self.store.leases.items())
            self._leases.lead(held, self.now())
        else:
            self._leases.stand_down()
        self.system.publish(LeaderChanged(raft.leader, raft.term, leading))
        self.proposals.new_term()
        self.reads.new_term()
        self.snapshots.new_term()
        self.kick()
        if leading and self.quarantine:
            self._on_transfer(TransferLeadership())
