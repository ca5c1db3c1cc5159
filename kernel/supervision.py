"""Who restarts whom: one-for-one supervision with an intensity limit, then escalation.

Modelled on Erlang/OTP supervisors.  A child that fails is restarted behind the same
reference; more than ``restarts`` failures within ``within`` seconds fail its parent in
turn, and the root's failure ends the host process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pykka import ActorRegistry

if TYPE_CHECKING:
    from .mailbox import Mailbox
    from .system import System


@dataclass(frozen=True, slots=True)
class RestartLimit:
    """At most ``restarts`` in any ``within`` seconds; ``backoff`` seconds before each."""

    restarts: int = 10
    within: float = 10.0
    backoff: float = 0.0


class Escalated(Exception):
    """A child failed more often than its restart limit allows."""


class Supervision:
    """How one supervised actor is built again, and who answers for it."""

    __slots__ = ("_build", "limit", "system")

    def __init__(self, system: System, build: Callable[[], Any], limit: RestartLimit) -> None:
        self.system = system
        self._build = build
        self.limit = limit

    def rebuild(self, mailbox: Mailbox) -> Any:
        """A fresh actor object behind the existing mailbox and reference."""
        spawning.place = Place(self.system, mailbox.path, reuse=mailbox)
        try:
            return self._build()
        finally:
            spawning.place = None

    def child_failed(self, mailbox: Mailbox, error: BaseException) -> None:
        """Restart the actor, or escalate to its parent."""
        now = mailbox.dispatcher.clock()
        recent = [at for at in mailbox.restart_at or () if now - at < self.limit.within]
        recent.append(now)
        mailbox.restart_at = recent
        mailbox.suspended = True
        if len(recent) > self.limit.restarts:
            self._escalate(mailbox, error)
            return
        mailbox.dispatcher.call_later(self.limit.backoff, lambda: mailbox.post(mailbox.restart))

    def _escalate(self, mailbox: Mailbox, error: BaseException) -> None:
        ref = mailbox.ref
        assert ref is not None
        ActorRegistry.unregister(ref)
        ref.actor_stopped.set()
        parent = mailbox.parent
        mailbox.close("failed")
        reason = Escalated(
            f"{mailbox.path} failed more than {self.limit.restarts} times "
            f"in {self.limit.within:g} s; last: {error!r}"
        )
        if parent is None or parent.supervision is None:
            self.system.fatal(reason)
            return

        def crash() -> None:
            raise reason

        parent.post(crash)

    def forget(self, mailbox: Mailbox) -> None:
        """The actor has ended for good."""
        self.system.forget(mailbox)


class Place:
    """Where the actor being constructed will live; consumed by ``Actor.__init__``."""

    __slots__ = ("_prepare", "path", "reuse", "system")

    def __init__(
        self,
        system: System,
        path: str,
        prepare: Callable[[Mailbox], None] | None = None,
        reuse: Mailbox | None = None,
    ) -> None:
        self.system = system
        self.path = path
        self._prepare = prepare
        self.reuse = reuse

    def fill(self, mailbox: Mailbox) -> None:
        """Give a new mailbox its place in the system."""
        if self._prepare is not None:
            self._prepare(mailbox)


class _Spawning(threading.local):
    place: Place | None = None


spawning = _Spawning()
