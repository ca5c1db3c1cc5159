"""The lock manager: the reboot semaphore's face on every host.

Decisions are taken where the command is applied (``brain/locks.py``); this actor asks for
them, tells waiting machines the moment they are granted, and shows the groups.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from brain import locks
from brain.store import Item
from kernel.actor import handles
from kernel.mailbox import Promise
from kernel.ports import Ports

from .brain_client import LOCKS, BrainActor
from .raft_messages import TIMED_OUT, BrainError

#: Seconds one acquire may wait in the queue.
WAIT_S_MAX = 86_400.0


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask: take a slot.  Answer: ``{granted, token}``; waits up to ``wait`` seconds."""

    group: str
    machine: str
    reason: str
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Release:
    """Ask: give a slot back.  The holder's token is needed unless ``force``."""

    group: str
    machine: str
    token: int = 0
    force: bool = False


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

    def __init__(self, ports: Ports, raft_ref: Any) -> None:
        super().__init__(raft_ref)
        self._ports = ports
        self._waiting: dict[tuple[str, str], list[Promise]] = {}
        self._groups: Any = None
        self.grants = 0
        self.refusals = 0

    def on_start(self) -> None:
        """Follow the groups."""
        self._groups = self.mirror(LOCKS, self._on_groups, self._on_group)

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

        self.propose(["lock", group, verb, arguments], decided)

    @handles(Acquire)
    def _on_acquire(self, message: Acquire) -> Promise:
        promise = Promise()
        wait = min(message.wait, WAIT_S_MAX)
        arguments = {
            "machine": message.machine, "reason": message.reason,
            "boot_id": self._ports.processes.boot_id, "wait": wait > 0,
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
            self.refusals += 1
            promise.reply(value)
            return
        key = (message.group, message.machine)
        self._waiting.setdefault(key, []).append(promise)
        self.after(wait, lambda: self._give_up(key, promise))
        self._check(message.group)  # granted between the decision and this moment?

    def _give_up(self, key: tuple[str, str], promise: Promise) -> None:
        if promise.done:
            return
        self._waiting.get(key, []).remove(promise)
        self.refusals += 1
        promise.fail(BrainError(TIMED_OUT, "the lock was not granted in time; left the queue"))
        group, machine = key
        self._decide(group, "release", {"machine": machine, "token": 0, "force": False}, Promise())

    def _on_groups(self, items: dict[bytes, Item]) -> None:
        for key in items:
            self._check(key[len(LOCKS) :].decode())

    def _on_group(self, key: bytes, *_: Any) -> None:
        self._check(key[len(LOCKS) :].decode())

    def _check(self, group: str) -> None:
        item = self._groups.items.get(LOCKS + group.encode())
        if item is None:
            return
        holders = locks.load(item.value, group)["holders"]
        for machine, holder in holders.items():
            for promise in self._waiting.pop((group, machine), ()):
                self.grants += 1
                promise.reply({"granted": True, "token": holder["token"]})

    @handles(Release)
    def _on_release(self, message: Release) -> Promise:
        promise = Promise()
        arguments = {"machine": message.machine, "token": message.token, "force": message.force}
        self._decide(message.group, "release", arguments, promise)
        return promise

    @handles(SetMax)
    def _on_set_max(self, message: SetMax) -> Promise:
        promise = Promise()
        self._decide(message.group, "set_max", {"max_holders": message.max_holders}, promise)
        return promise

    @handles(LockStatus)
    def _on_status(self, message: LockStatus) -> list[dict[str, Any]]:
        return self.status(message.group)

    def status(self, group: str = "") -> list[dict[str, Any]]:
        """Groups as the contract lists them; a group that was asked for always shows."""
        now_ms = self._ports.clock.wall() * 1000
        states = {
            key[len(LOCKS) :].decode(): json.loads(item.value)
            for key, item in (self._groups.items if self._groups is not None else {}).items()
        }
        if group:
            states = {group: states.get(group) or locks.load(None, group)}
        elif not states:
            states = {"default": locks.load(None, "default")}
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
                }
            )  # fmt: skip
        return out
