"""The electorate: beside the Raft leader, gives votes to machines and takes them from those that are lost.

What is to be done is decided in ``fleet/electorate.py`` from what the leader sees of its
followers; a change of leaders begins the waiting for lost voters anew.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from brain.store import Item
from fleet import electorate
from fleet.electorate import Member
from kernel.ports import Ports

from .beside_leader import BesideLeader
from .brain_client import ELECTORATE, MACHINES
from .membership import CAUGHT_UP_ENTRIES
from .raft_messages import ChangeConfig, Status

logger = logging.getLogger("argosy.electorate")

#: Seconds between two looks at the members.
LOOK_S = 0.5
#: Seconds before a change that could not be made is tried again.
AGAIN_S = 2.0


def size_of(items: dict[bytes, Item]) -> int:
    """How many voters there shall be at most."""
    item = items.get(ELECTORATE)
    return int(json.loads(item.value)["voters"]) if item is not None else electorate.VOTERS


class Electorate(BesideLeader):
    """See the module docstring."""

    PREFIXES = (ELECTORATE, MACHINES)

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(ports, raft_ref)
        self._silent_since: dict[str, float] = {}
        self._changing = False
        self._not_before = 0.0
        self.changes: dict[str, int] = {}

    def on_start(self) -> None:
        """Look from time to time: a member that falls silent changes no key."""
        super().on_start()
        self.every(LOOK_S, self._look)

    def on_lead(self) -> None:
        """What another leader did not hear is not known here."""
        self._silent_since = {}
        self._changing = False

    def on_picture(self) -> None:
        """The next look sees it."""

    def on_change(self, key: bytes, item: Item | None, before: Item | None) -> None:
        """The next look sees it."""

    def _look(self) -> None:
        if self.may_decide and not self._changing and self.now() >= self._not_before:
            term = self.term
            self.ask_then(self.raft_ref, Status(), 3.0, lambda status, error: self._have(status, error, term))

    def _have(self, status: Any, error: BaseException | None, term: int) -> None:
        if error is not None or not self.may_decide or self._changing or (status["role"], status["term"]) != ("leader", term):
            return
        members = self._members(status)
        change = electorate.next_change(members, status["id"], size_of(self.items(ELECTORATE)))
        if change is None:
            return
        self._changing = True
        names = {member: fields[0] for member, fields in status["info"].items()}
        about = f"{change.verb} {names.get(change.member, change.member)}"
        about += f" instead of {names.get(change.instead_of, change.instead_of)}" if change.instead_of else ""

        def changed(_: Any, trouble: BaseException | None) -> None:
            if term != self.term:
                return
            self._changing = False
            if trouble is None:
                self.changes[change.verb] = self.changes.get(change.verb, 0) + 1
                logger.info("votes: %s", about)
            else:
                self._not_before = self.now() + AGAIN_S
                logger.info("votes: %s was not done: %s", about, trouble)

        message = ChangeConfig(change.verb, change.member, (change.instead_of, "", ""))
        self.ask_then(self.raft_ref, message, 10.0, changed)

    def _members(self, status: dict[str, Any]) -> list[Member]:
        now, heard = self.now(), {*status["active"], status["id"]}
        machines = self.items(MACHINES)
        members = []
        for member in (*status["voters"], *status["learners"]):
            if member in heard:
                self._silent_since.pop(member, None)
            since = self._silent_since.setdefault(member, now) if member not in heard else now
            item = machines.get(MACHINES + member.encode())
            may_vote = item is not None and json.loads(item.value)["role"] == "voter"
            lacks = status["commit_index"] - status["match"].get(member, 0)
            is_ready = may_vote and status["match"].get(member, 0) > 0 and lacks <= CAUGHT_UP_ENTRIES
            silent = max(now - since, 1e-3) if member not in heard else 0.0
            members.append(Member(member, member in status["voters"], silent, is_ready))
        return members
