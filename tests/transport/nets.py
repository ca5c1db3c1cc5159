"""What the transport's tests share: identities, nets on real sockets, and peers that misbehave."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from transport import ca, tls
from transport.frames import FrameReader, frame
from transport.handshake import GUEST, Hello
from transport.tcp import CONTROL, TcpNet, _Link, _Peer

#: Seconds anything on loopback may take before it counts as stuck.
PATIENCE_S = 10.0
LOOPBACK = "127.0.0.1"
GUEST_HELLO = Hello("", "", "", GUEST, 0).encode()


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    """Let the loop turn until the condition holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.002)


class Cluster:
    """An authority, and a folder with an identity for each party that asks for one."""

    def __init__(self, folder: Path, name: str = "c1") -> None:
        self.name = name
        self.folder = folder / name
        self.authority, self.key = ca.make_authority(name)

    def identity(self, name: str, role: str = "machine") -> Path:
        """The folder with a certificate for this name and role."""
        folder = self.folder / f"{role}-{name}"
        if not folder.exists():
            tls.save(folder, ca.issue(self.authority, self.key, name, role))
        return folder


class Net:
    """A net of one machine, with everything that it received and heard."""

    def __init__(self, machine: str, folder: Path | None = None, cluster: str = "c1") -> None:
        self.net = TcpNet(
            asyncio.get_running_loop(), cluster, machine, "i1", lambda n: 0,
            tls.server_context(folder) if folder else None,
            tls.client_context(folder) if folder else None,
        )  # fmt: skip
        self.frames: list[tuple[str, bytes]] = []
        self.links: list[tuple[str, bool]] = []
        self.net.listen(lambda sender, payload: self.frames.append((sender, payload)))
        self.net.on_link(lambda machine, up: self.links.append((machine, up)))

    async def serve(self, port: int = 0) -> str:
        """Open the door; its address."""
        await self.net.serve(LOOPBACK, port)
        server = self.net._server  # noqa: SLF001
        assert isinstance(server, asyncio.Server)
        self.port: int = server.sockets[0].getsockname()[1]
        return f"{LOOPBACK}:{self.port}"

    def refused(self) -> str:
        """All reasons for which links were refused here, as one text."""
        return "; ".join(self.net.counters.refused)

    async def linked(self, seconds: float = PATIENCE_S) -> None:
        """Wait until links stand on both lanes to the one other machine."""
        await until(lambda: self.net.links_up() == 2, f"the links of {self.net.machine}", seconds)

    def inbound(self) -> set[_Link]:
        """Links that were opened to here and are ready."""
        return self.net._inbound  # noqa: SLF001

    def peer(self, machine: str, lane: int) -> _Peer:
        """The link to a machine that is opened again and again."""
        return self.net._peers[(machine, lane)]  # noqa: SLF001

    def error(self, machine: str, lane: int = CONTROL) -> str:
        """The last reason for which no link to a machine could be opened."""
        return self.peer(machine, lane).last_error

    async def close(self) -> None:
        """Close everything and let the sockets go."""
        await self.net.close()
        await asyncio.sleep(0)


class Impostor:
    """A server that answers every connection with the bytes it was told to, then as told."""

    def __init__(self, hello: bytes, context: ssl.SSLContext | None, hang_up: bool = False) -> None:
        self.hello = hello
        self.context = context
        self.hang_up = hang_up
        self.connections = 0
        self.received: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None

    async def serve(self, port: int = 0) -> str:
        """Open the door; its address."""
        self.server = await asyncio.start_server(self._greet, LOOPBACK, port, ssl=self.context)
        self.port = self.server.sockets[0].getsockname()[1]
        return f"{LOOPBACK}:{self.port}"

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        if self.hang_up:
            writer.transport.abort()
            return
        writer.write(frame(self.hello))
        frames = FrameReader()
        try:
            while data := await reader.read(65536):
                self.received += frames.feed(data)
        except OSError:
            pass

    async def close(self) -> None:
        """Close the door and what came through it."""
        if self.server is not None:
            self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.sleep(0)


class Stranger:
    """A connection made by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._frames = FrameReader()
        self._ready: list[bytes] = []

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext | None) -> Stranger:
        """Connect to a door on loopback."""
        return cls(*await asyncio.open_connection(LOOPBACK, port, ssl=context))

    def send(self, payload: bytes) -> None:
        """Send one frame."""
        self.writer.write(frame(payload))

    async def receive(self) -> bytes:
        """The next frame; raises ``EOFError`` when the other side closed."""
        while not self._ready:
            data = await asyncio.wait_for(self.reader.read(65536), PATIENCE_S)
            if not data:
                raise EOFError
            self._ready += self._frames.feed(data)
        return self._ready.pop(0)

    async def closed(self) -> bool:
        """Read until the other side closes; whether it did so in time."""
        try:
            while await asyncio.wait_for(self.reader.read(65536), PATIENCE_S):
                pass
        except (OSError, ssl.SSLError):
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Hang up."""
        self.writer.transport.abort()


def bare_context(folder: Path | None) -> ssl.SSLContext:
    """TLS as a client that trusts anybody, with or without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if folder is not None:
        context.load_cert_chain(folder / "host.crt", folder / "host.key")
    return context


class Loopback:
    """Opens what a test needs, as machines of one cluster, and closes all of it in the end."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._servers: list[Net | Impostor] = []
        self._strangers: list[Stranger] = []

    def net(self, machine: str, identity: Path | None = None) -> Net:
        """The net of a machine, with the certificate of that machine unless another one is given."""
        return self._kept(Net(machine, identity or self.cluster.identity(machine)))

    def plain(self, machine: str, cluster: str = "c1") -> Net:
        """The net of a machine without TLS."""
        return self._kept(Net(machine, None, cluster))

    def _kept(self, net: Net) -> Net:
        self._servers.append(net)
        return net

    async def pair(self) -> tuple[Net, Net]:
        """Two nets that keep links to each other, up on both lanes."""
        one, two = self.net("m1"), self.net("m2")
        addresses = {"m1": await one.serve(), "m2": await two.serve()}
        for net in (one, two):
            net.net.set_peers(addresses)
        for net in (one, two):
            await net.linked()
        return one, two

    def impostor(self, hello: bytes, context: ssl.SSLContext | None, hang_up: bool = False) -> Impostor:
        """A server that is no net."""
        made = Impostor(hello, context, hang_up)
        self._servers.append(made)
        return made

    async def stranger(self, net: Net, identity: Path | None = None) -> Stranger:
        """Somebody at the door of a net, with TLS if the net has it."""
        made = await Stranger.connect(net.port, bare_context(identity) if net.net.server_tls else None)
        self._strangers.append(made)
        return made

    async def guest(self, net: Net) -> Stranger:
        """A stranger who says that he is a guest."""
        made = await self.stranger(net)
        made.send(GUEST_HELLO)
        return made

    async def close(self) -> None:
        """Close everything."""
        for stranger in self._strangers:
            stranger.close()
        for server in self._servers:
            await server.close()


def scenario(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test with a ``loopback`` on a loop of its own; a problem on the loop is a failure."""

    @functools.wraps(test)
    def run(loopback: Loopback, **fixtures: Any) -> None:
        problems: list[dict[str, Any]] = []

        async def closed_afterwards() -> None:
            try:
                await test(loopback=loopback, **fixtures)
            finally:
                await loopback.close()

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
            await asyncio.wait_for(closed_afterwards(), 3 * PATIENCE_S)

        asyncio.run(watched())
        assert problems == []

    return run
