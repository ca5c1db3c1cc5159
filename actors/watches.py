"""Who is told of which events.

A part of the Raft peer, not an actor of its own: it runs in the peer's turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from brain.store import Event, StoreError
from brain.watch import WatchHub, select

from .raft_messages import Watch, Watched, Watching

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

#: Bytes that an event is counted with beside its keys and values.
EVENT_BYTES = 200


def bytes_of(event: Event) -> int:
    """What an event takes on its way to a watcher."""
    return EVENT_BYTES + sum(len(c.key) + (len(c.item.value) if c.item else 0) for c in event.changes)


class Watches:
    """See the module docstring."""

    def __init__(self, peer: RaftPeer) -> None:
        self._peer = peer
        self._hub = WatchHub()
        self._open: dict[int, Watch] = {}
        self._next = 1
        self.drops = 0

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, incarnation: int) -> None:
        """A new life: an Unwatch meant for an earlier one finds nothing."""
        self._next += incarnation << 32

    def add(self, message: Watch) -> Watching:
        """Watch from now on, or from a start in the past.

        Raises ``StoreError`` (compacted) when that is too old.
        """
        store = self._peer.store
        backlog: list[Event] = []
        if message.start and message.behind_max and store.revision - message.start >= message.behind_max:
            raise StoreError("compacted", f"more than {message.behind_max} revisions are to be looked through since {message.start}")
        if message.start and message.start <= store.revision:
            hub = WatchHub()
            hub.add(0, message.key, message.end)
            backlog = hub.match(store.events_since(message.start)).get(0, [])
        if message.piece and sum(map(bytes_of, backlog)) > message.piece:
            return self._first_piece(message, backlog)
        watch = self._next
        self._next += 1
        self._hub.add(watch, message.key, message.end)
        self._open[watch] = message
        if backlog:
            self._deliver(watch, backlog)
        return Watching(watch, store.revision)

    def _first_piece(self, message: Watch, backlog: list[Event]) -> Watching:
        size, count = 0, 0
        while not count or size <= message.piece:
            size += bytes_of(backlog[count])
            count += 1
        seen = [select(e, message.key, message.end) for e in backlog[:count]]
        message.subscriber.offer(Watched(0, seen))
        return Watching(0, self._peer.store.revision)

    def remove(self, watch: int) -> None:
        """Nobody listens any more."""
        self._hub.remove(watch)
        self._open.pop(watch, None)

    def clear(self) -> None:
        """End them all: what happened meanwhile is unknown, and everybody lists again."""
        self._hub = WatchHub()
        self._open.clear()

    def notify(self, events: list[Event]) -> None:
        """Tell everybody of what was just applied."""
        for watch, matched in self._hub.match(events).items():
            self._deliver(watch, matched)

    def _deliver(self, watch: int, events: list[Event]) -> None:
        wanted = self._open[watch]
        seen = [select(e, wanted.key, wanted.end) for e in events if e.revision >= wanted.start]
        if seen and not wanted.subscriber.offer(Watched(watch, seen)):
            self.remove(watch)
            self.drops += 1
