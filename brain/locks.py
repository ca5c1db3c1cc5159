"""The reboot lock: a counting semaphore with holders, queue and fencing tokens.

Pure: a decision takes the group's state and gives the next one.  It is taken when the
command is applied, on every peer alike, so there is no read-modify-write by clients and
nothing to race.  The number of free slots is derived, never stored.

The same truth is readable and writable at locksmith's own key, in its own form
(:func:`semaphore`): every decision first takes over what was written there (:func:`merged`),
and every change is written to both, in one revision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

#: Machines that may wait in one group.
QUEUE_MAX = 10_000
#: Highest number of holders a group may allow.
HOLDERS_MAX = 1_000
#: Seconds after which a holder counts as overdue (it still holds).
DEADLINE_S = 900
#: What happened in a group that is remembered.
HISTORY_MAX = 50
#: Where locksmith keeps its record.
SEMAPHORES = b"/coreos.com/updateengine/rebootlock/"
#: Who asks, where it is an update agent that speaks FleetLock.
FLEET_LOCK = "FleetLock"
#: The phase of a holder that goes down now.
REBOOTING = "rebooting"
#: Clusters with fewer voters cannot lose one of them without losing the quorum: there is nothing to guard.
GUARDED_VOTERS_MIN = 3
_GROUP = re.compile(r"[a-zA-Z0-9.-]{1,64}")


_ARGUMENTS: dict[str, dict[str, type]] = {
    "acquire": {"machine": str, "reason": str, "boot_id": str, "wait": bool},
    "release": {"machine": str, "token": int, "force": bool},
    "set_max": {"max_holders": int},
    "forget": {"machine": str},
    "phase": {"machine": str, "token": int, "phase": str, "deadline_s": int},
    "look": {},
}
#: What may be said besides: who asks, through which machine, and who votes in the brain.
_OPTIONAL: dict[str, type] = {"by": str, "via": str, "voters": list}
Alive = Callable[[], set[str]]


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
    state: dict[str, Any] = json.loads(value) if value is not None else {}
    return {"group": group, "max": 1, "holders": {}, "queue": [], "history": [], **state}


def dump(state: dict[str, Any]) -> bytes:
    """The stored form of a group's state."""
    return json.dumps(state, sort_keys=True, separators=(",", ":")).encode()


def available(state: dict[str, Any]) -> int:
    """Free slots; negative when ``max`` was set below the number of holders."""
    return int(state["max"]) - len(state["holders"])


def semaphore_key(group: str) -> bytes:
    """Where locksmith looks for a group."""
    return SEMAPHORES + (b"semaphore" if group == "default" else f"groups/{quote_plus(group)}/semaphore".encode())


def semaphore(state: dict[str, Any]) -> bytes:
    """A group in locksmith's form."""
    holders = sorted(state["holders"])
    return json.dumps({"semaphore": available(state), "max": state["max"], "holders": holders}, separators=(",", ":")).encode()


def merged(state: dict[str, Any], value: bytes, revision: int, now_ms: int) -> dict[str, Any]:
    """A group with what somebody wrote at locksmith's key since; what makes no sense there is passed over."""
    if value == semaphore(state):
        return state
    try:
        seen = json.loads(value)
        most, names = seen["max"], seen["holders"] or []
    except (ValueError, KeyError, TypeError):
        return state
    if not isinstance(names, list) or len(names) > QUEUE_MAX or not all(isinstance(name, str) and name for name in names):
        return state
    if type(most) is not int or not 0 <= most <= HOLDERS_MAX:
        return state
    if most != state["max"]:
        state = _noted({**state, "max": most}, now_ms, "max", "", f"{state['max']} becomes {most}", "locksmith")
    for machine in sorted(set(state["holders"]) - set(names)):
        holders = {name: holder for name, holder in state["holders"].items() if name != machine}
        state = _noted({**state, "holders": holders}, now_ms, "released", machine, "", "locksmith")
    for machine in sorted(set(names) - set(state["holders"])):
        queue = [entry for entry in state["queue"] if entry["machine"] != machine]
        state = _grant({**state, "queue": queue}, machine, "locksmith", "", revision, now_ms, "locksmith")
    return state


def current(find: Callable[[bytes], Any], key: bytes, group: str, now_ms: int) -> dict[str, Any]:
    """A group as it is: what is stored under ``key``, with what somebody wrote at locksmith's.

    ``find`` gives the item of a key, or None.
    """
    stored, shown = find(key), find(semaphore_key(group))
    state = load(stored.value if stored is not None else None, group)
    return merged(state, shown.value, shown.mod, now_ms) if shown is not None else state


def _noted(state: dict[str, Any], now_ms: int, event: str, machine: str, detail: str, by: str) -> dict[str, Any]:
    row = {"at_ms": now_ms, "event": event, "machine": machine, "detail": detail, "by": by}
    return {**state, "history": [*state.get("history", []), row][-HISTORY_MAX:]}


def quorum_refusal(state: dict[str, Any], machine: str, voters: list[str], alive: Alive, elsewhere: Alive) -> str:
    """Why a voter may not go down now: with it, all holders, and all that are down, no majority would be left.

    ``elsewhere``: holders of other groups.
    """
    if machine not in voters or len(voters) < GUARDED_VOTERS_MIN:
        return ""
    down = (set(voters) - alive()) | ((set(state["holders"]) | elsewhere()) & set(voters)) | {machine}
    left, needed = len(voters) - len(down), len(voters) // 2 + 1
    if left >= needed:
        return ""
    return f"quorum: {needed} of {len(voters)} voters must stay up; with {', '.join(sorted(down))} down there are {left}"


def decide(
    state: dict[str, Any], verb: str, arguments: dict[str, Any], token: int, now_ms: int, alive: Alive = set,
    elsewhere: Alive = set,
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Decide one command; returns (new state or None if unchanged, result).

    ``token`` is the revision this decision would be: it fences every grant in it.
    ``alive``: names of the machines whose lease holds; ``elsewhere``: holders of other groups.
    """
    check_group(state["group"])
    accepted = _ARGUMENTS.get(verb)
    if accepted is None:
        raise LockError("lock_verb", f"a lock has no verb {verb!r}")
    given = {k: v for k, v in arguments.items() if k not in _OPTIONAL}
    besides = {k: v for k, v in arguments.items() if k in _OPTIONAL}
    if {k: type(v) for k, v in given.items()} != accepted:
        if verb == "set_max" and set(given) == set(accepted):
            raise LockError("lock_max", f"max: a number from 0 to {HOLDERS_MAX}, not {arguments['max_holders']!r}")
        raise LockError("malformed", f"{verb} takes {', '.join(accepted)}")
    voters = besides.get("voters", [])
    if any(type(value) is not _OPTIONAL[key] for key, value in besides.items()) or not all(isinstance(v, str) for v in voters):
        raise LockError("malformed", f"{verb}: {', '.join(_OPTIONAL)} are texts, and a list of texts")
    turn = _Turn(token, now_ms, str(besides.get("by", "")), str(besides.get("via", "")), voters, alive, elsewhere)
    return getattr(turn, verb)(state, **given)  # type: ignore[no-any-return]


class _Turn:
    """One decision: when, by whom, and what is known of the machines."""

    def __init__(
        self, token: int, now_ms: int, by: str, via: str, voters: list[str], alive: Alive, elsewhere: Alive
    ) -> None:
        self.token, self.now_ms, self.by, self.via, self.voters = token, now_ms, by, via, voters
        self.alive, self.elsewhere = alive, elsewhere

    def acquire(
        self, state: dict[str, Any], machine: str, reason: str, boot_id: str, wait: bool
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Take a slot, or a place in the queue."""
        if not machine:
            raise LockError("lock_machine", "a lock needs the name of the machine that takes it")
        held = state["holders"].get(machine)
        if held is not None:  # idempotent for its own holder: the same token again
            return None, {"granted": True, "token": held["token"]}
        waiting = [entry["machine"] for entry in state["queue"]]
        refused = quorum_refusal(state, machine, self.voters, self.alive, self.elsewhere)
        if available(state) > 0 and not refused and self._is_first(state, machine):
            queue = [entry for entry in state["queue"] if entry["machine"] != machine]
            granted = _grant({**state, "queue": queue}, machine, reason, boot_id, self.token, self.now_ms, self.by)
            return granted, {"granted": True, "token": self.token}
        told = {"quorum": refused} if refused and available(state) > 0 else {}
        if not wait:
            return None, {"granted": False, "position": 0, "holders": sorted(state["holders"]), **told}
        if machine in waiting:
            return None, {"granted": False, "position": waiting.index(machine) + 1, **told}
        if len(waiting) >= QUEUE_MAX:
            raise LockError("lock_queue", f"queue_max: {QUEUE_MAX} machines wait for this lock already")
        entry = {"machine": machine, "reason": reason, "boot_id": boot_id, "since_ms": self.now_ms, "via": self.via,
                 "by": self.by}  # fmt: skip
        return {**state, "queue": [*state["queue"], entry]}, {"granted": False, "position": len(waiting) + 1, **told}

    def _is_first(self, state: dict[str, Any], machine: str) -> bool:
        """Whether nobody waits before a machine who could go now."""
        for entry in state["queue"]:
            if entry["machine"] == machine:
                return True
            if not quorum_refusal(state, entry["machine"], self.voters, self.alive, self.elsewhere):
                return False
        return True

    def _promote(self, state: dict[str, Any]) -> dict[str, Any]:
        """Grant free slots to those that wait, in order; one that the quorum cannot spare is passed over."""
        at = 0
        while at < len(state["queue"]) and available(state) > 0:
            entry = state["queue"][at]
            if quorum_refusal(state, entry["machine"], self.voters, self.alive, self.elsewhere):
                at += 1
                continue
            queue = [*state["queue"][:at], *state["queue"][at + 1 :]]
            state = {**state, "queue": queue}
            asked = (entry["machine"], entry["reason"], entry["boot_id"])
            state = _grant(state, *asked, self.token, self.now_ms, entry.get("by", ""))  # by whoever asked, then
        return state

    def release(
        self, state: dict[str, Any], machine: str, token: int, force: bool
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Give a slot back, or leave the queue."""
        held = state["holders"].get(machine)
        if held is not None and self.by == FLEET_LOCK and held.get("by") != FLEET_LOCK:
            return None, {"released": False}  # its protocol has no tokens: it gives back what it took itself
        if held is None:  # releasing what one does not hold (or only waits for) is no error
            ours = self.by == FLEET_LOCK  # whose protocol takes back nobody else's wish
            queue = [e for e in state["queue"] if e["machine"] != machine or (ours and e.get("by") != FLEET_LOCK)]
            if len(queue) == len(state["queue"]):
                return None, {"released": False}
            return {**state, "queue": queue}, {"released": False}
        if not force and token != held["token"]:
            raise LockError("lock_token", f"{machine} holds this lock with token {held['token']}, not {token}")
        left = {**state, "holders": {name: holder for name, holder in state["holders"].items() if name != machine}}
        left = _noted(left, self.now_ms, "released", machine, "by force" if token != held["token"] else "", self.by)
        return self._promote(left), {"released": True}

    def set_max(self, state: dict[str, Any], max_holders: int) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Change the number of slots; whoever holds one keeps it."""
        if not 0 <= max_holders <= HOLDERS_MAX:
            raise LockError("lock_max", f"max: a number from 0 to {HOLDERS_MAX}, not {max_holders}")
        old = state["max"]
        if old == max_holders:
            return None, {"old_max": old, "max": max_holders}
        changed = _noted({**state, "max": max_holders}, self.now_ms, "max", "", f"{old} becomes {max_holders}", self.by)
        return self._promote(changed), {"old_max": old, "max": max_holders}

    def forget(self, state: dict[str, Any], machine: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The machine left the cluster for good: it holds and awaits nothing."""
        holders = {name: h for name, h in state["holders"].items() if name != machine}
        queue = [entry for entry in state["queue"] if entry["machine"] != machine]
        if len(holders) == len(state["holders"]) and len(queue) == len(state["queue"]):
            return None, {"released": False}
        left = {**state, "holders": holders, "queue": queue}
        if machine in state["holders"]:
            left = _noted(left, self.now_ms, "released", machine, "it left the cluster", self.by)
        return self._promote(left), {"released": True}

    def phase(
        self, state: dict[str, Any], machine: str, token: int, phase: str, deadline_s: int
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """What its holder does now, and how long that may take from here on."""
        held = state["holders"].get(machine)
        if held is None or held["token"] != token:
            raise LockError("lock_token", f"{machine} does not hold this lock with token {token}")
        if not re.fullmatch(r"[a-z-]{1,32}", phase) or not 0 < deadline_s <= 30 * 86400:
            raise LockError("malformed", f"a phase is a word, and its deadline 1 s to 30 days, not {phase!r} and {deadline_s}")
        if phase == REBOOTING:  # between the grant and this moment others may have gone down
            refused = quorum_refusal(state, machine, self.voters, self.alive, self.elsewhere)
            if refused:
                return None, {"phase": held["phase"], "quorum": refused}
        if (held["phase"], held["deadline_s"]) == (phase, deadline_s):
            return None, {"phase": phase}
        passed_s = max(0, self.now_ms - held["since_ms"]) // 1000
        holder = {**held, "phase": phase, "deadline_s": passed_s + deadline_s}
        changed = {**state, "holders": {**state["holders"], machine: holder}}
        return _noted(changed, self.now_ms, "phase", machine, phase, self.by), {"phase": phase}

    def look(self, state: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Nobody asked for anything, but machines came and went: waiters that are gone leave, others may go now."""
        alive = self.alive()
        queue = [entry for entry in state["queue"] if not entry.get("via") or entry["via"] in alive]
        changed = self._promote({**state, "queue": queue})
        return (None if changed == state else changed), {"changed": changed != state}


def _grant(
    state: dict[str, Any], machine: str, reason: str, boot_id: str, token: int, now_ms: int, by: str
) -> dict[str, Any]:
    holder = {
        "token": token, "boot_id": boot_id, "reason": reason, "since_ms": now_ms, "deadline_s": DEADLINE_S,
        "phase": "held", "by": by,
    }  # fmt: skip
    granted = {**state, "holders": {**state["holders"], machine: holder}}
    return _noted(granted, now_ms, "granted", machine, reason, by)
