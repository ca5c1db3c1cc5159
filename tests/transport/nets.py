"""What the transport's tests share: identities, nets on real sockets, and peers that misbehave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from transport import tls
from transport.frames import FrameReader, frame
from transport.tcp import TcpNet

#: Seconds anything on loopback may take before it counts as stuck.
PATIENCE_S = 10.0
LOOPBACK = "127.0.0.1"


async def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    """Let the loop turn until the condition holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.002)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run one scenario on a loop of its own; a problem on the loop is a failure."""
    problems: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        await asyncio.wait_for(scenario(), 3 * PATIENCE_S)

    asyncio.run(watched())
    assert problems == []


class Cluster:
    """An authority, and a folder with an identity for each party that asks for one."""

    def __init__(self, folder: Path, name: str = "c1") -> None:
        self.name = name
        self.folder = folder / name
        self.authority, self.key = tls.make_authority(name)

    def identity(self, name: str, role: str = "machine") -> Path:
        """The folder with a certificate for this name and role."""
        folder = self.folder / f"{role}-{name}"
        if not folder.exists():
            tls.save(folder, tls.issue(self.authority, self.key, name, role))
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

    def error(self, machine: str) -> str:
        """The last reason for which no link to a machine could be opened."""
        return self.net._peers[(machine, 0)].last_error  # noqa: SLF001

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
