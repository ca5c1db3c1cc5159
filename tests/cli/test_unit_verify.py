"""``argosy unit verify`` looks at files without a cluster."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from cli.main import cli as main

GOOD = "[Unit]\nStopWhenUnneeded=yes\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
BAD = "[Service]\nExecStart=/bin/true\nRestrt=always\n  TimeoutStopSec = soon\n"


def test_everything_at_once_with_line_and_column(tmp_path: Path) -> None:
    """Errors, then what has no effect and why; a good file is said to be one."""
    good, bad = tmp_path / "good.service", tmp_path / "bad.service"
    good.write_text(GOOD)
    bad.write_text(BAD)
    done = CliRunner().invoke(main, ["unit", "verify", str(good), str(bad)])
    assert done.exit_code == 2
    lines = done.output.splitlines()
    assert f"error {bad}:3:8: Restrt: unknown key in [Service] (did you mean Restart?)" in lines
    assert any(line.startswith(f"error {bad}:4:20: TimeoutStopSec: 'soon' is not a time span") for line in lines)
    assert any(line.startswith(f"note  {good}:2: StopWhenUnneeded: accepted, and without effect") for line in lines)
    assert any("WantedBy" in line for line in lines) and f"ok    {good}" in lines


def test_as_json(tmp_path: Path) -> None:
    """One row for each file, with its problems in parts."""
    bad = tmp_path / "bad.service"
    bad.write_text(BAD)
    done = CliRunner().invoke(main, ["unit", "verify", "--json", str(bad)])
    [row] = json.loads(done.output)
    assert (done.exit_code, row["accepted"]) == (2, False)
    first = row["problems"][0]
    assert (first["line"], first["column"], first["key"]) == (3, 8, "Restrt")


def test_names_and_files_that_cannot_be(tmp_path: Path) -> None:
    """A sentence, and exit status 2."""
    odd = tmp_path / "odd name.service"
    odd.write_text(GOOD)
    done = CliRunner().invoke(main, ["unit", "verify", str(odd)])
    assert done.exit_code == 2 and "letters, digits" in done.output
    assert CliRunner().invoke(main, ["unit", "verify", str(tmp_path / "none.service")]).exit_code == 2
