"""The reboot lock: a counting semaphore with holders, queue and fencing tokens.

Pure: a decision takes the group's state and gives the next one.  It is taken when the
command is applied, on every peer alike, so there is no read-modify-write by clients and
nothing to race.  The number of free slots is derived, never stored.
"""

from __future__ import annotations

import json
import re
from typing import Any

#: Machines that may wait in one group.
QUEUE_MAX = 10_000
#: Highest number of holders a group may allow.
HOLDERS_MAX = 1_000
#: Seconds after which a holder counts as overdue (it still holds).
DEADLINE_S = 900
_GROUP = re.compile(r"[a-zA-Z0-9.-]{1,64}")


_ARGUMENTS: dict[str, dict[str, type]] = {
    "acquire": {"machine": str, "reason": str, "boot_id": str, "wait": bool},
    "release": {"machine": str, "token": int, "force": bool},
    "set_max": {"max_holders": int},
    "forget": {"machine": str},
}


class LockError(Exception):
    """A refused lock command; ``code`` is stable."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def check_group(group: str) -> None:
    """Raise :class:`LockError` unless ``group`` is a legal name."""
    if not _GROUP.fullmatch(group):
        raise LockError(
            "lock_group", f"lock group {group!r}: letters, digits, '.' and '-', at most 64 of them"
        )


def load(value: bytes | None, group: str) -> dict[str, Any]:
    """The state of a group from its stored form; a new group has one slot."""
    if value is None:
        return {"group": group, "max": 1, "holders": {}, "queue": []}
    state: dict[str, Any] = json.loads(value)
    return state


def dump(state: dict[str, Any]) -> bytes:
    """The stored form of a group's state."""
    return json.dumps(state, sort_keys=True, separators=(",", ":")).encode()


def available(state: dict[str, Any]) -> int:
    """Free slots; negative when ``max`` was set below the number of holders."""
    return int(state["max"]) - len(state["holders"])


def decide(
    state: dict[str, Any], verb: str, arguments: dict[str, Any], token: int, now_ms: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Decide one command; returns (new state or None if unchanged, result).

    ``token`` is the revision this decision would be: it fences every grant in it.
    """
    check_group(state["group"])
    accepted = _ARGUMENTS.get(verb)
    if accepted is not None and {k: type(v) for k, v in arguments.items()} != accepted:
        if verb == "set_max" and set(arguments) == set(accepted):
            raise LockError("lock_max", f"max: a number from 0 to {HOLDERS_MAX}, not {arguments['max_holders']!r}")
        raise LockError("malformed", f"{verb} takes {', '.join(accepted)}")
    if verb == "acquire":
        return _acquire(state, token=token, now_ms=now_ms, **arguments)
    if verb == "release":
        return _release(state, new_token=token, now_ms=now_ms, **arguments)
    if verb == "set_max":
        return _set_max(state, token=token, now_ms=now_ms, **arguments)
    if verb == "forget":
        return _forget(state, token=token, now_ms=now_ms, **arguments)
    raise LockError("lock_verb", f"a lock has no verb {verb!r}")


def _acquire(
    state: dict[str, Any], *, machine: str, reason: str, boot_id: str, wait: bool,
    token: int, now_ms: int,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:  # fmt: skip
    if not machine:
        raise LockError("lock_machine", "a lock needs the name of the machine that takes it")
    held = state["holders"].get(machine)
    if held is not None:  # idempotent for its own holder: the same token again
        return None, {"granted": True, "token": held["token"]}
    waiting = [entry["machine"] for entry in state["queue"]]
    if available(state) > 0 and waiting[:1] in ([], [machine]):
        queue = [entry for entry in state["queue"] if entry["machine"] != machine]
        granted = _grant({**state, "queue": queue}, machine, reason, boot_id, token, now_ms)
        return granted, {"granted": True, "token": token}
    if not wait:
        return None, {"granted": False, "position": 0, "holders": sorted(state["holders"])}
    if machine in waiting:
        return None, {"granted": False, "position": waiting.index(machine) + 1}
    if len(waiting) >= QUEUE_MAX:
        raise LockError("lock_queue", f"queue_max: {QUEUE_MAX} machines wait for this lock already")
    entry = {"machine": machine, "reason": reason, "boot_id": boot_id, "since_ms": now_ms}
    return {**state, "queue": [*state["queue"], entry]}, {
        "granted": False,
        "position": len(waiting) + 1,
    }


def _grant(
    state: dict[str, Any], machine: str, reason: str, boot_id: str, token: int, now_ms: int
) -> dict[str, Any]:
    holder = {
        "token": token,
        "boot_id": boot_id,
        "reason": reason,
        "since_ms": now_ms,
        "deadline_s": DEADLINE_S,
        "phase": "held",
    }
    return {**state, "holders": {**state["holders"], machine: holder}}


def _promote(state: dict[str, Any], token: int, now_ms: int) -> dict[str, Any]:
    """Grant free slots to those that wait, in order."""
    while state["queue"] and available(state) > 0:
        first, *rest = state["queue"]
        state = _grant(
            {**state, "queue": rest}, first["machine"], first["reason"], first["boot_id"],
            token, now_ms,
        )  # fmt: skip
    return state


def _release(
    state: dict[str, Any], *, machine: str, token: int, force: bool, new_token: int, now_ms: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    held = state["holders"].get(machine)
    if held is None:  # releasing what one does not hold (or only waits for) is no error
        queue = [entry for entry in state["queue"] if entry["machine"] != machine]
        if len(queue) == len(state["queue"]):
            return None, {"released": False}
        return {**state, "queue": queue}, {"released": False}
    if not force and token != held["token"]:
        raise LockError(
            "lock_token",
            f"{machine} holds this lock with token {held['token']}, not {token}",
        )
    holders = {name: holder for name, holder in state["holders"].items() if name != machine}
    return _promote({**state, "holders": holders}, new_token, now_ms), {"released": True}


def _set_max(
    state: dict[str, Any], *, max_holders: int, token: int, now_ms: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if not 0 <= max_holders <= HOLDERS_MAX:
        raise LockError("lock_max", f"max: a number from 0 to {HOLDERS_MAX}, not {max_holders}")
    old = state["max"]
    if old == max_holders:
        return None, {"old_max": old, "max": max_holders}
    changed = _promote({**state, "max": max_holders}, token, now_ms)
    return changed, {"old_max": old, "max": max_holders}


def _forget(
    state: dict[str, Any], *, machine: str, token: int, now_ms: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The machine left the cluster for good: it holds and awaits nothing."""
    holders = {name: h for name, h in state["holders"].items() if name != machine}
    queue = [entry for entry in state["queue"] if entry["machine"] != machine]
    if len(holders) == len(state["holders"]) and len(queue) == len(state["queue"]):
        return None, {"released": False}
    changed = _promote({**state, "holders": holders, "queue": queue}, token, now_ms)
    return changed, {"released": True}
