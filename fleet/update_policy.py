"""When machines may take an update, and how long its steps may take: the cluster's own rules.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from . import calendar, syntax

#: Windows, blocking units and commands that a policy may have.
RULES_MAX = 50
#: Seconds by which a zone changes its clock, at most, and begins of windows that are looked at for it.
CHANGE_S_MAX, STARTS_MAX = 3 * 3600.0, 2000


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which machines may reboot: from each elapse of a calendar on, for so many seconds.

    A calendar has its own time zone, or UTC.  There is one window for each elapse on the zone's wall clock: where
    a clock change leaves its hour out it begins as much later, and an hour that comes twice begins one window.
    """

    when: str
    length: float

    def is_open(self, now: float) -> bool:
        """Whether ``now`` is inside."""
        return self._first_start(now - self.length) <= now

    def opens(self, now: float) -> float:
        """When it opens next."""
        return self._first_start(now)

    def _first_start(self, after: float) -> float:
        """The first begin after a moment."""
        event = calendar.parse(self.when)
        zone = calendar.zone_named(event.zone or "UTC")
        on_the_wall = replace(event, zone="UTC")  # as if its clock were never changed
        shown = datetime.fromtimestamp(after, zone).replace(tzinfo=timezone.utc).timestamp() - CHANGE_S_MAX
        begins: list[float] = []
        for _ in range(STARTS_MAX):
            found = on_the_wall.next_after(shown, timezone.utc)
            if found is None:
                break
            shown = found
            begin = datetime.fromtimestamp(found, timezone.utc).replace(tzinfo=zone, fold=0).timestamp()
            if begin > after:
                begins.append(begin)  # a later one may begin before one that was put off
                if shown > datetime.fromtimestamp(begins[0], zone).replace(tzinfo=timezone.utc).timestamp():
                    break
        else:  # they begin all the time
            found = event.next_after(after, timezone.utc)
            return found if found is not None else float("inf")
        return min(begins, default=float("inf"))


def window(text: str) -> Window:
    """``CALENDAR for TIME``, as ``Sat,Sun 22:00 Europe/Berlin for 4h``; raises ``ValueError``."""
    when, word, length = text.rpartition(" for ")
    if not word:
        raise ValueError(f"{text!r} is not CALENDAR for TIME, like 'Mon..Fri 22:00 Europe/Berlin for 4h'")
    calendar.parse(when)
    seconds = syntax.duration(length)
    if not 60 <= seconds <= 7 * 86400:
        raise ValueError(f"{text!r}: a window is between a minute and a week long")
    return Window(when, seconds)


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds; no window at all is an open one."""

    windows: tuple[str, ...] = ()
    #: patterns of units of which none may run on a machine that reboots
    block_units: tuple[str, ...] = ()
    #: commands that must succeed on it; one that cannot be run, or takes too long, blocks
    block_commands: tuple[str, ...] = ()
    #: ``URL EXPRESSION``: what a Prometheus server must give nothing for; one that does not answer blocks
    block_queries: tuple[str, ...] = ()
    #: whether somebody who is logged in blocks
    block_users: bool = False
    drain_limit: float = 120.0
    trial_limit: float = 120.0
    commit_after: float = 10.0
    #: bytes a second that one machine fetches; 0 is no limit
    rate: int = 0
    parsed: tuple[Window, ...] = field(default=(), compare=False)

    def record(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "windows": list(self.windows), "block_units": list(self.block_units), "block_commands": list(self.block_commands),
            "block_queries": list(self.block_queries), "block_users": self.block_users, "drain_limit": self.drain_limit, "trial_limit": self.trial_limit, "commit_after": self.commit_after, "rate": self.rate,
        }  # fmt: skip

    def blockers(self) -> list[tuple[str, str]]:
        """What is to be looked at on a machine that would reboot: (kind of check, target)."""
        users = [("users", "")] if self.block_users else []
        return [*users, *(("query", text) for text in self.block_queries), *(("exec", text) for text in self.block_commands)]

    def closed(self, now: float) -> str:
        """Why no machine may reboot at this moment; empty if one may."""
        if not self.parsed or any(one.is_open(now) for one in self.parsed):
            return ""
        opens = min(one.opens(now) for one in self.parsed)
        return f"the next window opens in {(opens - now) / 3600:.1f} h" if opens < float("inf") else "no window opens any more"


def policy(record: Mapping[str, Any]) -> Policy:
    """A policy as it is stored; raises ``ValueError``."""
    values = {name: record[name] for name in Policy.__dataclass_fields__ if name in record and name != "parsed"}
    for name in ("windows", "block_units", "block_commands", "block_queries"):
        listed = values.get(name, ())
        if not isinstance(listed, list | tuple) or len(listed) > RULES_MAX or not all(isinstance(text, str) and text for text in listed):
            raise ValueError(f"{name}: at most {RULES_MAX} texts")
        values[name] = tuple(listed)
    for name in ("drain_limit", "trial_limit", "commit_after"):
        value = values.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400 or (name != "commit_after" and not value):
            raise ValueError(f"{name}: seconds, up to a day")
    for text in values["block_queries"]:
        server, _, expression = text.partition(" ")
        parts = urlsplit(server)
        if parts.username is not None or parts.password is not None:
            raise ValueError("block_queries: no name and no password in the URL, for it is shown to everybody; let the server's network guard it")
        if parts.scheme not in ("http", "https") or not parts.hostname or not expression.strip():
            raise ValueError(f"block_queries: {text!r} is not URL EXPRESSION, like 'http://prometheus:9090 ALERTS{{severity=\"page\"}}'")
    if type(values.get("block_users", False)) is not bool:
        raise ValueError("block_users: true or false")
    if not isinstance(values.get("rate", 0), int) or not 0 <= values.get("rate", 0) < 2**40:
        raise ValueError("rate: bytes a second, or 0 for no limit")
    made = Policy(**values, parsed=tuple(window(text) for text in values["windows"]))
    if made.commit_after >= made.trial_limit:
        raise ValueError("commit_after must be less than trial_limit: no version could be kept")
    return made
