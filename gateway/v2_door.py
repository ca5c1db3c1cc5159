"""The v2 paths of the door: keys, watches, members, statistics, users and roles."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from actors.raft_messages import BrainError, Propose, Query, Status
from brain import auth, tree
from brain.auth import READ, ROOT, WRITE
from brain.raft import Role
from brain.store import (
    OWN_PREFIX,
    TREE_DEPTH_MAX,
    TREE_KEY_BYTES_MAX,
    Event,
    Store,
    StoreError,
    in_tree,
    prefix_end,
)
from brain.tree import TreeError

from . import members, v2
from .access import basic
from .feed import Feed
from .http import Request
from .members import MemberError
from .v2 import Form, FormError

logger = logging.getLogger("argosy.door")

#: Seconds a write or a quorum read may take before it is answered with an error.
REQUEST_S_MAX = 5.0
REFUSED = "Insufficient credentials"
#: v2's counters of operations, in etcd's order.
COUNTERS = ("gets", "sets", "delete", "update", "create", "compareAndSwap", "compareAndDelete")
_COUNTED = {
    "v2_set": "sets", "v2_create": "create", "v2_update": "update", "v2_cas": "compareAndSwap",
    "v2_delete": "delete", "v2_cad": "compareAndDelete",
}  # fmt: skip


def identify(door: Any, request: Request, then: Callable[[bool, str | None], None]) -> None:
    """``then(known, user)``: who asks by Basic authentication; nobody in particular is known too."""
    header = request.header("authorization") if door.access.book().enabled else ""
    if not header:
        then(True, None)
        return
    given = basic(header)
    if given is None:
        then(False, None)
        return
    name, password = given
    door.access.verify(name, password, lambda right: then(right, name if right else None))


class KeysRequest:
    """One request to ``/v2/keys``."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request
        self.path = ""
        self.form: Form = None  # type: ignore[assignment]

    def run(self) -> None:
        """Read the request; answer it, or watch."""
        request = self.request
        method = request.method
        if method == "OPTIONS":
            request.answer(200, b"", "", self.door.cors)
            return
        if method not in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            self.door.plain(request, 405, "Method Not Allowed")
            return
        identify(self.door, request, self._identified)

    def _identified(self, known: bool, user: str | None) -> None:
        request = self.request
        try:
            self.path = v2.path_of(request.path)
            body = request.body if request.method in ("PUT", "POST") else b""
            self.form = Form(request.query, body, request.header("content-type"))
            key = self.path.encode("utf-8")  # a key of the tree is text
            if request.method in ("PUT", "POST") and not in_tree(key):
                limits = f"{TREE_KEY_BYTES_MAX} bytes and {TREE_DEPTH_MAX} elements"
                raise FormError(210, f"a path of this tree has at most {limits}")
            if (key + b"/").startswith(OWN_PREFIX):
                raise FormError(110, "keys below /_argosy are Argosy's own")
            v2.check(request.method, self.form)
            reads = request.method in ("GET", "HEAD")
            if not known or not self._allowed(user, READ if reads else WRITE, key):
                raise FormError(110, REFUSED)
            if reads:
                self._get()
            else:
                self._write(v2.command_of(request.method, self.path, self.form))
        except FormError as error:
            self.refuse(error.number, error.cause, 0)
        except UnicodeEncodeError:
            self.refuse(210, "the key is not UTF-8", 0)

    def _allowed(self, user: str | None, what: str, key: bytes) -> bool:
        """A recursive request needs all that lies below as well."""
        if not self.door.access.allows(user, what, key):
            return False
        if not self.form.flag("recursive"):
            return True
        below = key if key.endswith(b"/") else key + b"/"
        return bool(self.door.access.allows(user, what, below, prefix_end(below)))

    def refuse(self, number: int, cause: str, index: int) -> None:
        """etcd's error."""
        status = v2.HTTP_STATUS.get(number, 400)
        headers = self.door.headers(index, None)
        self.request.answer(status, v2.dumps(v2.error_json(number, cause, index)), headers=headers)

    def fail(self, error: BaseException) -> None:
        """What the brain refused."""
        if isinstance(error, TreeError):
            self.refuse(error.number, error.cause, error.index)
        elif isinstance(error, StoreError) and error.code == "compacted":
            self.refuse(401, str(error), 0)
        elif isinstance(error, (BrainError, StoreError)):
            self.refuse(300, f"{error.code}: {error}", 0)
        else:
            logger.error("request for %s failed", self.path, exc_info=error)
            self.refuse(300, "the brain is not available on this host just now", 0)

    # -- writing -------------------------------------------------------------------------

    def _write(self, command: list[Any]) -> None:
        no_value = self.form.flag("noValueOnSuccess") and self.request.method != "DELETE"
        counted = _COUNTED[command[0]]

        def done(outcome: Any, error: BaseException | None) -> None:
            self.door.count(counted, error is None)
            if error is not None:
                self.fail(error)
                return
            index, term, now_ms = self.door.raft_position()
            body = v2.outcome_body(outcome, now_ms, no_value)
            head = self.door.keys_head(outcome.index, index, term)
            self.request.answer_with(v2.outcome_status(outcome), head, body)

        grows = command[0] not in ("v2_delete", "v2_cad")
        self.door.ask(Propose(command, REQUEST_S_MAX, bounded=grows), done)

    # -- reading -------------------------------------------------------------------------

    def _get(self) -> None:
        form = self.form
        recursive, sort = form.flag("recursive"), form.flag("sorted")
        quorum, wait, stream = form.flag("quorum"), form.flag("wait"), form.flag("stream")
        index = form.number("waitIndex", 203)
        if wait and not quorum:  # with both, etcd answers at once
            _WatchRequest(self, recursive, stream, index).start()
            return
        path = self.path

        def read(store: Store) -> Any:
            return store.revision, tree.get(store, path, recursive, sort)

        def done(answer: Any, error: BaseException | None) -> None:
            self.door.count("gets", error is None)
            if error is not None:
                self.fail(error)
                return
            revision, node = answer
            applied, term, now_ms = self.door.raft_position()
            body = v2.get_body(node, now_ms)
            self.request.answer_with(200, self.door.keys_head(revision, applied, term), body)

        self.door.ask(Query(read, quorum, REQUEST_S_MAX), done)


class _WatchRequest:
    """A long poll or a stream; ends when the client goes."""

    def __init__(self, keys: KeysRequest, recursive: bool, stream: bool, index: int) -> None:
        self._keys = keys
        self._door = keys.door
        self._request = keys.request
        self._recursive = recursive
        self._stream = stream
        self._index = index
        low, end = v2.watch_range(keys.path, recursive)
        self._feed = Feed(keys.door, low, end, index, self)
        self._begun = False

    def start(self) -> None:
        self._request.on_close = self._feed.close
        self._request.on_drain = self._feed.resume
        self._feed.open()

    def watching(self, revision: int) -> None:
        """The head goes out at once, with the index of this moment."""
        applied, term, _ = self._door.raft_position()
        self._begun = True
        self._request.begin(self._door.headers(revision, (applied, term)))

    def take(self, events: list[Event]) -> bool:
        """A long poll ends with its first event."""
        _, _, now_ms = self._door.raft_position()
        for event in events:
            for shown in v2.watch_events(event, self._keys.path, self._recursive, now_ms):
                if not self._request.chunk(v2.dumps(shown)) or not self._stream:
                    self._request.end()
                    self._feed.close()
                    return False
        return not self._request.full

    def lost(self, error: BaseException) -> None:
        """History does not reach back so far."""
        if getattr(error, "code", "") != "compacted":
            if self._begun:
                self._request.end()
            else:
                self._keys.fail(error)
            return
        store = self._door.store()
        cause = f"the requested history has been cleared [{store.compacted + 1}/{self._feed.next}]"
        if not self._begun:
            self._keys.refuse(401, cause, store.revision)
            return
        self._request.chunk(v2.dumps(v2.error_json(401, cause, store.revision)))
        self._request.end()


# -- everything else -------------------------------------------------------------------------------


class AdminRequest:
    """One request to ``/v2/members``, ``/v2/stats``, ``/v2/auth`` or ``/v2/machines``."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request
        self._user: str | None = None

    def run(self) -> None:
        """Find who asks, then what."""
        identify(self.door, self.request, self._identified)

    def _identified(self, known: bool, user: str | None) -> None:
        self._user = user
        parts = [unquote(part) for part in self.request.path.split("/")[2:] if part]
        method = self.request.method
        heads = method == "HEAD" and parts[0] == "machines"
        function = _ADMIN.get((parts[0], "GET" if heads else method))
        try:
            if function is None:
                verbs = _ALLOW.get(parts[0])
                raise _Refusal(405, "Method Not Allowed", verbs) if verbs else _Refusal(404, "404 page not found")
            open_to_all = method in ("GET", "HEAD") and (parts[0] != "auth" or parts[1:] == ["enable"])
            if not known or not (open_to_all or self.door.access.is_root(user)):
                raise MemberError(401, 16, REFUSED)
            function(self, parts[1:])
        except _Refusal as error:
            self.door.plain(self.request, error.status, str(error), error.allow)
        except MemberError as error:
            self.message(error.status, error.v2_text)

    def message(self, status: int, text: str) -> None:
        """etcd's error of these paths."""
        headers = dict(self.door.cors) if status == 401 else self._headers()
        self.request.answer(status, v2.dumps({"message": text})[:-1], headers=headers)

    def _headers(self) -> dict[str, str]:
        if self.request.path.startswith(_NAMELESS):
            return dict(self.door.cors)
        return {**self.door.cors, "X-Etcd-Cluster-Id": self.door.cluster_id}

    def reply(self, value: Any, status: int = 200, newline: bool = True) -> None:
        """An answer in JSON."""
        body = v2.dumps(value)
        self.request.answer(status, body if newline else body[:-1], headers=self._headers())

    def ask(self, message: Any, then: Callable[[Any], None]) -> None:
        """Ask the brain; a refusal is the answer."""

        def done(value: Any, error: BaseException | None) -> None:
            if isinstance(error, auth.AuthError):
                self.message(*_auth_refusal(error))
            elif error is not None:
                self.message(getattr(error, "status", 503), str(error))
            else:
                try:
                    then(value)
                except MemberError as refusal:
                    self.message(refusal.status, refusal.v2_text)
                except Exception:
                    logger.exception("request for %s failed", self.request.path)
                    self.message(503, "the request could not be answered")

        self.door.ask(message, done)

    def _json(self, reads: str) -> dict[str, Any]:
        content = self.request.header("content-type").split(";")[0].strip()
        if reads == "members" and content != "application/json":
            raise MemberError(415, 3, f"Bad Content-Type {content}, accept application/json")
        try:
            value = json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise MemberError(400, 3, "Invalid JSON in request body." if reads == "auth" else "the body is not JSON") from None
        if type(value) is not dict:
            raise MemberError(400, 3, "Invalid JSON in request body.")
        return value

    # -- members -----------------------------------------------------------------------------

    def machines(self, _: list[str]) -> None:
        """``/v2/machines``: every client URL."""

        def done(status: Any) -> None:
            found = members.members_of(status, self.door.secure)
            urls = sorted(url for member in found for url in member.client_urls)
            self.request.answer(200, ", ".join(urls).encode(), "text/plain; charset=utf-8", self._headers())

        self.ask(Status(), done)

    def members_get(self, rest: list[str]) -> None:
        """``/v2/members`` and ``/v2/members/leader``."""

        def done(status: Any) -> None:
            found = members.members_of(status, self.door.secure)
            if rest == ["leader"]:
                if not status["leader"]:
                    raise MemberError(503, 14, "During election")
                self.reply(_member_json(next(m for m in found if m.id == status["leader"])))
            elif rest:
                raise MemberError(404, 5, "Not found")
            else:
                self.reply({"members": [_member_json(member) for member in found]})

        self.ask(Status(), done)

    def members_post(self, rest: list[str]) -> None:
        """Add one."""
        urls = self._json("members").get("peerURLs") or []
        if rest or type(urls) is not list or not all(type(url) is str for url in urls):
            raise MemberError(400, 3, "a member to add is {\"peerURLs\": [URL]}")

        def add(status: Any) -> None:
            change = members.addition(members.members_of(status, self.door.secure), urls, self.door.secure)
            new = members.Member(change.member, "", urls, [], True)
            self.ask(change, lambda _: self.reply(_member_json(new), 201))

        self.ask(Status(), add)

    def members_put(self, rest: list[str]) -> None:
        """Change peer URLs."""
        if len(rest) != 1:
            self._not_on_all()
            return
        urls = self._json("members").get("peerURLs") or []
        if type(urls) is not list or not all(type(url) is str for url in urls):
            raise MemberError(400, 3, "a change of a member is {\"peerURLs\": [URL]}")
        self._change(rest, lambda found, member: members.update(found, member, urls))

    def _not_on_all(self) -> None:
        headers = {**self._headers(), "X-Content-Type-Options": "nosniff"}
        self.request.answer(405, b"Method Not Allowed\n", "text/plain; charset=utf-8", headers)

    def members_delete(self, rest: list[str]) -> None:
        """Take one out."""
        self._change(rest, members.removal)

    def _change(self, rest: list[str], change: Callable[[list[members.Member], members.Member], Any]) -> None:
        if len(rest) != 1:
            self._not_on_all()
            return

        def go(status: Any) -> None:
            found = members.members_of(status, self.door.secure)
            message = change(found, members.find(found, rest[0]))
            self.ask(message, lambda _: self.request.answer(204, b"", "", self._headers()))

        self.ask(Status(), go)

    # -- statistics --------------------------------------------------------------------------

    def stats(self, rest: list[str]) -> None:
        """``/v2/stats/self``, ``leader`` and ``store``."""
        name = rest[0] if len(rest) == 1 else ""
        if name == "store":
            self.reply(self._store_stats(), newline=False)
        elif name == "self":
            self.ask(Status(), lambda status: self.reply(self._self_stats(status), newline=False))
        elif name == "leader":
            self._leader_stats()
        else:
            raise _Refusal(404, "404 page not found")

    def _store_stats(self) -> dict[str, int]:
        counts = self.door.operations
        out = {}
        for name in COUNTERS:
            out[f"{name}Success"], out[f"{name}Fail"] = counts[name]
        return {**out, "expireCount": self.door.store().expired, "watchers": len(self.door.feeds)}

    def _self_stats(self, status: dict[str, Any]) -> dict[str, Any]:
        leads = status["leader"] == status["id"]
        peer = self.door.peer()
        name = dict(peer.raft.config.info).get(status["id"], ("",))[0]
        since = peer.leader_since
        return {
            "name": name, "id": status["id"][:16], "state": "StateLeader" if leads else "StateFollower",
            "startTime": v2.rfc3339(self.door.started_ms),
            "leaderInfo": {
                "leader": status["leader"][:16], "uptime": f"{max(0.0, peer.now() - since):.9f}s",
                "startTime": v2.rfc3339(int((time.time() - (peer.now() - since)) * 1000)),
            },
            "recvAppendRequestCnt": peer.appends_received, "sendAppendRequestCnt": peer.appends_sent,
        }  # fmt: skip

    def _leader_stats(self) -> None:
        peer = self.door.peer()
        if peer.raft is None or peer.raft.role is not Role.LEADER:
            raise MemberError(403, 9, "not current leader")
        followers = {}
        for member in sorted(peer.raft.progress):
            seen = peer.latency.get(member)
            if seen is None:
                continue
            ms = {
                "current": seen.current, "average": seen.average, "standardDeviation": seen.deviation,
                "minimum": seen.lowest, "maximum": seen.highest,
            }  # fmt: skip
            latency = {name: round(value * 1000, 6) for name, value in ms.items()}
            followers[member[:16]] = {"latency": latency, "counts": {"fail": 0, "success": seen.count}}
        self.reply({"leader": peer.machine[:16], "followers": followers}, newline=False)

    # -- users and roles ---------------------------------------------------------------------

    def auth_get(self, rest: list[str]) -> None:
        """What is there."""
        book = self.door.access.book()
        if rest == ["enable"]:
            self.reply({"enabled": book.enabled})
        elif rest == ["users"]:
            users = [self._user_json(book, name) for name in sorted(book.users)]
            self.reply({"users": users or None})
        elif rest == ["roles"]:
            names = sorted({*book.roles, ROOT})
            self.reply({"roles": [_role_json(book, name) for name in names]})
        elif len(rest) == 2 and rest[0] == "users":
            if rest[1] not in book.users:
                raise MemberError(404, 5, f"auth: User {rest[1]} does not exist.")
            self.reply(self._user_json(book, rest[1]))
        elif len(rest) == 2 and rest[0] == "roles":
            if rest[1] not in book.roles and rest[1] != ROOT:
                raise MemberError(404, 5, f"auth: Role {rest[1]} does not exist.")
            self.reply(_role_json(book, rest[1]))
        else:
            raise _Refusal(404, "404 page not found")

    def _user_json(self, book: auth.Book, name: str) -> dict[str, Any]:
        roles = book.users[name]["roles"]
        for role in roles:
            if role not in book.roles and role != ROOT:
                raise MemberError(404, 5, f"auth: Role {role} does not exist.")
        shown = [_role_json(book, role) for role in roles]
        return {"user": name, "roles": shown} if shown else {"user": name}

    def auth_put(self, rest: list[str]) -> None:
        """Enable, or make or change a user or role."""
        if rest == ["enable"]:
            book = self.door.access.book()
            if book.enabled:
                raise MemberError(409, 9, "auth: already enabled")
            self._commit("enable", {"secret": secrets.token_hex(32), "guest": True})
        elif len(rest) == 2 and rest[0] == "users":
            self._put_user(rest[1], self._json("auth"))
        elif len(rest) == 2 and rest[0] == "roles":
            self._put_role(rest[1], self._json("auth"))
        else:
            raise _Refusal(405, "Method Not Allowed")

    def _commit(self, verb: str, arguments: dict[str, Any], then: Callable[[], None] | None = None) -> None:
        def done(_: Any) -> None:
            if then is not None:
                then()
            else:
                self.request.answer(200, b"", "application/json", self._headers())

        self.ask(Propose(["auth", verb, arguments], REQUEST_S_MAX), done)

    def _put_user(self, name: str, given: dict[str, Any]) -> None:
        book = self.door.access.book()
        if given.get("user") != name:
            raise MemberError(400, 3, "User JSON name does not match the name in the URL")
        password = given.get("password") or ""
        if type(password) is not str or not _is_text(password) or not _is_text(name):
            raise MemberError(400, 3, "Invalid JSON in request body.")
        roles, grant, revoke = (_names(given, field) for field in ("roles", "grant", "revoke"))
        exists = name in book.users
        if roles and (grant or revoke):
            raise MemberError(400, 3, "User JSON contains both roles and grant/revoke")
        if (grant or revoke) and not exists:
            raise MemberError(404, 5, f"auth: User {name} does not exist.")
        if not password and (roles or not exists):
            raise MemberError(400, 3, f"auth: Cannot create user {name} with an empty password")
        if roles and exists:
            raise MemberError(409, 9, f"auth: User {name} already exists.")
        mine = set(book.users[name]["roles"]) if exists else set(roles) | ({ROOT} if name == ROOT else set())
        if mine & set(grant):
            raise MemberError(409, 9, f"auth: Granting duplicate role {min(mine & set(grant))} for user {name}")
        if set(revoke) - mine:
            raise MemberError(409, 9, f"auth: Revoking ungranted role {min(set(revoke) - mine)} for user {name}")
        result = roles or sorted((mine | set(grant)) - set(revoke))

        def hashed(digest: Any) -> None:
            if digest is None:
                self.message(503, "the password could not be hashed")
                return
            changes: list[Any] = []
            if not exists:
                changes.append(["user_add", {"name": name, "hash": digest, "roles": result}])
            elif password:
                changes.append(["user_password", {"name": name, "hash": digest}])
            if exists and (grant or revoke):  # v2 looks whether a role exists only when it is used
                changes.append(["user_roles", {"name": name, "roles": result}])
            created = not exists and not roles  # etcd says 200 for one that is created with roles
            self._commit(
                "all", {"changes": changes},
                lambda: self.reply(
                    {"user": name, "roles": result or ([] if exists else None)}, 201 if created else 200
                ),
            )  # fmt: skip

        if password:
            self.door.access.run(lambda: self.door.hash_password(password), hashed)
        else:
            hashed("")

    def _put_role(self, name: str, given: dict[str, Any]) -> None:
        book = self.door.access.book()
        if given.get("role") != name:
            raise MemberError(400, 3, "Role JSON name does not match the name in the URL")
        if name == ROOT:
            raise MemberError(403, 7, f"auth: Cannot modify role {name}: is root role.")
        exists = name in book.roles
        changes: list[Any] = []
        if not (given.get("grant") or given.get("revoke")):
            if exists:
                raise MemberError(409, 9, f"auth: Role {name} already exists.")
            changes.append(["role_add", {"name": name}])
            wanted = _rights(given.get("permissions"))
        else:
            if not exists:
                raise MemberError(404, 5, f"auth: Role {name} does not exist.")
            wanted = _rights(given.get("grant"))
        held = {(key, end): right for right, key, end in book.roles.get(name, ())}
        for letter, kind in ((READ, "read"), (WRITE, "write")):
            for where, right in wanted.items():
                if letter in right and letter in held.get(where, ""):
                    shown = auth.range_pattern(*where)
                    raise MemberError(409, 9, f"auth: Granting duplicate {kind} permission {shown}")
        for where, right in wanted.items():
            both = "".join(r for r in READ + WRITE if r in right + held.get(where, ""))
            changes.append(["role_grant", {"name": name, "right": both, "key": where[0], "end": where[1]}])
        for where, right in _rights(given.get("revoke")).items():
            if not set(right) & set(held.get(where, "")):
                continue
            changes.append(["role_revoke", {"name": name, "right": right, "key": where[0], "end": where[1]}])

        if exists and changes:
            changes.append(["role_sort", {"name": name}])
        if exists and not changes:
            raise MemberError(400, 3, "auth: Role not updated. Use grant/revoke to update the role.")

        def done() -> None:
            self.reply(_role_json(self.door.access.book(), name), 200 if exists else 201)

        self._commit("all", {"changes": changes}, done)

    def auth_delete(self, rest: list[str]) -> None:
        """Disable, or remove a user or role."""
        book = self.door.access.book()
        if rest == ["enable"]:
            if not book.enabled:
                raise MemberError(409, 9, "auth: already disabled")
            self._commit("disable", {})
        elif len(rest) == 2 and rest[0] == "users":
            if book.enabled and rest[1] == ROOT:
                raise MemberError(403, 7, "auth: Cannot delete root user while auth is enabled.")
            if rest[1] not in book.users:
                raise MemberError(404, 5, f"auth: User {rest[1]} does not exist")
            self._commit("user_delete", {"name": rest[1]})
        elif len(rest) == 2 and rest[0] == "roles":
            if rest[1] == ROOT:
                raise MemberError(403, 7, f"auth: Cannot modify role {rest[1]}: is root role.")
            if rest[1] not in book.roles:
                raise MemberError(404, 5, f"auth: Role {rest[1]} doesn't exist.")
            self._commit("role_drop", {"name": rest[1]})
        else:
            raise _Refusal(405, "Method Not Allowed")


class _Refusal(Exception):
    """Answered in plain text."""

    def __init__(self, status: int, text: str, allow: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.allow = allow


def _auth_refusal(error: auth.AuthError) -> tuple[int, str]:
    if error.code.startswith("root user does not"):
        return 409, "auth: No root user available, please create one"
    return (404 if "not found" in error.code else 409), f"auth: {error}"


def _member_json(member: members.Member) -> dict[str, Any]:
    return {
        "id": member.hex, "name": member.name, "peerURLs": member.peer_urls, "clientURLs": member.client_urls,
    }  # fmt: skip


def _names(given: dict[str, Any], field: str) -> list[str]:
    names = given.get(field) or []
    if type(names) is not list or not all(type(name) is str for name in names):
        raise MemberError(400, 3, "Invalid JSON in request body.")
    return names


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rights(permissions: Any) -> dict[tuple[bytes, bytes | None], str]:
    """``{"kv": {"read": [PATTERN], "write": [PATTERN]}}`` as rights by range."""
    if permissions is None:
        return {}
    if type(permissions) is not dict or type(permissions.get("kv") or {}) is not dict:
        raise MemberError(400, 3, "Invalid JSON in request body.")
    out: dict[tuple[bytes, bytes | None], str] = {}
    for field, right in (("read", READ), ("write", WRITE)):
        for pattern in _names(permissions.get("kv") or {}, field):
            where = auth.pattern_range(pattern)
            out[where] = out.get(where, "") + right
    return out


def _role_json(book: auth.Book, name: str) -> dict[str, Any]:
    rights: dict[str, list[str]] = {READ: [], WRITE: []}
    grants = book.roles.get(name, [])
    if name == ROOT:
        grants = [(READ + WRITE, *auth.pattern_range("/*"))]
    for right, key, end in grants:
        pattern = auth.range_pattern(key, end)
        for letter in right if pattern is not None else "":
            rights[letter].append(pattern)  # type: ignore[arg-type]
    return {"role": name, "permissions": {"kv": {"read": rights[READ], "write": rights[WRITE]}}}


#: Paths whose answers do not name the cluster.
_NAMELESS = ("/v2/machines", "/v2/stats")
#: What etcd says is allowed, in its order.
_ALLOW = {"machines": "GET,HEAD", "members": "GET,POST,DELETE,PUT", "stats": "GET", "auth": "GET,PUT,DELETE"}
_ADMIN: dict[tuple[str, str], Any] = {
    ("machines", "GET"): AdminRequest.machines,
    ("members", "GET"): AdminRequest.members_get,
    ("members", "POST"): AdminRequest.members_post,
    ("members", "PUT"): AdminRequest.members_put,
    ("members", "DELETE"): AdminRequest.members_delete,
    ("stats", "GET"): AdminRequest.stats,
    ("auth", "GET"): AdminRequest.auth_get,
    ("auth", "PUT"): AdminRequest.auth_put,
    ("auth", "DELETE"): AdminRequest.auth_delete,
}
