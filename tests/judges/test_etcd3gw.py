"""etcd3gw's tests: a client of the v3 API's JSON gateway, pointed at one of three members.

Of the 39, sixteen in ``test_client`` and one in ``test_etcd3gw`` answer themselves with
mocks; the other 22 ask the member.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli import local

from ..real.cluster import port_offset, request
from ..waiting import wait_until
from . import environment, suite

SUITE = "etcd3gw.tests"
TESTS = 39
MEMBERS = (1, 2, 3)


@dataclass(frozen=True)
class Member:
    """One of three: where it listens."""

    name: str
    client_port: int
    peer_port: int

    @property
    def client(self) -> str:
        """Its client URL."""
        return f"http://127.0.0.1:{self.client_port}"

    @property
    def peer(self) -> str:
        """Its peer URL."""
        return f"http://127.0.0.1:{self.peer_port}"

    def healthy(self) -> bool:
        """Whether it says that a quorum answers."""
        reply = request(self.client_port, "GET", "/health", seconds=3.0)
        return reply.status == 200 and reply.json()["health"] == "true"


@contextmanager
def running(folder: Path, variables: dict[str, str], stem: str = "e", first: int = 1) -> Iterator[list[Member]]:
    """Three members of the etcd under test, all healthy; their logs are kept, their data is not.

    They are named ``stem`` and a number from ``first`` on.
    """
    data = folder / "data"
    data.mkdir()
    with port_offset(len(MEMBERS)) as offset, ExitStack() as stack:
        members = [Member(f"{stem}{n - 1 + first}", local.HTTP + n + offset, local.TRANSPORT + n + offset) for n in MEMBERS]
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        for member in members:
            command: list[str | Path] = [
                folder / "bin" / "etcd", "--name", member.name, "--data-dir", data / member.name,
                "--listen-peer-urls", member.peer, "--initial-advertise-peer-urls", member.peer,
                "--listen-client-urls", member.client, "--advertise-client-urls", member.client,
                "--initial-cluster", ",".join(f"{m.name}={m.peer}" for m in members),
                "--initial-cluster-state", "new",
            ]  # fmt: skip
            log = folder / f"{member.name}.log"
            stack.enter_context(suite.started(command, folder, variables, log))
        for member in members:
            wait_until(f"{member.name} to be healthy (see {folder}/{member.name}.log)", member.healthy)
        yield members


@pytest.mark.timeout(300)
def test_etcd3gw_cannot_tell_us_from_etcd(tmp_path: Path) -> None:
    """All of its tests, unchanged, and none of them skipped for want of a server."""
    with running(tmp_path, environment.variables(tmp_path)) as members:
        asked = members[0]
        variables = environment.variables(
            tmp_path, TOOZ_TEST_HTTP_URL=asked.client, TOOZ_TEST_ETCD_PORT=str(asked.client_port)
        )
        verdict = suite.run(SUITE, tmp_path, variables)
    suite.assert_all_passed(verdict, TESTS)
