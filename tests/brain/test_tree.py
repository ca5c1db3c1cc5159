"""The etcd v2 tree: every rule of writing, with etcd's error numbers and causes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain import (
    kv,  # noqa: F401 - registers its commands
    tree,
)
from brain.store import Store, StoreError
from brain.tree import Node, Outcome, TreeError

from .test_snapshot import everything


def do(store: Store, *command: Any, now: int = 0) -> Outcome:
    """Apply one v2 command that must succeed."""
    result, events = store.apply(now, list(command))
    assert isinstance(result, Outcome), result
    assert [event.revision for event in events] == [result.index]
    return result


def put(store: Store, path: str, value: bytes = b"", ttl_ms: int | None = None, now: int = 0) -> Outcome:
    """PUT of a value."""
    return do(store, "v2_set", path, value, ttl_ms, False, now=now)


def mkdir(store: Store, path: str, ttl_ms: int | None = None, now: int = 0) -> Outcome:
    """PUT of a directory."""
    return do(store, "v2_set", path, b"", ttl_ms, True, now=now)


def refused(store: Store, *command: Any) -> tuple[int, str]:
    """Apply one v2 command that must be refused; number and cause.  Nothing changes."""
    before = everything(store)
    result, events = store.apply(0, list(command))
    assert isinstance(result, TreeError), result
    assert result.index == store.revision
    assert events == []
    assert everything(store) == before
    assert str(result) == f"{tree.MESSAGES[result.number]} ({result.cause})"
    assert result.code == f"v2:{result.number}"
    return result.number, result.cause


def not_found(store: Store, path: str) -> tuple[int, str]:
    """GET that must fail; number and cause."""
    with pytest.raises(TreeError) as caught:
        tree.get(store, path)
    return caught.value.number, caught.value.cause


def names(node: Node) -> list[str]:
    """The paths of a listing."""
    assert node.nodes is not None
    return [child.path for child in node.nodes]


@pytest.fixture
def store() -> Store:
    """An empty store."""
    return Store()


# -- PUT -------------------------------------------------------------------------------------------


def test_set_starts_a_new_life(store: Store) -> None:
    """On a key that exists: created and modified are both new, and the old node is shown."""
    first = put(store, "/a", b"1")
    assert first == Outcome("set", Node("/a", b"1", 2, 2, 0), None, 2)
    second = put(store, "/a", b"2")
    assert second == Outcome("set", Node("/a", b"2", 3, 3, 0), Node("/a", b"1", 2, 2, 0), 3)
    assert tree.get(store, "/a") == Node("/a", b"2", 3, 3, 0)


def test_update_keeps_the_creation_index(store: Store) -> None:
    """prevExist=true: the key must be there, and without a TTL it becomes permanent."""
    put(store, "/a", b"1", ttl_ms=5000)
    outcome = do(store, "v2_update", "/a", b"2", None, False)
    assert outcome == Outcome("update", Node("/a", b"2", 2, 3, 0), Node("/a", b"1", 2, 2, 5000), 3)
    assert refused(store, "v2_update", "/nope", b"2", None, False) == (100, "/nope")


def test_create_needs_a_free_name(store: Store) -> None:
    """prevExist=false."""
    assert do(store, "v2_create", "/a", b"1", None, False, False).action == "create"
    assert refused(store, "v2_create", "/a", b"2", None, False, False) == (105, "/a")
    mkdir(store, "/d")
    assert refused(store, "v2_create", "/d", b"", None, True, False) == (105, "/d")


def test_compare_and_swap(store: Store) -> None:
    """By value, by index, by both; only what failed is in the cause."""
    put(store, "/a", b"y")
    assert refused(store, "v2_cas", "/a", b"z", None, b"no", 0, False) == (101, "[no != y]")
    assert refused(store, "v2_cas", "/a", b"z", None, None, 1, False) == (101, "[1 != 2]")
    assert refused(store, "v2_cas", "/a", b"z", None, b"no", 1, False) == (101, "[no != y] [1 != 2]")
    assert refused(store, "v2_cas", "/a", b"z", None, b"y", 1, False) == (101, "[1 != 2]")
    assert refused(store, "v2_cas", "/a", b"z", None, b"no", 2, False) == (101, "[no != y]")
    outcome = do(store, "v2_cas", "/a", b"z", None, b"y", 2, False)
    assert outcome == Outcome("compareAndSwap", Node("/a", b"z", 2, 3, 0), Node("/a", b"y", 2, 2, 0), 3)
    assert refused(store, "v2_cas", "/nope", b"z", None, b"y", 0, False) == (100, "/nope")


def test_prev_index_zero_is_no_condition(store: Store) -> None:
    """As in etcd."""
    put(store, "/a", b"y")
    assert do(store, "v2_cas", "/a", b"z", None, b"y", 0, False).action == "compareAndSwap"


def test_a_file_in_the_middle_of_a_path_is_not_a_directory(store: Store) -> None:
    """Every verb says 104 and names the file, not the path."""
    put(store, "/a/f", b"1")
    deep = "/a/f/x/y"
    for command in (
        ["v2_set", deep, b"", None, False], ["v2_set", deep, b"", None, True],
        ["v2_create", deep, b"", None, False, False],
        ["v2_create", deep, b"", None, False, True], ["v2_update", deep, b"", None, False],
        ["v2_cas", deep, b"", None, b"x", 0, False], ["v2_delete", deep, False, False],
        ["v2_delete", deep, True, True],
        ["v2_cad", deep, b"x", 0],
    ):  # fmt: skip
        assert refused(store, *command) == (104, "/a/f")
    assert not_found(store, deep) == (104, "/a/f")
    assert refused(store, "v2_create", "/a/f", b"", None, False, True) == (104, "/a/f"), "POST to a file"


def test_the_root_is_read_only(store: Store) -> None:
    """Every verb that writes says 107; POST below it is in order."""
    for command in (
        ["v2_set", "/", b"", None, False], ["v2_set", "/", b"", None, True],
        ["v2_create", "/", b"", None, False, False],
        ["v2_update", "/", b"", None, False], ["v2_cas", "/", b"", None, b"x", 0, False],
        ["v2_delete", "/", False, False],
        ["v2_delete", "/", True, True],
    ):  # fmt: skip
        assert refused(store, *command) == (107, "/")
    assert refused(store, "v2_cad", "/", b"x", 0) == (102, ""), "etcd asks first whether it is a file"
    assert do(store, "v2_create", "/", b"job", None, False, True).node.path == f"/{2:020d}"


# -- directories -----------------------------------------------------------------------------------


def test_a_directory_is_not_a_file(store: Store) -> None:
    """set, update with a value, CAS and CAD on one say 102; set dir=true on one as well."""
    mkdir(store, "/d")
    for command in (
        ["v2_set", "/d", b"1", None, False], ["v2_set", "/d", b"", None, True],
        ["v2_update", "/d", b"abc", None, False],
        ["v2_cas", "/d", b"1", None, b"x", 0, False], ["v2_cas", "/d", b"1", None, None, 3, False],
        ["v2_cad", "/d", b"x", 0], ["v2_cad", "/d", None, 2], ["v2_delete", "/d", False, False],
    ):  # fmt: skip
        assert refused(store, *command) == (102, "/d")


def test_a_directory_may_replace_a_file(store: Store) -> None:
    """set dir=true on a file: the file goes, and is shown as the node before."""
    put(store, "/a", b"1")
    outcome = mkdir(store, "/a")
    assert (outcome.action, outcome.prev) == ("set", Node("/a", b"1", 2, 2, 0))
    assert tree.get(store, "/a") == Node("/a", None, 3, 3, 0, ())


def test_intermediate_directories_are_made_and_stay(store: Store) -> None:
    """They carry the index of the write that made them; the last key's end does not end them."""
    put(store, "/a/b/c", b"1")
    put(store, "/a/b/d", b"1")
    assert tree.get(store, "/a/b").created == 2
    do(store, "v2_delete", "/a/b/c", False, False)
    do(store, "v2_delete", "/a/b/d", False, False)
    assert tree.get(store, "/a/b") == Node("/a/b", None, 2, 2, 0, ())


def test_an_update_of_a_directory_keeps_its_stored_index(store: Store) -> None:
    """The answer shows the new index, a later GET the old one: etcd's quirk."""
    mkdir(store, "/d")
    outcome = do(store, "v2_update", "/d", b"", 30_000, False)
    assert outcome.node == Node("/d", None, 2, 3, 30_000)
    assert outcome.prev == Node("/d", None, 2, 2, 0)
    assert tree.get(store, "/d") == Node("/d", None, 2, 2, 30_000, ())
    assert do(store, "v2_update", "/d", None, None, False).node.expires == 0, "permanent again"


def test_in_order_keys_are_named_by_the_next_index(store: Store) -> None:
    """Twenty digits, files and directories; they sort as they were made."""
    made = [do(store, "v2_create", "/q", b"%d" % n, None, n == 2, True) for n in range(3)]
    assert [outcome.node.path for outcome in made] == [f"/q/{n:020d}" for n in (2, 3, 4)]
    assert all(outcome.action == "create" for outcome in made)
    assert made[2].node.value is None
    assert names(tree.get(store, "/q")) == [f"/q/{n:020d}" for n in (2, 3, 4)]


# -- DELETE ----------------------------------------------------------------------------------------


def test_deleting_a_file_shows_what_it_was(store: Store) -> None:
    """The node keeps its creation index and gets the index of the deletion."""
    put(store, "/a", b"1")
    outcome = do(store, "v2_delete", "/a", False, False)
    assert outcome == Outcome("delete", Node("/a", None, 2, 3, 0), Node("/a", b"1", 2, 2, 0), 3)
    assert not_found(store, "/a") == (100, "/a")
    assert refused(store, "v2_delete", "/a", False, False) == (100, "/a")


def test_deleting_directories(store: Store) -> None:
    """dir=true for an empty one, recursive=true for a tree; hidden content counts."""
    mkdir(store, "/empty")
    assert do(store, "v2_delete", "/empty", True, False).action == "delete"
    put(store, "/d/x/y", b"1")
    mkdir(store, "/only-dirs/inner")
    put(store, "/hidden/_h", b"1")
    for path in ("/d", "/only-dirs", "/hidden"):
        assert refused(store, "v2_delete", path, False, False) == (102, path)
        assert refused(store, "v2_delete", path, True, False) == (108, path)
    before = tree.get(store, "/d")
    outcome = do(store, "v2_delete", "/d", False, True)
    assert outcome.node == Node("/d", None, before.created, outcome.index, 0, ())
    assert outcome.prev == Node("/d", None, before.created, before.modified, 0, ())
    assert not_found(store, "/d/x/y") == (100, "/d")
    assert not_found(store, "/d") == (100, "/d")


def test_a_recursive_deletion_takes_its_own_tree_only(store: Store) -> None:
    """Neighbours whose names begin alike stay, whatever follows in their names."""
    neighbours = ["/d-x/k", "/d.x/k", "/d0/k", "/dd/k", "/d!", "/e"]
    for path in ("/d/a", "/d/b/c", *neighbours):
        put(store, path, b"1")
    do(store, "v2_delete", "/d", True, True)
    assert sorted(key.decode() for key in store.live) == sorted(neighbours)


def test_compare_and_delete(store: Store) -> None:
    """By value, by index, by both."""
    put(store, "/a", b"q")
    assert refused(store, "v2_cad", "/a", b"no", 0) == (101, "[no != q]")
    assert refused(store, "v2_cad", "/a", None, 7777) == (101, "[7777 != 2]")
    assert refused(store, "v2_cad", "/a", b"no", 7777) == (101, "[no != q] [7777 != 2]")
    assert refused(store, "v2_cad", "/nope", b"no", 0) == (100, "/nope")
    outcome = do(store, "v2_cad", "/a", b"q", 2)
    assert (outcome.action, outcome.prev) == ("compareAndDelete", Node("/a", b"q", 2, 2, 0))


# -- GET -------------------------------------------------------------------------------------------


def test_a_listing_is_one_level_unless_recursive(store: Store) -> None:
    """A sub-directory without recursion has no nodes; with it, all levels; sorted by name."""
    put(store, "/d/b/c", b"1")
    put(store, "/d/a", b"1")
    mkdir(store, "/d/e")
    flat = tree.get(store, "/d")
    assert names(flat) == ["/d/a", "/d/b", "/d/e"]
    assert flat.nodes is not None
    assert [child.nodes for child in flat.nodes] == [None, None, None]
    deep = tree.get(store, "/d", recursive=True)
    assert deep.nodes is not None
    assert deep.nodes[1].nodes == (Node("/d/b/c", b"1", 2, 2, 0),)
    assert deep.nodes[2].nodes == ()


def test_hidden_nodes_are_not_listed(store: Store) -> None:
    """An element that begins with an underscore, at any level; asked for by name it is there."""
    put(store, "/d/_hid", b"1")
    put(store, "/d/_hiddir/x", b"1")
    put(store, "/d/seen/_deep/x", b"1")
    put(store, "/d/not_hidden", b"1")
    assert names(tree.get(store, "/d")) == ["/d/not_hidden", "/d/seen"]
    deep = tree.get(store, "/d", recursive=True)
    assert deep.nodes is not None
    assert deep.nodes[1].nodes == ()
    assert tree.get(store, "/d/_hid").value == b"1"
    assert names(tree.get(store, "/d/_hiddir")) == ["/d/_hiddir/x"]


@pytest.mark.parametrize(
    ("path", "below", "is_hidden"),
    [("/a/_b", "", True), ("/_a", "", True), ("/a_b", "", False), ("/_a/b", "/_a", False),
     ("/_a/_b", "/_a", True), ("/_a/b", "/_a/", False), ("/a/b", "/", False), ("/_a", "/", True)],
)  # fmt: skip
def test_hidden_below_a_watched_path(path: str, below: str, is_hidden: bool) -> None:
    """A watch on a hidden path sees what is in it; one above does not."""
    assert tree.hidden(path, below) is is_hidden


def test_the_root_of_an_empty_store(store: Store) -> None:
    """It is there, and it is empty."""
    assert tree.get(store, "/") == Node("/", None, 0, 0, 0, ())


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [("", "/"), ("/", "/"), ("//", "/"), ("a", "/a"), ("/a/", "/a"), ("/a//b", "/a/b"), ("/a/./b", "/a/b"),
     ("/a/../b", "/b"), ("/../..", "/"), ("/a/..", "/"), ("/a/...", "/a/..."), ("/a b/c", "/a b/c")],
)  # fmt: skip
def test_paths_are_cleaned(dirty: str, clean: str) -> None:
    """Double and final slashes and dots go; nothing climbs above the root."""
    assert tree.clean(dirty) == clean


SIBLINGS = ["a", "a!", "a-x", "a.b", "a0", "ab", "a/b", "a-x/c", "a.b/c/d", "a0/e", "b"]


@given(st.lists(st.sampled_from(SIBLINGS), unique=True), st.lists(st.sampled_from(SIBLINGS), unique=True))
@settings(max_examples=200)
def test_a_listing_shows_every_child(files: list[str], directories: list[str]) -> None:
    """Files and empty directories whose names begin alike: none hides another."""
    store = Store()
    made: set[str] = set()
    for path in directories:
        if not isinstance(store.apply(0, ["v2_set", f"/{path}", b"", None, True])[0], StoreError):
            made.add(path)
    for path in files:
        if not isinstance(store.apply(0, ["v2_set", f"/{path}", b"1", None, False])[0], StoreError):
            made.add(path)
    assert names(tree.get(store, "/")) == sorted({f"/{path.partition('/')[0]}" for path in made})
    for path in made:
        assert tree.get(store, f"/{path}").path == f"/{path}"


# -- time to live ----------------------------------------------------------------------------------


def test_a_key_expires_by_log_time(store: Store) -> None:
    """Not before its time; its end is a revision of its own with the action expire."""
    put(store, "/a", b"1", ttl_ms=1000, now=10_000)
    assert store.next_expiry_ms() == 11_000
    assert store.apply(10_999, ["expire"]) == ({"expired": 0}, [])
    result, [event] = store.apply(11_000, ["expire"])
    assert result == {"expired": 1}
    assert event.note is not None
    assert (event.note.action, event.note.path) == ("expire", "/a")
    [change] = event.changes
    assert change.item is None
    assert change.prev is not None
    assert change.prev.value == b"1"
    assert not_found(store, "/a") == (100, "/a")
    assert store.next_expiry_ms() == 0


def test_a_ttl_of_zero_is_over_at_once(store: Store) -> None:
    """The key is made, with an end that has come already."""
    outcome = put(store, "/zero", b"y", ttl_ms=0, now=5000)
    assert outcome.node.expires == 5000
    assert put(Store(), "/zero", b"y", ttl_ms=0, now=0).node.expires == 1, "0 would mean for ever"
    assert store.apply(5000, ["expire"])[0] == {"expired": 1}


def test_refresh_moves_the_end_and_keeps_the_value(store: Store) -> None:
    """It consumes an index and is marked, so that watches can pass it over."""
    put(store, "/a", b"kept", ttl_ms=1000)
    result, [event] = store.apply(500, ["v2_update", "/a", b"ignored", 5000, True])
    assert result.node == Node("/a", b"kept", 2, 3, 5500)
    assert event.note is not None
    assert event.note.action == "refresh"
    assert store.apply(1000, ["expire"])[0] == {"expired": 0}
    assert store.apply(5500, ["expire"])[0] == {"expired": 1}


def test_a_write_without_a_ttl_makes_a_key_permanent(store: Store) -> None:
    """set, update and compareAndSwap alike; the old end does not come."""
    for path in ("/set", "/update", "/cas"):
        put(store, path, b"1", ttl_ms=1000)
    put(store, "/set", b"2")
    do(store, "v2_update", "/update", b"2", None, False)
    do(store, "v2_cas", "/cas", b"2", None, b"1", 0, False)
    assert store.apply(9000, ["expire"]) == ({"expired": 0}, [])


def test_several_ends_come_in_their_order_each_with_its_index(store: Store) -> None:
    """However late the command is."""
    for path, ttl in (("/c", 3000), ("/a", 1000), ("/b", 2000), ("/later", 9000)):
        put(store, path, b"", ttl_ms=ttl)
    result, events = store.apply(5000, ["expire"])
    assert result == {"expired": 3}
    assert [(event.revision, event.note.path) for event in events if event.note] == [
        (6, "/a"),
        (7, "/b"),
        (8, "/c"),
    ]


def test_a_directory_expires_with_everything_in_it(store: Store) -> None:
    """One revision for the whole tree; keys with an end of their own do not come a second time."""
    mkdir(store, "/d", ttl_ms=1000)
    put(store, "/d/x", b"1", ttl_ms=5000)
    put(store, "/d/y/z", b"1")
    result, [event] = store.apply(1000, ["expire"])
    assert result == {"expired": 1}
    assert event.note is not None
    assert (event.note.action, event.note.path, event.note.is_dir) == ("expire", "/d", True)
    assert [change.key for change in event.changes] == [b"/d/x", b"/d/y/z"]
    assert store.apply(9000, ["expire"]) == ({"expired": 0}, [])
    assert not_found(store, "/d/y") == (100, "/d"), "etcd names the first element that is not there"


def test_the_end_of_a_directory_spares_a_key_of_the_same_name(store: Store) -> None:
    """v3 may write a key where v2 has a directory: the key has no TTL and must stay."""
    mkdir(store, "/d", ttl_ms=1000)
    store.apply(0, ["put", b"/d", b"v3"])
    store.apply(5000, ["expire"])
    assert [item.value for _, item in store.range(b"/d")] == [b"v3"]


# -- one keyspace behind both doors ----------------------------------------------------------------


def test_a_v3_key_is_a_v2_file(store: Store) -> None:
    """Same path, same index, its directories included."""
    store.apply(0, ["put", b"/a/b", b"v3"])
    assert tree.get(store, "/a/b") == Node("/a/b", b"v3", 2, 2, 0)
    assert names(tree.get(store, "/")) == ["/a"]
    put(store, "/a/c", b"v2")
    assert [key for key, _ in store.range(b"/a/", b"/a0")] == [b"/a/b", b"/a/c"]


def test_v3_keys_that_no_path_can_name_do_not_disturb_the_tree(store: Store) -> None:
    """Without a slash, with bytes that are no text, with empty elements."""
    for key in (b"plain", b"\xff\xfe", b"/\xff\xfe", b"/d/\xff", b"/d/ok", b"//x", b"/d//y", b"/"):
        store.apply(0, ["put", key, b"1"])
    assert names(tree.get(store, "/")) == ["/d"]
    assert names(tree.get(store, "/d")) == ["/d/ok"]
    assert tree.get(store, "/", recursive=True)


def test_a_v3_key_below_a_v3_key_is_outside_the_tree(store: Store) -> None:
    """v2 lists the file alone; what v3 has put under it v2 knows by name only, and adds nothing there."""
    store.apply(0, ["put", b"/a", b"file"])
    store.apply(0, ["put", b"/a/b", b"below"])
    assert tree.get(store, "/a").value == b"file"
    assert names(tree.get(store, "/")) == ["/a"]
    assert tree.get(store, "/a/b").value == b"below"
    assert put(store, "/a/b", b"changed").prev.value == b"below"  # type: ignore[union-attr]
    assert refused(store, "v2_set", "/a/c", b"", None, False) == (104, "/a")


def test_a_write_by_v3_ends_the_ttl_of_v2(store: Store) -> None:
    """The key's new version is not the one that was to expire."""
    put(store, "/a", b"1", ttl_ms=1000)
    store.apply(0, ["put", b"/a", b"2"])
    assert store.apply(5000, ["expire"]) == ({"expired": 0}, [])
    assert tree.get(store, "/a").value == b"2"
