"""A simulated disk that does one operation at a time, and that can fail.

``SimDisk`` does a batch at two instants, its writes and then the rest.  Most orders of
files that a power cut can leave are only reached when the operations of a batch take their
time one after another.  A batch that fails stops somewhere, and everything after it fails,
until another process opens the disk.
"""

from __future__ import annotations

import random

from kernel.ports import DiskError
from kernel.sim import SimDisk, SimMachine


class StepwiseDisk(SimDisk):
    """The same files and the same fate of what was not synced."""

    def __init__(self, machine: SimMachine, rng: random.Random, error_rate: float) -> None:
        super().__init__(machine)
        self._rng = rng
        self._error_rate = error_rate
        self._broken_life = 0  # the life of the machine in which an operation failed

    def _start(self) -> None:
        if not self._queue:
            self._busy = False
            return
        self._busy = True
        operations, done = self._queue.popleft()
        machine = self._machine
        world = machine.world
        life = machine.life
        delay = world.random.random() * world.faults.disk_s_max
        if not world.healed and world.random.random() < world.faults.disk_stall:
            delay += world.random.random() * world.faults.disk_stall_s_max
        pace = delay / (len(operations) + 1)
        fails_at = self._draw_failure(len(operations))

        def step(position: int) -> None:
            if machine.life != life or not machine.alive:
                return
            if position == fails_at:
                self._broken_life = life
                world.note(f"the disk of {machine.name} fails")
                finish(DiskError(f"{machine.name}: input/output error"))
            elif position < len(operations):
                self._execute(operations[position])
                world.call_later(pace, lambda: step(position + 1))
            else:
                finish(None)

        def finish(error: DiskError | None) -> None:
            if machine.paused:
                machine.held.append(lambda: done(error))
            else:
                done(error)
            self._start()

        world.call_later(pace, lambda: step(0))

    def _draw_failure(self, operations: int) -> int:
        """The place at which this batch fails; -1 for not at all."""
        if self._broken_life == self._machine.life:
            return 0
        if self._machine.world.healed or not operations or not self._error_rate:
            return -1
        return self._rng.randrange(operations) if self._rng.random() < self._error_rate else -1
