"""Unit files: systemd's service, fleet's placement, and Argosy's own keys.

``load`` gives a checked :class:`UnitSpec` or every problem at once.  The text itself is what
is stored; a spec is derived from it on each machine, where the specifiers are known.
"""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import names, syntax
from .syntax import Problem, Setting, UnitFileError

#: systemd keys that are understood elsewhere and have no effect here (yet): said at submit.
IGNORED = {
    "Unit": {
        "Documentation", "Wants", "Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "Before",
        "After", "OnFailure", "OnSuccess", "DefaultDependencies", "ConditionPathExists",
        "SourcePath", "StopWhenUnneeded", "RefuseManualStart", "RefuseManualStop", "JobTimeoutSec",
    },
    "Service": {
        "PIDFile", "NotifyAccess", "WatchdogSec", "StandardOutput", "StandardError", "StandardInput",
        "SyslogIdentifier", "LimitNOFILE", "LimitNPROC", "LimitCORE", "LimitMEMLOCK", "MemoryMax",
        "MemoryHigh", "MemoryLimit", "CPUQuota", "CPUWeight", "CPUShares", "TasksMax", "Slice",
        "Delegate", "PrivateTmp", "ProtectSystem", "ProtectHome", "NoNewPrivileges", "OOMScoreAdjust",
        "CapabilityBoundingSet", "AmbientCapabilities", "RuntimeDirectory", "StateDirectory",
        "CacheDirectory", "LogsDirectory", "OOMPolicy", "IOWeight", "LimitSTACK", "GuessMainPID",
    },
    "Install": {"WantedBy", "RequiredBy", "Also", "Alias", "UpheldBy", "DefaultInstance"},
}  # fmt: skip
SECTIONS = ("Unit", "Service", "Install", "X-Fleet", "X-Argosy")
RESTART = ("no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always")
KILL_MODES = ("control-group", "mixed", "process", "none")
TYPES = ("simple", "exec", "oneshot")
NOT_YET = {"notify": "Type=notify", "forking": "Type=forking", "dbus": "Type=dbus"}


@dataclass(frozen=True, slots=True)
class Command:
    """One command line: words before expansion of variables, and its prefixes."""

    words: tuple[str, ...]
    ignore_failure: bool = False
    argv0: str = ""
    no_expansion: bool = False

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


@dataclass(slots=True)
class UnitSpec:
    """Everything a unit file says, with systemd's defaults."""

    name: names.UnitName
    description: str = ""
    type: str = "simple"
    remain_after_exit: bool = False
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
    start_limit_interval_sec: float = 10.0
    start_limit_burst: int = 5
    kill_mode: str = "control-group"
    kill_signal: int = signal.SIGTERM
    send_sigkill: bool = True
    success_exit_status: frozenset[int | str] = frozenset()
    restart_prevent_exit_status: frozenset[int | str] = frozenset()
    restart_force_exit_status: frozenset[int | str] = frozenset()
    environment: dict[str, str] = field(default_factory=dict)
    environment_files: list[tuple[str, bool]] = field(default_factory=list)
    working_directory: str = "/"
    user: str = ""
    group: str = ""
    umask: int = 0o022
    nice: int = 0
    # [X-Fleet]
    machine_id: str = ""
    machine_of: list[str] = field(default_factory=list)
    machine_metadata: list[tuple[str, str]] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    is_global: bool = False
    # [X-Argosy]
    ports: list[tuple[str, int]] = field(default_factory=list)
    announce: str = ""
    health: HealthCheck | None = None
    on_partition: str = "stop"


def content_hash(text: str) -> str:
    """What identifies a unit file's content."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Machine:
    """What specifiers may ask of a machine; at submit these are placeholders."""

    id: str = "0" * 32
    name: str = "machine"
    boot_id: str = "0" * 32


def load(
    unit: str, text: str, machine: Machine | None = None, file: str = ""
) -> tuple[UnitSpec, list[str]]:
    """Check a unit file; returns (spec, warnings).

    Raises :class:`UnitFileError` with every problem, or ``names.NameError_``.
    """
    name = names.parse(unit)
    loader = _Loader(name, file or name.full, machine or Machine())
    parsed = syntax.read(loader.file, text)
    loader.problems += parsed.problems
    for setting in parsed.settings:
        loader.take(setting)
    loader.finish()
    if loader.problems:
        raise UnitFileError(loader.problems)
    return loader.spec, loader.warnings


class _Loader:
    """Fills a spec from assignments and collects problems."""

    def __init__(self, name: names.UnitName, file: str, machine: Machine) -> None:
        self.name = name
        self.file = file
        self.machine = machine
        self.spec = UnitSpec(name)
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._seen: dict[str, int] = {}
        self._start_timeout_given = False
        self._health: dict[str, Any] = {}

    def take(self, setting: Setting) -> None:
        """One assignment."""
        section, key = setting.section, setting.key
        if section not in SECTIONS:
            if section.startswith("X-"):
                self.warnings.append(f"{self.file}:{setting.line}: [{section}] is not used here")
                return
            hint = syntax.nearest(section, SECTIONS)
            self._complain(setting, f"no section is called [{section}]{hint}")
            return
        handler = _KEYS[section].get(key)
        if handler is None:
            self._unknown(setting)
            return
        self._seen.setdefault(key, setting.line)
        try:
            value = syntax.specifiers(setting.value, self._specifier)
            handler(self, value)
        except (ValueError, names.NameError_) as error:
            self._complain(setting, str(error))

    def _unknown(self, setting: Setting) -> None:
        section, key = setting.section, setting.key
        if key in IGNORED.get(section, ()) or key.startswith("X-"):
            if section != "Install":
                self.warnings.append(
                    f"{self.file}:{setting.line}: {key}: accepted, but has no effect here yet"
                )
            return
        for other, keys in _KEYS.items():
            if key in keys and other != section:
                self._complain(setting, f"belongs to [{other}], not to [{section}]")
                return
        known = set(_KEYS[section]) | IGNORED.get(section, set())
        self._complain(setting, f"unknown key in [{section}]{syntax.nearest(key, known)}")

    def _complain(self, setting: Setting, text: str) -> None:
        self.problems.append(Problem(self.file, setting.line, setting.key, text))

    def _specifier(self, letter: str) -> str | None:
        name, machine = self.name, self.machine
        instance = name.instance
        table = {
            "n": name.full, "N": name.stem, "p": name.prefix, "P": name.prefix.replace("-", "/"),
            "i": instance, "I": instance.replace("-", "/"), "j": name.prefix.rsplit("-", 1)[-1],
            "H": machine.name, "l": machine.name.split(".")[0], "m": machine.id, "b": machine.boot_id,
            "t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc", "T": "/tmp",  # noqa: S108
            "V": "/var/tmp",  # noqa: S108
        }  # fmt: skip
        return table.get(letter)

    def finish(self) -> None:
        """Rules between keys."""
        spec = self.spec
        if not spec.exec_start and not self.problems:
            if not (spec.remain_after_exit and spec.exec_stop):
                self._at("ExecStart", "a service needs one (or RemainAfterExit=yes and ExecStop)")
        if "Type" not in self._seen and not spec.exec_start:
            spec.type = "oneshot"
        if spec.type != "oneshot" and len(spec.exec_start) > 1:
            self._at("ExecStart", "more than one is only for Type=oneshot")
        if spec.type == "oneshot":
            if spec.restart in ("always", "on-success"):
                self._at("Restart", f"{spec.restart} is not for Type=oneshot")
            if not self._start_timeout_given:
                spec.timeout_start_sec = syntax.INFINITY
        self._finish_placement(spec)
        if self._health.get("kind"):
            spec.health = HealthCheck(**self._health)
            needs_port = spec.health.kind in ("http", "tcp") and "PORT" in spec.health.target
            if needs_port and not spec.ports:
                self._at("HealthCheck", "names PORT, but the unit has no Port=")
        elif self._health:
            self._at("HealthInterval", "settings of a health check need a HealthCheck=")
        if spec.announce and not spec.ports:
            self._at("Announce", "needs a Port= to announce")

    def _finish_placement(self, spec: UnitSpec) -> None:
        if spec.machine_id and (spec.machine_of or spec.conflicts or spec.is_global):
            self._at("MachineID", "excludes MachineOf, Conflicts and Global")
        if spec.is_global and spec.machine_of:
            self._at("Global", "excludes MachineOf")

    def _at(self, key: str, text: str) -> None:
        self.problems.append(Problem(self.file, self._seen.get(key, 0), key, text))


# -- one function per kind of value -----------------------------------------------------------

_Handler = Callable[[_Loader, str], None]


def _text(attribute: str) -> _Handler:
    return lambda loader, value: setattr(loader.spec, attribute, value)


def _parsed(attribute: str, parse: Callable[[str], Any]) -> _Handler:
    return lambda loader, value: setattr(loader.spec, attribute, parse(value))


def _choice(attribute: str, accepted: tuple[str, ...]) -> _Handler:
    def take(loader: _Loader, value: str) -> None:
        if value in NOT_YET and attribute == "type":
            raise ValueError(f"{value} is not supported yet; {', '.join(accepted)} are")
        if value not in accepted:
            hint = syntax.nearest(value, accepted)
            raise ValueError(f"{value!r} is not one of {', '.join(accepted)}{hint}")
        setattr(loader.spec, attribute, value)

    return take


def _number(attribute: str, low: int, high: int, base: int = 10) -> _Handler:
    def take(loader: _Loader, value: str) -> None:
        try:
            number = int(value, base)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
        if not low <= number <= high:
            raise ValueError(f"{number} is not between {low} and {high}")
        setattr(loader.spec, attribute, number)

    return take


def parse_command(value: str) -> list[Command]:
    """The command lines in one Exec value (``;`` separates them)."""
    out: list[Command] = []
    words = syntax.split_words(value)
    while words:
        end = words.index(";") if ";" in words else len(words)
        line, words = words[:end], words[end + 1 :]
        if line:
            out.append(_one_command([w.replace("\\;", ";") for w in line]))
    if not out:
        raise ValueError("a command is missing")
    return out


def _one_command(words: list[str]) -> Command:
    program = words[0]
    flags = ""
    while program and program[0] in "-@:+!":
        flags += program[0]
        program = program[1:]
    if not program:
        raise ValueError("a command is missing after its prefix")
    if "$" in program:
        raise ValueError("the program itself may not be a variable")
    if not program.startswith("/") and "/" in program:
        raise ValueError(f"{program!r}: an absolute path or a bare name")
    rest = words[1:]
    argv0 = ""
    if "@" in flags:
        if not rest:
            raise ValueError("@ needs the name to run under as its first word")
        argv0, rest = rest[0], rest[1:]
    return Command((program, *rest), "-" in flags, argv0, ":" in flags)


def _commands(attribute: str) -> _Handler:
    def take(loader: _Loader, value: str) -> None:
        listed: list[Command] = getattr(loader.spec, attribute)
        if not value:
            listed.clear()
        else:
            listed += parse_command(value)

    return take


def _signal(loader: _Loader, value: str) -> None:
    name = value if value.startswith("SIG") else f"SIG{value}"
    if value.isdigit() and 1 <= int(value) <= 64:
        loader.spec.kill_signal = int(value)
        return
    try:
        loader.spec.kill_signal = signal.Signals[name]
    except KeyError:
        raise ValueError(f"no signal is called {value!r}") from None


_EXIT_NAMES = {
    "SUCCESS": 0, "FAILURE": 1, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74,
    "TEMPFAIL": 75, "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78,
}  # fmt: skip


def _statuses(attribute: str) -> _Handler:
    def take(loader: _Loader, value: str) -> None:
        found: set[int | str] = set(getattr(loader.spec, attribute)) if value else set()
        for word in value.split():
            if word.isdigit() and int(word) <= 255:
                found.add(int(word))
            elif word in _EXIT_NAMES:
                found.add(_EXIT_NAMES[word])
            elif word.startswith("SIG") and word in signal.Signals.__members__:
                found.add(word)
            else:
                raise ValueError(f"{word!r} is not an exit status or a signal")
        setattr(loader.spec, attribute, frozenset(found))

    return take


def _environment(loader: _Loader, value: str) -> None:
    if not value:
        loader.spec.environment.clear()
    for word in syntax.split_words(value):
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"{word!r} is not NAME=value")
        loader.spec.environment[key] = text


def _environment_file(loader: _Loader, value: str) -> None:
    if not value:
        loader.spec.environment_files.clear()
        return
    optional = value.startswith("-")
    path = value.lstrip("-")
    if not path.startswith("/"):
        raise ValueError(f"{path!r}: an absolute path")
    loader.spec.environment_files.append((path, optional))


def _metadata(loader: _Loader, value: str) -> None:
    for word in syntax.split_words(value):
        key, equals, text = word.partition("=")
        if not equals or not key or not text or "=" in text:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        loader.spec.machine_metadata.append((key, text))


def _words(attribute: str) -> _Handler:
    def take(loader: _Loader, value: str) -> None:
        listed: list[str] = getattr(loader.spec, attribute)
        if not value:
            listed.clear()
        listed += syntax.split_words(value)

    return take


def _machine_of(loader: _Loader, value: str) -> None:
    loader.spec.machine_of += [names.parse(word).full for word in syntax.split_words(value)]


def _machine_id(loader: _Loader, value: str) -> None:
    if not loader.spec.machine_id:
        loader.spec.machine_id = value


def _port(loader: _Loader, value: str) -> None:
    for word in syntax.split_words(value):
        name, colon, number = word.partition(":")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ValueError(f"{word!r} is not NAME or NAME:NUMBER")
        if colon and not (number.isdigit() and 1 <= int(number) <= 65535):
            raise ValueError(f"{number!r} is not a port: 1 to 65535")
        loader.spec.ports.append((name, int(number) if colon else 0))


def _announce(loader: _Loader, value: str) -> None:
    if not value.startswith("/") or "//" in value or value.endswith("/"):
        raise ValueError(f"{value!r} is not a key of the brain like /services/api")
    if value.startswith("/_"):
        raise ValueError("keys that start with /_ are Argosy's own")
    loader.spec.announce = value


def _health_check(loader: _Loader, value: str) -> None:
    if value.startswith(("http://", "tcp://")):
        kind, target = value.split("://", 1)
        host = target.split("/", 1)[0]
        if not re.fullmatch(r"[^:/\s]*:(PORT(_[A-Za-z0-9_]+)?|\d+)", host):
            raise ValueError(f"{value!r}: a port is missing: http://:PORT/path or tcp://:PORT")
    elif value.startswith("exec:"):
        kind, target = "exec", value[5:].strip()
        parse_command(target)
    else:
        raise ValueError(f"{value!r} is not http://:PORT/path, tcp://:PORT or exec:COMMAND")
    loader._health["kind"] = kind  # noqa: SLF001
    loader._health["target"] = target  # noqa: SLF001


def _health_setting(name: str, parse: Callable[[str], Any]) -> _Handler:
    def take(loader: _Loader, value: str) -> None:
        parsed = parse(value)
        if parsed <= 0 and name != "start_period":
            raise ValueError(f"{value!r}: more than zero")
        loader._health[name] = parsed  # noqa: SLF001

    return take


def _timeout_start(loader: _Loader, value: str) -> None:
    loader._start_timeout_given = True  # noqa: SLF001
    loader.spec.timeout_start_sec = syntax.duration(value) or syntax.INFINITY


def _timeout_both(loader: _Loader, value: str) -> None:
    _timeout_start(loader, value)
    loader.spec.timeout_stop_sec = syntax.duration(value) or syntax.INFINITY


def _directory(loader: _Loader, value: str) -> None:
    path = value.lstrip("-") or "/"
    if not path.startswith(("/", "~")):
        raise ValueError(f"{value!r}: an absolute path or ~")
    loader.spec.working_directory = path


_KEYS: dict[str, dict[str, _Handler]] = {
    "Unit": {
        "Description": _text("description"),
        "StartLimitIntervalSec": _parsed("start_limit_interval_sec", syntax.duration),
        "StartLimitInterval": _parsed("start_limit_interval_sec", syntax.duration),
        "StartLimitBurst": _number("start_limit_burst", 0, 1_000_000),
    },
    "Service": {
        "Type": _choice("type", TYPES),
        "RemainAfterExit": _parsed("remain_after_exit", syntax.boolean),
        "ExecStartPre": _commands("exec_start_pre"),
        "ExecStart": _commands("exec_start"),
        "ExecStartPost": _commands("exec_start_post"),
        "ExecReload": _commands("exec_reload"),
        "ExecStop": _commands("exec_stop"),
        "ExecStopPost": _commands("exec_stop_post"),
        "Restart": _choice("restart", RESTART),
        "RestartSec": _parsed("restart_sec", syntax.duration),
        "RestartSteps": _number("restart_steps", 0, 1000),
        "RestartMaxDelaySec": _parsed("restart_max_delay_sec", syntax.duration),
        "TimeoutStartSec": _timeout_start,
        "TimeoutStopSec": _parsed(
            "timeout_stop_sec", lambda v: syntax.duration(v) or syntax.INFINITY
        ),
        "TimeoutSec": _timeout_both,
        "StartLimitInterval": _parsed("start_limit_interval_sec", syntax.duration),
        "StartLimitIntervalSec": _parsed("start_limit_interval_sec", syntax.duration),
        "StartLimitBurst": _number("start_limit_burst", 0, 1_000_000),
        "KillMode": _choice("kill_mode", KILL_MODES),
        "KillSignal": _signal,
        "SendSIGKILL": _parsed("send_sigkill", syntax.boolean),
        "SuccessExitStatus": _statuses("success_exit_status"),
        "RestartPreventExitStatus": _statuses("restart_prevent_exit_status"),
        "RestartForceExitStatus": _statuses("restart_force_exit_status"),
        "Environment": _environment,
        "EnvironmentFile": _environment_file,
        "WorkingDirectory": _directory,
        "User": _text("user"),
        "Group": _text("group"),
        "UMask": _number("umask", 0, 0o777, 8),
        "Nice": _number("nice", -20, 19),
    },
    "Install": {},
    "X-Fleet": {
        "MachineID": _machine_id,
        "MachineOf": _machine_of,
        "MachineMetadata": _metadata,
        "Conflicts": _words("conflicts"),
        "Global": _parsed("is_global", syntax.boolean),
        "X-ConditionMachineID": _machine_id,
        "X-ConditionMachineOf": _machine_of,
        "X-ConditionMachineMetadata": _metadata,
        "X-Conflicts": _words("conflicts"),
    },
    "X-Argosy": {
        "Port": _port,
        "Announce": _announce,
        "HealthCheck": _health_check,
        "HealthInterval": _health_setting("interval", syntax.duration),
        "HealthTimeout": _health_setting("timeout", syntax.duration),
        "HealthRetries": _health_setting("retries", int),
        "HealthStartPeriod": _health_setting("start_period", syntax.duration),
        "OnPartition": _choice("on_partition", ("stop", "keep")),
    },
}
