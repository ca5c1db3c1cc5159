"""Machines that have a network of their own each: namespaces on one bridge, with a firewall each."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..waiting import wait_until
from .cluster import argosy_command, environment
from .hosts import Hosts


def missing() -> str:
    """What is missing here for such a network; empty for nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("iptables"):
        return "the packages iproute2 and iptables are missing"
    name = f"argosy-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces may not be made here"
    try:
        allowed = subprocess.run(["ip", "netns", "exec", name, "iptables", "-L"], capture_output=True, check=False).returncode == 0
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "" if allowed else "iptables does not work in a network namespace here"


class Network:
    """``names``, each with the address 10.77.0.N, N from 1 on, and all of them linked."""

    def __init__(self, names: list[str]) -> None:
        self._tag = secrets.token_hex(2)
        self._hub = f"argosy-{self._tag}-hub"
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}

    def space(self, name: str) -> str:
        """The namespace of a machine."""
        return f"argosy-{self._tag}-{name}"

    def open(self) -> None:
        """Make it."""
        _run("ip", "netns", "add", self._hub)
        self._inside(self._hub, "ip", "link", "add", "bridge", "type", "bridge")
        self._inside(self._hub, "ip", "link", "set", "bridge", "up")
        for name, address in self.addresses.items():
            space, far = self.space(name), f"v{self._tag}{name}"
            _run("ip", "netns", "add", space)
            self._inside(self._hub, "ip", "link", "add", far, "type", "veth", "peer", "name", "eth0", "netns", space)
            self._inside(self._hub, "ip", "link", "set", far, "master", "bridge", "up")
            self._inside(space, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            self._inside(space, "ip", "link", "set", "eth0", "up")
            self._inside(space, "ip", "link", "set", "lo", "up")

    def close(self) -> None:
        """Take it away."""
        for space in [*map(self.space, self.addresses), self._hub]:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def cut(self, name: str, *chains: str) -> None:
        """Drop what comes (INPUT) or leaves (OUTPUT), or both, but for what stays inside the machine."""
        for chain in chains or ("INPUT", "OUTPUT"):
            way = "-i" if chain == "INPUT" else "-o"
            self._inside(self.space(name), "iptables", "-A", chain, way, "eth0", "-j", "DROP")

    def heal(self, name: str) -> None:
        """Let everything pass."""
        self._inside(self.space(name), "iptables", "-F")

    def command(self, name: str, *words: str) -> list[str]:
        """A command as it is run on a machine."""
        return ["ip", "netns", "exec", self.space(name), *words]

    def _inside(self, space: str, *words: str) -> None:
        _run("ip", "netns", "exec", space, *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


class Apart(Hosts):
    """Hosts on a network of namespaces; operators sit on a machine ``op`` of their own."""

    def __init__(self, folder: Path, network: Network) -> None:
        super().__init__(folder, 0)
        self.network = network

    def _launch(self, number: int, log: Any, *more: str) -> subprocess.Popen[bytes]:
        name = f"h{number}"
        return subprocess.Popen(
            self.network.command(
                name, argosy_command(), "start", "--name", name, "--data-dir", str(self.folder / name),
                "--transport", f"{self.network.addresses[name]}:7001", "--client", "127.0.0.1:4001", *more,
            ),
            env=environment(self.folder), stdout=log, stderr=log,
        )  # fmt: skip

    def argosy(self, *arguments: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
        context = str(self.folder / "h1" / "context.toml")
        voters = ",".join(f"{self.network.addresses[f'h{n}']}:7001" for n in (1, 2, 3))
        words = [argosy_command(), "--context", context, "--endpoint", voters, *arguments]
        return subprocess.run(
            self.network.command("op", *words), env=environment(self.folder), cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds + 30, check=False,
        )  # fmt: skip

    def pid(self, number: int) -> int:
        """The host process (``ip netns exec`` becomes what it runs)."""
        return self.running[number].pid

    def rows(self) -> dict[str, dict[str, Any]]:
        """The listing of units, by name; empty when nobody answers."""
        done = self.argosy("--timeout", "5", "unit", "list", "--json")
        return {row["unit"]: row for row in json.loads(done.stdout)} if done.returncode == 0 else {}

    def found(self, voters: int = 3, agents: int = 0) -> None:
        """Start them one after the other."""
        self.start(1, "--bootstrap")
        wait_until("the founder", lambda: self.voters() == 1)
        first = f"{self.network.addresses['h1']}:7001"
        for number in range(2, voters + 1):
            self.start(number, "--join", first, "--token", self.token())
        wait_until("all voters", lambda: self.voters() == voters)
        for number in range(voters + 1, voters + agents + 1):
            self.start(number, "--join", first, "--token", self.token("--role", "agent"))
        everybody = [f"h{n}" for n in range(1, voters + agents + 1)]
        wait_until("all machines", lambda: self.ready() == everybody)

    def ready(self) -> list[str]:
        """Machines that are there."""
        done = self.argosy("--timeout", "5", "machine", "list", "--json")
        return [row["name"] for row in json.loads(done.stdout) if row["state"] == "ready"] if done.returncode == 0 else []
