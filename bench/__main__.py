"""The command: ``python -m bench [--quick] [--only NAME]...``.

Prints one table and keeps it in ``bench/results/``.  A row that cannot be measured says why
and fails the command; one that misses its goal does not.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from rich.console import Console

from . import (
    actors,
    alone,
    containers,
    crowd,
    dicts,
    doors,
    facts,
    failover,
    grpc_puts,
    idle,
    large,
    locks,
    losses,
    placing,
    shims,
    table,
    units,
    updates,
    watches,
)
from .lab import FULL, QUICK, Lab, MissingError
from .table import Row

Work = Callable[[Lab], list[Row]]
#: In this order: what needs quiet first, what kills last.
WORKS: dict[str, Work] = {
    "tell": actors.tell,
    "start": actors.start,
    "shim": shims.shim,
    "placement": placing.placing,
    "put64": doors.put64,
    "put256": doors.put256,
    "put1": doors.put1,
    "get64": doors.get64,
    "quorum64": doors.quorum64,
    "grpc": grpc_puts.puts,
    "ceiling": doors.ceiling,
    "watch": watches.watch,
    "pysyncobj": dicts.dicts,
    "large": large.large,
    "snapshot": alone.snapshot,
    "restart": alone.restart,
    "units": units.many,
    "containers": containers.containers,
    "lock": locks.handover,
    "rolling": updates.rolling,
    "image": updates.images,
    "idle": idle.idle,
    "failover": failover.failover,
    "lost": losses.lost,
    "crowd": crowd.crowd,
}
#: Seconds after which the whole command gives up, whatever hangs.
_LIMIT_S = {True: 900, False: 5400}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short runs of everything, about 5 minutes")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="rows whose name begins so; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="name the rows and end")
    parser.add_argument("--no-write", action="store_true", help="keep nothing in bench/results")
    return parser.parse_args()


def _chosen(only: list[str]) -> dict[str, Work]:
    unknown = [name for name in only if not any(known.startswith(name) for known in WORKS)]
    if unknown:
        print(f"no row begins with {', '.join(unknown)}: {', '.join(WORKS)}", file=sys.stderr)
        raise SystemExit(2)
    return {k: work for k, work in WORKS.items() if not only or any(k.startswith(name) for name in only)}


def _out_of_time(*_: object) -> NoReturn:
    raise TimeoutError("the benchmark took longer than its limit")


def _ended(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _measure(name: str, work: Work, lab: Lab) -> list[Row]:
    """A work's rows; what goes wrong becomes a row that says so."""
    try:
        return work(lab)
    except MissingError as error:
        return [Row(name, "not measured", note=str(error))]
    except Exception as error:  # noqa: BLE001 - the others still have a right to be measured
        return [Row(name, "failed", note=f"{type(error).__name__}: {error}")]


def main() -> int:
    """Measure, show, keep."""
    arguments = _arguments()
    works = _chosen(arguments.only)
    if arguments.list:
        for name, work in works.items():
            print(f"{name:10} {(work.__doc__ or '').splitlines()[0]}")
        return 0
    console, progress = Console(), Console(stderr=True, highlight=False)
    begun, started = datetime.now().astimezone(), time.monotonic()

    def say(text: str) -> None:
        progress.print(f"{time.monotonic() - started:6.0f} s  {text}", markup=False)

    signal.signal(signal.SIGALRM, _out_of_time)
    signal.signal(signal.SIGTERM, _ended)
    signal.alarm(_LIMIT_S[arguments.quick])
    rows: list[Row] = []
    known: dict[str, object] = {}
    try:
        with Lab(QUICK if arguments.quick else FULL, say) as lab:
            known = facts.gather(lab.folder, arguments.quick)
            for name, work in works.items():
                fresh = _measure(name, work, lab)
                rows += fresh
                for row in fresh:
                    say(f"{row.work}: {row.argosy} | {row.peer} | {row.ratio} {row.note}")
    except KeyboardInterrupt:
        say("interrupted; what was measured so far:")
    finally:
        signal.alarm(0)
    known["seconds in all"] = round(time.monotonic() - started)
    table.show(rows, console)
    if rows and not arguments.no_write:
        for path in table.keep(rows, known, begun):
            say(f"kept in {path.relative_to(table.RESULTS.parent.parent)}")
    return 1 if any(row.argosy in ("failed", "not measured") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
