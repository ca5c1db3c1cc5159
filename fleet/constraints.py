"""What units ask of machines beyond fleet's rules: parsed from words of a unit file, judged against metadata.

Fleet's ``MachineMetadata=KEY=VALUE`` (exact, OR within a key, AND across keys) stays as it
was; the operators here are one rule each, and all of them must hold.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

#: Weights of one affinity.
WEIGHT_MAX = 100
WEIGHT_DEFAULT = 50
#: The key that stands for units on the machine, in Affinity=.
UNIT_KEY = "unit"
_KEY = r"[A-Za-z0-9_][A-Za-z0-9_./-]*"
_FORMS = (
    (re.compile(rf"({_KEY})\s*!=\s*(\S+)"), "not in"),
    (re.compile(rf"({_KEY})\s*~=\s*(\S+)"), "like"),
    (re.compile(rf"({_KEY})\s*!~\s*(\S+)"), "unlike"),
    (re.compile(rf"({_KEY})\s+in\s+(\S+)"), "in"),
    (re.compile(rf"({_KEY})\s+not\s+in\s+(\S+)"), "not in"),
    (re.compile(rf"({_KEY})\s+exists()"), "exists"),
    (re.compile(rf"({_KEY})\s+absent()"), "absent"),
)
ACCEPTED = 'KEY=VALUE, KEY!=VALUE, KEY~=PATTERN, KEY!~PATTERN, "KEY in A|B", "KEY not in A|B", "KEY exists" or "KEY absent"'


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule about a machine's metadata: ``in``, ``not in``, ``like``, ``unlike``, ``exists``, ``absent``."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = "|".join(self.values)
        return f"{self.key} {self.operator} {values}".rstrip()

    def holds(self, metadata: Mapping[str, str]) -> bool:
        """A machine without the key fails ``in`` and ``like``, and passes ``not in`` and ``unlike``."""
        have = metadata.get(self.key)
        if self.operator == "exists":
            return have is not None
        if self.operator == "absent":
            return have is None
        if self.operator in ("in", "not in"):
            return (have in self.values) is (self.operator == "in")
        matches = have is not None and any(fnmatch.fnmatchcase(have, pattern) for pattern in self.values)
        return matches is (self.operator == "like")


def rule(text: str) -> Rule:
    """A rule from its words; raises ``ValueError``."""
    for form, operator in _FORMS:
        match = form.fullmatch(text)
        if match:
            values = tuple(match.group(2).split("|")) if match.group(2) else ()
            if operator not in ("exists", "absent") and not all(values):
                raise ValueError(f"{text!r}: a value is missing; accepted are {ACCEPTED}")
            return Rule(match.group(1), operator, values)
    raise ValueError(f"{text!r} is not {ACCEPTED}")


@dataclass(frozen=True, slots=True)
class Affinity:
    """A wish: machines whose metadata, or one of whose units, matches are better by ``weight``."""

    key: str
    pattern: str
    weight: int

    def holds(self, metadata: Mapping[str, str], units: set[str]) -> bool:
        """Whether a machine with this metadata and these units is meant."""
        if self.key == UNIT_KEY:
            return any(fnmatch.fnmatchcase(unit, self.pattern) for unit in units)
        have = metadata.get(self.key)
        return have is not None and fnmatch.fnmatchcase(have, self.pattern)


def affinity(text: str) -> Affinity:
    """``KEY=PATTERN[:WEIGHT]``, with a weight from -100 to 100; raises ``ValueError``."""
    match = re.fullmatch(rf"({_KEY})=([^\s=]+?)(?::([+-]?\d+))?", text)
    if not match:
        raise ValueError(f"{text!r} is not KEY=PATTERN[:WEIGHT], like zone=eu-*:20 or unit=db@*.service:-50")
    weight = int(match.group(3)) if match.group(3) else WEIGHT_DEFAULT
    if not 0 < abs(weight) <= WEIGHT_MAX:
        raise ValueError(f"{text!r}: a weight is between -{WEIGHT_MAX} and {WEIGHT_MAX}, and not 0")
    return Affinity(match.group(1), match.group(2), weight)
