"""Verbs about releases: what is published, who may sign, how it is rolled out, and how far that is."""

from __future__ import annotations

import json
from typing import Any

from brain.store import Item
from fleet import release, update_policy, waves
from fleet.release import ReleaseError
from kernel.mailbox import Promise

from ..brain_client import ALIVE, RELEASES, ROLLOUTS_OF_RELEASES, TRUST, UPDATE_POLICY, UPDATES, to_json
from ..command import Command
from ..control import BadRequest, Control, Failed, Missing, verb
from ..raft_messages import Range
from ..updater import CHANNEL, ReadRecord, trust_key, verdict_of

#: Pieces of one question, and releases that a channel keeps.
PIECES_MAX, RELEASES_KEPT = 64, 20


def _slots(control: Control) -> Any:
    if control.ports.slots is None:
        raise Failed(f"{control.machine_name(control.machine)} has no slots: it keeps no releases")
    return control.ports.slots


def _in_slots(control: Control, work: Any, promise: Promise, then: Any = None) -> None:
    """Do something with this machine's slots; what comes of it is answered, or handed on."""
    inbox = control.actor_inbox

    def done(value: Any, error: BaseException | None) -> None:
        if isinstance(error, ValueError):  # a release, or a name of one, that is none
            error = BadRequest(f"{error.code}: {error}" if isinstance(error, ReleaseError) else str(error))
        inbox.post(lambda: promise.fail(error) if error is not None else (then or promise.reply)(value))

    _slots(control).call(work, done)


def _channel(args: dict[str, Any]) -> str:
    channel = str(args.get("channel") or CHANNEL)
    if not release.is_channel(channel):
        raise BadRequest(f"--channel {channel!r}: {release.CHANNEL_FORM}")
    return channel


def _release_key(channel: str, sequence: int) -> bytes:
    return RELEASES + f"{channel}/{sequence:016d}".encode()


@verb("host.chunks")
def _host_chunks(control: Control, args: dict[str, Any]) -> Promise:
    """Those pieces of releases that this machine has."""
    names = [str(name) for name in args["names"]]
    if len(names) > PIECES_MAX:
        raise BadRequest(f"pieces_max: {PIECES_MAX}")
    promise = Promise()

    def read(slots: Any) -> dict[str, Any]:
        found = {name: slots.chunks.get(name) for name in names}
        return {"chunks": {name: data for name, data in found.items() if data is not None}}

    _in_slots(control, read, promise)
    return promise


@verb("release.put")
def _put(control: Control, args: dict[str, Any]) -> Promise:
    """Keep pieces of a release on this machine, where others fetch them."""
    pieces = dict(args["pieces"])
    if len(pieces) > PIECES_MAX or not all(isinstance(data, bytes) for data in pieces.values()):
        raise BadRequest(f"pieces_max: {PIECES_MAX} pieces, each of bytes")
    promise = Promise()

    def keep(slots: Any) -> int:
        for name, data in pieces.items():
            slots.chunks.put(str(name), data)
        return len(pieces)

    _in_slots(control, keep, promise)
    return promise


@verb("release.missing")
def _missing(control: Control, args: dict[str, Any]) -> Promise:
    """Pieces of an image that this machine lacks; its manifest alone if it has not even that."""
    promise = Promise()
    _in_slots(control, lambda slots: slots.missing(str(args["manifest"])), promise)
    return promise


def _trust(item: Item | None) -> release.Trust | None:
    return release.trust(json.loads(item.value)["signed"]) if item is not None else None


def _read(control: Control, key: bytes, end: bytes | None, promise: Promise, then: Any) -> None:
    """Read what is stored now, then go on; what goes wrong is answered."""

    def have(answer: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        try:
            then(dict(answer[1]))
        except ReleaseError as refused:
            promise.fail(BadRequest(f"{refused.code}: {refused}"))
        except Exception as failure:  # noqa: BLE001 - the operator must hear of it
            promise.fail(failure)

    control.ask_then(control.raft_ref, Range(key, end, linearizable=True), 6.0, have)


@verb("release.trust")
def _release_trust(control: Control, args: dict[str, Any]) -> Promise:
    """Whose signatures count from now on; once that is known, only those may change it."""
    envelope = args.get("envelope")
    promise = Promise()

    def have(found: dict[bytes, Item]) -> None:
        item = found.get(TRUST)
        old = _trust(item)
        if envelope is None:
            promise.reply(old.record() if old is not None else None)
            return
        new = release.rotate(old, envelope) if old is not None else release.trust(envelope["signed"])
        if old is None:
            release.check_signatures(envelope, new)
        guard = [[TRUST, "mod", "=", item.mod if item is not None else 0]]

        def done(result: Any) -> None:
            if result["succeeded"]:
                promise.reply(new.record())
            else:
                promise.fail(Failed("somebody else changes the keys right now"))

        steps = [["put", TRUST, to_json(envelope)], ["put", trust_key(new.version), to_json(envelope)]]
        control.commit(["txn", guard, steps, []], promise, done)

    _read(control, TRUST, None, promise, have)
    return promise


@verb("release.publish")
def _publish(control: Control, args: dict[str, Any]) -> Promise:
    """Offer a release in a channel: signed by those who count, and newer than all before it."""
    channel, envelope = _channel(args), args["envelope"]
    promise = Promise()

    def known(found: dict[bytes, Item]) -> None:
        trusted = _trust(found.get(TRUST))
        made = _accepted(control, envelope, trusted)
        _in_slots(control, lambda slots: slots.missing(made.manifest), promise, lambda missing: whole(made, missing))

    def whole(made: release.Statement, missing: list[str]) -> None:
        if missing:  # what is offered can be fetched
            promise.fail(BadRequest(f"{len(missing)} pieces of version {made.version} are not on this machine: send them first (release.put)"))
        else:
            prefix = RELEASES + channel.encode() + b"/"
            _read(control, prefix, prefix[:-1] + b"0", promise, lambda others: store(made, others))

    def store(made: release.Statement, others: dict[bytes, Item]) -> None:
        key = _release_key(channel, made.sequence)
        newest = max(others, default=b"")
        if key in others and json.loads(others[key].value)["signed"]["manifest"] != made.manifest:
            raise BadRequest(f"sequence {made.sequence} is taken in channel {channel}")
        if newest > key:
            raise BadRequest(f"channel {channel} has a newer release already: sequence {int(newest.rpartition(b'/')[2])}")
        gone = sorted(others)[: max(0, len(others) + 1 - RELEASES_KEPT)]
        steps = [["put", key, to_json(envelope)], *(["delete", old] for old in gone if old != key)]
        row = {"channel": channel, "version": made.version, "sequence": made.sequence}
        guards = [[key, "mod", "=", others[key].mod if key in others else 0]]

        def done(result: Any) -> None:
            if result["succeeded"]:
                promise.reply(row)
            else:
                promise.fail(Failed(f"somebody else publishes sequence {made.sequence} right now"))

        control.commit(["txn", guards, steps, []], promise, done)

    _read(control, TRUST, None, promise, known)
    return promise


def _accepted(control: Control, envelope: Any, trusted: release.Trust | None) -> release.Statement:
    release.check_signatures(envelope, trusted)
    made = release.statement(envelope["signed"])
    if control.ports.clock.wall() >= made.expires:
        raise ReleaseError("expired", f"version {made.version} expired")
    return made


def _releases(control: Control, channel: str, promise: Promise, then: Any) -> None:
    """(statements by sequence, the rollout's item) of a channel, as they are stored now."""
    prefix = RELEASES + channel.encode() + b"/"

    def have(found: dict[bytes, Item]) -> None:
        known = {int(key.rpartition(b"/")[2]): json.loads(item.value)["signed"] for key, item in found.items()}
        key = ROLLOUTS_OF_RELEASES + channel.encode()
        _read(control, key, None, promise, lambda rollout: then(known, rollout.get(key)))

    _read(control, prefix, prefix[:-1] + b"0", promise, have)


@verb("release.list")
def _list(control: Control, args: dict[str, Any]) -> Promise:
    """Releases of a channel, the newest first."""
    channel = _channel(args)
    promise = Promise()

    def have(known: dict[int, Any], item: Item | None) -> None:
        chosen = json.loads(item.value)["sequence"] if item is not None else 0
        now = control.ports.clock.wall()
        promise.reply([
            {"channel": channel, "version": made["version"], "sequence": sequence, "floor": made["floor"], "bytes": made["size"],
             "manifest": made["manifest"], "created": made["created"], "expires": made["expires"], "expired": now >= made["expires"],
             "rollout": sequence == chosen}
            for sequence, made in sorted(known.items(), reverse=True)
        ])  # fmt: skip

    _releases(control, channel, promise, have)
    return promise


@verb("release.rollout")
def _rollout(control: Control, args: dict[str, Any]) -> Promise:
    """Bring a published version to the machines of a channel, wave after wave."""
    channel, version = _channel(args), str(args["version"])
    given = {k: v for k, v in dict(args.get("plan") or {}).items() if v is not None}
    try:
        how = waves.plan(given)
    except (TypeError, ValueError) as error:
        raise BadRequest(f"the plan of a rollout: {error}") from None
    promise = Promise()

    def have(known: dict[int, Any], item: Item | None) -> None:
        sequence = max((number for number, made in known.items() if made["version"] == version), default=0)
        if not sequence:
            raise Missing(f"no version {version} is published in channel {channel}")
        if control.ports.clock.wall() >= known[sequence]["expires"]:
            raise Failed(f"version {version} expired: no machine would take it")
        record = {"sequence": sequence, "version": version, "plan": how.record(), "state": "running", "reason": "",
                  "began": round(control.ports.clock.wall(), 3)}  # fmt: skip
        _put_rollout(control, channel, item, record, promise)

    _releases(control, channel, promise, have)
    return promise


def _put_rollout(control: Control, channel: str, item: Item | None, record: dict[str, Any], promise: Promise) -> None:
    key = ROLLOUTS_OF_RELEASES + channel.encode()
    guard = [[key, "mod", "=", item.mod if item is not None else 0]]

    def done(result: Any) -> None:
        if result["succeeded"]:
            promise.reply({"channel": channel, **record})
        else:
            promise.fail(Failed("somebody else changes this rollout right now"))

    control.commit(["txn", guard, [["put", key, to_json(record)]], []], promise, done)


def _failed_now(control: Control, version: str) -> set[str]:
    """Machines on which a version did not work."""
    failed = set()
    for key, item in control.items(UPDATES).items():
        results = json.loads(item.value)["results"].values()
        if any(result["result"] == "failed" and result["version"] == version for result in results):
            failed.add(key[len(UPDATES) :].decode())
    return failed


def _change_state(state: str, allowed: tuple[str, ...]) -> Any:
    def run(control: Control, args: dict[str, Any]) -> Promise:
        channel = _channel(args)
        promise = Promise()
        key = ROLLOUTS_OF_RELEASES + channel.encode()

        def have(found: dict[bytes, Item]) -> None:
            item = found.get(key)
            if item is None:
                raise Missing(f"nothing is being rolled out in channel {channel}")
            record = json.loads(item.value)
            if record["state"] not in allowed:
                raise Failed(f"the rollout of {record['version']} is {record['state']}")
            reason = str(args.get("reason") or "an operator asked for it")
            record |= {"state": state, "reason": "" if state == "running" else reason}
            if state == "running":  # who has failed until now is known to whoever goes on
                record["seen"] = sorted({*record.get("seen", ()), *_failed_now(control, record["version"])})
            _put_rollout(control, channel, item, record, promise)

        _read(control, key, None, promise, have)
        return promise

    return run


verb("release.pause")(_change_state("paused", ("running",)))
verb("release.resume")(_change_state("running", ("paused", "halted")))
verb("release.halt")(_change_state("halted", ("running", "paused")))


@verb("release.status")
def _status(control: Control, args: dict[str, Any]) -> Promise:
    """The rollout of a channel, and where each of its machines is."""
    channel = _channel(args)
    promise = Promise()

    def have(known: dict[int, Any], item: Item | None) -> None:
        updates = control.items(UPDATES)
        machines = []
        for key, told in sorted(updates.items()):
            said = json.loads(told.value)
            if said["channel"] == channel:
                machine = key[len(UPDATES) :]
                machines.append({
                    "machine": said["name"], "version": said["version"], "slot": said["slot"], "state": said["state"],
                    "reason": said["reason"], "alive": ALIVE + machine in control.items(ALIVE),
                    "failed": sorted(result["version"] for result in said["results"].values() if result["result"] == "failed"),
                })  # fmt: skip
        rollout = json.loads(item.value) if item is not None else None
        answer: dict[str, Any] = {"channel": channel, "rollout": rollout, "machines": sorted(machines, key=lambda row: str(row["machine"]))}
        if rollout is not None and rollout["sequence"] in known:
            try:
                made = release.statement(known[rollout["sequence"]])
            except ReleaseError as error:  # it was not published by this program
                answer |= {"verdict": f"no machine takes it: {error}", "halted": True}
            else:
                found = verdict_of(updates, control.items(ALIVE), channel, rollout, made, control.ports.clock.wall())
                answer |= {"verdict": found.halted or found.reason, "halted": bool(found.halted) or rollout["state"] == "halted"}
        promise.reply(answer)

    _releases(control, channel, promise, have)
    return promise


@verb("release.policy")
def _policy(control: Control, args: dict[str, Any]) -> Promise:
    """When machines may reboot, and how long the steps may take; what is not given stays."""
    given = {k: v for k, v in dict(args.get("policy") or {}).items() if v is not None}
    promise = Promise()

    def have(found: dict[bytes, Item]) -> None:
        item = found.get(UPDATE_POLICY)
        known = json.loads(item.value) if item is not None else {}
        try:
            made = update_policy.policy({**known, **given})
        except ValueError as error:
            raise BadRequest(str(error)) from None
        if not given:
            promise.reply(made.record())
            return
        control.commit(["put", UPDATE_POLICY, to_json(made.record())], promise, lambda _: promise.reply(made.record()))

    _read(control, UPDATE_POLICY, None, promise, have)
    return promise


@verb("host.forget-bad")
def _host_forget(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    updater = control.system.find("updater")

    def forget(slots: Any) -> Any:
        slots.forget_bad(str(args.get("manifest") or ""))
        if updater is not None:
            updater.offer(ReadRecord())
        return True

    _in_slots(control, forget, promise)
    return promise


@verb("release.forget")
def _forget(control: Control, args: dict[str, Any]) -> Promise:
    """Let a machine try again what did not work on it."""
    machine = control.find_machine(str(args["machine"]))
    promise = Promise()
    control.on(machine, Command("host.forget-bad", {"manifest": args.get("manifest") or ""}), promise)
    return promise
