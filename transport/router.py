"""Remote references: a ref to an actor of another machine is used like a local one.

The router turns tells and asks into frames for the net port and frames into messages for
local actors.  At most once, in order per machine and lane; an ask has a deadline and ends
at once when the link it went out on is lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pykka import ActorDeadError

from kernel.actor import AskTimeout
from kernel.dispatch import Dispatcher
from kernel.future import Future
from kernel.ports import Net
from kernel.system import System

from .codec import FrameError, decode, encode, pack, unpack
from .frames import FRAME_BYTES_MAX
from .handshake import AGENT, GUEST

_TELL, _ASK, _REPLY = 0, 1, 2
CONTROL, BULK = 0, 1
_AGENT = AGENT + "-"
#: What agents speak to: the desk, the HTTP door's relay, and those who have pieces of a release.
AGENTS_REACH = frozenset({"desk", "relay", "control"})
#: Asks one host may have under way.
ASKS_MAX = 100_000
#: Seconds an ask waits when its sender named no deadline.
ASK_S_DEFAULT = 10.0


class RemoteError(Exception):
    """The other host's actor refused; ``code`` is stable, the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class LinkLostError(Exception):
    """The link went down before the answer; whether the request was handled is unknown."""

    code = "link_lost"


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Published in the host: the link to a machine was lost."""

    machine: str


class Access(Protocol):
    """May this sender reach this actor?"""

    def __call__(self, sender: str, path: str) -> bool:
        """True when it may."""


class RemoteRef:
    """An actor elsewhere: ``argosy://machine/path``."""

    __slots__ = ("_lane", "_router", "machine", "path")

    def __init__(self, router: Router, machine: str, path: str, lane: int) -> None:
        self._router = router
        self.machine = machine
        self.path = path
        self._lane = lane

    def __str__(self) -> str:
        return f"argosy://{self.machine}/{self.path}"

    __repr__ = __str__

    def tell(self, message: Any) -> None:
        """Send; lost messages are counted, not reported."""
        self._router.tell(self.machine, self._lane, self.path, message)

    offer = tell

    def ask(self, message: Any, *, block: bool = False, timeout: float | None = None) -> Any:
        """A future for the answer; ``timeout`` in seconds travels with the request."""
        future = self._router.ask(self.machine, self._lane, self.path, message, timeout)
        return future.get(timeout=timeout) if block else future


class Router:
    """One per host."""

    def __init__(self, system: System, net: Net, dispatcher: Dispatcher, machine: str) -> None:
        self._system = system
        self._net = net
        self._dispatcher = dispatcher
        self.machine = machine
        self._numbers = itertools.count(1)
        self._asks: dict[int, tuple[Future[Any], str, Any]] = {}
        self.bad_frames = 0
        self.dead_letters = 0
        self.may_reach: Access = _clients_reach_control
        #: whether a machine with a vote may say this to an actor: (machine, path, message)
        self.may_say: Callable[[str, str, Any], bool] = lambda machine, path, message: True
        self.on_forget: Callable[[str], None] = lambda machine: None
        net.listen(self.receive)

    def ref(self, machine: str, path: str, lane: int = CONTROL) -> Any:
        """A reference to ``path`` (without the machine) on ``machine``."""
        return RemoteRef(self, machine, path, lane)

    def tell(self, machine: str, lane: int, path: str, message: Any) -> None:
        """Send one message."""
        self._net.send(machine, lane, encode([_TELL, path, pack(message)]))

    def ask(
        self, machine: str, lane: int, path: str, message: Any, timeout: float | None
    ) -> Future[Any]:
        """Send a request; the future fails at the deadline or when the link is lost."""
        future: Future[Any] = Future(f"argosy://{machine}/{path}")
        if len(self._asks) >= ASKS_MAX:
            future.fail(RemoteError("asks_max", f"asks_max: {ASKS_MAX} asks are under way already"))
            return future
        seconds = ASK_S_DEFAULT if timeout is None else timeout
        number = next(self._numbers)
        frame = encode([_ASK, path, pack(message), number, int(seconds * 1000)])
        timer = self._dispatcher.call_later(
            seconds, lambda: self._finish(number, None, AskTimeout(f"no answer from {machine}/{path}"))
        )
        self._asks[number] = (future, machine, timer)
        if not self._net.send(machine, lane, frame):
            self._finish(number, None, LinkLostError(f"no link to machine {machine}"))
        return future

    def _finish(self, number: int, value: Any, error: BaseException | None) -> None:
        pending = self._asks.pop(number, None)
        if pending is None:
            return  # answered late, or twice
        future, _, timer = pending
        timer.cancel()
        if error is None:
            future.set(value)
        else:
            future.fail(error)

    def link_changed(self, machine: str, up: bool) -> None:
        """The net port reports a link; a lost one ends the asks that went out on it."""
        if up:
            return
        self._system.publish(LinkDown(machine))
        for number, (_, target, _) in list(self._asks.items()):
            if target == machine:
                self._finish(number, None, LinkLostError(f"the link to machine {machine} was lost"))

    # -- incoming -----------------------------------------------------------------------

    def receive(self, sender: str, frame: bytes) -> None:
        """One frame of a machine or client; raises :class:`FrameError` if it is illegal."""
        try:
            is_agent, sender = sender.startswith(_AGENT), sender.removeprefix(_AGENT)
            parts = decode(frame)
            if type(parts) is not list or not parts:
                raise FrameError("a frame is an array")
            if parts[0] == _REPLY and len(parts) == 4:
                self._on_reply(sender, *parts[1:])
            elif parts[0] == _TELL and len(parts) == 3:
                self._on_tell(sender, parts[1], unpack(parts[2]), is_agent)
            elif parts[0] == _ASK and len(parts) == 5:
                self._on_ask(sender, parts[1], unpack(parts[2]), parts[3], parts[4], is_agent)
            else:
                raise FrameError(f"no frame has the form [{parts[0]!r}, ...] of {len(parts)}")
        except FrameError:
            self.bad_frames += 1
            raise

    def _target(self, sender: str, path: Any, is_agent: bool) -> Any:
        if type(path) is not str:
            raise FrameError("the target of a frame is a text")
        if (is_agent and path not in AGENTS_REACH) or not self.may_reach(sender, path):
            return None
        return self._system.find(path)

    def _on_tell(self, sender: str, path: Any, message: Any, is_agent: bool) -> None:
        if is_agent or sender.startswith((GUEST, "client")):
            self.dead_letters += 1  # they ask: a refusal of what is only told would fail the actor that refuses
            return
        ref = self._target(sender, path, is_agent)
        if ref is None or not self.may_say(sender, path, message) or not ref.offer(message):
            self.dead_letters += 1

    def _on_ask(self, sender: str, path: Any, message: Any, number: Any, deadline_ms: Any, is_agent: bool) -> None:
        if type(number) is not int or type(deadline_ms) is not int:
            raise FrameError("an ask carries its number and its deadline in ms")
        ref = self._target(sender, path, is_agent)
        if ref is None:
            self.dead_letters += 1
            self._reply_error(sender, number, "not_found", f"no actor {path} on {self._system.name}")
            return
        if not is_agent and not sender.startswith((GUEST, "client")) and not self.may_say(sender, path, message):
            self.dead_letters += 1
            self._reply_error(sender, number, "no_member", f"machine {sender} is no member of this cluster")
            return
        future = ref.ask(_enveloped(sender, message, is_agent), block=False)
        future.on_done(lambda f: self._reply(sender, number, f))

    def _reply(self, sender: str, number: int, future: Future[Any]) -> None:
        error = future.error
        if error is None:
            try:
                answer = encode([_REPLY, number, True, pack(future.value)])
                if len(answer) > FRAME_BYTES_MAX:
                    raise FrameError(f"frame_bytes_max: {FRAME_BYTES_MAX} bytes, this has {len(answer)}")
                self._net.send(sender, CONTROL, answer)
            except Exception as failure:
                self._reply_error(sender, number, "unsendable", f"the answer cannot be sent: {failure}")
            return
        code = getattr(error, "code", None)
        if code is None:
            code = "dead" if isinstance(error, ActorDeadError) else type(error).__name__
        self._reply_error(sender, number, code, str(error))

    def _reply_error(self, sender: str, number: int, code: str, text: str) -> None:
        self._net.send(sender, CONTROL, encode([_REPLY, number, False, [0, [code, text]]]))

    def _on_reply(self, sender: str, number: Any, ok: Any, packed: Any) -> None:
        if type(number) is not int or type(ok) is not bool:
            raise FrameError("a reply carries its number and whether it went well")
        pending = self._asks.get(number)
        if pending is not None and pending[1] != sender:
            self.bad_frames += 1  # numbers are easy to guess: only who was asked may answer
            return
        value = unpack(packed)
        if ok:
            self._finish(number, value, None)
            return
        if type(value) is not list or len(value) != 2:
            raise FrameError("a refusal is a code and a text")
        self._finish(number, None, RemoteError(str(value[0]), str(value[1])))


class FromClient:
    """A request that came over a client's link, with who that is."""

    __slots__ = ("client", "message")

    def __init__(self, client: str, message: Any) -> None:
        self.client = client
        self.message = message


class FromAgent:
    """A request of a machine without a vote, with which one that is: its certificate says so."""

    __slots__ = ("agent", "message")

    def __init__(self, agent: str, message: Any) -> None:
        self.agent = agent
        self.message = message


def agent_sender(machine: str) -> str:
    """How the net port names an agent as the sender of a frame."""
    return _AGENT + machine


def _enveloped(sender: str, message: Any, is_agent: bool) -> Any:
    if is_agent:
        return FromAgent(sender, message)
    if sender.startswith((GUEST, "client")):
        return FromClient(sender, message)
    return message


def _clients_reach_control(sender: str, path: str) -> bool:
    """Clients and guests speak to the control actor alone; machines to any."""
    return not sender.startswith((GUEST, "client")) or path == "control"
