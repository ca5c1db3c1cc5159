"""What an operator does to a host that is stopped: rebuild it, or begin a cluster anew from it."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

from actors.raft_messages import ForwardedChange
from brain import auth, kv, snapshot, tree  # noqa: F401 - commands that a log may hold
from brain.journal import Journal
from brain.restore import refound, replay
from brain.store import Store
from brain.wal import DamagedLogError
from transport import tls
from transport.client import Client, ClientTimeout, Credentials, UnreachableError
from transport.router import RemoteError

from .config import HostConfig
from .host import HostError, Membership, found_cluster, lock_directory

#: Seconds for one step of a membership change, and for all of them.
STEP_S, CHANGE_S = 3.0, 30.0


class _Files:
    """The disk port over a folder that nobody may write to."""

    full = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list(self) -> list[str]:
        """Names, sorted."""
        return sorted(path.name for path in self._folder.iterdir())

    def read(self, name: str) -> bytes:
        """The whole file."""
        return (self._folder / name).read_bytes()

    def submit(self, operations: Any, done: Any) -> None:
        """Nothing is written."""


def _set_aside(folder: Path) -> Path:
    """Keep what was there under another name; nothing is deleted."""
    aside = folder.with_name(f"raft.{time.strftime('%Y%m%dT%H%M%S')}")
    os.replace(folder, aside)
    folder.mkdir(mode=0o700)
    return aside


def _as_machine(folder: Path, membership: Membership, endpoints: list[str]) -> Client:
    identity = folder / "identity"
    files = Credentials()
    if membership.secure:
        files = Credentials(identity / "ca.crt", identity / "host.crt", identity / "host.key")
    return Client(endpoints, files, machine=(membership.cluster, membership.machine))


def resync(config: HostConfig, folder: Path, membership: Membership) -> Path:
    """Give this host's vote back, set its damaged state aside, and let it join anew as a learner.

    The others must take its vote first: a peer that has forgotten what it promised must not vote.
    Returns where the old state lies.
    """
    endpoints = config.join or sorted(membership.seeds.values())
    if not endpoints:
        raise HostError("--resync: no other member is known; --join ADDR names one")
    client = _as_machine(folder, membership, endpoints)
    me = (config.name, config.transport, f"http://{config.client[0]}" if config.client else "")
    deadline = time.monotonic() + CHANGE_S
    while True:
        try:
            client.ask(ForwardedChange("renew", membership.machine, list(me)), STEP_S, "raft")
            break
        except (RemoteError, ClientTimeout, UnreachableError) as error:
            if time.monotonic() > deadline:
                raise HostError(f"--resync: the others did not take its vote: {error}") from None
            time.sleep(0.2)
    client.close()
    aside = _set_aside(folder / "raft")
    membership.wants_vote = config.role == "voter"
    membership.save(folder)
    return aside


def recover(folder: Path, confirm: str) -> dict[str, Any]:
    """One-voter cluster from this host's state, after the majority is lost for good."""
    lock = lock_directory(folder)
    membership = Membership.load(folder)
    if membership is None:
        raise HostError(f"{folder} belongs to no cluster")
    try:
        store, config = replay(Journal(_Files(folder / "raft")).open())
    except (DamagedLogError, OSError) as error:
        raise HostError(f"the state cannot be read: {error}") from None
    info = dict(config.info).get(membership.machine)
    if info is None:
        raise HostError("this host is not a member in its own log")
    if confirm != info[0]:
        raise HostError(f"--confirm: the name of this host, {info[0]}, shows that it is meant; not {confirm!r}")
    others = sorted(config.voters - {membership.machine})
    alive = [m for m in others if _answers(folder, membership, dict(config.info)[m][1])]
    if len(alive) + 1 > len(config.voters) // 2:
        names = ", ".join(dict(config.info)[m][0] for m in alive)
        raise HostError(
            f"{names} can be reached: with this host that is a majority, so nothing is lost; start the host"
        )
    lost_entries = store.revision
    name, data = refound(store, membership.machine, info)
    aside = _set_aside(folder / "raft")
    tls.write_private(folder / "raft" / name, data)
    membership.cluster = secrets.token_hex(16)  # whoever comes back from the old cluster is a stranger
    membership.seeds, membership.wants_vote = {}, False
    membership.save(folder)
    os.close(lock)
    return {"revision": store.revision, "was": lost_entries, "keys": len(store.live), "aside": str(aside)}


def _answers(folder: Path, membership: Membership, address: str) -> bool:
    client = _as_machine(folder, membership, [address])
    try:
        client.ask(ForwardedChange("none", membership.machine, ["", "", ""]), STEP_S, "raft")
    except (UnreachableError, ClientTimeout):
        return False
    except RemoteError:
        return True
    finally:
        client.close()
    return True


def restore(file: Path, config: HostConfig) -> dict[str, Any]:
    """A new cluster of one host with the state of a saved snapshot."""
    folder = Path(config.data_dir).absolute()
    try:
        _, store = snapshot.load(str(file), snapshot.unseal(file.read_bytes()))
    except (DamagedLogError, OSError) as error:
        raise HostError(f"{error}") from None
    if (folder / "host.json").exists():
        raise HostError(f"{folder} belongs to a cluster already; restore makes a new one in an empty directory")
    lock = lock_directory(folder)
    membership = found_cluster(config, folder)
    _put_state(folder, membership, config, store)
    os.close(lock)
    return {"revision": store.revision, "keys": len(store.live), "context": str(folder / "context.toml")}


def _put_state(folder: Path, membership: Membership, config: HostConfig, store: Store) -> None:
    url = f"http://{config.client[0]}" if config.client else ""
    name, data = refound(store, membership.machine, (config.name, config.transport, url))
    tls.write_private(folder / "raft" / name, data)
