"""Machines that renew themselves: a new signed version reaches all of them, then a broken one rolls back by itself.

Three machines with slots serve the founding picture the whole time; a client sees no request fail.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import demo, local
from .demo import APIS, LBS, MACHINES, Client, DemoFailed, Stage
from .local_commands import await_cluster, detach_watcher
from .session import Session

#: What an image of this program holds.
PACKAGES = ("actors", "brain", "cli", "fleet", "gateway", "kernel", "metrics", "runners", "transport")


def run(folder: Path, offset: int, once: bool) -> int:
    """Play it; the exit status."""
    session = Session(str(folder / "context.toml"), "", 60.0)
    try:
        if local.cluster_of(folder):
            local.down(folder)
        shutil.rmtree(folder, ignore_errors=True)
        local.create(folder, MACHINES, offset, slots=True)
        detach_watcher(folder)
        await_cluster(session, MACHINES)
        with Stage(session) as stage:
            _play(stage, session, folder)
    except (DemoFailed, local.LocalError) as error:
        print(f"argosy: demo failed: {error}", file=sys.stderr)
        demo.down(folder)
        return 1
    except SystemExit:
        demo.down(folder)
        raise
    except KeyboardInterrupt:
        demo.down(folder)
        return 130
    if once:
        demo.down(folder)
        print("every step held; everything is stopped")
        return 0
    demo.stay(session, folder, offset)
    return 0


def _play(stage: Stage, session: Session, folder: Path) -> None:
    stage.say(f"{MACHINES} machines with two slots each are up, with the version that was installed")
    demo.submit(stage, session)
    session.ask("kv.put", key="/config/db", value="db-1.example:5432")
    client = Client(demo.lb_ports(session))
    client.start()
    try:
        stage.await_("six servers behind the balancers", lambda: len(client.served_by) == len(APIS), 30)
        _trust(folder)
        session.ask("release.policy", policy={"commit_after": 1.0, "drain_limit": 60.0, "trial_limit": 30.0})
        _new_version(stage, session, folder, client)
        _broken_version(stage, session, folder, client)
    finally:
        client.stop()
    if client.failed:
        raise DemoFailed(f"{client.failed} of {client.good + client.failed} requests failed: {client.last_error}")
    stage.say(f"{client.good} requests, not one failed (slowest {client.slowest_s * 1000:.0f} ms)")


def _argosy(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "--context", str(folder / "context.toml"), "release", *words],
        capture_output=True, text=True, env=local._clean_environment(), check=False,  # noqa: SLF001
    )  # fmt: skip
    if done.returncode:
        raise DemoFailed(f"release {words[0]}: {done.stderr.strip()}")
    return done.stdout


def _trust(folder: Path) -> None:
    """A key to sign with, and the word that it counts, as an operator gives them."""
    key = folder / "release.key"
    public = _argosy(folder, "keygen", str(key)).strip()
    _argosy(folder, "trust", "--public", public, "--key", str(key))


def _publish(folder: Path, version: str, sequence: int, broken: bool) -> None:
    """An image of this very program, with another version; a broken one fails its own check."""
    tree = folder / f"image-{version}"
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        shutil.copytree(root / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    if broken:
        check = tree / "checks" / "required.d" / "self-test"
        check.parent.mkdir(parents=True)
        check.write_text("#!/bin/sh\nexit 1\n")
        check.chmod(0o755)
    file = folder / f"argosy-{version}.release"
    _argosy(folder, "build", str(tree), str(file), "--version", version, "--sequence", str(sequence))
    _argosy(folder, "sign", str(file), "--key", str(folder / "release.key"))
    _argosy(folder, "publish", str(file))


def _machines(session: Session) -> dict[str, dict[str, Any]]:
    return {row["machine"]: row for row in session.try_ask("release.status", 3.0)["machines"]}


def _ports(session: Session) -> list[int]:
    """Of the load balancers that are there at this moment; machines come and go."""
    rows = session.try_ask("unit.list", 3.0)
    return [row["ports"]["http"] for row in rows if row["unit"].startswith("lb@") and row["ports"]]


def _new_version(stage: Stage, session: Session, folder: Path, client: Client) -> None:
    _publish(folder, "0.2.0", 1, broken=False)
    stage.say("version 0.2.0 is built, signed and published; it is rolled out: a canary, then half, then all")
    session.ask("release.rollout", version="0.2.0", plan={"canaries": 1, "waves": [50, 100], "soak": 1.0})
    seen: dict[str, str] = {}

    def over() -> bool:
        client.ports = _ports(session) or client.ports
        rows = _machines(session)
        for name, row in rows.items():
            told = f"{row['state']} (version {row['version']}, slot {row['slot']})"
            if row["state"] in ("draining", "rebooting", "trial", "idle") and seen.get(name) != told:
                seen[name] = told
                stage.say(f"  {name}: {told}")
        free = not session.try_ask("lock.status", 3.0)[0]["holders"]
        return free and len(rows) == MACHINES and all(r["version"] == "0.2.0" and r["state"] == "idle" for r in rows.values())

    stage.await_("version 0.2.0 on every machine", over, 180)
    if {row["version"] for row in session.ask("machine.list")} != {"0.2.0"}:
        raise DemoFailed("a machine says that it runs another version")
    _all_well(stage, session)
    stage.say(f"all machines run 0.2.0; the client saw {client.good} pages, {client.failed} failures")


def _broken_version(stage: Stage, session: Session, folder: Path, client: Client) -> None:
    _publish(folder, "0.3.0-broken", 2, broken=True)
    session.ask("release.policy", policy={"trial_limit": 3.0})
    stage.say("version 0.3.0-broken, which fails its own check, is rolled out")
    session.ask("release.rollout", version="0.3.0-broken", plan={"canaries": 1, "waves": [100], "soak": 1.0, "failures_max": 1})

    def halted() -> bool:
        client.ports = _ports(session) or client.ports
        answer = session.try_ask("release.status", 3.0)
        rows = {row["machine"]: row for row in answer["machines"]}
        back = all(row["version"] == "0.2.0" and row["state"] in ("refused", "halted") for row in rows.values())
        return bool(answer.get("halted")) and back and not session.try_ask("lock.status", 3.0)[0]["holders"]

    stage.await_("the return of the canary, and the halt", halted, 120)
    tried = [row for row in _machines(session).values() if row["failed"]]
    if len(tried) != 1:
        raise DemoFailed(f"{len(tried)} machines tried the broken version, not one")
    stage.say(f"{tried[0]['machine']} tried it, was not well, and went back by itself; no other machine began")
    _all_well(stage, session)


def _all_well(stage: Stage, session: Session) -> None:
    def well() -> bool:
        rows = {row["unit"].removesuffix(".service"): row for row in session.try_ask("unit.list", 3.0)}
        ready = all(row["state"] == "ready" for row in session.try_ask("machine.list", 3.0))
        return ready and all(rows[unit]["health"] == "passing" for unit in [*APIS, *LBS])

    stage.await_("all machines ready and all units healthy", well, 60)
