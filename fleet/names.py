"""Unit names: what is legal, templates and instances, ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Longest unit name, in characters (fleet's limit).
NAME_CHARS_MAX = 256
#: Names one range may expand to.
RANGE_NAMES_MAX = 10_000
SUFFIXES = (".service", ".timer")
#: Kinds of units that there are elsewhere.
FOREIGN = (
    ".socket", ".path", ".device", ".mount", ".automount", ".swap", ".slice", ".scope", ".target",
    ".pod", ".volume", ".network", ".kube", ".build", ".image",
)  # fmt: skip
_LEGAL = re.compile(r"^[A-Za-z0-9:_.\\@-]+$")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]+)\}")


class NameError_(ValueError):
    """A unit name that cannot be; the text says what is accepted."""


@dataclass(frozen=True, slots=True)
class UnitName:
    """A parsed name: ``prefix@instance.service``, or ``.timer``."""

    full: str
    prefix: str
    instance: str
    suffix: str

    @property
    def is_template(self) -> bool:
        """``name@.service``, from which instances are made."""
        return self.full == f"{self.prefix}@{self.suffix}"

    @property
    def template(self) -> str:
        """The template this instance comes from; empty for a plain unit."""
        return f"{self.prefix}@{self.suffix}" if "@" in self.full and self.instance else ""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self.full[: -len(self.suffix)]


def parse(name: str) -> UnitName:
    """Check and split a name; ``.service`` is added when there is no suffix, and is what a
    file ``NAME.container`` yields."""
    name = name.rsplit("/", 1)[-1]
    name = name.removesuffix(".container") + ".service" if name.endswith(".container") else name
    if not name.endswith(SUFFIXES):
        if name.endswith(FOREIGN):
            raise NameError_(f"unit {name!r}: units of this kind are not supported; a file ends in .service, .timer or .container")
        name += ".service"
    if len(name) > NAME_CHARS_MAX:
        raise NameError_(f"unit {name[:40]!r}...: at most {NAME_CHARS_MAX} characters")
    if not _LEGAL.match(name):
        raise NameError_(f"unit {name!r}: letters, digits and : _ . \\ @ - are accepted")
    suffix = name[name.rindex(".") :]
    stem = name[: -len(suffix)]
    prefix, at, instance = stem.partition("@")
    if not prefix or (at and "@" in instance):
        raise NameError_(f"unit {name!r}: a name is NAME.service or NAME@INSTANCE.service")
    return UnitName(name, prefix, instance, suffix)


def expand(pattern: str) -> list[str]:
    """``api@{1..3}`` as three names; ``{a,b}`` works too."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    low, high, listed = match.groups()
    if listed is not None:
        middles = listed.split(",")
    else:
        first, last = int(low), int(high)
        if abs(last - first) >= RANGE_NAMES_MAX:
            raise NameError_(f"{pattern!r}: a range gives at most {RANGE_NAMES_MAX} names")
        step = 1 if last >= first else -1
        width = len(low) if low.startswith("0") and len(low) > 1 else 0
        middles = [f"{n:0{width}d}" for n in range(first, last + step, step)]
    out: list[str] = []
    for middle in middles:
        out += expand(pattern[: match.start()] + middle + pattern[match.end() :])
    if len(out) > RANGE_NAMES_MAX:
        raise NameError_(f"{pattern!r}: a range gives at most {RANGE_NAMES_MAX} names")
    return out
