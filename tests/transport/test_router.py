"""Remote references over a simulated network: like local ones, at most once, and always an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.raft_messages import KeepAlive
from kernel.actor import Actor, AskTimeout
from kernel.dispatch import Dispatcher
from kernel.mailbox import Promise
from kernel.sim import SimDispatcher, SimMachine, World
from kernel.system import System
from transport import router as router_module
from transport.codec import FrameError, encode, pack
from transport.router import FromClient, LinkLostError, RemoteError, Router


class Host:
    """What runs on a machine here: a system and a router."""

    def __init__(self, machine: SimMachine) -> None:
        assert machine.net is not None
        dispatcher: Dispatcher = SimDispatcher(machine)
        self.system = System(machine.name, {"loop": dispatcher})
        self.router = Router(self.system, machine.net, dispatcher, machine.name)
        machine.net.on_link(self.router.link_changed)
        machine.net.set_peers(dict.fromkeys(("m1", "m2"), "") | {"client-1": "", "guest-1": ""})


class CodedError(Exception):
    """Refuses with a stable code."""

    code = "no_leader"


class Echo(Actor):
    """Answers what it got, or fails as told."""

    def __init__(self, log: list[Any], promise: Promise | None = None) -> None:
        super().__init__()
        self.log = log
        self.promise = promise

    def on_receive(self, message: Any) -> Any:
        """Echo; a few words mean something."""
        self.log.append(message)
        if isinstance(message, FromClient):
            return message.message
        if message == "coded":
            raise CodedError("there is no leader")
        if message == "boom":
            raise ValueError("boom")
        if message == "wait":
            return self.promise
        if message == "object":
            return object()
        if message == "huge":
            return bytes(17 * 1024 * 1024)
        return message


class Two:
    """Two machines, m1 asks and m2 has an actor called echo."""

    def __init__(self) -> None:
        self.world = World(5)
        self.machines = [SimMachine(self.world, name, Host) for name in ("m1", "m2")]
        for machine in self.machines:
            machine.start()
        self.one: Host = self.machines[0].host
        self.two: Host = self.machines[1].host
        self.log: list[Any] = []
        self.promise = Promise()
        self.two.system.spawn(Echo, self.log, self.promise, name="echo")
        self.ref = self.one.router.ref("m2", "echo")


@pytest.fixture
def two() -> Iterator[Two]:
    """Two machines."""
    made = Two()
    with made.world:
        yield made


def test_a_remote_actor_is_told_and_asked_like_a_local_one(two: Two) -> None:
    """Plain data and registered messages, tell, ask and a blocking ask; the name is its address."""
    assert str(two.ref) == "argosy://m2/echo"
    two.ref.tell({"plain": [1, b"x", None]})
    assert two.ref.ask("hello", block=True, timeout=5) == "hello"
    message = KeepAlive([1, 2])
    assert two.ref.ask(message, block=True, timeout=5) == message
    assert two.log == [{"plain": [1, b"x", None]}, "hello", message]
    assert two.one.router._asks == {}  # noqa: SLF001


def test_messages_of_one_pair_arrive_in_order(two: Two) -> None:
    """Tells and asks mixed, first in, first out."""
    for number in range(100):
        if number % 2:
            two.ref.tell(number)
        else:
            two.ref.ask(number)
    two.world.run(1)
    assert two.log == list(range(100))


def test_a_remote_error_has_its_code_and_text(two: Two) -> None:
    """A stable code where the error has one, its type's name where not."""
    for message, code, text in (
        ("coded", "no_leader", "there is no leader"), ("boom", "ValueError", "boom"),
    ):  # fmt: skip
        with pytest.raises(RemoteError) as caught:
            two.ref.ask(message, block=True, timeout=5)
        assert (caught.value.code, str(caught.value)) == (code, text)


def test_an_unknown_actor_is_not_found(two: Two) -> None:
    """An ask is answered at once, a tell is a counted dead letter."""
    nobody = two.one.router.ref("m2", "nobody")
    begun = two.world.now
    with pytest.raises(RemoteError, match="no actor nobody on m2") as caught:
        nobody.ask("x", block=True, timeout=5)
    assert caught.value.code == "not_found"
    assert two.world.now - begun < 0.1
    nobody.tell("x")
    two.world.run(1)
    assert two.two.router.dead_letters == 2


def test_an_actor_that_dies_before_it_answers(two: Two) -> None:
    """The asker hears that it is dead, not that time ran out."""
    ref = two.two.system.find("echo")
    assert ref is not None
    ref.stop(block=False)
    future = two.ref.ask("behind the stop")
    two.world.run(1)
    assert isinstance(future.error, RemoteError)
    assert future.error.code in ("dead", "not_found")


def test_an_ask_ends_at_its_deadline(two: Two) -> None:
    """Exactly then, with AskTimeout; the late answer is passed over."""
    future = two.ref.ask("wait", timeout=3)
    two.world.run(2.9)
    assert not future.done
    two.world.run(0.2)
    assert isinstance(future.error, AskTimeout)
    assert "m2/echo" in str(future.error)
    two.promise.reply("too late")
    two.world.run(1)
    assert isinstance(future.error, AskTimeout)
    assert two.one.router._asks == {}  # noqa: SLF001


def test_an_ask_without_a_deadline_has_one_all_the_same(two: Two) -> None:
    """Nothing waits for ever."""
    future = two.ref.ask("wait")
    two.world.run(router_module.ASK_S_DEFAULT + 0.1)
    assert isinstance(future.error, AskTimeout)


def test_a_lost_frame_is_a_timeout_not_a_repetition(two: Two) -> None:
    """At most once: a request that was lost is not sent again."""
    two.world.partition({"m1"}, {"m2"})
    future = two.ref.ask("lost", timeout=2)
    two.world.run(1)
    two.world.heal()
    two.world.run(5)
    assert isinstance(future.error, AskTimeout)
    assert two.log == []


def test_asks_end_when_the_link_is_lost(two: Two) -> None:
    """The other machine's power fails: its asks end at once, those to others do not."""
    to_other = two.one.router.ask("client-1", 0, "control", "x", 60)
    future = two.ref.ask("wait", timeout=60)
    two.world.run(1)
    two.machines[1].crash()
    two.world.run(1)
    assert isinstance(future.error, LinkLostError)
    assert "m2" in str(future.error)
    assert not to_other.done


def test_an_ask_without_a_link_fails_at_once(two: Two) -> None:
    """There is nowhere to send it: no waiting for a deadline."""
    future = two.one.router.ref("m9", "echo").ask("x", timeout=60)
    assert isinstance(future.error, LinkLostError)
    two.one.router.ref("m9", "echo").tell("x")


def test_asks_under_way_are_bounded(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit has a name, and ended asks make room."""
    monkeypatch.setattr(router_module, "ASKS_MAX", 3)
    futures = [two.ref.ask("wait", timeout=2) for _ in range(4)]
    assert isinstance(futures[3].error, RemoteError)
    assert "asks_max: 3" in str(futures[3].error)
    two.world.run(3)
    assert two.ref.ask("x", block=True, timeout=1) == "x"


@pytest.mark.parametrize("message", ["object", "huge"])
def test_an_answer_that_cannot_be_sent_is_an_error_for_the_asker(two: Two, message: str) -> None:
    """Not a plain value, or larger than a frame: the asker hears it, the answering host goes on."""
    from transport.frames import frame  # noqa: PLC0415

    send = two.machines[1].net.send  # type: ignore[union-attr]
    two.two.router._net.send = lambda *args: bool(frame(args[2])) and send(*args)  # type: ignore[method-assign] # noqa: SLF001
    with pytest.raises(RemoteError):
        two.ref.ask(message, block=True, timeout=5)
    assert two.ref.ask("still here", block=True, timeout=5) == "still here"


def test_a_request_that_cannot_be_sent_is_an_error_at_the_sender(two: Two) -> None:
    """And leaves nothing behind."""
    with pytest.raises(Exception):  # noqa: B017, PT011 - the codec's own error
        two.ref.ask(object(), timeout=5)
    assert two.one.router._asks == {}  # noqa: SLF001


def _pending(two: Two) -> tuple[Any, int]:
    future = two.ref.ask("wait", timeout=5)
    two.world.run(0.1)
    [number] = two.one.router._asks  # noqa: SLF001
    return future, number


@pytest.mark.parametrize("forger", ["guest-1", "client-1", "m3"])
def test_only_the_asked_machine_can_answer(two: Two, forger: str) -> None:
    """Numbers of asks are easy to guess: an answer from anybody else must count for nothing."""
    future, number = _pending(two)
    two.one.router.receive(forger, encode([2, number, True, pack("forged")]))
    two.one.router.receive(forger, encode([2, number, False, pack(["code", "forged"])]))
    assert not future.done
    two.promise.reply("true")
    assert future.get(timeout=1) == "true"


def test_an_answer_to_nothing_is_passed_over(two: Two) -> None:
    """Late, doubled or invented: no error, no effect."""
    two.one.router.receive("m2", encode([2, 12345, True, pack("x")]))
    assert two.one.router.bad_frames == 0


@pytest.mark.parametrize("sender", ["client-1", "guest-1"])
def test_clients_reach_the_control_actor_alone(two: Two, sender: str) -> None:
    """Any other path does not exist for them; what arrives at control says who it is from."""
    control: list[Any] = []
    two.two.system.spawn(Echo, control, name="control")
    router = two.two.router
    for path in ("echo", "m2/echo", "m2/control", "control/", "", "raft"):
        router.receive(sender, encode([1, path, pack("x"), 7, 1000]))
        router.receive(sender, encode([0, path, pack("x")]))
    two.world.run(1)
    assert two.log == control == []
    assert router.dead_letters == 12
    router.receive(sender, encode([1, "control", pack("question"), 8, 1000]))
    two.world.run(1)
    [request] = control
    assert isinstance(request, FromClient)
    assert (request.client, request.message) == (sender, "question")


@pytest.mark.parametrize("sender", ["client-1", "guest-1"])
def test_what_a_client_tells_says_who_it_is_from_too(two: Two, sender: str) -> None:
    """A message without a question must not pass for one of this host's own."""
    control: list[Any] = []
    two.two.system.spawn(Echo, control, name="control")
    two.two.router.receive(sender, encode([0, "control", pack("statement")]))
    two.world.run(1)
    assert all(isinstance(message, FromClient) for message in control)


BAD_FRAMES: dict[str, bytes] = {
    "garbage": b"\xff\x00",
    "nothing": b"",
    "a number": encode(5),
    "a map": encode({"a": 1}),
    "an empty array": encode([]),
    "an unknown kind": encode([3, "echo", pack("x")]),
    "kind as text": encode(["0", "echo", pack("x")]),
    "a tell without a message": encode([0, "echo"]),
    "a tell with too much": encode([0, "echo", pack("x"), 1]),
    "a path that is a number": encode([0, 5, pack("x")]),
    "an ask without a deadline": encode([1, "echo", pack("x"), 5]),
    "an ask whose number is text": encode([1, "echo", pack("x"), "5", 1000]),
    "an ask whose deadline is text": encode([1, "echo", pack("x"), 5, "1000"]),
    "a message that is none": encode([0, "echo", "x"]),
    "a message of no known number": encode([0, "echo", [59999, 1]]),
    "a reply whose number is text": encode([2, "5", True, pack("x")]),
    "a reply that is neither good nor bad": encode([2, 5, 1, pack("x")]),
    "a refusal without a text": encode([2, 5, False, pack(["code"])]),
    "a refusal that is a text": encode([2, 5, False, pack("code")]),
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_a_bad_frame_is_counted_and_refused(two: Two, frame: bytes) -> None:
    """Raises FrameError, so that the net closes the link, and reaches no actor."""
    with pytest.raises(FrameError):
        two.two.router.receive("m1", frame)
    assert two.two.router.bad_frames == 1
    two.world.run(1)
    assert two.log == []


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_frames_only_ever_raise_frame_errors(data: st.DataObject) -> None:
    """Whatever a peer sends, the router answers with FrameError or does its work."""
    made = Two()
    with made.world:
        frames = [
            encode([0, "echo", pack(KeepAlive([1]))]), encode([1, "echo", pack("x"), 7, 1000]),
            encode([2, 7, True, pack("x")]), encode([2, 7, False, pack(["code", "text"])]),
        ]  # fmt: skip
        frame = bytearray(data.draw(st.sampled_from(frames)))
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(frame)))
            frame[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        try:
            made.two.router.receive(data.draw(st.sampled_from(["m1", "client-1", "guest-1"])), bytes(frame))
        except FrameError:
            assert made.two.router.bad_frames == 1
        made.world.run(0.01)
