"""A leader whose disk stands still hands over to one whose disk does not."""

from __future__ import annotations

from actors.raft_messages import Propose

from .peers import Cluster


def test_a_leader_whose_disk_stalls_hands_over_and_takes_part_again() -> None:
    """Writes go on with the others; when its disk answers, it has everything."""
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        [leader] = [name for name in "abc" if cluster.leads(name)]
        disk = cluster.machines[leader].disk
        held: list[object] = []
        real = disk.submit
        disk.submit = lambda operations, done: held.append((operations, done))  # type: ignore[method-assign]
        put = ["put", b"k", b"during", 0]
        during = cluster.ref(leader).ask(Propose(put, 10.0), block=False)
        others = [name for name in "abc" if name != leader]
        cluster.until(lambda: any(cluster.leads(name) for name in others), "nobody took over")
        cluster.world.run(2)
        assert during.error is None, "the others' disks are enough to decide"
        assert not cluster.leads(leader)
        disk.submit = real  # type: ignore[method-assign]
        for operations, done in held:  # type: ignore[misc]
            real(operations, done)
        after = cluster.ref(leader).ask(Propose(["put", b"k", b"after", 0], 5.0), block=False)
        cluster.world.run(2)
        assert after.error is None
        assert [cluster.value(name) for name in "abc"] == [[b"after"]] * 3
