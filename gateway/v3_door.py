"""The v3 JSON gateway: each path one message in, one message or a stream of them out.

A request is checked against its schema, then against the book of users, and becomes a
command or a read of the brain; what it means is in ``gateway/v3.py``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

from actors.raft_messages import (
    ChangeConfig,
    KeepAlive,
    Propose,
    Query,
    Save,
    Status,
    TimeToLive,
    TransferLeadership,
)
from brain import auth, kv
from brain.store import OWN_PREFIX, Store, prefix_end

from . import members, v3
from .http import Request
from .members import MemberError
from .v3 import V3Error, auth_error, error_of
from .v3_services import Campaign, Observe, leader_of
from .v3_watch import WatchStream
from .v3json import BadMessage, b64, body, documents, lean, line, read

logger = logging.getLogger("argosy.door")

#: Seconds a request may take before it is answered with an error.
REQUEST_S_MAX = 5.0
#: Bytes of one piece of a snapshot stream.
SNAPSHOT_PIECE_BYTES = 64 * 1024

Then = Callable[[Any], None]


class V3Request:
    """One request to ``/v3``."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request
        self.user: str | None = None
        self._streaming = False

    def run(self, path: str) -> None:
        """``path`` is what follows ``/v3``."""
        known = PATHS.get(path)
        if known is None:
            self._plain(404, "Not Found")
        elif self.request.method == "OPTIONS":
            self.request.answer(200, b"", "", self.door.cors)
        elif self.request.method != "POST":
            self._plain(405, "Method Not Allowed")
        else:
            schema, method, admin = known
            try:
                if len(self.request.body) > v3.REQUEST_BYTES_MAX:
                    raise V3Error(*v3.ERRORS["too_large"])
                found = documents(self.request.body, path in STREAMS) or [{}]
                messages = [read(schema, document) for document in found]
                self._identify(path)
                if admin and not self.door.access.is_root(self.user):
                    raise auth_error("permission denied")
                if schema in ("watch", "lease") and path in STREAMS:
                    method(self, messages)
                else:
                    method(self, messages[0])
            except BadMessage as error:
                self.refuse(V3Error(3, str(error)))
            except MemberError as error:
                self.refuse(V3Error(error.code, str(error)))
            except V3Error as error:
                self.refuse(error)

    def _plain(self, status: int, text: str) -> None:
        headers = {**self.door.cors, "X-Content-Type-Options": "nosniff"}
        self.request.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8", headers)

    def _identify(self, path: str) -> None:
        book = self.door.access.book()
        if not book.enabled or path in ("/auth/authenticate", "/auth/status"):
            return
        token = self.request.header("authorization")
        if token:
            self.user = self.door.access.user_of(token)
            if self.user is None:
                raise auth_error("invalid auth token")
        elif auth.GUEST not in book.roles:
            raise auth_error("user name is empty")

    def need(self, what: str, key: bytes, end: bytes | None = None) -> None:
        """Raise unless this user may read (r) or write (w) the range."""
        if not self.door.access.allows(self.user, what, key, end):
            raise auth_error("permission denied")

    # -- answering ---------------------------------------------------------------------------

    def header(self, revision: int | None = None) -> dict[str, Any]:
        """The header of every answer."""
        return self.door.v3_header(revision)  # type: ignore[no-any-return]

    def reply(self, revision: int | None = None, **fields: Any) -> None:
        """One answer."""
        self.request.answer(200, body({"header": self.header(revision), **fields}), headers=self.door.v3_headers)

    def bare(self, **fields: Any) -> None:
        """One answer that etcd gives without a header."""
        self.request.answer(200, body(fields), headers=self.door.v3_headers)

    def refuse(self, error: V3Error) -> None:
        """An error, in a stream as its last message."""
        text = str(error)
        if self._streaming:
            status = v3.STATUS.get(error.code, 500)
            self.request.chunk(body({"error": {"grpc_code": error.code, "http_code": status, "message": text}}) + b"\n")
            self.request.end()
            return
        answer = {"error": text, "message": text, "code": error.code}
        self.request.answer(v3.STATUS.get(error.code, 500), body(answer), headers=self.door.cors)

    def begin(self) -> None:
        """Start a stream."""
        self._streaming = True
        self.request.begin(self.door.v3_headers)

    def send(self, **fields: Any) -> bool:
        """One message of a stream, in a chunk of its own."""
        return self.request.chunk(line(fields))

    def ask(self, message: Any, then: Then) -> None:
        """Ask the brain; a refusal is the answer."""

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                if not hasattr(error, "code"):
                    logger.error("request for %s failed", self.request.path, exc_info=error)
                self.refuse(error_of(error))
                return
            try:
                then(value)
            except MemberError as refusal:
                self.refuse(V3Error(refusal.code, str(refusal)))
            except V3Error as refusal:
                self.refuse(refusal)
            except Exception:
                logger.exception("request for %s failed", self.request.path)
                self.refuse(V3Error(13, "etcdserver: the request could not be answered"))

        self.door.ask(message, done)

    def propose(self, command: list[Any], then: Then, grows: bool = False) -> None:
        """Commit a command."""
        self.ask(Propose(command, REQUEST_S_MAX, bounded=grows), then)

    def query(self, function: Callable[[Store], Any], then: Then, serializable: bool = False) -> None:
        """Read the store; linearizable unless told otherwise."""
        self.ask(Query(function, not serializable, REQUEST_S_MAX), then)

    # -- keys ----------------------------------------------------------------------------------

    def range(self, m: dict[str, Any]) -> None:
        """``/kv/range``."""
        key, end, options = v3.need_key(m["key"]), v3.end_of(m["range_end"]), v3.options_of(m)
        self.need(auth.READ, key, end)

        def done(answer: Any) -> None:
            self.reply(answer[0], **v3.range_answer(answer[1], m["keys_only"]))

        self.query(
            lambda store: (store.revision, kv.find(store, key, end, options)), done, m["serializable"]
        )

    def put(self, m: dict[str, Any]) -> None:
        """``/kv/put``."""
        command = v3.put_of(m)
        self.need(auth.WRITE, command[1])
        if m["prev_kv"]:
            self.need(auth.READ, command[1])

        def done(result: Any) -> None:
            self.reply(result["revision"], **v3.prev_answer(command[1], result["prev"], m["prev_kv"]))

        self.propose(command, done, grows=True)

    def delete(self, m: dict[str, Any]) -> None:
        """``/kv/deleterange``."""
        command = v3.delete_of(m)
        self.need(auth.WRITE, command[1], command[2])
        if m["prev_kv"]:
            self.need(auth.READ, command[1], command[2])
        if command[2] is None and command[1].startswith(OWN_PREFIX):
            raise auth_error("permission denied")

        def done(result: Any) -> None:
            self.reply(result["revision"], **v3.delete_answer(result["prevs"], m["prev_kv"]))

        self.propose([*command, True], done)

    def txn(self, m: dict[str, Any]) -> None:
        """``/kv/txn``; one that only reads does not go through the log."""
        command = v3.txn_of(m)
        for need in v3.needs_of_txn(m):
            self.need(*need)

        def done(result: Any) -> None:
            revision = result["revision"]
            self.reply(revision, **v3.txn_answer(m, result, revision))

        _, compares, success, failure = command
        if kv.is_read(success) and kv.is_read(failure):
            self.query(lambda store: kv.read_txn(store, compares, success, failure, True), done)
        else:
            self.propose([*command, True], done, grows=_puts(success) or _puts(failure))

    def compaction(self, m: dict[str, Any]) -> None:
        """``/kv/compaction``."""
        self.propose(["compact", m["revision"]], lambda _: self.reply())

    # -- leases --------------------------------------------------------------------------------

    def lease_grant(self, m: dict[str, Any]) -> None:
        """``/lease/grant``."""
        lease, ttl = m["ID"] or secrets.randbits(62) + 1, max(m["TTL"], v3.LEASE_TTL_S_MIN)
        if ttl > v3.LEASE_TTL_S_MAX:
            raise V3Error(*v3.ERRORS["lease_ttl"])
        if lease < 0:
            raise V3Error(3, "etcdserver: a lease's ID is a positive number")

        def done(_: Any) -> None:
            self.reply(**lean(ID=lease, TTL=ttl))

        self.propose(["lease_grant", lease, ttl * 1000], done, grows=True)

    def lease_revoke(self, m: dict[str, Any]) -> None:
        """``/lease/revoke``."""
        lease = m["ID"]
        if lease <= 0:
            raise V3Error(*v3.ERRORS["lease_not_found"])

        def done(result: Any) -> None:
            if not result["revoked"]:
                raise V3Error(*v3.ERRORS["lease_not_found"])
            self.reply(result["revision"])

        def looked(keys: list[bytes]) -> None:
            for key in keys:
                self.need(auth.WRITE, key)
            self.propose(["lease_revoke", [lease], True], done)

        self.query(lambda store: _lease_keys(store, lease), looked)

    def lease_keepalive(self, messages: list[dict[str, Any]]) -> None:
        """``/lease/keepalive``: an answer for every message."""
        own = self.door.store().is_own_lease
        leases = [m["ID"] if m["ID"] > 0 and not own(m["ID"]) else 0 for m in messages]

        def done(answer: Any) -> None:
            self.begin()
            for m, lease in zip(messages, leases, strict=True):
                ttl = answer.get(str(lease), 0) // 1000
                self.send(header=self.header(), **lean(ID=m["ID"], TTL=ttl))
            self.request.end()

        self.ask(KeepAlive(leases), done)

    def lease_time_to_live(self, m: dict[str, Any]) -> None:
        """``/lease/timetolive``."""
        lease = max(0, m["ID"])
        keys: list[bytes] = []

        def done(answer: Any) -> None:
            left_ms, granted_ms = answer
            if left_ms < 0:
                self.reply(**lean(ID=lease), TTL="-1")
                return
            shown = [b64(key) for key in keys] if m["keys"] else []
            self.reply(**lean(ID=lease, TTL=left_ms // 1000, grantedTTL=granted_ms // 1000, keys=shown))

        def looked(found: list[bytes]) -> None:
            keys.extend(found)
            if any(key.startswith(OWN_PREFIX) for key in keys):  # a machine's: not there for clients
                done([-1, 0])
                return
            for key in keys if m["keys"] else []:
                self.need(auth.READ, key)
            self.ask(TimeToLive(lease), done)

        self.query(lambda store: _lease_keys(store, lease), looked)

    def lease_leases(self, _: dict[str, Any]) -> None:
        """``/lease/leases``."""

        def look(store: Store) -> list[int]:
            return [lease for lease in sorted(store.leases) if not store.is_own_lease(lease)]

        self.query(look, lambda found: self.reply(**lean(leases=[lean(ID=lease) for lease in found])))

    # -- watching ------------------------------------------------------------------------------

    def watch(self, messages: list[dict[str, Any]]) -> None:
        """``/watch``: several watches on one stream."""
        for m in messages:
            if m["create_request"] is not None:
                asked = m["create_request"]
                self.need(auth.READ, asked["key"], v3.end_of(asked["range_end"]))
        self.begin()
        WatchStream(self).take(messages)

    # -- locks and elections -------------------------------------------------------------------

    def lock(self, m: dict[str, Any]) -> None:
        """``/lock/lock``: answered when the lock is held."""
        if not m["name"]:
            raise V3Error(*v3.ERRORS["key_not_found"])

        def held(claim: Campaign) -> None:
            self.reply(key=b64(claim.key))

        Campaign(self, m["name"], m["lease"], b"", held).start()

    def unlock(self, m: dict[str, Any]) -> None:
        """``/lock/unlock``."""
        self.delete({"key": m["key"], "range_end": b"", "prev_kv": False})

    def campaign(self, m: dict[str, Any]) -> None:
        """``/election/campaign``: answered when elected."""

        def elected(claim: Campaign) -> None:
            leader = lean(name=m["name"], key=claim.key, rev=claim.created, lease=claim.lease)
            self.reply(leader=leader)

        Campaign(self, m["name"], m["lease"], m["value"], elected).start()

    def proclaim(self, m: dict[str, Any]) -> None:
        """``/election/proclaim``: another value, while still elected."""
        leader = m["leader"] or read("leader", {})
        put = v3.put_of({**read("put", {}), "key": leader["key"], "value": m["value"], "lease": leader["lease"]})
        self.need(auth.WRITE, put[1])

        def done(result: Any) -> None:
            if not result["succeeded"]:
                raise V3Error(2, "election: not leader")
            self.reply(result["revision"])

        held = [[put[1], "create", "=", leader["rev"]]]
        self.propose(["txn", held, [put], [], True], done, grows=True)

    def leader(self, m: dict[str, Any]) -> None:
        """``/election/leader``."""
        self.need(auth.READ, m["name"] + b"/", prefix_end(m["name"] + b"/"))

        def done(found: Any) -> None:
            if found is None:
                raise V3Error(2, "election: no leader")
            self.reply(kv=v3.kv(*found))

        self.query(lambda store: leader_of(store, m["name"]), done)

    def observe(self, m: dict[str, Any]) -> None:
        """``/election/observe``: the leader, whenever it changes."""
        self.need(auth.READ, m["name"] + b"/", prefix_end(m["name"] + b"/"))
        self.begin()
        Observe(self, m["name"]).start()

    def resign(self, m: dict[str, Any]) -> None:
        """``/election/resign``."""
        leader = m["leader"] or read("leader", {})
        key = v3.need_key(leader["key"])
        self.need(auth.WRITE, key)
        held = [[key, "create", "=", leader["rev"]]]
        self.propose(["txn", held, [["delete", key]], [], True], lambda result: self.reply(result["revision"]))

    # -- members -------------------------------------------------------------------------------

    def _with_members(self, then: Callable[[list[members.Member]], None]) -> None:
        self.ask(Status(), lambda status: then(members.members_of(status, self.door.secure)))

    def member_list(self, _: dict[str, Any]) -> None:
        """``/cluster/member/list``."""
        self._with_members(self._reply_members)

    def _reply_members(self, found: list[members.Member], **fields: Any) -> None:
        header = {k: v for k, v in self.header().items() if k != "revision"}
        self.bare(header=header, **fields, members=[_member(m) for m in found])

    def member_add(self, m: dict[str, Any]) -> None:
        """``/cluster/member/add``: the new one votes once it runs and has caught up."""

        def add(found: list[members.Member]) -> None:
            change = members.addition(found, m["peerURLs"], self.door.secure)
            new = members.Member(change.member, "", m["peerURLs"], [], True)
            self.ask(change, lambda _: self._reply_members([*found, new], member=_member(new)))

        self._with_members(add)

    def _change_member(
        self, m: dict[str, Any], change: Callable[[list[members.Member], members.Member], Any]
    ) -> None:
        def go(found: list[members.Member]) -> None:
            try:
                member = members.find(found, f"{m['ID']:016x}")
            except MemberError:
                raise V3Error(*v3.ERRORS["missing"]) from None
            self.ask(change(found, member), lambda _: self._with_members(self._reply_members))

        self._with_members(go)

    def member_remove(self, m: dict[str, Any]) -> None:
        """``/cluster/member/remove``."""
        self._change_member(m, members.removal)

    def member_update(self, m: dict[str, Any]) -> None:
        """``/cluster/member/update``."""
        self._change_member(m, lambda found, member: members.update(found, member, m["peerURLs"]))

    def member_promote(self, m: dict[str, Any]) -> None:
        """``/cluster/member/promote``."""

        def change(_: list[members.Member], member: members.Member) -> Any:
            if not member.learner:
                raise V3Error(9, "etcdserver: can only promote a learner member")
            return ChangeConfig("promote", member.id)

        self._change_member(m, change)

    # -- maintenance ---------------------------------------------------------------------------

    def status(self, _: dict[str, Any]) -> None:
        """``/maintenance/status``."""

        def done(s: Any) -> None:
            errors = _alarms(s)
            self.reply(s["revision"], **lean(
                version=self.door.etcd_version, dbSize=s["bytes"], leader=members.number_of(s["leader"]),
                raftIndex=s["commit_index"], raftTerm=s["term"], raftAppliedIndex=s["applied_index"],
                errors=errors, dbSizeInUse=s["bytes_live"], isLearner=s["id"] in s["learners"],
            ))  # fmt: skip

        self.ask(Status(), done)

    def alarm(self, m: dict[str, Any]) -> None:
        """``/maintenance/alarm``: they come and go by themselves, so only asking has an effect."""

        def done(s: Any) -> None:
            mine = lean(memberID=members.number_of(s["id"]))
            alarms = [{**mine, "alarm": name} for name in _alarms(s)]
            self.bare(**lean(alarms=alarms if m["action"] == 0 else []))

        self.ask(Status(), done)

    def defragment(self, _: dict[str, Any]) -> None:
        """``/maintenance/defragment``: nothing fragments, so it is done."""
        self.bare()

    def hash(self, _: dict[str, Any]) -> None:
        """``/maintenance/hash``: the rolling hash of everything that was ever written."""
        self.query(
            lambda store: (store.revision, store.hash),
            lambda found: self.reply(found[0], hash=found[1]),
            serializable=True,
        )

    def hash_kv(self, m: dict[str, Any]) -> None:
        """``/maintenance/hashkv``: the rolling hash at a revision that is still known."""

        def look(store: Store) -> Any:
            store._check_revision(max(0, m["revision"]))  # noqa: SLF001 - the same check as a read's
            if store.is_now(m["revision"]):
                return store.revision, store.hash, store.compact_revision
            digest = next((e.digest for e in store.events_since(m["revision"])), 0)
            return store.revision, digest, store.compact_revision

        def done(found: Any) -> None:
            self.reply(found[0], hash=found[1], **lean(compact_revision=found[2]))

        self.query(look, done, serializable=True)

    def transfer_leadership(self, m: dict[str, Any]) -> None:
        """``/maintenance/transfer-leadership``: the leader alone takes it."""

        def done(s: Any) -> None:
            if s["leader"] != s["id"]:
                raise V3Error(*v3.ERRORS["not_leader"])
            target = [v for v in s["voters"] if members.number_of(v) == m["targetID"]]
            if not target:
                raise V3Error(9, "etcdserver: bad leader transferee")
            self.door.tell(TransferLeadership(target[0]))
            self.reply()

        self.ask(Status(), done)

    def snapshot(self, _: dict[str, Any]) -> None:
        """``/maintenance/snapshot``: the whole state in pieces, as ``cluster snapshot save`` keeps it."""

        def done(chunks: list[bytes]) -> None:
            self.begin()
            left = sum(map(len, chunks))
            for chunk in chunks:
                left -= len(chunk)
                self.send(header=self.header(), blob=b64(chunk), **lean(remaining_bytes=left))
            self.request.end()

        self.ask(Save(), done)

    # -- users and roles -----------------------------------------------------------------------

    def _auth(self, verb: str, arguments: dict[str, Any], then: Then | None = None) -> None:
        self.propose(["auth", verb, arguments], then or (lambda _: self.reply()))

    def auth_enable(self, _: dict[str, Any]) -> None:
        """``/auth/enable``."""
        self._auth("enable", {"secret": secrets.token_hex(32), "guest": False})

    def auth_disable(self, _: dict[str, Any]) -> None:
        """``/auth/disable``."""
        self._auth("disable", {})

    def auth_status(self, _: dict[str, Any]) -> None:
        """``/auth/status``."""
        book = self.door.access.book()
        self.reply(**lean(enabled=book.enabled, authRevision=book.revision))

    def authenticate(self, m: dict[str, Any]) -> None:
        """``/auth/authenticate``: a token for name and password."""
        if not self.door.access.book().enabled:
            raise auth_error("authentication is not enabled")

        def verified(right: bool) -> None:
            if right:
                self.reply(token=self.door.access.token(m["name"]))
            else:
                self.refuse(auth_error("authentication failed, invalid user ID or password"))

        self.door.access.verify(m["name"], m["password"], verified)

    def _hashed(self, m: dict[str, Any], then: Callable[[str], None]) -> None:
        if m["options"] is not None and m["options"]["no_password"]:
            then("none")
            return

        def hashed(digest: Any) -> None:
            if digest is None:
                self.refuse(V3Error(13, "etcdserver: the password could not be hashed"))
            else:
                then(digest)

        self.door.access.run(lambda: self.door.hash_password(m["password"]), hashed)

    def user_add(self, m: dict[str, Any]) -> None:
        """``/auth/user/add``."""
        if not m["name"]:
            raise auth_error("user name is empty")
        self._hashed(m, lambda digest: self._auth("user_add", {"name": m["name"], "hash": digest}))

    def user_password(self, m: dict[str, Any]) -> None:
        """``/auth/user/changepw``."""
        self._hashed(m, lambda digest: self._auth("user_password", {"name": m["name"], "hash": digest}))

    def user_delete(self, m: dict[str, Any]) -> None:
        """``/auth/user/delete``."""
        self._auth("user_delete", {"name": m["name"]})

    def user_get(self, m: dict[str, Any]) -> None:
        """``/auth/user/get``."""
        user = self.door.access.book().users.get(m["name"])
        if user is None:
            raise auth_error("user name not found")
        if self.user != m["name"] and not self.door.access.is_root(self.user):
            raise auth_error("permission denied")
        self.reply(**lean(roles=list(user["roles"])))

    def user_list(self, _: dict[str, Any]) -> None:
        """``/auth/user/list``."""
        self.reply(**lean(users=sorted(self.door.access.book().users)))

    def user_grant(self, m: dict[str, Any]) -> None:
        """``/auth/user/grant``."""
        self._auth("user_grant", {"name": m["user"], "role": m["role"]})

    def user_revoke(self, m: dict[str, Any]) -> None:
        """``/auth/user/revoke``."""
        self._auth("user_revoke", {"name": m["name"], "role": m["role"]})

    def role_add(self, m: dict[str, Any]) -> None:
        """``/auth/role/add``."""
        self._auth("role_add", {"name": m["name"]})

    def role_delete(self, m: dict[str, Any]) -> None:
        """``/auth/role/delete``."""
        self._auth("role_delete", {"name": m["role"]})

    def role_get(self, m: dict[str, Any]) -> None:
        """``/auth/role/get``."""
        if not self.door.access.is_root(self.user) and m["role"] not in self.door.access.roles(self.user):
            raise auth_error("permission denied")
        grants = self.door.access.book().roles.get(m["role"])
        if grants is None:
            raise auth_error("role name not found")
        self.reply(**lean(perm=[v3.grant_answer(grant) for grant in grants]))

    def role_list(self, _: dict[str, Any]) -> None:
        """``/auth/role/list``."""
        self.reply(**lean(roles=sorted(self.door.access.book().roles)))

    def role_grant(self, m: dict[str, Any]) -> None:
        """``/auth/role/grant``."""
        perm = m["perm"]
        if perm is None:
            raise auth_error("permission is not given")
        right = ("r", "w", "rw")[perm["permType"]]
        where = {"key": perm["key"], "end": v3.end_of(perm["range_end"])}
        self._auth("role_grant", {"name": m["name"], "right": right, **where})

    def role_revoke(self, m: dict[str, Any]) -> None:
        """``/auth/role/revoke``."""
        where = {"key": m["key"], "end": v3.end_of(m["range_end"])}
        self._auth("role_revoke", {"name": m["role"], **where})


def _member(member: members.Member) -> dict[str, Any]:
    return lean(
        ID=member.number, name=member.name, peerURLs=member.peer_urls, clientURLs=member.client_urls,
        isLearner=member.learner,
    )  # fmt: skip


def _lease_keys(store: Store, lease: int) -> list[bytes]:
    held = store.leases.get(lease)
    return sorted(held.keys) if held is not None else []


def _alarms(status: dict[str, Any]) -> list[str]:
    full = status["disk_full"] or status["bytes"] > status["quota_bytes"]
    return (["NOSPACE"] if full else []) + (["CORRUPT"] if status["quarantine"] else [])


def _puts(steps: list[Any]) -> bool:
    return any(step[0] == "put" or (step[0] == "txn" and (_puts(step[2]) or _puts(step[3]))) for step in steps)


#: Path below /v3 -> (schema, method, whether only root may).
PATHS: dict[str, tuple[str, Any, bool]] = {
    "/kv/range": ("range", V3Request.range, False),
    "/kv/put": ("put", V3Request.put, False),
    "/kv/deleterange": ("delete_range", V3Request.delete, False),
    "/kv/txn": ("txn", V3Request.txn, False),
    "/kv/compaction": ("compaction", V3Request.compaction, False),
    "/watch": ("watch", V3Request.watch, False),
    "/lease/grant": ("lease_grant", V3Request.lease_grant, False),
    "/lease/revoke": ("lease", V3Request.lease_revoke, False),
    "/kv/lease/revoke": ("lease", V3Request.lease_revoke, False),
    "/lease/keepalive": ("lease", V3Request.lease_keepalive, False),
    "/lease/timetolive": ("lease", V3Request.lease_time_to_live, False),
    "/kv/lease/timetolive": ("lease", V3Request.lease_time_to_live, False),
    "/lease/leases": ("none", V3Request.lease_leases, False),
    "/kv/lease/leases": ("none", V3Request.lease_leases, False),
    "/lock/lock": ("lock", V3Request.lock, False),
    "/lock/unlock": ("unlock", V3Request.unlock, False),
    "/election/campaign": ("campaign", V3Request.campaign, False),
    "/election/proclaim": ("proclaim", V3Request.proclaim, False),
    "/election/leader": ("leader", V3Request.leader, False),
    "/election/observe": ("leader", V3Request.observe, False),
    "/election/resign": ("proclaim", V3Request.resign, False),
    "/cluster/member/list": ("none", V3Request.member_list, False),
    "/cluster/member/add": ("member_add", V3Request.member_add, True),
    "/cluster/member/remove": ("member", V3Request.member_remove, True),
    "/cluster/member/update": ("member", V3Request.member_update, True),
    "/cluster/member/promote": ("member", V3Request.member_promote, True),
    "/maintenance/status": ("none", V3Request.status, False),
    "/maintenance/alarm": ("alarm", V3Request.alarm, True),
    "/maintenance/defragment": ("none", V3Request.defragment, True),
    "/maintenance/hash": ("none", V3Request.hash, True),
    "/maintenance/hashkv": ("hashkv", V3Request.hash_kv, True),
    "/maintenance/snapshot": ("none", V3Request.snapshot, True),
    "/maintenance/transfer-leadership": ("move", V3Request.transfer_leadership, True),
    "/auth/enable": ("none", V3Request.auth_enable, True),
    "/auth/disable": ("none", V3Request.auth_disable, True),
    "/auth/status": ("none", V3Request.auth_status, False),
    "/auth/authenticate": ("authenticate", V3Request.authenticate, False),
    "/auth/user/add": ("user", V3Request.user_add, True),
    "/auth/user/get": ("user", V3Request.user_get, False),
    "/auth/user/list": ("none", V3Request.user_list, True),
    "/auth/user/delete": ("user", V3Request.user_delete, True),
    "/auth/user/changepw": ("user", V3Request.user_password, True),
    "/auth/user/grant": ("user_role", V3Request.user_grant, True),
    "/auth/user/revoke": ("user_role", V3Request.user_revoke, True),
    "/auth/role/add": ("role", V3Request.role_add, True),
    "/auth/role/get": ("role", V3Request.role_get, False),
    "/auth/role/list": ("none", V3Request.role_list, True),
    "/auth/role/delete": ("role", V3Request.role_delete, True),
    "/auth/role/grant": ("role", V3Request.role_grant, True),
    "/auth/role/revoke": ("role", V3Request.role_revoke, True),
}
#: Paths that take several messages in one request.
STREAMS = {"/watch", "/lease/keepalive"}
