"""The demo holds, and prints plain lines when nobody looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cluster import port_offset, processes_of, run_argosy
from .engine import missing


def test_the_founding_picture(tmp_path: Path) -> None:
    """Two load balancers, six servers, one machine lost: every step held, nothing is left."""
    with port_offset(3) as offset:
        done = run_argosy(
            tmp_path, "demo", "--dir", str(tmp_path / "d"), "--port-offset", str(offset), "--once",
            seconds=170,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step held" in done.stdout
    assert "not one failed" in done.stdout
    assert "\x1b[" not in done.stdout
    assert processes_of(tmp_path / "d") == []


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_the_founding_picture_in_containers(tmp_path: Path) -> None:
    """The same eight units as containers, which read the brain at the engine's bridge; nothing is left."""
    with port_offset(3) as offset:
        done = run_argosy(
            tmp_path, "demo", "--dir", str(tmp_path / "d"), "--port-offset", str(offset), "--once",
            "--engine", "docker", seconds=170, DOCKER_HOST=f"unix://{tmp_path}/no-engine-yet",
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step held" in done.stdout
    assert "not one failed" in done.stdout
    assert "everything runs in containers" in done.stdout
    assert processes_of(tmp_path / "d") == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_machines_renew_themselves_and_return_from_a_broken_version(tmp_path: Path) -> None:
    """Signed, chunk by chunk, one at a time under the lock, while a client asks: not one request fails."""
    with port_offset(3) as offset:
        done = run_argosy(
            tmp_path, "demo-update", "--dir", str(tmp_path / "d"), "--port-offset", str(offset), "--once", seconds=280,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step held" in done.stdout and "not one failed" in done.stdout
    assert "went back by itself; no other machine began" in done.stdout
    assert processes_of(tmp_path / "d") == []
