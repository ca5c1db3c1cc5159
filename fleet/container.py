"""The [Container] section of a unit: Quadlet's keys, and what the Docker Engine is asked for.

Each key of podman-systemd.unit(5) is in ``KEYS`` (and has an effect, or is refused with the
reason) or in ``IGNORED`` (harmless here, with the reason).  ``create_arguments`` gives the
body of the engine's ``POST /containers/create``.  Pure: no engine, no file.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import secrets, syntax
from .secrets import Secret
from .spec import Command, UnitSpec

#: Smallest memory limit that the engine takes, in bytes.
MEMORY_BYTES_MIN = 6 * 1024 * 1024
#: Ports that one PublishPort= may name as a range.
PORT_RANGE_MAX = 1000
#: Podman's limit on processes, kept where PidsLimit= says nothing.
PIDS_DEFAULT = 2048
#: What the engine keeps of a container's output; the unit's own log is made from it.
LOG_DRIVER_DEFAULT = "json-file"
LOG_OPTIONS_DEFAULT = {"max-size": "10m", "max-file": "3"}
#: Labels that start so are Argosy's own.
LABEL_PREFIX = "argosy."
#: Variables of a unit on the machine that an image sets for itself.
_IMAGES_OWN = frozenset({"PATH", "LANG", "HOME", "USER", "LOGNAME", "SHELL"})

PULL = ("missing", "always", "never", "newer")
ON_FAILURE = ("none", "kill", "restart", "stop")
LOG_DRIVERS = ("json-file", "local", "journald", "none")
_TMPFS_OF_READ_ONLY = ("/run", "/tmp", "/var/tmp")  # noqa: S108


@dataclass(frozen=True, slots=True)
class Publish:
    """A published port: ``host`` is a number, the name of a Port=, or empty (any free one)."""

    port: int
    protocol: str = "tcp"
    host: str = ""
    address: str = ""


@dataclass(slots=True)
class ContainerSpec:
    """Everything a [Container] section says, with Quadlet's defaults; times in seconds."""

    image: str = ""
    exec: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    #: (path, whether it may be missing); whoever starts the container reads them
    environment_files: list[tuple[str, bool]] = field(default_factory=list)
    working_dir: str = ""
    hostname: str = ""
    user: str = ""
    group: str = ""
    group_add: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    run_init: bool = False
    # storage
    binds: list[str] = field(default_factory=list)
    #: Volume= of a path, as mounts: unlike a bind, these do not make a source that is missing
    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    anonymous_volumes: list[str] = field(default_factory=list)
    tmpfs: dict[str, str] = field(default_factory=dict)
    read_only: bool = False
    read_only_tmpfs: bool = True
    shm_size: int = 0  # bytes; 0: the engine's default
    # network
    networks: list[str] = field(default_factory=list)
    publish: list[Publish] = field(default_factory=list)
    expose: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    dns: list[str] = field(default_factory=list)
    dns_options: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    secrets: list[Secret] = field(default_factory=list)
    # limits and rights
    memory: int = 0  # bytes; 0: no limit
    nano_cpus: int = 0  # 0: no limit; from [Service]'s CPUQuota=
    pids_limit: int = PIDS_DEFAULT  # -1: no limit
    ulimits: dict[str, tuple[int, int]] = field(default_factory=dict)
    add_capabilities: list[str] = field(default_factory=list)
    drop_capabilities: list[str] = field(default_factory=list)
    devices: list[tuple[str, str, str]] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    apparmor: str = ""
    security_labels: dict[str, str] = field(default_factory=dict)
    oom_score_adjust: int = 0  # from [Service]'s OOMScoreAdjust=
    # health
    health_cmd: list[str] = field(default_factory=list)
    health_interval: float = 30.0
    health_timeout: float = 30.0
    health_retries: int = 3
    health_start_period: float = 0.0
    health_given: bool = False
    health_on_failure: str = "none"
    #: READY comes with the first healthy check instead of the start
    notify_healthy: bool = False
    # its life
    pull: str = "missing"
    retry: int = 3
    retry_delay: float = 2.0
    stop_signal: str = ""  # empty: the image's, which is SIGTERM if it names none
    stop_timeout: int = 10
    reload_cmd: list[str] = field(default_factory=list)
    reload_signal: int = 0
    # output
    log_driver: str = LOG_DRIVER_DEFAULT
    log_options: dict[str, str] = field(default_factory=dict)

    @property
    def has_health(self) -> bool:
        """Whether the engine is asked to look after its health."""
        return bool(self.health_cmd) and self.health_cmd != ["NONE"]

    def named_ports(self) -> list[str]:
        """The names of Port= that PublishPort= refers to, as written."""
        return [p.host for p in self.publish if p.host and not p.host.isdigit()]


Parser = Callable[[ContainerSpec, str], None]

#: Keys without effect here, each with why that does no harm.
IGNORED = {
    "AutoUpdate": "images are not updated by themselves; submit the unit with the new image",
    "CgroupsMode": "the engine chooses the control groups of its containers",
    "HealthLogDestination": "the engine keeps the results of the health checks",
    "HealthMaxLogCount": "the engine keeps the results of the last health checks",
    "HealthMaxLogSize": "the engine limits what it keeps of a health check",
    "HttpProxy": "the engine hands on proxies as its own configuration says",
    "StartWithPod": "there are no pods",
}

_MAPS = "the Docker Engine maps user ids for all containers or for none"
_STARTUP = "the Docker Engine has no check of its own for the start; HealthStartPeriod= gives it time"
_MASKED = "the Docker Engine masks a fixed set of paths"
_REMAP = "it is deprecated by Quadlet itself, and the Docker Engine has no user id maps per container"
#: Keys of Quadlet that cannot be kept with the Docker Engine, each with the reason.
REFUSED = {
    "Annotation": "the Docker Engine keeps labels: Label= is accepted",
    "ContainersConfModule": "it configures Podman, and containers run in the Docker Engine",
    "EnvironmentHost": "a unit does not see the environment of its machine; Environment= is accepted",
    "GIDMap": _MAPS,
    "GlobalArgs": "it is for Podman's command line, and containers run in the Docker Engine",
    "HealthStartupCmd": _STARTUP,
    "HealthStartupInterval": _STARTUP,
    "HealthStartupRetries": _STARTUP,
    "HealthStartupSuccess": _STARTUP,
    "HealthStartupTimeout": _STARTUP,
    "IP": "a unit moves between machines and cannot own an address; PublishPort= is accepted",
    "IP6": "a unit moves between machines and cannot own an address; PublishPort= is accepted",
    "Mask": _MASKED,
    "NetworkAlias": "names in the networks of one engine end at its machine; Announce= is accepted",
    "Pod": "pods are not supported; MachineOf= places units together",
    "PodmanArgs": "it is for Podman's command line, and containers run in the Docker Engine",
    "RemapGid": _REMAP,
    "RemapUid": _REMAP,
    "RemapUidSize": _REMAP,
    "RemapUsers": _REMAP,
    "Rootfs": "only images are supported: Image= is accepted",
    "SecurityLabelNested": "the Docker Engine does not nest security labels",
    "ServiceName": "a unit is called as its file is",
    "SubGIDMap": _MAPS,
    "SubUIDMap": _MAPS,
    "Timezone": "the Docker Engine has no time zones; Environment=TZ=... is accepted where the image has them",
    "UIDMap": _MAPS,
    "Unmask": _MASKED,
    "UserNS": _MAPS,
    "VolatileTmp": "it is deprecated by Quadlet itself; Tmpfs=/tmp is accepted",
}

# -- one function per kind of value -----------------------------------------------------------


def _refused(reason: str) -> Parser:
    def take(_: ContainerSpec, __: str) -> None:
        raise ValueError(f"is not supported: {reason}")

    return take


def _parsed(attribute: str, parse: Callable[[str], Any]) -> Parser:
    return lambda spec, value: setattr(spec, attribute, parse(value))


def _choice(attribute: str, accepted: tuple[str, ...]) -> Parser:
    def take(spec: ContainerSpec, value: str) -> None:
        if value not in accepted:
            hint = syntax.nearest(value, accepted)
            raise ValueError(f"{value!r} is not one of {', '.join(accepted)}{hint}")
        setattr(spec, attribute, value)

    return take


def _listed(attribute: str, parse: Callable[[str], list[Any]]) -> Parser:
    def take(spec: ContainerSpec, value: str) -> None:
        found: list[Any] = getattr(spec, attribute)
        if value:
            found += parse(value)
        else:
            found.clear()

    return take


def _words(check: Callable[[str], str]) -> Callable[[str], list[str]]:
    return lambda value: [check(word) for word in syntax.split_words(value)]


def _pairs(attribute: str, check: Callable[[str, str], None]) -> Parser:
    def take(spec: ContainerSpec, value: str) -> None:
        found: dict[str, str] = getattr(spec, attribute)
        if not value:
            found.clear()
        for word in syntax.split_words(value):
            key, equals, text = word.partition("=")
            if not equals or not key:
                raise ValueError(f"{word!r} is not NAME=VALUE")
            check(key, text)
            found[key] = text

    return take


def _number(value: str, low: int, high: int) -> int:
    try:
        number = int(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None
    if not low <= number <= high:
        raise ValueError(f"{number} is not between {low} and {high}")
    return number


def _between(low: int, high: int) -> Callable[[str], int]:
    return lambda value: _number(value, low, high)


def _finite(value: str) -> float:
    seconds = syntax.duration(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{value!r}: a time that ends, as 30s")
    return seconds


def _absolute(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r}: an absolute path")
    return value


def _matching(pattern: str, accepted: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {accepted}")
        return value

    return check


def _image(spec: ContainerSpec, value: str) -> None:
    if value.endswith((".image", ".build")):
        raise ValueError(f"{value!r}: units of that kind are not supported; the name of an image is")
    # the reference grammar of distribution, without its length rules
    part = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
    domain = r"(?:[A-Za-z0-9.-]+(?::\d+)?|\[[0-9a-fA-F:]+\](?::\d+)?)"
    form = rf"(?:{domain}/)?{part}(?:/{part})*(?::[\w][\w.-]{{0,127}})?(?:@[a-z0-9]+:[0-9a-fA-F]{{32,}})?"
    if not re.fullmatch(form, value, re.ASCII):
        raise ValueError(f"{value!r} is not an image like docker.io/library/nginx:1.27")
    spec.image = value


def _exec(spec: ContainerSpec, value: str) -> None:
    spec.exec = syntax.split_words(value)


def _entrypoint(spec: ContainerSpec, value: str) -> None:
    if value.startswith("["):
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', value)
        if not re.fullmatch(r'\[\s*("(?:[^"\\]|\\.)*"\s*(,\s*"(?:[^"\\]|\\.)*"\s*)*)?\]', value):
            raise ValueError(f'{value!r} is not a list of strings like ["/bin/sh", "-c"]')
        spec.entrypoint = [re.sub(r"\\(.)", r"\1", word) for word in words]
    else:
        spec.entrypoint = syntax.split_words(value)


def _variable(key: str, _: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key):
        raise ValueError(f"{key!r} is not the name of a variable")


def _environment_file(value: str) -> list[tuple[str, bool]]:
    return [(_absolute(value.removeprefix("-")), value.startswith("-"))]


def _label(key: str, _: str) -> None:
    if key.startswith(LABEL_PREFIX):
        raise ValueError(f"{key!r}: labels that start with {LABEL_PREFIX} are Argosy's own")


def _sysctl(key: str, _: str) -> None:
    if not re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_/-]+)+", key):
        raise ValueError(f"{key!r} is not a kernel parameter like net.core.somaxconn")


# -- storage ------------------------------------------------------------------------------------

_PROPAGATION = ("shared", "slave", "private", "rshared", "rslave", "rprivate")
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")


def _secret(spec: ContainerSpec, value: str) -> None:
    if value:
        spec.secrets.append(secrets.parse(value))
    else:
        spec.secrets.clear()


def _volume(spec: ContainerSpec, value: str) -> None:
    if not value:
        spec.binds.clear()
        spec.anonymous_volumes.clear()
        spec.volumes.clear()
        return
    source, colon, rest = value.partition(":")
    if not colon:
        spec.anonymous_volumes.append(_absolute(source))
        return
    target, _, written = rest.partition(":")
    _absolute(target)
    options = [o for o in written.split(",") if o]
    accepted = ("ro", "rw", "z", "Z", "nocopy", *_PROPAGATION)
    for option in options:
        if option not in accepted:
            raise ValueError(f"option {option!r} is not one of {', '.join(accepted)}")
    if source.startswith("/"):
        if "z" in options or "Z" in options:  # only this form relabels; it also makes a missing source
            spec.binds.append(f"{source}:{target}:{','.join(options)}")
        else:
            spec.volumes.append(_bind(source, target, options))
    elif source.endswith(".volume"):
        raise ValueError(f"{source!r}: units of that kind are not supported; the name of a volume is")
    elif _VOLUME_NAME.fullmatch(source):
        spec.binds.append(f"{source}:{target}" + (f":{','.join(options)}" if options else ""))
    else:
        raise ValueError(f"{source!r} is neither an absolute path nor the name of a volume")


def _bind(source: str, target: str, options: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"Type": "bind", "Source": source, "Target": target, "ReadOnly": "ro" in options}
    propagation = [o for o in options if o in _PROPAGATION]
    if propagation:
        out["BindOptions"] = {"Propagation": propagation[-1]}
    return out


_MOUNT_NAMES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly",
                "tmpfs-size": "size", "tmpfs-mode": "mode", "bind-propagation": "propagation"}  # fmt: skip
_MOUNT_OPTIONS = {
    "bind": {"source", "target", "readonly", "propagation"},
    "volume": {"source", "target", "readonly"},
    "tmpfs": {"target", "readonly", "size", "mode"},
}


def _mount(spec: ContainerSpec, value: str) -> None:
    if not value:
        spec.mounts.clear()
        return
    options: dict[str, str] = {}
    for word in value.split(","):
        key, equals, text = word.strip().partition("=")
        options[_MOUNT_NAMES.get(key, key)] = text if equals else "yes"
    kind = options.pop("type", "volume")
    if kind not in _MOUNT_OPTIONS:
        raise ValueError(f"type {kind!r} is not one of {', '.join(_MOUNT_OPTIONS)}")
    for key in options:
        if key not in _MOUNT_OPTIONS[kind]:
            accepted = ", ".join(sorted(_MOUNT_OPTIONS[kind]))
            raise ValueError(f"option {key!r} is not one of {accepted}, which type={kind} takes")
    if "target" not in options:
        raise ValueError("a target= is missing: type=bind,source=/on/machine,target=/in/container")
    out: dict[str, Any] = {
        "Type": kind, "Target": _absolute(options["target"]),
        "ReadOnly": syntax.boolean(options.get("readonly", "no")),
    }  # fmt: skip
    if kind == "bind":
        out["Source"] = _absolute(options.get("source", ""))
        propagation = options.get("propagation", "")
        if propagation and propagation not in _PROPAGATION:
            raise ValueError(f"propagation {propagation!r} is not one of {', '.join(_PROPAGATION)}")
        if propagation:
            out["BindOptions"] = {"Propagation": propagation}
    elif kind == "volume":
        if "source" in options:
            out["Source"] = _matching(_VOLUME_NAME.pattern, "the name of a volume")(options["source"])
    else:
        out["TmpfsOptions"] = _tmpfs_options(options)
    spec.mounts.append(out)


def _tmpfs_options(options: dict[str, str]) -> dict[str, int]:
    out = {}
    if "size" in options:
        out["SizeBytes"] = syntax.size(options["size"])
    if "mode" in options:
        if not re.fullmatch(r"0?[0-7]{3,4}", options["mode"]):
            raise ValueError(f"mode {options['mode']!r} is not octal like 1777")
        out["Mode"] = int(options["mode"], 8)
    return out


def _tmpfs(spec: ContainerSpec, value: str) -> None:
    if not value:
        spec.tmpfs.clear()
        return
    target, _, options = value.partition(":")
    spec.tmpfs[_absolute(target)] = options


def _device(value: str) -> list[tuple[str, str, str]]:
    if value.startswith("-"):
        raise ValueError("a device that may be missing is not supported; the path of one that is there is")
    source, *rest = value.split(":")
    rights = "rwm"
    if rest and re.fullmatch(r"[rwm]+", rest[-1]):
        rights = rest.pop()
    if len(rest) > 1:
        raise ValueError(f"{value!r} is not DEVICE[:IN_CONTAINER][:rwm]")
    target = rest[0] if rest else source
    return [(_absolute(source), _absolute(target), rights)]


# -- network --------------------------------------------------------------------------------------


def _network(value: str) -> list[str]:
    if value.endswith((".network", ".container")):
        raise ValueError(f"{value!r}: units of that kind are not supported; the name of a network is")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
        raise ValueError(f"{value!r} is not host, bridge, none or the name of a network of the engine")
    if value in ("pasta", "slirp4netns", "private"):
        raise ValueError(f"{value!r} is Podman's; host, bridge, none or the name of a network are accepted")
    return [value]


_PUBLISH = "[ADDRESS:][PORT_ON_MACHINE:]PORT[/udp], where the port on the machine may be the name of a Port="


def _span(text: str) -> range:
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()):
        raise ValueError(f"{text!r} is not a port: 1 to 65535")
    low, high = int(first), int(last or first)
    if not 1 <= low <= high <= 65535:
        raise ValueError(f"{text!r} is not a port or a range of ports: 1 to 65535")
    if high - low >= PORT_RANGE_MAX:
        raise ValueError(f"{text!r}: a range names at most {PORT_RANGE_MAX} ports")
    return range(low, high + 1)


def _publish(value: str) -> list[Publish]:
    match = re.fullmatch(r"(?:(\[[^\]]*\]|[^:]*):)??(?:([^:]*):)?([^:/]+)(?:/([a-z]+))?", value)
    if match is None:
        raise ValueError(f"{value!r} is not {_PUBLISH}")
    address, host, inside, protocol = (part or "" for part in match.groups())
    protocol = protocol or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{protocol!r} is not one of tcp, udp, sctp")
    address = address.strip("[]")
    if address:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ValueError(f"{value!r} is not {_PUBLISH}") from None
    ports = _span(inside)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", host):
        if len(ports) > 1:
            raise ValueError(f"{host!r} is one port, and {inside} are {len(ports)}")
        return [Publish(ports[0], protocol, host, address)]
    outside = _span(host) if host else None
    if outside is not None and len(outside) != len(ports):
        raise ValueError(f"{host} and {inside} are not ranges of one length")
    return [
        Publish(port, protocol, str(outside[at]) if outside is not None else "", address)
        for at, port in enumerate(ports)
    ]


def _expose(value: str) -> list[str]:
    text, _, protocol = value.partition("/")
    protocol = protocol or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise ValueError(f"{protocol!r} is not one of tcp, udp, sctp")
    return [f"{port}/{protocol}" for port in _span(text)]


def _add_host(value: str) -> list[str]:
    name, colon, address = value.partition(":")
    try:
        if address != "host-gateway":
            ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        colon = ""
    if not colon or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(f"{value!r} is not NAME:ADDRESS or NAME:host-gateway")
    return [f"{name}:{address.strip('[]')}"]


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an address like 192.0.2.1") from None


# -- limits and rights ------------------------------------------------------------------------------

_CAPABILITIES = (
    "ALL", "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE",
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL",
    "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE",
    "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_ADMIN",
    "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM",
)  # fmt: skip
_ULIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss",
    "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip


def _capability(word: str) -> str:
    name = word.upper().removeprefix("CAP_")
    if name not in _CAPABILITIES:
        hint = syntax.nearest(name, _CAPABILITIES)
        raise ValueError(f"no capability is called {word!r}{hint}")
    return name if name == "ALL" else f"CAP_{name}"


def _ulimit(spec: ContainerSpec, value: str) -> None:
    if not value:
        spec.ulimits.clear()
        return
    name, equals, text = value.partition("=")
    if name not in _ULIMITS:
        hint = syntax.nearest(name, _ULIMITS)
        raise ValueError(f"no limit is called {name!r}{hint}; NAME=SOFT[:HARD] is accepted")
    soft, _, hard = text.partition(":")
    if not equals or not all(re.fullmatch(r"-1|\d+", part) for part in (soft, hard or soft)):
        raise ValueError(f"{value!r} is not {name}=SOFT[:HARD], with -1 for no limit")
    low, high = int(soft), int(hard or soft)
    if high != -1 and (low == -1 or low > high):
        raise ValueError(f"{value!r}: the soft limit is above the hard one")
    spec.ulimits[name] = (low, high)


def _memory(value: str) -> int:
    number = syntax.size(value)
    if number < MEMORY_BYTES_MIN:
        raise ValueError(f"{value!r} is too small: the engine takes 6M or more")
    return number


def _pids(value: str) -> int:
    return _number(value, -1, 4_194_304) or -1


def _seccomp(value: str) -> str:
    return value if value == "unconfined" else _absolute(value)


def _security_label(key: str) -> Parser:
    def take(spec: ContainerSpec, value: str) -> None:
        spec.security_labels[key] = value

    return take


def _security_label_disable(spec: ContainerSpec, value: str) -> None:
    if syntax.boolean(value):
        spec.security_labels["disable"] = ""
    else:
        spec.security_labels.pop("disable", None)


# -- health, life, output -----------------------------------------------------------------------------


def _health_cmd(spec: ContainerSpec, value: str) -> None:
    if value.lower() == "none":
        spec.health_cmd = ["NONE"]
    elif value.startswith("["):
        inner = ContainerSpec()
        _entrypoint(inner, value)
        words = inner.entrypoint
        spec.health_cmd = words if words[:1] in (["CMD"], ["CMD-SHELL"]) else ["CMD", *words]
    else:
        spec.health_cmd = ["CMD-SHELL", value] if value else []
    spec.health_given = True


def _health(attribute: str, parse: Callable[[str], Any], zero: bool = False) -> Parser:
    def take(spec: ContainerSpec, value: str) -> None:
        if value == "disable":
            raise ValueError("'disable' is Podman's; a time like 30s is accepted, or HealthCmd=none")
        found = parse(value)
        if found < 0 or (found == 0 and not zero):
            raise ValueError(f"{value!r}: more than zero")
        setattr(spec, attribute, found)
        spec.health_given = True

    return take


def _notify(spec: ContainerSpec, value: str) -> None:
    if value != "healthy" and syntax.boolean(value):
        raise ValueError(
            "a container is not handed a notification socket; Notify=healthy waits for its HealthCmd="
        )
    spec.notify_healthy = value == "healthy"


def parse_signal(value: str) -> signal.Signals:
    """A signal by number or name, with SIG or without; raises ``ValueError``."""
    try:
        if value.isdigit():
            return signal.Signals(int(value))
        return signal.Signals[value if value.startswith("SIG") else f"SIG{value}"]
    except (KeyError, ValueError):
        raise ValueError(f"no signal is called {value!r}") from None


def _stop_signal(spec: ContainerSpec, value: str) -> None:
    spec.stop_signal = parse_signal(value).name if value else ""


def _reload_signal(spec: ContainerSpec, value: str) -> None:
    spec.reload_signal = int(parse_signal(value)) if value else 0


def _log_option(key: str, _: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
        raise ValueError(f"{key!r} is not the name of an option of a log driver")


KEYS: dict[str, Parser] = {
    "Image": _image,
    "Exec": _exec,
    "Entrypoint": _entrypoint,
    "ContainerName": _parsed("name", _matching(r"[A-Za-z0-9][A-Za-z0-9_.-]+", "a name: letters, digits and _ . -")),
    "Environment": _pairs("environment", _variable),
    "EnvironmentFile": _listed("environment_files", _environment_file),
    "WorkingDir": _parsed("working_dir", _absolute),
    "HostName": _parsed("hostname", _matching(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})", "a host name")),
    "User": _parsed("user", _matching(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?", "a user or USER:GROUP")),
    "Group": _parsed("group", _matching(r"[A-Za-z0-9_.-]+", "a group")),
    "GroupAdd": _listed("group_add", _words(_matching(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*", "a group"))),
    "Label": _pairs("labels", _label),
    "RunInit": _parsed("run_init", syntax.boolean),
    "Volume": _volume,
    "Secret": _secret,
    "Mount": _mount,
    "Tmpfs": _tmpfs,
    "ReadOnly": _parsed("read_only", syntax.boolean),
    "ReadOnlyTmpfs": _parsed("read_only_tmpfs", syntax.boolean),
    "ShmSize": _parsed("shm_size", syntax.size),
    "Network": _listed("networks", _network),
    "PublishPort": _listed("publish", _publish),
    "ExposeHostPort": _listed("expose", _expose),
    "AddHost": _listed("hosts", _add_host),
    "DNS": _listed("dns", _words(_address)),
    "DNSOption": _listed("dns_options", syntax.split_words),
    "DNSSearch": _listed("dns_search", _words(_matching(r"[A-Za-z0-9_.-]+", "a domain"))),
    "Memory": _parsed("memory", _memory),
    "PidsLimit": _parsed("pids_limit", _pids),
    "Ulimit": _ulimit,
    "AddCapability": _listed("add_capabilities", _words(_capability)),
    "DropCapability": _listed("drop_capabilities", _words(_capability)),
    "AddDevice": _listed("devices", _device),
    "Sysctl": _pairs("sysctls", _sysctl),
    "NoNewPrivileges": _parsed("no_new_privileges", syntax.boolean),
    "SeccompProfile": _parsed("seccomp_profile", _seccomp),
    "AppArmor": _parsed("apparmor", _matching(r"\S+", "the name of a profile")),
    "SecurityLabelDisable": _security_label_disable,
    "SecurityLabelFileType": _security_label("filetype"),
    "SecurityLabelLevel": _security_label("level"),
    "SecurityLabelType": _security_label("type"),
    "HealthCmd": _health_cmd,
    "HealthInterval": _health("health_interval", _finite),
    "HealthTimeout": _health("health_timeout", _finite),
    "HealthRetries": _health("health_retries", _between(1, 1000)),
    "HealthStartPeriod": _health("health_start_period", _finite, zero=True),
    "HealthOnFailure": _choice("health_on_failure", ON_FAILURE),
    "Notify": _notify,
    "Pull": _choice("pull", PULL),
    "Retry": _parsed("retry", _between(0, 100)),
    "RetryDelay": _parsed("retry_delay", _finite),
    "StopSignal": _stop_signal,
    "StopTimeout": _parsed("stop_timeout", _between(0, 86_400)),
    "ReloadCmd": lambda spec, value: setattr(spec, "reload_cmd", syntax.split_words(value)),
    "ReloadSignal": _reload_signal,
    "LogDriver": _choice("log_driver", LOG_DRIVERS),
    "LogOpt": _pairs("log_options", _log_option),
    **{key: _refused(reason) for key, reason in REFUSED.items()},
}


def finish(spec: ContainerSpec) -> list[tuple[str, str]]:
    """(key, problem) for every rule between keys that is broken."""
    out: list[tuple[str, str]] = []
    if not spec.image:
        out.append(("Image", "a container needs one"))
    if spec.group and not spec.user:
        out.append(("Group", "needs a User="))
    if spec.group and ":" in spec.user:
        out.append(("Group", f"User={spec.user} names a group already"))
    if len(spec.networks) > 1:
        out.append(("Network", f"one network, not {', '.join(spec.networks)}"))
    network = spec.networks[0] if spec.networks else "bridge"
    if spec.publish and network in ("host", "none"):
        out.append(("PublishPort", f"has no meaning with Network={network}"))
    if spec.hostname and network == "host":
        out.append(("HostName", "has no meaning with Network=host"))
    if spec.reload_cmd and spec.reload_signal:
        out.append(("ReloadSignal", "excludes ReloadCmd"))
    if spec.log_options and spec.log_driver == "none":
        out.append(("LogOpt", "has no meaning with LogDriver=none"))
    wants_health = "HealthOnFailure" if spec.health_on_failure != "none" else "Notify" if spec.notify_healthy else ""
    if wants_health and spec.health_cmd == ["NONE"]:
        out.append((wants_health, "needs a HealthCmd="))
    targets: set[str] = set()
    for target in _targets(spec):
        if target in targets:
            out.append(("Volume", f"{target} is mounted twice"))
        targets.add(target)
    taken: set[tuple[str, str, str]] = set()
    for port in spec.publish:
        wanted = (port.address, port.host, port.protocol)
        if port.host and wanted in taken:
            out.append(("PublishPort", f"{port.host}/{port.protocol} is published twice"))
        taken.add(wanted)
    return out


def _targets(spec: ContainerSpec) -> list[str]:
    out = [bind.split(":")[1] for bind in spec.binds]
    out += [mount["Target"] for mount in spec.volumes + spec.mounts]
    return [t.rstrip("/") or "/" for t in (*out, *spec.anonymous_volumes, *spec.tmpfs)]


# -- what the engine is asked for ---------------------------------------------------------------------


def port_number(name: str, ports: dict[str, int]) -> int:
    """The number of a Port=: by its name, as ``PORT`` (the first) or as ``PORT_NAME``."""
    if name in ports:
        return ports[name]
    if name == "PORT" and ports:
        return next(iter(ports.values()))
    for known, number in ports.items():
        if name == f"PORT_{known.upper()}":
            return number
    listed = ", ".join(ports) or "none"
    raise ValueError(f"PublishPort: no Port= of [X-Argosy] is called {name!r}; there are: {listed}")


def _expanded(words: list[str], environment: dict[str, str]) -> list[str]:
    return Command(("", *words)).expand(environment)[1:]


def create_arguments(
    spec: ContainerSpec, unit: str, environment: dict[str, str], labels: dict[str, str], ports: dict[str, int]
) -> dict[str, Any]:
    """The body of the engine's ``POST /containers/create``.

    ``environment``: what the unit is told by its machine, and what its EnvironmentFile= held;
    [Container] Environment= goes over it.  ``ports``: the numbers chosen for each Port=, in
    the order of the unit file.  Raises ``ValueError`` for a PublishPort= that names no Port=.
    """
    variables = {k: v for k, v in environment.items() if k not in _IMAGES_OWN} | spec.environment
    exposed = [f"{p.port}/{p.protocol}" for p in spec.publish] + spec.expose
    out: dict[str, Any] = {
        "Image": spec.image,
        "Env": [f"{key}={value}" for key, value in variables.items()],
        "Labels": {"argosy.unit": unit, **spec.labels, **labels},
        "StopTimeout": spec.stop_timeout,
        "AttachStdin": False, "AttachStdout": False, "AttachStderr": False, "Tty": False, "OpenStdin": False,
        "HostConfig": _host_config(spec, ports),
    }  # fmt: skip
    optional: dict[str, Any] = {
        "Cmd": _expanded(spec.exec, environment | spec.environment),
        "Entrypoint": spec.entrypoint,
        "User": f"{spec.user}:{spec.group}" if spec.group else spec.user,
        "WorkingDir": spec.working_dir,
        "Hostname": spec.hostname,
        "StopSignal": spec.stop_signal,
        "ExposedPorts": {port: {} for port in exposed},
        "Volumes": {target: {} for target in spec.anonymous_volumes},
        "Healthcheck": _healthcheck(spec),
    }
    out.update({key: value for key, value in optional.items() if value})
    return out


def _healthcheck(spec: ContainerSpec) -> dict[str, Any]:
    if not spec.health_given:
        return {}
    if spec.health_cmd == ["NONE"]:
        return {"Test": ["NONE"]}
    times = {"Interval": spec.health_interval, "Timeout": spec.health_timeout,
             "StartPeriod": spec.health_start_period}  # fmt: skip
    out: dict[str, Any] = {key: round(seconds * 1e9) for key, seconds in times.items()}
    out["Retries"] = spec.health_retries
    if spec.health_cmd:  # without one the image's own is run
        out["Test"] = spec.health_cmd
    return out


def _host_config(spec: ContainerSpec, ports: dict[str, int]) -> dict[str, Any]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in spec.publish:
        host = port.host
        if host and not host.isdigit():
            host = str(port_number(host, ports))
        bindings.setdefault(f"{port.port}/{port.protocol}", []).append(
            {"HostIp": port.address, "HostPort": host}
        )
    out: dict[str, Any] = {
        "NetworkMode": spec.networks[0] if spec.networks else "default",
        "PidsLimit": spec.pids_limit,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},  # its supervisor restarts it
        "LogConfig": _log_config(spec),
    }
    tmpfs = dict(spec.tmpfs)
    if spec.read_only and spec.read_only_tmpfs:
        mounted = set(_targets(spec))
        tmpfs.update({path: "" for path in _TMPFS_OF_READ_ONLY if path not in mounted})
    optional: dict[str, Any] = {
        "Binds": spec.binds,
        "Mounts": spec.volumes + spec.mounts,
        "Tmpfs": tmpfs,
        "PortBindings": bindings,
        "CapAdd": spec.add_capabilities,
        "CapDrop": spec.drop_capabilities,
        "ReadonlyRootfs": spec.read_only,
        "Memory": spec.memory,
        "NanoCpus": spec.nano_cpus,
        "Ulimits": [{"Name": n, "Soft": soft, "Hard": hard} for n, (soft, hard) in spec.ulimits.items()],
        "Devices": [
            {"PathOnHost": source, "PathInContainer": target, "CgroupPermissions": rights}
            for source, target, rights in spec.devices
        ],
        "SecurityOpt": _security_options(spec),
        "ShmSize": spec.shm_size,
        "Sysctls": spec.sysctls,
        "ExtraHosts": spec.hosts,
        "Dns": spec.dns,
        "DnsOptions": spec.dns_options,
        "DnsSearch": spec.dns_search,
        "Init": spec.run_init,
        "GroupAdd": spec.group_add,
        "OomScoreAdj": spec.oom_score_adjust,
    }
    out.update({key: value for key, value in optional.items() if value})
    return out


def _log_config(spec: ContainerSpec) -> dict[str, Any]:
    options = dict(LOG_OPTIONS_DEFAULT) if spec.log_driver in ("json-file", "local") else {}
    return {"Type": spec.log_driver, "Config": options | spec.log_options}


def _security_options(spec: ContainerSpec) -> list[str]:
    out = ["no-new-privileges"] if spec.no_new_privileges else []
    if spec.seccomp_profile:  # the engine wants the profile itself: whoever starts the container reads it
        out.append(f"seccomp={spec.seccomp_profile}")
    if spec.apparmor:
        out.append(f"apparmor={spec.apparmor}")
    for key, value in spec.security_labels.items():
        out.append(f"label={key}:{value}" if value else f"label={key}")
    return out


def secret_names(spec: ContainerSpec) -> list[str]:
    """What must be read of the brain's secrets before the container is made."""
    login = [] if spec.pull == "never" else [secrets.login_of(secrets.registry_of(spec.image))]
    return list(dict.fromkeys([secret.name for secret in spec.secrets] + login))


def run_arguments(
    spec: ContainerSpec, unit: str, environment: dict[str, str], labels: dict[str, str], ports: dict[str, int],
    kept: Mapping[str, bytes],
) -> dict[str, Any]:
    """What a runner of containers is handed: the body, the name, how to get the image, and secrets.

    ``kept``: what :func:`secret_names` asked for; raises ``ValueError`` if one of the
    container's is missing, or cannot be a variable.
    """
    files = []
    for secret in spec.secrets:
        if secret.name not in kept:
            raise ValueError(f"secret {secret.name} is not kept in the cluster; argosy secret set {secret.name}")
        if secret.is_variable:
            try:
                environment = {**environment, secret.target: kept[secret.name].decode().rstrip("\n")}
            except UnicodeDecodeError:
                raise ValueError(f"secret {secret.name} is no text, so it cannot be a variable") from None
        else:
            files.append((secret, kept[secret.name]))
    login = kept.get(secrets.login_of(secrets.registry_of(spec.image))) if spec.pull != "never" else None
    return {
        "secrets": files,
        "login": json.loads(login) if login is not None else None,
        "create": create_arguments(spec, unit, environment, labels, ports),
        "name": spec.name,
        "pull": spec.pull,
        "retries": spec.retry,
        "retry_delay": spec.retry_delay,
    }


def adopt(inner: ContainerSpec, spec: UnitSpec) -> None:
    """Join a [Container] and the unit around it: limits go in, commands and signals come out."""
    limits = spec.resources
    if math.isfinite(limits.memory_max) and not inner.memory:
        inner.memory = int(limits.memory_max)
    if math.isfinite(limits.cpu_quota):
        inner.nano_cpus = int(limits.cpu_quota * 1e9)
    if math.isfinite(limits.tasks_max):
        inner.pids_limit = int(limits.tasks_max)
    inner.oom_score_adjust = inner.oom_score_adjust or spec.oom_score_adjust
    spec.exec_start = [Command(("container",))]
    spec.exec_reload = [Command(tuple(inner.reload_cmd))] if inner.reload_cmd else []
    spec.timeout_stop_sec = float(inner.stop_timeout)
