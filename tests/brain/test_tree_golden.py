"""A recorded conversation with etcd 3.4.23, repeated with our tree: the same answers, the same indexes."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from brain import tree
from brain.store import Store
from brain.tree import Node, Outcome, TreeError

TRANSCRIPT = Path(__file__).with_name("etcd-v2-transcript.txt")
#: HTTP status by error number.
STATUS = {100: 404, 101: 412, 102: 403, 104: 400, 105: 412, 107: 400, 108: 403}


class Exchange(NamedTuple):
    """One request and the recorded answer."""

    line: int
    method: str
    path: str
    parameters: dict[str, str]
    status: int
    answer: Any


def read() -> list[Exchange | None]:
    """The transcript; None where the server's clock removed something."""
    out: list[Exchange | None] = []
    lines = TRANSCRIPT.read_text().splitlines()
    for number, line in enumerate(lines):
        if line == "EXPIRE":
            out.append(None)
        elif line.startswith(("GET ", "PUT ", "POST ", "DELETE ")):
            head, *parameters = line.split("  ")
            method, _, path = head.partition(" ")
            status, _, answer = lines[number + 1].partition(" ")
            pairs = dict(parameter.split("=", 1) for parameter in parameters)
            out.append(Exchange(number + 1, method, path, pairs, int(status), json.loads(answer)))
    return out


def milliseconds(text: str) -> int:
    """RFC 3339 with nanoseconds as milliseconds since 1970, rounded up as an expiry must be."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    moment = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.timezone.utc)
    return int(moment.timestamp()) * 1000 + -(-int(fraction.ljust(9, "0")) // 1_000_000)


def command(exchange: Exchange) -> list[Any]:
    """The dispatch of etcd's v2 door: which operation a request is."""
    given = exchange.parameters
    path = tree.clean(unquote(exchange.path))
    ttl = int(given["ttl"]) * 1000 if given.get("ttl") else None
    value = given.get("value", "").encode()
    prev_value = given["prevValue"].encode() if "prevValue" in given else None
    prev_index = int(given.get("prevIndex", "0"))
    directory, refresh = given.get("dir") == "true", given.get("refresh") == "true"
    if exchange.method == "POST":
        return ["v2_create", path, value, ttl, directory, True]
    if exchange.method == "DELETE":
        if prev_value or prev_index:
            return ["v2_cad", path, prev_value, prev_index]
        return ["v2_delete", path, directory, given.get("recursive") == "true"]
    if given.get("prevExist") == "false":
        return ["v2_create", path, value, ttl, directory, False]
    if prev_value or prev_index:
        return ["v2_cas", path, value, ttl, prev_value, prev_index, refresh]
    if given.get("prevExist") == "true" or refresh:
        return ["v2_update", path, value, ttl, refresh]
    return ["v2_set", path, value, ttl, directory]


def shown(node: Node, now: int, gone_file: bool = False) -> dict[str, Any]:
    """A node as etcd's JSON has it; the expiration as milliseconds."""
    out: dict[str, Any] = {"modifiedIndex": node.modified, "createdIndex": node.created}
    if node.path == "/":
        out = {}
    else:
        out["key"] = node.path
    if node.value is not None:
        out["value"] = node.value.decode()
    elif not gone_file:
        out["dir"] = True
    if node.expires:
        out["expiration"] = node.expires
        left = -(-(node.expires - now) // 1000)
        if left > 0:
            out["ttl"] = left
    if node.nodes:
        out["nodes"] = [shown(child, now) for child in node.nodes]
    return out


def expected(answer: Any) -> Any:
    """The recorded answer with its expirations as milliseconds."""
    if isinstance(answer, dict):
        return {
            key: milliseconds(value) if key == "expiration" else expected(value)
            for key, value in answer.items()
        }
    return [expected(item) for item in answer] if isinstance(answer, list) else answer


def moment(answer: Any, now: int) -> int:
    """When the answer was given, as far as its nodes tell: expiration less the time left."""
    for node in (answer.get("node", {}), *answer.get("node", {}).get("nodes", ())):
        if "expiration" in node and node.get("ttl"):
            return max(now, int(milliseconds(node["expiration"]) - node["ttl"] * 1000))
        if "expiration" in node and answer["action"] == "set":
            return milliseconds(node["expiration"])
    return now


def test_the_recorded_conversation_goes_the_same_way() -> None:
    """Every answer: status, action, node, node before, error number, message, cause and index."""
    store = Store()
    store.revision = 3  # what a fresh etcd's own bookkeeping has used up
    now = 0
    exchanges = read()
    assert len(exchanges) > 50
    for exchange in exchanges:
        if exchange is None:
            result, events = store.apply(now, ["expire"])
            assert result == {"expired": 1}
            assert len(events) == 1
            continue
        where = f"line {exchange.line}: {exchange.method} {exchange.path} {exchange.parameters}"
        answer = exchange.answer
        now = moment(answer, now)
        given: Any
        status = 200
        try:
            if exchange.method == "GET":
                recursive = exchange.parameters.get("recursive") == "true"
                node = tree.get(store, tree.clean(unquote(exchange.path)), recursive)
                given = {"action": "get", "node": shown(node, now)}
            else:
                outcome, _ = store.apply(now, command(exchange))
                if isinstance(outcome, TreeError):
                    raise outcome
                assert isinstance(outcome, Outcome), where
                gone = outcome.prev is not None and outcome.prev.value is not None
                given = {"action": outcome.action, "node": shown(outcome.node, now, gone)}
                if outcome.prev is not None:
                    given["prevNode"] = shown(outcome.prev, now)
                if outcome.action == "create" or (outcome.action == "set" and outcome.prev is None):
                    status = 201
                if exchange.parameters.get("noValueOnSuccess") == "true":
                    given = {"action": outcome.action}
        except TreeError as error:
            status = STATUS[error.number]
            given = {
                "errorCode": error.number, "message": tree.MESSAGES[error.number], "cause": error.cause,
                "index": error.index,
            }  # fmt: skip
        assert given == expected(answer), where
        assert status == exchange.status, where
