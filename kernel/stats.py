"""Plain counters per actor class, read at scrape time only.

``self.n += 1`` costs a fourteenth of a Prometheus child's ``inc``; so hot paths count
here, and one collector turns the numbers into metrics when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left

#: Upper bounds in seconds of the handling and waiting histograms.
BOUNDS_S = (0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


class Histogram:
    """Counts per bucket, with sum; the last bucket is +Inf."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value`` seconds, ``times`` times."""
        self.buckets[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """All observations."""
        return sum(self.buckets)

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus' form: (upper bound, observations at or below it)."""
        rows: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip(self.bounds, self.buckets, strict=False):
            total += count
            rows.append((repr(bound), total))
        rows.append(("+Inf", total + self.buckets[-1]))
        return rows


class Latency:
    """Spread of a duration, in seconds, without keeping the samples (Welford's method)."""

    __slots__ = ("average", "count", "current", "highest", "lowest", "squares")

    def __init__(self) -> None:
        self.count = 0
        self.current = self.average = self.squares = self.lowest = self.highest = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.count += 1
        self.current = value
        off = value - self.average
        self.average += off / self.count
        self.squares += off * (value - self.average)
        self.lowest = min(self.lowest, value) if self.count > 1 else value
        self.highest = max(self.highest, value)

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return float((self.squares / self.count) ** 0.5) if self.count else 0.0


class Stats:
    """What all actors of one class on one host did, or one actor whose class asks for its own.

    Those of a single actor count for its class too (``whole``).
    """

    __slots__ = ("dead_letters", "handled", "handling", "restarts", "started", "waiting", "whole")

    def __init__(self, whole: Stats | None = None) -> None:
        self.whole = whole
        self.handled = 0
        self.started = 0
        self.restarts = 0
        self.handling = Histogram()
        self.waiting = Histogram()
        self.dead_letters: dict[str, int] = {}

    def observe(self, count: int, took: float, waited: float) -> None:
        """One mailbox run: ``count`` messages in ``took`` seconds after ``waited`` seconds.

        Each message is booked with the run's mean; the wait is that of the oldest one.
        """
        if count:
            self.handled += count
            self.handling.observe(took / count, count)
            self.waiting.observe(waited if waited > 0 else 0.0)
            if self.whole is not None:
                self.whole.observe(count, took, waited)

    def restarted(self) -> None:
        """A supervisor put a fresh actor behind a reference."""
        self.restarts += 1
        if self.whole is not None:
            self.whole.restarted()

    def dead(self, why: str) -> None:
        """A message that nobody took: ``dead`` or ``overflow``."""
        self.dead_letters[why] = self.dead_letters.get(why, 0) + 1
        if self.whole is not None:
            self.whole.dead(why)
