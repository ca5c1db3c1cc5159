"""Conditions and Asserts of unit files, looked at on this machine (systemd.unit(5))."""

from __future__ import annotations

import fnmatch
import glob
import grp
import os
import platform
import pwd
import re
from collections.abc import Callable
from pathlib import Path

from fleet import syntax
from fleet.spec import Condition

#: The kernel's name of an architecture -> systemd's.
ARCHITECTURES = {
    "x86_64": "x86-64", "aarch64": "arm64", "armv7l": "arm", "i686": "x86", "riscv64": "riscv64",
    "ppc64le": "ppc64-le", "s390x": "s390x",
}  # fmt: skip
_OPERATORS: dict[str, Callable[[int], bool]] = {
    "<=": lambda order: order <= 0, ">=": lambda order: order >= 0, "!=": lambda order: order != 0,
    "<": lambda order: order < 0, ">": lambda order: order > 0, "=": lambda order: order == 0,
}  # fmt: skip


def first_unmet(conditions: list[Condition], host: tuple[str, ...]) -> Condition | None:
    """The first that decides against a start: conditions before asserts.

    All must hold, and of those that are triggering one must.
    """
    for is_assert in (False, True):
        wanted = [c for c in conditions if c.is_assert is is_assert]
        for condition in wanted:
            if not condition.triggering and not holds(condition, host):
                return condition
        triggering = [c for c in wanted if c.triggering]
        if triggering and not any(holds(c, host) for c in triggering):
            return triggering[0]
    return None


def holds(condition: Condition, host: tuple[str, ...]) -> bool:
    """Whether it does, here and now; what cannot be looked at does not."""
    try:
        found = _LOOKS[condition.kind](condition.argument, host)
    except (OSError, ValueError, KeyError):
        found = False
    return found is not condition.negated


def _compare(found: int, wanted: str, parse: Callable[[str], int]) -> bool:
    for operator, decide in _OPERATORS.items():
        if wanted.startswith(operator):
            return decide(found - parse(wanted[len(operator) :].strip()))
    return found >= parse(wanted)


def _kernel(wanted: str) -> bool:
    running = platform.release()
    for word in wanted.split():
        operator = next((o for o in _OPERATORS if word.startswith(o)), "")
        if not operator:
            if not fnmatch.fnmatchcase(running, word):
                return False
            continue
        have, want = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (running, word))
        if not _OPERATORS[operator]((have > want) - (have < want)):
            return False
    return True


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _is_user(name: str) -> bool:
    mine = os.getuid()
    if name == "@system":
        return mine < 1000
    return mine == (int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid)


def _is_group(name: str) -> bool:
    wanted = int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    return wanted in {os.getgid(), *os.getgroups()}


def _environment(wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    return os.environ.get(name) == value if equals else name in os.environ


def _is_writable(path: str) -> bool:
    return os.path.exists(path) and not os.statvfs(path).f_flag & os.ST_RDONLY


_LOOKS: dict[str, Callable[[str, tuple[str, ...]], bool]] = {
    "PathExists": lambda path, _: os.path.lexists(path),
    "PathExistsGlob": lambda pattern, _: bool(glob.glob(pattern)),
    "PathIsDirectory": lambda path, _: Path(path).is_dir(),
    "PathIsSymbolicLink": lambda path, _: Path(path).is_symlink(),
    "PathIsMountPoint": lambda path, _: os.path.ismount(path),
    "PathIsReadWrite": lambda path, _: _is_writable(path),
    "DirectoryNotEmpty": lambda path, _: any(Path(path).iterdir()),
    "FileNotEmpty": lambda path, _: Path(path).is_file() and Path(path).stat().st_size > 0,
    "FileIsExecutable": lambda path, _: Path(path).is_file() and os.access(path, os.X_OK),
    "Host": lambda name, host: any(fnmatch.fnmatchcase(one, name) for one in host),
    "Architecture": lambda name, _: name in (ARCHITECTURES.get(platform.machine(), platform.machine()), "native"),
    "KernelVersion": lambda wanted, _: _kernel(wanted),
    "Memory": lambda wanted, _: _compare(_memory_bytes(), wanted, syntax.size),
    "CPUs": lambda wanted, _: _compare(len(os.sched_getaffinity(0)), wanted, int),
    "Environment": lambda wanted, _: _environment(wanted),
    "User": lambda name, _: _is_user(name),
    "Group": lambda name, _: _is_group(name),
}
