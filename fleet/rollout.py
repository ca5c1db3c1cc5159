"""How a new version of units is rolled out: a pure plan, taken one look at a time.

A rollout brings *targets* (instances of a template, one unit, or the machines of a global
unit) from one version to another.  :func:`step` is asked with what is true now and says what
to change next; it remembers nothing but the record, so any leader can go on with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from . import syntax

#: Targets that are changed at once, at most, and instances that run beside them.
PARALLEL_MAX, SURGE_MAX = 1_000, 20


@dataclass(frozen=True, slots=True)
class Policy:
    """``Update=`` of [X-Argosy]; times in seconds."""

    parallel: int = 1
    order: str = "stop-first"
    canary: int = 0
    monitor: float = 10.0
    on_failure: str = "rollback"
    #: a target that is not well so long after its change has failed
    deadline: float = 300.0

    def record(self) -> dict[str, Any]:
        """As it is stored."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


_ORDERS = ("stop-first", "start-first")
_ON_FAILURE = ("rollback", "pause", "continue")
ACCEPTED = "parallel N, order stop-first|start-first, canary N, monitor TIME, deadline TIME, on-failure rollback|pause|continue"


def policy(text: str) -> Policy:
    """A policy from ``Update=``; raises ``ValueError``."""
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z-]+)\s+(.+)", part)
        word, value = match.groups() if match else (part, "")
        key = word.replace("-", "_")
        if key not in Policy.__dataclass_fields__ or not value:
            raise ValueError(f"{part!r} is not one of: {ACCEPTED}")
        if key in values:
            raise ValueError(f"{word} is given twice")
        values[key] = _value(key, value)
    return Policy(**values)


def _value(key: str, value: str) -> Any:
    if key in ("parallel", "canary"):
        lowest = 1 if key == "parallel" else 0
        if not value.isdigit() or not lowest <= int(value) <= PARALLEL_MAX:
            raise ValueError(f"{key} {value}: a number from {lowest} to {PARALLEL_MAX}")
        return int(value)
    if key in ("monitor", "deadline"):
        seconds = syntax.duration(value)
        if seconds == syntax.INFINITY or (key == "deadline" and not seconds):
            raise ValueError(f"{key} {value}: a time span that ends")
        return seconds
    accepted = _ORDERS if key == "order" else _ON_FAILURE
    if value not in accepted:
        raise ValueError(f"{key.replace('_', '-')} {value}: one of {', '.join(accepted)}")
    return value


class Phase(StrEnum):
    """What a rollout does."""

    CANARY = "canary"  # the first targets are changed
    WAITING = "waiting"  # the canaries are well; an operator promotes, or rolls back
    ROLLING = "rolling"
    PAUSED = "paused"
    ROLLING_BACK = "rolling-back"
    DONE = "done"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"  # and nothing more is done about it

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self in (Phase.DONE, Phase.ROLLED_BACK, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class Target:
    """What is true of one target."""

    version: str  # the hash that it shall have
    #: it runs that version, and is active and healthy, or has done its work
    well: bool
    #: it runs that version, or tried to, and failed
    failed: bool = False
    reason: str = ""
    #: since when it has been well, by the clock that ``now`` is of
    since: float = 0.0


@dataclass(slots=True)
class Step:
    """What to do next: targets to change to ``version``, and the record as it shall be then."""

    record: dict[str, Any]
    change: list[str] = field(default_factory=list)
    version: str = ""
    #: targets that have it, failed, and are to be started anew
    restart: list[str] = field(default_factory=list)

    @property
    def surge(self) -> bool:
        """Whether one more instance for each that is changed at once shall run, with the new version."""
        phase = self.record["phase"]
        phase = self.record["resume"] or Phase.ROLLING if phase == Phase.PAUSED else phase
        return bool(self.record["surge"]) and phase in (Phase.CANARY, Phase.WAITING, Phase.ROLLING)


def begin(old: str, new: str, targets: list[str], how: Policy, now: float) -> dict[str, Any]:
    """The record of a new rollout.  ``old`` and ``new`` are hashes of content."""
    return {
        "from": old, "to": new, "targets": sorted(targets), "policy": how.record(),
        "surge": min(how.parallel, len(targets), SURGE_MAX) if how.order == "start-first" else 0,
        "phase": Phase.CANARY if how.canary and len(targets) > how.canary else Phase.ROLLING,
        "began": round(now, 3), "changed": {}, "reason": "", "resume": "", "failed": [], "ended": 0.0,
        "ailing": [],  # changed though they were not well before: no fault of the new version
    }  # fmt: skip


def step(
    record: dict[str, Any], targets: Mapping[str, Target], now: float, surge: Mapping[str, Target] | None = None
) -> Step:
    """One look: what to change, and what the rollout says of itself.

    ``targets``: those that exist; one that has vanished is left out.  ``now``: Unix time.
    ``surge``: what is true of the instances that run beside them (start-first).
    """
    record = {**record, "changed": dict(record["changed"]), "ailing": list(record["ailing"])}
    how = Policy(**record["policy"])
    phase = Phase(record["phase"])
    if phase.is_over or phase in (Phase.PAUSED, Phase.WAITING):
        return Step(record)
    goal = record["from"] if phase is Phase.ROLLING_BACK else record["to"]
    if record.pop("again", False):  # an operator resumed it: what failed has another chance
        failed = [n for n, one in {**targets, **(surge or {})}.items() if one.failed and one.version == goal]
        return Step(record, restart=sorted(failed))
    names = [name for name in record["targets"] if name in targets]
    failures = {name: why for name in names if (why := _failure(targets[name], record["changed"].get(name), goal, how, now))}
    given_up = {name: failures.pop(name) for name in record["ailing"] if name in failures}
    beside = surge or {} if phase is not Phase.ROLLING_BACK else {}
    for name, one in beside.items():
        if why := _failure(one, record["began"], goal, how, now):
            failures[name] = why
    if failures and phase is not Phase.ROLLING_BACK:
        stopped = _on_failure(record, how, failures)
        if stopped is not None:
            return stopped
    if record["surge"] and phase is not Phase.ROLLING_BACK and any(n not in record["changed"] for n in names):
        early = [n for n, one in beside.items() if not one.well and n not in failures]
        if early or not beside:
            record["reason"] = f"starting {record['surge']} more first" + (f": waiting for {', '.join(early[:5])}" if early else "")
            return Step(record)
    monitor = 0.0 if phase is Phase.ROLLING_BACK else how.monitor
    settled = [n for n in names if _settled(targets[n], record["changed"].get(n), goal, monitor, now)]
    moving = [n for n in names if targets[n].version == goal and n not in settled and n not in failures and n not in given_up]
    if phase is Phase.ROLLING_BACK:  # what was not touched, and is not well, was so before
        moving = [n for n in moving if n in record["changed"]]
    todo = [n for n in names if targets[n].version != goal]
    width = how.parallel
    if phase is Phase.CANARY and names:
        first = names[: how.canary]
        todo, width = [n for n in todo if n in first], how.canary
        if all(n in settled or n in given_up for n in first):
            record["phase"], record["reason"] = Phase.WAITING, f"{len(first)} of {len(names)} run it and are well: promote, or roll back"
            return Step(record)
    # what does not work costs nothing to change, and in a return it is what the return is for
    down = [n for n in todo if not targets[n].well] if phase is Phase.ROLLING_BACK else []
    chosen = down + [n for n in todo if n not in down][: max(0, width - len(moving))]
    for name in chosen:
        if phase is not Phase.ROLLING_BACK and not targets[name].well and name not in record["ailing"]:
            record["ailing"].append(name)
        record["changed"][name] = round(now, 3)
    record["reason"] = _progress(names, settled, [*moving, *chosen], failures)
    if not todo and not moving:
        returned = Phase.FAILED if failures else Phase.ROLLED_BACK
        record["phase"] = returned if phase is Phase.ROLLING_BACK else Phase.DONE
        record["ended"], record["failed"] = round(now, 3), sorted({*failures, *given_up})
        if phase is Phase.ROLLING_BACK:
            told = "; the version before does not work either: " + ", ".join(sorted(failures)) if failures else ""
            record["reason"] = record.get("cause", "") + told
    return Step(record, chosen, goal)


def _failure(target: Target, changed: float | None, goal: str, how: Policy, now: float) -> str:
    """Why a target that was changed has failed; empty if it has not."""
    if changed is None or target.version != goal:
        return ""
    if target.failed:
        return target.reason or "it failed"
    if not target.well and now - changed > how.deadline:
        return f"it is not well {how.deadline:g} s after its change" + (f": {target.reason}" if target.reason else "")
    return ""


def _settled(target: Target, changed: float | None, goal: str, monitor: float, now: float) -> bool:
    """Whether a target runs the version, and has been well for long enough to go on."""
    if target.version != goal or not target.well:
        return False
    return changed is None or now - max(target.since, changed) >= monitor


def _on_failure(record: dict[str, Any], how: Policy, failures: dict[str, str]) -> Step | None:
    told = "; ".join(f"{name}: {why}" for name, why in sorted(failures.items())[:3])
    if how.on_failure == "continue":
        return None
    if how.on_failure == "pause":
        record["resume"], record["phase"], record["reason"] = record["phase"], Phase.PAUSED, f"paused, because {told}"
        return Step(record)
    return Step(back(record, f"rolled back, because {told}"))


def back(record: dict[str, Any], why: str) -> dict[str, Any]:
    """The record of a rollout that returns to the version before."""
    return {**record, "phase": Phase.ROLLING_BACK, "cause": why, "reason": why, "changed": {}}


def pause(record: dict[str, Any], why: str) -> dict[str, Any]:
    """The record of a rollout that stands still."""
    return {**record, "phase": Phase.PAUSED, "resume": record["phase"], "reason": why}


def resume(record: dict[str, Any], now: float) -> dict[str, Any]:
    """The record of a rollout that goes on; what failed is started, and waited for, anew."""
    changed = {name: round(now, 3) for name in record["changed"]}
    phase = record["resume"] or Phase.ROLLING
    return {**record, "phase": phase, "resume": "", "reason": "resumed", "changed": changed, "again": True}


def promote(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a rollout whose canaries were found good."""
    return {**record, "phase": Phase.ROLLING, "reason": "promoted"}


def _progress(names: list[str], settled: list[str], moving: list[str], failures: Mapping[str, str]) -> str:
    text = f"{len(settled)} of {len(names)} are done"
    if moving:
        text += f"; waiting for {', '.join(moving[:5])}" + (" and others" if len(moving) > 5 else "")
    if failures:
        text += f"; failed: {', '.join(sorted(failures)[:5])}"
    return text
