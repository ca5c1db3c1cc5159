"""Where units go: fleet's rules, the same answer for the same input, a reason for each no.

Hard rules refuse a machine, each with a sentence.  Of the machines that are left the best
is taken: fewest units, then id, as fleet did, unless the unit wishes otherwise (Affinity=,
Spread=, Placement=pack).  Pure: the scheduler actor owns the state it is asked with.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from .spec import UnitSpec

#: More than this share of the machines lost at once is taken for a fault of ours: move nothing.
BRAKE_SHARE = 0.5
#: By how much a unit's Priority= must be higher for it to take another's room.
PREEMPT_BY = 10
#: The key of Spread= and Affinity= that is a machine's own name.
MACHINE_KEY = "machine"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine that may take units."""

    id: str
    name: str
    metadata: tuple[tuple[str, str], ...] = ()
    has_engine: bool = True
    #: processors and bytes that units may reserve; 0 is unknown, and without limit
    cpus: float = 0.0
    memory: int = 0
    #: it takes no units, because an operator or an update empties it
    draining: bool = False
    #: it was lost so often of late that others are taken first
    flapping: bool = False

    @property
    def facts(self) -> dict[str, str]:
        """Metadata, and the machine's name under ``machine``."""
        return {MACHINE_KEY: self.name, **dict(self.metadata)}


@dataclass(slots=True)
class Placements:
    """Which units are where, with what their rules say."""

    machines: dict[str, Candidate] = field(default_factory=dict)
    units: dict[str, UnitSpec] = field(default_factory=dict)
    #: unit -> machines that have it (several only for global units)
    where: dict[str, set[str]] = field(default_factory=dict)
    on: dict[str, set[str]] = field(default_factory=dict)
    #: units that are leaving a machine and still use what they reserved there
    leaving: dict[str, set[str]] = field(default_factory=dict)
    #: machines on which a unit failed of late: others are taken first
    failed_on: dict[str, set[str]] = field(default_factory=dict)
    #: machines by how many units they have, then by id; made when it is first asked for
    _by_load: SortedList[tuple[int, str]] | None = None
    #: units whose rules bind others (Conflicts=, Replaces=), by machine; made when it is first asked for
    _binding: dict[str, set[str]] = field(default_factory=dict)

    def place(self, unit: str, machine: str) -> None:
        """Book a unit on a machine."""
        here = self.on.setdefault(machine, set())
        if unit in here:
            return
        self.where.setdefault(unit, set()).add(machine)
        if self._by_load is not None and machine in self.machines:
            self._by_load.discard((len(here), machine))
            self._by_load.add((len(here) + 1, machine))
        here.add(unit)
        if machine in self._binding and self._binds(unit):
            self._binding[machine].add(unit)

    def remove(self, unit: str, machine: str) -> None:
        """Take a unit off a machine."""
        here = self.on.get(machine, set())
        if unit not in here:
            return
        self.where.get(unit, set()).discard(machine)
        if not self.where.get(unit):
            self.where.pop(unit, None)
        if self._by_load is not None and machine in self.machines:
            self._by_load.discard((len(here), machine))
            self._by_load.add((len(here) - 1, machine))
        here.discard(unit)
        if machine in self._binding:
            self._binding[machine].discard(unit)

    def set_machine(self, candidate: Candidate) -> None:
        """A machine is there, or another one than it was."""
        if candidate.id not in self.machines and self._by_load is not None:
            self._by_load.add((len(self.on.get(candidate.id, ())), candidate.id))
        self.machines[candidate.id] = candidate

    def drop_machine(self, machine: str) -> None:
        """A machine is gone; units are taken off it one by one."""
        if self.machines.pop(machine, None) is not None and self._by_load is not None:
            self._by_load.discard((len(self.on.get(machine, ())), machine))

    def set_spec(self, unit: str, spec: UnitSpec | None) -> None:
        """A unit's file is this one; None: there is no such unit, or none that can be read."""
        if spec is None:
            self.units.pop(unit, None)
        else:
            self.units[unit] = spec
        for machine in self.where.get(unit, ()):
            self._binding.pop(machine, None)

    def by_load(self) -> Iterable[str]:
        """Machines, those with the fewest units first, then by id."""
        if self._by_load is None or len(self._by_load) != len(self.machines):
            self._by_load = SortedList((len(self.on.get(machine, ())), machine) for machine in self.machines)
        return (machine for _, machine in self._by_load)

    def binding(self, machine: str) -> set[str]:
        """Units on a machine whose rules say what else may be there."""
        if machine not in self._binding:
            self._binding[machine] = {unit for unit in self.on.get(machine, ()) if self._binds(unit)}
        return self._binding[machine]

    def _binds(self, unit: str) -> bool:
        spec = self.units.get(unit)
        return spec is not None and bool(spec.conflicts or spec.replaces)

    def reserved(self, machine: str, without: Iterable[str] = ()) -> tuple[float, int]:
        """Processors and bytes that units on a machine have reserved, those that are leaving among them."""
        cpus, memory = 0.0, 0
        for unit in (self.on.get(machine, set()) | self.leaving.get(machine, set())).difference(without):
            spec = self.units.get(unit)
            if spec is not None:
                cpus += spec.cpu
                memory += spec.memory
        return cpus, memory


def refusal(spec: UnitSpec, machine: Candidate, state: Placements) -> str:
    """Why this unit may not run on this machine; empty when it may.

    For a unit that is there already: why it may not stay.  A machine that is emptied, or has
    less to reserve than before, is no such reason.
    """
    name = spec.name.full
    is_here = name in state.on.get(machine.id, ())
    if machine.draining and not is_here:
        return "it is being drained"
    if spec.container is not None and not machine.has_engine:
        return "it has no engine for containers (the key engine of its configuration)"
    if spec.machine_id and not _is_machine(spec.machine_id, machine):
        return f"MachineID={spec.machine_id} names another machine"
    return (
        _metadata_refusal(spec, machine)
        or _neighbours_refusal(spec, machine, state)
        or ("" if is_here else room_refusal(spec, machine, state))
    )


def _is_machine(wanted: str, machine: Candidate) -> bool:
    return machine.name == wanted or (len(wanted) >= 8 and machine.id.startswith(wanted))


def _metadata_refusal(spec: UnitSpec, machine: Candidate) -> str:
    """OR among values of one key, AND across keys; and each of the other rules."""
    if not spec.machine_metadata and not spec.machine_rules:
        return ""
    have = dict(machine.metadata)
    wanted: dict[str, list[str]] = {}
    for key, value in spec.machine_metadata:
        wanted.setdefault(key, []).append(value)
    for key, values in sorted(wanted.items()):
        if have.get(key) not in values:
            return f"MachineMetadata={key}={'|'.join(values)}: {_is_now(have, key)}"
    for rule in spec.machine_rules:
        if not rule.holds(have):
            return f"MachineMetadata={rule}: {_is_now(have, rule.key)}"
    return ""


def _is_now(have: dict[str, str], key: str) -> str:
    return f"it is {have[key]}" if key in have else "it has none"


def _neighbours_refusal(spec: UnitSpec, machine: Candidate, state: Placements) -> str:
    """MachineOf, Conflicts and Replaces; the last two bind both sides."""
    name = spec.name.full
    here = state.on.get(machine.id, set())
    for peer in spec.machine_of:
        if peer not in here:
            return f"MachineOf={peer}: that unit is not on this machine"
    for other in sorted(here) if spec.conflicts else sorted(state.binding(machine.id)):
        if other == name:
            continue
        pattern = matching(spec.conflicts, other)
        if pattern:
            return f"Conflicts={pattern} matches {other}, which is here"
        other_spec = state.units.get(other)
        if other_spec is None:
            continue
        pattern = matching(other_spec.conflicts, name)
        if pattern:
            return f"{other}, which is here, has Conflicts={pattern}"
        pattern = matching(other_spec.replaces, name)
        if pattern:
            return f"{other}, which is here, has Replaces={pattern}"
    return ""


def room_refusal(spec: UnitSpec, machine: Candidate, state: Placements, without: Iterable[str] = ()) -> str:
    """Why there is no room for a unit: MaxPerMachine=, Cpu=, Memory=; ``without``: units to be thought away."""
    if spec.max_per_machine:
        kin = [u for u in siblings(spec, state, machine.id) if u not in set(without)]
        if len(kin) >= spec.max_per_machine:
            return f"MaxPerMachine={spec.max_per_machine}: {', '.join(kin)} {'is' if len(kin) == 1 else 'are'} here"
    if not spec.cpu and not spec.memory:
        return ""
    cpus, memory = state.reserved(machine.id, without)
    if machine.cpus and cpus + spec.cpu > machine.cpus + 1e-9:
        return f"Cpu={spec.cpu:g}: {max(0.0, machine.cpus - cpus):g} of {machine.cpus:g} are free"
    if machine.memory and memory + spec.memory > machine.memory:
        return f"Memory={size(spec.memory)}: {size(max(0, machine.memory - memory))} of {size(machine.memory)} are free"
    return ""


def size(count: int) -> str:
    """Bytes for people: 512B, 1.5G."""
    value, units = float(count), "BKMGT"
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g}{units[0]}"


def siblings(spec: UnitSpec, state: Placements, machine: str) -> list[str]:
    """Instances of the same template on a machine, without the unit itself."""
    name, template = spec.name.full, spec.name.template
    if not template:
        return []
    here = state.on.get(machine, ())
    return sorted(u for u in here if u != name and (s := state.units.get(u)) is not None and s.name.template == template)


def matching(patterns: Iterable[str], name: str) -> str:
    """The first pattern that matches a unit's name, with or without its suffix; empty if none does."""
    stem = name[: -len(".service")] if name.endswith(".service") else name
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(stem, pattern):
            return pattern
    return ""


def choose(spec: UnitSpec, state: Placements) -> tuple[str, dict[str, str]]:
    """The machine for a unit (empty if none), and the reason of every machine refused."""
    refusals: dict[str, str] = {}
    for machine in _best_first(spec, state):
        why = refusal(spec, state.machines[machine], state)
        if not why:
            return machine, refusals
        refusals[machine] = why
    return "", refusals


def _best_first(spec: UnitSpec, state: Placements) -> Iterable[str]:
    """Machines in the order in which a unit would have them; without wishes of its own that order is known."""
    if spec.affinity or spec.spread or spec.cpu or spec.memory or spec.placement == "pack":
        yield from sorted(state.machines, key=_ranking(spec, state))
        return
    failed = state.failed_on.get(spec.name.full, ())
    worse = []
    for machine in state.by_load():
        if machine in failed or state.machines[machine].flapping:
            worse.append(machine)
        else:
            yield machine
    yield from sorted(worse, key=_ranking(spec, state))


def _ranking(spec: UnitSpec, state: Placements) -> _Ranking:
    spread: dict[str, int] = {}
    if spec.spread:
        for machine, candidate in state.machines.items():
            value = candidate.facts.get(spec.spread, "")
            spread[value] = spread.get(value, 0) + len(siblings(spec, state, machine))
    return _Ranking(spec, state, spread)


class _Ranking:
    """The order of machines for a unit: smaller is better."""

    def __init__(self, spec: UnitSpec, state: Placements, spread: dict[str, int]) -> None:
        self._spec = spec
        self._state = state
        self._spread = spread
        self._failed = state.failed_on.get(spec.name.full, set())

    def __call__(self, machine: str) -> tuple[bool, bool, int, int, float, int, str]:
        spec, state = self._spec, self._state
        candidate = state.machines[machine]
        units = state.on.get(machine, set())
        facts = candidate.facts
        wishes = sum(wish.weight for wish in spec.affinity if wish.holds(facts, units)) if spec.affinity else 0
        together = self._spread.get(facts.get(spec.spread, ""), 0) if spec.spread else 0
        count, used = len(units), 0.0
        if spec.cpu or spec.memory:
            used = self._share(candidate)
        if spec.placement == "pack":
            count, used = -count, -used
        return machine in self._failed, candidate.flapping, -wishes, together, used, count, machine

    def _share(self, candidate: Candidate) -> float:
        """How much of what a machine has is reserved, by its scarcer part; 0 if that is unknown."""
        cpus, memory = self._state.reserved(candidate.id)
        shares = [cpus / candidate.cpus if candidate.cpus else 0.0, memory / candidate.memory if candidate.memory else 0.0]
        return round(max(shares), 3)


def preempt(spec: UnitSpec, state: Placements) -> tuple[str, list[str]]:
    """A machine with room for a unit once others of lower priority have left it, and which these are.

    Only where room is all that is missing.  The machine is taken whose victims are of the
    least priority, then fewest; empty if there is none.  No victims: the room is being made.
    """
    best: tuple[tuple[int, int, str], str, list[str]] | None = None
    for machine, candidate in state.machines.items():
        if candidate.draining or not room_refusal(spec, candidate, state):
            continue
        if _metadata_refusal(spec, candidate) or _neighbours_refusal(spec, candidate, state):
            continue
        if spec.machine_id and not _is_machine(spec.machine_id, candidate):
            continue
        if not room_refusal(spec, candidate, state, state.leaving.get(machine, ())):
            return machine, []  # room is being made
        victims = _victims(spec, candidate, state)
        if victims:
            highest = max(state.units[unit].priority for unit in victims)
            rank = (highest, len(victims), machine)
            if best is None or rank < best[0]:
                best = rank, machine, victims
    return (best[1], best[2]) if best is not None else ("", [])


def _victims(spec: UnitSpec, machine: Candidate, state: Placements) -> list[str]:
    """Units of lower priority on a machine without which there is room, none of them needlessly."""
    lower = [
        unit
        for unit in state.on.get(machine.id, ())
        if (s := state.units.get(unit)) is not None and not s.is_global and s.priority + PREEMPT_BY <= spec.priority
    ]
    lower.sort(key=lambda unit: (state.units[unit].priority, unit))
    chosen: list[str] = []
    for unit in lower:
        chosen.append(unit)
        if not room_refusal(spec, machine, state, chosen):
            break
    else:
        return []
    for unit in list(chosen):  # the last ones may have made room enough alone
        rest = [u for u in chosen if u != unit]
        if not room_refusal(spec, machine, state, rest):
            chosen = rest
    return chosen


def rebalance(state: Placements, most: int = 10_000) -> list[tuple[str, str, str]]:
    """Moves (unit, from, to) after which no move of one unit would even the machines out further.

    ``state`` is changed as if they had been made.  Units that may run nowhere else stay.
    """
    moves: list[tuple[str, str, str]] = []
    stuck: set[tuple[str, str]] = set()
    able = [m for m, candidate in state.machines.items() if not candidate.draining]
    while len(moves) < most:
        order = sorted(able, key=lambda m: (len(state.on.get(m, ())), m))
        move = next((found for fullest in reversed(order) if (found := _relief(state, fullest, order, stuck))), None)
        if move is None:
            return moves
        unit, source, target = move
        state.remove(unit, source)
        state.place(unit, target)
        moves.append(move)
    return moves


def _relief(
    state: Placements, fullest: str, order: list[str], stuck: set[tuple[str, str]]
) -> tuple[str, str, str] | None:
    """A unit that may go from a machine to one with at least two units less."""
    count = len(state.on.get(fullest, ()))
    for unit in sorted(state.on.get(fullest, ())):
        spec = state.units.get(unit)
        if spec is None or spec.is_global or spec.placement == "pack" or (unit, fullest) in stuck:
            continue
        state.remove(unit, fullest)
        target = next((m for m in order if m != fullest and len(state.on.get(m, ())) + 1 < count
                       and not refusal(spec, state.machines[m], state)), "")  # fmt: skip
        state.place(unit, fullest)
        if target:
            return unit, fullest, target
        stuck.add((unit, fullest))
    return None


def brake(lost: int, known: int) -> bool:
    """Whether so many of the known machines are lost at once that nothing may move."""
    return known > 1 and lost / known > BRAKE_SHARE
