"""The founding picture on one machine: two load balancers, six API servers, one loss.

Every step is checked by what a client sees; the last line says whether all of them held.
"""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.panel import Panel

from . import engine as containers
from . import local, show
from .local_commands import await_cluster, detach_watcher
from .session import Session

MACHINES = 3
APIS = [f"api@{n}" for n in range(1, 7)]
LBS = ["lb@1", "lb@2"]


class DemoFailed(Exception):
    """A step did not hold."""


def picture() -> Path:
    """Where the example's unit files are."""
    for base in (Path(__file__).resolve().parent.parent, Path.cwd()):
        if (base / "examples" / "picture" / "api.py").exists():
            return base / "examples" / "picture"
    raise DemoFailed("examples/picture is not here; run the demo from the project's folder")


@dataclass(slots=True)
class Client:
    """Asks both load balancers in turn, without pause, and counts what failed."""

    ports: list[int]
    good: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    served_by: dict[str, int] = field(default_factory=dict)
    last_error: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the last request."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(15)

    def _run(self) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            begun = time.monotonic()
            ports = list(self.ports)
            for port in ports[turn % 2 :] + ports[: turn % 2]:
                try:
                    body = fetch(port)
                    self.good += 1
                    self.served_by[body["unit"]] = self.served_by.get(body["unit"], 0) + 1
                    break
                except (OSError, http.client.HTTPException, ValueError) as error:
                    self.last_error = f"port {port}: {error!r}"
            else:
                self.failed += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            time.sleep(0.01)


def fetch(port: int) -> dict[str, Any]:
    """The page behind a port."""
    import json

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=6)
    try:
        connection.request("GET", "/")
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            raise ValueError(f"HTTP {reply.status}")
        page: dict[str, Any] = json.loads(body)
        return page
    finally:
        connection.close()


class Stage:
    """Shows the machines, units and steps: live in a terminal, lines when piped."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.steps: list[str] = []
        self._live: Live | None = None
        self._begun = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> Stage:
        if sys.stdout.isatty():
            self._live = Live(self._picture(), console=show.console, refresh_per_second=4)
            self._live.start()
            threading.Thread(target=self._refresh, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._live is not None:
            self._live.update(self._picture())
            self._live.stop()

    def _refresh(self) -> None:
        viewer = Session(self.session.context, "", 2.0)
        while not self._done.wait(0.4):
            assert self._live is not None
            self._live.update(self._picture(viewer))

    def _picture(self, viewer: Session | None = None) -> Group:
        parts: list[Any] = []
        if viewer is not None:
            try:
                status = viewer.try_ask("cluster.status", 2.0)
                machines = viewer.try_ask("machine.list", 2.0)
                units = viewer.try_ask("unit.list", 2.0)
                head = f"leader {status['leader'] or '-'}, term {status['term']}, tolerates {status['quorum_margin']}"
                parts.append(Panel(show.build(show.with_short(machines, "id"), show.MACHINE_COLUMNS), title=head))
                parts.append(Panel(show.build(show.with_age(units), show.UNIT_COLUMNS), title="units"))
            except Exception as error:  # noqa: BLE001 - a picture, not the play
                parts.append(Panel(str(error), title="waiting"))
        parts.append(Panel("\n".join(self.steps[-14:]), title="events"))
        return Group(*parts)

    def say(self, text: str) -> None:
        """One event."""
        line = f"[{time.monotonic() - self._begun:6.1f} s] {text}"
        self.steps.append(line.replace("[", "\\[", 1))
        if self._live is None:
            print(line, flush=True)

    def await_(self, what: str, condition: Callable[[], Any], seconds: float) -> Any:
        """Wait for something to hold, or fail the demo."""
        deadline = time.monotonic() + seconds
        last: Any = None
        while time.monotonic() < deadline:
            try:
                last = condition()
                if last:
                    return last
            except Exception as error:  # noqa: BLE001 - it may come right yet
                last = error
            time.sleep(0.05)
        raise DemoFailed(f"{what}: not within {seconds:g} s (last seen: {last})")


def run(folder: Path, offset: int, once: bool, engine: str = "") -> int:
    """Play it, in containers if there is an ``engine`` (see :func:`cli.engine.find`); the exit status."""
    if not engine:
        return _run(folder, offset, once, "")
    started: containers.Engine | None = None
    try:
        url, started = containers.find(engine, folder.with_name(folder.name + "-engine"))
        containers.make_image(url, picture() / "containers" / "image")
        try:
            return _run(folder, offset, once, url)
        finally:
            if cluster := local.cluster_of(folder):
                containers.remove_containers(url, cluster)
    except (containers.EngineError, DemoFailed) as error:
        print(f"argosy: demo failed: {error}", file=sys.stderr)
        return 1
    finally:
        if started is not None:
            started.end()


def _run(folder: Path, offset: int, once: bool, engine: str) -> int:
    session = Session(str(folder / "context.toml"), "", 60.0)
    try:
        local.create(folder, MACHINES, offset, engine)
        local.make_default(folder)
        for home in local.homes(folder):
            (home / "off").unlink(missing_ok=True)
        detach_watcher(folder)
        await_cluster(session, MACHINES)
        with Stage(session) as stage:
            _play(stage, session, folder, engine)
    except (DemoFailed, local.LocalError) as error:
        print(f"argosy: demo failed: {error}", file=sys.stderr)
        down(folder)
        return 1
    except SystemExit:  # a command that failed has said why
        down(folder)
        raise
    except KeyboardInterrupt:
        down(folder)
        return 130
    if once:
        down(folder)
        print("every step held; everything is stopped")
        return 0
    stay(session, folder, offset)
    return 0


def down(folder: Path) -> None:
    """Stop the cluster, if there is one."""
    try:
        local.down(folder)
    except local.LocalError:
        pass


def stay(session: Session, folder: Path, offset: int) -> None:
    """Say what can be opened, and wait for Ctrl-C."""
    rows = session.ask("unit.list")
    print("\nopen:")
    for row in rows:
        if row["unit"].startswith("lb@"):
            print(f"  http://127.0.0.1:{row['ports']['http']}/   the page, through {row['unit']} on {row['machine']}")
    print(f"  http://127.0.0.1:{local.HTTP + 1 + offset}/   the machines and their units, live")
    print(f"  http://127.0.0.1:{local.HTTP + 1 + offset}/v2/keys/services?recursive=true   the brain")
    print(f"  http://127.0.0.1:{local.HTTP + 1 + offset}/metrics   metrics")
    print(f"try:  argosy --context {folder / 'context.toml'} unit list\nCtrl-C stops everything")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        down(folder)


def _play(stage: Stage, session: Session, folder: Path, engine: str) -> None:
    stage.say(f"{MACHINES} machines are up; leader is {session.ask('cluster.status')['leader']}")
    if engine:
        stage.say(f"everything runs in containers, in the engine at {engine}")
    elif not shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin"):
        stage.say("HAProxy is not installed: a small proxy among the examples takes its place")
    submit(stage, session, bool(engine))
    session.ask("kv.put", key="/config/db", value="db-1.example:5432")
    ports = lb_ports(session)
    stage.await_("the page", lambda: all(fetch(p)["database"] == "db-1.example:5432" for p in ports), 20)
    stage.say(f"the page answers through both load balancers (ports {ports[0]} and {ports[1]})")
    client = Client(ports)
    client.start()
    try:
        stage.await_("six servers behind the balancers", lambda: len(client.served_by) == len(APIS), 20)
        stage.say("all six API servers are behind the load balancers")
        _change_database(stage, session, ports)
        _lose_a_machine(stage, session, folder, client)
        _bring_it_back(stage, session, folder)
    finally:
        client.stop()
    if client.failed:
        raise DemoFailed(f"{client.failed} of {client.good + client.failed} requests failed: {client.last_error}")
    stage.say(f"{client.good} requests, not one failed (slowest {client.slowest_s * 1000:.0f} ms)")


def submit(stage: Stage, session: Session, in_containers: bool = False) -> None:
    """Submit the unit files as an installer would: with its own paths in place."""
    here = picture()
    places = {
        "@PICTURE@": str(here),
        "@IMAGE@": containers.IMAGE,
        "@PYTHON@": sys.executable,
        "@PATH@": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    files = []
    for name in ("containers/api@.container", "containers/lb@.container") if in_containers else ("api@.service", "lb@.service"):
        content = (here / name).read_text()
        for mark, value in places.items():
            content = content.replace(mark, value)
        files.append({"name": Path(name).name, "content": content, "path": str(here / name)})
    session.ask("unit.submit", files=files, replace=True)
    begun = time.monotonic()
    session.ask("unit.start", 70.0, units=APIS, within=60.0)
    session.ask("unit.start", 70.0, units=LBS, within=60.0)
    rows = session.ask("unit.list")
    stage.say(f"8 units run and are healthy after {time.monotonic() - begun:.1f} s")
    for machine in sorted({row["machine"] for row in rows}):
        names = ", ".join(r["unit"].removesuffix(".service") for r in rows if r["machine"] == machine)
        stage.say(f"  {machine}: {names}")
    homes = {row["machine"] for row in rows if row["unit"].startswith("lb@")}
    if len(homes) != len(LBS):
        raise DemoFailed("both load balancers are on one machine")


def lb_ports(session: Session) -> list[int]:
    """Where the load balancers answer."""
    return [row["ports"]["http"] for row in session.ask("unit.list") if row["unit"].startswith("lb@") and row["ports"]]


def _change_database(stage: Stage, session: Session, ports: list[int]) -> None:
    session.ask("kv.put", key="/config/db", value="db-2.example:5432")
    begun = time.monotonic()
    stage.await_(
        "the changed database address on every page",
        lambda: all(fetch(p)["database"] == "db-2.example:5432" for p in ports for _ in APIS), 10,
    )  # fmt: skip
    stage.say(f"/config/db changed; every page shows it {time.monotonic() - begun:.2f} s later, nothing restarted")


def _lose_a_machine(stage: Stage, session: Session, folder: Path, client: Client) -> None:
    before = {r["unit"]: r["machine"] for r in session.ask("unit.list")}
    victim = next(m for u, m in before.items() if u.startswith("lb@"))
    moved = sorted(u for u, m in before.items() if m == victim)
    stage.say(f"power cut: {victim} dies with {', '.join(u.removesuffix('.service') for u in moved)}")
    begun = time.monotonic()
    local.kill(folder, victim)
    arrived: dict[str, tuple[str, float]] = {}

    def all_moved() -> bool:
        for row in session.try_ask("unit.list", 3.0):
            name = row["unit"]
            if name in moved and row["machine"] not in ("", victim) and row["active"] == "active" and row["health"] == "passing":
                arrived.setdefault(name, (row["machine"], time.monotonic() - begun))
        return len(arrived) == len(moved)

    stage.await_("the units on other machines", all_moved, 45)
    for name, (machine, seconds) in sorted(arrived.items()):
        stage.say(f"  {name.removesuffix('.service')}: {victim} -> {machine}, healthy after {seconds:.1f} s")
    client.ports = stage.await_("both load balancers", lambda: p if len(p := lb_ports(session)) == len(LBS) else None, 10)
    if client.failed:
        raise DemoFailed(f"{client.failed} requests failed while {victim} was lost: {client.last_error}")
    stage.say(f"the client saw {client.good} pages and no failure")


def _bring_it_back(stage: Stage, session: Session, folder: Path) -> None:
    lost = [m["name"] for m in session.ask("machine.list") if m["state"] == "lost"]
    begun = time.monotonic()
    local.boot(folder, lost[0])
    stage.await_(
        f"{lost[0]} to be ready again",
        lambda: all(m["state"] == "ready" for m in session.try_ask("machine.list", 3.0)), 30,
    )  # fmt: skip
    stage.say(f"{lost[0]} is back after {time.monotonic() - begun:.1f} s")
    session.ask("unit.start", 70.0, units=["api@7"], within=60.0)
    where = next(r["machine"] for r in session.ask("unit.list") if r["unit"] == "api@7.service")
    if where != lost[0]:
        raise DemoFailed(f"api@7 went to {where}, not to the empty {lost[0]}")
    stage.say(f"{lost[0]} is used again: api@7 runs there")
    session.ask("unit.destroy", 70.0, units=["api@7"], within=60.0)
