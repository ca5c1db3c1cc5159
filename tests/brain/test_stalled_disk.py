"""A leader whose disk stands still hands over to one whose disk does not."""

from __future__ import annotations

from actors.raft_messages import Propose, Query

from .peers import Cluster, HeldDisk


def test_a_leader_whose_disk_stalls_hands_over_and_takes_part_again() -> None:
    """Writes go on with the others; when its disk answers, it has everything."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        disk = HeldDisk(cluster, leader)
        put = ["put", b"k", b"during", 0]
        during = cluster.ref(leader).ask(Propose(put, 10.0), block=False)
        others = [name for name in "abc" if name != leader]
        cluster.until(lambda: any(cluster.leads(name) for name in others), "nobody took over")
        cluster.world.run(2)
        assert during.error is None, "the others' disks are enough to decide"
        assert not cluster.leads(leader)
        disk.make_room()
        after = cluster.ref(leader).ask(Propose(["put", b"k", b"after", 0], 5.0), block=False)
        cluster.world.run(2)
        assert after.error is None
        assert [cluster.value(name) for name in "abc"] == [[b"after"]] * 3


def test_a_leader_keeps_its_office_when_no_disk_has_room() -> None:
    """Nobody could take over: an election would only end the reads that can still be confirmed."""
    cluster = Cluster("abc")
    with cluster.world:
        leader = cluster.leader()
        cluster.put(leader, b"k", b"before")
        cluster.world.run(1)
        disks = [HeldDisk(cluster, name) for name in "abc"]
        refused = cluster.put(leader, b"k", b"during", 2.0)
        cluster.world.run(10)
        assert cluster.leads(leader) and refused.error is not None
        reads = [cluster.ref(name).ask(Query(lambda store: store.revision, True), block=False) for name in "abc"]
        cluster.world.run(1)
        assert [read.value for read in reads] == [2, 2, 2]
        for disk in disks:
            disk.make_room()
        cluster.world.run(2)
        assert [cluster.value(name) for name in "abc"] == [[b"during"]] * 3
