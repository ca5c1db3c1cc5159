"""Very many watchers, and one that does not read: each gets all of its events once, in order.

Everything is served by the HTTP door of one peer of three.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from ..waiting import wait_until
from .test_v3 import Peers, b64, prefix, running, text

WATCHERS, KEYS, ROUNDS = 10_000, 1_000, 3
#: Connections that are opened, and writes that are under way, at a time.
OPENING, WRITING = 100, 16
#: Bytes of one value, and values, of the flood: 70 MB.
VALUE_BYTES, VALUES = 64 * 1024, 1_100
FLOOD_S = 45.0


# -- many ------------------------------------------------------------------------------------------


class _Watch(asyncio.Protocol):
    """One watcher: what came is kept as it is, and read in the end."""

    def __init__(self, ask: bytes, mark: bytes, head: bytes) -> None:
        self._ask = ask
        self._mark = mark
        self._head = head
        self.data = bytearray()
        self.stands = asyncio.get_running_loop().create_future()
        self.heard_all = asyncio.get_running_loop().create_future()
        self.ended = False

    def connection_made(self, transport: Any) -> None:
        transport.write(self._ask)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.stands.done() and self._head in self.data:
            self.stands.set_result(None)
        if not self.heard_all.done() and self.data.count(self._mark) >= ROUNDS:
            self.heard_all.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        for awaited in (self.stands, self.heard_all):
            if not awaited.done():
                awaited.set_exception(error or ConnectionError("closed"))

    def messages(self) -> list[Any]:
        """The JSON of all chunks."""
        return [json.loads(line) for line in bytes(self.data).splitlines() if line.startswith(b"{")]


def _v2(number: int) -> tuple[bytes, bytes, bytes]:
    ask = b"GET /v2/keys/many/%d?wait=true&stream=true HTTP/1.1\r\nHost: x\r\n\r\n" % number
    return ask, b'"action"', b"\r\n\r\n"


def _v3(number: int) -> tuple[bytes, bytes, bytes]:
    body = json.dumps({"create_request": {"key": b64(f"/many/{number}")}}).encode()
    ask = b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    return ask, b'"create_revision"', b'"created":true'


def _events(messages: list[Any]) -> list[tuple[int, str]]:
    """(revision, value), whichever door told it."""
    found = []
    for m in messages:
        if "node" in m:
            found.append((m["node"]["modifiedIndex"], m["node"]["value"]))
        for event in m.get("result", {}).get("events", []):
            found.append((int(event["kv"]["mod_revision"]), text(event["kv"]["value"])))
    return found


async def _write(port: int, numbers: list[int], round_: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number in numbers:
            body = b"value=%d-%d" % (number, round_)
            writer.write(
                b"PUT /v2/keys/many/%d HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (number, len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 20"), head
            size = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.split(b":")[1]))
    finally:
        writer.close()


async def _watched(peers: Peers) -> dict[int, list[list[tuple[int, str]]]]:
    """What every watcher of every key saw."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(OPENING)
    watches: list[_Watch] = []
    transports: list[asyncio.BaseTransport] = []

    async def open_(number: int) -> None:
        kind = _v2 if number // KEYS % 2 else _v3
        async with gate:
            transport, watch = await loop.create_connection(
                lambda: _Watch(*kind(number % KEYS)), "127.0.0.1", peers.doors[0]
            )
            transports.append(transport)
            await asyncio.wait_for(watch.stands, 20)
            watches.append(watch)

    try:
        await asyncio.gather(*(open_(number) for number in range(WATCHERS)))
        for round_ in range(ROUNDS):
            shares = [list(range(start, KEYS, WRITING)) for start in range(WRITING)]
            await asyncio.gather(*(_write(peers.doors[n % 3], share, round_) for n, share in enumerate(shares)))
        await asyncio.wait_for(asyncio.gather(*(watch.heard_all for watch in watches)), 20)
        assert not any(watch.ended for watch in watches)
        seen: dict[int, list[list[tuple[int, str]]]] = {}
        for watch in watches:
            events = _events(watch.messages())
            seen.setdefault(int(events[0][1].partition("-")[0]), []).append(events)
        return seen
    finally:
        for transport in transports:
            transport.close()


def test_ten_thousand_watchers_hear_all_of_their_keys(tmp_path: Path) -> None:
    """Half of them v2 streams and half v3 watches: each event once, in order, the same for all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = WATCHERS + 500
    if hard < needed:
        pytest.skip(f"{hard} open files are allowed, {needed} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))  # the peers inherit it
    try:
        with running(tmp_path, 3) as peers:
            before = peers.rss_mb(0)
            seen = asyncio.run(_watched(peers))
            assert peers.rss_mb(0) - before < 300, "30 kB for a watcher and its connection"
            final = peers.ask(1, "GET", "/v2/keys/many?quorum=true").json()["node"]["nodes"]
            written = {n["key"]: (n["modifiedIndex"], n["value"]) for n in final}
            wait_until("the watches to be let go", lambda: _open_watches(peers) == 0, 15)
            assert peers.complaints() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(seen) == set(range(KEYS))
    for number, watchers in seen.items():
        assert len(watchers) == WATCHERS // KEYS
        first = watchers[0]
        assert [value for _, value in first] == [f"{number}-{n}" for n in range(ROUNDS)]
        assert [revision for revision, _ in first] == sorted({revision for revision, _ in first})
        assert first[-1] == written[f"/many/{number}"]
        assert all(events == first for events in watchers)


def _open_watches(peers: Peers) -> int:
    return int(peers.ask(0, "GET", "/v2/stats/store").json()["watchers"])


# -- slow ------------------------------------------------------------------------------------------


class Reader:
    """One watch over a raw socket with a small buffer, read in a thread when it is told to."""

    def __init__(self, port: int, ask: bytes, head: bytes) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        self._socket.settimeout(FLOOD_S)
        self._socket.connect(("127.0.0.1", port))
        self._socket.sendall(ask)
        self._rest = b""
        while head not in self._rest:
            self._rest += self._socket.recv(4096)
        self.seen: list[tuple[int, int, float]] = []  # revision, number of the value, when
        self.last: Any = None
        self.ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Read from now on."""
        self._thread.start()

    def _read(self) -> None:
        pieces = [self._rest]
        try:
            while data := self._socket.recv(1 << 20):
                pieces.append(data)
                if b"\n" in data:
                    *lines, rest = b"".join(pieces).split(b"\n")
                    pieces = [rest]
                    for line in lines:
                        if line.startswith(b"{"):
                            self._take(json.loads(line))
        except OSError:
            pass
        self.ended = True

    def _take(self, message: Any) -> None:
        self.last = message
        now = time.monotonic()
        self.seen += [(at, int(value[:8]), now) for at, value in _events([message])]

    def await_all(self, count: int) -> bool:
        """Whether so many events come."""
        wait_until("the events of a reader", lambda: len(self.seen) >= count or self.ended, FLOOD_S)
        return len(self.seen) >= count

    def close(self) -> None:
        """Hang up."""
        try:
            self._socket.shutdown(2)
        except OSError:
            pass
        if self._thread.ident is not None:
            self._thread.join(5)
        self._socket.close()

    @property
    def was_told(self) -> bool:
        """Whether the last word was that it lagged, and where history begins now."""
        result = (self.last or {}).get("result", {})
        return bool(result.get("canceled") and result.get("compact_revision")) or (self.last or {}).get("errorCode") == 401


@dataclass
class Flood:
    """What came of 70 MB of events that one reader of each door did not read for a while."""

    peers: Peers
    served: int
    other: int
    written: list[tuple[int, float]] = field(default_factory=list)  # revision, when it was acknowledged
    fast: dict[str, Reader] = field(default_factory=dict)
    slow: dict[str, Reader] = field(default_factory=dict)
    #: resident MB of (the peer that serves, one that does not): before, while the readers lag
    memory: list[tuple[float, float]] = field(default_factory=list)

    def note_memory(self) -> None:
        """As it is now."""
        self.memory.append((self.peers.rss_mb(self.served), self.peers.rss_mb(self.other)))

    def peak_mb(self, number: int) -> float:
        """The highest resident memory that a peer ever had."""
        status = Path(f"/proc/{self.peers.processes[number].pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def __str__(self) -> str:
        """For a test that fails."""
        counts = {name: len(reader.seen) for name, reader in {**self.fast, **self.slow}.items()}
        return f"{len(self.written)} written, seen {counts}, memory {self.memory}"


def _asks() -> dict[str, tuple[bytes, bytes]]:
    body = json.dumps({"create_request": prefix("/flood/")}).encode()
    v3 = b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    v2 = b"GET /v2/keys/flood?wait=true&stream=true&recursive=true HTTP/1.1\r\nHost: x\r\n\r\n"
    return {"v3": (v3, b'"created":true}}\n\r\n'), "v2": (v2, b"\r\n\r\n")}


def _flood(flood: Flood) -> None:
    """Write; the fast readers read."""
    connection = HTTPConnection("127.0.0.1", flood.peers.doors[flood.other], timeout=20)
    for number in range(VALUES):
        value = f"{number:08}".ljust(VALUE_BYTES, "x")
        put = json.dumps({"key": b64(f"/flood/{number % 50}"), "value": b64(value)})
        connection.request("POST", "/v3/kv/put", put)
        answer = json.loads(connection.getresponse().read())
        flood.written.append((int(answer["header"]["revision"]), time.monotonic()))
    connection.close()


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flood]:
    """Watched by four readers at one follower, two of which stop reading until all is written."""
    with running(tmp_path_factory.mktemp("flood"), 3) as peers:
        leader = peers.leader()
        made = Flood(peers, (leader + 1) % 3, (leader + 2) % 3)
        try:
            for door, (ask, head) in _asks().items():
                made.fast[door] = Reader(peers.doors[made.served], ask, head)
                made.slow[door] = Reader(peers.doors[made.served], ask, head)
            made.note_memory()
            for reader in made.fast.values():
                reader.start()
            _flood(made)
            for reader in made.fast.values():
                reader.await_all(VALUES)
            made.note_memory()
            for reader in made.slow.values():
                reader.start()
            for reader in made.slow.values():
                reader.await_all(VALUES)
            yield made
        finally:
            for reader in (*made.fast.values(), *made.slow.values()):
                reader.close()


def _assert_whole(flood: Flood, reader: Reader) -> None:
    assert [(at, number) for at, number, _ in reader.seen] == [
        (revision, number) for number, (revision, _) in enumerate(flood.written[: len(reader.seen)])
    ], str(flood)


@pytest.mark.parametrize("door", ["v3", "v2"])
def test_a_slow_reader_slows_nobody(flood: Flood, door: str) -> None:
    """Whoever reads has every event, in order, soon after it was acknowledged."""
    reader = flood.fast[door]
    assert len(reader.seen) == VALUES, str(flood)
    _assert_whole(flood, reader)
    late = max(seen - told for (_, told), (_, _, seen) in zip(flood.written, reader.seen, strict=True))
    assert late < 3.0


def test_a_slow_reader_costs_a_bounded_buffer(flood: Flood) -> None:
    """While it does not read: a few MB, compared with a peer that serves no watcher."""
    (served_before, other_before), (served, other) = flood.memory
    assert (served - served_before) - (other - other_before) < 30, str(flood)


@pytest.mark.parametrize("door", ["v3", "v2"])
def test_a_slow_reader_catches_up_or_is_told(flood: Flood, door: str) -> None:
    """All that it missed, in order; or up to somewhere, and then that it lagged."""
    reader = flood.slow[door]
    if len(reader.seen) < VALUES:
        assert reader.was_told, f"cut off without a word: {flood}"
    _assert_whole(flood, reader)


def test_catching_up_takes_a_bounded_amount_of_memory(flood: Flood) -> None:
    """What was missed is handed over piece by piece, not as one message of 100 MB."""
    assert flood.peak_mb(flood.served) - flood.peak_mb(flood.other) < 64, str(flood)
