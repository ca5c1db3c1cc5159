"""The etcd v2 tree over the one keyspace: directories, TTL, and v2's rules of writing.

The path ``/a/b`` is the key ``/a/b``.  A directory is either remembered (made by a write
below it, or by hand) or implied; a key that v3 wrote under another key is outside the
tree.  Commands answer in v2's terms; refusals carry etcd's error numbers.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

from .store import TREE_DEPTH_MAX, Dir, Item, Store, StoreError, TreeNote, operation

#: etcd's messages by error number; the HTTP status goes with the door.
MESSAGES = {
    100: "Key not found",
    101: "Compare failed",
    102: "Not a file",
    104: "Not a directory",
    105: "Key already exists",
    107: "Root is read only",
    108: "Directory not empty",
}


class TreeError(StoreError):
    """A refused v2 command: etcd's error number and cause, at the current index."""

    def __init__(self, number: int, cause: str, index: int) -> None:
        super().__init__(f"v2:{number}", f"{MESSAGES[number]} ({cause})")
        self.number = number
        self.cause = cause
        self.index = index


class Node(NamedTuple):
    """What v2 shows of a key or directory; ``value`` is None for a directory."""

    path: str
    value: bytes | None
    created: int
    modified: int
    expires: int
    nodes: tuple[Node, ...] | None = None  # type: ignore[misc]


class Outcome(NamedTuple):
    """v2's answer: the action, the node, and the node as it was before."""

    action: str
    node: Node
    prev: Node | None
    index: int  # type: ignore[assignment]


def clean(path: str) -> str:
    """The canonical form of a path: no empty, ``.`` or ``..`` elements, no final slash."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part and part != ".":
            parts.append(part)
    return "/" + "/".join(parts)


def hidden(path: str, below: str = "") -> bool:
    """Whether an element of ``path`` after ``below`` starts with an underscore."""
    return "/_" in path[len(below.rstrip("/")) :]


def is_dir(store: Store, path: str) -> bool:
    """Whether the path is a directory, remembered or implied."""
    if path == "/" or path in store.dirs:
        return True
    prefix = (path + "/").encode()
    return next(iter(store.live.irange(prefix, path.encode() + b"0", (True, False))), None) is not None


def get(store: Store, path: str, recursive: bool = False, sort: bool = False) -> Node:
    """The node at ``path``, with its children if it is a directory.

    Raises :class:`TreeError` 100 or 104.
    """
    item = store.live.get(path.encode())
    if item is not None and path != "/":
        return file_node(path, item)
    if not is_dir(store, path):
        raise _missing(store, path)
    return _dir_node(store, path, depth=-1 if recursive else 1)


def file_node(path: str, item: Item) -> Node:
    """v2's view of one key."""
    return Node(path, item.value, item.create, item.mod, item.expires)


def _dir_node(store: Store, path: str, depth: int) -> Node:
    if path.count("/") >= TREE_DEPTH_MAX:  # what v3 has put deeper is not in the tree
        depth = 0
    nodes = None if depth == 0 else tuple(_children(store, path, depth - 1))
    remembered = store.dirs.get(path)
    if remembered is None:
        return Node(path, None, 0, 0, 0, nodes)
    return Node(path, None, remembered.created, remembered.modified, remembered.expires, nodes)


def _children(store: Store, path: str, depth: int) -> list[Node]:
    """Visible children in the order of their names; jumps over what lies deeper."""
    prefix = "/" if path == "/" else path + "/"
    names: dict[str, Item | None] = {}
    start, end = prefix.encode(), prefix.encode()[:-1] + b"0"
    while True:
        key = next(iter(store.live.irange(start, end, (True, False))), None)
        if key is None:
            break
        head, slash, _ = key[len(prefix.encode()) :].partition(b"/")
        try:
            name = head.decode()
        except UnicodeDecodeError:
            start = key + b"\0"
            continue
        if slash:
            names.setdefault(name, None)
            start = prefix.encode() + head + b"0"
        else:
            names[name] = store.live[key]
            start = key + b"\0"
    low = prefix
    while True:
        directory = next(iter(store.dirs.irange(low, prefix[:-1] + "0", (True, False))), None)
        if directory is None:
            break
        name = directory[len(prefix) :].partition("/")[0]
        names.setdefault(name, None)
        # after the directory itself come "a-b" and the like, then what is below it
        low = directory + "\0" if directory == prefix + name else prefix + name + "0"
    nodes = []
    for name in sorted(names):
        if not name or name.startswith("_"):
            continue
        item = names[name]
        child = prefix + name
        nodes.append(file_node(child, item) if item is not None else _dir_node(store, child, depth))
    return nodes


def _refuse_file_above(store: Store, path: str) -> None:
    """A file in the middle of a path is error 104, naming the file."""
    at = path.find("/", 1)
    while at > 0:
        above = path[:at]
        if above.encode() in store.live:
            raise TreeError(104, above, store.revision)
        at = path.find("/", at + 1)


def _missing(store: Store, path: str) -> TreeError:
    """Error 100 names the first element of the path that is not there; a file above is 104."""
    at = path.find("/", 1)
    while at > 0:
        above = path[:at]
        if above.encode() in store.live:
            return TreeError(104, above, store.revision)
        if not is_dir(store, above):
            return TreeError(100, above, store.revision)
        at = path.find("/", at + 1)
    return TreeError(100, path, store.revision)


def _prev_node(store: Store, path: str) -> Node | None:
    item = store.live.get(path.encode())
    return file_node(path, item) if item is not None else None


def _compare(store: Store, item: Item, prev_value: bytes | None, prev_index: int) -> None:
    """Raise error 101 with etcd's cause: only what failed is shown."""
    faults = []
    if prev_value and prev_value != item.value:
        faults.append(f"[{_text(prev_value)} != {_text(item.value)}]")
    if prev_index and prev_index != item.mod:
        faults.append(f"[{prev_index} != {item.mod}]")
    if faults:
        raise TreeError(101, " ".join(faults), store.revision)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _expiry(store: Store, ttl_ms: int | None) -> int:
    return 0 if ttl_ms is None else max(store.log_time_ms + ttl_ms, 1)


@operation("v2_set")
def _set(
    store: Store, path: str, value: bytes, ttl_ms: int | None, directory: bool, refresh: bool = False
) -> Outcome:
    """PUT without conditions: the key starts a new life; ``refresh`` leaves it its value, untold."""
    _refuse_root(store, path)
    key = path.encode()
    known = store.live.get(key)
    if refresh:
        if known is None:
            raise TreeError(102, path, store.revision) if is_dir(store, path) else _missing(store, path)
        value = known.value
    if known is None or directory:
        _refuse_file_above(store, path)
        if is_dir(store, path):
            raise TreeError(102, path, store.revision)
        if directory:
            return _make_dir(store, path, ttl_ms, "set")
    prev = file_node(path, known) if known is not None else None
    item = store._put(key, value, 0, _expiry(store, ttl_ms), renew=True)
    store._note = TreeNote("refresh" if refresh else "set", path)
    return Outcome("set", file_node(path, item), prev, store._commit())


@operation("v2_create")
def _create(
    store: Store, path: str, value: bytes, ttl_ms: int | None, directory: bool, in_order: bool
) -> Outcome:
    """PUT prevExist=false, or POST: a new key, in order of creation if asked."""
    if not in_order:
        _refuse_root(store, path)
    elif path.encode() in store.live and path != "/":
        raise TreeError(104, path, store.revision)
    _refuse_file_above(store, path)
    if in_order:
        path = f"{path.rstrip('/')}/{store.revision + 1:020d}"
    if path.encode() in store.live or is_dir(store, path):
        raise TreeError(105, path, store.revision)
    if directory:
        return _make_dir(store, path, ttl_ms, "create")
    item = store._put(path.encode(), value, 0, _expiry(store, ttl_ms))
    store._note = TreeNote("create", path)
    return Outcome("create", file_node(path, item), None, store._commit())


def _make_dir(store: Store, path: str, ttl_ms: int | None, action: str) -> Outcome:
    revision = store.revision + 1
    prev = _prev_node(store, path)
    if prev is not None:
        store._delete(path.encode())
    store._make_parents(path.encode(), revision)
    expires = _expiry(store, ttl_ms)
    store.dirs[path] = Dir(revision, revision, expires)
    if expires:
        heapq.heappush(store.expiries, (expires, path))
    store._note = TreeNote(action, path, True, revision, None, expires)
    store._commit()
    return Outcome(action, Node(path, None, revision, revision, expires), prev, revision)


@operation("v2_update")
def _update(
    store: Store, path: str, value: bytes | None, ttl_ms: int | None, refresh: bool
) -> Outcome:
    """PUT prevExist=true: keeps the creation index; refresh keeps the value as well."""
    _refuse_root(store, path)
    item = store.live.get(path.encode())
    if item is None:
        if is_dir(store, path):
            return _update_dir(store, path, value, ttl_ms)
        raise _missing(store, path)
    prev = file_node(path, item)
    kept = item.value if refresh or value is None else value
    new = store._put(path.encode(), kept, 0, _expiry(store, ttl_ms))
    store._note = TreeNote("refresh" if refresh else "update", path)
    return Outcome("update", file_node(path, new), prev, store._commit())


def _update_dir(store: Store, path: str, value: bytes | None, ttl_ms: int | None) -> Outcome:
    if value:
        raise TreeError(102, path, store.revision)
    directory = store.dirs.get(path)
    if directory is None:
        directory = store.dirs[path] = Dir(store.revision, store.revision, 0)
    prev = Node(path, None, directory.created, directory.modified, directory.expires)
    directory.expires = _expiry(store, ttl_ms)
    if directory.expires:
        heapq.heappush(store.expiries, (directory.expires, path))
    was = (prev.created, prev.modified, prev.expires)
    store._note = TreeNote("update", path, True, directory.created, was, directory.expires)
    revision = store._commit()  # etcd shows the new index here and keeps the old one stored
    return Outcome(
        "update", Node(path, None, directory.created, revision, directory.expires), prev, revision
    )


@operation("v2_cas")
def _compare_and_swap(
    store: Store, path: str, value: bytes, ttl_ms: int | None, prev_value: bytes | None,
    prev_index: int, refresh: bool,
) -> Outcome:  # fmt: skip
    """PUT with prevValue or prevIndex."""
    _refuse_root(store, path)
    item = store.live.get(path.encode())
    if item is None:
        if is_dir(store, path):
            raise TreeError(102, path, store.revision)
        raise _missing(store, path)
    _compare(store, item, prev_value, prev_index)
    prev = file_node(path, item)
    new = store._put(path.encode(), item.value if refresh else value, 0, _expiry(store, ttl_ms))
    store._note = TreeNote("compareAndSwap", path)
    return Outcome("compareAndSwap", file_node(path, new), prev, store._commit())


@operation("v2_delete")
def _delete(store: Store, path: str, directory: bool, recursive: bool) -> Outcome:
    """DELETE of a key, an empty directory (``dir``) or a tree (``recursive``)."""
    _refuse_root(store, path)
    item = store.live.get(path.encode())
    if item is not None:
        return _remove_file(store, path, item, "delete")
    if not is_dir(store, path):
        raise _missing(store, path)
    if not (directory or recursive):
        raise TreeError(102, path, store.revision)
    if not recursive and not _is_empty(store, path):
        raise TreeError(108, path, store.revision)
    return _remove_dir(store, path, "delete")


@operation("v2_cad")
def _compare_and_delete(
    store: Store, path: str, prev_value: bytes | None, prev_index: int
) -> Outcome:
    """DELETE with prevValue or prevIndex."""
    if path == "/":
        raise TreeError(102, "", store.revision)
    item = store.live.get(path.encode())
    if item is None:
        if is_dir(store, path):
            raise TreeError(102, path, store.revision)
        raise _missing(store, path)
    _compare(store, item, prev_value, prev_index)
    return _remove_file(store, path, item, "compareAndDelete")


@operation("expire")
def _expire(store: Store) -> dict[str, Any]:
    """Remove what has outlived its TTL by log time; each expiry is a revision of its own."""
    expired = 0
    while True:
        due = store.next_expiry_ms()
        if not due or due > store.log_time_ms:
            return {"expired": expired}
        path = heapq.heappop(store.expiries)[1]
        item = store.live.get(path.encode())
        if item is not None and item.expires == due:
            _remove_file(store, path, item, "expire")
        else:  # a directory, perhaps beside a key of the same name that another door wrote
            _remove_dir(store, path, "expire")
        expired += 1
        store.expired += 1


def _remove_file(store: Store, path: str, item: Item, action: str) -> Outcome:
    store._delete(path.encode())
    store._note = TreeNote(action, path)
    revision = store._commit()
    return Outcome(
        action, Node(path, None, item.create, revision, 0), file_node(path, item), revision
    )


def _remove_dir(store: Store, path: str, action: str) -> Outcome:
    start, end = (path + "/").encode(), path.encode() + b"0"
    for key in list(store.live.irange(start, end, (True, False))):
        store._delete(key)
    for below in list(store.dirs.irange(path + "/", path + "0", (True, False))):
        del store.dirs[below]
    gone = store.dirs.pop(path, None) or Dir(0, 0, 0)
    was = (gone.created, gone.modified, gone.expires)
    store._note = TreeNote(action, path, True, gone.created, was)
    revision = store._commit()
    return Outcome(
        action,
        Node(path, None, gone.created, revision, 0, ()),
        Node(path, None, *was, ()),
        revision,
    )


def _is_empty(store: Store, path: str) -> bool:
    start, end = (path + "/").encode(), path.encode() + b"0"
    if next(iter(store.live.irange(start, end, (True, False))), None) is not None:
        return False
    return next(iter(store.dirs.irange(path + "/", path + "0", (True, False))), None) is None


def _refuse_root(store: Store, path: str) -> None:
    if path == "/":
        raise TreeError(107, "/", store.revision)
