"""Run all tests, in lanes beside each other: ``python -m tests.lanes``.

Tests with real processes, which mostly wait, are in one lane, what judges and what only computes
(the simulator, pure code) in another.  Each lane is a pytest of its own; what the first says is
shown as it comes, what the others say after it.  Every test file is in exactly one lane.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent
#: Directories whose tests are beside those with real processes.
BESIDE = ("brain", "cli", "deploy", "fleet", "judges", "kernel", "sim", "transport")


def lanes() -> dict[str, list[str]]:
    """Test files by lane; the first is the one that is shown as it goes."""
    found: dict[str, list[str]] = {"real processes": [], "beside them": []}
    for path in sorted(ROOT.rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        found["beside them" if name.partition("/")[0] in BESIDE else "real processes"].append(str(path))
    return found


def _start(files: list[str], out: IO[bytes] | None, options: list[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *files]
    return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT if out else None, start_new_session=True)


def main(options: list[str]) -> int:
    """The command; returns its exit status: that of the first lane that failed."""
    begun = time.monotonic()
    running: list[tuple[str, subprocess.Popen[bytes], IO[bytes] | None]] = []

    def end(*_: object) -> None:
        for _, process, _ in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        sys.exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    for lane, files in lanes().items():
        out = tempfile.TemporaryFile() if running else None  # noqa: SIM115 - read when the lane is at its end
        running.append((lane, _start(files, out, options), out))
    status = 0
    counts: Counter[str] = Counter()
    for lane, process, out in running:
        process.wait()
        status = status or process.returncode
        print(f"\n--- lane {lane!r}: exit status {process.returncode}", flush=True)
        if out is not None:
            out.seek(0)
            said = out.read().decode(errors="replace")
            print(said, flush=True)
            for number, what in re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)", said.splitlines()[-1] if said else ""):
                counts[what] += int(number)
    told = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    print(f"--- all lanes: {time.monotonic() - begun:.0f} s, exit status {status} (beside the first lane: {told})", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
