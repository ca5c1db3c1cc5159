"""Machines that lose their power, and host processes that stand still: units move, never two copies."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import Cluster, alive, processes_of

FENCED = Path(__file__).parent / "data" / "fenced.py"
#: Seconds that a machine is silent at least in the test of a pause: more than its lease lasts.
PAUSE_S = 8.0


@dataclass
class Book:
    """What the units wrote of themselves into one file."""

    path: Path

    def lives(self, unit: str) -> list[tuple[int, str, int, int]]:
        """(fence, machine, first, last sign of life in ns) of each placement of a unit."""
        seen: dict[tuple[int, str], list[int]] = {}
        for line in self.path.read_text().splitlines():
            name, fence, machine, at = line.split()
            if name == f"{unit}.service":
                seen.setdefault((int(fence), machine), []).append(int(at))
        return sorted((fence, machine, min(at), max(at)) for (fence, machine), at in seen.items())

    def assert_never_two(self, unit: str) -> list[tuple[int, str, int, int]]:
        """Placements follow one another: a later one begins only after the earlier one is over."""
        lives = self.lives(unit)
        for (fence, machine, _, last), (later, other, first, _) in zip(lives, lives[1:], strict=False):
            assert fence < later, f"{unit}: {machine} and {other} ran with fences {fence} and {later}"
            assert last < first, (
                f"{unit}: ran on {machine} (fence {fence}) and on {other} (fence {later}) "
                f"at the same time for {(last - first) / 1e9:.3f} s"
            )
        return lives


@pytest.fixture
def book(cluster: Cluster, tmp_path: Path) -> Iterator[Book]:
    """Six fenced units, two on each machine; one of the two does not listen to SIGTERM."""
    cluster.await_whole()
    book = Book(tmp_path / "book")
    for name, more in (("polite@.service", ""), ("stubborn@.service", " stubborn")):
        cluster.submit(name, f"""
[Service]
ExecStart={sys.executable} {FENCED} {book.path}{more}
Restart=always
TimeoutStopSec=1s
""")
    for name in ("polite", "stubborn"):
        cluster.start(*[f"{name}@{n}" for n in (1, 2, 3)])
    wait_until(
        "every unit to have written, and its process to be known",
        lambda: all(book.lives(u) for u in _units(cluster)) and all(r["pid_or_container"] for r in cluster.units()),
    )
    yield book
    for machine in cluster.names():
        if (cluster.dir / machine / "off").exists():
            cluster.local("boot", machine)
    cluster.await_whole()
    cluster.destroy_all()


def _units(cluster: Cluster) -> list[str]:
    return [row["unit"].removesuffix(".service") for row in cluster.units()]


def _on(cluster: Cluster, machine: str) -> list[str]:
    return [r["unit"].removesuffix(".service") for r in cluster.units() if r["machine"] == machine]


def _await_moved(cluster: Cluster, book: Book, units: list[str], machine: str) -> None:
    """All of them run, and write, on machines other than this one."""
    wait_until(
        f"{', '.join(units)} to run elsewhere than on {machine}",
        lambda: all((r := cluster.row(u))["machine"] not in ("", machine) and r["active"] == "active" for u in units)
        and all(book.lives(u)[-1][1] != machine for u in units),
    )  # fmt: skip


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_power_cut(cluster: Cluster, book: Book, who: str) -> None:
    """A machine's units run on the others, each once; the others' units are left alone; the
    machine comes back and is used again."""
    leader = cluster.leader()
    victim = leader if who == "leader" else next(m for m in cluster.names() if m != leader)
    moved = _on(cluster, victim)
    stayed = {u: cluster.row(u)["pid_or_container"] for u in _units(cluster) if u not in moved}
    assert len(moved) == 2
    cluster.local("kill", victim)
    assert processes_of(cluster.dir / victim) == [], "a power cut leaves no process"
    _await_moved(cluster, book, moved, victim)
    for unit in _units(cluster):
        book.assert_never_two(unit)
    assert {u: cluster.row(u)["pid_or_container"] for u in stayed} == stayed
    cluster.local("boot", victim)
    cluster.await_whole()
    assert _on(cluster, victim) == [], "units do not move back by themselves"
    cluster.start("polite@9")
    assert cluster.row("polite@9")["machine"] == victim, "the empty machine is used first"
    for unit in _units(cluster):
        book.assert_never_two(unit)


def test_host_process_stands_still(cluster: Cluster, book: Book) -> None:
    """SIGSTOP to a host process: its shims end its units before they start elsewhere, even those
    that ignore SIGTERM; after SIGCONT the machine takes units again and runs no old ones."""
    victim = next(m for m in cluster.names() if m != cluster.leader())
    moved = _on(cluster, victim)
    old = [cluster.row(u)["pid_or_container"] for u in moved]
    assert len(moved) == 2
    begun = time.monotonic()
    cluster.local("pause", victim)
    try:
        _await_moved(cluster, book, moved, victim)
        assert not any(alive(pid) for pid in old), "the units were to end before they started elsewhere"
        wait_until("the pause to last", lambda: time.monotonic() - begun > PAUSE_S)
    finally:
        cluster.local("resume", victim)
    cluster.await_whole()
    cluster.start("polite@9")
    assert cluster.row("polite@9")["machine"] == victim
    wait_until("nothing old to be left there", lambda: _on(cluster, victim) == ["polite@9"])
    for unit in _units(cluster):
        lives = book.assert_never_two(unit)
        assert len(lives) == 2 if unit in moved else len(lives) <= 1, lives


def test_short_pause_is_no_loss(cluster: Cluster, book: Book) -> None:
    """A host process that stands still for less than its lease keeps its units untouched."""
    victim = next(m for m in cluster.names() if m != cluster.leader())
    before = {u: (cluster.row(u)["machine"], cluster.row(u)["pid_or_container"]) for u in _units(cluster)}
    begun = time.monotonic()
    cluster.local("pause", victim)
    try:
        wait_until("a second", lambda: time.monotonic() - begun > 1.0)
    finally:
        cluster.local("resume", victim)
    cluster.await_whole()
    after = {u: (cluster.row(u)["machine"], cluster.row(u)["pid_or_container"]) for u in _units(cluster)}
    assert after == before
    for unit in _units(cluster):
        assert len(book.assert_never_two(unit)) == 1


def test_all_machines_lose_power(cluster: Cluster, book: Book) -> None:
    """All at once, and back: every unit runs again exactly once, and never ran twice."""
    for machine in cluster.names():
        cluster.local("kill", machine)
    assert processes_of(cluster.dir) == [] or all("watch" in p.command for p in processes_of(cluster.dir))
    for machine in cluster.names():
        cluster.local("boot", machine)
    cluster.await_whole()
    wait_until(
        "every unit to run again",
        lambda: len(rows := cluster.units()) == 6 and all(r["active"] == "active" for r in rows),
    )
    for unit in _units(cluster):
        book.assert_never_two(unit)
