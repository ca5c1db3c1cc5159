"""A cluster of real host processes for a test, and the means to ask, break and watch it.

A cluster is always torn down, and a process that is left over fails the test that left it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cli import local
from cli.session import Session
from transport.client import ClientTimeout

from ..answers import Answer
from ..waiting import PATIENCE_S, wait_until

_LISTENED = (local.HTTP, local.GRPC, local.TRANSPORT)
#: Offsets keep every port below the range from which the system hands out free ones.
_OFFSETS = [
    offset for offset in range(1000, 25_000, 20)
    # python-etcd's suite has ports 6001 to 6003 and 8001 to 8003 in its text, and may run beside other tests
    if not any(abs(base + offset - fixed) < 25 for base in _LISTENED for fixed in (6001, 8001))
]  # fmt: skip


@contextmanager
def port_offset(machines: int = 3) -> Iterator[int]:
    """An offset whose ports are free; bound sockets keep other tests off them meanwhile."""
    for offset in random.sample(_OFFSETS, len(_OFFSETS)):
        ports = [base + number + offset for base in _LISTENED for number in range(1, machines + 1)]
        with ExitStack() as guards:
            try:
                for block in sorted({port // 20 for port in ports}):  # of twenty ports, by datagrams, which nobody here uses
                    guards.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", block * 20))
                for port in ports:
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield offset
            return
    raise AssertionError("no free ports for a cluster")


def argosy_command() -> str:
    """The installed program: the one beside this interpreter, else the one on the path."""
    beside = Path(sys.executable).with_name("argosy")
    found = str(beside) if beside.exists() else shutil.which("argosy")
    assert found, "argosy is not installed: pip install -e ."
    return found


def environment(home: Path, **more: str) -> dict[str, str]:
    """A user's environment without anything of Argosy, and with a configuration of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ARGOSY_")}
    return {**kept, "XDG_CONFIG_HOME": str(home / "config"), **more}


def run_argosy(
    home: Path, *args: str, seconds: float = 90.0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [argosy_command(), *args], env=environment(home, **more), cwd=home, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False,
    )  # fmt: skip


def request(
    port: int, method: str, path: str, form: dict[str, str] | bytes | None = None, seconds: float = 10.0
) -> Answer:
    """One request to a door, on a connection of its own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        headers = {} if form is None else {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode() if isinstance(form, dict) else form
        connection.request(method, path, body, headers)
        return Answer.read(connection.getresponse())
    finally:
        connection.close()


@dataclass(frozen=True)
class Process:
    """A living process."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} {self.command}"


def processes_of(folder: Path) -> list[Process]:
    """Every living process that belongs to a directory: hosts, shims, and all that units started."""
    marked = f"ARGOSY_HOST_DIR={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            variables = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        mine = any(v == marked or v.startswith(marked + b"/") for v in variables)
        is_host = f"{folder}/".encode() in command and b"start" in command
        if state not in "ZX" and (mine or is_host):
            found.append(Process(int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")))
    return found


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def signal_process(pid: int, number: int) -> None:
    """Send a signal; a process that is gone is none of our business."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Writer:
    """A client that writes keys of its own at all doors in turn, and keeps what it was told.

    A write that was refused or not answered may have happened or not; the next is another key.
    """

    def __init__(self, ports: list[int], prefix: str) -> None:
        self._ports = ports
        self._prefix = prefix
        self.acknowledged: dict[str, str] = {}
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.005):
            number += 1
            key, value = f"{self._prefix}/{number}", f"value of {number}"
            try:
                port = self._ports[number % len(self._ports)]
                reply = request(port, "PUT", f"/v2/keys{key}", {"value": value}, 8.0)
            except (OSError, HTTPException) as error:
                self.failures.append(repr(error))
                continue
            if reply.status in (200, 201):
                self.acknowledged[key] = value
            else:
                self.failures.append(reply.text)

    def await_more(self, count: int) -> None:
        """Wait until so many further writes were acknowledged."""
        target = len(self.acknowledged) + count
        wait_until(f"{count} more writes", lambda: len(self.acknowledged) >= target)


class Cluster:
    """A local cluster as ``argosy up`` makes it."""

    def __init__(self, folder: Path, offset: int, machines: int = 3) -> None:
        self.home = folder
        self.dir = folder / "cluster"
        self.offset = offset
        self.machines = machines
        self.context = self.dir / "context.toml"
        self._session: Session | None = None
        self._names = 0

    # -- life ------------------------------------------------------------------------------

    def create(self, metadata: dict[str, dict[str, str]] | None = None) -> None:
        """Lay the machines' directories out; ``metadata`` by machine goes into ``host.toml``."""
        local.create(self.dir, self.machines, self.offset)
        for machine, table in (metadata or {}).items():
            words = ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
            with open(self.dir / machine / "host.toml", "a") as file:
                file.write(f"metadata = {{ {words} }}\n")

    def up(self) -> None:
        """Start it and wait until all machines are ready."""
        done = run_argosy(
            self.home, "up", "--machines", str(self.machines), "--dir", str(self.dir),
            "--port-offset", str(self.offset), "--detach", "--no-default",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.host_logs()

    def down(self) -> None:
        """Stop everything; fails if a process is left."""
        self.close()
        left: list[Process] = []
        if (self.dir / "cluster.json").exists():
            done = run_argosy(self.home, "down", "--dir", str(self.dir))
            left = processes_of(self.dir)
            for process in left:
                signal_process(process.pid, signal.SIGKILL)
            assert done.returncode == 0, done.stderr
        assert not left, "processes are left after 'argosy down': " + "; ".join(map(str, left))

    def close(self) -> None:
        """Drop the link to a host."""
        if self._session is not None and self._session._client is not None:
            self._session._client.close()
        self._session = None

    def host_logs(self) -> str:
        """The end of every host's log, for a failed assertion."""
        out = []
        for path in sorted(self.dir.glob("m*/host.log")):
            out.append(f"--- {path.parent.name}\n" + "\n".join(path.read_text().splitlines()[-15:]))
        return "\n".join(out)

    # -- asking ----------------------------------------------------------------------------

    def argosy(self, *args: str, seconds: float = 90.0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against this cluster."""
        return run_argosy(self.home, "--context", str(self.context), *args, seconds=seconds, **more)

    def ok(self, *args: str, seconds: float = 90.0) -> str:
        """Run a command that must succeed; its output."""
        done = self.argosy(*args, seconds=seconds)
        assert done.returncode == 0, f"argosy {' '.join(args)}: {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def json(self, *args: str) -> Any:
        """What a command prints with ``--json``."""
        return json.loads(self.ok(*args, "--json"))

    def local(self, verb: str, machine: str) -> None:
        """``argosy local VERB MACHINE``."""
        done = run_argosy(self.home, "local", verb, machine, "--dir", str(self.dir))
        assert done.returncode == 0, done.stderr

    def ask(self, verb: str, seconds: float = 8.0, **args: Any) -> Any:
        """Carry out a verb over one kept link: cheaper than a process for each look."""
        if self._session is None:
            self._session = Session(context=str(self.context), timeout=seconds)
        try:
            return self._session.try_ask(verb, seconds, **args)
        except ClientTimeout:
            self.close()
            raise

    def client_port(self, number: int) -> int:
        """The HTTP door of machine ``number`` (from 1)."""
        return local.HTTP + number + self.offset

    def transport(self, number: int) -> str:
        """The transport address of machine ``number``."""
        return f"127.0.0.1:{local.TRANSPORT + number + self.offset}"

    def http(
        self, number: int, method: str, path: str, form: dict[str, str] | bytes | None = None,
        seconds: float = 10.0,
    ) -> Answer:  # fmt: skip
        """One request to the door of machine ``number``."""
        return request(self.client_port(number), method, path, form, seconds)

    # -- looking ---------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The machines' names."""
        return [f"m{n}" for n in range(1, self.machines + 1)]

    def leader(self) -> str:
        """The leader's name, as soon as there is one that answers."""
        return wait_until("a leader", lambda: str(self.ask("cluster.status")["leader"]))

    def host_pid(self, machine: str) -> int:
        """The host process of a machine; 0 if there is none."""
        return local.host_pid(self.dir / machine)

    def units(self) -> list[dict[str, Any]]:
        """The rows of ``unit list``."""
        rows: list[dict[str, Any]] = self.ask("unit.list")
        return rows

    def rows(self, unit: str) -> list[dict[str, Any]]:
        """The rows of one unit."""
        full = unit if unit.endswith(".service") else f"{unit}.service"
        return [row for row in self.units() if row["unit"] == full]

    def row(self, unit: str) -> dict[str, Any]:
        """The only row of a unit."""
        (row,) = self.rows(unit)
        return row

    def log(self, unit: str, lines: int = 1000) -> list[str]:
        """What a unit printed."""
        answer = self.ask("unit.logs", units=[unit], lines=lines)
        return [text for stream in answer["streams"] for _, text, _ in stream["lines"]]

    def states(self) -> dict[str, str]:
        """Machine states by name."""
        return {row["name"]: row["state"] for row in self.ask("machine.list")}

    def await_ready(self, *machines: str) -> None:
        """Wait until machines (all of them by default) are ready."""
        wanted = machines or tuple(self.names())
        wait_until(
            f"{', '.join(wanted)} to be ready",
            lambda: all(self.states().get(machine) == "ready" for machine in wanted),
        )

    def await_whole(self) -> None:
        """Wait until every machine is ready, each host sees a quorum, and the leader hears all."""
        self.await_ready()
        wait_until(
            "every host to see a quorum",
            lambda: all(self.http(n, "GET", "/health").status == 200 for n in range(1, self.machines + 1)),
        )
        wait_until(
            "all members to be active",
            lambda: (s := self.ask("cluster.status"))["quorum_margin"] == (self.machines - 1) // 2
            and all(m["state"] == "active" for m in s["members"]),
        )  # fmt: skip

    def writer(self, prefix: str, *numbers: int) -> Writer:
        """A client that writes below a prefix at the doors of these machines (all by default)."""
        doors = numbers or tuple(range(1, self.machines + 1))
        return Writer([self.client_port(n) for n in doors], prefix)

    def assert_kept(self, writer: Writer, prefix: str) -> None:
        """Every acknowledged write is there (a linearizable read)."""
        found = {i["key"]: i["value"] for i in self.ask("kv.ls", key=f"{prefix}/")["items"]}
        lost = {key for key, value in writer.acknowledged.items() if found.get(key) != value}
        assert not lost, f"acknowledged and lost: {sorted(lost)}"

    # -- units -----------------------------------------------------------------------------

    def write_unit(self, name: str, text: str) -> Path:
        """A unit file in the test's directory."""
        path = self.home / name
        path.write_text(text)
        return path

    def submit(self, name: str, text: str) -> None:
        """Submit a unit file."""
        full = name if name.endswith(".service") else f"{name}.service"
        self.ask("unit.submit", files=[{"name": full, "content": text, "path": full}], replace=True)

    def start(self, *units: str, seconds: float = PATIENCE_S) -> None:
        """Start units and wait until they are up."""
        self.ask("unit.start", seconds + 5, units=list(units), within=seconds)

    def destroy(self, *units: str, seconds: float = PATIENCE_S) -> None:
        """Destroy units and wait until nothing is left of them."""
        self.ask("unit.destroy", seconds + 5, units=list(units), within=seconds)

    def destroy_all(self) -> None:
        """Take every unit away."""
        units = [row["unit"] for row in self.ask("unit.files")]
        if units:
            self.destroy(*units)

    # -- hurting ---------------------------------------------------------------------------

    def kill_host(self, machine: str) -> int:
        """SIGKILL to a host process only; returns its id."""
        pid = self.host_pid(machine)
        assert pid, f"{machine} does not run"
        signal_process(pid, signal.SIGKILL)
        return pid

    def await_new_host(self, machine: str, old: int) -> int:
        """Wait until another process than ``old`` is a machine's host."""
        return wait_until(
            f"{machine}'s host to be started again",
            lambda: pid if (pid := self.host_pid(machine)) not in (0, old) else 0,
        )
