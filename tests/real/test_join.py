"""Real hosts by themselves: one founds a cluster, others join it with tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import port_offset, request, run_argosy
from .hosts import Hosts


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
