"""Translation between etcd's v3 messages and the store's commands: pure, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from brain import auth
from brain.kv import Found, Options, Pair
from brain.store import OWN_PREFIX, Event, Item, StoreError

from .v3_messages import COMPARED, PERMISSION, RESULT, TARGET
from .v3json import b64, lean

#: Largest request, in bytes of its JSON body (etcd's default is 1.5 MiB of protobuf).
REQUEST_BYTES_MAX = 3 * 1024 * 1024
#: Seconds that a lease lives at least, and at most.
LEASE_TTL_S_MIN, LEASE_TTL_S_MAX = 2, 9_000_000_000
#: Outcome code of the store or the brain -> gRPC code and etcd's sentence.
ERRORS: dict[str, tuple[int, str]] = {
    "key_not_found": (3, "etcdserver: key not found"),
    "lease_not_found": (5, "etcdserver: requested lease not found"),
    "lease_exists": (9, "etcdserver: lease already exists"),
    "lease_ttl": (11, "etcdserver: too large lease TTL"),
    "duplicate_key": (3, "etcdserver: duplicate key given in txn request"),
    "too_many_operations": (3, "etcdserver: too many operations in txn request"),
    "compacted": (11, "etcdserver: mvcc: required revision has been compacted"),
    "future_revision": (11, "etcdserver: mvcc: required revision is a future revision"),
    "own_key": (7, "etcdserver: permission denied"),
    "no_space": (8, "etcdserver: mvcc: database space exceeded"),
    "too_large": (3, "etcdserver: request is too large"),
    "overloaded": (8, "etcdserver: too many requests"),
    "no_leader": (14, "etcdserver: no leader"),
    "timeout": (14, "etcdserver: request timed out"),
    "missing": (5, "etcdserver: member not found"),
    "not_caught_up": (9, "etcdserver: can only promote a learner member which is in sync with leader"),
    "config_busy": (14, "etcdserver: unhealthy cluster"),
    "corrupt": (15, "etcdserver: corrupt cluster"),
    "not_leader": (9, "etcdserver: not leader"),
}
#: gRPC code -> HTTP status.
STATUS = {1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 412, 11: 400, 12: 501, 13: 500,
          14: 503, 15: 500, 16: 401}  # fmt: skip
_AUTH_CODES = {
    "user name is empty": 3, "role name is empty": 3, "invalid auth management": 3,
    "authentication failed, invalid user ID or password": 3, "permission denied": 7,
    "invalid auth token": 16,
}  # fmt: skip


_CODE_NAMES = {3: "InvalidArgument", 7: "PermissionDenied", 16: "Unauthenticated"}


class V3Error(Exception):
    """A refusal: gRPC code and etcd's sentence."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def reason(self) -> str:
        """As etcd tells a watch why it was not created."""
        return f"rpc error: code = {_CODE_NAMES.get(self.code, 'Unknown')} desc = {self}"


def auth_error(sentence: str) -> V3Error:
    """One of etcd's sentences about users and roles."""
    return V3Error(_AUTH_CODES.get(sentence, 9), f"etcdserver: {sentence}")


def error_of(error: BaseException) -> V3Error:
    """What the brain refused, as etcd says it."""
    if isinstance(error, V3Error):
        return error
    if isinstance(error, auth.AuthError):
        return auth_error(error.code)
    known = ERRORS.get(getattr(error, "code", ""))
    if known is not None:
        return V3Error(*known)
    if isinstance(error, StoreError):
        return V3Error(3, f"etcdserver: {error}")
    return V3Error(14, "etcdserver: the brain is not available on this host just now")


# -- requests --------------------------------------------------------------------------------------


def end_of(range_end: bytes) -> bytes | None:
    """etcd's ``range_end`` as the store's end: none is one key, one zero byte is no bound."""
    return None if not range_end else b"" if range_end == b"\0" else range_end


def need_key(key: bytes) -> bytes:
    """A key must not be empty; Argosy's own cannot be written."""
    if not key:
        raise V3Error(3, "etcdserver: key is not provided")
    return key


def options_of(m: dict[str, Any]) -> Options:
    """What a range request asks for."""
    target = TARGET.name(m["sort_target"]).lower()
    if not target:
        raise V3Error(3, "etcdserver: invalid sort option")
    order = {0: "" if target == "key" else "ascend", 1: "ascend", 2: "descend"}.get(m["sort_order"], "")
    if not order:  # an order that nobody knows is that of the keys
        target = "key"
    return Options(
        max(0, m["revision"]), max(0, m["limit"]), order, target, m["count_only"],
        max(0, m["min_mod_revision"]), max(0, m["max_mod_revision"]), max(0, m["min_create_revision"]),
        max(0, m["max_create_revision"]), outer=True,
    )  # fmt: skip


def put_of(m: dict[str, Any]) -> list[Any]:
    """A put, as a command or an operation of a transaction."""
    key = need_key(m["key"])
    if key.startswith(OWN_PREFIX):
        raise auth_error("permission denied")
    if m["ignore_value"] and m["value"]:
        raise V3Error(3, "etcdserver: value is provided")
    if m["ignore_lease"] and m["lease"]:
        raise V3Error(3, "etcdserver: lease is provided")
    if m["lease"] < 0:
        raise V3Error(*ERRORS["lease_not_found"])
    value = None if m["ignore_value"] else m["value"]
    return ["put", key, value, None if m["ignore_lease"] else m["lease"]]


def delete_of(m: dict[str, Any]) -> list[Any]:
    """A deletion, as an operation of a transaction; a command adds who asks."""
    return ["delete", need_key(m["key"]), end_of(m["range_end"])]


def txn_of(m: dict[str, Any]) -> list[Any]:
    """``["txn", compares, success, failure]``."""
    compares = [_compare_of(c) for c in m["compare"]]
    return ["txn", compares, [_op_of(op) for op in m["success"]], [_op_of(op) for op in m["failure"]]]


def _compare_of(m: dict[str, Any]) -> list[Any]:
    target, result = COMPARED.name(m["target"]).lower(), RESULT.name(m["result"])
    if not target or not result:
        return _compare_unknown(m, target, result)
    operand = {
        "version": m["version"], "create": m["create_revision"], "mod": m["mod_revision"],
        "value": m["value"], "lease": m["lease"],
    }[target]  # fmt: skip
    operator = {"EQUAL": "=", "GREATER": ">", "LESS": "<", "NOT_EQUAL": "!="}[result]
    return [need_key(m["key"]), target, operator, operand, end_of(m["range_end"])]


def _compare_unknown(m: dict[str, Any], target: str, result: str) -> list[Any]:
    """A comparison with a number that has no name, as etcd has it.

    An unknown target is equal, an unknown result holds; but no value can be compared where
    there is no key.  In the store's words: a version beside -1 or 0.
    """
    holds = result in ("", "EQUAL")
    least = 0 if target == "value" else -1
    return [need_key(m["key"]), "version", ">" if holds else "<", least if holds else 0, end_of(m["range_end"])]


def _op_of(m: dict[str, Any]) -> list[Any]:
    if m["request_range"] is not None:
        asked = m["request_range"]
        return ["range", need_key(asked["key"]), end_of(asked["range_end"]), [*options_of(asked)]]
    if m["request_put"] is not None:
        return put_of(m["request_put"])
    if m["request_delete_range"] is not None:
        return delete_of(m["request_delete_range"])
    if m["request_txn"] is not None:
        return txn_of(m["request_txn"])
    raise V3Error(3, "etcdserver: key not found")


def needs_of_txn(m: dict[str, Any]) -> list[tuple[str, bytes, bytes | None]]:
    """(right, key, end) of everything a transaction may touch, or show."""
    needs: list[tuple[str, bytes, bytes | None]] = []
    needs += [(auth.READ, c["key"], end_of(c["range_end"])) for c in m["compare"]]
    for op in (*m["success"], *m["failure"]):
        if op["request_txn"] is not None:
            needs += needs_of_txn(op["request_txn"])
        elif op["request_range"] is not None:
            asked = op["request_range"]
            needs.append((auth.READ, asked["key"], end_of(asked["range_end"])))
        else:
            asked = op["request_put"] or op["request_delete_range"]
            end = end_of(asked.get("range_end", b""))
            needs.append((auth.WRITE, asked["key"], end))
            if asked["prev_kv"]:
                needs.append((auth.READ, asked["key"], end))
    return needs


# -- answers ---------------------------------------------------------------------------------------


def kv(key: bytes, item: Item, keys_only: bool = False) -> dict[str, Any]:
    """A key with its value and numbers."""
    return lean(
        key=key, create_revision=item.create, mod_revision=item.mod, version=item.version,
        value=b"" if keys_only else item.value, lease=item.lease,
    )  # fmt: skip


def range_answer(found: Found, keys_only: bool) -> dict[str, Any]:
    """What a range found."""
    pairs = [kv(key, item, keys_only) for key, item in found.items]
    return lean(kvs=pairs, more=found.more, count=found.count)


def prev_answer(key: bytes, prev: Item | None, wanted: bool) -> dict[str, Any]:
    """What a put replaced, if that was asked for."""
    return lean(prev_kv=kv(key, prev) if wanted and prev is not None else None)


def delete_answer(prevs: list[Pair], wanted: bool) -> dict[str, Any]:
    """What a deletion removed."""
    return lean(deleted=len(prevs), prev_kvs=[kv(k, item) for k, item in prevs] if wanted else [])


def txn_answer(asked: dict[str, Any], result: dict[str, Any], revision: int) -> dict[str, Any]:
    """The branch that was taken, operation by operation.

    Each answer's header has the revision as of that operation: the transaction's own one from
    its first write on, the one before it until then.
    """
    return _branch(asked, result, [revision - _wrote(asked, result)], revision)


def _taken(asked: dict[str, Any], result: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    return zip(asked["success"] if result["succeeded"] else asked["failure"], result["responses"], strict=True)


def _wrote(asked: dict[str, Any], result: dict[str, Any]) -> bool:
    for op, got in _taken(asked, result):
        if op["request_put"] is not None or (op["request_delete_range"] is not None and got):
            return True
        if op["request_txn"] is not None and _wrote(op["request_txn"], got):
            return True
    return False


def _branch(asked: dict[str, Any], result: dict[str, Any], at: list[int], revision: int) -> dict[str, Any]:
    """``at``: the revision so far, in a list because the levels below move it as well."""
    responses: list[dict[str, Any]] = []
    for op, got in _taken(asked, result):
        if op["request_txn"] is not None:
            responses.append({"response_txn": {"header": {}, **_branch(op["request_txn"], got, at, revision)}})
            continue
        if op["request_put"] is not None or (op["request_delete_range"] is not None and got):
            at[0] = revision
        header = {"header": lean(revision=at[0])}
        if op["request_range"] is not None:
            answer = {"response_range": {**header, **range_answer(got, op["request_range"]["keys_only"])}}
        elif op["request_put"] is not None:
            put = op["request_put"]
            answer = {"response_put": {**header, **prev_answer(put["key"], got, put["prev_kv"])}}
        else:
            wanted = op["request_delete_range"]["prev_kv"]
            answer = {"response_delete_range": {**header, **delete_answer(got, wanted)}}
        responses.append(answer)
    return lean(succeeded=result["succeeded"], responses=responses)


def event_answers(event: Event, key: bytes, end: bytes | None, no_put: bool, no_delete: bool, prev: bool) -> list[dict[str, Any]]:
    """What a watcher of [key, end) sees of a revision; Argosy's own keys are not there."""
    out = []
    for change in event.changes:
        name = change.key
        inside = name == key if end is None else name >= key and (not end or name < end)
        if not inside or name.startswith(OWN_PREFIX):
            continue
        before = {"prev_kv": kv(name, change.prev)} if prev and change.prev is not None else {}
        if change.item is not None and not no_put:
            out.append({"kv": kv(name, change.item), **before})
        elif change.item is None and not no_delete:
            gone: dict[str, Any] = {"type": "DELETE", "kv": lean(key=name, mod_revision=event.revision)}
            out.append(gone | before)
    return out


def grant_answer(grant: auth.Grant) -> dict[str, Any]:
    """A permission of a role."""
    right, key, end = grant
    kind = {"r": "READ", "w": "WRITE", "rw": "READWRITE"}[right]
    out: dict[str, Any] = {} if kind == PERMISSION.names[0] else {"permType": kind}
    out["key"] = b64(key)
    return out | lean(range_end=b"\0" if end == b"" else end)


