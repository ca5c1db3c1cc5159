"""Machines in the simulator on which a test puts units and plays the operator."""

from __future__ import annotations

import json
from typing import Any

from actors.brain_client import UNITS
from actors.command import Command
from kernel.sim import World

from .fleet import Fleet

FORM = """[Unit]
{unit}
[Service]
ExecStart=/bin/serve
Restart={restart}
RestartSec=100ms
[X-Fleet]
{fleet}
"""


class Stage:
    """Machines, three unless it is said, on which units are put."""

    def __init__(self, world: World, seed: int, size: int = 3, before: Any = None, agents: int = 0, **about: dict[str, Any]) -> None:
        """``before`` is called with the fleet before its machines start; ``agents``: machines without a vote besides."""
        self.world = world
        self.fleet = Fleet(seed, size, world, about, agents)
        if before is not None:
            before(self.fleet)
        self.fleet.start()

    def put(self, replace: bool = False, **files: str) -> None:
        """Files by short name (``api_`` is the template ``api@``): the sections after [Service]'s commands."""
        named = {f"{name[:-1] + '@' if name.endswith('_') else name}.service": text for name, text in files.items()}
        self.fleet.books.everywhere |= {name for name, text in named.items() if "Global=yes" in text}
        self.fleet.do("unit.submit", replace=replace, files=[
            {"name": name, "content": "[Service]\nExecStart=/bin/serve\n" + text} for name, text in named.items()
        ])  # fmt: skip

    def submit(self, restart: str = "no", **units: str) -> None:
        """By short name: lines of [Unit]; all of them on different machines."""
        files = [
            {"name": f"{name}.service", "content": FORM.format(unit=text, restart=restart, fleet="Conflicts=*.service")}
            for name, text in units.items()
        ]  # fmt: skip
        self.fleet.do("unit.submit", files=files)

    def do(self, verb: str, *units: str, **more: Any) -> Any:
        return self.fleet.do(verb, units=[f"{unit}.service" for unit in units], **more)

    def refusal(self, verb: str, *units: str, **more: Any) -> str:
        """What is said to a command that is not carried out."""
        args = {**more, "units": [f"{unit}.service" for unit in units]}
        future = self.fleet.machines[0].host.control.ask(Command(verb, args), block=False)
        self.world.run(2)
        return str(future.error)

    def running(self) -> set[str]:
        return {unit.removesuffix(".service") for unit, where in self.fleet.books.running.items() if where}

    def until(self, *names: str) -> None:
        """Wait until exactly these run."""
        assert self.world.run_until(lambda: self.running() == set(names), 30), self.running()

    def where(self, unit: str) -> str:
        """The machine that runs a unit; empty if none does."""
        return "".join(sorted(self.fleet.books.running.get(f"{unit}.service", ())))

    def homes(self) -> dict[str, str]:
        """The machine of each unit that runs."""
        return {unit: self.where(unit) for unit in sorted(self.running())}

    def machine(self, name: str) -> Any:
        """One of them by name."""
        return next(machine for machine in self.fleet.machines if machine.name == name)

    def state(self, name: str) -> str:
        """A machine's state, as it is listed."""
        return next(row["state"] for row in self.fleet.do("machine.list") if row["name"] == name)

    def wait(self, condition: Any, seconds: float = 30.0) -> None:
        """Run until it holds."""
        assert self.world.run_until(condition, seconds), self.fleet.report(f"not so; running: {self.homes()}")

    def why(self, unit: str) -> str:
        return str(self.fleet.do("unit.why", unit=f"{unit}.service")["reason"])

    def log(self) -> list[str]:
        """What began and ended, in order: ``+db`` and ``-db``."""
        out = []
        for line in self.world.log:
            words = line.split()
            if len(words) > 2 and words[2] in ("starts", "ends") and words[1].endswith(".service"):
                out.append(("+" if words[2] == "starts" else "-") + words[1].removesuffix(".service"))
        return out

    def runs(self, unit: str) -> int:
        """How often the command of a oneshot was run."""
        return sum(f" {unit}.service runs start" in line for line in self.world.log)

    def end(self, unit: str, number: int = 0) -> None:
        """The workload ends by itself, with status 1, or by a signal."""
        for machine in self.fleet.machines:
            shim = machine.place.shims.get(f"{unit}.service")  # type: ignore[attr-defined]
            if shim is not None and shim.main is not None:
                shim.end(number)

    def desired(self, unit: str) -> dict[str, Any]:
        store = self.fleet.machines[0].host.raft._mailbox.actor.store
        return json.loads(store.live[UNITS + f"{unit}.service".encode()].value)  # type: ignore[no-any-return]
