"""The keeper of timers: starts services when their timers elapse, beside the Raft leader.

Every host has one; only the one on the leader acts.  An elapse is acted on in one transaction
that holds only while its host leads, while the timer's record is as it was seen and while the
service is: so each fires once in the whole cluster, also when the leader changes in between.
Nothing is written between two elapses.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from brain.store import Item
from fleet import timer, unitfile
from fleet.dependencies import is_over
from fleet.timer import Record, Target, TimerSpec
from kernel.actor import Timer
from kernel.ports import Ports

from .beside_leader import BesideLeader
from .brain_client import STATES, TIMERS, UNITS, to_json
from .wanted import Known, start

logger = logging.getLogger("argosy.timers")

#: Longest time (seconds) between two looks: the wall clock may be set.
LOOK_S_MAX = 30.0
#: Seconds after which what could not be written is tried again.
RETRY_S = 0.5
#: Times that are kept of the services, by unit: (active since, inactive since).
_BUSY = ("active", "activating", "reloading", "deactivating")


class Timers(BesideLeader):
    """See the module docstring."""

    PREFIXES = (UNITS, TIMERS, STATES)

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(ports, raft_ref)
        self._specs: dict[tuple[str, str], TimerSpec | None] = {}
        self._next: Timer | None = None
        self._names: set[str] = set()  # of timers that are stored
        self._targets: set[str] = set()  # units that started timers start
        self._said: dict[str, set[bytes]] = {}  # keys of states, by unit
        self.fired = 0

    def on_picture(self) -> None:
        """A timer may be due."""
        self._names, self._said = set(), {}
        for prefix in (UNITS, STATES):
            for key in self.items(prefix):
                self._note(key, True)
        self._arm(0.0)

    def on_change(self, key: bytes, item: Item | None, before: Item | None) -> None:
        """A timer may be due, if there is any that this is about."""
        unit = self._note(key, item is not None)
        if unit in self._targets or unit.endswith(".timer"):
            self._arm(0.0)

    def _note(self, key: bytes, is_there: bool) -> str:
        """Keep what is asked for by name; the unit that a key is about."""
        unit = key.rpartition(b"/")[2].decode()
        if key.startswith(STATES):
            keys = self._said.setdefault(unit, set())
            (keys.add if is_there else keys.discard)(key)
            if not keys:
                del self._said[unit]
        elif key.startswith(UNITS) and unit.endswith(".timer"):
            (self._names.add if is_there else self._names.discard)(unit)
        return unit

    def _started(self) -> bool:
        return bool(self.items(TIMERS))

    def _arm(self, seconds: float) -> None:
        if self._next is not None:
            self._next.cancel()
        self._next = self.after(seconds, self._look)

    def _look(self) -> None:
        """Act on the first timer that is due; else wait for the next."""
        self._next = None
        if not self.may_decide:
            return
        now = self._ports.clock.wall()
        wait = LOOK_S_MAX
        for name, (wanted, spec) in sorted(self._wanted().items()):
            item = self.items(TIMERS).get(TIMERS + name.encode())
            known = json.loads(item.value) if item is not None else {}
            if item is None or known["hash"] != wanted["hash"]:
                self._keep(name, item, {"hash": wanted["hash"], "since": now, "last": 0.0, "fired": 0.0}, [], [])
                return
            record = Record(known["since"], known["last"], known["fired"])
            elapse = timer.next_elapse(spec, record, self._target(spec.unit), now)
            if elapse is not None and elapse <= now:
                self._fire(name, item, known, spec, elapse, now)
                return
            if elapse is not None:
                wait = min(wait, elapse - now)
        if self._forget_stopped():
            return
        if self._started():
            self._arm(wait)

    def _wanted(self) -> dict[str, tuple[dict[str, Any], TimerSpec]]:
        found = {}
        for name in self._names:
            wanted = json.loads(self.items(UNITS)[UNITS + name.encode()].value)
            spec = self._spec(name, wanted) if wanted["desired"] == "launched" else None
            if spec is not None:
                found[name] = (wanted, spec)
        self._targets = {spec.unit for _, spec in found.values()}
        return found

    def _spec(self, name: str, wanted: dict[str, Any]) -> TimerSpec | None:
        key = (name, wanted["hash"])
        if key not in self._specs:
            try:
                self._specs[key] = unitfile.load_timer(name, wanted["content"])
            except ValueError as error:  # checked at submit; another version may have taken it
                logger.error("%s", error)
                self._specs[key] = None
        return self._specs[key]

    def _states(self, unit: str) -> list[dict[str, Any]]:
        items = self.items(STATES)
        return [json.loads(items[key].value) for key in sorted(self._said.get(unit, ()))]

    def _target(self, unit: str) -> Target:
        states = self._states(unit)
        active = [s["since"] for s in states if s["active"] in _BUSY]
        ended = [s["since"] for s in states if s["active"] in ("inactive", "failed") and s.get("last_exit")]
        return Target(max(active, default=0.0), max(ended, default=0.0))

    def _fire(
        self, name: str, item: Item, known: dict[str, Any], spec: TimerSpec, elapse: float, now: float
    ) -> None:
        compares: list[Any] = []
        changes: list[Any] = []
        if any(state["active"] in _BUSY for state in self._states(spec.unit)):
            logger.info("%s elapsed while %s runs still: nothing is started", name, spec.unit)
        else:
            compares, changes = self._start(name, spec.unit)
        late = max(elapse, now) if spec.persistent else elapse
        self._keep(name, item, {**known, "last": late, "fired": now}, compares, changes)

    def _start(self, name: str, unit: str) -> tuple[list[Any], list[Any]]:
        """The steps that start a service, as ``unit start`` would; it is another run in any case."""
        known = Known(self.items(UNITS))
        if not known.source(unit):
            logger.warning("%s elapsed, but no unit is called %s", name, unit)
        return start(known, unit, lambda other: other == unit or any(map(is_over, self._states(other))))

    def _forget_stopped(self) -> bool:
        """A timer that was stopped begins anew when it is started again."""
        wanted = self._wanted()
        for key, item in self.items(TIMERS).items():
            if key[len(TIMERS) :].decode() not in wanted:
                self._commit([[key, "mod", "=", item.mod]], [["delete", key]])
                return True
        return False

    def _keep(
        self, name: str, item: Item | None, record: dict[str, Any], compares: list[Any], changes: list[Any]
    ) -> None:
        key = TIMERS + name.encode()
        value = to_json(record)
        guard = [key, "mod", "=", item.mod if item is not None else 0]
        self._commit([guard, *compares], [["put", key, value], *changes])
        self.fired += bool(changes)

    def _commit(self, compares: list[Any], changes: list[Any]) -> None:
        def done(result: Any, error: BaseException | None) -> None:
            self._arm(RETRY_S if error is not None or not result["succeeded"] else 0.0)

        self.decide(compares, changes, done)
