"""A fixed state of a store that goes on changing, read out piece by piece.

Nothing is copied but what is small; the rest is read where it lies when its turn comes.
A version that would be forgotten before that is handed to the image first.

The records are CBOR lists: a head, leases, directories, keys, and then the events, newest
first.  Every version is in them once: a live one with its key, a superseded one in the event
that superseded it.  ``brain/loader.py`` reads them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

from .codec import encode_own

if TYPE_CHECKING:
    from .store import Event, Item, Store

#: Rows, and bytes of keys and values, after which a record is closed.
ROWS_PER_RECORD = 256
RECORD_BYTES = 256 * 1024
#: What a row or a change is counted with beside its key and value.
ROW_BYTES = 64

#: Bytes that a row is counted with, and the row.
Row = tuple[int, list[object]]


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
        self._dirs = [(path, d.created, d.modified, d.expires) for path, d in store.dirs.items()]
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
        """The state as records; each takes a millisecond or so, unless one value is larger than that."""
        try:
            yield encode_own(self._head)
            yield from _packed("leases", ((ROW_BYTES, list(pair)) for pair in self._leases))
            yield from _packed("dirs", ((ROW_BYTES + len(path), [path, *rest]) for path, *rest in self._dirs))
            yield from _packed("keys", self._keys())
            yield from _packed("events", chain.from_iterable(map(_rows, reversed(self._events))))
        finally:
            self.close()

    def _keys(self) -> Iterator[Row]:
        """Every key with its version of then; the store may change whenever a row was given."""
        live = self._store.live
        while True:
            ahead = list(islice(live.irange(self._cursor, None, inclusive=(False, True)), ROWS_PER_RECORD))
            for key in ahead:
                item = live.get(key)
                if item is None or item.mod > self.revision:
                    item = self._saved.get(key) or self._store.version_at(key, self.revision)
                self._saved.pop(key, None)
                self._cursor = key
                if item is not None:
                    yield _size(key, item), [key, *item]
            if not ahead:
                break
        for key, item in sorted(self._saved.items()):  # they are gone from the store by now
            yield _size(key, item), [key, *item]


def _packed(kind: str, rows: Iterable[Row]) -> Iterator[bytes]:
    """Rows in records of bounded size."""
    batch: list[list[object]] = []
    size = 0
    for row_bytes, row in rows:
        batch.append(row)
        size += row_bytes
        if size >= RECORD_BYTES or len(batch) >= ROWS_PER_RECORD:
            yield encode_own([kind, batch])
            batch, size = [], 0
    if batch:
        yield encode_own([kind, batch])


def _size(key: bytes, item: Item | None) -> int:
    return ROW_BYTES + len(key) + (len(item.value) if item is not None else 0)


def _rows(event: Event) -> Iterator[Row]:
    """An event, last change first, without the versions that a later event or the live keys have.

    One that changed a great deal takes several rows.
    """
    about = [event.revision, list(event.note or ()), event.digest, event.at_ms]
    part: list[object] = []
    size = ROW_BYTES
    for key, item, prev in reversed(event.changes):
        part.append([key, item is not None, list(prev) if prev else None])
        size += _size(key, prev)
        if size >= RECORD_BYTES:
            yield size, [*about, part]
            part, size = [], ROW_BYTES
    if part or not event.changes:
        yield size, [*about, part]
