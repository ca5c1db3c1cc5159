"""One peer, run by the ``etcd`` executable, that has a past: snapshots, and starting again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from brain.snapshot import file_index

from . import wrk
from .hosts import ROOT
from .lab import Lab, MissingError, median
from .past_child import NAME, key_of
from .ports import free_ports
from .table import Row
from .waiting import bound, until
from .wrk import Load

#: Keys of the store of which snapshots are made, entries between them, and "never".
SNAPSHOT_KEYS, SNAPSHOT_COUNT, NEVER = 100_000, 20_000, 1_000_000_000
#: Bytes of a value that is written meanwhile: small, because 64 MiB of log ask for a snapshot as well.
_SMALL = 16
_SLOWER = 3.0
#: Goals of a start with this many keys: seconds, and bytes in memory.
RESTART_KEYS, _RESTART_S, _RESTART_BYTES = 1_000_000, 20.0, 2.5e9
#: Seconds that a past may take to make, and a start to succeed.
_MAKE_S, _START_S = 300.0, 120.0


class Alone:
    """A cluster of one."""

    def __init__(self, folder: Path, keys: int) -> None:
        self._folder = folder
        transport, client = free_ports(2)
        self._transport = f"http://127.0.0.1:{transport}"
        self.url = f"http://127.0.0.1:{client}"
        self._process: subprocess.Popen[bytes] | None = None
        made = subprocess.run(
            [
                *bound("SIGKILL"), sys.executable, "-m", "bench.past_child", str(folder / "data"),
                f"127.0.0.1:{transport}", self.url, str(keys), str(wrk.VALUE_BYTES),
            ],
            cwd=ROOT, capture_output=True, text=True, timeout=_MAKE_S, check=False,
        )  # fmt: skip
        if made.returncode != 0:
            raise RuntimeError((made.stderr.strip().splitlines() or ["no past could be made"])[-1])

    def start(self, *flags: str) -> float:
        """Start it and wait until it is healthy; seconds."""
        program = Path(sys.executable).with_name("etcd")
        if not program.exists():
            raise MissingError("pip install -e . (the etcd executable of this project)")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ARGOSY_", "ETCD_"))}
        begun = time.perf_counter()
        with open(self._folder / "alone.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *bound("SIGKILL"), str(program), "--name", NAME, "--data-dir", str(self._folder / "data"),
                    "--listen-peer-urls", self._transport, "--initial-advertise-peer-urls", self._transport,
                    "--listen-client-urls", self.url, "--advertise-client-urls", self.url, *flags,
                ],
                env=kept, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until("a healthy peer", self._is_healthy, _START_S)
        return time.perf_counter() - begun

    def _is_healthy(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the peer has ended"
        with urllib.request.urlopen(self.url + "/health", timeout=2) as answer:
            return bool(json.load(answer)["health"] == "true")

    def holds(self, number: int) -> bool:
        """Whether a key of its past is there."""
        with urllib.request.urlopen(f"{self.url}/v2/keys{key_of(number)}", timeout=5) as answer:
            return int(json.load(answer)["node"]["value"]) == number

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes that are resident, or (VmHWM) were at most."""
        assert self._process is not None
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
        raise ValueError(f"no {field}")

    def last_snapshot(self) -> int:
        """Index of the newest on disk."""
        return max(i for n in os.listdir(self._folder / "data" / "raft") if (i := file_index(n)) is not None)

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


def snapshot(lab: Lab) -> list[Row]:
    """Writes by 64 clients while snapshots of 100,000 keys are made, and without."""
    lab.need("wrk")
    folder = lab.folder / "snapshot"
    counts = {"with": SNAPSHOT_COUNT, "without": NEVER}
    loads: dict[str, list[Load]] = {name: [] for name in counts}
    made = {name: [0] * lab.effort.few for name in counts}
    peers: dict[str, Alone] = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for name, count in counts.items():
            peers[name] = peer = Alone(folder / name, SNAPSHOT_KEYS)
            stack.callback(peer.stop)
            peer.start("--snapshot-count", str(count))
            wrk.run(peer.url, "put.lua", 64, 1.0, value_bytes=_SMALL)
        for turn in range(lab.effort.few):
            for name in peers if turn % 2 == 0 else reversed(peers):
                before = peers[name].last_snapshot()
                loads[name].append(
                    wrk.run(peers[name].url, "put.lua", 64, lab.effort.heavy_s, value_bytes=_SMALL)
                )
                made[name][turn] = peers[name].last_snapshot() > before
    ratio = median([a.p99_ms / b.p99_ms for a, b in zip(loads["with"], loads["without"], strict=True)])
    odd = [f"snapshots {name} in {sum(turns)} of {len(turns)} turns" for name, turns in made.items()]
    return [
        Row(
            f"p99 of writes, c=64, one peer, while snapshots of {SNAPSHOT_KEYS:,} keys are made",
            _tail(loads["with"]), f"without {_tail(loads['without'])}", f"p99 {ratio:.2f}x",
            f"<= {_SLOWER:g}x", ratio <= _SLOWER, ", ".join(odd),
            {
                name: {
                    "rates": [round(load.rate, 1) for load in turns], "p99_ms": [x.p99_ms for x in turns],
                    "max_ms": [load.max_ms for load in turns], "turns_with_snapshots": sum(made[name]),
                }
                for name, turns in loads.items()
            },
        )
    ]  # fmt: skip


def _tail(loads: list[Load]) -> str:
    p99, worst = median([x.p99_ms for x in loads]), median([x.max_ms for x in loads])
    return f"p99 {p99:.1f} ms, max {worst:.0f} ms ({median([x.rate for x in loads]):,.0f}/s)"


def restart(lab: Lab) -> list[Row]:
    """One peer started with a million keys: seconds until it is healthy, and its memory."""
    keys = lab.effort.stored
    folder = lab.folder / "restart"
    taken: list[float] = []
    resident: list[int] = []
    peak: list[int] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lab.say(f"making a past of {keys:,} keys")
        peer = Alone(folder, keys)
        stack.callback(peer.stop)
        for _ in range(lab.effort.starts):
            taken.append(peer.start())
            resident.append(peer.memory())
            peak.append(peer.memory("VmHWM"))
            assert peer.holds(0) and peer.holds(keys - 1), "the past is not there"
            peer.stop()
    seconds, size, most = median(taken), median([*map(float, resident)]), median([*map(float, peak)])
    whole = keys >= RESTART_KEYS
    return [
        Row(
            f"one peer started with {keys:,} keys of {wrk.VALUE_BYTES} B",
            f"healthy after {seconds:.1f} s (max {max(taken):.1f}), {size / 1e9:.2f} GB resident (peak {most / 1e9:.2f})",
            goal=f"< {_RESTART_S:g} s, < {_RESTART_BYTES / 1e9:g} GB" if whole else "-",
            met=seconds < _RESTART_S and size < _RESTART_BYTES if whole else None,
            data={"seconds": taken, "resident_bytes": resident, "peak_bytes": peak},
        )
    ]  # fmt: skip
