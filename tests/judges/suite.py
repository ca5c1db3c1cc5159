"""Runs a third-party suite in a process group of its own and counts what it says of itself."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from ..real.cluster import signal_process
from ..waiting import wait_until
from .environment import REQUIREMENTS, python_of_judges

#: Seconds for a whole suite, and for one of its tests.
SUITE_S_MAX, TEST_S_MAX = 230.0, 45.0
_LOG_LINES = 40
#: Also keeps the project's own settings of pytest out.
_SETTINGS = "[pytest]\njunit_family = xunit2\n"
_BAD = ("error", "failure", "skipped")


@dataclass
class Verdict:
    """Outcome by test: ``passed``, or the first thing that was wrong with it."""

    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    end_of_log: str = ""

    def count(self, outcome: str) -> int:
        """How many tests ended so."""
        return sum(found == outcome for found in self.outcomes.values())

    def __str__(self) -> str:
        bad = [
            f"{outcome}: {name}\n{self.details[name]}"
            for name, outcome in self.outcomes.items()
            if outcome != "passed"
        ]
        return f"{self.count('passed')} of {len(self.outcomes)} passed\n" + "\n".join(
            bad or [self.end_of_log]
        )


def assert_all_passed(verdict: Verdict, number: int) -> None:
    """Exactly so many tests, and nothing but passed ones."""
    counts = {outcome: verdict.count(outcome) for outcome in ("passed", *_BAD)}
    assert counts == {"passed": number, "error": 0, "failure": 0, "skipped": 0}, str(verdict)


def _group(leader: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, group = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except (OSError, ValueError):
            continue
        if int(group) == leader and state not in "ZX":
            found.append(int(entry.name))
    return found


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, which leads a group, and all that it started; wait until they are gone."""

    def gone() -> bool:
        members = _group(process.pid)
        for member in members:
            signal_process(member, signal.SIGKILL)
        return not members

    wait_until(f"the end of process group {process.pid}", gone)
    process.wait(10)


@contextmanager
def started(
    command: list[str | Path], folder: Path, variables: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own that is gone afterwards, with whatever it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        end_group(process)


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def run(
    module: str, folder: Path, variables: dict[str, str], requirements: tuple[str, ...] = REQUIREMENTS, *more: str
) -> Verdict:
    """Run a module or package of tests as it was installed; output goes to ``suite.log``.

    ``more``: words for pytest.
    """
    settings, report, log = folder / "pytest.ini", folder / "report.xml", folder / "suite.log"
    settings.write_text(_SETTINGS)
    command: list[str | Path] = [
        python_of_judges(requirements), "-m", "pytest", "-v", "-s", "-p", "no:cacheprovider", "-c", settings,
        "--rootdir", folder, f"--timeout={TEST_S_MAX:g}", f"--junit-xml={report}", *more, "--pyargs", module,
    ]  # fmt: skip
    with started(command, folder, variables, log) as process:
        try:
            process.wait(SUITE_S_MAX)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{module}: not done within {SUITE_S_MAX:g} s\n{_end_of(log)}") from None
    assert report.exists(), f"{module}: no report\n{_end_of(log)}"
    verdict = _read(report)
    verdict.end_of_log = _end_of(log)
    return verdict


def _read(report: Path) -> Verdict:
    """A test that passes and then fails to clean up is named twice: what was wrong counts."""
    verdict = Verdict()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        wrong = next((child for child in case if child.tag in _BAD), None)
        if wrong is not None:
            verdict.outcomes[name] = wrong.tag
            verdict.details[name] = (wrong.text or wrong.get("message") or "").strip()
        else:
            verdict.outcomes.setdefault(name, "passed")
    return verdict
