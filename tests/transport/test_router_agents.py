"""Who may say what over a link: agents and operators ask, and only whom they may."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kernel.actor import Actor
from kernel.sim import Faults, SimDispatcher, World
from kernel.system import System
from transport.codec import encode, pack
from transport.router import FromAgent, FromClient, Router, agent_sender


class Echo(Actor):
    """Says what it was told."""

    heard: list[Any] = []

    def on_receive(self, message: Any) -> Any:
        self.heard.append(message)
        return "ok"


class _Net:
    def __init__(self) -> None:
        self.sent: list[tuple[str, int, bytes]] = []

    def send(self, machine: str, lane: int, frame: bytes) -> bool:
        self.sent.append((machine, lane, frame))
        return True

    def set_peers(self, addresses: dict[str, str]) -> None: ...

    def listen(self, on_frame: Any) -> None: ...


@pytest.mark.parametrize(("sender", "path", "asked", "told"), [
    ("m2", "control", "m", "m"), ("m2", "raft", "m", "m"), ("client-1", "control", "client", None), ("client-1", "raft", None, None),
    ("guest-1", "control", "client", None), (agent_sender("a1"), "desk", "agent", None), (agent_sender("a1"), "raft", None, None),
    (agent_sender("a1"), "control", "agent", None), (agent_sender("a1"), "machine", None, None),
])  # fmt: skip
def test_who_reaches_whom(sender: str, path: str, asked: str | None, told: str | None) -> None:
    """By asking, and by telling; what comes in says who sent it."""
    from kernel.sim import SimMachine

    with World(1, Faults()) as world:
        machine = SimMachine(world, "m1", lambda machine: SimpleNamespace(system=None))
        machine.alive = True
        dispatcher = SimDispatcher(machine)
        system = System("m1", {"loop": dispatcher, "pool": dispatcher}, lambda error: None)
        machine.host = SimpleNamespace(system=system)
        net = _Net()
        router = Router(system, net, dispatcher, "m1")
        Echo.heard = []
        for name in ("control", "raft", "desk", "machine"):
            system.spawn(Echo, name=name)
        for expected, frame in ((asked, encode([1, path, pack("x"), 1, 1000])), (told, encode([0, path, pack("x")]))):
            Echo.heard.clear()
            router.receive(sender, frame)
            world.run(0.1)
            kinds = {FromClient: "client", FromAgent: "agent", str: "m"}
            assert [kinds[type(message)] for message in Echo.heard] == ([expected] if expected else [])
        if asked == "agent":
            assert net.sent[0][0] == "a1", "the answer goes to the machine"
