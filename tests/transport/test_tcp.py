"""The net port over real loopback sockets with TLS: order, reconnection, refusals, limits."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from transport import tcp, tls
from transport.codec import FrameError, decode, encode, unpack
from transport.handshake import CLIENT, GUEST, MACHINE, Hello

from .nets import GUEST_HELLO, LOOPBACK, PATIENCE_S, Cluster, Loopback, scenario, until

pytestmark = pytest.mark.timeout(60)


@scenario
async def test_two_nets_exchange_frames_in_order_on_two_lanes(loopback: Loopback) -> None:
    """Each lane is first in, first out; nothing is lost, doubled or attributed to another."""
    one, two = await loopback.pair()
    for number in range(500):
        for lane in (tcp.CONTROL, tcp.BULK):
            assert one.net.send("m2", lane, b"%d:%d" % (lane, number))
        assert two.net.send("m1", number % 2, b"%d:%d" % (number % 2, number))
    await until(lambda: len(two.frames) == 1000 and len(one.frames) == 500, "all frames")
    assert {sender for sender, _ in two.frames} == {"m1"}
    assert {sender for sender, _ in one.frames} == {"m2"}
    for mark in (b"0:", b"1:"):
        got = [int(frame[2:]) for _, frame in two.frames if frame.startswith(mark)]
        assert got == list(range(500))
        back = [int(frame[2:]) for _, frame in one.frames if frame.startswith(mark)]
        assert back == sorted(back)
    assert one.net.counters.frames_sent == 1000
    assert two.net.counters.frames_received == 1000


@scenario
async def test_a_large_frame_on_the_bulk_lane_does_not_hold_up_control(loopback: Loopback) -> None:
    """Lanes are connections of their own: a heartbeat passes a snapshot that was sent before it."""
    one, two = await loopback.pair()
    large = bytes(8 * 1024 * 1024)
    for _ in range(3):
        assert one.net.send("m2", tcp.BULK, large)
    assert one.net.send("m2", tcp.CONTROL, b"heartbeat")
    await until(lambda: len(two.frames) == 4, "all frames")
    sizes = [len(frame) for _, frame in two.frames]
    assert sizes.count(len(large)) == 3
    assert sizes.index(len(b"heartbeat")) < 3


@scenario
async def test_links_come_back_after_the_peer_restarts(loopback: Loopback) -> None:
    """The other side goes away and returns at the same address: told once each way, frames flow."""
    one, two = loopback.net("m1"), loopback.net("m2")
    address = await two.serve()
    one.net.set_peers({"m2": address})
    await one.linked()
    await two.close()
    await until(lambda: one.net.links_up() == 0, "links down")
    assert one.net.send("m2", tcp.CONTROL, b"lost") is False
    assert one.net.counters.dropped == {"no_link": 1}
    again = loopback.net("m2")
    await again.serve(two.port)
    await one.linked()
    assert one.net.send("m2", tcp.CONTROL, b"found")
    await until(lambda: again.frames, "a frame")
    assert again.frames == [("m1", b"found")]
    assert one.links == [("m2", True), ("m2", False), ("m2", True)]


@scenario
async def test_a_link_is_kept_trying_while_nobody_answers(loopback: Loopback) -> None:
    """The peer starts later than we do, which is the rule when a cluster starts."""
    one, two = loopback.net("m1"), loopback.net("m2")
    address = await two.serve()
    await two.close()
    one.net.set_peers({"m2": address})
    await until(lambda: one.error("m2"), "a reason")
    late = loopback.net("m2")
    await late.serve(two.port)
    await one.linked()
    assert one.error("m2") == ""


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
@scenario
async def test_a_peer_that_hangs_up_at_once_is_tried_again(loopback: Loopback, secure: bool) -> None:
    """Accepted and dropped before a hello, as by a host that is just going down."""
    machine = loopback.net if secure else loopback.plain
    context = tls.server_context(loopback.cluster.identity("m2")) if secure else None
    one, leaving = machine("m1"), loopback.impostor(b"", context, hang_up=True)
    one.net.set_peers({"m2": await leaving.serve()})
    await until(lambda: leaving.connections >= 4, "two attempts on each lane")
    await leaving.close()
    await machine("m2").serve(leaving.port)
    await one.linked()


@scenario
async def test_a_link_that_is_lost_before_its_opening_is_noticed_is_opened_again(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy loop the end of a connection may be handled before the task that opened it goes on."""
    door = socket.create_server((LOOPBACK, 0))
    port = door.getsockname()[1]
    made, dropped = threading.Semaphore(0), threading.Semaphore(0)

    def drop() -> None:
        for _ in tcp.LANES:
            made.acquire(timeout=PATIENCE_S)
            caller, _ = door.accept()
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()
            dropped.release()

    class Slow(tcp._Link):  # noqa: SLF001
        """A link whose loop is so busy that the peer has hung up before anything else happens."""

        def connection_made(self, transport: Any) -> None:
            """Go on only when the peer has hung up."""
            super().connection_made(transport)
            if self.outgoing_to is not None and thread.is_alive():
                made.release()
                dropped.acquire(timeout=0.5)

    monkeypatch.setattr(tcp, "_Link", Slow)
    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    one, two = loopback.plain("m1"), loopback.plain("m2")
    with closing(door):
        one.net.set_peers({"m2": f"{LOOPBACK}:{port}"})
        await until(lambda: not thread.is_alive(), "the drops")
    await two.serve(port)
    await one.linked(seconds=2)


@scenario
async def test_a_machine_that_calls_is_called_back_at_once(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its link to us proves that it is there again: no back-off is waited out."""
    monkeypatch.setattr(tcp, "RECONNECT_S_FIRST", 3600.0)
    monkeypatch.setattr(tcp, "RECONNECT_S_LAST", 3600.0)
    one, two = loopback.net("m1"), loopback.net("m2")
    first, second = await one.serve(), await two.serve()
    await two.close()
    one.net.set_peers({"m2": second})
    await until(lambda: all(one.error("m2", lane) for lane in tcp.LANES), "refusals")  # it rests for an hour
    again = loopback.net("m2")
    await again.serve(two.port)
    assert one.net.links_up() == 0
    again.net.set_peers({"m1": first})
    await one.linked()


@scenario
async def test_a_machine_whose_address_is_unknown_is_answered_on_its_own_link(loopback: Loopback) -> None:
    """It became a member while this host was off: its messages come, and so must the replies."""
    one, two = loopback.net("m1"), loopback.net("m2")
    await one.serve()
    one.net.set_peers({"m2": await two.serve()})
    await one.linked()
    for lane in tcp.LANES:
        assert one.net.send("m2", lane, b"hello")
    await until(lambda: len(two.frames) == 2, "the frames")
    for lane in tcp.LANES:
        assert two.net.send("m1", lane, b"hello yourself")
    await until(lambda: len(one.frames) == 2, "the replies")
    await one.close()
    await until(lambda: not two.net.send("m1", tcp.CONTROL, b"gone"), "the link to be gone")


@scenario
async def test_links_follow_the_addresses(loopback: Loopback) -> None:
    """A peer that moves is reached at its new place, a removed one is let go, oneself never called."""
    one = loopback.net("m1")
    own = await one.serve()
    before, after = loopback.net("m2"), loopback.net("m2")
    one.net.set_peers({"m1": own, "m2": await before.serve()})
    await one.linked()
    one.net.set_peers({"m1": own, "m2": await after.serve()})
    await until(lambda: one.net.links_up() == 2 and not before.inbound(), "moved")
    one.net.send("m2", tcp.CONTROL, b"x")
    await until(lambda: after.frames, "a frame at the new place")
    one.net.set_peers({})
    await until(lambda: not after.inbound(), "let go")
    assert one.net.send("m2", tcp.CONTROL, b"x") is False
    assert before.frames == []


# -- who may come in -------------------------------------------------------------------------------


@scenario
async def test_a_peer_of_another_authority_is_refused(loopback: Loopback, strangers: Cluster) -> None:
    """In both directions, with a sentence, and without a frame getting through."""
    one, forger = loopback.net("m1"), loopback.net("m2", strangers.identity("m2"))
    first, second = await one.serve(), await forger.serve()
    one.net.set_peers({"m2": second})
    forger.net.set_peers({"m1": first})
    for net, machine in ((one, "m2"), (forger, "m1")):
        await until(partial(net.error, machine), "a reason")
        assert "not signed by this cluster's authority" in net.error(machine)
    assert one.net.links_up() == forger.net.links_up() == 0
    assert one.links == forger.links == []


@scenario
async def test_the_wrong_machine_at_an_address_is_refused(loopback: Loopback) -> None:
    """m2 answers where m3 was expected: a good certificate, and still not the right one."""
    one, two = loopback.net("m1"), loopback.net("m2")
    one.net.set_peers({"m3": await two.serve()})
    await until(one.refused, "a refusal")
    assert one.refused() == "machine m3 was expected there, m2 answered"
    assert one.net.links_up() == 0


@scenario
async def test_a_machine_that_claims_another_ones_id_is_refused(loopback: Loopback) -> None:
    """The id in the hello must be the one in the certificate, whichever side opened the link."""
    one, liar = loopback.net("m1"), loopback.net("m3", loopback.cluster.identity("m2"))
    first, second = await one.serve(), await liar.serve()
    one.net.set_peers({"m3": second})
    await until(one.refused, "a refusal of the answer")
    assert one.refused() == "the certificate is for machine m2, the peer says machine m3"
    one.net.set_peers({})
    one.net.counters.refused.clear()
    liar.net.set_peers({"m1": first})
    await until(one.refused, "a refusal of the call")
    assert one.refused() == "the certificate is for machine m2, the peer says machine m3"
    assert one.frames == []


@pytest.mark.parametrize("role", [GUEST, CLIENT, MACHINE])
@scenario
async def test_only_the_machine_itself_may_answer_at_its_address(loopback: Loopback, role: str) -> None:
    """Whoever holds a client's certificate must not stand in for a machine, whatever he says he is."""
    one = loopback.net("m1")
    hello = Hello("c1", "m2", "i1", role, 0).encode()
    context = tls.server_context(loopback.cluster.identity("admin", "client"))
    impostor = loopback.impostor(hello, context)
    one.net.set_peers({"m2": await impostor.serve()})
    await until(lambda: one.refused() or one.net.links_up(), "a decision")
    assert one.net.links_up() == 0, "the impostor was taken for m2"
    assert one.refused()


@scenario
async def test_a_peer_without_a_certificate_may_only_be_a_guest(loopback: Loopback) -> None:
    """A bare TLS client that calls itself a machine or a client is refused."""
    one = loopback.net("m1")
    await one.serve()
    for role in (MACHINE, CLIENT):
        stranger = await loopback.stranger(one)
        stranger.send(Hello("c1", "m2", "i1", role, 0).encode())
        assert await stranger.closed()
    assert one.refused() == "a peer without a certificate may only be a guest"
    guest = await loopback.guest(one)
    guest.send(b"question")
    await until(lambda: one.frames, "the guest's frame")
    assert one.frames == [("guest-1", b"question")]


@scenario
async def test_a_machine_of_another_cluster_is_refused(loopback: Loopback) -> None:
    """Two clusters without TLS that know each other's addresses by mistake."""
    one, other = loopback.plain("m1", cluster="c1"), loopback.plain("m2", cluster="c2")
    one.net.set_peers({"m2": await other.serve()})
    await until(lambda: one.refused() and other.refused(), "a refusal on both sides")
    assert one.refused() == "the peer belongs to cluster c2, this host to c1"
    assert other.refused() == "the peer belongs to cluster c1, this host to c2"


@scenario
async def test_clients_get_their_answers_on_their_own_link(loopback: Loopback) -> None:
    """Each client has a name of its own; its end is told once, and it is nobody afterwards."""
    one = loopback.net("m1")
    await one.serve()
    identity = loopback.cluster.identity("admin", "client")
    clients = [await loopback.stranger(one, identity) for _ in range(2)]
    for number, client in enumerate(clients):
        client.send(Hello("", "", "", CLIENT, 0).encode())
        await client.receive()
        client.send(b"question %d" % number)
        await until(lambda number=number: len(one.frames) == number + 1, "a question")  # type: ignore[misc]
    assert one.frames == [("client-1", b"question 0"), ("client-2", b"question 1")]
    assert one.net.send("client-2", tcp.CONTROL, b"answer")
    assert await clients[1].receive() == b"answer"
    clients[1].close()
    await until(lambda: one.links, "the client's end")
    assert one.links == [("client-2", False)]
    assert one.net.send("client-2", tcp.CONTROL, b"answer") is False


# -- bad behaviour and limits ----------------------------------------------------------------------


def _length(size: int) -> bytes:
    return struct.pack(">I", size)


GARBAGE: dict[str, tuple[bytes, str]] = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame_bytes_max"),
    "a huge length": (_length(2**32 - 1), "frame_bytes_max"),
    "junk in a frame": (_length(4) + b"\xde\xad\xbe\xef", "CBOR"),
    "an empty frame": (_length(0), "CBOR"),
    "a hello too many": (_length(len(GUEST_HELLO)) + GUEST_HELLO + _length(2**31), "frame_bytes_max"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "reason"), GARBAGE.values(), ids=GARBAGE)
@scenario
async def test_garbage_closes_its_link_and_harms_nobody_else(
    loopback: Loopback, raw: bytes, reason: str
) -> None:
    """The stranger is dropped with a reason; the links of others carry on."""
    one, two = await loopback.pair()
    stranger = await loopback.stranger(one)
    stranger.writer.write(raw)
    assert await stranger.closed()
    assert reason in one.refused()
    assert two.net.send("m1", tcp.CONTROL, b"still here")
    assert one.net.send("m2", tcp.BULK, b"me too")
    await until(lambda: one.frames and two.frames, "frames of the others")
    assert one.net.links_up() == two.net.links_up() == 2
    assert ("m2", False) not in one.links


@scenario
async def test_a_stranger_cannot_make_us_hold_more_than_a_hello(loopback: Loopback) -> None:
    """Before the handshake a frame of megabytes is refused when it is announced, not when it is in."""
    one = loopback.net("m1")
    await one.serve()
    stranger = await loopback.stranger(one)
    stranger.writer.write(_length(10 * 1024 * 1024) + bytes(100))
    await until(one.refused, "a refusal", seconds=1)
    assert await stranger.closed()


@scenario
async def test_whoever_says_no_hello_is_hung_up_on(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence at the door does not hold a connection for ever."""
    monkeypatch.setattr(tcp, "HANDSHAKE_S_MAX", 0.1)
    one = loopback.plain("m1")
    await one.serve()
    silent = await loopback.stranger(one)
    assert await silent.closed()
    assert one.refused() == "no hello within 0.1 s"


@scenario
async def test_a_frame_that_the_host_refuses_closes_the_link(loopback: Loopback) -> None:
    """What the listener calls illegal ends that link; the peer connects anew."""
    one, two = await loopback.pair()

    def listener(sender: str, payload: bytes) -> None:
        if payload == b"bad":
            raise FrameError("no such message")
        two.frames.append((sender, payload))

    two.net.listen(listener)
    one.net.send("m2", tcp.CONTROL, b"bad")
    one.net.send("m2", tcp.CONTROL, b"behind the bad one")
    await until(lambda: one.links.count(("m2", True)) == 2, "a new link")
    assert two.refused() == "no such message"
    assert two.frames == [], "nothing is taken from a link after it broke a rule"
    one.net.send("m2", tcp.CONTROL, b"good")
    await until(lambda: two.frames, "a frame on the new link")


@scenario
async def test_the_send_queue_is_bounded_and_counts_what_it_drops(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that does not read costs a bounded amount of memory; the rest is dropped and counted."""
    limit = 2 * 1024 * 1024
    monkeypatch.setattr(tcp, "SEND_QUEUE_BYTES_MAX", limit)
    one, two = await loopback.pair()
    piece = bytes(256 * 1024)
    [inbound] = [link for link in two.inbound() if link.peer is not None and link.peer.lane == tcp.BULK]
    inbound.transport.pause_reading()
    taken = dropped = 0
    for _ in range(400):
        if one.net.send("m2", tcp.BULK, piece):
            taken += 1
        else:
            dropped += 1
        await asyncio.sleep(0)
    assert dropped > 0
    assert one.net.counters.dropped == {"queue_full": dropped}
    link = one.peer("m2", tcp.BULK).link
    assert link is not None
    assert link.waiting_bytes + link.transport.get_write_buffer_size() <= limit + 2 * len(piece)
    assert one.net.send("m2", tcp.CONTROL, b"the other lane is free")
    inbound.transport.resume_reading()
    await until(lambda: len(two.frames) == taken + 1, "all that was taken")
    assert one.net.send("m2", tcp.BULK, b"room again")
    await until(lambda: len(two.frames) == taken + 2, "the last one")


@scenario
async def test_inbound_links_are_bounded(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the limit is refused by its name; a place that is freed can be taken."""
    monkeypatch.setattr(tcp, "INBOUND_LINKS_MAX", 2)
    one = loopback.plain("m1")
    await one.serve()
    guests = [await loopback.stranger(one) for _ in range(3)]
    for guest in guests[:2]:
        guest.send(GUEST_HELLO)
        await guest.receive()
    await until(lambda: len(one.inbound()) == 2, "two guests")
    guests[2].send(GUEST_HELLO)
    assert await guests[2].closed()
    assert one.refused() == "inbound_links_max: 2 links are open already"
    guests[0].close()
    await until(lambda: len(one.inbound()) == 1, "a free place")
    await loopback.guest(one)
    await until(lambda: len(one.inbound()) == 2, "the late guest")


@scenario
async def test_reasons_are_counted_and_their_number_is_bounded(loopback: Loopback) -> None:
    """A stranger who invents reasons must not fill the memory with them."""
    one = loopback.plain("m1")
    for number in range(3000):
        one.net.refuse(tcp._Link(one.net, None, 0), f"reason {number % 1500}")  # noqa: SLF001
    refused = one.net.counters.refused
    assert len(refused) <= 1000
    assert refused["reason 0"] == 2


@scenario
async def test_a_reason_taken_from_a_frame_is_short(loopback: Loopback) -> None:
    """What a stranger sends may be quoted, but not a megabyte of it."""
    one = loopback.plain("m1")
    one.net.listen(lambda sender, payload: unpack(decode(payload)))
    await one.serve()
    guest = await loopback.guest(one)
    guest.send(encode(["x" * 1_000_000]))
    assert await guest.closed()
    assert 0 < len(one.refused()) < 1000


@scenario
async def test_frames_of_one_turn_leave_in_one_write(loopback: Loopback) -> None:
    """Coalescing: a hundred small frames are one piece for the kernel."""
    one, two = await loopback.pair()
    link = one.peer("m2", tcp.CONTROL).link
    assert link is not None
    writes: list[int] = []
    original = link.transport.write

    class Counting:
        """The transport, counting its writes."""

        def write(self, data: bytes) -> None:
            """Count and pass on."""
            writes.append(len(data))
            original(data)

        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

    transport, link.transport = link.transport, Counting()
    for number in range(100):
        one.net.send("m2", tcp.CONTROL, b"%d" % number)
    await until(lambda: len(two.frames) == 100, "all frames")
    assert len(writes) == 1
    link.transport = transport


@scenario
async def test_a_taken_address_is_an_error(loopback: Loopback) -> None:
    """The host must not start behind a door that it does not hold."""
    one, two = loopback.plain("m1"), loopback.plain("m2")
    await one.serve()
    with pytest.raises(OSError, match=str(one.port)):
        await two.serve(one.port)


@scenario
async def test_a_bad_address_is_reported_and_not_fatal(loopback: Loopback) -> None:
    """A member with nonsense for an address does not keep the others from being reached."""
    one, two = loopback.plain("m1"), loopback.plain("m2")
    one.net.set_peers({"m2": await two.serve(), "m3": "nonsense", "m4": f"{LOOPBACK}:notaport"})
    await one.linked()
    await until(lambda: one.error("m3") and one.error("m4"), "reasons")
