"""The leader's bookkeeping of leases, and log time."""

from __future__ import annotations

from brain.leases import CLOCK_STEP_MS, LeaseKeeper, LogClock


def test_a_lease_is_due_once_its_time_is_over_and_only_once() -> None:
    """Handed out again only after the proposal to end it was settled."""
    keeper = LeaseKeeper()
    keeper.arm(7, 2000, 10.0)
    assert keeper.due(11.9) == []
    assert keeper.due(12.0) == [7]
    assert keeper.is_ending(7)
    assert keeper.due(13.0) == []
    keeper.settled([7], alive=[7])  # the proposal failed: it is still there
    assert keeper.due(13.0) == [7]
    keeper.settled([7], alive=[])
    assert keeper.due(99.0) == []


def test_a_new_leader_gives_every_lease_its_whole_time() -> None:
    """What a former leadership knew is void."""
    keeper = LeaseKeeper()
    keeper.arm(1, 1000, 0.0)
    keeper.lead([(1, 4000), (2, 1000)], 10.0)
    assert keeper.due(10.9) == []
    assert keeper.due(11.0) == [2]
    keeper.stand_down()
    assert keeper.due(99.0) == []
    assert not keeper.is_ending(2)


def test_a_pause_of_the_process_is_forgiven() -> None:
    """Keepalives that waited in the socket must not come too late for that."""
    keeper = LeaseKeeper()
    keeper.arm(1, 1000, 0.0)
    keeper.forgive(5.0)
    assert keeper.due(5.9) == []
    assert keeper.due(6.0) == [1]


def test_log_time_follows_the_wall_clock_when_they_agree() -> None:
    """And never goes below what the store has seen."""
    clock = LogClock()
    assert clock.now_ms(500, 400, 0.0) == 500
    clock.seen(1000, 10.0)
    assert clock.now_ms(1000, 2100, 11.0) == 2100


def test_a_leader_whose_clock_is_wrong_goes_on_from_the_log() -> None:
    """An hour ahead must not end every TTL at once, an hour behind must not stop time."""
    clock = LogClock()
    clock.seen(1_000_000, 10.0)
    hour = 3_600_000
    assert clock.now_ms(1_000_000, 1_000_000 + hour, 12.0) == 1_002_000
    assert clock.now_ms(1_000_000, 1_000_000 - hour, 12.0) == 1_002_000
    assert clock.now_ms(1_000_000, 1_002_000 + CLOCK_STEP_MS, 12.0) == 1_002_000 + CLOCK_STEP_MS
