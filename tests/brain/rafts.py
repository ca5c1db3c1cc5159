"""Raft cores in memory for the paper's tests: made as wanted, driven by hand, wired together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from brain.raft import Config, HardState, Kind, Message, Raft, Ready, Role, Settings
from brain.raftlog import Entry, EntryKind, RaftLog

SETTINGS = Settings(heartbeat_ticks=1, election_ticks=10)
Filter = Callable[[Message], bool]


def entry(term: int, data: bytes = b"x") -> Entry:
    """A command."""
    return (term, EntryKind.COMMAND, data)


def raft(
    peer: str = "1", voters: Iterable[str] = ("1", "2", "3"), terms: Iterable[int] = (), term: int = 0,
    vote: str = "", settings: Settings = SETTINGS, draw: Callable[[int], int] = lambda n: 0,
    learners: Iterable[str] = (), outgoing: Iterable[str] = (),
) -> Raft:  # fmt: skip
    """A follower whose durable log has entries of these terms."""
    log = RaftLog(entries=[entry(t, b"%d" % t) for t in terms])
    config = Config(frozenset(voters), frozenset(learners), frozenset(outgoing))
    return Raft(peer, config, log, HardState(max([term, *terms]), vote), draw, settings)


def ticks(core: Raft, count: int) -> None:
    """Let time pass."""
    for _ in range(count):
        core.tick()


class Done:
    """What a peer has sent and applied while it was driven."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.applied: list[tuple[int, Entry]] = []
        self.reads: list[tuple[int, int]] = []
        self.snapshots: list[str] = []
        self.readies: list[Ready] = []

    def kinds(self, kind: Kind) -> list[Message]:
        """The messages of one kind."""
        return [m for m in self.messages if m.kind == kind]

    @property
    def one(self) -> Message:
        """The only message."""
        [message] = self.messages
        return message


def drive(core: Raft, sync: bool = True) -> Done:
    """Do what every Ready says, in its order; ``sync=False`` is a disk that stands still."""
    done = Done()
    while core.has_ready:
        ready = core.ready()
        done.readies.append(ready)
        done.messages += ready.messages
        done.reads += ready.reads
        done.snapshots += ready.snapshots
        if sync:
            persist(core, ready, done)
        elif ready.must_sync or ready.after_sync:
            break
        for index, item in ready.committed:
            done.applied.append((index, item))
            if item[1] == EntryKind.CONFIG:
                core.apply_config(item[2])
            core.applied(index)
    return done


def persist(core: Raft, ready: Ready, done: Done) -> None:
    """A Ready is on disk now: what it promised leaves."""
    last = ready.first_index + len(ready.entries) - 1 if ready.entries else 0
    core.persisted(ready.hard_state, last, ready.entries[-1][0] if ready.entries else 0)
    for message in ready.after_sync:
        if message.to == core.id:
            core.step(message)
        else:
            done.messages.append(message)


def candidate(core: Raft) -> Raft:
    """Make a follower a candidate, past the pre-vote of everybody."""
    ticks(core, 2 * core.settings.election_ticks)
    drive(core)
    for peer in sorted(core.config.voters | core.config.outgoing):
        if core.role is Role.PRE_CANDIDATE:
            core.step(Message(Kind.PRE_VOTE_REPLY, peer, core.id, core.term + 1))
    assert core.role in (Role.CANDIDATE, Role.LEADER)
    return core


def leader(core: Raft) -> Raft:
    """Make a follower the leader by the votes of everybody; its first messages are sent."""
    candidate(core)
    drive(core)
    for peer in sorted(core.config.voters | core.config.outgoing):
        if core.role is Role.CANDIDATE:
            core.step(Message(Kind.VOTE_REPLY, peer, core.id, core.term))
    assert core.role is Role.LEADER
    drive(core)
    return core


def ack(core: Raft, *peers: str, index: int | None = None) -> None:
    """Followers acknowledge up to an index, by default everything."""
    for peer in peers:
        at = core.log.last_index if index is None else index
        core.step(Message(Kind.APPEND_REPLY, peer, core.id, core.term, index=at))


def log_terms(core: Raft) -> list[int]:
    """The terms of the entries above the snapshot."""
    log = core.log
    return [log.term(index) for index in range(log.snapshot_index + 1, log.last_index + 1)]


class Network:
    """Several cores, wired together; messages are delivered until none is left."""

    def __init__(self, *cores: Raft) -> None:
        self.cores = {core.id: core for core in cores}
        self.cut: set[frozenset[str]] = set()
        self.lose: Filter = lambda message: False
        self.applied: dict[str, list[tuple[int, Entry]]] = {core.id: [] for core in cores}
        self.delivered: list[Message] = []
        self.reads: dict[str, list[tuple[int, int]]] = {core.id: [] for core in cores}

    @classmethod
    def of(cls, size: int, **options: object) -> Network:
        """``size`` empty voters called 1, 2, ...; each draws its own time-out."""
        names = [str(n) for n in range(1, size + 1)]
        return cls(
            *(raft(name, names, draw=lambda n, at=at: at % n, **options) for at, name in enumerate(names))  # type: ignore[arg-type,misc]
        )

    def settle(self) -> None:
        """Deliver everything that is under way, and what follows from it."""
        for _ in range(10_000):
            waiting: list[Message] = []
            for core in self.cores.values():
                done = drive(core)
                self.applied[core.id] += done.applied
                self.reads[core.id] += done.reads
                waiting += done.messages
            if not waiting:
                return
            for message in waiting:
                if frozenset((message.frm, message.to)) in self.cut or self.lose(message):
                    continue
                if message.to in self.cores:
                    self.delivered.append(message)
                    self.cores[message.to].step(message)
        raise AssertionError("the peers talk for ever")

    def tick(self, count: int = 1, *peers: str) -> None:
        """Let time pass, for these peers or for all, with everything delivered in between."""
        for _ in range(count):
            for name in peers or tuple(self.cores):
                self.cores[name].tick()
            self.settle()

    def elect(self, peer: str) -> Raft:
        """Let one peer stand and win."""
        core = self.cores[peer]
        for other in self.cores.values():
            if other is not core:
                ticks(other, 0)
                other._elapsed = other.settings.election_ticks  # noqa: SLF001 - it has not heard of a leader
        ticks(core, 2 * core.settings.election_ticks)
        self.settle()
        assert core.role is Role.LEADER
        return core

    def isolate(self, *peers: str) -> None:
        """Cut these peers off from all others, but not from each other."""
        self.cut |= {frozenset((a, b)) for a in peers for b in self.cores if b not in peers}

    def heal(self) -> None:
        """All links work again."""
        self.cut.clear()
        self.lose = lambda message: False

    @property
    def leaders(self) -> list[str]:
        """Who believes to lead."""
        return [name for name, core in self.cores.items() if core.role is Role.LEADER]

    def commands(self, peer: str) -> list[bytes]:
        """The commands that a peer has applied."""
        return [data for _, (_, kind, data) in self.applied[peer] if kind == EntryKind.COMMAND]
