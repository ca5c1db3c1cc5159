"""What a change of leaders costs those who ask a follower, and who may not lead."""

from __future__ import annotations

from typing import Any

import pytest

from actors.raft_messages import KeepAlive, Propose, Query, Save, SnapshotChunk, TransferLeadership
from actors.raft_peer import PeerSettings
from actors.snapshots import BACKUPS_MAX
from brain.raft import Kind, Message

from .peers import Cluster


def test_nobody_waits_for_the_answer_of_a_leader_that_stands_still() -> None:
    """What was handed to it goes to the next one as soon as that one is known."""
    cluster = Cluster("abc")
    with cluster.world:
        old = cluster.leader()
        cluster.world.run(1)
        follower, other = (name for name in "abc" if name != old)
        cluster.machines[old].pause(20)
        handed = cluster.put(follower, b"k", b"handed to the old one")
        read = cluster.ref(follower).ask(Query(lambda store: store.revision, True), block=False)
        cluster.world.run(0.1)
        cluster.until(lambda: cluster.leads(follower) or cluster.leads(other), "nobody took over")
        elected = cluster.world.now
        behind = [cluster.put(name, b"k", b"later") for name in (follower, other)]
        waiting = [handed, read, *behind]
        cluster.until(lambda: all(future.done for future in waiting), "no answers")
        assert [future.error for future in waiting] == [None] * 4
        assert cluster.world.now - elected < 0.3


def test_a_peer_at_rest_hands_over_what_it_is_elected_to() -> None:
    """It still counts as a voter, and keeps the log; whatever it served would be wrong."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        odd = next(name for name in "abc" if name != leader)
        cluster.world.run(1)
        cluster.peer(odd).rest(1)
        cluster.raft(leader).transfer(odd)
        cluster.peer(leader).kick()
        cluster.until(lambda: cluster.peer(odd).leader_changes > 1, "it was never elected")
        cluster.world.run(2)
        assert not cluster.leads(odd)
        assert cluster.put(leader, b"k").error is None


def test_reads_in_the_round_of_a_leader_that_lost_its_office_are_asked_again() -> None:
    """Of the next leader, as soon as that one is known."""
    cluster = Cluster("abc")
    with cluster.world:
        old = cluster.leader()
        cluster.world.run(1)
        others = [name for name in "abc" if name != old]
        cluster.cut_off(old)
        read = cluster.ref(old).ask(Query(lambda store: store.revision, True, timeout=20.0), block=False)
        cluster.until(lambda: not cluster.leads(old), "it leads without anybody")
        cluster.world.run(2)
        assert not read.done
        cluster.world.cut = set()
        cluster.until(lambda: read.done, "no answer")
        assert read.error is None and cluster.raft(old).leader in others


@pytest.mark.parametrize("seed", range(12))
def test_a_deposed_leader_keeps_no_lease_alive(seed: int) -> None:
    """Its successor ends leases; time that only the old one gave would be given twice."""
    cluster = Cluster("abc", seed=seed)
    with cluster.world:
        old = cluster.leader()
        cluster.world.run(1)
        cluster.ref(old).ask(Propose(["lease_grant", 77, 4000], 5.0), block=False)
        cluster.world.run(0.5)
        rest = [name for name in "abc" if name != old]
        cluster.cut_off(old)
        for name in rest:
            cluster.machines[name].net.link_down(old)  # type: ignore[union-attr]
        cluster.until(lambda: any(cluster.leads(name) for name in rest), "nobody took over")
        cluster.world.run(0.55)  # as late as the old one may still believe to lead
        asked = cluster.world.now
        kept = cluster.ref(old).ask(KeepAlive([77]), block=False)
        cluster.world.run(0.3)
        cluster.world.cut = set()
        cluster.world.run(1.2)
        given = asked + 4.0 if kept.done and kept.error is None and kept.value.get("77") else 0.0
        cut = cluster.world.now
        leader = next(name for name in "abc" if cluster.leads(name))
        cluster.until(lambda: 77 not in cluster.peer(leader).store.leases, "it lives on")
        assert cluster.world.now >= given, f"it ended {given - cluster.world.now:.2f} s early, cut at {cut:.2f}"


@pytest.mark.parametrize("seed", range(8))
def test_what_is_for_one_term_is_of_no_other(seed: int) -> None:
    """The scheduler's writes hold only in the term in which its host led when it decided."""
    cluster = Cluster("abc", seed=seed)
    with cluster.world:
        leader = cluster.leader()
        cluster.world.run(1)
        term = cluster.raft(leader).term
        write = cluster.ref(leader).ask(Propose(["put", b"guarded", b"1", 0], 8.0, term), block=False)
        other = next(name for name in "abc" if name != leader)
        cluster.ref(leader).tell(Message(Kind.VOTE, other, leader, term + 1, 0, 0, context=1))
        cluster.world.run(6)
        log = cluster.raft(leader).log
        terms = {log.term(index) for index, _, data in _commands(log) if b"guarded" in data}
        assert terms <= {term} and write.done


def _commands(log: Any) -> list[tuple[int, int, bytes]]:
    found = log.slice_bounded(log.snapshot_index + 1, log.last_index + 1, 1 << 30)
    return [(index, kind, data) for index, (_, kind, data) in found]


def test_what_was_refused_does_not_stay_queued() -> None:
    """A peer without a leader may be asked for hours."""
    cluster = Cluster("abc")
    with cluster.world:
        away = next(name for name in "abc" if name != cluster.leader())
        cluster.world.run(1)
        cluster.cut_off(away)
        cluster.world.run(3)
        for _ in range(200):
            cluster.put(away, b"k", b"v", 0.05)
        cluster.world.run(1)
        proposals = cluster.peer(away).proposals
        assert not proposals._pending and not proposals._unsent


def test_a_deposed_leader_sends_no_snapshot_in_the_next_term() -> None:
    """It would be taken for that term's leader."""
    cluster = Cluster("abc", settings=PeerSettings(snapshot_entries=20, trailing_entries=5))
    with cluster.world:
        leader = cluster.leader()
        for number in range(60):
            cluster.put(leader, b"%d" % number)
        cluster.world.run(2)
        raft, (first, second) = cluster.raft(leader), [name for name in "abc" if name != leader]
        progress = raft.progress[second]
        progress.match, progress.next, progress.state, progress.probe_sent = 0, 1, "probe", False
        peer, term, chunks = cluster.peer(leader), raft.term, []
        ask = peer.ask_then

        def ask_then(target: Any, message: Any, *rest: Any) -> None:
            if isinstance(message, SnapshotChunk):
                chunks.append((message.leader, message.term))
            ask(target, message, *rest)

        peer.ask_then = ask_then
        cluster.ref(leader).tell(Message(Kind.HEARTBEAT_REPLY, second, leader, raft.term, index=0))
        cluster.ref(leader).tell(Message(Kind.HEARTBEAT, first, leader, raft.term + 1))
        cluster.world.run(0.2)
        assert [sent for sent in chunks if sent[1] != term] == []


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_hand_over_costs_time_and_no_errors(succeeds: bool) -> None:
    """Whether it comes to pass or not: what is written meanwhile waits, and is written once."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        cluster.world.run(1)
        chosen, other = [name for name in "abc" if name != leader]
        if not succeeds:
            cluster.cut_off(chosen)
        cluster.ref(leader).ask(TransferLeadership(chosen), block=False)
        cluster.world.run(0.002)
        writes = [cluster.put(name, b"k", b"v") for name in (leader, other) for _ in range(3)]
        cluster.until(lambda: all(write.done for write in writes), "no answers")
        assert [write.error for write in writes] == [None] * 6
        assert cluster.leads(leader) is not succeeds
        assert cluster.peer(other).store.range(b"k")[0][1].version == 6


def test_so_many_backups_are_made_at_one_time() -> None:
    """Each is held whole; one more is refused, and made when there is a place."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        for number in range(300):
            cluster.put(leader, b"%d" % number, bytes(3000))
        cluster.world.run(2)
        asked = [cluster.ref(leader).ask(Save(), block=False) for _ in range(BACKUPS_MAX + 1)]
        cluster.until(lambda: all(save.done for save in asked), "no answers")
        refused = [save for save in asked if save.error is not None]
        assert len(refused) == 1 and "backups_max" in str(refused[0].error)
        again = cluster.ref(leader).ask(Save(), block=False)
        cluster.until(lambda: again.done, "no answer")
        assert again.error is None
