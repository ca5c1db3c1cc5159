"""Users, roles and tokens at the v3 door: the book is in the store, passwords are checked elsewhere."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from . import v3
from .v3 import V3Error, auth_error
from .v3_call import Call, Message, Then
from .v3_messages import PERMISSION
from .v3json import lean


def _auth(call: Call, verb: str, arguments: dict[str, Any], then: Then | None = None) -> None:
    call.propose(["auth", verb, arguments], then or (lambda _: call.reply()))


def auth_enable(call: Call, _: Message) -> None:
    """``/auth/enable``."""
    _auth(call, "enable", {"secret": secrets.token_hex(32), "guest": False})


def auth_disable(call: Call, _: Message) -> None:
    """``/auth/disable``."""
    _auth(call, "disable", {})


def auth_status(call: Call, _: Message) -> None:
    """``/auth/status``."""
    book = call.door.access.book()
    call.reply(**lean(enabled=book.enabled, authRevision=book.revision))


def authenticate(call: Call, m: Message) -> None:
    """``/auth/authenticate``: a token for name and password."""
    if not call.door.access.book().enabled:
        raise auth_error("authentication is not enabled")

    def verified(right: bool) -> None:
        if right:
            call.reply(token=call.door.access.token(m["name"]))
        else:
            call.refuse(auth_error("authentication failed, invalid user ID or password"))

    call.door.access.verify(m["name"], m["password"], verified)


def _hashed(call: Call, m: Message, then: Callable[[str], None]) -> None:
    options = m.get("options")
    if options is not None and options["no_password"]:
        then("none")
        return

    def hashed(digest: Any) -> None:
        if digest is None:
            call.refuse(V3Error(13, "etcdserver: the password could not be hashed"))
        else:
            then(digest)

    call.door.access.run(lambda: call.door.hash_password(m["password"]), hashed)


def user_add(call: Call, m: Message) -> None:
    """``/auth/user/add``."""
    if not m["name"]:
        raise auth_error("user name is empty")
    _hashed(call, m, lambda digest: _auth(call, "user_add", {"name": m["name"], "hash": digest}))


def user_password(call: Call, m: Message) -> None:
    """``/auth/user/changepw``."""
    _hashed(call, m, lambda digest: _auth(call, "user_password", {"name": m["name"], "hash": digest}))


def user_delete(call: Call, m: Message) -> None:
    """``/auth/user/delete``."""
    _auth(call, "user_delete", {"name": m["name"]})


def user_get(call: Call, m: Message) -> None:
    """``/auth/user/get``."""
    user = call.door.access.book().users.get(m["name"])
    if user is None:
        raise auth_error("user name not found")
    if call.user != m["name"] and not call.door.access.is_root(call.user):
        raise auth_error("permission denied")
    call.reply(**lean(roles=list(user["roles"])))


def user_list(call: Call, _: Message) -> None:
    """``/auth/user/list``."""
    call.reply(**lean(users=sorted(call.door.access.book().users)))


def user_grant(call: Call, m: Message) -> None:
    """``/auth/user/grant``."""
    _auth(call, "user_grant", {"name": m["user"], "role": m["role"]})


def user_revoke(call: Call, m: Message) -> None:
    """``/auth/user/revoke``."""
    _auth(call, "user_revoke", {"name": m["name"], "role": m["role"]})


def role_add(call: Call, m: Message) -> None:
    """``/auth/role/add``."""
    _auth(call, "role_add", {"name": m["name"]})


def role_delete(call: Call, m: Message) -> None:
    """``/auth/role/delete``."""
    _auth(call, "role_delete", {"name": m["role"]})


def role_get(call: Call, m: Message) -> None:
    """``/auth/role/get``."""
    if not call.door.access.is_root(call.user) and m["role"] not in call.door.access.roles(call.user):
        raise auth_error("permission denied")
    grants = call.door.access.book().roles.get(m["role"])
    if grants is None:
        raise auth_error("role name not found")
    call.reply(**lean(perm=[v3.grant_answer(grant) for grant in grants]))


def role_list(call: Call, _: Message) -> None:
    """``/auth/role/list``."""
    call.reply(**lean(roles=sorted(call.door.access.book().roles)))


def role_grant(call: Call, m: Message) -> None:
    """``/auth/role/grant``."""
    perm = m["perm"]
    if perm is None:
        raise auth_error("permission is not given")
    right = {"READ": "r", "WRITE": "w", "READWRITE": "rw"}.get(PERMISSION.name(perm["permType"]))
    if right is None:
        raise V3Error(3, f"permType is one of {', '.join(PERMISSION.names)}")
    where = {"key": perm["key"], "end": v3.end_of(perm["range_end"])}
    _auth(call, "role_grant", {"name": m["name"], "right": right, **where})


def role_revoke(call: Call, m: Message) -> None:
    """``/auth/role/revoke``."""
    where = {"key": m["key"], "end": v3.end_of(m["range_end"])}
    _auth(call, "role_revoke", {"name": m["role"], **where})
