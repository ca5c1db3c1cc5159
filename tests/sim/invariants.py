"""What must hold at every step of a run, whatever fails: the watchtower looks at all peers.

It keeps the one true log (every entry that any peer ever called committed) and applies it
to a store of its own, so each peer is compared with what it must be, not with another
peer.  It only looks; it draws nothing and changes nothing, so a run is the same with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.raft_messages import BrainUp, Watch, Watched
from brain import snapshot, wal
from brain.codec import decode
from brain.raft import Config, HardState, Kind, Message, Raft, Role
from brain.raftlog import Entry, EntryKind
from brain.store import LOCKS_PREFIX, Event, Store, StoreError
from brain.wal import DamagedLogError
from kernel.sim import SimDisk

from .linearizability import Operation

if TYPE_CHECKING:
    from .clients import Call
    from .cluster import SimCluster

#: Of the acknowledged appends, and of the commits, every so many are looked up on the disks.
ACKS_SAMPLED = 4
COMMITS_SAMPLED = 8
#: Bytes of log time before the command of an entry.
_STAMP_BYTES = 8


class Violation(AssertionError):
    """An invariant does not hold."""


# -- what a crash at this moment would leave ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class DurableLog:
    """What a peer would start from after the worst power cut."""

    hard_state: HardState
    base: int
    base_term: int
    entries: list[Entry]

    def term(self, index: int) -> int:
        """Term of the entry at ``index``; 0 when it is not there."""
        if index == self.base:
            return self.base_term
        at = index - self.base - 1
        return self.entries[at][0] if 0 <= at < len(self.entries) else 0

    def holds(self, index: int, term: int) -> bool:
        """Whether entry ``index`` of that term would be there, itself or in a snapshot."""
        return index <= self.base or self.term(index) == term


def durable_files(disk: SimDisk) -> dict[str, bytes]:
    """The files as they were at the last sync: every change after it lost, also of names."""
    files = dict(disk._files)  # noqa: SLF001
    for _, name, before in reversed(disk._directory):  # noqa: SLF001
        if before is None:
            files.pop(name, None)
        else:
            files[name] = before
    return {name: bytes(file.durable) for name, file in files.items()}


def durable_log(files: dict[str, bytes]) -> DurableLog:
    """Read the files as a starting peer would; a snapshot's state is not looked at."""
    base = base_term = 0
    snapshots = sorted(i for name in files if (i := snapshot.file_index(name)) is not None)
    if snapshots:
        name = snapshot.file_name(snapshots[-1])
        base, base_term, _ = snapshot.head(name, files[name])
    segments = sorted(s for name in files if (s := wal.segment_sequence(name)) is not None)
    found = wal.recover([(n := wal.segment_name(s), s, files[n]) for s in segments])
    if found is None:
        return DurableLog(HardState(0, ""), base, base_term, [])
    first, entries = found.first_index, found.entries
    if first > base + 1:
        raise DamagedLogError("the log", 0, f"it starts at {first}, the snapshot ends at {base}")
    if base >= first + len(entries):
        entries = []
    elif base >= first and entries[base - first][0] != base_term:
        entries = []
    else:
        entries = entries[base - first + 1 :]
    return DurableLog(found.hard_state, base, base_term, entries)


# -- the one true log -------------------------------------------------------------------------------


class Chronicle:
    """Every committed entry, in order, and the store they make."""

    def __init__(
        self, config: Config, clock: Callable[[], float], tick: Callable[[], int]
    ) -> None:
        self.config = config
        self.configs = [(0, config)]
        self._clock = clock
        self._tick = tick
        self.entries: list[Entry] = []
        self.commit_terms: list[int] = []  # in which each entry was first seen committed
        self.store = Store()
        self.events: list[Event] = []  # from revision 2 on
        self.hashes = [self.store.hash]  # of the store, by index
        self.revisions = [self.store.revision]
        self.terms_of_values: dict[bytes, int] = {}
        self.texts: set[str] = set()  # reasons of lock commands, which are unique
        self.granted: dict[int, tuple[float, int]] = {}  # lease -> (when, ttl in ms)
        self.revoked: dict[int, int] = {}  # lease -> event
        self.revoked_at: dict[int, float] = {}
        self._done: set[tuple[str, int]] = set()

    @property
    def last(self) -> int:
        """Index of the newest entry."""
        return len(self.entries)

    def append(self, entry: Entry, seen_in: int) -> None:
        """The next entry is committed; a peer in term ``seen_in`` was the first to know."""
        self.entries.append(entry)
        self.commit_terms.append(seen_in)
        term, kind, data = entry
        if kind == EntryKind.COMMAND:
            command = decode(data[_STAMP_BYTES:])
            asked = (command[0], command[1])
            if asked in self._done:
                raise Violation(f"entry {self.last} does {command[2:]} a second time")
            self._done.add(asked)
            self._note(term, command[2:])
            _, events = self.store.apply(int.from_bytes(data[:_STAMP_BYTES], "little"), command[2:])
            self.events += events
            for event in events:
                self._check_locks(event)
        elif kind == EntryKind.CONFIG:
            self.config = Config.load(decode(data))
            self.configs.append((len(self.entries), self.config))
        self.hashes.append(self.store.hash)
        self.revisions.append(self.store.revision)

    def _note(self, term: int, command: list[Any]) -> None:
        verb = command[0]
        if verb == "put":
            self.terms_of_values[command[2]] = term
        elif verb == "txn":
            for step in command[2]:
                if step[0] == "put":
                    self.terms_of_values[step[2]] = term
        elif verb == "lock" and "reason" in command[3]:
            self.texts.add(command[3]["reason"])
        elif verb == "lease_grant" and command[1] not in self.store.leases:
            self.granted[command[1]] = (self._clock(), command[2])
        elif verb == "lease_revoke":
            for lease in command[1]:
                if lease in self.store.leases:
                    self.revoked[lease] = self._tick()
                    self.revoked_at[lease] = self._clock()

    def _check_locks(self, event: Event) -> None:
        """No group has more holders than it allows, in any state there ever is."""
        for key, item, _ in event.changes:
            if key.startswith(LOCKS_PREFIX) and item is not None:
                state = json.loads(item.value)
                if len(state["holders"]) > state["max"]:
                    raise Violation(f"revision {event.revision}: too many hold the lock: {state}")
                tokens = [holder["token"] for holder in state["holders"].values()]
                if any(token > event.revision for token in tokens):
                    raise Violation(f"revision {event.revision}: a token of the future: {state}")


# -- watching the peers -----------------------------------------------------------------------------


class _View:
    """What was last seen of one life of one peer."""

    __slots__ = ("applied", "commit", "machine", "mark", "raft", "revision")

    def __init__(self, machine: str) -> None:
        self.machine = machine
        self.raft: Raft | None = None
        self.mark: Any = None
        self.commit = 0
        self.applied = 0
        self.revision = 0


class Watchtower:
    """Checks every invariant that can be checked while the run goes on."""

    def __init__(self, cluster: SimCluster, white_box: bool = True) -> None:
        self._cluster = cluster
        self._white_box = white_box
        self._views = [_View(name) for name in cluster.names]
        self.chronicle = Chronicle(
            cluster.config, lambda: cluster.world.now, cluster.history.tick
        )
        self.leaders: dict[int, tuple[str, int]] = {}  # term -> (machine, life)
        self._votes: dict[tuple[str, int], str] = {}
        self._terms_spoken: dict[str, int] = dict.fromkeys(cluster.names, 0)
        self._accusation: str | None = None
        self._acks = 0
        self._unsampled = 0
        self._kept: dict[int, tuple[float, int]] = {}
        self.given_back: set[int] = set()  # leases that their owners ended themselves
        self.watched: list[tuple[str, Event]] = []
        self.checked = dict.fromkeys(
            ("steps", "votes", "acks", "commits", "installed", "watched"), 0
        )

    def removed(self, name: str, index: int) -> None:
        """A machine ends because it was told that it is no member as of an index: it must be so."""
        configs = self.chronicle.configs
        decided = index <= len(self.chronicle.entries)
        if not decided or name in next(c for at, c in reversed(configs) if at <= index).everyone:
            self.accuse(f"{name} was told that it is no member as of {index}, which is not so")

    def accuse(self, what: str) -> None:
        """Something is wrong, found where raising would be swallowed; raised at the next step."""
        if self._accusation is None:
            self._accusation = what

    # -- every step -------------------------------------------------------------------------

    def look(self) -> None:
        """Called after every step; looks closely only at what changed."""
        if self._accusation is not None:
            raise Violation(self._accusation)
        self.checked["steps"] += 1
        cluster = self._cluster
        for view in self._views:
            peer = cluster.peer(view.machine)
            if peer is None or peer.raft is None:
                continue
            raft = peer.raft
            log = raft.log
            if raft is not view.raft:
                self._new_life(view, raft)
            mark = (raft.term, raft.role, log.commit, log.applied, log.snapshot_index)
            if mark != view.mark:
                view.mark = mark
                self._changed(view, raft, peer.store)
        if self.watched:
            self._check_watched()

    def _check_watched(self) -> None:
        """What a watch shows is what the true log did at that revision."""
        watched, self.watched = self.watched, []
        for machine, event in watched:
            at = event.revision - 2
            events = self.chronicle.events
            if at >= len(events) or events[at] != event:
                raise Violation(f"the watch on {machine} shows {event}, which did not happen")
        self.checked["watched"] += len(watched)

    def _new_life(self, view: _View, raft: Raft) -> None:
        view.raft = raft
        view.mark = None
        view.commit = view.applied = raft.log.snapshot_index
        view.revision = 0
        self._cluster.world.note(
            f"{view.machine} opens in term {raft.term} with snapshot {raft.log.snapshot_index}, "
            f"log to {raft.log.last_index}"
        )
        if self._white_box and raft.term < self._terms_spoken[view.machine]:
            raise Violation(
                f"{view.machine} promised something in term {self._terms_spoken[view.machine]} "
                f"and starts again in term {raft.term}"
            )

    def _changed(self, view: _View, raft: Raft, store: Store) -> None:
        log = raft.log
        name = view.machine
        if raft.role is Role.LEADER:
            self._check_leader(name, raft)
        if log.commit < view.commit:
            raise Violation(f"{name}: commit goes back from {view.commit} to {log.commit}")
        if log.applied < view.applied:
            raise Violation(f"{name}: applied goes back from {view.applied} to {log.applied}")
        if self._white_box and log.applied > log.commit:
            raise Violation(f"{name}: applied {log.applied} is beyond commit {log.commit}")
        if log.commit > view.commit:
            self._check_commit(view, raft)
        if log.applied != view.applied or not view.revision:
            self._check_state(name, log.applied, store, view.revision)
        view.commit, view.applied, view.revision = log.commit, log.applied, store.revision

    def _check_leader(self, name: str, raft: Raft) -> None:
        me = (name, self._cluster.world.machines[name].life)
        before = self.leaders.get(raft.term)
        if before == me:
            return
        if before is not None:
            raise Violation(f"term {raft.term} has two leaders: {before} and {me}")
        self.leaders[raft.term] = me
        self._cluster.world.note(f"{name} leads in term {raft.term}")
        if not self._white_box:
            return
        log, chronicle = raft.log, self.chronicle
        for index in range(max(log.snapshot_index, 1), chronicle.last + 1):
            if chronicle.commit_terms[index - 1] >= raft.term:
                break  # a late winner of a term that is over need not know what came after
            if log.term(index) != chronicle.entries[index - 1][0]:
                raise Violation(
                    f"{name} leads in term {raft.term} without the committed entry {index}"
                )

    def _check_commit(self, view: _View, raft: Raft) -> None:
        """Committed entries never change and are the same everywhere; new ones are recorded."""
        log, chronicle, name = raft.log, self.chronicle, view.machine
        if log.snapshot_index > view.commit:
            self.checked["installed"] += 1
            known = log.snapshot_index <= chronicle.last
            if not known or chronicle.entries[log.snapshot_index - 1][0] != log.snapshot_term:
                raise Violation(f"{name} has a snapshot of {log.snapshot_index}, not committed so")
        low = max(view.commit, log.snapshot_index) + 1
        fresh = False
        for index, entry in log.slice_bounded(low, log.commit + 1, 1 << 62):
            if index <= chronicle.last:
                if chronicle.entries[index - 1] != entry:
                    raise Violation(
                        f"entry {index} is committed on {name} as {entry}, "
                        f"elsewhere as {chronicle.entries[index - 1]}"
                    )
            elif index == chronicle.last + 1:
                chronicle.append(entry, raft.term)
                fresh = True
            else:
                raise Violation(f"{name} commits {index}, nobody has committed {index - 1}")
        if fresh and self._white_box:
            self._unsampled += 1
            if self._unsampled >= COMMITS_SAMPLED:
                self._unsampled = 0
                self._check_majority(name, raft, chronicle.last)

    def _check_majority(self, name: str, raft: Raft, index: int) -> None:
        """What one peer calls committed is on the disks of a majority, also after a power cut."""
        self.checked["commits"] += 1
        term = self.chronicle.entries[index - 1][0]
        holders = [
            other for other in self._cluster.names
            if (log := self._durable(other)) is not None and log.holds(index, term)
        ]
        if not raft.config.has_quorum(holders):
            raise Violation(f"{name} commits {index}, but it is only on the disks of {holders}")

    def _check_state(self, name: str, applied: int, store: Store, revision: int) -> None:
        """At an equal index the state is equal, on every peer and in the true store."""
        chronicle = self.chronicle
        if applied > chronicle.last:
            if self._white_box:
                raise Violation(f"{name} applied {applied}, committed is {chronicle.last}")
            return
        expected = (chronicle.revisions[applied], chronicle.hashes[applied])
        if (store.revision, store.hash) != expected:
            raise Violation(
                f"{name} at index {applied}: revision and hash are "
                f"{(store.revision, store.hash)}, they must be {expected}"
            )
        if store.revision < revision:
            raise Violation(f"{name}: revision goes back from {revision} to {store.revision}")

    # -- promises that leave a machine --------------------------------------------------------------

    def on_send(self, name: str, target: str, message: Message) -> None:
        """Called for every Raft message that leaves ``name``; what it promises must be on disk."""
        if message.reject or target == name:
            return
        if message.kind == Kind.VOTE_REPLY:
            self._check_vote(name, message.term, target)
        elif message.kind == Kind.VOTE:
            self._check_vote(name, message.term, name)
        elif message.kind == Kind.APPEND_REPLY:
            self._acks += 1
            if self._acks % ACKS_SAMPLED == 0:
                self._check_ack(name, message)

    def _check_vote(self, name: str, term: int, candidate: str) -> None:
        self._terms_spoken[name] = max(self._terms_spoken[name], term)
        first = self._votes.setdefault((name, term), candidate)
        if first != candidate:
            self.accuse(f"{name} votes in term {term} for {first} and for {candidate}")
        if not self._white_box:
            return
        self.checked["votes"] += 1
        durable = self._durable(name)
        if durable is None:
            return
        state = durable.hard_state
        if state.term < term or (state.term == term and state.vote != candidate):
            self.accuse(
                f"{name} speaks of its vote for {candidate} in term {term}, "
                f"but on its disk is {tuple(state)}"
            )

    def _check_ack(self, name: str, message: Message) -> None:
        if not self._white_box:
            return
        peer = self._cluster.peer(name)
        if peer is None or peer.raft is None or peer.raft.term != message.term:
            return  # a newer leader may have replaced what this acknowledges; nobody takes it
        self.checked["acks"] += 1
        index, log = message.index, peer.raft.log
        if log.snapshot_index <= index <= log.last_index:
            term = log.term(index)
        elif index <= self.chronicle.last:
            term = self.chronicle.entries[index - 1][0] if index else 0
        else:
            self.accuse(f"{name} acknowledges entry {index}, which it does not have")
            return
        durable = self._durable(name)
        if durable is None:
            return
        if not durable.holds(index, term):
            self.accuse(
                f"{name} acknowledges entry {index} of term {term} to {message.to}, but on its "
                f"disk are a snapshot of {durable.base} and {len(durable.entries)} entries"
            )
        elif durable.hard_state.term < message.term:
            self.accuse(
                f"{name} acknowledges in term {message.term}, but on its disk is "
                f"{tuple(durable.hard_state)}"
            )

    def _durable(self, name: str) -> DurableLog | None:
        try:
            return durable_log(durable_files(self._cluster.world.machines[name].disk))
        except DamagedLogError as error:
            self.accuse(f"a power cut now would leave {name} with a log it cannot read: {error}")
            return None

    # -- leases -------------------------------------------------------------------------------------

    def lease_kept(self, call: Call, ttl_ms: int) -> None:
        """A client was told that its lease lives ``ttl_ms`` from its call on, at least."""
        if ttl_ms:
            promise = (call.called_s, ttl_ms)
            self._kept[call.arguments[0]] = max(self._kept.get(call.arguments[0], promise), promise)

    def check_leases(self) -> None:
        """No lease ended before its time, unless its owner gave it back."""
        rate = 1.0 + self._cluster.options.faults.clock_rate_spread
        for lease, ended in self.chronicle.revoked_at.items():
            if lease in self.given_back:
                continue
            for since, ttl_ms in (self.chronicle.granted[lease], self._kept.get(lease, (0.0, 0))):
                if ended < since + ttl_ms / 1000 / rate - 0.001:
                    raise Violation(
                        f"lease {lease} of {ttl_ms} ms was promised at {since:.4f} "
                        f"and ended at {ended:.4f}"
                    )


# -- watches ----------------------------------------------------------------------------------------


class Watcher:
    """Follows all keys through one machine, over restarts; must see every revision once."""

    def __init__(self, cluster: SimCluster, machine: str) -> None:
        self._cluster = cluster
        self.path = f"watcher-{machine}"
        self.machine = machine
        self.last = 0  # newest revision seen; 0 before the first
        self._asked = 0

    def offer(self, message: BrainUp) -> bool:
        """The peer is up, or its state is another: watches end and must be made again."""
        ref = self._cluster.peer_ref(self.machine)
        assert ref is not None
        self._asked += 1
        start = self.last + 1 if self.last else 0
        number = self._asked
        watch = Watch(b"", b"", start, _Subscription(self, number))
        ref.ask(watch, block=False).on_done(lambda future: self._answered(number, future))
        return True

    def _answered(self, number: int, future: Any) -> None:
        if future.error is not None:
            self._cluster.watchtower.accuse(f"the watch on {self.machine} ends: {future.error!r}")
        elif number == self._asked and not self.last:
            self.last = future.value.revision

    def take(self, number: int, events: list[Event]) -> None:
        """Events of a watch, in the peer's turn; those of an older watch may still come."""
        if number != self._asked:
            return
        tower = self._cluster.watchtower
        for event in events:
            if self.last and event.revision != self.last + 1:
                tower.accuse(
                    f"the watch on {self.machine} shows revision {event.revision} after {self.last}"
                )
            self.last = event.revision
            tower.watched.append((self.machine, event))


class _Subscription:
    """One watch of a watcher."""

    def __init__(self, watcher: Watcher, number: int) -> None:
        self._watcher = watcher
        self._number = number

    def offer(self, message: Watched) -> bool:
        self._watcher.take(self._number, message.events)
        return True


# -- at the end ---------------------------------------------------------------------------------------


def check_answers(calls: list[Call], chronicle: Chronicle) -> None:
    """Every answer is what the true store held at the revision that the answer names.

    Nothing that was acknowledged is lost, and no read shows what was never there.
    """
    store = chronicle.store
    events = {event.revision: event for event in store.events}
    for call in calls:
        if not call.revision:
            continue
        if call.revision > store.revision:
            raise Violation(f"{call} was answered with revision {call.revision}, beyond the last")
        if call.kind == "get":
            _check_read(call, store, call.output)
        elif call.kind == "put":
            _check_change(call, events, call.arguments[0])
        elif call.kind == "cas" and call.output[0]:
            _check_change(call, events, call.arguments[1])
        elif call.kind == "cas":
            _check_read(call, store, call.output[1])
        elif call.kind == "delete" and call.output is None:
            _check_read(call, store, None)
        elif call.kind == "delete":
            _check_change(call, events, None)


def _check_read(call: Call, store: Store, shown: Any) -> None:
    try:
        found = store.range(call.key, None, call.revision)
    except StoreError as error:
        raise Violation(f"{call}: {error}") from None
    value = found[0][1].value if found else None
    if value != shown:
        raise Violation(f"{call} shows {shown!r} at revision {call.revision}; it held {value!r}")


def _check_change(call: Call, events: dict[int, Event], value: bytes | None) -> None:
    event = events.get(call.revision)
    made = [
        (change.key, change.item.value if change.item is not None else None)
        for change in (event.changes if event is not None else ())
    ]
    if (call.key, value) not in made:
        raise Violation(f"{call} was acknowledged as revision {call.revision}, which did {made}")


def check_never(calls: list[Call], chronicle: Chronicle) -> None:
    """What failed with the promise that it never happens is not in the log."""
    for call in calls:
        if call.outcome != "never" or call.command is None:
            continue
        wrote = {"put": 0, "cas": 1}.get(call.kind)
        if wrote is not None and call.arguments[wrote] in chronicle.terms_of_values:
            raise Violation(f"{call} failed with {call.error!r}, but it is in the log")
        if call.kind == "acquire" and call.command[3]["reason"] in chronicle.texts:
            raise Violation(f"{call} failed with {call.error!r}, but it is in the log")
        if call.kind == "lease_grant" and call.arguments[0] in chronicle.granted:
            raise Violation(f"{call} failed with {call.error!r}, but it is in the log")


def check_fences(calls: list[Call], chronicle: Chronicle) -> None:
    """A write bound to a term is in the log with this term, or not at all."""
    for call in calls:
        if call.term:
            term = chronicle.terms_of_values.get(call.arguments[0], call.term)
            if term != call.term:
                raise Violation(f"{call} is in the log with term {term}")


def check_revisions(calls: list[Call]) -> None:
    """Over all keys: an answer never names an older revision than one that came before its call.

    A write that changed something names a newer one.
    """
    timed = [c for c in calls if c.revision and c.linearizable]
    returns = sorted(timed, key=lambda c: c.returned)
    position = 0
    newest: Call | None = None
    for call in sorted(timed, key=lambda c: c.called):
        while position < len(returns) and returns[position].returned < call.called:
            if newest is None or returns[position].revision > newest.revision:
                newest = returns[position]
            position += 1
        if newest is None:
            continue
        changed = call.kind == "put" or (call.kind == "cas" and call.output[0])
        if call.revision < newest.revision + changed:
            raise Violation(
                f"{call} was answered with revision {call.revision}, "
                f"after {newest} had been answered with {newest.revision}"
            )


def check_holders(calls: list[Call]) -> None:
    """No more clients surely hold a lock at once than it allows, as the clients saw it.

    Surely: from the answer that grants it to the first call that gives this token back.
    """
    marks: dict[str, list[tuple[float, int, str]]] = {}
    since: dict[tuple[str, str, int], float] = {}
    until: dict[tuple[str, str, int], float] = {}
    widened = min((c.called for c in calls if c.kind == "lock_max"), default=float("inf"))
    for call in calls:
        if call.kind == "acquire" and call.outcome == "done" and call.answer["granted"]:
            held = (call.arguments[0], call.client, call.answer["token"])
            since[held] = min(since.get(held, float("inf")), call.returned)
        elif call.kind == "release":
            held = (call.arguments[0], call.client, call.arguments[1])
            until[held] = min(until.get(held, float("inf")), call.called)
    for held, start in since.items():
        end = until.get(held, float("inf"))
        if start < end:
            marks.setdefault(held[0], []).append((start, 1, held[1]))
            marks[held[0]].append((end, -1, held[1]))
    for group, changes in sorted(marks.items()):
        holding: list[str] = []
        for at, change, client in sorted(changes):
            if change < 0:
                holding.remove(client)
                continue
            holding.append(client)
            if len(holding) > (2 if group == "pair" and at > widened else 1):
                raise Violation(f"{sorted(holding)} hold the lock {group} at event {at:g}")


def lease_ends(calls: list[Call], chronicle: Chronicle) -> Iterator[Operation]:
    """The ends of leases as operations of the register: each deletes what hung on it."""
    for lease, event in sorted(chronicle.revoked.items()):
        writes = [c for c in calls if c.kind == "put" and c.arguments[1:] == (lease,)]
        for key in sorted({c.key for c in writes}):
            doomed = frozenset(c.arguments[0] for c in writes if c.key == key)
            begun = min(c.called for c in writes if c.key == key)
            if begun < event:
                yield Operation(f"lease {lease}", key, "fall", (doomed,), begun, event)
