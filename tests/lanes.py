"""Run all tests, in lanes beside each other: ``python -m tests.lanes``.

What only computes (the simulator, pure code) gives way to what mostly waits (real processes);
that is in two lanes.  Each lane is a pytest of its own; what the first says is shown as it comes,
what the others say after it.  Every test file is in exactly one lane.
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
#: Directories whose tests only compute.
COMPUTING = ("brain", "fleet", "kernel", "sim", "transport")
#: Tests whose subject is how soon something is there again: they run when all others have ended.
ALONE = ("real/test_host_kills.py",)
#: Of the tests with real processes, the first letter after ``test_`` of those in the third lane.
LATER = re.compile(r"real/test_[h-z]")


def lanes() -> dict[str, list[str]]:
    """Test files by lane; the first is the one that is shown as it goes."""
    found: dict[str, list[str]] = {"real processes": [], "real processes, too": [], "computing": [], "alone": []}
    for path in sorted(ROOT.rglob("test_*.py")):
        name = str(path.relative_to(ROOT))
        lane = "alone" if name in ALONE else "computing" if name.partition("/")[0] in COMPUTING else "real processes, too" if LATER.match(name) else "real processes"
        found[lane].append(str(path))
    return found


def _start(lane: str, files: list[str], out: IO[bytes] | None, options: list[str]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *files]
    polite = (lambda: os.nice(10)) if lane == "computing" else None
    return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT if out else None, start_new_session=True, preexec_fn=polite)  # noqa: PLW1509


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
    known = lanes()
    last = known.pop("alone")
    for lane, files in known.items():
        out = tempfile.TemporaryFile() if running else None  # noqa: SIM115 - read when the lane is at its end
        running.append((lane, _start(lane, files, out, options), out))
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
    if last:
        running.append(("alone", _start("alone", last, None, options), None))
        alone = running[-1][1].wait()
        status = status or alone
    told = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
    print(f"--- all lanes: {time.monotonic() - begun:.0f} s, exit status {status} (beside the first lane: {told})", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
