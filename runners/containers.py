"""The containers of one machine, in the Docker Engine: the port that ``processes`` is for processes.

The engine is the parent of the workload, so it outlives the host process; a container is
found again by its labels, and its name makes a second one impossible.  No call to the
engine is made on the event loop.  The machine's lease is kept by ``container_guard.py``.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fleet.secrets import Secret

from . import logs
from .container_handle import MACHINE, RECORD_FILE, UNIT, ContainerHandle
from .engine import Engine, EngineAway, Seen
from .processes import DIRECTORY_VARIABLE, Event, folder_name, unit_name
from .shim.facts import LEASE, boottime

logger = logging.getLogger("argosy.containers")

T = TypeVar("T")
_GUARD = Path(__file__).with_name("container_guard.py")
#: Calls, and pulls, that run at once; more wait for their turn.
CALLS_AT_ONCE = 8
PULLS_AT_ONCE = 3
#: Seconds between two looks whether the guard lives, and those it has to start.
GUARD_LOOK_S = 5.0
GUARD_START_S_MAX = 20.0
#: Seconds that an unknown container is left alone before a sweep removes it.
SWEEP_GRACE_S = 60.0
CLUSTER = "argosy.cluster"
#: Files in the machine's directory.
GUARD_LOCK_FILE = "guard.lock"
GUARD_ENDED_FILE = "guard.ended"

class Containers:
    """The containers of one machine.  ``base`` is the machine's directory.

    ``prefix`` begins the names of containers; where several machines share one engine it
    must tell them apart.
    """

    def __init__(
        self, base_url: str, loop: asyncio.AbstractEventLoop, base: Path, machine: str, cluster: str,
        prefix: str = "argosy-", sweep_grace_s: float = SWEEP_GRACE_S,
    ) -> None:  # fmt: skip
        self.engine = Engine(base_url)
        self.loop = loop
        self.base = base
        self.labels = {CLUSTER: cluster, MACHINE: machine}
        self.handles: dict[str, ContainerHandle] = {}
        self.pulls = asyncio.Semaphore(PULLS_AT_ONCE)
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._machine = machine
        self._prefix = prefix
        self._sweep_grace_s = sweep_grace_s
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._turns: dict[str, asyncio.Lock] = {}
        self._under_way: dict[str, set[asyncio.Future[Any]]] = {}
        self._unknown: dict[str, float] = {}
        self._guarding: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._guard_lock = threading.Lock()
        self._lease_file = base / "lease"
        self._units = base / "units"
        self._units.mkdir(parents=True, exist_ok=True)
        shared = Path("/run")  # in memory, where we may
        self._secrets = shared / "argosy-secrets" / machine if os.access(shared, os.W_OK) else base / "secrets"

    def folder(self, unit: str) -> Path:
        """Where a unit's note and log are."""
        return self._units / folder_name(unit)

    @property
    def marks(self) -> dict[str, str]:
        """Variables that tell the processes of a container apart when the machine is switched off."""
        return {DIRECTORY_VARIABLE: str(self.base)}

    def container_name(self, unit: str) -> str:
        """The name of a unit's container, which has fewer letters to choose from than a unit's."""
        stem = unit.removesuffix(".service").removesuffix(".container")
        return self._prefix + stem.replace("@", ".at.").replace(":", ".colon.").replace("\\", ".x5c.")

    def open(self, unit: str, fenced: bool, on_event: Callable[[Event], None]) -> ContainerHandle:
        """Find a unit's container by its labels; ``hello`` comes first, or ``lost``.

        ``fenced``: the guard ends the container when the machine's lease is not renewed.
        """
        handle = self.handles[unit] = ContainerHandle(self, unit, fenced, on_event)
        return handle

    def existing(self) -> list[str]:
        """Units that have, or had, a container on this machine."""
        return sorted(unit_name(p.parent.name) for p in self._units.glob(f"*/{RECORD_FILE}"))

    def keep_secrets(self, unit: str, files: list[tuple[Secret, bytes]]) -> list[dict[str, Any]]:
        """Write what a container gets as files; what the engine is to mount.  In a thread."""
        self.drop_secrets(unit)
        if not files:
            return []
        for part in (self._secrets.parent, self._secrets):  # out of reach of everybody else on the machine
            part.mkdir(mode=0o700, exist_ok=True)
        folder = self._secrets / folder_name(unit)
        folder.mkdir(mode=0o700)
        mounts = []
        for number, (secret, value) in enumerate(files):
            path = folder / str(number)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(value)
                os.fchmod(handle, secret.mode)
                if os.geteuid() == 0:
                    os.fchown(handle, secret.uid, secret.gid)
            mounts.append({"Type": "bind", "Source": str(path), "Target": secret.target, "ReadOnly": True})
        return mounts

    def sweep_secrets(self, kept: set[str]) -> None:
        """Files of units that have no container here any more go.  In a thread."""
        known = {folder_name(unit) for unit in kept}
        for folder in self._secrets.iterdir() if self._secrets.is_dir() else ():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def drop_secrets(self, unit: str) -> None:
        """Nobody needs them any more."""
        shutil.rmtree(self._secrets / folder_name(unit), ignore_errors=True)

    def forget(self, unit: str) -> None:
        """Remove a unit's directory, but keep its log beside the others."""
        self.drop_secrets(unit)
        folder = self.folder(unit)
        logs.keep(folder, self.base / "logs" / folder_name(unit))
        shutil.rmtree(folder, ignore_errors=True)
        if unit not in self.handles and not self._under_way.get(unit):
            self._turns.pop(unit, None)
            self._under_way.pop(unit, None)

    def close(self) -> None:
        """Let go of everything; the containers and the guard stay."""
        for handle in list(self.handles.values()):
            handle.close()
        if self._guarding is not None:
            self._guarding.cancel()
        self.engine.close()

    # -- calls in threads -----------------------------------------------------------------------

    def turn(self, unit: str) -> _Turn:
        """One change to a unit's containers at a time, also across its handles."""
        lock = self._turns.setdefault(unit, asyncio.Lock())
        return _Turn(lock, self._under_way.setdefault(unit, set()))

    def call(self, unit: str, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run a blocking call in a thread, when there is room; known until it has really ended."""
        task = self.loop.create_task(self._call(work))
        under_way = self._under_way.setdefault(unit, set())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        return asyncio.shield(task)

    async def _call(self, work: Callable[[], T]) -> T:
        async with self._calls:
            return await self.stream(work)

    def stream(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run what may block for long in a thread of its own."""
        future: asyncio.Future[T] = self.loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def run() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = (work(), None)
            except BaseException as error:
                outcome = (None, error)
            try:
                self.loop.call_soon_threadsafe(settle, *outcome)
            except RuntimeError:
                pass  # the loop is gone, and with it whoever asked

        threading.Thread(target=run, name="argosy-engine", daemon=True).start()
        return future

    # -- the guard -------------------------------------------------------------------------------

    def lease_is_over(self) -> bool:
        """Whether the machine's lease has run out, or there is none."""
        try:
            stop_at, _ = LEASE.unpack(self._lease_file.read_bytes()[: LEASE.size])
        except (OSError, struct.error):
            return True
        return bool(boottime() >= stop_at)

    def ensure_guard(self) -> None:
        """Start the guard if it does not run; raises ``OSError``.  In a thread."""
        if not self.engine.base_url.startswith("unix://"):
            raise OSError("a unit that stops with its machine's lease needs an engine at a unix:// address")
        with self._guard_lock:
            if self._guard_lives():
                return
            self._spawn_guard()
            if not self._guard_lives():
                raise OSError("the guard of the machine's containers ended as soon as it was started")

    def _guard_lives(self) -> bool:
        """Whether somebody holds its lock; it is told that it is needed."""
        lock = os.open(self.base / GUARD_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.utime(lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _spawn_guard(self) -> None:
        path = self.engine.base_url.removeprefix("unix://")
        environment = {"PATH": "/usr/bin:/bin", DIRECTORY_VARIABLE: str(self.base)}
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_GUARD), path, str(self._lease_file), self._machine],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=GUARD_START_S_MAX, check=False, start_new_session=True,
        )  # fmt: skip
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise OSError(f"the guard did not start: {text[-1] if text else done.returncode}")

    def keep_guarded(self) -> None:
        """Look after the guard for as long as a fenced container runs."""
        if self._guarding is None or self._guarding.done():
            self._guarding = self.loop.create_task(self._guard())

    async def _guard(self) -> None:
        while any(handle.fenced_and_running for handle in list(self.handles.values())):
            try:
                await self.stream(self.ensure_guard)
            except (OSError, subprocess.SubprocessError):
                pass  # the next look tries again; no fenced container starts without it
            await asyncio.sleep(GUARD_LOOK_S)

    def ended_by_guard(self, container: str) -> bool:
        """Whether the guard ended a container because the lease ran out."""
        try:
            return container in json.loads((self.base / GUARD_ENDED_FILE).read_text())
        except (OSError, ValueError):
            return False

    # -- the sweep -------------------------------------------------------------------------------

    def sweep_soon(self, known: set[str]) -> None:
        """:meth:`sweep`, not waited for; what was removed is logged."""

        async def run() -> None:
            try:
                for name in await self.sweep(known, dry_run=False):
                    logger.warning("container %s belonged to no unit of this machine: it was removed", name)
                self.sweep_secrets({*self.existing(), *self.handles})
            except (EngineAway, OSError):
                pass  # the next sweep looks again

        if self.existing() or self.handles or self._unknown:  # else this machine never had a container
            self._sweeping = self.loop.create_task(run())

    async def sweep(self, known: set[str], dry_run: bool) -> list[str]:
        """Remove this machine's containers that belong to no known unit; returns their names.

        One is left alone until it was seen in two sweeps, some time apart.  A container of a
        known unit that its supervisor did not start is one too.  ``dry_run`` only looks.
        """
        found = await self.call("", lambda: self.engine.labelled(self.labels))
        now = time.monotonic()
        orphans = {seen.id: seen for seen in found if self._is_orphan(seen, known)}
        first = {container: self._unknown.get(container, now) for container in orphans}
        self._unknown = first
        out = []
        for container, seen in orphans.items():
            if container not in first or first[container] == now or now - first[container] < self._sweep_grace_s:
                continue
            out.append(seen.name)
            if not dry_run:
                async with self.turn(seen.labels.get(UNIT, "")):
                    await self.call("", lambda: self.engine.remove(container, True))  # noqa: B023
                self._unknown.pop(container, None)
        return sorted(out)

    def _is_orphan(self, seen: Seen, known: set[str]) -> bool:
        unit = seen.labels.get(UNIT, "")
        handle = self.handles.get(unit)
        if handle is None:
            return unit not in known
        return seen.running and not handle.busy and seen.id not in handle.holds


class _Turn:
    """Holds a unit's lock, once the calls of a handle that was closed have ended too."""

    def __init__(self, lock: asyncio.Lock, under_way: set[asyncio.Future[Any]]) -> None:
        self._lock = lock
        self._under_way = under_way

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        try:
            if self._under_way:
                await asyncio.wait(set(self._under_way))
        except BaseException:
            self._lock.release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
