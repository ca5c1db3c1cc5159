"""The scheduler: decides where units run, beside the Raft leader.

Every host has one; only the one on the leader acts.  It mirrors what is wanted (units),
what is there (machines, leases), what was decided (places) and what is true (states), and
brings the decisions in line, in transactions that hold only while its host leads in the
same term and while what it saw is still so.  Level-triggered: a lost event costs nothing.

Never two copies: a unit is placed elsewhere only in a transaction that finds no state of
it on any other machine; a machine writes that state before it starts the unit and removes
it after it has ended, and the lease removes it for a machine that is lost.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from brain.kv import TXN_OPERATIONS_MAX
from brain.store import Item
from fleet import dependencies, placement, unitfile
from fleet.dependencies import Graph, Hold, Phase
from fleet.placement import Candidate, Placements
from fleet.spec import UnitSpec
from kernel.actor import handles
from kernel.ports import Ports
from kernel.stats import Histogram

from .brain_client import ALIVE, MACHINES, MOVES, PLACES, REACTED, STATES, UNITS, BrainActor
from .raft_messages import LeaderChanged
from .wanted import Known, start

logger = logging.getLogger("argosy.scheduler")

#: Seconds to collect changes before a pass.
DEBOUNCE_S = 0.02
#: Machines lost within this many seconds count as lost at once.
BRAKE_WINDOW_S = 30.0
#: Upper bounds in seconds of the histogram of recoveries.
RECOVERY_BOUNDS_S = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 300.0)
#: Seconds between two starts of a unit that another upholds.
UPHOLD_S = 5.0
#: Moves of a unit from one machine to another that are remembered.
MOVES_KEPT = 10
#: Seconds between passes while something could not be placed or moved.
RETRY_S = 1.0


class Scheduler(BrainActor):
    """See the module docstring."""

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(raft_ref)
        self._ports = ports
        self.active = False
        self.term = 0
        self._pictures: dict[bytes, Any] = {}
        self._armed = False
        self._busy = False
        self._specs: dict[tuple[str, str], UnitSpec | None] = {}
        self._lost_at: dict[str, float] = {}
        self._settled = False
        self.braking = False
        self.unplaced: dict[str, dict[str, str]] = {}
        self._moving: dict[str, float] = {}  # unit -> when its machine was found lost
        self._involved: set[str] = set()  # units whose state is of consequence to others, or to themselves
        self._upheld: dict[str, float] = {}  # when a unit was started because another upholds it
        self.recovery_seconds = Histogram(RECOVERY_BOUNDS_S)
        self.placements = 0
        self.reschedules: dict[str, int] = {}

    def on_start(self) -> None:
        """Wait for leadership."""
        self.system.subscribe(LeaderChanged, self.actor_ref, replay=True)
        self.every(RETRY_S, self._retry)

    @handles(LeaderChanged)
    def _on_leader(self, message: LeaderChanged) -> None:
        self.drop_mirrors()
        self._pictures = {}
        self.active = message.leading
        self.term = message.term
        self._busy = False
        self._settled = False
        self._lost_at = {}
        self._moving = {}
        self.unplaced = {}
        self.braking = False
        if not message.leading:
            return
        for prefix in (UNITS, MACHINES, ALIVE, PLACES, STATES, REACTED, MOVES):
            on_change = self._on_state if prefix == STATES else self._on_change
            self._pictures[prefix] = self.mirror(prefix, lambda items: self._arm(), on_change)

    def _on_change(self, *_: Any) -> None:
        self._arm()

    def _on_state(self, key: bytes, item: Item | None, _: Item | None) -> None:
        """A state: nothing to decide in it, unless it ends, or ends a move, or others depend on it."""
        unit = key[len(STATES) :].decode().partition("/")[2]
        if item is None or unit in self._involved:
            self._arm()
        if item is None:
            return
        if unit in self._moving:
            state = json.loads(item.value)
            if state["active"] == "active" and state["health"] != "failing":
                self.recovery_seconds.observe(self.now() - self._moving.pop(unit))

    def _retry(self) -> None:
        if self.active and (self.unplaced or self._lost_at or not self._pictures):
            self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self.after(DEBOUNCE_S, self._pass)

    # -- one pass ------------------------------------------------------------------------

    def _pass(self) -> None:
        self._armed = False
        if not self.active or self._busy or not self._pictures:
            return
        if not all(picture.ready for picture in self._pictures.values()):
            return
        view = _View(self._pictures, self._spec, self._ports.clock.wall())
        self._involved = view.involved
        self._note_losses(view)
        steps = _Steps()
        self._drop_unwanted(view, steps)
        self._update_in_place(view, steps)
        self._place_globals(view, steps)
        self._place_missing(view, steps)
        self._react(view, steps)
        self._forget_destroyed(view, steps)
        self._commit(steps)

    def _spec(self, unit: str, wanted: dict[str, Any]) -> UnitSpec | None:
        key = (unit, wanted["hash"])
        if key not in self._specs:
            if len(self._specs) > 100_000:
                self._specs.clear()
            try:
                self._specs[key] = unitfile.load(unit, wanted["content"])[0]
            except ValueError:
                self._specs[key] = None
        return self._specs[key]

    def _note_losses(self, view: _View) -> None:
        """Which machines are lost, since when, and whether too many went at once."""
        now = self.now()
        lost = {m for m, _ in view.places if m not in view.alive}
        for machine in lost:
            self._lost_at.setdefault(machine, now)
        for machine in list(self._lost_at):
            if machine not in lost:
                del self._lost_at[machine]
        recent = [m for m, at in self._lost_at.items() if now - at < BRAKE_WINDOW_S or self.braking]
        braking = placement.brake(len(recent), len(recent) + len(view.alive))
        if braking and not self.braking:
            logger.error("%d of %d machines are lost at once: nothing is moved",
                         len(recent), len(recent) + len(view.alive))  # fmt: skip
        self.braking = braking

    def _drop_unwanted(self, view: _View, steps: _Steps) -> None:
        for (machine, unit), item in sorted(view.places.items()):
            wanted = view.units.get(unit)
            if wanted is None or wanted["desired"] == "inactive" or view.specs[unit] is None:
                if view.lingers(unit, item):
                    continue
                steps.delete_place(machine, unit, item)
                view.unplace(machine, unit)
            elif machine in view.alive:
                spec = view.specs[unit]
                assert spec is not None
                why = placement.refusal(spec, view.state.machines[machine], view.state)
                if why:
                    logger.info("%s leaves %s: %s", unit, machine, why)
                    steps.delete_place(machine, unit, item, *view.moved(unit, machine, "", why))
                    view.unplace(machine, unit)
                    self._count("constraint")

    def _update_in_place(self, view: _View, steps: _Steps) -> None:
        for (machine, unit), item in sorted(view.places.items()):
            value = view.place_value(unit, machine, item)
            if item.value != value:
                steps.update_place(machine, unit, item, value)

    def _place_globals(self, view: _View, steps: _Steps) -> None:
        for unit in view.wanted():
            spec = view.specs[unit]
            if spec is None or not spec.is_global:
                continue
            refused: dict[str, str] = {}
            for machine in sorted(view.alive):
                if (machine, unit) in view.places:
                    continue
                why = placement.refusal(spec, view.state.machines[machine], view.state)
                if why:
                    refused[machine] = why
                    continue
                steps.create_place(machine, unit, view)
                view.state.place(unit, machine)
                self.placements += 1
            for machine in [m for m, u in view.places if u == unit and m not in view.alive]:
                if not self.braking:
                    steps.delete_place(machine, unit, view.places[machine, unit])

    def _place_missing(self, view: _View, steps: _Steps) -> None:
        unplaced: dict[str, dict[str, str]] = {}
        for unit in view.wanted():
            spec = view.specs[unit]
            if spec is None or spec.is_global:
                continue
            places = [m for m, u in view.by_unit.get(unit, ()) if (m, u) in view.places]
            if any(machine in view.alive for machine in places):
                continue
            if places and self.braking:
                unplaced[unit] = {"": "more than half of the machines were lost at once: held"}
                continue
            holders = view.holders.get(unit, set())
            if holders:  # an old copy is still ending
                unplaced[unit] = dict.fromkeys(holders, "the unit is still ending there")
                continue
            target, refusals = placement.choose(spec, view.state)
            if not target:
                unplaced[unit] = refusals or {"": "no machine is alive"}
                continue
            steps.create_place(target, unit, view, places)
            for machine in places:
                self._count("machine-lost")
                self._moving.setdefault(unit, self._lost_at.get(machine, self.now()))
            view.state.place(unit, target)
            self.placements += 1
        self.unplaced = unplaced

    # -- what units are to each other -----------------------------------------------------

    def _react(self, view: _View, steps: _Steps) -> None:
        """OnFailure=, OnSuccess= and Upholds=: each end of a unit is acted on once, also by the next leader."""
        for unit in sorted(view.involved):
            spec, wanted = view.specs.get(unit), view.units.get(unit)
            if spec is None or wanted is None:
                continue
            if spec.related.get("OnFailure") or spec.related.get("OnSuccess"):
                self._react_to_end(view, steps, unit, spec, wanted)
            if spec.related.get("Upholds") and view.phase_of(unit) in (Phase.UP, Phase.UNWELL):
                self._uphold(view, steps, spec.related["Upholds"])

    def _forget_destroyed(self, view: _View, steps: _Steps) -> None:
        """What is kept of units goes with them."""
        for prefix, kept in ((REACTED, view.reacted), (MOVES, view.moves)):
            for key, item in kept.items():
                if key[len(prefix) :].decode() not in view.units:
                    steps.add([[key, "mod", "=", item.mod]], [["delete", key]])

    def _react_to_end(
        self, view: _View, steps: _Steps, unit: str, spec: UnitSpec, wanted: dict[str, Any]
    ) -> None:
        key = REACTED + unit.encode()
        item = view.reacted.get(key)
        seen = json.loads(item.value) if item is not None else {}
        changed = dict(seen)
        compares: list[Any] = [[key, "mod", "=", item.mod if item is not None else 0]]
        changes: list[Any] = []
        for machine, state in sorted(view.states.get(unit, {}).items()):
            ended = [state["fence"], state.get("asked", 0), state["since"]]
            what = dependencies.outcome(wanted, state)
            if not spec.related.get(what) or seen.get(machine) == ended:
                continue
            changed[machine] = ended
            for target in spec.related[what]:
                logger.info("%s has ended: %s=%s", unit, what, target)
                guards, edits = start(view.known, target, view.is_over)
                compares += guards
                changes += edits
        if changed != seen:
            kept = {m: end for m, end in changed.items() if m in view.states.get(unit, {})}
            steps.add(compares, [["put", key, json.dumps(kept, sort_keys=True).encode()], *changes])

    def _uphold(self, view: _View, steps: _Steps, others: list[str]) -> None:
        for other in others:
            if other not in view.units or view.phase_of(other) not in (Phase.OFF, Phase.FAILED, Phase.DONE):
                continue
            if self.now() - self._upheld.get(other, -UPHOLD_S) < UPHOLD_S:
                self.after(UPHOLD_S, self._arm)
                continue
            self._upheld[other] = self.now()
            steps.add(*start(view.known, other, view.is_over))

    def _count(self, reason: str) -> None:
        self.reschedules[reason] = self.reschedules.get(reason, 0) + 1

    def _commit(self, steps: _Steps) -> None:
        batch = steps.first_batch()
        if batch is None:
            return
        compares, changes, more = batch
        self._busy = True
        term = self.term

        def done(result: Any, error: BaseException | None) -> None:
            if term != self.term:
                return
            self._busy = False
            if error is not None:
                logger.info("placements were not written: %s", error)
                self.after(0.2, self._arm)
            elif more or not result["succeeded"]:
                self._arm()

        self.propose(["txn", compares, changes, []], done, 5.0, term)


class _View:
    """All pictures, read together, at one moment."""

    def __init__(self, pictures: dict[bytes, Any], spec_of: Any, now: float) -> None:
        def names(prefix: bytes, key: bytes) -> tuple[str, str]:
            machine, _, unit = key[len(prefix) :].decode().partition("/")
            return machine, unit

        self.known = Known(pictures[UNITS].items)
        self.units: dict[str, dict[str, Any]] = {unit: record for unit, (record, _) in self.known.items()}
        self.specs = {unit: spec_of(unit, wanted) for unit, wanted in self.units.items()}
        if self.known.aliases:
            self.specs = {unit: spec and self.known.by_own_names(spec) for unit, spec in self.specs.items()}
        self.alive: dict[str, Item] = {
            key[len(ALIVE) :].decode(): item for key, item in pictures[ALIVE].items.items()
        }
        self.places: dict[tuple[str, str], Item] = {
            names(PLACES, key): item for key, item in pictures[PLACES].items.items()
        }
        self.by_unit: dict[str, list[tuple[str, str]]] = {}
        for machine, unit in self.places:
            self.by_unit.setdefault(unit, []).append((machine, unit))
        self.holders: dict[str, set[str]] = {}
        for key in pictures[STATES].items:
            machine, unit = names(STATES, key)
            if (machine, unit) not in self.places:
                self.holders.setdefault(unit, set()).add(machine)
        self.reacted: dict[bytes, Item] = dict(pictures[REACTED].items)
        self.moves: dict[bytes, Item] = dict(pictures[MOVES].items)
        self.now = now  # Unix time
        self._noted: dict[str, list[Any]] = {}  # the steps of :meth:`moved`
        self.graph = Graph({unit: spec for unit, spec in self.specs.items() if spec is not None})
        self.involved = self.graph.involved
        #: of involved units only: by unit and machine
        self.states: dict[str, dict[str, dict[str, Any]]] = {}
        for key, item in pictures[STATES].items.items() if self.involved else ():
            machine, unit = names(STATES, key)
            if unit in self.involved:
                self.states.setdefault(unit, {})[machine] = json.loads(item.value)
        self.state = Placements()
        for key, item in pictures[MACHINES].items.items():
            machine = key[len(MACHINES) :].decode()
            if machine in self.alive:
                about = json.loads(item.value)
                self.state.machines[machine] = Candidate(
                    machine, about["name"], tuple(sorted(about["metadata"].items())), about.get("engine", True)
                )
        self.alive = {m: item for m, item in self.alive.items() if m in self.state.machines}
        self.state.units = {u: s for u, s in self.specs.items() if s is not None}
        for machine, unit in self.places:
            if machine in self.alive:
                self.state.place(unit, machine)

    # -- what units are to each other -------------------------------------------------------

    def phase_of(self, unit: str, near: str = "") -> Phase:
        """What a unit does; of a global one, what it does on the machine ``near``, if it is there."""
        wanted = self.units[unit]
        machines = [machine for machine, _ in self.by_unit.get(unit, ())]
        states = self.states.get(unit, {})
        spec = self.specs[unit]
        if spec is not None and spec.is_global and near in machines:
            machines, states = [near], {m: state for m, state in states.items() if m == near}
        places = [json.loads(self.places[m, unit].value) for m in machines if (m, unit) in self.places]
        let_go = any(place["launched"] and _run_of(place) == _run_of(wanted) for place in places)
        return dependencies.phase(wanted, let_go, states.values())

    def is_over(self, unit: str) -> bool:
        """Whether a unit ran, and has ended."""
        return any(map(dependencies.is_over, self.states.get(unit, {}).values()))

    def place_value(self, unit: str, machine: str, item: Item | None = None) -> bytes:
        """What a machine is to be told of a unit: also whether it may start, and if not, why."""
        wanted = self.units[unit]
        if unit not in self.involved:
            return _place_value(wanted)
        place = json.loads(item.value) if item is not None else {}
        if item is not None and self.lingers(unit, item):
            return item.value
        if wanted["desired"] != "launched":
            return _place_value(wanted)
        let_go = place.get("launched") and _run_of(place) == _run_of(wanted)
        judge = self.graph.may_stay if let_go else self.graph.may_start
        return _place_value(wanted, judge(unit, lambda other: self.phase_of(other, machine)))

    def lingers(self, unit: str, item: Item) -> bool:
        """Whether a unit that is to stop, or to start anew, must wait for those after it to stop first."""
        if unit not in self.involved or self.units.get(unit) is None:
            return False
        place, wanted = json.loads(item.value), self.units[unit]
        ends = wanted["desired"] != "launched" or _run_of(place) != _run_of(wanted)
        return bool(place["launched"] and ends and self.graph.must_linger(unit, self._stops))

    def _stops(self, unit: str) -> bool:
        """Whether a unit is up and on its way down."""
        wanted = self.units[unit]
        for machine, state in self.states.get(unit, {}).items():
            if state["active"] not in ("active", "activating", "reloading", "deactivating"):
                continue
            place = self.places.get((machine, unit))
            held = place is None or not json.loads(place.value)["launched"]
            if held or wanted["desired"] != "launched" or (state["hash"], state.get("asked", 0)) != _run_of(wanted):
                return True
        return False

    def wanted(self) -> list[str]:
        """Units that shall be placed, in order; followers after what they follow."""
        names = sorted(u for u, w in self.units.items() if w["desired"] != "inactive" and self.specs[u] is not None)
        return sorted(names, key=lambda u: bool(s.machine_of) if (s := self.specs[u]) else False)

    def moved(self, unit: str, machine: str, target: str, why: str) -> list[list[Any]]:
        """What notes that a unit left a machine: the last :data:`MOVES_KEPT` are kept.

        A unit that leaves several machines in one pass has one step for that: a transaction
        writes a key once.
        """
        key = MOVES + unit.encode()
        is_first = unit not in self._noted
        step = self._noted.setdefault(unit, ["put", key, self.moves[key].value if key in self.moves else b"[]"])
        rows = [*json.loads(step[2]), [round(self.now, 3), machine, target, why]]
        step[2] = json.dumps(rows[-MOVES_KEPT:]).encode()
        return [step] if is_first else []

    def unplace(self, machine: str, unit: str) -> None:
        """Take a decision back in this view; the old copy may still be there."""
        del self.places[machine, unit]
        self.state.remove(unit, machine)
        if machine in self.alive:
            self.holders.setdefault(unit, set()).add(machine)


class _Steps:
    """Changes of one pass, each with the conditions under which it holds."""

    def __init__(self) -> None:
        self._groups: list[tuple[list[Any], list[Any]]] = []

    def add(self, conditions: list[Any], changes: list[Any]) -> None:
        if changes:
            self._groups.append((conditions, changes))

    def delete_place(self, machine: str, unit: str, item: Item, *more: list[Any]) -> None:
        """Take a unit off a machine; ``more`` is to change with it."""
        key = _place_key(machine, unit)
        self._groups.append(([[key, "mod", "=", item.mod]], [["delete", key], *more]))

    def update_place(self, machine: str, unit: str, item: Item, value: bytes) -> None:
        key = _place_key(machine, unit)
        self._groups.append(([[key, "mod", "=", item.mod]], [["put", key, value]]))

    def create_place(
        self, machine: str, unit: str, view: _View, instead_of: list[str] | None = None
    ) -> None:
        """Place a unit; ``instead_of`` are lost machines, on which no state may be left."""
        key = _place_key(machine, unit)
        conditions = [
            [key, "version", "=", 0],
            view.known.guard(unit),
            [ALIVE + machine.encode(), "create", "=", view.alive[machine].create],
        ]
        changes: list[Any] = [["put", key, view.place_value(unit, machine)]]
        for lost in instead_of or ():
            old = _place_key(lost, unit)
            conditions.append([old, "mod", "=", view.places[lost, unit].mod])
            conditions.append([STATES + f"{lost}/{unit}".encode(), "version", "=", 0])
            changes.append(["delete", old])
            changes += view.moved(unit, lost, machine, "its machine was lost")
        self._groups.append((conditions, changes))

    def first_batch(self) -> tuple[list[Any], list[Any], bool] | None:
        """Conditions and changes that fit in one transaction, and whether more are left."""
        compares: list[Any] = []
        changes: list[Any] = []
        for position, (conditions, steps) in enumerate(self._groups):
            most = max(len(compares) + len(conditions), len(changes) + len(steps))
            if position and most > TXN_OPERATIONS_MAX:
                return compares, changes, True
            compares += conditions
            changes += steps
        return (compares, changes, False) if changes else None


def _run_of(record: dict[str, Any]) -> tuple[str, int]:
    """Which start of which file a record of a unit, or of its place, is about."""
    return record["hash"], record.get("restarts", 0)


def _place_key(machine: str, unit: str) -> bytes:
    return PLACES + f"{machine}/{unit}".encode()


def _place_value(wanted: dict[str, Any], hold: Hold | None = None) -> bytes:
    value = {
        "content": wanted["content"],
        "hash": wanted["hash"],
        "launched": wanted["desired"] == "launched" and hold is None,
        "restarts": wanted.get("restarts", 0),
    }
    if hold is not None:
        value |= {"hold": hold.reason, "blocked": hold.blocked}
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
