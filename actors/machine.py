"""The machine agent: this host's place in the fleet.

Holds the machine's lease, follows its own placements in the brain, keeps one supervisor
per unit, and writes their states and announcements, bound to the lease.  The rule that
makes two copies impossible is kept here: a unit starts only after its state key, bound to
the lease, is in the brain; the lease file that the shims obey is renewed only with the
lease; and the key goes only when nothing of the unit is left.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from brain.store import Item, prefix_end
from kernel.actor import ActorStop, Ref, handles
from kernel.mailbox import Promise
from kernel.ports import Ports

from .brain_client import ALIVE, MACHINES, PLACES, SECRETS, STATES, BrainActor, is_refusal, to_json
from .raft_messages import KeepAlive, Range
from .unit_manager import UnitManager
from .unit_messages import Assign, Gone, Here, LeaseState, MayStart, Placement, ReadSecrets, Report, Started

logger = logging.getLogger("argosy.machine")

#: Seconds a machine is believed alive without a word.
LEASE_S = 4.0
#: Seconds between keepalives.
KEEP_ALIVE_S = 0.5
#: Seconds between two looks for containers that belong to no unit.
SWEEP_S = 30.0
#: Keepalives that may be under way.
KEEP_ALIVES_MAX = 4
#: Shares of the lease after which shims stop, then kill, what the machine may not run any more;
#: what is left covers clocks that differ in rate.
STOP_SHARE, KILL_SHARE = 0.7, 0.9
#: Seconds states may wait to be written together.
WRITE_DELAY_S = 0.01
#: Seconds until what did not work is tried again.
AGAIN_S = 0.2
#: States in one transaction.
WRITE_BATCH = 40


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this machine is."""

    id: str
    name: str
    address: str  # transport
    endpoint: str  # HTTP door, as units see it
    host: str  # address that its units are announced with
    metadata: dict[str, str]
    role: str
    version: str
    container_endpoint: str = ""  # HTTP door at the address of the engine's bridge
    #: processors and bytes that units may reserve; 0 is unknown, and without limit
    cpus: float = 0.0
    memory: int = 0
    #: of the two system images the one that runs; empty where there are none
    slot: str = ""


class Machine(BrainActor):
    """See the module docstring."""

    def __init__(self, identity: Identity, ports: Ports, raft_ref: Any) -> None:
        super().__init__(raft_ref)
        self.identity = identity
        self._ports = ports
        self._boot_id = ports.processes.boot_id
        self._here = Here(
            identity.id, identity.name, identity.host, self._boot_id, identity.endpoint,
            identity.container_endpoint,
        )
        self._prefix = PLACES + identity.id.encode() + b"/"
        self._states_prefix = STATES + identity.id.encode() + b"/"
        self.lease = 0
        self.lease_held = False
        self._lease_until = 0.0
        self._looked = False  # whether an earlier life's lease was looked for
        self._acquiring = False
        self._keeping = 0  # keepalives under way: one may hang on a leader that is gone
        self.units: dict[str, Ref] = {}
        self._placements: dict[str, Placement] = {}
        self._states: dict[str, dict[str, Any]] = {}
        self._announced: dict[str, dict[str, str]] = {}
        self._written: dict[bytes, bytes] = {}
        self._keys_of: dict[str, set[bytes]] = {}  # brain keys that speak of a unit
        self._dirty: dict[str, None] = {}
        self._writing = False
        self._write_armed = False
        self._batch = WRITE_BATCH
        self._swept = False
        #: The last revision of each of our states; a write that was left behind, by an earlier life or on its way
        #: through a voter that fell silent, finds another one there and does nothing.
        self._mods: dict[bytes, int] = {}
        self._knows_mods = False
        self._learning = False
        self._claiming: set[str] = set()  # units that ask to start
        self._in_write: frozenset[str] = frozenset()
        self._picture: Any = None

    def on_start(self) -> None:
        """Follow the placements; get or keep the lease."""
        self._picture = self.mirror(self._prefix, self._on_places, self._on_place)
        self._find_lease()
        self.every(KEEP_ALIVE_S, self._keep_alive)
        self.every(SWEEP_S, self._sweep_containers)

    # -- the lease -------------------------------------------------------------------------

    def _find_lease(self) -> None:
        """A restarted host process goes on with the lease that its alive key names."""
        key = ALIVE + self.identity.id.encode()

        def found(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                self.after(AGAIN_S, self._find_lease)
                return
            items = answer[1]
            self._looked = True
            if items and json.loads(items[0][1].value).get("boot_id") == self._boot_id:
                self.lease = items[0][1].lease
                # it goes on with its lease, but perhaps as another version, or with other metadata
                self.propose(["put", MACHINES + self.identity.id.encode(), self._about()])
            self._keep_alive()

        self.ask_then(self.raft_ref, Range(key, linearizable=True), 6.0, found)

    def _keep_alive(self) -> None:
        now = self.now()
        if self.lease_held and now >= self._lease_until:
            self._lose_lease("it could not be renewed in time")
        if self._keeping >= KEEP_ALIVES_MAX or self._acquiring:
            return
        if not self.lease:
            if self._looked and self._picture.ready:
                self._acquire()
            return
        self._keeping += 1
        lease = self.lease

        def kept(answer: Any, error: BaseException | None) -> None:
            self._keeping -= 1
            if error is not None or lease != self.lease:
                return
            if answer.get(str(lease)):
                self._renewed(now)
            else:
                self._lose_lease("the brain has ended it")
                self.lease = 0
                self._acquire()

        self.ask_then(self.raft_ref, KeepAlive([lease]), 2.0, kept)

    def _acquire(self) -> None:
        self._acquiring = True
        lease = int(self._ports.rng.token()[:15], 16) + 1
        sent = self.now()

        def granted(_: Any, error: BaseException | None) -> None:
            if error is not None:
                self._acquiring = False
                return
            self.lease = lease
            self._register(lease, sent)

        self.propose(["lease_grant", lease, int(LEASE_S * 1000)], granted)

    def _register(self, lease: int, sent: float) -> None:
        me = self.identity
        alive = {"boot_id": self._boot_id, "name": me.name}
        key = me.id.encode()
        steps = [
            ["put", MACHINES + key, self._about()],
            ["put", ALIVE + key, to_json(alive), lease],
        ]

        def registered(_: Any, error: BaseException | None) -> None:
            self._acquiring = False
            if error is not None:
                self.lease = 0
                return
            self._written.clear()  # bound to the old lease, so they went with it
            self._mods.clear()
            self._renewed(sent)

        self.propose(["txn", [], steps, []], registered)

    def _about(self) -> bytes:
        """What others are to know of this machine."""
        me = self.identity
        return to_json({
            "id": me.id, "name": me.name, "address": me.address, "endpoint": me.endpoint,
            "metadata": me.metadata, "role": me.role, "version": me.version,
            "engine": self._ports.containers is not None, "cpus": me.cpus, "memory": me.memory,
            "slot": me.slot,
        })  # fmt: skip

    def _renewed(self, sent: float) -> None:
        """The lease is good for its whole time from when the request was sent."""
        if self.lease_held and sent + LEASE_S <= self._lease_until:
            return  # a later one was answered first
        self._lease_until = sent + LEASE_S
        passed = self.now() - sent
        if passed >= LEASE_S * STOP_SHARE:
            return
        self._ports.processes.set_lease(
            LEASE_S * STOP_SHARE - passed, LEASE_S * KILL_SHARE - passed
        )
        if not self.lease_held:
            self.lease_held = True
            logger.info("machine %s holds lease %x", self.identity.name, self.lease)
            self._learn()
            self._sweep()
            for unit, ref in self.units.items():
                self._dirty[unit] = None
                ref.offer(LeaseState(True))
            self._arm_write()

    def _lose_lease(self, why: str) -> None:
        if not self.lease_held:
            return
        self.lease_held = False
        logger.warning("machine %s lost its lease: %s", self.identity.name, why)
        for ref in self.units.values():
            ref.offer(LeaseState(False))

    # -- placements ------------------------------------------------------------------------

    def _on_places(self, items: dict[bytes, Item]) -> None:
        seen = set()
        for key, item in items.items():
            unit = key[len(self._prefix) :].decode()
            seen.add(unit)
            self._place(unit, item)
        for unit in [u for u in self._placements if u not in seen]:
            self._place(unit, None)
        self._sweep()

    def _on_place(self, key: bytes, item: Item | None, _: Item | None) -> None:
        self._place(key[len(self._prefix) :].decode(), item)

    def _place(self, unit: str, item: Item | None) -> None:
        if item is None:
            self._placements.pop(unit, None)
            ref = self.units.get(unit)
            if ref is not None:
                ref.offer(Assign(None))
            return
        wanted = json.loads(item.value)
        placement = Placement(
            unit, wanted["content"], wanted["hash"], wanted["launched"], item.create,
            wanted.get("restarts", 0),
        )  # fmt: skip
        if self._placements.get(unit) == placement and unit in self.units:
            return
        self._placements[unit] = placement
        ref = self.units.get(unit)
        if ref is None:
            self._supervise(unit)
        else:
            ref.offer(Assign(placement))

    def _supervise(self, unit: str) -> None:
        self.units[unit] = self.system.spawn(
            UnitManager, unit, self._here, self.actor_ref, self._ports,
            name=f"units/{unit}", parent=self,
        )  # fmt: skip

    @handles(Started)
    def _on_started(self, message: Started) -> None:
        """A supervisor's first question in each of its lives."""
        ref = self.units.get(message.unit)
        if ref is not None:
            ref.offer(LeaseState(self.lease_held))
            ref.offer(Assign(self._placements.get(message.unit)))

    def _sweep(self) -> None:
        """Once a life, when the placements are surely known: end what is not ours to run,
        and take back what an earlier life of this actor said of units that are gone."""
        if self._swept or not self.lease_held or not self._picture.ready:
            return
        self._swept = True

        def failed() -> None:
            self._swept = False

        def have_places(answer: Any, error: BaseException | None) -> None:
            if error is not None:
                failed()
                return
            then = Range(self._states_prefix, prefix_end(self._states_prefix), linearizable=True)
            self.ask_then(self.raft_ref, then, 6.0, lambda states, trouble: listed(answer[1], states, trouble))

        def listed(places: Any, answer: Any, error: BaseException | None) -> None:
            if error is not None:
                failed()
                return
            placed = {key[len(self._prefix) :].decode() for key, _ in places} | set(self._placements)
            containers = self._ports.containers
            for unit in self._ports.processes.existing() + (containers.existing() if containers else []):
                if unit not in placed and unit not in self.units:
                    logger.info("unit %s is not placed here: ending it", unit)
                    self._supervise(unit)
            for key, item in answer[1]:
                self._recall(key, item)

        self.ask_then(self.raft_ref, Range(self._prefix, prefix_end(self._prefix), linearizable=True), 6.0, have_places)

    def _sweep_containers(self) -> None:
        """From time to time: containers that are no unit's here are removed."""
        if self._ports.containers is not None and self._swept and self._picture.ready and self.lease_held:
            placed = {key[len(self._prefix) :].decode() for key in self._picture.items}
            self._ports.containers.sweep_soon(placed | set(self.units))

    def _recall(self, key: bytes, item: Item) -> None:
        unit = key[len(self._states_prefix) :].decode()
        announced = json.loads(item.value).get("announce", {})
        known = self._keys_of.setdefault(unit, set())
        known.update({key, *(k.encode() for k in announced)})
        for name, value in announced.items():
            self._written.setdefault(name.encode(), value.encode())
        if unit not in self.units:
            self._dirty[unit] = None
            self._arm_write()

    # -- what units say -----------------------------------------------------------------------

    @handles(ReadSecrets)
    def _on_read_secrets(self, message: ReadSecrets) -> Any:
        promise = Promise()
        found: dict[str, bytes] = {}
        left = list(message.names)

        def next_one() -> None:
            if not left:
                promise.reply(found)
                return
            name = left.pop()

            def have(answer: Any, error: BaseException | None) -> None:
                if error is not None:
                    promise.fail(error)
                    return
                for _, item in answer[1]:
                    found[name] = item.value
                next_one()

            self.ask_then(self.raft_ref, Range(SECRETS + name.encode(), linearizable=True), 6.0, have)

        next_one()
        return promise

    @handles(MayStart)
    def _on_may_start(self, message: MayStart) -> Any:
        """Put the unit's state in the brain before it runs, guarded by its placement."""
        promise = Promise()
        placement = self._placements.get(message.unit)
        if not self.lease_held or placement is None or placement.fence != message.fence:
            promise.reply(False)
            return promise
        self._claim(message.unit, placement, promise)
        return promise

    def _claim(self, unit: str, placement: Placement, promise: Promise, again: bool = True) -> None:
        if not self.lease_held or self._placements.get(unit) != placement:
            promise.reply(False)
            return
        if not self._knows_mods or unit in self._claiming or unit in self._in_write:
            self.after(WRITE_DELAY_S, lambda: self._claim(unit, placement, promise, again))
            return
        state = {"unit": unit, "active": "activating", "sub": "start-pre", "load": "loaded",
                 "health": "none", "restarts": 0, "hash": placement.hash, "fence": placement.fence,
                 "asked": placement.restarts, "pid": 0, "ports": {}, "result": "success",
                 "since": round(self._ports.clock.wall(), 3)}  # fmt: skip
        key, value, lease = self._state_key(unit), to_json(state), self.lease
        guard = [[self._prefix + unit.encode(), "create", "=", placement.fence], self._unchanged(key)]
        self._claiming.add(unit)

        def written(result: Any, error: BaseException | None) -> None:
            self._claiming.discard(unit)
            if self._dirty:
                self._arm_write()
            if error is not None:
                self._learn()
                promise.fail(error)
            elif result["succeeded"]:
                self._written[key], self._mods[key] = value, result["revision"]
                promise.reply(self.lease_held and self.lease == lease)
            elif again:  # its place is another one's, or its state is not as we knew it
                self._learn()
                self._claim(unit, placement, promise, again=False)
            else:
                promise.reply(False)

        self.propose(["txn", guard, [["put", key, value, lease]], []], written)

    def _unchanged(self, key: bytes) -> list[Any]:
        """The condition that a state is still the one that we wrote last, or is not there."""
        return [key, "mod", "=", self._mods.get(key, 0)]

    def _learn(self) -> None:
        """Read what the brain has of our states: what became of a write is not known, or was of another life."""
        self._knows_mods = False
        if self._learning:
            return
        self._learning = True
        lease = self.lease

        def have(answer: Any, error: BaseException | None) -> None:
            self._learning = False
            if error is not None or lease != self.lease:
                self.after(AGAIN_S, self._learn)
                return
            found = dict(answer[1])
            self._mods = {key: item.mod for key, item in found.items()}
            for key in [key for key in self._written if key.startswith(self._states_prefix) and key not in found]:
                del self._written[key]
            self._written.update((key, item.value) for key, item in found.items())
            self._knows_mods = True
            self._arm_write()

        self.ask_then(self.raft_ref, Range(self._states_prefix, prefix_end(self._states_prefix), linearizable=True), 6.0, have)

    @handles(Report)
    def _on_report(self, message: Report) -> None:
        if message.unit not in self.units:
            return  # its supervisor is gone, and said this on its way
        self._states[message.unit] = {**message.state, "announce": message.announce}
        self._announced[message.unit] = message.announce
        self._dirty[message.unit] = None
        self._arm_write()

    @handles(Gone)
    def _on_gone(self, message: Gone) -> None:
        unit = message.unit
        ref = self.units.pop(unit, None)
        if ref is not None:
            ref.offer(ActorStop())
        self._states.pop(unit, None)
        self._announced.pop(unit, None)
        placement = self._placements.get(unit)
        if placement is not None:  # placed here again meanwhile
            self.after(0.05, lambda: self._again(unit))
        else:
            self._dirty[unit] = None
            self._arm_write()

    def _again(self, unit: str) -> None:
        placement = self._placements.get(unit)
        if placement is not None and unit not in self.units:
            if self.system.find(f"units/{unit}") is not None:
                self.after(0.05, lambda: self._again(unit))
            else:
                self._supervise(unit)

    # -- writing --------------------------------------------------------------------------------

    def _state_key(self, unit: str) -> bytes:
        return self._states_prefix + unit.encode()

    def _arm_write(self) -> None:
        if not self._write_armed:
            self._write_armed = True
            self.after(WRITE_DELAY_S, self._write)

    def _write(self) -> None:
        self._write_armed = False
        if self._writing or not self.lease_held or not self._knows_mods:
            return
        units = [unit for unit in self._dirty if unit not in self._claiming][: self._batch]
        if not units:
            return
        for unit in units:
            del self._dirty[unit]
        steps: list[list[Any]] = []
        after: dict[bytes, bytes | None] = {}
        for unit in units:
            if unit in self._states or unit not in self.units:  # a supervisor that was silent yet will speak
                self._steps_for(unit, steps, after)
        if not steps:
            if self._dirty:
                self._arm_write()
            return
        self._writing = True
        self._in_write = frozenset(units)
        guard = [self._unchanged(self._state_key(unit)) for unit in units]

        def written(result: Any, error: BaseException | None) -> None:
            self._writing = False
            self._in_write = frozenset()
            if error is None and result["succeeded"]:
                for key, value in after.items():
                    if value is None:
                        self._written.pop(key, None)
                        self._mods.pop(key, None)
                    else:
                        self._written[key] = value
                        if key.startswith(self._states_prefix):
                            self._mods[key] = result["revision"]
                self._batch = WRITE_BATCH
            else:
                logger.info("states of %s were not written: %s", ", ".join(units), error or "they are not as they were known")
                self._batch = 1  # one that is refused must not hold up the others
                self._learn()
                if is_refusal(error, "lease_not_found"):
                    self._lose_lease("the brain has ended it")
                for unit in units:
                    self._dirty[unit] = None
                self.after(AGAIN_S, self._arm_write)
                return
            if self._dirty:
                self._arm_write()

        self.propose(["txn", guard, steps, []], written)

    def _steps_for(
        self, unit: str, steps: list[list[Any]], after: dict[bytes, bytes | None]
    ) -> None:
        """What must be written so that the brain says what is true of this unit."""
        wanted: dict[bytes, bytes] = {}
        state = self._states.get(unit)
        if state is not None:
            wanted[self._state_key(unit)] = to_json(state)
        for name, text in self._announced.get(unit, {}).items():
            if any(other < unit and name in keys for other, keys in self._announced.items()):
                logger.warning("%s: %s is announced by another unit here already", unit, name)
            else:
                wanted[name.encode()] = text.encode()
        mine = self._keys_of.setdefault(unit, set())
        for key in sorted(mine - set(wanted)):
            if key in self._written or key == self._state_key(unit):
                steps.append(["delete", key])
                after[key] = None
        for key, value in wanted.items():
            if self._written.get(key) != value:
                steps.append(["put", key, value, self.lease])
                after[key] = value
        self._keys_of[unit] = set(wanted) | {self._state_key(unit)}
        if state is None:
            steps.append(["delete", self._state_key(unit)])
            after[self._state_key(unit)] = None
            self._keys_of.pop(unit, None)
