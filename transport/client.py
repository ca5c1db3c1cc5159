"""A blocking client of the transport, for the command line: one link, one ask at a time."""

from __future__ import annotations

import itertools
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .codec import FrameError, decode, encode, pack, unpack
from .frames import FrameReader, frame
from .handshake import CLIENT, GUEST, MACHINE, Handshake, Hello
from .router import RemoteError
from .tls import identity_of

#: Longest time that one endpoint has to answer before the next is tried, in seconds.
CONNECT_S_MAX = 5.0


class UnreachableError(Exception):
    """None of the endpoints answered; the text names each with its reason."""


class ClientTimeout(Exception):
    """The endpoint did not answer in time."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files of a client; all None for a cluster without TLS."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Client:
    """Connects to the first endpoint that answers and keeps that link."""

    def __init__(
        self, endpoints: list[str], credentials: Credentials, guest: bool = False,
        machine: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """``guest``: a host that wants to join has no certificate yet.  Without an authority
        either, it can only ask for that (and must compare it with its token's pin).
        ``machine``: (cluster, id) of a host that speaks for itself while it does not run."""
        self._endpoints = endpoints
        self._credentials = credentials
        role = GUEST if guest else CLIENT
        self._hello = Hello("", "", "", role, 0) if machine is None else Hello(*machine, "", MACHINE, 0)
        self._guest = guest
        self._sent_on = False
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._frames: list[bytes] = []
        self._numbers = itertools.count(1)
        self.server: Hello | None = None

    def ask(self, message: Any, timeout: float, path: str = "control") -> Any:
        """Ask an actor (clients reach the control actor only); raises ``RemoteError``, ``ClientTimeout``, ``UnreachableError``."""
        deadline = time.monotonic() + timeout
        if self._socket is None:
            self._connect(deadline)
        assert self._socket is not None
        number = next(self._numbers)
        request = encode([1, path, pack(message), number, int(timeout * 1000)])
        try:
            self._socket.sendall(frame(request))
            while True:
                reply = decode(self._next_frame(deadline))
                if reply[0] == 2 and reply[1] == number:
                    break
        except (OSError, FrameError) as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise ClientTimeout(f"no answer within {timeout:g} s") from None
            raise UnreachableError(f"the link was lost: {error}") from None
        value = unpack(reply[3])
        if reply[2]:
            return value
        if value[0] == "ask_voter" and not self._sent_on:
            self._sent_on = True  # once: whom it names has a vote
            self.close()
            self._endpoints = [part.strip() for part in str(value[1]).rpartition(": ")[2].split(",")]
            return self.ask(message, max(0.1, deadline - time.monotonic()), path)
        raise RemoteError(str(value[0]), str(value[1]))

    def _connect(self, deadline: float) -> None:
        reasons = []
        for left, endpoint in zip(range(len(self._endpoints), 0, -1), self._endpoints, strict=True):
            share = (deadline - time.monotonic()) / left  # one that is silent leaves time for the others
            try:
                self._open(endpoint, max(0.05, min(CONNECT_S_MAX, share)))
                return
            except (OSError, FrameError, ValueError) as error:
                self.close()
                reasons.append(f"{endpoint}: {_reason(error)}")
        raise UnreachableError("; ".join(reasons) or "no endpoint is configured")

    def _open(self, endpoint: str, wait: float) -> None:
        host, colon, port = endpoint.rpartition(":")
        if not colon or not port.isdigit():
            raise ValueError("an endpoint is HOST:PORT")
        deadline = time.monotonic() + wait
        raw = socket.create_connection((host.strip("[]"), int(port)), wait)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = raw
        context = self._context()
        identity = None
        if context is not None:
            raw.getpeername()  # raises for a link that is reset already, which the next line would leave open
            wrapped = context.wrap_socket(raw)
            self._socket = wrapped
            identity = identity_of(wrapped.getpeercert())
        self._reader = FrameReader()
        self._socket.sendall(frame(self._hello.encode()))
        payload = self._next_frame(deadline)
        hello = decode(payload)
        cluster = hello[3] if type(hello) is list and len(hello) == 8 else ""
        self.server = Handshake(cluster, identity, may_guest=False).receive(payload)

    def _context(self) -> ssl.SSLContext | None:
        files = self._credentials
        if files.authority is None and not self._guest:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        if files.authority is None:
            context.verify_mode = ssl.CERT_NONE
            return context
        context.load_verify_locations(files.authority)
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key)
        return context

    def _next_frame(self, deadline: float) -> bytes:
        while not self._frames:
            assert self._socket is not None
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the host closed the link")
            self._frames.extend(self._reader.feed(data))
        return self._frames.pop(0)

    def close(self) -> None:
        """Drop the link; the next ask opens one again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._frames = []


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not signed by the context's authority ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return str(error)
