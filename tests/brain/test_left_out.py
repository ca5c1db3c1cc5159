"""A machine that was taken out of the cluster learns it, though nobody sends it the log any more."""

from __future__ import annotations

import pytest

from actors.membership import ALONE_S, RemovedError
from actors.raft_messages import ChangeConfig
from brain.raft import Config

from .peers import Cluster


@pytest.mark.parametrize("kind", ["voter", "learner"])
def test_a_machine_that_was_removed_ends_and_says_why(kind: str) -> None:
    """Also one that heard nothing of it because it was cut off then."""
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: cluster.raft("a") is not None, "a starts")
        cluster.leader()
        cluster.change("add_learner", "d", lambda config: "d" in config.learners)
        gone = "c" if kind == "voter" else "d"
        cluster.world.run(1)
        cluster.cut_off(gone)
        cluster.change("remove", gone, lambda config: gone not in config.everyone)
        cluster.world.cut = set()
        cluster.world.run(ALONE_S * 3)
        error = cluster.machines[gone].host.fatal[0]
        assert isinstance(error, RemovedError) and "was removed from the cluster" in str(error)
        assert not any(cluster.machines[name].host.fatal for name in "ab")


def test_a_member_without_a_leader_is_not_told_that_it_was_removed() -> None:
    """Not without a quorum, not by a leader of the past, and not while it is a member."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        others = [name for name in "abc" if name != leader]
        cluster.world.run(1)
        cluster.world.cut = {(a, b) for a in "abc" for b in "abc" if a != b}
        # the old leader believes, in an entry that it cannot decide, that nobody else takes part
        cluster.ref(leader).ask(ChangeConfig("remove", others[0]), block=False)
        cluster.world.run(0.2)
        assert others[0] not in cluster.raft(leader).config.voters
        cluster.world.cut = {(a, b) for a in "abc" for b in "abc" if a != b and leader in (a, b)} - {
            (others[0], leader), (leader, others[0])
        }  # fmt: skip
        cluster.world.run(ALONE_S * 4)
        assert not any(cluster.machines[name].host.fatal for name in "abc")
        cluster.world.cut = set()
        cluster.world.run(ALONE_S * 3)  # now it can be decided, one way or the other
        left = cluster.raft(cluster.leader()).config.everyone
        assert {name for name in "abc" if cluster.machines[name].host.fatal} == set("abc") - left


def test_a_leader_that_removes_itself_learns_it() -> None:
    """It has the entry that says so; what it lacks is a leader."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        cluster.world.run(1)
        cluster.ref(leader).ask(ChangeConfig("remove", leader), block=False)
        cluster.world.run(ALONE_S * 3)
        assert isinstance(cluster.machines[leader].host.fatal[0], RemovedError)
        assert not any(cluster.machines[name].host.fatal for name in set("abc") - {leader})


def test_the_founder_of_a_cluster_of_one_asks_nobody() -> None:
    """There is nobody else who could know."""
    cluster = Cluster("a")
    with cluster.world:
        cluster.until(lambda: cluster.leads("a"), "a leads")
        cluster.world.run(ALONE_S * 3)
        assert cluster.raft("a").config == Config(frozenset("a"), info=cluster.raft("a").config.info)
        assert not cluster.machines["a"].host.fatal
