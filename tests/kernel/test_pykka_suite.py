"""Pykka's own test suite, run against our actor class: it is a Pykka actor for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

VERSION = "4.5.0"
REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / ".cache"
ARCHIVE = CACHE / f"pykka-{VERSION}.tar.gz"
#: Tests of Pykka 4.5.0, for the two runtimes together.
TESTS_MIN = 280
#: Those of them that are run once for each runtime.
TESTS_MIN_EACH = 130

RUNTIME = """
from kernel.actor import Actor as _ArgosyActor
from kernel.future import Future as _ArgosyFuture


class ArgosyActor(_ArgosyActor):
    pass


RUNTIMES = {
    "argosy": pytest.param(
        Runtime(
            name="argosy",
            actor_class=ArgosyActor,
            event_class=threading.Event,
            future_class=_ArgosyFuture,
            sleep_func=time.sleep,
        ),
        id="argosy",
    ),
"""


def _source() -> Path:
    """The archive of Pykka's source, fetched once."""
    if not ARCHIVE.exists():
        CACHE.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", f"pykka=={VERSION}", "--no-binary", ":all:",
             "--no-deps", "--dest", str(CACHE)],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
    return ARCHIVE


@pytest.mark.timeout(180)
def test_pykkas_suite_passes_on_both_runtimes(tmp_path: Path) -> None:
    """Every test of Pykka holds for our actor and, in the same run, for Pykka's own."""
    with tarfile.open(_source()) as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / f"pykka-{VERSION}"
    conftest = root / "tests" / "conftest.py"
    original = conftest.read_text()
    assert original.count("RUNTIMES = {\n") == 1
    conftest.write_text(original.replace("RUNTIMES = {\n", RUNTIME.lstrip("\n"), 1))
    # Pykka's suite is a package called "tests", as ours is: its folder comes first, and its
    # sources do not, so that the installed Pykka is the one under test.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(REPOSITORY)]),
        "PYTEST_ADDOPTS": "",
    }
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "tests", "-v", "-p", "no:cacheprovider",
         "--rootdir", str(root), "-c", os.devnull],
        cwd=root, env=environment, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    report = run.stdout[-4000:] + run.stderr[-2000:]
    assert run.returncode == 0, report
    last = run.stdout.strip().splitlines()[-1]
    counted = {what: int(n) for n, what in re.findall(r"(\d+) (\w+)", last)}
    assert counted["passed"] >= TESTS_MIN, report
    assert set(counted) <= {"passed", "warnings", "warning"}, last
    for runtime in ("argosy", "threading"):
        passed = [line for line in run.stdout.splitlines() if f"[{runtime}" in line and " PASSED" in line]
        assert len(passed) >= TESTS_MIN_EACH, f"{len(passed)} tests ran on the {runtime} runtime"
