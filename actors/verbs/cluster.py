"""Verbs about members and machines."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from brain.store import Store
from fleet import electorate
from kernel.mailbox import Promise
from transport.tls import fingerprint

from ..brain_client import AGENTS, ELECTORATE, TOKENS, to_json
from ..command import Command
from ..control import BadRequest, Control, Then, verb
from ..electorate import size_of
from ..raft_messages import ChangeConfig, Query, Save, Status, TransferLeadership


@verb("version")
def _version(control: Control, _: dict[str, Any]) -> Any:
    return {"version": control.version, "machine": control.machine}


#: Seconds that a snapshot is kept for the operator who fetches it.
SNAPSHOT_KEPT_S = 120.0


@verb("cluster.status")
def _cluster_status(control: Control, _: dict[str, Any]) -> Promise:
    """The leader's view if it can be had, else this host's own, which says so."""
    promise = Promise()

    def own(status: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        leader = status["leader"]
        if not leader or leader == control.machine:
            promise.reply(_status(control, status))
            return

        def leaders(answer: Any, trouble: BaseException | None) -> None:
            if trouble is None:
                answer["leader"] = leader
                promise.reply(_status(control, answer))
            else:
                promise.reply(_status(control, {**status, "leader": ""}))

        ref = control.router.ref(leader, "control")
        control.ask_then(ref, Command("raft.status", {}), 2.0, leaders)

    control.ask_then(control.raft_ref, Status(), 6.0, own)
    return promise


@verb("raft.status")
def _raft_status(control: Control, _: dict[str, Any]) -> Promise:
    promise = Promise()
    control.relay(control.raft_ref, Status(), promise)
    return promise


def _status(control: Control, status: dict[str, Any]) -> dict[str, Any]:
    voters, leader = status["voters"], status["leader"]
    up = {*status["active"], status["id"]} if leader == status["id"] else {status["id"]}
    members = []
    for member in sorted({*voters, *status["learners"]}):
        name, address, _ = status["info"].get(member, ["", "", ""])
        state = "unknown" if not leader else "active" if member in up else "unreachable"
        members.append(
            {
                "id": member, "name": name, "address": address,
                "role": "leader" if member == leader else "voter" if member in voters else "learner",
                "state": state, "seen": status["match"].get(member, 0) > 0,
            }
        )  # fmt: skip
    quorum = len(voters) // 2 + 1
    return {
        "name": control.cluster,
        "members": members,
        "leader": status["info"].get(leader, [leader])[0] if leader else "",
        "term": status["term"],
        "commit_index": status["commit_index"],
        "revision": status["revision"],
        "quorum_margin": len(up & set(voters)) - quorum if leader else -1,
    }


@verb("cluster.token")
def _cluster_token(control: Control, args: dict[str, Any]) -> Promise:
    """A token that lets one host join within its time: id, secret and the authority's digest."""
    promise = Promise()
    if control.authority is None:
        raise BadRequest("this cluster runs without TLS: a host joins without a token")
    ttl_s = int(args.get("ttl_s", 3600))
    if not 60 <= ttl_s <= 7 * 86400:
        raise BadRequest(f"--ttl: 60 to 604800 seconds, not {ttl_s}")
    draw = control.ports.rng.token
    ident, secret = draw()[:12], draw()
    record = {"hash": hashlib.sha256(secret.encode()).hexdigest(), "role": args.get("role", "voter")}
    lease = int(draw()[:15], 16) + 1

    def granted(_: Any) -> None:
        value = json.dumps(record).encode()
        control.commit(["put", TOKENS + ident.encode(), value, lease], promise, written)

    def written(_: Any) -> None:
        pin = _pin(control.authority.certificate)  # type: ignore[union-attr]
        promise.reply({"token": f"{ident}.{secret}.{pin}", "ttl_s": ttl_s})

    control.commit(["lease_grant", lease, ttl_s * 1000], promise, granted)
    return promise


def _pin(certificate: bytes) -> str:

    return fingerprint(certificate)


@verb("authority")
def _authority(control: Control, _: dict[str, Any]) -> Any:
    if control.authority is None:
        raise BadRequest("this cluster runs without TLS")
    return {"certificate": control.authority.certificate, "cluster": control.cluster}


@verb("join")
def _join(control: Control, args: dict[str, Any]) -> Promise:
    """A guest with a token becomes a member: its certificate, and where the others are."""
    promise = Promise()
    authority = control.authority
    if authority is None or authority.sign is None:
        raise BadRequest("this host cannot sign; ask a voter")
    ident, _, secret = str(args["token"]).partition(".")
    name, address, url = str(args["name"]), str(args["address"]), str(args["url"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", name):
        raise BadRequest(f"--name {name!r}: letters, digits, '.' and '-'")
    machine = str(args["machine"])
    if not re.fullmatch(r"[0-9a-f]{32}", machine):
        raise BadRequest("a machine id is 32 hexadecimal digits")
    if any(a["name"] == name and m != machine for m, a in control.machines().items()):
        raise BadRequest(f"--name {name}: another machine has this name")
    request = args["request"]

    def read(store: Store) -> Any:
        item = store.live.get(TOKENS + ident.encode())
        return item.value if item is not None else None

    def checked(value: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        record = json.loads(value) if value is not None else None
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if record is None or record["hash"] != digest:
            promise.fail(BadRequest("--token: unknown, used up or expired"))
            return
        assert authority is not None and authority.sign is not None
        is_agent = record["role"] == "agent" or args.get("role") == "agent"
        certificate = authority.sign(request, machine, "agent" if is_agent else "machine")

        def added(_: Any, trouble: BaseException | None) -> None:
            if trouble is not None:
                promise.fail(trouble)
                return
            control.propose(["delete", TOKENS + ident.encode()])
            control.ask_then(control.raft_ref, Status(), 6.0, welcome)

        def welcome(status: Any, trouble: BaseException | None) -> None:
            if trouble is not None:
                promise.fail(trouble)
                return
            members = {m: address for m, (_, address, _) in status["info"].items()
                       if m != machine and (not is_agent or m in status["voters"])}  # fmt: skip
            promise.reply(
                {
                    "certificate": certificate, "cluster": control.cluster,
                    "role": "agent" if is_agent else record["role"],
                    "members": members,
                }
            )  # fmt: skip

        if is_agent:
            known = json.dumps({"name": name, "address": address}).encode()
            control.propose(["put", AGENTS + machine.encode(), known], added)
        else:
            control.ask_then(control.raft_ref, ChangeConfig("add_learner", machine, (name, address, url)), 6.0, added)

    control.ask_then(control.raft_ref, Query(read, True), 6.0, checked)
    return promise


@verb("cluster.promote")
def _promote(control: Control, args: dict[str, Any]) -> Promise:
    """A learner that has caught up becomes a voter (a joining host asks this for itself)."""
    promise = Promise()
    control.relay(control.raft_ref, ChangeConfig("promote", str(args["machine"])), promise)
    return promise


@verb("cluster.voters")
def _voters(control: Control, args: dict[str, Any]) -> Promise:
    """How many machines vote at most, and who does; ``size`` states another number."""
    promise = Promise()

    def shown(status: Any) -> None:
        names = [status["info"].get(m, [m])[0] for m in status["voters"]]
        ready = [status["info"].get(m, [m])[0] for m in status["learners"]]

        def read(store: Store) -> Any:
            item = store.live.get(ELECTORATE)
            return {"size": size_of({ELECTORATE: item} if item is not None else {}), "voters": sorted(names), "standby": sorted(ready)}

        control.query(read, promise, True)

    def asked(_: Any = None) -> None:
        inner = Promise()
        inner.bind(Then(shown, promise.fail))
        control.relay(control.raft_ref, Status(), inner)

    size = args.get("size")
    if size is None:
        asked()
    elif type(size) is not int or size not in electorate.VOTERS_ACCEPTED:
        raise BadRequest(f"voters: one of {', '.join(map(str, electorate.VOTERS_ACCEPTED))}, not {size}")
    else:
        control.commit(["put", ELECTORATE, to_json({"voters": size})], promise, asked)
    return promise


@verb("cluster.snapshot")
def _snapshot(control: Control, args: dict[str, Any]) -> Any:
    """The whole state, a piece at a time: the first ask makes it, the others name it."""
    token = str(args.get("token", ""))
    if token:
        chunks = control.saved.get(token)
        if chunks is None:
            raise BadRequest("that snapshot is not kept any more; begin anew")
        number = int(args["chunk"])
        if not 0 <= number < len(chunks):
            raise BadRequest(f"that snapshot has the chunks 0 to {len(chunks) - 1}, not {number}")
        if number == len(chunks) - 1:
            del control.saved[token]
        return {"data": chunks[number]}
    promise = Promise()

    def done(chunks: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        name = control.ports.rng.token()
        control.saved.clear()  # one at a time
        control.saved[name] = chunks
        control.after(SNAPSHOT_KEPT_S, lambda: control.forget_saved(name))
        promise.reply({"token": name, "chunks": len(chunks), "bytes": sum(map(len, chunks))})

    control.ask_then(control.raft_ref, Save(), 60.0, done)
    return promise


@verb("cluster.history")
def _history(control: Control, args: dict[str, Any]) -> Promise:
    """Tell the cluster how much past to keep, or ask what it keeps."""
    promise = Promise()

    def told(store: Store) -> dict[str, int]:
        return {
            "revisions": store.history_revisions, "age_s": store.history_age_ms // 1000,
            "kept": len(store.events), "compacted": store.compacted,
        }  # fmt: skip

    def ask(_: Any = None) -> None:
        control.relay(control.raft_ref, Query(told, True), promise)

    def tell(now: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        revisions = int(args.get("revisions") or now["revisions"])
        age_s = int(args.get("age_s") or now["age_s"])
        control.commit(["history", revisions, age_s * 1000], promise, ask)

    if args.get("revisions") or args.get("age_s"):
        control.ask_then(control.raft_ref, Query(told, True), 6.0, tell)
    else:
        ask()
    return promise


@verb("cluster.transfer")
def _transfer(control: Control, args: dict[str, Any]) -> Any:
    to = control.find_machine(str(args["to"])) if args.get("to") else ""
    control.raft_ref.tell(TransferLeadership(to))
    return True
