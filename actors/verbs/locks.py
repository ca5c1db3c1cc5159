"""Verbs about the reboot lock."""

from __future__ import annotations

from typing import Any

from kernel.mailbox import Promise

from ..control import BadRequest, Control, Failed, verb
from ..lock_manager import WAIT_S_MAX, Acquire, LockStatus, Release, SetMax


def _locks(control: Control) -> Any:
    ref = control.system.find("lock-manager")
    if ref is None:
        raise Failed("the lock manager is not running on this host")
    return ref


@verb("lock.status")
def _lock_status(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    control.relay(_locks(control), LockStatus(str(args.get("group") or "")), promise)
    return promise


@verb("lock.acquire")
def _lock_acquire(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    wait = float(args.get("wait", 0.0))
    if not 0 <= wait <= WAIT_S_MAX:  # also what is no number
        raise BadRequest(f"--wait {wait}: seconds from 0 to {WAIT_S_MAX:g}")
    message = Acquire(
        str(args.get("group") or "default"), str(args["machine"]), str(args.get("reason", "")), wait,
        str(args.get("by") or "operator"),
    )  # fmt: skip
    control.relay(_locks(control), message, promise, wait + 6.0)
    return promise


@verb("lock.release")
def _lock_release(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    message = Release(
        str(args.get("group") or "default"), str(args["machine"]), int(args.get("token") or 0),
        bool(args.get("force")), str(args.get("by") or "operator"),
    )  # fmt: skip
    control.relay(_locks(control), message, promise)
    return promise


@verb("lock.set-max")
def _lock_set_max(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    message = SetMax(str(args.get("group") or "default"), int(args["max"]))
    control.relay(_locks(control), message, promise)
    return promise
