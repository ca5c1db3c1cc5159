"""The simulator: one seed is one run, and its faults are what they claim to be."""

from __future__ import annotations

from typing import Any

import pytest

from kernel.actor import Actor, Ref
from kernel.ports import DiskError
from kernel.sim import SECTOR, Faults, SimDispatcher, SimMachine, World
from kernel.system import System

from .world import Host, Recorder, Simulated


class Player(Actor):
    """Hits a ball on to a random other player after a random pause; sometimes it falls over."""

    def __init__(self, machine: SimMachine, log: list[Any]) -> None:
        super().__init__()
        self.machine = machine
        self.others: list[Ref] = []
        self.log = log

    def on_receive(self, message: Any) -> None:
        """Learn the others, or play."""
        if isinstance(message, list):
            self.others = message
            return
        self.log.append((self.path, message))
        if self.machine.below(20) == 0:
            raise ValueError("fell over")
        target = self.others[self.machine.below(len(self.others))]

        def hit() -> None:
            target.offer(message + 1)

        self.after(self.machine.below(100) / 1000, hit)
        if message % 7 == 0:
            target.offer(message + 1000)


def _game(seed: int) -> tuple[str, list[Any], int]:
    log: list[Any] = []
    systems: list[System] = []

    def boot(machine: SimMachine) -> Host:
        system = System(machine.name, {"loop": SimDispatcher(machine)})
        systems.append(system)
        return Host(system)

    with World(seed, Faults(clock_rate_spread=0.01)) as world:
        machines = [SimMachine(world, f"m{i}", boot) for i in range(3)]
        for machine in machines:
            machine.start()
        players = [
            system.spawn(Player, machines[i], log, name=f"p{n}")
            for i, system in enumerate(systems) for n in range(3)
        ]  # fmt: skip
        for player in players:
            player.tell(players)
        for number, player in enumerate(players):
            player.tell(number)
        world.call_later(1.0, lambda: machines[1].pause(0.5))
        world.call_later(2.0, machines[2].crash)
        world.run(5)
        return world.trace, log, world.steps


@pytest.mark.parametrize("seed", [1, 2, 42])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    """Order of mailboxes, times and everything the actors did: twice the same."""
    first, second = _game(seed), _game(seed)
    assert first == second
    assert len(first[1]) > 20, "a game in which nothing happens proves nothing"


def test_other_seeds_give_other_traces() -> None:
    """The seed decides the order: different seeds explore different runs."""
    assert len({_game(seed)[0] for seed in range(6)}) == 6


def test_time_stands_still_while_there_is_work(sim: Simulated) -> None:
    """Virtual time moves only when no mailbox is ready."""
    ref = sim.system.spawn(Recorder, [], name="a")
    for number in range(1000):
        ref.tell(number)
    sim.settle()
    assert sim.world.now_ns == 0
    sim.world.run(3600)
    assert sim.world.now == pytest.approx(3600)


def _frames(seed: int, faults: Faults, count: int = 300) -> tuple[World, SimMachine, SimMachine, list[bytes]]:
    world = World(seed, faults)
    got: list[bytes] = []
    boot = lambda machine: Host(System(machine.name, {"loop": SimDispatcher(machine)}))  # noqa: E731
    one, two = SimMachine(world, "one", boot), SimMachine(world, "two", boot)
    one.start()
    two.start()
    assert one.net is not None
    assert two.net is not None
    one.net.set_peers({"two": ""})
    two.net.listen(lambda sender, frame: got.append(frame))
    for number in range(count):
        one.net.send("two", 0, b"%d" % number)
    return world, one, two, got


def test_the_network_keeps_order_and_loses_nothing_unless_told() -> None:
    """Without faults a link is first in, first out."""
    world, *_, got = _frames(3, Faults())
    world.run(1)
    assert got == [b"%d" % n for n in range(300)]


def test_the_networks_faults_are_real() -> None:
    """Loss loses some, duplication repeats some, reordering changes places."""
    world, *_, lost = _frames(3, Faults(loss=0.3))
    world.run(1)
    assert 100 < len(lost) < 290
    world, *_, doubled = _frames(3, Faults(duplicate=0.3))
    world.run(1)
    assert 310 < len(doubled) < 500
    world, *_, mixed = _frames(3, Faults(reorder=0.5))
    world.run(1)
    assert mixed != sorted(mixed, key=int)
    assert sorted(mixed, key=int) == [b"%d" % n for n in range(300)]


def test_a_partition_cuts_frames_under_way_and_heals() -> None:
    """Nothing crosses a cut; afterwards the link works."""
    world, one, _, got = _frames(3, Faults())
    world.partition({"one"}, {"two"})
    world.run(1)
    assert got == []
    world.heal()
    assert one.net is not None
    one.net.send("two", 0, b"after")
    world.run(1)
    assert got == [b"after"]


def test_in_a_healed_world_nothing_is_lost_any_more() -> None:
    """The liveness phase stands on this: links neither lose nor double nor reorder."""
    world, one, _, got = _frames(3, Faults(loss=0.5, duplicate=0.5, reorder=0.5), count=0)
    world.healed = True
    assert one.net is not None
    for number in range(100):
        one.net.send("two", 0, b"%d" % number)
    world.run(1)
    assert got == [b"%d" % n for n in range(100)]


def test_a_net_without_a_link_says_so() -> None:
    """Sending to a machine that no link is kept to drops the frame at once."""
    _, one, _, _ = _frames(3, Faults(), count=0)
    assert one.net is not None
    assert one.net.send("three", 0, b"x") is False
    assert one.net.send("two", 0, b"x") is True


def _written(seed: int, operations: list[tuple[Any, ...]]) -> SimMachine:
    world = World(seed, Faults())
    boot = lambda machine: Host(System(machine.name, {"loop": SimDispatcher(machine)}))  # noqa: E731
    machine = SimMachine(world, "one", boot)
    machine.start()
    done: list[Any] = []
    machine.disk.submit([("create", "f", 4 * SECTOR), ("sync", "f"), ("sync_dir",)], done.append)
    world.run(1)
    assert done == [None]
    machine.disk.submit(operations, done.append)
    return machine


def test_a_crash_keeps_what_was_synced() -> None:
    """After ``done`` the data is there, whatever the seed."""
    for seed in range(50):
        machine = _written(seed, [("write", "f", 10, b"x" * 1000), ("sync", "f")])
        machine.world.run(1)
        machine.crash()
        machine.start()
        assert machine.disk.read("f")[10:1010] == b"x" * 1000


def test_a_crash_keeps_loses_or_tears_what_was_not_synced() -> None:
    """Over the seeds all three happen, and a tear is by whole sectors only."""
    fates = set()
    for seed in range(200):
        machine = _written(seed, [("write", "f", 0, b"x" * (4 * SECTOR))])
        machine.world.run(0.0015)
        machine.crash()
        machine.start()
        data = machine.disk.read("f")
        sectors = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
        assert all(sector in (b"x" * SECTOR, bytes(SECTOR)) for sector in sectors)
        whole = sum(any(sector) for sector in sectors)
        fates.add("lost" if whole == 0 else "kept" if whole == 4 else "torn")
    assert fates == {"lost", "kept", "torn"}


def test_a_new_name_may_vanish_until_the_directory_is_synced() -> None:
    """A created or renamed file without ``sync_dir`` reverts on some seeds, after it on none."""
    reverted = set()
    for seed in range(50):
        written = [("create", "part", 0), ("write", "part", 0, b"data"), ("sync", "part"), ("sync_dir",)]
        machine = _written(seed, [*written, ("rename", "part", "g")])
        machine.world.run(1)
        machine.crash()
        machine.start()
        reverted.add("g" in machine.disk.list())
        synced = _written(seed, [*written, ("rename", "part", "g"), ("sync_dir",)])
        synced.world.run(1)
        synced.crash()
        synced.start()
        assert synced.disk.read("g") == b"data"
    assert reverted == {True, False}


def test_a_missing_file_is_an_error_that_names_it() -> None:
    """The text says which machine and which file."""
    machine = _written(1, [])
    with pytest.raises(DiskError, match="one:nosuch"):
        machine.disk.read("nosuch")
