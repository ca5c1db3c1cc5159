"""A cluster of Argosy hosts on loopback, as ``argosy up`` runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from cli import local
from cli.session import Session

from .ports import free_offset
from .waiting import bound, until

MACHINES = 3
ROOT = Path(__file__).resolve().parent.parent


class ArgosyCluster:
    """Machines are numbered from 0; their names are m1, m2, ..."""

    def __init__(self, folder: Path, machines: int = MACHINES, slots: bool = False, engine: str = "") -> None:
        """``slots``: its machines take releases; ``engine``: where their containers run."""
        self.folder = folder
        self.machines = machines
        self._engine = engine
        self._more = ["--slots"] if slots else []
        self.offset = free_offset(machines)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until all machines are ready."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ARGOSY_")}
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._engine and not (self.folder / "cluster.json").exists():
            local.create(self.folder, self.machines, self.offset)
            for config in self.folder.glob("m*/host.toml"):
                config.write_text(f'engine = "{self._engine}"\n' + config.read_text())
        with open(self.folder / "bench-up.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *bound("SIGTERM"), sys.executable, "-m", "cli.main", "up", "--no-default",
                    "--machines", str(self.machines),
                    "--dir", str(self.folder), "--port-offset", str(self.offset), *self._more,
                ],
                env={**kept, "PYTHONPATH": str(ROOT)}, cwd="/", stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip
        until("the context of the cluster", (self.folder / "context.toml").exists)
        self.await_whole()

    def url(self, machine: int) -> str:
        """The HTTP door of a machine."""
        return f"http://127.0.0.1:{local.HTTP + 1 + machine + self.offset}"

    def session(self, machine: int | None = None) -> Session:
        """A link of its own to one machine, or to any."""
        endpoint = "" if machine is None else f"127.0.0.1:{local.TRANSPORT + 1 + machine + self.offset}"
        return Session(context=str(self.folder / "context.toml"), endpoint=endpoint, timeout=30.0)

    def ask(self, verb: str, machine: int | None = None, wait_s: float = 5.0, **args: Any) -> Any:
        """One question on a link of its own."""
        session = self.session(machine)
        try:
            return session.try_ask(verb, wait_s, **args)
        finally:
            session.client().close()

    def await_whole(self) -> None:
        """Wait until every machine is ready and the leader hears every member."""

        def whole() -> bool:
            status = self.ask("cluster.status")
            ready = [m for m in self.ask("machine.list") if m["state"] == "ready"]
            active = all(member["state"] == "active" for member in status["members"])
            return bool(status["leader"]) and active and len(ready) == self.machines

        until("the cluster", whole)

    def leader(self) -> int:
        """Which machine leads."""
        name = until("a leader", lambda: self.ask("cluster.status")["leader"])
        return int(name[1:]) - 1

    def home(self, machine: int) -> Path:
        """A machine's directory."""
        return self.folder / f"m{machine + 1}"

    def kill_host(self, machine: int) -> None:
        """SIGKILL to the host process alone; it stays off until it is booted."""
        (self.home(machine) / "off").touch()
        os.kill(local.host_pid(self.home(machine)), signal.SIGKILL)

    def power_off(self, machine: int) -> None:
        """SIGKILL to the host process and all that it ran."""
        local.kill(self.folder, f"m{machine + 1}")

    def boot(self, machine: int) -> None:
        """Switch a machine on again."""
        local.boot(self.folder, f"m{machine + 1}")

    def pids(self) -> list[int]:
        """The host processes."""
        return [local.host_pid(self.home(n)) for n in range(self.machines)]

    def metric(self, machine: int, name: str) -> float:
        """One plain sample of a host's metrics page."""
        with urllib.request.urlopen(self.url(machine) + "/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.rpartition(" ")[2])
        raise ValueError(f"no sample {name}")

    def stop(self) -> None:
        """End everything."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        if (self.folder / "cluster.json").exists():
            local.stop_cluster(self.folder)
