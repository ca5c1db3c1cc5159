"""The shim of a unit, with its guard: how long it takes to start, and what it weighs while its unit runs."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from runners.processes import Processes, kill_marked
from runners.shim.facts import parent_of

from .lab import Lab, median, percentile
from .table import Row

_PATIENCE_S = 20.0


def _weight(pid: int) -> tuple[int, int]:
    """(resident, its share of it) memory in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()

    def sum_of(*names: str) -> int:
        return sum(int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0]) for name in names)

    return sum_of("Rss"), sum_of("Pss")


async def _one(processes: Processes, unit: str) -> tuple[float, int, int]:
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def the(kind: str) -> dict[str, Any]:
        while True:
            event = await asyncio.wait_for(events.get(), _PATIENCE_S)
            if event["ev"] == kind:
                return event
            assert event["ev"] != "lost", event

    begun = time.perf_counter()
    handle = processes.open(unit, False, events.put_nowait)
    try:
        hello = await the("hello")
        taken = time.perf_counter() - begun
        handle.run("main", ["/bin/sleep", "1000"], {"PATH": "/usr/bin:/bin"}, True)
        await the("started")
        resident, share = (sum(both) for both in zip(*map(_weight, (hello["me"]["pid"], parent_of(hello["me"]["pid"]))), strict=True))
        handle.quit()
        await the("lost")
        return taken, resident, share
    finally:
        handle.close()


async def _all(base: Path, count: int) -> list[tuple[float, int, int]]:
    processes = Processes(asyncio.get_running_loop(), base)
    return [await _one(processes, f"bench@{n}.service") for n in range(count)]


def _empty_python() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True, timeout=30)
    return time.perf_counter() - begun


def shim(lab: Lab) -> list[Row]:
    """Through the very port that the hosts use, one after another."""
    base = lab.folder / "shims"
    base.mkdir()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seen = runner.run(_all(base, lab.effort.shims))
    finally:
        kill_marked(str(base))
    bare = [_empty_python() for _ in range(lab.effort.shims)]
    taken = [seconds for seconds, _, _ in seen]
    resident, share = median([r for _, r, _ in seen]), median([s for _, _, s in seen])
    return [
        Row(
            "shim of a unit: start, memory",
            f"{median(taken) * 1000:.0f} ms (p99 {percentile(taken, 0.99) * 1000:.0f}), "
            f"{share / 1024:.1f} MiB as its share, {resident / 1024:.1f} MiB resident",
            f"an empty Python: {median(bare) * 1000:.0f} ms", f"{median(taken) / median(bare):.2f}x",
            "say it", None, data={"seconds": taken, "python_seconds": bare, "share_kib": share},
        )
    ]  # fmt: skip
