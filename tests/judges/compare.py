"""What two servers may differ in without being different, and what is left over then.

A view of an answer holds everything a client can see, with

* indexes and revisions counted from the start of the example (``"+3"``), also inside of
  in-order keys and of causes;
* ids of clusters and members, Raft's numbers, and leases that the server named, as words;
* expirations as a word, and what is left of a TTL to the nearest ten;
* the children of a directory by name, unless the request asked for an order.

Everything else is compared as it is: status, headers, the order and the spelling of fields.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..answers import Answer

#: Headers that are compared as they are; the index is counted from the start.
PLAIN_HEADERS = (
    "content-type", "allow", "location", "x-content-type-options", "access-control-allow-origin",
    "access-control-allow-methods", "access-control-allow-headers", "grpc-metadata-content-type",
)  # fmt: skip
#: Headers of which only the form is compared.
FORMED_HEADERS = {"x-etcd-cluster-id": r"[0-9a-f]{1,16}", "x-raft-index": r"\d+", "x-raft-term": r"\d+"}
EXPIRATION = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
_IN_ORDER = re.compile(r"(?<=/)\d{20}(?!\d)")
_COMPARED_INDEX = re.compile(r"\[(\d+) != (\d+)\]")
_SPELLED = re.compile(r'"(?:\\.|[^"\\])*"')
_V3_REVISIONS = {"revision", "create_revision", "mod_revision", "compact_revision", "rev"}
_V3_IDS = {"cluster_id": r"\d+", "member_id": r"\d+", "raft_term": r"\d+"}
#: A number so far above the start of an example is no index of it.
NEAR = 10_000
#: Leases below are named by the tests, others by the server.
OWN_LEASES = 10**12


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same."""

    where: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.where}: etcd {_short(self.theirs)}, ours {_short(self.ours)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not ABSENT else "nothing"
    return text if len(text) <= 400 else text[:400] + "..."


ABSENT = object()


def differences(theirs: Any, ours: Any, where: str = "") -> Iterator[Difference]:
    """Leaf by leaf, and the order of fields where the fields are the same."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*theirs, *(n for n in ours if n not in theirs)]:
            yield from differences(
                theirs.get(name, ABSENT), ours.get(name, ABSENT), f"{where}.{name}".lstrip(".")
            )
        if theirs.keys() == ours.keys() and list(theirs) != list(ours):
            yield Difference(f"order of {where}", list(theirs), list(ours))
    elif isinstance(theirs, list) and isinstance(ours, list):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=False)):
            yield from differences(one, other, f"{where}[{number}]")
        if len(theirs) != len(ours):
            rest = min(len(theirs), len(ours))
            yield Difference(f"{where}[{rest}...]", theirs[rest:], ours[rest:])
    elif theirs is ABSENT or ours is ABSENT or theirs != ours or type(theirs) is not type(ours):
        yield Difference(where, theirs, ours)


def counted(number: int, base: int) -> Any:
    """An index as a distance from the start; none stays none."""
    return f"{number - base:+d}" if number else 0


def about(seconds: int) -> str:
    """A TTL of which a second may have gone."""
    return f"about {round(seconds, -1)}" if seconds > 9 else str(seconds)


def spelled(text: str) -> dict[str, int]:
    """Strings that JSON can write in more than one way, as they were written."""
    odd = [t for t in _SPELLED.findall(text) if "\\" in t or not t.isascii()]
    return dict(sorted(Counter(re.sub(r"\d+", "N", token) for token in odd).items()))


def headers_view(answer: Answer, base: int) -> dict[str, Any]:
    """See the module docstring."""
    out: dict[str, Any] = {name: answer.headers[name] for name in PLAIN_HEADERS if name in answer.headers}
    for name, form in FORMED_HEADERS.items():
        if name in answer.headers:
            out[name] = "good" if re.fullmatch(form, answer.headers[name]) else answer.headers[name]
    if "x-etcd-index" in answer.headers:
        out["x-etcd-index"] = counted(answer.index, base)
    if "location" in out:
        indexed = re.compile(r"(?<=Index=)\d+")
        out["location"] = indexed.sub(lambda m: f"{int(m[0]) - base:+d}" if int(m[0]) >= base else m[0], out["location"])
    return dict(sorted(out.items()))


def shape(value: Any) -> Any:
    """Names and types: for what tells of members."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


# -- v2 --------------------------------------------------------------------------------------------


def v2_cause(cause: str, base: int) -> str:
    """Indexes in a cause: what was asked for may be any number, what is there is an index."""

    def of(match: re.Match[str]) -> str:
        asked, there = int(match[1]), int(match[2])
        near = base <= asked < base + NEAR
        return f"[{counted(asked, base) if near else asked} != {counted(there, base) if there >= base else there}]"

    return _COMPARED_INDEX.sub(of, _IN_ORDER.sub(lambda m: f"in-order{int(m[0]) - base:+d}", cause))


def v2_value(value: Any, base: int, ordered: bool) -> Any:
    """See the module docstring."""
    if isinstance(value, list):
        items = [v2_value(item, base, ordered) for item in value]
        return (
            items
            if ordered
            else sorted(items, key=lambda item: str(item.get("key")) if isinstance(item, dict) else "")
        )
    if not isinstance(value, dict):
        return value
    out = {}
    for name, item in value.items():
        if name in ("modifiedIndex", "createdIndex", "index") and type(item) is int:
            item = counted(item, base)
        elif name == "expiration" and isinstance(item, str) and EXPIRATION.fullmatch(item):
            item = "a time"
        elif name == "ttl" and type(item) is int:
            item = about(item)
        elif name in ("key", "cause") and isinstance(item, str):
            item = v2_cause(item, base)
        else:
            item = v2_value(item, base, ordered)
        out[name] = item
    return out


def v2_body(text: str, base: int, ordered: bool = True) -> Any:
    """A body, or a line of one."""
    try:
        return v2_value(json.loads(text), base, ordered)
    except ValueError:
        return text


def v2_view(answer: Answer, base: int, ordered: bool) -> dict[str, Any]:
    """An answer about ``/v2``."""
    return {
        "status": answer.status,
        "headers": headers_view(answer, base),
        "body": v2_body(answer.text, base, ordered),
        "end": answer.text[-1:] if not answer.text[-1:].isalnum() else "",
        "spelled": spelled(answer.text),
    }


# -- v3 --------------------------------------------------------------------------------------------


def v3_value(value: Any, base: int) -> Any:
    """See the module docstring."""
    if isinstance(value, list):
        return [v3_value(item, base) for item in value]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for name, item in value.items():
        if name in _V3_REVISIONS and isinstance(item, str) and item.isdigit():
            item = counted(int(item), base)
        elif name in _V3_IDS and isinstance(item, str) and re.fullmatch(_V3_IDS[name], item):
            item = "good"
        elif name in ("ID", "lease") and isinstance(item, str) and item.isdigit() and int(item) >= OWN_LEASES:
            item = "the server's"
        elif name == "TTL" and isinstance(item, str) and item.isdigit():
            item = about(int(item))
        elif name == "leases" and isinstance(item, list):
            item = sorted((v3_value(lease, base) for lease in item), key=str)
        elif name == "keys" and isinstance(item, list):
            item = sorted(map(str, item))
        else:
            item = v3_value(item, base)
        out[name] = item
    return out


def v3_body(text: str, base: int) -> Any:
    """A body, or a line of one."""
    try:
        return v3_value(json.loads(text), base)
    except ValueError:
        return text


def v3_view(answer: Answer, base: int) -> dict[str, Any]:
    """An answer of the gateway."""
    return {
        "status": answer.status,
        "headers": headers_view(answer, base),
        "body": v3_body(answer.text, base),
        "end": answer.text[-1:] if not answer.text[-1:].isalnum() else "",
        "spelled": spelled(answer.text) if answer.status == 200 else {},
    }
