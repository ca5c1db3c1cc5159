"""The journal over disks whose power fails: whatever was reported done is there afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from brain import (
    kv,  # noqa: F401 - registers its commands
    snapshot,
    wal,
)
from brain.journal import Journal, Opened, part_name
from brain.raft import Config, HardState
from brain.raftlog import Entry
from brain.snapshot import Meta
from brain.store import Store
from brain.wal import DamagedLogError
from kernel.sim import Faults, SimDispatcher, SimMachine, World
from kernel.system import System

from .disks import CuttableDisk, MemoryDisk

CONFIG = Config(frozenset({"m1", "m2", "m3"}), info=(("m1", ("one", "127.0.0.1:1", "")),))
SEGMENT = 2048


class Write(NamedTuple):
    """A batch for the log."""

    state: HardState | None
    first: int
    entries: list[Entry]


class Save(NamedTuple):
    """A snapshot; ``fresh`` when the log does not go on from it."""

    index: int  # type: ignore[assignment]
    term: int
    fresh: bool


Step = Write | Save


class Model(NamedTuple):
    """What a journal must hold: the state, the snapshot, and the entries after it."""

    hard: HardState
    base: int
    base_term: int
    entries: tuple[Entry, ...]

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.base + len(self.entries)

    def term(self, index: int) -> int:
        """Term of an entry or of the snapshot."""
        return self.base_term if index == self.base else self.entries[index - self.base - 1][0]

    def after(self, step: Step) -> Model:
        """When the step is wholly done."""
        return list(self.during(step))[-1]

    def during(self, step: Step) -> Iterator[Model]:
        """Everything that may be found when the power failed within the step."""
        yield self
        if isinstance(step, Save):
            entries = () if step.fresh else self.entries[step.index - self.base :]
            yield self._replace(base=step.index, base_term=step.term, entries=entries)
            return
        hard = step.state or self.hard
        yield self._replace(hard=hard)
        kept = self.entries[: step.first - self.base - 1]
        for count in range(1, len(step.entries) + 1):
            yield self._replace(hard=hard, entries=(*kept, *step.entries[:count]))

    @classmethod
    def of(cls, opened: Opened) -> Model:
        """What a journal holds."""
        log = opened.log
        return cls(
            opened.hard_state, log.snapshot_index, log.snapshot_term,
            log.entries_from(log.snapshot_index + 1, 1 << 40),
        )  # fmt: skip


def image_of(index: int) -> Store:
    """A store that can be told from those of other indexes."""
    store = Store()
    store.apply(0, ["put", b"index", b"%d" % index])
    return store


def submit(journal: Journal, step: Step, done: Callable[[Any], None]) -> None:
    """Hand a step to the journal."""
    if isinstance(step, Write):
        journal.write(step.state, step.first, step.entries, done)
    else:
        meta = Meta(step.index, step.term, CONFIG)
        data = snapshot.dump(meta, image_of(step.index))
        half, part = len(data) // 2, part_name(step.index)

        def second(error: Any) -> None:
            assert error is None
            journal.write_part(part, half, data[half:], third)

        def third(error: Any) -> None:
            assert error is None
            journal.publish(meta, part, done, step.fresh)

        journal.write_part(part, 0, data[:half], second)


def draw(rng: random.Random, model: Model, fresh: bool) -> Step:
    """A step as a Raft peer would take it."""
    fate = rng.random()
    newest = max(model.hard.term, model.base_term, *(term for term, _, _ in model.entries), 0)
    if fresh and fate < 0.12 and model.hard.term:
        if model.entries and rng.random() < 0.5:  # a snapshot over entries that were never committed
            return Save(rng.randint(model.base + 1, model.last), newest + 100, True)
        return Save(model.last + rng.randint(1, 30), newest, True)
    if fate < 0.25 and model.entries:
        index = rng.randint(model.base + 1, model.last)
        return Save(index, model.term(index), False)
    term = newest + (rng.random() < 0.3)
    state = HardState(term, rng.choice(["", "m1", "m2"])) if term != model.hard.term else None
    first = model.last + 1
    if state is not None and model.entries and rng.random() < 0.4:  # another leader's log
        first = rng.randint(model.base + 1, model.last + 1)
    count = rng.randint(0 if state else 1, 5)
    items = [(term, 1, rng.randbytes(rng.choice([0, 3, 40, 300, 700]))) for _ in range(count)]
    return Write(state, first, items)


def check(opened: Opened, allowed: list[Model]) -> Model:
    """What was opened is one of the allowed outcomes, and the store belongs to the snapshot."""
    found = Model.of(opened)
    assert found in allowed
    if found.base:
        assert opened.meta is not None
        assert opened.meta.config == CONFIG
        assert opened.store.range(b"index")[0][1].value == b"%d" % found.base
    return found


def live(rng: random.Random, lives: int, fresh: bool) -> None:
    """Several lives of one journal on a disk whose power fails at a drawn operation each time."""
    disk = CuttableDisk(None, rng.randint(0, 60), rng)
    model = Model(HardState(0, ""), 0, 0, ())
    for _ in range(lives):
        journal = Journal(disk, SEGMENT)
        if check(journal.open(), [model]) != model:
            raise AssertionError
        allowed = [model]
        while not disk.dead:
            step = draw(rng, model, fresh)
            if isinstance(step, Save) and not journal._highest:  # noqa: SLF001
                continue  # a peer has written its term before it makes a snapshot
            allowed = list(model.during(step))
            done: list[Any] = []
            submit(journal, step, done.append)
            if done:
                assert done == [None]
                model = model.after(step)
                allowed = [model]
            if disk.performed > 200:
                disk.cut()
        disk = disk.reboot(rng.choice([None, rng.randint(0, 60)]))
        probe = CuttableDisk(disk.image(), None, rng)
        model = check(Journal(probe, SEGMENT).open(), allowed)


#: A cut in a new segment, as in ``test_a_cut_at_every_operation_of_a_new_segment`` below.
CUT_SEGMENT = pytest.param(61)


@pytest.mark.parametrize("seed", [*range(61), CUT_SEGMENT, *range(62, 120)])
def test_what_was_done_is_there_after_a_power_cut(seed: int) -> None:
    """Writes, rewrites and own snapshots; the power may fail between any two disk operations."""
    live(random.Random(seed), 8, fresh=False)


def test_installed_snapshots_survive_power_cuts_too() -> None:
    """The same with snapshots that replace the log, as a leader sends them to one far behind."""
    for seed in range(200):
        live(random.Random(10_000 + seed), 8, fresh=True)


@pytest.mark.parametrize("overlapping", [False, True], ids=["beyond the log", "over uncommitted entries"])
def test_a_cut_at_every_operation_of_an_installed_snapshot(overlapping: bool) -> None:
    """Exhaustive: the new state or the old one is found, and the log goes on from it either way."""
    old = Write(HardState(1, "m1"), 1, [(1, 1, b"old %d" % n) for n in range(20)])
    install = Save(10, 7, True) if overlapping else Save(40, 1, True)
    cut = 0
    while True:
        disk = CuttableDisk(None, None, random.Random(cut))
        journal = Journal(disk, SEGMENT)
        journal.open()
        submit(journal, old, lambda error: None)
        disk = disk.reboot(cut)
        journal = Journal(disk, SEGMENT)
        journal.open()
        finished: list[Any] = []
        submit(journal, install, finished.append)
        disk = disk.reboot()
        journal = Journal(disk, SEGMENT)
        before = Model(HardState(1, "m1"), 0, 0, tuple(old.entries))
        model = check(journal.open(), [before, before.after(install)])
        more = Write(HardState(9, ""), model.last + 1, [(9, 1, b"new 1"), (9, 1, b"new 2")])
        for step in (more, more._replace(state=None, first=model.last + 3)):
            submit(journal, step, lambda error: None)
            model = model.after(step)
            check(Journal(MemoryDisk(disk.image()), SEGMENT).open(), [model])
        if finished:
            return
        cut += 1


@pytest.mark.parametrize("then_write", [True, False], ids=["write then snapshot", "snapshot at once"])
def test_a_cut_at_every_operation_of_a_new_segment_keeps_term_and_vote(then_write: bool) -> None:
    """The segment that the cut left behind is used again, and later it is the only one."""
    cut = 0
    while True:
        disk, journal = _filled(3)
        size, used = len(disk.read(wal.segment_name(1))), journal._end  # noqa: SLF001
        large = Write(None, 4, [(1, 1, b"z" * (size - used))])
        disk = CuttableDisk(disk.image(), cut, random.Random(cut))
        journal = Journal(disk, SEGMENT)
        journal.open()
        finished: list[Any] = []
        submit(journal, large, finished.append)
        disk = disk.reboot()
        journal = Journal(disk, SEGMENT)
        model = Model.of(journal.open())
        if then_write:
            step = Write(None, model.last + 1, [(1, 1, b"more")])
            submit(journal, step, lambda error: None)
            model = model.after(step)
        snap = Save(model.last, 1, False)
        submit(journal, snap, lambda error: None)
        model = model.after(snap)
        assert model.hard == HardState(1, "m1")
        check(Journal(disk, SEGMENT).open(), [model])
        if finished:
            return
        cut += 1


def test_entries_written_over_a_cut_segment_are_found_when_it_is_the_oldest() -> None:
    """Its header was made for another batch: what counts is what is in it."""
    disk, journal = _filled(3)
    size, used = len(disk.read(wal.segment_name(1))), journal._end  # noqa: SLF001
    rewrite = Write(HardState(2, ""), 2, [(2, 1, b"z" * (size - used))])
    cuttable = CuttableDisk(disk.image(), 4, random.Random(1))
    journal = Journal(cuttable, SEGMENT)
    journal.open()
    submit(journal, rewrite, lambda error: None)
    cuttable = cuttable.reboot()
    journal = Journal(cuttable, SEGMENT)
    model = Model.of(journal.open())
    assert model.last == 3, "the header is there, the batch is not"
    for step in (
        Write(HardState(3, "m2"), 4, [(3, 1, b"four")]), Save(4, 3, False),
        Write(None, 5, [(3, 1, b"five")]),
    ):  # fmt: skip
        submit(journal, step, lambda error: None)
        model = model.after(step)
        check(Journal(MemoryDisk(cuttable.image()), SEGMENT).open(), [model])
    assert wal.segment_name(1) not in cuttable.list()


@pytest.mark.parametrize("seed", range(20))
def test_what_was_read_after_a_crash_of_the_process_can_be_made_durable(seed: int) -> None:
    """Writes that only reached the page cache are read by the next life: it must not promise on
    them before they are on the disk, because the power may fail next.
    """
    disk = CuttableDisk(_filled(3)[0].image(), None, random.Random(seed))
    journal = Journal(disk, SEGMENT)
    journal.open()
    done: list[Any] = []
    disk.fail_syncs = True  # the process dies before its sync
    submit(journal, Write(HardState(2, "m2"), 4, [(2, 1, b"unsynced")]), done.append)
    disk.fail_syncs = False
    again = Journal(disk, SEGMENT)
    found = Model.of(again.open())
    assert found.last == 4
    disk.submit(again.settle(), done.append)
    disk.cut()
    assert Model.of(Journal(disk.reboot(), SEGMENT).open()) == found


# -- on the simulator's disk -----------------------------------------------------------------------


class _Host:
    def __init__(self, machine: SimMachine) -> None:
        self.system = System(machine.name, {"loop": SimDispatcher(machine)})


@pytest.mark.parametrize("seed", range(60))
def test_what_was_done_is_there_after_a_crash_in_the_simulator(seed: int) -> None:
    """Steps are queued behind each other and the machine crashes at a drawn moment."""
    world = World(seed, Faults(disk_s_max=0.01, disk_stall=0.1, disk_stall_s_max=0.1))
    rng = world.random
    machine = SimMachine(world, "m1", _Host)
    model = Model(HardState(0, ""), 0, 0, ())
    for _ in range(6):
        machine.start()
        journal = Journal(machine.disk, SEGMENT)
        model = check(journal.open(), [model])
        writes: list[Step] = []  # under way, in this order
        save: list[Step] = []  # at most one; it takes several turns of the disk, between writes
        done: list[Step] = []
        ahead = model
        end = world.now + rng.random() * 0.3
        while world.now < end:
            if len(writes) < 4 and not (save and len(writes) > 2) and rng.random() < 0.7:
                step = draw(rng, ahead, fresh=False)
                if isinstance(step, Save) and (writes or save or not journal._highest):  # noqa: SLF001
                    continue
                (save if isinstance(step, Save) else writes).append(step)
                ahead = ahead.after(step)
                submit(journal, step, lambda error, step=step: done.append(step) if error is None else None)
            world.run(rng.random() * 0.01)
            for step in done:
                (save if isinstance(step, Save) else writes).remove(step)
                model = model.after(step)
            done.clear()
        machine.crash()
        allowed = [model]
        for step in writes:
            allowed += model.during(step)
            model = model.after(step)
        allowed += [after.after(step) for step in save for after in [*allowed, model]]
        model = check(Journal(MemoryDisk(_files(machine)), SEGMENT).open(), [*allowed, model])


def _files(machine: SimMachine) -> dict[str, bytes]:
    return {name: machine.disk.read(name) for name in machine.disk.list()}


# -- housekeeping and refusals ---------------------------------------------------------------------


def _filled(entries: int) -> tuple[MemoryDisk, Journal]:
    disk = MemoryDisk()
    journal = Journal(disk, SEGMENT)
    journal.open()
    submit(journal, Write(HardState(1, "m1"), 1, []), lambda error: None)
    for index in range(1, entries + 1):
        submit(journal, Write(None, index, [(1, 1, b"x" * 500)]), lambda error: None)
    return disk, journal


def test_a_snapshot_removes_what_it_makes_superfluous() -> None:
    """Whole segments below it and older snapshots go; what is needed to start stays."""
    disk, journal = _filled(60)
    before = [name for name in disk.list() if name.startswith("wal-")]
    submit(journal, Save(30, 1, False), lambda error: None)
    submit(journal, Save(50, 1, False), lambda error: None)
    names = disk.list()
    assert [name for name in names if name.startswith("snap-")] == [snapshot.file_name(50)]
    kept = [name for name in names if name.startswith("wal-")]
    assert kept == before[-len(kept) :]
    assert 0 < len(kept) < len(before)
    opened = Journal(disk, SEGMENT).open()
    assert (opened.log.snapshot_index, opened.log.last_index) == (50, 60)


def test_the_disk_stays_small_however_long_a_peer_runs() -> None:
    """With a snapshot now and then the number of files does not grow."""
    disk, journal = _filled(10)
    index = 10
    for _ in range(20):
        for _ in range(20):
            index += 1
            submit(journal, Write(None, index, [(1, 1, b"x" * 500)]), lambda error: None)
        submit(journal, Save(index, 1, False), lambda error: None)
        assert len(disk.list()) <= 3


def test_a_large_batch_gets_a_segment_that_holds_it() -> None:
    """Larger than a segment: it is not split and not refused."""
    disk, journal = _filled(1)
    large = (1, 1, b"y" * (SEGMENT * 5))
    submit(journal, Write(None, 2, [large]), lambda error: None)
    submit(journal, Write(None, 3, [(1, 1, b"after")]), lambda error: None)
    assert Journal(disk, SEGMENT).open().log.entries_from(2, 1 << 30) == (large, (1, 1, b"after"))


def test_the_state_is_in_every_segment() -> None:
    """Term and vote survive although the segment in which they were written is gone."""
    disk, journal = _filled(60)
    submit(journal, Save(60, 1, False), lambda error: None)
    assert wal.segment_name(1) not in disk.list()
    assert Journal(disk, SEGMENT).open().hard_state == HardState(1, "m1")


def test_a_log_that_does_not_reach_the_snapshot_is_refused() -> None:
    """Entries between them are missing: starting would lose acknowledged writes."""
    disk, journal = _filled(60)
    submit(journal, Save(30, 1, False), lambda error: None)
    snap = snapshot.file_name(30)
    lower = Meta(3, 1, CONFIG)
    del disk.files[snap]
    disk.files[snapshot.file_name(3)] = bytearray(snapshot.dump(lower, image_of(3)))
    with pytest.raises(DamagedLogError, match="the snapshot ends at 3"):
        Journal(disk, SEGMENT).open()
    del disk.files[snapshot.file_name(3)]
    with pytest.raises(DamagedLogError, match="the snapshot ends at 0"):
        Journal(disk, SEGMENT).open()


def test_a_damaged_snapshot_is_refused_by_name() -> None:
    """There is no starting from an older guess."""
    disk, journal = _filled(10)
    submit(journal, Save(10, 1, False), lambda error: None)
    name = snapshot.file_name(10)
    disk.files[name][-20] ^= 4
    with pytest.raises(DamagedLogError, match=name):
        Journal(disk, SEGMENT).open()


def test_a_new_peer_is_empty() -> None:
    """Nothing on disk: no configuration, no entries, term 0."""
    opened = Journal(MemoryDisk(), SEGMENT).open()
    assert opened.meta is None
    assert opened.log.last_index == 0
    assert opened.hard_state == HardState(0, "")


def test_other_files_are_left_alone() -> None:
    """What is not a segment or a snapshot by name is neither read nor removed."""
    others = {"host.key": b"k", "wal-x.log": b"?", "snap-1.tmp": b"?", "wal-0000000001.log.bak": b"?"}
    disk = MemoryDisk(others)
    journal = Journal(disk, SEGMENT)
    assert journal.open().meta is None
    submit(journal, Write(HardState(1, ""), 1, [(1, 1, b"x")]), lambda error: None)
    submit(journal, Save(1, 1, False), lambda error: None)
    assert set(others) <= set(disk.list())


@pytest.mark.parametrize(
    "fresh",
    [
        pytest.param(True, id="fresh log"),
        pytest.param(False, id="as it is"),
    ],
)
def test_the_first_snapshot_may_come_before_the_first_write(fresh: bool) -> None:
    """A new peer is given its configuration as a snapshot; its log goes on from there."""
    disk = MemoryDisk()
    journal = Journal(disk, SEGMENT)
    journal.open()
    submit(journal, Save(1, 1, fresh), lambda error: None)
    submit(journal, Write(HardState(2, "m1"), 2, [(2, 1, b"x")]), lambda error: None)
    opened = Journal(disk, SEGMENT).open()
    assert Model.of(opened) == Model(HardState(2, "m1"), 1, 1, ((2, 1, b"x"),))
