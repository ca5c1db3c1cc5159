"""Whether a unit is well: its health checks, one after another while it is up.

A part of its supervisor, not an actor of its own: it runs in the supervisor's turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .unit_manager import UnitManager

#: Seconds between health checks during HealthStartPeriod=, while the unit is not well yet.
STARTING_PROBE_S = 0.1


class Health:
    """See the module docstring; ``status`` is none, passing or failing."""

    def __init__(self, unit: UnitManager) -> None:
        self._unit = unit
        self.status = "none"
        self.detail = ""
        #: found running: what was said of it holds until it was checked
        self.unchecked = False
        self._failures = 0
        self._round = 0  # of checks: an answer in an earlier one counts no more
        self._environment: dict[str, str] = {}

    def follow(self, up: bool) -> None:
        """The unit is up, or is not; checks begin and end with that."""
        spec = self._unit.spec
        self.unchecked = self.unchecked and up
        if not up and self.status != "none":
            self.status = "none"
            self._round += 1
        if up and self.status == "none" and spec is not None and spec.health is not None:
            self.status, self.detail = "failing", "not checked yet"
            self._failures = spec.health.retries  # until it was seen well once
            self._environment = {}  # read once for a run, as its own is
            self._round += 1
            self._probe(self._round)

    def hear(self, well: bool, detail: str) -> None:
        """What somebody else found: the engine, of a container with a check of its own."""
        self.status, self.detail = "passing" if well else "failing", detail

    def _probe(self, round_: int) -> None:
        unit = self._unit
        if round_ != self._round or unit.spec is None or unit.spec.health is None:
            return
        check = unit.spec.health
        inbox, life = unit.actor_inbox, unit.actor_inbox.incarnation

        def done(well: bool, detail: str) -> None:
            if inbox.incarnation == life and not inbox.closed:
                inbox.post(lambda: self._probed(round_, well, detail))

        try:
            self._environment = self._environment or unit.environment(unit.spec)
        except OSError as error:
            done(False, str(error))
            return
        unit.ports.processes.probe(check.kind, check.target, self._environment, check.timeout, done)

    def _probed(self, round_: int, well: bool, detail: str) -> None:
        unit = self._unit
        if round_ != self._round or unit.spec is None or unit.spec.health is None:
            return
        check = unit.spec.health
        self._failures = 0 if well else self._failures + 1
        status = "passing" if well else "failing" if self._failures >= check.retries else self.status
        young = unit.ports.clock.wall() - unit.since < check.start_period
        self.unchecked = False
        self.status, self.detail = status, detail
        unit.report()
        # a unit that is coming up is looked at often, so that it is announced as soon as it can be
        pause = min(check.interval, STARTING_PROBE_S) if young and not well else check.interval
        unit.after(pause, lambda: self._probe(round_))
