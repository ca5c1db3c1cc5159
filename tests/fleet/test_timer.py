"""Timer files, and when they elapse next."""

from __future__ import annotations

import pytest

from fleet import unitfile
from fleet.syntax import UnitFileError
from fleet.timer import Record, Target, TimerSpec, next_elapse

#: 2026-11-23 00:00:00 UTC, a Monday.
MIDNIGHT = 1_795_392_000.0
NEVER_RAN = Target()


def spec(*lines: str) -> TimerSpec:
    return unitfile.load_timer("backup.timer", "[Timer]\n" + "\n".join(lines) + "\n")


def test_what_a_file_says() -> None:
    """A timer starts the service of its own name, unless it says otherwise."""
    found = spec("OnCalendar=daily UTC", "OnCalendar=Mon 10:00 UTC", "RandomizedDelaySec=5min", "Persistent=yes")
    assert (found.unit, len(found.calendars), found.randomized_delay) == ("backup.service", 2, 300)
    assert spec("OnActiveSec=1", "Unit=other@1.service").unit == "other@1.service"
    assert spec("OnActiveSec=1", "OnBootSec=2", "OnActiveSec=", "OnBootSec=3").on_active == [3]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[Timer]\nPersistent=no\n", "needs at least one On...= key"),
        ("[Timer]\nOnActiveSec=1\nPersistent=yes\n", "is for OnCalendar= only"),
        ("[Timer]\nOnCalendar=25:00\n", "0 to 23"),
        ("[Timer]\nOnCalender=daily\n", "did you mean OnCalendar?"),
        ("[Timer]\nOnActiveSec=1\nUnit=a.timer\n", "a timer starts a service"),
        ("[Timer]\nOnActiveSec=1\n[Service]\nExecStart=/bin/a\n", "no section is called [Service]"),
    ],
)
def test_refused(text: str, part: str) -> None:
    """With line and column, as services are."""
    with pytest.raises(UnitFileError, match=part.replace("[", r"\[").replace(".", r"\.").replace("?", r"\?")):
        unitfile.check("a.timer", text)


def test_a_calendar_elapses_once_and_then_again_the_next_time() -> None:
    """What was acted on is not acted on again, however late it is looked at."""
    daily = spec("OnCalendar=*-*-* 06:00 UTC")
    six = MIDNIGHT + 6 * 3600
    record = Record(since=MIDNIGHT)
    assert next_elapse(daily, record, NEVER_RAN, MIDNIGHT) == six
    assert next_elapse(daily, record, NEVER_RAN, six + 30) == six, "late, and within the accuracy"
    acted = Record(MIDNIGHT, last=six, fired=six + 30)
    assert next_elapse(daily, acted, NEVER_RAN, six + 30) == six + 86400


def test_an_elapse_that_nobody_acted_on() -> None:
    """Is passed over; with Persistent= it is made up for, once."""
    record = Record(since=MIDNIGHT)
    later = MIDNIGHT + 3 * 86400 + 7 * 3600
    assert next_elapse(spec("OnCalendar=06:00 UTC"), record, NEVER_RAN, later) == MIDNIGHT + 4 * 86400 + 6 * 3600
    persistent = spec("OnCalendar=06:00 UTC", "Persistent=yes")
    missed = next_elapse(persistent, record, NEVER_RAN, later)
    assert missed is not None and missed <= later
    made_up = Record(MIDNIGHT, last=later, fired=later)
    assert next_elapse(persistent, made_up, NEVER_RAN, later) == MIDNIGHT + 4 * 86400 + 6 * 3600


def test_spans() -> None:
    """From the timer's start, from the unit's last start, from its last end; the earliest counts."""
    both = spec("OnActiveSec=10", "OnUnitActiveSec=60", "OnUnitInactiveSec=25")
    assert next_elapse(both, Record(100.0), NEVER_RAN, 100) == 110
    ran = Record(100.0, last=110.0, fired=110.5)
    assert next_elapse(both, ran, NEVER_RAN, 111) == 170.5
    assert next_elapse(both, ran, Target(110.5, 120.0), 121) == 145
    assert next_elapse(spec("OnUnitActiveSec=60"), Record(100.0), NEVER_RAN, 900) is None


def test_a_random_delay_is_the_same_everywhere_and_another_each_time() -> None:
    """Unless it is fixed; then it is the same each time as well."""
    delayed = spec("OnCalendar=06:00 UTC", "RandomizedDelaySec=1h")
    first = next_elapse(delayed, Record(MIDNIGHT), NEVER_RAN, MIDNIGHT)
    second = next_elapse(delayed, Record(MIDNIGHT + 86400), NEVER_RAN, MIDNIGHT + 86400)
    assert first is not None and second is not None
    six = MIDNIGHT + 6 * 3600
    assert six < first < six + 3600 and second - 86400 != first
    assert first == next_elapse(delayed, Record(MIDNIGHT), NEVER_RAN, MIDNIGHT + 5)
    fixed = spec("OnCalendar=06:00 UTC", "RandomizedDelaySec=1h", "FixedRandomDelay=yes")
    days = [next_elapse(fixed, Record(MIDNIGHT + d), NEVER_RAN, MIDNIGHT + d) for d in (0, 86400)]
    assert days[1] == days[0] + 86400  # type: ignore[operator]


def test_a_delay_that_is_longer_than_the_accuracy_elapses() -> None:
    """An elapse is late only when its delay is over, too."""
    delayed = spec("OnCalendar=06:00 UTC", "RandomizedDelaySec=1h", "AccuracySec=1min")
    record = Record(MIDNIGHT)
    first = next_elapse(delayed, record, NEVER_RAN, MIDNIGHT)
    assert first is not None and first > MIDNIGHT + 6 * 3600 + 60
    for now in (MIDNIGHT + 6 * 3600 + 59, first - 1, first, first + 59):
        assert next_elapse(delayed, record, NEVER_RAN, now) == first
    tomorrow = next_elapse(delayed, record, NEVER_RAN, first + 61)
    assert tomorrow is not None and tomorrow > MIDNIGHT + 86400 + 6 * 3600


def test_many_elapses_within_one_delay_are_not_all_looked_at() -> None:
    """Every second, and up to a day later."""
    busy = spec("OnCalendar=*-*-* *:*:* UTC", "RandomizedDelaySec=1d", "AccuracySec=1s")
    found = next_elapse(busy, Record(MIDNIGHT), NEVER_RAN, MIDNIGHT + 10 * 86400)
    assert found is not None and found >= MIDNIGHT + 10 * 86400 - 1
