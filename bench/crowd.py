"""Twenty real hosts on one machine with five hundred units: listings, and how long a lost machine's units take to be back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cli.local import HTTP, TRANSPORT
from cli.session import Session
from runners.processes import kill_marked

from .hosts import ROOT
from .lab import Lab, median, percentile
from .ports import free_offset
from .table import Row
from .waiting import bound, until

HOSTS, VOTERS, UNITS, BATCH = 20, 3, 500, 25
LIST_GOAL_S, LOST_GOAL_S = 0.5, 5.0
#: Seconds for all units to run, and for a machine to be back.
_PATIENCE_S = 300.0
_UNIT = """
[Service]
ExecStart=/bin/sleep 1000000
Restart=always
[X-Argosy]
HealthCheck=exec:/bin/true
HealthInterval=30s
"""


class Crowd:
    """Three voters h1 to h3, and machines without a vote; each a process of ``argosy start``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offset = free_offset(HOSTS)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._joined: dict[str, list[str]] = {}

    def endpoint(self, number: int) -> str:
        """The transport of a host."""
        return f"127.0.0.1:{TRANSPORT + self.offset + number}"

    def start(self) -> None:
        """All of them, ready."""
        self.folder.mkdir(parents=True)
        self._join("h1", "--bootstrap")
        until("its context", (self.folder / "h1" / "context.toml").exists)
        until("the founder", lambda: self.ask("cluster.status")["leader"])
        for number in range(2, HOSTS + 1):
            role = "voter" if number <= VOTERS else "agent"
            token = until("a token", lambda role=role: self._argosy("cluster", "token", "--role", role))  # type: ignore[misc]
            self._join(f"h{number}", "--join", self.endpoint(1), "--token", token, "--role", role)
        until("all hosts", lambda: self.ready() == HOSTS, _PATIENCE_S)

    def _join(self, name: str, *more: str) -> None:
        self._joined[name] = list(more)
        self.boot(name)

    def boot(self, name: str) -> None:
        """Start a host."""
        number = int(name[1:])
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ARGOSY_")}
        with open(self.folder / f"{name}.log", "ab") as log:
            self._running[name] = subprocess.Popen(
                [*bound("SIGKILL"), sys.executable, "-m", "cli.main", "start", "--name", name,
                 "--data-dir", str(self.folder / name), "--transport", self.endpoint(number),
                 "--client", f"127.0.0.1:{HTTP + self.offset + number}", *self._joined[name]],
                env={**kept, "PYTHONPATH": str(ROOT)}, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def power_off(self, name: str) -> None:
        """SIGKILL to the host process and all that it ran."""
        self._running[name].kill()
        kill_marked(str(self.folder / name))
        self._running.pop(name).wait(10)

    def session(self) -> Session:
        """A link to whichever voter answers."""
        endpoints = ",".join(self.endpoint(n) for n in range(1, VOTERS + 1) if f"h{n}" in self._running)
        return Session(context=str(self.folder / "h1" / "context.toml"), endpoint=endpoints, timeout=30.0)

    def ask(self, verb: str, wait_s: float = 5.0, **args: Any) -> Any:
        """One question on a link of its own."""
        session = self.session()
        try:
            return session.try_ask(verb, wait_s, **args)
        finally:
            session.client().close()

    def ready(self) -> int:
        """Machines that take units."""
        return sum(row["state"] == "ready" for row in self.ask("machine.list"))

    def _argosy(self, *words: str) -> str:
        where = {"ARGOSY_CONTEXT": str(self.folder / "h1" / "context.toml"), "ARGOSY_ENDPOINT": self.session().endpoint}
        command = [sys.executable, "-m", "cli.main", *words]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **where}, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise OSError(f"argosy {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def listing_s(self) -> float:
        """How long ``argosy unit list`` takes, its start included."""
        begun = time.perf_counter()
        listed = self._argosy("unit", "list")
        taken = time.perf_counter() - begun
        assert listed.count(".service") >= UNITS, listed[-300:]
        return taken

    def stop(self) -> None:
        """End everything."""
        for name in list(self._running):
            self.power_off(name)


def crowd(lab: Lab) -> list[Row]:
    """Machines lose power one after another, voters and the leader among them."""
    made = Crowd(lab.folder / "crowd")
    draw = random.Random(7)
    try:
        made.start()
        lab.say(f"{HOSTS} hosts are ready")
        begun = time.perf_counter()
        made.ask("unit.submit", files=[{"name": "web@.service", "content": _UNIT, "path": "web@.service"}], replace=True)
        for first in range(1, UNITS, BATCH):  # all hosts share these processors: what starts here would starve them
            made.ask("unit.start", _PATIENCE_S, units=[f"web@{{{first}..{first + BATCH - 1}}}"], within=_PATIENCE_S - 10)
        until("all units healthy", lambda: _healthy(made.ask("unit.list")) == UNITS, _PATIENCE_S)
        started = time.perf_counter() - begun
        lab.say(f"{UNITS} units are healthy after {started:.1f} s")
        listings = [made.listing_s() for _ in range(5)]
        taken: list[float] = []
        for _ in range(lab.effort.crowd_kills):
            taken.append(_lose(made, draw))
            lab.say(f"lost, and healthy elsewhere after {taken[-1]:.2f} s")
    finally:
        made.stop()
    p50, p99, listing = median(taken), percentile(taken, 0.99), median(listings)
    return [
        Row(
            f"{HOSTS} real hosts, {UNITS} units: argosy unit list", f"{listing:.2f} s (all healthy {started:.1f} s after their start)", "-", "-",
            f"<= {LIST_GOAL_S:g} s", listing <= LIST_GOAL_S, data={"seconds": listings, "start_s": started},
        ),
        Row(
            f"{HOSTS} real hosts, {UNITS} units: machine lost -> its units healthy elsewhere",
            f"p50 {p50:.2f} s, p99 {p99:.2f} s ({len(taken)} kills)", "SwarmKit 8-16 s, Nomad 10-30 s (published)", "-",
            f"p99 <= {LOST_GOAL_S:g} s", p99 <= LOST_GOAL_S, data={"seconds": taken},
        ),
    ]  # fmt: skip


def _healthy(rows: list[dict[str, Any]]) -> int:
    return sum(row["active"] == "active" and row["health"] == "passing" for row in rows)


def _lose(made: Crowd, draw: random.Random) -> float:
    """One machine with units loses power, and is booted again; seconds until its units are healthy elsewhere."""
    rows = made.ask("unit.list")
    name = draw.choice(sorted({row["machine"] for row in rows}))
    gone = {row["unit"] for row in rows if row["machine"] == name}
    made.power_off(name)
    begun = time.perf_counter()  # it is off from here on, at the latest
    session = made.session()

    def elsewhere() -> bool:
        now = {row["unit"]: row for row in session.try_ask("unit.list", 2.0)}
        return _healthy([now[unit] for unit in gone]) == len(gone) and all(now[unit]["machine"] != name for unit in gone)

    until(f"the units of {name} elsewhere", elsewhere, _PATIENCE_S, 0.1)
    taken = time.perf_counter() - begun
    session.client().close()
    made.boot(name)
    until("all hosts again", lambda: made.ready() == HOSTS, _PATIENCE_S, 0.5)
    return taken
