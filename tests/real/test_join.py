"""Real hosts by themselves: one founds a cluster, others join it with tokens."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from ..waiting import wait_until
from .cluster import argosy_command, environment, port_offset, request, run_argosy


class Hosts:
    """Three hosts, each ``argosy start`` in the foreground of its own process."""

    def __init__(self, folder: Path, offset: int) -> None:
        self.folder = folder
        self.offset = offset
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int, *more: str) -> None:
        with (self.folder / f"h{number}.log").open("ab") as log:
            self.running[number] = self._launch(number, log, *more)

    def _launch(self, number: int, log: IO[bytes], *more: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [argosy_command(), "start", "--name", f"h{number}", "--data-dir", str(self.folder / f"h{number}"),
             "--transport", f"127.0.0.1:{7000 + self.offset + number}",
             "--client", f"127.0.0.1:{4000 + self.offset + number}", *more],
            env=environment(self.folder), stdout=log, stderr=log,
        )  # fmt: skip

    def argosy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        context = str(self.folder / "h1" / "context.toml")
        endpoints = ",".join(f"127.0.0.1:{7000 + self.offset + n}" for n in (1, 2, 3))
        return run_argosy(self.folder, *["--context", context, "--endpoint", endpoints, *arguments])

    def voters(self) -> int:
        import json

        done = self.argosy("cluster", "status", "--json")
        if done.returncode:
            return 0
        return sum(m["role"] in ("voter", "leader") for m in json.loads(done.stdout)["members"])

    def token(self) -> str:
        done = self.argosy("cluster", "token")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait(10)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as stack:
        made = Hosts(tmp_path, stack.enter_context(port_offset(3)))
        stack.callback(made.stop)
        yield made


def test_a_cluster_grows_by_tokens_and_loses_its_founder(hosts: Hosts) -> None:
    """One voter becomes three; without the founder writes go on; a used token is refused."""
    hosts.start(1, "--bootstrap")
    wait_until("the founder", lambda: hosts.voters() == 1)
    first = f"127.0.0.1:{7001 + hosts.offset}"
    token = hosts.token()
    hosts.start(2, "--join", first, "--token", token)
    wait_until("two voters", lambda: hosts.voters() == 2)
    hosts.start(3, "--join", first, "--token", hosts.token())
    wait_until("three voters", lambda: hosts.voters() == 3)

    late = run_argosy(hosts.folder, *["start", "--name", "h4", "--data-dir", str(hosts.folder / "h4"), "--transport", "127.0.0.1:7999",
         "--join", first, "--token", token])  # fmt: skip
    assert late.returncode == 1
    assert "unknown, used up or expired" in late.stderr
    ident, secret, pin = hosts.token().split(".")
    other = ("0" if pin[0] != "0" else "1") + pin[1:]
    wrong = run_argosy(hosts.folder, *["start", "--name", "h4", "--data-dir", str(hosts.folder / "h5"), "--transport", "127.0.0.1:7999",
         "--join", first, "--token", f"{ident}.{secret}.{other}"])  # fmt: skip
    assert wrong.returncode == 1
    assert "not the one this token is for" in wrong.stderr

    assert request(4001 + hosts.offset, "PUT", "/v2/keys/a", {"value": "1"}).status == 201
    hosts.running[1].kill()
    wait_until(
        "a write without the founder",
        lambda: request(4002 + hosts.offset, "PUT", "/v2/keys/b", {"value": "2"}).status in (200, 201),
    )
    assert request(4003 + hosts.offset, "GET", "/v2/keys/a?quorum=true").json()["node"]["value"] == "1"


def test_an_agent_joins_without_a_vote(hosts: Hosts) -> None:
    """``--role agent``: it runs units and never counts for the quorum."""
    hosts.start(1, "--bootstrap")
    wait_until("the founder", lambda: hosts.voters() == 1)
    first = f"127.0.0.1:{7001 + hosts.offset}"
    token = hosts.argosy("cluster", "token", "--role", "agent").stdout.strip()
    hosts.start(2, "--join", first, "--token", token, "--role", "agent", "--metadata", "kind=agent")
    unit = hosts.folder / "sleep.service"
    unit.write_text("[Service]\nExecStart=/bin/sleep 1000\n[X-Fleet]\nMachineMetadata=kind=agent\n")
    wait_until("the agent", lambda: "h2" in hosts.argosy("machine", "list").stdout)
    started = hosts.argosy("unit", "start", str(unit))
    assert started.returncode == 0, started.stderr
    assert "h2" in started.stdout
    assert hosts.voters() == 1
    assert hosts.argosy("unit", "destroy", "sleep").returncode == 0
