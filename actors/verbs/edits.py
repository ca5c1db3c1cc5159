"""Changing what is stored of units: checked as a whole, and provided that nobody else changes the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from brain.store import Store, prefix_end
from fleet import dependencies, dropins, names, syntax, unitfile
from fleet.dependencies import Graph, is_over
from kernel.mailbox import Promise

from ..brain_client import DONE, UNITS
from ..control import BadRequest, Control, Failed, Missing
from ..picture import run_of
from ..raft_messages import Query
from ..wanted import Known

#: Units one command may name, and units in one transaction.
UNITS_MAX, EDIT_BATCH = 10_000, 100
#: How often an edit is tried again when others change the same units.
EDIT_TRIES = 10
#: A step of a transaction for each unit that an edit changes.
Edits = dict[str, list[Any]]


def unit_names(control: Control, args: dict[str, Any], verb_: str = "") -> list[str]:
    """Units that a command names, by their own names; ranges and replicas are expanded.

    A template with replicas stands for its instances: for those that it shall have in a
    ``start``, for those that are there in other verbs.
    """
    known = Known(control.items(UNITS))
    out: list[str] = []
    for pattern in args["units"]:
        for name in names.expand(str(pattern)):
            unit = known.canonical(names.parse(name).full)
            count = replicas(known, unit) if verb_ else None
            if count is None:
                out.append(unit)
            elif verb_ == "start":
                out += [instance(unit, number) for number in range(1, count + 1)]
            else:
                out += [other for other in known if names.parse(other).template == unit]
    if not out:
        raise BadRequest("name at least one unit")
    if len(out) > UNITS_MAX:
        raise BadRequest(f"units_max: {UNITS_MAX} units in one command, these are {len(out)}")
    return list(dict.fromkeys(out))


def replicas(known: Known, template: str) -> int | None:
    """How many instances a template shall have (``unit scale``, or Replicas=); None if that is not said."""
    if template not in known or not names.parse(template).is_template:
        return None
    record = known[template][0]
    if "replicas" in record:
        return int(record["replicas"])
    spec = known.spec(template)
    return spec.replicas if spec is not None else None


def instance(template: str, number: int) -> str:
    """The name of an instance."""
    parsed = names.parse(template)
    return f"{parsed.prefix}@{number}{parsed.suffix}"


def is_timer(unit: str) -> bool:
    """Whether a unit starts another."""
    return unit.endswith(".timer")


def check_files(given: list[dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Unit files as an operator sends them: content with its drop-ins by name, and what is to be said of them.

    Raises every problem of all of them.
    """
    problems: list[syntax.Problem] = []
    heeded: list[str] = []
    files: dict[str, str] = {}
    for file in given:
        name = names.parse(str(file["name"]))
        path, content = str(file.get("path", "")), str(file["content"])
        parts = [(str(part["path"]), str(part["content"])) for part in file.get("dropins") or ()]
        try:
            content, origins = dropins.merge(path, content, parts)
            heeded += unitfile.check(name.full, content, path, origins)
        except syntax.UnitFileError as error:
            problems += error.problems
        if files.setdefault(name.full, content) != content:
            raise BadRequest(f"{name.full} is given twice, with different content")
    if problems:
        raise syntax.UnitFileError(problems)
    return files, heeded


def refuse_other_names(known: Known, files: dict[str, str]) -> None:
    """A name is of one unit: its own, or an alias."""
    taken = {alias: unit for alias, unit in known.aliases.items() if unit not in files}
    for unit, text in files.items():
        if unit in taken:
            raise BadRequest(f"{unit} is another name of {taken[unit]} (Alias=)")
        for alias in unitfile.load(unit, text)[0].aliases if not is_timer(unit) else ():
            owner = taken.setdefault(alias, unit)
            if alias in known or alias in files or owner != unit:
                raise BadRequest(f"{unit}: Alias={alias} is {'another name of ' + owner if owner != unit else 'a unit of its own'}")


def refuse_cycles(known: Known, files: dict[str, str]) -> list[str]:
    """Units that wait for each other would wait for ever; what names no unit is only said."""
    stored = known.related()
    new = {unit: known.by_own_names(unitfile.load(unit, text)[0]) for unit, text in files.items() if not is_timer(unit)}
    specs = {**stored, **{unit: spec for unit, spec in new.items() if not spec.name.is_template}}
    for unit in known:
        if unit not in specs and (spec := known.spec(unit)) is not None and any(
            unit in other.related.get(key, ()) for other in specs.values() for key in ("After", "Before", "BindsTo")
        ):
            specs[unit] = spec
    loop = Graph(specs).cycle(new)
    if loop:
        raise BadRequest(f"these units would wait for each other for ever: {' after '.join(loop)}")
    notes = []
    for unit, spec in new.items():
        for key, others in spec.related.items() if not spec.name.is_template else ():
            absent = [o for o in others if not known.source(o) and not {o, names.parse(o).template} & set(files)]
            notes += [f"{unit}: {key}={o}: there is no such unit yet; until there is, it is of no consequence" for o in absent]
    return notes


def edit(
    control: Control, units: list[str], promise: Promise, change: Callable[[Known, list[str]], Edits],
    then: Callable[[int], None],
) -> None:  # fmt: skip
    """Change what is stored of units, provided that nobody else does; ``then(revision)``.

    What is stored is read from the brain, not from a mirror, which may lag behind what an
    operator was told is done.  ``change(known, left)`` may be asked again for the units that are left.
    """
    left = list(units)
    newest = 0

    def attempt(tries: int) -> None:
        def read(store: Store) -> Any:
            return dict(store.range(UNITS, prefix_end(UNITS)))

        def have(raw: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
                return
            try:
                known = Known(raw)
                commit(known, list(change(known, left).items()), tries)
            except Exception as failure:  # noqa: BLE001 - the operator must hear of it
                promise.fail(failure)

        control.ask_then(control.raft_ref, Query(read, True), 6.0, have)

    def commit(known: Known, edits: list[tuple[str, list[Any]]], tries: int) -> None:
        if not edits:
            then(newest)
            return
        batch, rest = edits[:EDIT_BATCH], edits[EDIT_BATCH:]
        guards = [known.guard(unit) for unit, _ in batch]

        def done(result: Any) -> None:
            nonlocal newest
            if result["succeeded"]:
                newest = result["revision"]
                left[:] = [unit for unit in left if unit not in dict(batch)]
                commit(known, rest, tries)
            elif tries > 1:
                attempt(tries - 1)
            else:
                promise.fail(Failed("others change the same units all the time; nothing more was changed"))

        control.commit(["txn", guards, [step for _, step in batch], []], promise, done)

    attempt(EDIT_TRIES)


def desire(control: Control, known: Known, units: list[str], desired: str, bump: bool) -> Edits:
    """The steps that make units wanted in a state; instances are made from templates."""
    edits: Edits = {}
    for unit in units:
        parsed = names.parse(unit)
        if parsed.is_template:
            raise BadRequest(f"{unit} is a template: name an instance like {parsed.prefix}@1.service")
        if not known.source(unit):
            also = f", nor its template {parsed.template}" if parsed.template else ""
            raise Missing(f"no unit is called {unit}{also}; submit its file first")
        # starting what has ended is another run, whose outcome is not that of the last
        over = desired == "launched" and (
            any(map(is_over, control.states_of(unit).values()))
            or (unit in known and done_run(control, unit, known[unit][0]) is not None)
        )
        step = known.change(unit, desired, again=bump or over)
        if step is not None:
            edits[unit] = step
    return edits


def desire_with_others(control: Control, known: Known, units: list[str], verb_: str, desired: str) -> Edits:
    """What an operator wants of units, and what that means for others."""
    specs = known.related()
    plan = dependencies.plan(verb_, units, specs, known.spec)
    for unit, other in plan.requisites:
        if not any(state["active"] in ("active", "reloading") for state in control.states_of(other).values()):
            raise Failed(f"{unit} is not started: Requisite={other}, which is not active")
    if verb_ == "start":
        chosen = {unit: spec for unit in [*units, *plan.launch] if (spec := known.spec(unit)) is not None}
        loop = Graph({**specs, **chosen}).cycle(chosen)
        if loop:
            raise Failed(f"these units would wait for each other for ever: {' after '.join(loop)}")

    edits = desire(control, known, units, desired, bump=verb_ == "restart")
    edits |= desire(control, known, plan.launch, "launched", bump=False)
    edits |= desire(control, known, known.launched(plan.stop), "loaded", bump=False)
    return edits | desire(control, known, known.launched(plan.restart), "launched", bump=True)


def done_run(control: Control, unit: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """When and where a job has done its work, in the run that is wanted."""
    item = control.items(DONE).get(DONE + unit.encode())
    done: dict[str, Any] | None = json.loads(item.value) if item is not None else None
    return done if done is not None and tuple(done["run"]) == run_of(record) else None
