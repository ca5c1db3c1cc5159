"""Updates: what one moves and how fast an image is verified, and what a rolling reboot of many machines costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from fleet import release
from kernel.sim import Faults, World
from runners.slots import Slots
from tests.sim.slots import Publisher
from tests.sim.stage import Stage

from .hosts import ROOT, ArgosyCluster
from .lab import Lab, median
from .table import Row
from .waiting import until

MIB = 1024 * 1024
#: Share of an image that changes, and of its bytes that may be moved for it.
CHANGED, MOVED_GOAL = 0.05, 0.08
VERIFY_GOAL_MB_S = 400
#: Machines of the rolling reboot, how many of them at once, and the seconds that a start and being found good take.
MACHINES, AT_ONCE, BOOT_S, SETTLE_S = 20, 2, 1.01, 2.0


def images(lab: Lab) -> list[Row]:
    """Three real hosts with slots take an image, and then one of which a twentieth changed."""
    cluster = ArgosyCluster(lab.folder / "slots", slots=True)
    cluster.start()
    try:
        return _images(lab, cluster)
    finally:
        cluster.stop()


def _images(lab: Lab, cluster: ArgosyCluster) -> list[Row]:
    folder = lab.folder / "image"
    tree, files = folder / "tree", lab.effort.image_mib
    tree.mkdir(parents=True)
    for number in range(files):
        (tree / f"{number:04d}").write_bytes(os.urandom(MIB))
    key = str(folder / "key")
    public = _argosy(cluster, "release", "keygen", key).strip()
    _argosy(cluster, "release", "trust", "--public", public, "--key", key)
    _argosy(cluster, "release", "policy", "--window", "2099-01-01 00:00 UTC for 1h")  # fetched and written, not started
    first_s = _offer(cluster, tree, key, 1)
    for number in range(0, files, round(1 / CHANGED)):
        (tree / f"{number:04d}").write_bytes(os.urandom(MIB))
    before = [_received(cluster, machine) for machine in range(cluster.machines)]
    second_s = _offer(cluster, tree, key, 2)
    moved = [_received(cluster, machine) - was for machine, was in enumerate(before)]
    share = max(moved) / (files * MIB)
    return [
        Row(
            f"update of a {files} MiB tree of which {CHANGED:.0%} changed, to the last of three machines",
            f"{share:.1%} of its bytes moved to one machine, {second_s:.1f} s (all of it: {first_s:.1f} s)",
            "-", "-", f"<= {MOVED_GOAL:.0%}", share <= MOVED_GOAL, data={"bytes": moved},
        ),
        _verification(cluster, files),
    ]  # fmt: skip


def _verification(cluster: ArgosyCluster, files: int) -> Row:
    """The files of a slot, read anew and compared with what was signed, beside coreutils' ``sha256sum`` of them."""
    place = Slots(cluster.folder / "m2")
    about = place.record().slots["A"]
    entries = release.manifest(place.chunks.get(about["manifest"]) or b"", about["manifest"])
    ours, theirs = [], []
    for _ in range(5):
        begun = time.perf_counter()
        assert not place.place("A", entries).difference(entries)
        ours.append(files * MIB / 1e6 / (time.perf_counter() - begun))
        begun = time.perf_counter()
        names = [str(place.folder / "A" / entry.path) for entry in entries]
        subprocess.run(["sha256sum", *names], stdout=subprocess.DEVNULL, check=True)
        theirs.append(files * MIB / 1e6 / (time.perf_counter() - begun))
    speed, other = median(ours), median(theirs)
    return Row(
        f"an image of {files} MiB is verified in its slot", f"{speed:,.0f} MB/s", f"sha256sum {other:,.0f} MB/s", f"{speed / other:.2f}x",
        f">= {VERIFY_GOAL_MB_S} MB/s", speed >= VERIFY_GOAL_MB_S, data={"ours": ours, "sha256sum": theirs},
    )  # fmt: skip


def _offer(cluster: ArgosyCluster, tree: Path, key: str, sequence: int) -> float:
    """Build, sign, publish, roll out; seconds from the publication until every machine has it whole in a slot."""
    file, version = str(tree.parent / "r.release"), f"{sequence}.0"
    _argosy(cluster, "release", "build", str(tree), file, "--version", version, "--sequence", str(sequence))
    _argosy(cluster, "release", "sign", file, "--key", key)
    begun = time.perf_counter()
    _argosy(cluster, "release", "publish", file)
    _argosy(cluster, "release", "rollout", version, "--canaries", "3")

    def staged() -> bool:
        """As their boot records have it: no question costs bytes."""
        records = [Slots(cluster.folder / f"m{n + 1}").record() for n in range(cluster.machines)]
        return all(any(s["version"] == version and s["state"] == "ok" for s in record.slots.values()) for record in records)

    until(f"version {version} on all machines", staged, 300.0)
    return time.perf_counter() - begun


def _argosy(cluster: ArgosyCluster, *words: str) -> str:
    where = {"ARGOSY_CONTEXT": str(cluster.folder / "context.toml"), "ARGOSY_ENDPOINT": cluster.session(0).endpoint}
    command = [sys.executable, "-m", "cli.main", *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **where}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"argosy {' '.join(words)}: {done.stderr}")
    return done.stdout


def _received(cluster: ArgosyCluster, machine: int) -> int:
    with urllib.request.urlopen(cluster.url(machine) + "/metrics", timeout=5) as page:
        for line in page.read().decode().splitlines():
            if line.startswith("argosy_transport_received_bytes_total "):
                return int(float(line.split()[1]))
    raise RuntimeError("the page has no argosy_transport_received_bytes_total")


def rolling(lab: Lab) -> list[Row]:
    """Twenty simulated machines with the real actors get a version, two at a time; the seconds are virtual."""
    with tempfile.TemporaryDirectory(dir=lab.folder) as folder, World(3, Faults()) as world:
        made: list[Publisher] = []
        stage = Stage(world, 1, 3, before=lambda fleet: made.append(Publisher(fleet, Path(folder))), agents=MACHINES - 3)
        [publisher] = made
        stage.fleet.do("lock.set-max", max=AT_ONCE)
        stage.fleet.do("release.policy", policy={"commit_after": SETTLE_S, "drain_limit": 30.0, "trial_limit": 20.0})
        publisher.publish("2.0", 1)
        world.run(10)  # what is offered is not fetched before its rollout
        plan = {"canaries": MACHINES, "waves": [100], "soak": 0.0}
        stage.fleet.do("release.rollout", version="2.0", plan=plan)
        stage.wait(lambda: _holders(stage) > 0, 60)
        begun = world.now
        stage.wait(lambda: set(publisher.versions().values()) == {"2.0"} and not _holders(stage), 3000)
        each = (world.now - begun) / (MACHINES / AT_ONCE)
    over = each - BOOT_S - SETTLE_S
    return [
        Row(
            f"rolling reboot of {MACHINES} machines, max={AT_ONCE} (simulated)",
            f"{each:.2f} s each of which boot {BOOT_S:.0f} s and settle {SETTLE_S:.0f} s: {over:.2f} s over",
            "locksmith 5 s-5 min for the hand-over alone (published)", "-", "say it", data={"each_s": each, "over_s": over},
        )
    ]  # fmt: skip


def _holders(stage: Stage) -> int:
    status: list[dict[str, Any]] = stage.fleet.do("lock.status")
    return sum(len(row["holders"]) for row in status)

