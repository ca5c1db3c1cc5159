"""Secrets: what a container's file says of them, and how they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Bytes of one secret, and secrets of a cluster.
SECRET_BYTES_MAX = 512_000
SECRETS_MAX = 1000
#: Where a secret without a target of its own lies inside a container.
FOLDER = "/run/secrets"
#: Registry of an image that names none.
DEFAULT_REGISTRY = "docker.io"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\Z")
_REGISTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?\Z")
_LOGIN = "registry/"


@dataclass(frozen=True, slots=True)
class Secret:
    """One that a container gets: as a file, or as a variable."""

    name: str
    is_variable: bool = False
    target: str = ""  # the file's path, or the variable's name
    uid: int = 0
    gid: int = 0
    mode: int = 0o444


def check_name(name: str) -> str:
    """A secret's name, or ``ValueError`` with what is accepted."""
    if not _NAME.match(name):
        raise ValueError(f"secret {name!r}: up to 200 letters, digits and . _ -")
    return name


def login_of(registry: str) -> str:
    """Under which name the login of a registry is kept; no secret of a container can be called so."""
    if not _REGISTRY.match(registry):
        raise ValueError(f"registry {registry!r}: HOST or HOST:PORT")
    return _LOGIN + registry


def registry_of_login(name: str) -> str:
    """The registry that a name of :func:`login_of` is of; empty for a plain secret."""
    return name.removeprefix(_LOGIN) if name.startswith(_LOGIN) else ""


def registry_of(image: str) -> str:
    """The registry that an image comes from, as the engine reads its name."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else DEFAULT_REGISTRY


def parse(value: str) -> Secret:
    """``NAME[,type=mount|env][,target=...][,uid=][,gid=][,mode=]``; raises ``ValueError``."""
    name, *words = value.split(",")
    given: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in ("type", "target", "uid", "gid", "mode"):
            raise ValueError(f"{word!r} is not one of type=, target=, uid=, gid=, mode=")
        given[key] = text
    kind, target = given.get("type", "mount"), given.get("target", "") or check_name(name)
    if kind not in ("mount", "env"):
        raise ValueError(f"type={kind} is not one of mount, env")
    if kind == "env":
        if {"uid", "gid", "mode"} & set(given):
            raise ValueError("uid=, gid= and mode= are for type=mount")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", target):
            raise ValueError(f"target={target}: a variable has letters, digits and _, and no digit first")
    elif not target.startswith("/"):
        if "/" in target or target in (".", ".."):
            raise ValueError(f"target={target}: a file's name, or a whole path")
        target = f"{FOLDER}/{target}"
    elif ":" in target or ".." in target.split("/"):
        raise ValueError(f"target={target}: a path without : and ..")
    return Secret(
        check_name(name), kind == "env", target, _number(given, "uid", "0", 10), _number(given, "gid", "0", 10),
        _number(given, "mode", "0444", 8),
    )  # fmt: skip


def _number(given: dict[str, str], key: str, default: str, base: int) -> int:
    text = given.get(key, default)
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if not 0 <= number <= (0o777 if key == "mode" else 2**31 - 1):
        raise ValueError(f"{key}={text} is no {'mode like 0400' if key == 'mode' else 'number of a user or group'}")
    return number
