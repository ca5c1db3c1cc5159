"""Hosts that are started one by one, as ``argosy start``, for tests of joining and of machines without a vote."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import IO, Any

from .cluster import argosy_command, environment, run_argosy


class Hosts:
    """Hosts, each ``argosy start`` in the foreground of its own process."""

    def __init__(self, folder: Path, offset: int) -> None:
        self.folder = folder
        self.offset = offset
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int, *more: str) -> None:
        with (self.folder / f"h{number}.log").open("ab") as log:
            self.running[number] = self._launch(number, log, *more)

    def _launch(self, number: int, log: IO[bytes], *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [argosy_command(), "start", "--name", f"h{number}", "--data-dir", str(self.folder / f"h{number}"),
             "--transport", f"127.0.0.1:{7000 + self.offset + number}",
             "--client", f"127.0.0.1:{4000 + self.offset + number}",
             "--grpc", f"127.0.0.1:{2378 + self.offset + number}", *more],
            env=environment(self.folder), stdout=log, stderr=log,
        )  # fmt: skip

    def argosy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        context = str(self.folder / "h1" / "context.toml")
        endpoints = ",".join(f"127.0.0.1:{7000 + self.offset + n}" for n in (1, 2, 3))
        return run_argosy(self.folder, *["--context", context, "--endpoint", endpoints, *arguments])

    def json(self, *arguments: str) -> Any:
        done = self.argosy(*arguments, "--json")
        assert done.returncode == 0, f"argosy {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return json.loads(done.stdout)

    def voters(self) -> int:
        done = self.argosy("cluster", "status", "--json")
        if done.returncode:
            return 0
        return sum(m["role"] in ("voter", "leader") for m in json.loads(done.stdout)["members"])

    def token(self, *more: str) -> str:
        done = self.argosy("cluster", "token", *more)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(10)
