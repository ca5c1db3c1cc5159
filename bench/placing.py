"""How long the scheduler takes to choose a machine for one unit, among a hundred, a thousand and ten thousand."""

from __future__ import annotations

import math
import time

from fleet import placement
from fleet.placement import Candidate, Placements
from fleet.unitfile import load

from .lab import Lab, median
from .table import Row

SIZES = (100, 1_000, 10_000)
#: Units on each machine before, and those that are placed for the measurement.
BEFORE, PLACED = 10, 2_000
_TEXT = "[Service]\nExecStart=/bin/serve\n"


def _seconds(machines: int) -> float:
    """Of one unit, booked as the scheduler books it."""
    state = Placements({f"{n:032x}": Candidate(f"{n:032x}", f"m{n}") for n in range(machines)})
    spec, _ = load("u@1.service", _TEXT)
    for number in range(machines * BEFORE):
        unit = f"before@{number}.service"
        state.set_spec(unit, spec)
        state.place(unit, f"{number % machines:032x}")
    begun = time.perf_counter()
    for number in range(PLACED):
        unit = f"u@{number}.service"
        state.set_spec(unit, spec)
        machine, _ = placement.choose(spec, state)
        state.place(unit, machine)
    return (time.perf_counter() - begun) / PLACED


def placing(lab: Lab) -> list[Row]:
    """The choice alone, without the log and the brain."""
    taken = {size: median([_seconds(size) for _ in range(lab.effort.few)]) for size in SIZES}
    growth = taken[SIZES[-1]] / taken[SIZES[0]]
    logarithm = math.log(SIZES[-1]) / math.log(SIZES[0])
    return [
        Row(
            "placement of one unit among " + ", ".join(f"{size:,}" for size in SIZES) + " machines",
            ", ".join(f"{seconds * 1e6:.0f} us" for seconds in taken.values()), "-", f"{growth:.2f}x from first to last",
            f"log N: <= {logarithm:.2f}x", growth <= logarithm, data={"seconds": {str(size): s for size, s in taken.items()}},
        )
    ]  # fmt: skip
