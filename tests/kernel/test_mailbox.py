"""Bounded mailboxes: what a full one does, and that nothing lost goes uncounted."""

from __future__ import annotations

from typing import Any

import pytest
from pykka import ActorDeadError

from kernel.mailbox import MailboxFullError

from .world import Recorder, Simulated


class Rejecting(Recorder):
    """Holds three messages and refuses more."""

    mailbox_messages_max = 3


class Dropping(Recorder):
    """Holds three messages and forgets the oldest for a new one."""

    mailbox_messages_max = 3
    mailbox_overflow = "drop_oldest"


def test_a_full_mailbox_rejects_and_counts(sim: Simulated) -> None:
    """The first three are handled, two are dead letters, an asker hears which limit it was."""
    log: list[Any] = []
    ref = sim.system.spawn(Rejecting, log, name="a")
    for number in range(5):
        ref.tell(number)
    refused = ref.ask("no room", block=False)
    assert isinstance(refused.error, MailboxFullError)
    assert "m1/a" in str(refused.error)
    assert "3 messages" in str(refused.error)
    sim.settle()
    assert log == [0, 1, 2]
    assert sim.system.stats["Rejecting"].dead_letters == {"overflow": 3}
    assert ref.ask("room again", timeout=1) == "room again"


def test_a_full_mailbox_drops_the_oldest_and_counts(sim: Simulated) -> None:
    """The newest three are handled; whoever asked for a dropped one is told."""
    log: list[Any] = []
    ref = sim.system.spawn(Dropping, log, name="a")
    oldest = ref.ask("oldest", block=False)
    for number in range(5):
        ref.tell(number)
    sim.settle()
    assert log == [2, 3, 4]
    assert oldest.error is not None
    assert sim.system.stats["Dropping"].dead_letters == {"overflow": 3}


def test_an_ask_dropped_by_overflow_hears_of_the_limit(sim: Simulated) -> None:
    """The actor lives: the asker must not be told that it stopped."""
    ref = sim.system.spawn(Dropping, [], name="a")
    oldest = ref.ask("oldest", block=False)
    for number in range(3):
        ref.tell(number)
    assert isinstance(oldest.error, MailboxFullError)


@pytest.mark.parametrize("kind", [Rejecting, Dropping])
def test_a_full_mailbox_still_takes_a_stop(sim: Simulated, kind: type[Recorder]) -> None:
    """An actor that drowns can be stopped."""
    log: list[Any] = []
    ref = sim.system.spawn(kind, log, name="a")
    for number in range(3):
        ref.tell(number)
    assert ref.stop(timeout=1) is True
    assert not ref.is_alive()
    assert log == [0, 1, 2]


def test_a_flood_does_not_push_out_a_stop(sim: Simulated) -> None:
    """A stop that was accepted is carried out, whatever arrives behind it."""
    ref = sim.system.spawn(Dropping, [], name="a")
    stopped = ref.stop(block=False)
    for number in range(10):
        ref.tell(number)
    sim.settle()
    assert stopped.get(timeout=1) is True
    assert not ref.is_alive()


class StopsItself(Recorder):
    """Stops itself when told so, with a full mailbox behind it."""

    mailbox_messages_max = 3

    def on_receive(self, message: Any) -> Any:
        """Stop, or record."""
        if message == "enough":
            for number in range(3):
                self.actor_ref.tell(number)
            self.stop()
            return None
        return super().on_receive(message)


def test_an_actor_with_a_full_mailbox_can_stop_itself(sim: Simulated) -> None:
    """``self.stop()`` is as welcome in a full mailbox as ``ref.stop()``."""
    log: list[Any] = []
    ref = sim.system.spawn(StopsItself, log, name="a")
    ref.tell("enough")
    sim.settle()
    assert log == [0, 1, 2]
    assert not ref.is_alive()


def test_what_waits_at_the_end_becomes_dead_letters(sim: Simulated) -> None:
    """Messages behind a stop are counted, and asks among them are answered."""
    ref = sim.system.spawn(Recorder, [], name="a")
    ref.stop(block=False)
    ref.tell("one")
    asked = ref.ask("two", block=False)
    sim.settle()
    assert isinstance(asked.error, ActorDeadError)
    assert sim.system.stats["Recorder"].dead_letters == {"dead": 2}
    assert ref.offer("three") is False
    assert sim.system.stats["Recorder"].dead_letters == {"dead": 3}


def test_messages_are_handled_in_the_order_they_were_sent(sim: Simulated) -> None:
    """First in, first out, tells and asks alike."""
    log: list[Any] = []
    ref = sim.system.spawn(Recorder, log, name="a")
    for number in range(50):
        if number % 3:
            ref.tell(number)
        else:
            ref.ask(number, block=False)
    sim.settle()
    assert log == list(range(50))


def test_what_is_sent_to_a_crashed_machine_is_not_handled(sim: Simulated) -> None:
    """A power cut ends every actor without a word, and its references stay dead."""
    log: list[Any] = []
    ref = sim.system.spawn(Recorder, log, name="a")
    ref.tell("unhandled")
    sim.machine.crash()
    sim.world.run(1)
    assert log == []
    assert not ref.is_alive()
    with pytest.raises(ActorDeadError):
        ref.tell("more")


def test_handled_messages_are_counted_per_class(sim: Simulated) -> None:
    """The books: started, handled, restarts; and the histogram holds each message once."""
    for name in ("a", "b"):
        ref = sim.system.spawn(Recorder, [], name=name)
        for number in range(4):
            ref.tell(number)
    sim.settle()
    stats = sim.system.stats["Recorder"]
    assert (stats.started, stats.handled, stats.restarts) == (2, 8, 0)
    assert stats.handling.count == 8
    assert stats.handling.cumulative()[-1] == ("+Inf", 8)
