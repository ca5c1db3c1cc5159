"""Slots and chunks on the disk: images are put together beside what runs, and switched by one record.

The slot that is written is marked unbootable before its first byte changes, and bootable only
after every file was read back and found right.  All of it blocks: in a thread.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fleet import release
from fleet.release import Entry, ReleaseError, Statement, Trust

from . import boot
from .boot import Record
from .slot_places import RESERVE_BYTES, Device, Place, Tree, pieces

#: Seconds for which a chunk is kept that no release has yet: one may just be published here.
FRESH_S = 3600.0


class Chunks:
    """Pieces of images by their hash; each is verified when it is written, and when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, name: str) -> Path:
        """Where a chunk, or a manifest, lies; raises ``ValueError`` for what is no hash."""
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise ValueError(f"{name[:80]!r} is no hash")
        return self.folder / name[:2] / name

    def has(self, name: str) -> bool:
        """Whether a chunk is here."""
        return self.path(name).exists()

    def get(self, name: str) -> bytes | None:
        """A chunk; None if it is not here, or not whole any more (then it is removed)."""
        try:
            data = self.path(name).read_bytes()
        except OSError:
            return None
        if release.digest(data) != name:
            self.path(name).unlink(missing_ok=True)
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a chunk; raises :class:`ReleaseError` if it is not the one, ``OSError`` if there is no room."""
        if release.digest(data) != name:
            raise ReleaseError("damaged", f"a chunk is not the one that was asked for ({name[:12]})")
        path = self.path(name)
        if path.exists():
            os.utime(path)  # whoever puts it here is about to need it
            return
        if shutil.disk_usage(self.folder).free < RESERVE_BYTES + len(data):
            raise OSError(28, f"less than {RESERVE_BYTES // 1024**2} MiB would be free", str(self.folder))
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.part")
        temporary.write_bytes(data)
        os.replace(temporary, path)

    def keep_only(self, names: set[str]) -> int:
        """Remove all others that did not come just now; returns how many that were."""
        removed = 0
        oldest = time.time() - FRESH_S
        for path in self.folder.glob("??/*"):
            if path.name not in names and path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


class Slots:
    """The two slots of a machine, its chunks, and its boot record; see :class:`SlotsPort`."""

    def __init__(self, home: Path, devices: Mapping[str, str] | None = None) -> None:
        """``devices``: the block device of each slot; a slot without one is a directory."""
        self.devices = dict(devices or {})
        self.folder = home / "slots"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.chunks = Chunks(home / "releases")

    def record(self) -> Record:
        """The boot record."""
        return boot.load(self.folder)

    def save(self, record: Record) -> None:
        """Write the boot record."""
        boot.save(self.folder, record)

    def trust(self) -> Trust | None:
        """Whose signatures this machine accepts; None while it was told of nobody.

        Raises :class:`ReleaseError` (``no-key``) for a file that is damaged: nobody is trusted by guess.
        """
        path = self.folder / "trust.json"
        try:
            return release.trust(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ReleaseError(
                "no-key", f"{path} is damaged ({error}); remove it, and the keys that are published now are trusted"
            ) from None

    def keep_trust(self, trusted: Trust) -> None:
        """Accept the signatures of these keys from now on."""
        temporary = self.folder / "trust.part"
        with open(temporary, "wb") as file:
            file.write(release.canonical(trusted.record()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / "trust.json")
        boot.sync_folder(self.folder)

    def missing(self, manifest: str) -> list[str]:
        """Chunks of an image that are in no slot and not kept; the manifest itself alone if it is not here."""
        data = self.chunks.get(manifest)
        if data is None:
            return [manifest]
        wanted = {chunk for entry in release.manifest(data, manifest) for chunk in entry.chunks}
        left = [chunk for chunk in wanted if not self.chunks.has(chunk)]
        if left:
            self._take_from_slots(set(left))
        return sorted(chunk for chunk in left if not self.chunks.has(chunk))

    def _take_from_slots(self, wanted: set[str]) -> None:
        """Chunks that an image here has already are not fetched."""
        for name, about in self.record().slots.items():
            data = self.chunks.get(about.get("manifest", "0" * 64))
            if about.get("state") != "ok" or data is None:
                continue
            entries = release.manifest(data, about["manifest"])
            place = self.place(name, entries)
            for entry in entries:
                for number, chunk in enumerate(entry.chunks):
                    if chunk in wanted and not self.chunks.has(chunk):
                        piece = place.piece(entry, number)
                        if release.digest(piece) == chunk:
                            self.chunks.put(chunk, piece)

    def place(self, slot: str, entries: list[Entry]) -> Place:
        """What a slot is made of, for an image."""
        return Device(self.devices[slot]) if slot in self.devices else Tree(self.folder / slot, entries)

    def write(self, made: Statement, say: Callable[[str], None] = lambda text: None) -> str:
        """Put an image together in the slot that is not in use, and verify it; returns the slot.

        Raises :class:`ReleaseError` (``damaged``) if a chunk is missing or what was written reads
        back otherwise; the slot is unbootable then.
        """
        data = self.chunks.get(made.manifest)
        if data is None:
            raise ReleaseError("damaged", "the manifest is not here")
        entries = release.manifest(data, made.manifest)
        record = self.record()
        slot = record.other
        if record.trial == slot:
            raise ReleaseError("bad", f"slot {slot} is on trial")
        place = self.place(slot, entries)
        about = {"version": made.version, "sequence": made.sequence, "manifest": made.manifest, "source": place.source}
        if record.slots.get(slot) == {**about, "state": "ok"} and not place.difference(entries):
            return slot
        record.slots[slot] = {**about, "state": "writing"}
        self.save(record)
        place.write(entries, self.chunks.get, say)
        wrong = place.difference(entries)
        if wrong:
            raise ReleaseError("damaged", f"slot {slot} reads back otherwise than it was written: {wrong}")
        record.slots[slot] = {**about, "state": "ok"}
        self.save(record)
        return slot

    def begin_trial(self, slot: str, seconds: float) -> None:
        """The next start is from this slot, with so many tries and so much time."""
        record = self.record()
        if record.slots.get(slot, {}).get("state") != "ok":
            raise ReleaseError("damaged", f"slot {slot} is not whole")
        record.trial, record.tries, record.trial_s, record.last, record.refunds = slot, boot.TRIES, seconds, {}, 0
        self.save(record)

    def call_off(self) -> None:
        """What was to be tried was not started: it is neither good nor bad."""
        record = self.record()
        record.trial, record.tries = "", 0
        self.save(record)

    def commit(self, running: str) -> None:
        """What is on trial, and runs, is good."""
        record = self.record()
        if record.trial and record.trial == running:
            about = record.slots[record.trial]
            record.last = {"manifest": about["manifest"], "version": about["version"], "result": "committed", "reason": "", "returned": False}
            record.active, record.trial, record.tries = record.trial, "", 0
            self.save(record)

    def roll_back(self, reason: str, running: str) -> None:
        """What is on trial, and runs, is bad: the next start is from the slot before."""
        record = self.record()
        if record.trial and record.trial == running:
            record.give_up(reason)
            self.save(record)

    def returned(self) -> None:
        """The lock and the drain of the last update were given back."""
        record = self.record()
        if record.last and not record.last["returned"]:
            record.last["returned"] = True
            self.save(record)

    def forget_bad(self, manifest: str = "") -> None:
        """Let a version (or all) that did not work be tried again."""
        record = self.record()
        record.bad = {m: about for m, about in record.bad.items() if manifest and m != manifest}
        self.save(record)

    def tidy(self, also: Iterable[str]) -> int:
        """Keep the chunks of the slots' images, and of those named ``also`` (manifests); returns how many went."""
        kept: set[str] = set()
        manifests = {about["manifest"] for about in self.record().slots.values()} | set(also)
        for name in manifests:
            data = self.chunks.get(name)
            if data is not None:
                kept |= {name, *(chunk for entry in release.manifest(data, name) for chunk in entry.chunks)}
        return self.chunks.keep_only(kept)


def scan(tree: Path) -> tuple[list[Entry], dict[str, tuple[Path, int]]]:
    """The entries of a directory tree, and where each chunk can be read: (file, number).

    A file instead of a tree is the file system that an image holds.  Raises ``OSError``, and
    :class:`ReleaseError` for what an image cannot hold.
    """
    entries: list[Entry] = []
    where: dict[str, tuple[Path, int]] = {}

    def chunks_of(path: Path) -> tuple[str, ...]:
        names = []
        for number, data in enumerate(pieces(path)):
            names.append(release.digest(data))
            where.setdefault(names[-1], (path, number))
        return tuple(names)

    if tree.is_file():
        return [Entry(boot.IMAGE, "file", 0o444, tree.stat().st_size, chunks_of(tree))], where
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            entries.append(Entry(name, "link", target=os.readlink(path)))
        elif path.is_dir():
            entries.append(Entry(name, "dir", path.stat().st_mode & 0o777))
        elif path.is_file():
            entries.append(Entry(name, "file", path.stat().st_mode & 0o777, path.stat().st_size, chunks_of(path)))
        else:
            raise ReleaseError("malformed", f"{path} is no file, directory or link")
    release.check_tree(entries)  # what a machine would refuse is refused when it is made
    return entries, where


