"""The replicated state: one multi-version keyspace with etcd v3's data model.

Every committed command is applied here, on every peer, in the same order, and must give
the same result everywhere: nothing but the command and the state decides.  Keys are
bytes; a revision counts mutations over the whole store; superseded versions are kept for
the last ``HISTORY_REVISIONS`` revisions, so reads and watches may start in the past.

The etcd v2 tree (directories, TTL) is a view over the same keys: see ``brain/tree.py``.
"""

from __future__ import annotations

import heapq
import json
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from sortedcontainers import SortedDict

from . import locks, shapes
from .image import Image

logger = logging.getLogger("argosy.store")

#: Revisions kept for reads and watches that start in the past, unless the cluster was told otherwise.
HISTORY_REVISIONS = 10_000
#: Log time (ms) after which history is forgotten, and how many revisions are kept even so.
HISTORY_AGE_MS = 3_600_000
HISTORY_REVISIONS_MIN = 1_000
#: Bytes of superseded versions that are kept, however few revisions that makes.
HISTORY_BYTES = 256 * 1024 * 1024
#: What a version costs beside its key and value, in bytes (measured; see docs/performance.md).
VERSION_BYTES = 160
#: Lowest and highest time to live of a lease, in seconds.
LEASE_TTL_S_MIN = 1
LEASE_TTL_S_MAX = 9_000_000_000
#: Longest key, in bytes, and most elements of a path in the v2 tree.
TREE_KEY_BYTES_MAX = 4096
TREE_DEPTH_MAX = 100
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


def weight(key: bytes, item: Item) -> int:
    """Bytes that one version of a key is counted with."""
    return len(key) + len(item.value) + VERSION_BYTES


def in_tree(key: bytes) -> bool:
    """Whether a key is short and shallow enough for the v2 tree; v3 may have others as well."""
    return len(key) <= TREE_KEY_BYTES_MAX and key.count(b"/") <= TREE_DEPTH_MAX


class Event(NamedTuple):
    """One revision: its changes, and its v2 description if it has one."""

    revision: int
    changes: tuple[Change, ...]
    note: TreeNote | None
    #: the rolling hash of the store after this revision, and the log time (ms) of it
    digest: int = 0
    at_ms: int = 0


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
        self.compacted = 0  # events up to here are gone
        self.compact_revision = 0  # reads below are refused: where history was told to begin
        self.log_time_ms = 0
        self.hash = 0
        self.bytes_live = 0
        self.bytes_history = 0
        self.history_revisions = HISTORY_REVISIONS
        self.history_age_ms = HISTORY_AGE_MS
        self.expired = 0  # keys and directories that outlived their TTL, since this peer started
        self.live: SortedDict[bytes, Item] = SortedDict()
        self.history: dict[bytes, deque[tuple[int, Item | None]]] = {}
        self.events: deque[Event] = deque()
        self.leases: dict[int, Lease] = {}
        self.dirs: SortedDict[str, Dir] = SortedDict()
        self.expiries: list[tuple[int, str]] = []  # heap of (log time ms, path); lazily pruned
        self.images: list[Image] = []  # states that are being read out
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
            self._undo()
            return error, []
        except Exception as error:  # a fault of ours: it must not end every peer, now and at each start
            logger.exception("the command %r could not be applied; it is passed over on every peer alike", name)
            self._undo()
            return StoreError("fault", f"{name}: {type(error).__name__}"), []
        if self.revision == before:
            return result, []
        return result, self._fresh_events(before)

    def _undo(self) -> None:
        """Take back what an unfinished revision has changed."""
        for key, item, prev in reversed(self._changes):
            if item is not None:
                self.bytes_live -= weight(key, item)
                del self.live[key]
                if item.lease in self.leases:
                    self.leases[item.lease].keys.discard(key)
            if prev is not None:
                self.live[key] = prev
                versions = self.history[key]
                versions.pop()
                if not versions:
                    del self.history[key]
                moved = weight(key, prev)
                self.bytes_live += moved
                self.bytes_history -= moved
                if prev.lease in self.leases:
                    self.leases[prev.lease].keys.add(key)
        self._changes, self._note = [], None

    def _fresh_events(self, before: int) -> list[Event]:
        count = self.revision - before  # every revision is one event
        fresh = [self.events[at] for at in range(-count, 0)]
        self._trim()
        return fresh

    def _trim(self) -> None:
        """Compaction by count, bytes and age; by log time, so that every peer forgets alike."""
        events = self.events
        old = self.log_time_ms - self.history_age_ms
        while len(events) > self.history_revisions or self.bytes_history > HISTORY_BYTES or (
            len(events) > HISTORY_REVISIONS_MIN and events[0].at_ms < old
        ):  # fmt: skip
            self._forget_oldest()

    @property
    def size(self) -> int:
        """Bytes of all versions, as counted against the quota."""
        return self.bytes_live + self.bytes_history

    def _commit(self) -> int:
        """Close the revision that is being built; returns it."""
        changes, self._changes = tuple(self._changes), []
        note, self._note = self._note, None
        if not changes and note is None:
            return self.revision
        self.revision += 1
        digest = self.hash
        for key, item, _ in changes:
            if item is None:
                digest = zlib.crc32(b"%d %b" % (len(key), key), digest)
            else:
                value, create, mod, version, lease, _ = item
                numbers = (len(key), key, len(value), create, mod, version, lease)
                digest = zlib.crc32(value, zlib.crc32(b"%d %b %d %d %d %d %d" % numbers, digest))
        if note is not None and note.is_dir:
            digest = zlib.crc32(f"{note.action} {note.path} {note.expires}".encode("utf-8", "replace"), digest)
        self.hash = zlib.crc32(b"%d" % self.revision, digest)
        self.events.append(Event(self.revision, changes, note, self.hash, self.log_time_ms))
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
        self.bytes_live += weight(key, item)
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
        for image in self.images:
            image.keep(key, self.version_at(key, image.revision) or prev)
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
        moved = weight(key, prev)
        self.bytes_live -= moved
        self.bytes_history += moved

    def _make_parents(self, key: bytes, revision: int) -> None:
        """Directories of the v2 tree above a new key; odd keys are outside the tree."""
        if not key.startswith(b"/") or not in_tree(key):
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
                for image in self.images:
                    if event.revision > image.revision:  # until then it was the one to show
                        image.keep(key, prev)
                self.bytes_history -= weight(key, prev)
                if not versions:
                    del self.history[key]

    def _forget_until(self, revision: int) -> None:
        """Compact up to ``revision``."""
        while self.events and self.events[0].revision <= revision:
            self._forget_oldest()
        self.compacted = max(self.compacted, revision)

    @property
    def first_revision(self) -> int:
        """The earliest revision that a watch may start from."""
        return self.compacted + 1

    # -- reading ---------------------------------------------------------------------------

    def is_now(self, revision: int) -> bool:
        """Whether a read at ``revision`` sees just what is there (0 always does)."""
        return not revision or (revision == self.revision and not self._changes)

    def _check_revision(self, revision: int) -> None:
        if revision > self.revision:
            raise StoreError("future_revision", f"revision {revision} is in the future")
        if revision and revision < max(self.compacted, self.compact_revision):
            raise StoreError("compacted", f"revision {revision} has been compacted")

    def range(
        self, key: bytes, end: bytes | None = None, revision: int = 0, limit: int = 0
    ) -> list[tuple[bytes, Item]]:
        """Keys in [key, end), or just ``key`` when ``end`` is None, as of ``revision``.

        An empty ``end`` means no upper bound; revision 0 is now.  Raises
        :class:`StoreError` for a revision that is compacted or has not happened.
        """
        if not self.is_now(revision):
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
        self._check_revision(revision)
        if end is None:
            keys = [key]
        else:
            keys = list(self.live.irange(key, end or None, inclusive=(True, False)))
            keys += [
                k for k in self.history if k >= key and (not end or k < end) and k not in self.live
            ]
            keys.sort()
        out = [(k, item) for k in keys if (item := self.version_at(k, revision)) is not None]
        return out[:limit] if limit else out

    def version_at(self, key: bytes, revision: int) -> Item | None:
        """The version of a key at a revision, as far as it is still known."""
        current = self.live.get(key)
        if current is not None and current.mod <= revision:
            return current  # type: ignore[no-any-return]
        for until, item in self.history.get(key, ()):
            if item is not None and item.mod <= revision < until:
                return item
        return None

    def digest_at(self, revision: int) -> int | None:
        """The rolling hash after ``revision``; None where it is not known any more, or not yet."""
        if revision == self.revision:
            return self.hash
        at = revision - self.compacted - 1
        known = 0 <= at < len(self.events) and self.events[at].revision == revision
        return self.events[at].digest if known else None

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

    def is_own_lease(self, lease: int) -> bool:
        """Whether a lease holds keys of Argosy itself: out of reach of the open doors."""
        held = self.leases.get(lease)
        return held is not None and any(key.startswith(OWN_PREFIX) for key in held.keys)

    def _op_lease_revoke(self, leases: list[int], outer: bool = False) -> dict[str, Any]:
        """End leases and delete their keys, in one revision; unknown ids are passed over."""
        gone = 0
        for lease in leases:
            if outer and self.is_own_lease(lease):
                continue
            held = self.leases.pop(lease, None)
            if held is None:
                continue
            gone += 1
            for key in sorted(held.keys):
                self._delete(key)
        return {"revision": self._commit(), "revoked": gone}

    def _op_lock(self, group: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One decision on a lock group, taken here and now (see ``brain/locks.py``)."""
        stored, state, changed, result = self.decide_lock(group, verb, arguments)
        final = changed if changed is not None else state
        if final != stored:
            self._put(LOCKS_PREFIX + group.encode(), locks.dump(final))
        shown = self.live.get(locks.semaphore_key(group))
        if (final != stored or shown is not None) and (shown is None or shown.value != locks.semaphore(final)):
            self._put(locks.semaphore_key(group), locks.semaphore(final))
        return {**result, "revision": self._commit()}

    def decide_lock(
        self, group: str, verb: str, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None, dict[str, Any]]:
        """(what is stored, that with locksmith's changes, what it would become, the answer) of a command.

        Changes nothing; raises :class:`StoreError`.
        """
        item = self.live.get(LOCKS_PREFIX + group.encode())
        stored = locks.load(item.value if item is not None else None, group)
        try:
            locks.check_group(group)
            state = locks.current(self.live.get, LOCKS_PREFIX + group.encode(), group, self.log_time_ms)
            changed, result = locks.decide(state, verb, arguments, self.revision + 1, self.log_time_ms, self._alive,
                                            lambda: self._holders(group))  # fmt: skip
        except locks.LockError as error:
            raise StoreError(error.code, str(error)) from None
        return stored, state, changed, result

    def _holders(self, without: str) -> set[str]:
        """Who holds a lock of any group but one; what locksmith wrote counts."""
        names: set[str] = set()
        for key, _ in self.range(LOCKS_PREFIX, prefix_end(LOCKS_PREFIX)):
            group = key[len(LOCKS_PREFIX) :].decode("utf-8", "replace")
            if group != without:
                names |= set(locks.current(self.live.get, key, group, self.log_time_ms)["holders"])
        return names

    def _alive(self) -> set[str]:
        """Names of the machines whose lease holds."""
        prefix = OWN_PREFIX + b"alive/"
        names = set()
        for key, item in self.range(prefix, prefix_end(prefix)):
            try:
                names.add(str(json.loads(item.value)["name"]))
            except (ValueError, KeyError, TypeError):  # no command may ever stop a peer
                names.add(key[len(prefix) :].decode("utf-8", "replace"))
        return names

    # -- whole state ---------------------------------------------------------------------------

    def dump(self) -> Iterator[bytes]:
        """The state as CBOR records, as of now; see ``brain/image.py``."""
        return Image(self).records()


_OPERATIONS: dict[str, Any] = {
    "lease_grant": Store._op_lease_grant,  # noqa: SLF001
    "lease_revoke": Store._op_lease_revoke,  # noqa: SLF001
    "lock": Store._op_lock,  # noqa: SLF001
}


F = TypeVar("F", bound=Callable[..., Any])


def operation(name: str) -> Callable[[F], F]:
    """Register another command of the store (used by the v2 tree)."""

    def register(function: F) -> F:
        _OPERATIONS[name] = function
        return function

    return register
