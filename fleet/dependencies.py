"""What units are to each other, wherever in the cluster they run (systemd.unit(5)).

Two things are decided here, both pure.  What an operator's word about one unit means for
others (:func:`plan`): a start pulls in what is needed, a stop and a restart go to whoever
needs it.  And whether a unit may start, stay up or stop at this moment (:class:`Graph`), from
what is wanted and what is true of the others: a level, not an event, so that nothing is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .spec import UnitSpec

#: Keys of [Unit] that name other units.
RELATIONS = (
    "Wants", "Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "Conflicts", "Before", "After", "OnFailure",
    "OnSuccess",
)  # fmt: skip
#: What the start of a unit starts, too.
_PULLS = ("Wants", "Requires", "BindsTo", "Upholds")
#: Whose stop or restart goes to the unit that has the key.
_FOLLOWS = ("Requires", "Requisite", "BindsTo", "PartOf")


class Phase(Enum):
    """What a unit does, for those who wait for it."""

    OFF = "not started"
    WAITING = "about to start"
    STARTING = "starting"
    UNWELL = "not healthy"
    UP = "up"
    DONE = "done"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a unit may not run now; ``blocked``: it will not by itself, so nobody need wait."""

    reason: str
    blocked: bool = False


def phase(wanted: Mapping[str, Any], let_go: bool, states: Iterable[Mapping[str, Any]]) -> Phase:
    """The phase of a unit: what is wanted, whether it was let go (it may run), and its states."""
    current = (wanted["hash"], wanted.get("restarts", 0))
    found = {_phase_of(state, (state["hash"], state.get("asked", 0)) == current) for state in states}
    if Phase.STOPPING in found:
        return Phase.STOPPING
    if wanted["desired"] != "launched":
        return Phase.STOPPING if found & {Phase.STARTING, Phase.UNWELL, Phase.UP} else Phase.OFF
    if not let_go:
        return Phase.WAITING
    order = (Phase.FAILED, Phase.WAITING, Phase.STARTING, Phase.UNWELL, Phase.UP, Phase.DONE)
    return next((first for first in order if first in found), Phase.WAITING)


def outcome(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """``OnFailure`` or ``OnSuccess`` for a unit that has ended by itself; else empty."""
    if wanted["desired"] != "launched" and state["active"] != "failed":
        return ""
    ended = _phase_of(state, (state["hash"], state.get("asked", 0)) == (wanted["hash"], wanted.get("restarts", 0)))
    success = ended is Phase.DONE and state["result"] == "success" and bool(state.get("last_exit"))
    return "OnFailure" if ended is Phase.FAILED else "OnSuccess" if success else ""


def _phase_of(state: Mapping[str, Any], current: bool) -> Phase:
    active = state["active"]
    if active == "deactivating":
        return Phase.STOPPING
    if not current:  # what it did when another start, or another file, was wanted
        return Phase.STOPPING if active in ("active", "reloading", "activating") else Phase.WAITING
    if active in ("active", "reloading"):
        return Phase.UNWELL if state["health"] == "failing" else Phase.UP
    if active == "activating":
        return Phase.STARTING
    if active == "failed":
        return Phase.FAILED
    if not state.get("last_exit") and not state.get("problem"):
        return Phase.WAITING  # it has not begun
    return Phase.DONE if state["result"] in ("success", "exec-condition") else Phase.FAILED


def is_over(state: Mapping[str, Any]) -> bool:
    """Whether a unit ran, or was passed over, and has come to rest by itself."""
    was_done = bool(state.get("last_exit") or state.get("problem"))
    return state["active"] == "failed" or (state["sub"] == "dead" and was_done)


@dataclass(slots=True)
class Graph:
    """The relations of all units; names of units that are not there are of no consequence."""

    specs: Mapping[str, UnitSpec]
    after: dict[str, set[str]] = field(default_factory=dict)
    #: who comes after a unit
    followers: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for unit, spec in self.specs.items():
            if not spec.related or spec.name.is_template:
                continue
            for other in spec.related.get("Before", ()):
                self._order(unit, other)
            for key in ("After", "BindsTo"):  # what is bound to a unit cannot be up before it
                for other in spec.related.get(key, ()):
                    self._order(other, unit)

    def _order(self, first: str, then: str) -> None:
        if first != then and first in self.specs and then in self.specs:
            self.after.setdefault(then, set()).add(first)
            self.followers.setdefault(first, set()).add(then)

    @property
    def involved(self) -> set[str]:
        """Units whose phase is of consequence to others, or that others' phases are of consequence to."""
        found = {unit for unit, spec in self.specs.items() if spec.related}
        for unit in list(found):
            for others in self.specs[unit].related.values():
                found.update(other for other in others if other in self.specs)
        return found

    def cycle(self, among: Iterable[str]) -> list[str]:
        """Units of which each waits for the next, and the last for the first; empty if there are none."""
        done: set[str] = set()
        for start in sorted(among):
            path: list[str] = []
            on_path: set[str] = set()
            stack = [(start, iter(sorted(self.after.get(start, ()))))]
            while stack:
                unit, rest = stack[-1]
                if unit not in on_path:
                    path.append(unit)
                    on_path.add(unit)
                following = next((other for other in rest if other not in done), None)
                if following is None:
                    stack.pop()
                    path.pop()
                    on_path.discard(unit)
                    done.add(unit)
                elif following in on_path:
                    return [*path[path.index(following) :], following]
                else:
                    stack.append((following, iter(sorted(self.after.get(following, ())))))
        return []

    def may_start(self, unit: str, phase_of: Callable[[str], Phase]) -> Hold | None:
        """What holds a unit back that is to start."""
        waits: Hold | None = None
        related = self.specs[unit].related
        for other in sorted(self.after.get(unit, ())):
            now = phase_of(other)
            if now in (Phase.WAITING, Phase.STARTING, Phase.UNWELL, Phase.STOPPING):
                waits = waits or Hold(f"it comes after {other}, which is {now.value}")
        for key in ("Requires", "Requisite", "BindsTo"):
            for other in related.get(key, ()):
                if other not in self.specs:
                    continue
                now = phase_of(other)
                ordered = other in self.after.get(unit, ())
                missing = now in (Phase.OFF, Phase.FAILED) or (now is Phase.DONE and key != "Requires")
                if missing and (ordered or now is Phase.OFF):
                    return Hold(f"{key}={other}, which is {now.value}", blocked=now is not Phase.OFF)
        return waits

    def may_stay(self, unit: str, phase_of: Callable[[str], Phase]) -> Hold | None:
        """Why a unit that is up must stop: what it is bound to is not up."""
        for other in self.specs[unit].related.get("BindsTo", ()):
            if other in self.specs and (now := phase_of(other)) not in (Phase.UP, Phase.UNWELL):
                return Hold(f"BindsTo={other}, which is {now.value}", blocked=now in (Phase.FAILED, Phase.DONE))
        return None

    def must_linger(self, unit: str, stops: Callable[[str], bool]) -> str:
        """A unit is to stop, but not before this one, which comes after it, has stopped; empty for none."""
        return next((other for other in sorted(self.followers.get(unit, ())) if stops(other)), "")


@dataclass(slots=True)
class Plan:
    """What an operator's word means for units beside those that it names, in order."""

    launch: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    restart: list[str] = field(default_factory=list)
    #: (unit, other): the unit may be started only if the other is up
    requisites: list[tuple[str, str]] = field(default_factory=list)


def plan(verb: str, units: list[str], specs: Mapping[str, UnitSpec], find: Callable[[str], UnitSpec | None]) -> Plan:
    """What ``start``, ``stop`` or ``restart`` of units means for others.

    ``specs`` has the units that are there; ``find`` also those that a template could make.
    """
    out = Plan()
    seen = set(units)
    queue = list(units)
    if verb == "start":
        while queue:
            unit = queue.pop(0)
            spec = find(unit)
            if spec is None:
                continue
            for key in _PULLS:
                for other in spec.related.get(key, ()):
                    if other not in seen and find(other) is not None:
                        seen.add(other)
                        queue.append(other)
                        out.launch.append(other)
            out.requisites += [(unit, other) for other in spec.related.get("Requisite", ()) if other in specs]
        for unit in sorted(seen):
            spec = find(unit)
            against = list(spec.related.get("Conflicts", ())) if spec is not None else []
            against += [other for other, s in specs.items() if unit in s.related.get("Conflicts", ())]
            out.stop += [other for other in dict.fromkeys(against) if other in specs and other not in seen]
        return out
    found = out.stop if verb == "stop" else out.restart
    while queue:
        unit = queue.pop(0)
        for other, spec in sorted(specs.items()):
            if other not in seen and any(unit in spec.related.get(key, ()) for key in _FOLLOWS):
                seen.add(other)
                queue.append(other)
                found.append(other)
    return out
