"""Never two copies: real machines that are cut off by firewalls, in one direction or both, or stopped.

Each unit holds a lock of the file system while it runs, which all the machines share here; who finds
it held says so.  Three voters and an agent, each in a network namespace of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import alive, processes_of
from .namespaces import Apart, Network, missing

_MISSING = missing()
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)
UNIT = f"{sys.executable} -S -E {Path(__file__).parent / 'data' / 'unit.py'}"
#: Units, and what their files say beside the command.
UNITS = {
    "one": "", "two": "", "apart@1": "", "apart@2": "", "slow": "TimeoutStopSec=1s", "kept": "",
}  # fmt: skip
FLEET = {"apart@": "Conflicts=apart@*.service"}
OWN = {"kept": "OnPartition=keep"}


class Fleet:
    """The machines and what ran on them."""

    def __init__(self, folder: Path, hosts: Apart) -> None:
        self.folder = folder
        self.hosts = hosts

    def submit(self) -> None:
        """All units run."""
        files = []
        for name in ("one", "two", "apart@", "slow", "kept"):
            unit = name.replace("@", "@%i") if name.endswith("@") else name
            path = self.folder / f"{name}.service"
            ignores = "ignore sleep" if name == "slow" else "sleep"
            alone = "" if name == "kept" else f"alone {self.folder}/{unit} "  # that one may have two copies
            path.write_text(
                f"[Service]\nExecStart={UNIT} {alone}mark {self.folder}/{unit}.runs {ignores}\n"
                f"TimeoutStopSec=1s\nRestart=always\nRestartSec=200ms\nStartLimitIntervalSec=0\n"
                f"[X-Fleet]\n{FLEET.get(name, '')}\n[X-Argosy]\n{OWN.get(name, '')}\n"
            )  # fmt: skip
            files.append(str(path))
        assert self.hosts.argosy("unit", "submit", *files).returncode == 0
        done = self.hosts.argosy("unit", "start", *UNITS)
        assert done.returncode == 0, done.stderr

    def doubled(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.double"))

    def homes(self) -> dict[str, str]:
        """Where units run, as the brain has it."""
        return {u.removesuffix(".service"): row["machine"] for u, row in self.hosts.rows().items() if row.get("sub") == "running"}

    def runs(self, unit: str) -> list[int]:
        path = self.folder / f"{unit}.runs"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def living(self, unit: str) -> list[int]:
        return [pid for pid in self.runs(unit) if alive(pid)]

    def await_moved(self, victim: str, but: set[str]) -> float:
        """Seconds until all units that were on a machine run elsewhere."""
        begun = time.monotonic()
        wanted = set(UNITS) - but

        def moved() -> bool:
            homes = self.homes()
            return wanted <= set(homes) and all(homes[unit] != victim for unit in wanted)

        wait_until(f"units to have left {victim}", moved)
        return time.monotonic() - begun

    def await_whole(self) -> None:
        # a voter that was cut off a moment ago may still show what it knew before: what is listed must be what runs
        wait_until("one process of each, as it is listed", self._is_so)
        wait_until("all machines", lambda: self.hosts.ready() == ["h1", "h2", "h3", "h4"])
        wait_until("one process of each, as it is listed", self._is_so)

    def _is_so(self) -> bool:
        rows = self.hosts.rows()
        return all(self.living(unit) == [rows[f"{unit}.service"]["pid_or_container"]] for unit in UNITS)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("partitions")
    network = Network(["h1", "h2", "h3", "h4", "op"])
    hosts = Apart(folder, network)
    try:
        network.open()
        hosts.found(voters=3, agents=1)
        made = Fleet(folder, hosts)
        made.submit()
        yield made
    finally:
        for number in hosts.running:
            os.kill(hosts.pid(number), signal.SIGCONT)
        hosts.stop()
        for process in processes_of(folder):
            os.kill(process.pid, signal.SIGKILL)
        network.close()


def _leader(fleet: Fleet) -> str:
    return str(fleet.hosts.json("cluster", "status")["leader"])


@pytest.mark.parametrize("fault", ["cut off", "deaf", "mute", "stopped", "the leader, cut off", "the agent, cut off"])
def test_units_move_and_none_is_doubled(fleet: Fleet, fault: str) -> None:
    """The copy on the machine that is not heard has ended before another begins; then the machine is used again."""
    fleet.await_whole()
    homes = fleet.homes()
    if fault.startswith("the leader"):
        victim = _leader(fleet)
    elif fault.startswith("the agent"):
        victim = "h4"
    else:
        victim = homes["slow"]
    here = {unit for unit, home in homes.items() if home == victim}
    kept = {"kept"} if homes["kept"] == victim else set()
    before = {unit: fleet.living(unit) for unit in here}
    number = int(victim[1:])
    if fault == "stopped":
        os.kill(fleet.hosts.pid(number), signal.SIGSTOP)
    else:
        fleet.hosts.network.cut(victim, *{"deaf": ["INPUT"], "mute": ["OUTPUT"]}.get(fault, []))
    fleet.await_moved(victim, but=kept)
    assert not fleet.doubled()
    for unit in here - kept:
        assert not [pid for pid in before[unit] if alive(pid)], f"the old copy of {unit} runs on"
    if kept:
        assert set(before["kept"]) <= set(fleet.living("kept")), "OnPartition=keep did not keep it"
    if fault == "stopped":
        os.kill(fleet.hosts.pid(number), signal.SIGCONT)
    else:
        fleet.hosts.network.heal(victim)
    fleet.await_whole()
    assert not fleet.doubled()
