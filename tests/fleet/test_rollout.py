"""Rollouts: policies as they are written, and one look after another, without any actor."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import rollout
from fleet.rollout import Phase, Policy, Target, policy


def test_a_policy_is_read() -> None:
    """Each part by its name; what is not said is as it is by default."""
    assert policy("parallel 3, order start-first, canary 1, monitor 30s, deadline 5min, on-failure pause") == Policy(
        3, "start-first", 1, 30.0, "pause", 300.0
    )
    assert policy("monitor 0s") == Policy(monitor=0.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("parallel", "is not one of: parallel N"), ("paralel 3", "is not one of"), ("parallel 0", "a number from 1"),
        ("order upside-down", "one of stop-first, start-first"), ("on-failure cry", "one of rollback, pause, continue"),
        ("monitor infinity", "a time span that ends"), ("parallel 1, parallel 2", "given twice"),
        ("monitor soon", "not a time span"),
    ],
)  # fmt: skip
def test_a_wrong_policy_says_what_is_accepted(text: str, told: str) -> None:
    """As a sentence."""
    with pytest.raises(ValueError, match=told):
        policy(text)


class Play:
    """Targets that do as they are told, but for those that do not work with the new version."""

    def __init__(self, count: int, how: Policy, broken: set[str] | None = None) -> None:
        self.now = 1000.0
        self.names = [f"t{n}" for n in range(count)]
        self.version = dict.fromkeys(self.names, "old")
        self.since = dict.fromkeys(self.names, 0.0)
        self.broken = broken or set()
        self.record: dict[str, Any] = rollout.begin("old", "new", self.names, how, self.now)
        self.down_at_once = 0

    def look(self, seconds: float = 1.0) -> Phase:
        """Time goes by; one look."""
        self.now += seconds
        step = rollout.step(self.record, {n: self._target(n) for n in self.names}, self.now)
        for name in step.change:
            self.version[name], self.since[name] = step.version, self.now + 2
        self.record = step.record
        self.down_at_once = max(self.down_at_once, sum(not self._target(n).well for n in self.names))
        return Phase(self.record["phase"])

    def _target(self, name: str) -> Target:
        bad = name in self.broken and self.version[name] == "new"
        return Target(self.version[name], self.now >= self.since[name] and not bad, bad, "it fell over", self.since[name])

    def until(self, *phases: Phase) -> Phase:
        """Look until it is in one of the phases."""
        for _ in range(10_000):
            if (now := self.look()) in phases:
                return now
        raise AssertionError(self.record)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3), st.floats(0, 20))
def test_a_good_version_reaches_everyone_never_too_many_at_once(count: int, parallel: int, canary: int, monitor: float) -> None:
    """Whatever the policy; a canary waits for an operator."""
    play = Play(count, Policy(parallel, canary=canary, monitor=monitor))
    if canary and count > canary:
        assert play.until(Phase.WAITING, Phase.DONE) is Phase.WAITING
        assert sum(version == "new" for version in play.version.values()) == canary
        play.record = rollout.promote(play.record)
    assert play.until(Phase.DONE) is Phase.DONE
    assert set(play.version.values()) == {"new"} and play.down_at_once <= max(parallel, canary)


@given(st.integers(1, 12), st.integers(1, 5), st.data())
def test_a_bad_version_is_taken_back_from_everyone(count: int, parallel: int, data: st.DataObject) -> None:
    """And no more are touched than the policy allows."""
    bad = {f"t{data.draw(st.integers(0, count - 1))}"}
    play = Play(count, Policy(parallel, monitor=5), bad)
    assert play.until(Phase.ROLLED_BACK, Phase.DONE) is Phase.ROLLED_BACK
    assert set(play.version.values()) == {"old"} and play.down_at_once <= parallel + 1
    assert "it fell over" in play.record["reason"]


def test_pause_and_continue_on_failure() -> None:
    """Pause waits for an operator; continue goes on without the failed ones, and says so."""
    play = Play(4, Policy(on_failure="pause", monitor=1), {"t1"})
    assert play.until(Phase.PAUSED) and play.version == {"t0": "new", "t1": "new", "t2": "old", "t3": "old"}
    play.broken = set()
    play.record = rollout.resume(play.record, play.now)
    assert play.until(Phase.DONE)
    play = Play(4, Policy(on_failure="continue", monitor=1), {"t1"})
    play.until(Phase.DONE)
    assert play.record["failed"] == ["t1"] and set(play.version.values()) == {"new"}


def test_what_is_never_well_fails_at_the_deadline() -> None:
    """Though it does not say that it failed."""
    play = Play(2, Policy(monitor=1, deadline=60))
    play.look()
    play.since["t0"] = 1e9
    begun = play.now
    assert play.until(Phase.ROLLING_BACK) and 60 <= play.now - begun <= 62
    play.since["t0"] = play.now
    assert play.until(Phase.ROLLED_BACK)


def test_if_the_version_before_does_not_work_either_it_is_said() -> None:
    """A return that fails ends as failed, not as done."""
    play = Play(2, Policy(monitor=1, deadline=30), {"t0"})
    play.until(Phase.ROLLING_BACK)
    play.look()
    play.since["t0"] = 1e9
    assert play.until(Phase.FAILED, Phase.ROLLED_BACK) is Phase.FAILED
    assert "the version before does not work either: t0" in play.record["reason"]
