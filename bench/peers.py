"""Three etcd 3.4 processes on loopback: the peer of the brain, durable, at its defaults.

Each has a session of its own, as each Argosy host has: the kernel divides a busy processor
among sessions first (autogroups), so another arrangement would favour one side.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from .ports import free_ports
from .waiting import bound, until

MEMBERS = 3


class EtcdCluster:
    """Members are numbered from 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = free_ports(2 * MEMBERS)
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * MEMBERS

    def url(self, member: int) -> str:
        """The client door of a member."""
        return f"http://127.0.0.1:{self._ports[member]}"

    def _peer_url(self, member: int) -> str:
        return f"http://127.0.0.1:{self._ports[MEMBERS + member]}"

    def start(self) -> None:
        """Start all members and wait until they serve."""
        for member in range(MEMBERS):
            self.boot(member)
        self.await_whole()

    def boot(self, member: int) -> None:
        """Start one member, with whatever its directory holds."""
        program = shutil.which("etcd")
        assert program is not None
        initial = ",".join(f"e{n}={self._peer_url(n)}" for n in range(MEMBERS))
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"e{member}.log", "ab") as log:
            self._processes[member] = subprocess.Popen(
                [
                    *bound("SIGKILL"), program, "--name", f"e{member}",
                    "--data-dir", str(self.folder / f"e{member}"),
                    "--listen-client-urls", self.url(member), "--advertise-client-urls", self.url(member),
                    "--listen-peer-urls", self._peer_url(member),
                    "--initial-advertise-peer-urls", self._peer_url(member),
                    "--initial-cluster", initial, "--initial-cluster-token", "bench",
                ],
                env={"PATH": os.environ.get("PATH", ""), "ETCD_ENABLE_V2": "true", "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _get(self, member: int, path: str) -> Any:
        with urllib.request.urlopen(self.url(member) + path, timeout=2) as answer:
            return json.load(answer)

    def await_whole(self) -> None:
        """Wait until every member says that it is healthy and a leader is known."""
        for member in range(MEMBERS):
            until(f"etcd member {member}", partial(self._is_healthy, member))
        until("etcd's leader", lambda: self.leader() is not None)

    def _is_healthy(self, member: int) -> bool:
        return bool(self._get(member, "/health")["health"] == "true")

    def leader(self) -> int | None:
        """Which member leads; None if none says so."""
        for member in range(MEMBERS):
            try:
                if self._get(member, "/v2/stats/self")["state"] == "StateLeader":
                    return member
            except (OSError, ValueError, KeyError):
                continue
        return None

    def kill(self, member: int) -> None:
        """SIGKILL; it stays off until it is booted."""
        process = self._processes[member]
        assert process is not None
        process.kill()
        process.wait(10)

    def pids(self) -> list[int]:
        """Process ids of the members."""
        return [p.pid for p in self._processes if p is not None and p.poll() is None]

    def log_index(self) -> int:
        """How far the log is (from an answer's header)."""
        with urllib.request.urlopen(self.url(0) + "/v2/keys/", timeout=5) as answer:
            return int(answer.headers["X-Raft-Index"])

    def stop(self) -> None:
        """End all members."""
        for process in self._processes:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait(10)
