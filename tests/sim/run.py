"""Run seeds from the command line: ``python -m tests.sim.run --size 3 --seeds 0:500``.

Exits with 1, and a report for each failing seed, if a run breaks a promise.  One seed
(``--seed N``) is run with its whole report, which is how a failure is replayed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from brain.raft import Raft

from .cluster import Outcome, SimFailure, run_seed
from .mutants import MUTANTS
from .options import draw

#: Characters of a finding that are shown as it is found.
LINE = 160
#: Seeds between two lines of progress when there is no terminal.
PLAIN_EVERY = 50


@dataclass(frozen=True, slots=True)
class Job:
    """One seed to run."""

    seed: int
    size: int
    mutant: str
    white_box: bool
    twice: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What became of it; ``report`` is empty when all is well."""

    seed: int
    report: str
    outcome: Outcome | None


def run_job(job: Job) -> Result:
    """Run one seed (in a worker process); with ``twice``, demand the same run again."""
    raft_class = MUTANTS[job.mutant] if job.mutant else Raft
    try:
        outcome = run_seed(job.seed, job.size, raft_class, job.white_box)
        if job.twice:
            again = run_seed(job.seed, job.size, raft_class, job.white_box)
            if again != outcome:
                return Result(job.seed, f"two runs differ:\n{outcome}\n{again}", outcome)
        return Result(job.seed, "", outcome)
    except SimFailure as failure:
        return Result(job.seed, str(failure), None)


def run_jobs(jobs: list[Job], processes: int) -> Iterator[Result]:
    """Results as they come, from this process or from a pool."""
    if processes <= 1 or len(jobs) == 1:
        yield from map(run_job, jobs)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap_unordered(run_job, jobs)


def _seeds(text: str) -> range:
    first, _, end = text.partition(":")
    if not first.isdigit() or not end.isdigit() or int(first) >= int(end):
        raise argparse.ArgumentTypeError("seeds: FIRST:END, for example 0:500 (END is not run)")
    return range(int(first), int(end))


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.run", description="Run the brain in the simulator."
    )
    parser.add_argument("--size", type=int, default=3, choices=[3, 5], help="machines")
    parser.add_argument("--seeds", type=_seeds, default=range(100), help="FIRST:END, END not run")
    parser.add_argument("--seed", type=int, help="run this one seed and print its whole report")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], help="run a planted bug")
    parser.add_argument("--jobs", type=int, default=1, help="processes to run seeds in")
    parser.add_argument("--twice", action="store_true", help="run each seed twice and compare")
    parser.add_argument(
        "--black-box", action="store_true", help="judge only what clients see and what is committed"
    )
    return parser.parse_args(argv)


def _collect(jobs: list[Job], processes: int, console: Console) -> list[Result]:
    """Run all; show progress as a bar on a terminal, as lines otherwise."""
    results: list[Result] = []
    failed = 0

    def note(result: Result) -> None:
        nonlocal failed
        results.append(result)
        if result.report:
            failed += 1

    if not console.is_terminal:
        for result in run_jobs(jobs, processes):
            note(result)
            if result.report:
                print(f"seed {result.seed} failed: {_finding(result.report)[:LINE]}", flush=True)
            if len(results) % PLAIN_EVERY == 0:
                print(f"{len(results)} of {len(jobs)} seeds run, {failed} failed", flush=True)
        return results
    columns = (
        TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("seeds", total=len(jobs), failed=0)
        for result in run_jobs(jobs, processes):
            note(result)
            progress.update(task, advance=1, failed=failed)
    return results


def _finding(report: str) -> str:
    """The line of a report that says what is wrong."""
    lines = report.splitlines()
    return lines[lines.index("") + 1] if "" in lines else lines[0]


def _print_report(results: list[Result], whole: bool) -> None:
    for result in sorted(results, key=lambda r: r.seed):
        if not result.report:
            continue
        lines = result.report.splitlines()
        if not whole:  # the world's log only for a single seed
            lines = lines[lines.index("") + 1 :] if "" in lines else lines
        print("\n".join(lines), end="\n\n")


def main(argv: list[str]) -> int:
    """The command; returns its exit status."""
    options = _arguments(argv)
    seeds = [options.seed] if options.seed is not None else list(options.seeds)
    jobs = [
        Job(seed, options.size, options.mutant, not options.black_box, options.twice)
        for seed in seeds
    ]
    results = _collect(jobs, options.jobs, Console())
    _print_report(results, whole=options.seed is not None)
    good = [r.outcome for r in results if not r.report and r.outcome is not None]
    failing = sorted(r.seed for r in results if r.report)
    if options.seed is not None and good:
        print(f"{draw(options.seed, options.size)}\n{good[0]}")
    print(
        f"{len(results)} seeds of size {options.size}, {len(failing)} failed; "
        f"{sum(o.acknowledged for o in good)} answers, {sum(o.entries for o in good)} entries, "
        f"{sum(o.leaders for o in good)} leaders, {sum(o.lives for o in good)} lives, "
        f"{sum(o.virtual_s for o in good):.0f} virtual seconds"
    )
    if failing:
        print("failing seeds: " + " ".join(map(str, failing)))
    return 1 if failing else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.run", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
