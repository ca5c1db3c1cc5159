"""Users, roles and tokens at both doors of three real peers: whoever may not, cannot.

The v2 part replays the facts of a transcript of etcd 3.4; the v3 part asks for everything
that somebody else's rules forbid.  What one door was told holds at the other.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ..answers import Answer
from ..waiting import wait_until
from .test_v3 import SOON_S, OpenRequest, Peers, b64, create, prefix, running, text, undisturbed

ROOT = ("root", "secret-of-root")
AL = ("al", "secret-of-al")
#: Every password that any example uses; none may be found in a log or a file.
SECRETS = ("secret-of-root", "secret-of-al", "secret-of-bo", "secret-changed", "secret-wrong")
REFUSED = {"message": "Insufficient credentials"}


class Guarded:
    """Peers with a book of users."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.tokens: dict[str, str] = {}

    def admin(
        self, method: str, path: str, message: Any = None, login: tuple[str, str] | None = None, number: int = 0
    ) -> Answer:  # fmt: skip
        """One request to ``/v2/auth`` or ``/v2/members``."""
        headers = {"Content-Type": "application/json"}
        if login is not None:
            headers["Authorization"] = "Basic " + b64(":".join(login))
        body = None if message is None else json.dumps(message).encode()
        return self.peers.ask(number, method, f"/v2/{path}", body, headers)

    def token(self, user: str, password: str, number: int = 0) -> str:
        """A token of somebody."""
        return str(self.peers.did(number, "auth/authenticate", {"name": user, "password": password})["token"])

    def refused(self, path: str, message: Any, token: str, number: int = 0, code: int = 7) -> None:
        """The request must be denied."""
        answer = self.peers.v3(number, path, message, token)
        status = {7: 403, 16: 401, 3: 400}[code]
        assert (answer.status, answer.json()["code"]) == (status, code), f"{path} {message}: {answer.text}"

    def secret(self) -> str:
        """What tokens are signed with, as the data directory has it."""
        for file in sorted(self.peers.data(0).rglob("*")):
            found = re.search(rb"secretx@([0-9a-f]{64})", file.read_bytes()) if file.is_file() else None
            if found is not None:
                return found[1].decode()
        raise AssertionError("the log does not hold the command that switched authentication on")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Guarded]:
    """Fresh peers for v2's transcript, nobody known yet."""
    with running(tmp_path, 3) as made, undisturbed(made):
        yield Guarded(made)


@pytest.fixture(scope="module")
def _three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with running(tmp_path_factory.mktemp("guarded"), 3) as made:
        add = made.did
        add(0, "auth/user/add", {"name": "root", "password": ROOT[1]})
        add(0, "auth/user/grant", {"user": "root", "role": "root"})
        add(0, "auth/user/add", {"name": "al", "password": AL[1]})
        add(0, "auth/role/add", {"name": "app"})
        add(0, "auth/user/grant", {"user": "al", "role": "app"})
        grants = (
            {"permType": "READWRITE", **prefix("/app/")}, {"permType": "READ", "key": b64("/shared")},
            {"permType": "WRITE", **prefix("/drop/")}, {"permType": "READ", "key": b64("zone"), "range_end": "AA=="},
            {"permType": "READWRITE", **prefix("lock/")},
        )  # fmt: skip
        for grant in grants:
            add(0, "auth/role/grant", {"name": "app", "perm": grant})
        add(0, "auth/role/add", {"name": "hidden"})
        for key in ("/app/x", "/shared", "/drop/x", "/other", "zone/a", "zonf", "/app"):
            made.put(0, key, "v")
        add(0, "auth/enable", {})
        yield Guarded(made)


@pytest.fixture
def three(_three: Guarded) -> Iterator[Guarded]:
    """Peers with authentication on, and fresh tokens."""
    with undisturbed(_three.peers):
        for number in range(3):  # what was changed at one peer is known at all of them
            wait_until("the book of users", partial(_three.token, *AL, number), SOON_S)
        _three.tokens = {"root": _three.token(*ROOT), "al": _three.token(*AL)}
        yield _three


def test_what_etcd_2_answered(two: Guarded) -> None:
    """The transcript: users, roles, guest, enable, disable."""
    ask, keys = two.admin, two.peers.v2

    def same(answer: Answer, status: int, message: Any = None) -> None:
        assert answer.status == status, answer.text
        if message is not None:
            assert answer.json() == message

    def denied(answer: Answer) -> None:
        assert (answer.status, answer.json()) == (401, {
            "errorCode": 110, "message": "The request requires user authentication",
            "cause": "Insufficient credentials", "index": 0,
        })  # fmt: skip

    same(ask("GET", "auth/enable"), 200, {"enabled": False})
    same(ask("PUT", "auth/enable"), 409)
    same(ask("PUT", "auth/users/root", {"user": "root", "password": ROOT[1]}), 201, {"user": "root", "roles": ["root"]})
    same(ask("PUT", "auth/enable"), 200)
    same(ask("PUT", "auth/enable"), 401, REFUSED)
    same(ask("PUT", "auth/enable", login=ROOT), 409)
    same(ask("GET", "auth/roles/guest"), 401, REFUSED)
    revoke = {"role": "guest", "revoke": {"kv": {"write": ["/*"]}}}
    guest = {"role": "guest", "permissions": {"kv": {"read": ["/*"], "write": []}}}
    same(ask("PUT", "auth/roles/guest", revoke, ROOT), 200, guest)
    denied(keys(0, "PUT", "/authx", {"value": "1"}))
    rights = {"kv": {"read": ["/app/*"], "write": ["/app/*"]}}
    app = {"role": "app", "permissions": rights}
    same(ask("PUT", "auth/roles/app", app, ROOT), 201, app)
    same(ask("PUT", "auth/roles/app", app, ROOT), 409)
    al = {"user": "al", "password": AL[1], "roles": ["app"]}
    same(ask("PUT", "auth/users/al", al, ROOT), 200, {"user": "al", "roles": ["app"]})
    made = keys(0, "PUT", "/app/x", {"value": "1"}, AL)
    assert (made.status, made.json()["action"]) == (201, "set")
    denied(keys(0, "PUT", "/other", {"value": "1"}, AL))
    denied(keys(0, "GET", "/app/x", None, ("al", "secret-wrong")))
    denied(keys(0, "GET", "/app/x", None, ("nobody", "secret-wrong")))
    same(keys(0, "GET", "/app/x"), 200)
    full = {"role": "root", "permissions": {"kv": {"read": ["/*"], "write": ["/*"]}}}
    users = [{"user": "al", "roles": [app]}, {"user": "root", "roles": [full]}]
    same(ask("GET", "auth/users", login=ROOT), 200, {"users": users})
    same(ask("GET", "auth/users/al", login=ROOT), 200, users[0])
    same(ask("GET", "auth/users"), 401, REFUSED)
    same(ask("GET", "auth/users", login=AL), 401, REFUSED)
    same(ask("GET", "members"), 200)
    same(ask("POST", "members", {}), 401, REFUSED)
    same(ask("DELETE", "members/1"), 401, REFUSED)
    message = {"message": "auth: Cannot delete root user while auth is enabled."}
    same(ask("DELETE", "auth/users/root", login=ROOT), 403, message)
    same(ask("PUT", "auth/users/al", {"user": "al", "password": "secret-changed"}, ROOT), 200)
    denied(keys(0, "PUT", "/app/x", {"value": "2"}, AL))
    same(keys(0, "PUT", "/app/x", {"value": "2"}, ("al", "secret-changed")), 200)
    same(ask("PUT", "auth/users/al", {"user": "al", "revoke": ["app"]}, ROOT), 200, {"user": "al", "roles": []})
    denied(keys(0, "PUT", "/app/x", {"value": "3"}, ("al", "secret-changed")))
    _v3_holds_to_it(two)
    same(ask("DELETE", "auth/enable", login=ROOT), 200)
    same(keys(0, "PUT", "/other", {"value": "1"}), 201)
    same(ask("DELETE", "auth/enable"), 409)
    same(ask("DELETE", "auth/users/al"), 200)
    same(ask("GET", "auth/users/al"), 404)
    _assert_no_secrets(two.peers)


def test_nobody_in_particular_rewrites_the_book(two: Guarded) -> None:
    """Not even where a guest may write every key."""
    assert two.admin("PUT", "auth/users/root", {"user": "root", "password": ROOT[1]}).status == 201
    assert two.admin("PUT", "auth/enable").status == 200
    book = {"enabled": False, "revision": 9, "secret": "", "users": {}, "roles": {}}
    message = {"leader": {"key": b64("/_argosy/auth")}, "value": b64(json.dumps(book))}
    two.refused("election/proclaim", message, "")
    assert two.admin("GET", "auth/enable", login=ROOT).json() == {"enabled": True}


def _is_guarded(peers: Peers, number: int) -> bool:
    return bool(peers.did(number, "auth/status", {}).get("enabled"))


def _v3_holds_to_it(two: Guarded) -> None:
    """v2's guest may read below /, at the v3 door too, and nothing else."""
    peers = two.peers
    for number in range(3):
        wait_until("the book", partial(_is_guarded, peers, number), SOON_S)
        assert "kvs" in peers.did(number, "kv/range", {"key": b64("/app/x")})
        two.refused("kv/put", {"key": b64("/app/x"), "value": ""}, "", number)
        two.refused("kv/range", {"key": b64("app")}, "", number)
        two.refused("auth/disable", {}, "", number)
        two.refused("auth/user/list", {}, "", number)
        assert peers.did(number, "kv/put", {"key": b64("free"), "value": ""}, two.token(*ROOT, number=number))


def _assert_no_secrets(peers: Peers) -> None:
    """No password in any file of any peer, plain or in base64."""
    told = [s.encode() for s in SECRETS]
    told += [b64(s).rstrip("=").encode()[:-1] for s in SECRETS]
    told += [base64.b64encode(b"al:" + s.encode()).rstrip(b"=")[:-1] for s in SECRETS]
    for file in peers.folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [s for s in told if s in content], file


ALLOWED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("kv/range", {"key": b64("/app/x")}),
    ("kv/range", prefix("/app/")),
    ("kv/range", {"key": b64("/app/a"), "range_end": b64("/app/b")}),
    ("kv/range", {"key": b64("/shared")}),
    ("kv/range", {"key": b64("zone"), "range_end": "AA=="}),
    ("kv/range", {"key": b64("zzz"), "range_end": b64("zzzz")}),
    ("kv/put", {"key": b64("/app/y"), "value": "", "prev_kv": True}),
    ("kv/put", {"key": b64("/drop/y"), "value": ""}),
    ("kv/deleterange", {**prefix("/drop/y")}),
    ("kv/txn", {"compare": [{"key": b64("/shared"), "target": "VERSION", "result": "GREATER", "version": 0}],
                "success": [{"request_put": {"key": b64("/app/z"), "value": ""}}]}),
    ("lease/grant", {"TTL": 30}),
    ("lock/lock", {"name": b64("lock")}),
)  # fmt: skip
FORBIDDEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("kv/range", {"key": b64("/other")}),
    ("kv/range", {"key": b64("/app")}),
    ("kv/range", {"key": b64("/app/"), "range_end": b64("/app1")}),
    ("kv/range", {"key": b64("/app"), "range_end": b64("/app0")}),
    ("kv/range", {"key": b64("/app/"), "range_end": "AA=="}),
    ("kv/range", {"key": "AA==", "range_end": "AA=="}),
    ("kv/range", {"key": b64("zon"), "range_end": "AA=="}),
    ("kv/range", {"key": b64("/drop/x")}),
    ("kv/range", {"key": b64("/app/x"), "range_end": b64("/shared\0"), "count_only": True}),
    ("kv/put", {"key": b64("/shared"), "value": ""}),
    ("kv/put", {"key": b64("zone/a"), "value": ""}),
    ("kv/put", {"key": b64("/drop/x"), "value": "", "prev_kv": True}),
    ("kv/deleterange", {**prefix("/drop/"), "prev_kv": True}),
    ("kv/deleterange", {"key": b64("/app/"), "range_end": "AA=="}),
    ("kv/deleterange", {"key": "AA==", "range_end": "AA=="}),
    ("kv/txn", {"compare": [{"key": b64("/other"), "target": "VERSION"}]}),
    ("kv/txn", {"compare": [{**prefix("/"), "target": "VERSION"}]}),
    ("kv/txn", {"failure": [{"request_put": {"key": b64("/other"), "value": ""}}]}),
    ("kv/txn", {"success": [{"request_range": {"key": b64("/drop/x")}}]}),
    ("kv/txn", {"success": [{"request_delete_range": {"key": b64("/app/"), "range_end": b64("/b")}}]}),
    ("kv/txn", {"success": [{"request_txn": {"failure": [{"request_txn": {"success": [
        {"request_put": {"key": b64("/shared"), "value": ""}}]}}]}}]}),
    ("watch", {"create_request": {"key": b64("/other")}}),
    ("watch", {"create_request": {"key": b64("/app/"), "range_end": "AA=="}}),
    ("watch", {"create_request": {"key": "", "range_end": "AA=="}}),
    ("lock/lock", {"name": b64("/other")}),
    ("lock/unlock", {"key": b64("/other")}),
    ("election/campaign", {"name": b64("/shared")}),
    ("election/leader", {"name": b64("/other")}),
    ("election/observe", {"name": b64("/other")}),
    ("election/proclaim", {"leader": {"key": b64("/shared"), "rev": "0"}, "value": ""}),
    ("election/resign", {"leader": {"key": b64("/shared"), "rev": "0"}}),
    ("auth/enable", {}), ("auth/disable", {}), ("auth/user/add", {"name": "eve", "password": "x"}),
    ("auth/user/list", {}), ("auth/user/get", {"name": "root"}), ("auth/user/delete", {"name": "root"}),
    ("auth/user/changepw", {"name": "root", "password": "x"}), ("auth/user/grant", {"user": "al", "role": "root"}),
    ("auth/role/list", {}), ("auth/role/add", {"name": "r"}), ("auth/role/delete", {"role": "app"}),
    ("auth/role/grant", {"name": "app", "perm": {"key": "AA==", "range_end": "AA=="}}),
    ("cluster/member/remove", {"ID": "1"}), ("cluster/member/add", {"peerURLs": ["http://127.0.0.1:1"]}),
    ("maintenance/snapshot", {}), ("maintenance/transfer-leadership", {"targetID": "1"}), ("maintenance/hash", {}),
)  # fmt: skip


@pytest.mark.parametrize("number", range(3))
def test_a_token_of_one_peer_opens_every_peer(three: Guarded, number: int) -> None:
    """To what its user may do, and to nothing else."""
    for path, message in ALLOWED:
        answer = three.peers.v3(number, path, message, three.tokens["al"])
        assert answer.status == 200, f"{path} {message}: {answer.text}"
        if path == "lock/lock":
            three.peers.did(number, "lock/unlock", {"key": answer.json()["key"]}, three.tokens["al"])
    for path, message in FORBIDDEN:
        three.refused(path, message, three.tokens["al"], number)
    values = three.peers.did(0, "kv/range", {"key": b64("/other")}, three.tokens["root"])["kvs"]
    assert [text(kv["value"]) for kv in values] == ["v"]
    assert three.peers.did(0, "auth/user/list", {}, three.tokens["root"])["users"] == ["al", "root"]


def test_without_a_token_or_with_a_wrong_one(three: Guarded) -> None:
    """Nobody in particular has no rights here; what is not a token is said to be none."""
    good = three.tokens["al"]
    body, _, signature = good.partition(".")
    root = base64.urlsafe_b64encode(f"{int(time.time()) + 300}.root".encode()).decode().rstrip("=")
    forged = [
        "x", ".", "a.b", body, f"{body}.", f"{body}.{signature[:-1]}", f"{body}.{'0' * 64}", f"{root}.{signature}",
        f"Bearer {good}", "Basic " + b64(":".join(AL)), f"{good} ", f"..{good}", "%", "=" * 99, good.upper(),
    ]  # fmt: skip
    for number in range(3):
        for token in forged:
            if token.strip() != good:
                three.refused("kv/range", {"key": b64("/app/x")}, token, number, 16)
        three.refused("kv/range", {"key": b64("/app/x")}, "", number, 3)
    for name, password in (("al", "secret-wrong"), ("al", ""), ("nobody", "secret-wrong"), ("", "")):
        answer = three.peers.v3(0, "auth/authenticate", {"name": name, "password": password})
        assert answer.json()["error"] == "etcdserver: authentication failed, invalid user ID or password"


def test_a_token_ends(three: Guarded) -> None:
    """Signed with the right secret: one that is still good opens, one that is not any more does not."""
    secret = three.secret()

    issued = three.tokens["al"].partition(".")[0]
    entry = base64.urlsafe_b64decode(issued + "=" * (-len(issued) % 4)).decode().split(".")[1]

    def signed(seconds: int) -> str:
        said = f"{int(time.time()) + seconds}.{entry}.al"
        signature = hmac.digest(secret.encode(), said.encode(), hashlib.sha256).hex()
        return f"{base64.urlsafe_b64encode(said.encode()).decode().rstrip('=')}.{signature}"

    assert three.peers.v3(0, "kv/range", {"key": b64("/app/x")}, signed(10)).status == 200
    three.refused("kv/range", {"key": b64("/app/x")}, signed(-2), code=16)


def test_a_signature_that_is_not_ascii_is_wrong(three: Guarded) -> None:
    """And nothing more."""
    body = three.tokens["al"].partition(".")[0]
    three.refused("kv/range", {"key": b64("/app/x")}, f"{body}.\xe9\xe9", code=16)


def test_watches_and_leases_keep_to_the_rules(three: Guarded) -> None:
    """A watch shows what its user may read; a lease with others' keys cannot be ended or looked into."""
    peers, al, root = three.peers, three.tokens["al"], three.tokens["root"]
    with peers.watch(1, create("/app/"), token=al) as watch:
        watch.created()
        peers.did(0, "kv/put", {"key": b64("/app/w"), "value": ""}, root)
        assert text(watch.events(1)[0]["kv"]["key"]) == "/app/w"
    body = b'{"create_request":{"key":"%b"}}{"create_request":{"key":"%b"}}'
    three.refused("watch", body % (b64("/app/w").encode(), b64("/other").encode()), al)
    lease = peers.did(0, "lease/grant", {"TTL": 60}, root)["ID"]
    peers.did(0, "kv/put", {"key": b64("/app/leased"), "value": "", "lease": lease}, root)
    peers.did(0, "kv/put", {"key": b64("/other/leased"), "value": "", "lease": lease}, root)
    for number in range(3):
        peers.did(number, "kv/range", {"key": b64("zone")}, al)  # linearizable: from here on it knows the lease
        three.refused("lease/revoke", {"ID": lease}, al, number)
        three.refused("lease/timetolive", {"ID": lease, "keys": True}, al, number)
        three.refused("kv/lease/revoke", {"ID": lease}, al, number)
    assert peers.did(0, "kv/range", {"key": b64("/other/leased")}, root)["count"] == "1"
    peers.did(0, "lease/revoke", {"ID": lease}, root)


def test_an_open_stream_keeps_to_the_rules(three: Guarded) -> None:
    """Each creation on it is looked at by itself, with the rights and the token of that moment."""
    peers, root = three.peers, three.tokens["root"]
    refused = {"created": True, "canceled": True, "watch_id": "-1"}
    peers.did(0, "auth/user/add", {"name": "bo", "password": "secret-of-bo"}, root)
    peers.did(0, "auth/user/grant", {"user": "bo", "role": "app"}, root)
    try:
        token = three.token("bo", "secret-of-bo")
        for first, status, code in (({"Authorization": token}, 403, 7), ({"Authorization": "x"}, 401, 16), ({}, 400, 3)):
            with OpenRequest(peers.doors[0], "/v3/watch", *map(": ".join, first.items())) as denied:
                denied.send(create("/other"))
                assert (denied.message()["code"], denied.status) == (code, status)
        with OpenRequest(peers.doors[0], "/v3/watch", f"Authorization: {token}") as watch:
            watch.send(create("/app/"))
            assert watch.message()["result"]["created"]
            watch.send(create("/other"))
            denial = watch.message()["result"]
            assert denial | refused == denial and "PermissionDenied" in denial["cancel_reason"]
            watch.send(create("/app/"))
            assert watch.message()["result"]["watch_id"] == "1"
            watch.send({"cancel_request": {"watch_id": 1}})
            assert watch.message()["result"]["canceled"]
            peers.did(0, "auth/user/changepw", {"name": "bo", "password": "secret-changed"}, root)
            watch.send(create("/app/"))
            denial = watch.message()["result"]
            assert denial | refused == denial and "Unauthenticated" in denial["cancel_reason"]
            peers.did(0, "kv/put", {"key": b64("/app/open"), "value": ""}, root)
            assert text(watch.message()["result"]["events"][0]["kv"]["key"]) == "/app/open"
    finally:
        peers.did(0, "auth/user/delete", {"name": "bo"}, root)


@pytest.mark.parametrize("op", ["request_put", "request_delete_range"])
def test_previous_values_in_a_transaction_need_the_right_to_read(three: Guarded, op: str) -> None:
    """As they do outside of one."""
    asked = {"key": b64("/drop/x"), "prev_kv": True}
    three.refused("kv/txn", {"success": [{op: asked}]}, three.tokens["al"])
    three.refused("kv/txn", {"failure": [{"request_txn": {"success": [{op: asked}]}}]}, three.tokens["al"])


def test_a_lease_cannot_be_ended_by_a_faster_request(three: Guarded) -> None:
    """Keys that were attached at another peer count at once."""
    peers, al, root = three.peers, three.tokens["al"], three.tokens["root"]
    leader = peers.did(0, "maintenance/status", {}, root)["leader"]
    members = [peers.did(n, "maintenance/status", {}, root)["header"]["member_id"] for n in range(3)]
    first = members.index(leader)
    ended = 0
    for _ in range(60):
        lease = peers.did(first, "lease/grant", {"TTL": 60}, root)["ID"]
        put = {"key": b64("/other/raced"), "value": "", "lease": lease}
        peers.did(first, "kv/put", put, root)
        for number in {0, 1, 2} - {first}:
            ended += peers.v3(number, "lease/revoke", {"ID": lease}, al).status == 200
    assert ended == 0


def test_a_role_is_shown_to_those_who_have_it(three: Guarded) -> None:
    """The others may not know what it allows."""
    assert three.peers.did(0, "auth/role/get", {"role": "app"}, three.tokens["al"])["perm"]
    three.refused("auth/role/get", {"role": "hidden"}, three.tokens["al"])


def test_v3s_rules_hold_at_the_v2_door(three: Guarded) -> None:
    """The same users and ranges, by name and password, at every peer."""
    peers = three.peers
    for number in range(3):
        assert peers.v2(number, "GET", "/app/x", None, AL).status == 200
        assert peers.v2(number, "GET", "/shared", None, AL).status == 200
        assert peers.v2(number, "PUT", "/drop/v2", {"value": ""}, AL).status in (200, 201)
        for method, key in (
            ("GET", "/other"), ("GET", "/"), ("GET", "/?recursive=true"), ("GET", "/drop/x"), ("PUT", "/shared"),
            ("DELETE", "/other"), ("GET", "/other?wait=true"), ("GET", "/?wait=true&recursive=true"), ("POST", "/q"),
            ("GET", "/app?recursive=true"), ("GET", "/app/../other"), ("GET", "/app/%2E%2E/other"), ("GET", "/app//../other"),
            ("DELETE", "/app?recursive=true"), ("PUT", "/app/../shared"), ("HEAD", "/other"), ("GET", "/_argosy/auth"),
        ):  # fmt: skip
            form = {"value": "1"} if method in ("PUT", "POST") else None
            answer = peers.v2(number, method, key, form, AL)
            assert answer.status == 401, f"{method} {key}: {answer.text}"
        assert peers.v2(number, "GET", "/app/x").status == 401
        for path in ("auth/users", "auth/roles", "auth/users/root"):
            assert three.admin("GET", path, login=AL, number=number).json() == REFUSED
        assert three.admin("DELETE", "auth/enable", login=AL, number=number).json() == REFUSED
    assert three.admin("GET", "auth/users", login=ROOT).status == 200
    header = {"Authorization": "Basic %%%"}
    assert peers.ask(0, "GET", "/v2/keys/app/x", None, header).status == 401
    assert peers.ask(0, "GET", "/v2/keys/app/x", None, {"Authorization": three.tokens["al"]}).status == 401


def test_changes_are_felt_at_once_and_everywhere(three: Guarded) -> None:
    """A role that is taken away, a password that is changed, a user that is removed."""
    peers, root = three.peers, three.tokens["root"]
    peers.did(0, "auth/user/add", {"name": "bo", "password": "secret-of-bo"}, root)
    peers.did(0, "auth/user/grant", {"user": "bo", "role": "app"}, root)
    token = three.token("bo", "secret-of-bo")
    assert peers.v3(0, "kv/range", {"key": b64("/app/x")}, token).status == 200
    assert peers.v2(0, "GET", "/app/x", None, ("bo", "secret-of-bo")).status == 200
    peers.did(0, "auth/user/revoke", {"name": "bo", "role": "app"}, root)
    three.refused("kv/range", {"key": b64("/app/x")}, token)
    assert peers.v2(0, "GET", "/app/x", None, ("bo", "secret-of-bo")).status == 401
    peers.did(0, "auth/user/changepw", {"name": "bo", "password": "secret-changed"}, root)
    answer = peers.v3(0, "auth/authenticate", {"name": "bo", "password": "secret-of-bo"})
    assert answer.status == 400
    three.token("bo", "secret-changed")
    peers.did(0, "auth/user/delete", {"name": "bo"}, root)
    three.refused("kv/range", {"key": b64("/app/x")}, token, code=16)


@pytest.mark.parametrize("change", ["password", "another user"])
def test_a_token_ends_with_its_password(three: Guarded, change: str) -> None:
    """Whoever stole one is out when the password is changed."""
    peers, root = three.peers, three.tokens["root"]
    peers.did(0, "auth/user/add", {"name": "bo", "password": "secret-of-bo"}, root)
    try:
        token = three.token("bo", "secret-of-bo")
        assert peers.v3(0, "lease/grant", {"TTL": 5}, token).status == 200
        if change == "password":
            peers.did(0, "auth/user/changepw", {"name": "bo", "password": "secret-changed"}, root)
        else:
            peers.did(0, "auth/user/delete", {"name": "bo"}, root)
            peers.did(0, "auth/user/add", {"name": "bo", "password": "secret-changed"}, root)
        three.refused("kv/range", {"key": b64("/app/x")}, token, code=16)
    finally:
        peers.did(0, "auth/user/delete", {"name": "bo"}, root)


@pytest.mark.parametrize("password", [7, ["x"], "\ud800"])
def test_a_password_that_is_no_text_is_refused(two: Guarded, password: Any) -> None:
    """By both doors; nobody is made."""
    assert two.admin("PUT", "auth/users/root", {"user": "root", "password": password}).status == 400
    if isinstance(password, str):
        assert two.peers.v3(0, "auth/user/add", {"name": "root", "password": password}).status == 400
    assert "users" not in two.peers.did(0, "auth/user/list", {})


def test_half_a_letter_is_refused(three: Guarded) -> None:
    """As a message that cannot be read."""
    root = three.tokens["root"]
    for path, message in (
        ("auth/authenticate", {"name": "al", "password": "\ud800"}),
        ("auth/user/add", {"name": "\ud800", "password": "x"}),
        ("auth/role/add", {"name": "\ud800"}),
    ):
        answer = three.peers.v3(0, path, message, root)
        assert answer.status == 400 and answer.json()["code"] == 3, answer.text
    assert three.peers.complaints() == []


def test_a_name_may_need_quoting_in_a_url(three: Guarded) -> None:
    """etcd's clients quote names."""
    answer = three.admin("PUT", "auth/users/a%20b", {"user": "a b", "password": "secret-of-bo"}, ROOT)
    assert answer.status == 201, answer.text
    assert three.admin("DELETE", "auth/users/a%20b", login=ROOT).status == 200


def test_the_book_survives_restarts(three: Guarded) -> None:
    """Killed and started again, a peer knows the same users, and old tokens."""
    peers = three.peers
    peers.kill(2)
    peers.start(2)
    peers.await_whole()
    assert peers.v3(2, "kv/range", {"key": b64("/app/x")}, three.tokens["al"]).status == 200
    three.refused("kv/range", {"key": b64("/other")}, three.tokens["al"], 2)
    assert peers.v2(2, "GET", "/other", None, AL).status == 401


def test_no_password_is_written_anywhere(three: Guarded) -> None:
    """Not in a log, not in a file of the data directory, however it was sent."""
    three.peers.v3(0, "auth/authenticate", {"name": "al", "password": "secret-wrong"})
    three.peers.v2(0, "GET", "/app/x", None, ("al", "secret-wrong"))
    _assert_no_secrets(three.peers)
