"""Makes machines and links fail at moments drawn from the seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.raft_messages import TransferLeadership

if TYPE_CHECKING:
    from .cluster import SimCluster


class Nemesis:
    """One per run; which kinds of fault it knows, and how often, is in the options."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._rng = random.Random(f"nemesis {cluster.size} {cluster.seed}")
        self._stopped = False
        self._strikes: list[tuple[int, str, bool]] = []  # (world step, machine, power cut)

    def start(self) -> None:
        """Schedule the first fault of each kind."""
        for kind in self._cluster.options.moments:
            self._later(kind)

    def stop(self) -> None:
        """No more faults."""
        self._stopped = True
        self._strikes = [strike for strike in self._strikes if strike[0] <= self._world.steps]

    def on_step(self) -> None:
        """Called after every step: a power cut need not wait until a machine is idle."""
        if self._strikes and self._world.steps >= self._strikes[0][0]:
            _, name, power = self._strikes.pop(0)
            self._take_down(name, power)

    def ends(self, name: str) -> None:
        """The host process on this machine says that it cannot go on; it is started again."""
        self._world.note(f"{name} cannot go on")
        self._strikes.insert(0, (self._world.steps, name, False))

    def _later(self, kind: str) -> None:
        mean = self._cluster.options.moments[kind]

        def strike() -> None:
            if self._stopped:
                return
            action: Callable[[], None] = getattr(self, f"_do_{kind}")
            action()
            self._later(kind)

        self._world.call_later(self._rng.expovariate(1 / mean), strike)

    def _one(self) -> str:
        return self._rng.choice(self._cluster.names)

    def _outage(self) -> float:
        return self._rng.choice([0.02, 0.3, 1.0, 3.0]) * self._rng.uniform(0.5, 1.5)

    # -- the kinds ----------------------------------------------------------------------------

    def _do_crash(self) -> None:
        """One machine loses power, or its process dies; now, or in the middle of what comes next."""
        name = self._one()
        power = self._rng.random() < 0.7
        if self._rng.random() < 0.4:
            self._take_down(name, power)
        else:
            self._strikes.append((self._world.steps + self._rng.randint(1, 120), name, power))
            self._strikes.sort()

    def _do_blackout(self) -> None:
        """All machines lose power."""
        for name in self._cluster.names:
            self._take_down(name, power=True)

    def _take_down(self, name: str, power: bool) -> None:
        machine = self._world.machines[name]
        if machine.alive:
            machine.crash(power)
            self._world.call_later(self._outage(), lambda: self._cluster.power_on(name))

    def _do_kill(self) -> None:
        """The actor crashes; its supervisor restarts it on the running machine."""
        name = self._one()
        ref = self._cluster.peer_ref(name)
        if ref is not None:
            self._world.note(f"{name}: the peer is killed")
            ref.kill()

    def _do_pause(self) -> None:
        """A machine stands still for a while."""
        self._world.machines[self._one()].pause(self._rng.choice([0.05, 0.4, 1.5, 3.0]))

    def _do_transfer(self) -> None:
        """Whoever leads is told to hand leadership over."""
        for name in self._cluster.names:
            ref = self._cluster.peer_ref(name)
            if ref is not None:
                ref.tell(TransferLeadership())

    def _do_member(self) -> None:
        """An operator takes a machine out of the brain, or moves one a step back into it."""
        name = self._one()
        config = self._cluster.watchtower.chronicle.config
        if name in config.voters:
            change = "remove" if len(config.voters) > 2 else "promote"
        else:
            change = "promote" if name in config.learners else "add_learner"
        self._cluster.change_member(change, name, through=self._one())

    def _do_reset(self) -> None:
        """A connection between two machines breaks; both notice."""
        one, other = self._rng.sample(self._cluster.names, 2)
        self._world.note(f"the link {one} - {other} is reset")
        for here, there in ((one, other), (other, one)):
            machine = self._world.machines[here]
            if machine.alive and machine.net is not None:
                machine.net.link_down(there)

    def _do_partition(self) -> None:
        """Cut the machines into two sides; sometimes one machine sees both."""
        names = self._rng.sample(self._cluster.names, self._cluster.size)
        cut = self._rng.randint(1, self._cluster.size - 1)
        one, other = names[:cut], names[cut:]
        if self._cluster.size > 3 and self._rng.random() < 0.3:
            bridge = (one if len(one) > len(other) else other).pop()
            self._world.note(f"{bridge} sees both sides")
        self._cut({(a, b) for a in one for b in other} | {(b, a) for a in one for b in other})

    def _do_one_way(self) -> None:
        """Some links carry frames in one direction only."""
        names = self._cluster.names
        links = [(a, b) for a in names for b in names if a != b]
        if self._rng.random() < 0.5:
            deaf = self._one()
            inward = self._rng.random() < 0.5
            links = [link for link in links if link[inward] == deaf]
        else:
            links = self._rng.sample(links, self._rng.randint(1, len(links) // 2))
        self._cut(set(links))

    def _cut(self, links: set[tuple[str, str]]) -> None:
        """Cut these links until a drawn moment, or until the next cut."""
        self._world.cut = links
        self._world.note(f"cut {sorted(links)}")

        def heal() -> None:
            if self._world.cut is links:
                self._world.heal()

        self._world.call_later(self._outage() * 2, heal)
