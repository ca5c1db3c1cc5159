"""The etcd v2 door under load, turn by turn with etcd's own; and what Python allows at most."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

from . import wrk
from .hosts import ROOT
from .lab import Lab, median
from .ports import free_ports
from .table import Row
from .waiting import bound, until
from .wrk import Load

PEER = "etcd"


def leaders(lab: Lab) -> dict[str, str]:
    """The doors of both leaders."""
    leader = until("etcd's leader", lambda: [] if (m := lab.etcd.leader()) is None else [m])[0]
    return {"argosy": lab.argosy.url(lab.argosy.leader()), PEER: lab.etcd.url(leader)}


def take_turns(
    lab: Lab, urls: dict[str, str], script: str, connections: int, query: str = "",
    rounds: int = 0, seconds: float = 0.0, keys: int = wrk.KEYS, value_bytes: int = wrk.VALUE_BYTES,
) -> dict[str, list[Load]]:  # fmt: skip
    """Load each in turn, so many rounds; every other round begins with the other one."""
    out: dict[str, list[Load]] = {name: [] for name in urls}
    for turn in range(rounds or lab.effort.rounds):
        names = list(urls) if turn % 2 == 0 else list(reversed(urls))
        for name in names:
            out[name].append(
                wrk.run(
                    urls[name], script, connections, seconds or lab.effort.load_s, query, keys, value_bytes
                )
            )
    return out


def compare(
    work: str, loads: dict[str, list[Load]], peer: str, factor: float | None, tail: float | None = None
) -> Row:
    """A row of rates; the ratio is the median of each round's, the tail that of the p99s."""
    ours, theirs = loads["argosy"], loads[peer]
    ratio = median([a.rate / b.rate for a, b in zip(ours, theirs, strict=True)])
    slower = median([a.p99_ms / b.p99_ms for a, b in zip(ours, theirs, strict=True)])
    goal = "-" if factor is None else f">= {factor:g}x"
    met = None if factor is None else ratio >= factor
    if tail is not None:
        goal += f", p99 <= {tail:g}x"
        met = bool(met) and slower <= tail
    errors = {name: sum(load.errors for load in turns) for name, turns in loads.items()}
    note = ", ".join(f"{count} failed at {name}" for name, count in errors.items() if count)
    data = {
        name: {
            "rates": [round(load.rate, 1) for load in turns], "p50_ms": [load.p50_ms for load in turns],
            "p99_ms": [load.p99_ms for load in turns], "max_ms": [load.max_ms for load in turns],
        }
        for name, turns in loads.items()
    }  # fmt: skip
    return Row(
        work, _figure(ours), f"{peer} {_figure(theirs)}", f"{ratio:.2f}x, p99 {slower:.2f}x", goal, met, note,
        data,
    )  # fmt: skip


def _figure(loads: list[Load]) -> str:
    return f"{median([x.rate for x in loads]):,.0f}/s, p99 {median([x.p99_ms for x in loads]):.1f} ms"


def _against_etcd(
    lab: Lab, work: str, script: str, connections: int, factor: float, tail: float | None, query: str = ""
) -> list[Row]:
    lab.need("wrk", "etcd")
    loads = take_turns(lab, leaders(lab), script, connections, query)
    return [compare(work, loads, PEER, factor, tail)]


def put64(lab: Lab) -> list[Row]:
    """256-byte values to 1,000 keys at the leader, everything synced."""
    return _against_etcd(lab, "v2 PUT 256 B, c=64", "put.lua", 64, 2.5, 0.5)


def put256(lab: Lab) -> list[Row]:
    """The same with more clients."""
    return _against_etcd(lab, "v2 PUT 256 B, c=256", "put.lua", 256, 2.5, 0.5)


def put1(lab: Lab) -> list[Row]:
    """The same with a single client: the sync decides."""
    return _against_etcd(lab, "v2 PUT 256 B, c=1", "put.lua", 1, 1.3, None)


def get64(lab: Lab) -> list[Row]:
    """Local reads."""
    return _against_etcd(lab, "v2 GET, c=64, local", "get.lua", 64, 1.8, None)


def quorum64(lab: Lab) -> list[Row]:
    """Linearizable reads."""
    return _against_etcd(lab, "v2 GET ?quorum=true, c=64", "get.lua", 64, 4.0, None, "?quorum=true")


@contextmanager
def _bare_server(answer: bytes) -> Iterator[str]:
    """A process that answers every GET with the same bytes and does nothing else."""
    port = free_ports(1)[0]
    process = subprocess.Popen(
        [*bound("SIGKILL"), sys.executable, "-m", "bench.ceiling", str(port)],
        stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, "the bare server has ended"
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)

    try:
        assert process.stdin is not None
        process.stdin.write(answer)
        process.stdin.close()
        until("the bare server", answers)
        yield url
    finally:
        process.kill()
        process.wait(10)


def _raw_answer(host: str, path: str) -> bytes:
    """What a server answers to a client that stays connected, byte by byte."""
    connection = HTTPConnection(urlsplit(host).netloc, timeout=5)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        head = "".join(f"{name}: {value}\r\n" for name, value in reply.getheaders())
        return f"HTTP/1.1 {reply.status} {reply.reason}\r\n{head}\r\n".encode() + reply.read()
    finally:
        connection.close()


def ceiling(lab: Lab) -> list[Row]:
    """The same GET from a bare uvloop and httptools server: as fast as Python goes."""
    lab.need("wrk")
    host = lab.argosy.url(lab.argosy.leader())
    answer = _raw_answer(host, "/v2/keys/bench/000001")
    with _bare_server(answer) as bare:
        loads = take_turns(lab, {"argosy": host, "bare": bare}, "get.lua", 64)
    row = compare("v2 GET, c=64, against a bare uvloop + httptools server", loads, "bare", None)
    row.goal = "say how close"
    return [row]
