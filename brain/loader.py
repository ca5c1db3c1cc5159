"""A store built from the records of an image, one at a time (see ``brain/image.py``)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Any

from .store import Change, Dir, Event, Item, Lease, Store, TreeNote, weight


class Loader:
    """Takes records in their order; :meth:`finish` gives the store.  Raises ``ValueError``."""

    def __init__(self) -> None:
        self._store = Store()
        self._keys: dict[bytes, Item] = {}
        #: what a key was before the oldest event that was read so far
        self._before: dict[bytes, Item | None] = {}
        self._event: Event | None = None  # the oldest so far, whose changes may not all be read
        self._changes: deque[Change] = deque()

    def take(self, record: list[Any]) -> None:
        """One record."""
        store = self._store
        kind = record[0]
        if kind == "head":
            store.revision, store.compacted, store.log_time_ms, store.hash = record[1:5]
            store.history_revisions, store.history_age_ms, store.compact_revision = record[5:]
        elif kind == "leases":
            store.leases.update((lease, Lease(ttl_ms)) for lease, ttl_ms in record[1])
        elif kind == "dirs":
            for path, created, modified, expires in record[1]:
                store.dirs[path] = Dir(created, modified, expires)
                if expires:
                    store.expiries.append((expires, path))
        elif kind == "keys":
            for row in record[1]:
                self._key(row[0], Item._make(row[1:]))
        elif kind == "events":
            for row in record[1]:
                self._part(*row)
        else:
            raise ValueError(f"no record is called {kind!r}")

    def _key(self, key: bytes, item: Item) -> None:
        store = self._store
        self._keys[key] = item
        store.bytes_live += weight(key, item)
        if item.lease:
            if item.lease not in store.leases:
                raise ValueError(f"lease {item.lease:x} does not fit what came before it")
            store.leases[item.lease].keys.add(key)
        if item.expires:
            store.expiries.append((item.expires, key.decode("utf-8")))

    def _part(self, revision: int, note: list[Any], digest: int, at_ms: int, rows: list[Any]) -> None:
        """Changes of one revision, the last one first."""
        if self._event is None or self._event.revision != revision:
            self._close_event()
            if note and note[4] is not None:
                note[4] = tuple(note[4])
            self._event = Event(revision, (), TreeNote(*note) if note else None, digest, at_ms)
        for key, written, plain in rows:
            item = self._before[key] if key in self._before else self._keys.get(key)
            if not written:
                item = None
            elif item is None:
                raise ValueError(f"revision {revision} does not fit what came after it")
            prev = Item(*plain) if plain is not None else None
            self._before[key] = prev
            self._changes.appendleft(Change(key, item, prev))
            if prev is not None:
                self._superseded(key, prev, revision)

    def _superseded(self, key: bytes, prev: Item, revision: int) -> None:
        store = self._store
        versions = store.history.get(key)
        if versions is None:
            versions = store.history[key] = deque()
        versions.appendleft((revision, prev))
        store.bytes_history += weight(key, prev)

    def _close_event(self) -> None:
        if self._event is not None:
            self._store.events.appendleft(self._event._replace(changes=tuple(self._changes)))
            self._changes.clear()

    def finish(self) -> Store:
        """The store, once all records were taken."""
        self._close_event()
        self._store.live.update(self._keys)
        heapq.heapify(self._store.expiries)
        return self._store


def load(records: Iterable[list[Any]]) -> Store:
    """A store from all its decoded records."""
    loader = Loader()
    for record in records:
        loader.take(record)
    return loader.finish()
