"""Logs of units: read across rotation, by time, by invocation, and kept within a limit."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from runners import logs
from runners.shim.log import Log
from runners.shim.shim import Shim


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log as a shim writes it, that is rotated soon."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runners.shim.log.LOG_BYTES_MAX", 2000)
    return Log("log")


def texts(page: logs.Page) -> list[str]:
    """What was printed."""
    return [line.text for line in page.lines]


def test_the_last_lines_come_from_older_files_too(log: Log, tmp_path: Path) -> None:
    """As many as are asked for, in order, however often it was rotated."""
    for number in range(100):
        log.feed(b"line %d\n" % number)
    assert len(logs.parts(tmp_path)) > 1
    assert texts(logs.last(tmp_path, 80))[-80:] == [f"line {n}" for n in range(20, 100)]
    assert texts(logs.last(tmp_path, 0)) == []


def test_who_follows_loses_nothing_and_sees_nothing_twice(log: Log, tmp_path: Path) -> None:
    """Also across rotations, and a line that is not complete is left for later."""
    seen: list[str] = []
    position = logs.last(tmp_path, 0).position
    for number in range(200):
        log.feed(b"line %d\n" % number)
        if number % 7 == 0:
            page = logs.following(tmp_path, position)
            seen += texts(page)
            position = page.position
    os.write(log.fd, b"1.0 half")
    page = logs.following(tmp_path, position)
    os.write(log.fd, b" and half\n")
    seen += texts(page) + texts(logs.following(tmp_path, page.position))
    assert seen == [*(f"line {n}" for n in range(200)), "half and half"]


def test_a_reader_who_was_away_for_too_long_gets_what_there_is(log: Log, tmp_path: Path) -> None:
    """Its file is gone: it goes on with the oldest that is kept."""
    log.feed(b"first\n")
    position = logs.last(tmp_path, 1).position
    for number in range(1000):
        log.feed(b"line %d\n" % number)
    found = texts(logs.following(tmp_path, position))
    assert found[-1] == "line 999" and "first" not in found
    assert texts(logs.following(tmp_path, "nonsense")) == found


def test_one_page_is_bounded(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest comes with the next."""
    monkeypatch.setattr(logs, "BYTES_MAX", 500)
    for number in range(60):
        log.feed(b"line %d\n" % number)
    seen: list[str] = []
    position = "0:0"
    while page := logs.following(tmp_path, position):
        if not page.lines:
            break
        assert len(page.lines) < 40
        seen += texts(page)
        position = page.position
    assert seen == [f"line {n}" for n in range(60)]


def test_lines_know_their_time_and_their_run(log: Log, tmp_path: Path) -> None:
    """What was written before a moment can be left out."""
    Shim.note_run("one")
    log.feed(b"a\n")
    between = time.time()
    while time.time() == between:
        pass
    Shim.note_run("two")
    log.feed(b"b\n")
    found = logs.last(tmp_path, 10).lines
    assert [(line.text, line.invocation) for line in found] == [("a", "one"), ("b", "two")]
    assert texts(logs.last(tmp_path, 10, since=between)) == ["b"]


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    """A file that something else wrote to does not end the reader."""
    (tmp_path / "log").write_bytes(b"no time\n5.0 good\n\n6.0 \xff\n")
    assert texts(logs.last(tmp_path, 10)) == ["good", "\ufffd"]


def test_logs_of_units_that_are_gone_are_kept_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest stay; a unit's next log takes the place of its last."""
    monkeypatch.setattr(logs, "KEPT_BYTES_MAX", 25_000)
    for number in range(5):
        folder = tmp_path / "units" / f"u{number}"
        folder.mkdir(parents=True)
        (folder / "log").write_bytes(b"1.0 x\n" + bytes(9_994))
        os.utime(folder / "log", (number, number))
        (folder / "runs").write_text("0.5 run\n")
        os.utime(folder / "runs", (number, number))
        logs.keep(folder, tmp_path / "kept" / f"u{number}")
        logs.prune(tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["u3", "u4"]
    assert logs.last(tmp_path / "kept" / "u4", 5).lines[0].invocation == "run"


def test_one_answer_has_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones, whatever number of lines was asked for."""
    monkeypatch.setattr(logs, "LAST_BYTES_MAX", 1000)
    (tmp_path / "log").write_bytes(b"".join(b"%d.0 %s\n" % (n, b"x" * 300) for n in range(1, 50)))
    assert [line.time for line in logs.last(tmp_path, 100).lines] == [47.0, 48.0, 49.0]


def test_so_many_units_that_are_gone_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units without output, too, are only so many."""
    monkeypatch.setattr(logs, "KEPT_MAX", 2)
    for number in range(4):
        (tmp_path / f"u{number}").mkdir()
        (tmp_path / f"u{number}" / "log").touch()
        os.utime(tmp_path / f"u{number}" / "log", (number, number))
    logs.prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u2", "u3"]
