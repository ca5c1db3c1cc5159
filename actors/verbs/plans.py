"""Verbs that bring the fleet to what a directory of unit files says: what would change, and changing it."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from fleet import names, placement, rollout, unitfile
from fleet.placement import Placements
from kernel.mailbox import Promise

from ..brain_client import ROLLOUTS, UNITS, to_json
from ..control import BadRequest, Control, Failed, Then, verb
from ..rollouts import instances
from ..wanted import Known
from .edits import Edits, check_files, edit, instance, is_timer, refuse_cycles, refuse_other_names
from .rollouts import Change, Stored, begin, surplus, transact
from .units import all_placements

#: Lines of a difference that a plan shows for one unit.
DIFF_LINES_MAX = 200


@dataclass(slots=True)
class Row:
    """One unit of a plan: ``create``, ``start``, ``update``, ``destroy`` or ``none``."""

    unit: str
    change: str
    machine: str = ""
    reason: str = ""
    diff: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """With the contract's keys."""
        return {"unit": self.unit, "change": self.change, "machine": self.machine, "reason": self.reason, "diff": self.diff}


@dataclass(slots=True)
class Plan:
    """What would change, and a token that stands for everything that it was made from."""

    rows: list[Row]
    token: str
    files: dict[str, str]
    #: how many instances templates shall have, where the files say it
    counts: dict[str, int]
    #: what was stored of each unit that is spoken of, and of the rollouts of these, when it was made
    seen: dict[str, Any]

    def names(self, *changes: str) -> list[str]:
        """Units that are changed so."""
        return [row.unit for row in self.rows if row.change in changes]


def _make(control: Control, stored: Stored, files: dict[str, str], group: str, prune: bool) -> Plan:
    known = stored.known
    refuse_other_names(known, files)
    refuse_cycles(known, files)
    specs = {unit: unitfile.load(unit, text)[0] for unit, text in files.items() if not is_timer(unit)}
    timed = {unitfile.load_timer(unit, text).unit for unit, text in files.items() if is_timer(unit)}
    counts = {u: spec.replicas for u, spec in specs.items() if spec.name.is_template and spec.replicas is not None}
    picture = all_placements(control)
    rows: list[Row] = []
    for unit in sorted(files):
        rows.append(_file_row(stored, unit, files[unit]))
        if unit in timed and rows[-1].change == "create":
            rows[-1].reason = "a timer starts it"
        if unit in counts:
            rows += _instance_rows(known, unit, counts[unit])
        elif not names.parse(unit).is_template and unit not in timed and rows[-1].change == "none":
            if known[unit][0]["desired"] != "launched":
                rows[-1].change = "start"
    if prune:
        mentioned = {row.unit for row in rows}
        rows += [Row(unit, "destroy", reason="its file is not there any more") for unit in _left_behind(known, group, files) if unit not in mentioned]
    _predict(control, [row for row in rows if row.unit not in timed], files, picture)
    seen = {unit: _seen(stored, unit) for unit in sorted({row.unit for row in rows})}
    about = [[row.unit, row.change, row.machine] for row in rows], seen, [[u, unitfile.content_hash(t)] for u, t in sorted(files.items())]
    return Plan(rows, hashlib.sha256(to_json([group, prune, about])).hexdigest()[:16], files, counts, seen)


def _seen(stored: Stored, unit: str) -> Any:
    """What must not change between a plan and what is done of it: the unit, its instances' versions, its rollout."""
    record = stored.known[unit][0] if unit in stored.known else {}
    kin = instances(stored.known, unit) if names.parse(unit).is_template else []
    return [
        [record.get(key) for key in ("hash", "desired", "restarts")], stored.guard(ROLLOUTS, unit)[3],
        [[name, stored.known[name][0]["hash"]] for name in kin],
    ]  # fmt: skip


def _file_row(stored: Stored, unit: str, content: str) -> Row:
    if unit not in stored.known:
        return Row(unit, "create")
    old = stored.known[unit][0]
    active = stored.active(unit)
    digest = unitfile.content_hash(content)
    kin = instances(stored.known, unit) if names.parse(unit).is_template else []
    behind = [name for name in kin if stored.known[name][0]["hash"] != digest]
    if active is not None and active["to"] == digest and active["phase"] != rollout.Phase.ROLLING_BACK:
        return Row(unit, "none", reason=f"its rollout is {active['phase']}: {active['reason']}")
    if old["hash"] == digest and not behind:
        return Row(unit, "none")
    lines = list(difflib.unified_diff(old["content"].splitlines(), content.splitlines(), "stored", "new", lineterm="", n=1))
    told = f"{len(behind)} instances have another version" if old["hash"] == digest else ""
    return Row(unit, "update", reason=told, diff=lines[:DIFF_LINES_MAX])


def _instance_rows(known: Known, template: str, count: int) -> list[Row]:
    rows = []
    wanted = [instance(template, number) for number in range(1, count + 1)]
    for unit in wanted:
        if unit not in known:
            rows.append(Row(unit, "create"))
        elif known[unit][0]["desired"] != "launched":
            rows.append(Row(unit, "start"))
    return rows + [Row(unit, "destroy", reason=f"Replicas={count}") for unit in surplus(known, template, count)]


def _left_behind(known: Known, group: str, files: dict[str, str]) -> list[str]:
    """Units that an earlier apply of the same group brought, and whose file, or template's file, is gone."""
    gone = [u for u in known if known[u][0].get("set") == group and u not in files and names.parse(u).template not in files]
    templates = {unit for unit in gone if names.parse(unit).is_template}
    return sorted({*gone, *(unit for unit in known if names.parse(unit).template in templates)})


def _predict(control: Control, rows: list[Row], files: dict[str, str], picture: Placements) -> None:
    """Where each unit would be, by the scheduler's own rules."""
    for row in rows:
        if row.change == "destroy":
            for machine in list(picture.where.get(row.unit, ())):
                picture.remove(row.unit, machine)
    order = []
    for row in rows:
        parsed = names.parse(row.unit)
        content = files.get(row.unit) or files.get(parsed.template)
        if content is not None and not parsed.is_template and not is_timer(row.unit) and row.change != "destroy":
            spec = unitfile.load(row.unit, content)[0]
            order.append((bool(spec.machine_of), -spec.priority, row.unit, row, spec))
    for _, _, unit, row, spec in sorted(order, key=lambda entry: entry[:3]):
        picture.units[unit] = spec
        if spec.is_global:
            row.machine = "all that qualify"
            continue
        here = sorted(picture.where.get(unit, ()))
        if here and (why := placement.refusal(spec, picture.machines[here[0]], picture)):
            picture.remove(unit, here[0])
            row.reason, here = f"leaves {control.machine_name(here[0])}: {why}", []
        if not here:
            target, refusals = placement.choose(spec, picture)
            if not target:
                row.machine, row.reason = "none", "no machine qualifies: " + "; ".join(sorted(set(refusals.values()))[:3])
                continue
            picture.place(unit, target)
            here = [target]
        row.machine = control.machine_name(here[0])


@verb("unit.plan")
def _unit_plan(control: Control, args: dict[str, Any]) -> Promise:
    """What ``unit.apply`` would change: rows, and a token with which exactly that can be applied."""
    files, heeded = check_files(args["files"])
    promise = Promise()

    def change(stored: Stored) -> Change:
        plan = _make(control, stored, files, _group(args), bool(args.get("prune")))
        changes = sum(row.change != "none" for row in plan.rows)
        return [], [], {"rows": [row.shown() for row in plan.rows], "token": plan.token, "changes": changes, "warnings": heeded}

    transact(control, promise, change)
    return promise


def _group(args: dict[str, Any]) -> str:
    group = str(args.get("set") or "default")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", group):
        raise BadRequest(f"--set {group!r}: at most 64 letters, digits, and . _ -")
    return group


@verb("unit.apply")
def _unit_apply(control: Control, args: dict[str, Any]) -> Promise:
    """Bring the fleet to what the files say; ``plan``: only if that is what the plan of this token saw."""
    files, heeded = check_files(args["files"])
    group, prune, token = _group(args), bool(args.get("prune")), str(args.get("plan") or "")
    promise = Promise()
    timed = {unitfile.load_timer(unit, text).unit for unit, text in files.items() if is_timer(unit)}
    changed_since = Failed(f"the cluster, or the files, changed since plan {token}; look at the plan of now")

    def look(stored: Stored) -> Change:
        plan = _make(control, stored, files, group, prune)
        if token and token != plan.token:
            raise changed_since
        return [], [], plan

    def made(plan: Plan) -> None:
        edit(control, sorted({*files, *plan.names("create", "start", "destroy")}), promise, lambda known, left: edits(plan, known, left),
             lambda revision: seen(plan, revision))  # fmt: skip

    def edits(plan: Plan, known: Known, left: list[str]) -> Edits:
        out: Edits = {}
        destroyed = set(plan.names("destroy"))
        for unit in left:
            stored = known[unit][0] if unit in known else {}
            if token and plan.seen[unit][0] != [stored.get(key) for key in ("hash", "desired", "restarts")]:
                raise changed_since
            if unit in destroyed:
                if unit in known:
                    out[unit] = ["delete", UNITS + unit.encode()]
                continue
            template = names.parse(unit).template
            content = files.get(unit) or (known[template][0]["content"] if template in known else files[template])
            record = known[unit][0] if unit in known else {
                "content": content, "hash": unitfile.content_hash(content), "desired": "inactive", "restarts": 0}  # fmt: skip
            changed = {**record, "set": group}
            if unit in plan.counts:
                changed["replicas"] = plan.counts[unit]
            if not names.parse(unit).is_template and unit not in timed:
                changed["desired"] = "launched"
            if unit not in known or changed != record:
                out[unit] = ["put", UNITS + unit.encode(), to_json(changed)]
        return out

    def seen(plan: Plan, revision: int) -> None:
        updates = plan.names("update")
        rollouts: list[str] = []

        def next_one(answer: Any) -> None:
            if isinstance(answer, dict) and answer["change"] == "rollout":
                rollouts.append(answer["unit"])
            if not updates:
                promise.reply({"rows": [row.shown() for row in plan.rows], "token": plan.token, "warnings": heeded,
                               "rollouts": rollouts})  # fmt: skip
                return
            unit = updates.pop(0)

            def change(stored: Stored) -> Change:
                if token and _seen(stored, unit)[1] != plan.seen[unit][1]:
                    raise changed_since  # somebody rolls it out, or did
                return begin(stored, unit, files[unit], None, control.ports.clock.wall())

            transact(control, promise, change, next_one)

        mirrored = Promise()
        mirrored.bind(Then(next_one, promise.fail))
        control.wait_for(lambda: True if control.seen(UNITS) >= revision else None, mirrored, 6.0,
                         lambda: "it is stored, and this host has not seen it yet")  # fmt: skip

    transact(control, promise, look, made)
    return promise
