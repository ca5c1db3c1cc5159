"""FleetLock: the reboot lock as Fedora CoreOS's update agents ask for it.

``POST /v1/pre-reboot`` takes a slot, ``POST /v1/steady-state`` gives it back; both may be
repeated at will.  The body names the host and the group; the header is the protocol's guard
against requests that were not meant.
"""

from __future__ import annotations

import json
from typing import Any

from actors.command import Command
from brain import locks

from .http import Request

PATHS = ("/v1/pre-reboot", "/v1/steady-state")
#: Longest name of a host, in characters.
ID_MAX = 256
BODY_MAX = 16 * 1024


class LockRequest:
    """One request."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request

    def run(self) -> None:
        """Check it as the protocol says; ask the lock manager."""
        request = self.request
        if request.method != "POST":
            self._refuse(405, "method_not_allowed", f"{request.path} takes POST")
            return
        if request.header("fleet-lock-protocol").lower() != "true":
            self._refuse(400, "missing_header", "the header fleet-lock-protocol: true is missing")
            return
        try:
            group, host = _client(request.body)
            locks.check_group(group)
        except locks.LockError as error:
            self._refuse(400, "invalid_client_identity", str(error))
            return
        except ValueError as error:
            self._refuse(400, "decode_error", str(error))
            return
        if request.path == PATHS[0]:
            args: dict[str, Any] = {"group": group, "machine": host, "reason": "reboot", "by": locks.FLEET_LOCK, "wait": 0.0}
            self.door.control.ask_back(Command("lock.acquire", args), lambda v, e: self._asked(group, v, e))
        else:
            args = {"group": group, "machine": host, "token": 0, "force": True, "by": locks.FLEET_LOCK}
            self.door.control.ask_back(Command("lock.release", args), lambda v, e: self._asked(group, {"granted": True}, e))

    def _asked(self, group: str, value: Any, error: BaseException | None) -> None:
        if error is not None:
            code = str(getattr(error, "code", "") or "internal_error")
            no_leader = code in ("no_leader", "timeout", "AskTimeout")
            self._refuse(503 if no_leader else 500, "no_leader" if no_leader else code, str(error))
        elif value["granted"]:
            self.request.answer(200, b"")
        elif value.get("quorum"):
            self._refuse(423, "quorum", value["quorum"])
        else:
            held = ", ".join(value.get("holders", [])) or "others that wait for it"
            self._refuse(423, "lock_held", f"the lock of group {group} is held by {held}")

    def _refuse(self, status: int, kind: str, text: str) -> None:
        body = json.dumps({"kind": kind, "value": text}).encode()
        self.request.answer(status, body, headers={"Retry-After": "5"} if status == 503 else None)


def _client(body: bytes) -> tuple[str, str]:
    """(group, host) of a body; raises ``ValueError``."""
    if len(body) > BODY_MAX:
        raise ValueError(f"a body has at most {BODY_MAX} bytes")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    params = value.get("client_params") if isinstance(value, dict) else None
    if not isinstance(params, dict):
        raise ValueError("the body has no client_params")
    host, group = params.get("id"), params.get("group")
    if not isinstance(host, str) or not 0 < len(host) <= ID_MAX or not host.isprintable():
        raise ValueError(f"client_params.id is a string of 1 to {ID_MAX} printable characters")
    if not isinstance(group, str):
        raise ValueError("client_params.group is a string")
    return group, host
