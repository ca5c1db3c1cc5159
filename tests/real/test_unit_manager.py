"""The supervisor of one unit over its own shim, with a machine that says what a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.unit_manager import UnitManager
from actors.unit_messages import Assign, Gone, Here, LeaseState, MayStart, Placement, Report, Started
from kernel.actor import Actor, handles
from kernel.dispatch import LoopDispatcher
from kernel.mailbox import Promise
from kernel.ports import Ports
from kernel.system import System
from runners.processes import Processes, kill_marked
from runners.real import RealClock, RealRng

from .cluster import alive

SLEEP = "[Service]\nExecStart=/bin/sleep 1000\n"


class Owner(Actor):
    """The machine, as its unit sees it."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host

    @handles(Started)
    def _started(self, _: Started) -> None:
        self.host.unit.offer(LeaseState(True))
        self.host.unit.offer(Assign(self.host.placement))

    @handles(MayStart)
    def _may_start(self, _: MayStart) -> Promise:
        promise = Promise()
        self.host.asked.append(promise)
        if self.host.allowed is not None:
            promise.reply(self.host.allowed)
        return promise

    @handles(Report)
    def _report(self, message: Report) -> None:
        self.host.reports.append(message.state)

    @handles(Gone)
    def _gone(self, _: Gone) -> None:
        self.host.gone = True


class Host:
    """One life of a host process with one unit; ``allowed``: what MayStart is answered, None for not yet."""

    def __init__(self, base: Path, content: str, processes: Callable[[Processes], Any] = lambda made: made) -> None:
        self.reports: list[dict[str, Any]] = []
        self.asked: list[Promise] = []
        self.allowed: bool | None = True
        self.gone = False
        digest = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
        self.placement = Placement("u.service", content, digest, True, 1)
        loop = asyncio.get_running_loop()
        dispatcher = LoopDispatcher(loop)
        self.system = System("m1", {"loop": dispatcher, "pool": dispatcher}, lambda error: None)
        self.processes = processes(Processes(loop, base))
        self.processes.set_lease(1000, 1000)
        ports = Ports(RealClock(), RealRng(), None, None, self.processes)  # type: ignore[arg-type]
        self.owner = self.system.spawn(Owner, self, name="machine")
        here = Here("m1", "m1", "127.0.0.1", self.processes.boot_id, "http://door")
        self.unit = self.system.spawn(UnitManager, "u.service", here, self.owner, ports, name="units/u.service")

    @property
    def actor(self) -> Any:
        return self.unit._mailbox.actor  # type: ignore[union-attr]

    def place(self, **changes: Any) -> None:
        self.placement = replace(self.placement, **changes)
        self.unit.offer(Assign(self.placement))

    async def until(self, what: str, seconds: float = 15.0) -> dict[str, Any]:
        """Wait until the last report has this sub-state."""
        return await until(lambda: self.reports and self.reports[-1]["sub"] == what and self.reports[-1],
                           seconds, lambda: f"{what}: {self.reports[-3:]}")  # fmt: skip

    async def end(self) -> None:
        """As when the host process dies: the shim stays."""
        self.actor._handle.close()
        self.system.stop()
        await asyncio.sleep(0.1)


async def until(condition: Callable[[], Any], seconds: float, what: Callable[[], str]) -> Any:
    async def look() -> Any:
        while not (found := condition()):
            await asyncio.sleep(0.01)
        return found

    try:
        return await asyncio.wait_for(look(), seconds)
    except TimeoutError:
        raise AssertionError(what()) from None


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for folder in (tmp_path, tmp_path / "a", tmp_path / "b"):
        kill_marked(str(folder))


def test_a_restart_while_the_brain_is_asked_is_not_forgotten(base: Path) -> None:
    """An automatic restart asks again after a change of leases; meanwhile an operator wants another."""

    async def story() -> None:
        host = Host(base, "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=100ms\nStartLimitBurst=0\n")
        await until(lambda: host.reports and host.reports[-1]["restarts"], 10, lambda: "no restart")
        host.allowed = None
        host.asked.clear()
        host.unit.offer(LeaseState(False))
        host.unit.offer(LeaseState(True))
        await until(lambda: host.asked, 10, lambda: "nobody asked")
        host.place(restarts=1)
        await asyncio.sleep(0.2)
        host.allowed = True
        host.asked[0].reply(True)
        await until(lambda: host.reports[-1]["asked"] == 1 and host.reports[-1]["restarts"], 10, lambda: str(host.reports[-2:]))
        await host.end()

    asyncio.run(story())


def test_permission_that_was_lost_while_conditions_are_looked_at_is_asked_for_again(base: Path) -> None:
    """And one look is enough."""

    async def story() -> None:
        looks: list[Callable[[Any], None]] = []

        def hanging(made: Processes) -> Processes:
            made.unmet = lambda wanted, host, done: looks.append(done)  # type: ignore[method-assign]
            return made

        host = Host(base, f"[Unit]\nConditionPathExists=/\n{SLEEP}", hanging)
        await until(lambda: looks, 10, lambda: "no look")
        host.unit.offer(LeaseState(False))
        host.allowed = False
        host.unit.offer(LeaseState(True))
        await asyncio.sleep(0.2)
        assert len(looks) == 1
        looks[0](None)
        await asyncio.sleep(0.5)
        assert not any(report["sub"] == "running" for report in host.reports)
        host.allowed = True
        host.unit.offer(LeaseState(True))
        await until(lambda: len(looks) == 2, 10, lambda: "no second look")
        looks[1](None)
        await host.until("running")
        await host.end()

    asyncio.run(story())


def test_a_unit_that_is_placed_here_again_while_it_leaves_has_not_failed(base: Path) -> None:
    """Its shim was told to end, and is not to run anything more."""

    async def story() -> None:
        host = Host(base, SLEEP)
        await host.until("running")
        host.unit.offer(Assign(None))
        while host.actor.service.sub.value != "dead":
            await asyncio.sleep(0)
        host.place(fence=2)
        await until(lambda: host.reports[-1]["sub"] == "running" and host.reports[-1]["fence"] == 2, 10, lambda: str(host.reports))
        assert not any(report["active"] == "failed" for report in host.reports)
        await host.end()

    asyncio.run(story())


@pytest.mark.parametrize("content", [
    f"{SLEEP}RemainAfterExit=yes\n",
    "[Service]\nKillMode=process\nRestart=always\nExecStart=/bin/sh -c '(trap \"\" TERM; exec sleep 101) & exec sleep 100'\n",
])  # fmt: skip
def test_what_the_fence_asked_to_end_starts_anew(content: str, base: Path) -> None:
    """Also if its end looks like a success, or leaves something behind."""

    async def story() -> None:
        host = Host(base, content)
        first = (await host.until("running"))["pid"]
        await asyncio.sleep(0.3)
        host.unit.offer(LeaseState(False))
        host.processes.set_lease(-1, 1000)
        host.actor._handle.remember(host.actor._meta)  # wakes the shim
        await until(lambda: host.reports[-1]["pid"] != first, 10, lambda: str(host.reports[-1]))
        host.processes.set_lease(1000, 1000)
        host.unit.offer(LeaseState(True))
        await until(lambda: host.reports[-1]["pid"] not in (0, first), 15, lambda: str(host.reports[-1]))
        host.place(launched=False)
        await until(lambda: host.reports[-1]["sub"] in ("dead", "failed"), 10, lambda: str(host.reports[-1]))
        await host.end()

    asyncio.run(story())


def test_another_word_on_partitions_takes_another_shim(base: Path) -> None:
    """A unit that was not fenced and now is obeys the lease."""

    async def story() -> None:
        keep = f"{SLEEP}[X-Argosy]\nOnPartition=keep\n"
        host = Host(base, keep)
        await host.until("running")
        host.place(content=SLEEP, hash="other")
        await until(lambda: host.reports[-1]["hash"] == "other" and host.reports[-1]["sub"] == "running", 15, lambda: str(host.reports))
        host.processes.set_lease(-1, -1)
        host.actor._handle.remember(host.actor._meta)
        await until(lambda: not host.reports[-1]["pid"], 10, lambda: str(host.reports[-1]))
        await host.end()

    asyncio.run(story())


def test_absurd_words_of_a_service_are_passed_over(base: Path) -> None:
    """They end neither its shim, nor its supervisor, nor the host; also not the next life of one."""

    async def story() -> None:
        says = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(chr(0) + os.environ['NOTIFY_SOCKET'][1:]); "
        words = "'READY=1\\nMAINPID=\\u00b2\\nWATCHDOG_USEC=' + '9' * 400 + '\\nEXTEND_TIMEOUT_USEC=' + '9' * 400"
        program = base / "unit.py"
        program.write_text(f"{says}\nfor _ in range(3): s.send(({words}).encode()); s.send(b'WATCHDOG_USEC=\\xc2\\xb2')\ntime.sleep(1000)\n")
        content = f"[Service]\nType=notify\nExecStart={sys.executable} -S -E {program}\n"
        host = Host(base, content)
        pid = (await host.until("running"))["pid"]
        await host.end()
        again = Host(base, content)
        assert (await again.until("running"))["pid"] == pid
        await again.end()

    asyncio.run(story())


def test_a_stop_that_was_over_when_the_host_came_back(base: Path) -> None:
    """What was stopped is started when that is wanted; what ended by itself is judged as it would have been."""

    async def story() -> None:
        host = Host(base / "a", SLEEP)
        await host.until("running")
        host.place(launched=False)
        await host.until("dead")
        await asyncio.sleep(0.2)
        await host.end()
        again = Host(base / "a", SLEEP)
        await again.until("running")
        await again.end()
        slow = base / "slow.py"
        slow.write_text("import signal, sys, time\nsignal.signal(15, lambda *_: (time.sleep(0.7), sys.exit(0)))\ntime.sleep(100)\n")
        late = f"[Service]\nRestart=on-failure\nRestartSec=60s\nRuntimeMaxSec=500ms\nExecStart={sys.executable} -S -E {slow}\n"
        host = Host(base / "b", late)
        await host.until("stop-sigterm")
        await host.end()
        await asyncio.sleep(1.5)
        again = Host(base / "b", late)
        assert (await again.until("auto-restart"))["result"] == "timeout"
        await again.end()

    asyncio.run(story())


def test_stop_commands_run_once_though_the_host_restarts(base: Path) -> None:
    """While it waits for its restart."""

    async def story() -> None:
        marks = base / "marks"
        content = (
            "[Service]\nRestart=always\nRestartSec=60s\nExecStart=/bin/sh -c 'sleep 0.2'\n"
            f"ExecStop=/bin/sh -c 'echo s >> {marks}'\nExecStopPost=/bin/sh -c 'echo x >> {marks}'\n"
        )
        host = Host(base, content)
        await host.until("auto-restart")
        await asyncio.sleep(0.2)
        await host.end()
        again = Host(base, content)
        await again.until("auto-restart")
        await asyncio.sleep(0.5)
        assert marks.read_text().split() == ["s", "x"]
        await again.end()

    asyncio.run(story())


def test_there_is_one_shim_though_its_supervisor_dies_while_it_starts(base: Path) -> None:
    """The next life finds that one."""

    async def story() -> None:
        host = Host(base, SLEEP)
        await until(lambda: host.actor._handle is not None, 5, lambda: "no handle")
        host.unit.kill()
        first = (await host.until("running"))["pid"]
        await asyncio.sleep(0.5)
        folder = host.processes.folder("u.service")
        shims = [p for p in Path("/proc").glob("[0-9]*") if _is_shim(p, folder)]
        assert len(shims) == 2, "one, and its guard"
        await host.end()
        again = Host(base, SLEEP)
        assert (await again.until("running"))["pid"] == first
        await again.end()

    asyncio.run(story())


def _is_shim(process: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


async def _setting_up(base: Path) -> tuple[Host, list[int]]:
    """A host whose unit waits for the other end of its output: with the guard, the shim and what is set up, in this order."""
    os.mkfifo(base / "pipe")
    host = Host(base, f"[Service]\nRestart=no\nStandardOutput=file:{base}/pipe\nExecStart=/bin/sleep 1000\n")
    folder = host.processes.folder("u.service")

    def family() -> list[int]:
        return sorted(int(p.name) for p in Path("/proc").glob("[0-9]*") if _is_shim(p, folder))

    def is_set_up() -> bool:
        state = folder / "state.json"
        return len(family()) == 3 and state.exists() and "start.0" in state.read_text()

    await until(is_set_up, 10, lambda: f"{family()}")
    return host, family()


def test_a_shim_that_dies_while_a_process_is_set_up_takes_it_along(base: Path) -> None:
    """If its guard dies, too: it must neither be taken for the shim nor run its program later, without a fence."""
    async def story() -> None:
        host, family = await _setting_up(base)
        for process in family[:2]:  # the guard first
            os.kill(process, signal.SIGKILL)
        await host.until("failed")
        await until(lambda: not any(map(alive, family)), 10, lambda: f"one of {family} is left")
        await host.end()

    asyncio.run(story())


def test_a_process_that_is_set_up_while_its_shim_dies_runs_all_the_same(base: Path) -> None:
    """Its guard has it, and the fence."""
    async def story() -> None:
        host, family = await _setting_up(base)
        os.kill(family[1], signal.SIGKILL)
        await until(lambda: json.loads((host.processes.folder("u.service") / "state.json").read_text())["shim"]["pid"] == family[0], 10, lambda: "no guard")
        reader = os.open(base / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        assert (await host.until("running"))["pid"] == family[2]
        await until(lambda: b"sleep" in Path(f"/proc/{family[2]}/cmdline").read_bytes(), 10, lambda: "its program does not run")
        os.close(reader)
        await host.end()

    asyncio.run(story())
