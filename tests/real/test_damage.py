"""Log files that a crash or a bad disk left behind: torn tails are cut, damage is named."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from brain import wal

from ..waiting import wait_until
from .cluster import Cluster

_RECORD = struct.Struct("<II")  # length, checksum: the format is described in brain/wal.py


def _records(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of every record of a segment."""
    out = []
    at = wal.HEADER_BYTES
    while at + _RECORD.size <= len(data):
        length, _ = _RECORD.unpack_from(data, at)
        if not length:
            break
        out.append((at, at + _RECORD.size + length))
        at = out[-1][1]
    return out


def _segment(cluster: Cluster, machine: str) -> Path:
    """The segment that a machine writes to."""
    return sorted((cluster.dir / machine / "raft").glob("wal-*.log"))[-1]


#: How one more batch, which was never acknowledged, may lie on the disk after a power cut: which
#: of its sectors were written, and whether the file's new length was.
TEARS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "only the first sectors": lambda sectors: [s if n < 3 else bytes(len(s)) for n, s in enumerate(sectors)],
    "all but the first sector": lambda sectors: [bytes(len(sectors[0])), *sectors[1:]],
    "a hole in the middle": lambda sectors: [s if n != 4 else bytes(len(s)) for n, s in enumerate(sectors)],
    "the file ends in it": lambda sectors: sectors[:4],
}


def _torn(data: bytes, tear: str) -> bytes:
    """A segment with one more batch, of which a power cut kept a part."""
    end = _records(data)[-1][1]
    batch = wal.batch(end, end, None, 1_000_000, [(9, 1, b"x" * 4000)])
    cuts = [0, *range(wal.SECTOR - end % wal.SECTOR, len(batch), wal.SECTOR), len(batch)]
    sectors = [batch[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    kept = b"".join(TEARS[tear](sectors))
    assert kept != batch
    rest = data[end + len(kept) :] if len(kept) == len(batch) else b""
    return data[:end] + kept + rest


@pytest.mark.parametrize("tear", TEARS)
def test_torn_tail_is_cut(cluster: Cluster, tear: str) -> None:
    """A host whose last write was torn by a power cut starts, catches up, and misses nothing."""
    cluster.await_whole()
    leader = cluster.leader()
    victim = next(name for name in cluster.names() if name != leader)
    number = int(victim[1:])
    assert cluster.http(1, "PUT", "/v2/keys/torn/before", {"value": tear}).status in (200, 201)
    assert cluster.http(number, "GET", "/v2/keys/torn/before?quorum=true").status == 200  # it has it, too
    cluster.local("kill", victim)
    segment = _segment(cluster, victim)
    segment.write_bytes(_torn(segment.read_bytes(), tear))
    assert cluster.http(int(leader[1:]), "PUT", "/v2/keys/torn/meanwhile", {"value": tear}).status in (200, 201)
    cluster.local("boot", victim)
    wait_until("the host to be up", lambda: cluster.http(number, "GET", "/health").status == 200)
    for key in ("before", "meanwhile"):
        reply = cluster.http(number, "GET", f"/v2/keys/torn/{key}?quorum=true")
        assert reply.json()["node"]["value"] == tear


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def test_flipped_bit_in_the_log_refuses_to_start(cluster: Cluster) -> None:
    """Damage where the log was durable: the host ends with the file and the place, and stays away;
    the others serve on; with the file made whole it is a member again."""
    cluster.await_whole()
    for number in range(8):
        cluster.http(1, "PUT", f"/v2/keys/flip/{number}", {"value": str(number) * 200})
    leader = cluster.leader()
    victim = next(name for name in cluster.names() if name != leader)
    assert cluster.http(int(victim[1:]), "GET", "/v2/keys/flip/7?quorum=true").status == 200
    cluster.local("kill", victim)
    segment = _segment(cluster, victim)
    whole = segment.read_bytes()
    records = _records(whole)
    start, end = max(records[: len(records) // 2], key=lambda r: r[1] - r[0])
    segment.write_bytes(_flip(whole, (start + end) // 2))
    log = cluster.dir / victim / "host.log"
    before = len(log.read_text())
    cluster.local("boot", victim)
    wait_until("the host to end", lambda: "ended:" in log.read_text()[before:])
    said = next(line for line in log.read_text()[before:].splitlines() if "ended:" in line)
    assert segment.name in said
    assert f"offset {start}" in said
    assert "Traceback" not in log.read_text()[before:]
    assert cluster.http(int(leader[1:]), "PUT", "/v2/keys/flip/9", {"value": "on"}).status in (200, 201)
    wait_until("the machine to count as lost", lambda: cluster.states()[victim] == "lost")
    cluster.local("kill", victim)
    segment.write_bytes(whole)
    cluster.local("boot", victim)
    cluster.await_whole()
    number = int(victim[1:])
    assert cluster.http(number, "GET", "/v2/keys/flip/9?quorum=true").json()["node"]["value"] == "on"


def test_flipped_bit_in_a_snapshot_refuses_to_start(cluster: Cluster) -> None:
    """The same for a snapshot: never half a store."""
    cluster.await_whole()
    leader = cluster.leader()
    victim = next(name for name in cluster.names() if name != leader)
    cluster.local("kill", victim)
    snapshot = sorted(p for p in (cluster.dir / victim / "raft").iterdir() if "wal" not in p.name)[-1]
    whole = snapshot.read_bytes()
    snapshot.write_bytes(_flip(whole, len(whole) // 2))
    log = cluster.dir / victim / "host.log"
    before = len(log.read_text())
    cluster.local("boot", victim)
    wait_until("the host to end", lambda: "ended:" in log.read_text()[before:])
    said = next(line for line in log.read_text()[before:].splitlines() if "ended:" in line)
    assert snapshot.name in said
    cluster.local("kill", victim)
    snapshot.write_bytes(whole)
    cluster.local("boot", victim)
    cluster.await_whole()
