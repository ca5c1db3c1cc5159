"""What /proc tells of a unit's processes: who began whom, their memory and their time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .shim.facts import start_time

#: Processes of one unit that are shown, and characters of one command line.
PROCESSES_MAX = 200
COMMAND_CHARS_MAX = 300
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def tree_of(folder: Path, container: str, pid: int) -> list[dict[str, Any]]:
    """Rows ``{pid, depth, command, memory_bytes, cpu_s}`` of what a unit runs, each after its parent.

    ``folder``: the unit's own, which names its shim; ``container`` and ``pid``: its container
    instead, and the first process of that.  Memory is what is resident, shared pages included.
    """
    children = _children()
    if container:
        first = [pid] if _is_in(pid, container) else []  # an engine elsewhere has other processes
    else:
        first = children.get(_shim_of(folder), [])
    rows: list[dict[str, Any]] = []
    stack = [(pid, 0) for pid in sorted(first, reverse=True)]
    while stack and len(rows) < PROCESSES_MAX:
        pid, depth = stack.pop()
        row = _row(pid, depth)
        if row is not None:
            rows.append(row)
            stack += [(child, depth + 1) for child in sorted(children.get(pid, ()), reverse=True)]
    return rows


def _is_in(pid: int, container: str) -> bool:
    try:
        return container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _shim_of(folder: Path) -> int:
    """The process id of a unit's shim; -1 if there is none."""
    try:
        me = json.loads((folder / "state.json").read_text())["shim"]
        return int(me["pid"]) if start_time(me["pid"]) == me["start"] else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _stat(pid: int) -> list[str]:
    """The fields after the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.setdefault(int(_stat(int(name))[1]), []).append(int(name))
            except (OSError, IndexError, ValueError):
                continue
    return found


def _row(pid: int, depth: int) -> dict[str, Any] | None:
    try:
        fields = _stat(pid)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except (OSError, IndexError):
        return None
    command = b" ".join(words).decode("utf-8", "replace").strip() or f"[{name}]"
    return {
        "pid": pid, "depth": depth, "command": command[:COMMAND_CHARS_MAX],
        "memory_bytes": int(fields[21]) * _PAGE_BYTES,
        "cpu_s": round((int(fields[11]) + int(fields[12])) / _TICKS, 2),
    }  # fmt: skip
