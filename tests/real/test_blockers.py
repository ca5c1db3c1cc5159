"""What forbids a reboot, as a machine sees it: people who are logged in, and a real Prometheus server (L15)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runners import blockers
from runners.processes import Processes

from ..deploy.prometheus import free_port, running
from ..waiting import wait_until

#: Login records: type, pid, line, user.
ROWS = [(7, os.getpid(), b"tty1", b"alice"), (7, 2**22 - 1, b"pts/3", b"gone"), (8, os.getpid(), b"tty2", b"left"), (2, 0, b"~", b"reboot")]


def test_who_is_logged_in_is_what_who_says(tmp_path: Path) -> None:
    """From utmp and from systemd-logind's sessions; one whose process is gone is not there."""
    utmp, sessions = tmp_path / "utmp", tmp_path / "sessions"
    assert blockers.logged_in(utmp, sessions) == []
    pack = blockers._RECORD.pack
    utmp.write_bytes(b"".join(pack(kind, pid, line, b"1", user, b"", 0, 0, 0, 1_700_000_000, 0, 0, 0, 0, 0) for kind, pid, line, user in ROWS))
    assert blockers.logged_in(utmp, sessions) == ["alice on tty1"]
    seen = subprocess.run(["who", str(utmp)], capture_output=True, text=True, check=True).stdout.split("\n")
    assert [line.split()[:2] for line in seen if line] == [["alice", "tty1"], ["gone", "pts/3"]], "coreutils reads the same records"
    sessions.mkdir()
    (sessions / "1").write_text("USER=bob\nCLASS=user\nSTATE=online\nTTY=pts/0\n")
    (sessions / "2").write_text("USER=carol\nCLASS=user\nSTATE=closing\n")
    (sessions / "c1").write_text("USER=gdm\nCLASS=greeter\nSTATE=active\n")
    assert blockers.logged_in(utmp, sessions) == ["alice on tty1", "bob on pts/0"]
    utmp.unlink()
    utmp.mkdir()
    with pytest.raises(OSError, match="directory"):
        blockers.logged_in(utmp, sessions)


def test_what_prometheus_says_or_does_not(tmp_path: Path) -> None:
    """A vector that is not empty forbids it, a scalar that is not zero, a query that is none, and silence."""
    if shutil.which("prometheus") is None:
        reason = "prometheus missing; as root: apt-get install prometheus"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)

    async def ask(target: str) -> tuple[bool, str]:
        future: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
        processes = Processes(asyncio.get_running_loop(), tmp_path)
        processes.probe("query", target, {}, 10.0, lambda well, told: future.set_result((well, told)))
        return await future

    config = tmp_path / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1s}\n")
    with running(tmp_path, config) as server:
        wait_until("it answers", lambda: asyncio.run(ask(f"{server.base} vector(1) > 2"))[0])
        assert asyncio.run(ask(f"{server.base} vector(1) > 2")) == (True, "")
        assert asyncio.run(ask(f"{server.base}/ scalar(vector(0))")) == (True, "")
        well, told = asyncio.run(ask(f'{server.base} label_replace(vector(1), "alert", "Page", "", "")'))
        assert not well and "gives 1: " in told and "Page" in told
        assert asyncio.run(ask(f"{server.base} scalar(vector(2))"))[0] is False
        assert "HTTP 400" in asyncio.run(ask(f"{server.base} ((("))[1]
        base = server.base
    assert asyncio.run(ask(f"{base} up"))[0] is False
    assert asyncio.run(ask(f"http://127.0.0.1:{free_port()} up"))[0] is False
