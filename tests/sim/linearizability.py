"""A linearizability checker: Wing and Gong's search with Lowe's cache, one key at a time.

A history is linearizable when every operation can be given one instant between its call
and its return such that, taken in the order of these instants, all answers are those of a
sequential object.  Here the object is a register per key: put, get, delete and
compare-and-swap.  Linearizability is local (a history is linearizable exactly when its
part on each key is), so each key is searched alone, which keeps the search small.

An operation whose outcome is unknown has ``returned = FOREVER``: it may take effect at
any time after its call, or never.  The search has a limit; when it is reached the verdict
is :attr:`Verdict.UNKNOWN`, which is never to be taken for legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

#: Return time of an operation that nobody saw return.
FOREVER: Final = math.inf
#: Positions the search of one key may visit before it gives up.
STEPS_MAX: Final = 2_000_000


class _Unknown:
    """The type of :data:`UNKNOWN`."""

    def __repr__(self) -> str:
        return "UNKNOWN"


#: Output of an operation that was not seen, or a part of it that was not.
UNKNOWN: Final = _Unknown()

#: State of a register: its value, or None while the key does not exist.
State = bytes | None


class Verdict(Enum):
    """What the search found."""

    LEGAL = "legal"
    ILLEGAL = "illegal"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one key, as its client saw it.

    ``called`` and ``returned`` are instants of one clock, all different (or, on a tie, the
    call counts as before the return).  Kinds, arguments and outputs:

    ``put`` (value): the value before, or UNKNOWN
    ``get`` (): the value
    ``delete`` (): the value before, or UNKNOWN
    ``cas`` (expected, value): ``(swapped, value before)``, either part may be UNKNOWN
    ``fall`` (doomed): UNKNOWN; deletes the key while its value is one of ``doomed`` (how
    the end of a lease looks from the outside)
    """

    client: str
    key: bytes
    kind: str
    arguments: tuple[Any, ...]
    called: float
    returned: float = FOREVER
    output: Any = UNKNOWN

    def __str__(self) -> str:
        words = " ".join(str(a) for a in self.arguments)
        until = "?" if self.returned == FOREVER else f"{self.returned:g}"
        return (
            f"[{self.called:g} .. {until}] {self.client}: {self.kind} {self.key!r} {words}"
            f" -> {self.output}"
        )


def register(state: State, operation: Operation) -> tuple[bool, State]:
    """The sequential register: whether the output is right in this state, and the next one."""
    kind, output = operation.kind, operation.output
    if kind == "get":
        return output is UNKNOWN or output == state, state
    if kind == "put":
        return output is UNKNOWN or output == state, operation.arguments[0]
    if kind == "delete":
        return output is UNKNOWN or output == state, None
    if kind == "fall":
        return True, None if state in operation.arguments[0] else state
    if kind == "cas":
        expected, value = operation.arguments
        swaps = state == expected
        if output is not UNKNOWN:
            swapped, before = output
            if swapped is not UNKNOWN and swapped != swaps:
                return False, state
            if before is not UNKNOWN and before != state:
                return False, state
        return True, value if swaps else state
    raise ValueError(f"a register has no operation {kind!r}")


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one key; for an illegal one, how far any order could be carried."""

    key: bytes
    verdict: Verdict
    #: the longest order found, as (operation, state after it)
    longest: tuple[tuple[Operation, State], ...] = ()
    #: the operation that returned and could not be placed after it
    stuck: Operation | None = None
    steps: int = 0

    def __str__(self) -> str:
        if self.verdict is Verdict.LEGAL:
            return f"{self.key!r}: legal after {self.steps} steps"
        if self.verdict is Verdict.UNKNOWN:
            return f"{self.key!r}: undecided after {self.steps} steps"
        lines = [f"{self.key!r}: not linearizable; the longest order found ends with"]
        lines += [f"  {operation}   leaves {state!r}" for operation, state in self.longest[-8:]]
        lines.append(f"  and then nothing can come before the return of {self.stuck}")
        return "\n".join(lines)


class _Nodes:
    """Calls and returns of one key in order of time, as a doubly linked list of arrays.

    Node 0 is the head.  Lifting an operation takes its two nodes out; unlifting in the
    reverse order puts them back, so both are a few assignments.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        marks: list[tuple[float, int, int]] = []
        for number, operation in enumerate(operations):
            marks.append((operation.called, 0, number))
            if operation.returned != FOREVER:
                marks.append((operation.returned, 1, number))
        marks.sort()
        self.operation = [-1] + [number for _, _, number in marks]
        self.is_return = [False] + [bool(side) for _, side, _ in marks]
        count = len(self.operation)
        self.next = list(range(1, count + 1))
        self.prev = list(range(-1, count))  # one more, so the end may be written to
        self.next[-1] = self.end = count
        self.returns: list[int | None] = [None] * len(operations)
        for node in range(1, count):
            if self.is_return[node]:
                self.returns[self.operation[node]] = node

    def lift(self, call: int) -> None:
        """Take an operation out, given its call node."""
        self._unlink(call)
        ret = self.returns[self.operation[call]]
        if ret is not None:
            self._unlink(ret)

    def unlift(self, call: int) -> None:
        """Put the operation that was lifted last back in."""
        ret = self.returns[self.operation[call]]
        if ret is not None:
            self._relink(ret)
        self._relink(call)

    def _unlink(self, node: int) -> None:
        before, after = self.prev[node], self.next[node]
        self.next[before] = after
        self.prev[after] = before

    def _relink(self, node: int) -> None:
        self.next[self.prev[node]] = node
        self.prev[self.next[node]] = node


def check_key(
    operations: Sequence[Operation],
    step: Callable[[State, Operation], tuple[bool, State]] = register,
    initial: State = None,
    steps_max: int = STEPS_MAX,
) -> Finding:
    """Search an order for the operations of one key.

    Walk the calls and returns in order of time.  At a call, try to place its operation
    next: if its output is right and this (set of placed operations, state) was not seen
    before, lift it out and start again from the head.  At a return, its operation should
    have been placed earlier: take the last placed one back and go on after it.  Nothing
    left to take back proves that there is no order.

    An operation without a return is never required, so the search ends when every
    operation that returned is placed.  Three cuts keep those without a return from
    multiplying the search: one that could only leave a value that nobody ever saw is left
    out (see :func:`without_idle`); one that changes nothing here is not placed; and of
    equal ones the one called first is placed first.
    """
    key = operations[0].key if operations else b""
    if step is register:
        operations = without_idle(operations)
    elders = _elders(operations)
    nodes = _Nodes(operations)
    waiting = sum(1 for operation in operations if operation.returned != FOREVER)
    state = initial
    placed = 0
    seen: set[tuple[int, State]] = {(0, initial)}
    order: list[tuple[int, State]] = []  # (call node, state before)
    longest: list[tuple[Operation, State]] = []
    stuck: Operation | None = None
    best = -1
    node = nodes.next[0]
    steps = 0
    while waiting:
        steps += 1
        if steps > steps_max:
            return Finding(key, Verdict.UNKNOWN, steps=steps)
        number = nodes.operation[node]
        operation = operations[number]
        if not nodes.is_return[node]:
            right, after = step(state, operation)
            mark = (placed | 1 << number, after)
            if operation.returned == FOREVER:
                right = right and after != state and placed & elders[number] == elders[number]
            if right and mark not in seen:
                seen.add(mark)
                order.append((node, state))
                placed, state = mark
                nodes.lift(node)
                waiting -= operation.returned != FOREVER
                node = nodes.next[0]
            else:
                node = nodes.next[node]
            continue
        if len(order) > best:
            best, stuck = len(order), operation
            longest = _explain(operations, nodes, order, state)
        if not order:
            return Finding(key, Verdict.ILLEGAL, tuple(longest), stuck, steps)
        node, state = order.pop()
        number = nodes.operation[node]
        placed &= ~(1 << number)
        nodes.unlift(node)
        waiting += operations[number].returned != FOREVER
        node = nodes.next[node]
    return Finding(key, Verdict.LEGAL, steps=steps)


def without_idle(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out writes of unknown outcome whose value nobody can have noticed.

    Say such a write took effect in some legal order, and look at what follows it.  An
    operation that tells the value before it would have told this one; one that does not
    care about it loses nothing when it is gone; and whatever depends on it (a swap that
    expects it, a lease that ends it) mentions it.  What remains is a swap that only told
    that it failed, for it may have failed because of this value: with one of those in the
    history everything is kept.
    """
    mentioned: set[Any] = set()
    for operation in operations:
        output = operation.output
        if operation.kind == "cas":
            mentioned.add(operation.arguments[0])
            if operation.returned != FOREVER:
                swapped, before = (UNKNOWN, UNKNOWN) if output is UNKNOWN else output
                if before is UNKNOWN and swapped is not True:
                    return list(operations)
                mentioned.add(before)
        elif operation.kind == "fall":
            mentioned.update(operation.arguments[0])
        else:
            mentioned.add(output)
    written = {"put": 0, "cas": 1}  # which argument is the new value
    return [
        o for o in operations
        if o.returned != FOREVER or o.kind not in written
        or o.arguments[written[o.kind]] in mentioned
    ]  # fmt: skip


def _elders(operations: Sequence[Operation]) -> list[int]:
    """For each operation of unknown outcome: the bit of the equal one called just before it."""
    out = [0] * len(operations)
    last: dict[Any, int] = {}
    for number in sorted(range(len(operations)), key=lambda n: operations[n].called):
        operation = operations[number]
        if operation.returned == FOREVER and operation.output is UNKNOWN:
            same = (operation.kind, operation.arguments)
            if same in last:
                out[number] = 1 << last[same]
            last[same] = number
    return out


def _explain(
    operations: Sequence[Operation], nodes: _Nodes, order: list[tuple[int, State]], state: State
) -> list[tuple[Operation, State]]:
    after = [*[before for _, before in order[-7:]], state] if order else []
    placed = [operations[nodes.operation[node]] for node, _ in order[-8:]]
    return list(zip(placed, after[-len(placed) :], strict=True))


def check(
    operations: Iterable[Operation],
    step: Callable[[State, Operation], tuple[bool, State]] = register,
    steps_max: int = STEPS_MAX,
) -> list[Finding]:
    """Check a whole history, key by key in order of the keys; one finding for each key."""
    by_key: dict[bytes, list[Operation]] = {}
    for operation in operations:
        by_key.setdefault(operation.key, []).append(operation)
    return [check_key(by_key[key], step, steps_max=steps_max) for key in sorted(by_key)]
