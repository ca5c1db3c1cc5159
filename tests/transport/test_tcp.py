"""The net port over real loopback sockets with TLS: order, reconnection, refusals, limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from transport import tcp, tls
from transport.codec import FrameError, decode, encode, unpack
from transport.handshake import CLIENT, GUEST, MACHINE, Hello

from .nets import LOOPBACK, PATIENCE_S, Cluster, Impostor, Net, Stranger, bare_context, run, until

pytestmark = pytest.mark.timeout(60)


async def pair(cluster: Cluster) -> tuple[Net, Net]:
    """Two nets that keep links to each other, up on both lanes."""
    one, two = Net("m1", cluster.identity("m1")), Net("m2", cluster.identity("m2"))
    first, second = await one.serve(), await two.serve()
    one.net.set_peers({"m1": first, "m2": second})
    two.net.set_peers({"m1": first, "m2": second})
    await until(lambda: one.net.links_up() == 2 and two.net.links_up() == 2, "links on both lanes")
    return one, two


def test_two_nets_exchange_frames_in_order_on_two_lanes(cluster: Cluster) -> None:
    """Each lane is first in, first out; nothing is lost, doubled or attributed to another."""

    async def scenario() -> None:
        one, two = await pair(cluster)
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
        await one.close()
        await two.close()

    run(scenario)


def test_a_large_frame_on_the_bulk_lane_does_not_hold_up_control(cluster: Cluster) -> None:
    """Lanes are connections of their own: a heartbeat passes a snapshot that was sent before it."""

    async def scenario() -> None:
        one, two = await pair(cluster)
        large = bytes(8 * 1024 * 1024)
        for _ in range(3):
            assert one.net.send("m2", tcp.BULK, large)
        assert one.net.send("m2", tcp.CONTROL, b"heartbeat")
        await until(lambda: len(two.frames) == 4, "all frames")
        sizes = [len(frame) for _, frame in two.frames]
        assert sizes.count(len(large)) == 3
        assert sizes.index(len(b"heartbeat")) < 3
        await one.close()
        await two.close()

    run(scenario)


def test_links_come_back_after_the_peer_restarts(cluster: Cluster) -> None:
    """The other side goes away and returns at the same address: told once each way, frames flow."""

    async def scenario() -> None:
        one, two = Net("m1", cluster.identity("m1")), Net("m2", cluster.identity("m2"))
        address = await two.serve()
        one.net.set_peers({"m2": address})
        await until(lambda: one.net.links_up() == 2, "first links")
        await two.close()
        await until(lambda: one.net.links_up() == 0, "links down")
        assert one.net.send("m2", tcp.CONTROL, b"lost") is False
        assert one.net.counters.dropped == {"no_link": 1}
        again = Net("m2", cluster.identity("m2"))
        await again.serve(two.port)
        await until(lambda: one.net.links_up() == 2, "links again")
        assert one.net.send("m2", tcp.CONTROL, b"found")
        await until(lambda: again.frames, "a frame")
        assert again.frames == [("m1", b"found")]
        assert one.links == [("m2", True), ("m2", False), ("m2", True)]
        await one.close()
        await again.close()

    run(scenario)


def test_a_link_is_kept_trying_while_nobody_answers(cluster: Cluster) -> None:
    """The peer starts later than we do, which is the rule when a cluster starts."""

    async def scenario() -> None:
        one, two = Net("m1", cluster.identity("m1")), Net("m2", cluster.identity("m2"))
        address = await two.serve()
        await two.close()
        one.net.set_peers({"m2": address})
        await until(lambda: one.error("m2"), "a reason")
        late = Net("m2", cluster.identity("m2"))
        await late.serve(two.port)
        await until(lambda: one.net.links_up() == 2, "links")
        assert one.error("m2") == ""
        await one.close()
        await late.close()

    run(scenario)


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
def test_a_peer_that_hangs_up_at_once_is_tried_again(cluster: Cluster, secure: bool) -> None:
    """Accepted and dropped before a hello, as by a host that is just going down."""

    async def scenario() -> None:
        context = tls.server_context(cluster.identity("m2")) if secure else None
        one = Net("m1", cluster.identity("m1") if secure else None)
        closing = Impostor(b"", context, hang_up=True)
        one.net.set_peers({"m2": await closing.serve()})
        await until(lambda: closing.connections >= 4, "two attempts on each lane")
        await closing.close()
        two = Net("m2", cluster.identity("m2") if secure else None)
        await two.serve(closing.port)
        await until(lambda: one.net.links_up() == 2, "links after all")
        await one.close()
        await two.close()

    run(scenario)


def test_a_link_that_is_lost_before_its_opening_is_noticed_is_opened_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
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

    async def scenario() -> None:
        one, two = Net("m1"), Net("m2")
        one.net.set_peers({"m2": f"{LOOPBACK}:{port}"})
        await until(lambda: not thread.is_alive(), "the drops")
        door.close()
        await two.serve(port)
        await until(lambda: one.net.links_up() == 2, "links after all", seconds=2)
        await one.close()
        await two.close()

    with contextlib.closing(door):
        run(scenario)


def test_a_machine_that_calls_is_called_back_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its link to us proves that it is there again: no back-off is waited out."""
    monkeypatch.setattr(tcp, "RECONNECT_S_FIRST", 3600.0)
    monkeypatch.setattr(tcp, "RECONNECT_S_LAST", 3600.0)

    async def scenario() -> None:
        one, two = Net("m1", cluster.identity("m1")), Net("m2", cluster.identity("m2"))
        first, second = await one.serve(), await two.serve()
        await two.close()
        one.net.set_peers({"m2": second})
        await asyncio.sleep(0.1)  # refused, and resting for an hour
        again = Net("m2", cluster.identity("m2"))
        await again.serve(two.port)
        assert one.net.links_up() == 0
        again.net.set_peers({"m1": first})
        await until(lambda: one.net.links_up() == 2, "links back")
        await one.close()
        await again.close()

    run(scenario)


def test_a_machine_whose_address_is_unknown_is_answered_on_its_own_link(cluster: Cluster) -> None:
    """It became a member while this host was off: its messages come, and so must the replies."""

    async def scenario() -> None:
        one, two = Net("m1", cluster.identity("m1")), Net("m2", cluster.identity("m2"))
        await one.serve()
        one.net.set_peers({"m2": await two.serve()})
        await until(lambda: one.net.links_up() == 2, "links of one side")
        for lane in tcp.LANES:
            assert one.net.send("m2", lane, b"hello")
        await until(lambda: len(two.frames) == 2, "the frames")
        for lane in tcp.LANES:
            assert two.net.send("m1", lane, b"hello yourself")
        await until(lambda: len(one.frames) == 2, "the replies")
        await one.close()
        await until(lambda: not two.net.send("m1", tcp.CONTROL, b"gone"), "the link to be gone")
        await two.close()

    run(scenario)


def test_links_follow_the_addresses(cluster: Cluster) -> None:
    """A peer that moves is reached at its new place, a removed one is let go, oneself never called."""

    async def scenario() -> None:
        one = Net("m1", cluster.identity("m1"))
        own = await one.serve()
        before, after = Net("m2", cluster.identity("m2")), Net("m2", cluster.identity("m2"))
        one.net.set_peers({"m1": own, "m2": await before.serve()})
        await until(lambda: one.net.links_up() == 2, "links")
        one.net.set_peers({"m1": own, "m2": await after.serve()})
        await until(lambda: one.net.links_up() == 2 and not before.net._inbound, "moved")  # noqa: SLF001
        one.net.send("m2", tcp.CONTROL, b"x")
        await until(lambda: after.frames, "a frame at the new place")
        one.net.set_peers({})
        await until(lambda: not after.net._inbound, "let go")  # noqa: SLF001
        assert one.net.send("m2", tcp.CONTROL, b"x") is False
        assert before.frames == []
        for net in (one, before, after):
            await net.close()

    run(scenario)


# -- who may come in -------------------------------------------------------------------------------


def test_a_peer_of_another_authority_is_refused(cluster: Cluster, strangers: Cluster) -> None:
    """In both directions, with a sentence, and without a frame getting through."""

    async def scenario() -> None:
        one, forger = Net("m1", cluster.identity("m1")), Net("m2", strangers.identity("m2"))
        first, second = await one.serve(), await forger.serve()
        one.net.set_peers({"m2": second})
        forger.net.set_peers({"m1": first})
        for net, machine in ((one, "m2"), (forger, "m1")):
            await until(lambda net=net, machine=machine: net.error(machine), "a reason")  # type: ignore[misc]
            assert "not signed by this cluster's authority" in net.error(machine)
        assert one.net.links_up() == forger.net.links_up() == 0
        assert one.links == forger.links == []
        await one.close()
        await forger.close()

    run(scenario)


def test_the_wrong_machine_at_an_address_is_refused(cluster: Cluster) -> None:
    """m2 answers where m3 was expected: a good certificate, and still not the right one."""

    async def scenario() -> None:
        one, two = Net("m1", cluster.identity("m1")), Net("m2", cluster.identity("m2"))
        one.net.set_peers({"m3": await two.serve()})
        await until(one.refused, "a refusal")
        assert one.refused() == "machine m3 was expected there, m2 answered"
        assert one.net.links_up() == 0
        await one.close()
        await two.close()

    run(scenario)


def test_a_machine_that_claims_another_ones_id_is_refused(cluster: Cluster) -> None:
    """The id in the hello must be the one in the certificate, whichever side opened the link."""

    async def scenario() -> None:
        one, liar = Net("m1", cluster.identity("m1")), Net("m3", cluster.identity("m2"))
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
        await one.close()
        await liar.close()

    run(scenario)


@pytest.mark.parametrize(
    "role",
    [
        GUEST,
        CLIENT,
        MACHINE,
    ],
)
def test_only_the_machine_itself_may_answer_at_its_address(cluster: Cluster, role: str) -> None:
    """Whoever holds a client's certificate must not stand in for a machine, whatever he says he is."""

    async def scenario() -> None:
        one = Net("m1", cluster.identity("m1"))
        hello = Hello("c1", "m2", "i1", role, 0).encode()
        context = tls.server_context(cluster.identity("admin", "client"))
        impostor = Impostor(hello, context)
        one.net.set_peers({"m2": await impostor.serve()})
        await until(lambda: one.refused() or one.net.links_up(), "a decision")
        assert one.net.links_up() == 0, "the impostor was taken for m2"
        assert one.refused()
        await one.close()
        await impostor.close()

    run(scenario)


def test_a_peer_without_a_certificate_may_only_be_a_guest(cluster: Cluster) -> None:
    """A bare TLS client that calls itself a machine or a client is refused."""

    async def scenario() -> None:
        one = Net("m1", cluster.identity("m1"))
        await one.serve()
        for role in (MACHINE, CLIENT):
            stranger = await Stranger.connect(one.port, bare_context(None))
            stranger.send(Hello("c1", "m2", "i1", role, 0).encode())
            assert await stranger.closed()
            stranger.close()
        assert one.refused() == "a peer without a certificate may only be a guest"
        guest = await Stranger.connect(one.port, bare_context(None))
        guest.send(Hello("", "", "", GUEST, 0).encode())
        guest.send(b"question")
        await until(lambda: one.frames, "the guest's frame")
        assert one.frames == [("guest-1", b"question")]
        guest.close()
        await one.close()

    run(scenario)


def test_a_machine_of_another_cluster_is_refused(cluster: Cluster) -> None:
    """Two clusters without TLS that know each other's addresses by mistake."""

    async def scenario() -> None:
        one, other = Net("m1", cluster="c1"), Net("m2", cluster="c2")
        one.net.set_peers({"m2": await other.serve()})
        await until(lambda: one.refused() and other.refused(), "a refusal on both sides")
        assert one.refused() == "the peer belongs to cluster c2, this host to c1"
        assert other.refused() == "the peer belongs to cluster c1, this host to c2"
        await one.close()
        await other.close()

    run(scenario)


def test_clients_get_their_answers_on_their_own_link(cluster: Cluster) -> None:
    """Each client has a name of its own; its end is told once, and it is nobody afterwards."""

    async def scenario() -> None:
        one = Net("m1", cluster.identity("m1"))
        await one.serve()
        context = bare_context(cluster.identity("admin", "client"))
        clients = [await Stranger.connect(one.port, context) for _ in range(2)]
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
        clients[0].close()
        await one.close()

    run(scenario)


# -- bad behaviour and limits ----------------------------------------------------------------------


def _length(size: int) -> bytes:
    return struct.pack(">I", size)


GARBAGE: dict[str, tuple[bytes, str]] = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "frame_bytes_max"),
    "a huge length": (_length(2**32 - 1), "frame_bytes_max"),
    "junk in a frame": (_length(4) + b"\xde\xad\xbe\xef", "CBOR"),
    "an empty frame": (_length(0), "CBOR"),
    "a hello too many": (
        _length(len(Hello("", "", "", GUEST, 0).encode())) + Hello("", "", "", GUEST, 0).encode()
        + _length(2**31),
        "frame_bytes_max",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "reason"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_closes_its_link_and_harms_nobody_else(cluster: Cluster, raw: bytes, reason: str) -> None:
    """The stranger is dropped with a reason; the links of others carry on."""

    async def scenario() -> None:
        one, two = await pair(cluster)
        stranger = await Stranger.connect(one.port, bare_context(None))
        stranger.writer.write(raw)
        assert await stranger.closed()
        stranger.close()
        assert reason in one.refused()
        assert two.net.send("m1", tcp.CONTROL, b"still here")
        assert one.net.send("m2", tcp.BULK, b"me too")
        await until(lambda: one.frames and two.frames, "frames of the others")
        assert one.net.links_up() == two.net.links_up() == 2
        assert ("m2", False) not in one.links
        await one.close()
        await two.close()

    run(scenario)


def test_a_stranger_cannot_make_us_hold_more_than_a_hello(cluster: Cluster) -> None:
    """Before the handshake a frame of megabytes is refused when it is announced, not when it is in."""

    async def scenario() -> None:
        one = Net("m1", cluster.identity("m1"))
        await one.serve()
        stranger = await Stranger.connect(one.port, bare_context(None))
        stranger.writer.write(_length(10 * 1024 * 1024) + bytes(100))
        await until(one.refused, "a refusal", seconds=1)
        assert await stranger.closed()
        stranger.close()
        await one.close()

    run(scenario)


def test_whoever_says_no_hello_is_hung_up_on(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence at the door does not hold a connection for ever."""
    monkeypatch.setattr(tcp, "HANDSHAKE_S_MAX", 0.1)

    async def scenario() -> None:
        one = Net("m1")
        await one.serve()
        silent = await Stranger.connect(one.port, None)
        assert await silent.closed()
        assert one.refused() == "no hello within 0.1 s"
        silent.close()
        await one.close()

    run(scenario)


def test_a_frame_that_the_host_refuses_closes_the_link(cluster: Cluster) -> None:
    """What the listener calls illegal ends that link; the peer connects anew."""

    async def scenario() -> None:
        one, two = await pair(cluster)

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
        await one.close()
        await two.close()

    run(scenario)


def test_the_send_queue_is_bounded_and_counts_what_it_drops(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that does not read costs a bounded amount of memory; the rest is dropped and counted."""
    limit = 2 * 1024 * 1024
    monkeypatch.setattr(tcp, "SEND_QUEUE_BYTES_MAX", limit)

    async def scenario() -> None:
        one, two = await pair(cluster)
        piece = bytes(256 * 1024)
        [inbound] = [
            link for link in two.net._inbound if link.peer is not None and link.peer.lane == tcp.BULK  # noqa: SLF001
        ]  # fmt: skip
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
        link = one.net._peers[("m2", tcp.BULK)].link  # noqa: SLF001
        assert link is not None
        assert link.waiting_bytes + link.transport.get_write_buffer_size() <= limit + 2 * len(piece)
        assert one.net.send("m2", tcp.CONTROL, b"the other lane is free")
        inbound.transport.resume_reading()
        await until(lambda: len(two.frames) == taken + 1, "all that was taken")
        assert one.net.send("m2", tcp.BULK, b"room again")
        await until(lambda: len(two.frames) == taken + 2, "the last one")
        await one.close()
        await two.close()

    run(scenario)


def test_inbound_links_are_bounded(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the limit is refused by its name; a place that is freed can be taken."""
    monkeypatch.setattr(tcp, "INBOUND_LINKS_MAX", 2)

    async def scenario() -> None:
        one = Net("m1")
        await one.serve()
        guests = [await Stranger.connect(one.port, None) for _ in range(3)]
        for guest in guests[:2]:
            guest.send(Hello("", "", "", GUEST, 0).encode())
            await guest.receive()
        await until(lambda: len(one.net._inbound) == 2, "two guests")  # noqa: SLF001
        guests[2].send(Hello("", "", "", GUEST, 0).encode())
        assert await guests[2].closed()
        assert one.refused() == "inbound_links_max: 2 links are open already"
        guests[0].close()
        await until(lambda: len(one.net._inbound) == 1, "a free place")  # noqa: SLF001
        late = await Stranger.connect(one.port, None)
        late.send(Hello("", "", "", GUEST, 0).encode())
        await until(lambda: len(one.net._inbound) == 2, "the late guest")  # noqa: SLF001
        for guest in (late, *guests[1:]):
            guest.close()
        await one.close()

    run(scenario)


def test_reasons_are_counted_and_their_number_is_bounded(cluster: Cluster) -> None:
    """A stranger who invents reasons must not fill the memory with them."""

    async def scenario() -> None:
        one = Net("m1")
        for number in range(3000):
            one.net.refuse(tcp._Link(one.net, None, 0), f"reason {number % 1500}")  # noqa: SLF001
        refused = one.net.counters.refused
        assert len(refused) <= 1000
        assert refused["reason 0"] == 2
        await one.close()

    run(scenario)


def test_a_reason_taken_from_a_frame_is_short(cluster: Cluster) -> None:
    """What a stranger sends may be quoted, but not a megabyte of it."""

    async def scenario() -> None:
        one = Net("m1")
        one.net.listen(lambda sender, payload: unpack(decode(payload)))
        await one.serve()
        guest = await Stranger.connect(one.port, None)
        guest.send(Hello("", "", "", GUEST, 0).encode())
        guest.send(encode(["x" * 1_000_000]))
        assert await guest.closed()
        guest.close()
        assert 0 < len(one.refused()) < 1000
        await one.close()

    run(scenario)


def test_frames_of_one_turn_leave_in_one_write(cluster: Cluster) -> None:
    """Coalescing: a hundred small frames are one piece for the kernel."""

    async def scenario() -> None:
        one, two = await pair(cluster)
        link = one.net._peers[("m2", tcp.CONTROL)].link  # noqa: SLF001
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
        await one.close()
        await two.close()

    run(scenario)


def test_a_taken_address_is_an_error(cluster: Cluster) -> None:
    """The host must not start behind a door that it does not hold."""

    async def scenario() -> None:
        one, two = Net("m1"), Net("m2")
        await one.serve()
        with pytest.raises(OSError, match=str(one.port)):
            await two.serve(one.port)
        await one.close()
        await two.close()

    run(scenario)


def test_a_bad_address_is_reported_and_not_fatal(cluster: Cluster, tmp_path: Path) -> None:
    """A member with nonsense for an address does not keep the others from being reached."""

    async def scenario() -> None:
        one, two = Net("m1"), Net("m2")
        one.net.set_peers({"m2": await two.serve(), "m3": "nonsense", "m4": f"{LOOPBACK}:notaport"})
        await until(lambda: one.net.links_up() == 2, "links to the good one")
        await until(lambda: one.error("m3") and one.error("m4"), "reasons")
        await one.close()
        await two.close()

    run(scenario)
