"""The etcd v2 door of three real hosts: one keyspace behind every door, etcd's exact answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from ..answers import Answer
from ..waiting import wait_until
from .cluster import Cluster, request

TRANSCRIPT = json.loads((Path(__file__).parent / "data" / "v2-transcript.json").read_text())
#: The index of the first write of the recording.
RECORDED_FIRST = 4


class LongPoll:
    """A ``wait=true`` request under way: the head is there, so the watch is open."""

    def __init__(self, port: int, path: str) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=30)
        self._connection.request("GET", path)
        self._answer = self._connection.getresponse()
        self.status = self._answer.status
        self.headers = {k.lower(): v for k, v in self._answer.getheaders()}
        self.lines: list[dict[str, Any]] = []
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while line := self._answer.readline():
                if line.strip():
                    self.lines.append(json.loads(line))
            self.ended = True
        except (OSError, ValueError, AttributeError):
            pass  # closed under our feet: the test is over

    def first(self) -> dict[str, Any]:
        """The first event."""
        return wait_until("an event", lambda: self.lines[0] if self.lines else None)

    def close(self) -> None:
        """Hang up."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(2)
        self._thread.join(10)
        self._answer.close()
        self._connection.close()


@pytest.fixture
def poll(cluster: Cluster) -> Iterator[Any]:
    """Opens long polls at a machine's door and hangs up in the end."""
    opened: list[LongPoll] = []

    def open_(number: int, path: str) -> LongPoll:
        opened.append(LongPoll(cluster.client_port(number), path))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def _put(cluster: Cluster, number: int, key: str, value: str, **more: str) -> Answer:
    reply = cluster.http(number, "PUT", f"/v2/keys{key}", {"value": value, **more})
    assert reply.status in (200, 201), reply.text
    return reply


# -- the recording ---------------------------------------------------------------------------------


def _normalised(text: str, shift: int) -> str:
    """A body with its indexes moved by ``shift``, and without times."""

    def moved(match: re.Match[str]) -> str:
        number = int(match.group(2))
        return f"{match.group(1)}{number - shift if number else 0}"

    text = re.sub(r'("(?:modifiedIndex|createdIndex|index)":)(\d+)', moved, text)
    text = re.sub(r"(\[\d+ != )(\d+)", moved, text)
    text = re.sub(r"(/queue/)(\d{20})", lambda m: f"{m.group(1)}{int(m.group(2)) - shift:020d}", text)
    text = re.sub(r'"expiration":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"', '"expiration":"T"', text)
    return re.sub(r'"ttl":\d+', '"ttl":0', text)


def _replay(port: int, step: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Send a recorded request as curl does."""
    if step.get("open"):
        poll = LongPoll(port, step["path"])
        poll.close()
        assert poll.lines == []
        return poll.status, poll.headers, ""
    form = step.get("form")
    reply = request(port, step["method"], step["path"], None if form is None else form.encode())
    return reply.status, reply.headers, reply.text


def _is_gone(port: int, path: str) -> bool:
    return request(port, "GET", path).status == 404


def _wanted_headers(step: dict[str, Any], shift: int) -> dict[str, str]:
    wanted = {name.lower(): value for name, value in step.get("headers", {}).items()}
    if "x-etcd-index" in wanted:
        wanted["x-etcd-index"] = str(int(wanted["x-etcd-index"]) + shift)
    return wanted


def test_etcd_transcript(fresh_cluster: Cluster) -> None:
    """etcd 3.4's recorded answers, command by command: status, body byte for byte, headers."""
    port = fresh_cluster.client_port(1)
    first = next(s for s in TRANSCRIPT["steps"] if s.get("method") == "PUT")
    shift = request(port, "GET", "/v2/keys/").index + 1 - RECORDED_FIRST
    differences = []
    for step in TRANSCRIPT["steps"]:
        if "await_gone" in step:
            path = f"/v2/keys{step['await_gone']}"
            wait_until("the key to expire", partial(_is_gone, port, path))
            continue
        status, headers, text = _replay(port, step)
        what = f"{step['method']} {step['path']} {step.get('form', '')}"
        if status != step["status"]:
            differences.append(f"{what}: status {status}, not {step['status']}")
        got, wanted = _normalised(text.rstrip("\n"), shift), _normalised(step["body"], 0)
        if got != wanted:
            differences.append(f"{what}:\n  got    {got}\n  wanted {wanted}")
        for name, value in _wanted_headers(step, shift).items():
            if name not in headers or (value != "*" and headers[name] != value):
                differences.append(f"{what}: header {name}: {headers.get(name)}, not {value}")
    assert first["status"] == 201
    assert not differences, "\n".join(differences)


# -- one keyspace behind three doors ---------------------------------------------------------------


def _shows(read: Callable[[], Answer], node: dict[str, Any]) -> bool:
    reply = read()
    return reply.status == 200 and reply.json()["node"] == node


def test_written_at_one_door_read_at_the_others(cluster: Cluster) -> None:
    """What door 1 took is at doors 2 and 3, with the same indexes."""
    written = _put(cluster, 1, "/message", "hello").json()["node"]
    for number in (2, 3):
        read = partial(cluster.http, number, "GET", "/v2/keys/message")
        wait_until(f"the key at door {number}", partial(_shows, read, written))


def test_quorum_read_sees_every_acknowledged_write(cluster: Cluster) -> None:
    """``quorum=true`` at another door never misses a write that was acknowledged before it."""
    for number in range(30):
        _put(cluster, number % 3 + 1, "/quorum", str(number))
        reply = cluster.http((number + 1) % 3 + 1, "GET", "/v2/keys/quorum?quorum=true")
        assert reply.json()["node"]["value"] == str(number)


def test_wait_fires_at_another_door(cluster: Cluster, poll: Any) -> None:
    """A long poll at door 3 answers with the change that is made at door 1, and ends."""
    _put(cluster, 1, "/waited", "before")
    assert cluster.http(3, "GET", "/v2/keys/waited?quorum=true").status == 200  # door 3 is up to date
    waiting = poll(3, "/v2/keys/waited?wait=true")
    written = _put(cluster, 1, "/waited", "after").json()
    assert waiting.first() == written
    wait_until("the answer to end", lambda: waiting.ended)
    assert (waiting.status, len(waiting.lines)) == (200, 1)


def test_wait_index_reads_history(cluster: Cluster, poll: Any) -> None:
    """``waitIndex`` in the past answers at once with the first change at or after it."""
    first = _put(cluster, 1, "/history", "1").json()["node"]["modifiedIndex"]
    second = _put(cluster, 2, "/history", "2").json()["node"]["modifiedIndex"]
    _put(cluster, 3, "/history", "3")
    assert poll(1, f"/v2/keys/history?wait=true&waitIndex={first}").first()["node"]["value"] == "1"
    assert poll(3, f"/v2/keys/history?wait=true&waitIndex={first + 1}").first()["node"]["value"] == "2"
    assert poll(2, f"/v2/keys/history?wait=true&waitIndex={second + 1}").first()["node"]["value"] == "3"


def test_recursive_stream_sees_every_change_once_and_in_order(cluster: Cluster, poll: Any) -> None:
    """A stream below a directory, opened at door 2, carries all changes made at all doors."""
    start = _put(cluster, 1, "/stream/start", "x").index
    stream = poll(2, f"/v2/keys/stream?wait=true&recursive=true&stream=true&waitIndex={start + 1}")
    for number in range(20):
        _put(cluster, number % 3 + 1, f"/stream/{number % 4}", str(number))
    _put(cluster, 1, "/streamer", "not below it")
    cluster.http(3, "DELETE", "/v2/keys/stream/0")
    wait_until("all events", lambda: len(stream.lines) >= 21)
    lines = stream.lines
    assert [line["node"].get("value") for line in lines] == [*map(str, range(20)), None]
    assert lines[-1]["action"] == "delete"
    indexes = [line["node"]["modifiedIndex"] for line in lines]
    assert indexes == sorted(set(indexes))


def test_recursive_and_sorted(cluster: Cluster) -> None:
    """Directories list one level, or everything below; sorted listings are in the order of keys."""
    for key in ("b", "a", "c/d/e", "_hidden"):
        _put(cluster, 1, f"/list/{key}", key)
    plain = cluster.http(1, "GET", "/v2/keys/list?sorted=true").json()["node"]
    assert [node["key"] for node in plain["nodes"]] == ["/list/a", "/list/b", "/list/c"]
    assert "nodes" not in plain["nodes"][2]
    deep = cluster.http(1, "GET", "/v2/keys/list?recursive=true&sorted=true").json()["node"]
    assert deep["nodes"][2]["nodes"][0]["nodes"][0] == {
        "key": "/list/c/d/e", "value": "c/d/e",
        "modifiedIndex": deep["nodes"][2]["modifiedIndex"], "createdIndex": deep["nodes"][2]["createdIndex"],
    }  # fmt: skip


def test_ttl_ends_a_key_everywhere(cluster: Cluster, poll: Any) -> None:
    """A TTL counts down, ends the key at every door, and watchers are told that it expired."""
    node = _put(cluster, 1, "/short", "x", ttl="1").json()["node"]
    assert node["ttl"] == 1
    watching = poll(2, f"/v2/keys/short?wait=true&waitIndex={node['modifiedIndex'] + 1}")
    event = watching.first()
    assert (event["action"], event["prevNode"]["value"]) == ("expire", "x")
    for number in (1, 2, 3):
        gone = cluster.http(number, "GET", "/v2/keys/short?quorum=true")
        assert (gone.status, gone.json()["errorCode"]) == (404, 100)


def test_ttl_can_be_renewed_without_waking_watchers(cluster: Cluster, poll: Any) -> None:
    """``refresh=true`` moves the end of a key and is no event; taking the TTL off keeps the key."""
    index = _put(cluster, 1, "/lived", "x", ttl="100").json()["node"]["modifiedIndex"]
    watching = poll(1, f"/v2/keys/lived?wait=true&waitIndex={index + 1}")
    form = {"ttl": "1000", "refresh": "true", "prevExist": "true"}
    renewed = cluster.http(2, "PUT", "/v2/keys/lived", form)
    assert (renewed.status, renewed.json()["action"]) == (200, "update")
    assert 900 < renewed.json()["node"]["ttl"] <= 1000
    kept = cluster.http(2, "PUT", "/v2/keys/lived", {"value": "y", "ttl": "", "prevExist": "true"})
    assert "ttl" not in kept.json()["node"]
    event = watching.first()
    assert event["node"]["value"] == "y", "the refresh must not be the event"


def test_prev_exist(cluster: Cluster) -> None:
    """``prevExist`` makes a write a creation or an update, and nothing else."""
    create = {"value": "1", "prevExist": "false"}
    assert cluster.http(1, "PUT", "/v2/keys/exist", {"value": "0", "prevExist": "true"}).status == 404
    assert cluster.http(1, "PUT", "/v2/keys/exist", create).status == 201
    again = cluster.http(2, "PUT", "/v2/keys/exist", create)
    assert (again.status, again.json()["errorCode"]) == (412, 105)
    updated = cluster.http(3, "PUT", "/v2/keys/exist", {"value": "2", "prevExist": "true"}).json()
    assert (updated["action"], updated["prevNode"]["value"]) == ("update", "1")


@pytest.mark.parametrize("by", ["prevValue", "prevIndex"])
def test_compare_and_swap_loses_no_increment(cluster: Cluster, by: str) -> None:
    """Clients at all doors that count by compare-and-swap never overwrite each other."""
    key = f"/v2/keys/counter-{by}"
    each, clients = 8, 6
    cluster.http(1, "PUT", key, {"value": "0"})
    failures: list[str] = []

    def count(number: int) -> None:
        done = 0
        while done < each:
            node = cluster.http(number, "GET", f"{key}?quorum=true").json()["node"]
            seen = node["value"] if by == "prevValue" else str(node["modifiedIndex"])
            reply = cluster.http(number, "PUT", f"{key}?{by}={seen}", {"value": str(int(node["value"]) + 1)})
            if reply.status == 200:
                done += 1
            elif (reply.status, reply.json()["errorCode"]) != (412, 101):
                failures.append(reply.text)
                return

    threads = [threading.Thread(target=count, args=(n % 3 + 1,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert cluster.http(2, "GET", f"{key}?quorum=true").json()["node"]["value"] == str(each * clients)


def test_delete(cluster: Cluster) -> None:
    """DELETE takes a key, an empty directory with ``dir``, a tree with ``recursive``, a value compared."""
    _put(cluster, 1, "/doomed/a/b", "1")
    _put(cluster, 1, "/doomed/c", "2")
    assert cluster.http(2, "DELETE", "/v2/keys/doomed").status == 403
    assert cluster.http(2, "DELETE", "/v2/keys/doomed?dir=true").json()["errorCode"] == 108
    assert cluster.http(2, "DELETE", "/v2/keys/doomed/c?prevValue=1").status == 412
    assert cluster.http(2, "DELETE", "/v2/keys/doomed/c?prevValue=2").json()["action"] == "compareAndDelete"
    gone = cluster.http(3, "DELETE", "/v2/keys/doomed?recursive=true")
    assert (gone.status, gone.json()["action"]) == (200, "delete")
    assert cluster.http(1, "GET", "/v2/keys/doomed/a/b?quorum=true").status == 404
    assert cluster.http(1, "DELETE", "/v2/keys/doomed?recursive=true").status == 404


def test_post_queues_in_order(cluster: Cluster) -> None:
    """POST makes keys whose names are in the order in which they were taken, at whatever door."""
    values = [str(n) for n in range(12)]
    for value in values:
        made = cluster.http(int(value) % 3 + 1, "POST", "/v2/keys/jobs", {"value": value})
        assert (made.status, made.json()["action"]) == (201, "create")
    listed = cluster.http(1, "GET", "/v2/keys/jobs?sorted=true&quorum=true").json()["node"]["nodes"]
    assert [node["value"] for node in listed] == values


def test_own_keys_are_out_of_reach(cluster: Cluster) -> None:
    """Argosy's own keys can be neither read, written, watched nor listed through this door."""
    for method, path in (
        ("GET", "/v2/keys/_argosy/units"), ("GET", "/v2/keys/_argosy?recursive=true"),
        ("PUT", "/v2/keys/_argosy/units/x.service"), ("DELETE", "/v2/keys/_argosy?recursive=true"),
        ("GET", "/v2/keys/a/../_argosy"), ("GET", "/v2/keys/%5Fargosy/units"),
        ("GET", "/v2/keys/_argosy?wait=true"),
    ):  # fmt: skip
        reply = cluster.http(1, method, path, {"value": "x"} if method == "PUT" else None)
        assert (reply.status, reply.json()["errorCode"]) == (401, 110), (method, path)
    everything = cluster.http(1, "GET", "/v2/keys/?recursive=true").text
    assert "_argosy" not in everything


def test_command_line_and_door_share_the_keys(cluster: Cluster) -> None:
    """``argosy kv`` and the v2 door read and write the same keys, at the same indexes."""
    index = _put(cluster, 1, "/shared/a", "one").json()["node"]["modifiedIndex"]
    item = cluster.json("kv", "get", "/shared/a")
    assert (item["value"], item["mod_revision"]) == ("one", index)
    cluster.ok("kv", "put", "/shared/b", "two")
    assert cluster.http(3, "GET", "/v2/keys/shared/b?quorum=true").json()["node"]["value"] == "two"
    assert [i["key"] for i in cluster.json("kv", "ls", "/shared/")] == ["/shared/a", "/shared/b"]
    assert cluster.ok("kv", "del", "/shared/", "--prefix").strip() == "2"
    assert cluster.http(2, "GET", "/v2/keys/shared/a?quorum=true").status == 404


def test_promtool_accepts_the_metrics(cluster: Cluster) -> None:
    """``promtool check metrics`` finds nothing to say about any host's page."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    for number in (1, 2, 3):
        page = cluster.http(number, "GET", "/metrics")
        assert page.status == 200
        assert "argosy_raft_term" in page.text
        done = subprocess.run(
            [promtool, "check", "metrics"], input=page.text, text=True, capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
