"""Who votes: one change at a time, three as soon as there are three, then odd numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.electorate import REPLACE_S, VOTERS_ACCEPTED, Change, Member, next_change


def members(voters: int, ready: int, lost: int = 0, silent: float = REPLACE_S) -> list[Member]:
    """Voters v1.., of which the last ``lost`` are silent, and machines that stand by, s1.."""
    made = [Member(f"v{n}", True, silent if n > voters - lost else 0.0) for n in range(1, voters + 1)]
    return made + [Member(f"s{n}", False, 0.0, True) for n in range(1, ready + 1)]


@pytest.mark.parametrize(("voters", "ready", "size", "expected"), [
    (1, 1, 5, "promote"), (2, 1, 5, "promote"), (3, 1, 5, None), (3, 2, 5, "promote"), (4, 1, 5, "promote"),
    (5, 4, 5, None), (3, 2, 3, None), (1, 1, 1, None), (5, 0, 3, "demote"), (2, 0, 5, None), (3, 0, 5, None), (5, 2, 7, "promote"),
])  # fmt: skip
def test_how_many_vote(voters: int, ready: int, size: int, expected: str | None) -> None:
    change = next_change(members(voters, ready), "v1", size)
    assert (change.verb if change else None) == expected


def test_a_lost_voter_is_replaced_by_one_that_stands_by() -> None:
    assert next_change(members(3, 1, lost=1), "v1", 3) == Change("replace", "s1", "v3")
    assert next_change(members(3, 1, lost=1, silent=REPLACE_S - 1), "v1", 3) is None
    assert next_change(members(3, 0, lost=1), "v1", 3) is None


def test_who_is_not_ready_or_not_heard_gets_no_vote() -> None:
    late = [*members(3, 0, lost=1), Member("s1", False, 0.0, is_ready=False), Member("s2", False, 5.0, is_ready=True)]
    assert next_change(late, "v1", 3) is None


def test_the_leader_keeps_its_vote() -> None:
    change = next_change(members(5, 0), "v5", 3)
    assert change == Change("demote", "v4")


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 4), st.sampled_from(VOTERS_ACCEPTED))
def test_it_comes_to_rest_and_never_makes_more_than_were_stated(voters: int, ready: int, lost: int, size: int) -> None:
    """Whatever there is at first: a few changes later nothing is to be done, and what is left is as good as can be."""
    known = {m.id: m for m in members(voters, ready, min(lost, voters - 1))}
    for _ in range(40):
        change = next_change(known.values(), "v1", size)
        if change is None:
            break
        if change.instead_of:
            old = known[change.instead_of]
            known[old.id] = Member(old.id, False, old.silent_s)
        new = known[change.member]
        known[new.id] = Member(new.id, change.verb != "demote", new.silent_s, True)
    else:
        raise AssertionError("it never comes to rest")
    count = sum(m.votes for m in known.values())
    assert 1 <= count <= max(size, 1) and known["v1"].votes
    spare = [m for m in known.values() if not m.votes and m.is_ready and not m.silent_s]
    assert not spare or not [m for m in known.values() if m.votes and m.silent_s]
