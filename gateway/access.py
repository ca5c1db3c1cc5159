"""Who asks: names and passwords (v2), tokens (v3), against the book in the store.

A password costs 50 ms of a thread once; what was verified is remembered as a keyed digest
for as long as the user's entry stays as it is.  Tokens are signed with a secret of the
cluster, so every host accepts what any host gave out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from brain import auth
from brain.auth import Book

logger = logging.getLogger("argosy.access")

#: Seconds that a token is good for.
TOKEN_S = 300
#: Verified credentials remembered.
VERIFIED_MAX = 10_000
#: Longest password, in bytes.
PASSWORD_BYTES_MAX = 1024
_SCRYPT = {"n": 2**14, "r": 8, "p": 1, "maxmem": 64 * 1024 * 1024}


def hash_password(password: str) -> str:
    """A salted digest for the book; costs 50 ms, so never on the loop."""
    salt = os.urandom(16)
    digest = hashlib.scrypt(password.encode()[:PASSWORD_BYTES_MAX], salt=salt, **_SCRYPT)  # type: ignore[arg-type]
    return f"scrypt${salt.hex()}${digest.hex()}"


def verify_password(password: str, stored: str) -> bool:
    """Whether it is the password; costs 50 ms, so never on the loop."""
    kind, _, rest = stored.partition("$")
    salt, _, digest = rest.partition("$")
    if kind != "scrypt":  # a user without a password never logs in with one
        return False
    found = hashlib.scrypt(password.encode()[:PASSWORD_BYTES_MAX], salt=bytes.fromhex(salt), **_SCRYPT)  # type: ignore[arg-type]
    return hmac.compare_digest(found.hex(), digest)


def basic(header: str) -> tuple[str, str] | None:
    """(name, password) of a Basic header; None for another header."""
    kind, _, rest = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return (name, password) if colon else None


class Access:
    """Looks into the book of this host's store; verifies in a thread of its own."""

    def __init__(
        self, item: Callable[[], Any], run: Callable[[Callable[[], Any], Callable[[Any], None]], None],
        now: Callable[[], float],
    ) -> None:  # fmt: skip
        """``item``: the book's key as it is; ``run(work, then)``: work elsewhere, then back here."""
        self._item = item
        self.run = run
        self._now = now
        self._mod = -1
        self._book = Book()
        self._key = os.urandom(32)
        self._verified: OrderedDict[bytes, None] = OrderedDict()

    def book(self) -> Book:
        """The book as of now."""
        item = self._item()
        mod = item.mod if item is not None else 0
        if mod != self._mod:
            try:
                self._book = auth.load(item.value if item is not None else None)
            except (ValueError, KeyError, TypeError, AttributeError):
                logger.critical("the book of users cannot be read: nobody is let in")
                self._book = Book(enabled=True)
            self._mod = mod
        return self._book

    def roles(self, user: str | None) -> list[str]:
        """What somebody is; without a name a guest, if there is such a role."""
        book = self.book()
        if user is None:
            return [auth.GUEST] if auth.GUEST in book.roles else []
        return list(book.users.get(user, {}).get("roles", ()))

    def allows(self, user: str | None, what: str, key: bytes, end: bytes | None = None) -> bool:
        """Whether ``user`` may read (r) or write (w) all of a range; yes while authentication is off."""
        book = self.book()
        return not book.enabled or book.allows(self.roles(user), what, key, end)

    def is_root(self, user: str | None) -> bool:
        """Whether ``user`` may manage the cluster; everybody while authentication is off."""
        return not self.book().enabled or auth.ROOT in self.roles(user)

    def verify(self, name: str, password: str, then: Callable[[bool], None]) -> None:
        """Whether the password is right; ``then`` is called at once when that is known already."""
        entry = self.book().users.get(name)
        if entry is None:
            then(False)
            return
        stored = entry["hash"]
        proof = hmac.digest(self._key, f"{name}\0{password}\0{stored}".encode(), "sha256")
        if proof in self._verified:
            self._verified.move_to_end(proof)
            then(True)
            return

        def done(right: Any) -> None:
            if right is True:
                self._verified[proof] = None
                while len(self._verified) > VERIFIED_MAX:
                    self._verified.popitem(last=False)
            then(right is True)

        self.run(lambda: verify_password(password, stored), done)

    def token(self, user: str) -> str:
        """A token for a user whose password was right."""
        text = f"{int(self._now()) + TOKEN_S}.{self._entry(user)}.{user}"
        return f"{base64.urlsafe_b64encode(text.encode()).decode().rstrip('=')}.{self._sign(text)}"

    def user_of(self, token: str) -> str | None:
        """Whose token it is; None for one that is forged, too old, or of a user who is gone."""
        body, _, signature = token.partition(".")
        try:
            text = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode()
        except (binascii.Error, ValueError):
            return None
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode("utf-8", "replace")):
            return None
        expires, _, rest = text.partition(".")
        entry, _, user = rest.partition(".")
        known = user in self.book().users and entry == self._entry(user)
        return user if known and int(expires) >= self._now() else None

    def _entry(self, user: str) -> str:
        """What changes with the user's password, and with the user: a token ends with it."""
        return hashlib.sha256(self.book().users[user]["hash"].encode()).hexdigest()[:16]

    def _sign(self, text: str) -> str:
        return hmac.digest(self.book().secret.encode(), text.encode(), "sha256").hex()
