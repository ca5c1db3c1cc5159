"""Containers in a real engine: started once, found again, ended honestly, fenced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fleet import container as section
from runners import container_guard, container_handle, containers
from runners.containers import Containers
from runners.processes import kill_marked
from runners.shim.facts import LEASE, boottime

from ..waiting import wait_until
from .engine import IMAGE, EngineHere, missing

T = TypeVar("T")
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "everything is there")
#: A shell that ends at once when it is told to.
WAITING = "Exec=/bin/sh -c 'trap \"exit 0\" TERM; echo up; while :; do sleep 0.1; done'"


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[EngineHere]:
    made = EngineHere()
    try:
        made.start()
        made.make_image()
        yield made
    finally:
        made.end()


@pytest.fixture
def engine(shared_engine: EngineHere) -> Iterator[EngineHere]:
    """The module's engine, running and empty."""
    if shared_engine.process is None:
        shared_engine.start()
    yield shared_engine
    shared_engine.signal(signal.SIGCONT)
    if shared_engine.process is not None:
        shared_engine.remove_all()


class Unit:
    """A handle, and what it said."""

    def __init__(self, host: Host, name: str, fenced: bool = False) -> None:
        self.host = host
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.handle = host.on_loop(lambda: host.containers.open(name, fenced, self.events.append))

    def seen(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in list(self.events) if event["ev"] == kind]

    def await_(self, kind: str, count: int = 1) -> dict[str, Any]:
        def look() -> list[dict[str, Any]] | None:
            found = self.seen(kind)
            return found if len(found) >= count else None

        try:
            return wait_until(f"{kind} of {self.name}", look)[count - 1]
        except AssertionError as error:
            raise AssertionError(f"{error}; events: {self.events}") from None

    def run(self, *lines: str, invocation: str = "a" * 32, ports: dict[str, int] | None = None) -> None:
        spec = section.ContainerSpec()
        for line in (f"Image={IMAGE}", "Pull=never", "Network=none", *lines):
            key, _, value = line.partition("=")
            if key == "Network":
                spec.networks.clear()
            section.KEYS[key](spec, value)
        assert not section.finish(spec)
        asked = section.run_arguments(spec, self.name, {"ARGOSY_UNIT": self.name}, {}, ports or {}, {})

        def go() -> None:
            self.handle.remember({"invocation": invocation, "fence": 7, "hash": "h"})
            self.handle.run("start.0", [], {}, True, container=asked)

        self.host.on_loop(go)

    def start(self, *lines: str, **rest: Any) -> dict[str, Any]:
        self.run(*lines, **rest)
        return self.await_("started")

    def kill(self, number: int) -> None:
        self.host.on_loop(lambda: self.handle.kill(number, True))

    def log(self) -> list[str]:
        path = self.host.containers.folder(self.name) / "log"
        try:
            return [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
        except FileNotFoundError:
            return []


class Host:
    """The part of a host process that runs containers, with a loop of its own."""

    def __init__(self, engine: EngineHere, base: Path, machine: str = "m" * 32, **rest: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.base = base
        self.containers: Containers = self.on_loop(
            lambda: Containers(engine.url, self.loop, base, machine, "c" * 32, **rest)
        )
        self.open = True

    def on_loop(self, work: Callable[[], T]) -> T:
        async def call() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def unit(self, name: str = "web.service", fenced: bool = False) -> Unit:
        """A unit whose handle has said hello."""
        out = Unit(self, name, fenced)
        out.await_("hello")
        return out

    def sweep(self, known: set[str], dry_run: bool) -> list[str]:
        return asyncio.run_coroutine_threadsafe(self.containers.sweep(known, dry_run), self.loop).result(60)

    def end(self) -> None:
        """As when the host process ends: containers stay."""
        if not self.open:
            return
        self.open = False

        async def rest() -> None:
            self.containers.close()
            mine = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            if mine:
                await asyncio.wait(mine, timeout=70)

        asyncio.run_coroutine_threadsafe(rest(), self.loop).result(80)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()


@pytest.fixture
def make_host(engine: EngineHere, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(machine: str = "m" * 32, base: Path | None = None, **rest: Any) -> Host:
        host = Host(engine, base or tmp_path, machine, **rest)
        made.append(host)
        return host

    yield make
    for host in made:
        host.end()
        kill_marked(str(host.base))


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()


def all_containers(engine: EngineHere) -> list[dict[str, Any]]:
    client = engine.client()
    try:
        return [client.inspect_container(found["Id"]) for found in client.containers(all=True)]
    finally:
        client.close()


# -- run, output, end ---------------------------------------------------------------------------------


def test_a_container_runs_prints_and_ends(host: Host, engine: EngineHere) -> None:
    """started, its lines in the log with their times, the exit code, and nothing left behind."""
    unit = host.unit()
    hello = unit.seen("hello")[0]
    assert (hello["processes"], hello["ends"], hello["empty"], hello["meta"]) == ({}, {}, True, {})
    before = time.time()
    started = unit.start("Exec=/bin/sh -c 'echo one; echo two >&2; exit 7'")
    assert started["step"] == "start.0" and started["main"] and len(started["container"]) == 64
    ended = unit.await_("ended")
    assert ended == {"ev": "ended", "step": "start.0", "main": True, "code": 7, "signal": 0, "oom": False}
    unit.await_("empty")
    assert sorted(unit.log()) == ["one", "two"]
    stamps = [float(line.split(" ")[0]) for line in (host.containers.folder(unit.name) / "log").read_text().splitlines()]
    assert all(before - 5 < stamp < time.time() + 5 for stamp in stamps)
    wait_until("the container is removed", lambda: not all_containers(engine))
    assert [event["ev"] for event in unit.events] == ["hello", "started", "ended", "empty"]


def test_labels_name_and_environment(host: Host, engine: EngineHere) -> None:
    """What identifies a container, for us and for whoever looks at the engine."""
    unit = host.unit("web@1.service")
    unit.start(WAITING, "Label=tier=front", "Environment=A=1")
    (found,) = all_containers(engine)
    assert found["Name"] == "/argosy-web.at.1"
    assert found["Config"]["Labels"] == {
        "argosy.cluster": "c" * 32, "argosy.machine": "m" * 32, "argosy.unit": "web@1.service",
        "argosy.generation": "7", "argosy.invocation": "a" * 32, "argosy.fenced": "false",
        "argosy.step": "start.0", "tier": "front",
    }  # fmt: skip
    assert {"A=1", "ARGOSY_UNIT=web@1.service"} <= set(found["Config"]["Env"])
    assert found["HostConfig"]["RestartPolicy"]["Name"] == "no"


def test_signals(host: Host) -> None:
    """SIGKILL is told as a signal; SIGTERM arrives as the container's own stop signal."""
    unit = host.unit()
    unit.start("Exec=/bin/sleep 1000")
    unit.kill(signal.SIGKILL)
    assert (unit.await_("ended")["code"], unit.await_("ended")["signal"]) == (0, 9)
    unit.await_("empty")
    unit.run("Exec=/bin/sh -c 'trap \"exit 42\" USR1; echo up; while :; do sleep 0.1; done'", "StopSignal=USR1",
             invocation="b" * 32)  # fmt: skip
    unit.await_("started", 2)
    wait_until("it is up", lambda: "up" in unit.log())
    unit.kill(signal.SIGTERM)
    assert unit.await_("ended", 2)["code"] == 42


def test_a_signal_to_nothing_says_that_nothing_is_there(host: Host) -> None:
    """As a shim does."""
    unit = host.unit()
    unit.kill(signal.SIGTERM)
    unit.await_("empty")


def test_a_command_inside(host: Host) -> None:
    """ReloadCmd= runs in the container and ends by itself."""
    unit = host.unit()
    unit.start(WAITING)
    host.on_loop(lambda: unit.handle.run("reload.0", ["/bin/sh", "-c", "echo hi $A; exit 3"], {"A": "b"}, False, inside=True))
    ended = unit.await_("ended")
    assert (ended["step"], ended["main"], ended["code"]) == ("reload.0", False, 3)
    assert "argosy: reload.0: hi b" in unit.log()
    host.on_loop(lambda: unit.handle.run("stop.0", ["/bin/true"], {}, False))
    assert unit.await_("failed")["error"] == "only its container, and commands inside it, run in the engine"


def test_too_much_memory(host: Host) -> None:
    """The kernel's OOM killer is named; the engine itself may miss it if nothing outlives the killed process."""
    unit = host.unit()
    unit.start("Memory=16M", "Exec=/bin/sh -c 'tail /dev/zero; code=$?; sleep 1; exit $code'")
    ended = unit.await_("ended")
    assert ended["oom"] is True
    assert ended["signal"] == signal.SIGKILL or ended["code"] == 137


def test_health_is_reported(host: Host) -> None:
    """As the engine finds it; what to do about it is the supervisor's."""
    unit = host.unit()
    unit.start("Exec=/bin/sh -c 'touch /tmp/well; sleep 1000'", "HealthCmd=test -e /tmp/well", "HealthInterval=300ms",
               "HealthRetries=1")  # fmt: skip
    wait_until("healthy", lambda: [e for e in unit.seen("health") if e["status"] == "healthy"])
    host.on_loop(lambda: unit.handle.run("reload.0", ["/bin/rm", "/tmp/well"], {}, False, inside=True))
    wait_until("unhealthy", lambda: [e for e in unit.seen("health") if e["status"] == "unhealthy"])


def test_a_published_port_is_the_units_own(host: Host, engine: EngineHere) -> None:
    """PublishPort=http:80 with Port=http."""
    client = engine.client()
    client.create_network("front")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    unit = host.unit()
    unit.start("Network=front", "PublishPort=127.0.0.1:http:80", "Exec=/bin/sh -c 'echo hello >/www/index.html; httpd -f -h /www'",
               ports={"http": port})  # fmt: skip

    def page() -> bytes:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read()
        finally:
            connection.close()

    assert wait_until("the page", page) == b"hello\n"
    unit.kill(signal.SIGKILL)
    unit.await_("empty")
    client.remove_network("front")
    client.close()


# -- what cannot be started -------------------------------------------------------------------------------


def test_an_image_that_must_not_be_pulled(host: Host) -> None:
    """Pull=never says what is missing."""
    unit = host.unit()
    unit.run("Image=argosy.test/nothing:1")
    failed = unit.await_("failed")
    assert failed["error"] == "image argosy.test/nothing:1 is not on this machine, and Pull=never forbids to get it"
    assert not unit.seen("pulling")


def test_a_program_that_is_not_there(host: Host, engine: EngineHere) -> None:
    """The engine's reason, and no container left."""
    unit = host.unit()
    unit.run("Exec=/bin/nothing")
    error = unit.await_("failed")["error"]
    assert "/bin/nothing" in error
    assert unit.log() == [f"argosy: not started: {error}"]
    assert not all_containers(engine)


def test_a_name_that_somebody_else_has(host: Host, engine: EngineHere) -> None:
    """A stranger's container is not touched."""
    client = engine.client()
    stranger = client.create_container(IMAGE, ["/bin/true"], name="argosy-web")["Id"]
    unit = host.unit()
    unit.run(WAITING)
    assert unit.await_("failed")["error"] == "the name argosy-web is taken by a container of nobody here"
    assert [found["Id"] for found in all_containers(engine)] == [stranger]
    client.close()


def test_a_stop_while_the_image_is_pulled(host: Host) -> None:
    """The start is called off at once; nothing was started."""
    with socket.create_server(("127.0.0.1", 0)) as registry:  # takes the call and never answers
        unit = host.unit()
        unit.run(f"Image=127.0.0.1:{registry.getsockname()[1]}/box:1", "Pull=missing")
        unit.await_("pulling")
        unit.kill(signal.SIGTERM)
        ended = unit.await_("ended")
    assert (ended["code"], ended["signal"]) == (0, 15)
    unit.await_("empty")
    assert not unit.seen("started") and not unit.seen("pulled")


def test_an_image_that_cannot_be_pulled(host: Host) -> None:
    """After the retries, the reason."""
    unit = host.unit()
    unit.run("Image=127.0.0.1:1/box:1", "Pull=always", "Retry=1", "RetryDelay=10ms")
    assert unit.await_("failed")["error"].startswith("image 127.0.0.1:1/box:1 could not be pulled: ")


# -- found again ---------------------------------------------------------------------------------------


def test_a_new_host_process_adopts_the_container(make_host: Callable[..., Host], engine: EngineHere) -> None:
    """Same process, no second container, and no line of the log lost or doubled."""
    old = make_host()
    unit = old.unit()
    counting = "Exec=/bin/sh -c 'n=0; while test $n -lt 3000; do n=$((n+1)); echo line $n; test $((n%50)) = 0 && sleep 0.1; done; sleep 1000'"
    pid = unit.start(counting)["pid"]
    wait_until("some output", lambda: len(unit.log()) > 100)
    old.end()
    new = make_host()
    again = new.unit()
    hello = again.seen("hello")[0]
    assert {int(p): known["step"] for p, known in hello["processes"].items()} == {pid: "start.0"}
    assert hello["meta"]["invocation"] == "a" * 32 and not hello["empty"]
    wait_until("all output", lambda: "line 3000" in again.log())
    assert again.log() == [f"line {n}" for n in range(1, 3001)]
    assert [found["State"]["Pid"] for found in all_containers(engine)] == [pid]
    again.kill(signal.SIGKILL)
    assert again.await_("ended")["signal"] == 9


def test_an_end_that_nobody_saw(make_host: Callable[..., Host], engine: EngineHere) -> None:
    """Its code, its last words, and then it is tidied up."""
    old = make_host()
    unit = old.unit()
    unit.start("Exec=/bin/sh -c 'echo first; while ! test -e /tmp/go; do sleep 0.05; done; echo last; exit 5'")
    wait_until("it runs", lambda: unit.log() == ["first"])
    old.end()
    client = engine.client()
    made = client.exec_create(all_containers(engine)[0]["Id"], ["/bin/touch", "/tmp/go"])
    client.exec_start(made["Id"])
    wait_until("it ended", lambda: not all_containers(engine)[0]["State"]["Running"])
    client.close()
    again = make_host().unit()
    hello = again.seen("hello")[0]
    assert hello["empty"] and not hello["processes"]
    assert (hello["ends"]["main"]["code"], hello["ends"]["main"]["step"]) == (5, "start.0")
    assert hello["pending"] == [hello["ends"]["main"]]
    assert again.log() == ["first", "last"]
    assert not all_containers(engine)


def test_a_container_that_was_removed_meanwhile(make_host: Callable[..., Host], engine: EngineHere) -> None:
    """By an operator at the engine, seen or unseen: it was killed."""
    old = make_host()
    unit = old.unit()
    unit.start(WAITING)
    engine.remove_all()
    assert unit.await_("ended")["signal"] == 9
    unit.run(WAITING, invocation="b" * 32)
    unit.await_("started", 2)
    old.end()
    engine.remove_all()
    hello = make_host().unit().seen("hello")[0]
    assert hello["ends"]["main"]["signal"] == 9 and hello["empty"]


def test_a_container_of_an_older_run_is_not_adopted(make_host: Callable[..., Host], engine: EngineHere) -> None:
    """It is said to be there, goes when it is told to, and a new run takes its place."""
    old = make_host()
    unit = old.unit()
    unit.start(WAITING)
    old.end()
    (old.containers.folder("web.service") / "container.json").unlink()  # what the disk knew is lost
    again = make_host().unit()
    hello = again.seen("hello")[0]
    assert not hello["empty"] and not hello["processes"]
    again.kill(signal.SIGKILL)
    again.await_("empty")
    assert not all_containers(engine)


def test_two_handles_never_make_two_containers(make_host: Callable[..., Host], engine: EngineHere) -> None:
    """Both ask for the same run at the same time: one container, adopted by both."""
    first, second = make_host().unit(), make_host().unit()
    for unit in (first, second):
        unit.run(WAITING)
    pids = {unit.await_("started")["pid"] for unit in (first, second)}
    assert len(pids) == 1
    (found,) = all_containers(engine)
    assert found["State"]["Pid"] in pids
    first.kill(signal.SIGTERM)
    for unit in (first, second):
        unit.await_("ended")


def test_a_start_that_is_asked_for_twice(host: Host, engine: EngineHere) -> None:
    """The same run is started once."""
    unit = host.unit()
    once = "Exec=/bin/sh -c 'echo once; sleep 1000'"
    unit.run(once)
    first = unit.start(once)
    unit.run(once)
    assert unit.await_("started", 2)["container"] == first["container"]
    assert len(unit.seen("started")) == 2
    wait_until("it speaks", lambda: unit.log())
    assert unit.log() == ["once"]


def test_quit_takes_a_running_container_along(host: Host, engine: EngineHere) -> None:
    """ended, empty, lost; the unit's note is gone."""
    unit = host.unit()
    unit.start(WAITING)
    host.on_loop(unit.handle.quit)
    unit.await_("lost")
    assert [event["ev"] for event in unit.events] == ["hello", "started", "ended", "empty", "lost"]
    assert not all_containers(engine)
    assert host.containers.existing() == []


# -- an engine in trouble ---------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines short enough to pass within a test."""
    monkeypatch.setattr("runners.engine.QUESTION_S_MAX", 1.0)
    monkeypatch.setattr("runners.engine.CHANGE_S_MAX", 1.0)
    monkeypatch.setattr("runners.engine.SIGNAL_S_MAX", 1.0)


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_hangs_doubles_nothing(host: Host, engine: EngineHere) -> None:
    """Asked to start while it hangs, and asked again and again, it makes and starts one container."""
    other = host.unit("other.service")
    before = other.start(WAITING)
    unit = host.unit()
    engine.signal(signal.SIGSTOP)
    unit.run("Exec=/bin/sh -c 'echo once; sleep 1000'")
    unit.await_("waiting", 2)
    assert not unit.seen("started") and not unit.seen("failed")
    engine.signal(signal.SIGCONT)
    pid = unit.await_("started")["pid"]
    wait_until("it speaks", lambda: unit.log())
    running = [found for found in all_containers(engine) if found["State"]["Running"]]
    assert sorted(found["State"]["Pid"] for found in running) == sorted([pid, before["pid"]])
    assert unit.log() == ["once"]
    assert [event["ev"] for event in other.events] == ["hello", "started"]


@pytest.mark.usefixtures("impatient")
def test_a_signal_reaches_a_container_although_the_engine_hangs(host: Host, engine: EngineHere) -> None:
    """The process is known; how it ended is told once the engine answers."""
    unit = host.unit()
    pid = unit.start("Exec=/bin/sleep 1000")["pid"]
    engine.signal(signal.SIGSTOP)
    unit.kill(signal.SIGKILL)
    wait_until("the process is gone", lambda: _gone(pid))
    engine.signal(signal.SIGCONT)
    assert unit.await_("ended")["signal"] == 9


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.usefixtures("impatient")
def test_a_hanging_engine_does_not_hide_a_running_container(make_host: Callable[..., Host], engine: EngineHere) -> None:
    """A new host process sees the process itself, and adopts it before the engine answers."""
    old = make_host()
    unit = old.unit()
    pid = unit.start(WAITING)["pid"]
    old.end()
    engine.signal(signal.SIGSTOP)
    again = make_host().unit()
    assert list(again.seen("hello")[0]["processes"]) == [str(pid)]
    engine.signal(signal.SIGCONT)
    again.kill(signal.SIGTERM)
    again.await_("ended")


# a connection that the engine's crash cut in the middle of a request is left to the collector by the library
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", [EngineHere.stop, EngineHere.crash])
def test_an_engine_that_is_restarted_tells_what_ended(
    host: Host, engine: EngineHere, how: Callable[[EngineHere], None]
) -> None:
    """Its containers ended with it: ended, not lost, and a new run starts in the new engine."""
    unit = host.unit()
    unit.start(WAITING)
    how(engine)
    engine.start()
    assert unit.await_("ended")["main"]
    unit.await_("empty")
    assert not unit.seen("lost")
    unit.run(WAITING, invocation="b" * 32)
    unit.await_("started", 2)
    assert len(all_containers(engine)) == 1


def test_an_engine_that_stays_away(host: Host, engine: EngineHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the process gone too, the unit is lost, and says so; later its end is found."""
    monkeypatch.setattr(container_handle, "ENGINE_PATIENCE_S", 0.5)
    unit = host.unit()
    unit.start(WAITING)
    engine.stop()
    assert "its process is gone, and how it ended is not known" in unit.await_("lost")["error"]
    again = Unit(host, "web.service")
    assert "does not answer" in again.await_("lost")["error"]
    engine.start()
    hello = host.unit().seen("hello")[0]
    assert hello["empty"] and hello["ends"]["main"]["main"]


# -- the sweep ---------------------------------------------------------------------------------------------


def test_a_sweep_removes_what_belongs_to_nobody(make_host: Callable[..., Host], tmp_path: Path, engine: EngineHere) -> None:
    """Seen twice, of this machine, and of no unit that is known; at first it only says so."""
    old = make_host(base=tmp_path / "old")
    old.unit("orphan.service").start(WAITING)
    old.end()
    elsewhere = make_host("n" * 32, base=tmp_path / "elsewhere", prefix="argosy-n-")
    elsewhere.unit("orphan.service").start(WAITING)
    new = make_host(base=tmp_path / "new", sweep_grace_s=0.2)
    new.unit("web.service").start(WAITING)
    assert new.sweep({"web.service"}, True) == []
    assert wait_until("the grace is over", lambda: new.sweep({"web.service"}, True)) == ["argosy-orphan"]
    assert len(all_containers(engine)) == 3
    assert new.sweep({"web.service", "orphan.service"}, False) == []
    assert wait_until("again twice", lambda: new.sweep({"web.service"}, False)) == ["argosy-orphan"]
    assert sorted(found["Name"] for found in all_containers(engine)) == ["/argosy-n-orphan", "/argosy-web"]


# -- the fence ---------------------------------------------------------------------------------------------


def write_lease(base: Path, stop_in: float, kill_in: float) -> None:
    now = boottime()
    (base / "lease.new").write_bytes(LEASE.pack(now + stop_in, now + kill_in))
    os.replace(base / "lease.new", base / "lease")


def guard_pid(base: Path) -> int:
    return int((base / containers.GUARD_LOCK_FILE).read_text())


def test_the_guard_ends_what_is_fenced_when_the_lease_is_over(make_host: Callable[..., Host], tmp_path: Path, engine: EngineHere) -> None:
    """With nobody else there: the obedient by SIGTERM, the deaf by SIGKILL, the unfenced not at all."""
    write_lease(tmp_path, 1000, 1000)
    old = make_host()
    polite = old.unit("polite.service", fenced=True)
    deaf = old.unit("deaf.service", fenced=True)
    free = old.unit("free.service")
    polite.start("Exec=/bin/sh -c 'trap \"echo bye; exit 3\" TERM; echo up; while :; do sleep 0.1; done'")
    deaf.start("Exec=/bin/sleep 1000")
    pid = free.start("Exec=/bin/sleep 1000")["pid"]
    wait_until("it is up", lambda: "up" in polite.log())
    old.end()
    write_lease(tmp_path, 0, 1000)
    client = engine.client()
    wait_until("the obedient one ended", lambda: not client.inspect_container("argosy-polite")["State"]["Running"])
    assert client.inspect_container("argosy-deaf")["State"]["Running"]
    write_lease(tmp_path, 0, 0)
    wait_until("the deaf one ended", lambda: not client.inspect_container("argosy-deaf")["State"]["Running"])
    assert client.inspect_container("argosy-free")["State"]["Pid"] == pid
    client.close()
    new = make_host()
    ends = {name: new.unit(f"{name}.service", fenced=True).seen("hello")[0]["ends"]["main"] for name in ("polite", "deaf")}
    assert ends["polite"]["fenced"] and ends["polite"]["code"] == 3
    assert ends["deaf"]["fenced"] and ends["deaf"]["signal"] == 9


def test_an_end_by_the_guard_is_told_as_one(host: Host, tmp_path: Path) -> None:
    """Also to a host process that is there, and the log says it."""
    write_lease(tmp_path, 1000, 1000)
    unit = host.unit(fenced=True)
    unit.start(WAITING)
    write_lease(tmp_path, 0, 1000)
    assert unit.await_("ended")["fenced"] is True
    assert "argosy: the machine's lease is over: the container was ended" in unit.log()


def test_the_guard_needs_no_engine(host: Host, tmp_path: Path, engine: EngineHere) -> None:
    """What the host process wrote down, or itself has seen, it also ends while the engine hangs."""
    write_lease(tmp_path, 1000, 1000)
    unit = host.unit(fenced=True)
    pid = unit.start("Exec=/bin/sleep 1000")["pid"]
    engine.signal(signal.SIGSTOP)
    write_lease(tmp_path, 0, 0)
    wait_until("the process is gone", lambda: _gone(pid))
    engine.signal(signal.SIGCONT)
    assert unit.await_("ended")["fenced"] is True


def test_nothing_fenced_starts_without_a_lease(host: Host, engine: EngineHere) -> None:
    """Neither with none at all nor with one that is over."""
    unit = host.unit(fenced=True)
    unit.run(WAITING)
    assert unit.await_("ended")["fenced"] is True
    assert not unit.seen("started")
    assert not all_containers(engine)


def test_a_guard_that_died_is_replaced(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And there is never a second one."""
    monkeypatch.setattr(containers, "GUARD_LOOK_S", 0.1)
    write_lease(tmp_path, 1000, 1000)
    unit = host.unit(fenced=True)
    unit.start(WAITING)
    first = guard_pid(tmp_path)
    host.on_loop(lambda: None)
    host.containers.ensure_guard()
    assert guard_pid(tmp_path) == first
    os.kill(first, signal.SIGKILL)
    second = wait_until("another guard", lambda: guard_pid(tmp_path) != first and guard_pid(tmp_path))
    assert not _gone(second)
    write_lease(tmp_path, 0, 0)
    assert unit.await_("ended")["fenced"] is True


def test_a_guard_with_nothing_to_guard_leaves(tmp_path: Path, engine: EngineHere, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without a fenced container."""
    monkeypatch.setattr(container_guard, "IDLE_S", 0.3)
    write_lease(tmp_path, 1000, 1000)
    (tmp_path / containers.GUARD_LOCK_FILE).touch()
    guard = container_guard.Guard(engine.url.removeprefix("unix://"), str(tmp_path / "lease"), "m" * 32)
    thread = threading.Thread(target=guard.run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_what_was_asked_to_end_did_so_for_the_lease_though_it_was_renewed(host: Host, tmp_path: Path) -> None:
    """Between SIGTERM and SIGKILL the lease may come back: the end that follows is no failure."""
    write_lease(tmp_path, 1000, 1000)
    unit = host.unit(fenced=True)
    unit.start("Exec=/bin/sh -c 'trap \"echo heard\" TERM; echo up; while :; do sleep 0.1; done'")
    wait_until("it is up", lambda: "up" in unit.log())
    write_lease(tmp_path, 0, 1000)
    wait_until("it heard the guard", lambda: "heard" in unit.log())
    write_lease(tmp_path, 1000, 1000)
    unit.kill(signal.SIGKILL)
    assert unit.await_("ended")["fenced"]


def test_what_outlived_the_guard_for_long_ends_by_itself_again(tmp_path: Path) -> None:
    """A container that does not care about SIGTERM is an ordinary one when the lease is long renewed."""
    guard = container_guard.Guard("unused", str(tmp_path / "lease"), "m")
    guard.running = {"old": (1, ""), "young": (2, "")}
    guard.write_ended(["old", "young", "gone"])
    guard.ended["old"] -= container_guard.FENCE_S_MAX + 1
    guard.relent()
    assert set(guard.read_ended()) == {"young", "gone"}
