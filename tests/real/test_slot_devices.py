"""Slots on block devices, real ones: loop devices that the kernel makes of files, with ext4 on them (U2, U3, U4)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import release
from fleet.release import CHUNK_BYTES, ReleaseError
from runners import boot
from runners.slots import Slots

from .test_slots import PowerCut, cut_at, image, launched, offer, update

DEVICE_BYTES = 8 * 1024 * 1024


def _why_not() -> str:
    """What is missing for a loop device and a mount; they are the kernel's to give, the tools are not."""
    if not shutil.which("losetup") or not shutil.which("mke2fs"):
        assert not os.environ.get("CI"), "as root: apt-get install mount e2fsprogs"
        return "as root: apt-get install mount e2fsprogs"
    if os.geteuid() != 0:
        return "only root makes loop devices and mounts: run as root"
    tried = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"this kernel gives no loop device: {tried.stderr.strip()}"


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, str]]:
    """One for each slot."""
    made = {}
    for slot in boot.SLOTS:
        file = tmp_path / f"device-{slot}"
        file.write_bytes(b"\xff" * DEVICE_BYTES)
        made[slot] = subprocess.run(["losetup", "-f", "--show", str(file)], capture_output=True, text=True, check=True).stdout.strip()
    yield made
    for target in tmp_path.glob("**/*.mounted"):
        subprocess.run(["umount", "--lazy", str(target)], capture_output=True, check=False)
    for device in made.values():
        subprocess.run(["losetup", "-d", device], check=True)


def file_system(folder: Path, name: str, files: dict[str, str], kib: int = 2048) -> Path:
    """An ext4 file system with these files."""
    tree, out = folder / f"content-{name}", folder / f"{name}.ext4"
    for path, text in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(out), f"{kib}k"], check=True)
    return out


def content(device: str, size: int = DEVICE_BYTES) -> bytes:
    with open(device, "rb") as file:
        return file.read(size)


def restore(device: str, data: bytes) -> None:
    with open(device, "r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def started(place: Slots) -> str:
    """The version that the launcher would start now, found whole on its device."""
    slot, record = boot.choose(place.folder)
    if not slot:
        return "factory"
    about = record.slots[slot]
    assert about["source"] == place.devices[slot]
    entries = release.manifest(place.chunks.get(about["manifest"]) or b"", about["manifest"])
    assert not place.place(slot, entries).difference(entries), f"slot {slot} is not whole"
    return str(about["version"])


@pytest.mark.parametrize("good", [True, False])
def test_u2_an_end_at_any_point_leaves_a_whole_version_on_a_device(
    tmp_path: Path, devices: dict[str, str], monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    """The one before or the new one, whatever write, sync or rename was the last."""
    base = tmp_path / "base"
    place = Slots(base, devices)
    first = offer(place, file_system(tmp_path, "1", {"version": "1"}, 512), "1", 1)
    update(place, first, True)
    second = offer(place, file_system(tmp_path, "2", {"version": "2"}, 768), "2", 2)
    before = {slot: content(device) for slot, device in devices.items()}
    number = 0
    while True:
        number += 1
        home = tmp_path / "home"
        shutil.copytree(base, home, symlinks=True)
        for slot, device in devices.items():
            restore(device, before[slot])
        again = Slots(home, devices)
        with monkeypatch.context() as patch:
            count = cut_at(patch, number)
            try:
                update(again, second, good)
                ended = True
            except PowerCut:
                ended = False
        assert started(again) in ("1", "2"), number
        if ended:
            assert started(again) == ("2" if good else "1")
            break
        for _ in range(boot.TRIES + 1):
            started(again)
        if again.record().active != "B":
            assert started(again) == "1"
            update(again, second, True)
        assert started(again) == "2"
        shutil.rmtree(home)
    assert number > 15 and count[0] == number - 1


def test_u3_only_what_changed_is_fetched_and_written_to_a_device(
    tmp_path: Path, devices: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces come from the device that runs; those that lie there already are not written again."""
    place, other = Slots(tmp_path / "home", devices), Slots(tmp_path / "publisher")
    data = bytearray(os.urandom(40 * CHUNK_BYTES + 100))
    (tmp_path / "one").write_bytes(data)
    first = offer(place, tmp_path / "one", "1", 1)
    update(place, first, True)
    update(place, first, True)  # both slots hold it now
    place.chunks.keep_only(set())
    for path in place.chunks.folder.glob("??/*"):
        path.unlink() if path.name != first.manifest else None
    data[7 * CHUNK_BYTES] ^= 1
    (tmp_path / "two").write_bytes(data)
    second = offer(other, tmp_path / "two", "2", 2)
    place.chunks.put(second.manifest, other.chunks.get(second.manifest) or b"")
    [missing] = place.missing(second.manifest)
    place.chunks.put(missing, other.chunks.get(missing) or b"")
    written: list[int] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, piece, at: written.append(at) or real(handle, piece, at))  # type: ignore[func-returns-value]
    update(place, second, True)
    assert written == [7 * CHUNK_BYTES]
    assert content(devices[place.record().active], len(data)) == bytes(data)


def test_a_device_takes_what_fits_and_what_is_for_it(tmp_path: Path, devices: dict[str, str]) -> None:
    """Too large, a tree of files, no device at all, one that is mounted: refused, with the reason, and what runs stays."""
    place = Slots(tmp_path / "home", devices)
    first = offer(place, file_system(tmp_path, "1", {"version": "1"}), "1", 1)
    update(place, first, True)
    (tmp_path / "large").write_bytes(b"x" * (DEVICE_BYTES + 1))
    with pytest.raises(OSError, match="does not fit"):
        place.write(offer(place, tmp_path / "large", "2", 2))
    with pytest.raises(ReleaseError, match="not a tree of files"):
        place.write(offer(place, image(tmp_path, "3"), "3", 3))
    wrong = Slots(tmp_path / "home", {**devices, "B": str(tmp_path / "large")})
    with pytest.raises(OSError, match="no block device"):
        wrong.write(offer(place, tmp_path / "1.ext4", "4", 4))
    assert started(place) == "1"
    record = place.record()
    boot.mount(place.folder, "A", record)
    assert (boot.root_of(place.folder, "A", record) / "version").read_text() == "1"
    boot.mount(place.folder, "A", record)  # once more is no error
    record.active = "B"
    place.save(record)
    with pytest.raises(OSError, match=r"[Bb]usy"):
        place.write(offer(place, tmp_path / "1.ext4", "5", 5))


@pytest.mark.parametrize("on_device", [True, False])
def test_the_launcher_starts_what_is_in_a_file_system(tmp_path: Path, devices: dict[str, str], on_device: bool) -> None:
    """Mounted read-only, from a device or from a file in a directory; one that cannot be mounted is not started, the other is."""
    home = tmp_path / "home"
    place = Slots(home, devices if on_device else {})
    marker = tmp_path / "marker"
    program = f"import os\nopen({str(marker)!r}, 'a').write(os.environ['ARGOSY_RELEASE'] + ' ' + os.path.dirname(os.path.dirname(__file__)) + '\\n')\n"
    for version in ("1", "2"):
        made = offer(place, file_system(tmp_path, version, {"cli/__init__.py": "", "cli/main.py": program, "version": version}), version, int(version))
        slot = place.write(made)
        place.begin_trial(slot, 60)
        record = boot.choose(place.folder)[1]
        place.commit(slot)
    assert launched(home) == ["B"]
    assert marker.read_text() == f"2 {place.folder / 'B.mounted'}\n"
    with pytest.raises(OSError, match="[Rr]ead-only"):
        (place.folder / "B.mounted" / "x").touch()
    subprocess.run(["umount", str(place.folder / "B.mounted")], check=True)
    target = devices["B"] if on_device else str(place.folder / "B" / "image")
    os.chmod(target, 0o644)
    with open(target, "r+b") as file:
        file.write(b"\0" * 65536)
    assert launched(home) == ["A"], "what was good before is started"
    assert marker.read_text().splitlines()[-1] == f"1 {place.folder / 'A.mounted'}"
    record = place.record()
    assert (record.active, record.slots["B"]["state"]) == ("A", "unreadable")


def test_one_on_trial_that_cannot_be_mounted_is_given_up_at_once(tmp_path: Path, devices: dict[str, str]) -> None:
    """As damaged; what was installed first is started."""
    home = tmp_path / "home"
    place = Slots(home, devices)
    (tmp_path / "noise").write_bytes(os.urandom(100_000))
    place.begin_trial(place.write(offer(place, tmp_path / "noise", "7", 7)), 60)
    assert launched(home) == [""]
    record = place.record()
    assert not record.trial and next(iter(record.bad.values()))["found"] == "damaged"
    assert "cannot be mounted" in record.last["reason"] and record.last["result"] == "failed"
