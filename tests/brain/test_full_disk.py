"""A member whose disk is full goes on in everything that needs no room, within named limits."""

from __future__ import annotations

from typing import Any

import pytest

from actors import snapshots
from actors.raft_messages import Query, SnapshotChunk, Status
from actors.raft_peer import PeerSettings
from actors.snapshots import IDLE_S, ROOM_S
from brain import snapshot
from brain.journal import PART
from brain.raft import Settings
from brain.snapshot import Meta
from kernel.ports import DiskError

from .peers import Cluster, HeldDisk


def revision(cluster: Cluster, name: str, linearizable: bool = True) -> Any:
    """The future of a read."""
    return cluster.ref(name).ask(Query(lambda store: store.revision, linearizable), block=False)


def with_a_full_follower(cluster: Cluster) -> tuple[str, str, HeldDisk]:
    """The leader, a follower whose disk has no room from now on, and that disk."""
    leader = cluster.leader()
    full = next(name for name in "abc" if name != leader)
    cluster.world.run(1)
    return leader, full, HeldDisk(cluster, full)


def test_a_follower_goes_on_reading_while_its_disk_has_no_room() -> None:
    """It applies what the others' disks hold, in time, and acknowledges none of it."""
    cluster = Cluster("abc")
    with cluster.world:
        leader, full, disk = with_a_full_follower(cluster)
        for number in range(40):
            cluster.put(leader, b"k", b"%d" % number)
            cluster.world.run(0.1)
        read = revision(cluster, full)
        cluster.world.run(1)
        assert read.value == cluster.peer(leader).store.revision
        assert cluster.raft(full).log.stable < 10 < cluster.raft(full).log.applied
        assert cluster.raft(leader).progress[full].match < 10
        disk.make_room()
        cluster.world.run(1)
        assert cluster.raft(full).log.stable == cluster.raft(leader).log.last_index


def test_a_leader_whose_disk_has_no_room_goes_on_reading_as_a_follower() -> None:
    """Its disk knows nothing of the new leader's term; it promises nothing, and keeps up."""
    cluster = Cluster("abc")
    with cluster.world:
        full = cluster.leader()
        cluster.world.run(1)
        disk = HeldDisk(cluster, full)
        others = [name for name in "abc" if name != full]
        for number in range(60):
            cluster.put(others[number % 2], b"k", b"%d" % number)
            cluster.world.run(0.1)
        assert not cluster.leads(full)
        read = revision(cluster, full)
        cluster.world.run(1)
        assert read.value == cluster.peer(others[0]).store.revision
        assert cluster.raft(full).log.stable < 5
        disk.make_room()
        cluster.world.run(1)
        assert len({cluster.raft(name).log.stable for name in "abc"}) == 1


def test_a_follower_with_a_full_disk_takes_so_much_and_no_more() -> None:
    """Beyond that its reads say what is wrong; with room it gets the rest."""
    limit = 20_000
    cluster = Cluster("abc", settings=PeerSettings(Settings(append_bytes_max=2_000, unsynced_bytes_max=limit)))
    with cluster.world:
        leader, full, disk = with_a_full_follower(cluster)
        for _ in range(300):
            cluster.put(leader, b"k", bytes(1000))
            cluster.world.run(0.02)
        log = cluster.raft(full).log
        held = log.bytes_between(log.stable, log.last_index)
        assert limit / 2 < held < limit + 3 * 2_000 + 1_000
        read = revision(cluster, full)
        cluster.world.run(6)
        assert getattr(read.error, "code", "") == "no_space" and "/data/wal" in str(read.error)
        disk.make_room()
        cluster.world.run(3)
        assert log.stable == cluster.raft(leader).log.last_index


SMALL = PeerSettings(snapshot_entries=20, trailing_entries=5)


def test_a_snapshot_without_room_is_tried_again_later_and_the_log_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was written of it goes, so that the log has the room."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 500)
    cluster = Cluster("abc", settings=SMALL)
    with cluster.world:
        leader = cluster.leader()
        disk = cluster.machines[leader].disk
        real = disk.submit
        tried = []

        def submit(operations: Any, done: Any, if_room: bool = False) -> None:
            if if_room and len(tried) < 2:
                tried.append(cluster.world.now)
                world, error = cluster.world, DiskError("disk full: a piece", full=True)
                real(operations[:1], lambda _: world.call_later(0, lambda: done(error)))
            else:
                real(operations, done)

        disk.submit = submit  # type: ignore[method-assign]
        for number in range(30):
            cluster.put(leader, b"%d" % number)
        cluster.world.run(2)
        assert len(tried) == 1
        assert not [name for name in disk.list() if name.endswith(PART)]
        assert cluster.raft(leader).log.stable == cluster.raft(leader).log.last_index
        for _ in range(3):
            cluster.world.run(ROOM_S)
            cluster.put(leader, b"k")
        cluster.world.run(2)
        assert tried[1] - tried[0] >= ROOM_S
        assert cluster.peer(leader).snapshots.index > 20


def behind(cluster: Cluster, leader: str) -> str:
    """A follower that needs a snapshot once it can be reached again."""
    cluster.world.run(1)
    away = next(name for name in "abc" if name != leader)
    cluster.cut_off(away)
    for number in range(60):
        cluster.put(leader, b"%d" % number, bytes(200))
        cluster.world.run(0.05)
    assert cluster.raft(leader).log.snapshot_index > 20
    return away


@pytest.mark.parametrize("when", ["before it comes", "when it is there"])
def test_a_member_that_finds_no_room_for_a_snapshot_goes_on_answering(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status and plain reads; it is whole again when there is room, in the same life."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 1000)
    cluster = Cluster("abc", settings=SMALL)
    with cluster.world:
        leader = cluster.leader()
        away = behind(cluster, leader)
        peer = cluster.peer(away)
        if when == "before it comes":
            disk = HeldDisk(cluster, away)
            cluster.world.cut = set()
        else:
            cluster.world.cut = set()
            cluster.until(lambda: peer.snapshots.installing, "no snapshot came")
            disk = HeldDisk(cluster, away)
        cluster.world.run(4)
        status = cluster.ref(away).ask(Status(), block=False)
        plain = revision(cluster, away, linearizable=False)
        cluster.world.run(0.1)
        assert status.value["id"] == away and status.value["disk_full"]
        assert plain.value < cluster.peer(leader).store.revision
        assert disk.refused or when == "when it is there"
        disk.make_room()
        cluster.world.run(ROOM_S * 2 + 1)
        assert cluster.peer(away) is peer
        assert peer.store.revision == cluster.peer(leader).store.revision
        assert not [name for name in cluster.machines[away].disk.list() if name.endswith(PART)]


def test_acknowledgements_that_wait_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may be full for hours, and every heartbeat and read asks how far its log is."""
    cluster = Cluster("abc")
    with cluster.world:
        leader, full, disk = with_a_full_follower(cluster)
        for number in range(20):
            cluster.put(leader, b"k", b"%d" % number)
            cluster.world.run(0.1)

        def waiting() -> int:
            return sum(len(ready.after_sync) for ready in cluster.peer(full)._sync_queue)

        before = waiting(), len(cluster.peer(full)._sync_queue)
        for _ in range(200):
            revision(cluster, leader)
            cluster.world.run(0.1)
        assert waiting() <= before[0] + 3 and len(cluster.peer(full)._sync_queue) <= before[1] + 1
        disk.make_room()
        cluster.world.run(1)
        assert cluster.raft(leader).progress[full].match == cluster.raft(leader).log.last_index


def test_a_follower_without_room_is_not_sent_a_snapshot_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt would read out the store for nothing."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 1000)
    cluster = Cluster("abc", settings=SMALL)
    with cluster.world:
        leader = cluster.leader()
        away = behind(cluster, leader)
        disk = HeldDisk(cluster, away)
        made = []
        real = snapshots.Image
        monkeypatch.setattr(snapshots, "Image", lambda store: made.append(cluster.world.now) or real(store))
        cluster.world.cut = set()
        cluster.world.run(ROOM_S * 3)
        assert 1 <= len(made) <= 4
        disk.make_room()
        cluster.world.run(ROOM_S + 2)
        assert cluster.peer(away).store.revision == cluster.peer(leader).store.revision


def test_a_snapshot_that_found_no_room_is_due_again_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only after as much log again."""
    cluster = Cluster("abc", settings=PeerSettings(snapshot_entries=100_000, snapshot_bytes=20_000))
    with cluster.world:
        leader = cluster.leader()
        disk = cluster.machines[leader].disk
        real = disk.submit
        refused: list[float] = []

        def submit(operations: Any, done: Any, if_room: bool = False) -> None:
            if if_room and not refused:
                refused.append(cluster.world.now)
                error = DiskError("disk full: a piece", full=True)
                real([], lambda _: cluster.world.call_later(0, lambda: done(error)))
            else:
                real(operations, done)

        disk.submit = submit  # type: ignore[method-assign]
        while not refused:
            cluster.put(leader, b"k", bytes(500))
            cluster.world.run(0.05)
        cluster.world.run(ROOM_S)
        assert not cluster.peer(leader).snapshots.index
        cluster.put(leader, b"k")
        cluster.world.run(1)
        assert cluster.peer(leader).snapshots.index


def test_the_log_is_kept_for_a_follower_that_receives_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a slow one is given the next as soon as it has this one, for ever."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 200)
    cluster = Cluster("abc", settings=SMALL)
    with cluster.world:
        leader = cluster.leader()
        away = behind(cluster, leader)
        cluster.world.faults.delay_s_max = 0.2
        cluster.world.cut = set()
        peer = cluster.peer(leader)
        cluster.until(lambda: bool(peer.snapshots._sending), "no snapshot is sent")
        sent = min(peer.snapshots._sending.values())
        made = peer.snapshots.index
        number = 0
        while peer.snapshots._sending:
            cluster.put(leader, b"more%d" % (number % 9), bytes(50))
            number += 1
            cluster.world.run(0.05)
            assert not peer.snapshots._sending or cluster.raft(leader).log.snapshot_index <= sent
        assert peer.snapshots.index > made + 40, "others were made meanwhile"
        cluster.world.run(5)
        assert cluster.peer(away).snapshots.index <= sent or cluster.raft(away).log.applied > sent
        assert cluster.peer(away).store.revision == peer.store.revision


def test_a_snapshot_of_which_the_rest_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its leader has, and no other term may ever begin."""
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 200)
    cluster = Cluster("abc", settings=SMALL)
    with cluster.world:
        leader = cluster.leader()
        away = behind(cluster, leader)
        message = SnapshotChunk(leader, cluster.raft(leader).term, 10_000, 0, False, snapshot.dump(
            Meta(10_000, cluster.raft(leader).term, cluster.raft(leader).config), cluster.peer(leader).store)[:200])  # fmt: skip
        cluster.ref(away).ask(message, block=False)
        cluster.world.run(1)
        snaps = cluster.peer(away).snapshots
        assert snaps._incoming is not None
        cluster.world.run(IDLE_S + 1)
        assert snaps._incoming is None
        assert not [name for name in cluster.machines[away].disk.list() if name.endswith(PART)]
