"""A machine loses its power: how long until its units run and are healthy elsewhere."""

from __future__ import annotations

import sys
import time
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
    """In turn a follower's machine and the leader's, whose loss also costs an election."""
    cluster = lab.argosy
    units = [f"server@{n}" for n in range(1, UNITS + 1)]
    content = _SERVER.format(python=sys.executable, program=ROOT / "bench" / "server.py")
    file = {"name": "server@.service", "content": content, "path": "server@.service"}
    cluster.ask("unit.submit", files=[file], replace=True)
    taken: dict[str, list[float]] = {"follower": [], "leader": []}
    for turn in range(lab.effort.losses):
        cluster.await_whole()
        cluster.ask("unit.start", None, 70.0, units=units, within=60.0)  # spread over all machines
        kind = "leader" if turn % 2 else "follower"
        taken[kind].append(_lose_one(lab, (cluster.leader() + (kind == "follower")) % MACHINES))
        cluster.ask("unit.unload", None, 70.0, units=units, within=60.0)
    cluster.ask("unit.destroy", None, 70.0, units=units, within=60.0)
    both = taken["follower"] + taken["leader"]
    parts = ", ".join(f"a {kind}'s {median(times):.2f} s" for kind, times in taken.items() if times)
    return [
        Row(
            "machine lost -> its units healthy elsewhere",
            f"p50 {median(both):.2f} s, max {max(both):.2f} s ({parts})",
            "SwarmKit 8-16 s, Nomad 10-30 s (published)", "-", f"p99 <= {_GOAL_S:g} s",
            max(both) <= _GOAL_S, data={"seconds": taken},
        )
    ]  # fmt: skip


def _healthy(row: dict[str, Any]) -> bool:
    return bool(row["active"] == "active" and row["health"] == "passing")


def _all_healthy(lab: Lab) -> list[dict[str, Any]]:
    """The units, once all of them are; before that nothing."""
    rows: list[dict[str, Any]] = lab.argosy.ask("unit.list")
    return rows if all(map(_healthy, rows)) else []


def _lose_one(lab: Lab, victim: int) -> float:
    """Power off, wait for its units elsewhere, power on; seconds of the first two."""
    cluster = lab.argosy
    rows = until("all units healthy", partial(_all_healthy, lab))
    name = f"m{victim + 1}"
    gone = {row["unit"] for row in rows if row["machine"] == name}
    assert gone, f"{name} has no unit"
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
    return taken
