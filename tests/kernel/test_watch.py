"""Death watch: whoever watches gets exactly one notice, whatever the end was."""

from __future__ import annotations

import threading

import pytest

from kernel.messages import Terminated
from kernel.supervision import RestartLimit
from kernel.system import System

from .world import PATIENCE_S, Recorder, Simulated, Watcher


def test_a_stop_gives_exactly_one_notice(sim: Simulated) -> None:
    """One Terminated with path and reason, however often the watch was set."""
    log: list[Terminated] = []
    target = sim.system.spawn(Recorder, [], name="target")
    watcher = sim.system.spawn(Watcher, log, name="watcher")
    for _ in range(3):
        watcher.tell(target)
    sim.settle()
    target.stop()
    target.stop()
    sim.world.run(1)
    assert log == [Terminated("m1/target", 0, "stopped")]


def test_each_watcher_gets_its_notice(sim: Simulated) -> None:
    """Two watchers, two notices."""
    logs: list[list[Terminated]] = [[], []]
    target = sim.system.spawn(Recorder, [], name="target")
    for number, log in enumerate(logs):
        sim.system.spawn(Watcher, log, name=f"w{number}").tell(target)
    sim.settle()
    target.stop()
    sim.world.run(1)
    assert [len(log) for log in logs] == [1, 1]


def test_a_restart_is_no_death(sim: Simulated) -> None:
    """The watch survives restarts and fires at the end, naming the last incarnation."""
    log: list[Terminated] = []
    target = sim.system.spawn(Recorder, [], name="target")
    sim.system.spawn(Watcher, log, name="watcher").tell(target)
    for _ in range(2):
        target.kill()
        sim.world.run(1)
    assert log == []
    target.stop()
    sim.world.run(1)
    assert log == [Terminated("m1/target", 2, "stopped")]


def test_a_failure_beyond_the_limit_is_a_death(sim: Simulated) -> None:
    """The reason tells it from a stop."""
    log: list[Terminated] = []
    target = sim.system.spawn(Recorder, [], name="target", limit=RestartLimit(restarts=0))
    sim.system.spawn(Watcher, log, name="watcher").tell(target)
    sim.settle()
    target.tell("boom")
    sim.world.run(1)
    assert log == [Terminated("m1/target", 0, "failed")]


def test_a_watch_on_a_dead_reference_answers_at_once(sim: Simulated) -> None:
    """The end came before the watch: the notice comes all the same, once."""
    log: list[Terminated] = []
    target = sim.system.spawn(Recorder, [], name="target")
    watcher = sim.system.spawn(Watcher, log, name="watcher")
    target.stop()
    before = sim.world.now_ns
    watcher.tell(target)
    sim.settle()
    assert log == [Terminated("m1/target", 0, "not_found")]
    assert sim.world.now_ns == before


def test_a_watcher_that_has_ended_is_no_harm(sim: Simulated) -> None:
    """A notice for the dead is a dead letter."""
    target = sim.system.spawn(Recorder, [], name="target")
    watcher = sim.system.spawn(Watcher, [], name="watcher")
    watcher.tell(target)
    sim.settle()
    watcher.stop()
    target.stop()
    sim.world.run(1)
    assert sim.system.stats["Watcher"].dead_letters == {"dead": 1}


@pytest.mark.timeout(30)
def test_watching_while_dying_gives_exactly_one_notice(pool_system: System) -> None:
    """Real threads: the watch and the end race, and the notice comes once either way."""
    for round_ in range(100):
        log: list[Terminated] = []
        heard = threading.Event()

        class Listener(Watcher):
            """Tells the test when it has heard."""

            def on_receive(self, message: object, heard: threading.Event = heard) -> None:
                """Take the notice, or watch."""
                super().on_receive(message)
                if isinstance(message, Terminated):
                    heard.set()

        target = pool_system.spawn(Recorder, [], name=f"t{round_}")
        watcher = pool_system.spawn(Listener, log, name=f"w{round_}")
        watcher.tell(target)
        target.stop(block=False)
        assert heard.wait(PATIENCE_S)
        watcher.stop(timeout=PATIENCE_S)
        assert len(log) == 1
        assert log[0].reason in ("stopped", "not_found")
