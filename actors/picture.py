"""What is stored of the fleet, put together for a decision: the same for the scheduler and for operators.

Everything here is derived from keys of the brain: nothing is remembered, so that the next
leader decides as this one would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from brain.store import Item
from fleet import dependencies
from fleet.dependencies import Graph, Hold, Phase
from fleet.placement import Candidate, Placements
from fleet.spec import UnitSpec

from .brain_client import ALIVE, DONE, MACHINES, MOVES, ORDERS, PLACES, REACTED, STATES, UNITS, to_json
from .wanted import Known

#: Moves of a unit from one machine to another that are remembered.
MOVES_KEPT = 10
#: Why units left machines, as far as it matters for what is decided later.
LOST, FAILED_THERE = "its machine was lost", "it failed there"
#: Losses of a machine within so many seconds that make it one to be avoided.
FLAPS, FLAP_WINDOW_S = 3, 600.0
#: Seconds for which a machine on which a unit failed is avoided by that unit.
AVOID_S = 600.0
#: Seconds between two looks for machines that were lost too often, or that failed a unit.
FLAPS_LOOK_S = 1.0

Items = Callable[[bytes], Mapping[bytes, Item]]


def orders(item: Item | None) -> dict[str, Any]:
    """What operators want of a machine: ``metadata`` over its own, and ``drain`` while it is emptied."""
    known: dict[str, Any] = json.loads(item.value) if item is not None else {}
    return {"metadata": {}, "drain": None, **known}


def metadata(about: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, str]:
    """A machine's metadata: its own, and an operator's over that; an empty value takes a key away."""
    merged = {**about["metadata"], **order["metadata"]}
    return {key: value for key, value in merged.items() if value != ""}


def flapping(moves: Mapping[bytes, Item], now: float) -> set[str]:
    """Machines that units left again and again of late because they were lost."""
    times: dict[str, set[float]] = {}
    for item in moves.values():
        for moment, machine, _, why in json.loads(item.value):
            if why == LOST and now - moment < FLAP_WINDOW_S:
                times.setdefault(machine, set()).add(moment)
    return {machine for machine, moments in times.items() if len(moments) >= FLAPS}


def failed_on(moves: Mapping[bytes, Item], now: float) -> dict[str, set[str]]:
    """Machines that each unit left of late because it failed there."""
    found: dict[str, set[str]] = {}
    for key, item in moves.items():
        if FAILED_THERE.encode() not in item.value:
            continue
        for moment, machine, _, why in json.loads(item.value):
            if why.startswith(FAILED_THERE) and now - moment < AVOID_S:
                found.setdefault(key[len(MOVES) :].decode(), set()).add(machine)
    return found


def machine_and_unit(prefix: bytes, key: bytes) -> tuple[str, str]:
    """The two names in a key of a place or a state."""
    machine, _, unit = key[len(prefix) :].decode().partition("/")
    return machine, unit


def candidate(items: Items, machine: str, is_flapping: bool) -> Candidate:
    """A machine that is alive, as it may be chosen."""
    about = json.loads(items(MACHINES)[MACHINES + machine.encode()].value)
    order = orders(items(ORDERS).get(ORDERS + machine.encode()))
    return Candidate(
        machine, about["name"], tuple(sorted(metadata(about, order).items())), about.get("engine", True),
        about.get("cpus", 0.0), about.get("memory", 0), order["drain"] is not None, is_flapping,
    )  # fmt: skip


def placements(items: Items, specs: Mapping[str, UnitSpec | None], now: float) -> Placements:
    """Machines that are alive, units, and where these are."""
    state = Placements()
    unsteady = flapping(items(MOVES), now)
    alive = items(ALIVE)
    for key in items(MACHINES):
        machine = key[len(MACHINES) :].decode()
        if ALIVE + machine.encode() in alive:
            state.machines[machine] = candidate(items, machine, machine in unsteady)
    state.units = {unit: spec for unit, spec in specs.items() if spec is not None}
    state.failed_on = failed_on(items(MOVES), now)
    places = items(PLACES)
    for key in places:
        machine, unit = machine_and_unit(PLACES, key)
        if machine in state.machines:
            state.place(unit, machine)
    for key in items(STATES):
        machine, unit = machine_and_unit(STATES, key)
        if machine in state.machines and PLACES + key[len(STATES) :] not in places:
            state.leaving.setdefault(machine, set()).add(unit)
    return state


class View:
    """All pictures, read together; kept up to date key by key (:meth:`update`), or made anew.

    A decision that is not written yet is seen in it at once (:meth:`assume`, :meth:`unplace`);
    :meth:`begin` takes back what did not come true.
    """

    def __init__(self, items: Items, spec_of: Callable[[str, dict[str, Any]], UnitSpec | None], now: float) -> None:
        self._items = items
        self._spec_of = spec_of
        self.now = now  # Unix time
        self.known = Known(items(UNITS))
        self.units: dict[str, dict[str, Any]] = {unit: record for unit, (record, _) in self.known.items()}
        self.specs = {unit: spec_of(unit, wanted) for unit, wanted in self.units.items()}
        if self.known.aliases:
            self.specs = {unit: spec and self.known.by_own_names(spec) for unit, spec in self.specs.items()}
        self.places: dict[tuple[str, str], Item] = {
            machine_and_unit(PLACES, key): item for key, item in items(PLACES).items()
        }
        self.by_unit: dict[str, dict[tuple[str, str], None]] = {}
        #: units that are placed on a machine, or still there, whether it is alive or not
        self.by_machine: dict[str, set[str]] = {}
        for machine, unit in self.places:
            self.by_unit.setdefault(unit, {})[machine, unit] = None
            self.by_machine.setdefault(machine, set()).add(unit)
        self.holders: dict[str, set[str]] = {}
        self._states: dict[str, dict[str, Item]] = {}
        for key, item in items(STATES).items():
            machine, unit = machine_and_unit(STATES, key)
            self._states.setdefault(unit, {})[machine] = item
            self.by_machine.setdefault(machine, set()).add(unit)
            if (machine, unit) not in self.places:
                self.holders.setdefault(unit, set()).add(machine)
        self._noted: dict[str, list[Any]] = {}  # the steps of :meth:`moved`
        self._said: dict[str, dict[str, dict[str, Any]]] = {}
        self._assumed: set[tuple[str, str]] = set()
        self.state = placements(items, self.specs, now)
        self.alive = {m: items(ALIVE)[ALIVE + m.encode()] for m in self.state.machines}
        self._kin: dict[str, list[str]] | None = None
        #: units with rules about others, that are placed on every machine, or whose ends matter
        self.related: set[str] = set()
        self.followers: set[str] = set()
        self.globals: set[str] = set()
        self.watched: set[str] = set()
        for unit, spec in self.specs.items():
            self._sort_in(unit, spec)
        self._draw_graph()
        self._looked_for_flaps = now

    # -- kept up to date ----------------------------------------------------------------------

    @property
    def reacted(self) -> Mapping[bytes, Item]:
        """Ends of units that were acted on."""
        return self._items(REACTED)

    @property
    def moves(self) -> Mapping[bytes, Item]:
        """Which machines units left, and why."""
        return self._items(MOVES)

    @property
    def done(self) -> Mapping[bytes, Item]:
        """Jobs that have done their work."""
        return self._items(DONE)

    def order(self, machine: str) -> dict[str, Any]:
        """What operators want of a machine."""
        return orders(self._items(ORDERS).get(ORDERS + machine.encode()))

    def begin(self, now: float) -> None:
        """Another pass: what was assumed in the last one is what is stored, or it is not so."""
        self.now = now
        assumed, self._assumed = self._assumed, set()
        for machine, unit in assumed:
            self._settle(machine, unit)
        self._noted = {}
        self._kin = None
        if now - self._looked_for_flaps >= FLAPS_LOOK_S:
            self._looked_for_flaps = now
            self.state.failed_on = failed_on(self.moves, now)
            unsteady = flapping(self.moves, now)
            for machine, known in list(self.state.machines.items()):
                if known.flapping != (machine in unsteady):
                    self.state.set_machine(replace(known, flapping=machine in unsteady))

    def update(self, key: bytes) -> set[str] | None:
        """A key changed: the units that are to be looked at again.  None: the view must be made anew."""
        for prefix in (UNITS, PLACES, STATES):
            if key.startswith(prefix):
                if prefix is UNITS:
                    return self._update_unit(key[len(UNITS) :].decode())
                machine, unit = machine_and_unit(prefix, key)
                self._settle(machine, unit)
                return {unit}
        for prefix in (MACHINES, ALIVE, ORDERS):
            if key.startswith(prefix):
                return self._update_machine(key[len(prefix) :].decode())
        for prefix in (MOVES, DONE, REACTED):
            if key.startswith(prefix):
                if prefix is MOVES:
                    self._looked_for_flaps = 0.0
                return {key[len(prefix) :].decode()}
        return set()

    def _update_unit(self, unit: str) -> set[str] | None:
        item = self._items(UNITS).get(UNITS + unit.encode())
        if not self.known.update(unit, item) or self.known.aliases:
            return None  # other names of units: everybody's rules may mean others now
        before = self.specs.get(unit)
        if item is None:
            self.units.pop(unit, None)
            self.specs.pop(unit, None)
            spec = None
        else:
            record = self.units[unit] = self.known[unit][0]
            spec = self.specs[unit] = self._spec_of(unit, record)
        self._sort_in(unit, spec)
        touched = {unit}
        if before is not spec:
            self.state.set_spec(unit, spec)
            if any(s is not None and (s.related or unit in self._named) for s in (before, spec)):
                self._draw_graph()
            if spec is not None and before is not None:  # its new rules may leave no room for others
                for machine in self.state.where.get(unit, ()):
                    touched |= self.by_machine.get(machine, set())
        return touched

    def _sort_in(self, unit: str, spec: UnitSpec | None) -> None:
        facts = (
            (self.related, spec is not None and bool(spec.related)),
            (self.followers, spec is not None and bool(spec.machine_of)),
            (self.globals, spec is not None and spec.is_global),
            (self.watched, spec is not None and bool(spec.reschedule or is_job(spec))),
        )
        for kind, belongs in facts:
            if belongs:
                kind.add(unit)
            else:
                kind.discard(unit)

    def _draw_graph(self) -> None:
        """The relations of units; those without any are left out."""
        self._named = {other for unit in self.related for others in self._spec(unit).related.values() for other in others}
        there = self.related | {other for other in self._named if self.specs.get(other) is not None}
        self.graph = Graph({unit: self._spec(unit) for unit in sorted(there)})
        self.involved = self.graph.involved

    def _spec(self, unit: str) -> UnitSpec:
        spec = self.specs[unit]
        assert spec is not None
        return spec

    def _update_machine(self, machine: str) -> set[str]:
        """A machine came, went, or is another one than it was."""
        key = machine.encode()
        item = self._items(ALIVE).get(ALIVE + key)
        there = item is not None and MACHINES + key in self._items(MACHINES)
        was_there = machine in self.alive
        if there:
            assert item is not None
            self.alive[machine] = item
            known = self.state.machines.get(machine)
            self.state.set_machine(candidate(self._items, machine, known is not None and known.flapping))
            self._looked_for_flaps = 0.0 if known is None else self._looked_for_flaps
        else:
            self.alive.pop(machine, None)
            self.state.drop_machine(machine)
        units = set(self.by_machine.get(machine, ()))
        if there != was_there:
            for unit in units:
                self._settle(machine, unit)
        return units | self.globals

    def _settle(self, machine: str, unit: str) -> None:
        """What is stored of a unit on a machine is what is so."""
        end = f"{machine}/{unit}".encode()
        place, state = self._items(PLACES).get(PLACES + end), self._items(STATES).get(STATES + end)
        is_alive = machine in self.state.machines
        self._said.pop(unit, None)
        _keep(self.by_machine, machine, unit, place is not None or state is not None)
        _keep(self.holders, unit, machine, place is None and state is not None)
        _keep(self.state.leaving, machine, unit, place is None and state is not None and is_alive)
        if state is not None:
            self._states.setdefault(unit, {})[machine] = state
        elif unit in self._states:
            self._states[unit].pop(machine, None)
            if not self._states[unit]:
                del self._states[unit]
        if place is not None:
            self.places[machine, unit] = place
            self.by_unit.setdefault(unit, {})[machine, unit] = None
        else:
            self.places.pop((machine, unit), None)
            if unit in self.by_unit:
                self.by_unit[unit].pop((machine, unit), None)
                if not self.by_unit[unit]:
                    del self.by_unit[unit]
        if place is not None and is_alive:
            self.state.place(unit, machine)
        else:
            self.state.remove(unit, machine)

    def assume(self, unit: str, machine: str) -> None:
        """A unit is about to be placed on a machine."""
        self.state.place(unit, machine)
        self._assumed.add((machine, unit))

    def unassume(self, unit: str, machine: str) -> None:
        """Think a unit away from a machine."""
        self.state.remove(unit, machine)
        self._assumed.add((machine, unit))

    def places_of(self, units: Iterable[str]) -> list[tuple[tuple[str, str], Item]]:
        """Where these units are placed, in order."""
        pairs = [pair for unit in units for pair in self.by_unit.get(unit, ()) if pair in self.places]
        return [(pair, self.places[pair]) for pair in sorted(pairs)]

    def has_place(self, machine: str) -> bool:
        """Whether a unit is placed on a machine."""
        return any((machine, unit) in self.places for unit in self.by_machine.get(machine, ()))

    def remembered(self) -> set[str]:
        """Units of which something is kept, whether they are there or not."""
        kept = ((REACTED, self.reacted), (MOVES, self.moves), (DONE, self.done))
        return {key[len(prefix) :].decode() for prefix, items in kept for key in items}

    def importance(self, unit: str) -> int:
        """Its priority; what is gone or cannot be read is looked at first."""
        spec = self.specs.get(unit)
        return spec.priority if spec is not None else 1_000_000

    # -- what is said of units ------------------------------------------------------------------

    def states(self, unit: str) -> dict[str, dict[str, Any]]:
        """What machines say of a unit."""
        if unit not in self._said:
            self._said[unit] = {m: json.loads(item.value) for m, item in self._states.get(unit, {}).items()}
        return self._said[unit]

    # -- what units are to each other -------------------------------------------------------

    def phase_of(self, unit: str, near: str = "") -> Phase:
        """What a unit does; of a global one, what it does on the machine ``near``, if it is there."""
        wanted = self.units[unit]
        machines = [machine for machine, _ in self.by_unit.get(unit, ())]
        states = self.states(unit)
        spec = self.specs[unit]
        if spec is not None and spec.is_global and near in machines:
            machines, states = [near], {m: state for m, state in states.items() if m == near}
            wanted = wanted_on(wanted, near)
        places = [json.loads(self.places[m, unit].value) for m in machines if (m, unit) in self.places]
        let_go = any(place["launched"] and run_of(place) == run_of(wanted) for place in places)
        return dependencies.phase(wanted, let_go, states.values())

    def is_over(self, unit: str) -> bool:
        """Whether a unit ran, and has ended; a job's end is known though its machine is gone."""
        if any(map(dependencies.is_over, self.states(unit).values())):
            return True
        return unit in self.units and self.done_run(unit) is not None

    def is_well(self, unit: str, machine: str = "") -> bool:
        """Whether a unit runs as it is wanted, and is healthy (on one machine, if it is named)."""
        wanted = self.units[unit]
        return any(
            runs_well(state, wanted_on(wanted, m)) and (m, unit) in self.places and m in self.alive
            for m, state in self.states(unit).items() if not machine or m == machine
        )  # fmt: skip

    def kin(self, unit: str) -> list[str]:
        """Units that shall run, of the same template; a unit by itself is its own."""
        if self._kin is None:
            self._kin = {}
            for other, record in self.units.items():
                spec = self.specs[other]
                if record["desired"] == "launched" and spec is not None and spec.name.template:
                    self._kin.setdefault(spec.name.template, []).append(other)
        spec = self.specs[unit]
        return self._kin.get(spec.name.template, [unit]) if spec is not None else [unit]

    def place_value(self, unit: str, machine: str, item: Item | None = None) -> bytes:
        """What a machine is to be told of a unit: also whether it may start, and if not, why."""
        wanted = wanted_on(self.units[unit], machine)
        if unit not in self.involved:
            return place_value(wanted)
        place = json.loads(item.value) if item is not None else {}
        if item is not None and self.lingers(unit, item):
            return item.value
        if wanted["desired"] != "launched":
            return place_value(wanted)
        let_go = place.get("launched") and run_of(place) == run_of(wanted)
        judge = self.graph.may_stay if let_go else self.graph.may_start
        return place_value(wanted, judge(unit, lambda other: self.phase_of(other, machine)))

    def lingers(self, unit: str, item: Item) -> bool:
        """Whether a unit that is to stop, or to start anew, must wait for those after it to stop first."""
        if unit not in self.involved or self.units.get(unit) is None:
            return False
        place, wanted = json.loads(item.value), self.units[unit]
        ends = wanted["desired"] != "launched" or run_of(place) != run_of(wanted)
        return bool(place["launched"] and ends and self.graph.must_linger(unit, self._stops))

    def _stops(self, unit: str) -> bool:
        """Whether a unit is up and on its way down."""
        wanted = self.units[unit]
        for machine, state in self.states(unit).items():
            if state["active"] not in ("active", "activating", "reloading", "deactivating"):
                continue
            place = self.places.get((machine, unit))
            held = place is None or not json.loads(place.value)["launched"]
            if held or wanted["desired"] != "launched" or _run_of_state(state) != run_of(wanted_on(wanted, machine)):
                return True
        return False

    # -- what shall be where ----------------------------------------------------------------------

    def wanted(self, among: Iterable[str]) -> list[str]:
        """Those units that shall be placed, the more important first; what others follow is as important as they are."""
        specs = {u: s for u in sorted(among) if (s := self._wanted(u)) is not None}
        rank = {unit: spec.priority for unit, spec in specs.items()}
        for unit in self.followers:
            spec = self._wanted(unit)
            if spec is None:
                continue
            followed, seen = list(spec.machine_of), {unit}
            while followed:
                peer = followed.pop()
                peers = self._wanted(peer)
                if peers is not None and peer not in seen:
                    seen.add(peer)
                    if peer in rank:
                        rank[peer] = max(rank[peer], spec.priority)
                    followed += peers.machine_of
        return sorted(specs, key=lambda unit: (-rank[unit], bool(specs[unit].machine_of)))

    def _wanted(self, unit: str) -> UnitSpec | None:
        """The file of a unit that shall be placed."""
        record = self.units.get(unit)
        return self.specs[unit] if record is not None and record["desired"] != "inactive" else None

    def done_run(self, unit: str) -> dict[str, Any] | None:
        """The record of a job's end, if it has done its work in the run that is wanted."""
        item = self.done.get(DONE + unit.encode())
        record: dict[str, Any] | None = json.loads(item.value) if item is not None else None
        return record if record is not None and tuple(record["run"]) == run_of(self.units[unit]) else None

    def failures(self, unit: str, within: float) -> list[float]:
        """When a unit left machines because it had failed there, in the last ``within`` seconds."""
        item = self.moves.get(MOVES + unit.encode())
        rows = json.loads(item.value) if item is not None else []
        return [moment for moment, _, _, why in rows if why.startswith(FAILED_THERE) and self.now - moment < within]

    def moved(self, unit: str, machine: str, target: str, why: str) -> list[list[Any]]:
        """What notes that a unit left a machine: the last :data:`MOVES_KEPT` are kept.

        A unit that leaves several machines in one pass has one step for that: a transaction
        writes a key once.
        """
        key = MOVES + unit.encode()
        is_first = unit not in self._noted
        step = self._noted.setdefault(unit, ["put", key, self.moves[key].value if key in self.moves else b"[]"])
        rows = [*json.loads(step[2]), [round(self.now, 3), machine, target, why]]
        step[2] = to_json(rows[-MOVES_KEPT:])
        return [step] if is_first else []

    def unplace(self, machine: str, unit: str) -> None:
        """Take a decision back in this view; the old copy may still be there."""
        del self.places[machine, unit]
        self.unassume(unit, machine)
        if machine in self.alive:
            self.holders.setdefault(unit, set()).add(machine)
            self.state.leaving.setdefault(machine, set()).add(unit)


def _keep(sets: dict[str, set[str]], key: str, member: str, belongs: bool) -> None:
    if belongs:
        sets.setdefault(key, set()).add(member)
    elif key in sets:
        sets[key].discard(member)
        if not sets[key]:
            del sets[key]


def is_job(spec: UnitSpec) -> bool:
    """Whether a unit's work comes to an end."""
    return spec.type == "oneshot" and not spec.remain_after_exit and not spec.is_global


def wanted_on(wanted: dict[str, Any], machine: str) -> dict[str, Any]:
    """What is wanted of a unit on one machine: a global unit's next version comes machine by machine."""
    following = wanted.get("next")
    if following is None or machine not in following["machines"]:
        return wanted
    return {**wanted, "content": following["content"], "hash": following["hash"]}


def runs_well(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a state is of the run that is wanted, and good: active and not failing, or work that is done."""
    if _run_of_state(state) != run_of(wanted):
        return False
    if state["active"] == "active":
        return bool(state["health"] != "failing")
    return dependencies.is_over(state) and state["active"] != "failed" and state["result"] in ("success", "exec-condition")


def run_of(record: Mapping[str, Any]) -> tuple[str, int]:
    """Which start of which file a record of a unit, or of its place, is about."""
    return record["hash"], record.get("restarts", 0)


def _run_of_state(state: Mapping[str, Any]) -> tuple[str, int]:
    return state["hash"], state.get("asked", 0)


def place_key(machine: str, unit: str) -> bytes:
    """Where it is stored that a unit is placed on a machine."""
    return PLACES + f"{machine}/{unit}".encode()


def place_value(wanted: Mapping[str, Any], hold: Hold | None = None) -> bytes:
    """What a machine is told of a unit."""
    value = {
        "content": wanted["content"],
        "hash": wanted["hash"],
        "launched": wanted["desired"] == "launched" and hold is None,
        "restarts": wanted.get("restarts", 0),
    }
    if hold is not None:
        value |= {"hold": hold.reason, "blocked": hold.blocked}
    return to_json(value)
