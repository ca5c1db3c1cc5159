"""A simulated disk that does one operation at a time, so a power cut may come between any two.

``SimDisk`` does a batch at two instants, its writes and then the rest.  Most orders of
files that a crash can leave are only reached when the operations of a batch take their
time one after another.
"""

from __future__ import annotations

from kernel.sim import SimDisk


class StepwiseDisk(SimDisk):
    """The same files and the same fate of what was not synced; only the timing is finer."""

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

        def step(position: int) -> None:
            if machine.life != life or not machine.alive:
                return
            if position < len(operations):
                self._execute(operations[position])
                world.call_later(pace, lambda: step(position + 1))
                return
            if machine.paused:
                machine.held.append(lambda: done(None))
            else:
                done(None)
            self._start()

        world.call_later(pace, lambda: step(0))
