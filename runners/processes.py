"""The processes port for real: one shim per unit, health probes, free ports, logs.

Everything runs on the event loop; what may block (starting a shim, reading a log) runs in
a thread.  A handle speaks to one shim and reports what it says; it decides nothing.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fleet import environment, spec

from . import blockers, conditions, logs, priority, proc
from .sessions import ProcessSession, Session
from .shim.facts import BUSY, LEASE, boottime

Event = dict[str, Any]
#: Bytes of a command with its environment: half of what a shim reads at once (``LINE_BYTES_MAX``).
COMMAND_BYTES_MAX = 2 * 1024 * 1024
#: What says that nobody listens where a shim would: everything else may be a shim that is busy.
GONE = (FileNotFoundError, ConnectionRefusedError)
#: Seconds between two attempts to reach a shim that is there.
AGAIN_S = 0.2
#: Seconds for a Prometheus server to answer a query.
QUERY_S = 8.0
T = TypeVar("T")
#: Bytes of an EnvironmentFile.
ENVIRONMENT_BYTES_MAX = 1024 * 1024
_SHIM = Path(__file__).with_name("shim")
#: Seconds a shim has to start, and to be reached.
SHIM_START_S_MAX = 20.0
#: Shims that are started at once: each takes a processor for some 30 ms.
SHIMS_AT_ONCE = 4
#: Marks every process below a machine's directory, so that "power off" can find them all.
DIRECTORY_VARIABLE = "ARGOSY_HOST_DIR"
#: Marks every process of a unit, beside the above.
UNIT_VARIABLE = "ARGOSY_UNIT"


def folder_name(unit: str) -> str:
    """A unit's directory name (a unit name has no slash, but may have a backslash)."""
    return unit.replace("\\", "_x5c_")


def unit_name(folder: str) -> str:
    """The reverse of :func:`folder_name`."""
    return folder.replace("_x5c_", "\\")


class NotStarted(Exception):
    """There is no shim, and none could be started."""


def _line(command: dict[str, Any]) -> bytes:
    return json.dumps(command, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


class Handle:
    """The link to one unit's shim; events go to ``on_event`` on the loop thread."""

    def __init__(
        self, owner: Processes, unit: str, fenced: bool, on_event: Callable[[Event], None]
    ) -> None:
        self._owner = owner
        self.unit = unit
        self._fenced = fenced
        self._on_event = on_event
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._task = owner.loop.create_task(self._serve())

    def run(self, step: str, argv: list[str], environment: dict[str, str], main: bool, **rest: Any) -> None:
        """Start a command; ``started`` or ``failed``, later ``ended``, follow.

        Raises ``ValueError`` for one that is larger than a shim reads.
        """
        env = {**environment, DIRECTORY_VARIABLE: str(self._owner.base), UNIT_VARIABLE: self.unit}
        command = {"op": "run", "step": step, "argv": argv, "env": env, "main": main, **rest}
        if len(_line(command)) > COMMAND_BYTES_MAX:
            raise ValueError(f"command_bytes_max: a command and its environment have at most {COMMAND_BYTES_MAX} bytes")
        self._send(command)

    def enter(
        self, name: str, argv: list[str], environment: dict[str, str], size: tuple[int, int] | None,
        on_news: Callable[[], None], **rest: Any,
    ) -> Session:  # fmt: skip
        """Run a command for an operator; the events of this step are for the session.

        ``size``: rows and columns of its terminal, None if it gets pipes.
        """

        def end(number: int) -> None:
            self.end_session(name, number)

        session = ProcessSession(self._owner.loop, self._owner.folder(self.unit), name, size, on_news, end)
        try:
            self.run(name, argv, environment, False, **{**rest, **session.streams})
        except ValueError:
            session.close()
            raise
        return session

    def end_session(self, name: str, number: int = signal.SIGKILL) -> None:
        """Signal what an operator's session runs."""
        self._send({"op": "kill", "signal": int(number), "whole": False, "step": name})

    def kill(self, number: int, whole: bool) -> None:
        """Signal the main process, or everything; ``empty`` follows when nothing is left."""
        self._send({"op": "kill", "signal": int(number), "whole": whole})

    def remember(self, meta: dict[str, Any]) -> None:
        """Keep a note in the shim, for the next host process."""
        self._send({"op": "meta", "meta": meta})

    def find_main(self, pid_file: str, guess: bool) -> None:
        """Look for the process that a forking service left behind; ``main`` follows."""
        self._send({"op": "find_main", "pid_file": pid_file, "guess": guess})

    def tidy(self, directories: list[str], files: list[str]) -> None:
        """Remove what a run leaves behind: runtime directories, a PID file, its control group."""
        self._send({"op": "tidy", "directories": directories, "files": files})

    def quit(self) -> None:
        """End the shim and whatever still runs in it; ``lost`` follows."""
        self._send({"op": "quit"})

    def close(self) -> None:
        """Let go of the shim; it stays."""
        self._closed = True
        self._task.cancel()
        if self._writer is not None:
            self._writer.close()

    def _send(self, command: dict[str, Any]) -> None:
        if self._writer is not None and not self._closed:
            self._writer.write(_line(command))

    def _report(self, event: Event) -> None:
        if not self._closed:
            self._on_event(event)

    async def _serve(self) -> None:
        """Say what the shim says, over as many links as it takes; ``lost`` only when it is gone."""
        folder = self._owner.folder(self.unit)
        link = await self._reach()
        while link is not None:
            reader, self._writer = link
            try:
                while line := await reader.readline():
                    self._report(json.loads(line))
            except (OSError, ValueError):
                pass
            self._writer.close()
            self._writer = None
            link = await self._reach_again(folder)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while True:
            try:
                return await self._owner.reach(self.unit, self._fenced)
            except NotStarted as error:
                self._report({"ev": "lost", "error": f"the shim could not be started: {error}"})
                return None
            except OSError:  # somebody is there and busy, or we are: no reason for another shim
                await asyncio.sleep(AGAIN_S)

    async def _reach_again(
        self, folder: Path
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The link broke: the shim let go of a host that did not read, or it is gone."""
        while True:
            try:
                return await self._owner.connect(folder)
            except GONE:
                try:
                    await self._owner.aside(self._owner.end_leftovers, self.unit)
                except OSError:
                    await asyncio.sleep(AGAIN_S)
                    continue
                self._report({"ev": "lost", "error": "the shim ended"})
                return None
            except OSError:
                await asyncio.sleep(AGAIN_S)


class Processes:
    """See the module docstring.  ``base`` is the machine's directory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, base: Path) -> None:
        self.loop = loop
        self.base = base
        self._units = base / "units"
        self._units.mkdir(parents=True, exist_ok=True)
        self._lease_file = base / "lease"
        self._reserved: dict[int, float] = {}
        self._starter = ThreadPoolExecutor(SHIMS_AT_ONCE, "shims", priority.calm)
        self.boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")

    def folder(self, unit: str) -> Path:
        """Where a unit's shim lives."""
        return self._units / folder_name(unit)

    def open(self, unit: str, fenced: bool, on_event: Callable[[Event], None]) -> Handle:
        """Reach a unit's shim, starting it if needed; ``hello`` comes first, or ``lost``.

        ``fenced``: the shim ends the unit when the machine's lease is not renewed.
        """
        return Handle(self, unit, fenced, on_event)

    def existing(self) -> list[str]:
        """Units that have a shim on this machine."""
        return sorted(unit_name(p.parent.name) for p in self._units.glob("*/state.json"))

    async def reach(self, unit: str, fenced: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the shim of a unit; start one if there is none (else :class:`NotStarted`)."""
        folder = self.folder(unit)
        try:
            return await self.connect(folder)
        except GONE:
            await self.aside(self._spawn, unit, fenced)
            return await self.connect(folder)

    async def aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do what starts or ends shims in a thread that is no more urgent than they are."""
        return await self.loop.run_in_executor(self._starter, work, *arguments)

    async def connect(self, folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the shim of a folder; raises one of :data:`GONE` when there is none."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:  # through the descriptor: a socket's path is limited to 107 bytes
            return await asyncio.wait_for(
                asyncio.open_unix_connection(f"/proc/self/fd/{handle}/shim.sock", limit=8 * 1024 * 1024), 5.0
            )
        finally:
            os.close(handle)

    def _spawn(self, unit: str, fenced: bool) -> None:
        folder = self.folder(unit)
        self.end_leftovers(unit)
        environment = {"PATH": "/usr/bin:/bin", DIRECTORY_VARIABLE: str(self.base), UNIT_VARIABLE: unit}
        lease = str(self._lease_file) if fenced else "-"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(
                [sys.executable, "-I", "-S", str(_SHIM), str(folder), lease],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, timeout=SHIM_START_S_MAX, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no shim of {unit} after {SHIM_START_S_MAX:g} s") from None
        except OSError as error:
            raise NotStarted(str(error)) from None
        if done.returncode == BUSY:
            raise TimeoutError(f"{unit} has a shim that does not answer yet")
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise NotStarted(text[-1] if text else f"exit status {done.returncode}")

    def end_leftovers(self, unit: str) -> None:
        """A shim that died took its main process along; end what that one had started."""
        state = self.folder(unit) / "state.json"
        if not self.folder(unit).exists():
            return
        try:
            seen = json.loads(state.read_text())
        except (OSError, ValueError):
            seen = {}  # lost or damaged, which is no reason to believe that nothing runs
        if seen.get("shim", {}).get("boot_id", self.boot_id).replace("-", "") == self.boot_id:
            kill_marked(str(self.base), unit)
        state.unlink(missing_ok=True)

    def forget(self, unit: str) -> None:
        """Remove a unit's directory, but keep its log beside the others."""
        folder = self.folder(unit)
        logs.keep(folder, self.base / "logs" / folder_name(unit))
        shutil.rmtree(folder, ignore_errors=True)
        self.loop.run_in_executor(None, logs.prune, self.base / "logs")

    # -- the lease ----------------------------------------------------------------------

    def set_lease(self, stop_in: float, kill_in: float) -> None:
        """Tell all shims for how long (seconds from now) this machine's lease is good."""
        now = boottime()
        data = LEASE.pack(now + stop_in, now + kill_in)
        handle = os.open(self._lease_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(handle, data, 0)
        finally:
            os.close(handle)

    # -- ports, probes, files ---------------------------------------------------------------

    def free_port(self) -> int:
        """A TCP port nobody listens on, not handed out in the last minute."""
        now = time.monotonic()
        self._reserved = {p: until for p, until in self._reserved.items() if until > now}
        while True:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._reserved:
                self._reserved[port] = now + 60
                return port

    def probe(
        self, kind: str, target: str, environment: dict[str, str], timeout: float,
        done: Callable[[bool, str], None],
    ) -> None:  # fmt: skip
        """One health check, or look for what forbids a reboot; ``done(well, what was seen)`` on the loop thread.

        ``kind``: ``exec``, ``tcp``, ``http``; ``users``: nobody is logged in; ``query``: what a Prometheus server
        is asked (``URL EXPRESSION``) gives nothing.
        """

        async def check() -> None:
            try:
                done(*await asyncio.wait_for(_check(kind, target, environment), timeout))
            except TimeoutError:
                done(False, f"no answer within {timeout:g} s")
            except (OSError, ValueError, LookupError, TypeError) as error:
                done(False, str(error) or type(error).__name__)

        task = self.loop.create_task(check())
        _running.add(task)
        task.add_done_callback(_running.discard)

    def read_environment(self, pattern: str) -> dict[str, str]:
        """The EnvironmentFile of this name, or all that it matches; raises ``OSError``."""
        out: dict[str, str] = {}
        paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not paths:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), pattern)
        for path in paths:
            out.update(environment.parse(_read_plain(path)))
        return out

    def variable(self, name: str) -> str | None:
        """A variable of this process's own environment (PassEnvironment=)."""
        return os.environ.get(name)

    def unmet(
        self, wanted: list[spec.Condition], host: tuple[str, ...], done: Callable[[spec.Condition | None], None]
    ) -> None:
        """Look at conditions; ``done`` gets the first that decides against the start, or None.

        ``host``: names and ids that ConditionHost= may mean.
        """
        future = self.loop.run_in_executor(None, conditions.first_unmet, wanted, host)
        future.add_done_callback(lambda seen: None if seen.cancelled() else done(seen.result()))

    def running(
        self, unit: str, container: str, pid: int, done: Callable[[list[dict[str, Any]]], None]
    ) -> None:
        """What a unit runs, as a tree in its order; of a container, its id and first process.  In a thread."""
        future = self.loop.run_in_executor(None, proc.tree_of, self.folder(unit), container, pid)
        future.add_done_callback(lambda rows: None if rows.cancelled() else done(rows.result()))

    def read_log(
        self, unit: str, lines: int, after: str, since: float, done: Callable[[logs.Page], None]
    ) -> None:
        """The last ``lines`` since a Unix time, or what came after a position; in a thread."""
        folder = self.folder(unit)
        if not (folder / "log").exists():
            folder = self.base / "logs" / folder_name(unit)
        if after:
            future = self.loop.run_in_executor(None, logs.following, folder, after)
        else:
            future = self.loop.run_in_executor(None, logs.last, folder, lines, since)
        future.add_done_callback(lambda page: None if page.cancelled() else done(page.result()))


def _read_plain(path: str) -> str:
    """A plain file, not too large; a pipe or a device of that name would hold up the whole host."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > ENVIRONMENT_BYTES_MAX:
            raise OSError(errno.EINVAL, f"not a plain file of at most {ENVIRONMENT_BYTES_MAX} bytes", path)
        return file.read(ENVIRONMENT_BYTES_MAX).decode("utf-8", "replace")


_running: set[Any] = set()


async def _check(kind: str, target: str, environment: dict[str, str]) -> tuple[bool, str]:
    if kind == "exec":
        process = await asyncio.create_subprocess_exec(
            *shlex.split(target), env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        priority.calm(process.pid)
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.kill()
            raise
        return code == 0, f"exit status {code}"
    if kind == "users":
        users = await asyncio.to_thread(blockers.logged_in)
        return not users, ", ".join(users)
    if kind == "query":
        server, _, expression = target.partition(" ")
        told = await asyncio.to_thread(blockers.query, server, expression, QUERY_S)
        return not told, told
    host_port, _, path = target.partition("/")
    host, _, port = host_port.rpartition(":")
    number = int(environment.get(port, port))
    reader, writer = await asyncio.open_connection(host or "127.0.0.1", number)
    try:
        if kind == "tcp":
            return True, "connected"
        name = host or "127.0.0.1"
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: {name}:{number}\r\nConnection: close\r\n\r\n".encode())
        status = (await reader.readline()).decode("latin-1").split(" ", 2)
        well = len(status) > 1 and status[1].startswith(("2", "3"))
        return well, f"HTTP {status[1]}" if len(status) > 1 else "not HTTP"
    finally:
        writer.close()


def kill_marked(directory: str, unit: str = "", rounds: int = 50) -> int:
    """SIGKILL every process that carries a machine's directory in its environment.

    With ``unit``, only what that unit runs.  Returns how many were killed.
    """
    wanted = f"{DIRECTORY_VARIABLE}={directory}".encode()
    also = f"{UNIT_VARIABLE}={unit}".encode() if unit else b""
    killed = 0
    for _ in range(rounds):
        found = False
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if wanted in variables and (not also or also in variables):
                    os.kill(int(name), signal.SIGKILL)
                    if Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                        found = True
                        killed += 1
            except (OSError, IndexError):
                continue
        if not found:
            break
        time.sleep(0.01)
    return killed
