"""One machine with hundreds of units: how long until all run, and what the host does then."""

from __future__ import annotations

import time
from pathlib import Path

from .hosts import ArgosyCluster
from .idle import cpu_s
from .lab import Lab
from .table import Row

UNITS, _START_S, _IDLE_PERCENT = 500, 30.0, 3.0
_SLEEPER = "[Service]\nExecStart=/bin/sleep 1000000\n"
#: Seconds that the units have to start before the row is given up.
_PATIENCE_S = 200.0


def many(lab: Lab) -> list[Row]:
    """Process units on one machine, and the host process with them."""
    cluster = ArgosyCluster(lab.folder / "many", machines=1)
    try:
        cluster.start()
        file = {"name": "many@.service", "content": _SLEEPER, "path": "many@.service"}
        cluster.ask("unit.submit", files=[file], replace=True)
        begun = time.perf_counter()
        cluster.ask("unit.start", None, _PATIENCE_S, units=[f"many@{{1..{UNITS}}}"], within=_PATIENCE_S - 10)
        taken = time.perf_counter() - begun
        [pid] = cluster.pids()
        time.sleep(3.0)  # what follows the start is no idling
        before, begun = cpu_s(pid), time.perf_counter()
        time.sleep(lab.effort.idle_s)
        share = 100 * (cpu_s(pid) - before) / (time.perf_counter() - begun)
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    finally:
        cluster.stop()
    return [
        Row(
            f"{UNITS} process units on one machine", f"all run after {taken:.1f} s; then {share:.1f} % of a core, "
            f"{resident / 2**20:.0f} MiB", "-", "-", f"< {_START_S:g} s, < {_IDLE_PERCENT:g} %",
            taken < _START_S and share < _IDLE_PERCENT,
            data={"start_s": taken, "idle_percent": share, "resident_bytes": resident},
        )
    ]  # fmt: skip
