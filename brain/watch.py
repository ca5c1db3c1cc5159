"""Who waits for which keys: matches new events against watches, exactly once, in order.

Pure: a watch is an id and a range; the owner of the hub delivers what it returns.
"""

from __future__ import annotations

from collections.abc import Iterable

from .store import Event, prefix_end

#: Watches one hub may hold.
WATCHES_MAX = 100_000


class TooManyWatchesError(Exception):
    """The hub holds its limit of watches."""


class WatchHub:
    """Watches by exact key and by prefix (dictionaries), and by other ranges (a list)."""

    def __init__(self) -> None:
        self._by_prefix: dict[bytes, dict[int, None]] = {}
        self._lengths: dict[int, int] = {}  # of prefixes, with how many have it
        self._odd: dict[int, tuple[bytes, bytes]] = {}
        self._by_key: dict[bytes, dict[int, None]] = {}
        self._ranges: dict[int, tuple[bytes, bytes]] = {}
        self._keys: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._ranges) + len(self._keys)

    def add(self, watch: int, key: bytes, end: bytes | None) -> None:
        """Watch ``key``, or [key, end) when ``end`` is not None (empty: no upper bound)."""
        if len(self) >= WATCHES_MAX:
            raise TooManyWatchesError(f"watches_max: this peer serves {WATCHES_MAX} watches already")
        if end is None:
            self._by_key.setdefault(key, {})[watch] = None
            self._keys[watch] = key
            return
        self._ranges[watch] = (key, end)
        if key and end == prefix_end(key):
            watches = self._by_prefix.setdefault(key, {})
            if not watches:
                self._lengths[len(key)] = self._lengths.get(len(key), 0) + 1
            watches[watch] = None
        else:
            self._odd[watch] = (key, end)

    def remove(self, watch: int) -> None:
        """Forget a watch; unknown ids are passed over."""
        key = self._keys.pop(watch, None)
        if key is not None:
            del self._by_key[key][watch]
            if not self._by_key[key]:
                del self._by_key[key]
        low, _ = self._ranges.pop(watch, (b"", b""))
        if self._odd.pop(watch, None) is None and watch in self._by_prefix.get(low, ()):
            del self._by_prefix[low][watch]
            if not self._by_prefix[low]:
                del self._by_prefix[low]
                self._lengths[len(low)] -= 1
                if not self._lengths[len(low)]:
                    del self._lengths[len(low)]

    def match(self, events: Iterable[Event]) -> dict[int, list[Event]]:
        """The events that each watch must hear of."""
        out: dict[int, list[Event]] = {}
        for event in events:
            hit: dict[int, None] = {}
            for change in event.changes:
                key = change.key
                for watch in self._by_key.get(key, ()):
                    hit[watch] = None
                for length in self._lengths:
                    for watch in self._by_prefix.get(key[:length], ()):
                        hit[watch] = None
                for watch, (low, high) in self._odd.items():
                    if low <= key and (not high or key < high):
                        hit[watch] = None
            note = event.note
            if note is not None and note.is_dir:
                self._match_dir(note.path.encode(), hit)
            for watch in hit:
                out.setdefault(watch, []).append(event)
        return out

    def _match_dir(self, path: bytes, hit: dict[int, None]) -> None:
        """A directory's own event reaches watches on it, above it and below it."""
        for key, watches in self._by_key.items():
            if key == path or key.startswith(path + b"/"):
                hit.update(watches)
        for watch, (low, high) in self._ranges.items():
            inside = low <= path and (not high or path < high)
            if inside or low.rstrip(b"/") == path or low.startswith(path + b"/"):
                hit[watch] = None


def select(event: Event, key: bytes, end: bytes | None) -> Event:
    """The event reduced to the changes inside a range."""
    if end is None:
        changes = tuple(c for c in event.changes if c.key == key)
    else:
        changes = tuple(c for c in event.changes if key <= c.key and (not end or c.key < end))
    return event._replace(changes=changes)
