"""Run seeds of whole hosts: ``python -m tests.sim.run_fleet --size 3 --seeds 0:500``.

Exits with 1 and the failing seeds if a law is broken; ``--seed N`` prints the whole report.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys

from rich.console import Console
from rich.progress import Progress

from .fleet import FleetFailure, play
from .run import PLAIN_EVERY, _seeds


def judge(job: tuple[int, int, int]) -> tuple[int, str]:
    """(seed, report) of one run; the report is empty when all is well."""
    seed, size, agents = job
    try:
        play(seed, size, agents=agents)
        return seed, ""
    except FleetFailure as failure:
        return seed, str(failure)


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run_fleet", description="Run whole hosts.")
    parser.add_argument("--size", type=int, default=3, choices=[3, 5], help="machines")
    parser.add_argument("--agents", type=int, default=0, help="machines without a vote besides")
    parser.add_argument("--seeds", type=_seeds, default=range(100), help="FIRST:END, END not run")
    parser.add_argument("--seed", type=int, help="run this one seed and print its whole report")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to run seeds in")
    options = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    seeds = [options.seed] if options.seed is not None else list(options.seeds)
    jobs = [(seed, options.size, options.agents) for seed in seeds]
    console = Console()
    failed: dict[int, str] = {}
    with multiprocessing.get_context("fork").Pool(min(options.jobs, len(jobs))) as pool:
        results = pool.imap_unordered(judge, jobs)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            for count, (seed, report) in enumerate(progress.track(results, len(jobs), description="seeds"), 1):
                if report:
                    failed[seed] = report
                if not console.is_terminal and count % PLAIN_EVERY == 0:
                    print(f"{count} of {len(jobs)} seeds run, {len(failed)} failed", flush=True)
    for _, report in sorted(failed.items()):
        print(report if options.seed is not None else report.splitlines()[0])
    print(f"{len(jobs)} seeds of {options.size} machines{f' and {options.agents} agents' if options.agents else ''}, {len(failed)} failed")
    if failed:
        print("failing seeds: " + " ".join(map(str, sorted(failed))))
    return 1 if failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.run_fleet", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
