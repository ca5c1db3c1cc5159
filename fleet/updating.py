"""What a machine does about an update: one flow, one state, one sentence that says what is waited for.

Pure: :func:`decide` is asked again and again with what is true, and answers with a state and
at most one thing to do.  Nothing that may take long is waited for under the lock but the drain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Exactly one at any moment."""

    IDLE = "idle"
    REFUSED = "refused"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    WAIT_PERMIT = "wait-permit"
    WAIT_WINDOW = "wait-window"
    WAIT_BLOCKER = "wait-blocker"
    WAIT_LOCK = "wait-lock"
    DRAINING = "draining"
    REBOOTING = "rebooting"
    TRIAL = "trial"
    SETTLING = "settling"
    HALTED = "halted"


#: Seconds beyond those of a drain after which leadership that nobody takes calls an update off.
LEAD_S = 60.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true now.  Empty reasons say that nothing stands in the way."""

    now: float
    #: version that the channel has and this machine shall get; empty if there is none, with the reason it was refused
    target: str = ""
    refused: str = ""
    #: whether it lies in the other slot, verified; and how far that is
    staged: bool = False
    progress: str = ""
    verifying: bool = False
    permit: str = ""
    halted: str = ""
    window: str = ""
    blocker: str = ""
    #: the token of the lock that this machine holds (0: none), and why it cannot be had
    token: int = 0
    lock: str = ""
    #: somebody else holds the lock for this machine: it is theirs to give back; and why the quorum bears no reboot now
    foreign: str = ""
    no_quorum: str = ""
    #: whether units leave this machine by our order, which are left, since when
    draining: bool = False
    left: tuple[str, ...] = ()
    drained_for: float = 0.0
    drain_limit: float = 600.0
    #: after a drain that did not end, the next attempt is not before this moment
    again_at: float = 0.0
    #: whether an operator drains the machine: it stays so afterwards
    held_by_operator: bool = False
    leads: bool = False
    #: a new version is on trial: since when, what is not well, and since when nothing is
    trial: bool = False
    trial_for: float = 0.0
    trial_limit: float = 120.0
    unwell: str = ""
    well_for: float = 0.0
    commit_after: float = 10.0
    #: an update is over (committed or rolled back), and its lock and drain are to be given back
    returning: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The state, what is waited for, and what to do: ``stage``, ``acquire``, ``leave-queue``, ``drain``,
    ``give-up``, ``transfer``, ``reboot``, ``commit``, ``roll-back``, ``return`` or nothing.
    """

    state: State
    reason: str
    do: str = ""


def decide(facts: Facts) -> Decision:
    """See the module docstring."""
    if facts.trial:
        return _trial(facts)
    if facts.returning:
        if facts.unwell:
            return Decision(State.SETTLING, f"the lock is kept until the machine is well: {facts.unwell}")
        if facts.well_for < facts.commit_after:
            return Decision(State.SETTLING, f"well for {facts.well_for:.0f} of {facts.commit_after:g} s")
        return Decision(State.SETTLING, "giving back the lock", "return")
    if not facts.target:
        if facts.token or (facts.draining and not facts.held_by_operator):
            return Decision(State.SETTLING, "there is nothing to update to any more", "return")
        return Decision(State.REFUSED, facts.refused) if facts.refused else Decision(State.IDLE, "up to date")
    if facts.token:
        return _locked(facts)
    if facts.draining and not facts.held_by_operator:
        return Decision(State.DRAINING, "called off: the lock was taken away", "return")
    if not facts.staged:
        if facts.verifying:
            return Decision(State.VERIFYING, facts.progress)
        return Decision(State.DOWNLOADING, facts.progress or f"version {facts.target}", "stage")
    return _waiting(facts)


def _waiting(facts: Facts) -> Decision:
    """Before the lock: what must be so for the machine to want it."""
    if facts.halted:
        return Decision(State.HALTED, facts.halted, "leave-queue")
    if facts.permit:
        return Decision(State.WAIT_PERMIT, facts.permit, "leave-queue")
    if facts.window:
        return Decision(State.WAIT_WINDOW, facts.window, "leave-queue")
    if facts.blocker:
        return Decision(State.WAIT_BLOCKER, facts.blocker, "leave-queue")
    if facts.now < facts.again_at:
        return Decision(State.WAIT_BLOCKER, f"the last drain did not end; trying again in {facts.again_at - facts.now:.0f} s", "leave-queue")
    if facts.foreign:
        return Decision(State.WAIT_LOCK, facts.foreign)
    return Decision(State.WAIT_LOCK, facts.lock or "asking for the lock", "acquire")


def _locked(facts: Facts) -> Decision:
    """Under the lock: everything is looked at again, up to the moment of the reboot."""
    off = facts.halted or facts.window or facts.blocker or facts.no_quorum
    if off or not facts.staged:
        return Decision(State.DRAINING, f"called off: {off or 'the release is gone'}", "give-up")
    if not facts.draining:
        return Decision(State.DRAINING, "units are asked to leave", "drain")
    if facts.left:
        if facts.drained_for > facts.drain_limit:
            return Decision(State.DRAINING, f"called off: still there after {facts.drain_limit:g} s: {', '.join(facts.left[:5])}", "give-up")
        return Decision(State.DRAINING, f"waiting for {', '.join(facts.left[:5])}" + (" and others" if len(facts.left) > 5 else ""))
    if facts.leads and facts.drained_for > facts.drain_limit + LEAD_S:
        return Decision(State.DRAINING, "called off: leadership could not be handed over", "give-up")
    if facts.leads:
        return Decision(State.REBOOTING, "handing leadership over", "transfer")
    return Decision(State.REBOOTING, f"into version {facts.target}", "reboot")


def _trial(facts: Facts) -> Decision:
    if facts.unwell:
        if facts.trial_for > facts.trial_limit:
            return Decision(State.TRIAL, f"not well after {facts.trial_limit:g} s: {facts.unwell}", "roll-back")
        return Decision(State.TRIAL, f"waiting: {facts.unwell}")
    if facts.well_for < facts.commit_after:
        return Decision(State.TRIAL, f"well for {facts.well_for:.0f} of {facts.commit_after:g} s")
    return Decision(State.TRIAL, "well: it is kept", "commit")
