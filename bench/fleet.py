"""A fleet in one process: the real scheduler, machine agents, supervisors, store and Raft, under a simulated
network and clock.  ``make bench-fleet`` makes the table.

Three voters with in-memory disks, and machines without a vote; the workloads are simulated.
Times are real seconds of this one process, which does the work of every machine of the fleet.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.raft_peer import PeerSettings
from kernel.sim import Faults, SimMachine, World
from tests.sim.fleet import Fleet

from .facts import gather

UNIT = "[Service]\nExecStart=/bin/serve\n"
#: Units that one command of the operator starts.
BATCH = 10_000
#: Machines and units of the table, unless others are named.
SIZES = ((100, 10_000), (1_000, 10_000), (1_000, 100_000), (5_000, 100_000))
#: Real seconds after which a size is given up, with what it reached.
PATIENCE_S = 900.0
VOTERS = 3


@dataclass
class Result:
    """What one size gave; times in seconds."""

    machines: int
    units: int
    running: int
    first_s: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0
    last_s: float = 0.0
    per_s: float = 0.0
    virtual_last_s: float = 0.0
    log_entries: int = 0
    store_mib: float = 0.0
    wire_bytes_per_machine: float = 0.0
    rss_gib: float = 0.0
    bytes_per_unit: float = 0.0
    idle_entries: int = 0
    lost_machines: int = 0
    lost_units: int = 0
    again_real_s: float = 0.0
    again_virtual_s: float = 0.0
    doubled: int = 0
    global_machines: int = 0


class Stopwatch:
    """When each unit ran for the first time."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self.real: list[float] = []
        self.virtual: list[float] = []
        original = fleet.books.started
        seen: set[str] = set()

        def started(unit: str, machine: str, fence: int) -> None:
            original(unit, machine, fence)
            if unit not in seen:
                seen.add(unit)
                self.real.append(time.perf_counter())
                self.virtual.append(world.now)

        fleet.books.started = started  # type: ignore[method-assign]


class CountingWorld(World):
    """A world without a log of itself, which counts what goes over its wires."""

    wire_bytes = 0

    def carry(self, source: SimMachine, target: str, lane: int, frame: bytes) -> None:
        """A frame leaves a machine."""
        self.wire_bytes += len(frame)
        super().carry(source, target, lane, frame)

    def note(self, text: str) -> None:
        """Nobody replays a benchmark."""


def rss_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _leader(fleet: Fleet) -> Any:
    peers = (m.host.raft._mailbox.actor for m in fleet.machines[:VOTERS] if m.alive)
    return next(peer for peer in peers if peer.raft.role == 3)


def measure(machines: int, units: int, patience_s: float = PATIENCE_S) -> Result:
    """Start ``units`` on ``machines`` agents, look at the idle fleet, lose a tenth of it."""
    world = CountingWorld(1, Faults(delay_s_max=0.001, disk_s_max=0.0005))
    result = Result(machines, units, 0)
    with world:
        fleet = Fleet(1, VOTERS, world, agents=machines)
        fleet.settings = PeerSettings(segment_bytes=64 * 1024)
        watch = Stopwatch(world, fleet)
        fleet.start()
        _until(world, lambda: len(_alive(fleet)) == machines + VOTERS, patience_s)
        fleet_rss = rss_bytes()
        fleet.do("unit.submit", files=[{"name": "u@.service", "content": UNIT}])
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 50, 100)
        begun, virtual, bytes_before = time.perf_counter(), world.now, world.wire_bytes
        for first in range(0, units, BATCH):
            last = min(first + BATCH, units)
            fleet.do("unit.start", units=[f"u@{{{first}..{last - 1}}}"], no_block=True, seconds=600.0)
        _until(world, lambda: len(watch.real) >= units, patience_s - (time.perf_counter() - begun))
        leader = _leader(fleet)
        _until(world, lambda: leader.raft.log.last_index == leader.raft.log.applied, 30)
        took = sorted(moment - begun for moment in watch.real)
        result.running = len(took)
        if took:
            result.first_s, result.last_s = took[0], took[-1]
            result.p50_s, result.p95_s, result.p99_s = (took[int(len(took) * q)] for q in (0.5, 0.95, 0.99))
            result.per_s = len(took) / took[-1]
            result.virtual_last_s = watch.virtual[-1] - virtual
        result.log_entries = leader.raft.log.last_index
        result.store_mib = leader.store.size / 2**20
        result.wire_bytes_per_machine = (world.wire_bytes - bytes_before) / (machines + VOTERS)
        result.rss_gib = rss_bytes() / 2**30
        result.bytes_per_unit = (rss_bytes() - fleet_rss) / max(1, units)
        if result.running == units:
            _idle(world, fleet, result)
            _everywhere(world, fleet, result, patience_s)
            _lose(world, fleet, result, patience_s)
    return result


def _until(world: World, condition: Any, patience_s: float) -> bool:
    """Run until it holds; looked at ten times a virtual second, for it may be costly."""
    deadline = time.perf_counter() + patience_s
    while not condition():
        if time.perf_counter() > deadline:
            return False
        world.run(0.1)
    return True


def _alive(fleet: Fleet) -> Any:
    return fleet.machines[0].host.control._mailbox.actor.items(b"/_argosy/alive/")


def _idle(world: World, fleet: Fleet, result: Result) -> None:
    """What an idle fleet writes in half a minute."""
    world.run(10.0)
    leader = _leader(fleet)
    before = leader.raft.log.last_index
    world.run(30.0)
    result.idle_entries = leader.raft.log.last_index - before


def _everywhere(world: World, fleet: Fleet, result: Result, patience_s: float) -> None:
    """A global unit, on every machine."""
    fleet.books.everywhere.add("everywhere.service")
    fleet.do("unit.submit", files=[{"name": "everywhere.service", "content": UNIT + "[X-Fleet]\nGlobal=yes\n"}])
    fleet.do("unit.start", units=["everywhere"], no_block=True)
    everybody = len(fleet.machines)
    _until(world, lambda: len(fleet.books.running.get("everywhere.service", ())) == everybody, patience_s)
    result.global_machines = len(fleet.books.running["everywhere.service"])


def _lose(world: World, fleet: Fleet, result: Result, patience_s: float) -> None:
    """A tenth of the machines lose power at once."""
    victims = fleet.machines[VOTERS :: 10]
    lost = sum(len(victim.place.shims) for victim in victims)  # type: ignore[attr-defined]
    for victim in victims:
        victim.crash()
    running = fleet.books.running
    down = {unit for unit, where in running.items() if not where}
    begun, virtual = time.perf_counter(), world.now
    _until(world, lambda: not any(not running[unit] for unit in down), patience_s)
    result.lost_machines, result.lost_units = len(victims), lost
    result.again_real_s, result.again_virtual_s = time.perf_counter() - begun, world.now - virtual
    result.doubled = len(fleet.books.violations) + sum(len(where) > 1 for unit, where in running.items() if unit not in fleet.books.everywhere)


COLUMNS = (
    ("machines", "machines", "{:,}"), ("units", "units", "{:,}"), ("running", "run", "{:,}"), ("first_s", "first s", "{:.1f}"),
    ("p50_s", "p50 s", "{:.1f}"), ("p95_s", "p95 s", "{:.1f}"), ("p99_s", "p99 s", "{:.1f}"), ("last_s", "last s", "{:.1f}"),
    ("per_s", "units/s", "{:.0f}"), ("virtual_last_s", "virtual s", "{:.1f}"), ("log_entries", "log entries", "{:,}"),
    ("store_mib", "store MiB", "{:.0f}"), ("wire_bytes_per_machine", "wire B/machine", "{:,.0f}"), ("rss_gib", "RSS GiB", "{:.1f}"),
    ("bytes_per_unit", "B/unit", "{:,.0f}"), ("idle_entries", "idle entries", "{}"), ("global_machines", "global on", "{:,}"), ("lost_units", "lost units", "{:,}"),
    ("again_real_s", "again s", "{:.1f}"), ("again_virtual_s", "again virtual s", "{:.1f}"), ("doubled", "doubled", "{}"),
)  # fmt: skip


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    head = "| " + " | ".join(title for _, title, _ in COLUMNS) + " |"
    rows = ["| " + " | ".join(form.format(result[key]) for key, _, form in COLUMNS) + " |" for result in results]
    return "\n".join([head, "|" + "---|" * len(COLUMNS), *rows])


def keep(results: list[dict[str, Any]]) -> None:
    """Beside the results of the other benchmarks, as JSON and Markdown."""
    name = time.strftime("fleet-%Y-%m-%dT%H%M", time.gmtime())
    folder = Path(__file__).parent / "results"
    known = gather(folder, quick=False)
    (folder / f"{name}.json").write_text(json.dumps({"facts": known, "fleet": results}, indent=1) + "\n")
    machine = known["machine"]
    about = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}; one process, one core of it."
    (folder / f"{name}.md").write_text(f"# A simulated fleet with the real code\n\n{about}\n\n{table(results)}\n")


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--size", action="append", help="MACHINESxUNITS, repeatable")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="real seconds for one size")
    parser.add_argument("--keep", action="store_true", help="keep the results beside those of the other benchmarks")
    options = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    sizes = [tuple(map(int, size.split("x"))) for size in options.size or ()] or list(SIZES)
    results = []
    for machines, units in sizes:
        result = measure(machines, units, options.patience)
        results.append(asdict(result))
        print(table(results[-1:]), flush=True)
        gc.unfreeze()
        gc.collect()
    print(table(results))
    if options.keep:
        keep(results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
