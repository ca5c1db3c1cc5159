"""The Raft core against the rules of Ongaro's dissertation; each test names its section."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain.codec import decode, encode
from brain.raft import (
    Config,
    HardState,
    Kind,
    Message,
    NotLeaderError,
    Progress,
    ProposalDroppedError,
    Raft,
    Role,
    Settings,
)
from brain.raftlog import Entry, EntryKind, RaftLog

from .rafts import SETTINGS, Network, ack, candidate, drive, entry, leader, log_terms, persist, raft, ticks

ELECTION = SETTINGS.election_ticks


def follower(term: int = 1, **options: object) -> Raft:
    """A follower that has heard of leader 2."""
    core = raft(term=term, **options)  # type: ignore[arg-type]
    core.step(Message(Kind.HEARTBEAT, "2", "1", term))
    drive(core)
    return core


ROLES = {
    "follower": lambda: follower(term=2),
    "candidate": lambda: candidate(raft(term=1)),
    "leader": lambda: leader(raft(term=1)),
}


# -- 5.1: terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_5_1_a_higher_term_makes_a_follower(role: str) -> None:
    """If one server's current term is smaller than the other's, then it updates its current term
    to the larger value. If a candidate or leader discovers that its term is out of date, it
    immediately reverts to follower state.
    """
    core = ROLES[role]()
    core.step(Message(Kind.APPEND, "2", "1", 5))
    assert (core.role, core.term, core.leader, core.vote) == (Role.FOLLOWER, 5, "2", "")


@pytest.mark.parametrize("role", ROLES)
def test_5_1_a_stale_term_is_rejected(role: str) -> None:
    """If a server receives a request with a stale term number, it rejects the request.

    Nothing changes, and a deposed leader is told the term it has missed.
    """
    core = ROLES[role]()
    before = (core.role, core.term, core.vote, core.leader, log_terms(core))
    assert core.term == 2
    drive(core)
    for kind in (
        Kind.APPEND,
        Kind.HEARTBEAT,
        Kind.VOTE,
        Kind.APPEND_REPLY,
        Kind.TIMEOUT_NOW,
        Kind.VOTE_REPLY,
    ):
        core.step(Message(kind, "3", "1", 1, entries=(entry(1),), index=0))
        reply = drive(core).messages
        assert [(m.kind, m.term, m.reject) for m in reply] == (
            [(Kind.APPEND_REPLY, 2, True)] if kind in (Kind.APPEND, Kind.HEARTBEAT) else []
        )
    assert (core.role, core.term, core.vote, core.leader, log_terms(core)) == before


def test_5_1_term_and_vote_are_on_disk_before_they_are_promised() -> None:
    """Figure 3.1: persistent state is updated on stable storage before responding to RPCs."""
    core = raft()
    core.step(Message(Kind.VOTE, "2", "1", 3))
    done = drive(core, sync=False)
    assert done.messages == []
    [ready] = done.readies
    assert ready.hard_state == HardState(3, "2")
    assert [m.kind for m in ready.after_sync] == [Kind.VOTE_REPLY]


def test_5_1_a_candidates_own_vote_counts_only_when_it_is_on_disk() -> None:
    """It neither counts for itself nor asks others before its term and vote are written."""
    for voters in ("1", "123"):
        core = raft(voters=voters)
        ticks(core, 2 * ELECTION)
        for peer in voters[1:]:
            core.step(Message(Kind.PRE_VOTE_REPLY, peer, "1", 1))
        done = drive(core, sync=False)
        assert core.role is Role.CANDIDATE
        assert done.kinds(Kind.VOTE) == []
        persist(core, done.readies[-1], done)
        assert len(done.kinds(Kind.VOTE)) == len(voters) - 1
        assert core.role is (Role.LEADER if voters == "1" else Role.CANDIDATE)


# -- 5.2: elections --------------------------------------------------------------------------------


def test_5_2_a_follower_that_hears_nothing_stands_for_election() -> None:
    """It increments its current term and transitions to candidate state. It then votes for itself
    and issues RequestVote RPCs in parallel to each of the other servers.  (After a pre-vote, 9.6.)
    """
    core = raft(voters="12345", terms=[1, 1], term=2)
    ticks(core, ELECTION - 1)
    assert drive(core).messages == []
    core.tick()
    assert {(m.kind, m.to, m.term) for m in drive(core).messages} == {(Kind.PRE_VOTE, p, 3) for p in "2345"}
    for peer in "23":
        core.step(Message(Kind.PRE_VOTE_REPLY, peer, "1", 3))
    assert (core.role, core.term, core.vote) == (Role.CANDIDATE, 3, "1")
    requests = drive(core).messages
    assert {m.to for m in requests} == set("2345")
    assert {(m.kind, m.term, m.index, m.log_term) for m in requests} == {(Kind.VOTE, 3, 2, 1)}


def test_5_2_a_leader_that_is_heard_keeps_followers_quiet() -> None:
    """A server remains in follower state as long as it receives valid RPCs from a leader."""
    core = follower()
    for _ in range(5):
        ticks(core, ELECTION - 1)
        core.step(Message(Kind.HEARTBEAT, "2", "1", 1))
    drive(core)
    assert core.role is Role.FOLLOWER


def test_5_2_election_timeouts_are_drawn_from_once_to_twice_the_time() -> None:
    """Election timeouts are chosen randomly from a fixed interval, anew for each election."""
    draws = iter(range(ELECTION))
    core = raft(draw=lambda n: next(draws))
    waited = []
    for _ in range(ELECTION - 1):
        count = 0
        while not drive(core).kinds(Kind.PRE_VOTE):
            core.tick()
            count += 1
        waited.append(count)
    assert waited == [ELECTION + n for n in range(ELECTION - 1)]


ELECTIONS = [
    (1, {}, Role.LEADER), (3, {"2": True}, Role.LEADER), (3, {"2": True, "3": False}, Role.LEADER),
    (5, {"2": True, "3": True}, Role.LEADER),
    (5, {"2": True, "3": True, "4": False, "5": False}, Role.LEADER),
    (3, {"2": False, "3": False}, Role.FOLLOWER), (5, {"2": False, "3": False, "4": False}, Role.FOLLOWER),
    (3, {}, Role.CANDIDATE), (5, {"2": True}, Role.CANDIDATE), (5, {"2": False, "3": False}, Role.CANDIDATE),
    (4, {"2": True}, Role.CANDIDATE), (4, {"2": True, "3": True}, Role.LEADER),
]  # fmt: skip


@pytest.mark.parametrize(("size", "votes", "role"), ELECTIONS)
def test_5_2_a_candidate_wins_with_the_votes_of_a_majority(
    size: int, votes: dict[str, bool], role: Role
) -> None:
    """A candidate wins an election if it receives votes from a majority of the servers in the full
    cluster for the same term.  A vote is counted once, however often it comes.
    """
    core = candidate(raft(voters=[str(n) for n in range(1, size + 1)]))
    drive(core)
    for peer, granted in votes.items():
        for _ in range(3):
            core.step(Message(Kind.VOTE_REPLY, peer, "1", core.term, reject=not granted))
    assert core.role is role


def test_5_2_votes_of_others_and_of_other_terms_do_not_count() -> None:
    """Only voters, and only for this term."""
    core = candidate(raft(voters="12345", learners="67"))
    drive(core)
    for peer in "6789":
        core.step(Message(Kind.VOTE_REPLY, peer, "1", core.term))
    for peer in "2345":
        core.step(Message(Kind.VOTE_REPLY, peer, "1", core.term - 1))
        core.step(Message(Kind.PRE_VOTE_REPLY, peer, "1", core.term))
    assert core.role is Role.CANDIDATE


@pytest.mark.parametrize(
    ("vote", "asker", "granted"),
    [
        ("", "2", True),
        ("", "3", True),
        ("2", "2", True),
        ("3", "3", True),
        ("2", "3", False),
        ("3", "2", False),
    ],
)
def test_5_2_a_server_votes_once_in_a_term(vote: str, asker: str, granted: bool) -> None:
    """Each server will vote for at most one candidate in a given term, on a first-come-first-served
    basis, also after a restart.
    """
    core = raft(term=1, vote=vote)
    core.step(Message(Kind.VOTE, asker, "1", 1))
    reply = drive(core).one
    assert (reply.kind, reply.to, reply.term, reply.reject) == (Kind.VOTE_REPLY, asker, 1, not granted)
    assert core.vote == (asker if granted else vote)


@pytest.mark.parametrize("kind", [Kind.APPEND, Kind.HEARTBEAT])
@pytest.mark.parametrize("ahead", [0, 1])
def test_5_2_a_candidate_recognises_a_legitimate_leader(kind: Kind, ahead: int) -> None:
    """If the leader's term is at least as large as the candidate's current term, then the candidate
    recognizes the leader as legitimate and returns to follower state.
    """
    core = candidate(raft())
    drive(core)
    core.step(Message(kind, "2", "1", core.term + ahead))
    assert (core.role, core.leader) == (Role.FOLLOWER, "2")


def test_5_2_a_split_vote_is_followed_by_another_election() -> None:
    """Each candidate will time out and start a new election by incrementing its term."""
    core = candidate(raft())
    drive(core)
    first = core.term
    candidate(core)
    assert core.term == first + 1
    assert {m.kind for m in drive(core).messages} == {Kind.VOTE}


def test_5_2_a_leader_sends_heartbeats_to_everyone() -> None:
    """It then sends heartbeat messages to all of the other servers to establish its authority."""
    core = leader(raft(voters="123", learners="4"))
    for _ in range(3):
        ticks(core, SETTINGS.heartbeat_ticks)
        beats = drive(core).kinds(Kind.HEARTBEAT)
        assert sorted(m.to for m in beats) == ["2", "3", "4"]


def test_5_2_at_most_one_leader_in_a_term() -> None:
    """Election safety, with every peer standing at once, again and again."""
    net = Network.of(5)
    seen: dict[int, set[str]] = {}
    for round_ in range(60):
        net.tick()
        if round_ % 15 == 14:
            net.isolate(str(round_ // 15 + 1))
        for name in net.leaders:
            seen.setdefault(net.cores[name].term, set()).add(name)
    assert seen
    assert all(len(names) == 1 for names in seen.values())


# -- 5.3: replication ------------------------------------------------------------------------------


def test_5_3_a_leader_appends_and_replicates() -> None:
    """The leader appends the command to its log as a new entry, then issues AppendEntries RPCs in
    parallel to each of the other servers, naming the entry before the new ones.
    """
    core = leader(raft(terms=[1, 1]))
    ack(core, "2", "3")
    drive(core)
    assert core.propose([b"a", b"b"]) == 4
    sent = drive(core).kinds(Kind.APPEND)
    assert sorted(m.to for m in sent) == ["2", "3"]
    for m in sent:
        assert (m.index, m.log_term, m.term) == (3, 2, 2)
        assert m.entries == (entry(2, b"a"), entry(2, b"b"))


@pytest.mark.parametrize(
    ("size", "acks", "committed"),
    [(1, "", True), (3, "", False), (3, "2", True), (3, "23", True), (5, "2", False), (5, "23", True),
    (4, "2", False), (4, "23", True)],
)  # fmt: skip
def test_5_3_an_entry_is_committed_when_a_majority_has_it(size: int, acks: str, committed: bool) -> None:
    """A log entry is committed once the leader that created the entry has replicated it on a
    majority of the servers.
    """
    core = leader(raft(voters=[str(n) for n in range(1, size + 1)]))
    core.propose([b"a"])
    drive(core)
    ack(core, *acks)
    assert (core.log.commit == 2) is committed
    applied = drive(core).applied
    assert ([item[2] for _, item in applied] == [b"", b"a"] or (size == 1 and not applied)) is committed


def test_5_3_the_leaders_own_copy_counts_only_when_it_is_on_disk() -> None:
    """It sends before its own sync, and must not count itself before it."""
    core = leader(raft())
    ack(core, "2", "3")
    drive(core)
    core.propose([b"a"])
    done = drive(core, sync=False)
    assert done.kinds(Kind.APPEND)
    ack(core, "2")
    assert core.log.commit == 1
    persist(core, done.readies[-1], done)
    assert core.log.commit == 2


def test_5_3_two_followers_commit_without_the_leaders_disk() -> None:
    """A majority is a majority: a slow disk at the leader holds nothing up, and it promises nothing itself."""
    core = leader(raft())
    ack(core, "2", "3")
    drive(core)
    core.propose([b"a"])
    done = drive(core, sync=False)
    ack(core, "2", "3")
    assert core.log.commit == 2
    assert [index for index, _ in drive(core, sync=False).applied] == [2]
    assert core.log.stable == 1
    persist(core, done.readies[-1], done)
    assert (core.log.stable, drive(core).applied) == (2, [])


def test_5_3_an_acknowledgement_is_sent_when_the_entries_are_on_disk() -> None:
    """A follower promises nothing that it could lose."""
    core = follower()
    core.step(Message(Kind.APPEND, "2", "1", 1, 0, 0, entries=(entry(1), entry(1))))
    done = drive(core, sync=False)
    assert done.messages == []
    persist(core, done.readies[-1], done)
    assert [(m.kind, m.index, m.reject) for m in done.messages] == [(Kind.APPEND_REPLY, 2, False)]


def test_5_3_committing_an_entry_commits_all_before_it() -> None:
    """This also commits all preceding entries in the leader's log, including entries created by
    previous leaders.
    """
    core = leader(raft(terms=[1, 2, 2]))
    assert core.log.commit == 0
    ack(core, "2")
    assert [index for index, _ in drive(core).applied] == [1, 2, 3, 4]


@pytest.mark.parametrize("commit", range(5))
def test_5_3_a_follower_applies_what_it_learns_is_committed_in_order(commit: int) -> None:
    """Once a follower learns that a log entry is committed, it applies the entry to its local state
    machine (in log order).  No further than it has entries from this leader.
    """
    core = follower()
    entries = tuple(entry(1, b"%d" % n) for n in range(3))
    core.step(Message(Kind.APPEND, "2", "1", 1, 0, 0, commit, entries))
    applied = drive(core).applied
    assert applied == [(n + 1, entries[n]) for n in range(min(commit, 3))]
    core.step(Message(Kind.HEARTBEAT, "2", "1", 1, commit=3))
    assert [index for index, _ in applied + drive(core).applied] == [1, 2, 3]


def test_5_3_a_heartbeat_commits_no_further_than_the_log() -> None:
    """The mark in it may be beyond what this follower has."""
    core = follower(terms=[1])
    core.step(Message(Kind.HEARTBEAT, "2", "1", 1, commit=9))
    assert core.log.commit == 1


@pytest.mark.parametrize(
    ("index", "term", "accepted"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (1, 2, False), (2, 1, False), (3, 2, False), (9, 3, False)],
)
def test_5_3_the_consistency_check(index: int, term: int, accepted: bool) -> None:
    """If the follower does not find an entry in its log with the same index and term, then it
    refuses the new entries.
    """
    core = follower(term=3, terms=[1, 2])
    core.step(Message(Kind.APPEND, "2", "1", 3, index, term, entries=(entry(3),)))
    reply = drive(core).one
    assert (reply.kind, reply.reject) == (Kind.APPEND_REPLY, not accepted)
    if accepted:
        assert log_terms(core) == [*[1, 2][:index], 3]
        assert reply.index == index + 1
    else:
        assert log_terms(core) == [1, 2]
        assert reply.hint <= min(index, 2)


@pytest.mark.parametrize(
    ("before", "before_term", "terms", "expected"),
    [(2, 2, [3], [1, 2, 3]), (1, 1, [3, 4], [1, 3, 4]), (0, 0, [1], [1, 2, 2]), (1, 1, [2, 2], [1, 2, 2]),
     (0, 0, [1, 2, 2, 4], [1, 2, 2, 4]), (3, 2, [4], [1, 2, 2, 4]), (0, 0, [4], [4])],
)  # fmt: skip
def test_5_3_conflicting_entries_are_replaced(
    before: int, before_term: int, terms: list[int], expected: list[int]
) -> None:
    """If an existing entry conflicts with a new one (same index but different terms), delete the
    existing entry and all that follow it.  An older, shorter message deletes nothing.
    """
    core = follower(term=4, terms=[1, 2, 2])
    core.step(Message(Kind.APPEND, "2", "1", 4, before, before_term, entries=tuple(entry(t) for t in terms)))
    drive(core)
    assert log_terms(core) == expected


def test_5_3_a_committed_entry_is_never_replaced() -> None:
    """An old message that speaks of decided indexes is answered with what is decided."""
    core = follower(term=2, terms=[1, 1, 1])
    core.step(Message(Kind.HEARTBEAT, "2", "1", 2, commit=3))
    drive(core)
    core.step(Message(Kind.APPEND, "2", "1", 2, 0, 0, entries=(entry(2),)))
    assert (reply := drive(core).one).index == 3
    assert reply.reject is False
    assert log_terms(core) == [1, 1, 1]


FIGURE_7 = {
    "a": [1, 1, 1, 4, 4, 5, 5, 6, 6], "b": [1, 1, 1, 4], "c": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "d": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7], "e": [1, 1, 1, 4, 4, 4, 4],
    "f": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}  # fmt: skip


@pytest.mark.parametrize("terms", FIGURE_7.values(), ids=FIGURE_7)
def test_5_3_the_leader_brings_any_follower_into_line(terms: list[int]) -> None:
    """Figure 3.6 (7 in the paper): missing entries, additional ones, or both, over several terms."""
    lead = raft("1", terms=[1, 1, 1, 4, 4, 5, 5, 6, 6, 6], term=7)
    behind = raft("2", terms=terms, term=7)
    third = raft("3", terms=[])
    net = Network(lead, behind, third)
    net.elect("1")
    assert log_terms(behind) == log_terms(lead) == log_terms(third) == [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8]


def test_5_3_one_refusal_per_conflicting_term() -> None:
    """The AppendEntries RPC will be required for each term with conflicting entries, rather than one
    RPC per entry: a thousand of them are repaired in a handful of messages.
    """
    lead = raft("1", terms=[1] * 500 + [5] * 500)
    behind = raft("2", terms=[1] * 500 + [2] * 300 + [3] * 300)
    net = Network(lead, behind, raft("3", terms=[1] * 500 + [5] * 500))
    net.elect("1")
    assert log_terms(behind) == log_terms(lead)
    refusals = [m for m in net.delivered if m.kind == Kind.APPEND_REPLY and m.frm == "2" and m.reject]
    assert 1 <= len(refusals) <= 4


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_5_3_any_two_logs_that_can_exist_are_reconciled(
    mine: list[int], theirs: list[int], shared: int
) -> None:
    """Log matching: whatever a follower had after a common beginning, it ends with the leader's log."""
    base = [1] * min(shared, 12)
    lead_terms, follower_terms = list(base), list(base)
    for out, steps, parity in ((lead_terms, mine, 0), (follower_terms, theirs, 1)):
        term = 1
        for step in steps:  # terms of one kind of number each, so that equal terms mean equal entries
            term = term + step if term > 1 else 2 + parity
            term += (term - parity) % 2
            out.append(term)
    top = max([1, *lead_terms, *follower_terms])
    lead, behind = raft("1", terms=lead_terms, term=top), raft("2", terms=follower_terms, term=top)
    net = Network(lead, behind, raft("3", terms=lead_terms, term=top))
    net.cut = {frozenset("12")}
    net.elect("1")
    net.heal()
    net.tick(3)
    assert log_terms(behind) == log_terms(lead)
    assert behind.log.commit == lead.log.commit


# -- 5.4: safety -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "granted"),
    [([1], [1], True), ([1], [1, 1], True), ([1, 1], [1], False), ([1], [2], True), ([1], [2, 2], True),
     ([1, 1], [2], True), ([2], [1], False), ([2], [1, 1], False), ([2, 2], [1], False), ([], [], True),
     ([1, 3], [1, 2, 2, 2, 2], False)],
)  # fmt: skip
def test_5_4_1_a_vote_goes_only_to_a_log_that_is_as_up_to_date(
    mine: list[int], theirs: list[int], granted: bool
) -> None:
    """If the logs have last entries with different terms, then the log with the later term is more
    up-to-date. If the logs end with the same term, then whichever log is longer.  For the
    pre-vote the same.
    """
    for kind in (Kind.VOTE, Kind.PRE_VOTE):
        core = raft(terms=mine, term=3)
        core.step(Message(kind, "2", "1", 4, len(theirs), theirs[-1] if theirs else 0))
        reply = drive(core).one
        assert reply.kind == kind + 1
        assert reply.reject is not granted


def test_5_4_2_entries_of_earlier_terms_are_not_committed_by_counting() -> None:
    """Raft never commits log entries from previous terms by counting replicas. Only log entries from
    the leader's current term are committed by counting replicas.  (Figure 3.7, 8 in the paper.)
    """
    core = raft(voters="12345", terms=[1, 2], term=3)
    core = leader(core)
    assert core.term == 4
    ack(core, "2", "3", index=2)
    assert core.log.commit == 0, "entry 2 is on a majority and may still be overwritten"
    ack(core, "2", "3", index=3)
    assert core.log.commit == 3, "with an entry of the leader's own term, all before it"


def test_5_4_2_a_new_leader_commits_an_entry_of_its_own_at_once() -> None:
    """The leader ... needs to commit an entry from its term (6.4): a blank one, without a client."""
    core = leader(raft(terms=[1, 1]))
    assert core.log.entries_from(3, 1000) == ((2, EntryKind.EMPTY, b""),)
    ack(core, "3")
    assert core.log.commit == 3


# -- 3.10: leadership transfer ---------------------------------------------------------------------


def test_3_10_leadership_goes_to_a_peer_that_is_up_to_date() -> None:
    """The prior leader sends a TimeoutNow request: the target stands at once, in the next term,
    although everybody hears the old leader.
    """
    net = Network.of(3)
    lead = net.elect("1")
    lead.propose([b"a"])
    net.settle()
    term = lead.term
    lead.transfer("3")
    net.settle()
    assert net.leaders == ["3"]
    assert net.cores["3"].term == term + 1
    assert lead.leader == "3"


def test_3_10_a_target_that_lags_is_caught_up_first() -> None:
    """The prior leader fully updates the target server's log to match its own log."""
    net = Network.of(3)
    lead = net.elect("1")
    net.isolate("3")
    lead.propose([b"a", b"b"])
    net.settle()
    net.heal()
    lead.transfer("3")
    net.tick(2, "1")
    assert net.leaders == ["3"]
    assert net.cores["3"].log.entries_from(2, 1000)[:2] == (entry(1, b"a"), entry(1, b"b"))


def test_3_10_no_proposals_meanwhile_and_an_end() -> None:
    """The prior leader stops accepting new client requests; if leadership transfer does not
    complete after about an election timeout, the prior leader aborts the transfer.
    """
    core = leader(raft())
    ack(core, "2", "3")
    drive(core)
    core.transfer("2")
    assert [m.to for m in drive(core).kinds(Kind.TIMEOUT_NOW)] == ["2"]
    with pytest.raises(ProposalDroppedError, match="handed over"):
        core.propose([b"a"])
    for _ in range(ELECTION):
        core.tick()
        for peer in "23":
            core.step(Message(Kind.HEARTBEAT_REPLY, peer, "1", core.term))
    assert core.role is Role.LEADER
    assert core.propose([b"a"]) == 2


@pytest.mark.parametrize("target", ["1", "4", "9", ""], ids=["itself", "a learner", "a stranger", "nobody"])
def test_3_10_only_to_another_voter(target: str) -> None:
    """Anything else is passed over and holds up nothing."""
    core = leader(raft(learners="4"))
    core.transfer(target)
    assert drive(core).kinds(Kind.TIMEOUT_NOW) == []
    assert core.propose([b"a"]) == 2


# -- 4: membership ---------------------------------------------------------------------------------


def change(net: Network, lead: Raft, config: Config) -> None:
    """Propose a configuration and let it go through."""
    lead.propose_config(config)
    net.settle()
    net.tick(2, lead.id)


def config_entry(term: int, config: Config) -> Entry:
    """An entry that changes the members."""
    return (term, EntryKind.CONFIG, encode(config.dump()))


def test_4_1_the_latest_configuration_in_the_log_is_in_force() -> None:
    """Committed or not: a server uses it from the moment it is in its log."""
    wide = Config(frozenset("12345"))
    core = follower(terms=[1])
    core.step(Message(Kind.APPEND, "2", "1", 1, 1, 1, entries=(config_entry(1, wide), entry(1))))
    assert core.log.commit == 0
    assert core.config == wide
    candidate(core)
    drive(core)
    core.step(Message(Kind.VOTE_REPLY, "2", "1", core.term))
    assert not core.progress, "two of five are no majority"
    core.step(Message(Kind.VOTE_REPLY, "5", "1", core.term))
    assert core.role is Role.LEADER


def test_4_1_a_configuration_that_is_cut_from_the_log_is_no_longer_in_force() -> None:
    """The server falls back to the one before it, of the log or of the snapshot."""
    one, two, three = Config(frozenset("123")), Config(frozenset("1234")), Config(frozenset("12345"))
    core = follower(term=1)
    core.step(
        Message(Kind.APPEND, "2", "1", 1, entries=(config_entry(1, two), entry(1), config_entry(1, three)))
    )
    assert core.config == three
    core.step(Message(Kind.APPEND, "3", "1", 2, 2, 1, entries=(entry(2),)))
    assert (log_terms(core), core.config) == ([1, 1, 2], two)
    core.step(Message(Kind.APPEND, "3", "1", 3, 0, 0, entries=(entry(3),)))
    assert (log_terms(core), core.config) == ([3], one)


def test_4_1_a_restarted_server_uses_the_configuration_in_its_log() -> None:
    """Not the one of its snapshot, which may be from before many changes."""
    now = Config(frozenset("145"))
    log = RaftLog(7, 1, [entry(1), config_entry(1, now), entry(1)])
    core = Raft("1", Config(frozenset("123")), log, HardState(1, ""), lambda n: 0, SETTINGS)
    assert core.config == now
    candidate(core)
    assert {m.to for m in drive(core).kinds(Kind.VOTE)} == {"4", "5"}


def test_4_1_a_snapshot_carries_the_configuration_of_its_index() -> None:
    """Not one that is in the log above it and may be cut yet; also after entries were compacted."""
    configs = [Config(frozenset("123")), Config(frozenset("1234")), Config(frozenset("12345"))]
    core = follower(term=1)
    entries = (entry(1), config_entry(1, configs[1]), entry(1), config_entry(1, configs[2]), entry(1))
    core.step(Message(Kind.APPEND, "2", "1", 1, 0, 0, 3, entries))
    drive(core)
    assert core.config == configs[2]
    assert [core.config_at(index) for index in range(6)] == [
        configs[0], configs[0], configs[1], configs[1], configs[2], configs[2],
    ]  # fmt: skip
    core.log.compact(3, 1)
    assert [core.config_at(index) for index in (3, 4)] == configs[1:]


def test_4_1_an_installed_snapshot_brings_its_configuration() -> None:
    """One in the log behind it stays in force if the log goes on from the snapshot, and only then."""
    own, sent = Config(frozenset("1234")), Config(frozenset("12345"))
    core = follower(terms=[1, 1, 1], term=1)
    core.step(Message(Kind.APPEND, "2", "1", 1, 3, 1, entries=(config_entry(1, own),)))
    drive(core)
    core.restored(2, 1, sent, "2")
    assert core.config == own
    core.restored(9, 1, sent, "2")
    assert core.config == sent
    assert core.config_at(9) == sent


def test_4_2_1_a_learner_gets_the_log_and_has_no_say() -> None:
    """New servers ... as non-voting members: replicated to, not counted, never standing."""
    net = Network.of(3)
    lead = net.elect("1")
    learner = raft("4", [])
    net.cores["4"] = learner
    net.applied["4"], net.reads["4"] = [], []
    change(net, lead, Config(frozenset("123"), frozenset("4")))
    lead.propose([b"a"])
    net.settle()
    net.tick(1, "1")
    assert net.commands("4") == [b"a"]
    net.isolate("2")
    net.isolate("3")
    lead.propose([b"b"])
    net.settle()
    assert net.commands("1") == [b"a"], "leader and learner are no majority of three"
    ticks(learner, 10 * ELECTION)
    assert drive(learner).messages == []


def test_4_2_2_a_leader_that_is_removed_steps_down_once_it_is_committed() -> None:
    """A leader that is removed from the configuration steps down once the Cnew entry is committed.

    Until then it leads, and does not count itself.
    """
    net = Network.of(3)
    lead = net.elect("1")
    change(net, lead, Config(frozenset("23")))
    assert lead.role is Role.FOLLOWER
    assert lead.config == Config(frozenset("23"))
    ticks(lead, 10 * ELECTION)
    assert drive(lead).messages == [], "it does not disturb those that are left"
    net.elect("2")
    assert net.leaders == ["2"]


def test_4_3_a_change_of_voters_goes_through_a_joint_configuration() -> None:
    """The cluster first switches to a transitional configuration: Cold,new, then Cnew, by itself."""
    net = Network.of(3)
    for name in "45":
        net.cores[name] = raft(name, [])
        net.applied[name], net.reads[name] = [], []
    lead = net.elect("1")
    change(net, lead, Config(frozenset("145"), info=(("4", ("four", "a", "b")),)))
    seen = [Config.load(decode(data)) for _, (_, kind, data) in net.applied["1"] if kind == EntryKind.CONFIG]
    info = (("4", ("four", "a", "b")),)
    assert seen == [
        Config(frozenset("145"), outgoing=frozenset("123"), info=info),
        Config(frozenset("145"), info=info),
    ]
    assert all(net.cores[name].config == seen[1] for name in "145")
    assert not lead.progress.keys() & set("23")


JOINT: list[tuple[str, bool]] = [
    ("2", False), ("23", False), ("4", False), ("45", False), ("24", False), ("1245", True), ("234", False),
    ("2345", True), ("2346", True), ("2356", True), ("3456", True), ("2456", True), ("456", False),
]  # fmt: skip


@pytest.mark.parametrize(("acks", "enough"), JOINT)
def test_4_3_joint_decisions_need_both_majorities(acks: str, enough: bool) -> None:
    """Agreement (for elections and entry commitment) requires majorities from both the old and new
    configurations.  Here {1,2,3} and {4,5,6}, the leader is 1.
    """
    voters, outgoing = "456", "123"
    assert Config(frozenset(voters), outgoing=frozenset(outgoing)).has_quorum({"1", *acks}) is enough
    core = leader(raft(voters=voters, outgoing=outgoing))
    drive(core)
    ack(core, *(peer for peer in acks if peer != "1"))
    assert (core.log.commit == 1) is enough
    stands = candidate(raft(voters=voters, outgoing=outgoing))
    drive(stands)
    for peer in acks:
        stands.step(Message(Kind.VOTE_REPLY, peer, "1", stands.term))
    assert (stands.role is Role.LEADER) is enough


def test_4_3_one_change_at_a_time() -> None:
    """A second change is refused until the first is through; so is one without voters, or elsewhere."""
    net = Network.of(3)
    lead = net.elect("1")
    lead.propose_config(Config(frozenset("12")))
    with pytest.raises(ProposalDroppedError, match="another membership change is under way"):
        lead.propose_config(Config(frozenset("13")))
    net.settle()
    net.tick(2, "1")
    with pytest.raises(ProposalDroppedError, match="at least one voter"):
        lead.propose_config(Config(frozenset()))
    with pytest.raises(NotLeaderError):
        net.cores["2"].propose_config(Config(frozenset("12")))
    change(net, lead, Config(frozenset("123")))
    assert lead.config == Config(frozenset("123"))


def test_4_3_a_new_leader_finishes_the_change() -> None:
    """The leader crashes in the joint configuration: the next one leaves it."""
    net = Network.of(3)
    net.cores["4"] = raft("4", [])
    net.applied["4"], net.reads["4"] = [], []
    lead = net.elect("1")
    lead.propose_config(Config(frozenset("234")))
    joint = lead.log.last_index
    net.lose = lambda m: m.kind == Kind.APPEND and len(m.entries) > 0 and m.index >= joint
    net.settle()
    net.tick(1, "1")
    assert net.cores["2"].config.outgoing == frozenset("123"), "joint there too, and no further"
    net.heal()
    net.isolate("1")
    net.elect("2")
    net.tick(3)
    assert all(net.cores[name].config == Config(frozenset("234")) for name in "234")


def test_4_3_leaving_a_joint_configuration_is_never_refused_for_lack_of_room() -> None:
    """The limit on uncommitted bytes is for clients; the second half of a change must get through."""
    small = Settings(heartbeat_ticks=1, election_ticks=10, uncommitted_bytes_max=100)
    core = leader(raft(voters="12", outgoing="123", settings=small))
    core.propose([b"x" * 500])
    drive(core)
    ack(core, "2", "3", index=1)
    drive(core)
    ack(core, "2", "3")
    drive(core)
    assert core.config == Config(frozenset("12"))


def test_4_3_replacing_a_voter_is_one_step() -> None:
    """Remove 3 and add 4 at once: never a configuration of two or four."""
    net = Network.of(3)
    net.cores["4"] = raft("4", [])
    net.applied["4"], net.reads["4"] = [], []
    lead = net.elect("1")
    change(net, lead, Config(frozenset("124")))
    assert lead.config.voters == frozenset("124")
    net.isolate("2")
    lead.propose([b"a"])
    net.settle()
    net.tick(1, "1")
    assert net.commands("1") == net.commands("4") == [b"a"], "4 is a voter: with the leader a majority"


# -- 6.4: linearizable reads -----------------------------------------------------------------------


def beat_replies(core: Raft, messages: list[Message], *peers: str) -> None:
    """Some followers answer heartbeats."""
    for m in messages:
        if m.kind == Kind.HEARTBEAT and m.to in peers:
            core.step(Message(Kind.HEARTBEAT_REPLY, m.to, core.id, core.term, context=m.context))


def established(**options: object) -> Raft:
    """A leader whose first entry is committed."""
    core = leader(raft(**options))  # type: ignore[arg-type]
    ack(core, *sorted(core.config.voters - {core.id}))
    drive(core)
    return core


def test_6_4_a_read_waits_for_a_round_of_heartbeats() -> None:
    """The leader issues a new round of heartbeats and waits for their acknowledgments from a majority
    of the cluster, so it was still the leader when the read began.
    """
    core = established()
    core.read(7)
    beats = drive(core)
    assert beats.reads == []
    assert {m.to for m in beats.kinds(Kind.HEARTBEAT)} == {"2", "3"}
    beat_replies(core, beats.messages, "3")
    assert drive(core).reads == [(7, core.log.commit)]


def test_6_4_acknowledgements_from_before_the_read_do_not_count() -> None:
    """Only answers to heartbeats of this round prove anything."""
    core = established()
    ticks(core, 1)
    old = drive(core).messages
    core.read(7)
    fresh = drive(core).messages
    beat_replies(core, old, "2", "3")
    assert drive(core).reads == []
    core.read(8)
    beat_replies(core, fresh, "2")
    assert drive(core).reads == [(7, 1)], "8 came after that round had begun"


def test_6_4_a_late_acknowledgement_of_an_earlier_round_does_not_count() -> None:
    """It proves that this was the leader then, not now."""
    core = established()
    core.read(1)
    first = drive(core).messages
    beat_replies(core, first, "2")
    assert drive(core).reads == [(1, 1)]
    core.read(2)
    drive(core)
    beat_replies(core, first, "3")
    assert drive(core).reads == []


def test_6_4_who_confirmed_last_is_asked_alone_and_the_others_a_tick_later() -> None:
    """A majority is enough; one that falls silent costs a tick, not the read."""
    core = leader(raft(settings=Settings(heartbeat_ticks=4, election_ticks=20)))
    ack(core, "2", "3")
    core.read(1)
    beat_replies(core, drive(core).messages, "3")
    assert drive(core).reads == [(1, 1)]
    core.read(2)
    beats = drive(core).kinds(Kind.HEARTBEAT)
    assert {m.to for m in beats} == {"3"}
    ticks(core, 1)
    others = drive(core).kinds(Kind.HEARTBEAT)
    assert {m.to for m in others} == {"2"}
    ticks(core, 1)
    assert drive(core).kinds(Kind.HEARTBEAT) == [], "they were all asked"
    beat_replies(core, others, "2")
    assert drive(core).reads == [(2, 1)]
    core.read(3)
    assert {m.to for m in drive(core).kinds(Kind.HEARTBEAT)} == {"2"}, "who was quick this time"


def test_6_4_those_who_were_quick_are_no_majority_of_other_members() -> None:
    """After a change of members everybody is asked again."""
    core = established(voters="12345")
    core.read(1)
    beat_replies(core, drive(core).messages, "2", "3")
    assert drive(core).reads == [(1, 1)]
    core.config = Config(frozenset("13456"))
    for peer in "6":
        core.progress[peer] = Progress(1)
    core.read(2)
    assert {m.to for m in drive(core).kinds(Kind.HEARTBEAT)} == set(core.progress)


def test_6_4_the_point_of_a_read_is_the_commit_index_when_it_began() -> None:
    """The leader saves its current commit index: what is committed during the round is not needed."""
    core = established()
    core.propose([b"a"])
    drive(core)
    core.read(1)
    beats = drive(core).messages
    ack(core, "2", "3")
    assert core.log.commit == 2
    beat_replies(core, beats, "2")
    assert (1, 1) in drive(core).reads


def test_6_4_no_read_before_an_entry_of_this_term_is_committed() -> None:
    """If the leader has not yet marked an entry from its current term committed, it waits until it
    has done so.
    """
    core = leader(raft(terms=[1]))
    core.read(7)
    beats = drive(core)
    ticks(core, 1)
    beats.messages += drive(core).messages
    beat_replies(core, beats.messages, "2", "3")
    assert drive(core).reads == []
    ack(core, "2")
    beats = drive(core)
    beat_replies(core, beats.messages, "2")
    assert drive(core).reads == [(7, 2)]


def test_6_4_one_round_serves_all_reads_that_wait() -> None:
    """A thousand reads during a round cost one more round."""
    core = established()
    core.read(0)
    first = drive(core).messages
    for context in range(1, 1001):
        core.read(context)
    assert drive(core).kinds(Kind.HEARTBEAT) == []
    beat_replies(core, first, "2")
    second = drive(core)
    assert second.reads == [(0, 1)]
    assert len(second.kinds(Kind.HEARTBEAT)) == 1, "one round, of those who are quick"
    beat_replies(core, second.messages, "2")
    assert [context for context, _ in drive(core).reads] == list(range(1, 1001))


def test_6_4_a_round_whose_heartbeats_were_lost_is_finished_by_later_ones() -> None:
    """The context rides on every heartbeat until the round is done."""
    core = established()
    core.read(7)
    drive(core)
    ticks(core, 1)
    beat_replies(core, drive(core).messages, "2")
    assert drive(core).reads == [(7, 1)]


def test_6_4_a_deposed_leader_serves_no_read() -> None:
    """The new leader may have committed more: the old one's round never finishes."""
    net = Network.of(3)
    old = net.elect("1")
    net.isolate("1")
    old.read(7)
    net.settle()
    new = net.elect("2")
    new.propose([b"a"])
    net.settle()
    net.tick(3)
    net.heal()
    net.tick(3)
    assert net.reads["1"] == []
    assert old.role is Role.FOLLOWER
    with pytest.raises(NotLeaderError) as caught:
        old.read(8)
    assert caught.value.leader == "2"


def test_6_4_learners_do_not_confirm_reads_and_a_single_voter_needs_nobody() -> None:
    """The quorum is of voters."""
    core = established(learners="45")
    core.read(7)
    beats = drive(core).messages
    beat_replies(core, beats, "4", "5")
    assert drive(core).reads == []
    beat_replies(core, beats, "2")
    assert drive(core).reads == [(7, 1)]
    alone = established(voters="1")
    alone.read(7)
    assert drive(alone).reads == [(7, 1)]


# -- 9.6: PreVote and CheckQuorum ------------------------------------------------------------------


def test_9_6_a_peer_that_was_cut_off_does_not_disturb() -> None:
    """A partitioned server will not be able to increase its term, since it can't receive permission
    from a majority of the cluster.  It comes back as a follower of the same leader.
    """
    net = Network.of(3)
    lead = net.elect("1")
    term = lead.term
    net.isolate("3")
    net.tick(10 * ELECTION)
    assert net.cores["3"].term == term
    net.heal()
    net.tick(3)
    assert net.leaders == ["1"]
    assert lead.term == term
    assert net.cores["3"].leader == "1"


def test_9_6_a_pre_vote_changes_nothing_at_those_that_grant_it() -> None:
    """Neither term nor vote, however many ask; nothing is written."""
    core = raft(term=3)
    for peer in ("2", "3", "2"):
        core.step(Message(Kind.PRE_VOTE, peer, "1", 4))
    done = drive(core)
    assert [(m.kind, m.to, m.term, m.reject) for m in done.messages] == [
        (Kind.PRE_VOTE_REPLY, peer, 4, False) for peer in ("2", "3", "2")
    ]
    assert (core.term, core.vote) == (3, "")
    assert all(ready.hard_state is None for ready in done.readies)


@pytest.mark.parametrize("kind", [Kind.VOTE, Kind.PRE_VOTE])
def test_9_6_whoever_hears_a_leader_grants_nothing(kind: Kind) -> None:
    """Servers do not grant their votes ... if they have received a heartbeat from a valid leader:
    until an election time has passed; the term in the request does not count either.
    """
    core = follower(term=1)
    ticks(core, ELECTION - 1)
    core.step(Message(kind, "3", "1", 9, 5, 5))
    assert drive(core).messages == []
    assert core.term == 1
    lead = leader(raft())
    ticks(lead, ELECTION - 1)
    lead.step(Message(kind, "3", "1", 9, 5, 5))
    assert (lead.role, lead.term) == (Role.LEADER, 1)


def test_9_6_a_pre_vote_that_is_refused_by_a_majority_is_given_up() -> None:
    """And a refusal from a higher term brings that term."""
    core = raft()
    ticks(core, ELECTION)
    drive(core)
    core.step(Message(Kind.PRE_VOTE_REPLY, "2", "1", 0, reject=True))
    assert core.role is Role.PRE_CANDIDATE
    core.step(Message(Kind.PRE_VOTE_REPLY, "3", "1", 0, reject=True))
    assert (core.role, core.term) == (Role.FOLLOWER, 0)
    ticks(core, ELECTION)
    drive(core)
    core.step(Message(Kind.PRE_VOTE_REPLY, "2", "1", 6, reject=True))
    assert (core.role, core.term) == (Role.FOLLOWER, 6)


def test_9_6_a_leader_without_a_quorum_steps_down() -> None:
    """6.2: a leader steps down if an election timeout elapses without a successful round of
    heartbeats to a majority of its cluster; with one it stays.
    """
    for answering, role in (
        ("", Role.FOLLOWER),
        ("2", Role.FOLLOWER),
        ("23", Role.LEADER),
        ("67", Role.FOLLOWER),
    ):
        core = established(voters="12345", learners="67")
        for _ in range(2 * ELECTION):
            core.tick()
            for peer in answering:
                core.step(Message(Kind.HEARTBEAT_REPLY, peer, "1", 1))
            drive(core)
        assert core.role is role, answering


def test_9_6_a_leader_that_is_cut_off_is_replaced_and_its_writes_with_it() -> None:
    """What it took meanwhile was never committed; afterwards all logs are the new leader's."""
    net = Network.of(3)
    old = net.elect("1")
    net.isolate("1")
    old.propose([b"never acknowledged"])
    net.settle()
    net.tick(3 * ELECTION)
    [new] = net.leaders
    assert new != "1"
    assert old.role is not Role.LEADER
    net.cores[new].propose([b"acknowledged"])
    net.settle()
    net.heal()
    net.tick(3)
    assert net.commands("1") == net.commands("2") == net.commands("3") == [b"acknowledged"]


# -- flow control (etcd-io/raft's probe, replicate, snapshot) --------------------------------------


def appends(core: Raft, peer: str) -> list[Message]:
    """Drive, and give the append messages with entries to one peer."""
    return [m for m in drive(core).kinds(Kind.APPEND) if m.to == peer and m.entries]


def test_flow_a_new_leader_probes_each_follower_with_one_message() -> None:
    """Until a follower has answered nothing more is sent to it, whatever is proposed."""
    core = candidate(raft())
    drive(core)
    core.step(Message(Kind.VOTE_REPLY, "2", "1", core.term))
    assert len(appends(core, "2")) == 1
    for _ in range(5):
        core.propose([b"a"])
        assert appends(core, "2") == []
    ack(core, "2", index=1)
    [rest] = appends(core, "2")
    assert (rest.index, len(rest.entries)) == (1, 5)


def test_flow_appends_are_pipelined_up_to_the_limit() -> None:
    """Several in flight without waiting, then none; each acknowledgement makes room for one."""
    limited = Settings(heartbeat_ticks=1, election_ticks=10, inflight_appends_max=3)
    core = established(settings=limited)
    sent = []
    for number in range(6):
        core.propose([b"%d" % number])
        sent += appends(core, "2")
    assert [m.index for m in sent] == [1, 2, 3]
    ack(core, "2", index=2)
    assert [(m.index, len(m.entries)) for m in appends(core, "2")] == [(4, 3)]
    ack(core, "2", index=7)
    core.propose([b"more"])
    assert [m.index for m in appends(core, "2")] == [7]


def test_flow_messages_are_bounded_in_bytes() -> None:
    """A large backlog goes in pieces; one entry larger than a piece goes alone."""
    limited = Settings(heartbeat_ticks=1, election_ticks=10, append_bytes_max=100, inflight_appends_max=50)
    core = established(settings=limited)
    core.propose([b"x" * size for size in (40, 40, 40, 500, 10, 10)])
    sent = appends(core, "2")
    assert [[len(data) for _, _, data in m.entries] for m in sent] == [[40, 40], [40], [500], [10, 10]]


def test_flow_a_refusal_goes_back_to_probing_at_the_right_place() -> None:
    """A gap in the pipeline: one message from where the logs agree, then on at full speed."""
    core = established()
    for number in range(2):
        core.propose([b"%d" % number])
    drive(core)
    core.step(Message(Kind.APPEND_REPLY, "2", "1", 1, index=2, reject=True, hint=1, log_term=1))
    [probe] = appends(core, "2")
    assert (probe.index, len(probe.entries)) == (1, 2)
    core.propose([b"2"])
    assert appends(core, "2") == []
    ack(core, "2", index=3)
    assert [m.index for m in appends(core, "2")] == [3]


def test_flow_an_old_refusal_is_passed_over() -> None:
    """One that speaks of what has been acknowledged since."""
    core = established()
    core.propose([b"a"])
    drive(core)
    ack(core, "2", index=2)
    core.step(Message(Kind.APPEND_REPLY, "2", "1", 1, index=1, reject=True, hint=0))
    assert appends(core, "2") == []
    assert (core.progress["2"].match, core.progress["2"].state) == (2, "replicate")


def test_flow_lost_appends_are_sent_again_after_a_heartbeat() -> None:
    """All messages in flight are lost: heartbeats find the gap and it is closed."""
    net = Network.of(3)
    lead = net.elect("1")
    net.lose = lambda m: m.kind == Kind.APPEND and m.to == "3"
    for number in range(10):
        lead.propose([b"%d" % number])
        net.settle()
    net.heal()
    net.tick(4, "1")
    assert net.commands("3") == [b"%d" % number for number in range(10)]


def test_flow_a_commit_reaches_followers_without_waiting_for_a_heartbeat() -> None:
    """A client of a follower waits for the follower to apply: the news must not wait for a tick."""
    net = Network.of(3)
    lead = net.elect("1")
    net.tick(1)
    lead.propose([b"a"])
    net.settle()
    assert net.commands("1") == [b"a"]
    assert net.commands("2") == [b"a"]


def test_flow_uncommitted_bytes_are_bounded() -> None:
    """Beyond the limit proposals are dropped by its name; one is always taken; commits make room."""
    limited = Settings(heartbeat_ticks=1, election_ticks=10, uncommitted_bytes_max=100)
    core = established(settings=limited)
    assert core.propose([b"x" * 500]) == 2
    with pytest.raises(ProposalDroppedError, match="uncommitted_bytes_max: 100"):
        core.propose([b"y"])
    assert core.log.last_index == 2
    drive(core)
    ack(core, "2")
    assert core.propose([b"y"]) == 3


def test_flow_committed_entries_are_handed_out_in_pieces() -> None:
    """A long catch-up does not come in one lump, and nothing is handed out twice."""
    limited = Settings(heartbeat_ticks=1, election_ticks=10, apply_bytes_max=100)
    core = follower(settings=limited)
    entries = tuple(entry(1, b"x" * 40) for _ in range(7))
    core.step(Message(Kind.APPEND, "2", "1", 1, 0, 0, 7, entries))
    done = drive(core)
    assert [index for index, _ in done.applied] == list(range(1, 8))
    assert max(len(ready.committed) for ready in done.readies) == 2


def snapshotted() -> Raft:
    """A leader whose log begins behind index 5."""
    log = RaftLog(5, 1, [entry(1)])
    core = Raft("1", Config(frozenset("123")), log, HardState(1, ""), lambda n: 0, SETTINGS)
    leader(core)
    ack(core, "2")
    drive(core)
    return core


def test_flow_a_follower_behind_the_log_gets_a_snapshot() -> None:
    """Once; meanwhile nothing else is sent to it; afterwards it goes on behind the snapshot."""
    core = snapshotted()
    core.step(Message(Kind.APPEND_REPLY, "3", "1", core.term, index=6, reject=True, hint=2, log_term=0))
    assert drive(core).snapshots == ["3"]
    core.propose([b"a"])
    core.step(Message(Kind.HEARTBEAT_REPLY, "3", "1", core.term))
    done = drive(core)
    assert done.snapshots == []
    assert [m for m in done.kinds(Kind.APPEND) if m.to == "3"] == []
    core.snapshot_sent("3", 6, ok=True)
    [m] = appends(core, "3")
    assert m.index == 6


def test_flow_a_snapshot_that_failed_is_tried_again_after_a_heartbeat() -> None:
    """Not at once, and not never."""
    core = snapshotted()
    core.step(Message(Kind.APPEND_REPLY, "3", "1", core.term, index=6, reject=True, hint=0, log_term=0))
    drive(core)
    core.snapshot_sent("3", 6, ok=False)
    assert drive(core).snapshots == []
    core.step(Message(Kind.HEARTBEAT_REPLY, "3", "1", core.term))
    assert drive(core).snapshots == ["3"]


def test_flow_a_restored_peer_goes_on_behind_its_snapshot() -> None:
    """It acknowledges the snapshot's index and applies nothing that is in it."""
    core = follower(term=3, terms=[1, 1])
    core.restored(10, 3, Config(frozenset("123")), "2")
    [reply] = drive(core).messages
    assert (reply.kind, reply.to, reply.index) == (Kind.APPEND_REPLY, "2", 10)
    core.step(Message(Kind.APPEND, "2", "1", 3, 10, 3, 11, (entry(3, b"next"),)))
    assert drive(core).applied == [(11, entry(3, b"next"))]


# -- the contract with the actor -------------------------------------------------------------------


def test_ready_hands_out_everything_once() -> None:
    """A second call gives nothing, and ``has_ready`` says so."""
    core = leader(raft())
    core.propose([b"a"])
    core.read(1)
    first = core.ready()
    assert first.entries
    assert first.after_sync
    assert not core.has_ready
    second = core.ready()
    assert (second.entries, second.messages, second.after_sync, second.hard_state) == ([], [], [], None)


def test_a_follower_takes_no_proposals() -> None:
    """It says who leads."""
    with pytest.raises(NotLeaderError) as caught:
        follower().propose([b"a"])
    assert caught.value.leader == "2"
    with pytest.raises(NotLeaderError):
        raft().propose([b"a"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [({"heartbeat_ticks": 0}, "heartbeat_ticks must be at least 1"),
     ({"heartbeat_ticks": 3, "election_ticks": 14},
      "election_ticks must be at least 5 times heartbeat_ticks"),
     ({"inflight_appends_max": 0}, "inflight_appends_max and append_bytes_max must be at least 1"),
     ({"append_bytes_max": 0}, "inflight_appends_max and append_bytes_max must be at least 1")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(values: dict[str, int], sentence: str) -> None:
    """In a sentence that names them."""
    with pytest.raises(ValueError, match=sentence):
        raft(settings=Settings(**values))


def test_configurations_come_back_from_their_plain_form() -> None:
    """As they are in entries and snapshots."""
    config = Config(frozenset("12"), frozenset("3"), frozenset("14"), (("1", ("one", "addr", "url")),))
    assert Config.load(list(config.dump())) == config
    assert config.everyone == frozenset("1234")


@pytest.mark.parametrize("seed", range(10))
def test_commands_are_applied_in_one_order_whatever_is_lost(seed: int) -> None:
    """State machine safety (5.4.3) on a lossy network with elections: equal prefixes everywhere."""
    rng = random.Random(seed)
    net = Network.of(5)
    number = 0
    for _ in range(150):
        net.lose = lambda _: rng.random() < 0.2
        net.tick(1, *[name for name in net.cores if rng.random() < 0.9])
        for name in net.leaders:
            number += 1
            try:
                net.cores[name].propose([b"%d" % number])
            except ProposalDroppedError:
                pass
        if rng.random() < 0.03:
            net.cut.clear()
            net.isolate(*rng.sample(sorted(net.cores), rng.randint(0, 2)))
    net.heal()
    net.tick(4 * ELECTION)
    histories = [net.applied[name] for name in sorted(net.cores)]
    assert all(history == histories[0] for history in histories)
    applied: list[Entry] = [item for _, item in histories[0]]
    assert [index for index, _ in histories[0]] == list(range(1, len(applied) + 1))
    assert max(Counter(net.commands("1")).values()) == 1, "no command twice"
    assert len(net.commands("1")) > 20


# -- a lost link -----------------------------------------------------------------------------------


def test_a_follower_that_loses_its_leader_stands_within_a_few_ticks() -> None:
    """A process that died takes its connections with it: nobody waits out the whole timeout."""
    core = follower(term=2)
    core.unreachable("3")
    ticks(core, SETTINGS.lost_link_ticks)
    assert core.role is Role.FOLLOWER, "another peer's link says nothing of the leader"
    core.unreachable("2")
    ticks(core, SETTINGS.lost_link_ticks)
    assert core.role is Role.PRE_CANDIDATE


def test_a_cut_link_disturbs_nobody_who_hears_the_leader() -> None:
    """Only those who have lost it themselves grant the pre-vote; one heartbeat ends the doubt."""
    core = follower(term=2)
    asked = Message(Kind.PRE_VOTE, "3", "1", 3, index=9, log_term=9)
    core.step(asked)
    assert not drive(core).messages
    core.unreachable("2")
    core.step(asked)
    assert [(m.kind, m.reject) for m in drive(core).messages] == [(Kind.PRE_VOTE_REPLY, False)]
    core.step(Message(Kind.HEARTBEAT, "2", "1", 2))
    drive(core)
    core.step(asked)
    assert not drive(core).messages
