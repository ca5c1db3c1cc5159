"""fleet's HTTP API, ``/fleet/v1`` (and ``/v1-alpha``), as fleet 1.0 spoke it to fleetctl.

A request is one or two of the operators' verbs, asked of this host's control actor.  Reading is
for everybody who reaches the door; what changes something comes from a process of root, or of the
host's own user, on this host (or, with authentication on, from etcd's root user).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote

from actors.command import Command
from fleet import names, syntax

from .http import Request
from .v2_door import identify

#: Entities of one page (fleet's token_limit).
PAGE = 100
#: Bytes of one request.
BODY_MAX = 1024 * 1024
_STATES = {"inactive": "unit.unload", "loaded": "unit.load", "launched": "unit.start"}
#: Statuses of refusals, by their code.
_STATUS = {"bad_request": 400, "missing": 404, "failed": 409, "no_leader": 503, "timeout": 503, "AskTimeout": 503}
PREFIXES = ("/fleet/v1/", "/v1-alpha/")


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FleetRequest:
    """One request."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request
        self._may_change = False

    def run(self) -> None:
        """Find who asks, then what."""
        identify(self.door, self.request, self._identified)

    def _identified(self, known: bool, user: str | None) -> None:
        request = self.request
        prefix = next(prefix for prefix in PREFIXES if request.path.startswith(prefix))
        parts = [unquote(part) for part in request.path[len(prefix) :].split("/") if part]
        is_open = not self.door.access.book().enabled
        # as fleet's own socket was: for root, and who runs the host; a page in a browser speaks for others
        is_here = request.method not in ("GET", "HEAD") and request.user in (0, os.geteuid()) and not request.header("origin")
        self._may_change = is_here if is_open else self.door.access.is_root(user)
        try:
            if not known or (not is_open and user is None):
                raise _Refused(401, "who asks is not known")
            function = _ROUTES.get((request.method, parts[0] if parts else "", len(parts)))
            if function is None:
                exists = any(route[1:] == (parts[0] if parts else "", len(parts)) for route in _ROUTES)
                raise _Refused(405 if exists else 404, "method not allowed" if exists else "not found")
            if request.method not in ("GET", "HEAD") and not self._may_change:
                raise _Refused(403, "changes are accepted from root on this host, or with authentication from the root user; use argosy from elsewhere")
            function(self, *parts[1:])
        except _Refused as error:
            self._refuse(error.status, str(error))

    def _refuse(self, status: int, text: str) -> None:
        self._reply(status, {"error": {"code": status, "message": text}})

    def _reply(self, status: int, value: Any) -> None:
        body = b"" if value is None else json.dumps(value, separators=(",", ":")).encode()
        self.request.answer(status, body, "application/json" if body else "")

    def _ask(self, verb: str, then: Callable[[Any], None], **args: Any) -> None:
        """Ask an operator's verb; what is refused is answered."""

        def done(value: Any, error: BaseException | None) -> None:
            try:
                if error is not None:
                    code = getattr(error, "code", "")
                    raise _Refused(_STATUS.get(code, 400 if code in ("unit_file", "too_large") else 500), str(error))
                then(value)
            except _Refused as refused:
                self._refuse(refused.status, str(refused))

        self.door.control.ask_back(Command(verb, args), done)

    def _body(self) -> Any:
        request = self.request
        if request.header("content-type").split(";")[0].strip().lower() != "application/json":
            raise _Refused(415, "Content-Type is to be application/json")
        if len(request.body) > BODY_MAX:
            raise _Refused(413, f"more than {BODY_MAX} bytes")
        try:
            return json.loads(request.body)
        except (ValueError, RecursionError) as error:
            raise _Refused(400, f"the body is not JSON: {error}") from None

    def _page(self, name: str, entities: list[Any]) -> None:
        """One page of a listing; the token of the next has its size and number."""
        query = dict(parse_qsl(self.request.query, keep_blank_values=True))
        size, number = PAGE, 1
        if "nextPageToken" in query:
            size, number = _decoded(query["nextPageToken"])
        begin = (number - 1) * size
        page: dict[str, Any] = {name: entities[begin : begin + size]}
        if begin + size < len(entities):
            page["nextPageToken"] = _token(size, number + 1)
        self._reply(200, page)

    # -- units -------------------------------------------------------------------------------

    def _units(self) -> None:
        self._entities(lambda found: self._page("units", found))

    def _unit(self, name: str) -> None:
        def have(found: list[dict[str, Any]]) -> None:
            one = next((entity for entity in found if entity["name"] == name), None)
            if one is None:
                raise _Refused(404, "unit does not exist")
            self._reply(200, one)

        self._entities(have)

    def _entities(self, then: Callable[[list[dict[str, Any]]], None]) -> None:
        def have(found: list[dict[str, Any]]) -> None:
            then([_entity(record) for record in found if record["unit"].endswith(".service")])

        self._ask("unit.records", have)

    def _put(self, name: str) -> None:
        """Create, replace, or change what is desired: 201, 201, 204."""
        body = self._body()
        if not isinstance(body, dict) or not set(body) <= {"name", "desiredState", "options", "currentState", "machineID"}:
            raise _Refused(400, "a unit has name, desiredState and options")
        if body.get("name", name) != name:
            raise _Refused(400, f"the body is about {body['name']!r}, the path about {name!r}")
        desired, options = body.get("desiredState") or "", body.get("options")
        if not isinstance(desired, str) or (desired and desired not in _STATES):
            raise _Refused(400, f"desiredState {desired!r}: one of {', '.join(_STATES)}")
        try:
            full = names.parse(name).full
        except names.NameError_ as error:
            raise _Refused(400, str(error)) from None
        if full != name:
            raise _Refused(400, f"{name!r}: a unit's name ends in .service or .timer")
        content = _content(options) if options else ""

        def have(found: list[dict[str, Any]]) -> None:
            stored = next((record for record in found if record["unit"] == name), None)
            if stored is None and not content:
                raise _Refused(409, "unit does not exist and options field empty")
            if stored is None and not desired:
                raise _Refused(400, "must set desiredState of a new unit")
            same = not content or (stored is not None and _pairs(stored["content"]) == _pairs(content))
            if stored is not None and same and not desired:
                raise _Refused(400, "must set desiredState, or other options")
            if names.parse(name).is_template and desired not in ("", "inactive"):
                raise _Refused(400, f"cannot activate template {name!r}")

            def submitted(_: Any) -> None:
                after = 204 if stored is not None and same else 201
                if not desired or desired == (stored or {"desired": "inactive"})["desired"]:
                    self._reply(after, None)
                else:
                    self._ask(_STATES[desired], lambda _: self._reply(after, None), units=[name], no_block=True)

            if same:
                submitted(None)
            else:
                self._ask("unit.submit", submitted, files=[{"name": name, "content": content}], replace=True)

        self._ask("unit.records", have)

    def _delete(self, name: str) -> None:
        self._ask("unit.destroy", lambda _: self._reply(204, None), units=[name], no_block=True)

    # -- states and machines -------------------------------------------------------------------

    def _states(self) -> None:
        query = dict(parse_qsl(self.request.query))
        self._found_states(lambda found: self._page("states", [
            state for state in found
            if query.get("machineID", state["machineID"]) == state["machineID"] and query.get("unitName", state["name"]) == state["name"]
        ]))  # fmt: skip

    def _state(self, name: str) -> None:
        def have(found: list[dict[str, Any]]) -> None:
            one = next((state for state in found if state["name"] == name), None)
            if one is None:
                raise _Refused(404, "unit does not exist")
            self._reply(200, one)

        self._found_states(have)

    def _found_states(self, then: Callable[[list[dict[str, Any]]], None]) -> None:
        def have(found: list[dict[str, Any]]) -> None:
            then([
                {"name": record["unit"], "hash": state["hash"], "machineID": state["machine"],
                 "systemdLoadState": state["load"], "systemdActiveState": state["active"], "systemdSubState": state["sub"]}
                for record in found for state in record["states"]
            ])  # fmt: skip

        self._ask("unit.records", have)

    def _machines(self) -> None:
        def have(found: list[dict[str, Any]]) -> None:
            self._page("machines", [
                {"id": row["id"], "primaryIP": row["address"].rpartition(":")[0].strip("[]"), "metadata": row["metadata"]}
                for row in sorted(found, key=lambda row: str(row["id"])) if row["state"] != "lost"
            ])  # fmt: skip

        self._ask("machine.list", have)

    def _patch(self) -> None:
        """JSON Patch of metadata: all operations are checked before the first is done."""
        body = self._body()
        if not isinstance(body, list) or not body:
            raise _Refused(400, "a list of operations")
        changes: dict[str, dict[str, str]] = {}
        for operation in body:
            machine, key, value = _operation(operation)
            changes.setdefault(machine, {})[key] = value
        left = sorted(changes)

        def following(_: Any) -> None:
            if not left:
                self._reply(204, None)
                return
            machine = left.pop(0)
            self._ask("machine.metadata", following, machine=machine, metadata=changes[machine])

        def have(found: list[dict[str, Any]]) -> None:
            unknown = set(changes) - {row["id"] for row in found}
            if unknown:
                raise _Refused(400, f"no machine has the id {', '.join(sorted(unknown))}")
            following(None)

        self._ask("machine.list", have)

    def _discovery(self) -> None:
        resources: dict[str, Any] = {}
        for method, resource, count in sorted(_ROUTES):
            if resource != "discovery":
                path = resource + "/{name}" * (count - 1)
                resources.setdefault(resource, {"methods": {}})["methods"][f"{method.lower()}{count}"] = {
                    "httpMethod": method, "path": path}  # fmt: skip
        self._reply(200, {
            "kind": "discovery#restDescription", "discoveryVersion": "v1", "id": "fleet:v1", "name": "schema", "version": "v1",
            "protocol": "rest", "basePath": "/fleet/v1/", "servicePath": "fleet/v1/", "resources": resources,
        })  # fmt: skip


_ROUTES: dict[tuple[str, str, int], Callable[..., None]] = {
    ("GET", "units", 1): FleetRequest._units, ("GET", "units", 2): FleetRequest._unit,  # noqa: SLF001
    ("PUT", "units", 2): FleetRequest._put, ("DELETE", "units", 2): FleetRequest._delete,  # noqa: SLF001
    ("GET", "state", 1): FleetRequest._states, ("GET", "state", 2): FleetRequest._state,  # noqa: SLF001
    ("GET", "machines", 1): FleetRequest._machines, ("PATCH", "machines", 1): FleetRequest._patch,  # noqa: SLF001
    ("GET", "discovery", 1): FleetRequest._discovery,  # noqa: SLF001
}  # fmt: skip


def _entity(record: dict[str, Any]) -> dict[str, Any]:
    """A unit as fleet shows it; ``launched`` is said of what really runs."""
    states = record["states"]
    current = "inactive"
    if states:
        runs = any(state["active"] in ("active", "activating", "reloading") for state in states)
        current = "launched" if runs else "loaded"
    entity = {
        "name": record["unit"], "desiredState": record["desired"], "currentState": current,
        "options": [{"section": s, "name": k, "value": v} for s, k, v in _pairs(record["content"])],
    }  # fmt: skip
    if record["machines"] and not record["is_global"]:
        entity["machineID"] = record["machines"][0]
    return entity


def _pairs(content: str) -> list[tuple[str, str, str]]:
    return [(setting.section, setting.key, setting.value) for setting in syntax.read("", content).settings]


def _content(options: Any) -> str:
    """A unit file of fleet's options, in their order."""
    if not isinstance(options, list) or not options:
        raise _Refused(400, "options is a list of section, name and value")
    lines: list[str] = []
    section = None
    for option in options:
        if not isinstance(option, dict) or set(option) != {"section", "name", "value"} or not all(
            isinstance(text, str) for text in option.values()
        ):
            raise _Refused(400, "an option has a section, a name and a value, which are strings")
        if any("\n" in text or "\r" in text for text in (option["section"], option["name"])) or "]" in option["section"]:
            raise _Refused(400, "a section or a name is one line")
        if option["section"] != section:
            section = option["section"]
            lines += ([""] if lines else []) + [f"[{section}]"]
        lines.append(f"{option['name']}={_continued(option['value'])}")
    content = "\n".join(lines) + "\n"
    try:
        unitfile_pairs = _pairs(content)
    except ValueError as error:
        raise _Refused(400, str(error)) from None
    if len(unitfile_pairs) != len(options):
        raise _Refused(400, "these options make no unit file: a value may not begin a line with a comment, or end with a backslash")
    return content


def _continued(value: str) -> str:
    """A value of several lines as systemd writes it."""
    return " \\\n".join(line.rstrip("\\ ") for line in value.replace("\r", "").split("\n"))


def _operation(operation: Any) -> tuple[str, str, str]:
    """(machine, key, value) of a JSON Patch operation; an empty value takes the key away."""
    if not isinstance(operation, dict):
        raise _Refused(400, "an operation has op, path and value")
    kind, path, value = operation.get("op"), operation.get("path"), operation.get("value")
    if kind not in ("add", "remove", "replace"):
        raise _Refused(400, f"op {kind!r}: add, remove or replace")
    parts = path.split("/") if isinstance(path, str) else []
    if len(parts) != 4 or parts[0] or parts[2] != "metadata" or not parts[1] or not parts[3]:
        raise _Refused(400, f"path {path!r}: /MACHINE/metadata/KEY")
    if kind == "remove":
        return parts[1], parts[3], ""
    if isinstance(value, dict):  # as fleet's code had it
        value = value.get("value")
    if not isinstance(value, str) or not value:
        raise _Refused(400, f"{kind} {path}: value is a string that is not empty")
    return parts[1], parts[3], value


def _token(size: int, number: int) -> str:
    return base64.urlsafe_b64encode(size.to_bytes(2, "little") + number.to_bytes(2, "little")).decode()


def _decoded(token: str) -> tuple[int, int]:
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    size, number = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:4], "little")
    if len(raw) != 4 or not 1 <= size <= PAGE or not number:
        raise _Refused(400, "invalid value for nextPageToken")
    return size, number


