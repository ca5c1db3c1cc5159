"""Timer units: what a ``.timer`` file says, and when it elapses next (systemd.timer(5)).

Pure: the record of what happened so far goes in, a moment comes out.  A timer belongs to the
whole cluster, not to a machine, so what systemd counts from a machine's boot counts here from
when the timer was started.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from . import names, syntax
from .calendar import Calendar, parse
from .dependencies import RELATIONS

#: Keys of systemd that do nothing here, with the reason.
IGNORED = {
    "Unit": {
        "Documentation": "it is for readers of the file", "DefaultDependencies": "there are none",
        **dict.fromkeys(RELATIONS, "a timer depends on no unit; the unit that it starts may"),
    },
    "Timer": {
        "WakeSystem": "no machine of the cluster is asleep",
        "OnClockChange": "the clocks of many machines are not one clock",
        "OnTimezoneChange": "write the time zone into OnCalendar=",
        "RemainAfterElapse": "a timer stays until it is stopped or destroyed",
    },
    "Install": dict.fromkeys(
        ("WantedBy", "RequiredBy", "Also", "Alias"), "a timer is started by the cluster, not by enabling it"
    ),
}


#: Elapses of one calendar within its random delay that are looked at before the rest is passed over.
DELAYED_MAX = 1000


@dataclass(slots=True)
class TimerSpec:
    """Everything a timer file says; times in seconds."""

    name: names.UnitName
    description: str = ""
    #: what it starts; the service of its own name when it says nothing
    unit: str = ""
    calendars: list[Calendar] = field(default_factory=list)
    on_active: list[float] = field(default_factory=list)  # OnActiveSec=, OnBootSec=, OnStartupSec=
    on_unit_active: list[float] = field(default_factory=list)
    on_unit_inactive: list[float] = field(default_factory=list)
    accuracy: float = 60.0
    randomized_delay: float = 0.0
    fixed_random_delay: bool = False
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """What happened so far, in Unix time; kept in the brain and written only when it changes."""

    since: float  # the timer was started
    last: float = 0.0  # the elapse that was acted on last, or passed over
    fired: float = 0.0  # when that was


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of the unit that the timer starts, in Unix time; 0 for never."""

    active_since: float = 0.0
    inactive_since: float = 0.0


def next_elapse(spec: TimerSpec, record: Record, target: Target, now: float) -> float | None:
    """When to start the unit, which may be past; None while there is no such moment.

    A calendar's elapse that nobody acted on in time (the timer's accuracy) is passed over,
    unless Persistent= asks for one start in its stead.
    """
    found: list[float] = []
    for calendar in spec.calendars:
        moment = _calendar_elapse(spec, calendar, max(record.last, record.since), now)
        if moment is not None:
            found.append(moment)
    started = [record.since + seconds for seconds in spec.on_active]
    found += [moment + _delay(spec, moment) for moment in started if moment > record.last]
    ran = max(record.fired, target.active_since)
    if ran:
        found += [moment + _delay(spec, moment) for s in spec.on_unit_active if (moment := ran + s) > record.last]
    if target.inactive_since:
        ended = [target.inactive_since + seconds for seconds in spec.on_unit_inactive]
        found += [moment + _delay(spec, moment) for moment in ended if moment > record.last]
    return min(found, default=None)


def _calendar_elapse(spec: TimerSpec, calendar: Calendar, base: float, now: float) -> float | None:
    """The next elapse of a calendar after ``base``, with its delay."""
    elapse = calendar.next_after(base)
    if spec.persistent:
        return None if elapse is None else elapse + _delay(spec, elapse)
    oldest = now - spec.accuracy
    if elapse is not None and elapse < oldest - spec.randomized_delay:
        elapse = calendar.next_after(oldest - spec.randomized_delay)
    for _ in range(DELAYED_MAX):
        if elapse is None or elapse + _delay(spec, elapse) >= oldest:
            break
        elapse = calendar.next_after(elapse)
    else:
        elapse = calendar.next_after(oldest)
    return None if elapse is None else elapse + _delay(spec, elapse)


def _delay(spec: TimerSpec, elapse: float) -> float:
    """RandomizedDelaySec=: the same on every machine, so that no two leaders disagree."""
    if not spec.randomized_delay:
        return 0.0
    seed = spec.name.full if spec.fixed_random_delay else f"{spec.name.full} {elapse:.6f}"
    digest = hashlib.sha256(seed.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 * spec.randomized_delay


# -- the file --------------------------------------------------------------------------------------


def _text(attribute: str) -> Any:
    return lambda loader, value: setattr(loader.spec, attribute, loader.expand(value))


def _set(attribute: str, parse_: Any) -> Any:
    return lambda loader, value: setattr(loader.spec, attribute, parse_(value))


def _reset(spec: TimerSpec) -> None:
    """An empty On...= forgets all of them, of every kind."""
    for listed in (spec.calendars, spec.on_active, spec.on_unit_active, spec.on_unit_inactive):
        listed.clear()


def _span(attribute: str) -> Any:
    def take(loader: Any, value: str) -> None:
        if not value:
            _reset(loader.spec)
        else:
            getattr(loader.spec, attribute).append(syntax.duration(value))

    return take


def _calendar(loader: Any, value: str) -> None:
    if not value:
        _reset(loader.spec)
    else:
        loader.spec.calendars.append(parse(loader.expand(value)))


def _unit(loader: Any, value: str) -> None:
    name = names.parse(loader.expand(value))
    if name.suffix != ".service":
        raise ValueError(f"{name.full}: a timer starts a service")
    loader.spec.unit = name.full


KEYS: dict[str, dict[str, Any]] = {
    "Unit": {"Description": _text("description")},
    "Timer": {
        "OnCalendar": _calendar,
        "OnActiveSec": _span("on_active"),
        "OnBootSec": _span("on_active"),
        "OnStartupSec": _span("on_active"),
        "OnUnitActiveSec": _span("on_unit_active"),
        "OnUnitInactiveSec": _span("on_unit_inactive"),
        "AccuracySec": _set("accuracy", syntax.duration),
        "RandomizedDelaySec": _set("randomized_delay", syntax.duration),
        "FixedRandomDelay": _set("fixed_random_delay", syntax.boolean),
        "Persistent": _set("persistent", syntax.boolean),
        "Unit": _unit,
    },
    "Install": {},
}


def finish(spec: TimerSpec) -> list[tuple[str, str]]:
    """Rules between keys: (key, what is wrong)."""
    if not spec.unit:
        spec.unit = spec.name.stem + ".service"
    on = (spec.calendars, spec.on_active, spec.on_unit_active, spec.on_unit_inactive)
    if not any(on):
        return [("OnCalendar", "a timer needs at least one On...= key")]
    if spec.persistent and not spec.calendars:
        return [("Persistent", "is for OnCalendar= only")]
    return []
