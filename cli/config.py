"""One host's configuration: flag, then variable, then file; every mistake in one answer."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fleet.syntax import nearest

#: File keys with their types; ``ARGOSY_<KEY>`` and ``--<key>`` are the same option.
KEYS: dict[str, type] = {
    "name": str, "data-dir": str, "transport": str, "client": list, "grpc": str, "bootstrap": bool,
    "join": list, "token": str, "metadata": dict, "role": str, "insecure": bool, "advertise": str,
    "resync": bool, "engine": str, "slot-devices": list, "reboot-command": str,
}  # fmt: skip
ROLES = ("voter", "agent")


class ConfigError(Exception):
    """A configuration that cannot be used; one line per problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(slots=True)
class HostConfig:
    """Everything ``argosy start`` needs to know."""

    name: str = ""
    data_dir: str = ""
    transport: str = "127.0.0.1:7001"
    client: list[str] = field(default_factory=lambda: ["127.0.0.1:4001"])
    grpc: str = ""
    bootstrap: bool = False
    join: list[str] = field(default_factory=list)
    token: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    role: str = "voter"
    insecure: bool = False
    advertise: str = ""
    resync: bool = False
    #: where the Docker Engine answers, for units in containers
    engine: str = "unix:///var/run/docker.sock"
    #: the block devices of images A and B, for a machine whose slots are no directories
    slot_devices: list[str] = field(default_factory=list)
    #: how this machine is started anew into its other slot; without it only the host process is
    reboot_command: str = ""


def split_address(text: str, what: str, problems: list[str]) -> tuple[str, int]:
    """``HOST:PORT``; the host may be an interface's name."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        problems.append(f"{what}: {text!r} is not HOST:PORT or INTERFACE:PORT")
        return "", 0
    return host.strip("[]"), int(port)


def read_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """(values, problems) of a TOML file."""
    problems: list[str] = []
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from None
    lines = Path(path).read_text().splitlines()
    for key, value in list(values.items()):
        line = next((n for n, text in enumerate(lines, 1) if re.match(rf"\s*\[?{re.escape(key)}\b", text)), 0)
        where = f"{path}:{line}"
        wanted: Any = KEYS.get(key)
        if wanted is None:
            problems.append(f"{where}: unknown key {key!r}{nearest(key, list(KEYS))}")
            del values[key]
        elif wanted is list and isinstance(value, str):
            values[key] = [value]
        elif not isinstance(value, wanted) or (wanted is list and not all(isinstance(v, str) for v in value)):
            problems.append(f"{where}: {key} is a {_type_name(wanted)}, not {value!r}")
            del values[key]
    return values, problems


def _type_name(kind: type) -> str:
    return {str: "text", list: "list of texts", dict: "table", bool: "boolean (true or false)"}[kind]


def _from_environment(problems: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, kind in KEYS.items():
        text = os.environ.get("ARGOSY_" + key.upper().replace("-", "_"))
        if text is None:
            continue
        if kind is bool:
            if text.lower() not in ("1", "true", "yes", "0", "false", "no"):
                problems.append(f"ARGOSY_{key.upper()}: {text!r} is not true or false")
            out[key] = text.lower() in ("1", "true", "yes")
        elif kind is list:
            out[key] = [part for part in text.split(",") if part]
        elif kind is dict:
            out[key] = parse_metadata(text.split(","), problems)
        else:
            out[key] = text
    return out


def parse_metadata(words: list[str] | tuple[str, ...], problems: list[str]) -> dict[str, str]:
    """``k=v`` words as a table."""
    out = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", key) or not value:
            problems.append(f"--metadata: {word!r} is not KEY=VALUE")
        else:
            out[key] = value
    return out


def load(path: str | None, flags: dict[str, Any]) -> HostConfig:
    """The configuration in force; raises :class:`ConfigError` with every problem."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    if path:
        values, problems = read_file(path)
    values.update(_from_environment(problems))
    values.update({k: v for k, v in flags.items() if v not in (None, (), [], "", False, {})})
    config = HostConfig()
    known = {f.name for f in fields(HostConfig)}
    for key, value in values.items():
        attribute = key.replace("-", "_")
        if attribute in known:
            setattr(config, attribute, list(value) if isinstance(value, tuple) else value)
    _check(config, problems)
    if problems:
        raise ConfigError(problems)
    return config


def _check(config: HostConfig, problems: list[str]) -> None:
    if not config.name:
        problems.append("--name: a host needs a name")
    elif not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", config.name):
        problems.append(f"--name: {config.name!r}: letters, digits, '.' and '-', at most 63")
    if not config.data_dir:
        problems.append("--data-dir: a host needs a directory of its own")
    if config.role not in ROLES:
        problems.append(f"--role: {config.role!r} is not one of {', '.join(ROLES)}{nearest(config.role, ROLES)}")
    if config.bootstrap and config.join:
        problems.append("--bootstrap and --join exclude each other")
    if config.token and not config.join:
        problems.append("--token: only with --join ADDR")
    split_address(config.transport, "--transport", problems)
    for address in config.client:
        split_address(address, "--client", problems)
    for address in config.join:
        split_address(address, "--join", problems)
    for key, value in config.metadata.items():
        if not isinstance(value, str):
            problems.append(f"metadata.{key}: text, not {value!r}")
    if not config.engine.startswith(("unix:///", "tcp://", "http://", "https://")):
        problems.append(f"--engine: {config.engine!r} is not unix:///PATH or tcp://HOST:PORT")
    if config.slot_devices and len(set(config.slot_devices)) != 2:
        problems.append(f"--slot-devices: two of them, one for each image, or none; not {len(config.slot_devices)}")
    problems += [f"--slot-devices: {text!r} is not the path of a block device" for text in config.slot_devices if not text.startswith("/")]
    try:
        shlex.split(config.reboot_command)
    except ValueError as error:
        problems.append(f"--reboot-command: {config.reboot_command!r}: {error}")
    if config.grpc:
        split_address(config.grpc, "--grpc", problems)
