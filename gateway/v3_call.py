"""One request to ``/v3``: who asks, what they may, and the one answer or the stream of them.

What a path means is in the modules around it; they take the call and the message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from actors.raft_messages import Propose, Query
from brain import auth
from brain.store import Store

from . import v3
from .http import REASONS, Request
from .members import MemberError
from .v3 import V3Error, auth_error, error_of
from .v3json import body, line

logger = logging.getLogger("argosy.door")

#: Seconds a request may take before it is answered with an error.
REQUEST_S_MAX = 5.0

Message = dict[str, Any]
Then = Callable[[Any], None]


class Call:
    """See the module docstring."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request
        self.user: str | None = None
        self.streaming = False

    # -- who asks ------------------------------------------------------------------------------

    def identify(self) -> None:
        """Find the user by the token; raise for a wrong one, and for none where there is no guest."""
        book = self.door.access.book()
        if not book.enabled:
            return
        token = self.request.header("authorization")
        if token:
            self.user = self.door.access.user_of(token)
            if self.user is None:
                raise auth_error("invalid auth token")
        elif auth.GUEST not in book.roles:
            raise auth_error("user name is empty")

    def need(self, what: str, key: bytes, end: bytes | None = None) -> None:
        """Raise unless this user may read (r) or write (w) the range."""
        if not self.door.access.allows(self.user, what, key, end):
            raise auth_error("permission denied")

    # -- answering -----------------------------------------------------------------------------

    def header(self, revision: int | None = None) -> dict[str, Any]:
        """The header of every answer."""
        return self.door.v3_header(revision)  # type: ignore[no-any-return]

    def reply(self, revision: int | None = None, **fields: Any) -> None:
        """One answer."""
        self.request.answer(200, body({"header": self.header(revision), **fields}), headers=self.door.v3_headers)

    def bare(self, **fields: Any) -> None:
        """One answer that etcd gives without a header."""
        self.request.answer(200, body(fields), headers=self.door.v3_headers)

    def plain(self, status: int, text: str) -> None:
        """A line of text."""
        headers = {**self.door.cors, "X-Content-Type-Options": "nosniff"}
        self.request.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8", headers)

    def refuse(self, error: V3Error) -> None:
        """An error, in a stream as its last message."""
        text = str(error)
        status = v3.STATUS.get(error.code, 500)
        if self.streaming:
            said = {"grpc_code": error.code, "http_code": status, "message": text, "http_status": REASONS[status]}
            self.request.chunk(body({"error": said}) + b"\n")
            self.request.end()
            return
        answer = {"error": text, "message": text, "code": error.code}
        self.request.answer(status, body(answer), headers=self.door.cors)

    def begin(self) -> None:
        """Start a stream."""
        self.streaming = True
        self.request.begin(self.door.v3_headers)

    def send(self, **fields: Any) -> bool:
        """One message of a stream, in a chunk of its own."""
        return self.request.chunk(line(fields))

    # -- asking --------------------------------------------------------------------------------

    def ask(self, message: Any, then: Then) -> None:
        """Ask the brain; a refusal is the answer."""

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                if not hasattr(error, "code"):
                    logger.error("request for %s failed", self.request.path, exc_info=error)
                self.refuse(error_of(error))
                return
            try:
                then(value)
            except MemberError as refusal:
                self.refuse(V3Error(refusal.code, str(refusal)))
            except V3Error as refusal:
                self.refuse(refusal)
            except Exception:
                logger.exception("request for %s failed", self.request.path)
                self.refuse(V3Error(13, "etcdserver: the request could not be answered"))

        self.door.ask(message, done)

    def propose(self, command: list[Any], then: Then, grows: bool = False) -> None:
        """Commit a command."""
        self.ask(Propose(command, REQUEST_S_MAX, bounded=grows), then)

    def query(self, function: Callable[[Store], Any], then: Then, serializable: bool = False) -> None:
        """Read the store; linearizable unless told otherwise."""
        self.ask(Query(function, not serializable, REQUEST_S_MAX), then)
