"""The shim and the host's end of the link to it, without the rest of a host."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runners.processes import DIRECTORY_VARIABLE, Handle, Processes, kill_marked
from runners.shim import child, shim
from runners.shim.facts import LEASE, boottime, parent_of, start_time
from runners.shim.log import Log

from ..waiting import wait_until
from .cluster import alive

ROOT = Path(shim.__file__).parents[2]
SLEEP = ["/bin/sleep", "1000"]
#: A main process that hears SIGTERM, says so, and goes on.
DEAF = ["/bin/sh", "-c", "trap 'echo heard' TERM; echo up; while :; do sleep 0.05; done"]


_open: list[Unit] = []


class Unit:
    """One unit's handle on a loop of its own, and what it said."""

    def __init__(self, base: Path, name: str = "u.service", fenced: bool = False) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        _open.append(self)
        self.events: list[dict[str, Any]] = []
        self.processes = Processes(self.loop, base)
        self.folder = self.processes.folder(name)
        self.handle = self._on_loop(lambda: Handle(self.processes, name, fenced, self.events.append))
        self.hello = self.await_("hello")

    def _on_loop(self, work: Any) -> Any:
        async def call() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def say(self, verb: str, *words: Any, **rest: Any) -> None:
        """Call a method of the handle."""
        self._on_loop(lambda: getattr(self.handle, verb)(*words, **rest))

    def run(self, argv: list[str], main: bool = True, step: str = "start.0", **rest: Any) -> None:
        self.say("run", step, argv, {"PATH": "/bin"}, main, **rest)

    def await_(self, kind: str, number: int = 1) -> dict[str, Any]:
        """The n-th event of a kind."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [event for event in self.events if event["ev"] == kind]
            return len(found) >= number

        wait_until(f"{kind} number {number} in {self.events}", there, 20)
        return found[number - 1]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def shim(self) -> int:
        return int(self.hello["me"]["pid"])

    def end(self) -> None:
        """As when the host process ends: the shim stays."""

        async def rest() -> None:
            self.handle.close()
            await asyncio.sleep(0.05)

        if not self.loop.is_closed():
            asyncio.run_coroutine_threadsafe(rest(), self.loop).result(10)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
            self.loop.close()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    while _open:
        _open.pop().end()
    kill_marked(str(tmp_path))


def begin_shim(code: str, folder: Path) -> None:
    """A shim that is not quite the usual one."""
    marked = {**os.environ, DIRECTORY_VARIABLE: str(folder.parent.parent)}
    subprocess.run([sys.executable, "-c", code, str(folder), "-"], check=True, env=marked)


def write_lease(base: Path, stop_in: float, kill_in: float) -> None:
    (base / "lease").write_bytes(LEASE.pack(boottime() + stop_in, boottime() + kill_in))


def test_a_shim_that_let_go_of_its_host_is_not_taken_for_dead(base: Path) -> None:
    """The link is made again, and the process is the same."""
    unit = Unit(base)
    unit.run(SLEEP)
    pid = unit.await_("started")["pid"]
    with socket.socket(socket.AF_UNIX) as other:  # the shim talks to whoever came last
        other.connect(str(unit.folder / "shim.sock"))
        other.recv(1)
    again = unit.await_("hello", 2)
    assert again["me"] == unit.hello["me"] and str(pid) in again["processes"]
    assert alive(pid) and not [event for event in unit.events if event["ev"] == "lost"]
    unit.say("kill", signal.SIGTERM, True)
    assert unit.await_("ended")["signal"] == signal.SIGTERM


def guard_of(unit: Unit) -> int:
    """The process that goes on when the shim dies."""
    return parent_of(unit.shim)


def test_a_shim_that_died_is_said_to_be_lost_when_nothing_of_it_runs(base: Path) -> None:
    """With its guard; also what its main process had started, in a session of its own, and nothing of other units."""
    others = Unit(base, "other.service")
    others.run(SLEEP)
    bystander = others.await_("started")["pid"]
    unit = Unit(base)  # it has told its shim nothing of itself
    unit.run(["/bin/sh", "-c", f"setsid sleep 1000 & echo $! > {base}/child; wait"])
    unit.await_("started")
    wait_until("the child", lambda: (base / "child").exists() and (base / "child").read_text().strip())
    child = int((base / "child").read_text())
    os.kill(guard_of(unit), signal.SIGKILL)
    os.kill(unit.shim, signal.SIGKILL)
    unit.await_("lost")
    assert not alive(child) and alive(bystander)


def test_the_death_of_a_shim_restarts_nothing_and_loses_no_line(base: Path) -> None:
    """Its guard goes on: the same processes, every line, their exit status, what they say, and what was remembered."""
    unit = Unit(base)
    unit.say("remember", {"invocation": "one", "hash": "h"})
    script = (f"trap 'exit 7' TERM; sleep 1000 & echo $! > {base}/child; n=0; printf 'begin '; "
              f"while :; do n=$((n+1)); echo line $n; test -e {base}/slow && sleep 0.01; done")  # fmt: skip
    unit.run(["/bin/sh", "-c", script], env={"PATH": "/bin:/usr/bin"})
    pid = unit.await_("started")["pid"]
    wait_until("it shouts", lambda: (unit.folder / "log").exists() and "line 2000" in unit.log())
    os.kill(unit.shim, signal.SIGKILL)
    (base / "slow").touch()
    again = unit.await_("hello", 2)
    assert again["me"]["pid"] != unit.shim and again["meta"]["hash"] == "h"
    assert again["processes"] == {str(pid): {"step": "start.0", "main": True, "start": start_time(pid)}}
    assert alive(pid) and alive(int((base / "child").read_text()))
    lines = unit.log().count("\n")
    wait_until("its output goes on", lambda: unit.log().count("\n") > lines)
    unit.say("kill", signal.SIGTERM, False)
    ended = unit.await_("ended")
    assert (ended["code"], ended["main"]) == (7, True), "the guard is its parent now"
    unit.say("kill", signal.SIGKILL, True)
    unit.await_("empty")
    assert not alive(int((base / "child").read_text()))
    numbers = [int(n) for name in ("log.3", "log.2", "log.1", "log") if (unit.folder / name).exists()
               for n in re.findall(r"line (\d+)$", (unit.folder / name).read_text(), re.MULTILINE)]  # fmt: skip
    assert sorted(set(numbers)) == list(range(1, max(numbers) + 1)), "a line is missing"
    assert len(numbers) - len(set(numbers)) < 20_000 and "its guard goes on" in unit.log()
    unit.run(["/bin/echo", "after"])
    wait_until("it runs again", lambda: " after" in unit.log())


def test_the_guard_of_a_shim_holds_its_fence(base: Path) -> None:
    """And what it starts itself dies with it: nobody else would end that in time."""
    write_lease(base, 1000, 1000)
    unit = Unit(base, fenced=True)
    unit.run(SLEEP)
    pid = unit.await_("started")["pid"]
    os.kill(unit.shim, signal.SIGKILL)
    heir = unit.await_("hello", 2)["me"]["pid"]
    assert alive(pid)
    write_lease(base, 0, 0)
    unit.say("find_main", "", False)
    assert unit.await_("ended")["fenced"] and not alive(pid)
    write_lease(base, 1000, 1000)
    unit.run(SLEEP)
    second = unit.await_("started", 2)["pid"]
    unit.end()
    os.kill(heir, signal.SIGKILL)
    wait_until("it is gone with it", lambda: not alive(second))


def test_a_service_is_heard_after_the_death_of_its_shim(base: Path) -> None:
    """At the same socket; also one that daemonised, and a guard that is killed is of no consequence."""
    notify = "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(chr(0) + os.environ['NOTIFY_SOCKET'][1:])"
    code = f"{notify}; os.fork() and os._exit(0)\nwhile True: s.send(b'STATUS=here'); time.sleep(0.05)"
    unit = Unit(base)
    unit.run(["/usr/bin/python3", "-c", code], access="all")
    unit.await_("ended")
    unit.say("find_main", "", True)
    unit.await_("main")
    unit.say("find_main", "", True)
    assert unit.await_("main", 2)["found"]
    pid = unit.await_("started", 2)["pid"]
    os.kill(unit.shim, signal.SIGKILL)
    again = unit.await_("hello", 2)
    assert list(again["processes"]) == [str(pid)] and again["said"]["STATUS"] == "here"
    count = len([event for event in unit.events if event["ev"] == "notify"])
    unit.await_("notify", count + 3)
    os.kill(pid, signal.SIGKILL)
    assert unit.await_("ended", 2)["signal"] in (0, signal.SIGKILL)
    other = Unit(base, "other.service")
    os.kill(guard_of(other), signal.SIGKILL)
    other.run(["/bin/sh", "-c", "exit 3"])
    assert other.await_("ended")["code"] == 3


def test_a_set_up_that_hangs_holds_up_neither_a_stop_nor_the_fence(base: Path) -> None:
    """Nobody reads the pipe that its output goes to."""
    os.mkfifo(base / "pipe")
    write_lease(base, 1000, 1000)
    unit = Unit(base, fenced=True)
    unit.run(SLEEP, stdout=["file", str(base / "pipe")])
    unit.run(["/bin/true"], main=False, step="start-post.0")
    assert unit.await_("ended")["step"] == "start-post.0"
    unit.say("kill", signal.SIGTERM, True)
    assert unit.await_("ended", 2)["signal"] == signal.SIGTERM
    unit.run(SLEEP, stdout=["file", str(base / "pipe")])
    wait_until("the shim has it", lambda: "start.0" in (unit.folder / "state.json").read_text())
    write_lease(base, 0, 0)
    unit.say("find_main", "", False)  # a lease never ends earlier than it said: wake the shim
    assert unit.await_("ended", 3)["fenced"]


def test_a_signal_right_after_the_start_is_heard(base: Path) -> None:
    """However far its set-up is."""
    unit = Unit(base)
    for number in range(1, 41):
        unit.run(SLEEP)
        unit.say("kill", signal.SIGTERM, False)
        assert unit.await_("ended", number)["signal"] == signal.SIGTERM


def test_a_shim_that_cannot_write_goes_on(base: Path) -> None:
    """As on a full disk: what it writes down is lost, and the unit is not."""
    unit = Unit(base)
    (unit.folder / "state.json.new").mkdir()
    (unit.folder / "runs").mkdir()
    unit.say("remember", {"invocation": "one"})
    unit.run(SLEEP)
    pid = unit.await_("started")["pid"]
    unit.end()
    again = Unit(base)
    assert str(pid) in again.hello["processes"] and again.hello["meta"] == {"invocation": "one"}


def test_all_that_the_fence_ends_says_so(base: Path) -> None:
    """Steps too, and what was sent SIGTERM and ended only when the lease was good again."""
    write_lease(base, 1000, 1000)
    unit = Unit(base, fenced=True)
    unit.run(DEAF)
    unit.run(SLEEP, main=False, step="start-post.0")
    wait_until("it is up", lambda: "up" in unit.log())
    write_lease(base, 0, 1000)
    unit.say("find_main", "", False)  # wakes the shim
    wait_until("it heard the fence", lambda: "heard" in unit.log())
    write_lease(base, 1000, 1000)
    unit.say("kill", signal.SIGKILL, True)
    assert unit.await_("empty")["fenced"]
    ended = [event for event in unit.events if event["ev"] == "ended"]
    assert len(ended) == 2 and all(event["fenced"] for event in ended)
    unit.run(["/bin/false"])
    assert "fenced" not in unit.await_("ended", 3)


def test_a_main_process_of_another_parent_is_seen_to_end(base: Path) -> None:
    """MAINPID= names a grandchild, whose parent hears how it ended, and lives."""
    notify = "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(chr(0) + os.environ['NOTIFY_SOCKET'][1:])"
    code = f"{notify}; p = os.fork() or os.execv('/bin/sleep', ['sleep', '1000']); s.send(f'MAINPID={{p}}'.encode()); os.waitpid(p, 0); os.execv('/bin/sleep', ['sleep', '1000'])"
    unit = Unit(base)
    unit.run([sys.executable, "-S", "-E", "-c", code], access="all")
    pid = unit.await_("started", 2)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert unit.await_("ended")["main"]
    unit.say("kill", signal.SIGTERM, True)
    assert unit.await_("ended", 2)["step"] == "former"
    unit.await_("empty")


def test_an_operators_session_is_not_taken_for_a_daemon(base: Path) -> None:
    """A forking service that left nothing has left nothing, whoever looks into it."""
    unit = Unit(base)
    unit.say("enter", "exec.1", SLEEP, {"PATH": "/bin"}, None, lambda: None)
    unit.await_("started")
    unit.run(["/bin/true"], main=False)
    unit.await_("ended")
    for _ in range(3):
        unit.say("find_main", "", True)
    assert [unit.await_("main", number)["found"] for number in (1, 2, 3)] == [False] * 3
    assert not unit.await_("main", 3)["running"]
    unit.say("end_session", "exec.1")
    assert unit.await_("ended", 2)["step"] == "exec.1"


def test_only_plain_directories_and_files_are_removed(base: Path, tmp_path: Path) -> None:
    """A PID file that is a directory stays; links are removed, not followed."""
    kept = tmp_path / "kept"
    (kept / "inner").mkdir(parents=True)
    (kept / "inner" / "file").touch()
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    (runtime / "link").symlink_to(kept)
    unit = Unit(base)
    unit.say("tidy", [str(runtime)], [str(kept)])
    wait_until("it is gone", lambda: not runtime.exists())
    assert (kept / "inner" / "file").exists()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "swapped").symlink_to(kept)
    with pytest.raises(OSError):
        child.make_folder(str(tmp_path / "root"), "swapped/inner")


def test_a_shim_that_nobody_came_back_to_leaves_word(base: Path) -> None:
    """How its unit ended is known to the next, so that what is over is not begun again."""
    folder = base / "units" / "u.service"
    folder.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from runners.shim import guard, shim; shim.LONELY_S_MAX = 1.0; guard.main()"
    begin_shim(code, folder)
    unit = Unit(base)
    unit.say("remember", {"invocation": "one", "finished": "success"})
    unit.run(["/bin/sh", "-c", "exit 7"])
    unit.await_("empty")
    unit.end()
    since = boottime()
    with socket.socket(socket.AF_UNIX) as waker:  # it looks every half a minute when nothing happens
        wait_until("it was alone for long enough", lambda: boottime() > since + 1.2)
        waker.connect(str(folder / "shim.sock"))
    wait_until("the shim is gone", lambda: not alive(unit.shim), 40)
    assert json.loads((folder / "left.json").read_text())["boot_id"]
    again = Unit(base)
    assert again.hello["meta"]["finished"] == "success" and again.hello["ends"]["main"]["code"] == 7
    assert not (folder / "left.json").exists()


def test_an_environment_file_that_is_no_plain_file_is_refused_at_once(base: Path) -> None:
    """A pipe of that name would hold up the whole host."""
    unit = Unit(base)
    os.mkfifo(base / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        unit.processes.read_environment(str(base / "pipe"))


def test_a_shim_that_cannot_leave_word_stays(base: Path) -> None:
    """Else what is over would be begun again."""
    folder = base / "units" / "u.service"
    (folder / "left.json.new").mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from runners.shim import guard, shim; shim.LONELY_S_MAX = 0.5; guard.main()"
    begin_shim(code, folder)
    unit = Unit(base)
    unit.say("remember", {"invocation": "one", "finished": "success"})
    unit.end()
    since = boottime()
    wait_until("it was alone for long enough", lambda: boottime() > since + 1.0)
    again = Unit(base)
    assert again.hello["me"] == unit.hello["me"] and again.hello["meta"]["finished"] == "success"


def test_the_same_word_again_and_again_costs_nothing(base: Path) -> None:
    """A main process of another parent that names itself a thousand times takes one descriptor."""
    notify = "import os, socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(chr(0) + os.environ['NOTIFY_SOCKET'][1:])"
    code = f"{notify}; p = os.fork() or os.execv('/bin/sleep', ['sleep', '1000']); [s.send(f'MAINPID={{p}}'.encode()) for _ in range(1000)]; s.send(b'STATUS=said'); os.waitpid(p, 0)"
    unit = Unit(base)
    unit.run([sys.executable, "-S", "-E", "-c", code], access="all")
    wait_until("all is said", lambda: any(e.get("said") == {"STATUS": "said"} for e in unit.events), 20)
    assert len(os.listdir(f"/proc/{unit.shim}/fd")) < 30


def test_a_process_that_cannot_be_made_is_told_of(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when there are too many: the shim, and what runs in it, stay."""
    folder = base / "units" / "u.service"
    folder.mkdir(parents=True)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import errno, os; from runners.shim import guard, shim; start = shim.Shim.start\n"
        "def limited(self, command):\n"
        "    fork = os.fork\n"
        "    if command['step'] == 'reload.0':\n"
        "        def refuse(): raise BlockingIOError(errno.EAGAIN, 'no more processes')\n"
        "        os.fork = refuse\n"
        "    start(self, command)\n"
        "    os.fork = fork\n"
        "shim.Shim.start = limited\nguard.main()"
    )
    begin_shim(code, folder)
    unit = Unit(base)
    unit.run(SLEEP)
    pid = unit.await_("started")["pid"]
    unit.run(["/bin/true"], main=False, step="reload.0")
    assert "no more processes" in unit.await_("failed")["error"] and alive(pid)
    unit.say("kill", signal.SIGTERM, True)
    assert unit.await_("ended")["signal"] == signal.SIGTERM


def test_a_log_without_room_for_another_file_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt to begin a new one would push out an older one."""
    monkeypatch.setattr("runners.shim.log.LOG_BYTES_MAX", 1000)
    log = Log(str(tmp_path / "log"))
    for number in range(30):
        log.write([b"%d" % number + b"x" * 100])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "log"}
    assert set(before) == {"log.1", "log.2", "log.3"}
    (tmp_path / "log.new").mkdir()
    for number in range(30):
        log.write([b"%d" % number + b"x" * 100])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name not in ("log", "log.new")} == before
    (tmp_path / "log.new").rmdir()
    log.write([b"x" * 1000])
    assert (tmp_path / "log.1").read_bytes() != before["log.1"]
    os.close(log.fd)


def test_nothing_is_started_when_the_lease_is_over(base: Path) -> None:
    """A host process that stood still asks for what another machine may run by now."""
    write_lease(base, -1, -1)
    unit = Unit(base, fenced=True)
    unit.run(["/bin/sh", "-c", f"touch {base}/ran"])
    assert unit.await_("ended")["fenced"]
    write_lease(base, 1000, 1000)
    unit.run(SLEEP)
    unit.await_("started")
    assert not (base / "ran").exists() and "not started" in unit.log()
