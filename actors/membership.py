"""Membership changes as operators name them, turned into configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from brain.raft import Config

from .raft_messages import BrainError, ChangeConfig


def changed(config: Config, message: ChangeConfig, caught_up: Callable[[str], bool]) -> Config:
    """The configuration after a change; raises :class:`BrainError` for one that cannot be made.

    ``add_learner`` adds a member without a vote, ``promote`` gives it one when it has caught
    up, ``remove`` takes it out, ``update`` changes its name and addresses.
    """
    member = message.member
    others = tuple(entry for entry in config.info if entry[0] != member)
    if message.change == "add_learner":
        if member in config.voters:
            return replace(config, info=(*others, (member, message.info)))
        learners = config.learners | {member}
        return replace(config, learners=learners, info=(*others, (member, message.info)))
    if message.change == "update":
        if member not in config.everyone:
            raise BrainError("missing", f"no member has the id {member}")
        return replace(config, info=(*others, (member, message.info)))
    if message.change == "promote":
        if member not in config.learners:
            return config
        if not caught_up(member):
            raise BrainError("not_caught_up", f"{member} has not caught up with the log yet")
        return replace(config, voters=config.voters | {member}, learners=config.learners - {member})
    if message.change == "remove":
        # its address stays known: until the joint configuration is left its vote may be needed
        return replace(config, voters=config.voters - {member}, learners=config.learners - {member})
    raise BrainError("config_change", f"no membership change is called {message.change!r}")
