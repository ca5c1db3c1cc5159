"""What a machine without a vote may read and change in the brain: what is its own, and no more.

An agent that somebody took over can lie about its own units; it cannot place one elsewhere,
read another machine's secrets, or take part in a decision.  Pure, but for the store that is
asked which secrets the units of a machine use.
"""

from __future__ import annotations

import json
from typing import Any

from brain import locks
from brain.store import OWN_PREFIX, Store, prefix_end
from fleet import container, unitfile

from .brain_client import (
    AGENTS,
    ALIVE,
    LOCKS,
    MACHINES,
    ORDERS,
    PLACES,
    RELEASES,
    ROLLOUTS_OF_RELEASES,
    SECRETS,
    STATES,
    TRUST,
    UPDATE_POLICY,
    UPDATES,
)

#: Ranges that every agent may read: who is alive, what is released, who holds the reboot lock.
_SHARED = (ALIVE, RELEASES, ROLLOUTS_OF_RELEASES, TRUST, UPDATES, UPDATE_POLICY, LOCKS, locks.SEMAPHORES)
#: Decisions on the reboot lock that a machine may ask for, for itself.
_LOCK_VERBS = ("acquire", "release", "phase")


class NotAllowed(Exception):
    """An agent asked for what is not its own; the text says what."""

    code = "not_allowed"


class UnknownAgent(Exception):
    """Who asks is no agent of this cluster, or not any more."""

    code = "unknown_agent"


def _own(agent: str) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Keys, and prefixes, that speak of this machine alone."""
    me = agent.encode()
    return (MACHINES + me, ALIVE + me, UPDATES + me, ORDERS + me), (STATES + me + b"/",)


def check_range(agent: str, key: bytes, end: bytes | None) -> None:
    """Raise :class:`NotAllowed` unless an agent may read these keys."""
    if type(key) is not bytes or (end is not None and type(end) is not bytes):
        raise NotAllowed("a range is two keys")
    keys, prefixes = _own(agent)
    if end is None and (key in keys or key == AGENTS + agent.encode() or secret_named(key)):
        return
    for prefix in (*_SHARED, *keys, *prefixes, PLACES + agent.encode() + b"/"):
        if key.startswith(prefix) and (end is None or key < end <= prefix_end(prefix)):
            return
    raise NotAllowed(f"machine {agent} may not read {key.decode('utf-8', 'replace')}")


def secret_named(key: bytes) -> str:
    """The secret whose key this is; empty for any other key."""
    return key[len(SECRETS) :].decode("utf-8", "replace") if key.startswith(SECRETS) else ""


def uses_secret(store: Store, agent: str, name: str) -> bool:
    """Whether the file of a unit that is placed on a machine names a secret, or an image of a login's registry."""
    prefix = PLACES + agent.encode() + b"/"
    for key, item in store.range(prefix, prefix_end(prefix)):
        try:
            spec = unitfile.load(key[len(prefix) :].decode(), json.loads(item.value)["content"])[0]
        except ValueError:
            continue
        if spec.container is not None and name in container.secret_names(spec.container):
            return True
    return False


def check_command(agent: str, name_of_agent: str, command: Any) -> None:
    """Raise :class:`NotAllowed` unless an agent may have this committed."""
    name = command[0] if type(command) is list and command else ""
    if name in ("lease_grant", "lease_revoke"):
        return  # a lease is a number that nobody guesses
    if name == "lock":
        _check_lock(name_of_agent, command)
    elif (name == "put" and len(command) >= 3) or (name == "delete" and len(command) == 2):
        _check_write(agent, command[1])
    elif name == "txn" and len(command) >= 4 and all(type(part) is list for part in command[1:4]):
        for compare in command[1]:
            if type(compare) is not list or len(compare) != 4:
                raise NotAllowed("a comparison of an agent is about one key")
            if type(compare[0]) is bytes and secret_named(compare[0]):
                raise NotAllowed("an agent compares no secrets: it could guess them")
            check_range(agent, compare[0], None)
        for step in (*command[2], *command[3]):
            if type(step) is not list or len(step) < 2 or step[0] not in ("put", "delete"):
                raise NotAllowed("a transaction of an agent puts and deletes")
            if step[0] == "delete" and len(step) > 2:
                raise NotAllowed("an agent deletes single keys")
            _check_write(agent, step[1])
    else:
        raise NotAllowed(f"an agent may not have {name!r} committed")


def _check_write(agent: str, key: Any) -> None:
    if type(key) is not bytes:
        raise NotAllowed("a key is bytes")
    keys, prefixes = _own(agent)
    is_announcement = not key.startswith(OWN_PREFIX) and not key.startswith(locks.SEMAPHORES)
    if key not in keys and not key.startswith(prefixes) and not is_announcement:
        raise NotAllowed(f"machine {agent} may not change {key.decode('utf-8', 'replace')}")


def _check_lock(name: str, command: list[Any]) -> None:
    if len(command) != 4 or command[2] not in _LOCK_VERBS or type(command[3]) is not dict:
        raise NotAllowed("an agent may acquire the lock, release it, and say what it does meanwhile")
    if command[3].get("machine") != name:
        raise NotAllowed(f"machine {name} asks for the lock for itself")
    if command[3].get("force"):
        raise NotAllowed("an agent may not force a lock open")
