"""Requests that are streams themselves: the messages of one body, taken one at a time.

A body of known length is read whole, and one wrong document refuses it all.  One that comes
in chunks may stay open: a document is answered as soon as it is there, and while it waits
for its outcome nothing more is read from the connection.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable

from actors.raft_messages import KeepAlive

from . import v3
from .v3 import V3Error
from .v3_call import Call, Message
from .v3json import JSON_DEPTH_MAX, BadMessage, documents, lean, read

#: Bytes of one document of an open body.
DOCUMENT_BYTES_MAX = v3.REQUEST_BYTES_MAX
#: Keepalives that are asked for together.
KEEPALIVES_MAX = 1000
#: Documents that are looked at before others have their turn.
DOCUMENTS_PER_TURN = 1000
_BLANK = re.compile(rb"[ \t\r\n]*")
_OUTSIDE_TEXT = re.compile(rb'["{}\[\]]')
_INSIDE_TEXT = re.compile(rb'["\\]')


class Splitter:
    """Cuts bytes into JSON documents, each an object or null; looks at every byte once."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._seen = 0
        self._depth = 0
        self._in_text = False

    def feed(self, data: bytes) -> None:
        """More bytes."""
        self._data += data

    def next(self) -> bytes | None:
        """The next document, None until it is whole; raises :class:`BadMessage` and :class:`V3Error`."""
        data = self._data
        if not self._depth:
            blank = _BLANK.match(data)
            del data[: blank.end() if blank else 0]
            if not data.startswith(b"{"):
                return self._null()
        while (found := (_INSIDE_TEXT if self._in_text else _OUTSIDE_TEXT).search(data, self._seen)) is not None:
            self._seen = found.end()
            self._step(bytes(data[found.start() : found.end()]))
            if not self._depth:
                return self._cut(self._seen)
        self._seen = max(self._seen, len(data))
        self._check(len(data))
        return None

    def _step(self, sign: bytes) -> None:
        if sign == b'"':
            self._in_text = not self._in_text
        elif sign == b"\\":
            self._seen += 1  # whatever it protects
        elif sign in (b"{", b"["):
            self._depth += 1
            if self._depth > JSON_DEPTH_MAX:
                raise BadMessage(f"the message nests deeper than {JSON_DEPTH_MAX}")
        else:
            self._depth -= 1

    def _null(self) -> bytes | None:
        start = bytes(self._data[:4])
        if not b"null".startswith(start):
            raise BadMessage(f"the body is not JSON objects: {start!r}")
        return self._cut(4) if len(start) == 4 else None

    def _cut(self, size: int) -> bytes:
        self._check(size)
        document = bytes(self._data[:size])
        del self._data[:size]
        self._seen = 0
        return document

    def _check(self, size: int) -> None:
        if size > DOCUMENT_BYTES_MAX:
            text = f"etcdserver: request is too large: document_bytes_max is {DOCUMENT_BYTES_MAX} bytes"
            raise V3Error(8, text)

    @property
    def partial(self) -> bool:
        """Whether a document has begun."""
        return bool(self._data)


class Messages:
    """The messages of a body that is there."""

    def __init__(self, given: Iterable[Message] = ()) -> None:
        self.given = deque(given)
        #: Called when :meth:`next` may have something to say again.
        self.wake: Callable[[], None] = lambda: None

    def next(self) -> Message | None:
        """The next message; None when there is none, for now or :attr:`over`."""
        return self.given.popleft() if self.given else None

    @property
    def over(self) -> bool:
        """Whether there will be no more."""
        return not self.given

    @property
    def resting(self) -> bool:
        """Whether there may be one that must wait for another turn."""
        return False


class OpenMessages(Messages):
    """The messages of a body that may still grow."""

    def __init__(self, call: Call, message: str) -> None:
        super().__init__()
        self._call = call
        self._message = message
        self._splitter = Splitter()
        self._ended = False
        self._failure: V3Error | None = None
        self._taken = 0  # in this turn
        call.request.on_body = self._came

    def _came(self, data: bytes, more: bool) -> None:
        self._splitter.feed(data)
        self._ended = not more
        self.wake()

    def next(self) -> Message | None:
        """As above; raises :class:`V3Error` from the first wrong document on."""
        if self._failure is None:
            try:
                return self._read()
            except BadMessage as error:
                self._failure = V3Error(2, str(error))
            except V3Error as error:
                self._failure = error
        raise self._failure

    def _read(self) -> Message | None:
        document = None if self.resting else self._splitter.next()
        if document is None:
            if self._ended and self._splitter.partial and not self.resting:
                raise BadMessage("the body ends within a document")
            return None
        self._taken += 1
        if self.resting:
            self._call.door.after(0, self._rested)
        return read(self._message, documents(document, False)[0])

    def _rested(self) -> None:
        self._taken = 0
        self.wake()

    @property
    def over(self) -> bool:
        """Whether there will be no more."""
        return self._ended and not self._splitter.partial

    @property
    def resting(self) -> bool:
        """Whether this turn has had its share."""
        return self._taken >= DOCUMENTS_PER_TURN


class KeepAlives:
    """``/v3/lease/keepalive``: an answer for every message, in order."""

    def __init__(self, call: Call, messages: Messages) -> None:
        self._call = call
        self._messages = messages
        self._asking = False
        self._closed = False

    def start(self) -> None:
        """From the first message on, as they come."""
        request = self._call.request
        request.on_close, request.on_drain = self._close, self._go_on
        self._messages.wake = self._go_on
        self._go_on()

    def _close(self) -> None:
        self._closed = True

    def _go_on(self) -> None:
        call = self._call
        batch: list[Message] = []
        if self._asking or self._closed or call.request.done:
            return
        try:
            while not call.request.full and len(batch) < KEEPALIVES_MAX and (m := self._messages.next()) is not None:
                batch.append(m)
        except V3Error as error:
            if not batch:
                call.refuse(error)
                return
        if batch:
            self._ask(batch)
        elif self._messages.over:
            call.begin()
            call.request.end()
        call.request.hold(self._asking or call.request.full or self._messages.resting)

    def _ask(self, batch: list[Message]) -> None:
        try:
            self._call.identify()  # a token may have ended while the stream was open
        except V3Error as error:
            self._call.refuse(error)
            return
        own = self._call.door.store().is_own_lease
        leases = [m["ID"] if m["ID"] > 0 and not own(m["ID"]) else 0 for m in batch]
        self._asking = True

        def done(answer: dict[str, int]) -> None:
            self._asking = False
            self._call.begin()
            for m, lease in zip(batch, leases, strict=True):
                ttl = answer.get(str(lease), 0) // 1000
                self._call.send(header=self._call.header(), **lean(ID=m["ID"], TTL=ttl))
            self._go_on()

        self._call.ask(KeepAlive(leases), done)
