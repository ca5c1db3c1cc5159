"""The etcd v2 door: ``/v2/keys`` as etcd 3.4 answers it, on the one keyspace.

Pure translation: a form becomes a command or a read, an outcome becomes JSON.  Spec with
codes, causes and headers: docs/compatibility.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl, unquote

from brain.store import Change, Event
from brain.tree import MESSAGES, Node, Outcome, clean, hidden

MESSAGES_FORM = {
    201: "PrevValue is Required in POST form",
    202: "The given TTL in POST form is not a number",
    203: "The given index in POST form is not a number",
    209: "Invalid field",
    210: "Invalid POST form",
    211: "Value provided on refresh",
    212: "A TTL must be provided on refresh",
    300: "Raft Internal Error",
    401: "The event in requested index is outdated and cleared",
    110: "The request requires user authentication",
}
HTTP_STATUS = {
    100: 404, 101: 412, 102: 403, 105: 412, 108: 403, 110: 401, 300: 503, 301: 503,
}  # fmt: skip
_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
_quoted = json.encoder.encode_basestring
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
#: Highest TTL, in seconds: beyond it the year has five digits.
TTL_S_MAX = 200_000_000_000


class FormError(Exception):
    """A request that cannot be understood: etcd's error number and cause."""

    def __init__(self, number: int, cause: str) -> None:
        super().__init__(cause)
        self.number = number
        self.cause = cause


class Form:
    """Query and body of one request, merged; the first value of a name wins."""

    def __init__(self, query: str, body: bytes, content_type: str) -> None:
        """``body``: of a PUT or POST only; etcd does not look into that of another method."""
        self._values: dict[str, str] = {}
        try:
            if body and content_type.startswith("application/x-www-form-urlencoded"):
                self._read(body.decode("utf-8", "surrogateescape"))
            if query:
                self._read(query)
        except ValueError as error:
            raise FormError(210, str(error)) from None

    def _read(self, text: str) -> None:
        if ";" in text:
            raise ValueError("invalid semicolon separator in query")
        if "%" in text or "+" in text:
            broken = _BROKEN_ESCAPE.search(text)
            if broken is not None:
                raise ValueError(f'invalid URL escape "{text[broken.start() : broken.start() + 3]}"')
            pairs = parse_qsl(text, True, errors="surrogateescape")
        else:  # nothing is quoted: most forms are so
            pairs = [(pair.partition("=")[0], pair.partition("=")[2]) for pair in text.split("&") if pair]
        for name, value in pairs:
            self._values.setdefault(name, value)

    def is_only(self, name: str) -> bool:
        """Whether this field was given and no other."""
        return len(self._values) == 1 and name in self._values

    def has(self, name: str) -> bool:
        """Whether the field was given, even if empty."""
        return name in self._values

    def text(self, name: str) -> str:
        """The field, or empty."""
        return self._values.get(name, "")

    def flag(self, name: str, quoted: bool = True) -> bool:
        """A boolean as Go reads it; absent is false, and empty is none."""
        value = self._values.get(name)
        if value is None:
            return False
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        shown = f'"{name}"' if quoted else name
        raise FormError(209, f"invalid value for {shown}")

    def number(self, name: str, error: int) -> int:
        """An unsigned number; absent is 0, and empty is none."""
        value = self._values.get(name)
        if value is None:
            return 0
        if not value.isascii() or not value.isdigit() or int(value) >= 2**64:
            raise FormError(error, f'invalid value for "{name}"')
        return int(value)

    def ttl_ms(self) -> int | None:
        """The TTL in milliseconds; None for none."""
        if not self.text("ttl"):
            return None
        return min(self.number("ttl", 202), TTL_S_MAX) * 1000


def path_of(url_path: str) -> str:
    """The key path of ``/v2/keys/...``."""
    path = url_path[len("/v2/keys") :]
    if "%" in path:
        if _BROKEN_ESCAPE.search(path) is not None:
            raise FormError(210, "a percent sign of the path is not followed by two digits")
        path = unquote(path, errors="surrogateescape")
    if "//" in path or "/." in path or not path or path[-1] == "/":
        return clean(path)
    return path


def check(method: str, form: Form) -> None:
    """Refuse what etcd refuses, in its order, whatever the method; raises :class:`FormError`."""
    if form.is_only("value"):
        return
    form.number("prevIndex", 203)
    form.number("waitIndex", 203)
    for name in ("recursive", "sorted", "wait", "dir", "quorum", "stream"):
        form.flag(name)
    if form.flag("wait") and method not in ("GET", "HEAD"):
        raise FormError(209, '"wait" can only be used with GET requests')
    if form.has("prevValue") and not form.text("prevValue"):
        raise FormError(201, '"prevValue" cannot be empty')
    form.flag("noValueOnSuccess")
    ttl = form.ttl_ms()
    form.flag("prevExist", quoted=False)
    if form.flag("refresh", quoted=False):
        if form.has("value"):
            raise FormError(211, "A value was provided on a refresh")
        if ttl is None:
            raise FormError(212, "No TTL value set")


def command_of(method: str, path: str, form: Form) -> list[Any]:
    """The store's command for a PUT, POST or DELETE whose form was checked."""
    if method == "PUT" and form.is_only("value"):
        return ["v2_set", path, form.text("value").encode("utf-8", "surrogateescape"), None, False]
    prev_index = form.number("prevIndex", 203)
    ttl = form.ttl_ms()
    prev_value = form.text("prevValue").encode("utf-8", "surrogateescape") or None
    directory = form.flag("dir")
    if method == "DELETE":
        if prev_value or prev_index:
            return ["v2_cad", path, prev_value, prev_index]
        return ["v2_delete", path, directory, form.flag("recursive")]
    value = form.text("value").encode("utf-8", "surrogateescape")
    if method == "POST":
        return ["v2_create", path, value, ttl, directory, True]
    return _put(path, form, value, ttl, directory, prev_value, prev_index)


def _put(
    path: str, form: Form, value: bytes, ttl: int | None, directory: bool,
    prev_value: bytes | None, prev_index: int,
) -> list[Any]:  # fmt: skip
    refresh = form.flag("refresh", quoted=False)
    if form.has("prevExist"):
        exists = form.flag("prevExist", quoted=False)
        if not exists:
            return ["v2_create", path, value, ttl, directory, False]
        if not (prev_value or prev_index):
            return ["v2_update", path, value, ttl, refresh]
    if prev_value or prev_index:
        return ["v2_cas", path, value, ttl, prev_value, prev_index, refresh]
    return ["v2_set", path, value, ttl, directory, refresh]


# -- answers -----------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """JSON as Go writes it: one line, ``<>&`` escaped."""
    return _escaped(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def _escaped(text: str) -> bytes:
    if "<" in text or ">" in text or "&" in text or "\u2028" in text or "\u2029" in text:
        text = (
            text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
            .replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        )  # fmt: skip
    return text.encode("utf-8", "replace") + b"\n"


def node_json(node: Node, now_ms: int) -> dict[str, Any]:
    """A node in etcd's order of fields; empty ones are left out, a value never is."""
    out: dict[str, Any] = {}
    if node.path != "/":
        out["key"] = node.path
    if node.value is None:
        out["dir"] = True
    else:
        out["value"] = node.value.decode("utf-8", "replace")
    if node.expires:
        out["expiration"] = rfc3339(node.expires)
        ttl = math.ceil((node.expires - now_ms) / 1000)
        if ttl > 0:
            out["ttl"] = ttl
    if node.nodes:
        out["nodes"] = [node_json(child, now_ms) for child in node.nodes]
    if node.modified and node.path != "/":
        out["modifiedIndex"] = node.modified
    if node.created and node.path != "/":
        out["createdIndex"] = node.created
    return out


def rfc3339(ms: int) -> str:
    """Log time as etcd shows an expiration."""
    seconds, rest = divmod(ms, 1000)
    try:
        stamp = datetime.fromtimestamp(seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):
        stamp = datetime.max
    text = stamp.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:03d}Z" if rest else f"{text}Z"


def outcome_json(outcome: Outcome, now_ms: int, no_value: bool) -> dict[str, Any]:
    """The answer to a write."""
    if no_value:
        return {"action": outcome.action}
    node = node_json(outcome.node, now_ms)
    if outcome.action in ("delete", "compareAndDelete", "expire"):
        if outcome.node.nodes is None:
            node.pop("dir", None)
    out = {"action": outcome.action, "node": node}
    if outcome.prev is not None:
        out["prevNode"] = node_json(outcome.prev, now_ms)
    return out


def outcome_body(outcome: Outcome, now_ms: int, no_value: bool) -> bytes:
    """:func:`outcome_json` as bytes; what most writes answer is put together by hand."""
    node, prev = outcome.node, outcome.prev
    plain = node.value is not None and not node.expires and (prev is None or not prev.expires)
    if no_value or not plain or (prev is not None and prev.value is None):
        return dumps(outcome_json(outcome, now_ms, no_value))
    text = f'{{"action":"{outcome.action}","node":{_file_text(node)}'
    if prev is not None:
        text += f',"prevNode":{_file_text(prev)}'
    return _escaped(text + "}")


def get_body(node: Node, now_ms: int) -> bytes:
    """The answer to a GET."""
    if node.value is None or node.expires or node.path == "/":
        return dumps({"action": "get", "node": node_json(node, now_ms)})
    return _escaped(f'{{"action":"get","node":{_file_text(node)}}}')


def _file_text(node: Node) -> str:
    value = node.value.decode("utf-8", "replace") if node.value else ""
    return (
        f'{{"key":{_quoted(node.path)},"value":{_quoted(value)},"modifiedIndex":{node.modified},'
        f'"createdIndex":{node.created}}}'
    )


def outcome_status(outcome: Outcome) -> int:
    """201 for what was created, else 200."""
    created = outcome.action == "create" or (outcome.action == "set" and outcome.prev is None)
    return 201 if created else 200


def error_json(number: int, cause: str, index: int) -> dict[str, Any]:
    """etcd's error body."""
    message = MESSAGES.get(number) or MESSAGES_FORM.get(number, "")
    told = {"cause": cause} if cause else {}
    return {"errorCode": number, "message": message, **told, "index": index}


# -- watching ------------------------------------------------------------------------------------


def watch_range(path: str, recursive: bool) -> tuple[bytes, bytes | None]:
    """The key range whose events a watch must look at."""
    if not recursive:
        return path.encode("utf-8", "surrogateescape"), None
    if path == "/":
        return b"/", b"0"
    key = path.encode("utf-8", "surrogateescape")
    return key, key + b"0"


def watch_events(event: Event, path: str, recursive: bool, now_ms: int) -> Iterator[dict[str, Any]]:
    """What a v2 watcher of ``path`` sees of a revision."""
    note = event.note
    if note is not None and note.action == "refresh":
        return
    if note is not None and note.is_dir:
        if _concerns(note.path, path, recursive, note.action in ("delete", "expire")):
            gone = note.action in ("delete", "expire")
            expires = 0 if gone else note.expires
            node = Node(note.path, None, note.created, event.revision, expires)
            out = {"action": note.action, "node": node_json(node, now_ms)}
            if note.prev_dir is not None:
                out["prevNode"] = node_json(Node(note.path, None, *note.prev_dir), now_ms)
            elif note.action == "set" and event.changes and event.changes[0].prev is not None:
                was = event.changes[0].prev  # a file that the directory has taken the place of
                out["prevNode"] = node_json(Node(note.path, was.value, was.create, was.mod, was.expires), now_ms)
            yield out
        return
    for change in event.changes:
        out_ = _change_json(event, change, now_ms, note.action if note is not None else "")
        if out_ is not None and _concerns(out_["node"]["key"], path, recursive, False):
            yield out_


def _change_json(event: Event, change: Change, now_ms: int, action: str) -> dict[str, Any] | None:
    try:
        name = change.key.decode()
    except UnicodeDecodeError:
        return None
    if not name.startswith("/"):
        return None
    prev = change.prev
    if change.item is None:
        assert prev is not None
        node = {"key": name, "modifiedIndex": event.revision, "createdIndex": prev.create}
    else:
        item = change.item
        node = node_json(Node(name, item.value, item.create, item.mod, item.expires), now_ms)
    out: dict[str, Any] = {"action": action or ("set" if change.item else "delete"), "node": node}
    if prev is not None:
        out["prevNode"] = node_json(
            Node(name, prev.value, prev.create, prev.mod, prev.expires), now_ms
        )
    return out


def _concerns(path: str, watched: str, recursive: bool, ends_below: bool) -> bool:
    if path == watched:
        return True
    below = watched.rstrip("/") + "/"
    if recursive and path.startswith(below):
        return not hidden(path, watched)
    return ends_below and watched.startswith(path + "/")
