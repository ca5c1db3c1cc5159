"""systemd's calendar events: parsing, the next elapse, the normalized form (systemd.time(7)).

Pure: it reads no clock and keeps no state. The moment is always given, the zone too unless local time is
wanted. Agrees with systemd 252, also at the edges of daylight saving time; the few differences that stay
are listed with their reasons in the tests.
"""

from __future__ import annotations

import math
import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

#: Longest expression, in characters (fleet's limit).
TEXT_CHARS_MAX = 4096
#: Entries one list may have (systemd's limit).
LIST_ENTRIES_MAX = 241
#: Years an expression may name; after the last one nothing elapses.
YEAR_MIN = 1970
YEAR_MAX = 2199

_SECOND = 1_000_000
#: No zone is still in YEAR_MAX then, in microseconds of Unix time.
_NEVER = int(datetime(YEAR_MAX + 1, 1, 3, tzinfo=timezone.utc).timestamp()) * _SECOND
_NUMBER_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One entry of a list: ``start``, ``start..stop``, ``start/step`` or ``start..stop/step``.

    ``stop`` is -1 and ``step`` 0 where there is none. Seconds are in microseconds.
    """

    start: int
    stop: int = -1
    step: int = 0


#: A field's entries, sorted; empty means any value.
Spans = tuple[Span, ...]
_ZERO: Spans = (Span(0),)
_ANY_SECOND: Spans = (Span(0, -1, _SECOND),)


@dataclass(frozen=True, slots=True)
class Calendar:
    """A calendar event: the local times at which it elapses."""

    weekdays: tuple[int, ...] = ()  # Monday is 0; empty means any
    year: Spans = ()
    month: Spans = ()
    day: Spans = ()
    from_month_end: bool = False  # the days count from the end of the month, 1 is the last
    hour: Spans = ()
    minute: Spans = ()
    microsecond: Spans = _ANY_SECOND  # within the minute
    zone: str = ""  # UTC or an IANA name; empty means the caller's

    def next_after(self, moment: float, zone: tzinfo | None = None) -> float | None:
        """The first elapse strictly after a Unix time in seconds; None when there is none.

        Counted in the calendar's own zone, else in ``zone``, else in local time. The local clock is followed
        forward as systemd does: a local time that a clock change leaves out does not elapse, and one that
        it doubles elapses once, the first time, unless ``moment`` lies in the second pass already.
        """
        if not math.isfinite(moment):
            raise ValueError(f"{moment} is not a moment: a finite Unix time in seconds is")
        where = zone_named(self.zone) if self.zone else zone
        numerator, denominator = float(moment).as_integer_ratio()
        base = max(numerator * _SECOND // denominator, -1)
        while base < _NEVER:
            found = self._elapse_from(base + 1, where)
            if found is None:
                return None
            if found / _SECOND > moment:
                return found / _SECOND
            base = found  # the same float: a float is coarser than the elapse's fraction
        return None

    def normalized(self) -> str:
        """The expression as ``systemd-analyze calendar`` prints its normalized form."""
        words = [_weekdays_text(self.weekdays)] if self.weekdays else []
        mark = "~" if self.from_month_end else "-"
        words.append(f"{_text(self.year, 4)}-{_text(self.month)}{mark}{_text(self.day)}")
        words.append(f"{_text(self.hour)}:{_text(self.minute)}:{_seconds_text(self.microsecond)}")
        if self.zone:
            words.append(self.zone)
        return " ".join(words)

    def _elapse_from(self, earliest: int, zone: tzinfo | None) -> int | None:
        """The first elapse at or after an instant, both in microseconds."""
        start = _wall(earliest, zone)
        while (wall := self._wall_from(start)) is not None:
            instant = _instant(wall, zone)
            if instant < earliest:
                instant = _instant(wall.replace(fold=1), zone)
            if _wall(instant, zone) == wall:
                return instant
            start = _gap_end(wall, zone)
            assert start > wall, "the search went backwards"
        return None

    def _wall_from(self, start: datetime) -> datetime | None:
        """The first matching local time at or after ``start``, whether a clock ever shows it or not."""
        day = self._day_from(start.year, start.month, start.day)
        if day == start.date():
            time = self._time_from(start.hour, start.minute, start.second * _SECOND + start.microsecond)
            if time is not None:
                return _combine(day, time)
            after = day + timedelta(days=1)
            day = self._day_from(after.year, after.month, after.day)
        if day is None:
            return None
        time = self._time_from(0, 0, 0)
        assert time is not None, "every calendar has a time of day"
        return _combine(day, time)

    def _day_from(self, year: int, month: int, day: int) -> date | None:
        while (found_year := _first(self.year, year, YEAR_MAX)) is not None:
            if found_year > year:
                month, day = 1, 1
            while (found_month := _first(self.month, month, 12)) is not None:
                if found_month > month:
                    day = 1
                found_day = self._day_in(found_year, found_month, day)
                if found_day is not None:
                    return date(found_year, found_month, found_day)
                month, day = found_month + 1, 1
            year, month, day = found_year + 1, 1, 1
        return None

    def _day_in(self, year: int, month: int, day: int) -> int | None:
        """The first matching day of one month, from ``day`` on."""
        first_weekday, length = monthrange(year, month)
        spans = tuple(_mirrored(span, length) for span in self.day) if self.from_month_end else self.day
        while (found := _first(spans, day, length)) is not None:
            if not self.weekdays or (first_weekday + found - 1) % 7 in self.weekdays:
                return found
            day = found + 1
        return None

    def _time_from(self, hour: int, minute: int, microsecond: int) -> tuple[int, int, int] | None:
        while (found_hour := _first(self.hour, hour, 23)) is not None:
            if found_hour > hour:
                minute, microsecond = 0, 0
            while (found_minute := _first(self.minute, minute, 59)) is not None:
                if found_minute > minute:
                    microsecond = 0
                found = _first(self.microsecond, microsecond, 60 * _SECOND - 1)
                if found is not None:
                    return found_hour, found_minute, found
                minute, microsecond = found_minute + 1, 0
            hour, minute, microsecond = found_hour + 1, 0, 0
        return None


def parse(text: str) -> Calendar:
    """Read an expression; raises ``ValueError`` naming the part and what is accepted there."""
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(f"calendar {text[:40]!r}...: at most {TEXT_CHARS_MAX} characters")
    try:
        return _parse(text)
    except ValueError as error:
        raise ValueError(f"calendar {text!r}: {error}") from None


# --- searching


def _first(spans: Spans, at: int, last: int) -> int | None:
    """The smallest value from ``at`` to ``last`` that an entry names."""
    if at > last:
        return None
    if not spans:
        return at
    found = min((value for span in spans if (value := _first_of(span, at)) is not None), default=None)
    return found if found is not None and found <= last else None


def _first_of(span: Span, at: int) -> int | None:
    if at <= span.start:
        return span.start
    if not span.step:
        return None
    value = at + (span.start - at) % span.step
    return value if span.stop < 0 or value <= span.stop else None


def _mirrored(span: Span, length: int) -> Span:
    """Days counted from the end of a month of ``length`` days, as days from its beginning."""
    if span.stop < 0:
        return Span(length + 1 - span.start, -1, span.step)
    return Span(length + 1 - span.stop, length + 1 - span.start, span.step)


def _combine(day: date, time: tuple[int, int, int]) -> datetime:
    hour, minute, microsecond = time
    return datetime(day.year, day.month, day.day, hour, minute, *divmod(microsecond, _SECOND))


def _wall(instant: int, zone: tzinfo | None) -> datetime:
    """What a clock in the zone shows, without a zone; ``fold`` is 1 in the second pass of a doubled time."""
    seconds, rest = divmod(instant, _SECOND)
    return datetime.fromtimestamp(seconds, zone).replace(tzinfo=None, microsecond=rest)


def _instant(wall: datetime, zone: tzinfo | None) -> int:
    whole = wall.replace(microsecond=0, tzinfo=zone)
    return round(whole.timestamp()) * _SECOND + wall.microsecond


def _gap_end(wall: datetime, zone: tzinfo | None) -> datetime:
    """The first time a clock shows after a gap that ``wall`` lies in."""
    low = _instant(wall.replace(fold=1), zone) // _SECOND  # before the gap, see PEP 495
    high = _instant(wall.replace(fold=0), zone) // _SECOND  # after it
    while high - low > 1:
        middle = (low + high) // 2
        if _wall(middle * _SECOND, zone) > wall:
            high = middle
        else:
            low = middle
    return _wall(high * _SECOND, zone)


# --- reading

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_WEEKDAY_NUMBERS = {name.lower(): n for n, full in enumerate(_WEEKDAYS) for name in (full, full[:3])}
_WEEKDAY = re.compile(r"([a-z]+)(?:(?:\.\.|-)([a-z]+))?")
_DATE = re.compile(r"(?:(?P<year>[^-~]+)-)?(?P<month>[^-~]+)(?P<mark>[-~])(?P<day>[^-~]+)")
_INTEGER = r"([0-9]+)"
_DECIMAL = r"([0-9]+(?:\.[0-9]+)?)"
_INTEGERS = re.compile(rf"{_INTEGER}(?:\.\.{_INTEGER})?(?:/{_INTEGER})?")
_DECIMALS = re.compile(rf"{_DECIMAL}(?:\.\.{_DECIMAL})?(?:/{_DECIMAL})?")

_MIDNIGHT = Calendar(hour=_ZERO, minute=_ZERO, microsecond=_ZERO)
_FIRST: Spans = (Span(1),)
_TWICE_A_YEAR = Calendar((), (), (Span(1), Span(7)), _FIRST, False, _ZERO, _ZERO, _ZERO)
_YEARLY = Calendar((), (), _FIRST, _FIRST, False, _ZERO, _ZERO, _ZERO)
_SHORTHANDS = {
    "minutely": Calendar(microsecond=_ZERO),
    "hourly": Calendar(minute=_ZERO, microsecond=_ZERO),
    "daily": _MIDNIGHT,
    "weekly": Calendar((0,), hour=_ZERO, minute=_ZERO, microsecond=_ZERO),
    "monthly": Calendar(day=_FIRST, hour=_ZERO, minute=_ZERO, microsecond=_ZERO),
    "quarterly": Calendar((), (), (Span(1), Span(4), Span(7), Span(10)), _FIRST, False, _ZERO, _ZERO, _ZERO),
    "semiannually": _TWICE_A_YEAR,
    "semi-annually": _TWICE_A_YEAR,
    "biannually": _TWICE_A_YEAR,
    "bi-annually": _TWICE_A_YEAR,
    "yearly": _YEARLY,
    "annually": _YEARLY,
    "anually": _YEARLY,  # systemd keeps this one for old files
}
_FORM = (
    "an expression is [WEEKDAYS] [YYYY-MM-DD] [HH:MM[:SS]] [ZONE], @SECONDS, "
    "or one of minutely, hourly, daily, weekly, monthly, quarterly, semiannually, yearly"
)


def _parse(text: str) -> Calendar:
    words = text.split()
    zone = ""
    if len(words) > 1 and words[-1][0].isalpha():
        zone = words.pop()
        zone = "UTC" if zone.lower() == "utc" else zone
        zone_named(zone)
    if len(words) == 1 and words[0].lower() in _SHORTHANDS:
        return _with_zone(_SHORTHANDS[words[0].lower()], zone)
    rest = iter(words)
    word = next(rest, "")
    weekdays: tuple[int, ...] = ()
    if word[:1].isalpha():
        weekdays = _weekdays(word)
        word = next(rest, "")
    elif not word:
        raise ValueError(f"it is empty; {_FORM}")
    if word.startswith("@"):
        _end(rest)
        return _epoch(word, weekdays)
    year, month, day, from_month_end = (), (), (), False  # type: tuple[Spans, Spans, Spans, bool]
    if word and ":" not in word:
        year, month, day, from_month_end = _date(word)
        word = next(rest, "")
    hour, minute, microsecond = _time(word) if word else (_ZERO, _ZERO, _ZERO)
    _end(rest)
    return Calendar(weekdays, year, month, day, from_month_end, hour, minute, microsecond, zone)


def _with_zone(calendar: Calendar, zone: str) -> Calendar:
    return Calendar(
        calendar.weekdays,
        month=calendar.month,
        day=calendar.day,
        hour=calendar.hour,
        minute=calendar.minute,
        microsecond=calendar.microsecond,
        zone=zone,
    )


def _end(rest: Iterator[str]) -> None:
    word = next(rest, None)
    if word is not None:
        raise ValueError(f"{word!r} is one word too many; {_FORM}")


def zone_named(name: str) -> tzinfo:
    """A time zone; raises ``ValueError``.  UTC needs no files of the system's."""
    if name == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (OSError, LookupError, ValueError):  # a folder, no such name, no zone's file
        raise ValueError(
            f"the time zone {name!r} is not known: UTC or an IANA name like Europe/Berlin is accepted"
        ) from None


def _weekdays(word: str) -> tuple[int, ...]:
    found: set[int] = set()
    for entry in word.lower().removesuffix(",").split(","):
        match = _WEEKDAY.fullmatch(entry)
        names = [name for name in match.groups() if name] if match else [entry]
        if any(name not in _WEEKDAY_NUMBERS for name in names):
            raise ValueError(f"the weekday {entry!r}: Mon to Sun, Monday to Sunday and Mon..Fri are accepted")
        first, last = _WEEKDAY_NUMBERS[names[0]], _WEEKDAY_NUMBERS[names[-1]]
        if first > last:
            raise ValueError(f"the weekday {entry!r} runs backwards: a week goes from Mon to Sun")
        found.update(range(first, last + 1))
    return tuple(sorted(found)) if len(found) < 7 else ()


def _epoch(word: str, weekdays: tuple[int, ...]) -> Calendar:
    digits = word[1:]
    if not re.fullmatch(r"[0-9]+", digits) or int(digits) * _SECOND >= _NEVER:
        raise ValueError(
            f"the moment {word!r}: @ and whole seconds before the year {YEAR_MAX + 1} are accepted"
        )
    at = datetime.fromtimestamp(int(digits), timezone.utc)
    return Calendar(
        weekdays,
        _spans("year", str(at.year), YEAR_MIN, YEAR_MAX),
        (Span(at.month),),
        (Span(at.day),),
        False,
        (Span(at.hour),),
        (Span(at.minute),),
        (Span(at.second * _SECOND),),
        "UTC",
    )


def _date(word: str) -> tuple[Spans, Spans, Spans, bool]:
    match = _DATE.fullmatch(word)
    if match is None:
        raise ValueError(f"the date {word!r}: YYYY-MM-DD, MM-DD, YYYY-MM~DD and MM~DD are accepted; {_FORM}")
    from_month_end = match["mark"] == "~"
    return (
        _spans("year", match["year"] or "*", YEAR_MIN, YEAR_MAX),
        _spans("month", match["month"], 1, 12),
        _spans("day", match["day"], 1, 28 if from_month_end else 31, from_month_end),
        from_month_end and match["day"] != "*",
    )


def _time(word: str) -> tuple[Spans, Spans, Spans]:
    parts = word.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"the time {word!r}: HH:MM and HH:MM:SS are accepted")
    hour = _spans("hour", parts[0], 0, 23)
    minute = _spans("minute", parts[1], 0, 59)
    if len(parts) == 2:
        return hour, minute, _ZERO
    if parts[2] == "*":
        return hour, minute, _ANY_SECOND
    return hour, minute, _spans("second", parts[2], 0, 60 * _SECOND - 1)


def _spans(part: str, text: str, low: int, high: int, from_end: bool = False) -> Spans:
    """A field's list; ``part`` names it in complaints and tells how its numbers are read."""
    if text == "*":
        return ()
    entries = text.split(",")
    if len(entries) > LIST_ENTRIES_MAX:
        raise ValueError(f"the {part} has {len(entries)} entries; at most {LIST_ENTRIES_MAX} are accepted")
    return tuple(sorted({_span(part, entry, low, high, from_end) for entry in entries}))


def _span(part: str, entry: str, low: int, high: int, from_end: bool) -> Span:
    seconds = part == "second"
    match = (_DECIMALS if seconds else _INTEGERS).fullmatch(entry)
    if match is None:
        raise ValueError(
            f"the {part} {entry!r}: a number, a range A..B, a step A/N or A..B/N, or * is accepted"
        )
    start, stop, step = (
        -1 if digits is None else _microseconds(digits) if seconds else int(digits)
        for digits in match.groups()
    )
    if step == 0 or step > _NUMBER_MAX:
        raise ValueError(f"the {part} {entry!r} has a step that cannot be: 1 or more is accepted")
    if part == "year":
        start, stop = _full_year(start), _full_year(stop)
    if not low <= start <= high or stop > high or (match[2] and stop < low):
        shown = "0 to 59.999999" if seconds else f"{low} to {high}"
        raise ValueError(f"the {part} {entry!r} is out of range: {shown} are accepted")
    if not match[2]:
        if step > (start - low if from_end else high - start):
            raise ValueError(f"the {part} {entry!r} has a step that leads out of the range at once")
        return Span(start, -1, max(step, 0))
    if stop < start:
        raise ValueError(f"the {part} {entry!r} runs backwards: the smaller number comes first")
    step = step if step > 0 else _SECOND if seconds else 1
    stop -= (stop - start) % step
    return Span(start, stop, step) if stop > start else Span(start)


def _microseconds(digits: str) -> int:
    """``1.5`` as 1500000; the seventh digit rounds."""
    whole, _, fraction = digits.partition(".")
    rounded = int(fraction[:6].ljust(6, "0")) + (fraction[6:7] >= "5")
    return int(whole) * _SECOND + rounded


def _full_year(year: int) -> int:
    """12 is 2012 and 89 is 1989."""
    if 0 <= year < 70:
        return year + 2000
    return year + 1900 if 70 <= year < 100 else year


# --- writing


def _weekdays_text(weekdays: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for weekday in weekdays:
        if runs and runs[-1][-1] == weekday - 1:
            runs[-1].append(weekday)
        else:
            runs.append([weekday])
    out: list[str] = []
    for run in runs:
        first, last = _WEEKDAYS[run[0]][:3], _WEEKDAYS[run[-1]][:3]
        out += [first] if len(run) == 1 else [first, last] if len(run) == 2 else [f"{first}..{last}"]
    return ",".join(out)


def _text(spans: Spans, width: int = 2) -> str:
    return ",".join(_span_text(span, width) for span in spans) or "*"


def _span_text(span: Span, width: int) -> str:
    if span.stop < 0:
        return f"{span.start:0{width}}" + (f"/{span.step}" if span.step else "")
    return f"{span.start:0{width}}..{span.stop:0{width}}" + (f"/{span.step}" if span.step > 1 else "")


def _seconds_text(spans: Spans) -> str:
    return "*" if spans == _ANY_SECOND else ",".join(_second_span_text(span) for span in spans)


def _second_span_text(span: Span) -> str:
    out = _second_text(span.start, 2)
    if span.stop >= 0:
        out += ".." + _second_text(span.stop, 2)
    if span.step and (span.stop < 0 or span.step != _SECOND):
        out += "/" + _second_text(span.step, 1)
    return out


def _second_text(value: int, width: int) -> str:
    whole, rest = divmod(value, _SECOND)
    return f"{whole:0{width}}" + (f".{rest:06}" if rest else "")
