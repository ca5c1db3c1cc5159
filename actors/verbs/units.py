"""Verbs about units: fleetctl's, as one process does them on the server side."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from fleet import dependencies, names, placement, timer, unitfile
from fleet.dependencies import is_over
from fleet.placement import Placements
from fleet.rollout import Phase
from fleet.spec import UnitSpec
from kernel.mailbox import Promise

from ..brain_client import MOVES, ROLLOUTS, TIMERS, UNITS, to_json
from ..command import Command
from ..control import VERBS, BadRequest, Control, Failed, Missing, Then, verb
from ..picture import placements
from ..unit_messages import Reload
from ..wanted import Known
from .edits import (
    Edits,
    check_files,
    desire,
    desire_with_others,
    done_run,
    edit,
    is_timer,
    refuse_cycles,
    refuse_other_names,
    unit_names,
)

#: Logs (of a unit on a machine) that one command may show.
LOG_SOURCES_MAX = 200
#: Questions to machines that one look at a unit may ask.
STATUS_SOURCES_MAX = 40
#: Why a unit is nowhere, when every machine refuses it.
NOBODY = "no machine qualifies"


@verb("unit.submit")
def _unit_submit(control: Control, args: dict[str, Any]) -> Promise:
    """Check and store unit files; an equal one is no change, another one needs ``replace``."""
    promise = Promise()
    files, heeded = check_files(args["files"])
    verdicts: dict[str, str] = {}
    notes: list[str] = []

    def change(known: Known, left: list[str]) -> Edits:
        edits: Edits = {}
        refuse_other_names(known, files)
        notes[:] = refuse_cycles(known, files)
        for unit in left:
            content = files[unit]
            old = known[unit][0] if unit in known else None
            digest = unitfile.content_hash(content)
            verdict = "none" if old and old["hash"] == digest else "replaced" if old else "created"
            if verdict == "replaced" and not args.get("replace"):
                verdict = "kept"
            if verdict == "replaced" and (phase := _rolling(control, unit)):
                raise Failed(f"{unit} is being rolled out ({phase}): unit update takes the new file, unit rollback ends it")
            verdicts[unit] = verdict
            if verdict in ("created", "replaced"):
                kept = {k: v for k, v in (old or {}).items() if k in ("desired", "restarts", "replicas", "set")}
                record = {"desired": "inactive", "restarts": 0, **kept, "content": content, "hash": digest}
                edits[unit] = ["put", UNITS + unit.encode(), to_json(record)]
        return edits

    def done(revision: int) -> None:
        kept = [f"{u} differs from what is stored; --replace takes the new one"
                for u, verdict in verdicts.items() if verdict == "kept"]  # fmt: skip
        answer = {
            "units": [{"unit": u, "change": verdict} for u, verdict in verdicts.items()],
            "warnings": heeded + kept + notes,
        }
        # what is said to be known is found by the next command here, also by its other names
        control.wait_for(lambda: answer if control.seen(UNITS) >= revision else None, promise, 6.0,
                         lambda: "the units are stored, and this host has not seen it yet")  # fmt: skip

    edit(control, list(files), promise, change, done)
    return promise


def _change(verb_: str, desired: str, settled: Callable[[Control, str], Any]) -> Any:
    """A verb that changes what is wanted and waits until it is so.

    ``verb_``: what it is to units that depend on those it names (``start``, ``stop``, ``restart``).
    """

    def run(control: Control, args: dict[str, Any]) -> Promise:
        promise = Promise()
        units = unit_names(control, args, verb_ if desired == "launched" else "stop")
        timeout = float(args.get("within", 60.0))

        def committed(revision: int) -> None:
            def condition() -> Any:
                if control.seen(UNITS) < revision:
                    return None  # the listing is about to show what was just changed
                if args.get("no_block"):
                    return _rows(control, units)
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

        def change(known: Known, left: list[str]) -> Edits:
            return desire_with_others(control, known, left, verb_, desired)

        edit(control, units, promise, change, committed)
        return promise

    return run


def _why_not(control: Control, units: list[str]) -> str:
    return "not done in time: " + "; ".join(_in_short(_why(control, unit)) for unit in units[:10])


def _in_short(why: dict[str, Any]) -> str:
    """Why a unit is not placed, with what the first machines say to it."""
    text = f"{why['unit']}: {why['reason']}"
    if why["reason"] != NOBODY:
        return text
    said = [f"{name}: {refusal}" for name, refusal in list(why["machines"].items())[:3]]
    return f"{text} ({'; '.join(said)})" if said else text


def _is_started(control: Control, unit: str) -> Any:
    record = control.wanted(unit)
    if record is not None and is_timer(unit):
        return TIMERS + unit.encode() in control.items(TIMERS)
    if record is None or not control.placed(unit):
        return False
    current = (record["hash"], record.get("restarts", 0))
    held = _held(control, unit)
    if held is not None:
        return f"{unit} is not started: {held['hold']}" if held["blocked"] else False
    states = [s for s in control.states_of(unit).values() if (s["hash"], s.get("asked", 0)) == current]
    if not states or len(states) < len(control.states_of(unit)):
        return False
    for state in states:
        if state["active"] == "failed":
            return f"{unit} failed: {state.get('problem') or state['result']} ({state.get('last_exit', 'no exit')})"
        if not (state["active"] == "active" and state["health"] != "failing") and not is_over(state):
            return False
    return True


def _held(control: Control, unit: str) -> dict[str, Any] | None:
    """What keeps a unit from starting where it is placed: the reason, and whether that ends by itself."""
    places = [json.loads(item.value) for item in control.placed(unit)]
    held = [place for place in places if place.get("hold")]
    return held[0] if held and len(held) == len(places) else None


def _is_stopped(control: Control, unit: str) -> Any:
    return all(s["active"] in ("inactive", "failed") for s in control.states_of(unit).values())


def _is_loaded(control: Control, unit: str) -> Any:
    return is_timer(unit) or (bool(control.placed(unit)) and bool(control.states_of(unit)) and _is_stopped(control, unit))


def _is_off(control: Control, unit: str) -> Any:
    return not control.placed(unit) and not control.states_of(unit)


VERBS["unit.start"] = _change("start", "launched", _is_started)
VERBS["unit.stop"] = _change("stop", "loaded", _is_stopped)
VERBS["unit.load"] = _change("stop", "loaded", _is_loaded)
VERBS["unit.unload"] = _change("stop", "inactive", _is_off)
VERBS["unit.restart"] = _change("restart", "launched", _is_started)


def _rolling(control: Control, unit: str) -> str:
    """The phase of a rollout of a unit that is under way; empty if there is none."""
    item = control.items(ROLLOUTS).get(ROLLOUTS + unit.encode())
    phase = Phase(json.loads(item.value)["phase"]) if item is not None else Phase.DONE
    return "" if phase.is_over else phase


@verb("unit.destroy")
def _unit_destroy(control: Control, args: dict[str, Any]) -> Promise:
    """Forget units; what runs is stopped, and gone when this answers."""
    promise = Promise()
    units = unit_names(control, args)

    def change(known: Known, left: list[str]) -> Edits:
        missing = [u for u in left if u not in known]
        if missing:
            raise Missing(f"no unit is called {', '.join(missing)}")
        plan = dependencies.plan("stop", left, known.related(), known.spec)
        others = known.launched(plan.stop)
        gone: Edits = {u: ["delete", UNITS + u.encode()] for u in left}
        return desire(control, known, others, "loaded", bump=False) | gone

    def committed(revision: int) -> None:
        if args.get("no_block"):
            promise.reply(True)
            return
        control.wait_for(
            lambda: True if control.seen(UNITS) >= revision and all(_is_off(control, u) for u in units) else None,
            promise, float(args.get("within", 60.0)), lambda: "still stopping: " + ", ".join(units),
        )  # fmt: skip

    edit(control, units, promise, change, committed)
    return promise


@verb("unit.cat")
def _unit_cat(control: Control, args: dict[str, Any]) -> Any:
    record = control.wanted(_known_unit(control, args))
    if record is None:
        raise Missing(f"no unit is called {args['unit']}")
    return record["content"]


@verb("unit.list")
def _unit_list(control: Control, _: dict[str, Any]) -> Any:
    known = control.units()
    placed = control.places()
    return _rows(control, sorted(u for u in known if not names.parse(u).is_template or u in placed))


@verb("unit.records")
def _unit_records(control: Control, _: dict[str, Any]) -> Any:
    """Everything that is stored and true of units, for doors that show it in their own way."""
    placed, states = control.places(), control.states()
    by_unit: dict[str, list[dict[str, Any]]] = {}
    for (unit, machine), state in sorted(states.items()):
        shown = {key: state[key] for key in ("hash", "load", "active", "sub")}
        by_unit.setdefault(unit, []).append({"machine": machine, **shown})
    return [
        {"unit": unit, "content": record["content"], "desired": record["desired"], "states": by_unit.get(unit, []),
         "machines": sorted(placed.get(unit, ())), "is_global": len(placed.get(unit, ())) > 1}
        for unit, record in sorted(control.units().items())
    ]  # fmt: skip


@verb("unit.files")
def _unit_files(control: Control, _: dict[str, Any]) -> Any:
    return [
        {"unit": u, "hash": r["hash"], "desired": r["desired"], "machines": sorted(
            control.machine_name(m) for m in control.places_of(u))}
        for u, r in sorted(control.units().items())
    ]  # fmt: skip


def _rows(control: Control, units: list[str]) -> list[dict[str, Any]]:
    """One row per unit and machine, with the contract's keys."""
    now = control.ports.clock.wall()
    rows = []
    for unit in units:
        record = control.wanted(unit) or {"desired": "inactive", "hash": ""}
        seen = sorted(control.states_of(unit).items(), key=lambda pair: control.machine_name(pair[0]))
        waiting = sorted(set(control.places_of(unit)) - {m for m, _ in seen})
        if not seen and not waiting:
            rows.append(_row(unit, "", record, None, now))
        rows += [_row(unit, control.machine_name(m), record, s, now) for m, s in seen]
        rows += [_row(unit, control.machine_name(m), record, None, now) for m in waiting]
        if is_timer(unit) and TIMERS + unit.encode() in control.items(TIMERS):
            rows[-1] |= {"active": "active", "sub": "waiting"}
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
        "pid_or_container": seen.get("container") or seen.get("pid") or None,
        "since_s": round(max(0.0, now - seen["since"]), 1) if "since" in seen else None,
        "result": seen.get("result", "success"), "ports": seen.get("ports", {}),
        "fence": seen.get("fence", 0),
    }  # fmt: skip


@verb("unit.status")
def _unit_status(control: Control, args: dict[str, Any]) -> Promise:
    """Rows of a unit with why it is so, what happened to it, its processes, and its last log lines."""
    promise = Promise()
    unit = _known_unit(control, args)
    rows = _rows(control, [unit])
    lines: list[Any] = []
    processes: list[dict[str, Any]] = []
    status = {"unit": unit, "rows": rows, "why": _why(control, unit), "history": _history(control, unit),
              "processes": processes, "log": lines}  # fmt: skip
    asked = [(m, verb_) for m in control.states_of(unit) for verb_ in ("host.log", "host.processes")]
    left = len(asked[:STATUS_SOURCES_MAX])

    def one(machine: str, verb_: str) -> None:
        def done(value: Any) -> None:
            nonlocal left
            left -= 1
            if value is not None and verb_ == "host.log":
                lines[:] = sorted([*lines, *value["lines"]])[-10:]
            elif value:
                processes.extend({"machine": control.machine_name(machine), **row} for row in value)
            if not left:
                promise.reply(status)

        inner = Promise()
        inner.bind(Then(done, lambda error: done(None)))
        control.on(machine, Command(verb_, {"unit": unit, "lines": 10}), inner)

    if not left:
        promise.reply(status)
    for machine, verb_ in asked[:STATUS_SOURCES_MAX]:
        one(machine, verb_)
    return promise


@verb("host.processes")
def _host_processes(control: Control, args: dict[str, Any]) -> Promise:
    """What a unit runs on this machine."""
    promise = Promise()
    inbox = control.actor_inbox
    unit = str(args["unit"])
    state = control.states_of(unit).get(control.machine, {})

    def done(rows: list[dict[str, Any]]) -> None:
        inbox.post(lambda: promise.reply(rows))

    control.ports.processes.running(unit, state.get("container", ""), state.get("pid", 0), done)
    return promise


@verb("unit.history")
def _unit_history(control: Control, args: dict[str, Any]) -> Any:
    return _history(control, _known_unit(control, args))


def _history(control: Control, unit: str) -> list[dict[str, Any]]:
    """What happened to a unit, oldest first: its runs where it is now, and how it came there."""
    rows = []
    for machine, state in control.states_of(unit).items():
        where = control.machine_name(machine)
        for began, ended, result, how in state.get("runs", []):
            rows.append({"time": began, "machine": where, "event": "started", "detail": ""})
            rows.append({"time": ended, "machine": where, "event": "ended",
                         "detail": f"{result}, {how}" if how else result})  # fmt: skip
        event = {"active": "started", "failed": "failed", "inactive": "at rest"}.get(state["active"], state["active"])
        if event == "started" or not state.get("runs"):
            rows.append({"time": state["since"], "machine": where, "event": event, "detail": ""})
    item = control.items(MOVES).get(MOVES + unit.encode())
    for moment, source, target, why in json.loads(item.value) if item is not None else ():
        detail = f"to {control.machine_name(target)}: {why}" if target else why
        rows.append({"time": moment, "machine": control.machine_name(source), "event": "left", "detail": detail})
    return sorted(rows, key=lambda row: (row["time"], row["event"] != "ended"))


def _known_unit(control: Control, args: dict[str, Any]) -> str:
    unit = Known(control.items(UNITS)).canonical(names.parse(str(args["unit"])).full)
    if control.wanted(unit) is None and not control.states_of(unit):
        raise Missing(f"no unit is called {unit}")
    return unit


@verb("unit.logs")
def _unit_logs(control: Control, args: dict[str, Any]) -> Promise:
    """Lines of units from the machines that run them: the last ones, or those after positions.

    ``units``: names and patterns.  ``after``: positions by ``unit@machine``, from an answer before.
    The answer has one stream for each unit and machine.
    """
    after = args.get("after") or {}
    targets = [tuple(key.rsplit("@", 1)) for key in after] if after else _log_sources(control, args)
    promise = Promise()
    streams: list[dict[str, Any]] = []
    left = len(targets)

    def one(unit: str, machine: str) -> None:
        def done(value: Any) -> None:
            nonlocal left
            left -= 1
            name = control.machine_name(machine)
            if value is not None:
                streams.append({"unit": unit, "machine": name, "source": f"{unit}@{machine}", **value})
            if not left:
                promise.reply({"streams": sorted(streams, key=lambda stream: stream["source"])})

        inner = Promise()
        inner.bind(Then(done, lambda error: done({"position": after.get(f"{unit}@{machine}", ""), "lines": [],
                                                  "error": str(error)})))  # fmt: skip
        about = {"unit": unit, "lines": args.get("lines", 10), "since": args.get("since", 0.0),
                 "after": after.get(f"{unit}@{machine}", "")}  # fmt: skip
        control.on(machine, Command("host.log", about), inner)

    if not targets:
        promise.reply({"streams": []})
    for unit, machine in targets:
        one(unit, machine)
    return promise


def _log_sources(control: Control, args: dict[str, Any]) -> list[tuple[str, str]]:
    """(unit, machine) of every log that is meant."""
    stored = Known(control.items(UNITS))
    known = set(stored) | {unit for unit, _ in control.states()}
    only = control.find_machine(str(args["machine"])) if args.get("machine") else ""
    found: list[tuple[str, str]] = []
    for text in args["units"]:
        name = str(text)
        if not any(char in name for char in "*?["):
            name = stored.canonical(names.parse(name).full)
        units = _matching(known, name)
        for unit in units:
            machines = set(control.states_of(unit)) or set(control.places_of(unit))
            found += [(unit, machine) for machine in sorted({only} if only else machines or {control.machine})]
    if len(found) > LOG_SOURCES_MAX:
        raise BadRequest(f"log_sources_max: {LOG_SOURCES_MAX} logs at a time, these are {len(found)}")
    return found


def _matching(known: set[str], text: str) -> list[str]:
    """Units of a name, of a template (all its instances), or of a pattern."""
    if any(char in text for char in "*?["):
        pattern = text if text.endswith(names.SUFFIXES) else text + ".service"
        units = sorted(unit for unit in known if fnmatch.fnmatchcase(unit, pattern))
    else:
        parsed = names.parse(text)
        instances = sorted(unit for unit in known if names.parse(unit).template == parsed.full)
        units = instances if parsed.is_template and instances else [parsed.full] if parsed.full in known else []
    if not units:
        raise Missing(f"no unit is called {text}")
    return units


@verb("host.log")
def _host_log(control: Control, args: dict[str, Any]) -> Promise:
    lines = int(args.get("lines", 10))
    if not 0 <= lines <= 100_000:
        raise BadRequest(f"--lines: 0 to 100000, not {lines}")
    promise = Promise()
    inbox = control.actor_inbox

    def done(page: Any) -> None:
        rows = [[line.time, line.text, line.invocation] for line in page.lines]
        inbox.post(lambda: promise.reply({"position": page.position, "lines": rows}))

    since = float(args.get("since") or 0.0)
    control.ports.processes.read_log(str(args["unit"]), lines, str(args.get("after") or ""), since, done)
    return promise


@verb("unit.reload")
def _unit_reload(control: Control, args: dict[str, Any]) -> Promise:
    """Run ExecReload=, or what stands for it, wherever the units run; answers where that is."""
    promise = Promise()
    found = []
    for unit in unit_names(control, args):
        machines = [m for m, state in control.states_of(unit).items() if state["active"] == "active"]
        if not machines:
            _known_unit(control, {"unit": unit})
            raise Failed(f"{unit} does not run, so it cannot be reloaded")
        found += [(unit, machine) for machine in sorted(machines)]
    left = len(found)

    def done(_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            promise.reply([{"unit": unit, "machine": control.machine_name(m)} for unit, m in found])

    for unit, machine in found:
        inner = Promise()
        inner.bind(Then(done, promise.fail))
        control.on(machine, Command("host.reload", {"unit": unit}), inner)
    return promise


@verb("host.reload")
def _host_reload(control: Control, args: dict[str, Any]) -> Any:
    ref = control.system.find(f"units/{args['unit']}")
    if ref is None:
        raise Missing(f"{args['unit']} is not on {control.machine_name(control.machine)}")
    ref.tell(Reload())
    return True


@verb("unit.why")
def _unit_why(control: Control, args: dict[str, Any]) -> Any:
    return _why(control, _known_unit(control, args))


def _why(control: Control, unit: str) -> dict[str, Any]:
    """Why a unit is where it is, or is nowhere: one sentence, and one per machine."""
    record = control.wanted(unit)
    if record is None:
        return {"unit": unit, "reason": "it was destroyed and is being stopped", "machines": {}}
    if names.parse(unit).is_template:
        return {"unit": unit, "reason": "it is a template: instances of it run, not itself", "machines": {}}
    if is_timer(unit) and TIMERS + unit.encode() in control.items(TIMERS):
        return {"unit": unit, "reason": _why_timer(control, unit, record), "machines": {}}
    if record["desired"] == "inactive":
        return {"unit": unit, "reason": "nobody asked for it to be loaded or started", "machines": {}}
    where = control.places_of(unit)
    picture = all_placements(control)
    spec = picture.units.get(unit)
    machines: dict[str, str] = {}
    if spec is not None:
        for machine, candidate in sorted(picture.machines.items()):
            refused = placement.refusal(spec, candidate, picture)
            machines[candidate.name] = refused or (
                "runs it" if machine in where else f"may run it ({len(picture.on.get(machine, ()))} units)"
            )
    alive = [m for m in where if m in picture.machines]
    if not alive and (done := done_run(control, unit, record)) is not None:
        on, at = control.machine_name(done["machine"]), _utc(done["at"])
        return {"unit": unit, "reason": f"it has done its work on {on} at {at}", "machines": machines}
    if not where:
        reason = NOBODY if machines else "no machine is alive"
        if any(text.startswith("may run it") for text in machines.values()):
            reason = "it is about to be placed"
        return {"unit": unit, "reason": reason, "machines": machines}
    if not alive:
        lost = ", ".join(control.machine_name(m) for m in where)
        return {"unit": unit, "reason": f"its machine {lost} is lost; it will be moved", "machines": machines}
    seen = list(control.states_of(unit).values())
    state = seen[0] if seen else None
    on = ", ".join(control.machine_name(m) for m in alive)
    if state is None and (held := _held(control, unit)) is not None:
        return {"unit": unit, "reason": f"placed on {on}, held: {held['hold']}", "machines": machines}
    if state is None:
        return {"unit": unit, "reason": f"placed on {on}, which has not started it yet", "machines": machines}
    held = _held(control, unit)
    detail = f"{state['active']} ({state['sub']})" + (f", held: {held['hold']}" if held is not None else "")
    if state["result"] != "success":
        detail += f", result: {state['result']}"
    if any(picture.machines[m].draining for m in alive):
        detail += ", about to leave: its machine is drained"
    for key in ("status", "problem", "last_exit", "health_detail"):
        if state.get(key):
            detail += f", {key.replace('_', ' ')}: {state[key]}"
    return {"unit": unit, "reason": f"on {on}: {detail}", "machines": machines}


def _why_timer(control: Control, unit: str, record: dict[str, Any]) -> str:
    """When it elapses next, and when it did last."""
    spec = unitfile.load_timer(unit, record["content"])
    known = json.loads(control.items(TIMERS)[TIMERS + unit.encode()].value)
    states = [s["since"] for s in control.states_of(spec.unit).values() if s["active"] in ("inactive", "failed") and s.get("last_exit")]
    target = timer.Target(0.0, max(states, default=0.0))
    kept = timer.Record(known["since"], known["last"], known["fired"])
    at = timer.next_elapse(spec, kept, target, control.ports.clock.wall())
    then = f"starts {spec.unit} at {_utc(at)}" if at is not None else f"waits for {spec.unit}, or elapses no more"
    return f"{then}; last: {_utc(known['fired']) if known['fired'] else 'never'}"


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def all_placements(control: Control) -> Placements:
    """Machines that are alive, units, and where these are, as this host sees it."""
    specs: dict[str, UnitSpec | None] = {}
    for unit, record in control.units().items():
        try:
            specs[unit] = unitfile.load(unit, record["content"])[0]
        except ValueError:
            continue
    return placements(control.items, specs, control.ports.clock.wall())
