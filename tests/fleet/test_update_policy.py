"""When machines may reboot: windows at the edges of daylight saving time, and what a policy accepts (L14)."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from fleet import update_policy
from fleet.update_policy import window


def changes(text: str, day: str, hours: int = 16) -> list[str]:
    """When a window opens (+) and closes (-) from a day's noon on, in UTC, by the minute."""
    made = window(text)
    moment = datetime.fromisoformat(day).replace(hour=12, tzinfo=timezone.utc)
    was, found = False, []
    for _ in range(hours * 60):
        if made.is_open(moment.timestamp()) != was:
            was = not was
            found.append(f"{'+' if was else '-'}{moment:%H:%M}")
        moment += timedelta(minutes=1)
    return found


@pytest.mark.parametrize(
    ("text", "day", "expected"),
    [
        # Berlin, 2026-03-29: from 02:00 (01:00 UTC) on it is 03:00
        ("02:30 Europe/Berlin for 1h", "2026-03-28", ["+01:30", "-02:30"]),  # its hour is left out: it begins at 03:30
        ("Sun 02:00 Europe/Berlin for 30min", "2026-03-28", ["+01:00", "-01:30"]),
        ("23:00 Europe/Berlin for 4h", "2026-03-28", ["+22:00", "-02:00"]),  # as long as it says
        ("01:30 Europe/Berlin for 2h", "2026-03-28", ["+00:30", "-02:30"]),
        # Berlin, 2026-10-25: from 03:00 (01:00 UTC) on it is 02:00 again
        ("02:30 Europe/Berlin for 1h", "2026-10-24", ["+00:30", "-01:30"]),  # once, the first time
        ("02:30 Europe/Berlin for 90min", "2026-10-24", ["+00:30", "-02:00"]),
        ("03:00 Europe/Berlin for 1h", "2026-10-24", ["+02:00", "-03:00"]),
        ("*-*-* 02:00:00 Europe/Berlin for 1h", "2026-10-24", ["+00:00", "-01:00"]),
        # Lord Howe moves its clock by half an hour: 2026-10-04, 02:00 (15:30 UTC) becomes 02:30
        ("02:10 Australia/Lord_Howe for 1h", "2026-10-03", ["+15:40", "-16:40"]),
        ("22:00 UTC for 4h", "2026-03-28", ["+22:00", "-02:00"]),
        ("22:00 for 4h", "2026-03-28", ["+22:00", "-02:00"]),
        ("*:*:0/1 Europe/Berlin for 1min", "2026-03-28", ["+12:00"]),
        ("2031-01-01 00:00 UTC for 1h", "2026-03-28", []),
        ("2020-01-01 00:00 Europe/Berlin for 1h", "2026-03-28", []),
    ],
)
def test_l14_a_window_at_a_clock_change(text: str, day: str, expected: list[str]) -> None:
    """One for each time on the wall clock, neither left out nor doubled, as long as it says."""
    assert changes(text, day) == expected


def test_when_it_opens_is_when_it_is_open() -> None:
    """Also when that is the begin that a clock change put off."""
    made = window("02:30 Europe/Berlin for 1h")
    noon = datetime(2026, 3, 28, 12, tzinfo=timezone.utc).timestamp()
    assert datetime.fromtimestamp(made.opens(noon), timezone.utc).strftime("%d %H:%M") == "29 01:30"
    assert made.opens(made.opens(noon)) - made.opens(noon) == 23 * 3600
    assert "13.5 h" in update_policy.policy({"windows": ["02:30 Europe/Berlin for 1h"]}).closed(noon)


@pytest.mark.parametrize(
    "wrong",
    [
        {"windows": ["22:00 for 1s"]}, {"windows": ["sometimes for 1h"]}, {"windows": ["22:00"]}, {"windows": "22:00 for 1h"},
        {"drain_limit": 0}, {"trial_limit": float("nan")}, {"commit_after": 500.0}, {"rate": -1}, {"rate": 1.5}, {"block_units": [7]},
        {"block_users": "yes"}, {"block_queries": ["up"]}, {"block_queries": ["file:///etc/passwd up"]}, {"block_queries": ["http://p:9090 "]},
        {"block_queries": ["http://me:secret@p:9090 up"]},
    ],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """With what is accepted."""
    with pytest.raises(ValueError, match=r"\w"):
        update_policy.policy(wrong)


def test_a_password_in_a_url_is_not_said_again() -> None:
    """It would be in logs and listings."""
    with pytest.raises(ValueError, match="no password") as refused:
        update_policy.policy({"block_queries": ["http://me:hunter2@p:9090 up"]})
    assert "hunter2" not in str(refused.value)
