"""The web page of a host: the fleet at a look, in a browser; it shows and changes nothing.

The page is three files beside this module, and asks for what it shows once a second.  Reading is
for everybody who reaches the door, as with fleet's API; with authentication on, for its users.
Logs and contents of units are not shown here: they may hold what is nobody else's business.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from actors.command import Command

from .http import Request
from .v2_door import identify

#: Seconds for which one look serves all who ask.
LOOK_S = 0.5
#: Rows of units in one answer; those in trouble come first.
ROWS_MAX = 1000
#: Events that the page gets at once.
EVENTS_MAX = 100
#: Parts of a look, and the verbs that give them.
PARTS = {
    "cluster": "cluster.status", "machines": "machine.list", "units": "unit.list", "locks": "lock.status",
    "rollouts": "unit.rollouts",
}  # fmt: skip
_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"), "/ui/page.css": ("page.css", "text/css; charset=utf-8"),
    "/ui/page.js": ("page.js", "text/javascript; charset=utf-8"), "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
}  # fmt: skip
#: Nothing from elsewhere, nothing inline, in no other page's frame.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
}  # fmt: skip
#: What of a unit's row the page shows; ages and process ids would make every look another one.
_SHOWN = ("unit", "machine", "desired", "active", "sub", "health", "restarts", "hash", "result", "ports")
_TROUBLE = {"failed": 0, "activating": 2, "deactivating": 2, "reloading": 2, "inactive": 3, "active": 4}


def is_page(path: str) -> bool:
    """Whether a path belongs to the page."""
    return path == "/" or path.startswith("/ui/")


def _severity(row: dict[str, Any]) -> tuple[int, str]:
    if row["health"] == "failing":
        return 1, row["unit"]
    waits = row["desired"] == "launched" and row["active"] == "inactive"
    return (2 if waits else _TROUBLE.get(row["active"], 3)), row["unit"]


def picture(parts: dict[str, Any]) -> dict[str, Any]:
    """What the page shows, of the answers to all :data:`PARTS`; None where one was not had."""
    units = parts["units"] or []
    order = sorted(units, key=_severity)
    counts = Counter("failing" if row["health"] == "failing" else row["active"] for row in units)
    cluster = parts["cluster"]
    return {
        "cluster": None if cluster is None else {
            key: cluster[key] for key in ("name", "leader", "term", "revision", "quorum_margin", "members")
        },
        "machines": [{k: v for k, v in row.items() if k != "last_seen_s"} for row in parts["machines"] or []],
        "units": [{key: row[key] for key in _SHOWN} for row in order[:ROWS_MAX]],
        "units_in_all": len(units), "counts": dict(counts), "wanted": sum(row["desired"] == "launched" for row in units),
        "locks": [row for row in parts["locks"] or [] if row["holders"] or row["queue"]],
        "rollouts": [row for row in parts["rollouts"] or [] if not row["ended"]],
        "trouble": sorted(name for name in PARTS if parts[name] is None),
    }  # fmt: skip


class Look:
    """The last look at the fleet, and those who wait for the next: one serves everybody."""

    def __init__(self, control: Any, now: Callable[[], float]) -> None:
        """``control``: whom operators ask."""
        self._control = control
        self._now = now
        self._taken = float("-inf")
        self._body, self._tag = b"", ""
        self._waiting: list[Callable[[bytes, str], None]] = []

    def get(self, then: Callable[[bytes, str], None]) -> None:
        """``then(body, tag)``: the JSON of :func:`picture`, and what changes with it."""
        if self._now() - self._taken < LOOK_S:
            then(self._body, self._tag)
            return
        self._waiting.append(then)
        if len(self._waiting) > 1:
            return
        parts: dict[str, Any] = {}
        for name, verb in PARTS.items():
            self._control.ask_back(Command(verb, {}), self._taker(parts, name))

    def _taker(self, parts: dict[str, Any], name: str) -> Callable[[Any, BaseException | None], None]:
        def take(value: Any, error: BaseException | None) -> None:
            parts[name] = value if error is None else None
            if len(parts) == len(PARTS):
                self._done(parts)

        return take

    def _done(self, parts: dict[str, Any]) -> None:
        self._body = json.dumps(picture(parts), separators=(",", ":")).encode()
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        self._taken = self._now()
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then(self._body, self._tag)


class PageRequest:
    """One request of the page, or for it."""

    def __init__(self, door: Any, request: Request) -> None:
        self.door = door
        self.request = request

    def run(self) -> None:
        """Find who asks, then what."""
        request = self.request
        if request.method not in ("GET", "HEAD"):
            self._text(405, "the page shows and changes nothing: GET and HEAD are accepted", {"Allow": "GET, HEAD"})
            return
        identify(self.door, request, self._identified)

    def _identified(self, known: bool, user: str | None) -> None:
        if not known or (user is None and self.door.access.book().enabled):
            self._text(401, "a user's name and password are needed", {"WWW-Authenticate": 'Basic realm="Argosy"'})
            return
        path = self.request.path
        asset = _ASSETS.get(path)
        if asset is not None:
            name, kind = asset
            self.request.answer(200, (files(__package__) / "page" / name).read_bytes(), kind, _HEADERS)
        elif path == "/ui/v1/overview":
            self.door.look.get(self._overview)
        elif path == "/ui/v1/events":
            self._events()
        elif path == "/ui/v1/unit":
            self._unit()
        else:
            self._text(404, "there is no such page; / is the one there is")

    def _overview(self, body: bytes, tag: str) -> None:
        if self.request.header("if-none-match") == tag:
            self.request.answer(304, b"", "", {**_HEADERS, "ETag": tag})
        else:
            self.request.answer(200, body, headers={**_HEADERS, "ETag": tag})

    def _events(self) -> None:
        """``?since=REVISION``: what happened after it; without it the near past."""
        since = self._argument("since")
        if since and not (since.isdigit() and len(since) < 20):
            self._text(400, f"since: {since[:40]!r} is not a revision")
            return
        self._ask("events", **({"since": int(since)} if since else {"lines": EVENTS_MAX}))

    def _unit(self) -> None:
        """``?name=UNIT``: why it is where it is, its runs and its moves."""
        name = self._argument("name")

        def why(value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._failed(error)
                return

            def history(past: Any, trouble: BaseException | None) -> None:
                self._json({**value, "history": past if trouble is None else None})

            self.door.control.ask_back(Command("unit.history", {"unit": name}), history)

        self.door.control.ask_back(Command("unit.why", {"unit": name}), why)

    def _argument(self, name: str) -> str:
        return parse_qs(self.request.query).get(name, [""])[0]

    def _ask(self, verb: str, **args: Any) -> None:
        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._failed(error)
            else:
                self._json(value)

        self.door.control.ask_back(Command(verb, args), done)

    def _failed(self, error: BaseException) -> None:
        code = getattr(error, "code", "")
        status = {"bad_request": 400, "missing": 404, "compacted": 410}.get(code, 503)
        self._text(status, str(error) or code)

    def _json(self, value: Any) -> None:
        self.request.answer(200, json.dumps(value, separators=(",", ":")).encode(), headers=_HEADERS)

    def _text(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        self.request.answer(status, text.encode() + b"\n", "text/plain; charset=utf-8", {**_HEADERS, **(headers or {})})
