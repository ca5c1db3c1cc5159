"""Verbs about actors: list, tell, ask, kill."""

from __future__ import annotations

from typing import Any

from kernel.mailbox import Promise

from ..brain_client import ALIVE
from ..command import Command
from ..control import BadRequest, Control, Missing, verb
from ..lock_manager import LockStatus
from ..raft_messages import Status, TransferLeadership


@verb("actor.list")
def _actor_list(control: Control, args: dict[str, Any]) -> Promise:
    """Actors of all machines that answer, or of this host only."""
    promise = Promise()
    own = [
        {
            "path": box.path, "class": type(box.actor).__name__,
            "machine": control.machine_name(control.machine), "mailbox": len(box.user),
            "handled": box.handled, "restarts": box.restarts,
            "state": "suspended" if box.suspended else "running",
        }
        for box in control.system.mailboxes()
    ]  # fmt: skip
    if args.get("here"):
        promise.reply(own)
        return promise
    others = [
        m for m in control.machines()
        if m != control.machine and ALIVE + m.encode() in control.items(ALIVE)
    ]
    waiting = len(others)

    def answered(rows: Any, error: BaseException | None) -> None:
        nonlocal waiting
        waiting -= 1
        if error is None:
            own.extend(rows)
        if not waiting:
            promise.reply(sorted(own, key=lambda row: row["path"]))

    if not others:
        promise.reply(own)
    for machine in others:
        ref = control.router.ref(machine, "control")
        control.ask_then(ref, Command("actor.list", {"here": True}), 3.0, answered)
    return promise


def _actor(control: Control, args: dict[str, Any], verb: str) -> Any:
    """Find the actor here, or hand the command to its machine."""
    path = str(args["path"])
    machine_part, _, rest = path.partition("/")
    if not rest:
        raise BadRequest(f"{path!r}: an actor's path is MACHINE/NAME, see 'argosy actor list'")
    machine = control.find_machine(machine_part)
    if machine != control.machine:
        promise = Promise()
        control.on(machine, Command(verb, args), promise)
        return None, promise
    ref = control.system.find(rest)
    if ref is None:
        raise Missing(f"no actor is at {path}")
    return ref, None


@verb("actor.tell")
def _actor_tell(control: Control, args: dict[str, Any]) -> Any:
    ref, elsewhere = _actor(control, args, "actor.tell")
    if elsewhere is not None:
        return elsewhere
    ref.tell(_message(args))
    return True


@verb("actor.ask")
def _actor_ask(control: Control, args: dict[str, Any]) -> Any:
    ref, elsewhere = _actor(control, args, "actor.ask")
    if elsewhere is not None:
        return elsewhere
    promise = Promise()
    control.relay(ref, _message(args), promise)
    return promise


def _message(args: dict[str, Any]) -> Any:
    """Only messages that are meant for operators: ``{"type": "Status"}`` and the like."""
    body = args["message"]
    if not isinstance(body, dict) or body.get("type") not in _OPEN_MESSAGES:
        known = ", ".join(sorted(_OPEN_MESSAGES))
        raise BadRequest(f'a message is {{"type": NAME, ...}} with one of: {known}')
    fields = {k: v for k, v in body.items() if k != "type"}
    try:
        return _OPEN_MESSAGES[body["type"]](**fields)
    except TypeError as error:
        raise BadRequest(f"{body['type']}: {error}") from None


_OPEN_MESSAGES: dict[str, Any] = {
    "Status": Status,
    "TransferLeadership": TransferLeadership,
    "LockStatus": LockStatus,
    "Command": Command,
}


@verb("actor.kill")
def _actor_kill(control: Control, args: dict[str, Any]) -> Any:
    ref, elsewhere = _actor(control, args, "actor.kill")
    if elsewhere is not None:
        return elsewhere
    promise = Promise()
    control.after(0.01, ref.kill)  # so that killing the control actor still answers
    promise.reply(True)
    return promise
