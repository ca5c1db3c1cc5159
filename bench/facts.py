"""What ran where: versions, the machine, and how long its disk takes to sync."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .lab import percentile

_PACKAGES = ("uvloop", "httptools", "cbor2", "pykka", "sortedcontainers", "prometheus-client", "pysyncobj")
_BLOCK = bytes(4096)


def gather(folder: Path, quick: bool) -> dict[str, Any]:
    """Facts for the head of a result; ``folder`` is where the clusters keep their data."""
    return {
        "effort": "quick" if quick else "full",
        "machine": {
            "cpu": _cpu(), "cores": os.cpu_count(), "memory": _memory(),
            "kernel": platform.release(), "file system": _file_system(folder),
        },
        "fdatasync of 4 KiB": _sync_times(folder),
        "load average before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "versions": _versions(),
    }  # fmt: skip


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> str:
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    return f"{kilobytes / 1024 / 1024:.0f} GiB"


def _file_system(folder: Path) -> str:
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        inside = str(folder) == mount or str(folder).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best[1]


def _sync_times(folder: Path, times: int = 200) -> str:
    path = folder / "sync"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    taken = []
    try:
        os.pwrite(handle, _BLOCK * times, 0)
        os.fsync(handle)
        for turn in range(times):
            begun = time.perf_counter()
            os.pwrite(handle, _BLOCK, turn * len(_BLOCK))
            os.fdatasync(handle)
            taken.append((time.perf_counter() - begun) * 1000)
    finally:
        os.close(handle)
        path.unlink()
    return f"p50 {percentile(taken, 0.5):.2f} ms, p99 {percentile(taken, 0.99):.2f} ms"


def _versions() -> dict[str, str]:
    found = {"Python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for program, flag, pattern in (
        ("etcd", "--version", r"etcd Version: (\S+)"),
        ("wrk", "-v", r"wrk (\S+)"),
    ):
        if shutil.which(program) is None:
            continue
        said = subprocess.run([program, flag], capture_output=True, text=True, timeout=10, check=False)
        match = re.search(pattern, said.stdout + said.stderr)
        found[program] = match[1] if match else "?"
    return found
