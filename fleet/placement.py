"""Where units go: fleet's rules, the same answer for the same input, a reason for each no.

Candidates are machines in order of how few units they run, then of id; the first that
passes every rule is taken.  Pure: the scheduler actor owns the state it is asked with.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field

from .spec import UnitSpec

#: More than this share of the machines lost at once is taken for a fault of ours: move nothing.
BRAKE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine that may take units."""

    id: str
    name: str
    metadata: tuple[tuple[str, str], ...] = ()
    has_engine: bool = True


@dataclass(slots=True)
class Placements:
    """Which units are where, with what their rules say."""

    machines: dict[str, Candidate] = field(default_factory=dict)
    units: dict[str, UnitSpec] = field(default_factory=dict)
    #: unit -> machines that have it (several only for global units)
    where: dict[str, set[str]] = field(default_factory=dict)
    on: dict[str, set[str]] = field(default_factory=dict)

    def place(self, unit: str, machine: str) -> None:
        """Book a unit on a machine."""
        self.where.setdefault(unit, set()).add(machine)
        self.on.setdefault(machine, set()).add(unit)

    def remove(self, unit: str, machine: str) -> None:
        """Take a unit off a machine."""
        self.where.get(unit, set()).discard(machine)
        if not self.where.get(unit):
            self.where.pop(unit, None)
        self.on.get(machine, set()).discard(unit)


def refusal(spec: UnitSpec, machine: Candidate, state: Placements) -> str:
    """Why this unit may not run on this machine; empty when it may."""
    name = spec.name.full
    if spec.container is not None and not machine.has_engine:
        return "it has no engine for containers (the key engine of its configuration)"
    if spec.machine_id and not _is_machine(spec.machine_id, machine):
        return f"MachineID={spec.machine_id} names another machine"
    refused = _metadata_refusal(spec, machine)
    if refused:
        return refused
    here = state.on.get(machine.id, set())
    for peer in spec.machine_of:
        if peer not in here:
            return f"MachineOf={peer}: that unit is not on this machine"
    for other in sorted(here):
        if other == name:
            continue
        pattern = _matching(spec.conflicts, other)
        if pattern:
            return f"Conflicts={pattern} matches {other}, which is here"
        other_spec = state.units.get(other)
        pattern = _matching(other_spec.conflicts, name) if other_spec is not None else ""
        if pattern:
            return f"{other}, which is here, has Conflicts={pattern}"
    return ""


def _is_machine(wanted: str, machine: Candidate) -> bool:
    return machine.name == wanted or (len(wanted) >= 8 and machine.id.startswith(wanted))


def _metadata_refusal(spec: UnitSpec, machine: Candidate) -> str:
    """OR among values of one key, AND across keys."""
    have = dict(machine.metadata)
    wanted: dict[str, list[str]] = {}
    for key, value in spec.machine_metadata:
        wanted.setdefault(key, []).append(value)
    for key, values in sorted(wanted.items()):
        if have.get(key) not in values:
            is_now = f"it is {have[key]}" if key in have else "it has none"
            return f"MachineMetadata={key}={'|'.join(values)}: {is_now}"
    return ""


def _matching(patterns: Iterable[str], name: str) -> str:
    stem = name[: -len(".service")] if name.endswith(".service") else name
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(stem, pattern):
            return pattern
    return ""


def choose(spec: UnitSpec, state: Placements) -> tuple[str, dict[str, str]]:
    """The machine for a unit (empty if none), and the reason of every machine refused."""
    refusals: dict[str, str] = {}
    order = sorted(state.machines, key=lambda m: (len(state.on.get(m, ())), m))
    for machine in order:
        why = refusal(spec, state.machines[machine], state)
        if not why:
            return machine, refusals
        refusals[machine] = why
    return "", refusals


def brake(lost: int, known: int) -> bool:
    """Whether so many of the known machines are lost at once that nothing may move."""
    return known > 1 and lost / known > BRAKE_SHARE
