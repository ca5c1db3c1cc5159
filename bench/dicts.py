"""A replicated dict of three peers beside PySyncObj's: the same number of writes in flight."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import wrk
from .doors import compare
from .hosts import ROOT
from .lab import Lab, MissingError
from .ports import free_ports
from .table import Row
from .waiting import bound, until
from .wrk import Load

PEER = "PySyncObj"
PEERS = 3
IN_FLIGHT = 256


class _Dicts:
    """Three processes; each has a session of its own, as each Argosy host has."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        addresses = [f"127.0.0.1:{port}" for port in free_ports(PEERS)]
        self._processes: list[subprocess.Popen[str]] = []
        for number, own in enumerate(addresses):
            others = [address for address in addresses if address != own]
            with open(folder / f"p{number}.log", "ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*bound("SIGKILL"), sys.executable, "-m", "bench.dict_child", own, *others],
                        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                        start_new_session=True,
                    )
                )  # fmt: skip

    def ask(self, number: int, question: dict[str, Any]) -> dict[str, Any]:
        """One line to a process, one back."""
        process = self._processes[number]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{PEER} process {number} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def leader(self) -> int:
        """Which process leads, once all are ready."""

        def found() -> list[int]:
            answers = [self.ask(number, {}) for number in range(PEERS)]
            leaders = [number for number, answer in enumerate(answers) if answer["leads"]]
            return leaders if all(answer["ready"] for answer in answers) and len(leaders) == 1 else []

        return until(f"{PEER}'s leader", found)[0]

    def load(self, seconds: float) -> Load:
        """Sets with callbacks from the process that leads: no forwarding."""
        question = {
            "seconds": seconds, "in_flight": IN_FLIGHT, "keys": wrk.KEYS, "value_bytes": wrk.VALUE_BYTES,
        }  # fmt: skip
        return Load(**self.ask(self.leader(), question))

    def stop(self) -> None:
        """End all."""
        for process in self._processes:
            process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


def dicts(lab: Lab) -> list[Row]:
    """256 sets in flight, three peers; PySyncObj keeps nothing on disk."""
    lab.need("wrk")
    if importlib.util.find_spec("pysyncobj") is None:
        raise MissingError("pip install 'argosy[test]' (pysyncobj)")
    ours = lab.argosy
    peers = _Dicts(lab.folder / "pysyncobj")
    loads: dict[str, list[Load]] = {"argosy": [], PEER: []}
    try:
        peers.load(1.0)  # warms the path up
        for turn in range(lab.effort.few):
            for name in loads if turn % 2 == 0 else reversed(loads):
                if name == PEER:
                    loads[name].append(peers.load(lab.effort.load_s))
                else:
                    url = ours.url(ours.leader())
                    loads[name].append(wrk.run(url, "put.lua", IN_FLIGHT, lab.effort.load_s))
    finally:
        peers.stop()
    return [compare(f"replicated dict set 256 B, {IN_FLIGHT} in flight", loads, PEER, 15.0)]
