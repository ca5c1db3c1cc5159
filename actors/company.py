"""The company of actors that makes one host: the same function boots it everywhere.

Production hands in the real ports, the simulator its own; nothing in here knows which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from brain import snapshot
from brain.raft import Config, Message, Raft
from brain.store import Store
from kernel.actor import Ref
from kernel.dispatch import Dispatcher
from kernel.ports import Ports
from kernel.supervision import RestartLimit
from kernel.system import System
from transport.router import Router

from . import verbs  # noqa: F401 - registers what operators may ask for
from .agent import Agent
from .agent_control import AgentControl
from .control import Authority, Control
from .desk import Desk
from .electorate import Electorate
from .lock_manager import LockManager
from .machine import Identity, Machine
from .raft_messages import SnapshotChunk, StillMember
from .raft_peer import PeerSettings, RaftPeer
from .rollouts import Rollouts
from .scheduler import Scheduler
from .timers import Timers
from .updater import Updater

#: Supervision of a host's own actors: a chaos test may kill one now and then, a bug loops.
LIMIT = RestartLimit(restarts=10, within=10.0, backoff=0.05)


@dataclass(slots=True)
class Company:
    """One host's actors; those of the fleet are missing where only the brain runs."""

    system: System
    router: Router
    raft: Ref
    control: Ref
    machine: Ref | None = None
    scheduler: Ref | None = None
    timers: Ref | None = None
    rollouts: Ref | None = None
    desk: Ref | None = None
    electorate: Ref | None = None
    lock_manager: Ref | None = None
    updater: Ref | None = None


def founding_snapshot(members: dict[str, tuple[str, str, str]], voters: frozenset[str]) -> tuple[str, bytes]:
    """(file name, content) from which the first peers of a cluster start.

    ``members``: (name, transport address, client URL) by id.
    """
    config = Config(voters, info=tuple(sorted(members.items())))
    return snapshot.file_name(0), snapshot.dump(snapshot.Meta(0, 0, config), Store())


#: What is heard from a machine that this one does not know as a member.
_OUTSIDERS_SAY = (Message, SnapshotChunk, StillMember)


def boot_agent(
    identity: Identity, cluster: str, ports: Ports, dispatcher: Dispatcher, pool: Dispatcher,
    authority: Authority | None, on_fatal: Callable[[BaseException], None], seeds: dict[str, str],
) -> Company:  # fmt: skip
    """Start the actors of a machine without a vote; ``seeds``: addresses of members of the brain, by id."""
    system = System(identity.name, {"loop": dispatcher, "pool": pool}, on_fatal)
    router = Router(system, ports.net, dispatcher, identity.id)
    raft = system.spawn(Agent, identity.id, ports, router, seeds, name="raft", limit=LIMIT)
    control = system.spawn(
        AgentControl, identity.id, cluster, ports, raft, router, authority, identity.version, name="control", limit=LIMIT
    )
    company = Company(system, router, raft, control)
    _spawn_machine(company, identity, ports)
    return company


def _spawn_machine(company: Company, identity: Identity, ports: Ports) -> None:
    """The actors that every machine has, with a vote or without."""
    system, raft = company.system, company.raft
    company.machine = system.spawn(Machine, identity, ports, raft, name="machine", limit=LIMIT)
    company.lock_manager = system.spawn(LockManager, identity.name, ports, raft, name="lock-manager", limit=LIMIT)
    company.updater = system.spawn(Updater, identity, ports, raft, company.router, name="updater", limit=LIMIT)


def boot_brain(
    machine: str, name: str, version: str, cluster: str, ports: Ports, dispatcher: Dispatcher,
    pool: Dispatcher, authority: Authority | None, on_fatal: Callable[[BaseException], None],
    settings: PeerSettings | None = None, raft_class: type[Raft] = Raft,
) -> Company:  # fmt: skip
    """Start a peer of the brain and what operators ask it through; returns at once."""
    system = System(name, {"loop": dispatcher, "pool": pool}, on_fatal)
    router = Router(system, ports.net, dispatcher, machine)
    raft = system.spawn(RaftPeer, machine, ports, router, settings, raft_class, name="raft", limit=LIMIT)
    control = system.spawn(
        Control, machine, cluster, ports, raft, router, authority, version, name="control", limit=LIMIT
    )
    router.may_say = partial(_may_say, raft, machine)
    return Company(system, router, raft, control)


def _may_say(raft: Any, here: str, machine: str, path: str, message: Any) -> bool:
    """Whether a machine may say this: one that was removed still has its certificate, and is a member no more.

    What Raft itself says is heard from anybody: whoever was away does not know its new members yet (4.2.3).
    """
    if path == "raft" and isinstance(message, _OUTSIDERS_SAY):
        return True
    peer = raft._mailbox.actor  # noqa: SLF001 - the peer's configuration, on its own thread
    if peer is None or peer.raft is None:
        return True
    members = peer.raft.config.everyone
    return machine in members or here not in members


def boot(
    identity: Identity, cluster: str, ports: Ports, dispatcher: Dispatcher, pool: Dispatcher,
    authority: Authority | None, on_fatal: Callable[[BaseException], None],
    settings: PeerSettings | None = None, raft_class: type[Raft] = Raft,
) -> Company:  # fmt: skip
    """Start every actor of a host; returns at once."""
    company = boot_brain(
        identity.id, identity.name, identity.version, cluster, ports, dispatcher, pool, authority,
        on_fatal, settings, raft_class,
    )  # fmt: skip
    system, raft = company.system, company.raft
    company.desk = system.spawn(Desk, raft, name="desk", limit=LIMIT)
    _spawn_machine(company, identity, ports)
    company.scheduler = system.spawn(Scheduler, ports, raft, name="scheduler", limit=LIMIT)
    company.electorate = system.spawn(Electorate, ports, raft, name="electorate", limit=LIMIT)
    company.timers = system.spawn(Timers, ports, raft, name="timers", limit=LIMIT)
    company.rollouts = system.spawn(Rollouts, ports, raft, name="rollouts", limit=LIMIT)
    return company
