"""The v3 JSON gateway: each path one message in, one message or a stream of them out.

A request is checked against its schema, then against the book of users, and becomes a
command or a read of the brain; what it means is in ``gateway/v3.py``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from actors.raft_messages import TimeToLive
from brain import auth, kv
from brain.store import OWN_PREFIX, Store, prefix_end

from . import v3, v3_auth, v3_cluster
from .members import MemberError
from .v3 import V3Error, auth_error
from .v3_call import Call
from .v3_messages import BY_PATH, STREAMS
from .v3_services import Campaign, Observe, leader_of
from .v3_stream import KeepAlives, Messages, OpenMessages
from .v3_watch import WatchStream
from .v3json import BadMessage, b64, documents, lean, read


class V3Request(Call):
    """One request to ``/v3``."""

    def run(self, path: str) -> None:
        """``path`` is what follows ``/v3``."""
        known = PATHS.get(path)
        if known is None:
            self.plain(404, "Not Found")
        elif self.request.method == "OPTIONS":
            self.request.answer(200, b"", "", self.door.cors)
        elif self.request.method != "POST":
            self.plain(405, "Method Not Allowed")
        else:
            try:
                self._run(path, *known)
            except BadMessage as error:
                self.refuse(V3Error(2 if path in STREAMS else 3, str(error)))
            except MemberError as error:
                self.refuse(V3Error(error.code, str(error)))
            except V3Error as error:
                self.refuse(error)

    def _run(self, path: str, method: Callable[..., None], admin: bool) -> None:
        """``method`` gets the message, or all of them."""
        asked = BY_PATH[ALIASES.get(path, path)].request
        if self.request.open:
            self._admit(path, admin)
            method(self, OpenMessages(self, asked))
            return
        if len(self.request.body) > v3.REQUEST_BYTES_MAX:
            raise V3Error(*v3.ERRORS["too_large"])
        messages = [read(asked, document) for document in documents(self.request.body, path in STREAMS)]
        self._admit(path, admin)
        if path in STREAMS:
            method(self, Messages(messages))
        else:
            method(self, messages[0] if messages else read(asked, {}))

    def _admit(self, path: str, admin: bool) -> None:
        if path not in NAMELESS:
            self.identify()
        if admin and not self.door.access.is_root(self.user):
            raise auth_error("permission denied")

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
        """``/kv/compaction``; to revision 0 it does nothing, and may, where nothing was compacted yet."""

        def looked(compacted: int) -> None:
            if compacted:
                raise V3Error(*v3.ERRORS["compacted"])
            self.reply()

        if m["revision"]:
            self.propose(["compact", m["revision"]], lambda _: self.reply())
        else:
            self.query(lambda store: max(store.compacted, store.compact_revision), looked)

    # -- leases --------------------------------------------------------------------------------

    def lease_grant(self, m: dict[str, Any]) -> None:
        """``/lease/grant``."""
        lease, ttl = m["ID"] or secrets.randbits(62) + 1, max(m["TTL"], v3.LEASE_TTL_S_MIN)
        if ttl > v3.LEASE_TTL_S_MAX:
            raise V3Error(*v3.ERRORS["lease_ttl"])
        if lease < 0:
            raise V3Error(3, "etcdserver: the ID of a lease is not negative here")

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

    def lease_keepalive(self, messages: Messages) -> None:
        """``/lease/keepalive``: an answer for every message."""
        KeepAlives(self, messages).start()

    def lease_time_to_live(self, m: dict[str, Any]) -> None:
        """``/lease/timetolive``."""
        lease = m["ID"]
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
            if lease > 0:
                self.ask(TimeToLive(lease), done)
            else:
                done([-1, 0])

        self.query(lambda store: _lease_keys(store, lease), looked)

    def lease_leases(self, _: dict[str, Any]) -> None:
        """``/lease/leases``."""

        def look(store: Store) -> list[int]:
            return [lease for lease in sorted(store.leases) if not store.is_own_lease(lease)]

        self.query(look, lambda found: self.reply(**lean(leases=[lean(ID=lease) for lease in found])))

    # -- watching ------------------------------------------------------------------------------

    def watch(self, messages: Messages) -> None:
        """``/watch``: several watches on one stream."""
        WatchStream(self, messages).start()

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
        leader = m["leader"] or read("LeaderKey", {})
        put = v3.put_of({**read("PutRequest", {}), "key": leader["key"], "value": m["value"], "lease": leader["lease"]})
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
        leader = m["leader"] or read("LeaderKey", {})
        key = v3.need_key(leader["key"])
        self.need(auth.WRITE, key)
        held = [[key, "create", "=", leader["rev"]]]
        self.propose(["txn", held, [["delete", key]], [], True], lambda result: self.reply(result["revision"]))


def _lease_keys(store: Store, lease: int) -> list[bytes]:
    held = store.leases.get(lease)
    return sorted(held.keys) if held is not None else []


def _puts(steps: list[Any]) -> bool:
    return any(step[0] == "put" or (step[0] == "txn" and (_puts(step[2]) or _puts(step[3]))) for step in steps)


#: Path below /v3 -> (method, whether only root may).
PATHS: dict[str, tuple[Any, bool]] = {
    "/kv/range": (V3Request.range, False),
    "/kv/put": (V3Request.put, False),
    "/kv/deleterange": (V3Request.delete, False),
    "/kv/txn": (V3Request.txn, False),
    "/kv/compaction": (V3Request.compaction, False),
    "/watch": (V3Request.watch, False),
    "/lease/grant": (V3Request.lease_grant, False),
    "/lease/revoke": (V3Request.lease_revoke, False),
    "/lease/keepalive": (V3Request.lease_keepalive, False),
    "/lease/timetolive": (V3Request.lease_time_to_live, False),
    "/lease/leases": (V3Request.lease_leases, False),
    "/lock/lock": (V3Request.lock, False),
    "/lock/unlock": (V3Request.unlock, False),
    "/election/campaign": (V3Request.campaign, False),
    "/election/proclaim": (V3Request.proclaim, False),
    "/election/leader": (V3Request.leader, False),
    "/election/observe": (V3Request.observe, False),
    "/election/resign": (V3Request.resign, False),
    "/cluster/member/list": (v3_cluster.member_list, False),
    "/cluster/member/add": (v3_cluster.member_add, True),
    "/cluster/member/remove": (v3_cluster.member_remove, True),
    "/cluster/member/update": (v3_cluster.member_update, True),
    "/cluster/member/promote": (v3_cluster.member_promote, True),
    "/maintenance/status": (v3_cluster.status, False),
    "/maintenance/alarm": (v3_cluster.alarm, True),
    "/maintenance/defragment": (v3_cluster.defragment, True),
    "/maintenance/hash": (v3_cluster.hash_all, True),
    "/maintenance/hashkv": (v3_cluster.hash_kv, True),
    "/maintenance/snapshot": (v3_cluster.snapshot, True),
    "/maintenance/transfer-leadership": (v3_cluster.transfer_leadership, True),
    "/auth/enable": (v3_auth.auth_enable, True),
    "/auth/disable": (v3_auth.auth_disable, True),
    "/auth/status": (v3_auth.auth_status, False),
    "/auth/authenticate": (v3_auth.authenticate, False),
    "/auth/user/add": (v3_auth.user_add, True),
    "/auth/user/get": (v3_auth.user_get, False),
    "/auth/user/list": (v3_auth.user_list, True),
    "/auth/user/delete": (v3_auth.user_delete, True),
    "/auth/user/changepw": (v3_auth.user_password, True),
    "/auth/user/grant": (v3_auth.user_grant, True),
    "/auth/user/revoke": (v3_auth.user_revoke, True),
    "/auth/role/add": (v3_auth.role_add, True),
    "/auth/role/get": (v3_auth.role_get, False),
    "/auth/role/list": (v3_auth.role_list, True),
    "/auth/role/delete": (v3_auth.role_delete, True),
    "/auth/role/grant": (v3_auth.role_grant, True),
    "/auth/role/revoke": (v3_auth.role_revoke, True),
}
#: Older spellings that etcd 3.4 still takes.
ALIASES = {f"/kv{path}": path for path in ("/lease/revoke", "/lease/timetolive", "/lease/leases")}
PATHS |= {alias: PATHS[path] for alias, path in ALIASES.items()}
#: Paths that need no name while authentication is on.
NAMELESS = frozenset({"/auth/authenticate", "/auth/status"})
