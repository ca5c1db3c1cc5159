"""The checker itself: right histories pass, planted violations are found, brute force agrees."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.linearizability import (
    FOREVER,
    UNKNOWN,
    Operation,
    State,
    Verdict,
    check,
    check_key,
    register,
)

KEY = b"k"


def op(
    kind: str, *arguments: Any, at: tuple[float, float], out: Any = UNKNOWN, key: bytes = KEY
) -> Operation:
    """An operation in short."""
    return Operation("c", key, kind, arguments, at[0], at[1], out)


def verdict(*operations: Operation) -> Verdict:
    """Of a history on one key."""
    return check_key(operations).verdict


def test_an_empty_history_is_legal() -> None:
    """Nothing was promised, nothing was broken."""
    assert check([]) == []
    assert verdict() is Verdict.LEGAL


def test_a_sequential_history_is_legal() -> None:
    """Answers that follow from each other, one after another."""
    assert (
        verdict(
            op("get", at=(1, 2), out=None),
            op("put", b"a", at=(3, 4), out=None),
            op("get", at=(5, 6), out=b"a"),
            op("cas", b"a", b"b", at=(7, 8), out=(True, b"a")),
            op("cas", b"a", b"c", at=(9, 10), out=(False, b"b")),
            op("delete", at=(11, 12), out=b"b"),
            op("get", at=(13, 14), out=None),
        )
        is Verdict.LEGAL
    )


def test_overlapping_operations_may_take_either_order() -> None:
    """A read during a write may see the value before or after it."""
    write = op("put", b"a", at=(1, 10), out=None)
    assert verdict(write, op("get", at=(2, 3), out=None)) is Verdict.LEGAL
    assert verdict(write, op("get", at=(2, 3), out=b"a")) is Verdict.LEGAL


def test_a_read_may_not_go_back_during_one_write() -> None:
    """Once one read saw the new value, a later one must, though the write still runs."""
    write = op("put", b"a", at=(1, 10), out=None)
    new, old = op("get", at=(2, 3), out=b"a"), op("get", at=(4, 5), out=None)
    assert verdict(write, new, old) is Verdict.ILLEGAL


def test_a_stale_read_is_found() -> None:
    """A read that began after a write returned does not show it."""
    found = check_key(
        [op("put", b"a", at=(1, 2), out=None), op("get", at=(3, 4), out=None)]
    )
    assert found.verdict is Verdict.ILLEGAL
    assert found.stuck is not None
    assert found.stuck.kind == "get"
    assert "not linearizable" in str(found)


def test_a_lost_update_is_found() -> None:
    """Two swaps from the same value cannot both succeed."""
    assert (
        verdict(
            op("put", b"a", at=(1, 2), out=None),
            op("cas", b"a", b"b", at=(3, 6), out=(True, b"a")),
            op("cas", b"a", b"c", at=(4, 5), out=(True, b"a")),
        )
        is Verdict.ILLEGAL
    )


def test_a_write_that_happened_twice_is_found() -> None:
    """A value that was overwritten does not come back."""
    assert (
        verdict(
            op("put", b"a", at=(1, 2), out=None),
            op("put", b"b", at=(3, 4), out=b"a"),
            op("get", at=(5, 6), out=b"a"),
        )
        is Verdict.ILLEGAL
    )


def test_the_previous_value_of_a_put_is_an_answer_too() -> None:
    """A put that names the wrong value before it is a violation without any read."""
    first = op("put", b"a", at=(1, 2), out=None)
    assert verdict(first, op("put", b"b", at=(3, 4), out=None)) is Verdict.ILLEGAL
    assert verdict(first, op("put", b"b", at=(3, 4), out=UNKNOWN)) is Verdict.LEGAL


def test_an_unknown_write_may_have_happened() -> None:
    """Its value is read long after its client gave up."""
    lost = op("put", b"a", at=(1, FOREVER))
    assert verdict(lost, op("get", at=(8, 9), out=b"a")) is Verdict.LEGAL


def test_an_unknown_write_may_never_happen() -> None:
    """Nobody ever sees its value."""
    lost = op("put", b"a", at=(1, FOREVER))
    assert verdict(lost, op("get", at=(8, 9), out=None)) is Verdict.LEGAL


def test_an_unknown_write_may_happen_late_but_not_undo_itself() -> None:
    """It takes effect between two reads, and then stays."""
    lost = op("put", b"a", at=(1, FOREVER))
    before, after = op("get", at=(2, 3), out=None), op("get", at=(4, 5), out=b"a")
    assert verdict(lost, before, after) is Verdict.LEGAL
    assert verdict(lost, op("get", at=(2, 3), out=b"a"), op("get", at=(4, 5), out=None)) is (
        Verdict.ILLEGAL
    )


def test_an_unknown_write_does_not_happen_before_its_call() -> None:
    """A value read before anybody wrote it is a violation."""
    assert (
        verdict(op("get", at=(1, 2), out=b"a"), op("put", b"a", at=(3, FOREVER)))
        is Verdict.ILLEGAL
    )


def test_an_unknown_swap_depends_on_the_state() -> None:
    """It explains a value only where it could have swapped."""
    first = op("put", b"a", at=(1, 2), out=None)
    read = op("get", at=(5, 6), out=b"b")
    assert verdict(first, op("cas", b"a", b"b", at=(3, FOREVER)), read) is Verdict.LEGAL
    assert verdict(first, op("cas", b"x", b"b", at=(3, FOREVER)), read) is Verdict.ILLEGAL


def test_the_end_of_a_lease_takes_only_its_own_values() -> None:
    """``fall`` deletes the values that hung on the lease and leaves others alone."""
    end = op("fall", frozenset({b"a"}), at=(3, 4))
    own, other = op("put", b"a", at=(1, 2)), op("put", b"b", at=(1, 2))
    assert verdict(own, end, op("get", at=(5, 6), out=None)) is Verdict.LEGAL
    assert verdict(own, end, op("get", at=(5, 6), out=b"a")) is Verdict.ILLEGAL
    assert verdict(other, end, op("get", at=(5, 6), out=b"b")) is Verdict.LEGAL


def test_keys_are_judged_alone() -> None:
    """One broken key is named; the other stays legal."""
    findings = check(
        [
            op("put", b"a", at=(1, 2), out=None, key=b"good"),
            op("put", b"a", at=(3, 4), out=None, key=b"bad"),
            op("get", at=(5, 6), out=b"a", key=b"good"),
            op("get", at=(7, 8), out=None, key=b"bad"),
        ]
    )
    assert [(f.key, f.verdict) for f in findings] == [
        (b"bad", Verdict.ILLEGAL),
        (b"good", Verdict.LEGAL),
    ]


def test_a_search_that_is_cut_short_says_so() -> None:
    """Undecided is not legal."""
    writes = [op("put", b"%d" % i, at=(i, 100 + i)) for i in range(12)]
    found = check_key([*writes, op("get", at=(200, 201), out=b"never")], steps_max=500)
    assert found.verdict is Verdict.UNKNOWN


def test_an_unknown_kind_is_refused() -> None:
    """A history that the model does not know is a mistake of the test."""
    with pytest.raises(ValueError, match="no operation"):
        register(None, op("swap", at=(1, 2)))


def honest_history(seed: int, clients: int, length: int) -> list[Operation]:
    """What clients of a real register would see: each operation acts at a drawn instant."""
    rng = random.Random(seed)
    state: State = None
    busy_until = [0.0] * clients
    planned = []
    for number in range(length):
        client = min(range(clients), key=lambda c: busy_until[c])
        called = busy_until[client] + rng.random()
        acts = called + rng.random() * 3
        returned = acts + rng.random() * 3
        busy_until[client] = returned
        kind = rng.choice(["put", "get", "cas", "delete"])
        planned.append((acts, number, client, called, returned, kind))
    out = []
    values: list[State] = [None]
    for _, number, client, called, returned, kind in sorted(planned):
        value = b"v%d" % number
        before = state
        arguments: tuple[Any, ...] = ()
        output: Any = before
        if kind == "put":
            arguments, state = (value,), value
        elif kind == "delete":
            state = None
        elif kind == "cas":
            expected = rng.choice(values[-2:])
            arguments, output = (expected, value), (before == expected, before)
            state = value if before == expected else before
        values.append(state)
        if rng.random() < 0.05:
            returned, output = FOREVER, UNKNOWN
        out.append(Operation(f"c{client}", KEY, kind, arguments, called, returned, output))
    return out


@pytest.mark.parametrize("seed", range(20))
def test_honest_histories_pass_and_a_planted_stale_read_does_not(seed: int) -> None:
    """600 operations of 6 clients, one in 20 lost; then a late read shows the first value."""
    history = honest_history(seed, 6, 600)
    assert check_key(history).verdict is Verdict.LEGAL
    first = next(o for o in history if o.kind == "put" and o.returned != FOREVER)
    end = max(o.returned for o in history if o.returned != FOREVER)
    late = [
        Operation("late", KEY, "put", (b"last",), end + 1, end + 2),
        Operation("late", KEY, "get", (), end + 3, end + 4, first.arguments[0]),
    ]
    assert check_key([*history, *late]).verdict is Verdict.ILLEGAL


def brute_force(operations: list[Operation]) -> bool:
    """All subsets of the unknown operations in all orders that real time allows."""
    known = [o for o in operations if o.returned != FOREVER]
    unknown = [o for o in operations if o.returned == FOREVER]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations(known + list(chosen)):
                if _fits(order):
                    return True
    return False


def _fits(order: tuple[Operation, ...]) -> bool:
    for position, later in enumerate(order):
        if any(later.returned < earlier.called for earlier in order[:position]):
            return False
    state: State = None
    for operation in order:
        right, state = register(state, operation)
        if not right:
            return False
    return True


VALUES = st.sampled_from([b"a", b"b"])
STATES = st.one_of(st.none(), VALUES)


@st.composite
def tiny_histories(draw: st.DrawFn) -> list[Operation]:
    """Up to five operations on one register, with any answers at all."""
    count = draw(st.integers(0, 5))
    instants = draw(st.permutations(range(2 * count)))
    out = []
    for number in range(count):
        called, returned = sorted(instants[2 * number : 2 * number + 2])
        kind = draw(st.sampled_from(["put", "get", "delete", "cas", "fall"]))
        lost = draw(st.integers(0, 3)) == 0
        arguments: tuple[Any, ...] = ()
        output: Any = draw(st.one_of(STATES, st.just(UNKNOWN)))
        if kind == "put":
            arguments = (draw(VALUES),)
        elif kind == "cas":
            arguments = (draw(STATES), draw(VALUES))
            output = (draw(st.sampled_from([True, False, UNKNOWN])), output)
        elif kind == "fall":
            arguments, output = (frozenset({draw(VALUES)}),), UNKNOWN
        out.append(
            Operation(
                f"c{number}", KEY, kind, arguments, called,
                FOREVER if lost else returned, UNKNOWN if lost else output,
            )
        )  # fmt: skip
    return out


@settings(max_examples=600, deadline=None)
@given(tiny_histories())
def test_the_search_agrees_with_brute_force(operations: list[Operation]) -> None:
    """On every tiny history both find an order, or both find none."""
    expected = Verdict.LEGAL if brute_force(operations) else Verdict.ILLEGAL
    assert check_key(operations).verdict is expected
