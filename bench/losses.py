"""A machine loses its power: how long until its units run and are healthy elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from functools import partial
from typing import Any

from .hosts import MACHINES, ROOT
from .lab import Lab, median
from .table import Row
from .waiting import until

UNITS = 6
_GOAL_S = 5.0
_SERVER = """
[Service]
ExecStart={python} -S -E {program}
Restart=always
RestartSec=200ms
TimeoutStopSec=2s

[X-Argosy]
Port=http
HealthCheck=http://:PORT/
HealthInterval=500ms
HealthTimeout=2s
"""


def lost(lab: Lab) -> list[Row]:
    """The machine with most units, a few times; what is measured ends with the last unit healthy."""
    cluster = lab.argosy
    units = [f"server@{n}" for n in range(1, UNITS + 1)]
    content = _SERVER.format(python=sys.executable, program=ROOT / "bench" / "server.py")
    file = {"name": "server@.service", "content": content, "path": "server@.service"}
    cluster.ask("unit.submit", files=[file], replace=True)
    cluster.ask("unit.start", None, 70.0, units=units, within=60.0)
    taken: list[float] = []
    moved: list[int] = []
    for _ in range(lab.effort.losses):
        seconds, count = _lose_one(lab)
        taken.append(seconds)
        moved.append(count)
    cluster.ask("unit.destroy", None, 70.0, units=units, within=60.0)
    return [
        Row(
            "machine lost -> its units healthy elsewhere",
            f"p50 {median(taken):.2f} s, max {max(taken):.2f} s ({min(moved)}-{max(moved)} units)",
            "SwarmKit 8-16 s, Nomad 10-30 s (published)", "-", f"p99 <= {_GOAL_S:g} s",
            max(taken) <= _GOAL_S, data={"seconds": taken, "units": moved},
        )
    ]  # fmt: skip


def _healthy(row: dict[str, Any]) -> bool:
    return bool(row["active"] == "active" and row["health"] == "passing")


def _all_healthy(lab: Lab) -> list[dict[str, Any]]:
    """The units, once all of them are; before that nothing."""
    rows: list[dict[str, Any]] = lab.argosy.ask("unit.list")
    return rows if all(map(_healthy, rows)) else []


def _lose_one(lab: Lab) -> tuple[float, int]:
    cluster = lab.argosy
    cluster.await_whole()
    rows = until("all units healthy", partial(_all_healthy, lab))
    (name, count), *_ = Counter(row["machine"] for row in rows).most_common()
    victim = int(name[1:]) - 1
    gone = {row["unit"] for row in rows if row["machine"] == name}
    session = cluster.session((victim + 1) % MACHINES)
    session.try_ask("unit.list", 5.0)

    def elsewhere() -> bool:
        now = {row["unit"]: row for row in session.try_ask("unit.list", 2.0)}
        return all(now[u]["machine"] not in ("", name) and _healthy(now[u]) for u in gone)

    begun = time.perf_counter()
    cluster.power_off(victim)
    until(f"the units of {name} elsewhere", elsewhere)
    taken = time.perf_counter() - begun
    session.client().close()
    cluster.boot(victim)
    cluster.await_whole()
    return taken, count
