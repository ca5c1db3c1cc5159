"""An actor of which every host has one, and only the one beside the Raft leader acts.

It mirrors what it decides from only while its host leads, and writes only in transactions that
hold while its host leads in the same term, one at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from brain.store import Item
from kernel.actor import handles
from kernel.ports import Ports

from .brain_client import BrainActor, Mirror, Then
from .raft_messages import LeaderChanged


class BesideLeader(BrainActor):
    """See the module docstring.  A subclass says what it mirrors, and is told when its host begins or ceases to lead."""

    #: prefixes that are mirrored while the host leads
    PREFIXES: tuple[bytes, ...] = ()

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(raft_ref)
        self._ports = ports
        self.active = False
        self.term = 0
        self._pictures: dict[bytes, Mirror] = {}
        self._busy = False  # a transaction is under way

    def on_start(self) -> None:
        """Wait for leadership."""
        self.system.subscribe(LeaderChanged, self.actor_ref, replay=True)

    @handles(LeaderChanged)
    def _on_leader(self, message: LeaderChanged) -> None:
        self.drop_mirrors()
        self._pictures = {}
        self.active, self.term, self._busy = message.leading, message.term, False
        self.on_lead()
        if message.leading:
            for prefix in self.PREFIXES:
                self._pictures[prefix] = self.mirror(prefix, lambda items: self.on_picture(), self.on_change)

    def on_lead(self) -> None:
        """The host leads from now on, or does not any more: what was remembered of before is void."""

    @abstractmethod
    def on_picture(self) -> None:
        """A mirror is complete, or began anew."""

    @abstractmethod
    def on_change(self, key: bytes, item: Item | None, before: Item | None) -> None:
        """A mirrored key changed."""

    @property
    def may_decide(self) -> bool:
        """Whether the host leads, everything is known, and nothing is being written."""
        ready = bool(self._pictures) and all(picture.ready for picture in self._pictures.values())
        return self.active and not self._busy and ready

    def items(self, prefix: bytes) -> dict[bytes, Item]:
        """What is stored below a prefix."""
        return self._pictures[prefix].items if prefix in self._pictures else {}

    def decide(self, compares: list[Any], changes: list[Any], then: Then) -> None:
        """Write a decision; ``then(result, error)`` only if the host leads in the same term still."""
        self._busy = True
        term = self.term

        def done(result: Any, error: BaseException | None) -> None:
            if term == self.term:
                self._busy = False
                then(result, error)

        self.propose(["txn", compares, changes, []], done, 5.0, term)


