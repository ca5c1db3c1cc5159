"""A state that is read out while the store goes on: the same bytes as if it had stood still."""

from __future__ import annotations

import random

import pytest

from brain import image, kv, loader, tree  # noqa: F401 - the commands register themselves
from brain.image import Image
from brain.store import Store


def change(target: Store, rng: random.Random, now: int) -> None:
    """One command of any kind that touches keys, leases, directories or history."""
    key = b"/k/%d" % rng.randrange(40)
    lease = rng.choice([0, 0, *list(target.leases)[:3]])
    command = rng.choice([
        ["put", key, rng.randbytes(rng.randrange(6)), lease],
        ["put", key, rng.randbytes(3), 0],
        ["delete", key],
        ["delete", key, b"/k/%d" % rng.randrange(40)],
        ["txn", [], [["put", key, b"t", 0], ["delete", b"/k/x"], ["put", b"/k/y", b"", 0]], []],
        ["lease_grant", rng.randrange(1, 6), 5000],
        ["lease_revoke", [rng.randrange(1, 6)]],
        ["compact", max(0, target.revision - rng.randrange(12))],
        ["v2_set", f"/k/d{rng.randrange(3)}/f", b"v", rng.choice([None, 50]), False],
        ["v2_delete", f"/k/d{rng.randrange(3)}", False, True],
        ["expire"],
    ])  # fmt: skip
    target.apply(now, command)


@pytest.mark.parametrize("seed", range(60))
def test_an_image_shows_one_moment_however_long_it_is_read(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written, deleted, compacted or forgotten meanwhile."""
    monkeypatch.setattr(image, "ROWS_PER_RECORD", 3)
    monkeypatch.setattr(image, "RECORD_BYTES", 150)
    rng = random.Random(seed)
    target = Store()
    target.history_revisions = 15
    for now in range(rng.randrange(120)):
        change(target, rng, now)
    expected = loaded(list(target.dump()))
    frozen = Image(target)
    records = []
    for record in frozen.records():
        records.append(record)
        for now in range(rng.randrange(4)):
            change(target, rng, 200 + now)
    assert loaded(records) == expected
    assert not target.images


def loaded(records: list[bytes]) -> list[bytes]:
    """The canonical form of what was read out: restored, and read out again at once."""
    from brain.codec import decode

    back = loader.load([decode(record) for record in records])
    return list(back.dump())


def test_an_image_that_is_given_up_holds_nothing() -> None:
    """Closed by hand, or with its reader."""
    target = Store()
    target.apply(0, ["put", b"a", b"", 0])
    Image(target).close()
    reader = Image(target).records()
    next(reader)
    assert len(target.images) == 1
    reader.close()
    assert not target.images


def test_a_version_is_written_once_and_no_record_is_much_longer_than_a_value() -> None:
    """Also when one command superseded everything there is."""
    value = bytes(100_000)
    target = Store()
    for round_number in range(3):
        for number in range(20):
            target.apply(0, ["put", b"%d" % number, bytes([round_number]) + value, 0])
    target.apply(0, ["delete", b"", b""])
    records = list(target.dump())
    assert sum(map(len, records)) < 60 * len(value) * 1.02
    assert max(map(len, records)) < image.RECORD_BYTES + len(value) + 1000
    assert loaded(records) == records
