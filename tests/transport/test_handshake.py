"""The handshake's table, and every sentence by which a peer is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.codec import FrameError, encode
from transport.handshake import (
    CLIENT,
    GUEST,
    HELLO_BYTES_MAX,
    MACHINE,
    TRANSITIONS,
    Handshake,
    HandshakeError,
    Hello,
    State,
)

HELLO = Hello("c1", "m2", "i1", MACHINE, 0)


def fresh(identity: tuple[str, str] | None = ("m2", MACHINE), may_guest: bool = True) -> Handshake:
    """A handshake of a host of cluster ``c1``."""
    return Handshake("c1", identity, may_guest)


def plain(**changes: Any) -> bytes:
    """A hello's payload with some fields replaced."""
    fields = {
        "magic": "argosy", "low": 1, "high": 1, "cluster": "c1", "machine": "m2", "incarnation": "i1",
        "role": MACHINE, "lane": 0,
    }  # fmt: skip
    return encode(list({**fields, **changes}.values()))


def test_a_good_hello_makes_the_link_ready() -> None:
    """The peer's hello comes back as it was sent."""
    shake = fresh()
    assert shake.receive(HELLO.encode()) == HELLO
    assert shake.state is State.READY
    assert shake.peer == HELLO


def test_the_table_is_complete() -> None:
    """WAITING goes to READY or REFUSED; nothing leads out of those."""
    assert TRANSITIONS == {
        (State.WAITING, "hello"): State.READY,
        (State.WAITING, "refuse"): State.REFUSED,
    }


@pytest.mark.parametrize(
    "second", [HELLO.encode(), plain(cluster="c2"), b"garbage"], ids=["good", "bad", "junk"]
)
@pytest.mark.parametrize("first", [HELLO.encode(), plain(cluster="c2")], ids=["ready", "refused"])
def test_an_illegal_transition_raises_and_changes_nothing(first: bytes, second: bytes) -> None:
    """A second hello of any kind, in either final state."""
    shake = fresh()
    try:
        shake.receive(first)
    except HandshakeError:
        pass
    state, peer = shake.state, shake.peer
    assert state is not State.WAITING
    with pytest.raises(FrameError):
        shake.receive(second)
    assert shake.state is state
    assert shake.peer is peer


REFUSALS: dict[str, tuple[bytes, str]] = {
    "too long": (b"x" * (HELLO_BYTES_MAX + 1), f"a hello of {HELLO_BYTES_MAX + 1} bytes; 4096 are accepted"),
    "not CBOR": (b"\xff\xff", "not a plain CBOR value"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", "CBOR value"),
    "not a list": (encode({"argosy": 1}), "the first frame is not an Argosy hello"),
    "too short": (encode(["argosy", 1, 1]), "the first frame is not an Argosy hello"),
    "too many fields": (plain(extra=1), "the first frame is not an Argosy hello"),
    "another protocol": (plain(magic="raft"), "the first frame is not an Argosy hello"),
    "cluster is a number": (plain(cluster=5), "the hello has fields of a wrong type"),
    "machine is bytes": (plain(machine=b"m2"), "the hello has fields of a wrong type"),
    "version is text": (plain(low="1"), "the hello has fields of a wrong type"),
    "version is a boolean": (plain(high=True), "the hello has fields of a wrong type"),
    "lane is null": (plain(lane=None), "the hello has fields of a wrong type"),
    "only newer": (plain(low=2, high=3), "the peer speaks protocol 2 to 3, this host 1 to 1"),
    "only older": (plain(low=0, high=0), "the peer speaks protocol 0 to 0, this host 1 to 1"),
    "unknown role": (plain(role="king"), "no peer has the role 'king'"),
    "other cluster": (plain(cluster="c2"), "the peer belongs to cluster c2, this host to c1"),
    "no cluster": (plain(cluster=""), "the peer belongs to cluster , this host to c1"),
    "other machine": (plain(machine="m3"), "the certificate is for machine m2, the peer says machine m3"),
    "other role": (plain(role=CLIENT), "the certificate is for machine m2, the peer says client m2"),
}


@pytest.mark.parametrize(("payload", "sentence"), REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_says_why(payload: bytes, sentence: str) -> None:
    """A stable sentence for people, and the link is refused for good."""
    shake = fresh()
    with pytest.raises(FrameError) as caught:
        shake.receive(payload)
    assert sentence in str(caught.value)
    assert shake.state is State.REFUSED
    assert shake.peer is None


def test_a_range_of_versions_that_overlaps_is_accepted() -> None:
    """A newer peer that still speaks our version may come in."""
    assert fresh().receive(plain(low=0, high=7)).machine == "m2"


def test_guests_only_where_they_may() -> None:
    """A guest needs neither cluster nor certificate, but it must be welcome."""
    hello = Hello("", "", "", GUEST, 0)
    assert fresh(None).receive(hello.encode()).role == GUEST
    with pytest.raises(HandshakeError, match="guests are not accepted here"):
        fresh(None, may_guest=False).receive(hello.encode())


def test_a_client_need_not_know_the_cluster() -> None:
    """It has only the authority and a certificate; a wrong cluster is refused all the same."""
    identity = ("admin", CLIENT)
    assert fresh(identity).receive(Hello("", "", "", CLIENT, 0).encode()).role == CLIENT
    with pytest.raises(HandshakeError, match="belongs to cluster c2"):
        fresh(identity).receive(Hello("c2", "", "", CLIENT, 0).encode())


def test_a_clients_certificate_makes_no_machine() -> None:
    """Not even one whose name is the machine's."""
    with pytest.raises(HandshakeError, match="certificate is for client m2, the peer says machine m2"):
        fresh(("m2", CLIENT)).receive(HELLO.encode())


def test_without_tls_the_hello_is_believed() -> None:
    """A cluster without TLS has nothing else to go by."""
    assert fresh(None).receive(HELLO.encode()) == HELLO


@given(st.binary(max_size=100))
def test_garbage_is_refused_and_nothing_else(garbage: bytes) -> None:
    """Whatever the first frame is: a FrameError and a refused link."""
    shake = fresh()
    with pytest.raises(FrameError):
        shake.receive(garbage)
    assert shake.state is State.REFUSED
