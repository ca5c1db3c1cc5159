"""What is stored of units, and what changes it: the same for operators, timers and the scheduler."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from brain.store import Item
from fleet import dependencies, names, unitfile
from fleet.spec import UnitSpec

from .brain_client import UNITS, to_json

#: What files must say for their units to be anything to others.
_RELATED = re.compile("|".join(dependencies.RELATIONS).encode())


class Known(Mapping[str, tuple[dict[str, Any], int]]):
    """What is stored of all units, with the revision at which that was written; read as it is asked for."""

    def __init__(self, items: Mapping[bytes, Item]) -> None:
        self._items = {key[len(UNITS) :].decode(): item for key, item in items.items()}
        self._read: dict[str, tuple[dict[str, Any], int]] = {}
        self._aliases: dict[str, str] | None = None

    def update(self, unit: str, item: Item | None) -> bool:
        """A unit is stored so now, or (None) not any more; False if all must be read anew, for names may have changed."""
        before = self._items.pop(unit, None)
        self._read.pop(unit, None)
        if item is not None:
            self._items[unit] = item
        return not any(one is not None and b"Alias=" in one.value for one in (before, item))

    def __getitem__(self, unit: str) -> tuple[dict[str, Any], int]:
        if unit not in self._read:
            item = self._items[unit]
            self._read[unit] = (json.loads(item.value), item.mod)
        return self._read[unit]

    def __contains__(self, unit: object) -> bool:
        return unit in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of units ([Install] Alias=), each with the unit's own."""
        if self._aliases is None:
            self._aliases = {}
            for unit, item in self._items.items():
                if b"Alias=" in item.value and not unit.endswith(".timer"):
                    try:
                        spec = unitfile.load(unit, self[unit][0]["content"])[0]
                    except ValueError:
                        continue
                    self._aliases.update(dict.fromkeys(spec.aliases, unit))
        return self._aliases

    def canonical(self, unit: str) -> str:
        """A unit's own name, if it is called by another one; also an instance by another template's."""
        if unit in self._items or not self.aliases:
            return unit
        parsed = names.parse(unit)
        own = self.aliases.get(unit, "")
        if not own and parsed.template in self.aliases and parsed.template not in self._items:
            template = names.parse(self.aliases[parsed.template])
            own = f"{template.prefix}@{parsed.instance}{template.suffix}"
        return own or unit

    def by_own_names(self, spec: UnitSpec) -> UnitSpec:
        """A spec that names other units as they are called themselves."""
        if not spec.related or not self.aliases:
            return spec
        related = {key: [self.canonical(other) for other in others] for key, others in spec.related.items()}
        return dataclasses.replace(spec, related=related)

    def source(self, unit: str) -> str:
        """The unit itself, or the template that it would be made from; empty if there is neither."""
        return next((name for name in (unit, names.parse(unit).template) if name in self._items), "")

    def spec(self, unit: str) -> UnitSpec | None:
        """What a service's file says, or would say if the service were made from its template."""
        source = self.source(unit)
        if not source or not unit.endswith(".service"):
            return None
        try:
            return self.by_own_names(unitfile.load(unit, self[source][0]["content"])[0])
        except ValueError:
            return None

    def related(self) -> dict[str, UnitSpec]:
        """The units that name others."""
        found = {unit: self.spec(unit) for unit, item in self._items.items() if _RELATED.search(item.value)}
        return {unit: spec for unit, spec in found.items() if spec is not None and not spec.name.is_template}

    def guard(self, unit: str) -> list[Any]:
        """The condition that nobody has changed a unit since."""
        return [UNITS + unit.encode(), "mod", "=", self[unit][1] if unit in self else 0]

    def change(self, unit: str, desired: str, again: bool) -> list[Any] | None:
        """The step that makes a unit wanted so; None if it is. ``again``: as another run.

        Raises ``KeyError`` if there is no such unit, nor a template of it.
        """
        stored = self[unit][0] if unit in self else None
        record = stored
        if record is None:
            content = self[self.source(unit)][0]["content"]
            unitfile.check(unit, content)
            digest = unitfile.content_hash(content)
            record = {"content": content, "hash": digest, "desired": "inactive", "restarts": 0}
        changed = {**record, "desired": desired}
        if again:
            changed["restarts"] = record.get("restarts", 0) + 1
        if changed == stored:
            return None
        return ["put", UNITS + unit.encode(), to_json(changed)]

    def launched(self, units: list[str]) -> list[str]:
        """Those of them that are wanted to run."""
        return [unit for unit in units if unit in self and self[unit][0]["desired"] == "launched"]


def start(known: Known, unit: str, is_over: Callable[[str], bool]) -> tuple[list[Any], list[Any]]:
    """Conditions and steps that start a unit without an operator: what it needs is started, what it excludes stopped.

    ``is_over``: whether a unit ran and has ended, so that its start is another run.  Both are
    empty if there is no such unit.
    """
    if known.spec(unit) is None:
        return [], []
    plan = dependencies.plan("start", [unit], known.related(), known.spec)
    steps = {name: known.change(name, "launched", is_over(name)) for name in [unit, *plan.launch]}
    steps |= {name: known.change(name, "loaded", False) for name in known.launched(plan.stop)}
    changed = {name: step for name, step in steps.items() if step is not None}
    return [known.guard(name) for name in changed], list(changed.values())
