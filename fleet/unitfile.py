"""Unit files: systemd's service, fleet's placement, and Argosy's own keys.

``load`` gives a checked :class:`UnitSpec` or every problem at once.  The text itself is what
is stored; a spec is derived from it on each machine, where the specifiers are known.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from . import container, names, placement, syntax, timer
from .dropins import Origins
from .keys import IGNORED, KEYS
from .spec import HealthCheck, UnitSpec
from .syntax import Problem, Setting, UnitFileError
from .timer import TimerSpec


def content_hash(text: str) -> str:
    """What identifies a unit file's content."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Machine:
    """What specifiers may ask of a machine; at submit these are placeholders."""

    id: str = "0" * 32
    name: str = "machine"
    boot_id: str = "0" * 32
    kernel: str = "0"
    architecture: str = "x86-64"


def load(
    unit: str, text: str, machine: Machine | None = None, file: str = ""
) -> tuple[UnitSpec, list[str]]:
    """Check a service's file; returns (spec, warnings).

    Raises :class:`UnitFileError` with every problem, or ``names.NameError_``.
    """
    loader = _loaded(unit, text, machine, file)
    if loader.problems or not isinstance(loader.spec, UnitSpec):
        raise UnitFileError(loader.problems or [Problem(file or unit, 0, "", "is not a service")])
    return loader.spec, loader.warnings


def load_timer(unit: str, text: str) -> TimerSpec:
    """Check a timer's file; raises as :func:`load` does."""
    loader = _loaded(unit, text, None, "")
    if loader.problems or not isinstance(loader.spec, TimerSpec):
        raise UnitFileError(loader.problems or [Problem(unit, 0, "", "is not a timer")])
    return loader.spec


def check(unit: str, text: str, file: str = "", origins: Origins | None = None) -> list[str]:
    """What is accepted and without effect in a file of any kind; raises as :func:`load` does.

    ``origins``: of which files the text was put together, for whoever reads what is said.
    """
    loader = _loaded(unit, text, None, file, origins)
    if loader.problems:
        raise UnitFileError(loader.problems)
    return loader.warnings


def verify(
    unit: str, text: str, file: str = "", origins: Origins | None = None
) -> tuple[list[Problem], list[str]]:
    """Everything there is to say of a unit file: (problems, what is accepted and without effect)."""
    try:
        loader = _loaded(unit, text, None, file, origins)
    except names.NameError_ as error:
        return [Problem(file or unit, 0, "", str(error))], []
    return loader.problems, loader.warnings + loader.notes


def _loaded(
    unit: str, text: str, machine: Machine | None, file: str, origins: Origins | None = None
) -> Loader:
    name = names.parse(unit)
    loader = Loader(name, file or name.full, machine or Machine(), origins or Origins())
    parsed = syntax.read(loader.file, text)
    loader.problems += parsed.problems
    for setting in parsed.settings:
        loader.take(setting)
    loader.finish()
    loader.problems.sort(key=lambda problem: (problem.line, problem.column))
    loader.problems = [loader.origins.place(problem) for problem in loader.problems]
    return loader


#: What stands for the instance while a template itself is checked: a word, a number, a part of a path.
ANY_INSTANCE = "1"


class Loader:
    """Fills a spec from assignments and collects problems."""

    def __init__(self, name: names.UnitName, file: str, machine: Machine, origins: Origins) -> None:
        self.name = name
        self.file = file
        self.machine = machine
        self.origins = origins
        self.is_timer = name.suffix == ".timer"
        self.spec: Any = TimerSpec(name) if self.is_timer else UnitSpec(name)
        self._keys = timer.KEYS if self.is_timer else KEYS
        self._ignored = timer.IGNORED if self.is_timer else IGNORED
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []  # what only somebody who asks wants to know
        self._seen: dict[str, int] = {}
        self.start_timeout_given = False
        self.health: dict[str, Any] = {}

    def take(self, setting: Setting) -> None:
        """One assignment."""
        section, key = setting.section, setting.key
        if section == "Container" and not self.is_timer:
            self._take_container(setting)
            return
        if section == "Quadlet" and not self.is_timer:
            self.notes.append(f"{self.at(setting)}: [Quadlet] is for podman's generator")
            return
        if section not in self._keys:
            if section.startswith("X-"):
                self.warnings.append(f"{self.at(setting)}: [{section}] is not used here")
                return
            hint = syntax.nearest(section, tuple(self._keys))
            self._complain(setting, f"no section is called [{section}]{hint}")
            return
        handler = self._keys[section].get(key)
        if handler is None:
            self._unknown(setting)
            return
        self._seen.setdefault(key, setting.line)
        try:
            handler(self, setting.value)
        except (ValueError, names.NameError_) as error:
            self._complain(setting, str(error))

    def _take_container(self, setting: Setting) -> None:
        key = setting.key
        self.spec.container = self.spec.container or container.ContainerSpec()
        reason = container.IGNORED.get(key)
        take = container.KEYS.get(key)
        if take is None and reason is not None:
            self.warnings.append(f"{self.at(setting)}: {key}: accepted, and without effect: {reason}")
        elif take is None:
            known = {*container.KEYS, *container.IGNORED}
            self._complain(setting, f"unknown key in [Container]{syntax.nearest(key, known)}")
        else:
            self._seen.setdefault(key, setting.line)
            try:
                take(self.spec.container, self.expand(setting.value))
            except ValueError as error:
                self._complain(setting, str(error))

    def at(self, setting: Setting) -> str:
        """Where a setting is, as ``FILE:LINE``."""
        file, line = self.origins.of(setting.line)
        return f"{file or self.file}:{line}"

    def expand(self, text: str) -> str:
        """A value with its specifiers replaced."""
        return syntax.specifiers(text, self._specifier)

    def words(self, text: str) -> list[str]:
        """The words of a value, with their specifiers replaced."""
        return [self.expand(word) for word in syntax.split_words(text)]

    def _unknown(self, setting: Setting) -> None:
        section, key = setting.section, setting.key
        reason = self._ignored.get(section, {}).get(key)
        if reason is not None or (key.startswith("X-") and section != "X-Fleet"):
            why = reason or "it is not Argosy's"
            note = f"{self.at(setting)}: {key}: accepted, and without effect: {why}"
            harmless = section == "Install" or key == "Documentation"
            (self.notes if harmless else self.warnings).append(note)
            return
        others = [f"[{other}]" for other, keys in self._keys.items() if key in keys and other != section]
        if others:
            self._complain(setting, f"belongs to {' or '.join(others)}, not to [{section}]")
            return
        known = set(self._keys[section]) | set(self._ignored.get(section, ()))
        self._complain(setting, f"unknown key in [{section}]{syntax.nearest(key, known)}")

    def _complain(self, setting: Setting, text: str) -> None:
        self.problems.append(Problem(self.file, setting.line, setting.key, text, setting.column))

    def _specifier(self, letter: str) -> str | None:
        name, machine = self.name, self.machine
        instance = name.instance or (ANY_INSTANCE if name.is_template else "")
        table = {
            "n": name.full, "N": name.stem, "p": name.prefix, "P": _unescaped(name.prefix),
            "i": instance, "I": _unescaped(instance), "j": name.prefix.rsplit("-", 1)[-1],
            "H": machine.name, "l": machine.name.split(".")[0], "m": machine.id, "b": machine.boot_id,
            "t": "/run", "S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc", "T": "/tmp",  # noqa: S108
            "V": "/var/tmp", "v": machine.kernel, "a": machine.architecture,  # noqa: S108
            "u": "root", "U": "0", "g": "root", "G": "0", "h": "/root", "s": "/bin/sh", "f": f"/{_unescaped(instance or name.prefix)}",
        }  # fmt: skip
        return table.get(letter)

    def finish(self) -> None:
        """Rules between keys."""
        if self.is_timer:
            for key, text in timer.finish(self.spec) if not self.problems else ():
                self._at(key, text)
            return
        spec = self.spec
        if spec.container is not None:
            self._finish_container(spec, spec.container)
        elif not spec.exec_start and not self.problems:
            if not (spec.remain_after_exit and spec.exec_stop):
                self._at("ExecStart", "a service needs one (or RemainAfterExit=yes and ExecStop)")
        if "Type" not in self._seen and not spec.exec_start and spec.container is None:
            spec.type = "oneshot"
        if spec.type == "idle":
            spec.type = "simple"  # there is no console whose messages could be mixed up
        if spec.notify_access == "none" and (spec.notifies or spec.watchdog_sec):
            spec.notify_access = "main"
        if spec.type != "oneshot" and len(spec.exec_start) > 1:
            self._at("ExecStart", "more than one is only for Type=oneshot")
        if spec.type == "oneshot":
            if spec.restart in ("always", "on-success"):
                self._at("Restart", f"{spec.restart} is not for Type=oneshot")
            if "RuntimeMaxSec" in self._seen:
                self._at("RuntimeMaxSec", "is not for Type=oneshot: TimeoutStartSec is")
            if not self.start_timeout_given:
                spec.timeout_start_sec = syntax.INFINITY
        self._finish_placement(spec)
        if self.health.get("kind"):
            spec.health = HealthCheck(**self.health)
            needs_port = spec.health.kind in ("http", "tcp") and "PORT" in spec.health.target
            if needs_port and not spec.ports:
                self._at("HealthCheck", "names PORT, but the unit has no Port=")
        elif self.health:
            self._at("HealthInterval", "settings of a health check need a HealthCheck=")
        if spec.announce and not spec.ports:
            self._at("Announce", "needs a Port= to announce")

    def _finish_container(self, spec: UnitSpec, inner: container.ContainerSpec) -> None:
        """A container takes the place of the main process; what is for processes is refused."""
        for key in ("ExecStart", "ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost", "ExecReload",
                    "ExecCondition", "PIDFile", "User", "Group"):  # fmt: skip
            if key in self._seen and key not in container.KEYS:
                self._at(key, "is for processes; a container has Exec=, User=, ReloadCmd= in [Container]")
        if "Type" in self._seen and spec.type not in ("exec", "notify", "oneshot"):
            self._at("Type", f"{spec.type} is not for a container: exec, notify or oneshot is")
        if spec.type != "oneshot":
            spec.type = "notify" if inner.notify_healthy else "exec"
        for key, text in container.finish(inner) if not self.problems else ():
            self._at(key, text)
        known = {name for name, _ in spec.ports}
        for name in inner.named_ports():
            if name not in known and name != "PORT":
                self._at("PublishPort", f"names {name}, but the unit has no such Port=")
        container.adopt(inner, spec)

    def _finish_placement(self, spec: UnitSpec) -> None:
        if spec.machine_id and (spec.machine_of or spec.conflicts or spec.is_global or spec.replaces):
            self._at("MachineID", "excludes MachineOf, Conflicts, Global and Replaces")
        if spec.is_global and (spec.machine_of or spec.replaces):
            self._at("Global", "excludes MachineOf and Replaces")
        if spec.conflicts and spec.replaces:
            self._at("Replaces", "excludes Conflicts")
        for peer in spec.machine_of:
            if placement.matching([*spec.conflicts, *spec.replaces], peer):
                self._at("MachineOf", f"names {peer}, which Conflicts= or Replaces= matches")
        if spec.replicas is not None and not spec.name.template and not spec.name.is_template:
            self._at("Replicas", "is for templates (NAME@.service): a unit by itself runs once")
        if spec.update.order == "start-first" and not spec.name.template and not spec.name.is_template:
            self._at("Update", "order start-first is for templates: there is one copy of a unit at a time")
        if spec.reschedule and spec.is_global:
            self._at("Reschedule", "is not for Global units: they run on every machine that qualifies")
        if spec.max_per_machine and not spec.name.template and not spec.name.is_template:
            self._at("MaxPerMachine", "is for templates (NAME@.service)")
        if spec.remove_after != syntax.INFINITY and spec.type != "oneshot":
            self._at("RemoveAfter", "is for Type=oneshot: other services do not end their work")

    def _at(self, key: str, text: str) -> None:
        self.problems.append(Problem(self.file, self._seen.get(key, 0), key, text))


def _unescaped(text: str) -> str:
    """A name as systemd-escape(1) would give it back: - is a slash, \\xNN a byte."""
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "-":
            out += b"/"
        elif text[at : at + 2] == "\\x" and all(c in "0123456789abcdefABCDEF" for c in text[at + 2 : at + 4].ljust(2)):
            out.append(int(text[at + 2 : at + 4], 16))
            at += 3
        else:
            out += text[at].encode()
        at += 1
    return out.decode("utf-8", "replace")
