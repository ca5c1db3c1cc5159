"""The replicated state: one multi-version keyspace with etcd v3's data model.

Every committed command is applied here, on every peer, in the same order, and must give
the same result everywhere: nothing but the command and the state decides.  Keys are
bytes; a revision counts mutations over the whole store; superseded versions are kept for
the last ``HISTORY_REVISIONS`` revisions, so reads and watches may start in the past.

The etcd v2 tree (directories, TTL) is a view over the same keys: see ``brain/tree.py``.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from sortedcontainers import SortedDict

from . import locks, shapes
from .codec import encode_own

#: Revisions kept for reads and watches that start in the past.
HISTORY_REVISIONS = 10_000
#: Operations in one transaction.
TXN_OPERATIONS_MAX = 128
#: Lowest and highest time to live of a lease, in seconds.
LEASE_TTL_S_MIN = 1
LEASE_TTL_S_MAX = 9_000_000_000
#: Keys of Argosy itself; out of reach of the open doors.
OWN_PREFIX = b"/_argosy/"
LOCKS_PREFIX = OWN_PREFIX + b"locks/"


class StoreError(Exception):
    """A command that was applied and refused; ``code`` is stable, the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Item(NamedTuple):
    """One version of one key.  ``expires`` is log time in ms (v2 TTL), 0 for never."""

    value: bytes
    create: int
    mod: int
    version: int
    lease: int
    expires: int


class Change(NamedTuple):
    """What one revision did to one key; ``item`` is None for a deletion."""

    key: bytes
    item: Item | None
    prev: Item | None


class TreeNote(NamedTuple):
    """How etcd v2 describes a revision: its action, and the node when it is a directory."""

    action: str
    path: str
    is_dir: bool = False
    created: int = 0
    prev_dir: tuple[int, int, int] | None = None  # created, modified, expires
    expires: int = 0


class Event(NamedTuple):
    """One revision: its changes, and its v2 description if it has one."""

    revision: int
    changes: tuple[Change, ...]
    note: TreeNote | None


class Dir:
    """A directory of the v2 tree."""

    __slots__ = ("created", "expires", "modified")

    def __init__(self, created: int, modified: int, expires: int) -> None:
        self.created = created
        self.modified = modified
        self.expires = expires


class Lease:
    """A promise that its keys vanish when nobody keeps it alive."""

    __slots__ = ("keys", "ttl_ms")

    def __init__(self, ttl_ms: int) -> None:
        self.ttl_ms = ttl_ms
        self.keys: set[bytes] = set()


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key above every key that starts with ``prefix``; empty for no bound."""
    body = prefix.rstrip(b"\xff")
    return body[:-1] + bytes([body[-1] + 1]) if body else b""


class Store:
    """The state machine; :meth:`apply` is the only way to change it."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.log_time_ms = 0
        self.hash = 0
        self.live: SortedDict[bytes, Item] = SortedDict()
        self.history: dict[bytes, deque[tuple[int, Item | None]]] = {}
        self.events: deque[Event] = deque()
        self.leases: dict[int, Lease] = {}
        self.dirs: SortedDict[str, Dir] = SortedDict()
        self.expiries: list[tuple[int, str]] = []  # heap of (log time ms, path); lazily pruned
        self._changes: list[Change] = []
        self._note: TreeNote | None = None

    # -- applying ------------------------------------------------------------------------

    def apply(self, now_ms: int, command: list[Any]) -> tuple[Any, list[Event]]:
        """Apply one command at log time ``now_ms``; returns (result, new events).

        A refused command returns its :class:`StoreError` as the result and changes nothing.
        """
        self.log_time_ms = max(self.log_time_ms, now_ms)
        before = self.revision
        name = command[0] if command else ""
        operation = _OPERATIONS.get(name) if type(name) is str else None
        if operation is None:
            return StoreError("unknown_command", f"no command is named {name!r}"), []
        if not shapes.fits(name, command[1:]):
            return StoreError("malformed", f"{name}: the arguments are not what this command takes"), []
        try:
            result = operation(self, *command[1:])
        except StoreError as error:
            assert not self._changes, "a refused command must change nothing"
            return error, []
        if self.revision == before:
            return result, []
        return result, self._fresh_events(before)

    def _fresh_events(self, before: int) -> list[Event]:
        fresh: list[Event] = []
        for event in reversed(self.events):
            if event.revision <= before:
                break
            fresh.append(event)
        fresh.reverse()
        while len(self.events) > HISTORY_REVISIONS:
            self._forget_oldest()
        return fresh

    def _commit(self) -> int:
        """Close the revision that is being built; returns it."""
        changes, self._changes = tuple(self._changes), []
        note, self._note = self._note, None
        if not changes and note is None:
            return self.revision
        self.revision += 1
        digest = self.hash
        for key, item, _ in changes:
            digest = zlib.crc32(b"%d %b" % (len(key), key), digest)
            if item is not None:
                digest = zlib.crc32(item.value, digest)
                digest = zlib.crc32(b"%d %d %d %d %d" % (len(item.value), *item[1:5]), digest)
        self.hash = zlib.crc32(b"%d" % self.revision, digest)
        self.events.append(Event(self.revision, changes, note))
        return self.revision

    def _put(
        self, key: bytes, value: bytes, lease: int = 0, expires: int = 0, renew: bool = False
    ) -> Item:
        """Write a key in the revision being built; ``renew`` starts its life anew (v2 set)."""
        revision = self.revision + 1
        prev = self.live.get(key)
        if prev is None or renew:
            item = Item(value, revision, revision, 1, lease, expires)
        else:
            item = Item(value, prev.create, revision, prev.version + 1, lease, expires)
        self.live[key] = item
        if prev is not None:
            self._supersede(key, prev, revision)
            if prev.lease and prev.lease != lease:
                self.leases[prev.lease].keys.discard(key)
        else:
            self._make_parents(key, revision)
        if lease:
            self.leases[lease].keys.add(key)
        if expires:
            heapq.heappush(self.expiries, (expires, key.decode("utf-8")))
        self._changes.append(Change(key, item, prev))
        return item

    def _delete(self, key: bytes) -> Item:
        revision = self.revision + 1
        prev = self.live.pop(key)
        self._supersede(key, prev, revision)
        if prev.lease and prev.lease in self.leases:
            self.leases[prev.lease].keys.discard(key)
        self._changes.append(Change(key, None, prev))
        return prev  # type: ignore[no-any-return]

    def _supersede(self, key: bytes, prev: Item, revision: int) -> None:
        versions = self.history.get(key)
        if versions is None:
            versions = self.history[key] = deque()
        versions.append((revision, prev))

    def _make_parents(self, key: bytes, revision: int) -> None:
        """Directories of the v2 tree above a new key; odd keys are outside the tree."""
        if not key.startswith(b"/"):
            return
        try:
            path = key.decode("utf-8")
        except UnicodeDecodeError:
            return
        at = path.rfind("/")
        while at > 0:
            path = path[:at]
            if path in self.dirs:
                return
            self.dirs[path] = Dir(revision, revision, 0)
            at = path.rfind("/")

    def _forget_oldest(self) -> None:
        event = self.events.popleft()
        self.compacted = event.revision
        for key, _, prev in event.changes:
            if prev is not None:
                versions = self.history[key]
                versions.popleft()
                if not versions:
                    del self.history[key]

    # -- reading ---------------------------------------------------------------------------

    def range(
        self, key: bytes, end: bytes | None = None, revision: int = 0, limit: int = 0
    ) -> list[tuple[bytes, Item]]:
        """Keys in [key, end), or just ``key`` when ``end`` is None, as of ``revision``.

        An empty ``end`` means no upper bound; revision 0 is now.  Raises
        :class:`StoreError` for a revision that is compacted or has not happened.
        """
        if revision and revision != self.revision:
            return self._range_at(key, end, revision, limit)
        if end is None:
            item = self.live.get(key)
            return [(key, item)] if item is not None else []
        out: list[tuple[bytes, Item]] = []
        live = self.live
        for found in live.irange(key, end or None, inclusive=(True, False)):
            out.append((found, live[found]))
            if limit and len(out) >= limit:
                break
        return out

    def _range_at(
        self, key: bytes, end: bytes | None, revision: int, limit: int
    ) -> list[tuple[bytes, Item]]:
        if revision > self.revision:
            raise StoreError("future_revision", f"revision {revision} is in the future")
        if revision < self.compacted:
            raise StoreError("compacted", f"revision {revision} has been compacted")
        if end is None:
            keys = [key]
        else:
            keys = list(self.live.irange(key, end or None, inclusive=(True, False)))
            keys += [
                k for k in self.history if k >= key and (not end or k < end) and k not in self.live
            ]
            keys.sort()
        out = [(k, item) for k in keys if (item := self._version_at(k, revision)) is not None]
        return out[:limit] if limit else out

    def _version_at(self, key: bytes, revision: int) -> Item | None:
        current = self.live.get(key)
        if current is not None and current.mod <= revision:
            return current  # type: ignore[no-any-return]
        for until, item in self.history.get(key, ()):
            if item is not None and item.mod <= revision < until:
                return item
        return None

    def events_since(self, revision: int) -> Iterator[Event]:
        """Retained events with at least this revision, oldest first.

        Raises :class:`StoreError` (``compacted``) when some of them are gone.
        """
        if revision <= self.compacted:
            raise StoreError("compacted", f"revision {revision} has been compacted")
        skip = revision - (self.compacted + 1)
        if self.events and skip < len(self.events) // 2:
            return (event for event in self.events if event.revision >= revision)
        tail: list[Event] = []
        for event in reversed(self.events):
            if event.revision < revision:
                break
            tail.append(event)
        return reversed(tail)

    def next_expiry_ms(self) -> int:
        """Log time of the next v2 expiry, 0 for none; prunes what no longer holds."""
        while self.expiries:
            due, path = self.expiries[0]
            if self._expires(path) == due:
                return due
            heapq.heappop(self.expiries)
        return 0

    def _expires(self, path: str) -> int:
        item = self.live.get(path.encode())
        if item is not None and item.expires:
            return item.expires  # type: ignore[no-any-return]
        directory = self.dirs.get(path)
        return directory.expires if directory is not None else 0

    # -- commands ------------------------------------------------------------------------------

    def _check_lease(self, lease: int) -> None:
        if lease and lease not in self.leases:
            raise StoreError("lease_not_found", f"lease {lease:x} does not exist")

    def _op_put(self, key: bytes, value: bytes, lease: int = 0) -> dict[str, Any]:
        self._check_lease(lease)
        prev = self.live.get(key)
        self._put(key, value, lease)
        return {"revision": self._commit(), "prev": prev}

    def _op_txn(
        self, compares: list[Any], success: list[Any], failure: list[Any]
    ) -> dict[str, Any]:
        """``compares``: [key, target, operator, operand]; operations: see ``_txn_step``."""
        if max(len(success), len(failure)) > TXN_OPERATIONS_MAX:
            raise StoreError(
                "too_many_operations", f"a transaction holds at most {TXN_OPERATIONS_MAX} operations"
            )
        held = all(self._compare(*compare) for compare in compares)
        steps = success if held else failure
        self._check_steps(steps)
        responses = [self._txn_step(step) for step in steps]
        return {"succeeded": held, "revision": self._commit(), "responses": responses}

    def _check_steps(self, steps: list[Any]) -> None:
        seen: set[bytes] = set()
        doomed = [(step[1], step[2] if len(step) > 2 else None) for step in steps if step[0] == "delete"]
        for step in steps:
            if step[0] == "put":
                if any(k == step[1] if end is None else k <= step[1] and (not end or step[1] < end) for k, end in doomed):
                    raise StoreError("duplicate_key", "a transaction may not put a key that it deletes")
                if step[1] in seen:
                    raise StoreError("duplicate_key", "a transaction may put a key only once")
                seen.add(step[1])
                self._check_lease(step[3] if len(step) > 3 else 0)
            elif step[0] not in ("delete", "range"):
                raise StoreError("unknown_command", f"a transaction has no step {step[0]!r}")

    def _txn_step(self, step: list[Any]) -> Any:
        verb, key = step[0], step[1]
        if verb == "put":
            self._put(key, step[2], step[3] if len(step) > 3 else 0)
            return None
        end = step[2] if len(step) > 2 else None
        if verb == "range":
            return self.range(key, end)
        doomed = [found for found, _ in self.range(key, end)]
        for found in doomed:
            self._delete(found)
        return len(doomed)

    def _compare(self, key: bytes, target: str, operator: str, operand: Any) -> bool:
        item = self.live.get(key)
        actual: Any
        if target == "value":
            if item is None:
                return False
            actual = item.value
        else:
            actual = getattr(item, target) if item is not None else 0
        if operator == "=":
            return bool(actual == operand)
        if operator == "!=":
            return bool(actual != operand)
        return bool(actual > operand) if operator == ">" else bool(actual < operand)

    def _op_delete(self, key: bytes, end: bytes | None = None) -> dict[str, Any]:
        doomed = self.range(key, end)
        for found, _ in doomed:
            self._delete(found)
        return {"revision": self._commit(), "deleted": len(doomed)}

    def _op_lease_grant(self, lease: int, ttl_ms: int) -> dict[str, Any]:
        if not LEASE_TTL_S_MIN * 1000 <= ttl_ms <= LEASE_TTL_S_MAX * 1000:
            raise StoreError(
                "lease_ttl",
                f"a lease lives {LEASE_TTL_S_MIN} to {LEASE_TTL_S_MAX} seconds, not {ttl_ms / 1000:g}",
            )
        if lease in self.leases:
            raise StoreError("lease_exists", f"lease {lease:x} exists already")
        self.leases[lease] = Lease(ttl_ms)
        return {"lease": lease, "ttl_ms": ttl_ms}

    def _op_lease_revoke(self, leases: list[int]) -> dict[str, Any]:
        """End leases and delete their keys, in one revision; unknown ids are passed over."""
        gone = 0
        for lease in leases:
            held = self.leases.pop(lease, None)
            if held is None:
                continue
            gone += 1
            for key in sorted(held.keys):
                self._delete(key)
        return {"revision": self._commit(), "revoked": gone}

    def _op_compact(self, revision: int) -> dict[str, Any]:
        if revision > self.revision:
            raise StoreError("future_revision", f"revision {revision} is in the future")
        while self.events and self.events[0].revision <= revision:
            self._forget_oldest()
        return {"compacted": self.compacted}

    def _op_lock(self, group: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One decision on a lock group, taken here and now (see ``brain/locks.py``)."""
        key = LOCKS_PREFIX + group.encode()
        item = self.live.get(key)
        state = locks.load(item.value if item is not None else None, group)
        try:
            changed, result = locks.decide(
                state, verb, arguments, self.revision + 1, self.log_time_ms
            )
        except locks.LockError as error:
            raise StoreError(error.code, str(error)) from None
        if changed is not None:
            self._put(key, locks.dump(changed))
        return {**result, "revision": self._commit()}

    # -- whole state ---------------------------------------------------------------------------

    def dump(self) -> Iterator[bytes]:
        """The state as CBOR records, a generator over a fixed state (see ``Store.load``)."""
        yield encode_own(["head", self.revision, self.compacted, self.log_time_ms, self.hash])
        for lease, held in sorted(self.leases.items()):
            yield encode_own(["lease", lease, held.ttl_ms])
        for path, d in self.dirs.items():
            yield encode_own(["dir", path, d.created, d.modified, d.expires])
        for key, item in self.live.items():
            yield encode_own(["key", key, list(item)])
        for event in self.events:
            changes = [[k, list(i) if i else None, list(p) if p else None] for k, i, p in event[1]]
            yield encode_own(["event", event.revision, changes, list(event.note or ())])

    @classmethod
    def load(cls, records: Iterator[list[Any]]) -> Store:
        """The reverse of :meth:`dump`, from decoded records."""
        store = cls()
        keys: dict[bytes, Item] = {}
        for record in records:
            kind = record[0]
            if kind == "head":
                store.revision, store.compacted, store.log_time_ms, store.hash = record[1:]
            elif kind == "lease":
                store.leases[record[1]] = Lease(record[2])
            elif kind == "dir":
                store.dirs[record[1]] = Dir(*record[2:])
            elif kind == "key":
                keys[record[1]] = Item(*record[2])
            else:
                store._load_event(*record[1:])
        store.live.update(keys)
        store._derive()
        return store

    def _load_event(self, revision: int, changes: list[Any], note: list[Any]) -> None:
        if note and note[4] is not None:
            note[4] = tuple(note[4])
        event = Event(
            revision,
            tuple(Change(k, Item(*i) if i else None, Item(*p) if p else None) for k, i, p in changes),
            TreeNote(*note) if note else None,
        )
        self.events.append(event)
        for key, _, prev in event.changes:
            if prev is not None:
                self._supersede(key, prev, revision)

    def _derive(self) -> None:
        """What is computed from the rest: keys of leases, and the heap of expiries."""
        for key, item in self.live.items():
            if item.lease:
                self.leases[item.lease].keys.add(key)
            if item.expires:
                self.expiries.append((item.expires, key.decode("utf-8")))
        self.expiries.extend((d.expires, path) for path, d in self.dirs.items() if d.expires)
        heapq.heapify(self.expiries)


_OPERATIONS: dict[str, Any] = {
    "put": Store._op_put,  # noqa: SLF001
    "txn": Store._op_txn,  # noqa: SLF001
    "delete": Store._op_delete,  # noqa: SLF001
    "lease_grant": Store._op_lease_grant,  # noqa: SLF001
    "lease_revoke": Store._op_lease_revoke,  # noqa: SLF001
    "compact": Store._op_compact,  # noqa: SLF001
    "lock": Store._op_lock,  # noqa: SLF001
}


F = TypeVar("F", bound=Callable[..., Any])


def operation(name: str) -> Callable[[F], F]:
    """Register another command of the store (used by the v2 tree)."""

    def register(function: F) -> F:
        _OPERATIONS[name] = function
        return function

    return register
