"""Slots on a real disk: an end at any write, sync or rename leaves a whole version to start (U2), and nothing is fetched twice (U3)."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fleet import release
from fleet.release import ReleaseError, Statement
from runners import artefact, boot, slot_places, slots
from runners.slots import Slots


class PowerCut(BaseException):
    """Nothing after this is done."""


def image(folder: Path, version: str, big: bytes = b"x" * 200_000) -> Path:
    tree = folder / f"tree-{version}"
    (tree / "bin").mkdir(parents=True)
    (tree / "version").write_text(version)
    (tree / "big").write_bytes(big)
    (tree / "bin" / "run").symlink_to("../version")
    return tree


def offer(place: Slots, tree: Path, version: str, sequence: int) -> Statement:
    entries, where = slots.scan(tree)
    data = release.manifest_bytes(entries)
    for name, (path, number) in where.items():
        place.chunks.put(name, slot_places.piece_of(path, number))
    place.chunks.put(release.digest(data), data)
    return Statement("argosy", version, sequence, 0, 0, 10, release.digest(data), 1)


def started(home: Path) -> str:
    """The version that the launcher would start now, found whole."""
    slot, record = boot.choose(home / "slots")
    if not slot:
        return "factory"
    place = Slots(home)
    about = record.slots[slot]
    entries = release.manifest(place.chunks.get(about["manifest"]) or b"", about["manifest"])
    assert not place.place(slot, entries).difference(entries), f"slot {slot} is not whole"
    return str((home / "slots" / slot / "version").read_text())


def update(place: Slots, made: Statement, good: bool) -> None:
    slot = place.write(made)
    place.begin_trial(slot, 60)
    boot.choose(place.folder)
    place.commit(slot) if good else place.roll_back("it was not well", slot)


_CALLS = ("fsync", "pwrite", "replace", "mkdir", "symlink", "fchmod", "rmdir", "unlink")


def cut_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Raise at the n-th call that changes the disk; the count is in the list."""
    count = [0]

    def guarded(real: Any) -> Any:
        def call(*args: Any, **rest: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                raise PowerCut
            return real(*args, **rest)

        return call

    for name in _CALLS:
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    real_open = builtins.open

    def opened(*args: Any, **rest: Any) -> Any:
        mode = args[1] if len(args) > 1 else rest.get("mode", "r")
        if any(letter in mode for letter in "wxa"):
            count[0] += 1
            if count[0] == number:
                raise PowerCut
        return real_open(*args, **rest)

    monkeypatch.setattr(builtins, "open", opened)
    return count


@pytest.mark.parametrize("good", [True, False])
def test_u2_an_end_at_any_point_leaves_a_whole_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bool) -> None:
    """The one before, or the new one; and the update can be done again afterwards."""
    base = tmp_path / "base"
    place = Slots(base)
    first = offer(place, image(tmp_path, "1"), "1", 1)
    update(Slots(base), first, True)
    second = offer(place, image(tmp_path, "2", b"y" * 150_000), "2", 2)
    assert started(base) == "1"
    number = 0
    while True:
        number += 1
        home = tmp_path / "home"
        shutil.copytree(base, home, symlinks=True)
        with monkeypatch.context() as patch:
            count = cut_at(patch, number)
            try:
                update(Slots(home), second, good)
                ended = True
            except PowerCut:
                ended = False
        assert started(home) in (("1", "2") if good else ("1", "2")), number
        if ended:
            assert started(home) == ("2" if good else "1")
            break
        for _ in range(boot.TRIES + 1):
            started(home)  # what was on trial, and never found good, is given up
        if Slots(home).record().active != "B":
            assert started(home) == "1"
            update(Slots(home), second, True)
        assert started(home) == "2"
        shutil.rmtree(home)
    assert number > 15 and count[0] == number - 1
    print(f"{number - 1} points, after each of which a whole version starts")


def test_u3_only_what_changed_is_fetched_and_a_damaged_piece_is_fetched_again(tmp_path: Path) -> None:
    """Pieces of both slots are used; one that is damaged is found."""
    place = Slots(tmp_path / "home")
    big = os.urandom(40 * release.CHUNK_BYTES)
    first = offer(place, image(tmp_path, "1", big), "1", 1)
    update(Slots(tmp_path / "home"), first, True)
    long_ago = time.time() - slots.FRESH_S - 10
    for path in place.chunks.folder.glob("??/*"):
        os.utime(path, (long_ago, long_ago))
    place.chunks.put(release.digest(b"new"), b"new")
    place.chunks.put(first.manifest, place.chunks.get(first.manifest) or b"")
    assert place.tidy([]) == 0, "the running image's pieces, and one that somebody is about to publish"
    os.utime(place.chunks.path(release.digest(b"new")), (long_ago, long_ago))
    assert place.tidy([]) == 1
    other = Slots(tmp_path / "publisher")
    changed = big[: 2 * release.CHUNK_BYTES] + os.urandom(release.CHUNK_BYTES) + big[3 * release.CHUNK_BYTES :]
    second = offer(other, image(tmp_path, "2", changed), "2", 2)
    assert place.missing(second.manifest) == [second.manifest]
    place.chunks.put(second.manifest, other.chunks.get(second.manifest) or b"")
    missing = place.missing(second.manifest)
    assert len(missing) == 2, "the changed piece of the big file, and the version"
    with pytest.raises(ReleaseError, match="not the one that was asked for"):
        place.chunks.put(missing[0], b"something else")
    for name in missing:
        place.chunks.put(name, other.chunks.get(name) or b"")
    path = place.chunks.path(missing[0])
    path.write_bytes(b"damaged")
    with pytest.raises(ReleaseError):
        place.write(second)
    assert started(tmp_path / "home") == "1" and place.missing(second.manifest) == [missing[0]]
    place.chunks.put(missing[0], other.chunks.get(missing[0]) or b"")
    update(Slots(tmp_path / "home"), second, True)
    assert started(tmp_path / "home") == "2"


def test_a_slot_that_reads_back_otherwise_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a write."""
    place = Slots(tmp_path / "home")
    first = offer(place, image(tmp_path, "1"), "1", 1)
    monkeypatch.setattr(boot, "sync_folder", lambda folder: (folder / "big").write_bytes(b"lost") if (folder / "big").exists() else None)
    with pytest.raises(ReleaseError, match="reads back otherwise"):
        place.write(first)
    assert place.record().slots["A"]["state"] == "writing" and started(tmp_path / "home") == "factory"
    with pytest.raises(ReleaseError, match="not whole"):
        place.begin_trial("A", 60)


def test_the_record_survives_the_loss_of_either_copy(tmp_path: Path) -> None:
    """Damaged, empty or gone: the other one counts."""
    folder = tmp_path / "slots"
    folder.mkdir()
    for number in range(1, 4):
        record = boot.load(folder)
        record.bad[f"{number}"] = {"version": "x", "reason": "y"}
        boot.save(folder, record)
    newest = folder / f"boot-{3 % 2}.json"
    newest.write_text(newest.read_text()[:-10])
    assert boot.load(folder).seq == 2
    (folder / "boot-0.json").write_text(json.dumps({"record": {}, "sum": "0"}))
    assert boot.load(folder).seq == 0


def launch(home: Path, script: str) -> Path:
    """A slot with a program of its own, on trial; beside the one that was installed first."""
    place = Slots(home)
    tree = home.parent / f"tree-{len(list(home.parent.glob('tree-*')))}"
    (tree / "cli").mkdir(parents=True)
    (tree / "cli" / "__init__.py").touch()
    (tree / "cli" / "main.py").write_text(script)
    made = offer(place, tree, "9", 9)
    place.begin_trial(place.write(made), 2.0)
    return place.folder


def launched(home: Path) -> list[str]:
    """The slots that a launcher starts, one after another, until one ends well; what was installed first ends at once."""
    seen: list[str] = []
    launcher = boot.Launcher(home, ["start"])
    real = launcher._one

    def one(slot: str, record: boot.Record) -> int:
        seen.append(slot)
        return real(slot, record) if slot else 0

    launcher._one = one  # type: ignore[method-assign]
    assert launcher.run() == 0
    return seen


@pytest.mark.parametrize(
    ("script", "told"),
    [("raise SystemExit(3)", "ended 3 times"), ("import time; time.sleep(600)", "not found good in 2 s")],
)
def test_u4_the_launcher_falls_back_from_what_crashes_or_hangs(tmp_path: Path, script: str, told: str) -> None:
    """By itself; what was installed first is started then."""
    home = tmp_path / "home"
    folder = launch(home, script)
    seen = launched(home)
    record = boot.load(folder)
    assert seen[-1] == "" and seen.count("A") == (boot.TRIES if "SystemExit" in script else 1)
    assert told in record.last["reason"] and told in next(iter(record.bad.values()))["reason"]


def test_an_intended_reboot_in_the_trial_costs_no_try(tmp_path: Path) -> None:
    """Up to a number that no version needs; one that wants it for ever is given up."""
    home = tmp_path / "home"
    marker = tmp_path / "count"
    folder = launch(home, f"import sys\nwith open({str(marker)!r}, 'a') as f: f.write('x')\n"
                          f"sys.exit({boot.REBOOT} if len(open({str(marker)!r}).read()) < 6 else 5)")  # fmt: skip
    launched(home)
    assert len(marker.read_text()) == 5 + boot.TRIES and "ended 3 times" in boot.load(folder).last["reason"]


def test_a_version_that_wants_to_be_started_anew_for_ever_is_given_up(tmp_path: Path) -> None:
    home, marker = tmp_path / "home", tmp_path / "count"
    folder = launch(home, f"import sys\nwith open({str(marker)!r}, 'a') as f: f.write('x')\nsys.exit({boot.REBOOT})")
    launched(home)
    assert len(marker.read_text()) == boot.TRIES + boot.REFUNDS_MAX and not boot.load(folder).trial


def test_with_a_full_disk_what_is_known_to_be_good_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The try of a new version cannot be written down: it is not started, and the machine runs."""
    folder = launch(tmp_path / "home", "import sys; sys.exit(3)")
    started: list[str] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(boot, "save", full)
    launcher = boot.Launcher(tmp_path / "home", ["start"])
    launcher._one = lambda slot, record: started.append(slot) or 0  # type: ignore[method-assign,func-returns-value]
    assert launcher.run() == 0 and started == [""]
    assert boot.load(folder).trial and boot.load(folder).tries == boot.TRIES


def test_a_record_of_a_later_version_is_read_and_what_is_not_known_of_it_is_kept(tmp_path: Path) -> None:
    record = boot.Record(active="A", more={"invented": [1]})
    boot.save(tmp_path, record)
    boot.save(tmp_path, boot.load(tmp_path))
    assert (boot.load(tmp_path).active, boot.load(tmp_path).more) == ("A", {"invented": [1]})


def test_one_file_holds_a_release_and_says_when_it_is_damaged(tmp_path: Path) -> None:
    """Built, signed, read; a flipped bit anywhere is found."""
    file = tmp_path / "r.release"
    tree = image(tmp_path, "1", os.urandom(100_000))
    made = artefact.build(tree, file, "argosy", "1", 1, 0, 0, 10)
    private, public = artefact.make_key()
    artefact.sign(file, private)
    read = artefact.Artefact(file)
    release.check_signatures(read.envelope, release.Trust(1, 1, (public,)))
    assert read.statement == made and sum(len(data) for _, data in read.chunks()) == made.size
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ReleaseError, match="damaged"):
        list(artefact.Artefact(file).chunks())
    assert sys.version_info >= (3, 11)


def test_a_file_that_is_no_release_is_told_so(tmp_path: Path) -> None:
    """Whatever its first lines hold."""
    file = tmp_path / "r.release"
    for header in ("[]", "[" * 60_000, '{"envelope": 7, "manifest_bytes": 1}', '{"envelope": {"signed": [], "signatures": {}}, "manifest_bytes": 1}',
                   '{"envelope": {"signed": {}, "signatures": []}, "manifest_bytes": 1}', '{"envelope": {}, "manifest_bytes": "x"}'):  # fmt: skip
        file.write_bytes(b"argosy-release 1\n" + header.encode() + b"\nx")
        with pytest.raises(ReleaseError):
            artefact.Artefact(file)


def test_keys_that_cannot_be_read_are_nobodys(tmp_path: Path) -> None:
    """They are not replaced by a guess; none at all is another thing."""
    place = Slots(tmp_path)
    assert place.trust() is None
    for text in ("", "{}", "\x00"):
        (place.folder / "trust.json").write_text(text)
        with pytest.raises(ReleaseError, match=r"trust\.json is damaged.*remove it"):
            place.trust()
