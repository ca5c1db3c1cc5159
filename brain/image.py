"""A fixed state of a store that goes on changing, read out piece by piece.

Nothing is copied but what is small; the rest is read where it lies when its turn comes.
A version that would be forgotten before that is handed to the image first.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from .codec import encode_own

if TYPE_CHECKING:
    from .store import Event, Item, Store

#: Keys, and bytes of values, in one record.
KEYS_PER_RECORD = 256
RECORD_BYTES = 256 * 1024
#: Events in one record.
EVENTS_PER_RECORD = 100


class Image:
    """The store as it is at this moment; :meth:`records` may be read at leisure, once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.revision = store.revision
        self._cursor: bytes | None = None  # the last key that was read out
        self._saved: dict[bytes, Item] = {}  # ahead of the cursor, and no longer in the store
        self._head = [
            "head", store.revision, store.compacted, store.log_time_ms, store.hash,
            store.history_revisions, store.history_age_ms, store.compact_revision,
        ]  # fmt: skip
        self._leases = sorted((lease, held.ttl_ms) for lease, held in store.leases.items())
        self._dirs = [[path, d.created, d.modified, d.expires] for path, d in store.dirs.items()]
        self._events = list(store.events)
        store.images.append(self)

    def keep(self, key: bytes, item: Item) -> None:
        """The store is about to lose this version (it told every image of it)."""
        if item.mod <= self.revision and (self._cursor is None or key > self._cursor):
            self._saved.setdefault(key, item)

    def close(self) -> None:
        """The image is not needed any more; the end of :meth:`records` closes it as well."""
        if self in self._store.images:
            self._store.images.remove(self)

    def records(self) -> Iterator[bytes]:
        """The state as CBOR records (see ``Store.load``); each takes a millisecond or so."""
        try:
            yield encode_own(self._head)
            for at in range(0, len(self._leases), 1000):
                yield encode_own(["leases", [list(pair) for pair in self._leases[at : at + 1000]]])
            for at in range(0, len(self._dirs), 1000):
                yield encode_own(["dirs", self._dirs[at : at + 1000]])
            yield from self._keys()
            for at in range(0, len(self._events), EVENTS_PER_RECORD):
                yield encode_own(["events", [_event(e) for e in self._events[at : at + EVENTS_PER_RECORD]]])
        finally:
            self.close()

    def _keys(self) -> Iterator[bytes]:
        store = self._store
        rows: list[list[object]] = []
        size = 0
        while True:
            live = store.live.irange(self._cursor, None, inclusive=(False, True))
            keys = list(islice(live, KEYS_PER_RECORD))
            for key in keys:
                item = store.live[key]
                if item.mod > self.revision:
                    item = self._saved.get(key) or store.version_at(key, self.revision)
                self._saved.pop(key, None)
                self._cursor = key
                if item is None:
                    continue
                rows.append([key, *item])
                size += len(item.value)
                if size >= RECORD_BYTES:
                    break
            if rows:
                yield encode_own(["keys", rows])
                rows, size = [], 0
            if not keys:
                break
        left = sorted(self._saved.items())  # keys that are gone from the store by now
        for at in range(0, len(left), KEYS_PER_RECORD):
            yield encode_own(["keys", [[key, *item] for key, item in left[at : at + KEYS_PER_RECORD]]])


def _event(event: Event) -> list[object]:
    rows = [[key, list(item) if item else None, list(prev) if prev else None] for key, item, prev in event.changes]
    return [event.revision, rows, list(event.note or ()), event.digest, event.at_ms]
