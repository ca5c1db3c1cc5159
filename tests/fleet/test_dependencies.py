"""What units are to each other: plans, phases and holds."""

from __future__ import annotations

from typing import Any

import pytest

from fleet import unitfile
from fleet.dependencies import Graph, Hold, Phase, outcome, phase, plan
from fleet.spec import UnitSpec

WANTED = {"desired": "launched", "hash": "h", "restarts": 0}


def specs(**units: str) -> dict[str, UnitSpec]:
    """Services by short name, with these lines in [Unit]."""
    return {
        f"{name}.service": unitfile.load(f"{name}.service", f"[Unit]\n{text}\n[Service]\nExecStart=/bin/a\n")[0]
        for name, text in units.items()
    }  # fmt: skip


def state(active: str, sub: str = "", **more: Any) -> dict[str, Any]:
    return {"hash": "h", "asked": 0, "active": active, "sub": sub, "health": "none", "result": "success", **more}


@pytest.mark.parametrize(("found", "then"), [
    (state("active", "running"), Phase.UP), (state("active", "running", health="failing"), Phase.UNWELL),
    (state("activating", "start"), Phase.STARTING), (state("activating", "auto-restart"), Phase.STARTING),
    (state("deactivating", "stop"), Phase.STOPPING), (state("failed", "failed", result="exit-code"), Phase.FAILED),
    (state("inactive", "dead"), Phase.WAITING), (state("inactive", "dead", last_exit="0"), Phase.DONE),
    (state("inactive", "dead", problem="Condition"), Phase.DONE),
    (state("active", "running", asked=-1), Phase.STOPPING), (state("inactive", "dead", last_exit="0", asked=-1), Phase.WAITING),
])  # fmt: skip
def test_phases(found: dict[str, Any], then: Phase) -> None:
    """A state of another start, or of another file, says nothing of this one but that it is still up."""
    assert phase(WANTED, True, [found]) is then
    stopped = phase({**WANTED, "desired": "loaded"}, True, [found])
    assert stopped is (Phase.STOPPING if found["active"] in ("active", "activating", "deactivating") else Phase.OFF)


def test_a_unit_that_is_held_is_about_to_start() -> None:
    """Whatever it did before."""
    assert phase(WANTED, False, [state("inactive", "dead", last_exit="0")]) is Phase.WAITING
    assert phase(WANTED, True, []) is Phase.WAITING


@pytest.mark.parametrize(("line", "db", "held"), [
    ("After=db.service", Phase.OFF, None), ("After=db.service", Phase.FAILED, None), ("After=db.service", Phase.DONE, None),
    ("After=db.service", Phase.UP, None), ("After=db.service", Phase.STARTING, False), ("After=db.service", Phase.UNWELL, False),
    ("After=db.service", Phase.STOPPING, False), ("After=db.service", Phase.WAITING, False),
    ("Wants=db.service", Phase.FAILED, None),
    ("Requires=db.service", Phase.FAILED, None), ("Requires=db.service", Phase.OFF, False),
    ("Requires=db.service\nAfter=db.service", Phase.FAILED, True),
    ("Requires=db.service\nAfter=db.service", Phase.DONE, None), ("Requires=db.service\nAfter=db.service", Phase.UP, None),
    ("Requisite=db.service\nAfter=db.service", Phase.DONE, True),
    ("BindsTo=db.service", Phase.STARTING, False), ("BindsTo=db.service", Phase.UP, None), ("BindsTo=db.service", Phase.DONE, True),
    ("BindsTo=other.service\nAfter=docker.service", Phase.OFF, None),
])  # fmt: skip
def test_what_holds_a_start_back(line: str, db: Phase, held: bool | None) -> None:
    """None: nothing; else whether it is blocked, so that nobody need wait."""
    hold = Graph(specs(web=line, db="")).may_start("web.service", lambda unit: db)
    assert (hold.blocked if hold is not None else None) is held


def test_before_is_after_the_other_way_round() -> None:
    graph = Graph(specs(web="", db="Before=web.service"))
    assert graph.may_start("web.service", lambda unit: Phase.STARTING) == Hold("it comes after db.service, which is starting")
    assert graph.may_start("db.service", lambda unit: Phase.WAITING) is None
    assert graph.must_linger("db.service", lambda unit: unit == "web.service") == "web.service"
    assert graph.must_linger("web.service", lambda unit: True) == ""
    assert graph.involved == {"web.service", "db.service"}


def test_what_is_bound_stops_with_what_it_is_bound_to() -> None:
    """Also when that is only restarted; health does not count."""
    graph = Graph(specs(web="BindsTo=db.service", db=""))
    for now in Phase:
        hold = graph.may_stay("web.service", lambda unit, now=now: now)  # type: ignore[misc]
        assert (hold is None) is (now in (Phase.UP, Phase.UNWELL))


def test_cycles_are_named() -> None:
    assert Graph(specs(a="After=b.service", b="BindsTo=c.service", c="After=a.service")).cycle(["a.service"]) == [
        "a.service", "b.service", "c.service", "a.service",
    ]  # fmt: skip
    assert not Graph(specs(a="After=b.service c.service", b="After=c.service", c="After=c.service")).cycle(["a.service"])


def test_plans() -> None:
    """A start pulls in, a stop and a restart go to whoever depends; each unit is named once."""
    units = specs(
        web="Requires=db.service\nWants=cache.service missing.service", db="BindsTo=disk.service", disk="", cache="",
        part="PartOf=db.service", foe="Conflicts=db.service", needy="Requisite=db.service",
    )  # fmt: skip
    started = plan("start", ["web.service"], units, units.get)
    assert started.launch == ["cache.service", "db.service", "disk.service"] and started.stop == ["foe.service"]
    assert plan("start", ["needy.service"], units, units.get).requisites == [("needy.service", "db.service")]
    assert plan("stop", ["disk.service"], units, units.get).stop == [
        "db.service", "needy.service", "part.service", "web.service",
    ]  # fmt: skip
    assert plan("restart", ["db.service"], units, units.get).restart == ["needy.service", "part.service", "web.service"]
    assert not plan("stop", ["web.service"], units, units.get).stop


def test_outcomes() -> None:
    assert outcome(WANTED, state("failed", "failed", result="exit-code")) == "OnFailure"
    assert outcome(WANTED, state("inactive", "dead", last_exit="0")) == "OnSuccess"
    for nothing in (state("active"), state("activating", "auto-restart"), state("inactive", "dead"),
                    state("failed", "failed", asked=3)):  # fmt: skip
        assert outcome(WANTED, nothing) == ""
    assert outcome({**WANTED, "desired": "loaded"}, state("inactive", "dead", last_exit="0")) == ""
