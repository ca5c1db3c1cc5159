"""The JSON of etcd's v3 gateway: what may come in, by schema, and how answers are spelt.

Bytes are base64, 64-bit numbers are texts going out and texts or numbers coming in, fields
have their snake_case name going out and either spelling coming in, and whatever is zero or
empty is left out.  Unknown fields are passed over, as the gateway passes them over.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, NamedTuple

from .v2 import dumps

#: How deep a request may nest.
JSON_DEPTH_MAX = 32
#: Documents of one body that is read whole.
DOCUMENTS_MAX = 10_000


class BadMessage(ValueError):
    """The body is not the message that this path takes."""


class Enum(NamedTuple):
    """Names of an enumeration, by number; in a message there may be other numbers."""

    names: tuple[str, ...]

    def name(self, number: int) -> str:
        """The name of a number; empty for one that has none."""
        return self.names[number] if 0 <= number < len(self.names) else ""


class Many(NamedTuple):
    """A list of another kind; a text names a schema."""

    of: Any


Schema = dict[str, Any]
#: A number of 64 bits without a sign: the ids of members.
UNSIGNED = "unsigned"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
ORDER = Enum(("NONE", "ASCEND", "DESCEND"))
TARGET = Enum(("KEY", "VERSION", "CREATE", "MOD", "VALUE"))
RESULT = Enum(("EQUAL", "GREATER", "LESS", "NOT_EQUAL"))
COMPARED = Enum(("VERSION", "CREATE", "MOD", "VALUE", "LEASE"))
FILTER = Enum(("NOPUT", "NODELETE"))
PERMISSION = Enum(("READ", "WRITE", "READWRITE"))
ALARM_ACTION = Enum(("GET", "ACTIVATE", "DEACTIVATE"))
ALARM = Enum(("NONE", "NOSPACE", "CORRUPT"))

SCHEMAS: dict[str, Schema] = {
    "range": {
        "key": bytes, "range_end": bytes, "limit": int, "revision": int, "sort_order": ORDER,
        "sort_target": TARGET, "serializable": bool, "keys_only": bool, "count_only": bool,
        "min_mod_revision": int, "max_mod_revision": int, "min_create_revision": int,
        "max_create_revision": int,
    },
    "put": {"key": bytes, "value": bytes, "lease": int, "prev_kv": bool, "ignore_value": bool,
            "ignore_lease": bool},
    "delete_range": {"key": bytes, "range_end": bytes, "prev_kv": bool},
    "compare": {"result": RESULT, "target": COMPARED, "key": bytes, "version": int,
                "create_revision": int, "mod_revision": int, "value": bytes, "lease": int,
                "range_end": bytes},
    "op": {"request_range": "range", "request_put": "put", "request_delete_range": "delete_range",
           "request_txn": "txn"},
    "txn": {"compare": Many("compare"), "success": Many("op"), "failure": Many("op")},
    "compaction": {"revision": int, "physical": bool},
    "watch": {"create_request": "watch_create", "cancel_request": "watch_cancel",
              "progress_request": "none"},
    "watch_create": {"key": bytes, "range_end": bytes, "start_revision": int, "progress_notify": bool,
                     "filters": Many(FILTER), "prev_kv": bool, "watch_id": int, "fragment": bool},
    "watch_cancel": {"watch_id": int},
    "none": {},
    "lease_grant": {"TTL": int, "ID": int},
    "lease": {"ID": int, "keys": bool},
    "member_add": {"peerURLs": Many(str), "isLearner": bool},
    "member": {"ID": UNSIGNED, "peerURLs": Many(str)},
    "alarm": {"action": ALARM_ACTION, "memberID": UNSIGNED, "alarm": ALARM},
    "hashkv": {"revision": int},
    "move": {"targetID": UNSIGNED},
    "authenticate": {"name": str, "password": str},
    "user": {"name": str, "password": str, "options": "user_options"},
    "user_options": {"no_password": bool},
    "user_role": {"user": str, "name": str, "role": str},
    "role": {"name": str, "role": str, "perm": "permission", "key": bytes, "range_end": bytes},
    "permission": {"permType": PERMISSION, "key": bytes, "range_end": bytes},
    "lock": {"name": bytes, "lease": int},
    "unlock": {"key": bytes},
    "campaign": {"name": bytes, "lease": int, "value": bytes},
    "leader": {"name": bytes, "key": bytes, "rev": int, "lease": int},
    "proclaim": {"leader": "leader", "value": bytes},
}  # fmt: skip
_ZERO = {bytes: b"", int: 0, bool: False, str: ""}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_NAMES: dict[str, dict[str, str]] = {
    schema: {spelling: field for field in fields for spelling in (field, _camel(field))}
    for schema, fields in SCHEMAS.items()
}


def documents(body: bytes, several: bool) -> list[Any]:
    """The JSON documents of a body, or the first one alone; raises :class:`BadMessage`."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadMessage("the body is not UTF-8") from None
    decoder = json.JSONDecoder()
    found: list[Any] = []
    at = 0
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if at >= len(text):
            return found
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"the body is not JSON: {error}") from None
        found.append(value)
        if not several:
            return found
        if len(found) > DOCUMENTS_MAX:
            raise BadMessage(f"documents_max: {DOCUMENTS_MAX} documents in a body of known length")


def read(schema: str, value: Any, depth: int = 0) -> dict[str, Any]:
    """A message by its schema: every field is there, zero where it was not given.

    A nested message that was not given is None.  Raises :class:`BadMessage`.
    """
    if depth > JSON_DEPTH_MAX:
        raise BadMessage(f"the message nests deeper than {JSON_DEPTH_MAX}")
    if value is None:
        value = {}
    if type(value) is not dict:
        raise BadMessage(f"a {schema} message is an object, not {json.dumps(value)[:40]}")
    fields, names = SCHEMAS[schema], _NAMES[schema]
    out = {name: _zero(kind) for name, kind in fields.items()}
    out["given"] = set()
    for spelling, given in value.items():
        name = names.get(spelling)
        if name is None or given is None:
            continue
        out[name] = _field(name, fields[name], given, depth)
        out["given"].add(name)
    return out


def _zero(kind: Any) -> Any:
    if isinstance(kind, Many):
        return []
    if kind is UNSIGNED or isinstance(kind, Enum):
        return 0
    return None if isinstance(kind, str) else _ZERO[kind]


def _field(name: str, kind: Any, given: Any, depth: int) -> Any:
    if isinstance(kind, str) and kind is not UNSIGNED:
        return read(kind, given, depth + 1)
    if isinstance(kind, Many):
        if type(given) is not list:
            raise BadMessage(f"{name} is a list, not {json.dumps(given)[:40]}")
        return [_field(name, kind.of, item, depth) for item in given]
    if isinstance(kind, Enum):
        return _enum(name, kind, given)
    if kind is bytes:
        return _bytes(name, given)
    if kind is int or kind is UNSIGNED:
        return _int(name, kind, given)
    if type(given) is not kind:
        raise BadMessage(f"{name} is a {kind.__name__}, not {json.dumps(given)[:40]}")
    if kind is str:
        try:
            given.encode()
        except UnicodeEncodeError:
            raise BadMessage(f"{name} is not text in UTF-8") from None
    return given


def _enum(name: str, kind: Enum, given: Any) -> int:
    if type(given) is str and given in kind.names:
        return kind.names.index(given)
    if type(given) is int and -(2**31) <= given < 2**31:  # proto3: what it means is for the server to say
        return given
    raise BadMessage(f"{name} is one of {', '.join(kind.names)}, not {json.dumps(given)[:40]}")


def _bytes(name: str, given: Any) -> bytes:
    if type(given) is not str:
        raise BadMessage(f"{name} is base64, not {json.dumps(given)[:40]}")
    text = given.replace("\n", "").replace("\r", "")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        at = next((n for n, c in enumerate(text) if c not in alphabet), len(text) // 4 * 4)
        raise BadMessage(f"illegal base64 data at input byte {at}") from None


def _int(name: str, kind: Any, given: Any) -> int:
    if type(given) is str:
        given = int(given) if _NUMBER.fullmatch(given) else None
    low, high = (0, 2**64) if kind is UNSIGNED else (-(2**63), 2**63)
    if type(given) is not int or not low <= given < high:
        raise BadMessage(f"{name} is a whole number from {low} to {high - 1}")
    return given


# -- answers ---------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    """Bytes as the gateway spells them."""
    return base64.b64encode(data).decode()


def lean(**fields: Any) -> dict[str, Any]:
    """An object without what is zero or empty; numbers become texts."""
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or value is False or value == 0 or value in ("", b""):
            continue
        if type(value) is list and not value:
            continue
        if type(value) is int:
            value = str(value)
        elif type(value) is bytes:
            value = b64(value)
        out[name] = value
    return out


def body(value: dict[str, Any]) -> bytes:
    """One answer."""
    return dumps(value)[:-1]


def line(value: dict[str, Any]) -> bytes:
    """One message of a stream."""
    return dumps({"result": value})
