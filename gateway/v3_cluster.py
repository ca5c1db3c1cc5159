"""Members and maintenance at the v3 door: who is in the cluster, how it fares, and its snapshot."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

from actors.brain_client import SECRETS
from actors.raft_messages import ChangeConfig, Save, Status, TransferLeadership
from brain.snapshot import seal
from brain.store import Store, prefix_end

from . import members, v3
from .members import MemberError
from .v3 import V3Error
from .v3_call import Call, Message
from .v3_messages import ALARM_ACTION
from .v3json import b64, lean

# -- members --------------------------------------------------------------------------------------


def _with_members(call: Call, then: Callable[[list[members.Member]], None]) -> None:
    call.ask(Status(), lambda status: then(members.members_of(status, call.door.secure)))


def member_list(call: Call, _: Message) -> None:
    """``/cluster/member/list``."""
    _with_members(call, lambda found: _reply_members(call, found))


def _reply_members(call: Call, found: list[members.Member], **fields: Any) -> None:
    header = {k: v for k, v in call.header().items() if k != "revision"}
    call.bare(header=header, **fields, members=[_member(m) for m in found])


def member_add(call: Call, m: Message) -> None:
    """``/cluster/member/add``: the new one votes once it runs and has caught up."""

    def add(found: list[members.Member]) -> None:
        change = members.addition(found, m["peerURLs"], call.door.secure)
        new = members.Member(change.member, "", m["peerURLs"], [], True)
        call.ask(change, lambda _: _reply_members(call, [*found, new], member=_member(new)))

    _with_members(call, add)


def _change_member(
    call: Call, m: Message, change: Callable[[list[members.Member], members.Member], Any]
) -> None:
    def go(found: list[members.Member]) -> None:
        try:
            member = members.find(found, f"{m['ID']:016x}")
        except MemberError:
            raise V3Error(*v3.ERRORS["missing"]) from None
        call.ask(change(found, member), lambda _: member_list(call, {}))

    _with_members(call, go)


def member_remove(call: Call, m: Message) -> None:
    """``/cluster/member/remove``."""
    _change_member(call, m, members.removal)


def member_update(call: Call, m: Message) -> None:
    """``/cluster/member/update``."""
    _change_member(call, m, lambda found, member: members.update(found, member, m["peerURLs"]))


def member_promote(call: Call, m: Message) -> None:
    """``/cluster/member/promote``."""

    def change(_: list[members.Member], member: members.Member) -> Any:
        if not member.learner:
            raise V3Error(9, "etcdserver: can only promote a learner member")
        return ChangeConfig("promote", member.id)

    _change_member(call, m, change)


# -- maintenance ----------------------------------------------------------------------------------


def status(call: Call, _: Message) -> None:
    """``/maintenance/status``."""

    def done(s: Any) -> None:
        errors = _alarms(s)
        call.reply(s["revision"], **lean(
            version=call.door.etcd_version, dbSize=s["bytes"], leader=members.number_of(s["leader"]),
            raftIndex=s["commit_index"], raftTerm=s["term"], raftAppliedIndex=s["applied_index"],
            errors=errors, dbSizeInUse=s["bytes_live"], isLearner=s["id"] in s["learners"],
        ))  # fmt: skip

    call.ask(Status(), done)


def alarm(call: Call, m: Message) -> None:
    """``/maintenance/alarm``: they come and go by themselves, so only asking has an effect."""
    if not ALARM_ACTION.name(m["action"]):
        raise V3Error(3, f"action is one of {', '.join(ALARM_ACTION.names)}")

    def done(s: Any) -> None:
        mine = lean(memberID=members.number_of(s["id"]))
        alarms = [{**mine, "alarm": name} for name in _alarms(s)]
        call.bare(**lean(alarms=alarms if m["action"] == 0 else []))

    call.ask(Status(), done)


def defragment(call: Call, _: Message) -> None:
    """``/maintenance/defragment``: nothing fragments, so it is done."""
    call.bare()


def hash_all(call: Call, _: Message) -> None:
    """``/maintenance/hash``: the rolling hash of everything that was ever written."""
    call.query(
        lambda store: (store.revision, store.hash),
        lambda found: call.reply(found[0], hash=found[1]),
        serializable=True,
    )


def hash_kv(call: Call, m: Message) -> None:
    """``/maintenance/hashkv``: the rolling hash at a revision that is still known."""

    def look(store: Store) -> Any:
        store._check_revision(max(0, m["revision"]))  # noqa: SLF001 - the same check as a read's
        if store.is_now(m["revision"]):
            return store.revision, store.hash, store.compact_revision
        digest = next((e.digest for e in store.events_since(m["revision"])), 0)
        return store.revision, digest, store.compact_revision

    def done(found: Any) -> None:
        call.reply(found[0], hash=found[1], **lean(compact_revision=found[2]))

    call.query(look, done, serializable=True)


def transfer_leadership(call: Call, m: Message) -> None:
    """``/maintenance/transfer-leadership``: the leader alone takes it."""

    def done(s: Any) -> None:
        if s["leader"] != s["id"]:
            raise V3Error(*v3.ERRORS["not_leader"])
        target = [v for v in s["voters"] if members.number_of(v) == m["targetID"]]
        if not target:
            raise V3Error(9, "etcdserver: bad leader transferee")
        call.door.tell(TransferLeadership(target[0]))
        call.reply()

    call.ask(Status(), done)


def snapshot(call: Call, _: Message) -> None:
    """``/maintenance/snapshot``: the whole state in pieces, as ``cluster snapshot save`` keeps it.

    It holds the book of users and all else that is Argosy's own.  So it is for root, and while
    everybody is root, for clients on this host alone; a web page in its browser is none.  Secrets
    are never shown again, to no client here: while there are any and everybody is root, there is none.
    """
    local = call.request.local and not call.request.header("origin")
    if not (call.door.access.book().enabled or local):
        raise V3Error(7, "etcdserver: permission denied: a snapshot holds Argosy's own keys; while "
                         "authentication is off it is given to clients on this host alone")  # fmt: skip

    store = call.door.store()
    if not call.door.access.book().enabled and store.range(SECRETS, prefix_end(SECRETS), limit=1):
        raise V3Error(7, "etcdserver: permission denied: a snapshot holds the secrets that are kept; while authentication "
                         "is off any client of this host could read them here. Use argosy cluster snapshot save")  # fmt: skip

    def done(chunks: list[bytes]) -> None:
        call.begin()
        pieces = deque(chunks)
        size = sum(map(len, chunks))
        left = size + len(seal(size, lambda _: bytes(32)))
        so_far = hashlib.sha256()

        def digest(filling: bytes) -> bytes:
            so_far.update(filling)
            return so_far.digest()

        def go_on() -> None:
            nonlocal left
            while left and not call.request.full:
                piece = pieces.popleft() if pieces else seal(size, digest)
                so_far.update(piece)
                left -= len(piece)
                if not call.send(header=call.header(), blob=b64(piece), **lean(remaining_bytes=left)):
                    return
            if not left:
                call.request.end()

        call.request.on_drain = go_on
        go_on()

    call.ask(Save(), done)


def _member(member: members.Member) -> dict[str, Any]:
    return lean(
        ID=member.number, name=member.name, peerURLs=member.peer_urls, clientURLs=member.client_urls,
        isLearner=member.learner,
    )  # fmt: skip


def _alarms(status: dict[str, Any]) -> list[str]:
    full = status["disk_full"] or status["bytes"] > status["quota_bytes"]
    return (["NOSPACE"] if full else []) + (["CORRUPT"] if status["quarantine"] else [])
