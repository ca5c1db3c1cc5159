"""The keys of unit files: what each accepts, and what it sets in the spec.

One function per kind of value.  Specifiers are replaced word by word where a value is a
list of words, so that what they stand for is never split.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import constraints, names, rollout, syntax
from .dependencies import RELATIONS
from .spec import DIRECTORY_ROOTS, Command, Condition, Output

if TYPE_CHECKING:
    from .unitfile import Loader

Handler = Callable[["Loader", str], None]

RESTART = ("no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always")
KILL_MODES = ("control-group", "mixed", "process", "none")
TYPES = ("simple", "exec", "oneshot", "notify", "notify-reload", "forking", "idle")
#: systemd's limits, and the resource of setrlimit(2) that each is (``resource.RLIMIT_...``).
LIMITS = {
    "CPU": "seconds", "FSIZE": "bytes", "DATA": "bytes", "STACK": "bytes", "CORE": "bytes", "RSS": "bytes",
    "NOFILE": "number", "AS": "bytes", "NPROC": "number", "MEMLOCK": "bytes", "LOCKS": "number",
    "SIGPENDING": "number", "MSGQUEUE": "bytes", "NICE": "nice", "RTPRIO": "number", "RTTIME": "microseconds",
}  # fmt: skip
#: Conditions and Asserts that are understood (systemd.unit(5)).
CONDITIONS = (
    "PathExists", "PathExistsGlob", "PathIsDirectory", "PathIsSymbolicLink", "PathIsMountPoint",
    "PathIsReadWrite", "DirectoryNotEmpty", "FileNotEmpty", "FileIsExecutable", "Host", "Architecture",
    "KernelVersion", "Memory", "CPUs", "Environment", "User", "Group",
)  # fmt: skip

#: Keys of systemd that are accepted and do nothing here, with the reason.
_HARDENING = "the sandbox of a service is not set up here; put it in a container to isolate it"
IGNORED: dict[str, dict[str, str]] = {
    "Unit": {
        "Documentation": "it is for readers of the file",
        "DefaultDependencies": "there are no dependencies by default",
        "SourcePath": "it is for generators",
        **dict.fromkeys(
            (
                "StopWhenUnneeded", "RefuseManualStart", "RefuseManualStop", "JobTimeoutSec", "PropagatesReloadTo",
                "ReloadPropagatedFrom", "PropagatesStopTo", "StopPropagatedFrom", "JoinsNamespaceOf", "RequiresMountsFor",
                "OnFailureJobMode", "OnSuccessJobMode", "IgnoreOnIsolate", "AllowIsolate",
            ),
            "not acted upon; see the table of dependencies in docs/units.md",
        ),
        **dict.fromkeys(
            ("StartLimitAction", "FailureAction", "SuccessAction"), "a unit does not reboot its machine here"
        ),
    },
    "Service": {
        **dict.fromkeys(
            (
                "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "ProtectSystem", "ProtectHome",
                "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
                "ProtectClock", "ProtectHostname", "ProtectProc", "ReadWritePaths", "ReadOnlyPaths",
                "InaccessiblePaths", "CapabilityBoundingSet", "AmbientCapabilities", "SystemCallFilter",
                "SystemCallArchitectures", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
                "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "SecureBits",
            ),
            _HARDENING,
        ),
        **dict.fromkeys(
            ("SyslogIdentifier", "SyslogFacility", "SyslogLevel", "LogLevelMax", "LogRateLimitIntervalSec",
             "LogRateLimitBurst"),
            "every unit has a log of its own here",
        ),
        "StandardInput": "a service reads from /dev/null here",
        "Slice": "every unit has a control group of its own, below the machine's",
        "Delegate": "a unit's control group is its own in any case",
        "OOMPolicy": "a unit ends when its main process does",
        "IOWeight": "not set here", "MemoryMin": "not set here", "MemoryLow": "not set here",
        "ExitType": "a service lives as long as its main process here",
        "TimeoutStartFailureMode": "a service that does not start in time is asked to end, then killed",
        "TimeoutStopFailureMode": "a service that does not stop in time is killed",
        "BusName": "there is no bus here",
    },
    "Install": dict.fromkeys(
        ("WantedBy", "RequiredBy", "UpheldBy", "Also", "DefaultInstance"),
        "a unit is started by the cluster, not by enabling it",
    ),
}  # fmt: skip


# -- kinds of values -------------------------------------------------------------------------


def _text(attribute: str) -> Handler:
    return lambda loader, value: setattr(loader.spec, attribute, loader.expand(value))


def _parsed(attribute: str, parse: Callable[[str], Any]) -> Handler:
    return lambda loader, value: setattr(loader.spec, attribute, parse(loader.expand(value)))


def _flag(attribute: str) -> Handler:
    return _parsed(attribute, syntax.boolean)


def _duration(attribute: str) -> Handler:
    return _parsed(attribute, syntax.duration)


def _limit_of_time(attribute: str) -> Handler:
    """A time span in which 0 is no limit."""
    return _parsed(attribute, lambda value: syntax.duration(value) or syntax.INFINITY)


def _choice(attribute: str, accepted: tuple[str, ...]) -> Handler:
    def take(loader: Loader, value: str) -> None:
        if value not in accepted:
            hint = syntax.nearest(value, accepted)
            raise ValueError(f"{value!r} is not one of {', '.join(accepted)}{hint}")
        setattr(loader.spec, attribute, value)

    return take


def integer(value: str, low: int, high: int, base: int = 10) -> int:
    """A whole number within bounds; raises ``ValueError``."""
    try:
        number = int(value, base)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None
    if not low <= number <= high:
        raise ValueError(f"{number} is not between {low} and {high}")
    return number


def _number(attribute: str, low: int, high: int, base: int = 10) -> Handler:
    return _parsed(attribute, lambda value: integer(value, low, high, base))


def _alias(loader: Loader, value: str) -> None:
    """Other names of the unit; a template's are templates, an instance's follow from them (systemd.unit(5))."""
    if not value.strip():
        loader.spec.aliases.clear()
    for word in value.split():
        alias = names.parse(loader.expand(word) if loader.name.instance or "%" not in word else word.replace("%i", "x"))
        if alias.suffix != loader.name.suffix:
            raise ValueError(f"{word}: the alias of a {loader.name.suffix} ends in {loader.name.suffix}, too")
        if loader.name.is_template and not alias.is_template and "%" not in word and not alias.instance:
            raise ValueError(f"{word}: the alias of a template is a template, like {alias.prefix}@{alias.suffix}")
        if "%" in word and not loader.name.instance:
            continue  # of its instances
        if alias.full != loader.name.full and not (loader.name.instance and alias.is_template):
            loader.spec.aliases.append(alias.full)


def _relation(key: str) -> Handler:
    """Names of other units; they add up and are never taken back (systemd.unit(5))."""

    def take(loader: Loader, value: str) -> None:
        listed: list[str] = loader.spec.related.setdefault(key, [])
        for word in value.split():
            name = loader.expand(word)
            if name.endswith(names.FOREIGN):
                loader.notes.append(f"{loader.file}: {key}={name}: there are no such units here, it counts as satisfied")
            elif (full := names.parse(name).full) not in listed:
                listed.append(full)

    return take


def _words(attribute: str) -> Handler:
    """A list that grows with each assignment; an empty one begins it anew."""

    def take(loader: Loader, value: str) -> None:
        listed: list[str] = getattr(loader.spec, attribute)
        if not value:
            listed.clear()
        listed += loader.words(value)

    return take


# -- commands --------------------------------------------------------------------------------


def parse_command(value: str, expand: Callable[[str], str] = str) -> list[Command]:
    """The command lines in one Exec value (``;`` separates them)."""
    out: list[Command] = []
    words = syntax.split_words(value)
    while words:
        end = words.index(";") if ";" in words else len(words)
        line, words = words[:end], words[end + 1 :]
        if line:
            out.append(_one_command([expand(w.replace("\\;", ";")) for w in line]))
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
    if ("+" in flags and "!" in flags) or flags.count("!") > 2:
        raise ValueError(f"{words[0]!r}: only one of the prefixes +, ! and !! is accepted")
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
    privileged = "+" in flags or "!" in flags
    return Command((program, *rest), "-" in flags, argv0, ":" in flags, privileged)


def _commands(attribute: str) -> Handler:
    def take(loader: Loader, value: str) -> None:
        listed: list[Command] = getattr(loader.spec, attribute)
        if not value:
            listed.clear()
        else:
            listed += parse_command(value, loader.expand)

    return take


# -- signals and exit statuses -----------------------------------------------------------------


def _signal(attribute: str) -> Handler:
    def parse(value: str) -> int:
        name = value if value.startswith("SIG") else f"SIG{value}"
        if value.isdigit() and 1 <= int(value) <= 64:
            return int(value)
        if name not in signal.Signals.__members__:
            hint = syntax.nearest(name, tuple(signal.Signals.__members__))
            raise ValueError(f"no signal is called {value!r}{hint}")
        return int(signal.Signals[name])

    return _parsed(attribute, parse)


_EXIT_NAMES = {
    "SUCCESS": 0, "FAILURE": 1, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74,
    "TEMPFAIL": 75, "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78,
}  # fmt: skip


def _statuses(attribute: str) -> Handler:
    def take(loader: Loader, value: str) -> None:
        found: set[int | str] = set(getattr(loader.spec, attribute)) if value else set()
        for word in loader.words(value):
            if word.isdigit() and int(word) <= 255:
                found.add(int(word))
            elif word in _EXIT_NAMES:
                found.add(_EXIT_NAMES[word])
            elif word in signal.Signals.__members__:
                found.add(word)
            elif f"SIG{word}" in signal.Signals.__members__:
                found.add(f"SIG{word}")
            else:
                raise ValueError(f"{word!r} is not an exit status or a signal")
        setattr(loader.spec, attribute, frozenset(found))

    return take


# -- environment -------------------------------------------------------------------------------


def _environment(loader: Loader, value: str) -> None:
    if not value:
        loader.spec.environment.clear()
    for word in loader.words(value):
        key, equals, text = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"{word!r} is not NAME=value")
        loader.spec.environment[key] = text


def _environment_file(loader: Loader, value: str) -> None:
    if not value:
        loader.spec.environment_files.clear()
        return
    path = loader.expand(value)
    optional = path.startswith("-")
    path = path.removeprefix("-")
    if not path.startswith("/"):
        raise ValueError(f"{path!r}: an absolute path")
    loader.spec.environment_files.append((path, optional))


def _working_directory(loader: Loader, value: str) -> None:
    path = loader.expand(value)
    loader.spec.working_directory_optional = path.startswith("-")
    path = path.removeprefix("-") or "/"
    if not path.startswith("/") and path != "~":
        raise ValueError(f"{path!r}: an absolute path, or ~ for the home of User=")
    loader.spec.working_directory = path


def _output(attribute: str) -> Handler:
    def parse(value: str) -> Output:
        kind, colon, path = value.partition(":")
        if kind in ("file", "append", "truncate") and colon:
            if not path.startswith("/"):
                raise ValueError(f"{value!r}: an absolute path must follow the colon")
            return Output(kind, path)
        if value in ("null", "inherit"):
            return Output(value)
        if value in ("journal", "journal+console", "kmsg", "kmsg+console", "syslog"):
            return Output("log")
        raise ValueError(f"{value!r} is not one of null, inherit, journal, file:, append: or truncate: with a path")

    return _parsed(attribute, parse)


def _directories(kind: str) -> Handler:
    def take(loader: Loader, value: str) -> None:
        listed = loader.spec.directories.setdefault(kind, [])
        if not value:
            listed.clear()
        for word in loader.words(value):
            parts = word.split("/")
            if word.startswith("/") or any(part in ("", ".", "..") for part in parts):
                raise ValueError(f"{word!r}: a relative path without . or ..")
            listed.append(word)

    return take


def _mode(kind: str) -> Handler:
    def take(loader: Loader, value: str) -> None:
        loader.spec.directory_modes[kind] = integer(value, 0, 0o7777, 8)

    return take


# -- limits ------------------------------------------------------------------------------------

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


def _bytes_or_infinity(value: str) -> float:
    return math.inf if value == "infinity" else float(syntax.size(value))


def _resource(attribute: str, parse: Callable[[str], float]) -> Handler:
    def take(loader: Loader, value: str) -> None:
        setattr(loader.spec.resources, attribute, parse(value) if value else math.inf)

    return take


def _cpu_quota(value: str) -> float:
    match = _PERCENT.fullmatch(value)
    if match is None or not float(match.group(1)):
        raise ValueError(f"{value!r} is not a share of a processor above zero: 20% or 150%")
    return float(match.group(1)) / 100


def _tasks_max(value: str) -> float:
    return math.inf if value == "infinity" else float(integer(value, 1, 2**31))


def _cpu_weight(loader: Loader, value: str) -> None:
    loader.spec.resources.cpu_weight = integer(value, 1, 10_000)


def _rlimit(name: str) -> Handler:
    def take(loader: Loader, value: str) -> None:
        soft, colon, hard = loader.expand(value).partition(":")
        low = _limit_value(name, soft)
        high = _limit_value(name, hard) if colon else low
        if high != -1 and (low == -1 or low > high):
            raise ValueError(f"{value!r}: the soft limit is above the hard one")
        loader.spec.resources.limits[name] = (low, high)

    return take


def _limit_value(name: str, value: str) -> int:
    """A limit as setrlimit(2) takes it: -1 is infinity."""
    kind = LIMITS[name]
    if value == "infinity":
        return -1
    if kind == "bytes":
        return syntax.size(value)
    if kind == "seconds":
        return math.ceil(syntax.duration(value))
    if kind == "microseconds":
        return round(float(value)) if value.isdigit() else round(syntax.duration(value) * 1e6)
    if kind == "nice" and value[:1] in ("+", "-"):
        return 20 - integer(value, -20, 19)
    return integer(value, 0, 2**62)


# -- conditions --------------------------------------------------------------------------------


def _condition(kind: str, is_assert: bool) -> Handler:
    def take(loader: Loader, value: str) -> None:
        if not value:
            loader.spec.conditions = [c for c in loader.spec.conditions if c.is_assert is not is_assert]
            return
        text = loader.expand(value)
        triggering = text.startswith("|")
        text = text.removeprefix("|").strip()
        negated = text.startswith("!")
        text = text.removeprefix("!").strip()
        if not text:
            raise ValueError("what is looked for is missing")
        if kind.startswith(("Path", "File", "Directory")) and not text.startswith("/"):
            raise ValueError(f"{text!r}: an absolute path")
        loader.spec.conditions.append(Condition(kind, text, negated, triggering, is_assert))

    return take


# -- placement, and Argosy's own -------------------------------------------------------------------


def _metadata(loader: Loader, value: str) -> None:
    for word in loader.words(value):
        key, equals, text = word.partition("=")
        if equals and text and "=" not in text and re.fullmatch(r"[^\s!~]+", key):
            loader.spec.machine_metadata.append((key, text))
        else:
            loader.spec.machine_rules.append(constraints.rule(word))


def _affinity(loader: Loader, value: str) -> None:
    loader.spec.affinity += [constraints.affinity(word) for word in loader.words(value)]


def _cpu(value: str) -> float:
    """Processors: 0.5, or 500m (thousandths)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", value)
    if match is None:
        raise ValueError(f"{value!r} is not a number of processors: 2, 0.5 or 500m are")
    return float(match.group(1)) / (1000 if match.group(2) else 1)


def _machine_of(loader: Loader, value: str) -> None:
    loader.spec.machine_of += [names.parse(word).full for word in loader.words(value)]


def _machine_id(loader: Loader, value: str) -> None:
    if not loader.spec.machine_id:
        loader.spec.machine_id = loader.expand(value)


def _port(loader: Loader, value: str) -> None:
    for word in loader.words(value):
        name, colon, number = word.partition(":")
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ValueError(f"{word!r} is not NAME or NAME:NUMBER")
        if colon and not (number.isdigit() and 1 <= int(number) <= 65535):
            raise ValueError(f"{number!r} is not a port: 1 to 65535")
        loader.spec.ports.append((name, int(number) if colon else 0))


def _announce(loader: Loader, value: str) -> None:
    value = loader.expand(value)
    if not value.startswith("/") or "//" in value or value.endswith("/"):
        raise ValueError(f"{value!r} is not a key of the brain like /services/api")
    if value.startswith("/_"):
        raise ValueError("keys that start with /_ are Argosy's own")
    loader.spec.announce = value


def _health_check(loader: Loader, value: str) -> None:
    value = loader.expand(value)
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
    loader.health["kind"] = kind
    loader.health["target"] = target


def _health_setting(name: str, parse: Callable[[str], Any]) -> Handler:
    def take(loader: Loader, value: str) -> None:
        parsed = parse(loader.expand(value))
        if parsed <= 0 and name != "start_period":
            raise ValueError(f"{value!r}: more than zero")
        loader.health[name] = parsed

    return take


def _timeout_start(loader: Loader, value: str) -> None:
    loader.start_timeout_given = True
    loader.spec.timeout_start_sec = syntax.duration(loader.expand(value)) or syntax.INFINITY


def _timeout_both(loader: Loader, value: str) -> None:
    _timeout_start(loader, value)
    loader.spec.timeout_stop_sec = loader.spec.timeout_start_sec


def _pid_file(loader: Loader, value: str) -> None:
    path = loader.expand(value)
    loader.spec.pid_file = path if path.startswith("/") or not path else f"/run/{path}"


_START_LIMITS: dict[str, Handler] = {
    "StartLimitIntervalSec": _duration("start_limit_interval_sec"),
    "StartLimitInterval": _duration("start_limit_interval_sec"),
    "StartLimitBurst": _number("start_limit_burst", 0, 1_000_000),
}

#: What is accepted in each section.
KEYS: dict[str, dict[str, Handler]] = {
    "Unit": {
        "Description": _text("description"),
        **_START_LIMITS,
        **{f"Condition{kind}": _condition(kind, False) for kind in CONDITIONS},
        **{f"Assert{kind}": _condition(kind, True) for kind in CONDITIONS},
        **{key: _relation(key) for key in RELATIONS},
    },
    "Service": {
        "Type": _choice("type", TYPES),
        "RemainAfterExit": _flag("remain_after_exit"),
        "GuessMainPID": _flag("guess_main_pid"),
        "PIDFile": _pid_file,
        "ExecCondition": _commands("exec_condition"),
        "ExecStartPre": _commands("exec_start_pre"),
        "ExecStart": _commands("exec_start"),
        "ExecStartPost": _commands("exec_start_post"),
        "ExecReload": _commands("exec_reload"),
        "ExecStop": _commands("exec_stop"),
        "ExecStopPost": _commands("exec_stop_post"),
        "Restart": _choice("restart", RESTART),
        "RestartSec": _duration("restart_sec"),
        "RestartSteps": _number("restart_steps", 0, 1000),
        "RestartMaxDelaySec": _duration("restart_max_delay_sec"),
        "TimeoutStartSec": _timeout_start,
        "TimeoutStopSec": _limit_of_time("timeout_stop_sec"),
        "TimeoutAbortSec": _duration("timeout_abort_sec"),
        "TimeoutSec": _timeout_both,
        "RuntimeMaxSec": _limit_of_time("runtime_max_sec"),
        "WatchdogSec": _duration("watchdog_sec"),
        "NotifyAccess": _choice("notify_access", ("none", "main", "exec", "all")),
        **_START_LIMITS,
        "KillMode": _choice("kill_mode", KILL_MODES),
        "KillSignal": _signal("kill_signal"),
        "RestartKillSignal": _signal("restart_kill_signal"),
        "FinalKillSignal": _signal("final_kill_signal"),
        "WatchdogSignal": _signal("watchdog_signal"),
        "ReloadSignal": _signal("reload_signal"),
        "SendSIGHUP": _flag("send_sighup"),
        "SendSIGKILL": _flag("send_sigkill"),
        "SuccessExitStatus": _statuses("success_exit_status"),
        "RestartPreventExitStatus": _statuses("restart_prevent_exit_status"),
        "RestartForceExitStatus": _statuses("restart_force_exit_status"),
        "Environment": _environment,
        "EnvironmentFile": _environment_file,
        "PassEnvironment": _words("pass_environment"),
        "UnsetEnvironment": _words("unset_environment"),
        "WorkingDirectory": _working_directory,
        "User": _text("user"),
        "Group": _text("group"),
        "SupplementaryGroups": _words("supplementary_groups"),
        "UMask": _number("umask", 0, 0o777, 8),
        "Nice": _number("nice", -20, 19),
        "OOMScoreAdjust": _number("oom_score_adjust", -1000, 1000),
        "NoNewPrivileges": _flag("no_new_privileges"),
        "StandardOutput": _output("standard_output"),
        "StandardError": _output("standard_error"),
        **{f"{kind.capitalize()}Directory": _directories(kind) for kind in DIRECTORY_ROOTS},
        **{f"{kind.capitalize()}DirectoryMode": _mode(kind) for kind in DIRECTORY_ROOTS},
        "RuntimeDirectoryPreserve": _choice("runtime_directory_preserve", ("no", "yes", "restart")),
        "MemoryMax": _resource("memory_max", _bytes_or_infinity),
        "MemoryLimit": _resource("memory_max", _bytes_or_infinity),
        "MemoryHigh": _resource("memory_high", _bytes_or_infinity),
        "MemorySwapMax": _resource("memory_swap_max", _bytes_or_infinity),
        "CPUQuota": _resource("cpu_quota", _cpu_quota),
        "CPUWeight": _cpu_weight,
        "TasksMax": _resource("tasks_max", _tasks_max),
        **{f"Limit{name}": _rlimit(name) for name in LIMITS},
    },
    "Install": {"Alias": _alias},
    "X-Fleet": {
        "MachineID": _machine_id,
        "MachineOf": _machine_of,
        "MachineMetadata": _metadata,
        "Conflicts": _words("conflicts"),
        "Replaces": _words("replaces"),
        "Global": _flag("is_global"),
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
        "LostAfter": _duration("lost_after"),
        "Cpu": _parsed("cpu", _cpu),
        "Memory": _parsed("memory", syntax.size),
        "MaxPerMachine": _number("max_per_machine", 0, 100_000),
        "Spread": _text("spread"),
        "Affinity": _affinity,
        "Placement": _choice("placement", ("spread", "pack")),
        "Priority": _number("priority", 0, 100),
        "Reschedule": _number("reschedule", 0, 1000),
        "Replicas": _number("replicas", 0, 10_000),
        "MaxUnavailable": _number("max_unavailable", 1, 10_000),
        "Update": _parsed("update", rollout.policy),
        "RemoveAfter": _duration("remove_after"),
    },
}
