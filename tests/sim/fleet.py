"""Whole hosts in the simulator: every actor of a machine, units, and the loss of machines.

The law that is checked at every step: an exclusive unit never has two copies.  At the end,
when everything is healed, every wanted unit runs where the brain says it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from actors.brain_client import AGENTS, to_json
from actors.command import Command
from actors.company import Company, boot, boot_agent, founding_snapshot
from actors.machine import LEASE_S, Identity
from actors.raft_messages import ChangeConfig, Propose
from actors.raft_peer import PeerSettings
from brain.raft import Settings
from kernel.ports import Ports
from kernel.sim import Faults, SimDispatcher, SimMachine, World
from runners.simulated import Books, SimProcesses, Workloads
from transport.router import agent_sender

UNIT = """[Service]
ExecStart=/bin/serve
Restart=always
RestartSec=200ms
StartLimitBurst=0
TimeoutStopSec=1s
[X-Argosy]
Port=http
Announce=/services/%p
HealthCheck=http://:PORT/
HealthInterval=1s
"""
CALM = UNIT.replace("Restart=always\n", "")
APART = UNIT.replace("[X-Argosy]", "[X-Fleet]\nConflicts=apart@*.service\n[X-Argosy]")
EVERYWHERE = UNIT.replace("[X-Argosy]", "[X-Fleet]\nGlobal=true\n[X-Argosy]")
#: Virtual seconds after healing within which every unit must run.
SETTLE_S = 60.0


class FleetFailure(AssertionError):
    """A law was broken; the text has the seed and the last events."""


@dataclass
class Outcome:
    """What one run did."""

    trace: str
    steps: int
    starts: int
    moves: int


class Fleet:
    """``size`` machines with all their actors and ``units`` simulated workloads."""

    def __init__(
        self, seed: int, size: int, world: World, about: dict[str, dict[str, Any]] | None = None, agents: int = 0,
        standbys: int = 0,
    ) -> None:  # fmt: skip
        """``about``: fields of the identity of machines, by name; ``agents``: machines without a vote besides;
        ``standbys``: how many of the machines are let in as learners, by :meth:`join`."""
        #: makes the slots of a machine, and says which version its next start is of
        self.slots_of: Callable[[SimMachine], Any] | None = None
        self._about = about or {}
        self.settings = PeerSettings(raft=Settings(), snapshot_entries=200, trailing_entries=50, segment_bytes=64 * 1024)
        self.seed = seed
        self.world = world
        self.books = Books(world)
        self.members = {f"m{n}": (f"m{n}", f"m{n}", "") for n in range(1, size + 1)}
        self.founders = frozenset(list(self.members)[: size - standbys])
        self.agents = [f"a{n}" for n in range(1, agents + 1)]
        self.machines: list[SimMachine] = []
        self.wanted: set[str] = set()
        for name in (*self.members, *self.agents):
            is_agent = name in self.agents
            machine = SimMachine(world, name, self._boot_agent if is_agent else self._boot)
            machine.sender = agent_sender(name) if is_agent else name
            place = Workloads(machine, self.books)
            machine.on_power_off = place.power_off
            machine.place = place  # type: ignore[attr-defined]
            self.machines.append(machine)
        world.on_step = self._check

    def start(self) -> None:
        """Power on all machines; those without a vote are let in."""
        for machine in self.machines:
            if machine.name in self.founders:
                machine.start()
        for name in self.agents:
            self._admit(name)
        for machine in self.machines:
            if machine.name in self.agents:
                machine.start()

    def join(self, name: str) -> None:
        """What a voter has decided when another machine joins."""
        change = ChangeConfig("add_learner", name, self.members[name])
        self._until(lambda machine: machine.host.raft.ask(change, block=False), 30.0, f"{name} joins")
        next(machine for machine in self.machines if machine.name == name).start()

    def _admit(self, name: str) -> None:
        """What a voter writes when a machine without a vote joins."""
        record = to_json({"name": name, "address": name})
        self._until(lambda machine: machine.host.raft.ask(Propose(["put", AGENTS + name.encode(), record]), block=False), 30.0, name)

    def _ports(self, machine: SimMachine) -> tuple[Ports, Identity, Callable[[BaseException], None]]:
        processes = SimProcesses(machine, machine.place)  # type: ignore[attr-defined]
        slots = self.slots_of(machine) if self.slots_of is not None else None
        ports = Ports(machine, machine, machine.disk, machine.net, processes, None, slots)  # type: ignore[arg-type]
        role = "agent" if machine.name in self.agents else "voter"
        identity = Identity(machine.name, machine.name, machine.name, "http://door", machine.name, {}, role, "sim")
        identity = replace(identity, **self._about.get(machine.name, {}))

        def fatal(error: BaseException) -> None:
            machine.failure = error
            self.world.note(f"{machine.name} FATAL {error!r}")

        return ports, identity, fatal

    def _boot_agent(self, machine: SimMachine) -> Company:
        ports, identity, fatal = self._ports(machine)
        dispatcher = SimDispatcher(machine)
        seeds = {member: address for member, (_, address, _) in self.members.items()}
        company = boot_agent(identity, "cluster", ports, dispatcher, dispatcher, None, fatal, seeds)
        machine.net.on_link(company.router.link_changed)  # type: ignore[union-attr]
        return company

    def _boot(self, machine: SimMachine) -> Company:
        if not machine.disk.list():
            founding = {name: info for name, info in self.members.items() if name in self.founders}
            name, data = founding_snapshot(founding, self.founders)
            machine.disk.install(name, data)
        dispatcher = SimDispatcher(machine)
        ports, identity, fatal = self._ports(machine)
        company = boot(identity, "cluster", ports, dispatcher, dispatcher, None, fatal, self.settings)
        machine.net.on_link(company.router.link_changed)  # type: ignore[union-attr]
        return company

    def _check(self) -> None:
        if self.books.violations:
            raise FleetFailure(self.report(self.books.violations[0]))

    def report(self, what: str) -> str:
        """The failure with everything needed to see it again."""
        lines = "\n".join(list(self.world.log)[-120:])
        return (
            f"{what}\nseed {self.seed}, {len(self.machines)} machines; replay: "
            f"python -m tests.sim.run_fleet --size {len(self.members)}"
            f"{f' --agents {len(self.agents)}' if self.agents else ''} --seed {self.seed}\n{lines}"
        )

    def command(self, verb: str, **args: Any) -> None:
        """Ask a random living host; its answer is not waited for (operators press Ctrl-C)."""
        alive = [m for m in self.machines if m.alive and m.name in self.members]
        if alive:
            host = self.world.random.choice(alive).host
            host.control.ask(Command(verb, args), block=False)

    def do(self, verb: str, seconds: float = 30.0, **args: Any) -> Any:
        """Ask until somebody has done it (the cluster is healthy)."""
        return self._until(lambda machine: machine.host.control.ask(Command(verb, args), block=False), seconds, f"{verb} {args}")

    def _until(self, ask: Callable[[SimMachine], Any], seconds: float, what: str) -> Any:
        result: list[Any] = []
        refused: list[Any] = []

        def answered(future: Any) -> None:
            if future.error is None:
                result.append(future)
            else:
                refused.append(future.error)
                attempt_later()

        def attempt() -> None:
            alive = [m for m in self.machines if m.alive and not m.paused and m.name in self.members]
            if not alive:
                attempt_later()
                return
            machine, life = alive[0], alive[0].life
            ask(machine).on_done(answered)
            self.world.call_later(2.0, lambda: None if result or (machine.alive and machine.life == life) else attempt())

        def attempt_later() -> None:
            self.world.call_later(0.5, attempt)

        attempt()
        if not self.world.run_until(lambda: bool(result), seconds):
            raise FleetFailure(self.report(f"{what} was not done within {seconds} s: {refused[-1:]}"))
        return result[0].value


def faults_of(world_seed: int) -> Faults:
    """The swarm: which faults this seed has, and how much of each."""
    import random

    draw = random.Random(world_seed * 7919 + 1)

    def maybe(value: float) -> float:
        return draw.random() * value if draw.random() < 0.6 else 0.0

    return Faults(
        loss=maybe(0.05), duplicate=maybe(0.05), reorder=maybe(0.1), delay_s_max=0.002 + maybe(0.03),
        disk_s_max=0.002 + maybe(0.01), disk_stall=maybe(0.02), disk_stall_s_max=0.5,
        clock_rate_spread=maybe(0.02), clock_offset_s_max=maybe(30.0),
    )  # fmt: skip


def play(seed: int, size: int = 3, rounds: int = 14, agents: int = 0) -> Outcome:
    """One run of a seed; raises :class:`FleetFailure` when a law is broken."""
    with World(seed, faults_of(seed)) as world:
        fleet = Fleet(seed, size, world, agents=agents)
        fleet.start()
        fleet.do("unit.submit", files=[
            {"name": "web@.service", "content": UNIT}, {"name": "apart@.service", "content": APART},
            {"name": "calm@.service", "content": CALM},
        ], replace=False)  # fmt: skip
        names = ["web@1", "web@2", "web@3", "apart@1", "apart@2", "calm@1", "calm@2"]
        fleet.do("unit.start", units=names, no_block=True)
        fleet.wanted = {f"{n}.service" for n in names}
        world.run(6.0)
        for _ in range(rounds):
            _disturb(fleet)
            world.run(0.3 + world.random.random() * 4)
        _heal(fleet)
        _await_settled(fleet)
        moves = fleet.books.starts - len(names)
        return Outcome(world.trace, world.steps, fleet.books.starts, moves)


def _disturb(fleet: Fleet) -> None:
    world = fleet.world
    draw = world.random
    machine = draw.choice(fleet.machines)
    kind = draw.choice([
        "power", "process", "pause", "cut", "one-way", "heal", "kill", "command", "bounce", "workload", "shim", "link",
    ])  # fmt: skip
    if kind in ("power", "process") and machine.alive:
        machine.crash(power=kind == "power")
        away = draw.random() * (8 if kind == "power" else 3)
        world.call_later(away, lambda: machine.alive or machine.start())
    elif kind == "pause":
        machine.pause(draw.random() * 8)
    elif kind == "cut":
        world.partition({machine.name})
    elif kind == "one-way":
        other = draw.choice(fleet.machines)
        world.cut = world.cut | {(machine.name, other.name)}
        world.note(f"cut {machine.name} -> {other.name}")
    elif kind == "heal":
        world.heal()
    elif kind == "kill" and machine.alive:
        boxes = machine.host.system.mailboxes()
        box = boxes[draw.randrange(len(boxes))]
        world.note(f"kill actor {box.path}")
        box.ref.kill()
    elif kind == "command":
        unit = draw.choice(sorted(fleet.wanted))
        verb = draw.choice(["unit.restart", "unit.stop", "unit.unload", "unit.start"])
        world.note(f"{verb} {unit}")
        fleet.command(verb, units=[unit], no_block=True)
    elif kind == "bounce":  # unloaded and started again before the first copy can have ended
        unit = draw.choice(sorted(fleet.wanted))
        world.note(f"bounce {unit}")
        at = 0.0
        for verb in ("unit.unload", "unit.start") * 4:
            world.call_later(at, lambda verb=verb: fleet.command(verb, units=[unit], no_block=True))  # type: ignore[misc]
            at += draw.random() * 0.1
    elif kind in ("workload", "shim", "link") and machine.alive:
        shims = sorted(machine.place.shims)  # type: ignore[attr-defined]
        if shims:
            unit = draw.choice(shims)
            shim = machine.place.shims[unit]  # type: ignore[attr-defined]
            world.note(f"{kind} of {unit} on {machine.name}")
            if kind == "shim":
                shim.die()
            elif kind == "link":
                shim.lose_link(draw.random())
            elif shim.main is not None:
                shim.end(0)


def _heal(fleet: Fleet) -> None:
    world = fleet.world
    world.heal()
    world.healed = True
    for machine in fleet.machines:
        if not machine.alive:
            machine.start()
    world.run(LEASE_S + 8)
    for machine in fleet.machines:
        if machine.failure is not None:
            raise FleetFailure(fleet.report(f"{machine.name} ended: {machine.failure!r}"))
    fleet.do("unit.start", units=sorted(fleet.wanted), no_block=True)


def _await_settled(fleet: Fleet) -> None:
    def settled() -> bool:
        running = {u for u, where in fleet.books.running.items() if where}
        return running == fleet.wanted and all(
            row["active"] == "active" and row["health"] == "passing"
            for row in _rows(fleet) if row["unit"] in fleet.wanted
        )  # fmt: skip

    if not fleet.world.run_until(settled, SETTLE_S):
        running = {u: w for u, w in fleet.books.running.items() if w}
        raise FleetFailure(fleet.report(f"not settled: running {running}, listed {_rows(fleet)}"))
    homes = [m for u, where in fleet.books.running.items() if u.startswith("apart@") for m in where]
    if len(set(homes)) != len(homes):
        raise FleetFailure(fleet.report(f"units that conflict are on one machine: {homes}"))


def _rows(fleet: Fleet) -> list[dict[str, Any]]:
    from actors.verbs.units import _unit_list

    control = fleet.machines[0].host.control._mailbox.actor
    return _unit_list(control, {}) if control is not None else []
