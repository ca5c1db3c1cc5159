"""Which machines may take a release now: canaries, then waves by a stable hash, halting when too many fail.

Derived by every machine alike from what is stored: nobody decides it, so nobody's death matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """How a release is rolled out; seconds, and shares in per cent of the machines."""

    canaries: int = 1
    waves: tuple[int, ...] = (10, 50, 100)
    #: a wave must have run well for so long before the next begins
    soak: float = 60.0
    #: halt at so many failures; or at such a share, counted from the fifth machine that is through on
    failures_max: int = 2
    failure_percent: int = 10

    def record(self) -> dict[str, Any]:
        """As it is stored."""
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "waves": list(self.waves)}


#: Machines that are through before a share of failures says anything.
SHARE_FROM = 5


def plan(record: Mapping[str, Any]) -> Plan:
    """A plan as it is stored; raises ``ValueError`` for one that makes no sense."""
    values = {name: record[name] for name in Plan.__dataclass_fields__ if name in record}
    if "waves" in values:
        if not isinstance(values["waves"], list | tuple):
            raise ValueError("waves: a list of shares in per cent")
        values["waves"] = tuple(values["waves"])
    numbers = [values[name] for name in ("canaries", "failures_max", "failure_percent") if name in values] + list(values.get("waves", ()))
    if any(type(number) is not int for number in numbers) or type(values.get("soak", 0.0)) not in (int, float):
        raise ValueError("canaries, waves, failures and their share are whole numbers; soak is a number of seconds")
    made = Plan(**values)
    if not made.waves or list(made.waves) != sorted(set(made.waves)) or made.waves[-1] != 100 or made.waves[0] < 1:
        raise ValueError("waves grow, and end with 100 (per cent)")
    if not (0 <= made.canaries <= 1000 and 0 <= made.soak <= 30 * 86400 and made.failures_max >= 1 and 1 <= made.failure_percent <= 100):
        raise ValueError("canaries: 0 to 1000; soak: up to 30 days; failures: from 1; their share: 1 to 100 per cent")
    return made


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the release on one machine: ``""``, ``committed`` or ``failed``, and when (Unix time)."""

    result: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Machines that may go now; why the others wait; and why nobody goes any more, if that is so."""

    permitted: frozenset[str]
    reason: str
    halted: str = ""


def order(machines: Mapping[str, Outcome] | list[str], version: str) -> list[str]:
    """The machines in the order in which they get a version: another one for each version, the same everywhere."""
    return sorted(machines, key=lambda machine: hashlib.sha256(f"{version}\0{machine}".encode()).digest())


def verdict(how: Plan, version: str, machines: Mapping[str, Outcome], now: float) -> Verdict:
    """Who may go.  Those of a later wave wait until all before them are through and have run for a while."""
    failed = sorted(m for m, outcome in machines.items() if outcome.result == "failed")
    through = [m for m, outcome in machines.items() if outcome.result]
    halted = ""
    if len(failed) >= how.failures_max:
        halted = f"{len(failed)} machines failed ({', '.join(failed[:5])}): no other machine begins"
    elif len(through) >= SHARE_FROM and len(failed) * 100 > how.failure_percent * len(through):
        halted = f"{len(failed)} of {len(through)} machines failed, which is more than {how.failure_percent} %: no other machine begins"
    if halted:
        return Verdict(frozenset(), halted, halted)
    ordered = order(machines, version)
    bounds = [min(how.canaries, len(ordered))] if how.canaries else []
    bounds += [max(1, -(-len(ordered) * share // 100)) for share in how.waves]
    begun = 0
    for number, bound in enumerate(bounds):
        if bound <= begun:
            continue
        wave = ordered[begun:bound]
        waiting = [m for m in wave if not machines[m].result]
        newest = max((machines[m].at for m in wave if machines[m].result), default=0.0)
        name = "canaries" if how.canaries and number == 0 else f"wave to {bound} of {len(ordered)}"
        if waiting:
            return Verdict(frozenset(ordered[:bound]), f"{name}: waiting for {', '.join(waiting[:5])}")
        if bound < len(ordered) and now - newest < how.soak:
            return Verdict(frozenset(ordered[:bound]), f"{name} is through and must run for {how.soak:g} s")
        begun = bound
    return Verdict(frozenset(ordered), "all machines may go")
