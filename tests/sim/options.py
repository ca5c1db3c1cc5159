"""What one simulated run is made of: drawn from its seed, so that runs differ in kind.

Swarm testing: a run in which every fault happens all the time finds less than many runs
that each have some of them.  First it is drawn which faults exist at all, then how often.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields

from actors.raft_peer import PeerSettings
from brain.raft import Settings
from kernel.sim import Faults

#: Faults that happen at moments; the others are rates of the network, the disks and the clocks.
MOMENTS = (
    "crash", "blackout", "kill", "pause", "partition", "one_way", "reset", "transfer", "member",
)  # fmt: skip
#: What clients do, with the usual weight of each.
WORK = {
    "put": 24, "get": 20, "cas": 14, "delete": 6, "peek": 6, "fenced": 8, "lease": 10, "lock": 12,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """Everything about a run that its seed decides."""

    #: virtual seconds with faults
    seconds: float = 12.0
    clients: int = 5
    keys: int = 5
    #: mean virtual seconds between two operations of one client
    think_s: float = 0.04
    work: dict[str, int] = field(default_factory=lambda: dict(WORK))
    #: mean virtual seconds between two faults of a kind; a kind that is not here never happens
    moments: dict[str, float] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    peer: PeerSettings = field(default_factory=PeerSettings)
    #: bytes of one piece of a snapshot on its way to a peer
    chunk_bytes: int = 256 * 1024
    #: whether a power cut may come between any two operations of a disk
    stepwise_disk: bool = False
    #: part of the batches of a stepwise disk that fail
    disk_errors: float = 0.0
    #: whether a minority stays broken while the others must already make progress
    minority_stays_broken: bool = False

    def __str__(self) -> str:
        lines = []
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v:g}" for k, v in value.items()) or "none"
            lines.append(f"  {one.name}: {value}")
        return "\n".join(lines)


def draw(seed: int, size: int) -> Options:
    """The options of a seed."""
    rng = random.Random(f"options {size} {seed}")

    def maybe(chance: float, low: float, high: float) -> float:
        return rng.uniform(low, high) if rng.random() < chance else 0.0

    moments = {}
    usual = {
        "crash": (0.6, 0.8, 5.0), "blackout": (0.15, 4.0, 10.0), "kill": (0.3, 1.0, 6.0),
        "pause": (0.3, 1.0, 6.0), "partition": (0.5, 1.0, 5.0), "one_way": (0.3, 1.0, 6.0),
        "reset": (0.3, 0.5, 4.0), "transfer": (0.3, 0.5, 5.0),
        "member": (0.3, 0.3, 2.0),
    }  # fmt: skip
    for kind in MOMENTS:
        rate = maybe(*usual[kind])
        if rate:
            moments[kind] = rate
    faults = Faults(
        loss=maybe(0.4, 0.005, 0.12),
        duplicate=maybe(0.4, 0.005, 0.2),
        reorder=maybe(0.4, 0.01, 0.4),
        delay_s_max=rng.choice([0.001, 0.005, 0.02, 0.1]),
        disk_s_max=rng.choice([0.0005, 0.002, 0.01, 0.05]),
        disk_stall=maybe(0.3, 0.002, 0.03),
        disk_stall_s_max=rng.uniform(0.2, 2.5),
        disk_full=maybe(0.2, 0.01, 0.2),
        clock_rate_spread=maybe(0.4, 0.001, 0.02),
        clock_offset_s_max=rng.choice([0.0, 0.0, 3.0, 60.0]),
    )
    heartbeat = rng.choice([1, 2])
    peer = PeerSettings(
        raft=Settings(
            heartbeat_ticks=heartbeat,
            election_ticks=rng.randint(5 * heartbeat, 12),
            append_bytes_max=rng.choice([1, 300, 4_000, 512 * 1024]),
            inflight_appends_max=rng.choice([1, 2, 8]),
            uncommitted_bytes_max=rng.choice([2_000, 64 * 1024 * 1024]),
            apply_bytes_max=rng.choice([1, 500, 4 * 1024 * 1024]),
        ),
        snapshot_entries=rng.choice([5, 10, 30, 100]),
        trailing_entries=rng.choice([0, 0, 5, 25]),
        segment_bytes=rng.choice([1_024, 4_096, 16_384]),
    )
    work = {kind: weight for kind, weight in WORK.items() if rng.random() < 0.85}
    work.setdefault("put", WORK["put"])
    return Options(
        seconds=rng.uniform(8.0, 16.0),
        clients=rng.choice([3, 5, 5, 7]),
        keys=rng.randint(3, 6),
        think_s=rng.choice([0.01, 0.03, 0.05, 0.1]),
        work=work,
        moments=moments,
        faults=faults,
        peer=peer,
        chunk_bytes=rng.choice([700, 5_000, 256 * 1024]),
        stepwise_disk=rng.random() < 0.6,
        disk_errors=maybe(0.25, 0.002, 0.02),
        minority_stays_broken=rng.random() < 0.5 and "member" not in moments,
    )
