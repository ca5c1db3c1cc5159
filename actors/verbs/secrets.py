"""Verbs of secrets: written and named, never shown again."""

from __future__ import annotations

from typing import Any

from brain.store import Store, prefix_end
from fleet import secrets
from kernel.mailbox import Promise

from ..brain_client import SECRETS, to_json
from ..control import BadRequest, Control, Failed, Missing, verb
from ..raft_messages import Query


def _name(args: dict[str, Any]) -> str:
    try:
        if args.get("registry"):
            return secrets.login_of(str(args["registry"]))
        return secrets.check_name(str(args["name"]))
    except ValueError as error:
        raise BadRequest(str(error)) from None


@verb("secret.set")
def _secret_set(control: Control, args: dict[str, Any]) -> Promise:
    """Keep a secret, or the login of a registry; what had its name is replaced."""
    name = _name(args)
    if args.get("registry"):
        value = to_json({"username": str(args["username"]), "password": str(args["password"])})
    else:
        if not isinstance(args["value"], bytes):
            raise BadRequest("a secret's value is bytes")
        value = args["value"]
    if not 0 < len(value) <= secrets.SECRET_BYTES_MAX:
        raise BadRequest(f"secret_bytes_max: a secret has 1 to {secrets.SECRET_BYTES_MAX} bytes, this one {len(value)}")
    promise = Promise()

    def counted(names: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
        elif name not in names and len(names) >= secrets.SECRETS_MAX:
            promise.fail(Failed(f"secrets_max: {secrets.SECRETS_MAX} secrets are kept already"))
        else:
            control.commit(["put", SECRETS + name.encode(), value], promise, lambda _: promise.reply(True))

    _names(control, counted)
    return promise


@verb("secret.list")
def _secret_list(control: Control, _: dict[str, Any]) -> Promise:
    """Names only."""
    promise = Promise()

    def have(names: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        logins = {name: secrets.registry_of_login(name) for name in names}
        promise.reply([{"name": login or name, "kind": "registry" if login else "secret"} for name, login in logins.items()])

    _names(control, have)
    return promise


def _names(control: Control, then: Any) -> None:
    def read(store: Store) -> Any:
        return [key[len(SECRETS) :].decode() for key, _ in store.range(SECRETS, prefix_end(SECRETS))]

    control.ask_then(control.raft_ref, Query(read, True), 6.0, then)


@verb("secret.delete")
def _secret_delete(control: Control, args: dict[str, Any]) -> Promise:
    """Forget one; containers that run keep what they were given."""
    name = _name(args)
    promise = Promise()

    def done(result: Any) -> None:
        if result["succeeded"]:
            promise.reply(True)
        else:
            promise.fail(Missing(f"no secret is called {name}"))

    key = SECRETS + name.encode()
    control.commit(["txn", [[key, "version", "!=", 0]], [["delete", key]], []], promise, done)
    return promise
