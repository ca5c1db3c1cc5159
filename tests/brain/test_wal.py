"""The log's bytes: a torn tail is cut, anything else that is wrong refuses to start."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain import wal
from brain.journal import Journal
from brain.raft import HardState
from brain.raftlog import Entry, EntryKind
from brain.wal import DamagedLogError, Recovered, recover

from .disks import SECTOR, MemoryDisk

SIZE = 8192
PATH = "wal-0000000001.log"


def entries(term: int, *sizes: int) -> list[Entry]:
    """Commands of these sizes, full of bytes that are not zero."""
    return [
        (term, EntryKind.COMMAND, bytes((n + at) % 255 + 1 for at in range(size)))
        for n, size in enumerate(sizes)
    ]


class Batch(NamedTuple):
    """Where a batch lies in the segment, and what was in it."""

    start: int
    end: int
    state: HardState | None
    first: int
    entries: list[Entry]


class Written(NamedTuple):
    """A segment as the journal writes it, with the place of every batch."""

    data: bytes
    batches: list[Batch]


def write(*contents: tuple[HardState | None, int, list[Entry]]) -> Written:
    """Write batches through a journal into one segment of ``SIZE`` bytes."""
    disk = MemoryDisk()
    journal = Journal(disk, SIZE)
    journal.open()
    batches = []
    for state, first, items in contents:
        journal.write(state, first, items, lambda error: None)
        name, offset, data = next(op[1:] for op in reversed(disk.submitted[-1]) if op[0] == "write")
        assert name == PATH
        batches.append(Batch(offset, offset + len(data), state, first, items))
    return Written(disk.read(PATH), batches)


FOUR = (
    (HardState(1, "m1"), 1, entries(1, 40, 200)),
    (None, 3, entries(1, 700, 0, 30)),
    (HardState(2, "m2"), 6, entries(2, 100)),
    (None, 7, entries(2, 60, 900, 5)),
)


@pytest.fixture(scope="module")
def four() -> Written:
    """Four batches, the second and the last over several sectors."""
    return write(*FOUR)


def read(data: bytes) -> Recovered:
    """Recover one segment."""
    recovered = recover([(PATH, 1, data)])
    assert recovered is not None
    return recovered


def expected(batches: list[Batch]) -> tuple[HardState, list[Entry]]:
    """State and entries of whole batches."""
    state = HardState(0, "")
    log: list[Entry] = []
    for batch in batches:
        state = batch.state or state
        log += batch.entries
    return state, log


def test_what_was_written_is_read(four: Written) -> None:
    """State, entries, where the next record goes and where the segment begins."""
    recovered = read(four.data)
    assert (recovered.hard_state, recovered.entries) == expected(four.batches)
    assert recovered.first_index == 1
    assert recovered.end == four.batches[-1].end
    assert recovered.sequence == 1
    assert recovered.starts == {1: 1}


@given(st.lists(st.tuples(st.booleans(), st.lists(st.binary(max_size=90), max_size=5)), max_size=8))
def test_any_batches_are_read_back(contents: list[tuple[bool, list[bytes]]]) -> None:
    """Empty batches, empty entries, state or none, zeros or not."""
    first, term = 1, 0
    batches: list[tuple[HardState | None, int, list[Entry]]] = []
    for with_state, datas in contents:
        term += with_state
        items: list[Entry] = [(term, EntryKind.COMMAND, data) for data in datas]
        batches.append((HardState(term, "m") if with_state else None, first, items))
        first += len(items)
    if not batches:
        return
    written = write(*batches)
    recovered = read(written.data)
    assert (recovered.hard_state, recovered.entries) == expected(written.batches)


def test_nothing_at_all_is_an_empty_log() -> None:
    """No segment, or one that was allocated and whose header never arrived."""
    assert recover([]) is None
    assert recover([(PATH, 1, bytes(SIZE))]) is None
    assert recover([(PATH, 1, b"")]) is None


# -- torn tails ------------------------------------------------------------------------------------


def test_a_file_that_ends_at_any_byte_of_the_last_batch_is_cut(four: Written) -> None:
    """Everything before the last batch is there; of the last, its first whole entries at most."""
    last = four.batches[-1]
    state, before = expected(four.batches[:-1])
    for at in range(last.start, last.end):
        recovered = read(four.data[:at])
        assert recovered.hard_state == state
        whole = [*before, *last.entries]
        assert recovered.entries == whole[: len(recovered.entries)]
        assert len(recovered.entries) >= len(before)
        assert recovered.end <= at


def test_a_tail_of_zeros_from_any_sector_on_is_cut(four: Written) -> None:
    """The last sectors of the write did not arrive; the file keeps its preallocated length."""
    last = four.batches[-1]
    _, before = expected(four.batches[:-1])
    for at in range(last.start - last.start % SECTOR + SECTOR, last.end + SECTOR, SECTOR):
        recovered = read(four.data[:at] + bytes(SIZE - at))
        assert recovered.entries[: len(before)] == before
        assert [*before, *last.entries][: len(recovered.entries)] == recovered.entries


def _sectors(start: int, end: int) -> list[tuple[int, int]]:
    pieces = []
    at = start
    while at < end:
        stop = min((at // SECTOR + 1) * SECTOR, end)
        pieces.append((at, stop))
        at = stop
    return pieces


@pytest.mark.parametrize("shift", range(0, SECTOR + 16, 7))
def test_any_set_of_sectors_of_the_last_batch_may_be_missing(shift: int) -> None:
    """Whichever sectors of an unsynced write arrive: start-up succeeds and loses nothing durable.

    ``shift`` moves the last batch over the sector borders, so that each part of a record,
    its length and checksum too, comes to lie on one.
    """
    written = write(
        (HardState(1, "m1"), 1, entries(1, 100 + shift)),
        (None, 2, entries(1, 50)),
        (HardState(2, "m1"), 3, entries(2, 300, 10, 700, 40)),
    )
    last = written.batches[-1]
    state, before = expected(written.batches[:-1])
    pieces = _sectors(last.start, last.end)
    for mask in range(2 ** len(pieces)):
        data = bytearray(written.data)
        for number, (start, stop) in enumerate(pieces):
            if not mask >> number & 1:
                data[start:stop] = bytes(stop - start)
        recovered = read(bytes(data))
        assert recovered.entries[: len(before)] == before
        assert [*before, *last.entries][: len(recovered.entries)] == recovered.entries
        assert recovered.hard_state in (state, HardState(2, "m1"))
        if mask == 2 ** len(pieces) - 1:
            assert len(recovered.entries) == len(before) + 4


# -- damage ----------------------------------------------------------------------------------------


def _flips(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Each byte of the range with one of its bits, and the interesting ones with all eight."""
    return [(at, (at * 5 + 3) % 8) for at in range(start, end)]


def _refuses(data: bytes, at: int, bit: int) -> bool:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    try:
        read(bytes(changed))
    except DamagedLogError as error:
        assert error.path == PATH
        assert 0 <= error.offset <= at
        assert PATH in str(error)
        assert f"offset {error.offset}" in str(error)
        return True
    return False


def test_a_flipped_bit_in_a_durable_record_refuses_to_start(four: Written) -> None:
    """At every byte before the two last batches; the error names the file and the offset."""
    accepted = [
        (at, bit)
        for at, bit in _flips(four.data, 0, four.batches[-2].start)
        if not _refuses(four.data, at, bit)
    ]
    assert accepted == []


def test_a_flipped_bit_in_the_batch_before_the_last_refuses_to_start(four: Written) -> None:
    """It was durable when the last one was begun: cutting it would lose acknowledged writes."""
    start, end = four.batches[-2].start, four.batches[-2].end
    accepted = [(at, bit) for at in range(start, end) for bit in range(8) if not _refuses(four.data, at, bit)]
    assert accepted == []


def test_every_bit_of_a_length_matters() -> None:
    """A record's length decides where the next one is looked for: all 32 bits, for every record."""
    written = write(*FOUR)
    at = wal.HEADER_BYTES
    accepted = []
    while at < written.batches[-2].start:
        length = int.from_bytes(written.data[at : at + 4], "little")
        accepted += [
            (at + bit // 8, bit % 8) for bit in range(32)
            if not _refuses(written.data, at + bit // 8, bit % 8)
        ]  # fmt: skip
        at += 8 + length
    assert accepted == []


def test_a_flipped_bit_in_the_last_batch_loses_no_other_batch(four: Written) -> None:
    """It cannot always be told from a torn write; what came before it is there in any case."""
    _, before = expected(four.batches[:-1])
    last = four.batches[-1]
    refused = 0
    for at, bit in _flips(four.data, last.start, last.end):
        changed = bytearray(four.data)
        changed[at] ^= 1 << bit
        try:
            recovered = read(bytes(changed))
        except DamagedLogError:
            refused += 1
        else:
            assert recovered.entries[: len(before)] == before
    assert refused > (last.end - last.start) * 0.9, "data and checksums are recognised as damage"


def test_zeros_as_data_do_not_hide_damage_before_the_last_batch() -> None:
    """An entry full of zeros looks like sectors that never arrived."""
    written = write(
        (HardState(1, "m1"), 1, entries(1, 10)),
        (None, 2, [(1, EntryKind.COMMAND, bytes(2000))]),
        (None, 3, entries(1, 10)),
        (None, 4, entries(1, 10)),
    )
    zeros = written.batches[1]
    assert all(_refuses(written.data, at, bit) for at, bit in _flips(written.data, zeros.start, zeros.end))


def test_a_damaged_header_refuses_to_start(four: Written) -> None:
    """Every bit of it."""
    for at in range(wal.HEADER_BYTES):
        for bit in range(8):
            assert _refuses(four.data, at, bit)


def test_a_misdirected_segment_is_refused(four: Written) -> None:
    """A file that lies under another one's name, as after a wrong copy."""
    with pytest.raises(DamagedLogError, match=r"wal-0000000002\.log: the header says segment 1"):
        recover([("wal-0000000002.log", 2, four.data)])


def test_a_record_at_another_place_is_not_a_record(four: Written) -> None:
    """The checksum is seeded with the offset: a misdirected write inside a segment does not pass."""
    second, third = four.batches[1], four.batches[2]
    data = bytearray(four.data)
    data[third.start : third.start + (second.end - second.start)] = four.data[second.start : second.end]
    with pytest.raises(DamagedLogError):
        read(bytes(data))


def several() -> list[tuple[str, int, bytes]]:
    """Four segments or more, as ``recover`` takes them."""
    disk = MemoryDisk()
    journal = Journal(disk, 1024)
    journal.open()
    index = 0
    while len(disk.files) < 4 or index % 5:
        index += 1
        journal.write(None, index, entries(1, 900), lambda error: None)
    return [(name, wal.segment_sequence(name) or 0, disk.read(name)) for name in disk.list()]


def test_a_log_of_several_segments_is_read_in_order() -> None:
    """Entries go on over the border; each segment's first index is known."""
    recovered = recover(several())
    assert recovered is not None
    assert list(recovered.starts) == [1, 2, 3, 4]
    assert sorted(recovered.starts.values()) == list(recovered.starts.values())
    assert len(recovered.entries) >= recovered.starts[4]


def test_a_missing_segment_is_refused() -> None:
    """A gap in the sequence names the number that is not there."""
    segments = several()
    with pytest.raises(DamagedLogError, match="segment 2 is missing"):
        recover([segments[0], *segments[2:]])
    name, number, data = segments[1]
    for hollow in (b"", bytes(len(data))):
        with pytest.raises(DamagedLogError, match="empty but not the last"):
            recover([segments[0], (name, number, hollow), *segments[2:]])


def test_a_torn_write_is_only_forgiven_in_the_last_segment() -> None:
    """A segment is left only when all of it is durable."""
    segments = several()
    name, number, data = segments[0]
    end = len(data.rstrip(b"\0"))
    torn = data[: end - 600] + bytes(len(data) - end + 600)
    assert recover([(name, number, torn)]) is not None
    torn = data[: end - 600] + bytes(550) + data[end - 50 :]
    with pytest.raises(DamagedLogError, match=name):
        recover([(name, number, torn), *segments[1:]])


def test_an_entry_that_does_not_follow_is_refused() -> None:
    """A hole in the indexes cannot come from a crash."""
    data = bytearray(SIZE)
    head = wal.header(1, 1)
    body = wal.batch(len(head), len(head), None, 1, entries(1, 5))
    hole = wal.batch(len(head) + len(body), len(head), None, 3, entries(1, 5))
    whole = head + body + hole
    data[: len(whole)] = whole
    with pytest.raises(DamagedLogError, match="entry 3 does not follow"):
        read(bytes(data))


def test_later_entries_replace_earlier_ones() -> None:
    """A follower's log is rewritten from an index on: the last writer of an index wins."""
    written = write(
        (HardState(1, ""), 1, entries(1, 10, 20, 30, 40)),
        (HardState(2, ""), 3, entries(2, 50)),
        (None, 4, entries(2, 60)),
    )
    log = read(written.data).entries
    assert [(term, len(data)) for term, _, data in log] == [(1, 10), (1, 20), (2, 50), (2, 60)]


# -- going on after a crash ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_going_on_after_a_cut_never_brings_old_records_back(seed: int) -> None:
    """Batches are torn again and again, and each life writes over what the last one left.

    Only what this life wrote, or an earlier one reported done, is ever read.
    """
    rng = random.Random(seed)
    image: dict[str, bytes] = {}
    log: list[Entry] = []
    serial = 0
    for _ in range(8):
        disk = MemoryDisk(image)
        journal = Journal(disk, 4096)
        opened = journal.open()
        got = opened.log.entries_from(1, 1 << 30)
        assert list(got[: len(log)]) == log, "what was reported done is there"
        log = list(got)
        for _ in range(rng.randint(0, 3)):
            serial += 1
            items = [
                (serial, 1, b"%d-%d;" % (serial, n) * rng.randint(1, 60)) for n in range(rng.randint(1, 4))
            ]
            journal.write(HardState(serial, ""), len(log) + 1, items, lambda error: None)
            log += items
        image = disk.image()
        serial += 1
        journal.write(HardState(serial, ""), len(log) + 1, [(serial, 1, b"torn" * 400)], lambda error: None)
        after = disk.image()
        for name, data in after.items():  # the last batch arrives in part only
            was = image.get(name, bytes(len(data)))
            torn = bytearray(was)
            for start, stop in _sectors(0, len(data)):
                if rng.random() < 0.5:
                    torn[start:stop] = data[start:stop]
            if any(torn[: wal.HEADER_BYTES]):
                image[name] = bytes(torn)


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_garbage_behind_the_end_is_cleared_before_anything_is_written(seed: int) -> None:
    """What a crash left behind must not be taken for records once the log grows up to it."""
    rng = random.Random(seed)
    written = write((HardState(1, ""), 1, entries(1, 100)), (None, 2, entries(1, 600, 600)))
    last = written.batches[-1]
    data = bytearray(written.data)
    first_sector = _sectors(last.start, last.end)[0]
    data[slice(*first_sector)] = bytes(first_sector[1] - first_sector[0])
    disk = MemoryDisk({PATH: bytes(data)})
    journal = Journal(disk, SIZE)
    assert journal.open().log.last_index == 1
    assert not any(disk.read(PATH)[last.start :])
    journal.write(None, 2, entries(1, rng.randint(0, 900)), lambda error: None)
    assert Journal(disk, SIZE).open().log.last_index == 2
