"""The v3 commands and reads of the store: put, delete, transaction, range, compaction.

Pure, like everything here: a command is plain data, its outcome depends on nothing but the
command and the state.  Semantics: etcd's v3 API as of 3.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from .store import (
    HISTORY_REVISIONS_MIN,
    OWN_PREFIX,
    Item,
    Store,
    StoreError,
    operation,
    prefix_end,
)

#: Operations, or comparisons, in one level of a transaction.
TXN_OPERATIONS_MAX = 128
#: Operations and comparisons on all levels together.
TXN_TOTAL_MAX = 512
#: How deep transactions may nest.
TXN_DEPTH_MAX = 4
#: Most revisions of history, and least age (ms), that a cluster may be told to keep.
HISTORY_REVISIONS_MAX = 1_000_000
HISTORY_AGE_MS_MIN = 60_000
OWN_END = prefix_end(OWN_PREFIX)
SORT_TARGETS = {"key": None, "version": 3, "create": 1, "mod": 2, "value": 0}

Pair = tuple[bytes, Item]


class Options(NamedTuple):
    """What a range asks for; the default is everything, as of now, in order of keys."""

    revision: int = 0
    limit: int = 0
    order: str = ""  # "", "ascend" or "descend"
    target: str = "key"
    count_only: bool = False
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0
    #: asked through an open door: Argosy's own keys are not there
    outer: bool = False


class Found(NamedTuple):
    """What a range found: pairs, how many keys lie in the range, whether the limit cut some off."""

    items: list[Pair]
    count: int  # type: ignore[assignment]
    more: bool


def find(store: Store, key: bytes, end: bytes | None, options: Options) -> Found:
    """Read [key, end), or one key when ``end`` is None; raises as :meth:`Store.range` does."""
    if end is None:
        if options.outer and key.startswith(OWN_PREFIX):
            return Found([], 0, False)
        pairs = store.range(key, None, options.revision)
        return _pick(pairs, len(pairs), options)
    plain = not (options.order or any(options[5:9]))
    if plain and store.is_now(options.revision):
        count = _count(store, key, end, options.outer)
        if options.count_only:
            return Found([], count, False)
        pairs = list(islice(_walk(store, key, end, options.outer), options.limit or None))
        return Found(pairs, count, len(pairs) < count)
    pairs = store.range(key, end, options.revision)
    if options.outer:
        pairs = [pair for pair in pairs if not pair[0].startswith(OWN_PREFIX)]
    return _pick(pairs, len(pairs), options)


def _walk(store: Store, key: bytes, end: bytes, outer: bool) -> Iterator[Pair]:
    live = store.live
    for found in live.irange(key, end or None, inclusive=(True, False)):
        if not (outer and found.startswith(OWN_PREFIX)):
            yield found, live[found]


def _count(store: Store, key: bytes, end: bytes, outer: bool) -> int:
    def between(low: bytes, high: bytes) -> int:
        above = store.live.bisect_left(high) if high else len(store.live)
        return max(0, int(above) - int(store.live.bisect_left(low)))

    count = between(key, end)
    if outer:
        count -= between(max(key, OWN_PREFIX), min(end, OWN_END) if end else OWN_END)
    return count


def _pick(pairs: list[Pair], count: int, options: Options) -> Found:
    if options.count_only:
        return Found([], count, False)
    low_mod, high_mod, low_create, high_create = options[5:9]
    if low_mod or high_mod or low_create or high_create:
        pairs = [
            (key, item) for key, item in pairs
            if low_mod <= item.mod and low_create <= item.create
            and (not high_mod or item.mod <= high_mod) and (not high_create or item.create <= high_create)
        ]  # fmt: skip
    field = SORT_TARGETS[options.target]
    if field is not None:
        pairs = sorted(pairs, key=lambda pair: pair[1][field], reverse=options.order == "descend")
    elif options.order == "descend":
        pairs = pairs[::-1]
    if options.limit and len(pairs) > options.limit:
        return Found(pairs[: options.limit], count, True)
    return Found(pairs, count, False)


# -- commands --------------------------------------------------------------------------------------


@operation("put")
def _put(store: Store, key: bytes, value: bytes | None, lease: int | None = 0) -> dict[str, Any]:
    """Write a key; without a value it keeps its own, without a lease likewise."""
    store._check_lease(lease or 0)
    _check_put(store, key, value, lease)
    prev = store.live.get(key)
    _write(store, key, value, lease)
    return {"revision": store._commit(), "prev": prev}


def _check_put(store: Store, key: bytes, value: bytes | None, lease: int | None) -> None:
    if (value is None or lease is None) and key not in store.live:
        raise StoreError("key_not_found", "the key whose value or lease is to be kept does not exist")
    store._check_lease(lease or 0)


def _write(store: Store, key: bytes, value: bytes | None, lease: int | None) -> None:
    prev = store.live.get(key)
    if prev is not None:
        value = prev.value if value is None else value
        lease = prev.lease if lease is None else lease
    assert value is not None and lease is not None, "checked before"
    store._put(key, value, lease)


@operation("delete")
def _delete(store: Store, key: bytes, end: bytes | None = None, outer: bool = False) -> dict[str, Any]:
    """Delete a key or a range; ``outer``: all but Argosy's own keys."""
    doomed = _erase(store, key, end, outer)
    return {"revision": store._commit(), "deleted": len(doomed), "prevs": doomed}


def _erase(store: Store, key: bytes, end: bytes | None, outer: bool) -> list[Pair]:
    doomed = find(store, key, end, Options(outer=outer)).items
    for found, _ in doomed:
        store._delete(found)
    return doomed


@operation("txn")
def _txn(
    store: Store, compares: list[Any], success: list[Any], failure: list[Any], outer: bool = False
) -> dict[str, Any]:
    """All of ``success`` or all of ``failure``, in one revision, by what ``compares`` say.

    A compare is ``[key, target, operator, operand, end]`` (``end`` may be left out); an
    operation is ``["put", key, value, lease]``, ``["delete", key, end]``,
    ``["range", key, end, options]`` or ``["txn", compares, success, failure]``.
    """
    check_txn(compares, success, failure)
    path = _decide(store, compares, success, failure, outer)
    responses = [_step(store, step, inner, outer) for step, inner in path[1]]
    return {"succeeded": path[0], "revision": store._commit(), "responses": responses}


def read_txn(
    store: Store, compares: list[Any], success: list[Any], failure: list[Any], outer: bool
) -> dict[str, Any]:
    """A transaction that only reads, on this very state; see :func:`is_read`."""
    check_txn(compares, success, failure)
    path = _decide(store, compares, success, failure, outer)
    responses = [_step(store, step, inner, outer) for step, inner in path[1]]
    return {"succeeded": path[0], "revision": store.revision, "responses": responses}


def is_read(steps: Iterable[list[Any]]) -> bool:
    """Whether none of these operations can write."""
    return all(
        step[0] == "range" or (step[0] == "txn" and is_read(step[2]) and is_read(step[3])) for step in steps
    )


_Path = tuple[bool, list[tuple[list[Any], Any]]]


def _decide(store: Store, compares: list[Any], success: list[Any], failure: list[Any], outer: bool) -> _Path:
    """Which branches are taken, all compared with the state before; refuses what could not be done."""
    held = all(_compare(store, outer, *compare) for compare in compares)
    taken: list[tuple[list[Any], Any]] = []
    for step in success if held else failure:
        inner = None
        if step[0] == "txn":
            inner = _decide(store, step[1], step[2], step[3], outer)
        elif step[0] == "put":
            if outer and step[1].startswith(OWN_PREFIX):
                raise StoreError("own_key", "keys below /_argosy/ are Argosy's own")
            _check_put(store, step[1], step[2], step[3] if len(step) > 3 else 0)
        elif step[0] == "range" and len(step) > 3:
            store._check_revision(step[3][0])
        taken.append((step, inner))
    return held, taken


def _step(store: Store, step: list[Any], inner: Any, outer: bool) -> Any:
    verb, key = step[0], step[1]
    if verb == "txn":
        responses = [_step(store, below, deeper, outer) for below, deeper in inner[1]]
        return {"succeeded": inner[0], "responses": responses}
    if verb == "put":
        prev = store.live.get(key)
        _write(store, key, step[2], step[3] if len(step) > 3 else 0)
        return prev
    end = step[2] if len(step) > 2 else None
    if verb == "delete":
        return _erase(store, key, end, outer)
    options = Options(*step[3]) if len(step) > 3 else Options()
    return find(store, key, end, options._replace(outer=outer))


def _compare(
    store: Store, outer: bool, key: bytes, target: str, operator: str, operand: Any, end: bytes | None = None
) -> bool:
    if end is None:
        return _holds(None if outer and key.startswith(OWN_PREFIX) else store.live.get(key), target, operator, operand)
    pairs = find(store, key, end, Options(outer=outer)).items
    if not pairs:  # nothing there is like one key that is not there, except that it has no value
        return target != "value" and _holds(None, target, operator, operand)
    return all(_holds(item, target, operator, operand) for _, item in pairs)


def _holds(item: Item | None, target: str, operator: str, operand: Any) -> bool:
    if target == "value":
        if item is None:
            return False
        actual: Any = item.value
    else:
        actual = getattr(item, target) if item is not None else 0
    if operator == "=":
        return bool(actual == operand)
    if operator == "!=":
        return bool(actual != operand)
    return bool(actual > operand) if operator == ">" else bool(actual < operand)


def check_txn(compares: list[Any], success: list[Any], failure: list[Any], depth: int = 1) -> int:
    """Raise :class:`StoreError` for too many operations, or one key that is written twice.

    Returns how many operations there are on all levels.
    """
    if max(len(compares), len(success), len(failure)) > TXN_OPERATIONS_MAX:
        raise StoreError(
            "too_many_operations", f"a transaction holds at most {TXN_OPERATIONS_MAX} operations"
        )
    if depth > TXN_DEPTH_MAX:
        raise StoreError("too_many_operations", f"transactions nest at most {TXN_DEPTH_MAX} deep")
    total = len(compares) + len(success) + len(failure)
    for branch in (success, failure):
        for step in branch:
            if step[0] == "txn":
                total += check_txn(step[1], step[2], step[3], depth + 1)
    if total > TXN_TOTAL_MAX:
        raise StoreError("too_many_operations", f"a transaction holds at most {TXN_TOTAL_MAX} on all levels")
    if depth == 1:
        for branch in (success, failure):
            _writes(branch)
    return total


_Ranges = list[tuple[bytes, bytes | None]]


def _covers(ranges: _Ranges, key: bytes) -> bool:
    return any(k == key if end is None else k <= key and (not end or key < end) for k, end in ranges)


def _writes(steps: list[Any]) -> tuple[set[bytes], _Ranges]:
    """Keys put and ranges deleted by these operations and those below them."""
    puts: set[bytes] = set()
    doomed: _Ranges = [
        (step[1], step[2] if len(step) > 2 else None) for step in steps if step[0] == "delete"
    ]
    clash = StoreError("duplicate_key", "a transaction may write a key only once")
    for step in steps:
        if step[0] != "txn":
            continue
        either: set[bytes] = set()
        ranges: _Ranges = []
        for branch in (step[2], step[3]):  # only one of the two will happen
            below, deleted = _writes(branch)
            if any(key in puts or _covers(doomed, key) for key in below):
                raise clash
            either |= below
            ranges += deleted
        puts |= either
        doomed += ranges
    for step in steps:
        if step[0] == "put":
            if step[1] in puts or _covers(doomed, step[1]):
                raise clash
            puts.add(step[1])
    return puts, doomed


@operation("compact")
def _compact(store: Store, revision: int, itself: bool = False) -> dict[str, Any]:
    """Let history begin at ``revision``: what was superseded before it is forgotten.

    The revision may still be watched from, unless it shall be forgotten ``itself``.
    """
    if revision > store.revision:
        raise StoreError("future_revision", f"revision {revision} is in the future")
    if revision <= max(store.compacted, store.compact_revision):
        raise StoreError("compacted", f"revision {revision} has been compacted")
    store._forget_until(revision if itself else revision - 1)
    store.compact_revision = revision
    return {"compacted": revision}


@operation("history")
def _history(store: Store, revisions: int, age_ms: int) -> dict[str, Any]:
    """How much past the cluster keeps: at most ``revisions``, and none older than ``age_ms``."""
    if not HISTORY_REVISIONS_MIN <= revisions <= HISTORY_REVISIONS_MAX:
        limits = f"{HISTORY_REVISIONS_MIN} to {HISTORY_REVISIONS_MAX}"
        raise StoreError("history", f"history holds {limits} revisions, not {revisions}")
    if age_ms < HISTORY_AGE_MS_MIN:
        raise StoreError("history", f"history reaches back {HISTORY_AGE_MS_MIN // 1000} seconds at least")
    store.history_revisions, store.history_age_ms = revisions, age_ms
    store._trim()
    return {"revisions": revisions, "age_ms": age_ms}
