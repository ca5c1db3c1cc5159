"""What the kernel says of processes, and what shims and their hosts agree on."""

import os
import struct
import time

#: Exit status when there is a shim of this folder.
BUSY = 75
LEASE = struct.Struct("<dd")  # CLOCK_BOOTTIME seconds: when to stop, when to kill


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> str:
    """The kernel's start time of a process: with boot id and pid it names it for ever."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return ""


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rsplit(b")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def descendants(root: int) -> list[int]:
    """All processes below ``root``, by parent links in /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        children.setdefault(parent_of(int(name)), []).append(int(name))
    found: list[int] = []
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), ()):
            found.append(child)
            queue.append(child)
    return found
