"""What a cluster does when nobody asks anything of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .hosts import MACHINES
from .lab import Lab
from .table import Row
from .waiting import until

UNITS = 6
_SLEEPER = "[Service]\nExecStart=/bin/sleep 1000000\n"
_TICKS_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def idle(lab: Lab) -> list[Row]:
    """Log entries and CPU of three hosts with six units, beside three etcd members."""
    cluster = lab.argosy
    units = [f"idle@{n}" for n in range(1, UNITS + 1)]
    file = {"name": "idle@.service", "content": _SLEEPER, "path": "idle@.service"}
    cluster.ask("unit.submit", files=[file], replace=True)
    cluster.ask("unit.start", None, 40.0, units=units, within=30.0)
    peer = None
    try:
        lab.need("etcd")
        peer = lab.etcd
    except Exception as error:  # noqa: BLE001 - the row stands without its peer
        lab.say(f"idle: without etcd ({error})")
    _settle(lab)
    ours, entries, theirs, peer_entries = _watch(lab, peer is not None)
    cluster.ask("unit.destroy", None, 40.0, units=units, within=30.0)
    seconds = lab.effort.idle_s
    return [
        Row(
            f"idle {seconds:g} s: {MACHINES} machines, {UNITS} units",
            f"{entries} log entries, {max(ours):.1f} % of a core per host",
            f"etcd {peer_entries} entries, {max(theirs):.1f} % each" if theirs else "-",
            f"CPU {max(ours) / max(theirs):.2f}x" if theirs and max(theirs) > 0 else "-",
            "0 entries, < 2 % of a core", entries == 0 and max(ours) < 2.0,
            data={"argosy_cpu_percent": ours, "argosy_entries": entries, "etcd_cpu_percent": theirs},
        )
    ]  # fmt: skip


def _committed(lab: Lab) -> int:
    return int(max(lab.argosy.metric(n, "argosy_raft_commit_index") for n in range(MACHINES)))


def _settle(lab: Lab) -> None:
    """Until two looks at the log, a second apart, find the same."""

    def quiet() -> bool:
        before = _committed(lab)
        time.sleep(1.0)
        return _committed(lab) == before

    until("a quiet cluster", quiet)


def _watch(lab: Lab, with_peer: bool) -> tuple[list[float], int, list[float], int]:
    pids = lab.argosy.pids()
    peer_pids = lab.etcd.pids() if with_peer else []
    entries = _committed(lab)
    peer_entries = lab.etcd.log_index() if with_peer else 0
    before = [cpu_s(pid) for pid in pids + peer_pids]
    begun = time.perf_counter()
    time.sleep(lab.effort.idle_s)  # the measurement itself
    taken = time.perf_counter() - begun
    shares = [100 * (cpu_s(p) - b) / taken for p, b in zip(pids + peer_pids, before, strict=True)]
    shares = [round(share, 2) for share in shares]
    more = lab.etcd.log_index() - peer_entries if with_peer else 0
    return shares[: len(pids)], _committed(lab) - entries, shares[len(pids) :], more
