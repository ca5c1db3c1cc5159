"""What a unit file says, in the form that the rest of the fleet reads."""

from __future__ import annotations

import math
import re
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import names, syntax
from .constraints import Affinity, Rule
from .rollout import Policy

if TYPE_CHECKING:
    from .container import ContainerSpec


@dataclass(frozen=True, slots=True)
class Command:
    """One command line: words before expansion of variables, and its prefixes."""

    words: tuple[str, ...]
    ignore_failure: bool = False
    argv0: str = ""
    no_expansion: bool = False
    #: ``+``, ``!`` or ``!!``: without User= and Group=
    privileged: bool = False

    def expand(self, environment: dict[str, str]) -> list[str]:
        """The words with ``$VAR`` (split) and ``${VAR}`` (one word) replaced."""
        if self.no_expansion:
            return list(self.words)
        out = [self.words[0]]
        for word in self.words[1:]:
            whole = re.fullmatch(r"\$([A-Za-z_][A-Za-z0-9_]*)", word)
            if whole:
                out += syntax.split_words(environment.get(whole.group(1), ""))
                continue
            out.append(
                re.sub(
                    r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}",
                    lambda m: "$" if m.group(0) == "$$" else environment.get(m.group(1), ""),
                    word,
                )
            )
        return out


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How to tell that a unit is well: ``http``, ``tcp`` or ``exec``."""

    kind: str
    target: str
    interval: float = 2.0
    timeout: float = 2.0
    retries: int = 2
    start_period: float = 30.0


@dataclass(frozen=True, slots=True)
class Condition:
    """A Condition or Assert: ``kind`` is its key without that word, as ``PathExists``."""

    kind: str
    argument: str
    negated: bool = False
    #: ``|``: one of these is enough
    triggering: bool = False
    #: whether its failure is one of the unit (Assert), or the unit is passed over (Condition)
    is_assert: bool = False

    def __str__(self) -> str:
        signs = ("|" if self.triggering else "") + ("!" if self.negated else "")
        return f"{'Assert' if self.is_assert else 'Condition'}{self.kind}={signs}{self.argument}"


@dataclass(frozen=True, slots=True)
class Output:
    """Where a standard stream goes: ``log``, ``null``, ``file``, ``append``, ``truncate``, ``inherit``."""

    kind: str
    path: str = ""


#: Kinds of directories that a service is given, and where they lie (file-hierarchy(7)).
DIRECTORY_ROOTS = {
    "runtime": "/run", "state": "/var/lib", "cache": "/var/cache", "logs": "/var/log",
    "configuration": "/etc",
}  # fmt: skip


@dataclass(slots=True)
class Resources:
    """What a unit may use at most; None or infinity is no limit (systemd.resource-control(5))."""

    memory_max: float = math.inf  # bytes
    memory_high: float = math.inf
    memory_swap_max: float = math.inf
    cpu_quota: float = math.inf  # processors: 0.2 is a fifth of one
    cpu_weight: int = 0  # 1 to 10000; 0 is the kernel's default
    tasks_max: float = math.inf
    #: systemd's name of a limit -> (soft, hard), as setrlimit(2) takes them; infinity is -1
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def needs_group(self) -> bool:
        """Whether a control group is needed to keep them."""
        numbers = (self.memory_max, self.memory_high, self.memory_swap_max, self.cpu_quota, self.tasks_max)
        return bool(self.cpu_weight) or any(map(math.isfinite, numbers))


@dataclass(slots=True)
class UnitSpec:
    """Everything a unit file says, with systemd's defaults; times in seconds."""

    name: names.UnitName
    description: str = ""
    conditions: list[Condition] = field(default_factory=list)
    #: what other units are to it, by the key of [Unit]: After, Requires, ...
    related: dict[str, list[str]] = field(default_factory=dict)
    #: other names of the unit; of a template, other templates
    aliases: list[str] = field(default_factory=list)
    # [Service]: its life
    type: str = "simple"
    remain_after_exit: bool = False
    guess_main_pid: bool = True
    pid_file: str = ""
    exec_condition: list[Command] = field(default_factory=list)
    exec_start_pre: list[Command] = field(default_factory=list)
    exec_start: list[Command] = field(default_factory=list)
    exec_start_post: list[Command] = field(default_factory=list)
    exec_reload: list[Command] = field(default_factory=list)
    exec_stop: list[Command] = field(default_factory=list)
    exec_stop_post: list[Command] = field(default_factory=list)
    restart: str = "no"
    restart_sec: float = 0.1
    restart_steps: int = 0
    restart_max_delay_sec: float = syntax.INFINITY
    timeout_start_sec: float = 90.0
    timeout_stop_sec: float = 90.0
    timeout_abort_sec: float = 0.0  # 0: as timeout_stop_sec
    runtime_max_sec: float = syntax.INFINITY
    watchdog_sec: float = 0.0
    notify_access: str = "none"
    start_limit_interval_sec: float = 10.0
    start_limit_burst: int = 5
    success_exit_status: frozenset[int | str] = frozenset()
    restart_prevent_exit_status: frozenset[int | str] = frozenset()
    restart_force_exit_status: frozenset[int | str] = frozenset()
    # [Service]: how it is killed
    kill_mode: str = "control-group"
    kill_signal: int = signal.SIGTERM
    restart_kill_signal: int = 0  # 0: as kill_signal
    final_kill_signal: int = signal.SIGKILL
    watchdog_signal: int = signal.SIGABRT
    reload_signal: int = signal.SIGHUP
    send_sighup: bool = False
    send_sigkill: bool = True
    # [Service]: what its processes find
    environment: dict[str, str] = field(default_factory=dict)
    environment_files: list[tuple[str, bool]] = field(default_factory=list)
    pass_environment: list[str] = field(default_factory=list)
    unset_environment: list[str] = field(default_factory=list)
    working_directory: str = "/"
    working_directory_optional: bool = False
    user: str = ""
    group: str = ""
    supplementary_groups: list[str] = field(default_factory=list)
    umask: int = 0o022
    nice: int = 0
    oom_score_adjust: int = 0
    no_new_privileges: bool = False
    standard_output: Output = Output("log")
    standard_error: Output = Output("inherit")
    directories: dict[str, list[str]] = field(default_factory=dict)
    directory_modes: dict[str, int] = field(default_factory=dict)
    runtime_directory_preserve: str = "no"
    resources: Resources = field(default_factory=Resources)
    #: what runs in the engine instead of a process of this machine
    container: ContainerSpec | None = None
    # [X-Fleet]
    machine_id: str = ""
    machine_of: list[str] = field(default_factory=list)
    machine_metadata: list[tuple[str, str]] = field(default_factory=list)
    #: what of MachineMetadata= is more than fleet's KEY=VALUE
    machine_rules: list[Rule] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    replaces: list[str] = field(default_factory=list)
    is_global: bool = False
    # [X-Argosy]
    ports: list[tuple[str, int]] = field(default_factory=list)
    announce: str = ""
    health: HealthCheck | None = None
    on_partition: str = "stop"
    #: seconds after the end of its machine's lease before the unit is placed elsewhere
    lost_after: float = 0.0
    cpu: float = 0.0  # processors reserved
    memory: int = 0  # bytes reserved
    max_per_machine: int = 0  # instances of the template; 0 is no limit
    spread: str = ""
    affinity: list[Affinity] = field(default_factory=list)
    placement: str = "spread"
    priority: int = 50
    #: how often in an hour a unit that failed for good is moved to another machine
    reschedule: int = 0
    replicas: int | None = None
    #: instances of the template that a drain or a rebalance may have down at once
    max_unavailable: int = 1
    update: Policy = field(default_factory=Policy)
    #: seconds after its end at which a oneshot that did its work is destroyed
    remove_after: float = syntax.INFINITY

    @property
    def notifies(self) -> bool:
        """Whether the service itself says when it is ready."""
        return self.type in ("notify", "notify-reload")
