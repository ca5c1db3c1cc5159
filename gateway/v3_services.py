"""Locks and elections as etcd's v3 server offers them: whoever came first below a name has it.

A claim is a key ``NAME/LEASE`` bound to a lease; its creation revision is its place in the
queue, and a fencing token.  It holds when nobody older is left.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from actors.raft_messages import Propose
from brain import auth, kv
from brain.kv import Options, Pair
from brain.store import OWN_PREFIX, Event, Store, prefix_end

from . import v3
from .feed import Feed
from .v3 import V3Error
from .v3json import lean

#: Seconds that a claim lives which came without a lease.
OWN_LEASE_S = 60


def leader_of(store: Store, name: bytes) -> Pair | None:
    """The oldest claim below a name."""
    prefix = name + b"/"
    options = Options(limit=1, order="ascend", target="create", outer=True)
    found = kv.find(store, prefix, prefix_end(prefix), options).items
    return found[0] if found else None


class Campaign:
    """One claim, from its key to its turn."""

    def __init__(
        self, call: Any, name: bytes, lease: int, value: bytes, then: Callable[[Campaign], None]
    ) -> None:
        self._call = call
        self._name = name
        self._value = value
        self._then = then
        self._feed: Feed | None = None
        self._hung_up = False
        self._own_lease = not lease
        self.lease = lease
        self.key = b""
        self.created = 0

    def start(self) -> None:
        """Take a place in the queue."""
        call = self._call
        prefix = self._name + b"/"
        call.need(auth.WRITE, prefix, prefix_end(prefix))
        if self.lease < 0:
            raise V3Error(*v3.ERRORS["lease_not_found"])
        call.request.on_close = self._gone
        if self.lease:
            self._claim()
            return
        self.lease = secrets.randbits(62) + 1
        call.propose(["lease_grant", self.lease, OWN_LEASE_S * 1000], lambda _: self._claim(), grows=True)

    def _claim(self) -> None:
        if self._hung_up:
            self._give_up()
            return
        self.key = b"%b/%x" % (self._name, self.lease)
        if self.key.startswith(OWN_PREFIX):
            raise v3.auth_error("permission denied")
        mine = ["range", self.key, None]
        self._call.propose(
            ["txn", [[self.key, "create", "=", 0]], [["put", self.key, self._value, self.lease], mine], [mine], True],
            self._claimed, grows=True,
        )  # fmt: skip

    def _claimed(self, result: Any) -> None:
        if self._hung_up:
            self._give_up()
            return
        _, item = result["responses"][-1].items[0]
        self.created = item.create
        if item.value != self._value:  # an earlier claim under this lease: it goes on with the new value
            held = [[self.key, "create", "=", self.created]]
            put = [["put", self.key, self._value, self.lease]]
            self._call.propose(["txn", held, put, [], True], lambda _: self._look(), grows=True)
        else:
            self._look()

    def _look(self) -> None:
        """Whose turn is it?  Asked again whenever something below the name changes."""
        if self._call.request.done:
            return

        def look(store: Store) -> Any:
            return store.revision, leader_of(store, self._name), self.key in store.live

        def seen(answer: Any) -> None:
            revision, first, there = answer
            if self._call.request.done:
                return
            if not there:  # the lease ran out while it waited
                self._end()
                raise V3Error(*v3.ERRORS["lease_not_found"])
            if first[0] == self.key:
                self._end()
                self._then(self)
            elif self._feed is None:
                prefix = self._name + b"/"
                self._feed = Feed(self._call.door, prefix, prefix_end(prefix), revision + 1, self)
                self._feed.open()

        self._call.query(look, seen)

    def watching(self, revision: int) -> None:
        """Nothing to do until something changes."""

    def take(self, events: list[Event]) -> bool:
        """Somebody left, perhaps."""
        if any(change.item is None for event in events for change in event.changes):
            self._look()
        return True

    def lost(self, error: BaseException) -> None:
        """Look again, and watch from there."""
        self._feed = None
        self._look()

    def _end(self) -> None:
        self._call.request.on_close = None
        if self._feed is not None:
            self._feed.close()

    def _gone(self) -> None:
        """Whoever waited has hung up: give up the place."""
        self._hung_up = True
        if self._feed is not None:
            self._feed.close()
        if self.key:
            self._give_up()

    def _give_up(self) -> None:
        if self._own_lease:
            self._call.door.tell(Propose(["lease_revoke", [self.lease], True]))
        elif self.key:
            self._call.door.tell(Propose(["delete", self.key, None, True]))


class Observe:
    """A stream of who leads."""

    def __init__(self, call: Any, name: bytes) -> None:
        self._call = call
        self._name = name
        self._shown: tuple[bytes, int] = (b"", 0)
        prefix = name + b"/"
        self._feed = Feed(call.door, prefix, prefix_end(prefix), 0, self)

    def start(self) -> None:
        """From now on."""
        self._call.request.on_close = self._feed.close
        self._call.request.on_drain = self._feed.resume
        self._feed.open()

    def watching(self, revision: int) -> None:
        """Show the one who leads now."""
        self._show()

    def take(self, events: list[Event]) -> bool:
        """Show whoever leads after these."""
        self._show()
        return not self._call.request.full

    def _show(self) -> None:
        first = leader_of(self._call.door.store(), self._name)
        if first is not None and (first[0], first[1].mod) != self._shown:
            self._shown = (first[0], first[1].mod)
            self._call.send(header=self._call.header(), **lean(kv=v3.kv(*first)))

    def lost(self, error: BaseException) -> None:
        """End the stream with the reason."""
        self._call.refuse(v3.error_of(error))
