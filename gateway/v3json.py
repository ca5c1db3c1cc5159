"""The JSON of etcd's v3 gateway: what may come in, by message, and how answers are spelt.

Bytes are base64, 64-bit numbers are texts going out and texts or numbers coming in, fields
have their snake_case name going out and either spelling coming in, and whatever is zero or
empty is left out.  Unknown fields are passed over, as the gateway passes them over.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from .v2 import dumps
from .v3_messages import MESSAGES, Enum, Many, Small, Unsigned

#: How deep a request may nest.
JSON_DEPTH_MAX = 32
#: Documents of one body that is read whole.
DOCUMENTS_MAX = 10_000


class BadMessage(ValueError):
    """The body is not the message that this path takes."""


_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
_ZERO = {bytes: b"", int: 0, Unsigned: 0, Small: 0, bool: False, str: ""}
#: Numbers by kind: the least, and the first that is too large.
_BOUNDS = {int: (-(2**63), 2**63), Unsigned: (0, 2**64), Small: (0, 2**32)}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_NAMES: dict[str, dict[str, str]] = {
    message: {spelling: field for field in fields for spelling in (field, _camel(field))}
    for message, fields in MESSAGES.items()
}
_KINDS = {message: {field: kind for field, (_, kind) in fields.items()} for message, fields in MESSAGES.items()}


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


def read(message: str, value: Any) -> dict[str, Any]:
    """A message by its name: every field is there, zero where it was not given.

    A nested message that was not given is None.  Raises :class:`BadMessage`.
    """
    return _read(message, value, 0, True)


def read_given(message: str, value: Any) -> dict[str, Any]:
    """As :func:`read`, but only the fields that were given."""
    return _read(message, value, 0, False)


def _read(message: str, value: Any, depth: int, whole: bool) -> dict[str, Any]:
    if depth > JSON_DEPTH_MAX:
        raise BadMessage(f"the message nests deeper than {JSON_DEPTH_MAX}")
    if value is None:
        value = {}
    if type(value) is not dict:
        raise BadMessage(f"a {message} message is an object, not {json.dumps(value)[:40]}")
    kinds, names = _KINDS[message], _NAMES[message]
    out = {name: _zero(kind) for name, kind in kinds.items()} if whole else {}
    for spelling, given in value.items():
        name = names.get(spelling)
        if name is None or given is None:
            continue
        out[name] = _field(name, kinds[name], given, depth, whole)
    return out


def _zero(kind: Any) -> Any:
    if isinstance(kind, Many):
        return []
    if isinstance(kind, Enum):
        return 0
    return None if isinstance(kind, str) else _ZERO[kind]


def _field(name: str, kind: Any, given: Any, depth: int, whole: bool) -> Any:
    if kind is bytes:
        return _bytes(name, given)
    if kind in _BOUNDS:
        return _int(name, kind, given)
    if isinstance(kind, str):
        return _read(kind, given, depth + 1, whole)
    if isinstance(kind, Many):
        if type(given) is not list:
            raise BadMessage(f"{name} is a list, not {json.dumps(given)[:40]}")
        return [_field(name, kind.of, item, depth, whole) for item in given]
    if isinstance(kind, Enum):
        return _enum(name, kind, given)
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
    low, high = _BOUNDS[kind]
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
