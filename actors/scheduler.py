"""The scheduler: decides where units run, beside the Raft leader.

Every host has one; only the one on the leader acts.  It mirrors what is wanted (units),
what is there (machines, leases), what was decided (places) and what is true (states), and
brings the decisions in line, in transactions that hold only while its host leads in the
same term and while what it saw is still so.  Level-triggered: a lost event costs nothing.
A pass looks at units that something happened to, and at those that wait: what it costs does
not grow with the fleet.

Never two copies: a unit is placed elsewhere only in a transaction that finds no state of
it on any other machine; a machine writes that state before it starts the unit and removes
it after it has ended, and the lease removes it for a machine that is lost.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Iterator
from typing import Any

from brain.kv import TXN_OPERATIONS_MAX
from brain.store import Item
from fleet import dependencies, placement, syntax, unitfile
from fleet.dependencies import Phase
from fleet.spec import UnitSpec
from kernel.ports import Ports
from kernel.stats import Histogram

from .beside_leader import BesideLeader
from .brain_client import (
    ALIVE,
    DONE,
    MACHINES,
    MOVES,
    ORDERS,
    PLACES,
    REACTED,
    REBALANCE,
    STATES,
    UNITS,
    to_json,
)
from .picture import FAILED_THERE, LOST, View, is_job, place_key, run_of, runs_well
from .wanted import start

logger = logging.getLogger("argosy.scheduler")

#: Seconds to collect changes before a pass.
DEBOUNCE_S = 0.02
#: Machines lost within this many seconds count as lost at once.
BRAKE_WINDOW_S = 30.0
#: Upper bounds in seconds of the histogram of recoveries.
RECOVERY_BOUNDS_S = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 300.0)
#: Seconds between two starts of a unit that another upholds.
UPHOLD_S = 5.0
#: Failures of a unit that count against Reschedule=, and how long it waits: doubled with each, up to a most.
RESCHEDULE_WINDOW_S, RESCHEDULE_S, RESCHEDULE_S_MAX = 3600.0, 5.0, 300.0
#: Seconds between passes while something could not be placed or moved.
RETRY_S = 1.0
#: Units that one pass looks at; the others have their turn in the next.
PASS_UNITS_MAX = 2_000
#: Units that found no machine and are tried again in one pass: by so many comparisons, and within these bounds.
RETRY_COMPARISONS, RETRY_MIN, RETRY_MAX = 50_000, 50, 2_000


class Scheduler(BesideLeader):
    """See the module docstring."""

    PREFIXES = (UNITS, MACHINES, ALIVE, PLACES, STATES, REACTED, MOVES, ORDERS, DONE, REBALANCE)

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(ports, raft_ref)
        self._armed = False
        self._view: View | None = None
        self._specs: dict[str, tuple[str, UnitSpec | None]] = {}  # by unit: its file's hash, and what that says
        self._due: dict[str, None] = {}  # units that are to be looked at
        self._waiting: set[str] = set()  # units that wait for time to pass
        self._lost_at: dict[str, float] = {}
        self.braking = False
        #: units that were not placed, each with a reason; every machine's is told by the operators' verbs
        self.unplaced: dict[str, str] = {}
        #: why units are still on machines that they are to leave
        self.staying: dict[str, str] = {}
        self._moving: dict[str, float] = {}  # unit -> when its machine was found lost
        #: units whose state is of consequence, to others or for what is to be decided next
        self._involved: set[str] = set()
        self._draining = False  # then every state is
        self._later = False  # something else waits for time to pass
        self._globals_due = False
        self._freed = False  # something changed that may let in what found no machine
        self._first_retried = 0
        self._upheld: dict[str, float] = {}  # when a unit was started because another upholds it
        self.recovery_seconds = Histogram(RECOVERY_BOUNDS_S)
        self.placements = 0
        self.reschedules: dict[str, int] = {}

    def on_start(self) -> None:
        """Wait for leadership; look again at what waits for time to pass."""
        super().on_start()
        self.every(RETRY_S, self._retry)

    def on_lead(self) -> None:
        """Another leader's losses and moves are not ours."""
        self._lost_at, self._moving, self.unplaced, self.braking = {}, {}, {}, False
        self._view, self._due, self._waiting = None, {}, set()

    def on_picture(self) -> None:
        """There may be something to decide, of everything."""
        self._view = None
        self._arm()

    def on_change(self, key: bytes, item: Item | None, before: Item | None) -> None:
        """There may be something to decide; in a state only if it ends, or ends a move, or others depend on it."""
        touched = self._view.update(key) if self._view is not None else set()
        if touched is None:
            self._view = None
        if not key.startswith(STATES):
            if key.startswith((MACHINES, ALIVE, ORDERS)):
                self._globals_due = self._freed = True
            elif item is None and key.startswith(PLACES):
                self._freed = True
            self._due.update(dict.fromkeys(touched or ()))
            self._arm()
            return
        unit = key[len(STATES) :].decode().partition("/")[2]
        if item is None or self._draining or unit in self._involved:
            self._freed = self._freed or item is None
            self._due[unit] = None
            self._arm()
        if item is None:
            return
        if unit in self._moving:
            state = json.loads(item.value)
            if state["active"] == "active" and state["health"] != "failing":
                self.recovery_seconds.observe(self.now() - self._moving.pop(unit))

    def _retry(self) -> None:
        if self.active and (self.unplaced or self._lost_at or self._later or self._waiting or not self._pictures):
            self._freed = True
            self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self.after(DEBOUNCE_S, self._pass)

    # -- one pass ------------------------------------------------------------------------

    def _pass(self) -> None:
        self._armed = False
        if not self.may_decide:
            return
        view = self._look()
        units = self._turn(view)
        self._later = False
        self._note_losses(view)
        steps = _Steps()
        self._drop_unwanted(view, steps, units)
        self._drain(view, steps)
        self._rebalance(view, steps)
        self._leave_failed(view, steps, units)
        self._update_in_place(view, steps, units)
        self._place_globals(view, steps, units)
        self._place_missing(view, steps, units)
        self._react(view, steps)
        self._finish_jobs(view, steps, units)
        self._forget_destroyed(view, steps, units)
        self._involved = view.involved | view.watched
        self._commit(steps, units)

    def _look(self) -> View:
        """What is stored, as it is now."""
        now = self._ports.clock.wall()
        if self._view is None:
            self._view = View(self.items, self._spec, now)
            self._specs = {unit: known for unit, known in self._specs.items() if unit in self._view.units}
            self._due = dict.fromkeys([*self._view.units, *self._view.by_unit, *self._view.remembered()])
            self.unplaced = {}
            self._globals_due = self._freed = True
        self._view.begin(now)
        return self._view

    def _turn(self, view: View) -> list[str]:
        """The units of this pass: those whose turn it is, and those that are looked at in every one."""
        if self._freed:
            self._freed = False
            again = [unit for unit in view.wanted(self.unplaced) if unit not in self._due]
            most = min(max(RETRY_COMPARISONS // max(1, len(view.alive)), RETRY_MIN), RETRY_MAX)
            if len(again) > most:  # the most important ones, and others in turn
                first = self._first_retried % len(again)
                self._first_retried += most // 2
                again = again[: most // 2] + (again[first:] + again[:first])[: most // 2]
            self._due.update(dict.fromkeys([*again, *sorted(self._waiting)]))
            self._waiting = set()
        units = set(self._due)
        if len(units) > PASS_UNITS_MAX:
            units = set(heapq.nlargest(PASS_UNITS_MAX, self._due, key=view.importance))
        for unit in units:
            del self._due[unit]
            if unit not in view.units:
                self._specs.pop(unit, None)
        return sorted(units | view.involved | view.followers)

    def _spec(self, unit: str, wanted: dict[str, Any]) -> UnitSpec | None:
        known = self._specs.get(unit)
        if known is None or known[0] != wanted["hash"]:
            try:
                spec = unitfile.load(unit, wanted["content"])[0]
            except ValueError:
                spec = None
            known = self._specs[unit] = wanted["hash"], spec
        return known[1]

    def _note_losses(self, view: View) -> None:
        """Which machines are lost, since when, and whether too many went at once."""
        now = self.now()
        lost = {m for m in view.by_machine if m not in view.alive and view.has_place(m)}
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

    def _drop_unwanted(self, view: View, steps: _Steps, units: list[str]) -> None:
        for (machine, unit), item in view.places_of(units):
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
                    self._leave(view, steps, unit, machine, why, "constraint")

    def _leave(self, view: View, steps: _Steps, unit: str, machine: str, why: str, reason: str) -> None:
        """Take a unit off a machine that lives; once it has ended there it is placed elsewhere."""
        logger.info("%s leaves %s: %s", unit, view.state.machines[machine].name, why)
        steps.delete_place(machine, unit, view.places[machine, unit], *view.moved(unit, machine, "", why))
        view.unplace(machine, unit)
        self._count(reason)

    # -- machines that are emptied, and units that are better off elsewhere -----------------------

    def _drain(self, view: View, steps: _Steps) -> None:
        """Units leave machines that are drained: as many at once as their templates allow, global ones last.

        A unit that can run nowhere else stays until the deadline, then it is stopped.
        """
        self._draining = any(machine.draining for machine in view.state.machines.values())
        self.staying = {}
        for machine in sorted(m for m, c in view.state.machines.items() if c.draining):
            drain = view.order(machine)["drain"]
            is_late = view.now >= drain["deadline"]
            here = sorted(view.state.on.get(machine, ()))
            movable = [unit for unit in here if (s := view.specs.get(unit)) is not None and not s.is_global]
            self._later = self._later or bool(movable)
            for unit in movable:
                why = "" if is_late else self._must_stay(view, unit, machine)
                if why:
                    self.staying[unit] = why
                    continue
                told = f"its machine is drained ({drain['reason']})" if drain["reason"] else "its machine is drained"
                self._leave(view, steps, unit, machine, told, "drain")
            leaving = view.state.leaving.get(machine, set())
            if not movable and not any((s := view.specs.get(u)) is None or not s.is_global for u in leaving):
                for unit in here:
                    steps.delete_place(machine, unit, view.places[machine, unit])
                    view.unplace(machine, unit)

    def _must_stay(self, view: View, unit: str, machine: str) -> str:
        """Why a unit may not leave a machine yet that it is to leave; empty if it may."""
        spec = view.specs[unit]
        assert spec is not None
        if view.units[unit]["desired"] == "launched" and view.is_well(unit):
            down = [other for other in view.kin(unit) if other != unit and not view.is_well(other)]
            if len(down) >= spec.max_unavailable and spec.name.template:
                return f"MaxUnavailable={spec.max_unavailable}: {', '.join(down[:3])} must run first"
        view.unassume(unit, machine)
        target, refusals = placement.choose(spec, view.state)
        view.assume(unit, target if target and target != machine else machine)
        if not target or target == machine:
            return "no other machine qualifies: " + "; ".join(sorted(set(refusals.values()))[:3])
        return ""

    def _rebalance(self, view: View, steps: _Steps) -> None:
        """An operator's plan to even machines out, so many moves a minute as were asked for."""
        item = self.items(REBALANCE).get(REBALANCE)
        if item is None:
            return
        plan = json.loads(item.value)
        self._later = True
        if view.now < plan["next"]:
            return
        left = plan["moves"]
        while left:
            unit, machine = left[0][:2]
            if (machine, unit) in view.places and machine in view.alive and view.specs.get(unit) is not None:
                break
            left = left[1:]
        if left:
            unit, machine = left[0][:2]
            why = self._must_stay(view, unit, machine)
            if why.startswith("MaxUnavailable"):
                return
            if not why:
                self._leave(view, steps, unit, machine, "rebalanced", "rebalance")
            left = left[1:]
        plan |= {"moves": left, "next": round(view.now + 60.0 / plan["per_minute"], 3)}
        change = ["put", REBALANCE, to_json(plan)] if left else ["delete", REBALANCE]
        steps.add([[REBALANCE, "mod", "=", item.mod]], [change])

    def _leave_failed(self, view: View, steps: _Steps, units: list[str]) -> None:
        """Reschedule=: a unit that has failed for good is tried on another machine, after a while."""
        for unit in view.wanted(view.watched.intersection(units)):
            spec = view.specs[unit]
            if spec is None or not spec.reschedule or view.units[unit]["desired"] != "launched":
                continue
            for machine, state in sorted(view.states(unit).items()):
                is_current = (state["hash"], state.get("asked", 0)) == run_of(view.units[unit])
                if state["active"] != "failed" or not is_current or (machine, unit) not in view.places:
                    continue
                if machine not in view.alive or spec.is_global:
                    continue
                failures = view.failures(unit, RESCHEDULE_WINDOW_S)
                pause = min(RESCHEDULE_S * 2 ** len(failures), RESCHEDULE_S_MAX)
                if len(failures) >= spec.reschedule:
                    continue
                if view.now < state["since"] + pause:
                    self._waiting.add(unit)
                    continue
                view.state.failed_on.setdefault(unit, set()).add(machine)
                if self._must_stay(view, unit, machine):
                    self._waiting.add(unit)
                else:
                    self._leave(view, steps, unit, machine, f"{FAILED_THERE}: {state['result']}", "failed")

    def _update_in_place(self, view: View, steps: _Steps, units: list[str]) -> None:
        for (machine, unit), item in view.places_of(units):
            if machine not in view.alive:
                continue  # nobody is there to be told; the place moves, or waits
            value = view.place_value(unit, machine, item)
            if item.value != value:
                steps.update_place(machine, unit, item, value)

    def _place_globals(self, view: View, steps: _Steps, units: list[str]) -> None:
        due, self._globals_due = self._globals_due, False
        for unit in view.wanted(view.globals if due else view.globals.intersection(units)):
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
                view.assume(unit, machine)
                self.placements += 1
            for machine in [m for m, _ in view.by_unit.get(unit, ()) if (m, unit) in view.places and m not in view.alive]:
                if not self.braking:
                    steps.delete_place(machine, unit, view.places[machine, unit])

    def _place_missing(self, view: View, steps: _Steps, units: list[str]) -> None:
        unplaced = self.unplaced
        for unit in units:
            unplaced.pop(unit, None)
        for unit in view.wanted(units):
            spec = view.specs[unit]
            if spec is None or spec.is_global:
                continue
            places = [m for m, u in view.by_unit.get(unit, ()) if (m, u) in view.places]
            alive = sorted(machine for machine in places if machine in view.alive)
            for machine in alive[1:]:  # it was a global unit before
                self._leave(view, steps, unit, machine, "it runs once from now on", "constraint")
            if alive:
                continue
            if view.done_run(unit) is not None:  # nor is it run again by a machine that comes back
                for machine in places if unit not in view.holders else ():
                    steps.delete_place(machine, unit, view.places[machine, unit])
                continue
            if places and self.braking:
                unplaced[unit] = "more than half of the machines were lost at once: held"
                continue
            known = [m for m in places if MACHINES + m.encode() in self.items(MACHINES)]
            left = max((self._lost_at.get(m, self.now()) for m in known), default=0.0) + spec.lost_after - self.now()
            if known and left > 0:
                unplaced[unit] = f"the machine is lost; LostAfter= gives it {left:.0f} s more"
                continue
            holders = view.holders.get(unit, set())
            if holders:  # an old copy is still ending
                unplaced[unit] = "the unit is still ending elsewhere"
                continue
            target, refusals = placement.choose(spec, view.state)
            if not target:
                unplaced[unit] = next(iter(refusals.values()), "no machine is alive")
                self._make_room(view, steps, unit, spec)
                continue
            steps.create_place(target, unit, view, places)
            for machine in places:
                self._count("machine-lost")
                self._moving.setdefault(unit, self._lost_at.get(machine, self.now()))
            view.assume(unit, target)
            self.placements += 1
            self._replace(view, steps, unit, spec, target)

    def _make_room(self, view: View, steps: _Steps, unit: str, spec: UnitSpec) -> None:
        """Units of lower Priority= leave a machine for one that finds no room; it is placed when they have ended."""
        target, victims = placement.preempt(spec, view.state)
        if not all((target, victim) in view.places and victim in view.units for victim in victims):
            return  # one of them was placed in this very pass: the next one sees it
        for victim in victims:
            why = f"makes room for {unit}, whose Priority= is higher"
            self._leave(view, steps, victim, target, why, "preempted")
        if target:
            view.assume(unit, target)  # what is free there, now or soon, is not for those of lower priority
            view.state.where.pop(unit, None)

    def _replace(self, view: View, steps: _Steps, unit: str, spec: UnitSpec, target: str) -> None:
        """Replaces=: those that it names leave the machine that the unit was given."""
        for other in sorted(view.state.on.get(target, ())):
            if other != unit and spec.replaces and placement.matching(spec.replaces, other):
                if (target, other) in view.places and view.units.get(other) is not None:
                    self._leave(view, steps, other, target, f"{unit} replaces it here", "replaced")

    # -- what units are to each other -----------------------------------------------------

    def _react(self, view: View, steps: _Steps) -> None:
        """OnFailure=, OnSuccess= and Upholds=: each end of a unit is acted on once, also by the next leader."""
        for unit in sorted(view.involved):
            spec, wanted = view.specs.get(unit), view.units.get(unit)
            if spec is None or wanted is None:
                continue
            if spec.related.get("OnFailure") or spec.related.get("OnSuccess"):
                self._react_to_end(view, steps, unit, spec, wanted)
            if spec.related.get("Upholds") and view.phase_of(unit) in (Phase.UP, Phase.UNWELL):
                self._uphold(view, steps, spec.related["Upholds"])

    def _finish_jobs(self, view: View, steps: _Steps, units: list[str]) -> None:
        """A oneshot that has done its work is not run again when its machine is lost; RemoveAfter= destroys it."""
        for unit in sorted(view.watched.intersection(units)):
            spec, wanted = view.specs[unit], view.units[unit]
            if spec is None or not is_job(spec) or wanted["desired"] != "launched":
                continue
            done = view.done_run(unit)
            if done is None:
                ended = [(m, s) for m, s in view.states(unit).items() if dependencies.is_over(s) and runs_well(s, wanted)]
                if ended:
                    machine, state = min(ended)
                    done = {"run": list(run_of(wanted)), "at": state["since"], "machine": machine}
                    key = DONE + unit.encode()
                    value = to_json(done)
                    known = view.done.get(key)
                    steps.add([[key, "mod", "=", known.mod if known is not None else 0], view.known.guard(unit)],
                              [["put", key, value]])  # fmt: skip
            elif view.now >= done["at"] + spec.remove_after:
                logger.info("%s has done its work and is destroyed (RemoveAfter=)", unit)
                steps.add([view.known.guard(unit)], [["delete", UNITS + unit.encode()]])
            elif spec.remove_after != syntax.INFINITY:
                self._waiting.add(unit)

    def _forget_destroyed(self, view: View, steps: _Steps, units: list[str]) -> None:
        """What is kept of units goes with them."""
        for unit in units:
            if unit in view.units:
                continue
            for prefix, kept in ((REACTED, view.reacted), (MOVES, view.moves), (DONE, view.done)):
                item = kept.get(prefix + unit.encode())
                if item is not None:
                    steps.add([[prefix + unit.encode(), "mod", "=", item.mod]], [["delete", prefix + unit.encode()]])

    def _react_to_end(
        self, view: View, steps: _Steps, unit: str, spec: UnitSpec, wanted: dict[str, Any]
    ) -> None:
        key = REACTED + unit.encode()
        item = view.reacted.get(key)
        seen = json.loads(item.value) if item is not None else {}
        changed = dict(seen)
        compares: list[Any] = [[key, "mod", "=", item.mod if item is not None else 0]]
        changes: list[Any] = []
        for machine, state in sorted(view.states(unit).items()):
            ended = [state["fence"], state.get("asked", 0), state["since"]]
            what = dependencies.outcome(wanted, state)
            if not spec.related.get(what) or seen.get(machine) == ended:
                continue
            changed[machine] = ended
            for target in spec.related[what]:
                logger.info("%s has ended: %s=%s", unit, what, target)
                guards, edits = start(view.known, target, view.is_over)
                fresh = [edit for edit in edits if edit[1] not in {change[1] for change in changes}]
                compares += guards
                changes += fresh
        if changed != seen:
            kept = {m: end for m, end in changed.items() if m in view.states(unit)}
            steps.add(compares, [["put", key, to_json(kept)], *changes])

    def _uphold(self, view: View, steps: _Steps, others: list[str]) -> None:
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

    def _commit(self, steps: _Steps, units: list[str]) -> None:
        """Write what was decided, one transaction after the other; what did not hold is looked at again."""
        batches = steps.batches()

        def write() -> None:
            batch = next(batches, None)
            if batch is not None:
                self.decide(*batch, done)
            elif self._due:
                self._arm()

        def done(result: Any, error: BaseException | None) -> None:
            if error is None and result["succeeded"]:
                write()
                return
            self._due.update(dict.fromkeys(units))
            self._globals_due = self._freed = True
            if error is not None:
                logger.info("placements were not written: %s", error)
                self.after(0.2, self._arm)
            else:
                self._arm()

        write()


class _Steps:
    """Changes of one pass, each with the conditions under which it holds."""

    def __init__(self) -> None:
        self._groups: list[tuple[list[Any], list[Any]]] = []

    def add(self, conditions: list[Any], changes: list[Any]) -> None:
        if changes:
            self._groups.append((conditions, changes))

    def delete_place(self, machine: str, unit: str, item: Item, *more: list[Any]) -> None:
        """Take a unit off a machine; ``more`` is to change with it."""
        key = place_key(machine, unit)
        self._groups.append(([[key, "mod", "=", item.mod]], [["delete", key], *more]))

    def update_place(self, machine: str, unit: str, item: Item, value: bytes) -> None:
        key = place_key(machine, unit)
        self._groups.append(([[key, "mod", "=", item.mod]], [["put", key, value]]))

    def create_place(
        self, machine: str, unit: str, view: View, instead_of: list[str] | None = None
    ) -> None:
        """Place a unit; ``instead_of`` are lost machines, on which no state may be left."""
        key = place_key(machine, unit)
        conditions = [
            [key, "version", "=", 0],
            view.known.guard(unit),
            [ALIVE + machine.encode(), "create", "=", view.alive[machine].create],
        ]
        changes: list[Any] = [["put", key, view.place_value(unit, machine)]]
        for lost in instead_of or ():
            old = place_key(lost, unit)
            conditions.append([old, "mod", "=", view.places[lost, unit].mod])
            conditions.append([STATES + f"{lost}/{unit}".encode(), "version", "=", 0])
            changes.append(["delete", old])
            changes += view.moved(unit, lost, machine, LOST)
        self._groups.append((conditions, changes))

    def batches(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Conditions and changes of one transaction after the other."""
        compares: list[Any] = []
        changes: list[Any] = []
        written: set[bytes] = set()  # a transaction writes a key once: what comes later goes into the next
        for conditions, steps in self._groups:
            if max(len(conditions), len(steps)) > TXN_OPERATIONS_MAX:
                logger.error("a decision of more than %d steps cannot be written; it begins with %s", TXN_OPERATIONS_MAX, steps[0][:2])
                continue
            fresh = [condition for condition in conditions if condition not in compares]
            most = max(len(compares) + len(fresh), len(changes) + len(steps))
            keys = {step[1] for step in steps}
            if changes and (most > TXN_OPERATIONS_MAX or keys & written):
                yield compares, changes
                compares, changes, written, fresh = [], [], set(), conditions
            compares += fresh
            changes += steps
            written |= keys
        if changes:
            yield compares, changes
