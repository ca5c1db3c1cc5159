"""What a process of a unit is given: pure, from the spec to what the shim is told."""

from __future__ import annotations

import math
from typing import Any

from .spec import DIRECTORY_ROOTS, Command, UnitSpec

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Mode of a directory that a unit is given and says no mode for.
DIRECTORY_MODE = 0o755
#: Limits of a control group by the shim's names, in the order in which they are set.
_GROUP_LIMITS = ("memory_max", "memory_swap_max", "memory_high", "cpu_quota", "tasks_max")


def arguments(spec: UnitSpec, step: str, command: Command, main: bool, group: str) -> dict[str, Any]:
    """Everything about a process but its words and its environment.

    ``group``: the name of the unit's control group, should it need one.
    """
    out: dict[str, Any] = {
        "argv0": command.argv0, "cwd": spec.working_directory, "umask": spec.umask, "nice": spec.nice,
    }  # fmt: skip
    if not command.privileged:
        out |= {"user": spec.user, "group": spec.group}
        if spec.supplementary_groups:
            out["groups"] = spec.supplementary_groups
    if spec.working_directory_optional:
        out["cwd_optional"] = True
    if spec.oom_score_adjust:
        out["oom_score_adjust"] = spec.oom_score_adjust
    if spec.no_new_privileges:
        out["no_new_privileges"] = True
    if spec.resources.limits:
        out["limits"] = {name: list(pair) for name, pair in spec.resources.limits.items()}
    for name, output in (("stdout", spec.standard_output), ("stderr", spec.standard_error)):
        if output.kind != "log":
            out[name] = [output.kind, output.path]
    if main or spec.notify_access in ("exec", "all"):
        out["access"] = spec.notify_access
    if spec.directories:
        out["directories"] = [
            [root, name, spec.directory_modes.get(kind, DIRECTORY_MODE), kind != "configuration"]
            for kind, root in DIRECTORY_ROOTS.items() for name in spec.directories.get(kind, ())
        ]  # fmt: skip
    if spec.resources.needs_group:
        out["cgroup"] = {"name": group, "limits": group_limits(spec)}
    return out


def group_limits(spec: UnitSpec) -> dict[str, float]:
    """The limits of a unit's control group that are finite."""
    found = {name: getattr(spec.resources, name) for name in _GROUP_LIMITS}
    limits = {name: value for name, value in found.items() if math.isfinite(value)}
    if spec.resources.cpu_weight:
        limits["cpu_weight"] = spec.resources.cpu_weight
    return limits


def _directories(spec: UnitSpec, kind: str) -> list[str]:
    return [f"{DIRECTORY_ROOTS[kind]}/{name}" for name in spec.directories.get(kind, ())]


def leftovers(spec: UnitSpec, restarting: bool) -> tuple[list[str], list[str]]:
    """(directories, files) that go when a run is over: runtime directories, the file of a process id."""
    keep = spec.runtime_directory_preserve
    kept = keep == "yes" or (keep == "restart" and restarting)
    return [] if kept else _directories(spec, "runtime"), [spec.pid_file] if spec.pid_file else []


def variables(spec: UnitSpec) -> dict[str, str]:
    """Variables that come from the unit file's other keys, below Environment=."""
    out = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8"}
    for kind in DIRECTORY_ROOTS:
        paths = _directories(spec, kind)
        if paths:
            out[f"{kind.upper()}_DIRECTORY"] = ":".join(paths)
    if spec.pid_file:
        out["PIDFILE"] = spec.pid_file
    return out
