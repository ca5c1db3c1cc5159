"""64 watchers of one peer: how many events they get, and how long after the writer's answer."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

from .doors import PEER, compare, leaders
from .hosts import ROOT
from .lab import Lab
from .table import Row
from .wrk import Load

WATCHERS = 64
#: Writes per second, if the server can: each an event for all watchers, or for one of them.
WRITES_PER_S = 5_000
#: (argument of the child, words)
_KINDS = (("own", "each of a directory of its own"), ("shared", "all of one directory"))


def _turn(url: str, seconds: float, kind: str) -> Load:
    done = subprocess.run(
        [sys.executable, "-m", "bench.watch_child", url, str(WATCHERS), str(WRITES_PER_S), str(seconds), kind],
        cwd=ROOT, capture_output=True, text=True, timeout=seconds + 60, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the child failed"])[-1])
    load = Load(**json.loads(done.stdout))
    return replace(load, p99_ms=max(load.p99_ms, 0.01))  # an event may be there before the answer


def watch(lab: Lab) -> list[Row]:
    """64 recursive v2 streams at the leader while up to 5,000 writes a second are made there."""
    lab.need("etcd")
    urls = leaders(lab)
    rows = []
    for kind, words in _KINDS:
        loads: dict[str, list[Load]] = {name: [] for name in urls}
        for turn in range(lab.effort.few):
            for name in urls if turn % 2 == 0 else reversed(urls):
                loads[name].append(_turn(urls[name], lab.effort.watch_s, kind))
        work = f"{WATCHERS} v2 streams, {words}: events at {WRITES_PER_S:,} writes/s, if it can"
        row = compare(work, loads, PEER, None)
        row.note = ", ".join(filter(None, (_losses(name, turns) for name, turns in loads.items())))
        row.goal = "say it"
        rows.append(row)
    return rows


def _losses(name: str, turns: list[Load]) -> str:
    missing, ended = sum(turn.status_errors for turn in turns), sum(turn.socket_errors for turn in turns)
    if not missing and not ended:
        return ""
    return f"{name}: {missing:,} events or writes missing, {ended} of {WATCHERS * len(turns)} streams ended"
