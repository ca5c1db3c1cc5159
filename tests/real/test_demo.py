"""The demo holds, and prints plain lines when nobody looks."""

from __future__ import annotations

from pathlib import Path

from .cluster import port_offset, processes_of, run_argosy


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
