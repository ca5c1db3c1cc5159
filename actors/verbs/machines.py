"""Verbs about machines: what they are, what operators want of them, and how units are spread over them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from brain.store import Store, prefix_end
from fleet import placement
from kernel.mailbox import Promise

from ..brain_client import AGENTS, ALIVE, LOCKS, MACHINES, ORDERS, PLACES, REBALANCE, STATES, UPDATES, to_json
from ..control import BadRequest, Control, Failed, verb
from ..picture import machine_and_unit, metadata, orders
from ..raft_messages import ChangeConfig, Query, Range, Status
from .units import all_placements

#: Seconds after which what is left on a machine that is drained is stopped, unless it is said.
DRAIN_DEADLINE_S = 3600.0
#: Keys of metadata that operators may set on one machine, and characters of a value.
METADATA_MAX, METADATA_VALUE_MAX = 100, 256
#: Moves a minute of a rebalance, at most and unless it is said.
PER_MINUTE_MAX, PER_MINUTE = 600, 6


@verb("machine.list")
def _machine_list(control: Control, _: dict[str, Any]) -> Promise:
    promise = Promise()

    def done(status: Any, error: BaseException | None) -> None:
        voters = set(status["voters"]) if error is None else set()
        counts = _counts(control)
        promise.reply([_machine(control, m, a, voters, counts) for m, a in sorted(
            control.machines().items(), key=lambda pair: pair[1]["name"])])  # fmt: skip

    control.ask_then(control.raft_ref, Status(), 6.0, done)
    return promise


def _counts(control: Control) -> Counter[str]:
    """How many units each machine has."""
    return Counter(machine for where in control.places().values() for machine in where)


def _machine(
    control: Control, machine: str, about: dict[str, Any], voters: set[str], counts: Counter[str]
) -> dict[str, Any]:
    alive = control.items(ALIVE).get(ALIVE + machine.encode())
    order = _order(control, machine)
    return {
        "id": machine, "name": about["name"], "address": about["address"],
        "metadata": metadata(about, order), "state": state_of(control, machine),
        "voter": machine in voters, "role": about.get("role", "voter"), "units": counts[machine], "version": about["version"],
        "slot": about.get("slot", ""),
        "last_seen_s": 0.0 if alive is not None else None, "endpoint": about["endpoint"],
    }  # fmt: skip


@verb("machine.show")
def _machine_show(control: Control, args: dict[str, Any]) -> Any:
    machine = control.find_machine(str(args["machine"]))
    about = control.machines()[machine]
    shown = _machine(control, machine, about, set(), _counts(control))
    del shown["voter"]
    shown |= {"cpus": about.get("cpus", 0.0), "memory": about.get("memory", 0)}
    shown["reserved_cpus"], shown["reserved_memory"] = all_placements(control).reserved(machine)
    drain = _order(control, machine)["drain"]
    if drain is not None:
        left = sorted(_here(control, machine))
        shown |= {"drain_reason": drain["reason"], "drain_deadline": drain["deadline"], "leaving": left}
    shown["running"] = sorted(u for u, where in control.places().items() if machine in where)
    return shown


@verb("machine.remove")
def _machine_remove(control: Control, args: dict[str, Any]) -> Promise:
    """Take a lost machine out of the cluster for good."""
    machine = control.find_machine(str(args["machine"]))
    if ALIVE + machine.encode() in control.items(ALIVE):
        raise BadRequest(f"{control.machine_name(machine)} is alive; stop its host first")
    promise = Promise()

    def removed(_: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        control.ask_then(control.raft_ref, Range(LOCKS, prefix_end(LOCKS), linearizable=True), 6.0, freed)

    def freed(groups: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        for key, _ in groups[1]:  # it holds no lock any more, and waits for none
            control.propose(["lock", key[len(LOCKS) :].decode(), "forget", {"machine": control.machine_name(machine)}])
        keys = (MACHINES + machine.encode(), ORDERS + machine.encode(), AGENTS + machine.encode(), UPDATES + machine.encode())
        control.commit(["txn", [], [["delete", key] for key in keys], []], promise, lambda _: promise.reply(True))

    if control.machines()[machine]["role"] == "agent":
        removed(True, None)
    else:
        control.ask_then(control.raft_ref, ChangeConfig("remove", machine), 6.0, removed)
    return promise


# -- what operators want of machines ----------------------------------------------------------------


def _order(control: Control, machine: str) -> dict[str, Any]:
    return orders(control.items(ORDERS).get(ORDERS + machine.encode()))


def _here(control: Control, machine: str) -> set[str]:
    """Units that are placed on a machine, or still end there."""
    return {
        unit
        for prefix in (PLACES, STATES)
        for where, unit in (machine_and_unit(prefix, key) for key in control.items(prefix))
        if where == machine
    }


def state_of(control: Control, machine: str) -> str:
    """``ready``, ``draining``, ``drained``, ``rebooting`` or ``lost``."""
    order = _order(control, machine)
    if order.get("rebooting"):
        return "rebooting"
    if ALIVE + machine.encode() not in control.items(ALIVE):
        return "lost"
    if order["drain"] is None:
        return "ready"
    return "draining" if _here(control, machine) else "drained"


def give_order(
    control: Control, machine: str, promise: Promise, change: Callable[[dict[str, Any]], dict[str, Any]],
    then: Callable[[int], None],
) -> None:  # fmt: skip
    """Change what is wanted of a machine, as it is stored now; ``then(revision)``."""
    key = ORDERS + machine.encode()

    def read(store: Store) -> Any:
        return store.live.get(key)

    def have(item: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        try:
            order = change(orders(item))
        except Exception as failure:  # noqa: BLE001 - the operator must hear of it
            promise.fail(failure)
            return
        guard = [[key, "mod", "=", item.mod if item is not None else 0]]
        control.commit(["txn", guard, [["put", key, to_json(order)]], []], promise, done)

    def done(result: Any) -> None:
        if result["succeeded"]:
            then(result["revision"])
        else:
            promise.fail(Failed(f"somebody else changes {control.machine_name(machine)} right now; try again"))

    control.ask_then(control.raft_ref, Query(read, True), 6.0, have)


@verb("machine.drain")
def _machine_drain(control: Control, args: dict[str, Any]) -> Promise:
    """Units leave a machine, and none comes; answers when it is empty.

    ``deadline_s``: when what is left is stopped, though it can run nowhere else.
    """
    machine = control.find_machine(str(args["machine"]))
    deadline_s = float(args.get("deadline_s") or DRAIN_DEADLINE_S)
    if not 0 < deadline_s <= 30 * 86400:
        raise BadRequest(f"--deadline: more than nothing and at most 30 days, not {deadline_s:g} s")
    now = control.ports.clock.wall()
    drain = {"since": round(now, 3), "deadline": round(now + deadline_s, 3), "reason": str(args.get("reason") or "")}
    promise = Promise()

    def ordered(revision: int) -> None:
        if args.get("no_block"):
            promise.reply(answer())
            return
        control.wait_for(
            lambda: answer() if control.seen(ORDERS) >= revision and not _here(control, machine) else None, promise,
            float(args.get("within", 60.0)),
            lambda: "still there: " + ", ".join(sorted(_here(control, machine))) + "; the machine goes on draining",
        )  # fmt: skip

    def answer() -> dict[str, Any]:
        return {"machine": control.machine_name(machine), "left": sorted(_here(control, machine))}

    give_order(control, machine, promise, lambda order: {**order, "drain": drain}, ordered)
    return promise


@verb("machine.undrain")
def _machine_undrain(control: Control, args: dict[str, Any]) -> Promise:
    """A machine is used again; what left it does not come back by itself."""
    machine = control.find_machine(str(args["machine"]))
    promise = Promise()
    give_order(control, machine, promise, lambda order: {**order, "drain": None}, lambda _: promise.reply(
        {"machine": control.machine_name(machine), "left": []}))  # fmt: skip
    return promise


@verb("machine.metadata")
def _machine_metadata(control: Control, args: dict[str, Any]) -> Promise:
    """Set keys of a machine's metadata over those of its configuration; an empty value takes one away."""
    machine = control.find_machine(str(args["machine"]))
    changes = {str(k): str(v) for k, v in dict(args["metadata"]).items()}
    for key, value in changes.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,127}", key):
            raise BadRequest(f"metadata key {key!r}: letters, digits, and _ . / - after the first")
        if len(value) > METADATA_VALUE_MAX or not value.isprintable() or "=" in value:
            raise BadRequest(f"metadata {key}: at most {METADATA_VALUE_MAX} printable characters without '='")
    promise = Promise()
    about = control.machines()[machine]

    def change(order: dict[str, Any]) -> dict[str, Any]:
        merged = {**order["metadata"], **changes}
        merged = {k: v for k, v in merged.items() if v != about["metadata"].get(k, "")}
        if len(merged) > METADATA_MAX:
            raise BadRequest(f"metadata_max: {METADATA_MAX} keys on a machine, these are {len(merged)}")
        return {**order, "metadata": merged}

    def done(revision: int) -> None:
        control.wait_for(
            lambda: metadata(about, _order(control, machine)) if control.seen(ORDERS) >= revision else None, promise, 6.0,
            lambda: "it is stored, and this host has not seen it yet",
        )  # fmt: skip

    give_order(control, machine, promise, change, done)
    return promise


@verb("cluster.rebalance")
def _cluster_rebalance(control: Control, args: dict[str, Any]) -> Any:
    """Moves that would even out the machines; with ``apply`` they are made, ``per_minute`` at a time.

    The scheduler chooses the target of each move when it makes it, by the same rules.
    """
    per_minute = int(args.get("per_minute") or PER_MINUTE)
    if not 1 <= per_minute <= PER_MINUTE_MAX:
        raise BadRequest(f"--per-minute: 1 to {PER_MINUTE_MAX}, not {per_minute}")
    moves = placement.rebalance(all_placements(control))
    rows = [{"unit": u, "from": control.machine_name(a), "to": control.machine_name(b)} for u, a, b in moves]
    if not args.get("apply") or not moves:
        return {"moves": rows, "applied": False}
    promise = Promise()
    plan = {"moves": moves, "per_minute": per_minute, "next": 0.0}
    control.commit(["put", REBALANCE, to_json(plan)], promise, lambda _: promise.reply(
        {"moves": rows, "applied": True}))  # fmt: skip
    return promise
