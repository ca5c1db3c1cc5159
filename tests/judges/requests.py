"""Requests as the differential tests make them up, before it is known what they mean to a server.

A request speaks of indexes, keys and leases relative to the example it belongs to; a
:class:`World` turns it into what one of the two servers is really asked.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote_plus

from ..answers import Answer
from . import compare
from .compare import Difference, differences
from .servers import Pair, Server

#: Seconds in which a server that has an event to show shows it, measured on Debian's etcd;
#: ours may take longer to show one, and gets as long to show one that it should not have.
SILENCE_S = 0.06
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")


@dataclass
class World:
    """One server in one example."""

    server: Server
    number: int
    base: int = 0
    last: int = 0  # the modifiedIndex or revision that was seen last

    @property
    def folder(self) -> str:
        """Where the v2 keys of the example lie."""
        return f"/judge-{self.number}"

    def key(self, suffix: bytes) -> str:
        """A v3 key of the example, above all that v2 calls a path."""
        return base64.b64encode(f"~{self.number:06d}/".encode() + suffix).decode()

    def lease(self, number: int) -> int:
        """A lease of the example."""
        return 1_000_000 + self.number * 100 + number

    def index(self, token: str) -> str:
        """``@+3`` and ``@last`` as numbers; anything else as it is."""
        if token == "@last":
            return str(self.last or self.base)
        return str(max(self.base + int(token[1:]), 0)) if token.startswith("@") else token


# -- v2 --------------------------------------------------------------------------------------------

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class V2:
    """A request to ``/v2/keys``; ``path`` is as it is written in a URL, below the example's folder."""

    method: str
    path: str
    query: Fields = ()
    body: Fields = ()
    raw_query: str = ""
    content_type: str = FORM["Content-Type"]
    whole: bool = False  # ``path`` is the whole target

    def target(self, world: World) -> str:
        """The request line's target."""
        target = self.path if self.whole else f"/v2/keys{world.folder}{self.path}"
        query = "&".join(filter(None, [self._encoded(self.query, world), self.raw_query]))
        return f"{target}?{query}" if query else target

    @staticmethod
    def _encoded(fields: Fields, world: World) -> str:
        return "&".join(f"{name}={quote_plus(world.index(value))}" for name, value in fields)

    def form(self, world: World) -> bytes | None:
        """The body; None for none."""
        return self._encoded(self.body, world).encode() if self.body else None

    def first(self, name: str) -> str:
        """A field as the server reads it: of two, the one in the body."""
        in_body = self.body if self.method in ("PUT", "POST") else ()
        return next((value for field_, value in (*in_body, *self.query) if field_ == name), "")

    @property
    def waits(self) -> bool:
        """Whether the answer may not end."""
        return self.method == "GET" and self.first("wait") in _TRUE

    def __str__(self) -> str:
        world = World(None, 0)  # type: ignore[arg-type]
        shown = replace(self, query=tuple((n, v.replace("@", "INDEX")) for n, v in self.query),
                        body=tuple((n, v.replace("@", "INDEX")) for n, v in self.body))  # fmt: skip
        body = shown.form(world)
        kind = "" if self.content_type == FORM["Content-Type"] else f" ({self.content_type})"
        return f"{self.method} {shown.target(world)}" + (f" -d {body.decode()!r}{kind}" if body else "")


def ask_v2(world: World, request: V2) -> dict[str, Any]:
    """One request; the view of the answer."""
    body = request.form(world)
    headers = {"Content-Type": request.content_type} if body is not None and request.content_type else {}
    answer, redirected = _followed(world, request.method, request.target(world), body, headers)
    ordered = request.first("sorted") in _TRUE
    view = compare.v2_view(answer, world.base, ordered) | {"redirected": redirected}
    try:
        node = json.loads(answer.text).get("node", {})
        world.last = int(node.get("modifiedIndex", world.last))
    except (ValueError, AttributeError):
        pass
    return view


def _followed(
    world: World, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> tuple[Answer, bool]:
    """An answer, and whether it took a redirection to get it: the state is the same then."""
    answer = world.server.outcome(method, target, body, headers)
    if answer.status != 301:
        return answer, False
    return world.server.outcome(method, answer.headers["location"], body, headers), True


def wait_v2(world: World, request: V2, patience: float) -> dict[str, Any]:
    """A request that may wait: the view of its head and of its first event, if there is one."""
    with world.server.stream("GET", request.target(world)) as stream:
        line = stream.line(patience)
        answer = Answer(stream.status, stream.headers, line or "")
        return compare.v2_view(answer, world.base, True)


def both_v2(theirs: World, ours: World, request: V2) -> list[Difference]:
    """What is different in the two answers to one request."""
    if request.waits:
        one = wait_v2(theirs, request, SILENCE_S)
        other = wait_v2(ours, request, 2.0 if one["body"] else SILENCE_S)
        if one != other and _tells_of_hidden(one["body"], theirs, request):
            return [Difference("hidden in history", one["body"], other["body"])]
    else:
        one, other = ask_v2(theirs, request), ask_v2(ours, request)
    return list(differences(one, other))


def _tells_of_hidden(event: Any, world: World, request: V2) -> bool:
    key = event["node"].get("key", "") if isinstance(event, dict) and "node" in event else ""
    return "/_" in key.removeprefix(world.folder + request.path)


# -- v3 --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A key of the example; ``plus`` makes it the end of the range of all keys with that prefix."""

    suffix: bytes
    plus: bool = False

    def of(self, world: World) -> str:
        """As base64."""
        if not self.plus:
            return world.key(self.suffix)
        key = base64.b64decode(world.key(self.suffix))
        return base64.b64encode(key[:-1] + bytes([key[-1] + 1])).decode()


@dataclass(frozen=True)
class Rev:
    """A revision, from the start of the example."""

    distance: int

    def of(self, world: World) -> str:
        """As a number in a string."""
        return str(max(world.base + self.distance, 0))


@dataclass(frozen=True)
class Lease:
    """A lease of the example."""

    number: int

    def of(self, world: World) -> str:
        """As a number in a string."""
        return str(world.lease(self.number))


def settled(value: Any, world: World) -> Any:
    """A message as one server gets it."""
    if isinstance(value, dict):
        return {name: settled(item, world) for name, item in value.items()}
    if isinstance(value, list):
        return [settled(item, world) for item in value]
    return value.of(world) if isinstance(value, (Key, Rev, Lease)) else value


def camel(value: Any) -> Any:
    """The same message in the other spelling of names."""
    if isinstance(value, dict):
        return {_camel(name): camel(item) for name, item in value.items()}
    return [camel(item) for item in value] if isinstance(value, list) else value


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.title() for part in rest)


@dataclass(frozen=True)
class V3:
    """A message to the gateway, or a body as it is."""

    path: str
    message: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    method: str = "POST"

    @property
    def is_watch(self) -> bool:
        """Whether the answer is a stream that the example has to end."""
        return self.path == "watch" and self.raw is None

    def body(self, world: World) -> bytes:
        """What is sent."""
        return self.raw if self.raw is not None else json.dumps(settled(self.message, world)).encode()

    def __str__(self) -> str:
        shown = self.raw.decode() if self.raw is not None else _shown(self.message)
        return f"{self.method} /v3/{self.path} {shown}"


def _shown(value: Any) -> str:
    """A message as Python shows it, with names for what is relative."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return repr(value)


def ask_v3(world: World, request: V3) -> dict[str, Any]:
    """One message; the view of the answer."""
    body = request.body(world) if request.method != "GET" else None
    target = request.path if request.path.startswith("/") else f"/v3/{request.path}"
    answer, redirected = _followed(world, request.method, target, body, {})
    return compare.v3_view(answer, world.base) | {"redirected": redirected}


def watch_v3(world: World, request: V3) -> dict[str, Any]:
    """Open a watch, end it with a write and a deletion of its key, and tell all that it showed.

    Messages may be cut anywhere between two revisions, so only the sequence of events is told.
    """
    creation = request.message["create_request"]
    key = creation["key"].of(world)
    unseen = {"NOPUT": "PUT", "NODELETE": "DELETE"}.get((creation.get("filters") or [""])[0], "")
    final = "PUT" if unseen == "DELETE" else "DELETE"
    told: dict[str, Any] = {"events": [], "splits": []}
    ended_at = 0
    with world.server.stream("POST", "/v3/watch", request.body(world)) as stream:
        told["status"] = stream.status
        told["content-type"] = stream.headers.get("content-type")
        while (line := stream.line(3.0)) is not None:
            result = json.loads(line).get("result")
            if result is None:
                return told | {"refused": compare.v3_body(line, world.base)}
            shown = compare.v3_value(
                {k: v for k, v in result.items() if k not in ("events", "header")}, world.base
            )
            told["header fields"] = list(result["header"])
            if result.get("created"):
                told["created"] = shown
            elif result.get("canceled"):
                told["canceled"] = shown
            elif shown:
                told["other"] = shown
            if result.get("canceled"):
                return told
            if result.get("created"):
                told["created at"] = compare.v3_value(result["header"], world.base).get("revision")
                start = creation.get("start_revision")
                ended_at = _end_watch(world, key, final == "PUT", int(start.of(world)) if start else 0)
            told["events"] += compare.v3_value(result.get("events", []), world.base)
            if any(int(e["kv"]["mod_revision"]) >= ended_at for e in result.get("events", []) if ended_at):
                return told
    return told | {"ended": "the stream stopped, or nothing came any more"}


def _end_watch(world: World, key: str, by_put: bool, start: int) -> int:
    """Write the watched key and delete it; the revision of the one that the watch shows last.

    A watch from a revision that is to come gets as many writes as it takes.
    """
    value = base64.b64encode(b"the end").decode()
    for _ in range(20):
        put = world.server.v3("kv/put", {"key": key, "value": value}).json()
        deleted = world.server.v3("kv/deleterange", {"key": key}).json()
        if int(put["header"]["revision"]) >= start:
            break
    return int((put if by_put else deleted)["header"]["revision"])


def both_v3(theirs: World, ours: World, request: V3) -> list[Difference]:
    """What is different in the two answers to one message."""
    ask = watch_v3 if request.is_watch else ask_v3
    return list(differences(ask(theirs, request), ask(ours, request)))


# -- examples --------------------------------------------------------------------------------------


def worlds_v2(pair: Pair, number: int) -> tuple[World, World]:
    """Both servers at the start of an example with v2's requests."""
    made = []
    for server in pair:
        world = World(server, number)
        world.base = server.v2_index(world.folder)
        made.append(world)
    return made[0], made[1]


def worlds_v3(pair: Pair, number: int) -> tuple[World, World]:
    """Both servers at the start of an example with v3's requests."""
    made = []
    for server in pair:
        world = World(server, number)
        answer = server.v3("kv/range", {"key": world.key(b"")})
        if answer.status == 200:
            world.base = int(answer.json()["header"]["revision"])
        made.append(world)
    return made[0], made[1]


def clear_v2(world: World) -> None:
    """Remove what an example left behind."""
    world.server.ask("DELETE", f"/v2/keys{world.folder}?recursive=true")
    world.server.ask("DELETE", f"/v2/keys{world.folder}")


def clear_v3(world: World) -> None:
    """Remove what an example left behind."""
    start, end = Key(b"").of(world), Key(b"", plus=True).of(world)
    world.server.v3("kv/deleterange", {"key": start, "range_end": end})
    leases = world.server.v3("lease/leases", {})
    if leases.status == 200:
        for lease in leases.json().get("leases", []):
            world.server.v3("lease/revoke", {"ID": lease["ID"]})
