"""The command line's blocking client against a real door: answers, refusals, and clear words."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.actor import Actor
from kernel.dispatch import LoopDispatcher
from kernel.mailbox import Promise
from kernel.system import System
from transport import tls
from transport.client import Client, ClientTimeout, Credentials, UnreachableError
from transport.router import FromClient, RemoteError, Router
from transport.tcp import TcpNet

from .nets import LOOPBACK, PATIENCE_S, Cluster

pytestmark = pytest.mark.timeout(60)


class Control(Actor):
    """Answers who asked and what."""

    def on_receive(self, message: Any) -> Any:
        """Echo with the client's name; some words mean something."""
        assert isinstance(message, FromClient)
        if message.message == "boom":
            raise ValueError("boom")
        if message.message == "wait":
            return Promise()
        return [message.client.partition("-")[0], message.message]


class Door:
    """A host on a thread of its own, with a control actor and nothing else."""

    def __init__(self, folder: Path | None, port: int = 0) -> None:
        self._folder = folder
        self._port = port
        self._up = threading.Event()
        self._stop: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.problems: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self.thread.start()
        assert self._up.wait(PATIENCE_S)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda loop, context: self.problems.append(context))
        dispatcher = LoopDispatcher(self.loop)
        system = System("m1", {"loop": dispatcher})
        server = tls.server_context(self._folder) if self._folder else None
        net = TcpNet(self.loop, "c1", "m1", "i1", lambda n: 0, server, None)
        router = Router(system, net, dispatcher, "m1")
        net.on_link(router.link_changed)
        await net.serve(LOOPBACK, self._port)
        assert isinstance(net._server, asyncio.Server)  # noqa: SLF001
        self._port = net._server.sockets[0].getsockname()[1]  # noqa: SLF001
        system.spawn(Control, name="control")
        system.spawn(Control, name="secret")
        self._stop = asyncio.Event()
        self._up.set()
        await self._stop.wait()
        system.crash()
        await net.close()
        await asyncio.sleep(0)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"{LOOPBACK}:{self._port}"

    def restart(self) -> Door:
        """A new host at the same address."""
        self.close()
        return Door(self._folder, self._port)

    def close(self) -> None:
        """Stop the host."""
        if self.thread.is_alive():
            assert self.loop is not None
            assert self._stop is not None
            self.loop.call_soon_threadsafe(self._stop.set)
            self.thread.join(PATIENCE_S)


def credentials(cluster: Cluster, name: str = "admin", role: str = "client") -> Credentials:
    """The files of a client."""
    folder = cluster.identity(name, role)
    return Credentials(folder / "ca.crt", folder / "host.crt", folder / "host.key")


@pytest.fixture
def door(cluster: Cluster) -> Iterator[Door]:
    """A host with TLS."""
    made = Door(cluster.identity("m1"))
    yield made
    made.close()
    assert made.problems == []


def test_a_client_asks_the_control_actor(door: Door, cluster: Cluster) -> None:
    """Several asks share one link; the client knows who answered."""
    client = Client([door.endpoint], credentials(cluster))
    assert client.ask({"verb": "status"}, 5) == ["client", {"verb": "status"}]
    assert client.ask("again", 5) == ["client", "again"]
    assert client.server is not None
    assert client.server.machine == "m1"
    client.close()


def test_a_refusal_comes_with_code_and_text(door: Door, cluster: Cluster) -> None:
    """And the link stays usable."""
    client = Client([door.endpoint], credentials(cluster))
    with pytest.raises(RemoteError, match="boom") as caught:
        client.ask("boom", 5)
    assert caught.value.code == "ValueError"
    assert client.ask("x", 5) == ["client", "x"]
    client.close()


def test_no_answer_in_time_says_so(door: Door, cluster: Cluster) -> None:
    """The next ask opens a new link, so a late answer cannot be taken for it."""
    client = Client([door.endpoint], credentials(cluster))
    with pytest.raises(ClientTimeout, match=r"no answer within 0\.2 s"):
        client.ask("wait", 0.2)
    assert client.ask("x", 5) == ["client", "x"]
    client.close()


@pytest.mark.parametrize("knows", [True, False], ids=["with the authority", "without"])
def test_a_guest_needs_no_certificate(door: Door, cluster: Cluster, knows: bool) -> None:
    """It is known as a guest there, and reaches control."""
    authority = cluster.identity("m1") / "ca.crt" if knows else None
    guest = Client([door.endpoint], Credentials(authority), guest=True)
    assert guest.ask("may I join?", 5) == ["guest", "may I join?"]
    guest.close()


def test_a_client_finds_the_endpoint_that_answers(door: Door, cluster: Cluster) -> None:
    """Dead endpoints before the living one are passed over."""
    client = Client([f"{LOOPBACK}:1", "nonsense", door.endpoint], credentials(cluster))
    assert client.ask("x", 5) == ["client", "x"]
    client.close()


def test_an_endpoint_that_is_silent_leaves_time_for_the_next(door: Door, cluster: Cluster) -> None:
    """A host that is cut off, or stopped, takes connections or packets and says nothing."""
    with socket.create_server((LOOPBACK, 0)) as silent:
        client = Client([f"{LOOPBACK}:{silent.getsockname()[1]}", door.endpoint], credentials(cluster))
        assert client.ask("x", 4) == ["client", "x"]
        client.close()


def test_every_endpoint_is_named_with_its_reason(cluster: Cluster) -> None:
    """When none answers, the text says of each why."""
    client = Client([f"{LOOPBACK}:1", "nonsense"], credentials(cluster))
    with pytest.raises(UnreachableError) as caught:
        client.ask("x", 2)
    assert str(caught.value) == f"{LOOPBACK}:1: connection refused; nonsense: an endpoint is HOST:PORT"
    with pytest.raises(UnreachableError, match="no endpoint is configured"):
        Client([], credentials(cluster)).ask("x", 1)


def test_a_host_of_another_authority_is_refused(door: Door, cluster: Cluster, strangers: Cluster) -> None:
    """In words, not in the library's."""
    client = Client([door.endpoint], credentials(strangers))
    with pytest.raises(UnreachableError, match="not signed by the context's authority"):
        client.ask("x", 5)


def test_a_client_of_another_authority_is_refused_by_the_host(
    door: Door, cluster: Cluster, strangers: Cluster
) -> None:
    """The right authority's file, the wrong certificate."""
    good, bad = credentials(cluster), credentials(strangers)
    client = Client([door.endpoint], Credentials(good.authority, bad.certificate, bad.key))
    with pytest.raises(UnreachableError, match=door.endpoint):
        client.ask("x", 5)


def test_a_client_does_not_take_another_client_for_a_host(cluster: Cluster) -> None:
    """A door served with a client's certificate is not the cluster's door."""
    impostor = Door(cluster.identity("admin", "client"))
    try:
        client = Client([impostor.endpoint], credentials(cluster))
        with pytest.raises(UnreachableError, match="the certificate is for client admin"):
            client.ask("x", 5)
    finally:
        impostor.close()


def test_a_client_survives_a_restart_of_the_host(cluster: Cluster) -> None:
    """The lost link is an error once; the next ask connects again."""
    door = Door(cluster.identity("m1"))
    client = Client([door.endpoint], credentials(cluster))
    assert client.ask("x", 5) == ["client", "x"]
    door = door.restart()
    try:
        with pytest.raises(UnreachableError, match="the link was lost"):
            client.ask("lost", 5)
        assert client.ask("x", 5) == ["client", "x"]
        client.close()
    finally:
        door.close()


def test_a_cluster_without_tls_works_without_files() -> None:
    """Nothing to load, nothing to verify."""
    door = Door(None)
    try:
        client = Client([door.endpoint], Credentials())
        assert client.ask("x", 5) == ["client", "x"]
        client.close()
    finally:
        door.close()
