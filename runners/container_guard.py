"""The fence of a machine's containers: ends them when the machine's lease is not renewed.

Runs as a small program of its own (standard library only), one for each machine, so that a
frozen or dead host process cannot make a second copy of a unit.  It watches the machine's
lease file and asks the engine to end all containers that carry the machine's label and are
fenced.  A process that it knows it also signals itself, for the engine may hang as well.
What it ended it writes down beside the lease file, before it does.  It never starts anything.

usage: container_guard.py SOCKET LEASE_FILE MACHINE      (SOCKET: the engine's)
"""

from __future__ import annotations

import fcntl
import glob
import http.client
import json
import os
import signal
import socket
import struct
import sys
import time
import urllib.parse
from typing import Any

#: Seconds between two looks at the engine while the lease is good, and once it is over.
LOOK_S = 2.0
LOOK_OVER_S = 0.2
#: Seconds between two looks at the lease file.
LEASE_LOOK_S = 0.25
#: Seconds the engine has for an answer.
ENGINE_S_MAX = 2.0
#: Seconds without a fenced container after which the guard leaves.
IDLE_S = 120.0
#: Seconds after which a container that outlived SIGTERM under a renewed lease ends by itself again.
FENCE_S_MAX = 90.0
#: Ended containers that are remembered.
ENDED_MAX = 1000
LEASE = struct.Struct("<dd")  # CLOCK_BOOTTIME seconds: when to stop, when to kill
LOCK_FILE, ENDED_FILE = "guard.lock", "guard.ended"
RECORD_FILE = "container.json"  # in units/*


def boottime() -> float:
    """The clock of the lease."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> str:
    """The kernel's start time of a process; empty if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return ""


def visible_start(pid: int, container: str) -> str:
    """The start time of a container's first process; empty if it is not the one seen here."""
    try:
        with open(f"/proc/{pid}/cgroup") as f:
            return start_time(pid) if container in f.read() else ""
    except OSError:
        return ""


class Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ENGINE_S_MAX)
        self.path = path

    def connect(self) -> None:
        """To the engine."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(ENGINE_S_MAX)
        self.sock.connect(self.path)


class Guard:
    """Looks at the lease and at the containers, and ends what must end."""

    def __init__(self, path: str, lease_path: str, machine: str) -> None:
        self.path = path
        self.lease_path = lease_path
        self.machine = machine
        self.folder = os.path.dirname(lease_path)
        self.running: dict[str, tuple[int, str]] = {}  # container -> (pid, start time)
        self.stopped: set[str] = set()
        self.ended: dict[str, float] = self.read_ended()
        self.any_since = boottime()
        self.looked_at = 0.0

    def run(self) -> None:
        """Until there is nothing to guard."""
        while True:
            stage = self.stage()
            if stage:
                self.read_records()
            if stage == 2:
                self.end_directly(signal.SIGKILL)
            now = boottime()
            if stage or now - self.looked_at >= LOOK_S:
                self.look()
                self.looked_at = boottime()
            if stage:
                self.end(signal.SIGKILL if stage == 2 else signal.SIGTERM)
            else:
                self.relent()
            if self.may_leave():
                return
            time.sleep(LOOK_OVER_S if stage else LEASE_LOOK_S)

    def stage(self) -> int:
        """0: the lease is good; 1: time to stop; 2: time to kill."""
        try:
            with open(self.lease_path, "rb") as f:
                stop_at, kill_at = LEASE.unpack(f.read(LEASE.size))
        except (OSError, struct.error):
            return 2
        now = boottime()
        return 2 if now >= kill_at else 1 if now >= stop_at else 0

    def may_leave(self) -> bool:
        """Whether no fenced container was there for a while, and nobody asked for the guard."""
        if boottime() - self.any_since < IDLE_S:
            return False
        try:
            return time.time() - os.stat(os.path.join(self.folder, LOCK_FILE)).st_mtime > IDLE_S
        except OSError:
            return True

    # -- the engine ------------------------------------------------------------------------------

    def ask(self, method: str, path: str) -> Any:
        """The engine's answer, None if it says no; raises ``OSError`` if it does not answer."""
        connection = Connection(self.path)
        try:
            connection.request(method, path, headers={"Host": "engine"})
            response = connection.getresponse()
            data = response.read()
            if response.status >= 300:
                return None
            return json.loads(data) if data else {}
        except (http.client.HTTPException, ValueError) as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def look(self) -> None:
        """Learn which fenced containers there are; a silent engine leaves us what we knew."""
        labels = [f"argosy.machine={self.machine}", "argosy.fenced=true"]
        query = urllib.parse.urlencode({"all": "1", "filters": json.dumps({"label": labels})})
        try:
            listed = self.ask("GET", f"/containers/json?{query}")
            if listed is None:
                return
            if listed:
                self.any_since = boottime()
            found = {}
            for entry in listed:
                container = entry["Id"]
                if entry["State"] in ("running", "paused", "restarting"):
                    found[container] = self.running.get(container) or self.process(container)
        except (OSError, KeyError, TypeError):
            if any(start and start_time(pid) == start for pid, start in self.running.values()):
                self.any_since = boottime()
            return
        self.running = found

    def process(self, container: str) -> tuple[int, str]:
        """(pid, start time) of a container's first process, if this is its machine."""
        seen = self.ask("GET", f"/containers/{container}/json")
        pid = int(seen["State"]["Pid"]) if seen else 0
        return pid, visible_start(pid, container)

    def read_records(self) -> None:
        """What the host process wrote of containers that this guard may not have seen yet."""
        for path in glob.glob(os.path.join(glob.escape(self.folder), "units", "*", RECORD_FILE)):
            try:
                with open(path) as f:
                    ran = json.load(f)["running"]
                if ran["fenced"] and ran["start"] and start_time(ran["pid"]) == ran["start"]:
                    self.running.setdefault(ran["id"], (ran["pid"], ran["start"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue

    # -- ending ------------------------------------------------------------------------------------

    def end(self, number: int) -> None:
        """SIGTERM once, SIGKILL until nothing is left; by the engine, or without it."""
        due = [c for c in self.running if number == signal.SIGKILL or c not in self.stopped]
        if not due:
            return
        self.write_ended(due)
        for container in due:
            self.stopped.add(container)
            try:
                self.ask("POST", f"/containers/{container}/kill?signal={int(number)}")
            except OSError:
                self.signal_directly(container, number)

    def end_directly(self, number: int) -> None:
        """What is known to run is ended before the engine is asked anything."""
        if self.running:
            self.write_ended(list(self.running))
        for container in self.running:
            self.signal_directly(container, number)

    def signal_directly(self, container: str, number: int) -> None:
        """Signal the first process, if it is still the one that was seen."""
        pid, start = self.running[container]
        if start and start_time(pid) == start:
            try:
                os.kill(pid, number)
            except OSError:
                pass

    def relent(self) -> None:
        """The lease is good again; what was sent SIGTERM shortly before ends for that all the same."""
        self.stopped.clear()
        before = boottime() - FENCE_S_MAX
        outlived = [c for c in self.running if self.ended.get(c, before) < before]
        for container in outlived:
            del self.ended[container]
        if outlived:
            self.save_ended()

    # -- what was ended ------------------------------------------------------------------------------

    def read_ended(self) -> dict[str, float]:
        """What an earlier guard wrote."""
        try:
            with open(os.path.join(self.folder, ENDED_FILE)) as f:
                return dict(json.load(f))
        except (OSError, ValueError):
            return {}

    def write_ended(self, containers: list[str]) -> None:
        """Before it happens: whoever sees a container end must find why."""
        new = [c for c in containers if c not in self.ended]
        if new:
            self.ended.update(dict.fromkeys(new, boottime()))
            self.save_ended()

    def save_ended(self) -> None:
        """Atomically, the latest ones; a full disk must not keep us from ending anything."""
        self.ended = dict(list(self.ended.items())[-ENDED_MAX:])
        path = os.path.join(self.folder, ENDED_FILE)
        try:
            with open(f"{path}.new", "w") as f:
                json.dump(self.ended, f)
            os.replace(f"{path}.new", path)
        except OSError:
            pass


def main() -> None:
    """Become a process of its own, and the only one of its machine."""
    path, lease_path, machine = sys.argv[1], sys.argv[2], sys.argv[3]
    ready_read, ready_write = os.pipe()
    if os.fork():
        os.close(ready_write)
        sys.exit(0 if os.read(ready_read, 1) else 1)
    os.close(ready_read)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, ready_write)
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.chdir("/")
    lock = os.open(
        os.path.join(os.path.dirname(lease_path), LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(ready_write, b".")  # another one guards this machine
        return
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.write(ready_write, b".")
    os.close(ready_write)
    Guard(path, lease_path, machine).run()


if __name__ == "__main__":
    main()
