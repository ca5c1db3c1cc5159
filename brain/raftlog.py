"""The replicated log as Raft sees it: in memory, above the last snapshot.

Indexes start at 1.  ``snapshot_index`` is covered by a snapshot, ``stable`` is on this
peer's disk, ``commit`` is decided, ``applied`` has reached the state machine:
``snapshot_index <= applied <= commit <= last_index``.  A quorum's disks hold what is decided,
so a peer may apply what its own disk does not hold yet; it says so to nobody.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

#: (term, kind, data); the index is its place in the log
Entry: TypeAlias = tuple[int, int, bytes]


class EntryKind(IntEnum):
    """What an entry's data is; on disk and on the wire, so only ever append."""

    EMPTY = 0
    COMMAND = 1
    CONFIG = 2


class RaftLog:
    """Entries after the last snapshot, with the marks that Raft needs."""

    def __init__(
        self, snapshot_index: int = 0, snapshot_term: int = 0, entries: list[Entry] | None = None
    ) -> None:
        self.snapshot_index = snapshot_index
        self.snapshot_term = snapshot_term
        self._entries: list[Entry] = list(entries or ())
        self.stable = self.last_index
        self.commit = snapshot_index
        self.applied = snapshot_index
        self._written = self.stable  # handed out for writing

    @property
    def last_index(self) -> int:
        """Index of the newest entry (the snapshot's, if there is none)."""
        return self.snapshot_index + len(self._entries)

    @property
    def last_term(self) -> int:
        """Term of the newest entry."""
        return self._entries[-1][0] if self._entries else self.snapshot_term

    @property
    def appliable(self) -> int:
        """What may be applied: all that is decided, though this peer's own disk may be behind."""
        return self.commit

    @property
    def has_unwritten(self) -> bool:
        """Whether entries wait to be handed out for writing."""
        return self._written < self.last_index

    def term(self, index: int) -> int:
        """Term of the entry at ``index``; 0 when it is not in the log (any more)."""
        if index == self.snapshot_index:
            return self.snapshot_term
        at = index - self.snapshot_index - 1
        return self._entries[at][0] if 0 <= at < len(self._entries) else 0

    def matches(self, index: int, term: int) -> bool:
        """Whether the log has an entry of this term at this index."""
        return self.snapshot_index <= index <= self.last_index and self.term(index) == term

    def back_from(self, index: int, entries_max: int, bytes_max: int) -> int:
        """How far back from ``index`` so many entries and bytes reach."""
        lowest = max(self.snapshot_index, index - entries_max)
        size = 0
        while index > lowest:
            size += len(self._entries[index - self.snapshot_index - 1][2])
            if size > bytes_max:
                break
            index -= 1
        return index

    def entries_from(self, index: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from ``index`` on: at least one if there is one, then up to a size."""
        out: list[Entry] = []
        size = 0
        for at in range(index - self.snapshot_index - 1, len(self._entries)):
            entry = self._entries[at]
            size += len(entry[2])
            if out and size > bytes_max:
                break
            out.append(entry)
        return tuple(out)

    def slice_bounded(self, low: int, high: int, bytes_max: int) -> list[tuple[int, Entry]]:
        """``(index, entry)`` for low <= index < high, cut after ``bytes_max``."""
        out: list[tuple[int, Entry]] = []
        size = 0
        for index in range(low, high):
            entry = self._entries[index - self.snapshot_index - 1]
            size += len(entry[2])
            if out and size > bytes_max:
                break
            out.append((index, entry))
        return out

    def configs_from(self, index: int) -> list[tuple[int, bytes]]:
        """(index, data) of the configuration entries from ``index`` on."""
        start = max(index - self.snapshot_index - 1, 0)
        return [
            (self.snapshot_index + 1 + at, self._entries[at][2])
            for at in range(start, len(self._entries))
            if self._entries[at][1] == EntryKind.CONFIG
        ]

    def bytes_between(self, low: int, high: int) -> int:
        """Size of the data of entries low < index <= high."""
        start = max(low - self.snapshot_index, 0)
        return sum(len(e[2]) for e in self._entries[start : max(high - self.snapshot_index, 0)])

    def conflict_hint(self, index: int, term: int) -> int:
        """The highest index at or below ``index`` whose term is at most ``term`` (5.3)."""
        index = min(index, self.last_index)
        while index > self.snapshot_index and self.term(index) > term:
            index -= 1
        return index

    def append(self, entries: list[Entry]) -> None:
        """Add entries at the end (leader)."""
        self._entries.extend(entries)

    def merge(self, before: int, entries: tuple[Entry, ...]) -> int:
        """Take entries that follow ``before`` (follower); cut what conflicts (5.3).

        Returns the index of the last of them.
        """
        index = before
        for position, entry in enumerate(entries):
            index = before + position + 1
            if index <= self.last_index and self.term(index) == entry[0]:
                continue
            if index <= self.last_index:
                self._truncate(index)
            self._entries.extend(entries[position:])
            break
        return before + len(entries)

    def _truncate(self, index: int) -> None:
        if index <= self.commit:
            raise AssertionError(f"entry {index} conflicts, but {self.commit} is committed")
        del self._entries[index - self.snapshot_index - 1 :]
        self.stable = min(self.stable, index - 1)
        self._written = min(self._written, index - 1)

    def commit_to(self, index: int) -> None:
        """Move the commit mark forward; it never moves back."""
        if index > self.commit:
            if index > self.last_index:
                raise AssertionError(f"commit {index} is beyond the log's end {self.last_index}")
            self.commit = index

    def take_unwritten(self) -> tuple[int, list[Entry]]:
        """Entries to be written now, with the index of the first."""
        if self._written >= self.last_index:
            return 0, []
        first = self._written + 1
        entries = self._entries[first - self.snapshot_index - 1 :]
        self._written = self.last_index
        return first, entries

    def stabilise(self, index: int, term: int) -> None:
        """Entries up to ``index`` are on disk, unless they were replaced since."""
        if index > self.stable and self.term(index) == term:
            self.stable = index

    def compact(self, index: int, term: int) -> None:
        """Forget entries up to ``index``: a durable snapshot covers them."""
        if index <= self.snapshot_index:
            return
        if index > self.applied:
            raise AssertionError(f"cannot compact to {index}: only {self.applied} is applied")
        del self._entries[: index - self.snapshot_index]
        self.snapshot_index, self.snapshot_term = index, term

    def restore(self, index: int, term: int) -> None:
        """Start over after an installed snapshot; keep what follows it, if it fits."""
        if self.matches(index, term):
            self.commit = max(self.commit, index)
            self.applied = index
            self.compact(index, term)
        else:
            self._entries = []
            self.snapshot_index, self.snapshot_term = index, term
            self.stable = self._written = index
            self.commit = self.applied = index
        self.stable = max(self.stable, index)
        self._written = max(self._written, self.stable)
