"""The v3 commands beyond the plain ones: options of reads, nested transactions, what a door may not see."""

from __future__ import annotations

from typing import Any

import pytest

from brain import loader
from brain.codec import decode
from brain.kv import Found, Options, find, is_read, read_txn
from brain.store import HISTORY_REVISIONS_MIN, OWN_PREFIX, Store, StoreError, weight


def do(store: Store, *command: Any, at: int = 0) -> Any:
    """The result of a command that must not be refused."""
    result, _ = store.apply(at, list(command))
    assert not isinstance(result, StoreError), result
    return result


def refused(store: Store, *command: Any) -> str:
    """The code of a command that must be refused, and change nothing."""
    before = list(store.dump())
    result, events = store.apply(0, list(command))
    assert isinstance(result, StoreError)
    assert list(store.dump()) == before
    assert not events
    return result.code


@pytest.fixture
def store() -> Store:
    """Keys a to e, written in another order, and two of Argosy's own."""
    store = Store()
    for key in (b"c", b"a", b"e", b"b", b"d"):
        do(store, "put", key, b"value of " + key)
    do(store, "put", OWN_PREFIX + b"x", b"own")
    do(store, "put", OWN_PREFIX + b"y", b"own")
    return store


def keys(found: Found) -> bytes:
    """Its keys in order."""
    return b"".join(key for key, _ in found.items)


@pytest.mark.parametrize(
    ("options", "expected", "count", "more"),
    [
        (Options(), b"abcde", 5, False),
        (Options(limit=2), b"ab", 5, True),
        (Options(limit=5), b"abcde", 5, False),
        (Options(order="descend"), b"edcba", 5, False),
        (Options(order="descend", limit=1), b"e", 5, True),
        (Options(order="ascend", target="mod"), b"caebd", 5, False),
        (Options(order="descend", target="create"), b"dbeac", 5, False),
        (Options(count_only=True), b"", 5, False),
        (Options(min_mod=3, max_mod=5), b"abe", 5, False),
        (Options(min_create=6), b"d", 5, False),
        (Options(revision=3), b"ac", 2, False),
        (Options(revision=3, limit=1), b"a", 2, True),
    ],
)
def test_what_a_range_asks_for(
    store: Store, options: Options, expected: bytes, count: int, more: bool
) -> None:
    """Limits, orders, filters, the past; the count is of the whole range."""
    found = find(store, b"a", b"f", options)
    assert (keys(found), found.count, found.more) == (expected, count, more)


@pytest.mark.parametrize("end", [b"", b"0"])
def test_a_door_does_not_see_argosys_own_keys(store: Store, end: bytes) -> None:
    """Not in a range, a count, a past or one by one; and deletes around them."""
    low = b"/"
    do(store, "put", b"/a", b"")
    do(store, "put", b"/z", b"")
    inner = find(store, low, end, Options())
    outer = find(store, low, end, Options(outer=True))
    assert inner.count == outer.count + 2 == len(outer.items) + 2
    assert not [key for key, _ in outer.items if key.startswith(OWN_PREFIX)]
    assert find(store, low, end, Options(revision=8, outer=True)).count == outer.count - 2
    assert find(store, OWN_PREFIX + b"x", None, Options(outer=True)) == ([], 0, False)
    assert do(store, "delete", low, end, True)["deleted"] == outer.count
    assert [key for key, _ in find(store, low, end, Options()).items] == [OWN_PREFIX + b"x", OWN_PREFIX + b"y"]


def test_a_put_may_keep_the_value_or_the_lease(store: Store) -> None:
    """``ignore_value`` and ``ignore_lease``; only of a key that is there."""
    do(store, "lease_grant", 7, 5000)
    do(store, "put", b"a", b"leased", 7)
    do(store, "put", b"a", b"again", None)
    assert store.live[b"a"][4] == 7
    do(store, "put", b"a", None, 0)
    assert (store.live[b"a"].value, store.live[b"a"].lease) == (b"again", 0)
    assert refused(store, "put", b"nosuch", None, 0) == "key_not_found"
    assert refused(store, "put", b"nosuch", b"", None) == "key_not_found"
    assert refused(store, "txn", [], [["put", b"nosuch", None, 0]], []) == "key_not_found"


def test_transactions_nest(store: Store) -> None:
    """All comparisons are made on the state before; the branches write in one revision."""
    inner = ["txn", [[b"a", "value", "=", b"value of a"]], [["put", b"n", b"1"]], [["put", b"m", b"1"]]]
    result = do(store, "txn", [], [["put", b"a", b"new"], inner], [])
    assert result["responses"][1]["succeeded"] is True
    assert store.live[b"a"].mod == store.live[b"n"].mod == store.revision
    assert b"m" not in store.live
    nothing = ["txn", [[b"a", "version", ">", 100]], [["put", b"q", b""]], []]
    assert do(store, "txn", [], [nothing], [])["responses"][0] == {"succeeded": False, "responses": []}


def test_a_key_is_written_once_in_a_transaction(store: Store) -> None:
    """Across levels too; but the two branches of a nested one exclude each other."""
    put = ["put", b"k", b""]
    either = ["txn", [], [put], [put]]
    do(store, "txn", [], [either], [])
    assert refused(store, "txn", [], [put, either], []) == "duplicate_key"
    assert refused(store, "txn", [], [], [either, ["txn", [], [], [put]]]) == "duplicate_key"
    assert refused(store, "txn", [], [["delete", b"a", b"z"], put], []) == "duplicate_key"
    assert refused(store, "txn", [], [["delete", b"k"], either], []) == "duplicate_key"
    deep: list[Any] = put
    for _ in range(6):
        deep = ["txn", [], [deep], []]
    assert refused(store, "txn", [], [deep], []) in ("too_many_operations", "malformed")


def test_a_comparison_of_a_range_holds_for_every_key(store: Store) -> None:
    """As etcd 3.3 and later."""
    older = [b"a", "mod", "<", 7, b"f"]
    assert do(store, "txn", [older], [], [])["succeeded"] is True
    do(store, "put", b"c", b"newer")
    assert do(store, "txn", [older], [], [])["succeeded"] is False
    empty = [b"x", "version", "=", 0, b"z"]
    assert do(store, "txn", [empty], [], [])["succeeded"] is True
    assert do(store, "txn", [[b"x", "value", "=", b"", b"z"]], [], [])["succeeded"] is False


def test_a_range_in_a_transaction_may_look_at_the_revision_before_it(store: Store) -> None:
    """Without a revision it sees what the transaction has written; with the last one it does not."""
    now = store.revision
    result = do(store, "txn", [], [
        ["put", b"a", b"new"], ["range", b"a"], ["range", b"a", None, [*Options(revision=now)]],
        ["range", b"a", b"b", [*Options(revision=now)]],
    ], [])  # fmt: skip
    _, after, before, also_before = result["responses"]
    assert after.items[0][1].value == b"new"
    assert before.items[0][1].value == also_before.items[0][1].value == b"value of a"
    assert refused(store, "txn", [], [["range", b"a", None, [*Options(revision=99)]]], []) == "future_revision"


def test_a_transaction_that_only_reads_needs_no_log(store: Store) -> None:
    """The same answer from the state alone."""
    steps = [["range", b"a"], ["txn", [], [["range", b"b"]], []]]
    assert is_read(steps)
    assert not is_read([["txn", [], [], [["delete", b"b"]]]])
    before = store.revision
    assert read_txn(store, [], steps, [], True) == do(store, "txn", [], steps, [], True)
    assert store.revision == before


def test_compaction_forgets_once(store: Store) -> None:
    """What is compacted cannot be compacted again, and the past is refused."""
    do(store, "compact", 4)
    assert refused(store, "compact", 4) == "compacted"
    assert refused(store, "compact", 99) == "future_revision"
    with pytest.raises(StoreError, match="compacted"):
        find(store, b"a", b"f", Options(revision=3))
    assert keys(find(store, b"a", b"f", Options(revision=4))) == b"ace"


def test_bytes_are_counted_through_every_change(store: Store) -> None:
    """What the quota is measured with is the sum over all versions, also after a restart."""

    def truth() -> tuple[int, int]:
        live = sum(weight(key, item) for key, item in store.live.items())
        old = sum(weight(k, i) for k, versions in store.history.items() for _, i in versions if i)
        return live, old

    do(store, "put", b"a", b"longer than before")
    do(store, "delete", b"b", b"d")
    assert (store.bytes_live, store.bytes_history) == truth()
    do(store, "compact", store.revision - 1)
    assert (store.bytes_live, store.bytes_history) == truth()
    do(store, "compact", store.revision, True)
    assert store.bytes_history == 0


def test_history_ages() -> None:
    """What is older than an hour of log time goes, but the last revisions stay for watchers."""
    store = Store()
    for number in range(HISTORY_REVISIONS_MIN + 50):
        do(store, "put", b"k%d" % number, b"", at=number)
    do(store, "put", b"late", b"", at=3_600_000 + 20)
    assert len(store.events) == HISTORY_REVISIONS_MIN + 31
    do(store, "put", b"later", b"", at=10_000_000)
    assert len(store.events) == HISTORY_REVISIONS_MIN


def test_a_cluster_may_be_told_how_much_history_it_keeps() -> None:
    """It counts at once and survives a restart; too little is refused."""
    store = Store()
    for number in range(HISTORY_REVISIONS_MIN + 500):
        do(store, "put", b"k%d" % number, b"")
    do(store, "history", HISTORY_REVISIONS_MIN, 60_000)
    assert len(store.events) == HISTORY_REVISIONS_MIN
    again = loader.load([decode(record) for record in store.dump()])
    assert (again.history_revisions, again.history_age_ms) == (HISTORY_REVISIONS_MIN, 60_000)
    assert refused(store, "history", HISTORY_REVISIONS_MIN - 1, 60_000) == "history"
    assert refused(store, "history", HISTORY_REVISIONS_MIN, 1_000) == "history"
