"""wrk as load generator: one thread, a Lua script of this folder, one line of JSON back."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: Distinct keys, and bytes of a value.
KEYS, VALUE_BYTES = 1_000, 256


class WrkError(Exception):
    """wrk did not do its work; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Load:
    """One run against one server."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    status_errors: int
    socket_errors: int

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def errors(self) -> int:
        """Answers other than 2xx and 3xx, and connections that failed."""
        return self.status_errors + self.socket_errors


def run(
    url: str, script: str, connections: int, seconds: float, query: str = "", keys: int = KEYS,
    value_bytes: int = VALUE_BYTES,
) -> Load:  # fmt: skip
    """Load ``url`` for some seconds; raises :class:`WrkError`."""
    whole = max(1, round(seconds))
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "BENCH_LUA": str(_HERE), "BENCH_KEYS": str(keys),
        "BENCH_VALUE_BYTES": str(value_bytes), "BENCH_QUERY": query,
    }  # fmt: skip
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "10s", "-s", str(_HERE / script), url],
        env=environment, capture_output=True, text=True, timeout=whole + 30, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("BENCH "):
            return Load(**json.loads(line[len("BENCH ") :]))
    raise WrkError((done.stderr or done.stdout).strip() or f"exit status {done.returncode}")
