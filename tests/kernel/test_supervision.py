"""Supervision: restart behind the same reference, an intensity limit, then escalation."""

from __future__ import annotations

from typing import Any

import pytest
from pykka import ActorDeadError, ActorRegistry

from kernel.actor import Actor, Killed, Ref
from kernel.supervision import Escalated, RestartLimit
from kernel.system import NameTakenError

from .world import Recorder, Simulated


class Hooked(Recorder):
    """Records its hooks as well."""

    def on_start(self) -> None:
        """Write it down."""
        self.log.append("start")

    def on_stop(self) -> None:
        """Write it down."""
        self.log.append("stop")

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        """Write down what kind of failure it was."""
        self.log.append(exception_type.__name__)


class FailsToStart(Hooked):
    """Fails in on_start as often as told."""

    def __init__(self, log: list[Any], failures: int) -> None:
        super().__init__(log)
        self.failures = failures

    def on_start(self) -> None:
        """Fail while there are more starts to fail."""
        super().on_start()
        if self.log.count("start") <= self.failures:
            raise ValueError("not yet")


class FailsToConstruct(Hooked):
    """The second life cannot be constructed; the third can."""

    lives = 0

    def __init__(self, log: list[Any]) -> None:
        type(self).lives += 1
        if self.lives == 2:
            raise ValueError("no second life")
        super().__init__(log)


class Parent(Actor):
    """Spawns one child by a fixed name when it starts."""

    def __init__(self, log: list[Any], limit: RestartLimit) -> None:
        super().__init__()
        self.log = log
        self.limit = limit

    def on_start(self) -> None:
        """Spawn the child."""
        self.child = self.system.spawn(Hooked, self.log, name="parent/child", parent=self, limit=self.limit)

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        """Write down why this life ended."""
        self.log.append(exception_value)

    def on_receive(self, message: Any) -> Any:
        """The child's reference."""
        return self.child


def test_a_restart_keeps_the_reference_and_the_queue(sim: Simulated) -> None:
    """What waited behind the failing message is handled by the new life, through the same ref."""
    log: list[Any] = []
    ref = sim.system.spawn(Hooked, log, name="a")
    urn = ref.actor_urn
    for message in ("one", "boom", "two", "three"):
        ref.tell(message)
    sim.world.run(1)
    assert log == ["start", "one", "ValueError", "start", "two", "three"]
    assert sim.system.find("a") is ref
    assert ref.actor_urn == urn
    assert ActorRegistry.get_by_urn(urn) is ref
    assert ref.proxy().seen.get(timeout=1) == 2, "state starts anew"
    assert sim.system.stats["Hooked"].restarts == 1


def test_a_failing_on_start_calls_on_failure_and_is_tried_again(sim: Simulated) -> None:
    """Pykka skips on_failure there; a supervised actor gets it, and its queue survives."""
    log: list[Any] = []
    ref = sim.system.spawn(FailsToStart, log, 2, name="a")
    ref.tell("patient")
    sim.world.run(1)
    assert log == ["start", "ValueError", "start", "ValueError", "start", "patient"]
    assert sim.mailbox(ref).restarts == 2


def test_a_constructor_that_fails_in_a_restart_counts_as_a_failure(sim: Simulated) -> None:
    """The actor is tried again rather than left without a life."""
    log: list[Any] = []
    FailsToConstruct.lives = 0
    ref = sim.system.spawn(FailsToConstruct, log, name="a")
    ref.tell("boom")
    sim.world.run(1)
    assert FailsToConstruct.lives == 3
    assert ref.ask("on", timeout=1) == "on"


def test_kill_is_a_crash_that_says_so(sim: Simulated) -> None:
    """``kill`` overtakes the queue, on_failure sees Killed, and the actor comes back."""
    log: list[Any] = []
    ref = sim.system.spawn(Hooked, log, name="a")
    sim.settle()
    for number in range(3):
        ref.tell(number)
    ref.kill()
    sim.world.run(1)
    assert log == ["start", Killed.__name__, "start", 0, 1, 2]


def test_kill_ends_an_actor_without_a_supervisor() -> None:
    """Outside a system there is nobody to restart it: it is failed for good."""
    log: list[Any] = []
    ref: Ref = Hooked.start(log)  # type: ignore[assignment]
    ref.kill()
    assert ref.actor_stopped.wait(10)
    with pytest.raises(ActorDeadError):
        ref.ask("x", timeout=1)


def test_at_most_the_limit_of_restarts_within_the_window(sim: Simulated) -> None:
    """Three failures are forgiven, the fourth within ten seconds is the host's end."""
    ref = sim.system.spawn(Hooked, [], name="a", limit=RestartLimit(restarts=3, within=10))
    for _ in range(3):
        ref.tell("boom")
        sim.world.run(1)
    assert ref.is_alive()
    assert sim.fatal == []
    ref.tell("boom")
    sim.world.run(1)
    assert not ref.is_alive()
    [reason] = sim.fatal
    assert isinstance(reason, Escalated)
    assert "m1/a failed more than 3 times in 10 s" in str(reason)
    assert "boom" in str(reason)
    assert sim.system.failed is reason
    assert sim.system.find("a") is None


def test_failures_further_apart_than_the_window_are_forgiven(sim: Simulated) -> None:
    """The window slides: an actor that fails now and then is restarted for ever."""
    ref = sim.system.spawn(Hooked, [], name="a", limit=RestartLimit(restarts=1, within=10))
    for _ in range(8):
        ref.tell("boom")
        sim.world.run(10.1)
    assert sim.mailbox(ref).restarts == 8
    assert sim.fatal == []


def test_a_backoff_delays_the_restart_and_the_queue_waits(sim: Simulated) -> None:
    """During the back-off messages are kept, not handled and not lost."""
    log: list[Any] = []
    ref = sim.system.spawn(Hooked, log, name="a", limit=RestartLimit(backoff=2.0))
    ref.tell("boom")
    ref.tell("patient")
    sim.world.run(1.9)
    assert log == ["start", "ValueError"]
    sim.world.run(0.2)
    assert log == ["start", "ValueError", "start", "patient"]


def test_a_stop_during_the_backoff_is_final(sim: Simulated) -> None:
    """An actor whose host stops while it waits for its restart does not come back."""
    log: list[Any] = []
    ref = sim.system.spawn(Hooked, log, name="a", limit=RestartLimit(backoff=2.0))
    ref.tell("boom")
    sim.world.run(1)
    sim.system.stop()
    sim.world.run(5)
    assert log.count("start") == 1
    assert not ref.is_alive()


def test_a_child_beyond_its_limit_fails_its_parent(sim: Simulated) -> None:
    """Escalation goes one level up: the parent restarts, the host goes on."""
    log: list[Any] = []
    parent = sim.system.spawn(Parent, log, RestartLimit(restarts=1, within=60), name="parent")
    child = parent.ask("child", timeout=1)
    for _ in range(2):
        child.tell("boom")
        sim.world.run(0.1)
    assert not child.is_alive()
    [reason] = [entry for entry in log if isinstance(entry, Escalated)]
    assert "m1/parent/child" in str(reason)
    assert sim.mailbox(parent).restarts == 1
    assert sim.fatal == []
    fresh = parent.ask("child", timeout=1)
    assert fresh is not child
    assert fresh.ask("on", timeout=1) == "on"


def test_escalation_reaches_the_host_when_the_parent_is_beyond_its_limit(sim: Simulated) -> None:
    """Child, parent, host: the last word is ``System.fatal``."""
    log: list[Any] = []
    limit = RestartLimit(restarts=0, within=60)
    parent = sim.system.spawn(Parent, log, limit, name="parent", limit=limit)
    child = parent.ask("child", timeout=1)
    child.tell("boom")
    sim.world.run(1)
    assert not parent.is_alive()
    [reason] = sim.fatal
    assert "m1/parent failed more than 0 times" in str(reason)
    assert "m1/parent/child" in str(reason)
    assert sim.system.mailboxes() == []


def test_a_parent_that_restarts_stops_its_children_first(sim: Simulated) -> None:
    """The new life spawns a child of the same name at once: one failure is one restart."""
    log: list[Any] = []
    parent = sim.system.spawn(Parent, log, RestartLimit(), name="parent")
    child = parent.ask("child", timeout=1)
    parent.kill()
    sim.world.run(1)
    assert sim.mailbox(parent).restarts == 1
    assert not child.is_alive()
    fresh = sim.system.find("parent/child")
    assert fresh is not None
    assert fresh is not child
    assert log.count("stop") == 1


def test_stopping_a_parent_stops_its_children(sim: Simulated) -> None:
    """No child outlives its parent."""
    log: list[Any] = []
    parent = sim.system.spawn(Parent, log, RestartLimit(), name="parent")
    child = parent.ask("child", timeout=1)
    parent.stop()
    sim.world.run(1)
    assert not child.is_alive()
    assert log == ["start", "stop"]
    assert sim.system.mailboxes() == []


def test_a_child_that_ends_is_forgotten_by_its_parent(sim: Simulated) -> None:
    """A parent of many short lives does not grow."""
    parent = sim.system.spawn(Parent, [], RestartLimit(), name="parent")
    child = parent.ask("child", timeout=1)
    child.stop()
    assert not sim.mailbox(parent).children


class Stillborn(Recorder):
    """Its constructor fails, late."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__(log)
        raise TypeError("stillborn")


class Ambitious(Actor):
    """Tries to spawn a child that cannot be constructed."""

    def on_receive(self, message: Any) -> Any:
        """Spawn and return the reason it failed."""
        try:
            self.system.spawn(Stillborn, *message, name="child", parent=self)
        except TypeError as error:
            return str(error)
        return None


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((), id="before the base's constructor"),
        pytest.param(([],), id="after it"),
    ],
)
def test_a_spawn_that_fails_leaves_nothing_behind(sim: Simulated, arguments: tuple[Any, ...]) -> None:
    """The caller gets the constructor's error; the name is free and the parent has no ghost."""
    ref = sim.system.spawn(Ambitious, name="a")
    assert ref.ask(arguments, timeout=1)
    assert sim.system.find("child") is None
    assert not sim.mailbox(ref).children
    assert sim.system.spawn(Hooked, [], name="child").is_alive()
    ref.kill()
    sim.world.run(1)
    assert sim.mailbox(ref).restarts == 1


def test_an_actor_that_has_failed_does_nothing_more_in_that_life(sim: Simulated) -> None:
    """Two kills at once are one failure: the second meets a life that is over."""
    log: list[Any] = []
    ref = sim.system.spawn(Hooked, log, name="a")
    sim.settle()
    ref.kill()
    ref.kill()
    sim.world.run(1)
    assert log == ["start", Killed.__name__, "start"]
    assert sim.mailbox(ref).restarts == 1


def test_names_are_unique_while_their_actor_lives(sim: Simulated) -> None:
    """A second actor of one name is refused; after the first has ended the name is free."""
    ref = sim.system.spawn(Hooked, [], name="a")
    with pytest.raises(NameTakenError, match="m1/a"):
        sim.system.spawn(Hooked, [], name="a")
    ref.stop()
    again = sim.system.spawn(Hooked, [], name="a")
    assert sim.system.find("a") is again
    assert sim.system.find("m1/a") is again
    assert again.path == "m1/a"


def test_published_messages_reach_each_subscriber_once(sim: Simulated) -> None:
    """Subscribing twice is subscribing once, and a subscriber that ended is dropped."""
    logs: list[list[Any]] = [[], []]
    refs = [sim.system.spawn(Recorder, log, name=f"a{i}") for i, log in enumerate(logs)]
    for ref in (*refs, refs[0]):
        sim.system.subscribe(str, ref)
    sim.system.publish("one")
    sim.settle()
    refs[1].stop()
    sim.system.publish("two")
    sim.system.publish(3)
    sim.settle()
    assert logs == [["one", "two"], ["one"]]
    sim.system.publish("three")
    assert sim.system.stats["Recorder"].dead_letters == {"dead": 1}, "dropped after the first"
