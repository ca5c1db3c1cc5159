"""Who votes: which machine should get a vote next, or lose it.

Three voters as soon as there are three machines that may vote, then an odd number up to a
stated size: a fourth voter alone would only make the quorum larger.  A voter that is lost for
long gives its vote to a machine that stands by.  Pure; one change at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

#: Voters of a cluster unless another number is stated, and what may be stated.
VOTERS, VOTERS_ACCEPTED = 5, (1, 3, 5, 7, 9)
#: As many are made voters one by one, also where that is an even number for a while.
FIRST_VOTERS = 3
#: Seconds after which a voter that is not heard gives its vote to another.
REPLACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Member:
    """A machine of the brain, as the leader sees it."""

    id: str
    votes: bool
    #: seconds for which it was not heard; 0 for one that is heard
    silent_s: float = 0.0
    #: without a vote: it may get one (it was started as a voter), and has what is decided
    is_ready: bool = False


class Change(NamedTuple):
    """``promote`` a member, ``demote`` one, or ``replace`` the voter ``instead_of`` by it."""

    verb: str
    member: str
    instead_of: str = ""


def next_change(members: Iterable[Member], leader: str, size: int) -> Change | None:
    """What is to be changed now; None if all is well, or nothing can be done."""
    known = sorted(members, key=lambda member: member.id)
    voters = [member for member in known if member.votes]
    ready = [member for member in known if not member.votes and member.is_ready and not member.silent_s]
    lost = [member for member in voters if member.silent_s >= REPLACE_S]
    if len(voters) > size:
        others = [member for member in voters if member.id != leader]
        return Change("demote", max(others, key=lambda member: (member.silent_s, member.id)).id)
    if not ready:
        return None
    if lost:
        return Change("replace", ready[0].id, max(lost, key=lambda member: (member.silent_s, member.id)).id)
    count = len(voters)
    becomes_odd = count % 2 == 0 or len(ready) > 1
    target = count + 1 if count % 2 == 0 else count + 2
    if count < min(FIRST_VOTERS, size) or (becomes_odd and target <= size):
        return Change("promote", ready[0].id)
    return None
