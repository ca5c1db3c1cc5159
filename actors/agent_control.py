"""What an operator may ask of a machine without a vote: what happens on it; the rest is for the voters."""

from __future__ import annotations

from functools import partial
from typing import Any

from brain.store import Item
from kernel.actor import handles

from .agent import Agent
from .brain_client import MACHINES
from .command import Command
from .control import MIRRORED, Control

#: What a machine answers for itself.
_HERE = frozenset({"version", "authority", "actor.tell", "actor.ask", "actor.kill"})


class AskVoter(Exception):
    """Somebody with a copy of the brain answers that; the text ends with their addresses."""

    code = "ask_voter"


class _Nothing:
    """A picture of keys that a machine without a vote does not keep."""

    items: dict[bytes, Item] = {}
    revision = 0


class AgentControl(Control):
    """See the module docstring."""

    def on_start(self) -> None:
        """Know this machine's own record."""
        self._pictures = dict.fromkeys(MIRRORED, _Nothing())
        own = MACHINES + self.machine.encode()
        self._pictures[MACHINES] = self.mirror(own, partial(self._begun, MACHINES), partial(self._changed, MACHINES))

    @handles(Command)
    def _on_command(self, command: Command) -> Any:
        is_here = command.verb.startswith("host.") or command.verb in _HERE
        if is_here or (command.verb == "actor.list" and command.args.get("here")):
            return super()._on_command(command)
        peer: Agent = self.raft_ref._mailbox.actor  # noqa: SLF001 - read only, of the same thread
        voters = ", ".join(sorted(peer.voters.values())) if peer is not None else ""
        raise AskVoter(f"machine {self.machine_name(self.machine)} has no vote and no copy of the brain; ask: {voters}")
