"""The v3 door of three real peers, and v2 beside it: one keyspace, whatever goes wrong.

The peers are the console script ``etcd``.  Every example that is not expected to fail also
looks into what the peers logged: nothing may have failed there.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain import snapshot
from cli import local
from gateway.v3_door import PATHS
from gateway.v3_messages import STREAMS
from gateway.v3_stream import Splitter
from gateway.v3json import documents

from ..answers import Answer
from ..judges.environment import etcd_under_test
from ..judges.servers import Stream, plain_variables
from ..waiting import wait_until
from .cluster import Cluster, port_offset

T = TypeVar("T")
Made = Callable[..., Cluster]

#: Seconds within which a healthy peer answers anything that need not wait.
ANSWER_S = 8.0
#: Seconds within which a cluster has a leader again, or an event has come.
SOON_S = 15.0
#: Words in a log that say that something broke.
BROKEN = ("Traceback", " failed", "CRITICAL")
ALL = {"key": "AA==", "range_end": "AA=="}


def b64(data: bytes | str) -> str:
    """Bytes as the gateway takes them."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def text(data: str) -> str:
    """The reverse, of what is text."""
    return base64.b64decode(data).decode()


def prefix(start: str) -> dict[str, str]:
    """The range of all keys that start so."""
    return {"key": b64(start), "range_end": b64(start[:-1].encode() + bytes([ord(start[-1]) + 1]))}


class Peers:
    """So many ``etcd`` processes, each of which may be killed and started again."""

    def __init__(self, folder: Path, offset: int, founders: int, more: int = 0) -> None:
        self.folder = folder
        self.founders = founders
        self.doors = [local.HTTP + n + offset for n in range(1, founders + more + 1)]
        self.links = [local.TRANSPORT + n + offset for n in range(1, founders + more + 1)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._seen: dict[int, int] = {}

    # -- processes -----------------------------------------------------------------------------

    def data(self, number: int) -> Path:
        """The data directory of a peer."""
        return self.folder / f"m{number}"

    def log(self, number: int) -> Path:
        """Where a peer's log goes."""
        return self.folder / f"m{number}.log"

    def start(self, number: int, existing: bool = False) -> None:
        """Start a peer, for the first time or again."""
        client, peer = f"http://127.0.0.1:{self.doors[number]}", f"http://127.0.0.1:{self.links[number]}"
        members = sorted({*range(self.founders), number})
        bound: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        command: list[str | Path] = [
            *bound, etcd_under_test(), "--name", f"m{number}", "--data-dir", self.data(number),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", ",".join(f"m{n}=http://127.0.0.1:{self.links[n]}" for n in members),
            "--initial-cluster-state", "existing" if existing else "new",
            "--initial-cluster-token", self.folder.name,
        ]  # fmt: skip
        with self.log(number).open("ab") as output:
            self.processes[number] = subprocess.Popen(
                command, cwd=self.folder, env=plain_variables(), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def kill(self, number: int) -> None:
        """SIGKILL, and wait for the end."""
        process = self.processes.pop(number)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    def kill_all(self) -> None:
        """The end."""
        for number in list(self.processes):
            self.kill(number)

    def rss_mb(self, number: int) -> float:
        """Resident memory of a peer."""
        for line in Path(f"/proc/{self.processes[number].pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    # -- asking ----------------------------------------------------------------------------------

    def ask(
        self, number: int, method: str, target: str, body: bytes | None = None,
        headers: dict[str, str] | None = None, seconds: float = ANSWER_S,
    ) -> Answer:  # fmt: skip
        """One request to a peer, on a connection of its own; raises when no answer comes."""
        connection = HTTPConnection("127.0.0.1", self.doors[number], timeout=seconds)
        try:
            connection.request(method, target, body, headers or {})
            return Answer.read(connection.getresponse(), errors="backslashreplace")
        finally:
            connection.close()

    def v3(
        self, number: int, path: str, message: Any, token: str = "", seconds: float = ANSWER_S
    ) -> Answer:  # fmt: skip
        """One message to the gateway; bytes are sent as they are."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        headers = {"Authorization": token} if token else {}
        return self.ask(number, "POST", f"/v3/{path}", body, headers, seconds)

    def did(self, number: int, path: str, message: Any, token: str = "") -> Any:
        """The same, which must succeed."""
        answer = self.v3(number, path, message, token)
        assert answer.status == 200, f"{path} {message}: {answer.status} {answer.text}"
        return answer.json()

    def v2(
        self, number: int, method: str, key: str, form: dict[str, str] | None = None,
        login: tuple[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """One request to ``/v2/keys``; a form goes into the body."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
        if login is not None:
            headers["Authorization"] = "Basic " + b64(":".join(login))
        body = urlencode(form).encode() if form is not None else None
        return self.ask(number, method, f"/v2/keys{key}", body, headers)

    def put(self, number: int, key: str, value: str = "", **more: Any) -> int:
        """A v3 put; its revision."""
        answer = self.did(number, "kv/put", {"key": b64(key), "value": b64(value), **more})
        return int(answer["header"]["revision"])

    def keys(self, number: int, start: str) -> list[dict[str, Any]]:
        """All pairs below a prefix, in order of creation."""
        asked = {**prefix(start), "sort_target": "CREATE", "sort_order": "ASCEND"}
        found: list[dict[str, Any]] = self.did(number, "kv/range", asked).get("kvs", [])
        return found

    def stream(self, number: int, target: str, message: Any = None, token: str = "") -> Stream:
        """An answer that does not end: v3 with a message (or documents, as bytes), v2 without."""
        if message is None:
            return Stream(self.doors[number], "GET", target, None, {})
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return Stream(self.doors[number], "POST", target, body, {"Authorization": token} if token else {})

    @contextmanager
    def watch(self, number: int, *messages: dict[str, Any], token: str = "") -> Iterator[Watcher]:
        """A v3 watch stream; each message is one document."""
        body = b"\n".join(json.dumps(m).encode() for m in messages)
        with self.stream(number, "/v3/watch", body, token) as stream:
            yield Watcher(stream)

    # -- looking ---------------------------------------------------------------------------------

    def await_whole(self) -> None:
        """Wait until every running peer says that it is healthy."""
        for number in self.processes:
            wait_until(f"peer {number}", partial(self.is_healthy, number), SOON_S)

    def is_healthy(self, number: int) -> bool:
        """Whether a peer says so."""
        return self.ask(number, "GET", "/health").status == 200

    def members(self, number: int) -> list[str]:
        """The ids of all members, as one peer knows them."""
        return [m["ID"] for m in self.did(number, "cluster/member/list", {})["members"]]

    def status(self, number: int) -> Any:
        """Of one peer, as it sees itself."""
        return self.did(number, "maintenance/status", {})

    def leader(self) -> int:
        """The number of the peer that all agree leads."""

        def look() -> list[int]:
            found = {n: self.status(n) for n in self.processes}
            leaders = {s.get("leader") for s in found.values()}
            return [n for n, s in found.items() if leaders == {s["header"]["member_id"]}]

        return wait_until("one leader", look, SOON_S)[0]

    def move_leadership(self, source: int, target: int) -> None:
        """Hand it over, and wait until it is there."""
        member = self.status(target)["header"]["member_id"]
        self.did(source, "maintenance/transfer-leadership", {"targetID": member})
        wait_until("the new leader", lambda: self.leader() == target, SOON_S)

    def mark(self) -> None:
        """What is logged up to now is known."""
        self._seen = {n: self.log(n).stat().st_size for n in range(len(self.doors)) if self.log(n).exists()}

    def complaints(self) -> list[str]:
        """Lines since the mark that say that something broke."""
        found = []
        for number in range(len(self.doors)):
            if self.log(number).exists():
                said = self.log(number).read_bytes()[self._seen.get(number, 0) :].decode(errors="replace")
                found += [f"m{number}: {line}" for line in said.splitlines() if any(w in line for w in BROKEN)]
        return found


class Watcher:
    """The reading end of a v3 watch stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.messages: list[dict[str, Any]] = []

    def message(self, seconds: float = SOON_S) -> dict[str, Any]:
        """The next message."""
        line = self._stream.line(seconds)
        assert line is not None, f"no message within {seconds} s; before: {self.messages[-3:]}"
        found: dict[str, Any] = json.loads(line)
        self.messages.append(found)
        result: dict[str, Any] = found.get("result", found)
        return result

    def created(self) -> int:
        """The watch stands; its revision."""
        result = self.message()
        assert result.get("created") and not result.get("canceled"), result
        return int(result["header"]["revision"])

    def events(self, count: int) -> list[dict[str, Any]]:
        """So many events."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += self.message().get("events", [])
        assert len(found) == count, found
        return found


@contextmanager
def running(folder: Path, founders: int, more: int = 0) -> Iterator[Peers]:
    """Peers that are up, and gone afterwards."""
    with port_offset(founders + more) as offset:
        peers = Peers(folder, offset, founders, more)
        try:
            for number in range(founders):
                peers.start(number)
            peers.await_whole()
            yield peers
        finally:
            peers.kill_all()


@contextmanager
def undisturbed(peers: Peers) -> Iterator[Peers]:
    """An example finds the peers whole, and leaves nothing in their logs."""
    peers.await_whole()
    peers.mark()
    yield peers
    assert peers.complaints() == []


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    with running(tmp_path_factory.mktemp("peers"), 3, more=1) as made:
        yield made


@pytest.fixture
def peers(_three: Peers) -> Iterator[Peers]:
    """Three peers, shared by the examples."""
    with undisturbed(_three) as whole:
        yield whole


@pytest.fixture
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """One peer of an example's own, which may be ruined."""
    with running(tmp_path_factory.mktemp("lone"), 1) as made, undisturbed(made) as whole:
        yield whole


def create(start: str, **more: Any) -> dict[str, Any]:
    """A request for a watch of a prefix."""
    return {"create_request": {**prefix(start), **more}}


class Background:
    """A call in a thread of its own: what waits for its turn."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.result = call()
        except (OSError, HTTPException, AssertionError) as error:
            self.error = error

    @property
    def waits(self) -> bool:
        """Whether there is no answer yet."""
        return self._thread.is_alive()

    def join(self, seconds: float = SOON_S) -> Any:
        """The answer."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "no answer in time"
        if self.error is not None:
            raise self.error
        return self.result


# -- one keyspace ----------------------------------------------------------------------------------


def test_v3_sees_what_v2_writes(peers: Peers) -> None:
    """A v2 write is a v3 event on another peer, with the index as its revision."""
    with peers.watch(1, create("/one/", prev_kv=True)) as watch:
        watch.created()
        put = peers.v2(0, "PUT", "/one/a", {"value": "1"}).json()["node"]["modifiedIndex"]
        gone = peers.v2(2, "DELETE", "/one/a").json()["node"]["modifiedIndex"]
        first, second = watch.events(2)
    assert "type" not in first
    assert (text(first["kv"]["key"]), text(first["kv"]["value"])) == ("/one/a", "1")
    assert first["kv"]["mod_revision"] == first["kv"]["create_revision"] == str(put)
    assert (second["type"], second["kv"]["mod_revision"]) == ("DELETE", str(gone))
    assert text(second["prev_kv"]["value"]) == "1"
    found = peers.did(2, "kv/range", {"key": b64("/one/a"), "revision": put})
    assert [text(kv["value"]) for kv in found["kvs"]] == ["1"]


def test_v2_sees_what_v3_writes(peers: Peers) -> None:
    """A v3 write is a v2 event on another peer, with the revision as its index."""
    with peers.stream(2, "/v2/keys/two?wait=true&stream=true&recursive=true") as stream:
        first = peers.put(0, "/two/a", "1")
        second = peers.put(1, "/two/a", "2")
        gone = int(peers.did(0, "kv/deleterange", {"key": b64("/two/a")})["header"]["revision"])
        events = [json.loads(stream.line(SOON_S) or "{}") for _ in range(3)]
    assert [e["action"] for e in events] == ["set", "set", "delete"]
    assert [e["node"]["modifiedIndex"] for e in events] == [first, second, gone]
    assert [e["node"]["key"] for e in events] == ["/two/a"] * 3
    assert [e.get("prevNode", {}).get("value") for e in events] == [None, "1", "2"]
    assert peers.v2(0, "GET", "/two/a?quorum=true").json()["errorCode"] == 100


def test_a_directory_is_no_key_to_v3(peers: Peers) -> None:
    """Directories count revisions and show no key; the keys in them go in one revision."""
    made = peers.v2(0, "PUT", "/three", {"dir": "true"}).json()["node"]["modifiedIndex"]
    found = peers.did(1, "kv/range", {"key": b64("/three")})
    assert "kvs" not in found and int(found["header"]["revision"]) >= made
    for name in ("a", "b/c", "b/d"):
        peers.v2(0, "PUT", f"/three/{name}", {"value": name})
    assert [text(kv["key"]) for kv in peers.keys(1, "/three")] == ["/three/a", "/three/b/c", "/three/b/d"]
    with peers.watch(1, create("/three")) as watch:
        watch.created()
        with peers.stream(2, "/v2/keys/three/b/c?wait=true") as below:
            gone = peers.v2(0, "DELETE", "/three?recursive=true").json()["node"]["modifiedIndex"]
            seen = json.loads(below.line(SOON_S) or "{}")
        events = watch.events(3)
    assert {(e["type"], e["kv"]["mod_revision"]) for e in events} == {("DELETE", str(gone))}
    assert (seen["action"], seen["node"]["key"], seen["node"]["modifiedIndex"]) == ("delete", "/three", gone)


def test_v3_keys_make_directories_for_v2(peers: Peers) -> None:
    """A v3 key implies the directories above it, which stay when the key goes, as in v2."""
    peers.put(0, "/four/x/y", "1")
    found = peers.v2(1, "GET", "/four?recursive=true&quorum=true").json()["node"]
    assert found["dir"] and found["nodes"][0]["nodes"][0]["value"] == "1"
    peers.did(0, "kv/deleterange", {"key": b64("/four/x/y")})
    assert peers.v2(1, "GET", "/four/x?quorum=true").json()["node"]["dir"]
    assert peers.v2(1, "PUT", "/four/x", {"value": "2"}).json()["errorCode"] == 102


def test_keys_that_v2_could_not_write_do_it_no_harm(peers: Peers) -> None:
    """A file and a directory of one name, empty elements and the like: v2 lists and deletes on."""
    odd = ("/five", "/five/a", "//five", "/", "/five//b", "/five/", "/five/../c", "/five/./", "five", "/_five/a")
    for key in odd:
        peers.put(0, key, "v")
    for target in ("/", "/?recursive=true", "/five", "/five/?recursive=true", "/five/a", "/_five?recursive=true"):
        assert peers.v2(1, "GET", f"{target}{'&' if '?' in target else '?'}quorum=true").status == 200, target
    assert peers.v2(1, "GET", "/five/a?quorum=true").json()["node"]["value"] == "v"
    for target in ("/five", "/five?recursive=true", "/_five?recursive=true"):
        assert peers.v2(2, "DELETE", target).status in (200, 404), target
    for key in odd:
        peers.did(0, "kv/deleterange", {"key": b64(key)})
    assert peers.v2(2, "GET", "/five?quorum=true").status in (200, 404)


def test_a_ttl_that_ends_is_a_deletion_to_v3(peers: Peers) -> None:
    """Both doors tell of the same revision: v2 of an expiry, v3 of a deletion."""
    with peers.watch(1, create("/six/", prev_kv=True)) as watch:
        watch.created()
        with peers.stream(2, "/v2/keys/six?wait=true&stream=true&recursive=true") as stream:
            peers.v2(0, "PUT", "/six/k", {"value": "1", "ttl": "1"})
            peers.v2(0, "PUT", "/six/d", {"dir": "true", "ttl": "1"})
            peers.v2(0, "PUT", "/six/d/x", {"value": "2"})
            seen = [json.loads(stream.line(SOON_S) or "{}") for _ in range(5)]
        events = watch.events(4)
    gone = {text(e["kv"]["key"]): int(e["kv"]["mod_revision"]) for e in events if e.get("type") == "DELETE"}
    expired = {e["node"]["key"]: e["node"]["modifiedIndex"] for e in seen if e["action"] == "expire"}
    assert set(gone) == {"/six/k", "/six/d/x"} and set(expired) == {"/six/k", "/six/d"}
    assert (gone["/six/k"], gone["/six/d/x"]) == (expired["/six/k"], expired["/six/d"])


def test_a_lease_that_ends_is_told_to_v2(peers: Peers) -> None:
    """The keys of a lease end in one revision, as deletions with what was there."""
    lease = peers.did(0, "lease/grant", {"TTL": 2})["ID"]
    with peers.stream(2, "/v2/keys/seven?wait=true&stream=true&recursive=true") as stream:
        peers.put(0, "/seven/a", "1", lease=lease)
        peers.put(0, "/seven/b", "2", lease=lease)
        seen = [json.loads(stream.line(SOON_S) or "{}") for _ in range(4)]
    assert [e["action"] for e in seen[2:]] == ["delete", "delete"]
    assert [e["prevNode"]["value"] for e in seen[2:]] == ["1", "2"]
    assert len({e["node"]["modifiedIndex"] for e in seen[2:]}) == 1


def test_a_long_poll_shows_the_first_key_of_a_transaction(peers: Peers) -> None:
    """A long poll has one event: whoever goes on at index + 1 passes over the rest, and a stream shows all."""
    puts = [{"request_put": {"key": b64(f"/eight/{n}"), "value": ""}} for n in range(3)]
    first = at = int(peers.did(0, "kv/txn", {"success": puts})["header"]["revision"])
    peers.put(0, "/eight/last")
    seen: list[str] = []
    while "/eight/last" not in seen:
        found = peers.ask(0, "GET", f"/v2/keys/eight?wait=true&recursive=true&waitIndex={at}").json()
        seen.append(found["node"]["key"])
        at = found["node"]["modifiedIndex"] + 1
    assert seen == ["/eight/0", "/eight/last"]
    with peers.stream(0, f"/v2/keys/eight?wait=true&stream=true&recursive=true&waitIndex={first}") as stream:
        told = [json.loads(stream.line(SOON_S) or "{}")["node"] for _ in range(4)]
    assert [node["key"] for node in told] == ["/eight/0", "/eight/1", "/eight/2", "/eight/last"]
    assert [node["modifiedIndex"] for node in told] == [first] * 3 + [first + 1]


def test_v2_does_not_show_keys_that_are_not_text(peers: Peers) -> None:
    """Binary keys are v3's alone; v2 goes on beside them, and a watcher does not hear of them."""
    names = [b"\xff\xfe", b"/nine/\xff", b"nine", b"/nine/\x00", b"/\xff/nine"]
    with peers.stream(1, "/v2/keys/?wait=true&stream=true&recursive=true") as stream:
        for name in names:
            peers.did(0, "kv/put", {"key": b64(name), "value": b64(b"\xff")})
        peers.v2(0, "PUT", "/nine/text", {"value": "1"})
        seen: list[str] = []
        while "/nine/text" not in seen:
            seen.append(json.loads(stream.line(SOON_S) or "{}")["node"]["key"])
    assert seen == ["/nine/\x00", "/nine/text"]
    listed = peers.v2(2, "GET", "/nine?quorum=true").json()["node"]["nodes"]
    assert [n["key"] for n in listed] == ["/nine/\x00", "/nine/text"]
    assert peers.v2(2, "GET", "/nine/%FF").status == 400
    assert peers.v2(2, "GET", "/?recursive=true&quorum=true").status == 200
    for name in names:
        assert peers.did(1, "kv/deleterange", {"key": b64(name)})["deleted"] == "1"


# -- Argosy's own keys -----------------------------------------------------------------------------

OWN = {"key": b64("/_argosy/auth")}
OWN_RANGE = prefix("/_argosy/")


def _claims_a_book(peers: Peers) -> None:
    """Make sure that there is a key of Argosy's own."""
    if "keeper" not in peers.did(0, "auth/user/list", {}).get("users", []):
        peers.did(0, "auth/user/add", {"name": "keeper", "password": "x"})


@pytest.mark.parametrize("more", [
    {}, {"count_only": True}, {"keys_only": True}, {"limit": 1}, {"sort_order": "DESCEND", "sort_target": "MOD"},
    {"serializable": True}, {"max_mod_revision": 10**9},
])  # fmt: skip
def test_no_range_shows_own_keys(peers: Peers, more: dict[str, Any]) -> None:
    """However it is asked, now or in the past."""
    _claims_a_book(peers)
    now = peers.did(0, "kv/range", OWN)["header"]["revision"]
    for asked in (OWN, OWN_RANGE, {"key": b64("/_argosy/"), "range_end": "AA=="} | {"limit": 0}):
        for revision in (0, int(now)):
            found = peers.did(0, "kv/range", {**asked, **more, "revision": revision})
            shown = [text(kv["key"]) for kv in found.get("kvs", [])]
            assert not [key for key in shown if key.startswith("/_argosy/")]
            if asked is not OWN_RANGE and asked is not OWN:
                continue
            assert "count" not in found
    everything = peers.did(0, "kv/range", {**ALL, "keys_only": True})
    assert b64("/_argosy/auth") not in [kv["key"] for kv in everything.get("kvs", [])]
    assert int(everything.get("count", "0")) == len(everything.get("kvs", []))


def test_no_write_reaches_own_keys(peers: Peers) -> None:
    """Puts are refused, deletions pass by, comparisons see nothing there."""
    _claims_a_book(peers)
    put = {"request_put": {**OWN, "value": ""}}
    refused = [
        ("kv/put", {**OWN, "value": ""}),
        ("kv/deleterange", OWN),
        ("kv/txn", {"success": [put]}),
        ("kv/txn", {"failure": [{"request_txn": {"failure": [{"request_txn": {"success": [put]}}]}}]}),
        ("lock/lock", {"name": b64("/_argosy")}),
        ("lock/lock", {"name": b64("/_argosy/x")}),
        ("lock/unlock", OWN),
        ("election/campaign", {"name": b64("/_argosy/place"), "value": ""}),
    ]
    for path, message in refused:
        answer = peers.v3(0, path, message)
        assert (answer.status, answer.json()["code"]) == (403, 7), f"{path} {message}: {answer.text}"
    for asked in (OWN_RANGE, ALL, {**OWN, "range_end": b64("/_argosy/auti")}, {"key": "AA==", "range_end": b64("0")}):
        answer = peers.did(0, "kv/deleterange", {**asked, "prev_kv": True})
        assert b64("/_argosy/auth") not in [kv["key"] for kv in answer.get("prev_kvs", [])]
        inner = {"success": [{"request_delete_range": asked}, {"request_range": OWN_RANGE}]}
        answer = peers.did(0, "kv/txn", {"success": [{"request_txn": inner}]})
        assert "kvs" not in answer["responses"][0]["response_txn"]["responses"][1]["response_range"]
    seen = [
        {**OWN, "target": "VERSION", "result": "GREATER", "version": 0},
        {**OWN, "target": "VALUE", "result": "NOT_EQUAL", "value": ""},
        {**OWN_RANGE, "target": "CREATE", "result": "GREATER", "create_revision": 0},
        {**OWN_RANGE, "target": "VALUE", "result": "LESS", "value": b64(b"\xff")},
    ]
    for compare in seen:
        assert "succeeded" not in peers.did(0, "kv/txn", {"compare": [compare]}), compare
    assert "keeper" in peers.did(1, "auth/user/list", {})["users"]
    assert peers.v3(0, "election/leader", {"name": b64("/_argosy")}).json()["code"] == 2


def test_no_watch_hears_of_own_keys(peers: Peers) -> None:
    """Neither live nor out of history."""
    _claims_a_book(peers)
    start = int(peers.did(0, "kv/range", OWN)["header"]["revision"]) + 1
    requests = [{"create_request": {**asked, "start_revision": start}} for asked in (OWN, OWN_RANGE, ALL)]
    with peers.watch(1, *requests) as watch:
        for _ in requests:
            watch.message()
        peers.did(0, "auth/user/add", {"name": "heard", "password": "x"})
        peers.did(0, "auth/user/delete", {"name": "heard"})
        peers.put(0, "ten", "1")
        (event,) = watch.events(1)
    assert text(event["kv"]["key"]) == "ten"
    with peers.watch(1, {"create_request": {**ALL, "start_revision": start}}) as watch:
        watch.created()
        assert all(not text(e["kv"]["key"]).startswith("/_argosy/") for e in watch.message()["events"])


def test_no_proclamation_reaches_own_keys(lone: Peers) -> None:
    """An election's key is a key like any other."""
    lone.did(0, "auth/user/add", {"name": "keeper", "password": "x"})
    answer = lone.v3(0, "election/proclaim", {"leader": {**OWN}, "value": b64("{}")})
    assert answer.status == 403, answer.text
    assert lone.did(0, "auth/user/list", {}).get("users") == ["keeper"]


def test_leases_of_machines_are_out_of_reach(make_cluster: Made) -> None:
    """No v3 client sees or ends what keeps a machine alive, or the names of its keys."""
    cluster = make_cluster(1)
    port = cluster.client_port(1)

    def ask(path: str, message: Any) -> Any:
        connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        try:
            connection.request("POST", f"/v3/{path}", json.dumps(message))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    shown = [lease["ID"] for lease in ask("lease/leases", {}).get("leases", [])]
    keys = [key for lease in shown for key in ask("lease/timetolive", {"ID": lease, "keys": True}).get("keys", [])]
    assert [text(key) for key in keys] == []
    assert shown == []


# -- watching --------------------------------------------------------------------------------------


def test_several_watches_on_one_stream(peers: Peers) -> None:
    """Each with its own id, filters and previous values; one may end without the others."""
    watched = (
        create("w/", watch_id=7, prev_kv=True), create("w/", filters=["NOPUT"]), create("w/", filters=["NODELETE"]),
        {"create_request": {"key": b64("w/a")}}, create("w/", watch_id=7), {"cancel_request": {"watch_id": 2}},
        {"cancel_request": {"watch_id": 99}},
    )  # fmt: skip
    with peers.watch(1, *watched) as watch:
        heads: list[dict[str, Any]] = []
        stands: set[str] = set()
        while not {"7", "0", "1"} <= stands or len([h for h in heads if h.get("canceled")]) < 2:
            heads.append(watch.message())
            if not heads[-1].get("canceled"):
                stands.add(heads[-1].get("watch_id", "0"))
        peers.put(0, "w/a", "1")
        peers.put(0, "w/a", "2")
        peers.did(0, "kv/deleterange", {"key": b64("w/a")})
        peers.put(2, "w/end", "")
        got: dict[str, list[dict[str, Any]]] = {}
        while len(got.get("7", [])) < 4 or len(got.get("1", [])) < 3:
            message = watch.message()
            got.setdefault(message.get("watch_id", "0"), []).extend(message.get("events", []))
    assert {h.get("watch_id", "0") for h in heads if h.get("canceled")} == {"7", "2"}
    assert "2" not in got
    assert [e.get("type", "PUT") for e in got["7"]] == ["PUT", "PUT", "DELETE", "PUT"]
    assert [text(e["prev_kv"]["value"]) for e in got["7"][1:3]] == ["1", "2"]
    assert [e.get("type", "PUT") for e in got["0"]] == ["DELETE"]
    assert [e.get("type", "PUT") for e in got["1"]] == ["PUT", "PUT", "PUT"]
    assert not any("prev_kv" in e for e in got["0"] + got["1"])


def test_watches_are_created_in_the_order_of_the_requests(peers: Peers) -> None:
    """etcd answers each request of a stream before the next; its own client counts on that."""
    at = peers.put(0, "order/a")
    requests = [create("order/"), create("order/", start_revision=at), create("order/"), {"cancel_request": {}}]
    with peers.watch(1, *requests) as watch:
        said: list[tuple[str, str]] = []
        while ("0", "canceled") not in said or len([w for w in said if w[1] == "created"]) < 3:
            message = watch.message(3)
            for word in ("created", "canceled"):
                said += [(message.get("watch_id", "0"), word)] if message.get(word) else []
    assert said == [("0", "created"), ("1", "created"), ("2", "created"), ("0", "canceled")]


def test_a_watch_starts_in_the_past_and_in_the_future(peers: Peers) -> None:
    """From the first revision asked for, in order; from a later one nothing before it."""
    made = [peers.put(n % 3, f"x/{n}", str(n)) for n in range(20)]
    with peers.watch(2, create("x/", start_revision=made[5])) as watch:
        watch.created()
        assert [int(e["kv"]["mod_revision"]) for e in watch.events(15)] == made[5:]
        peers.put(0, "x/live")
        assert text(watch.events(1)[0]["kv"]["key"]) == "x/live"
    ahead = int(peers.did(0, "kv/range", {"key": "eA=="})["header"]["revision"]) + 3
    with peers.watch(1, create("x/", start_revision=ahead)) as watch:
        watch.created()
        later = [peers.put(0, "x/ahead", str(n)) for n in range(4)]
        assert [int(e["kv"]["mod_revision"]) for e in watch.events(2)] == later[2:] == [ahead, ahead + 1]


def test_a_watch_of_what_was_compacted_says_so(peers: Peers) -> None:
    """Created, then canceled with the revision from which there is history; reads say so, too."""
    old = peers.put(0, "y/a", "1")
    now = peers.put(0, "y/a", "2")
    peers.did(0, "kv/compaction", {"revision": str(now)})
    assert peers.v3(0, "kv/compaction", {"revision": str(now)}).json()["code"] == 11
    assert peers.v3(0, "kv/range", {"key": b64("y/a"), "revision": old}).json()["code"] == 11
    with peers.watch(0, create("y/", start_revision=old)) as watch:
        watch.created()
        ended = watch.message()
    assert ended["canceled"] and int(ended["compact_revision"]) == now
    assert peers.v2(0, "GET", f"/y/a?wait=true&waitIndex={old}").json()["errorCode"] == 401


def test_progress_is_told_when_asked_for(peers: Peers) -> None:
    """With a revision that the store has reached, on no watch in particular."""
    now = peers.put(0, "z/a")
    with peers.watch(0, create("z/"), {"progress_request": {}}) as watch:
        first, second = watch.message(), watch.message()
    progress = first if first.get("watch_id") == "-1" else second
    assert progress["watch_id"] == "-1" and int(progress["header"]["revision"]) >= now


def test_progress_comes_after_the_events_it_speaks_of(peers: Peers) -> None:
    """etcd's promise (bookmarkable): nothing up to that revision is to come any more."""
    made = [peers.put(0, f"p/{n}") for n in range(5)]
    with peers.watch(0, create("p/", start_revision=made[0]), {"progress_request": {}}) as watch:
        reached, late = 0, []
        seen = 0
        while seen < len(made) or not reached:
            message = watch.message()
            if message.get("watch_id") == "-1":
                reached = int(message["header"]["revision"])
            events = message.get("events", [])
            seen += len(events)
            late += [int(e["kv"]["mod_revision"]) for e in events if int(e["kv"]["mod_revision"]) <= reached]
    assert late == []


class OpenRequest:
    """A request whose body comes in chunks and stays open; its answer is read meanwhile."""

    def __init__(self, port: int, path: str, *headers: str) -> None:
        self._raw = socket.create_connection(("127.0.0.1", port), timeout=SOON_S)
        head = [f"POST {path} HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers, "", ""]
        self._raw.sendall("\r\n".join(head).encode())
        self._got = b""
        self.status = 0

    def send(self, document: Any) -> None:
        """One chunk; bytes are sent as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_raw(b"%x\r\n%b\r\n" % (len(body), body))

    def send_raw(self, data: bytes) -> None:
        """Bytes of no particular form."""
        self._raw.sendall(data)

    def end(self) -> None:
        """The last chunk: no more of the body."""
        self.send_raw(b"0\r\n\r\n")

    def message(self, seconds: float = SOON_S) -> Any:
        """The next line that is JSON: a message of the stream, or a whole answer of an error."""
        self._raw.settimeout(seconds)
        while True:
            *lines, self._got = self._got.split(b"\n")
            for n, line in enumerate(lines):
                if line.startswith(b"HTTP/1.1 "):
                    self.status = int(line.split()[1])
                elif line.startswith(b"{"):
                    self._got = b"\n".join([*lines[n + 1 :], self._got])
                    return json.loads(line)
            if self._got.startswith(b"{") and self._got.endswith(b"}"):  # an answer of an error has no end of line
                with suppress(ValueError):  # or it is a piece of a message that ends like one
                    found = json.loads(self._got)
                    self._got = b""
                    return found
            data = self._raw.recv(65536)
            assert data, "the connection is closed"
            self._got += data

    def ended(self) -> bool:
        """Whether nothing more is said, and the connection is given up."""
        self._raw.settimeout(SOON_S)
        rest = self._got
        while data := self._raw.recv(65536):
            rest += data
        return b"{" not in rest

    def close(self) -> None:
        """Hang up."""
        self._raw.close()

    def __enter__(self) -> OpenRequest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def opened(peers: Peers) -> Iterator[Callable[..., OpenRequest]]:
    """Opens requests to the first peer."""
    with ExitStack() as stack:
        yield lambda path, *headers: stack.enter_context(OpenRequest(peers.doors[0], path, *headers))


Opened = Callable[..., OpenRequest]


def test_a_stream_of_requests_is_answered_as_it_comes(peers: Peers, opened: Opened) -> None:
    """A watch is created, hears an event and is canceled, all in one chunked body."""
    watch = opened("/v3/watch")
    watch.send(create("u/"))
    assert watch.message()["result"]["created"] and watch.status == 200
    peers.put(0, "u/a")
    assert text(watch.message()["result"]["events"][0]["kv"]["key"]) == "u/a"
    watch.send({"cancel_request": {"watch_id": 0}})
    assert watch.message()["result"]["canceled"]
    peers.put(0, "u/b")
    watch.send({"progress_request": {}})
    assert watch.message()["result"]["watch_id"] == "-1"


def test_documents_may_be_cut_anywhere(peers: Peers, opened: Opened) -> None:
    """Two creations, one byte a chunk, and then two in one: each is answered once."""
    watch = opened("/v3/watch")
    odd = create("odd\"}{[\\/", filters=["NODELETE"]) | {"unknown": 'a "quoted" } \\'}
    for byte in json.dumps(odd).encode():
        watch.send(bytes([byte]))
    assert watch.message()["result"].get("watch_id", "0") == "0"
    watch.send(b" \r\n" + json.dumps(create("cut/")).encode() * 2 + b"\tnull{}")
    assert [watch.message()["result"]["watch_id"] for _ in range(2)] == ["1", "2"]
    peers.put(0, 'odd"}{[\\/x')
    event = watch.message()["result"]
    assert (event.get("watch_id", "0"), len(event["events"])) == ("0", 1)


_NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.lists(st.none() | st.dictionaries(st.text(), _NESTED)), st.sampled_from(["", " ", "\r\n\t"]), st.booleans(), st.data())
def test_documents_are_the_same_however_they_are_cut(said: list[Any], blank: str, ascii_only: bool, data: st.DataObject) -> None:
    """The splitter against the decoder of the whole."""
    whole = blank.join(json.dumps(one, ensure_ascii=ascii_only) for one in said).encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=20)))
    splitter, found = Splitter(), []
    for start, end in pairwise([0, *cuts, len(whole)]):
        splitter.feed(whole[start:end])
        while (document := splitter.next()) is not None:
            found.append(json.loads(document))
    assert found == said == documents(whole, True)
    assert not splitter.partial


def test_a_body_that_ends_leaves_its_watches(peers: Peers, opened: Opened) -> None:
    """The last chunk ends the requests, not the answers; hanging up ends both."""
    watch = opened("/v3/watch")
    watch.send(create("half/"))
    watch.end()
    assert watch.message()["result"]["created"]
    for n in range(2):
        peers.put(0, f"half/{n}")
        assert text(watch.message()["result"]["events"][0]["kv"]["key"]) == f"half/{n}"
    open_now = _feeds(peers)
    watch.close()
    wait_until("the watch to be let go", lambda: _feeds(peers) < open_now, SOON_S)


def _feeds(peers: Peers) -> int:
    return int(peers.ask(0, "GET", "/v2/stats/store").json()["watchers"])


@pytest.mark.parametrize("broken", [b"nope", b"[]", b"7", b'"x"', b"{]}", b'{"create_request":1}', b"\xff", b'{"a":' * 40])
def test_a_broken_document_ends_an_open_stream(peers: Peers, opened: Opened, broken: bytes) -> None:
    """The first one is an answer with etcd's status and code; a later one is the last message."""
    first = opened("/v3/watch")
    first.send(broken)
    assert first.message()["code"] == 2 and first.status == 500
    assert first.ended()
    open_now = _feeds(peers)
    later = opened("/v3/watch")
    later.send(create("broken/"))
    assert later.message()["result"]["created"]
    later.send(broken)
    error = later.message()["error"]
    assert (error["grpc_code"], error["http_code"]) == (2, 500) and later.status == 200
    assert later.ended()
    assert _feeds(peers) == open_now


def test_a_body_that_ends_within_a_document_is_broken(opened: Opened) -> None:
    """As etcd has it: unexpected end."""
    watch = opened("/v3/watch")
    watch.send(b'{"create_request":')
    watch.end()
    assert watch.message()["code"] == 2 and watch.status == 500


def test_a_document_that_is_too_large_is_refused(peers: Peers, opened: Opened) -> None:
    """By a limit with a name, before it is whole; what is below it is served."""
    watch = opened("/v3/watch")
    watch.send({"create_request": {"key": b64(b"x" * 1_000_000)}})
    assert watch.message()["result"]["created"]
    before = peers.rss_mb(0)
    watch.send(b'{"create_request":{"key":"')
    try:
        for _ in range(40):
            watch.send(b"A" * 1024 * 1024)
    except OSError:
        pass  # it is not read to its end
    error = watch.message()["error"]
    assert error["grpc_code"] == 8 and "document_bytes_max" in error["message"]
    assert peers.rss_mb(0) - before < 30


def test_a_client_that_never_reads_is_not_read_either(peers: Peers, opened: Opened) -> None:
    """Requests without end, answers that nobody takes: the peer lets them wait, not itself."""
    watch = opened("/v3/watch")
    watch.send(create("deaf/"))
    assert watch.message()["result"]["created"]
    before = peers.rss_mb(0)
    watch._raw.settimeout(2)
    many = b'{"progress_request":{}}' * 40_000
    with pytest.raises(TimeoutError):
        for _ in range(100):
            watch.send(many)
    assert peers.rss_mb(0) - before < 40
    peers.put(0, "deaf/others")


@pytest.mark.parametrize("path", ["watch", "lease/keepalive"])
def test_no_body_keeps_a_peer_to_itself(peers: Peers, opened: Opened, path: str) -> None:
    """Documents without end that ask for nothing: others are answered meanwhile; a whole body has a limit."""
    stream = opened(f"/v3/{path}")
    Background(lambda: [stream.send(b'{"ID":"7"}' * 20_000) for _ in range(10)])  # perhaps it is not read to its end
    slowest = 0.0
    for _ in range(40):
        began = time.monotonic()
        peers.put(0, "other")
        slowest = max(slowest, time.monotonic() - began)
    stream.close()
    assert slowest < 0.5
    answer = peers.v3(0, path, b"{}" * 10_001)
    assert (answer.status, "documents_max" in answer.text) == (500, True)


def test_garbage_behind_an_open_watch_ends_it(peers: Peers, opened: Opened) -> None:
    """What is not HTTP any more closes the connection, and nothing of the watch is left."""
    open_now = _feeds(peers)
    for garbage in (b"zz\r\n", b"0\r\n\r\nnot HTTP\r\n\r\n"):
        watch = opened("/v3/watch")
        watch.send(create("garbage/"))
        assert watch.message()["result"]["created"]
        watch.send_raw(garbage)
        assert watch.ended()
        assert _feeds(peers) == open_now


def test_requests_behind_one_another_on_one_connection(peers: Peers, opened: Opened) -> None:
    """An open body waits for its turn; what comes after it is answered after it."""
    raw = opened("/v3/lease/keepalive")
    raw.send({"ID": "7"})
    assert raw.message()["result"]["ID"] == "7"
    raw.end()
    raw.send_raw(b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n" + b'{"key":"YQ=="}')
    body = json.dumps(create("behind/")).encode()
    raw.send_raw(b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body))
    said = b""
    raw._raw.settimeout(SOON_S)
    while b'"created":true' not in said:
        said += raw._raw.recv(65536)
    assert said.count(b"HTTP/1.1 200") == 2


def test_keepalives_are_answered_as_they_come(peers: Peers, opened: Opened) -> None:
    """In order, on a body that stays open; its end is the end of the answer."""
    lease = peers.did(0, "lease/grant", {"TTL": 30})["ID"]
    alive = opened("/v3/lease/keepalive", "Connection: close")
    for _ in range(3):
        alive.send({"ID": lease})
        assert alive.message()["result"]["TTL"] == "30"
        alive.send({"ID": "12345"})
        assert "TTL" not in alive.message()["result"]
    many = [{"ID": str(n)} for n in range(1, 2501)]
    alive.send(b"".join(json.dumps(m).encode() for m in many))
    assert [alive.message()["result"]["ID"] for _ in many] == [m["ID"] for m in many]
    alive.end()
    assert alive.ended()
    wrong = opened("/v3/lease/keepalive")
    wrong.send(b'{"ID":"7"}{"ID":[]}')
    assert wrong.message()["result"]["ID"] == "7"
    assert wrong.message()["error"]["grpc_code"] == 2


def test_a_watch_outlives_leaders_and_crashes_elsewhere(peers: Peers) -> None:
    """Kill -9 of the leader, its restart and a transfer: every write once, in order, on the same stream."""
    leader = peers.leader()
    here, other = [n for n in range(3) if n != leader]
    count = 0

    def write(number: int, many: int) -> None:
        nonlocal count
        for _ in range(many):
            count += 1
            wait_until("a write", lambda: peers.v3(number, "kv/put", {"key": b64(f"k/{count:04}")}).status == 200)

    with ExitStack() as stack:
        watch = stack.enter_context(peers.watch(here, create("k/")))
        watch.created()
        write(here, 10)
        peers.kill(leader)
        write(here, 10)
        peers.start(leader)
        write(other, 10)
        peers.await_whole()
        now = peers.leader()
        target = next(n for n in (here, other) if n != now)
        peers.move_leadership(now, target)
        write(leader, 10)
        final = peers.put(leader, "k/end")
        seen: list[tuple[int, str]] = []
        while not seen or seen[-1][0] < final:
            seen += [(int(e["kv"]["mod_revision"]), text(e["kv"]["key"])) for e in watch.message().get("events", [])]
    assert [revision for revision, _ in seen] == sorted({revision for revision, _ in seen})
    written = {text(kv["key"]): int(kv["mod_revision"]) for kv in peers.keys(here, "k/")}
    assert {key: revision for revision, key in seen} == written
    assert len(written) == count + 1


def test_a_watch_goes_on_at_another_peer(peers: Peers) -> None:
    """The peer that served it is killed: from the next revision on, another one has the rest."""
    victim = next(n for n in range(3) if n != peers.leader())
    other = (victim + 1) % 3
    with peers.watch(victim, create("v/")) as watch:
        watch.created()
        first = [peers.put(other, f"v/{n}") for n in range(3)]
        got = [int(e["kv"]["mod_revision"]) for e in watch.events(3)]
        peers.kill(victim)
    rest = [peers.put(other, f"v/{n}") for n in range(3, 6)]
    with peers.watch(other, create("v/", start_revision=got[-1] + 1)) as watch:
        watch.created()
        got += [int(e["kv"]["mod_revision"]) for e in watch.events(3)]
    peers.start(victim)
    assert got == first + rest
    peers.await_whole()
    with peers.watch(victim, create("v/", start_revision=first[0])) as watch:
        watch.created()
        assert [int(e["kv"]["mod_revision"]) for e in watch.events(6)] == first + rest


# -- locks -----------------------------------------------------------------------------------------


def _lease(peers: Peers, ttl: int = 60) -> str:
    return str(peers.did(0, "lease/grant", {"TTL": ttl})["ID"])


def _await_claims(peers: Peers, name: str, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = peers.keys(0, f"{name}/")
        return len(found) == count

    wait_until(f"{count} claims of {name}", look, SOON_S)
    return found


def _raw_lock(peers: Peers, number: int, message: Any) -> socket.socket:
    """A lock request whose answer nobody reads."""
    body = json.dumps(message).encode()
    raw = socket.create_connection(("127.0.0.1", peers.doors[number]), timeout=ANSWER_S)
    raw.sendall(b"POST /v3/lock/lock HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return raw


def test_locks_are_given_in_the_order_of_the_queue(peers: Peers) -> None:
    """Across peers, one at a time, first come first served."""
    name = b64("lock-order")
    held = peers.did(0, "lock/lock", {"name": name, "lease": _lease(peers)})["key"]
    turns: list[int] = []
    waiting = []
    for n in range(1, 4):

        def claim(n: int = n, lease: str = "") -> Any:
            answer = peers.v3(n % 3, "lock/lock", {"name": name, "lease": lease}, seconds=30)
            turns.append(n)
            return answer

        lease = _lease(peers)
        waiting.append(Background(lambda n=n, lease=lease: claim(n, lease)))  # type: ignore[misc]
        _await_claims(peers, "lock-order", n + 1)
    for n, one in enumerate(waiting, 1):
        assert turns == list(range(1, n))
        assert one.waits
        peers.did(n % 3, "lock/unlock", {"key": held})
        answer = one.join()
        assert answer.status == 200, answer.text
        held = answer.json()["key"]
    peers.did(0, "lock/unlock", {"key": held})
    assert turns == [1, 2, 3] and _await_claims(peers, "lock-order", 0) == []


def test_a_waiter_that_hangs_up_loses_its_place(peers: Peers) -> None:
    """Its claim goes at once, and the next one behind it is served."""
    name = b64("lock-gone")
    held = peers.did(0, "lock/lock", {"name": name, "lease": _lease(peers)})["key"]
    raw = _raw_lock(peers, 1, {"name": name, "lease": _lease(peers)})
    _await_claims(peers, "lock-gone", 2)
    behind = Background(lambda: peers.v3(2, "lock/lock", {"name": name, "lease": _lease(peers)}, seconds=30))
    _await_claims(peers, "lock-gone", 3)
    raw.close()
    _await_claims(peers, "lock-gone", 2)
    assert behind.waits
    peers.did(0, "lock/unlock", {"key": held})
    assert behind.join().status == 200


def test_a_waiter_that_hangs_up_at_once_holds_nothing(peers: Peers) -> None:
    """Whoever asked for a lock and went before the answer does not keep it."""
    for n in range(5):
        raw = _raw_lock(peers, n % 3, {"name": b64("lock-dash")})
        raw.close()
    answer = peers.v3(0, "lock/lock", {"name": b64("lock-dash"), "lease": _lease(peers)}, seconds=3)
    assert answer.status == 200


def test_a_lease_that_ends_while_its_lock_waits(peers: Peers) -> None:
    """The waiter is told, and the holder keeps the lock."""
    name = b64("lock-lease")
    held = peers.did(0, "lock/lock", {"name": name, "lease": _lease(peers)})["key"]
    answer = peers.v3(1, "lock/lock", {"name": name, "lease": _lease(peers, 2)}, seconds=SOON_S)
    assert (answer.status, answer.json()["code"]) == (404, 5), answer.text
    assert [kv["key"] for kv in peers.keys(1, "lock-lease/")] == [held]
    unknown = peers.v3(0, "lock/lock", {"name": name, "lease": "12345"})
    assert (unknown.status, unknown.json()["code"]) == (404, 5)
    assert [kv["key"] for kv in peers.keys(1, "lock-lease/")] == [held]


def test_a_lock_passes_on_when_its_holders_lease_ends(peers: Peers) -> None:
    """A waiter at another peer gets it, across a change of leader."""
    name = b64("lock-dead")
    peers.did(0, "lock/lock", {"name": name, "lease": _lease(peers, 3)})
    behind = Background(lambda: peers.v3(1, "lock/lock", {"name": name, "lease": _lease(peers)}, seconds=30))
    _await_claims(peers, "lock-dead", 2)
    leader = peers.leader()
    peers.move_leadership(leader, (leader + 1) % 3)
    assert behind.join(20).status == 200


# -- elections -------------------------------------------------------------------------------------


def test_an_election_from_campaign_to_resignation(peers: Peers) -> None:
    """One leads, the other waits; observers of another peer see each change."""
    name = b64("vote")
    nobody = peers.v3(0, "election/leader", {"name": name}).json()
    assert (nobody["code"], nobody["error"]) == (2, "election: no leader")
    with peers.stream(2, "/v3/election/observe", {"name": name}) as observer:

        def seen() -> str:
            return text(json.loads(observer.line(SOON_S) or "{}")["result"]["kv"]["value"])

        first = peers.did(0, "election/campaign", {"name": name, "lease": _lease(peers), "value": b64("a1")})["leader"]
        assert seen() == "a1"
        found = peers.did(1, "election/leader", {"name": name})["kv"]
        assert (found["key"], found["create_revision"]) == (first["key"], first["rev"])
        asked = {"name": name, "lease": _lease(peers), "value": b64("b1")}
        second = Background(lambda: peers.v3(1, "election/campaign", asked, seconds=30))
        _await_claims(peers, "vote", 2)
        peers.did(2, "election/proclaim", {"leader": first, "value": b64("a2")})
        assert seen() == "a2"
        assert second.waits
        wrong = peers.v3(0, "election/proclaim", {"leader": {**first, "rev": "1"}, "value": ""}).json()
        assert wrong["code"] == 2
        peers.did(0, "election/resign", {"leader": first})
        elected = second.join().json()["leader"]
        assert seen() == "b1"
        peers.did(0, "election/resign", {"leader": first})  # not its turn any more: without effect
        assert peers.did(0, "election/leader", {"name": name})["kv"]["key"] == elected["key"]
        peers.did(0, "election/resign", {"leader": elected})
    assert peers.v3(2, "election/leader", {"name": name}).json()["code"] == 2


# -- leases ----------------------------------------------------------------------------------------


def test_leases_live_on_and_end_under_a_new_leader(peers: Peers) -> None:
    """Never longer than granted once the change is over; a keepalive renews it at any peer."""
    long, short = _lease(peers, 30), _lease(peers, 3)
    peers.put(0, "lease/long", lease=long)
    peers.put(0, "lease/short", lease=short)
    leader = peers.leader()
    peers.move_leadership(leader, (leader + 1) % 3)
    for n in range(3):
        left = peers.did(n, "lease/timetolive", {"ID": long, "keys": True})
        assert 20 < int(left["TTL"]) <= int(left["grantedTTL"]) == 30
        assert left["keys"] == [b64("lease/long")]
        assert peers.did(n, "lease/keepalive", {"ID": long})["result"]["TTL"] == "30"
    wait_until("the short lease to end", lambda: len(peers.keys(0, "lease/")) == 1, SOON_S)
    for n in range(3):
        assert peers.did(n, "lease/timetolive", {"ID": short})["TTL"] == "-1"
        assert "TTL" not in peers.did(n, "lease/keepalive", {"ID": short})["result"]


def test_a_lease_that_was_granted_is_known_everywhere(peers: Peers) -> None:
    """Granted at one peer, asked for at the others at once."""
    wrong = 0
    for _ in range(100):
        lease = peers.did(0, "lease/grant", {"TTL": 60})["ID"]
        for n in (1, 2):
            wrong += peers.did(n, "lease/timetolive", {"ID": lease})["TTL"] == "-1"
        peers.did(0, "lease/revoke", {"ID": lease})
    assert wrong == 0


# -- members ---------------------------------------------------------------------------------------


def test_a_member_is_added_joins_is_promoted_and_removed(peers: Peers) -> None:
    """A new process joins under the URL that was corrected, votes, serves, and goes."""
    before = peers.put(0, "member/before", "1")
    wrong, right = "http://127.0.0.1:1", f"http://127.0.0.1:{peers.links[3]}"
    added = wait_until(
        "a member to be added",
        lambda: a if (a := peers.v3(1, "cluster/member/add", {"peerURLs": [wrong]})).status == 200 else None,
    ).json()["member"]
    wait_until(
        "the URL to be changed",
        lambda: peers.v3(2, "cluster/member/update", {"ID": added["ID"], "peerURLs": [right]}).status == 200,
    )

    def member() -> dict[str, Any]:
        found = peers.did(0, "cluster/member/list", {})["members"]
        return next((m for m in found if m["ID"] == added["ID"]), {})

    wait_until("the URL to be known", lambda: member().get("peerURLs") == [right], SOON_S)
    assert member()["isLearner"]
    peers.start(3, existing=True)
    wait_until("the member to vote", lambda: member().get("clientURLs") and not member().get("isLearner"))
    wait_until("its door to be open", partial(peers.is_healthy, 3))
    assert peers.did(3, "kv/range", {"key": b64("member/before")})["kvs"][0]["mod_revision"] == str(before)
    with peers.watch(3, create("member/")) as watch:
        watch.created()
        peers.put(0, "member/a")
        peers.put(3, "member/b")
        assert [text(e["kv"]["key"]) for e in watch.events(2)] == ["member/a", "member/b"]
    leader = peers.leader()
    peers.move_leadership(leader, 3)
    wait_until(
        "the leader to be removed",
        lambda: peers.v3(0, "cluster/member/remove", {"ID": added["ID"]}).status in (200, 404),
    )
    wait_until("the member to be gone", lambda: member() == {}, SOON_S)
    peers.kill(3)
    assert peers.v3(0, "cluster/member/remove", {"ID": added["ID"]}).json()["code"] == 5
    peers.put(0, "member/after")
    assert peers.leader() in range(3)


def _knows(peers: Peers, number: int, member: str) -> bool:
    return member in peers.members(number)


def _is_removed(peers: Peers, member: str) -> bool:
    return peers.v3(0, "cluster/member/remove", {"ID": member}).status == 404


@pytest.fixture
def newcomer(peers: Peers) -> Iterator[Callable[[], str]]:
    """Adds a member that never starts, at a follower; it is removed afterwards."""
    added: list[str] = []

    def add() -> str:
        message = {"peerURLs": ["http://127.0.0.1:1"]}
        number = (peers.leader() + 1) % 3
        answer = wait_until(
            "a member to be added",
            lambda: a if (a := peers.v3(number, "cluster/member/add", message)).status == 200 else None,
        )
        added.append(answer.json()["member"]["ID"])
        return added[-1]

    yield add
    for member in added:
        wait_until("the member to be removed", partial(_is_removed, peers, member))


def test_a_change_of_members_is_answered_when_it_holds(peers: Peers, newcomer: Callable[[], str]) -> None:
    """A member list at the same peer has it, and another change may follow."""
    number = (peers.leader() + 1) % 3
    for _ in range(5):
        member = newcomer()
        assert member in peers.members(number)
        answer = peers.v3(number, "cluster/member/remove", {"ID": member})
        assert answer.status == 200, answer.text
        assert member not in peers.members(number)


def test_a_follower_says_why_a_learner_cannot_vote(peers: Peers, newcomer: Callable[[], str]) -> None:
    """With the code and sentence of etcd, at every peer alike."""
    member = newcomer()
    for number in range(3):
        wait_until("the member to be known", partial(_knows, peers, number, member))
    for n in range(120):  # it lags by more than what counts as caught up
        peers.put(n % 3, "learner/a")
    for number in (peers.leader(), (peers.leader() + 1) % 3):
        answer = peers.v3(number, "cluster/member/promote", {"ID": member})
        assert (answer.status, answer.json()["code"]) == (412, 9), f"leader {peers.leader()}, {number}: {answer.text}"


def test_a_member_that_never_started_gets_no_vote(lone: Peers) -> None:
    """etcd: can only promote a learner member which is in sync with leader."""
    member = lone.did(0, "cluster/member/add", {"peerURLs": ["http://127.0.0.1:1"]})["member"]["ID"]
    answer = lone.v3(0, "cluster/member/promote", {"ID": member})
    assert (answer.status, answer.json().get("code")) == (412, 9), answer.text
    lone.put(0, "still", "here")


def test_only_the_leader_hands_over_and_only_to_a_voter(peers: Peers) -> None:
    """Everything else is refused and changes nothing."""
    leader = peers.leader()
    follower = (leader + 1) % 3
    mine = peers.status(follower)["header"]["member_id"]
    refused = peers.v3(follower, "maintenance/transfer-leadership", {"targetID": mine})
    assert (refused.status, refused.json()["error"]) == (412, "etcdserver: not leader")
    stranger = peers.v3(leader, "maintenance/transfer-leadership", {"targetID": "1"})
    assert (stranger.status, stranger.json()["error"]) == (412, "etcdserver: bad leader transferee")
    assert peers.leader() == leader
    peers.move_leadership(leader, follower)


@pytest.mark.parametrize("path", ["/v2/members", "/v3/cluster/member/add"])
def test_a_peer_url_that_cannot_be_split_is_refused(peers: Peers, path: str) -> None:
    """With 400, soon."""
    body = json.dumps({"peerURLs": ["http://[::1"]}).encode()
    assert peers.ask(0, "POST", path, body, {"Content-Type": "application/json"}, seconds=2).status == 400


# -- bad input -------------------------------------------------------------------------------------

#: Bodies that no path takes.
BAD = (
    b"nope", b"[]", b'"text"', b"7", b"{", b'{"key":}', b"\xff\xfe", b"[" * 2000, b'{"x":' * 400 + b"1",
    b"NaN",
)  # fmt: skip
#: Fields with values of a wrong type; those that a path does not have are passed over.
WRONG: tuple[dict[str, Any], ...] = (
    {"key": 7}, {"key": "a"}, {"key": "===="}, {"key": {}}, {"range_end": []}, {"limit": "x"}, {"limit": 1.5},
    {"revision": 1e400}, {"sort_order": "UP"}, {"sort_order": 9}, {"compare": {}}, {"success": [[]]}, {"success": [1]},
    {"create_request": []}, {"ID": "zz"}, {"peerURLs": "x"}, {"peerURLs": [1]}, {"name": 1}, {"perm": 1}, {"leader": "x"},
    {"TTL": {}}, {"lease": True}, {"ignore_value": "true"}, {"revision": 2**80}, {"targetID": "x"}, {"action": "NO"},
)  # fmt: skip


@pytest.mark.parametrize("path", sorted(PATHS))
def test_bad_bodies_are_refused_with_a_sentence(peers: Peers, path: str) -> None:
    """Never a hang, never a broken peer; the JSON of an error names its code three ways."""
    connection = HTTPConnection("127.0.0.1", peers.doors[0], timeout=ANSWER_S)
    try:
        for body in BAD:
            connection.request("POST", f"/v3{path}", body)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            expected = (500, 2) if path in STREAMS else (400, 3)
            assert (answer.status, said["code"]) == expected and said["error"] == said["message"], (body[:20], said)
    finally:
        connection.close()


@pytest.mark.parametrize("path", [
    "kv/range", "kv/put", "kv/deleterange", "kv/txn", "kv/compaction", "lease/revoke", "lease/timetolive",
    "lock/unlock", "election/proclaim", "election/resign", "cluster/member/add", "cluster/member/remove",
    "cluster/member/update", "cluster/member/promote", "maintenance/transfer-leadership", "maintenance/hashkv",
    "auth/authenticate", "auth/user/add", "auth/user/delete", "auth/role/grant", "auth/role/revoke", "auth/role/get",
])  # fmt: skip
def test_fields_of_a_wrong_type_are_refused(peers: Peers, path: str) -> None:
    """What has no meaning changes nothing and breaks nothing."""
    for message in WRONG:
        answer = peers.v3(0, path, message)
        assert answer.status in (200, 400, 404, 412), (message, answer.text)
        if answer.status != 200:
            assert set(answer.json()) == {"error", "message", "code"}
    assert peers.ask(0, "GET", "/health").status == 200


@pytest.mark.parametrize(("path", "good", "bad"), [
    ("watch", '{"create_request":{"key":"YQ=="}}', ('{"create_request":1}', '{"cancel_request":{"watch_id":[]}}')),
    ("lease/keepalive", '{"ID":"7"}', ('{"ID":[]}', '{"ID":"x"}')),
])  # fmt: skip
def test_streams_refuse_a_bad_document_among_good_ones(
    peers: Peers, path: str, good: str, bad: tuple[str, ...]
) -> None:
    """The whole request, before anything has begun."""
    for wrong in ("[]", "{", "1", *bad):
        answer = peers.v3(0, path, f"{good} {wrong}".encode())
        assert (answer.status, answer.json()["code"]) == (500, 2), (wrong, answer.text)


def test_large_requests_meet_named_limits(peers: Peers) -> None:
    """A body beyond the limits is refused; one below them is stored."""
    value = b64(b"x" * 1_500_000)
    peers.did(0, "kv/put", {"key": b64("large"), "value": value})
    assert len(peers.did(1, "kv/range", {"key": b64("large")})["kvs"][0]["value"]) == len(value)
    answer = peers.v3(0, "kv/put", {"key": b64("large"), "value": b64(b"x" * 3_000_000)})
    assert (answer.status, answer.json()["error"]) == (400, "etcdserver: request is too large")
    try:
        assert peers.ask(0, "POST", "/v3/kv/put", b"x" * (11 * 1024 * 1024)).status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused while it was still being sent
    puts = [{"request_put": {"key": b64(f"many/{n}"), "value": ""}} for n in range(129)]
    answer = peers.v3(0, "kv/txn", {"success": puts})
    assert (answer.status, answer.json()["error"]) == (400, "etcdserver: too many operations in txn request")
    peers.did(0, "kv/deleterange", {"key": b64("large")})


def test_methods_and_paths_that_do_not_exist(peers: Peers) -> None:
    """Text, as the gateway says it; nothing else happens."""
    for method in ("GET", "PUT", "DELETE", "HEAD"):
        answer = peers.ask(0, method, "/v3/kv/range", b"{}" if method == "PUT" else None)
        assert answer.status == 405, method
    for path in ("/v3/", "/v3/kv", "/v3/kv/range/", "/v3/kv/nope", "/v3/%6Bv/range", "/v4/kv/range"):
        answer = peers.ask(0, "POST", path, b"{}")
        assert answer.status == 404 and "Not Found" in answer.text.title(), path
    assert peers.ask(0, "POST", "/v3", b"{}").headers["location"] == "/v3/"
    assert peers.ask(0, "OPTIONS", "/v3/kv/range").status == 200
    assert peers.ask(0, "POST", "/v3beta/kv/range", b'{"key":"YQ=="}').status == 200
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert peers.ask(0, "GET", "/v3/watch", None, upgrade).status in (400, 405, 501)


def test_a_limit_beyond_64_signed_bits_harms_nobody(lone: Peers) -> None:
    """One reader's number is refused, and the peer goes on in the same life."""
    lone.put(0, "a")
    answer = lone.v3(0, "kv/range", {**ALL, "limit": str(2**63)})
    assert answer.status == 400, answer.text
    assert lone.complaints() == []


def test_no_transaction_ends_the_cluster(lone: Peers) -> None:
    """Whatever is committed can be applied."""
    read = {"request_range": {**ALL, "limit": str(2**63)}}
    try:
        lone.v3(0, "kv/txn", {"success": [{"request_put": {"key": b64("a"), "value": ""}}, read]})
    except (OSError, HTTPException):
        pass  # what counts is whether anybody is served afterwards
    lone.kill(0)
    lone.start(0)
    wait_until("the peer to serve", lambda: lone.v3(0, "kv/put", {"key": b64("b")}, seconds=1).status == 200, 4)


def test_a_deep_path_can_be_listed(lone: Peers) -> None:
    """What v2 takes it lists; what is deeper it refuses, and does not look for where v3 has put it."""
    assert lone.v2(0, "PUT", "/a" * 100, {"value": "1"}).status == 201
    refused = lone.v2(0, "PUT", "/a" * 101, {"value": "1"})
    assert (refused.status, "100 elements" in refused.text) == (400, True)
    lone.put(0, "/b" * 700)
    assert lone.v2(0, "GET", "/?recursive=true").status == 200
    assert lone.v2(0, "GET", "/?recursive=true&quorum=true").status == 200
    assert lone.complaints() == []


def test_the_memory_for_a_key_is_in_proportion(lone: Peers) -> None:
    """A key of 16 kB, all slashes."""
    before = lone.rss_mb(0)
    lone.put(0, "/b" * 8000)
    assert lone.rss_mb(0) - before < 20


def test_no_transaction_stops_the_cluster(lone: Peers) -> None:
    """Others are answered while a large one is decided."""

    def inner(n: int, verb: str) -> dict[str, Any]:
        return {"request_txn": {"success": [{verb: {"key": b64(f"{verb[8:11]}{n}/{m}")}} for m in range(127)]}}

    large = {"success": [inner(n, v) for v in ("request_delete_range", "request_put") for n in range(64)]}
    body = json.dumps(large).encode()
    work = Background(lambda: lone.v3(0, "kv/txn", body, seconds=30))
    slowest = 0.0
    while work.waits:
        began = time.monotonic()
        lone.put(0, "other")
        slowest = max(slowest, time.monotonic() - began)
    assert work.join().status == 400, "there is a limit to what one transaction holds on all its levels"
    assert slowest < 0.8


def test_a_number_of_many_digits_is_refused_as_json(peers: Peers) -> None:
    """With the gateway's error."""
    answer = peers.v3(0, "kv/range", b'{"key":"YQ==","limit":%b}' % (b"1" * 5000))
    assert answer.json()["code"] == 3


@pytest.mark.parametrize("number", ["\N{FULLWIDTH DIGIT ONE}", "1_0", " 1 ", "01", "+1", "1e0", 1.0])
def test_a_number_is_spelt_in_digits(peers: Peers, number: str) -> None:
    """As JSON's mapping to protobuf has it."""
    assert peers.v3(0, "kv/range", {"key": "YQ==", "limit": number}).status == 400


# -- what etcd answers to the odd ones -------------------------------------------------------------


def test_a_fresh_store_may_be_compacted_to_nothing(lone: Peers) -> None:
    """etcd: revision 0, until anything is compacted."""
    lone.did(0, "kv/compaction", {})
    now = lone.put(0, "a")
    lone.did(0, "kv/compaction", {"revision": 0})
    lone.did(0, "kv/compaction", {"revision": now})
    for revision in (0, -1, now):
        assert lone.v3(0, "kv/compaction", {"revision": revision}).json()["code"] == 11


def test_leases_with_negative_ids_are_not_found(peers: Peers) -> None:
    """The id comes back as it was given; none can be granted here."""
    assert peers.did(0, "lease/timetolive", {"ID": -6, "keys": True}) | {"header": {}} == {
        "header": {}, "ID": "-6", "TTL": "-1",
    }  # fmt: skip
    kept = peers.did(0, "lease/keepalive", {"ID": -6})["result"]
    assert (kept["ID"], kept.get("TTL")) == ("-6", None)
    for path, message in (
        ("lease/revoke", {"ID": -6}), ("kv/put", {"key": b64("a"), "lease": -6}), ("lock/lock", {"name": b64("n"), "lease": -6}),
        ("election/campaign", {"name": b64("n"), "lease": -6}),
    ):  # fmt: skip
        answer = peers.v3(0, path, message)
        assert (answer.status, answer.json()["error"]) == (404, "etcdserver: requested lease not found"), path
    assert peers.v3(0, "lease/grant", {"ID": -5, "TTL": 60}).json()["code"] == 3


def test_numbers_that_no_enumeration_has(peers: Peers) -> None:
    """As etcd takes them; where it would fall over, they are refused."""
    made = [peers.put(0, f"enum/{n}", value) for n, value in enumerate("ba")]
    for order in (3, 9, -1):
        for target in ("KEY", "VALUE"):
            found = peers.did(0, "kv/range", {**prefix("enum/"), "sort_order": order, "sort_target": target})
            assert [text(kv["key"]) for kv in found["kvs"]] == ["enum/0", "enum/1"]
    key = {"key": b64("enum/0")}
    holds: tuple[tuple[dict[str, Any], bool], ...] = (
        ({"target": 9}, True), ({"target": 9, "result": "GREATER"}, False), ({"target": -1, "result": "NOT_EQUAL"}, False),
        ({"result": 9}, True), ({"result": -1, "target": "MOD"}, True), ({"result": 9, "target": "VALUE"}, True),
        ({"result": 9, "target": "VALUE", "key": b64("enum/none")}, False), ({"result": 9, "key": b64("enum/none")}, True),
    )  # fmt: skip
    for compare, expected in holds:
        answer = peers.did(0, "kv/txn", {"compare": [{**key, **compare}]})
        assert answer.get("succeeded", False) is expected, compare
    with peers.watch(0, create("enum/", start_revision=made[0], filters=[7])) as watch:
        watch.created()
        watch.events(2)
    peers.did(0, "auth/role/add", {"name": "enum"})
    for path, message in (
        ("kv/range", {**key, "sort_target": 5}), ("maintenance/alarm", {"action": 3}), ("kv/range", {**key, "sort_order": 2**31}),
        ("auth/role/grant", {"name": "enum", "perm": {"permType": 3, **key}}),
    ):  # fmt: skip
        assert peers.v3(0, path, message).json()["code"] == 3, path
    peers.did(0, "auth/role/delete", {"role": "enum"})


def test_peer_urls_that_are_none(peers: Peers) -> None:
    """In etcd's sentences, different at either door."""
    for urls, sentence in (
        ([], "no valid URLs given"), (None, "no valid URLs given"), (["http://a:1/x"], "URL must not contain a path: http://a:1/x"),
        (["http://a"], 'URL address does not have the form "host:port": http://a'),
    ):  # fmt: skip
        body = json.dumps({"peerURLs": urls}).encode()
        for method, target in (("POST", "/v2/members"), ("PUT", f"/v2/members/{int(peers.members(0)[0]):x}")):
            answer = peers.ask(0, method, target, body, {"Content-Type": "application/json"})
            assert (answer.status, answer.json()) == (400, {"message": sentence}), (method, urls)
        answer = peers.v3(0, "cluster/member/add", {"peerURLs": urls})
        assert (answer.status, answer.json()["error"]) == (400, "etcdserver: given member URLs are invalid"), urls


# -- snapshots -------------------------------------------------------------------------------------


def _snapshot(peers: Peers, source: str, token: str = "") -> Answer:
    headers = {"Authorization": token} if token else {}
    connection = HTTPConnection("127.0.0.1", peers.doors[0], timeout=ANSWER_S, source_address=(source, 0))
    try:
        connection.request("POST", "/v3/maintenance/snapshot", b"{}", headers)
        answer = connection.getresponse()
        return Answer(answer.status, {}, answer.read().decode())
    finally:
        connection.close()


def _address_of_this_host() -> str:
    """One that is not of the loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no address but the loopback's")
        return str(probe.getsockname()[0])


def test_a_snapshot_leaves_an_open_door_to_this_host_alone(lone: Peers) -> None:
    """It holds Argosy's own keys: without users only for clients on the host, with users for root from anywhere."""
    far = _address_of_this_host()
    lone.did(0, "auth/user/add", {"name": "root", "password": "snapshot"})
    lone.did(0, "auth/user/grant", {"user": "root", "role": "root"})
    pieces = [json.loads(line)["result"] for line in _snapshot(lone, "127.0.0.1").text.splitlines()]
    sizes = [len(base64.b64decode(piece["blob"])) for piece in pieces]
    assert [int(p.get("remaining_bytes", 0)) for p in pieces] == [sum(sizes[n + 1 :]) for n in range(len(sizes))]
    kept = b"".join(base64.b64decode(piece["blob"]) for piece in pieces)
    assert snapshot.load("kept", snapshot.unseal(kept))[1].revision == int(pieces[0]["header"]["revision"])
    page = {"Origin": "http://127.0.0.1", "Content-Type": "text/plain"}
    assert lone.ask(0, "POST", "/v3/maintenance/snapshot", b"{}", page).status == 403
    refused = _snapshot(lone, far)
    assert (refused.status, refused.json()["code"]) == (403, 7) and "own keys" in refused.text
    lone.did(0, "auth/enable", {})
    assert _snapshot(lone, "127.0.0.1").status == 400  # nobody in particular
    token = lone.did(0, "auth/authenticate", {"name": "root", "password": "snapshot"})["token"]
    assert _snapshot(lone, far, token).status == 200
