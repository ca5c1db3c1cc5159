"""Verbs about units: fleetctl's, as one process does them on the server side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleet import names, placement, syntax, unitfile
from fleet.placement import Candidate, Placements
from kernel.mailbox import Promise

from ..brain_client import ALIVE, UNITS
from ..control import VERBS, BadRequest, Command, Control, Failed, Missing, Then, to_json, verb

#: Units one command may name.
UNITS_MAX = 10_000


def _unit_names(args: dict[str, Any]) -> list[str]:
    out: list[str] = []
    for pattern in args["units"]:
        out += [names.parse(name).full for name in names.expand(str(pattern))]
    if not out:
        raise BadRequest("name at least one unit")
    if len(out) > UNITS_MAX:
        raise BadRequest(f"units_max: {UNITS_MAX} units in one command, these are {len(out)}")
    return list(dict.fromkeys(out))


@verb("unit.submit")
def _unit_submit(control: Control, args: dict[str, Any]) -> Promise:
    """Check and store unit files; an equal one is no change, another one needs ``replace``."""
    promise = Promise()
    known = control.units()
    warnings: list[str] = []
    problems: list[syntax.Problem] = []
    steps: list[Any] = []
    answers: list[dict[str, Any]] = []
    for file in args["files"]:
        name = names.parse(str(file["name"]))
        try:
            warnings += unitfile.load(name.full, str(file["content"]), file=str(file.get("path", "")))[1]
        except syntax.UnitFileError as error:
            problems += error.problems
            continue
        digest = unitfile.content_hash(file["content"])
        old = known.get(name.full)
        change = "none" if old and old["hash"] == digest else "replaced" if old else "created"
        if change == "replaced" and not args.get("replace"):
            warnings.append(f"{name.full} differs from what is stored; --replace takes the new one")
            change = "kept"
        answers.append({"unit": name.full, "change": change})
        if change in ("created", "replaced"):
            record = {
                "content": file["content"], "hash": digest,
                "desired": old["desired"] if old else "inactive",
                "restarts": old.get("restarts", 0) if old else 0,
            }  # fmt: skip
            steps.append(["put", UNITS + name.full.encode(), to_json(record)])
    if problems:
        raise syntax.UnitFileError(problems)
    _commit_steps(control, steps, promise, lambda: promise.reply({"units": answers, "warnings": warnings}))
    return promise


def _commit_steps(
    control: Control, steps: list[Any], promise: Promise, then: Callable[[], None]
) -> None:
    """Commit in transactions of at most 100 steps, one after another."""
    if not steps:
        then()
        return
    control.commit(
        ["txn", [], steps[:100], []], promise,
        lambda _: _commit_steps(control, steps[100:], promise, then),
    )  # fmt: skip


def _desire(control: Control, args: dict[str, Any], desired: str, bump: bool = False) -> list[Any]:
    """The steps that make units wanted in a state; instances are made from templates."""
    known = control.units()
    steps: list[Any] = []
    for unit in _unit_names(args):
        record = known.get(unit)
        if record is None:
            record = _from_template(known, unit)
        parsed = names.parse(unit)
        if parsed.is_template:
            raise BadRequest(f"{unit} is a template: name an instance like {parsed.prefix}@1.service")
        changed = {**record, "desired": desired}
        failed = any(s["active"] == "failed" for s in _states_of(control, unit))
        if bump or (desired == "launched" and failed):  # starting what failed is another try
            changed["restarts"] = record.get("restarts", 0) + 1
        if changed != known.get(unit):
            steps.append(["put", UNITS + unit.encode(), to_json(changed)])
    return steps


def _from_template(known: dict[str, Any], unit: str) -> dict[str, Any]:
    template = names.parse(unit).template
    if not template or template not in known:
        also = f", nor its template {template}" if template else ""
        raise Missing(f"no unit is called {unit}{also}; submit its file first")
    content = known[template]["content"]
    unitfile.load(unit, content)
    return {"content": content, "hash": unitfile.content_hash(content), "desired": "inactive", "restarts": 0}


def _change(desired: str, settled: Callable[[Control, str], Any], bump: bool = False) -> Any:
    """A verb that changes what is wanted and waits until it is so."""

    def run(control: Control, args: dict[str, Any]) -> Promise:
        promise = Promise()
        units = _unit_names(args)
        steps = _desire(control, args, desired, bump)
        timeout = float(args.get("within", 60.0))

        def committed() -> None:
            if args.get("no_block"):
                promise.reply(_rows(control, units))
                return

            def condition() -> Any:
                failures = [f for u in units if (f := settled(control, u)) not in (True, False)]
                if failures:
                    raise_later(Failed("; ".join(failures)))
                    return None
                done = all(settled(control, u) is True for u in units)
                return _rows(control, units) if done else None

            def raise_later(error: Exception) -> None:
                promise.fail(error)

            control.wait_for(
                lambda: True if promise.done else condition(), promise, timeout,
                lambda: _why_not(control, [u for u in units if settled(control, u) is not True]),
            )  # fmt: skip

        _commit_steps(control, steps, promise, committed)
        return promise

    return run


def _why_not(control: Control, units: list[str]) -> str:
    lines = [f"{unit}: {_why(control, unit)['reason']}" for unit in units[:10]]
    return "not done in time: " + "; ".join(lines)


def _states_of(control: Control, unit: str) -> list[dict[str, Any]]:
    return [s for (u, _), s in control.states().items() if u == unit]


def _is_started(control: Control, unit: str) -> Any:
    record = control.units().get(unit)
    if record is None or unit not in control.places():
        return False
    current = (record["hash"], record.get("restarts", 0))
    states = [s for s in _states_of(control, unit) if (s["hash"], s.get("asked", 0)) == current]
    if not states or len(states) < len(_states_of(control, unit)):
        return False
    for state in states:
        if state["active"] == "failed":
            return f"{unit} failed: {state.get('problem') or state['result']} ({state.get('last_exit', 'no exit')})"
        done_oneshot = state["sub"] == "dead" and state["result"] == "success" and state.get("last_exit")
        if not (state["active"] == "active" and state["health"] != "failing") and not done_oneshot:
            return False
    return True


def _is_stopped(control: Control, unit: str) -> Any:
    return all(s["active"] in ("inactive", "failed") for s in _states_of(control, unit))


def _is_loaded(control: Control, unit: str) -> Any:
    return unit in control.places() and bool(_states_of(control, unit)) and _is_stopped(control, unit)


def _is_off(control: Control, unit: str) -> Any:
    return unit not in control.places() and not _states_of(control, unit)


VERBS["unit.start"] = _change("launched", _is_started)
VERBS["unit.stop"] = _change("loaded", _is_stopped)
VERBS["unit.load"] = _change("loaded", _is_loaded)
VERBS["unit.unload"] = _change("inactive", _is_off)
VERBS["unit.restart"] = _change("launched", _is_started, bump=True)


@verb("unit.destroy")
def _unit_destroy(control: Control, args: dict[str, Any]) -> Promise:
    """Forget units; what runs is stopped, and gone when this answers."""
    promise = Promise()
    known = control.units()
    units = _unit_names(args)
    missing = [u for u in units if u not in known]
    if missing:
        raise Missing(f"no unit is called {', '.join(missing)}")
    steps = [["delete", UNITS + u.encode()] for u in units]

    def committed() -> None:
        if args.get("no_block"):
            promise.reply(True)
            return
        control.wait_for(
            lambda: True if all(_is_off(control, u) for u in units) else None, promise,
            float(args.get("within", 60.0)), lambda: "still stopping: " + ", ".join(units),
        )  # fmt: skip

    _commit_steps(control, steps, promise, committed)
    return promise


@verb("unit.cat")
def _unit_cat(control: Control, args: dict[str, Any]) -> Any:
    unit = names.parse(str(args["unit"])).full
    record = control.units().get(unit)
    if record is None:
        raise Missing(f"no unit is called {unit}")
    return record["content"]


@verb("unit.list")
def _unit_list(control: Control, _: dict[str, Any]) -> Any:
    known = control.units()
    placed = control.places()
    return _rows(control, sorted(u for u in known if not names.parse(u).is_template or u in placed))


@verb("unit.files")
def _unit_files(control: Control, _: dict[str, Any]) -> Any:
    return [
        {"unit": u, "hash": r["hash"], "desired": r["desired"], "machines": sorted(
            control.machine_name(m) for m in control.places().get(u, ()))}
        for u, r in sorted(control.units().items())
    ]  # fmt: skip


def _rows(control: Control, units: list[str]) -> list[dict[str, Any]]:
    """One row per unit and machine, with the contract's keys."""
    known, states, placed = control.units(), control.states(), control.places()
    now = control.ports.clock.wall()
    by_unit: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for (unit, machine), state in states.items():
        by_unit.setdefault(unit, []).append((machine, state))
    rows = []
    for unit in units:
        record = known.get(unit, {"desired": "inactive", "hash": ""})
        seen = sorted(by_unit.get(unit, []), key=lambda pair: control.machine_name(pair[0]))
        waiting = sorted(set(placed.get(unit, ())) - {m for m, _ in seen})
        if not seen and not waiting:
            rows.append(_row(unit, "", record, None, now))
        rows += [_row(unit, control.machine_name(m), record, s, now) for m, s in seen]
        rows += [_row(unit, control.machine_name(m), record, None, now) for m in waiting]
    return rows


def _row(
    unit: str, machine: str, record: dict[str, Any], state: dict[str, Any] | None, now: float
) -> dict[str, Any]:
    seen = state or {}
    return {
        "unit": unit, "machine": machine, "desired": record["desired"],
        "load": seen.get("load", "loaded"), "active": seen.get("active", "inactive"),
        "sub": seen.get("sub", "dead"), "health": seen.get("health", "none"),
        "restarts": seen.get("restarts", 0), "hash": seen.get("hash", record["hash"]),
        "pid_or_container": seen.get("pid") or None,
        "since_s": round(max(0.0, now - seen["since"]), 1) if "since" in seen else None,
        "result": seen.get("result", "success"), "ports": seen.get("ports", {}),
        "fence": seen.get("fence", 0),
    }  # fmt: skip


@verb("unit.status")
def _unit_status(control: Control, args: dict[str, Any]) -> Promise:
    """Rows of a unit with why it is so and its last log lines."""
    promise = Promise()
    unit = _known_unit(control, args)
    rows = _rows(control, [unit])
    status = {"unit": unit, "rows": rows, "why": _why(control, unit), "log": []}
    machines = [m for (u, m) in control.states() if u == unit]
    if not machines:
        promise.reply(status)
        return promise
    logs = Promise()
    logs.bind(Then(lambda value: promise.reply({**status, "log": value["lines"]}),
                    lambda error: promise.reply(status)))  # fmt: skip
    control.on(machines[0], Command("host.log", {"unit": unit, "lines": 10}), logs)
    return promise



def _known_unit(control: Control, args: dict[str, Any]) -> str:
    unit = names.parse(str(args["unit"])).full
    if unit not in control.units() and not _states_of(control, unit):
        raise Missing(f"no unit is called {unit}")
    return unit


@verb("unit.logs")
def _unit_logs(control: Control, args: dict[str, Any]) -> Promise:
    """The last lines, or what came after a position, from the machine that runs the unit."""
    unit = names.parse(str(args["unit"])).full
    machines = [m for (u, m) in control.states() if u == unit] or control.places().get(unit, [])
    if args.get("machine"):
        machines = [control.find_machine(str(args["machine"]))]
    if not machines:
        _known_unit(control, args)
        machines = [control.machine]
    promise = Promise()
    target = sorted(machines)[0]
    inner = Promise()
    inner.bind(Then(
        lambda value: promise.reply({**value, "machine": control.machine_name(target)}), promise.fail
    ))  # fmt: skip
    control.on(target, Command("host.log", {**args, "unit": unit}), inner)
    return promise


@verb("host.log")
def _host_log(control: Control, args: dict[str, Any]) -> Any:
    lines = int(args.get("lines", 10))
    if not 0 <= lines <= 100_000:
        raise BadRequest(f"--lines: 0 to 100000, not {lines}")
    processes = control.ports.processes
    position, found = processes.read_log(str(args["unit"]), lines, args.get("after"))
    return {"position": position, "lines": found}


@verb("unit.why")
def _unit_why(control: Control, args: dict[str, Any]) -> Any:
    return _why(control, _known_unit(control, args))


def _why(control: Control, unit: str) -> dict[str, Any]:
    """Why a unit is where it is, or is nowhere: one sentence, and one per machine."""
    record = control.units().get(unit)
    if record is None:
        return {"unit": unit, "reason": "it was destroyed and is being stopped", "machines": {}}
    if names.parse(unit).is_template:
        return {"unit": unit, "reason": "it is a template: instances of it run, not itself", "machines": {}}
    if record["desired"] == "inactive":
        return {"unit": unit, "reason": "nobody asked for it to be loaded or started", "machines": {}}
    where = control.places().get(unit, [])
    picture = _placements(control)
    spec = picture.units.get(unit)
    machines: dict[str, str] = {}
    if spec is not None:
        for machine, candidate in sorted(picture.machines.items()):
            refused = placement.refusal(spec, candidate, picture)
            machines[candidate.name] = refused or (
                "runs it" if machine in where else f"may run it ({len(picture.on.get(machine, ()))} units)"
            )
    alive = [m for m in where if m in picture.machines]
    if not where:
        reason = "no machine qualifies" if machines else "no machine is alive"
        if any(text.startswith("may run it") for text in machines.values()):
            reason = "it is about to be placed"
        return {"unit": unit, "reason": reason, "machines": machines}
    if not alive:
        lost = ", ".join(control.machine_name(m) for m in where)
        return {"unit": unit, "reason": f"its machine {lost} is lost; it will be moved", "machines": machines}
    seen = _states_of(control, unit)
    state = seen[0] if seen else None
    on = ", ".join(control.machine_name(m) for m in alive)
    if state is None:
        return {"unit": unit, "reason": f"placed on {on}, which has not started it yet", "machines": machines}
    detail = f"{state['active']} ({state['sub']})"
    for key in ("problem", "last_exit", "health_detail"):
        if state.get(key):
            detail += f", {key.replace('_', ' ')}: {state[key]}"
    return {"unit": unit, "reason": f"on {on}: {detail}", "machines": machines}


def _placements(control: Control) -> Placements:
    picture = Placements()
    for machine, about in control.machines().items():
        if ALIVE + machine.encode() in control.items(ALIVE):
            metadata = tuple(sorted(about["metadata"].items()))
            picture.machines[machine] = Candidate(machine, about["name"], metadata)
    for unit, record in control.units().items():
        try:
            picture.units[unit] = unitfile.load(unit, record["content"])[0]
        except ValueError:
            continue
    for unit, machines in control.places().items():
        for machine in machines:
            picture.place(unit, machine)
    return picture
