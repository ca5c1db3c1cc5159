"""A voter that restarts after a change of members must not fall back to the members before it."""

from __future__ import annotations

from actors.raft_messages import Propose, TransferLeadership
from brain.codec import encode
from brain.raft import Config, HardState, Raft, Role
from brain.raftlog import EntryKind, RaftLog

from . import rafts
from .peers import Cluster


def test_a_restarted_voter_does_not_elect_with_those_that_were_removed() -> None:
    """c was replaced by d; then a and d are cut off from b and c, and b restarts.

    a and d are the majority of a, b, d.  If b went back to a, b, c it would win with the
    removed c's vote: two leaders would commit different entries at the same index.
    """
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        for name in "bc":
            if cluster.leads(name):
                cluster.ref(name).tell(TransferLeadership("a"))
        cluster.until(lambda: cluster.leads("a"), "a does not lead")
        cluster.change("add_learner", "d", lambda config: "d" in config.learners)
        cluster.change("promote", "d", lambda config: config.voters == frozenset("abcd"))
        cluster.change("remove", "c", lambda config: config.voters == frozenset("abd"))
        cluster.until(lambda: cluster.raft("b").config.voters == frozenset("abd"), "b has not heard")
        cluster.world.run(0.5)
        cluster.world.partition({"a", "d"}, {"b", "c"})
        cluster.machines["b"].crash()
        cluster.machines["b"].start()
        written = cluster.ref("a").ask(Propose(["put", b"k", b"by the majority"], 5.0), block=False)
        for _ in range(30):
            cluster.world.run(0.1)
            assert not cluster.leads("b"), "b was elected by a machine that is no member any more"
            assert not cluster.leads("c")
        assert written.error is None
        cluster.world.heal()
        cluster.world.run(2)
        assert cluster.value("a") == cluster.value("b") == cluster.value("d") == [b"by the majority"]


def test_the_founder_of_a_cluster_does_not_elect_itself_when_it_restarts() -> None:
    """a began alone and was joined by b and c; it restarts while they have a leader.

    If it went back to being alone it would lead at once, by its own vote, perhaps in the
    very term of the other leader.
    """
    cluster = Cluster("a")
    with cluster.world:
        cluster.until(lambda: cluster.leads("a"), "a does not lead")
        for name in "bc":
            cluster.change("add_learner", name, lambda config: bool(config.learners))
            cluster.change("promote", name, lambda config: not config.learners)
        cluster.until(lambda: cluster.raft("b").config.voters == frozenset("abc"), "b has not heard")
        cluster.until(lambda: cluster.raft("c").config.voters == frozenset("abc"), "c has not heard")
        cluster.machines["a"].crash()
        cluster.until(lambda: cluster.leads("b") or cluster.leads("c"), "no new leader")
        leader = "b" if cluster.leads("b") else "c"
        written = cluster.ref(leader).ask(Propose(["put", b"k", b"by the majority"], 5.0), block=False)
        cluster.until(lambda: written.done, "the write hangs")
        assert written.error is None
        cluster.machines["a"].start()
        for _ in range(200):
            cluster.world.run(0.005)
            assert not cluster.leads("a"), "a elected itself"
        cluster.until(lambda: cluster.value("a") == [b"by the majority"], "a has lost the write")


def test_a_removal_of_the_past_deposes_nobody_who_was_added_again() -> None:
    """Both entries are in the log; only the newer one is in force."""
    out, back = Config(frozenset("23")), Config(frozenset("123"))
    log = RaftLog(entries=[
        (1, EntryKind.CONFIG, encode(out.dump())), (1, EntryKind.CONFIG, encode(back.dump())), (1, EntryKind.COMMAND, b"x"),
    ])  # fmt: skip
    core = Raft("1", back, log, HardState(1, ""), lambda n: 0, rafts.SETTINGS)
    rafts.leader(core)
    rafts.ack(core, "2", "3")
    rafts.drive(core)
    assert core.role is Role.LEADER and core.log.applied >= 3
