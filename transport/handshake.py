"""The first frame in each direction: who speaks, for which cluster, which protocol.

Sans-IO: a table of states.  Nothing else passes before it is complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from .codec import FrameError, decode, encode

#: Protocol versions this build understands.
PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
#: Seconds a peer has to complete the handshake.
HANDSHAKE_S_MAX = 5.0
#: Largest handshake frame, in bytes.
HELLO_BYTES_MAX = 4096

#: A machine of the brain, one without a vote, an operator, and who wants to join.
MACHINE, AGENT, CLIENT, GUEST = "machine", "agent", "client", "guest"


class HandshakeError(FrameError):
    """The peer is not somebody to talk to; the text says why."""


class State(Enum):
    """Where a handshake is."""

    WAITING = "waiting"
    READY = "ready"
    REFUSED = "refused"


#: (state, event) -> next state; everything else is refused.
TRANSITIONS = {
    (State.WAITING, "hello"): State.READY,
    (State.WAITING, "refuse"): State.REFUSED,
}


@dataclass(frozen=True, slots=True)
class Hello:
    """What each side says first."""

    cluster: str
    machine: str
    incarnation: str
    role: str
    lane: int

    def encode(self) -> bytes:
        """The frame's payload."""
        return encode(
            ["argosy", PROTOCOL_MIN, PROTOCOL_MAX, self.cluster, self.machine, self.incarnation,
             self.role, self.lane]
        )  # fmt: skip


class Handshake:
    """One side's view of one link."""

    def __init__(self, cluster: str, identity: tuple[str, str] | None, may_guest: bool) -> None:
        """``identity``: (name, role) in the peer's certificate; None when TLS is off."""
        self._cluster = cluster
        self._identity = identity
        self._may_guest = may_guest
        self.state = State.WAITING
        self.peer: Hello | None = None

    def _move(self, event: str) -> None:
        step = TRANSITIONS.get((self.state, event))
        if step is None:
            raise HandshakeError(f"a {event} in state {self.state.value}")
        self.state = step

    def receive(self, payload: bytes) -> Hello:
        """Take the peer's hello; raises :class:`HandshakeError` with the reason."""
        try:
            hello = self._judge(payload)
        except FrameError:
            self._move("refuse")
            raise
        self._move("hello")
        self.peer = hello
        return hello

    def _judge(self, payload: bytes) -> Hello:
        if len(payload) > HELLO_BYTES_MAX:
            raise HandshakeError(f"a hello of {len(payload)} bytes; {HELLO_BYTES_MAX} are accepted")
        fields: Any = decode(payload)
        if type(fields) is not list or len(fields) != 8 or fields[0] != "argosy":
            raise HandshakeError("the first frame is not an Argosy hello")
        _, low, high, cluster, machine, incarnation, role, lane = fields
        texts = (cluster, machine, incarnation, role)
        if not all(type(x) is str for x in texts) or not all(type(x) is int for x in (low, high, lane)):
            raise HandshakeError("the hello has fields of a wrong type")
        if low > PROTOCOL_MAX or high < PROTOCOL_MIN:
            raise HandshakeError(
                f"the peer speaks protocol {low} to {high}, this host {PROTOCOL_MIN} to {PROTOCOL_MAX}"
            )
        if role not in (MACHINE, AGENT, CLIENT, GUEST):
            raise HandshakeError(f"no peer has the role {role!r}")
        if role == GUEST:
            if not self._may_guest:
                raise HandshakeError("guests are not accepted here")
        elif cluster != self._cluster and not (role == CLIENT and not cluster):
            raise HandshakeError(f"the peer belongs to cluster {cluster}, this host to {self._cluster}")
        if self._identity is not None and role != GUEST:
            name, allowed = self._identity
            if role != allowed or (role in (MACHINE, AGENT) and name != machine):
                raise HandshakeError(
                    f"the certificate is for {allowed} {name}, the peer says {role} {machine}"
                )
        return Hello(cluster, machine, incarnation, role, lane)
