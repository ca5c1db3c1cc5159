"""``argosy-boot``: the launcher outside the slots, and the record that it and the updater share.

It takes a try from the record, starts what is in the slot, and falls back by itself when the
new version crashes, hangs, or is cut off before it was found good.  Only the standard library:
it must work whatever an image has in it.  Usage: ``boot.py DIR ARGUMENT...``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: What a host process exits with that wants to be started anew from the slot that the record names.
REBOOT = 79
#: Tries that a new version has: for crashes and power cuts.  A failed verdict on its health ends it at once.
TRIES = 3
#: Tries that are given back, at most: a version that wants to be started anew for ever does not work.
REFUNDS_MAX = 10
#: Seconds that a new version has until it is kept or given up, whatever it does.
TRIAL_S = 300.0
#: Versions that are remembered as bad.
BAD_MAX = 50
SLOTS = ("A", "B")
#: The one file of an image that is a file system.
IMAGE = "image"
#: How it is mounted, and seconds that may take.
MOUNT_OPTIONS, MOUNT_S = "ro,nodev,nosuid", 60.0


@dataclass(slots=True)
class Record:
    """Which slot is started.  Two copies lie on the disk, the newer valid one counts."""

    seq: int = 0
    #: the slot that is known to be good; empty is what was installed before the first release
    active: str = ""
    #: a slot on trial, and what is left of its tries and seconds
    trial: str = ""
    tries: int = 0
    trial_s: float = TRIAL_S
    #: of each slot: state (``ok``, ``writing`` or ``unreadable``), version, sequence, manifest, and the file system
    #: (``source``) that is mounted to start it, if it is no directory
    slots: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: manifests that did not work here, with the version and the reason: never tried again by themselves
    bad: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: how the last update ended, for whoever tells of it: manifest, result, reason, and whether that is done
    last: dict[str, Any] = field(default_factory=dict)
    #: tries that were given back because the version on trial wanted to be started anew, or was told to end
    refunds: int = 0
    #: what a later version writes and this one does not know: it is kept
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def other(self) -> str:
        """The slot that may be written."""
        return "B" if self.active == "A" else "A"

    def note_bad(self, manifest: str, reason: str, found: str) -> None:
        """Remember a version that did not work, and how it was found; the oldest are forgotten."""
        about = next((slot for slot in self.slots.values() if slot.get("manifest") == manifest), {})
        self.bad.pop(manifest, None)
        self.bad[manifest] = {"version": about.get("version", ""), "reason": reason, "found": found}
        while len(self.bad) > BAD_MAX:
            self.bad.pop(next(iter(self.bad)))

    def give_up(self, reason: str, found: str = "unwell") -> None:
        """The slot on trial is not started any more; ``found``: how that was seen, in a word."""
        manifest = self.slots.get(self.trial, {}).get("manifest", "")
        if manifest:
            self.note_bad(manifest, reason, found)
        self.last = {"manifest": manifest, "version": self.slots.get(self.trial, {}).get("version", ""),
                     "result": "failed", "reason": reason, "returned": False}  # fmt: skip
        self.trial, self.tries = "", 0


def _copies(folder: Path) -> list[Path]:
    return [folder / "boot-0.json", folder / "boot-1.json"]


def load(folder: Path) -> Record:
    """The record in ``folder``; a new one where there is none that is whole."""
    best = Record()
    for path in _copies(folder):
        try:
            text = json.loads(path.read_text())
            body = text["record"]
            if text["sum"] == _sum(body):
                known = {name: value for name, value in body.items() if name in Record.__dataclass_fields__ and name != "more"}
                found = Record(**known, more={name: value for name, value in body.items() if name not in known})
                best = found if found.seq > best.seq else best
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return best


def _sum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def save(folder: Path, record: Record) -> None:
    """Write the record over its older copy: the newer one stays whole whatever happens."""
    record.seq += 1
    body = asdict(record)
    body = {**body.pop("more"), **body}
    path = _copies(folder)[record.seq % 2]
    temporary = path.with_suffix(".part")
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({"record": body, "sum": _sum(body)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make names in a folder last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def choose(folder: Path) -> tuple[str, Record]:
    """The slot to start now (empty: what was installed first); one on trial has a try less afterwards."""
    record = load(folder)
    if record.trial:
        if record.slots.get(record.trial, {}).get("state") != "ok":
            record.give_up("its slot is not whole", "damaged")
            save(folder, record)
        elif record.tries <= 0:
            record.give_up(f"it ended {TRIES} times before it was found good", "crashed")
            save(folder, record)
        else:
            record.tries -= 1
            save(folder, record)
            return record.trial, record
    if record.active and record.slots.get(record.active, {}).get("state") != "ok":
        other = record.other
        record.active = other if record.slots.get(other, {}).get("state") == "ok" else ""
        save(folder, record)
    return record.active, record


def root_of(folder: Path, slot: str, record: Record) -> Path:
    """Where the files of a slot's image are seen: in its directory, or where its file system is mounted."""
    return folder / f"{slot}.mounted" if record.slots.get(slot, {}).get("source") else folder / slot


def mount(folder: Path, slot: str, record: Record) -> None:
    """Show the files of a slot that is a file system, read-only; raises ``OSError`` with what mount(8) says."""
    source, target = record.slots[slot].get("source"), root_of(folder, slot, record)
    if not source:
        return
    target.mkdir(exist_ok=True, mode=0o755)
    if os.path.ismount(target):  # of an image that was there before
        _run("umount", "--lazy", str(target))
    _run("mount", "-o", MOUNT_OPTIONS, str(source), str(target))


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOUNT_S, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"{' '.join(command)}: not done in {MOUNT_S:g} s") from None
    if done.returncode:
        raise OSError(done.stderr.strip() or f"{' '.join(command)}: exit status {done.returncode}")


class Launcher:
    """Starts the host process of a machine, and starts it again where that is its business."""

    def __init__(self, home: Path, arguments: list[str]) -> None:
        self.folder = home / "slots"
        self.arguments = arguments
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = 0

    def run(self) -> int:
        """Until it is told to stop, or a version that is known to be good ends; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        status = 0
        while not self._stopping:
            slot, record = self._choose()
            if self._stopping:
                self._refund(slot)
                break
            try:
                if slot:
                    mount(self.folder, slot, record)
            except OSError as error:
                self._unreadable(slot, error)
                continue
            status = self._one(slot, record)
            if self._stopping or status == REBOOT:
                self._refund(slot)  # it was told to end, or wanted to be started anew: no try is lost
                continue
            now = load(self.folder)
            if slot and now.trial == slot:
                print(f"argosy-boot: version {record.slots[slot].get('version')} on trial ended with {status}; "
                      f"{now.tries} tries are left", file=sys.stderr, flush=True)  # fmt: skip
                time.sleep(0.2)
                continue
            if slot and record.trial == slot and now.active != slot:
                continue  # it was given up while it ran
            return status  # an init system starts us again
        return status

    def _choose(self) -> tuple[str, Record]:
        """What to start; where a try cannot be written down, because the disk is full, what is known to be good."""
        try:
            return choose(self.folder)
        except OSError as error:
            print(f"argosy-boot: the boot record cannot be written: {error}; what is known to be good is started", file=sys.stderr, flush=True)
            record = load(self.folder)
            is_whole = record.slots.get(record.active, {}).get("state") == "ok"
            return record.active if is_whole else "", record

    def _unreadable(self, slot: str, error: OSError) -> None:
        """Its file system cannot be mounted: the other slot is started, and this one not before it is written again."""
        print(f"argosy-boot: slot {slot} cannot be mounted: {error}", file=sys.stderr, flush=True)
        now = load(self.folder)
        if now.trial == slot:
            now.give_up(f"its file system cannot be mounted: {error}", "damaged")
        now.slots[slot]["state"] = "unreadable"
        try:
            save(self.folder, now)
        except OSError as trouble:
            print(f"argosy-boot: the boot record cannot be written: {trouble}", file=sys.stderr, flush=True)
            time.sleep(1.0)

    def _refund(self, slot: str) -> None:
        now = load(self.folder)
        if slot and now.trial == slot and now.refunds < REFUNDS_MAX:
            now.tries, now.refunds = min(TRIES, now.tries + 1), now.refunds + 1
            try:
                save(self.folder, now)
            except OSError as error:
                print(f"argosy-boot: a try could not be given back: {error}", file=sys.stderr, flush=True)

    def _stop(self, number: int, _: Any) -> None:
        self._stopping = number
        if self._child is not None:
            self._child.send_signal(number)

    def _one(self, slot: str, record: Record) -> int:
        environment = dict(os.environ)
        environment["ARGOSY_SLOT"] = slot or "-"
        if slot:
            environment["PYTHONPATH"] = str(root_of(self.folder, slot, record))
            environment["PYTHONPYCACHEPREFIX"] = str(self.folder / "pycache" / slot)  # an image stays as it was signed
            environment["ARGOSY_RELEASE"] = str(record.slots[slot].get("version", ""))
        began = time.monotonic()
        self._child = subprocess.Popen([sys.executable, "-m", "cli.main", *self.arguments], env=environment, cwd="/")
        while True:
            try:
                return self._child.wait(1.0)
            except subprocess.TimeoutExpired:
                now = load(self.folder) if slot else record
                if slot and now.trial == slot and time.monotonic() - began > now.trial_s and not self._stopping:
                    now.give_up(f"it was not found good in {now.trial_s:g} s", "hung")
                    try:
                        save(self.folder, now)
                    except OSError as error:
                        print(f"argosy-boot: {error}", file=sys.stderr, flush=True)
                    self._child.kill()


def main() -> None:
    """``argosy-boot DIR start ...``: DIR is the host's data directory, the rest what ``argosy`` takes."""
    if len(sys.argv) < 3 or not Path(sys.argv[1]).is_dir():
        print("argosy-boot: usage: argosy-boot DATA-DIR start [OPTION...]; DATA-DIR must exist", file=sys.stderr)
        sys.exit(2)
    sys.exit(Launcher(Path(sys.argv[1]), sys.argv[2:]).run())


if __name__ == "__main__":
    main()
