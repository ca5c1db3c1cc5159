"""The brain as other actors see it: commit, read, and mirror a range of keys.

A mirror lists a range, then follows it from the next revision; when the peer restarts or
the history is gone it lists again.  Its owner sees one picture that never goes back.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from brain.store import Event, Item, StoreError, prefix_end
from kernel.actor import Actor, handles

from .raft_messages import BrainUp, Propose, Range, Unwatch, Watch, Watched, Watching

Then = Callable[[Any, BaseException | None], None]
#: Seconds between attempts to (re)start a mirror.
RETRY_S = 0.3

#: Where Argosy keeps its own state; see docs/architecture.md.
UNITS = b"/_argosy/units/"
PLACES = b"/_argosy/place/"
STATES = b"/_argosy/state/"
MACHINES = b"/_argosy/machines/"
ALIVE = b"/_argosy/alive/"
TOKENS = b"/_argosy/tokens/"
AGENTS = b"/_argosy/agents/"
ELECTORATE = b"/_argosy/electorate"
LOCKS = b"/_argosy/locks/"
TIMERS = b"/_argosy/timers/"
REACTED = b"/_argosy/reacted/"
MOVES = b"/_argosy/moves/"
SECRETS = b"/_argosy/secrets/"
ORDERS = b"/_argosy/orders/"
DONE = b"/_argosy/done/"
ROLLOUTS = b"/_argosy/rollouts/"
VERSIONS = b"/_argosy/versions/"
REBALANCE = b"/_argosy/rebalance/"
RELEASES = b"/_argosy/releases/"
ROLLOUTS_OF_RELEASES = b"/_argosy/release-rollouts/"
TRUST = b"/_argosy/release-trust"
UPDATES = b"/_argosy/updates/"
UPDATE_POLICY = b"/_argosy/update-policy"


def to_json(value: Any) -> bytes:
    """The stored form of Argosy's own records: canonical, so equal records are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Mirror:
    """A local picture of all keys with a prefix."""

    def __init__(
        self, owner: BrainActor, prefix: bytes,
        on_reset: Callable[[dict[bytes, Item]], None],
        on_change: Callable[[bytes, Item | None, Item | None], None],
    ) -> None:  # fmt: skip
        self._owner = owner
        self.prefix = prefix
        self._end = prefix_end(prefix)
        self._on_reset = on_reset
        self._on_change = on_change
        self.items: dict[bytes, Item] = {}
        self.revision = 0
        self.ready = False
        self.watch = 0
        self._attempt = 0
        self.sync()

    def sync(self) -> None:
        """List, then follow."""
        self.watch = 0
        self._attempt += 1
        attempt = self._attempt

        def listed(answer: Any, error: BaseException | None) -> None:
            if attempt != self._attempt:
                return
            if error is not None:
                self._later(attempt)
                return
            revision, found = answer
            self._follow(attempt, revision, dict(found))

        # linearizable: a peer that has just restarted holds an old store until it has heard from the
        # leader, and an old picture would take units for not placed here, or placed here still
        request = Range(self.prefix, self._end, linearizable=True)
        self._owner.ask_then(self._owner.raft_ref, request, 6.0, listed)

    def _later(self, attempt: int) -> None:
        self._owner.after(RETRY_S, lambda: self.sync() if attempt == self._attempt else None)

    def _follow(self, attempt: int, revision: int, found: dict[bytes, Item]) -> None:
        def watching(answer: Any, error: BaseException | None) -> None:
            early = self._owner.watch_known(answer.watch if error is None else 0)
            if attempt != self._attempt:
                if isinstance(answer, Watching):
                    self._owner.raft_ref.offer(Unwatch(answer.watch))
                return
            if error is not None:
                self._later(attempt)
                return
            self.watch = answer.watch
            self._owner.mirrors[answer.watch] = self
            self.items, self.revision, self.ready = found, revision, True
            self._on_reset(found)
            self.take(early)

        start = Watch(self.prefix, self._end, revision + 1, self._owner.actor_ref)
        self._owner.watches_starting += 1
        self._owner.ask_then(self._owner.raft_ref, start, 5.0, watching)

    def take(self, events: list[Event]) -> None:
        """New events of the watch."""
        for event in events:
            if event.revision <= self.revision:
                continue
            self.revision = event.revision
            for key, item, prev in event.changes:
                if item is None:
                    self.items.pop(key, None)
                else:
                    self.items[key] = item
                self._on_change(key, item, prev)


class BrainActor(Actor):
    """An actor that uses the brain; ``raft_ref`` is this host's peer."""

    def __init__(self, raft_ref: Any) -> None:
        super().__init__()
        self.raft_ref = raft_ref
        self.mirrors: dict[int, Mirror] = {}
        self._all_mirrors: list[Mirror] = []
        self.watches_starting = 0
        self._early: dict[int, list[Event]] = {}  # by watches whose number is not known here yet

    def propose(
        self, command: list[Any], then: Then | None = None, timeout: float = 5.0, term: int = 0
    ) -> None:
        """Commit a command; ``then(result, error)`` in this actor's turn."""
        message = Propose(command, timeout, term)
        self.ask_then(self.raft_ref, message, timeout + 1.0, then or (lambda value, error: None))

    def mirror(
        self, prefix: bytes, on_reset: Callable[[dict[bytes, Item]], None],
        on_change: Callable[[bytes, Item | None, Item | None], None],
    ) -> Mirror:  # fmt: skip
        """Keep a picture of a prefix; see :class:`Mirror`."""
        mirror = Mirror(self, prefix, on_reset, on_change)
        self._all_mirrors.append(mirror)
        self.system.subscribe(BrainUp, self.actor_ref)
        return mirror

    def drop_mirrors(self) -> None:
        """Follow nothing any more."""
        for mirror in self._all_mirrors:
            mirror._attempt += 1  # noqa: SLF001 - one module: answers under way are void
            if mirror.watch:
                self.raft_ref.offer(Unwatch(mirror.watch))
        self._all_mirrors = []
        self.mirrors = {}

    def watch_known(self, watch: int) -> list[Event]:
        """A watch has its number (0: it could not be had); the events that came before the number."""
        self.watches_starting -= 1
        early = self._early.pop(watch, [])
        if not self.watches_starting:
            for unknown in self._early:
                self.raft_ref.offer(Unwatch(unknown))
            self._early = {}
        return early

    @handles(BrainUp)
    def _on_brain_up(self, _: BrainUp) -> None:
        self.mirrors = {}
        self._early = {}
        for mirror in self._all_mirrors:
            mirror.sync()

    @handles(Watched)
    def _on_watched(self, message: Watched) -> None:
        mirror = self.mirrors.get(message.watch)
        if mirror is not None:
            mirror.take(message.events)
        elif self.watches_starting:  # what a watch has to catch up with comes before its number
            self._early.setdefault(message.watch, []).extend(message.events)
        else:
            self.raft_ref.offer(Unwatch(message.watch))


def is_refusal(error: BaseException | None, code: str) -> bool:
    """Whether the store refused with this code."""
    return isinstance(error, StoreError) and error.code == code
