"""What a start of a unit writes, for those who start units without an operator: timers and the scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from brain.store import Item
from fleet import dependencies, names, unitfile
from fleet.spec import UnitSpec

from .brain_client import UNITS


def find(items: Mapping[bytes, Item], unit: str) -> Item | None:
    """What is stored of a unit, or of the template that it is made from."""
    item = items.get(UNITS + unit.encode())
    template = names.parse(unit).template
    return item or (items.get(UNITS + template.encode()) if template else None)


def start(items: Mapping[bytes, Item], unit: str, is_over: Callable[[str], bool]) -> tuple[list[Any], list[Any]]:
    """Conditions and steps that start a unit and what it needs, as ``unit start`` would.

    ``is_over``: whether a unit ran and has ended, so that its start is another run.  Both are
    empty if there is no such unit.
    """

    def spec_of(name: str) -> UnitSpec | None:
        item = find(items, name)
        try:
            return unitfile.load(name, json.loads(item.value)["content"])[0] if item is not None else None
        except ValueError:
            return None

    if find(items, unit) is None:
        return [], []
    compares: list[Any] = []
    changes: list[Any] = []
    for name in [unit, *dependencies.plan("start", [unit], {}, spec_of).launch]:
        stored = items.get(UNITS + name.encode())
        source = find(items, name)
        assert source is not None
        record = json.loads(source.value)
        if stored is None:
            record = {**record, "desired": "inactive", "restarts": 0}
        changed = {**record, "desired": "launched"}
        if is_over(name):
            changed["restarts"] = record.get("restarts", 0) + 1
        if changed != record:
            key = UNITS + name.encode()
            compares.append([key, "mod", "=", stored.mod if stored is not None else 0])
            changes.append(["put", key, json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()])
    return compares, changes
