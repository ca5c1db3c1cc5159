"""The v3 watch stream: several watches on one connection, each message in a chunk of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brain import auth
from brain.store import Event

from . import v3
from .feed import Feed
from .v3 import V3Error
from .v3_call import Call, Message
from .v3_stream import Messages
from .v3json import body, lean

#: Seconds between two words to a watch that asked for progress and has nothing to hear.
PROGRESS_S = 600.0
#: Watches on one stream.
WATCHES_MAX = 10_000
#: Bytes of events in one message of a watch that takes fragments.
FRAGMENT_BYTES = 1_500_000


class _Watch:
    """One watch of a stream."""

    def __init__(self, stream: WatchStream, ident: int, asked: dict[str, Any]) -> None:
        self._stream = stream
        self.ident = ident
        self._key = asked["key"] or b"\0"  # etcd: no key is the first one
        self._end = v3.end_of(asked["range_end"])
        self._no_put, self._no_delete = 0 in asked["filters"], 1 in asked["filters"]
        self._prev = asked["prev_kv"]
        self._fragment = asked["fragment"]
        self.progress = asked["progress_notify"]
        self._quiet = True
        self.feed = Feed(stream.door, self._key, self._end, max(0, asked["start_revision"]), self)

    def watching(self, revision: int) -> None:
        """It stands."""
        self._stream.send(self.ident, revision, created=True)
        self._stream.stands()

    def take(self, events: list[Event]) -> bool:
        """Send what the filters let through."""
        shown: list[dict[str, Any]] = []
        begins = self._stream.door.store().compact_revision
        for event in events:  # what was before the beginning of history is not shown
            prev = self._prev and event.revision > begins
            shown += v3.event_answers(event, self._key, self._end, self._no_put, self._no_delete, prev)
        if shown:
            self._quiet = False
            self._send(shown, events[-1].revision)
        return not self._stream.full

    def _send(self, shown: list[dict[str, Any]], revision: int) -> None:
        if not self._fragment:
            self._stream.send(self.ident, revision, events=shown)
            return
        pieces: list[list[dict[str, Any]]] = [[]]
        size = 0
        for event in shown:
            weight = len(body(event))
            if pieces[-1] and size + weight > FRAGMENT_BYTES:
                pieces.append([])
                size = 0
            pieces[-1].append(event)
            size += weight
        for piece in pieces[:-1]:
            self._stream.send(self.ident, revision, fragment=True, events=piece)
        self._stream.send(self.ident, revision, events=pieces[-1])

    def lost(self, error: BaseException) -> None:
        """History no longer reaches back to where it was: say so, and from where to go on."""
        store = self._stream.door.store()
        if getattr(error, "code", "") != "compacted":
            text = str(v3.error_of(error))
            self._stream.send(self.ident, store.revision, canceled=True, cancel_reason=text)
        else:
            if not self.feed.next or self._quiet:  # etcd creates a watch before it looks back
                self._stream.send(self.ident, store.revision, created=True)
            behind = "" if self._quiet else (
                f"the watcher lagged behind at revision {self.feed.next}: read again, then watch from there"
            )  # fmt: skip
            self._stream.send(
                self.ident, 0, canceled=True, compact_revision=store.first_revision, cancel_reason=behind
            )
        self._stream.forget(self.ident)
        self._stream.stands()

    def remind(self) -> None:
        """Say how far the store is, if nothing was said for long."""
        if self.progress and self._quiet:
            self._stream.send(self.ident, self.feed.told_up_to)
        self._quiet = True


class WatchStream:
    """All watches of one request."""

    def __init__(self, call: Call, messages: Messages) -> None:
        self._call = call
        self._messages = messages
        self.door = call.door
        self._watches: dict[int, _Watch] = {}
        self._next = 0
        self._creating = False
        self._closed = False
        self._stop: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Create, cancel and report as the messages ask; raises :class:`V3Error` for what may not be watched."""
        for m in self._messages.given:
            if m["create_request"] is not None:
                self._need(m["create_request"])
        request = self._call.request
        request.on_close, request.on_drain = self._close, self._drained
        self._messages.wake = self._next_request
        if self._messages.given or not request.open:
            self._call.begin()
        self._next_request()

    def _need(self, asked: Message) -> None:
        self._call.need(auth.READ, asked["key"], v3.end_of(asked["range_end"]))

    @property
    def full(self) -> bool:
        """Whether the reader is behind."""
        return bool(self._call.request.full)

    def _next_request(self) -> None:
        """One after the other: a watch stands, or has failed, before the next request is looked at."""
        while not (self._creating or self._closed or self.full):
            try:
                m = self._messages.next()
                if m is None:
                    break
                if not self._call.streaming:  # the first one of an open body
                    if m["create_request"] is not None:
                        self._need(m["create_request"])
                    self._call.begin()
            except V3Error as error:
                self._close()
                self._call.refuse(error)
                return
            self._serve(m)
        self._call.request.hold(self._creating or self.full or self._messages.resting)

    def _serve(self, m: Message) -> None:
        if m["create_request"] is not None:
            self._create(m["create_request"])
        elif m["cancel_request"] is not None:
            self._cancel(m["cancel_request"]["watch_id"])
        elif m["progress_request"] is not None:
            self._report()

    def _report(self) -> None:
        """How far every watch of this stream has been told."""
        told = [watch.feed.told_up_to for watch in self._watches.values()]
        revision = min(told, default=self.door.store().revision)
        self._call.send(header=self._call.header(revision), watch_id="-1")

    def stands(self) -> None:
        """The watch that was being created has an outcome."""
        if self._creating:
            self._creating = False
            self._next_request()

    def send(self, ident: int, revision: int, events: list[Any] | None = None, **fields: Any) -> None:
        """One message."""
        header = self._call.header(revision)
        self._call.send(header=header, **lean(watch_id=ident, **fields), **({"events": events} if events else {}))

    def _create(self, asked: dict[str, Any]) -> None:
        ident = asked["watch_id"]
        if ident in self._watches and ident:
            self.send(ident, self.door.store().revision, created=True, canceled=True,
                      cancel_reason="mvcc: duplicate watch ID provided on the WatchStream")  # fmt: skip
            return
        try:
            self._call.identify()  # a token may have ended while the stream was open
            self._need(asked)
        except V3Error as error:
            self.send(-1, self.door.store().revision, created=True, canceled=True, cancel_reason=error.reason)
            return
        end = v3.end_of(asked["range_end"])
        if end and end <= asked["key"]:
            self.send(-1, self.door.store().revision, created=True, canceled=True,
                      cancel_reason="mvcc: watcher range is empty")  # fmt: skip
            return
        if len(self._watches) >= WATCHES_MAX:
            text = f"watches_max: {WATCHES_MAX} on this stream already"
            self.send(ident, self.door.store().revision, created=True, canceled=True, cancel_reason=text)
            return
        if not ident:
            while self._next in self._watches:
                self._next += 1
            ident = self._next
            self._next += 1
        watch = self._watches[ident] = _Watch(self, ident, asked)
        if watch.progress:
            self._stop()
            self._stop = self.door.every(PROGRESS_S, self._remind).cancel
        self._creating = True
        watch.feed.open()

    def _cancel(self, ident: int) -> None:
        watch = self._watches.get(ident)
        if watch is not None:
            watch.feed.close()
            self.send(ident, self.door.store().revision, canceled=True)
            self.forget(ident)

    def forget(self, ident: int) -> None:
        """A watch has ended; the stream stays open for others, and for the client to close."""
        self._watches.pop(ident, None)
        if not self._watches:
            self._stop()

    def _remind(self) -> None:
        for watch in list(self._watches.values()):
            watch.remind()

    def _drained(self) -> None:
        for watch in list(self._watches.values()):
            watch.feed.resume()
        self._next_request()

    def _close(self) -> None:
        self._closed = True
        self._stop()
        for watch in self._watches.values():
            watch.feed.close()
        self._watches.clear()
