"""Rollouts: new versions of units, beside the Raft leader, one look after another.

What to do next is decided by ``fleet/rollout.py``; this actor reads what is true, asks it, and
writes the answer in a transaction that holds only while its host leads in the same term and
nobody has changed the same units.  All that it knows is stored, so the next leader goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from brain.kv import TXN_OPERATIONS_MAX
from brain.store import Item
from fleet import dependencies, names, rollout
from fleet.rollout import Phase, Target
from kernel.ports import Ports

from .beside_leader import BesideLeader
from .brain_client import PLACES, ROLLOUTS, STATES, UNITS, VERSIONS, to_json
from .picture import machine_and_unit, run_of, runs_well, wanted_on
from .wanted import Known

logger = logging.getLogger("argosy.rollouts")

#: Seconds between looks while a rollout is under way, and to collect changes before one.
LOOK_S, DEBOUNCE_S = 1.0, 0.05
#: Versions of a unit that are kept, the newest last; and rollouts that are over.
VERSIONS_KEPT = 10
#: Targets that one look changes.
CHANGES_MAX = (TXN_OPERATIONS_MAX - 10) // 2


class Rollouts(BesideLeader):
    """See the module docstring."""

    PREFIXES = (ROLLOUTS, UNITS, STATES, PLACES, VERSIONS)

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(ports, raft_ref)
        self._armed = False
        self._last = ""  # whose turn it was: the others come first next time

    def on_start(self) -> None:
        """Wait for leadership; look again from time to time while something is under way."""
        super().on_start()
        self.every(LOOK_S, self._again)

    def on_picture(self) -> None:
        """A rollout may be under way."""
        self._arm()

    def on_change(self, key: bytes, item: Item | None, before: Item | None) -> None:
        """Of consequence for rollouts that are under way, and for what is kept of units that are destroyed."""
        if self._under_way() or (item is None and key.startswith(UNITS)):
            self._arm()

    def _again(self) -> None:
        if self._under_way():
            self._arm()

    def _under_way(self) -> list[tuple[str, Item, dict[str, Any]]]:
        """(name, item, record) of each rollout that is not over."""
        found = []
        for key, item in sorted(self.items(ROLLOUTS).items()):
            record = json.loads(item.value)
            if not Phase(record["phase"]).is_over:
                found.append((key[len(ROLLOUTS) :].decode(), item, record))
        return found

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self.after(DEBOUNCE_S, self._look)

    def _look(self) -> None:
        self._armed = False
        if not self.may_decide:
            return
        if self._forget_destroyed():
            return
        waiting = self._under_way()
        for name, item, record in sorted(waiting, key=lambda one: (one[0] <= self._last, one[0])):
            if self._advance(name, item, record):
                self._last = name
                return  # the others when that is written

    def _forget_destroyed(self) -> bool:
        """Versions and rollouts go with their units, and what ran beside them; whether there were any."""
        units = self.items(UNITS)
        for key, item in self.items(ROLLOUTS).items():
            name = key[len(ROLLOUTS) :].decode()
            beside = [UNITS + unit.encode() for unit in surge_names(name, json.loads(item.value))]
            left = [unit for unit in beside if unit in units]
            if left and UNITS + name.encode() not in units:
                self._commit([[unit, "mod", "=", units[unit].mod] for unit in left], [["delete", unit] for unit in left])
                return True
        gone = [
            (key, item.mod) for prefix in (ROLLOUTS, VERSIONS) for key, item in self.items(prefix).items()
            if UNITS + key[len(prefix) :] not in units
        ][:CHANGES_MAX]  # fmt: skip
        if gone:
            guards = [[UNITS + key.rpartition(b"/")[2], "version", "=", 0] for key, _ in gone]
            self._commit([*guards, *([key, "mod", "=", mod] for key, mod in gone)], [["delete", key] for key, _ in gone])
        return bool(gone)

    # -- one rollout -------------------------------------------------------------------------

    def _advance(self, name: str, item: Item, record: dict[str, Any]) -> bool:
        """Take a rollout further; whether anything was written."""
        known = Known(self.items(UNITS))
        targets = dict(self._targets(known, name, record))
        record = {**record, "targets": sorted(targets)}
        beside = {u: self._target(known[u][0], u) for u in surge_names(name, record) if u in known}
        step = rollout.step(record, targets, self._ports.clock.wall(), beside)
        step.change = step.change[:CHANGES_MAX]
        guards, edits = self._edits(known, name, step)
        value = to_json(step.record)
        if value == item.value and not edits:
            return False
        if step.record["phase"] != record["phase"]:
            logger.info("rollout of %s: %s: %s", name, step.record["phase"], step.record["reason"])
        key = ROLLOUTS + name.encode()
        self._commit([[key, "mod", "=", item.mod], *guards], [["put", key, value], *edits])
        return True

    def _targets(self, known: Known, name: str, record: dict[str, Any]) -> Iterator[tuple[str, Target]]:
        if record["kind"] == "global":
            for key in self.items(PLACES):
                machine, unit = machine_and_unit(PLACES, key)
                if unit == name:
                    yield machine, self._target(known[name][0], name, machine)
            return
        for unit in instances(known, name) if record["kind"] == "template" else [name]:
            yield unit, self._target(known[unit][0], unit)

    def _target(self, wanted: dict[str, Any], unit: str, machine: str = "") -> Target:
        if machine:
            wanted = wanted_on(wanted, machine)
        if wanted["desired"] != "launched":
            return Target(wanted["hash"], True)
        tail = b"/" + unit.encode()
        states = [
            json.loads(item.value) for key, item in self.items(STATES).items()
            if key.endswith(tail) and (not machine or key == STATES + machine.encode() + tail)
        ]  # fmt: skip
        for state in states:
            if (state["hash"], state.get("asked", 0)) != run_of(wanted):
                continue
            well = runs_well(state, wanted) and (b"HealthCheck=" not in wanted["content"].encode() or _passes(state))
            detail = state.get("problem") or state.get("health_detail") or state.get("last_exit") or ""
            reason = f"{state['active']} ({state['sub']})" + (f", {detail}" if detail else "")
            failed = state["active"] == "failed"
            return Target(wanted["hash"], well, failed, f"{state['result']}, {detail}" if failed else reason, state["since"])
        return Target(wanted["hash"], False, reason="it has not started")

    def _edits(self, known: Known, name: str, step: rollout.Step) -> tuple[list[Any], list[Any]]:
        """What a step means for what is stored of units."""
        record = step.record
        contents = self._contents(known, name)
        guards: list[Any] = []
        edits: list[Any] = []

        def put(unit: str, value: dict[str, Any]) -> None:
            guards.append(known.guard(unit))
            edits.append(["put", UNITS + unit.encode(), to_json(value)])

        over = Phase(record["phase"]).is_over
        if record["kind"] == "global":
            wanted = known[name][0]
            changed = _global(wanted, record, step, contents, over)
            if changed != wanted:
                put(name, changed)
        else:
            for unit in step.change:
                put(unit, {**known[unit][0], "hash": step.version, "content": contents[step.version]})
            for unit in step.restart:
                put(unit, {**known[unit][0], "restarts": known[unit][0].get("restarts", 0) + 1})
            if over and record["phase"] == Phase.DONE and record["kind"] == "template":
                stored = known[name][0]
                if stored["hash"] == record["from"]:  # else an operator gave it another file meanwhile
                    put(name, {**stored, "hash": record["to"], "content": contents[record["to"]]})
        for unit in surge_names(name, record):
            if step.surge and unit not in known:
                put(unit, {"content": contents[record["to"]], "hash": record["to"], "desired": "launched", "restarts": 0})
            elif not step.surge and unit in known:
                guards.append(known.guard(unit))
                edits.append(["delete", UNITS + unit.encode()])
        if over:
            edits.append(["put", VERSIONS + name.encode(), self._judged(name, record)])
        return guards, edits

    def _contents(self, known: Known, name: str) -> dict[str, str]:
        found = {version["hash"]: version["content"] for version in self._versions(name)}
        return {**found, known[name][0]["hash"]: known[name][0]["content"]}

    def _versions(self, name: str) -> list[dict[str, Any]]:
        return versions(self.items(VERSIONS).get(VERSIONS + name.encode()))

    def _judged(self, name: str, record: dict[str, Any]) -> bytes:
        """The versions, with what came of the newest one."""
        listed = self._versions(name)
        verdict = "good" if record["phase"] == Phase.DONE and not record["failed"] else "bad"
        for version in listed:
            if version["hash"] == record["to"]:
                version["verdict"] = verdict
        return to_json(listed)

    def _commit(self, compares: list[Any], changes: list[Any]) -> None:
        def done(_: Any, error: BaseException | None) -> None:
            if error is not None:
                logger.info("a step of a rollout was not written: %s", error)
                return  # the next look tries again
            self._arm()

        self.decide(compares, changes, done)


def _passes(state: dict[str, Any]) -> bool:
    return state["health"] == "passing" or dependencies.is_over(state)


def _global(
    wanted: dict[str, Any], record: dict[str, Any], step: rollout.Step, contents: dict[str, str], over: bool
) -> dict[str, Any]:
    """A global unit's record: its next version, and the machines that have it already."""
    if over:
        final = record["to"] if record["phase"] == Phase.DONE else record["from"]
        return {**{k: v for k, v in wanted.items() if k != "next"}, "hash": final, "content": contents[final]}
    following = wanted.get("next") or {"hash": record["to"], "content": contents[record["to"]], "machines": []}
    machines = set(following["machines"])
    machines = machines | set(step.change) if step.version == record["to"] else machines - set(step.change)
    return {**wanted, "next": {**following, "machines": sorted(machines)}}


def instances(known: Known, template: str) -> list[str]:
    """Units that were made from a template, without those that run beside an update."""
    return sorted(
        unit for unit in known
        if (parsed := names.parse(unit)).template == template and not parsed.instance.startswith("surge-")
    )  # fmt: skip


def surge_names(template: str, record: dict[str, Any]) -> list[str]:
    """Instances that run beside those that are changed (start-first)."""
    parsed = names.parse(template)
    return [f"{parsed.prefix}@surge-{n}{parsed.suffix}" for n in range(1, record["surge"] + 1)]


def versions(item: Item | None) -> list[dict[str, Any]]:
    """Versions of a unit that are kept, the newest last: hash, content, at, verdict."""
    listed: list[dict[str, Any]] = json.loads(item.value) if item is not None else []
    return listed
