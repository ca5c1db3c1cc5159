"""Slots of simulated machines: real files in a directory of the test, and starts that take no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import release
from kernel.sim import SimMachine
from runners import artefact, boot, slot_places, slots
from runners.slots import Slots


class SimSlots:
    """The slots port of one life of a host."""

    def __init__(self, machine: SimMachine, home: Path, publisher: Publisher) -> None:
        self.machine = machine
        self.publisher = publisher
        self.slots = Slots(home)
        self.slot = boot.choose(self.slots.folder)[0]
        record = self.slots.record()
        self.version = record.slots.get(self.slot, {}).get("version", "factory") if self.slot else "factory"
        self.running = self.slot or "-"
        self.life = machine.life
        machine.world.note(f"{machine.name} runs version {self.version}")

    def call(self, work: Callable[[Slots], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        try:
            value, error = work(self.slots), None
        except Exception as failure:
            value, error = None, failure
        self.machine.later(0.002, lambda: done(value, error))

    def reboot(self) -> None:
        """All that runs there ends, and the machine is back a moment later."""
        self.machine.world.call_later(0.01, self._off)

    def _off(self) -> None:
        if self.machine.life == self.life:
            self.machine.crash(power=True)
            if not self.publisher.lost:
                self.machine.world.call_later(1.0, lambda: self.machine.alive or self.machine.start())

    def check_commands(self) -> list[str]:
        return ["bad"] if "sick" in self.version or self.machine.name in self.publisher.sick else ["good"]


class Publisher:
    """Makes releases, and offers them through a machine."""

    def __init__(self, fleet: Any, folder: Path) -> None:
        self.fleet = fleet
        self.folder = folder
        self.private, public = artefact.make_key()
        record = release.Trust(1, 1, (public,)).record()
        self.trust = release.sign({"signed": record}, self.private)
        self.ports: dict[str, SimSlots] = {}
        self.lost = False  # whether machines come back from a reboot
        self.sick: set[str] = set()  # machines whose checks fail, whatever runs there
        fleet.slots_of = self._slots_of

    def _slots_of(self, machine: SimMachine) -> SimSlots:
        port = self.ports[machine.name] = SimSlots(machine, self.folder / machine.name, self)
        if port.version.startswith("crash"):
            machine.world.call_later(0.5, lambda: self._crash(machine, port))
        return port

    def _crash(self, machine: SimMachine, port: SimSlots) -> None:
        if machine.life == port.life and machine.alive:
            machine.crash(power=True)
            machine.world.call_later(0.5, lambda: machine.alive or machine.start())

    def publish(self, version: str, sequence: int, floor: int = 0, channel: str = "stable") -> None:
        """Sign it, put its pieces on the first machine, and offer it."""
        tree = self.folder / f"tree-{version}"
        tree.mkdir()
        (tree / "version").write_text(version)
        (tree / "big").write_bytes(b"the same in all" * 20_000)
        entries, where = slots.scan(tree)
        data = release.manifest_bytes(entries)
        now = int(self.fleet.machines[0].wall())
        made = release.Statement("argosy", version, sequence, floor, now, now + 86400 * 365, release.digest(data), 1)
        pieces = {release.digest(data): data}
        for name, (path, number) in where.items():
            pieces[name] = slot_places.piece_of(path, number)
        if sequence == 1 or not self.fleet.do("release.trust"):
            self.fleet.do("release.trust", envelope=self.trust)
        self.fleet.do("release.put", pieces=pieces)
        envelope = release.sign({"signed": json.loads(made.signed())}, self.private)
        self.fleet.do("release.publish", envelope=envelope, channel=channel)

    def versions(self) -> dict[str, str]:
        """What runs on each machine; empty for one that is off."""
        return {m.name: self.ports[m.name].version if m.alive else "" for m in self.fleet.machines}
