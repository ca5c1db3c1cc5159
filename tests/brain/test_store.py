"""The store: etcd v3's data model, applied the same way everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from brain import tree  # noqa: F401 - registers the commands of the v2 tree
from brain.kv import TXN_OPERATIONS_MAX
from brain.store import LEASE_TTL_S_MAX, Item, Store, StoreError, prefix_end

from .test_snapshot import everything


def do(store: Store, *command: Any, now: int = 0) -> Any:
    """Apply one command that must succeed; its result."""
    result, _ = store.apply(now, list(command))
    assert not isinstance(result, StoreError), result
    return result


def refused(store: Store, *command: Any) -> StoreError:
    """Apply one command that must be refused, and check that nothing has changed."""
    before = everything(store)
    result, events = store.apply(0, list(command))
    assert isinstance(result, StoreError), result
    assert events == []
    assert everything(store) == before
    return result


@pytest.fixture
def store() -> Store:
    """An empty store."""
    return Store()


# -- keys ------------------------------------------------------------------------------------------


def test_a_fresh_store_is_at_revision_one(store: Store) -> None:
    """As etcd's is."""
    assert store.revision == 1
    assert store.range(b"", b"") == []


def test_put_counts_revisions_and_versions(store: Store) -> None:
    """create, mod and version as etcd shows them; a new life after a deletion starts at version 1."""
    assert do(store, "put", b"k", b"one")["revision"] == 2
    second = do(store, "put", b"k", b"two")
    assert second["prev"] == Item(b"one", 2, 2, 1, 0, 0)
    assert store.range(b"k") == [(b"k", Item(b"two", 2, 3, 2, 0, 0))]
    assert do(store, "delete", b"k") == {
        "revision": 4, "deleted": 1, "prevs": [(b"k", Item(b"two", 2, 3, 2, 0, 0))]
    }  # fmt: skip
    do(store, "put", b"k", b"three")
    assert store.range(b"k") == [(b"k", Item(b"three", 5, 5, 1, 0, 0))]


def test_deleting_nothing_is_no_revision(store: Store) -> None:
    """Neither an event nor a number is used up."""
    result, events = store.apply(0, ["delete", b"nosuch"])
    assert result == {"revision": 1, "deleted": 0, "prevs": []}
    assert events == []
    assert store.revision == 1


def test_a_range_deletion_is_one_revision(store: Store) -> None:
    """All keys go at once, in one event, in order."""
    for key in (b"a", b"b", b"c", b"d"):
        do(store, "put", key, b"")
    result, [event] = store.apply(0, ["delete", b"b", b"d"])
    assert (result["revision"], result["deleted"]) == (6, 2)
    assert [key for key, _ in result["prevs"]] == [b"b", b"c"]
    assert [change.key for change in event.changes] == [b"b", b"c"]
    assert all(change.item is None and change.prev is not None for change in event.changes)
    assert [key for key, _ in store.range(b"", b"")] == [b"a", b"d"]


def test_ranges(store: Store) -> None:
    """One key, half-open, unbounded, limited; bytes of any value."""
    keys = [b"", b"\x00", b"a", b"a\x00", b"ab", b"b", b"\xff", b"\xff\xff"]
    for key in keys:
        do(store, "put", key, key)

    def found(*arguments: Any, **options: Any) -> list[bytes]:
        return [key for key, _ in store.range(*arguments, **options)]

    assert found(b"", b"") == keys
    assert found(b"a") == [b"a"]
    assert found(b"nosuch") == []
    assert found(b"a", b"b") == [b"a", b"a\x00", b"ab"]
    assert found(b"b", b"a") == []
    assert found(b"ab", b"") == [b"ab", b"b", b"\xff", b"\xff\xff"]
    assert found(b"", b"", limit=3) == keys[:3]
    assert found(b"\xff", prefix_end(b"\xff")) == [b"\xff", b"\xff\xff"]


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff", b""), (b"\xff\xff", b""), (b"", b"")],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    """The smallest key above the prefix, or no bound."""
    assert prefix_end(prefix) == end


# -- transactions ----------------------------------------------------------------------------------


HELD = Item(b"value", 5, 9, 3, 77, 0)
COMPARES: list[tuple[bytes, str, str, Any, bool]] = [
    (b"k", "value", "=", b"value", True), (b"k", "value", "=", b"other", False),
    (b"k", "value", "!=", b"other", True), (b"k", "value", ">", b"valu", True),
    (b"k", "value", "<", b"w", True), (b"k", "value", "<", b"value", False),
    (b"k", "create", "=", 5, True), (b"k", "create", "!=", 5, False), (b"k", "mod", ">", 8, True),
    (b"k", "mod", ">", 9, False), (b"k", "mod", "<", 10, True), (b"k", "version", "=", 3, True),
    (b"k", "version", "<", 3, False), (b"k", "lease", "=", 77, True), (b"k", "lease", "=", 0, False),
    (b"no", "version", "=", 0, True), (b"no", "create", "=", 0, True), (b"no", "mod", "<", 1, True),
    (b"no", "lease", "=", 0, True), (b"no", "mod", ">", 0, False),
    (b"no", "value", "=", b"", False), (b"no", "value", "!=", b"x", False),
    (b"no", "value", "<", b"x", False),
]  # fmt: skip


@pytest.mark.parametrize("compare", COMPARES, ids=lambda c: f"{c[0].decode()} {c[1]} {c[2]} {c[3]}")
def test_compares(store: Store, compare: tuple[bytes, str, str, Any, bool]) -> None:
    """Every target and operator, on a key that exists and on one that does not."""
    store.live[b"k"] = HELD
    *question, holds = compare
    result = do(store, "txn", [question], [], [])
    assert result["succeeded"] is holds


def test_all_compares_must_hold(store: Store) -> None:
    """One that does not is enough for the other branch; none at all is success."""
    do(store, "put", b"k", b"v")
    good, bad = [b"k", "version", "=", 1], [b"k", "version", "=", 2]
    assert do(store, "txn", [good, good], [], [])["succeeded"] is True
    assert do(store, "txn", [good, bad], [], [])["succeeded"] is False
    assert do(store, "txn", [], [], [])["succeeded"] is True
    assert do(store, "txn", [bad], [["put", b"yes", b""]], [["put", b"no", b""]])["revision"] == 3
    assert [key for key, _ in store.range(b"", b"")] == [b"k", b"no"]


def test_a_transaction_is_one_revision_and_sees_its_own_writes(store: Store) -> None:
    """All writes share a revision; a range inside it sees what stands before it."""
    do(store, "put", b"a", b"1")
    result, [event] = store.apply(
        0, ["txn", [], [["range", b"a", b"z"], ["put", b"b", b"2"], ["range", b"a", b"z"], ["delete", b"a"],
                        ["range", b"a", b"z"]], []],
    )  # fmt: skip
    assert result["revision"] == store.revision == 3
    first, nothing, second, deleted, third = result["responses"]
    assert [key for key, _ in first.items] == [b"a"]
    assert nothing is None
    assert second.items == [(b"a", Item(b"1", 2, 2, 1, 0, 0)), (b"b", Item(b"2", 3, 3, 1, 0, 0))]
    assert [key for key, _ in deleted] == [b"a"]
    assert [key for key, _ in third.items] == [b"b"]
    assert event.revision == 3
    assert [change.key for change in event.changes] == [b"b", b"a"]


def test_a_transaction_that_only_reads_is_no_revision(store: Store) -> None:
    """As in etcd."""
    do(store, "put", b"a", b"1")
    result, events = store.apply(0, ["txn", [], [["range", b"a"], ["delete", b"nosuch"]], []])
    found, deleted = result["responses"]
    assert found == ([(b"a", Item(b"1", 2, 2, 1, 0, 0))], 1, False)
    assert deleted == []
    assert events == []
    assert store.revision == 2


@pytest.mark.parametrize("branch", [0, 1], ids=["success", "failure"])
def test_transactions_that_are_refused_change_nothing(store: Store, branch: int) -> None:
    """Too many steps, a key put twice, an unknown step, a lease that does not exist."""
    do(store, "put", b"k", b"v")

    def txn(steps: list[Any]) -> list[Any]:
        compare = [[b"k", "version", "=", 1 - branch]]
        return ["txn", compare, [steps, []][branch], [[], steps][branch]]

    many = [["put", b"%d" % n, b""] for n in range(TXN_OPERATIONS_MAX + 1)]
    assert do(store, *txn(many[:-1]))["revision"] == 3
    error = refused(store, *txn(many))
    assert error.code == "too_many_operations"
    assert str(TXN_OPERATIONS_MAX) in str(error)
    put = ["put", b"x", b"1"]
    assert refused(store, *txn([put, put])).code == "duplicate_key"
    assert refused(store, *txn([put, ["increment", b"x"]])).code == "malformed"
    assert refused(store, *txn([put, ["put", b"y", b"", 99]])).code == "lease_not_found"


@pytest.mark.parametrize(
    "steps", [[["put", b"k", b""], ["delete", b"a", b"z"]], [["delete", b"k"], ["put", b"k", b""]]]
)
def test_a_transaction_may_not_put_a_key_that_it_deletes(store: Store, steps: list[Any]) -> None:
    """etcd refuses it in either order: one revision cannot do two things to one key."""
    do(store, "put", b"k", b"v")
    assert refused(store, "txn", [], steps, []).code == "duplicate_key"


# -- leases ----------------------------------------------------------------------------------------


def test_a_revoked_lease_takes_its_keys_along(store: Store) -> None:
    """All of several leases in one revision, in order; keys of others stay."""
    for lease in (1, 2, 3):
        do(store, "lease_grant", lease, 5000)
    for key, lease in ((b"a", 1), (b"b", 2), (b"c", 1), (b"d", 3), (b"e", 0)):
        do(store, "put", key, b"", lease)
    result, [event] = store.apply(0, ["lease_revoke", [1, 2, 99]])
    assert result == {"revision": 7, "revoked": 2}
    assert sorted(change.key for change in event.changes) == [b"a", b"b", b"c"]
    assert [key for key, _ in store.range(b"", b"")] == [b"d", b"e"]
    assert list(store.leases) == [3]


def test_revoking_what_is_gone_is_no_revision(store: Store) -> None:
    """Twice, or a lease that never was."""
    do(store, "lease_grant", 1, 5000)
    assert do(store, "lease_revoke", [1]) == {"revision": 1, "revoked": 1}
    assert do(store, "lease_revoke", [1, 2]) == {"revision": 1, "revoked": 0}


def test_a_key_belongs_to_its_last_lease(store: Store) -> None:
    """A put under another lease, or under none, takes it away from the first."""
    for lease in (1, 2):
        do(store, "lease_grant", lease, 5000)
    for key in (b"moved", b"freed", b"deleted", b"again"):
        do(store, "put", key, b"", 1)
    do(store, "put", b"moved", b"", 2)
    do(store, "put", b"freed", b"")
    do(store, "delete", b"deleted")
    do(store, "put", b"again", b"", 1)
    assert store.leases[1].keys == {b"again"}
    assert store.leases[2].keys == {b"moved"}
    do(store, "lease_revoke", [1])
    assert [key for key, _ in store.range(b"", b"")] == [b"freed", b"moved"]


def test_leases_are_bounded_and_unique(store: Store) -> None:
    """From one second to nine billion, the id only once; a put needs a lease that exists."""
    do(store, "lease_grant", 1, 1000)
    do(store, "lease_grant", 2, LEASE_TTL_S_MAX * 1000)
    for ttl in (999, 0, -1, LEASE_TTL_S_MAX * 1000 + 1):
        assert refused(store, "lease_grant", 3, ttl).code == "lease_ttl"
    assert refused(store, "lease_grant", 1, 5000).code == "lease_exists"
    error = refused(store, "put", b"k", b"", 0xAB)
    assert (error.code, str(error)) == ("lease_not_found", "lease ab does not exist")


# -- history ---------------------------------------------------------------------------------------


def test_the_past_can_be_read(store: Store) -> None:
    """A key, a range and a deletion as they were at every revision."""
    do(store, "put", b"a", b"1")
    do(store, "put", b"b", b"1")
    do(store, "put", b"a", b"2")
    do(store, "delete", b"a", b"c")
    do(store, "put", b"a", b"3")

    def at(revision: int) -> dict[bytes, bytes]:
        return {key: item.value for key, item in store.range(b"", b"", revision)}

    assert [at(revision) for revision in range(1, 7)] == [
        {}, {b"a": b"1"}, {b"a": b"1", b"b": b"1"}, {b"a": b"2", b"b": b"1"}, {}, {b"a": b"3"},
    ]  # fmt: skip
    assert store.range(b"a", None, 4) == [(b"a", Item(b"2", 2, 4, 2, 0, 0))]
    assert store.range(b"", b"", 4, limit=1) == [(b"a", Item(b"2", 2, 4, 2, 0, 0))]


def test_the_future_and_the_compacted_past_are_refused(store: Store) -> None:
    """With codes that the doors can turn into etcd's."""
    for value in (b"1", b"2", b"3"):
        do(store, "put", b"k", value)
    assert do(store, "compact", 3) == {"compacted": 3}
    with pytest.raises(StoreError, match="revision 5 is in the future") as caught:
        store.range(b"k", None, 5)
    assert caught.value.code == "future_revision"
    with pytest.raises(StoreError, match="revision 2 has been compacted") as caught:
        store.range(b"k", None, 2)
    assert caught.value.code == "compacted"
    assert [item.value for _, item in store.range(b"k", None, 3)] == [b"2"]
    assert refused(store, "compact", 5).code == "future_revision"


def test_history_is_bounded(store: Store) -> None:
    """The oldest revisions go by themselves, and with them every version that only they needed."""
    store.history_revisions = 5
    for number in range(20):
        do(store, "put", b"k%d" % (number % 2), b"%d" % number)
    assert store.revision == 21
    assert store.compacted == 16
    assert len(store.events) == 5
    assert sum(len(versions) for versions in store.history.values()) == 5
    assert [item.value for _, item in store.range(b"k0", b"k2", 16)] == [b"14", b"13"]
    with pytest.raises(StoreError, match="compacted"):
        store.range(b"k0", None, 15)
    do(store, "delete", b"k0", b"k2")
    do(store, "compact", store.revision, True)
    assert store.history == {}


def test_events_since_a_revision(store: Store) -> None:
    """From any retained revision on, oldest first, none twice; the compacted ones are refused."""
    for number in range(30):
        do(store, "put", b"k", b"%d" % number)
    do(store, "compact", 11)
    for start in range(11, 33):
        assert [event.revision for event in store.events_since(start)] == list(range(start, 32))
    for start in (0, 5, 10):
        with pytest.raises(StoreError, match="compacted") as caught:
            store.events_since(start)
        assert caught.value.code == "compacted"


def test_an_event_has_the_key_as_it_was_before(store: Store) -> None:
    """Both sides of every change, for watchers that want the previous value."""
    do(store, "put", b"k", b"1")
    _, [event] = store.apply(0, ["put", b"k", b"2"])
    [change] = event.changes
    assert change.key == b"k"
    assert change.item == Item(b"2", 2, 3, 2, 0, 0)
    assert change.prev == Item(b"1", 2, 2, 1, 0, 0)


# -- the same everywhere ---------------------------------------------------------------------------


def test_log_time_never_goes_back(store: Store) -> None:
    """A leader whose clock is behind must not bring back what has expired."""
    do(store, "put", b"a", b"", now=5000)
    do(store, "put", b"b", b"", now=3000)
    assert store.log_time_ms == 5000


def _hash(*commands: list[Any]) -> int:
    store = Store()
    store.apply(0, ["lease_grant", 1, 5000])
    for command in commands:
        store.apply(0, command)
    return store.hash


def test_the_hash_tells_different_states_apart() -> None:
    """Same commands, same hash; another value, key, order or lease, another hash."""
    one, two = ["put", b"a", b"1"], ["put", b"b", b"2"]
    assert _hash(one, two) == _hash(one, two)
    others = [
        (two, one), (one,), (one, ["put", b"b", b"3"]), (one, ["put", b"c", b"2"]),
        (one, two, ["delete", b"a"]),
        (one, ["put", b"b", b"2", 1]), (["txn", [], [one, two], []],),
    ]  # fmt: skip
    assert len({_hash(*other) for other in others} | {_hash(one, two)}) == len(others) + 1


def test_the_hash_knows_where_a_key_ends() -> None:
    """``ab`` = ``c`` is not ``a`` = ``bc``."""
    assert _hash(["put", b"ab", b"c"]) != _hash(["put", b"a", b"bc"])


MALFORMED: list[list[Any]] = [
    [], ["put", b"k"], ["put", b"k", b"v", 0, "from a newer version"], ["put", "text", b"v"],
    ["put", b"k", "text"],
    ["delete", b"k", 5], ["txn", [[b"k", "nosuch", "=", 1]], [], []],
    ["txn", [[b"k", "value", ">", 1]], [], []],
    ["txn", [], [["put", b"k"]], []], ["lease_grant", 1, "long"], ["lease_revoke", 5], ["compact", "now"],
    ["lock", "g", "acquire", {}], ["lock", "g", "set_max", {"max_holders": "many"}],
    ["v2_set", "/a", "text", None, False],
]  # fmt: skip


@pytest.mark.parametrize("command", MALFORMED, ids=repr)
def test_a_malformed_command_is_refused_and_harms_nobody(store: Store, command: list[Any]) -> None:
    """Once committed it is applied by every peer, at every start: it must not be able to stop them."""
    do(store, "put", b"k", b"v")
    before = everything(store)
    result, events = store.apply(0, command)
    assert isinstance(result, StoreError)
    assert events == []
    assert everything(store) == before
    do(store, "put", b"k", b"still works")


def test_an_unknown_command_is_refused(store: Store) -> None:
    """A newer peer's command on an older one: an error for the asker, the same everywhere."""
    error = refused(store, "frobnicate", 1, 2)
    assert (error.code, str(error)) == ("unknown_command", "no command is named 'frobnicate'")
