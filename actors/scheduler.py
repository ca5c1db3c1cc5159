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
from fleet import placement, unitfile
from fleet.placement import Candidate, Placements
from fleet.spec import UnitSpec
from kernel.actor import handles
from kernel.stats import Histogram

from .brain_client import ALIVE, MACHINES, PLACES, STATES, UNITS, BrainActor
from .raft_messages import LeaderChanged

logger = logging.getLogger("argosy.scheduler")

#: Seconds to collect changes before a pass.
DEBOUNCE_S = 0.02
#: Machines lost within this many seconds count as lost at once.
BRAKE_WINDOW_S = 30.0
#: Upper bounds in seconds of the histogram of recoveries.
RECOVERY_BOUNDS_S = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 300.0)
#: Seconds between passes while something could not be placed or moved.
RETRY_S = 1.0


class Scheduler(BrainActor):
    """See the module docstring."""

    def __init__(self, raft_ref: Any) -> None:
        super().__init__(raft_ref)
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
        for prefix in (UNITS, MACHINES, ALIVE, PLACES, STATES):
            on_change = self._on_state if prefix == STATES else self._on_change
            self._pictures[prefix] = self.mirror(prefix, lambda items: self._arm(), on_change)

    def _on_change(self, *_: Any) -> None:
        self._arm()

    def _on_state(self, key: bytes, item: Item | None, _: Item | None) -> None:
        """A state: nothing to decide in it, unless it is the end of one or of a move."""
        if item is None:
            self._arm()
            return
        unit = key[len(STATES) :].decode().partition("/")[2]
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
        view = _View(self._pictures, self._spec)
        self._note_losses(view)
        steps = _Steps()
        self._drop_unwanted(view, steps)
        self._update_in_place(view, steps)
        self._place_globals(view, steps)
        self._place_missing(view, steps)
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
                steps.delete_place(machine, unit, item)
                view.unplace(machine, unit)
            elif machine in view.alive:
                spec = view.specs[unit]
                assert spec is not None
                why = placement.refusal(spec, view.state.machines[machine], view.state)
                if why:
                    logger.info("%s leaves %s: %s", unit, machine, why)
                    steps.delete_place(machine, unit, item)
                    view.unplace(machine, unit)
                    self._count("constraint")

    def _update_in_place(self, view: _View, steps: _Steps) -> None:
        for (machine, unit), item in sorted(view.places.items()):
            value = _place_value(view.units[unit])
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
    """The five pictures, read together."""

    def __init__(self, pictures: dict[bytes, Any], spec_of: Any) -> None:
        def names(prefix: bytes, key: bytes) -> tuple[str, str]:
            machine, _, unit = key[len(prefix) :].decode().partition("/")
            return machine, unit

        self.unit_items: dict[str, Item] = {
            key[len(UNITS) :].decode(): item for key, item in pictures[UNITS].items.items()
        }
        self.units: dict[str, dict[str, Any]] = {
            unit: json.loads(item.value) for unit, item in self.unit_items.items()
        }
        self.specs = {unit: spec_of(unit, wanted) for unit, wanted in self.units.items()}
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
        self.state = Placements()
        for key, item in pictures[MACHINES].items.items():
            machine = key[len(MACHINES) :].decode()
            if machine in self.alive:
                about = json.loads(item.value)
                self.state.machines[machine] = Candidate(
                    machine, about["name"], tuple(sorted(about["metadata"].items()))
                )
        self.alive = {m: item for m, item in self.alive.items() if m in self.state.machines}
        self.state.units = {u: s for u, s in self.specs.items() if s is not None}
        for machine, unit in self.places:
            if machine in self.alive:
                self.state.place(unit, machine)

    def wanted(self) -> list[str]:
        """Units that shall be placed, in order; followers after what they follow."""
        names = sorted(u for u, w in self.units.items() if w["desired"] != "inactive" and self.specs[u] is not None)
        return sorted(names, key=lambda u: bool(s.machine_of) if (s := self.specs[u]) else False)

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

    def delete_place(self, machine: str, unit: str, item: Item) -> None:
        key = _place_key(machine, unit)
        self._groups.append(([[key, "mod", "=", item.mod]], [["delete", key]]))

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
            [UNITS + unit.encode(), "mod", "=", view.unit_items[unit].mod],
            [ALIVE + machine.encode(), "create", "=", view.alive[machine].create],
        ]
        changes: list[Any] = [["put", key, _place_value(view.units[unit])]]
        for lost in instead_of or ():
            old = _place_key(lost, unit)
            conditions.append([old, "mod", "=", view.places[lost, unit].mod])
            conditions.append([STATES + f"{lost}/{unit}".encode(), "version", "=", 0])
            changes.append(["delete", old])
        self._groups.append((conditions, changes))

    def first_batch(self) -> tuple[list[Any], list[Any], bool] | None:
        """Conditions and changes that fit in one transaction, and whether more are left."""
        compares: list[Any] = []
        changes: list[Any] = []
        for position, (conditions, steps) in enumerate(self._groups):
            if len(changes) + len(steps) > TXN_OPERATIONS_MAX - 8:
                return compares, changes, position < len(self._groups)
            compares += conditions
            changes += steps
        return (compares, changes, False) if changes else None


def _place_key(machine: str, unit: str) -> bytes:
    return PLACES + f"{machine}/{unit}".encode()


def _place_value(wanted: dict[str, Any]) -> bytes:
    value = {
        "content": wanted["content"],
        "hash": wanted["hash"],
        "launched": wanted["desired"] == "launched",
        "restarts": wanted.get("restarts", 0),
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
