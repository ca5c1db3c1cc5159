"""The clock and random ports for real."""

from __future__ import annotations

import secrets
import time


class RealClock:
    """This host's clocks."""

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()


class RealRng:
    """The operating system's random source."""

    def below(self, n: int) -> int:
        """A number in [0, n)."""
        return secrets.randbelow(n)

    def token(self) -> str:
        """32 hexadecimal digits."""
        return secrets.token_hex(16)
