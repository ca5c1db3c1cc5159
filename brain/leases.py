"""When leases end, and what time the log believes it is: the leader's pure bookkeeping.

Keepalives live here, in the leader's memory, and never enter the log; only the end of a
lease does.  All times are handed in.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Wall clock and log time may differ by this much (ms) before a new leader distrusts its clock.
CLOCK_STEP_MS = 5_000


class LeaseKeeper:
    """Deadlines of leases on the leader, in monotonic seconds; empty on everybody else."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._ending: set[int] = set()

    def lead(self, leases: Iterable[tuple[int, int]], now: float) -> None:
        """A new leadership: every ``(lease, ttl_ms)`` gets its whole time again."""
        self.stand_down()
        for lease, ttl_ms in leases:
            self.arm(lease, ttl_ms, now)

    def stand_down(self) -> None:
        """This peer leads no longer (or not yet)."""
        self._deadlines.clear()
        self._ending.clear()

    def arm(self, lease: int, ttl_ms: int, now: float) -> None:
        """Granted, or kept alive."""
        self._deadlines[lease] = now + ttl_ms / 1000

    def left_ms(self, lease: int, now: float) -> int:
        """Milliseconds until it ends unless it is kept alive; 0 for one that is overdue."""
        return max(0, int((self._deadlines.get(lease, now) - now) * 1000))

    def is_ending(self, lease: int) -> bool:
        """Whether its end has been proposed already: too late to keep it alive."""
        return lease in self._ending

    def forgive(self, seconds: float) -> None:
        """The process stood still for so long: that was not the leases' time."""
        for lease in self._deadlines:
            self._deadlines[lease] += seconds

    def due(self, now: float) -> list[int]:
        """Leases to end now; each is handed out once until :meth:`settled`."""
        found = [
            lease for lease, deadline in self._deadlines.items()
            if deadline <= now and lease not in self._ending
        ]  # fmt: skip
        self._ending.update(found)
        return sorted(found)

    def settled(self, leases: Iterable[int], alive: Iterable[int]) -> None:
        """The proposal to end ``leases`` has an outcome; ``alive`` are all that still exist."""
        for lease in leases:
            self._ending.discard(lease)
            if lease not in alive:
                self._deadlines.pop(lease, None)


class LogClock:
    """Log time: the leader's clock, never back, and not thrown by one that is wrong.

    A follower remembers the log's time with its own monotonic time; as leader it goes on
    from there when its wall clock is further than ``CLOCK_STEP_MS`` away from that.
    """

    def __init__(self) -> None:
        self._log_ms = 0
        self._at = 0.0
        self._known = False

    def seen(self, log_ms: int, now: float) -> None:
        """The log said so at this moment."""
        self._log_ms, self._at, self._known = log_ms, now, True

    def now_ms(self, floor_ms: int, wall_ms: int, now: float) -> int:
        """Log time for a new entry; at least ``floor_ms``, what the store has seen."""
        if self._known:
            estimate = self._log_ms + int((now - self._at) * 1000)
            if abs(wall_ms - estimate) > CLOCK_STEP_MS:
                return max(estimate, floor_ms)
        return max(wall_ms, floor_ms)
