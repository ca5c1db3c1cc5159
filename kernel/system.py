"""All actors of one host: names, parents, dispatchers, and the books about them.

A system belongs to one machine.  Production has one per process; the simulator has one
per simulated machine in a single process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pykka import ActorRegistry

from .actor import Actor, Ref
from .dispatch import Dispatcher
from .mailbox import Mailbox
from .stats import Stats
from .supervision import Place, RestartLimit, Supervision, spawning

logger = logging.getLogger("argosy.actor")


class NameTakenError(Exception):
    """Another living actor has this path."""


class System:
    """Spawns, names, supervises and lists the actors of one machine."""

    def __init__(
        self,
        name: str,
        dispatchers: dict[str, Dispatcher],
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.name = name
        self._dispatchers = dispatchers
        self._by_path: dict[str, Mailbox] = {}
        self._on_fatal = on_fatal
        self.stats: dict[str, Stats] = {}
        self.failed: BaseException | None = None
        self._subscribers: dict[type, dict[str, Ref]] = {}
        self._published: dict[type, Any] = {}

    def subscribe(self, kind: type, ref: Ref, replay: bool = False) -> None:
        """Send every published message of this type to ``ref`` (once, however often called).

        ``replay``: the last one, too, so that a restarted actor knows what it missed.
        """
        self._subscribers.setdefault(kind, {})[ref.path] = ref
        if replay and kind in self._published:
            ref.offer(self._published[kind])

    def publish(self, message: Any) -> None:
        """Send a message to all subscribers of its type on this host."""
        self._published[type(message)] = message
        subscribers = self._subscribers.get(type(message), {})
        for path, ref in list(subscribers.items()):
            if not ref.offer(message):
                del subscribers[path]

    def spawn(
        self,
        cls: type[Actor],
        *args: Any,
        name: str,
        parent: Actor | None = None,
        limit: RestartLimit | None = None,
        **kwargs: Any,
    ) -> Ref:
        """Start a supervised actor at ``<machine>/<name>``.

        Raises :class:`NameTakenError` if a living actor has that path.
        """
        path = f"{self.name}/{name}"
        if path in self._by_path:
            raise NameTakenError(f"an actor named {path} is alive already")
        stats = self.stats.get(cls.__name__)
        if stats is None:
            stats = self.stats[cls.__name__] = Stats()
        stats.started += 1
        if cls.own_stats:
            stats = Stats(stats)

        def prepare(mailbox: Mailbox) -> None:
            mailbox.path = path
            mailbox.dispatcher = self._dispatchers[cls.dispatch]
            mailbox.stats = stats
            mailbox.supervision = Supervision(
                self, lambda: cls(*args, **kwargs), limit or RestartLimit()
            )
            if parent is not None:
                mailbox.parent = parent.actor_inbox
                if mailbox.parent.children is None:
                    mailbox.parent.children = {}
                mailbox.parent.children[path] = mailbox
            self._by_path[path] = mailbox

        spawning.place = Place(self, path, prepare)
        try:
            return cls.start(*args, **kwargs)  # type: ignore[no-any-return]
        except BaseException:
            self._by_path.pop(path, None)
            if parent is not None and parent.actor_inbox.children:
                parent.actor_inbox.children.pop(path, None)
            raise
        finally:
            spawning.place = None

    def find(self, path: str) -> Ref | None:
        """The living actor at this path (with or without the machine's name)."""
        mailbox = self._by_path.get(path) or self._by_path.get(f"{self.name}/{path}")
        return mailbox.ref if mailbox is not None else None

    def mailboxes(self) -> list[Mailbox]:
        """Every living actor's mailbox, by path."""
        return [self._by_path[path] for path in sorted(self._by_path)]

    def forget(self, mailbox: Mailbox) -> None:
        """Called when an actor has ended for good."""
        if self._by_path.get(mailbox.path) is mailbox:
            del self._by_path[mailbox.path]

    def fatal(self, error: BaseException) -> None:
        """An actor without a parent failed beyond its limit: the host must end."""
        self.failed = error
        logger.critical("host %s cannot go on: %s", self.name, error)
        if self._on_fatal is not None:
            self._on_fatal(error)

    def stop(self) -> None:
        """Stop every actor, children included; returns at once."""
        for mailbox in self.mailboxes():
            mailbox.post(mailbox.stop_now)

    def crash(self) -> None:
        """Forget every actor without a word, as a power cut would (simulator only)."""
        for mailbox in self.mailboxes():
            mailbox.closed = True
            mailbox.user.clear()
            if mailbox.timers:
                for timer in list(mailbox.timers):
                    timer.cancel()
            if mailbox.ref is not None:
                ActorRegistry.unregister(mailbox.ref)
                mailbox.ref.actor_stopped.set()
        self._by_path.clear()
