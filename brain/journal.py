"""A peer's files: the log's segments and the snapshots, over the disk port.

Owns where the next record goes, when a segment is full, and which files may be removed.
It never judges Raft's rules; order of calls is order on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import snapshot, wal
from .raft import HardState
from .raftlog import Entry, RaftLog
from .snapshot import Meta
from .store import Store
from .wal import DamagedLogError

Done = Callable[[Any], None]
#: End of the name of a file that is not complete; never read, and removed at the next start.
PART = ".part"


def part_name(index: int, received: bool = False) -> str:
    """Where the pieces of a snapshot are written: of this peer's own, or of one from the leader."""
    return f"{snapshot.file_name(index)}{'.received' if received else ''}{PART}"


class Opened(NamedTuple):
    """What a peer starts from."""

    meta: Meta | None  # None: a new, empty peer that was never given a configuration
    store: Store
    log: RaftLog
    hard_state: HardState


class Journal:
    """See the module docstring.  ``disk`` implements the disk port."""

    def __init__(self, disk: Any, segment_bytes: int = wal.SEGMENT_BYTES) -> None:
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._sequence = 0
        self._end = 0
        self._size = 0
        self._fresh_next = False  # the next segment starts the log anew
        self._has_state = False  # whether the current segment holds term and vote
        self._state = HardState(0, "")
        self._last_index = 0
        self._highest: dict[int, int] = {}  # segment -> highest index ever written to it
        self.bytes_written = 0

    def open(self) -> Opened:
        """Read everything; raises :class:`DamagedLogError` rather than start from a guess."""
        names = self._disk.list()
        snapshots = sorted(i for n in names if (i := snapshot.file_index(n)) is not None)
        meta: Meta | None = None
        store = Store()
        if snapshots:
            name = snapshot.file_name(snapshots[-1])
            meta, store = snapshot.load(name, self._disk.read(name))
        segments = sorted(s for n in names if (s := wal.segment_sequence(n)) is not None)
        recovered = wal.recover(
            [(n := wal.segment_name(s), s, self._disk.read(n)) for s in segments]
        )
        base = meta.index if meta is not None else 0
        base_term = meta.term if meta is not None else 0
        if recovered is None:
            return Opened(meta, store, RaftLog(base, base_term), HardState(0, ""))
        self._adopt(recovered)
        entries = self._after_snapshot(recovered, base, base_term)
        self._last_index = base + len(entries)
        return Opened(meta, store, RaftLog(base, base_term, entries), recovered.hard_state)

    def _adopt(self, recovered: wal.Recovered) -> None:
        self._sequence = recovered.sequence
        self._state = recovered.hard_state
        self._end = recovered.end
        self._has_state = recovered.has_state
        last = recovered.first_index + len(recovered.entries) - 1
        self._highest = dict.fromkeys(recovered.starts, last)
        name = wal.segment_name(recovered.sequence)
        data = self._disk.read(name)
        self._size = len(data)
        rest = data[recovered.end :]
        if any(rest):  # what a crash left behind must not be taken for records later
            self._disk.submit(
                [("write", name, recovered.end, bytes(len(rest))), ("sync", name)], lambda error: None
            )

    def _after_snapshot(self, recovered: wal.Recovered, base: int, base_term: int) -> list[Entry]:
        first, entries = recovered.first_index, recovered.entries
        last = first + len(entries) - 1
        if first > base + 1:
            raise DamagedLogError(
                wal.segment_name(min(recovered.starts)), 0,
                f"the log starts at entry {first}, the snapshot ends at {base}",
            )  # fmt: skip
        stale = base >= first and last >= base and entries[base - first][0] != base_term
        if last < base or stale:
            # a snapshot was installed beyond the log, or over entries that were never committed
            if entries:
                self._fresh_next = True
                self._end = 0
            return []
        return entries[base - first + 1 :]

    def settle(self) -> list[tuple[Any, ...]]:
        """Operations that make durable what :meth:`open` read.

        A host process that died may have left writes that are only in the page cache; a power
        cut would still lose them, so nothing may be promised on them before.
        """
        names = [wal.segment_name(sequence) for sequence in sorted(self._highest)]
        parts = [name for name in self._disk.list() if name.endswith(PART)]
        return [*(("sync", name) for name in names), *(("remove", name) for name in parts), ("sync_dir",)]

    def write(
        self, state: HardState | None, first_index: int, entries: list[Entry], done: Done
    ) -> None:
        """Make a batch durable, then call ``done(error)``."""
        if state is not None:
            self._state = state
        operations: list[tuple[Any, ...]] = []
        if not self._has_state:
            state = self._state
        # batches go one after another, so everything before this one is durable
        data = wal.batch(self._end, self._end, state, first_index, entries)
        if not self._end or self._end + len(data) > self._size:
            next_index = first_index if entries else self._last_index + 1
            operations += self._rotate(next_index, len(data))
            data = wal.batch(self._end, self._end, self._state, first_index, entries)
        self._has_state = True
        name = wal.segment_name(self._sequence)
        operations += [("write", name, self._end, data), ("sync", name)]
        self._end += len(data)
        self.bytes_written += len(data)
        if entries:
            self._last_index = first_index + len(entries) - 1
            highest = self._highest.get(self._sequence, 0)
            self._highest[self._sequence] = max(highest, self._last_index)
        self._disk.submit(operations, done)

    def _rotate(self, first_index: int, needed: int) -> list[tuple[Any, ...]]:
        self._sequence += 1
        size = max(self._segment_bytes, wal.HEADER_BYTES + needed + 4096)
        self._size = size
        self._end = wal.HEADER_BYTES
        self._highest.setdefault(self._sequence, 0)
        name = wal.segment_name(self._sequence)
        operations: list[tuple[Any, ...]] = [
            ("create", name, size),
            ("write", name, 0, wal.header(self._sequence, first_index, self._fresh_next)),
            ("sync", name),
            ("sync_dir",),
        ]
        self._fresh_next = False
        self._has_state = False
        return operations

    def _write_state(self) -> list[tuple[Any, ...]]:
        data = wal.batch(self._end, self._end, self._state, 0, [])
        segment = wal.segment_name(self._sequence)
        operations = [("write", segment, self._end, data), ("sync", segment)]
        self._end += len(data)
        self._has_state = True
        return operations

    def write_part(self, part: str, offset: int, data: bytes, done: Done, last: bool = False) -> None:
        """Write a piece of a snapshot; batches of the log may go between two of them.

        It does not wait for room on a full disk: ``done`` is told of it, and the log goes on.  Until
        the last piece is there, what was written of it may go again for the log.
        """
        operations: list[tuple[Any, ...]] = [("write", part, offset, data), ("sync", part)]
        if last:
            operations.append(("keep", part))
        if not offset:
            operations.insert(0, ("create", part, 0))
        self._disk.submit(operations, done, if_room=True)

    def drop_part(self, part: str) -> None:
        """Give up a snapshot of which pieces were written."""
        self._disk.submit([("remove", part)], lambda error: None)

    def publish(self, meta: Meta, part: str, done: Done, fresh_log: bool = False) -> None:
        """All pieces of a snapshot are written: call it one, and remove what it makes superfluous.

        ``fresh_log``: the log's entries do not continue from it, so a new segment starts.
        """
        name = snapshot.file_name(meta.index)
        operations: list[tuple[Any, ...]] = [("rename", part, name), ("sync_dir",)]
        # first what gives room, then what takes it
        older = [n for n in self._disk.list() if (index := snapshot.file_index(n)) is not None and index < meta.index]
        operations += [("remove", name) for name in older]
        doomed_segments = [s for s in self._highest if s != self._sequence]
        if fresh_log:
            if self._sequence in self._highest:
                doomed_segments.append(self._sequence)
            self._last_index = meta.index
            self._fresh_next = True
            operations += self._rotate(meta.index + 1, 0)
            operations += self._write_state()
        else:
            doomed_segments = [s for s in doomed_segments if self._highest[s] <= meta.index]
            if self._end and not self._has_state:  # it may soon be the only one
                operations += self._write_state()
            # segments go from the oldest on; a gap in the sequence would be taken for damage
            oldest_kept = min((s for s in self._highest if s not in doomed_segments), default=0)
            doomed_segments = [s for s in doomed_segments if s < oldest_kept]
        for segment_number in sorted(doomed_segments):
            self._highest.pop(segment_number, None)
            operations.append(("remove", wal.segment_name(segment_number)))
        operations.append(("sync_dir",))
        self._disk.submit(operations, done)
