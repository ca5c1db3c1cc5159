"""What a change of leaders costs those who ask a follower, and who may not lead."""

from __future__ import annotations

from actors.raft_messages import Query

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
        cluster.world.cut = {(a, b) for a in others for b in old} | {(b, a) for a in others for b in old}
        read = cluster.ref(old).ask(Query(lambda store: store.revision, True, timeout=20.0), block=False)
        cluster.until(lambda: not cluster.leads(old), "it leads without anybody")
        cluster.world.run(2)
        assert not read.done
        cluster.world.cut = set()
        cluster.until(lambda: read.done, "no answer")
        assert read.error is None and cluster.raft(old).leader in others
