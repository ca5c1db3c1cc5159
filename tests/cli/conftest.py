"""Fixtures of the command line's tests: no test sees the developer's own environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No ``ARGOSY_*`` variable, and a configuration folder of the test's own."""
    for name in list(os.environ):
        if name.startswith("ARGOSY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
