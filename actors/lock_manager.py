"""The lock manager: the reboot semaphore's face on every host.

Decisions are taken where the command is applied (``brain/locks.py``); this actor asks for
them, tells waiting machines the moment they are granted, and shows the groups.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from brain import locks
from brain.store import Item, Store
from kernel.actor import handles
from kernel.mailbox import Promise
from kernel.ports import Ports

from .brain_client import LOCKS, BrainActor
from .raft_messages import TIMED_OUT, BrainError, LeaderChanged, Query, Status

#: Seconds one acquire may wait in the queue.
WAIT_S_MAX = 86_400.0
#: Why a lock is refused: others hold it or wait for it, the quorum cannot spare the machine, the time to wait is
#: over, or somebody took it out of the queue.
REFUSALS = ("held", "quorum", "timeout", "removed")
#: Seconds for the Raft peer to say whether it knows a leader.
LEADER_S = 2.0
#: Seconds between looks, beside the leader, for waiters that are gone and others that may go now.
LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask: take a slot.  Answer: ``{granted, token}``; waits up to ``wait`` seconds."""

    group: str
    machine: str
    reason: str
    wait: float = 0.0
    by: str = "operator"


@dataclass(frozen=True, slots=True)
class Release:
    """Ask: give a slot back.  The holder's token is needed unless ``force``."""

    group: str
    machine: str
    token: int = 0
    force: bool = False
    by: str = "operator"


@dataclass(frozen=True, slots=True)
class SetPhase:
    """Ask: say what the holder does now, and how many seconds from here on that may take."""

    group: str
    machine: str
    token: int
    phase: str
    deadline_s: int


@dataclass(frozen=True, slots=True)
class SetMax:
    """Ask: how many may hold at once; 0 pauses all grants."""

    group: str
    max_holders: int


@dataclass(frozen=True, slots=True)
class LockStatus:
    """Ask: all groups, or one."""

    group: str = ""


class LockManager(BrainActor):
    """See the module docstring."""

    def __init__(self, name: str, ports: Ports, raft_ref: Any) -> None:
        """``name``: this machine's."""
        super().__init__(raft_ref)
        self._name = name
        self._ports = ports
        #: who waits, by group and machine, and since which revision it is in the queue
        self._waiting: dict[tuple[str, str], list[tuple[Promise, int]]] = {}
        self._groups: Any = None
        self._semaphores: Any = None
        self._leading = False
        self._looking = False
        self.grants = 0
        self.refusals = dict.fromkeys(REFUSALS, 0)

    def on_start(self) -> None:
        """Follow the groups."""
        self._semaphores = self.mirror(locks.SEMAPHORES, lambda items: None, lambda *_: None)
        self._groups = self.mirror(LOCKS, self._on_groups, self._on_group)
        self.system.subscribe(LeaderChanged, self.actor_ref, replay=True)
        self.every(LOOK_S, self._look)

    @handles(LeaderChanged)
    def _on_leader(self, message: LeaderChanged) -> None:
        self._leading = message.leading

    def _look(self) -> None:
        """Beside the leader: whether a group is to change though nobody asked for anything."""
        if not self._leading or self._looking or not (self._groups.ready and self._semaphores.ready):
            return
        states = {key[len(LOCKS) :].decode(): json.loads(item.value) for key, item in self._groups.items.items()}
        due = [name for name, state in states.items() if state["queue"] or self._was_written(name, state)]
        if not due:
            return
        self._looking = True

        def asked(status: Any, error: BaseException | None) -> None:
            voters = _voters(status) if error is None else []

            def read(store: Store) -> list[str]:
                arguments = {"voters": voters, "by": "cluster"}
                found = []
                for name in due:
                    stored, state, changed, _ = store.decide_lock(name, "look", arguments)
                    if changed is not None or state != stored:
                        found.append(name)
                return found

            def have(names: Any, trouble: BaseException | None) -> None:
                self._looking = False
                for name in names if trouble is None else ():
                    self.propose(["lock", name, "look", {"voters": voters, "by": "cluster"}])

            self.ask_then(self.raft_ref, Query(read, False), 6.0, have)

        self.ask_then(self.raft_ref, Status(), 6.0, asked)

    def _was_written(self, group: str, state: dict[str, Any]) -> bool:
        """Whether locksmith's record says something else than ours."""
        item = self._semaphores.items.get(locks.semaphore_key(group))
        return item is not None and item.value != locks.semaphore(state)

    def _decide(
        self, group: str, verb: str, arguments: dict[str, Any], promise: Promise
    ) -> None:
        try:
            locks.check_group(group)
        except locks.LockError as error:
            promise.fail(BrainError(error.code, str(error)))
            return

        def decided(result: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                promise.reply(result)

        def asked(status: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                self.propose(["lock", group, verb, {**arguments, "voters": _voters(status)}], decided)

        self.ask_then(self.raft_ref, Status(), 6.0, asked)

    @handles(Acquire)
    def _on_acquire(self, message: Acquire) -> Promise:
        promise = Promise()
        wait = min(message.wait, WAIT_S_MAX)
        arguments = {
            "machine": message.machine, "reason": message.reason,
            "boot_id": self._ports.processes.boot_id, "wait": wait > 0, "by": message.by, "via": self._name,
        }  # fmt: skip
        first = Promise()

        class _Then:
            def set(_, value: Any) -> None:  # noqa: N805
                self._asked(message, value, promise, wait)

            def set_exception(_, exc_info: Any) -> None:  # noqa: N805
                promise.fail(exc_info[1])

        first.bind(_Then())
        self._decide(message.group, "acquire", arguments, first)
        return promise

    def _asked(self, message: Acquire, value: Any, promise: Promise, wait: float) -> None:
        if value["granted"]:
            self.grants += 1
            promise.reply(value)
            return
        if not wait:
            self.refusals["quorum" if "quorum" in value else "held"] += 1
            promise.reply(value)
            return
        key = (message.group, message.machine)
        self._waiting.setdefault(key, []).append((promise, int(value["revision"])))
        self.after(wait, lambda: self._give_up(key, promise))
        self._check(message.group)  # granted between the decision and this moment?

    def _give_up(self, key: tuple[str, str], promise: Promise) -> None:
        if promise.done:
            return
        self._waiting[key] = [entry for entry in self._waiting.get(key, []) if entry[0] is not promise]
        self.refusals["timeout"] += 1
        promise.fail(BrainError(TIMED_OUT, "the lock was not granted in time; left the queue"))
        group, machine = key
        self._decide(group, "release", {"machine": machine, "token": 0, "force": False}, Promise())

    def _on_groups(self, items: dict[bytes, Item]) -> None:
        for key, item in items.items():
            group = key[len(LOCKS) :].decode()
            self._check(group)
            for entry in locks.load(item.value, group)["queue"]:  # of those who waited here in an earlier life
                if entry.get("via") == self._name and (group, entry["machine"]) not in self._waiting:
                    arguments = {"machine": entry["machine"], "token": 0, "force": False, "by": "its host was restarted"}
                    self._decide(group, "release", arguments, Promise())

    def _on_group(self, key: bytes, *_: Any) -> None:
        self._check(key[len(LOCKS) :].decode())

    def _check(self, group: str) -> None:
        item = self._groups.items.get(LOCKS + group.encode())
        if item is None:
            return
        state = locks.load(item.value, group)
        for machine, holder in state["holders"].items():
            for promise, _ in self._waiting.pop((group, machine), ()):
                self.grants += 1
                promise.reply({"granted": True, "token": holder["token"]})
        queued = {entry["machine"] for entry in state["queue"]}
        for (name, machine), waiting in list(self._waiting.items()):
            if name != group or machine in queued:
                continue
            left = [promise for promise, revision in waiting if self._groups.revision >= revision]
            self._waiting[name, machine] = [entry for entry in waiting if entry[0] not in left]
            for promise in left:
                self.refusals["removed"] += 1
                promise.fail(BrainError("failed", f"{machine} was taken out of the queue of lock {group}"))

    @handles(Release)
    def _on_release(self, message: Release) -> Promise:
        promise = Promise()
        arguments = {"machine": message.machine, "token": message.token, "force": message.force, "by": message.by}
        self._decide(message.group, "release", arguments, promise)
        return promise

    @handles(SetPhase)
    def _on_phase(self, message: SetPhase) -> Promise:
        promise = Promise()
        arguments = {"machine": message.machine, "token": message.token, "phase": message.phase,
                     "deadline_s": message.deadline_s, "by": message.machine}  # fmt: skip
        self._decide(message.group, "phase", arguments, promise)
        return promise

    @handles(SetMax)
    def _on_set_max(self, message: SetMax) -> Promise:
        promise = Promise()
        self._decide(message.group, "set_max", {"max_holders": message.max_holders, "by": "operator"}, promise)
        return promise

    @handles(LockStatus)
    def _on_status(self, message: LockStatus) -> Promise:
        """As this host knows it; ``stale`` where no leader is known, which alone could say that nothing changed since."""
        promise = Promise()

        def asked(status: Any, error: BaseException | None) -> None:
            stale = error is not None or not status["leader"]
            promise.reply([{**row, "stale": stale} for row in self.status(message.group)])

        self.ask_then(self.raft_ref, Status(), LEADER_S, asked)
        return promise

    def status(self, group: str = "") -> list[dict[str, Any]]:
        """Groups as the contract lists them; a group that was asked for always shows."""
        now_ms = self._ports.clock.wall() * 1000
        items = {**self._semaphores.items, **self._groups.items} if self._groups is not None else {}
        groups = {key[len(LOCKS) :].decode() for key in items if key.startswith(LOCKS)}
        names = {group} if group else groups or {"default"}
        states = {name: locks.current(items.get, LOCKS + name.encode(), name, int(now_ms)) for name in names}
        out = []
        for name, state in sorted(states.items()):
            holders = []
            for machine, holder in sorted(state["holders"].items()):
                held_s = max(0.0, (now_ms - holder["since_ms"]) / 1000)
                holders.append(
                    {
                        "machine": machine, "token": holder["token"], "reason": holder["reason"],
                        "since_s": round(held_s, 1), "phase": holder["phase"],
                        "overdue": held_s > holder["deadline_s"],
                    }
                )  # fmt: skip
            out.append(
                {
                    "group": name, "max": state["max"], "holders": holders,
                    "queue": [entry["machine"] for entry in state["queue"]],
                    "available": locks.available(state),
                    "waiting": [{"machine": entry["machine"], "reason": entry["reason"],
                                 "since_s": round(max(0.0, (now_ms - entry["since_ms"]) / 1000), 1)} for entry in state["queue"]],
                    "history": state["history"],
                }
            )  # fmt: skip
        return out


def _voters(status: dict[str, Any]) -> list[str]:
    """Names of the voters of the brain."""
    return sorted(status["info"].get(voter, (voter,))[0] or voter for voter in status["voters"])
