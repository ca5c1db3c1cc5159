"""One of three PySyncObj peers with a replicated dict, at the library's defaults.

usage: python -m bench.dict_child OWN OTHER...    (each HOST:PORT)

Reads a line of JSON, answers with one: ``{}`` for who leads, or what to load.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj  # type: ignore[import-untyped]
from pysyncobj.batteries import ReplDict  # type: ignore[import-untyped]

from .lab import percentile

#: Seconds after the end for what is still in flight.
_PATIENCE_S = 20.0


class Writes:
    """Keeps so many sets in flight; each callback starts the next."""

    def __init__(self, target: Any, in_flight: int, keys: int, value: str) -> None:
        self._target = target
        self._in_flight = in_flight
        self._keys = keys
        self._value = value
        self._end = 0.0
        self._next = 0
        self._open = 0
        self._failed = 0
        self._taken: list[float] = []
        self._in_time = 0
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self, seconds: float) -> dict[str, float]:
        """What a run of wrk says."""
        self._end = time.perf_counter() + seconds
        self._open = self._in_flight
        for _ in range(self._in_flight):
            self._one()
        assert self._over.wait(seconds + _PATIENCE_S), f"{self._open} sets were never answered"
        taken = self._taken
        return {
            "requests": self._in_time, "seconds": seconds, "p50_ms": 1000 * percentile(taken, 0.5),
            "p99_ms": 1000 * percentile(taken, 0.99), "max_ms": 1000 * max(taken),
            "status_errors": self._failed, "socket_errors": 0,
        }  # fmt: skip

    def _one(self) -> None:
        begun = time.perf_counter()
        with self._lock:
            self._next += 1
            key = f"bench/{self._next % self._keys:06d}"

        def done(_: object, error: int) -> None:
            now = time.perf_counter()
            if error != FAIL_REASON.SUCCESS:
                self._failed += 1
            else:
                self._taken.append(now - begun)
                self._in_time += now <= self._end
            if now < self._end:
                self._one()
                return
            self._open -= 1
            if not self._open:
                self._over.set()

        self._target.set(key, self._value, callback=done)


def main() -> None:
    """Serve until the input ends."""
    shared = ReplDict()
    peer = SyncObj(sys.argv[1], sys.argv[2:], consumers=[shared])
    for line in sys.stdin:
        wanted = json.loads(line)
        if wanted:
            value = "v" * wanted["value_bytes"]
            answer = Writes(shared, wanted["in_flight"], wanted["keys"], value).run(wanted["seconds"])
        else:
            answer = {"ready": peer.isReady(), "leads": peer._isLeader()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
