"""Writes over gRPC: Debian's ``etcdctl check perf``, 500 clients for a minute, at both leaders in turn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from .lab import Lab
from .table import Row

#: What etcdctl calls 500 clients that try 8,000 writes a second, and how long it takes.
LOAD, CHECK_S_MAX = "l", 120.0


def _check(url: str) -> tuple[float, float]:
    """(writes a second, the slowest in ms)."""
    program = next(path for path in ("/usr/bin/etcdctl", shutil.which("etcdctl")) if path and os.access(path, os.X_OK))
    done = subprocess.run(
        [program, "--endpoints", url, "check", "perf", "--load", LOAD], env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True, text=True, timeout=CHECK_S_MAX, check=False,
    )  # fmt: skip
    rate = re.search(r"Throughput (?:is|too low:) (\d+) writes/s", done.stdout)
    slowest = re.search(r"[Ss]lowest request took (?:too long: )?([\d.]+)s", done.stdout)
    if rate is None or slowest is None:
        raise RuntimeError(f"etcdctl check perf said {done.stdout[-300:]!r}{done.stderr[-300:]!r}")
    return float(rate[1]), float(slowest[1]) * 1000


def puts(lab: Lab) -> list[Row]:
    """Writes over gRPC at the leader."""
    lab.need("etcd", "etcdctl")
    leader = lab.etcd.leader()
    assert leader is not None
    lab.say("etcdctl check perf, two minutes")
    theirs, their_slowest = _check(lab.etcd.url(leader))
    ours, our_slowest = _check(lab.argosy.url(lab.argosy.leader()))
    return [Row(
        "v3 Put over gRPC, 500 clients (etcdctl check perf)", f"{ours:,.0f}/s, slowest {our_slowest:.0f} ms",
        f"etcd {theirs:,.0f}/s, slowest {their_slowest:.0f} ms", f"{ours / theirs:.2f}x", "say it",
        data={"argosy_per_s": ours, "etcd_per_s": theirs, "argosy_slowest_ms": our_slowest, "etcd_slowest_ms": their_slowest},
    )]  # fmt: skip
