"""Users, roles and what they may do: one book for both doors.

Kept in one key of the store.  Every change is decided when it is applied, on every peer
alike.  A role holds ranges of keys that it may read or write; a v2 pattern is a range too
(``/app/*`` is the prefix ``/app/``).  The role ``root`` may do everything and needs no
entry; the role ``guest``, where it exists, is what somebody without a name may do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .store import OWN_PREFIX, Store, StoreError, operation, prefix_end

KEY = OWN_PREFIX + b"auth"
ROOT, GUEST = "root", "guest"
READ, WRITE = "r", "w"
#: Users, and roles, that one cluster may have.
NAMES_MAX = 10_000
#: Ranges that one role may hold.
RANGES_MAX = 1_000


class AuthError(StoreError):
    """A change of the book that cannot be made; ``code`` is etcd's sentence for it."""


#: [what (r, w or rw), first key, end]: end None is one key, empty is everything above.
Grant = tuple[str, bytes, bytes | None]


@dataclass(slots=True)
class Book:
    """The parsed state; never changed once it is shared."""

    enabled: bool = False
    revision: int = 1
    secret: str = ""
    users: dict[str, dict[str, Any]] = field(default_factory=dict)  # {"hash": str, "roles": [str]}
    roles: dict[str, list[Grant]] = field(default_factory=dict)

    def allows(self, roles: list[str], what: str, key: bytes, end: bytes | None) -> bool:
        """Whether one of these roles covers the whole range for reading (r) or writing (w)."""
        if key.startswith(OWN_PREFIX):
            return False
        if ROOT in roles:
            return True
        spans = sorted(
            (low, _above(low, high))
            for role in roles
            for right, low, high in self.roles.get(role, ())
            if what in right
        )
        at, goal = key, _above(key, end)
        for low, high in spans:  # ranges that touch cover together
            if low <= at and (not high or at < high):
                if not high or (goal and high >= goal):
                    return True
                at = high
        return False


def _above(key: bytes, end: bytes | None) -> bytes:
    """The first key above a range; empty for none."""
    return key + b"\0" if end is None else end


def load(value: bytes | None) -> Book:
    """The book from its key's value; raises ``ValueError`` for what is no book."""
    if value is None:
        return Book()
    raw = json.loads(value)
    roles = {
        name: [(right, bytes.fromhex(low), None if high is None else bytes.fromhex(high)) for right, low, high in grants]
        for name, grants in raw["roles"].items()
    }
    return Book(raw["enabled"], raw["revision"], raw["secret"], raw["users"], roles)


def dump(book: Book) -> bytes:
    """The reverse of :func:`load`."""
    roles = {
        name: [[right, low.hex(), None if high is None else high.hex()] for right, low, high in grants]
        for name, grants in book.roles.items()
    }
    raw = {"enabled": book.enabled, "revision": book.revision, "secret": book.secret, "users": book.users, "roles": roles}
    return json.dumps(raw, sort_keys=True).encode()


def pattern_range(pattern: str) -> tuple[bytes, bytes | None]:
    """A v2 pattern as a range: ``/a/*`` is a prefix, ``/a`` one key."""
    path = pattern if pattern.startswith("/") else "/" + pattern
    if path.endswith("*"):
        prefix = path[:-1].encode()
        return prefix, prefix_end(prefix)
    return path.encode(), None


def range_pattern(key: bytes, end: bytes | None) -> str | None:
    """The v2 pattern of a range; None for one that v2 cannot say."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return None
    if end is None:
        return text
    return text + "*" if end == prefix_end(key) else None


@operation("auth")
def _auth(store: Store, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One change of the book (see ``_VERBS``), or ``all`` of a list of them, or none."""
    item = store.live.get(KEY)
    book = load(item.value if item is not None else None)
    for name, given in arguments.get("changes", ()) if verb == "all" else [(verb, arguments)]:
        change = _VERBS.get(name)
        if change is None:
            raise AuthError("invalid auth management", f"no change is called {name!r}")
        try:
            change(book, **given)
        except (TypeError, ValueError, AttributeError):
            raise AuthError("invalid auth management", f"{name}: an argument is missing or wrong") from None
    book.revision += 1
    store._put(KEY, dump(book))
    return {"revision": store._commit()}


def _user(book: Book, name: str) -> dict[str, Any]:
    if name not in book.users:
        raise AuthError("user name not found", f"there is no user {name!r}")
    return book.users[name]


def _role(book: Book, name: str) -> list[Grant]:
    if name not in book.roles:
        raise AuthError("role name not found", f"there is no role {name!r}")
    return book.roles[name]


def _refuse_full(names: dict[str, Any]) -> None:
    if len(names) >= NAMES_MAX:
        raise AuthError("invalid auth management", f"names_max: {NAMES_MAX} exist already")


def _user_add(book: Book, name: str, hash: str, roles: list[str] | None = None) -> None:  # noqa: A002
    if not name:
        raise AuthError("user name is empty", "a user has a name")
    if name in book.users:
        raise AuthError("user name already exists", f"there is a user {name!r} already")
    _refuse_full(book.users)
    book.users[name] = {"hash": str(hash), "roles": list(dict.fromkeys(map(str, roles or ())))}


def _user_delete(book: Book, name: str) -> None:
    _user(book, name)
    if book.enabled and name == ROOT:
        raise AuthError("invalid auth management", "root cannot be deleted while authentication is on")
    del book.users[name]


def _user_password(book: Book, name: str, hash: str) -> None:  # noqa: A002
    _user(book, name)["hash"] = str(hash)


def _user_roles(book: Book, name: str, roles: list[str]) -> None:
    """Exactly these, whether they exist (yet) or not; v2 allows that."""
    if book.enabled and name == ROOT and ROOT not in roles:
        raise AuthError("invalid auth management", "root keeps its role while authentication is on")
    _user(book, name)["roles"] = sorted({str(role) for role in roles})


def _user_grant(book: Book, name: str, role: str) -> None:
    user = _user(book, name)
    if role != ROOT:
        _role(book, role)
    user["roles"] = sorted({*user["roles"], role})


def _user_revoke(book: Book, name: str, role: str) -> None:
    user = _user(book, name)
    if role not in user["roles"]:
        raise AuthError("role is not granted to the user", f"{name!r} does not have {role!r}")
    if book.enabled and (name, role) == (ROOT, ROOT):
        raise AuthError("invalid auth management", "root keeps its role while authentication is on")
    user["roles"].remove(role)


def _role_add(book: Book, name: str) -> None:
    if not name:
        raise AuthError("role name is empty", "a role has a name")
    if name in book.roles:
        raise AuthError("role name already exists", f"there is a role {name!r} already")
    _refuse_full(book.roles)
    book.roles[name] = []


def _role_delete(book: Book, name: str) -> None:
    if book.enabled and name == ROOT:
        raise AuthError("invalid auth management", "the role root stays while authentication is on")
    _role(book, name)
    del book.roles[name]
    for user in book.users.values():
        if name in user["roles"]:
            user["roles"].remove(name)


def _role_drop(book: Book, name: str) -> None:
    """v2 leaves the name with its users, where a new role of that name would find them."""
    _role(book, name)
    del book.roles[name]


def _role_sort(book: Book, name: str) -> None:
    """v2 orders a role's patterns when it is changed."""
    book.roles[name] = sorted(_role(book, name), key=lambda grant: (grant[1], grant[2] or b""))


def _role_grant(book: Book, name: str, right: str, key: bytes, end: bytes | None) -> None:
    grants = _role(book, name)
    if right not in (READ, WRITE, READ + WRITE) or type(key) is not bytes:
        raise ValueError(right)
    kept = [grant for grant in grants if grant[1:] != (key, end)]
    if len(kept) >= RANGES_MAX:
        raise AuthError("invalid auth management", f"ranges_max: {RANGES_MAX} in one role")
    book.roles[name] = [*kept, (right, key, end)]


def _role_revoke(book: Book, name: str, key: bytes, end: bytes | None, right: str = READ + WRITE) -> None:
    """Take the range away, or one of its two rights (v2)."""
    grants = _role(book, name)
    found = [grant for grant in grants if grant[1:] == (key, end)]
    if not found:
        raise AuthError("permission is not granted to the role", f"{name!r} does not have that range")
    kept = [grant for grant in grants if grant[1:] != (key, end)]
    left = "".join(letter for letter in found[0][0] if letter not in right)
    book.roles[name] = kept + ([(left, key, end)] if left else [])


def _enable(book: Book, secret: str, guest: bool) -> None:
    if ROOT not in book.users:
        raise AuthError("root user does not exist", "a user named root comes first")
    if ROOT not in book.users[ROOT]["roles"]:
        raise AuthError("root user does not have root role", "grant root to root first")
    if guest and GUEST not in book.roles:
        everything, end = pattern_range("/*")
        book.roles[GUEST] = [(READ + WRITE, everything, end)]
    book.enabled, book.secret = True, str(secret)


def _disable(book: Book) -> None:
    book.enabled = False


_VERBS: dict[str, Any] = {
    "user_add": _user_add, "user_delete": _user_delete, "user_password": _user_password,
    "user_roles": _user_roles, "user_grant": _user_grant, "user_revoke": _user_revoke, "role_add": _role_add,
    "role_delete": _role_delete, "role_drop": _role_drop, "role_sort": _role_sort, "role_grant": _role_grant, "role_revoke": _role_revoke,
    "enable": _enable, "disable": _disable,
}  # fmt: skip
