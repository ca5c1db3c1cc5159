"""Two hundred kills of host processes at random moments, while units start, run and stop."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.machine import KEEP_ALIVE_S, LEASE_S, STOP_SHARE
from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

from ..waiting import wait_until
from .cluster import Cluster, alive, port_offset

#: A link that is reset in the middle of its TLS handshake is left unclosed by the standard library.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
KILLS, CLUSTERS = 200, 3
#: Of the moments, seconds after a host process was there again.
LATEST_S = 1.2
#: Seconds that a machine may go without a renewal of its lease before its units must end.
FENCE_S = LEASE_S * STOP_SHARE
UNIT = f"{sys.executable} -S -E {Path(__file__).parent / 'data' / 'unit.py'}"


class Victim:
    """One machine whose host process is killed again and again, and an operator who does not know it."""

    def __init__(self, folder: Path, offset: int, seed: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.cluster = Cluster(folder, offset, machines=1)
        self.random = random.Random(seed)
        self.problem: BaseException | None = None
        self.over = False
        self.asked = 0
        self.droughts = 0  # times that the lease was not renewed for nearly as long as units may run without

    def prepare(self) -> None:
        self.cluster.create()
        self.cluster.up()
        self._submit("steady", "count")
        self._submit("kept", "count", own="OnPartition=keep")
        self._submit("crashing", "await /dev/null exit 1", service="Restart=always\nRestartSec=100ms\nExecStartPre=/bin/sleep 0.1\n"
                     "StartLimitIntervalSec=0")  # fmt: skip
        self._submit("slow", "sleep", service=f"Type=exec\nExecStartPre=/bin/sleep 0.4\nExecStop={UNIT} mark {self.folder}/slow.stops\n"
                     "ExecStopPost=/bin/sleep 0.3\nTimeoutStopSec=2s")  # fmt: skip
        self._submit("busy", "sleep", service="Restart=always\nRestartSec=100ms")
        self._submit("once", "exit 0", service="Type=oneshot\nRemainAfterExit=yes\nExecStartPost=/bin/sleep 1")
        self.cluster.start("steady", "kept", "busy", "once")
        self.cluster.ask("unit.start", units=["crashing"], no_block=True)
        self.pids = {unit: self.cluster.row(unit)["pid_or_container"] for unit in ("steady", "kept")}

    def _submit(self, name: str, words: str, service: str = "", own: str = "") -> None:
        start = f"ExecStart={UNIT} alone {self.folder}/{name} mark {self.folder}/{name}.runs {words}"
        self.cluster.submit(name, f"[Service]\n{start}\n{service}\n[X-Argosy]\n{own}\n")

    def operate(self) -> None:
        """Starts, stops and restarts of two units, whether or not a host is there to hear it."""
        while not self.over:
            verb = self.random.choice(["start", "stop", "restart"])
            unit = self.random.choice(["slow", "busy"])
            try:
                self.cluster.ask(f"unit.{verb}", 3.0, units=[unit], no_block=True)
                self.asked += 1
            except (RemoteError, ClientTimeout, UnreachableError, SystemExit):
                self.cluster.close()
            time.sleep(self.random.uniform(0.05, 0.6))

    def suffer(self, kills: int) -> None:
        """Kill it at any moment that its lease can bear: its units must end without one.

        What a return takes is measured, so that a machine that is slow today has time enough.
        """
        lease = self.cluster.dir / "m1" / "lease"
        killed, return_s = 0.0, 0.0  # when it was killed first since the last renewal; the slowest return to a renewal
        for _ in range(kills):
            pid = self.cluster.host_pid("m1") or wait_until("a host process", lambda: self.cluster.host_pid("m1"))
            age = time.time() - lease.stat().st_mtime
            early = bool(killed) and age + 0.3 + 2 * return_s < FENCE_S and self.random.random() < 0.5
            if early:  # again, before it is itself again
                time.sleep(self.random.uniform(0, 0.3))
            else:
                old, begun = lease.stat().st_mtime, time.time()
                wait_until("its lease is renewed", lambda begun=begun: lease.stat().st_mtime > begun)  # type: ignore[misc]
                self.droughts += lease.stat().st_mtime - old > 0.9 * FENCE_S
                return_s = max(return_s, lease.stat().st_mtime - killed) if killed else return_s
                killed = 0.0
                time.sleep(self.random.uniform(0, max(0.0, min(LATEST_S, FENCE_S - KEEP_ALIVE_S - 1.5 * return_s))))
            killed = killed or time.time()
            self.cluster.kill_host("m1")
            self.cluster.await_new_host("m1", pid)

    def live(self, kills: int) -> None:
        operator = threading.Thread(target=self.operate)
        try:
            self.prepare()
            operator.start()
            self.suffer(kills)
        except BaseException as error:
            self.problem = error
        finally:
            self.over = True
            if operator.ident is not None:
                operator.join()

    def runs(self, unit: str) -> list[int]:
        path = self.folder / f"{unit}.runs"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Victim]]:
    """Three machines that know nothing of each other, after all kills."""
    folder = tmp_path_factory.mktemp("kills")
    with port_offset(CLUSTERS) as offset:
        made = [Victim(folder / str(n), offset + n, seed=n) for n in range(CLUSTERS)]
        try:
            share = [KILLS // CLUSTERS + (n < KILLS % CLUSTERS) for n in range(CLUSTERS)]
            threads = [threading.Thread(target=v.live, args=(k,)) for v, k in zip(made, share, strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            gc.collect()  # see pytestmark: not in another test's time
            yield made
        finally:
            for victim in made:
                victim.cluster.down()


@pytest.fixture(params=range(CLUSTERS))
def victim(request: pytest.FixtureRequest, victims: list[Victim]) -> Victim:
    found = victims[request.param]
    if found.problem is not None:
        raise AssertionError(f"it could not be killed: {found.problem}") from found.problem
    return found


def test_none_is_doubled(victim: Victim) -> None:
    """Each unit holds a lock while it runs; nobody ever found it held."""
    assert [path.name for path in victim.folder.glob("*.double")] == []
    assert victim.asked > 20, "the operator was heard too seldom for this to show anything"


@pytest.mark.parametrize("unit", ["steady", "kept"])
def test_what_was_left_alone_is_left_alone(victim: Victim, unit: str) -> None:
    """One process from the beginning to the end, and no gap in what it printed.

    Where the machine could not renew its lease in time, what must end then did end, and no more than that.
    """
    victim.cluster.await_ready("m1")
    wait_until(f"{unit} is known again", lambda: victim.cluster.row(unit)["active"] == "active")
    if unit == "steady" and victim.droughts:
        assert len(victim.runs(unit)) <= 1 + victim.droughts
        return
    assert victim.runs(unit) == [victim.pids[unit]]
    assert victim.cluster.row(unit)["pid_or_container"] == victim.pids[unit]
    assert victim.cluster.row(unit)["restarts"] == 0
    numbers = [int(line) for line in victim.cluster.log(unit, 100_000)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 100


def test_what_ran_once_ran_once(victim: Victim) -> None:
    """A oneshot that has ended, and remains, is not run again."""
    wait_until("it is known again", lambda: victim.cluster.row("once")["sub"] == "exited")
    assert len(victim.runs("once")) == 1


def test_what_crashes_goes_on_crashing(victim: Victim) -> None:
    """It is restarted under a new host process as it was under the old one."""
    before = len(victim.runs("crashing"))
    wait_until("more runs", lambda: len(victim.runs("crashing")) >= before + 5)


def test_none_is_lost(victim: Victim) -> None:
    """What an operator wants at the end is what is, with one process of each."""
    victim.cluster.ask("unit.stop", 30.0, units=["slow", "busy"], within=25.0)
    for unit in ("slow", "busy"):
        assert not alive(victim.runs(unit)[-1]), f"{unit} runs on after its stop"
    victim.cluster.start("slow", "busy")
    for unit in ("slow", "busy"):
        pid = victim.cluster.row(unit)["pid_or_container"]
        wait_until(f"{unit} has written who it is", lambda unit=unit, pid=pid: victim.runs(unit)[-1] == pid)  # type: ignore[misc]
        assert alive(pid)
