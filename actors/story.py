"""What happened in the fleet, told from the history of the brain: derived, so it cannot be wrong or missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from brain.store import Event, Item

from .brain_client import ALIVE, LOCKS, ORDERS, PLACES, ROLLOUTS, STATES, TIMERS, UNITS

Name = Callable[[str], str]
Row = dict[str, Any]


def tell(event: Event, name_of: Name) -> list[Row]:
    """What one revision means to an operator, in the order of its keys; nothing for most revisions.

    ``name_of`` gives a machine's name for its id.
    """
    rows = []
    for key, item, before in event.changes:
        for prefix, told in _TOLD.items():
            if key.startswith(prefix):
                names = key[len(prefix) :].decode()
                for unit, machine, kind, text in told(names, _read(item), _read(before)):
                    rows.append({"revision": event.revision, "time": event.at_ms / 1000, "kind": kind, "unit": unit,
                                 "machine": name_of(machine) if machine else "", "text": text})  # fmt: skip
    return rows


def _read(item: Item | None) -> Any:
    return json.loads(item.value) if item is not None else None


#: (unit, machine, kind, text)
Told = Iterator[tuple[str, str, str, str]]


def _unit(unit: str, now: Any, before: Any) -> Told:
    if now is None:
        yield unit, "", "destroyed", "destroyed"
        return
    if before is None:
        yield unit, "", "submitted", f"submitted as version {now['hash'][:8]}"
        before = {"desired": "inactive"}
    elif now["hash"] != before["hash"]:
        yield unit, "", "updated", f"version {before['hash'][:8]} becomes {now['hash'][:8]}"
    if now["desired"] != before["desired"]:
        asked = {"launched": "is to run", "loaded": "is to be placed, and not to run", "inactive": "is to be nowhere"}
        yield unit, "", "desired", asked[now["desired"]]
    elif now.get("restarts", 0) != before.get("restarts", 0):
        yield unit, "", "desired", "is to be started anew"
    if now.get("replicas") != before.get("replicas") and "replicas" in now:
        yield unit, "", "scaled", f"is to have {now['replicas']} instances"


def _place(names: str, now: Any, before: Any) -> Told:
    machine, _, unit = names.partition("/")
    if before is None:
        yield unit, machine, "placed", "placed"
    elif now is None:
        yield unit, machine, "unplaced", "taken off"
    elif now.get("hold") and now.get("hold") != before.get("hold"):
        yield unit, machine, "held", f"held: {now['hold']}"


def _state(names: str, now: Any, before: Any) -> Told:
    machine, _, unit = names.partition("/")
    if now is None:
        yield unit, machine, "gone", "nothing is left of it"
        return
    was = before or {"active": "", "sub": "", "health": "none"}
    if (now["active"], now["sub"]) != (was["active"], was["sub"]):
        detail = "" if now["result"] == "success" else f": {now['result']}"
        if now["active"] == "failed" and now.get("last_exit"):
            detail += f" ({now['last_exit']})"
        yield unit, machine, now["active"], f"{now['active']} ({now['sub']}){detail}"
    if now["health"] != was["health"] and now["health"] != "none":
        yield unit, machine, "health", f"health: {now['health']}"


def _alive(machine: str, now: Any, before: Any) -> Told:
    if now is None:
        yield "", machine, "lost", "the machine's lease is over"
    elif before is None:
        yield "", machine, "ready", "the machine is there"


def _order(machine: str, now: Any, before: Any) -> Told:
    drain, was = (now or {}).get("drain"), (before or {}).get("drain")
    if drain is not None and was is None:
        yield "", machine, "draining", "is to be drained" + (f": {drain['reason']}" if drain["reason"] else "")
    elif drain is None and was is not None:
        yield "", machine, "undrained", "is to be used again"
    if (now or {}).get("metadata", {}) != (before or {}).get("metadata", {}):
        text = " ".join(f"{key}={value}" for key, value in sorted((now or {}).get("metadata", {}).items()))
        yield "", machine, "metadata", f"metadata over its own: {text or 'none'}"


def _lock(group: str, now: Any, before: Any) -> Told:
    now, before = now or {"holders": {}, "max": 1}, before or {"holders": {}, "max": 1}
    for machine, holder in sorted(now["holders"].items()):
        if machine not in before["holders"]:
            reason = f" ({holder['reason']})" if holder["reason"] else ""
            yield "", machine, "lock", f"lock {group}: granted, token {holder['token']}{reason}"
    for machine in sorted(set(before["holders"]) - set(now["holders"])):
        yield "", machine, "lock", f"lock {group}: released"
    if now["max"] != before["max"]:
        yield "", "", "lock", f"lock {group}: max {before['max']} becomes {now['max']}"


def _rollout(unit: str, now: Any, before: Any) -> Told:
    if now is not None and (before is None or now["phase"] != before["phase"]):
        reason = f": {now['reason']}" if now["reason"] else ""
        yield unit, "", "rollout", f"rollout to {now['to'][:8]} is {now['phase']}{reason}"


def _timer(unit: str, now: Any, before: Any) -> Told:
    if now is not None and before is not None and now["fired"] != before["fired"]:
        yield unit, "", "elapsed", "elapsed"


_TOLD: dict[bytes, Callable[[str, Any, Any], Told]] = {
    UNITS: _unit, PLACES: _place, STATES: _state, ALIVE: _alive, ORDERS: _order, LOCKS: _lock, ROLLOUTS: _rollout,
    TIMERS: _timer,
}  # fmt: skip
