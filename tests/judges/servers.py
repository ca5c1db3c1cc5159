"""Debian's etcd and ours, side by side: what the differential tests ask the same of.

``ARGOSY_JUDGE_ETCD=/usr/bin/etcd`` puts the real one on both sides.  Then nothing may differ,
which proves the tests themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cli import local

from ..answers import Answer
from ..real.cluster import port_offset
from ..waiting import wait_until
from . import suite
from .environment import etcd_under_test

#: Members on our side; Debian's has one.
OUR_MEMBERS = 3
#: Seconds a server may think about one request.
ANSWER_S = 10.0
_FOREIGN = ("ARGOSY_", "ETCD_", "ETCDCTL_", "PYTEST_")
_UNDECIDED = "not_decided"


def debian_program(name: str) -> Path:
    """A program of Debian's etcd packages, and not the one of the same name in our environment."""
    ours = Path(sys.executable).parent.resolve()
    folders = [f for f in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(f).resolve() != ours]
    found = shutil.which(name, path=os.pathsep.join([*folders, "/usr/bin"]))
    if found is None:
        reason = f"{name} is missing; as root: apt-get install etcd-server etcd-client"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found)


def plain_variables() -> dict[str, str]:
    """This environment without anything that steers an etcd, etcdctl or Argosy."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}


class Stream:
    """An answer that comes line by line, on a connection of its own."""

    def __init__(
        self, port: int, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
        self._answer: HTTPResponse | None = None
        try:
            self._connection.request(method, target, body, headers)
            self._answer = self._connection.getresponse()
        except (OSError, HTTPException):
            self.close()
            raise
        self.status = self._answer.status
        self.headers = {k.lower(): v for k, v in self._answer.getheaders()}

    def line(self, seconds: float) -> str | None:
        """The next line that is not empty; None if none comes in time, or ever."""
        assert self._answer is not None
        try:
            if self._connection.sock is not None:
                self._connection.sock.settimeout(seconds)
            while line := self._answer.readline():
                if line.strip():
                    return line.decode(errors="backslashreplace")
        except (OSError, HTTPException, ValueError):
            pass
        return None

    def close(self) -> None:
        """Hang up."""
        if self._answer is not None:
            self._answer.close()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server:
    """A running cluster of one ``etcd`` program, all members on loopback."""

    def __init__(self, program: Path, offset: int, members: int) -> None:
        self.program = program
        self.client_ports = [local.HTTP + n + offset for n in range(1, members + 1)]
        self.peer_ports = [local.TRANSPORT + n + offset for n in range(1, members + 1)]
        self._connections: dict[int, HTTPConnection] = {}

    def __repr__(self) -> str:
        return f"{len(self.client_ports)} x {self.program}"

    @property
    def url(self) -> str:
        """The client URL of the first member."""
        return f"http://127.0.0.1:{self.client_ports[0]}"

    def command(self, number: int, data: Path) -> list[str | Path]:
        """The command line of member ``number``, from 0."""
        client = f"http://127.0.0.1:{self.client_ports[number]}"
        peer = f"http://127.0.0.1:{self.peer_ports[number]}"
        founders = ",".join(f"j{n}=http://127.0.0.1:{port}" for n, port in enumerate(self.peer_ports))
        bound: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        return [
            *bound, self.program, "--name", f"j{number}", "--data-dir", data / f"j{number}",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", founders, "--initial-cluster-state", "new",
            "--initial-cluster-token", data.parent.name, "--enable-v2=true",
        ]  # fmt: skip

    # -- asking ----------------------------------------------------------------------------

    def ask(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None,
        member: int = 0,
    ) -> Answer:  # fmt: skip
        """One request to a member, over a kept connection."""
        for attempt in (1, 2):
            connection = self._connections.get(member)
            kept = connection is not None
            if connection is None:
                connection = HTTPConnection("127.0.0.1", self.client_ports[member], timeout=ANSWER_S)
                self._connections[member] = connection
            try:
                connection.request(method, target, body, headers or {})
                return Answer.read(connection.getresponse(), errors="backslashreplace")
            except TimeoutError:
                self._drop(member)
                raise
            except (OSError, HTTPException):
                self._drop(member)
                if not kept or attempt == 2:
                    raise
        raise AssertionError("a second attempt answers or raises")

    def outcome(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """As :meth:`ask`, but no answer is an answer too: status 0."""
        try:
            return self.ask(method, target, body, headers)
        except (OSError, HTTPException) as error:
            return Answer(0, {}, f"no answer: {type(error).__name__}")

    def v2_index(self, folder: str) -> int:
        """The index of the store, asked for at a folder."""
        return self.ask("GET", f"/v2/keys{folder}?quorum=true").index

    def v3(self, path: str, message: dict[str, Any]) -> Answer:
        """One message to the JSON gateway."""
        return self.ask("POST", f"/v3/{path}", json.dumps(message).encode())

    def stream(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Stream:
        """A request to the first member whose answer does not end."""
        return Stream(self.client_ports[0], method, target, body, headers or {})

    def close(self) -> None:
        """Hang up everywhere."""
        for member in list(self._connections):
            self._drop(member)

    def _drop(self, member: int) -> None:
        self._connections.pop(member).close()

    # -- looking ---------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether all members are healthy and have told each other all that they tell at first.

        What they tell moves etcd's v2 index, so it has to be over before anything is compared.
        """
        for member in range(len(self.client_ports)):
            health = self.ask("GET", "/health", member=member)
            version = self.ask("GET", "/version", member=member)
            known = self.ask("GET", "/v2/members", member=member).json()["members"]
            told = [m for m in known if m.get("name") and m.get("clientURLs")]
            if (
                health.status != 200 or health.json().get("health") != "true"
                or version.json()["etcdcluster"] == _UNDECIDED or len(told) != len(self.client_ports)
            ):  # fmt: skip
                return False
        return True


def _are_free(ports: list[int]) -> bool:
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


@contextmanager
def running(program: Path, members: int, folder: Path) -> Iterator[Server]:
    """So many members of a program, all ready; every process is gone afterwards, in every case."""
    with port_offset(members) as offset, ExitStack() as stack:
        server = Server(program, offset, members)
        assert _are_free([*server.client_ports, *server.peer_ports])
        data = folder / "data"
        data.mkdir(parents=True)
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        stack.callback(server.close)
        for number in range(members):
            log = folder / f"j{number}.log"
            stack.enter_context(suite.started(server.command(number, data), folder, plain_variables(), log))
        wait_until(f"{server} to be ready (see {folder})", server.is_ready)
        yield server


@dataclass(frozen=True)
class Pair:
    """The two that are compared."""

    theirs: Server
    ours: Server

    def __iter__(self) -> Iterator[Server]:
        return iter((self.theirs, self.ours))


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Debian's etcd, one member, and ours, three."""
    theirs, ours = debian_program("etcd"), etcd_under_test()
    with (
        running(theirs, 1, tmp_path_factory.mktemp("theirs")) as one,
        running(ours, OUR_MEMBERS, tmp_path_factory.mktemp("ours")) as other,
    ):
        yield Pair(one, other)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A key with a time to live that one test leaves would count as an index of another."""
    yield
    if "pair" in request.fixturenames:
        for server in request.getfixturevalue("pair"):
            for node in server.ask("GET", "/v2/keys/").json()["node"].get("nodes", ()):
                server.ask("DELETE", f"/v2/keys{quote(node['key'])}?recursive=true")
