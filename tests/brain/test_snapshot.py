"""Snapshot files: the whole store comes back, and a file that was changed is refused."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain import (  # noqa: F401 - the tree registers its commands
    kv,  # noqa: F401 - registers its commands
    snapshot,
    store,
    tree,
)
from brain.raft import Config
from brain.snapshot import MAGIC, Meta
from brain.store import Store
from brain.wal import DamagedLogError

META = Meta(
    42, 3,
    Config(
        frozenset({"m1", "m2"}), frozenset({"m3"}), frozenset({"m0"}),
        (("m1", ("one", "127.0.0.1:7001", "http://x")), ("m2", ("two", "", ""))),
    ),
)  # fmt: skip
PATH = snapshot.file_name(42)


def rich() -> Store:
    """A store with some of everything."""
    made = Store()
    for command in (
        ["lease_grant", 7, 60_000], ["lease_grant", 8, 5_000],
        ["put", b"/a", b"1", 7], ["put", b"/a", b"2", 7], ["put", b"\xff\x00odd", b"", 0],
        ["put", b"/gone", b"x"], ["delete", b"/gone"],
        ["v2_set", "/dir/file", b"v2", 9_000, False], ["v2_set", "/empty", b"", 3_000, True],
        ["v2_update", "/dir/file", None, 20_000, True], ["v2_update", "/empty", None, 30_000, False],
        ["v2_create", "/queue", b"job", None, False, True], ["v2_set", "/doomed/x", b"1", None, False],
        ["v2_delete", "/doomed", False, True],
        ["lock", "default", "acquire", {"machine": "m1", "reason": "r", "boot_id": "b", "wait": True}],
        ["lock", "default", "acquire", {"machine": "m2", "reason": "r", "boot_id": "b", "wait": True}],
        ["compact", 4],
    ):  # fmt: skip
        result, _ = made.apply(1_000, command)
        assert not isinstance(result, store.StoreError), (command, result)
    return made


def everything(made: Store) -> dict[str, object]:
    """All that a store is, comparable."""
    return {
        "numbers": (made.revision, made.compacted, made.log_time_ms, made.hash),
        "live": dict(made.live),
        "history": {key: list(versions) for key, versions in made.history.items()},
        "events": list(made.events),
        "leases": {lease: (held.ttl_ms, held.keys) for lease, held in made.leases.items()},
        "dirs": {path: (d.created, d.modified, d.expires) for path, d in made.dirs.items()},
        "expiry": made.next_expiry_ms(),
    }


def test_everything_comes_back() -> None:
    """Keys, history, events with their notes, leases and their keys, directories, expiries."""
    made = rich()
    meta, back = snapshot.load(PATH, snapshot.dump(META, made))
    assert meta == META
    assert everything(back) == everything(made)


def test_a_restored_store_goes_on_as_the_original() -> None:
    """The same commands give the same results, events and hash on both."""
    made = rich()
    _, back = snapshot.load(PATH, snapshot.dump(META, made))
    for command in (
        ["put", b"/a", b"3"], ["lease_revoke", [7]], ["v2_set", "/dir/other", b"", None, False],
        ["lock", "default", "release", {"machine": "m1", "token": 13, "force": True}], ["expire"],
        ["v2_delete", "/dir", False, True], ["delete", b"", b""], ["compact", 12],
    ):  # fmt: skip
        one, two = made.apply(50_000, command), back.apply(50_000, command)
        assert str(one) == str(two)
        assert everything(made) == everything(back)
    assert snapshot.dump(META, made) == snapshot.dump(META, back)


keys = st.sampled_from([b"/a", b"/a/b", b"/c", b"x", b"\xff", b""])
commands = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=5), st.sampled_from([0, 1, 2])),
    st.tuples(st.just("delete"), keys, st.none() | keys),
    st.tuples(st.just("lease_grant"), st.sampled_from([1, 2]), st.just(5_000)),
    st.tuples(st.just("lease_revoke"), st.lists(st.sampled_from([1, 2]), max_size=2)),
    st.tuples(st.just("compact"), st.integers(0, 12)),
    st.tuples(st.just("v2_set"), st.sampled_from(["/a", "/a/b", "/d/e"]), st.binary(max_size=3),
              st.none() | st.just(1_000), st.booleans()),
    st.tuples(st.just("v2_delete"), st.sampled_from(["/a", "/d"]), st.booleans(), st.booleans()),
    st.tuples(st.just("expire")),
)  # fmt: skip


@given(st.lists(commands, max_size=15))
@settings(max_examples=60)
def test_any_store_comes_back(history: list[tuple[object, ...]]) -> None:
    """After any commands, refused ones included."""
    made = Store()
    for now, command in enumerate(history):
        made.apply(now * 400, list(command))
    _, back = snapshot.load(PATH, snapshot.dump(META, made))
    assert everything(back) == everything(made)


def test_every_flipped_bit_is_found() -> None:
    """Any single bit of the file: refused, by the file's name and an offset."""
    data = snapshot.dump(META, rich())
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(DamagedLogError, match=PATH) as caught:
            snapshot.load(PATH, bytes(changed))
        assert 0 <= caught.value.offset <= len(data)


def test_a_file_that_ends_early_or_late_is_refused() -> None:
    """At every length, also exactly between two records, and with anything behind its end."""
    data = snapshot.dump(META, rich())
    for at in range(len(data)):
        with pytest.raises(DamagedLogError):
            snapshot.load(PATH, data[:at])
    for more in (b"\0", b"x" * 100, data):
        with pytest.raises(DamagedLogError, match="end does not fit"):
            snapshot.load(PATH, data + more)


def _records(data: bytes) -> list[bytes]:
    at = len(snapshot.MAGIC)
    records = []
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        records.append(data[at : at + 8 + length])
        at += 8 + length
    return records


@pytest.mark.parametrize("seed", range(20))
def test_a_record_that_was_lost_or_repeated_is_noticed(seed: int) -> None:
    """Each record is whole, and the count at the end does not fit."""
    records = _records(snapshot.dump(META, rich()))
    at = random.Random(seed).randrange(1, len(records) - 1)
    for changed in ([*records[:at], *records[at + 1 :]], [*records[:at], records[at], *records[at:]]):
        with pytest.raises(DamagedLogError, match="not fit"):
            snapshot.load(PATH, snapshot.MAGIC + b"".join(changed))


def test_a_file_without_a_head_is_refused() -> None:
    """The first record says what the rest stands for."""
    records = _records(snapshot.dump(META, rich()))
    with pytest.raises(DamagedLogError, match="no head"):
        snapshot.load(PATH, snapshot.MAGIC + b"".join(records[1:]))
    with pytest.raises(DamagedLogError, match="this is not a snapshot"):
        snapshot.load(PATH, b"something else entirely")


@pytest.mark.parametrize(
    ("name", "index"),
    [(snapshot.file_name(0), 0), (snapshot.file_name(10**15), 10**15), ("snap-.snap", None),
     ("snap-12.tmp", None), ("snap-x.snap", None), ("wal-0000000001.log", None)],
)  # fmt: skip
def test_file_names(name: str, index: int | None) -> None:
    """Only our own names are taken for snapshots, and they sort by index."""
    assert snapshot.file_index(name) == index


def test_file_names_sort_by_index() -> None:
    """The newest is the last of a listing."""
    indexes = [1, 9, 10, 99, 10**6, 10**12]
    assert sorted(map(snapshot.file_name, indexes)) == [snapshot.file_name(i) for i in indexes]


@pytest.mark.parametrize("size", [0, 1, 477, 478, 479, 480, 481, 510, 511, 512, 100_000])
def test_a_sealed_file_is_what_it_was(size: int) -> None:
    """etcd's tools take it for whole; we take the seal off, and see when it does not fit."""
    data = bytes(n % 251 for n in range(size))
    sealed = data + snapshot.seal(size, lambda filling: hashlib.sha256(data + filling).digest())
    assert len(sealed) % 512 == 32
    assert snapshot.unseal(sealed) == data
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    assert snapshot.unseal(damaged) == damaged


def test_a_sealed_snapshot_that_was_changed_is_refused() -> None:
    """The seal that does not fit any more is taken for a part of the file, and does not fit there either."""
    data = snapshot.dump(META, Store())
    sealed = data + snapshot.seal(len(data), lambda filling: hashlib.sha256(data + filling).digest())
    assert snapshot.load(PATH, snapshot.unseal(sealed))[0] == META
    for at in (len(MAGIC) + 9, len(data) + 3, len(sealed) - 1):
        with pytest.raises(DamagedLogError):
            snapshot.load(PATH, snapshot.unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]))
