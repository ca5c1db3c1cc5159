"""Timers: they fire in the actor's turn, at their time, and die with the actor's life."""

from __future__ import annotations

from typing import Any

import pytest

from kernel.actor import Actor, Timer
from kernel.current import current
from kernel.supervision import RestartLimit

from .world import Simulated


class Ticker(Actor):
    """Sets timers as told and writes down when they fire, relative to the first start."""

    def __init__(self, log: list[Any], begun: list[float]) -> None:
        super().__init__()
        self.log = log
        self.begun = begun
        self.timers: list[Timer] = []

    def on_start(self) -> None:
        """Remember when the first life began."""
        if not self.begun:
            self.begun.append(self.now())

    def fired(self, what: str) -> None:
        """Write down what fired, and check that it is this actor's turn."""
        assert current.mailbox is self.actor_inbox
        self.log.append((what, round(self.now() - self.begun[0], 3)))

    def on_receive(self, message: tuple[str, float]) -> None:
        """``("after", s)``, ``("every", s)``, ``("cancel", n)``, ``("fail", s)``."""
        verb, value = message
        if verb == "cancel":
            self.timers[int(value)].cancel()
        elif verb == "fail":
            self.timers.append(self.after(value, self._fail))
        elif verb == "after":
            self.timers.append(self.after(value, lambda: self.fired(f"after {value:g}")))
        else:
            self.timers.append(self.every(value, lambda: self.fired(f"every {value:g}")))

    def _fail(self) -> None:
        raise ValueError("in a timer")


@pytest.fixture
def log() -> list[Any]:
    """What fired."""
    return []


def test_after_fires_once_and_every_again_and_again(sim: Simulated, log: list[Any]) -> None:
    """At their times, in the actor's own turn."""
    ref = sim.system.spawn(Ticker, log, [], name="a")
    ref.tell(("after", 2.5))
    ref.tell(("every", 1.0))
    sim.world.run(4.1)
    assert log == [("every 1", 1.0), ("every 1", 2.0), ("after 2.5", 2.5), ("every 1", 3.0), ("every 1", 4.0)]
    assert len(sim.mailbox(ref).timers) == 1, "a timer that has fired is forgotten"


def test_a_cancelled_timer_does_not_fire(sim: Simulated, log: list[Any]) -> None:
    """Cancelling twice, or after it has fired, is no harm."""
    ref = sim.system.spawn(Ticker, log, [], name="a")
    ref.tell(("after", 1.0))
    ref.tell(("every", 1.0))
    ref.tell(("cancel", 0))
    sim.world.run(1.5)
    for _ in range(2):
        ref.tell(("cancel", 1))
        ref.tell(("cancel", 0))
    sim.world.run(5)
    assert log == [("every 1", 1.0)]
    assert not sim.mailbox(ref).timers


def test_timers_die_with_a_life_that_fails(sim: Simulated, log: list[Any]) -> None:
    """After a restart only the new life's timers fire; one failure is one restart."""
    ref = sim.system.spawn(Ticker, log, [], name="a")
    for seconds in (1.0, 2.0, 3.0):
        ref.tell(("after", seconds))
        ref.tell(("every", seconds))
    sim.world.run(0.5)
    ref.kill()
    ref.tell(("after", 5.0))
    sim.world.run(10)
    assert log == [("after 5", 5.5)]
    assert sim.mailbox(ref).restarts == 1


def test_timers_die_with_a_stop(sim: Simulated, log: list[Any]) -> None:
    """A stop with timers under way is a stop like any other, and nothing fires afterwards."""
    ref = sim.system.spawn(Ticker, log, [], name="a")
    for seconds in (1.0, 2.0, 3.0):
        ref.tell(("every", seconds))
    sim.world.run(0.5)
    assert ref.stop(timeout=1) is True
    sim.world.run(10)
    assert log == []
    assert sim.system.mailboxes() == []


def test_a_timer_that_was_due_when_the_life_ended_is_dropped(sim: Simulated, log: list[Any]) -> None:
    """It fired into the queue just before the crash: the new life must not see it."""
    ref = sim.system.spawn(Ticker, log, [], name="a")
    ref.tell(("after", 1.0))
    sim.settle()
    mailbox = sim.mailbox(ref)
    ref.kill()
    [timer] = mailbox.timers
    timer._due()  # noqa: SLF001 - the dispatcher's call, at the worst moment
    sim.world.run(5)
    assert mailbox.restarts == 1
    assert log == []


def test_no_timer_fires_while_a_restart_is_awaited(sim: Simulated, log: list[Any]) -> None:
    """The life has ended with the failure, not only when its successor starts."""
    ref = sim.system.spawn(Ticker, log, [], name="a", limit=RestartLimit(backoff=5.0))
    ref.tell(("every", 1.0))
    sim.world.run(1.5)
    ref.kill()
    sim.world.run(10)
    assert sim.mailbox(ref).restarts == 1
    assert log == [("every 1", 1.0)]


def test_a_timer_that_fails_fails_its_actor(sim: Simulated, log: list[Any]) -> None:
    """As a told message would: the supervisor restarts it."""
    ref = sim.system.spawn(Ticker, log, [], name="a")
    ref.tell(("fail", 1.0))
    sim.world.run(2)
    assert sim.mailbox(ref).restarts == 1


def test_a_crashed_machine_runs_no_timers(sim: Simulated, log: list[Any]) -> None:
    """Power loss ends them all, also after the machine is up again."""
    sim.system.spawn(Ticker, log, [], name="a").tell(("every", 1.0))
    sim.world.run(1.5)
    sim.machine.crash()
    sim.world.run(3)
    sim.machine.start()
    sim.world.run(3)
    assert log == [("every 1", 1.0)]


def test_a_paused_machine_fires_late(sim: Simulated, log: list[Any]) -> None:
    """SIGSTOP: a timer due in the pause fires at its end, once."""
    sim.system.spawn(Ticker, log, [], name="a").tell(("after", 1.0))
    sim.settle()
    sim.machine.pause(4.0)
    sim.world.run(3.9)
    assert log == []
    sim.world.run(1)
    assert log == [("after 1", 4.0)]
