"""Verbs about keys of the brain."""

from __future__ import annotations

from typing import Any

from brain.store import OWN_PREFIX, Item, Store, prefix_end
from kernel.mailbox import Promise

from ..brain_client import SECRETS
from ..control import BadRequest, Control, verb
from ..raft_messages import Query

#: Largest value and key an operator may write, in bytes.
VALUE_BYTES_MAX = 1536 * 1024
KEY_BYTES_MAX = 4096


def _key(args: dict[str, Any], own: bool = False) -> bytes:
    key = str(args["key"]).encode()
    if not key or len(key) > KEY_BYTES_MAX:
        raise BadRequest(f"a key has 1 to {KEY_BYTES_MAX} bytes")
    if key.startswith(OWN_PREFIX) and not own:
        raise BadRequest("keys below /_argosy/ are Argosy's own and change by its commands only")
    return key


def _shown(key: bytes, item: Item) -> dict[str, Any]:
    if key.startswith(SECRETS):
        item = item._replace(value=b"(not shown)")
    try:
        value: Any = item.value.decode()
    except UnicodeDecodeError:
        value = item.value
    return {
        "key": key.decode("utf-8", "replace"), "value": value, "create_revision": item.create,
        "mod_revision": item.mod, "version": item.version, "lease": item.lease,
    }  # fmt: skip


@verb("kv.get")
def _kv_get(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    key = _key(args, own=True)

    def read(store: Store) -> Any:
        item = store.live.get(key)
        return _shown(key, item) if item is not None else None

    control.query(read, promise, not args.get("local"))
    return promise


@verb("kv.ls")
def _kv_ls(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    prefix = str(args.get("key") or "/").encode()
    limit = int(args.get("limit", 10_000))

    def read(store: Store) -> Any:
        found = store.range(prefix, prefix_end(prefix), 0, limit)
        return {
            "revision": store.revision,
            "items": [
                _shown(k, i) for k, i in found
                if prefix.startswith(OWN_PREFIX) or not k.startswith(OWN_PREFIX)
            ],
        }  # fmt: skip

    control.query(read, promise, not args.get("local"))
    return promise


@verb("kv.put")
def _kv_put(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    value = args["value"]
    data = value if isinstance(value, bytes) else str(value).encode()
    if len(data) > VALUE_BYTES_MAX:
        raise BadRequest(f"a value has at most {VALUE_BYTES_MAX} bytes, this one {len(data)}")
    key = _key(args)
    ttl = args.get("ttl")
    if ttl is not None:
        text = key.decode("utf-8")
        if not text.startswith("/"):
            raise BadRequest("--ttl: only keys that start with /")
        command = ["v2_set", text, data, int(float(ttl) * 1000), False]
        control.commit(command, promise, lambda out: promise.reply({"revision": out.index}))
    else:
        control.commit(
            ["put", key, data, 0], promise, lambda out: promise.reply({"revision": out["revision"]})
        )
    return promise


@verb("kv.del")
def _kv_del(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    key = _key(args)
    if args.get("prefix"):
        if OWN_PREFIX.startswith(key):
            raise BadRequest("this prefix would delete Argosy's own keys")
        end: bytes | None = prefix_end(key)
    else:
        end = None
    control.commit(
        ["delete", key, end], promise,
        lambda out: promise.reply({"revision": out["revision"], "deleted": out["deleted"]}),
    )  # fmt: skip
    return promise


@verb("kv.watch")
def _kv_watch(control: Control, args: dict[str, Any]) -> Promise:
    """Long poll: events of a prefix from a revision on; empty after ``wait`` seconds."""
    promise = Promise()
    key = str(args["key"]).encode()
    end = prefix_end(key) if args.get("prefix") else None
    start = int(args.get("revision", 0))
    wait = min(float(args.get("wait", 20.0)), 60.0)

    def events(store: Store) -> Any:
        first = start or store.revision + 1
        out = []
        for event in store.events_since(first) if first <= store.revision else ():
            for change in event.changes:
                inside = change.key == key if end is None else key <= change.key and (not end or change.key < end)
                if not inside or (change.key.startswith(OWN_PREFIX) and not key.startswith(OWN_PREFIX)):
                    continue
                shown = _shown(change.key, change.item or change.prev)  # type: ignore[arg-type]
                if change.item is None:
                    shown.update(value=None, mod_revision=event.revision)
                out.append({"type": "put" if change.item else "delete", **shown})
        return store.revision, out

    poll = _Poll(control, events, promise, control.now() + wait)
    poll.look()
    return promise


class _Poll:
    """Looks at the store until something is there or the time is over."""

    def __init__(self, control: Control, function: Any, promise: Promise, deadline: float) -> None:
        self._control = control
        self._function = function
        self._promise = promise
        self._deadline = deadline
        self._first = 0

    def look(self) -> None:
        """Once more."""

        def read(store: Store) -> Any:
            if self._first == 0:
                self._first = store.revision
            return self._function(store)

        def seen(value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._promise.fail(error)
            elif value[1] or self._control.now() >= self._deadline:
                self._promise.reply({"revision": value[0], "events": value[1]})
            else:
                self._control.after(0.05, self.look)

        self._control.ask_then(self._control.raft_ref, Query(read), 6.0, seen)
