"""One range of keys, watched for one reader: in order, nothing twice, nothing left out.

The reader may be slow: it says so, the watch is let go, and when it has caught up the feed
goes on from where it stopped, out of the store's history.  Only a reader that stays away
for longer than history reaches is told that it has lost its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from actors.raft_messages import Query, Unwatch, Watch, Watched
from brain.store import Event, Store

#: Bytes of history that are taken from the store at a time.
PIECE_BYTES = 1024 * 1024
#: Seconds to wait for a leader before a watch "from now" is refused.
NOW_S_MAX = 5.0


class Reader(Protocol):
    """Whom a feed serves; every call comes on the loop's thread."""

    def watching(self, revision: int) -> None:
        """The watch stands; ``revision`` is the store's at that moment.  Called once."""

    def take(self, events: list[Event]) -> bool:
        """Whole revisions.  False: taken, and no more until :meth:`Feed.resume`."""

    def lost(self, error: BaseException) -> None:
        """The feed has ended: with code ``compacted`` when history does not reach back."""


class Door(Protocol):
    """What a feed needs of the door."""

    feeds: set[Feed]

    def ask(self, message: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        """Ask the brain."""

    def tell(self, message: Any) -> None:
        """Tell the brain."""

    def store(self) -> Store:
        """This host's copy of the store."""


class Feed:
    """See the module docstring."""

    __slots__ = ("_attempt", "_door", "_early", "_end", "_key", "_open", "_paused", "_reader", "_started",
                 "_watch", "closed", "next")  # fmt: skip

    def __init__(self, door: Door, key: bytes, end: bytes | None, start: int, reader: Reader) -> None:
        """``start``: the first revision to hand over; 0 for what comes from now on."""
        self._door = door
        self._key = key
        self._end = end
        self._reader = reader
        self._watch = 0
        self._attempt = 0
        self._open = False  # the brain's answer has come
        self._started = False  # the reader knows
        self._paused = False
        self._early: list[Event] = []
        self.next = start  # the first revision that the reader has not had
        self.closed = False

    def open(self) -> None:
        """Start, or start again from where it was."""
        self._open = False
        self._watch = 0
        self._early = []
        self._attempt += 1
        attempt = self._attempt
        self._door.feeds.add(self)
        if self.next:
            self._door.ask(
                Watch(self._key, self._end, self.next, self, PIECE_BYTES),
                lambda answer, error: self._opened(attempt, answer, error),
            )
        else:  # a peer that has just started must first hear how far the log is decided
            self._door.ask(
                Query(lambda store: store.revision, False, NOW_S_MAX),
                lambda revision, error: self._found(attempt, revision, error),
            )

    def _found(self, attempt: int, revision: Any, error: BaseException | None) -> None:
        if self.closed or attempt != self._attempt:
            return
        if error is not None:
            self._end_with(error)
        else:
            self.next = revision + 1
            self.open()

    def _end_with(self, error: BaseException) -> None:
        if not hasattr(error, "code"):
            return  # the peer has died; its next life will say that it is up
        self.closed = True
        self._door.feeds.discard(self)
        self._reader.lost(error)

    def resume(self) -> None:
        """The reader has room again."""
        if self._paused and not self.closed:
            self._paused = False
            self.open()

    def renew(self) -> None:
        """The brain's peer lives anew and knows no watch."""
        if not self.closed and not self._paused:
            self.open()

    def close(self) -> None:
        """No more."""
        self.closed = True
        self._door.feeds.discard(self)
        if self._watch:
            self._door.tell(Unwatch(self._watch))

    @property
    def told_up_to(self) -> int:
        """The revision up to which the reader has had everything."""
        if self._open and not self._paused:
            return max(self.next - 1, self._door.store().revision)
        return self.next - 1

    def offer(self, message: Watched) -> bool:
        """The brain delivers; False ends the watch there."""
        if self.closed or self._paused:
            return False
        if not self._open:
            self._early += message.events
            return True
        return self._hand(message.events)

    def _opened(self, attempt: int, answer: Any, error: BaseException | None) -> None:
        if self.closed or attempt != self._attempt:
            if error is None:
                self._door.tell(Unwatch(answer.watch))
            return
        if error is not None:
            self._end_with(error)
            return
        self._watch = answer.watch
        if not self._started:
            self._started = True
            self._reader.watching(answer.revision)
        early, self._early = self._early, []
        kept = not early or self.closed or self._hand(early)
        self._open = bool(answer.watch)
        if not answer.watch:  # there is more history: the next piece, or later when the reader is behind
            if kept and not self.closed:
                self.open()
        elif not kept:
            self._door.tell(Unwatch(self._watch))

    def _hand(self, events: list[Event]) -> bool:
        fresh = [event for event in events if event.revision >= self.next]
        if not fresh:
            return True
        self.next = fresh[-1].revision + 1
        if not self._reader.take(fresh):
            self._paused = not self.closed
            return False
        return not self.closed
