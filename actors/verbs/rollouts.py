"""Verbs about versions of units: how many run, and how a new one comes to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from brain.store import Item, Store, prefix_end
from fleet import names, rollout, unitfile
from fleet.rollout import Phase, Policy
from kernel.mailbox import Promise

from ..brain_client import ROLLOUTS, UNITS, VERSIONS, to_json
from ..control import BadRequest, Control, Failed, Missing, verb
from ..raft_messages import Query
from ..rollouts import VERSIONS_KEPT, instances, surge_names, versions
from ..wanted import Known
from .edits import (
    EDIT_TRIES,
    UNITS_MAX,
    Edits,
    check_files,
    edit,
    instance,
    refuse_cycles,
    refuse_other_names,
)

#: Bytes of all versions of a unit that are kept; the newest two are in any case.
VERSIONS_BYTES_MAX = 256 * 1024
#: Units that do not run whose files are replaced in one step.
AT_ONCE_MAX = 50


@dataclass(slots=True)
class Stored:
    """What is stored of units, their versions and rollouts, at one revision."""

    known: Known
    rollouts: dict[bytes, Item]
    versions: dict[bytes, Item]

    def rollout(self, unit: str) -> dict[str, Any] | None:
        """The last rollout of a unit."""
        item = self.rollouts.get(ROLLOUTS + unit.encode())
        return json.loads(item.value) if item is not None else None

    def active(self, unit: str) -> dict[str, Any] | None:
        """The rollout of a unit that is under way."""
        record = self.rollout(unit)
        return record if record is not None and not Phase(record["phase"]).is_over else None

    def versions_of(self, unit: str) -> list[dict[str, Any]]:
        """The versions of a unit that are kept, the newest last."""
        return versions(self.versions.get(VERSIONS + unit.encode()))

    def guard(self, prefix: bytes, unit: str) -> list[Any]:
        """The condition that a rollout, or the versions, are as they were."""
        items = self.rollouts if prefix == ROLLOUTS else self.versions
        item = items.get(prefix + unit.encode())
        return [prefix + unit.encode(), "mod", "=", item.mod if item is not None else 0]


#: Conditions, steps and the answer.
Change = tuple[list[Any], list[Any], Any]


def transact(
    control: Control, promise: Promise, change: Callable[[Stored], Change], then: Callable[[Any], None] | None = None
) -> None:
    """Change units, versions and rollouts together, provided that nobody else does; answers what ``change`` says."""

    def attempt(tries: int) -> None:
        def read(store: Store) -> Any:
            return [dict(store.range(prefix, prefix_end(prefix))) for prefix in (UNITS, ROLLOUTS, VERSIONS)]

        def have(raw: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
                return
            try:
                guards, steps, answer = change(Stored(Known(raw[0]), raw[1], raw[2]))
            except Exception as failure:  # noqa: BLE001 - the operator must hear of it
                promise.fail(failure)
                return

            def done(result: Any) -> None:
                if result["succeeded"]:
                    (then or promise.reply)(answer)
                elif tries > 1:
                    attempt(tries - 1)
                else:
                    promise.fail(Failed("others change the same units all the time; nothing was changed"))

            if steps:
                control.commit(["txn", guards, steps, []], promise, done)
            else:
                (then or promise.reply)(answer)

        control.ask_then(control.raft_ref, Query(read, True), 6.0, have)

    attempt(EDIT_TRIES)


def begin(stored: Stored, unit: str, content: str, how: Policy | None, now: float) -> Change:
    """Bring a unit, or the instances of a template, to a new file; by a rollout if any of them shall run."""
    if unit not in stored.known:
        raise Missing(f"no unit is called {unit}; submit its file first")
    record = stored.known[unit][0]
    digest = unitfile.content_hash(content)
    spec = unitfile.load(unit, content)[0] if unit.endswith(".service") else None
    kind = "template" if names.parse(unit).is_template else "global" if spec is not None and spec.is_global else "unit"
    targets = instances(stored.known, unit) if kind == "template" else [unit]
    active = stored.active(unit)
    differ = [name for name in {unit, *targets} if stored.known[name][0]["hash"] != digest]
    if (not differ and active is None) or (active is not None and active["to"] == digest and active["phase"] != Phase.ROLLING_BACK):
        return [], [], {"unit": unit, "change": "none" if active is None else "under way"}
    guards = [stored.known.guard(name) for name in sorted({unit, *targets})]
    kept = _with_versions(stored, unit, record, content, now)
    guards += [stored.guard(ROLLOUTS, unit), stored.guard(VERSIONS, unit)]
    is_at_rest = not any(stored.known[name][0]["desired"] == "launched" for name in targets)
    if spec is None or (is_at_rest and len(targets) <= AT_ONCE_MAX):
        steps = [["put", UNITS + name.encode(), to_json({**stored.known[name][0], "content": content, "hash": digest})]
                 for name in sorted({unit, *targets})]  # fmt: skip
        if active is not None:  # what it would have done is not wanted any more
            ended = {**active, "phase": Phase.FAILED, "reason": "a newer file came", "ended": round(now, 3)}
            steps += [["put", ROLLOUTS + unit.encode(), to_json(ended)]]
            steps += [["delete", UNITS + name.encode()] for name in surge_names(unit, active) if name in stored.known]
        return guards, [*steps, ["put", VERSIONS + unit.encode(), kept]], {"unit": unit, "change": "replaced"}
    policy = how or spec.update
    if policy.order == "start-first" and kind != "template":
        raise BadRequest(f"{unit}: order start-first is for templates; there is one copy of a unit at a time")
    plan = rollout.begin(active["from"] if active else record["hash"], digest, targets, policy, now) | {"kind": kind}
    steps = [["put", ROLLOUTS + unit.encode(), to_json(plan)], ["put", VERSIONS + unit.encode(), kept]]
    if active is not None:  # what ran beside the targets of the one before runs no more
        over = [name for name in surge_names(unit, active) if name in stored.known and name not in surge_names(unit, plan)]
        steps += [["delete", UNITS + name.encode()] for name in over]
    return guards[-2:], steps, {"unit": unit, "change": "rollout"}


def _with_versions(stored: Stored, unit: str, record: dict[str, Any], content: str, now: float) -> bytes:
    """The versions of a unit with the one that is stored and the one that comes."""
    listed = stored.versions_of(unit)
    if not any(version["hash"] == record["hash"] for version in listed):
        listed.append({"hash": record["hash"], "content": record["content"], "at": 0.0, "verdict": "good"})
    digest = unitfile.content_hash(content)
    listed = [version for version in listed if version["hash"] != digest]
    listed.append({"hash": digest, "content": content, "at": round(now, 3), "verdict": ""})
    while len(listed) > 2 and (len(listed) > VERSIONS_KEPT or sum(len(v["content"]) for v in listed) > VERSIONS_BYTES_MAX):
        oldest = next((v for v in listed[:-1] if v["hash"] != record["hash"]), None)
        if oldest is None:
            break
        listed.remove(oldest)
    return to_json(listed)


@verb("unit.update")
def _unit_update(control: Control, args: dict[str, Any]) -> Promise:
    """New files for units that are known, each by a rollout; answers when these have begun."""
    files, heeded = check_files(args["files"])
    try:
        how = rollout.policy(str(args["policy"])) if args.get("policy") else None
    except ValueError as error:
        raise BadRequest(f"--policy: {error}") from None
    promise = Promise()
    left = sorted(files)
    rows: list[dict[str, Any]] = []

    def following(answer: Any) -> None:
        if answer is not None:
            rows.append(answer)
        if not left:
            promise.reply({"units": rows, "warnings": heeded})
            return
        unit = left.pop(0)

        def change(stored: Stored) -> Change:
            refuse_other_names(stored.known, {unit: files[unit]})
            refuse_cycles(stored.known, {unit: files[unit]})
            return begin(stored, unit, files[unit], how, control.ports.clock.wall())

        transact(control, promise, change, following)

    following(None)
    return promise


@verb("unit.rollback")
def _unit_rollback(control: Control, args: dict[str, Any]) -> Promise:
    """Return to the version before: in the middle of a rollout that of its beginning, else the last good one.

    ``to``: a prefix of a version's hash.
    """
    unit = _own_name(control, args)
    to = str(args.get("to") or "")
    promise = Promise()

    def change(stored: Stored) -> Change:
        active = stored.active(unit)
        if active is not None and not to:
            record = rollout.back(active, "an operator asked for it")
            return [stored.guard(ROLLOUTS, unit)], [["put", ROLLOUTS + unit.encode(), to_json(record)]], {
                "unit": unit, "change": "rollout", "to": active["from"]}  # fmt: skip
        if unit not in stored.known:
            raise Missing(f"no unit is called {unit}")
        now = stored.known[unit][0]["hash"]
        found = [v for v in stored.versions_of(unit) if v["hash"] != now and (v["hash"].startswith(to) if to else v["verdict"] == "good")]
        if not found:
            raise Missing(f"{unit} has no {'version ' + to if to else 'good version before this one'}; see unit versions")
        if to and len(found) > 1:
            raise BadRequest(f"--to {to}: more than one version of {unit} begins so")
        guards, steps, answer = begin(stored, unit, found[-1]["content"], None, control.ports.clock.wall())
        return guards, steps, {**answer, "to": found[-1]["hash"]}

    transact(control, promise, change)
    return promise


_ACTIONS: dict[str, Callable[[dict[str, Any], float], dict[str, Any]]] = {
    "pause": lambda record, now: rollout.pause(record, "an operator asked for it"),
    "resume": rollout.resume,
    "promote": lambda record, now: rollout.promote(record),
}
#: The phases in which each may be asked for.
_WHEN = {
    "pause": (Phase.CANARY, Phase.WAITING, Phase.ROLLING, Phase.ROLLING_BACK),
    "resume": (Phase.PAUSED,),
    "promote": (Phase.WAITING, Phase.CANARY),
}


@verb("unit.rollout")
def _unit_rollout(control: Control, args: dict[str, Any]) -> Any:
    """How a rollout goes, or ``pause``, ``resume`` and ``promote``."""
    unit, action = _own_name(control, args), str(args.get("action") or "status")
    if action == "status":
        item = control.items(ROLLOUTS).get(ROLLOUTS + unit.encode())
        if item is None:
            raise Missing(f"{unit} was never rolled out")
        return _row(control, unit, json.loads(item.value))
    if action not in _ACTIONS:
        raise BadRequest(f"a rollout has no {action!r}: status, {', '.join(_ACTIONS)}")
    promise = Promise()

    def change(stored: Stored) -> Change:
        record = stored.active(unit)
        if record is None or record["phase"] not in _WHEN[action]:
            now = stored.rollout(unit)
            raise Failed(f"{unit}: nothing to {action}: " + (f"its rollout is {now['phase']}" if now else "it is not being rolled out"))
        changed = _ACTIONS[action](record, control.ports.clock.wall())
        steps = [["put", ROLLOUTS + unit.encode(), to_json(changed)]]
        return [stored.guard(ROLLOUTS, unit)], steps, _row(control, unit, changed)

    transact(control, promise, change)
    return promise


@verb("unit.rollouts")
def _unit_rollouts(control: Control, _: dict[str, Any]) -> Any:
    """The last rollout of each unit."""
    return [
        _row(control, key[len(ROLLOUTS) :].decode(), json.loads(item.value))
        for key, item in sorted(control.items(ROLLOUTS).items())
    ]


def _row(control: Control, unit: str, record: dict[str, Any]) -> dict[str, Any]:
    known = control.units()
    goal = record["from"] if record["phase"] in (Phase.ROLLING_BACK, Phase.ROLLED_BACK) else record["to"]
    if record["kind"] == "global":
        changed = (known.get(unit, {}).get("next") or {}).get("machines", [])
        done = len(record["targets"]) if Phase(record["phase"]).is_over else len(changed)
    else:
        done = sum(known.get(name, {}).get("hash") == goal for name in record["targets"])
    return {
        "unit": unit, "phase": record["phase"], "from": record["from"], "to": record["to"], "targets": len(record["targets"]),
        "changed": done, "reason": record["reason"], "failed": record["failed"], "began": record["began"],
        "ended": record["ended"] or None,
    }  # fmt: skip


@verb("unit.versions")
def _unit_versions(control: Control, args: dict[str, Any]) -> Promise:
    """Versions of a unit, the newest last."""
    unit = _own_name(control, args)
    promise = Promise()

    def change(stored: Stored) -> Change:
        if unit not in stored.known:
            raise Missing(f"no unit is called {unit}")
        now = stored.known[unit][0]
        listed = stored.versions_of(unit) or [{"hash": now["hash"], "at": 0.0, "verdict": ""}]
        active = stored.active(unit)
        rows = []
        for version in listed:
            state = "current" if version["hash"] == now["hash"] else version["verdict"] or "unknown"
            if active is not None and version["hash"] == active["to"]:
                state = active["phase"]
            rows.append({"unit": unit, "hash": version["hash"], "at": version["at"] or None, "state": state})
        return [], [], rows

    transact(control, promise, change)
    return promise


def _own_name(control: Control, args: dict[str, Any]) -> str:
    """A unit's own name; an instance stands for its template where that is what is rolled out."""
    known = Known(control.items(UNITS))
    unit = known.canonical(names.parse(str(args["unit"])).full)
    template = names.parse(unit).template
    return template if template in known and ROLLOUTS + unit.encode() not in control.items(ROLLOUTS) else unit


@verb("unit.scale")
def _unit_scale(control: Control, args: dict[str, Any]) -> Promise:
    """Let a template have so many instances: 1 to N are started, those with higher numbers destroyed."""
    known = Known(control.items(UNITS))
    template, count = known.canonical(names.parse(str(args["unit"])).full), int(args["count"])
    if not names.parse(template).is_template:
        raise BadRequest(f"{template} is no template: only NAME@ can be scaled")
    if not 0 <= count <= UNITS_MAX - 1:
        raise BadRequest(f"units_max: 0 to {UNITS_MAX - 1} instances, not {count}")
    promise = Promise()
    wanted = [instance(template, number) for number in range(1, count + 1)]
    gone = surplus(known, template, count)

    def change(known: Known, left: list[str]) -> Edits:
        return scaled(known, template, count, left)

    def done(revision: int) -> None:
        answer = {"template": template, "running": wanted, "destroyed": gone}
        control.wait_for(lambda: answer if control.seen(UNITS) >= revision else None, promise, 6.0,
                         lambda: "it is stored, and this host has not seen it yet")  # fmt: skip

    edit(control, [template, *wanted, *gone], promise, change, done)
    return promise


def scaled(known: Known, template: str, count: int, units: list[str]) -> Edits:
    """The steps that give a template so many instances, as far as they are about ``units``."""
    if template not in known:
        raise Missing(f"no unit is called {template}; submit its file first")
    edits: Edits = {}
    for unit in units:
        if unit == template:
            record = {**known[template][0], "replicas": count}
            if record != known[template][0]:
                edits[unit] = ["put", UNITS + unit.encode(), to_json(record)]
        elif _number(unit) > count:
            if unit in known:
                edits[unit] = ["delete", UNITS + unit.encode()]
        elif (step := known.change(unit, "launched", again=False)) is not None:
            edits[unit] = step
    return edits


def surplus(known: Known, template: str, count: int) -> list[str]:
    """Instances with numbers above so many."""
    return [unit for unit in instances(known, template) if _number(unit) > count]


def _number(unit: str) -> int:
    """The number of an instance; 0 for one that is called otherwise, and so is not counted."""
    text = names.parse(unit).instance
    return int(text) if text.isdigit() and len(text) < 6 else 0
