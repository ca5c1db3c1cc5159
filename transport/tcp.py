"""The net port over TCP and TLS: one outgoing link per machine and lane, and clients.

A machine sends on links that it opened and receives on links that others opened; only a
client gets its answers on its own link.  Frames of one loop turn leave in one write.
Nothing here knows what a frame means.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any

from .codec import FrameError
from .frames import FrameReader, frame
from .handshake import (
    AGENT,
    CLIENT,
    GUEST,
    HANDSHAKE_S_MAX,
    HELLO_BYTES_MAX,
    MACHINE,
    Handshake,
    HandshakeError,
    Hello,
)
from .router import agent_sender
from .tls import identity_of

logger = logging.getLogger("argosy.transport")

#: Lanes: a snapshot or a log stream never delays a heartbeat.
CONTROL, BULK = 0, 1
LANES = (CONTROL, BULK)
#: Bytes that may wait on one link; beyond it frames are dropped and counted.
SEND_QUEUE_BYTES_MAX = 32 * 1024 * 1024
#: Links that others may open to this host.
INBOUND_LINKS_MAX = 16_384
#: Characters kept of why a link was refused: some of them are the peer's.
REASON_CHARS_MAX = 300
#: Seconds between attempts to open a link: doubling from the first to the last, with jitter.
RECONNECT_S_FIRST, RECONNECT_S_LAST = 0.05, 1.0


class Counters:
    """What the transport did, for metrics."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.frames_sent = 0
        self.frames_received = 0
        self.dropped: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.connects = 0

    def drop(self, why: str) -> bool:
        """Count a dropped frame; always False."""
        self.dropped[why] = self.dropped.get(why, 0) + 1
        return False


class _Link(asyncio.Protocol):
    """One TCP connection, either direction."""

    def __init__(self, net: TcpNet, outgoing_to: str | None, lane: int) -> None:
        self.net = net
        self.outgoing_to = outgoing_to
        self.lane = lane
        self.transport: Any = None
        self.reader = FrameReader(first_bytes_max=HELLO_BYTES_MAX)
        self.handshake: Handshake | None = None
        self.peer: Hello | None = None
        self.name = ""
        self.waiting: list[bytes] = []
        self.waiting_bytes = 0
        self.deadline: asyncio.TimerHandle | None = None
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        identity = identity_of(tls.getpeercert()) if tls is not None else None
        guest_only = tls is not None and identity is None
        self.handshake = Handshake(self.net.cluster, identity, may_guest=True)
        self.guest_only = guest_only
        self.deadline = self.net.loop.call_later(HANDSHAKE_S_MAX, self._late)
        self._write(self.net.hello(self.lane).encode())

    def _late(self) -> None:
        if self.peer is None:
            self.net.refuse(self, f"no hello within {HANDSHAKE_S_MAX:g} s")

    def data_received(self, data: bytes) -> None:
        self.net.counters.bytes_received += len(data)
        try:
            for payload in self.reader.feed(data):
                if self.peer is None:
                    self._greet(payload)
                else:
                    self.net.counters.frames_received += 1
                    self.net.received(self, payload)
                if self.closed:
                    return
        except FrameError as error:
            self.net.refuse(self, str(error))

    def _greet(self, payload: bytes) -> None:
        assert self.handshake is not None
        hello = self.handshake.receive(payload)
        if self.guest_only and hello.role != GUEST:
            raise HandshakeError("a peer without a certificate may only be a guest")
        if self.outgoing_to is not None and (hello.role, hello.machine) != (MACHINE, self.outgoing_to):
            raise HandshakeError(
                f"machine {self.outgoing_to} was expected there, "
                f"{'' if hello.role == MACHINE else hello.role + ' '}{hello.machine} answered"
            )
        self.peer = hello
        if self.deadline is not None:
            self.deadline.cancel()
        self.net.greeted(self)

    def send(self, payload: bytes) -> bool:
        """Queue a frame for the write at the end of this turn."""
        if self.closed or self.transport is None:
            return self.net.counters.drop("no_link")
        queued = self.waiting_bytes + self.transport.get_write_buffer_size()
        if queued > SEND_QUEUE_BYTES_MAX:
            return self.net.counters.drop("queue_full")
        self._write(payload)
        self.net.counters.frames_sent += 1
        return True

    def _write(self, payload: bytes) -> None:
        data = frame(payload)
        if not self.waiting:
            self.net.loop.call_soon(self._flush)
        self.waiting.append(data)
        self.waiting_bytes += len(data)

    def _flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        if self.closed or not waiting:
            return
        self.net.counters.bytes_sent += self.waiting_bytes
        self.waiting_bytes = 0
        self.transport.write(b"".join(waiting) if len(waiting) > 1 else waiting[0])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self.net.lost(self, exc)

    def close(self) -> None:
        """Drop the connection without ceremony."""
        if self.transport is not None:
            self.transport.abort()


class _Peer:
    """An outgoing link that is opened again and again."""

    def __init__(self, net: TcpNet, machine: str, address: str, lane: int) -> None:
        self.net = net
        self.machine = machine
        self.address = address
        self.lane = lane
        self.link: _Link | None = None
        self.failures = 0
        self.wanted = True
        self.last_error = ""
        self._seen = asyncio.Event()
        self.task = net.loop.create_task(self._open())

    async def _open(self) -> None:
        host, _, port = self.address.rpartition(":")
        while self.wanted:
            link = _Link(self.net, self.machine, self.lane)
            try:
                await asyncio.wait_for(
                    self.net.loop.create_connection(
                        lambda link=link: link, host.strip("[]"), int(port), ssl=self.net.client_tls
                    ),
                    HANDSHAKE_S_MAX,
                )
            except (TimeoutError, OSError, ssl.SSLError, ValueError) as error:
                self._note(error)
                await self._rest()
                continue
            if self.wanted and link.closed:  # lost before this task went on
                await self._rest()
                continue
            if self.wanted:
                self.link = link
            else:
                link.close()
            return

    def _note(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"its certificate is not signed by this cluster's authority ({error.verify_message})"
        if text != self.last_error:
            logger.info("no link to %s at %s: %s", self.machine, self.address, text)
            self.last_error = text

    async def _rest(self) -> None:
        """Wait before the next try, unless the machine shows meanwhile that it is there."""
        self._seen.clear()
        try:
            await asyncio.wait_for(self._seen.wait(), self._pause())
        except TimeoutError:
            pass

    def seen(self) -> None:
        """The machine has opened a link of its own to this host: it can be reached again."""
        self._seen.set()

    def _pause(self) -> float:
        delay: float = min(RECONNECT_S_FIRST * 2 ** min(self.failures, 10), RECONNECT_S_LAST)
        self.failures += 1
        return delay * (0.5 + self.net.draw(1000) / 1000)

    def reopen(self) -> None:
        """The link went down: try again after a pause."""
        self.link = None
        if self.wanted:

            async def later() -> None:
                await self._rest()
                await self._open()

            self.task = self.net.loop.create_task(later())

    def close(self) -> None:
        """Never open again."""
        self.wanted = False
        self.task.cancel()
        if self.link is not None:
            self.link.close()


class TcpNet:
    """Implements the net port; see the module docstring."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, cluster: str, machine: str, incarnation: str,
        draw: Callable[[int], int], server_tls: ssl.SSLContext | None = None,
        client_tls: ssl.SSLContext | None = None, role: str = MACHINE,
    ) -> None:  # fmt: skip
        """``role``: what this host says it is; its certificate must say the same."""
        self.loop = loop
        self.cluster = cluster
        self.machine = machine
        self.incarnation = incarnation
        self.role = role
        self.draw = draw
        self.server_tls = server_tls
        self.client_tls = client_tls
        self.counters = Counters()
        self._peers: dict[tuple[str, int], _Peer] = {}
        self._clients: dict[str, _Link] = {}
        self._inbound: set[_Link] = set()
        self._callers: dict[tuple[str, int], _Link] = {}  # machines that opened a link to this host
        self._next_client = 0
        self._on_frame: Callable[[str, bytes], None] = lambda machine, payload: None
        self._on_link: Callable[[str, bool], None] = lambda machine, up: None
        self._server: asyncio.AbstractServer | None = None

    # -- the net port ---------------------------------------------------------------

    def send(self, machine: str, lane: int, payload: bytes) -> bool:
        """Queue a frame for a machine or a client; False if it was dropped.

        A machine to which no link stands (it became a member while this host was off, so its
        address is not known here) is answered on the link that it opened itself.
        """
        peer = self._peers.get((machine, lane))
        link = peer.link if peer is not None else None
        if link is None:
            link = self._callers.get((machine, lane)) or self._clients.get(machine)
        if link is None or link.peer is None:
            return self.counters.drop("no_link")
        return link.send(payload)

    def set_peers(self, addresses: dict[str, str]) -> None:
        """Keep links to exactly these machines."""
        wanted = {
            (machine, lane): address
            for machine, address in addresses.items()
            if machine != self.machine
            for lane in LANES
        }
        for key in list(self._peers):
            if wanted.get(key) != self._peers[key].address:
                self._peers.pop(key).close()
        for key, address in wanted.items():
            if key not in self._peers:
                self._peers[key] = _Peer(self, key[0], address, key[1])

    def listen(self, on_frame: Callable[[str, bytes], None]) -> None:
        """Where incoming frames go."""
        self._on_frame = on_frame

    def on_link(self, callback: Callable[[str, bool], None]) -> None:
        """Called when the control link to a machine comes up or goes down."""
        self._on_link = callback

    # -- serving ------------------------------------------------------------------------

    async def serve(self, host: str, port: int) -> None:
        """Open the door; raises ``OSError`` if the address is taken."""
        self._server = await self.loop.create_server(
            self._accept, host, port, ssl=self.server_tls, reuse_address=True
        )

    def _accept(self) -> _Link:
        return _Link(self, None, CONTROL)

    def hello(self, lane: int) -> Hello:
        """What this host says first on a link."""
        return Hello(self.cluster, self.machine, self.incarnation, self.role, lane)

    def greeted(self, link: _Link) -> None:
        """A handshake is complete."""
        self.counters.connects += 1
        assert link.peer is not None
        if link.outgoing_to is not None:
            peer = self._peers.get((link.outgoing_to, link.lane))
            if peer is not None:
                peer.failures = 0
                peer.last_error = ""
                peer.link = link
            if link.lane == CONTROL:
                self._on_link(link.outgoing_to, True)
            return
        if len(self._inbound) >= INBOUND_LINKS_MAX:
            raise HandshakeError(f"inbound_links_max: {INBOUND_LINKS_MAX} links are open already")
        self._inbound.add(link)
        if link.peer.role in (MACHINE, AGENT):
            link.name = link.peer.machine
            link.lane = link.peer.lane
            self._callers[link.name, link.lane] = link
            for lane in LANES:
                peer = self._peers.get((link.name, lane))
                if peer is not None:
                    peer.seen()
        else:
            self._next_client += 1
            link.name = f"{link.peer.role}-{self._next_client}"
            self._clients[link.name] = link

    def received(self, link: _Link, payload: bytes) -> None:
        """A frame after the handshake."""
        sender = link.name or link.outgoing_to or ""
        is_agent = link.peer is not None and link.peer.role == AGENT
        self._on_frame(agent_sender(sender) if is_agent else sender, payload)

    def refuse(self, link: _Link, why: str) -> None:
        """Close a link that broke a rule; say so once per reason."""
        why = why[:REASON_CHARS_MAX]
        seen = self.counters.refused.get(why, 0)
        if len(self.counters.refused) < 1000 or seen:
            self.counters.refused[why] = seen + 1
        if not seen:
            logger.warning("link refused: %s", why)
        link.close()

    def lost(self, link: _Link, error: Exception | None) -> None:
        """A connection ended."""
        if link.deadline is not None:
            link.deadline.cancel()
        self._inbound.discard(link)
        if self._callers.get((link.name, link.lane)) is link:
            del self._callers[link.name, link.lane]
        if link.name in self._clients:
            del self._clients[link.name]
            self._on_link(link.name, False)
        if link.outgoing_to is not None:
            peer = self._peers.get((link.outgoing_to, link.lane))
            if peer is not None and peer.link is link:
                peer.reopen()
                if link.lane == CONTROL and link.peer is not None:
                    self._on_link(link.outgoing_to, False)

    def links_up(self) -> int:
        """Outgoing links that are ready."""
        return sum(1 for p in self._peers.values() if p.link is not None and p.link.peer is not None)

    async def close(self) -> None:
        """Close the door and every link."""
        if self._server is not None:
            self._server.close()
        for peer in self._peers.values():
            peer.close()
        for link in list(self._inbound):
            link.close()
        self._peers.clear()


__all__ = ["BULK", "CLIENT", "CONTROL", "GUEST", "Counters", "TcpNet"]
