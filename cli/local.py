"""A cluster on this machine: N hosts as processes on loopback, for a laptop and for tests.

Machine n keeps its state in ``DIR/m<n>/``.  A small watcher starts hosts again when they die
unasked, as an init system would; ``local kill`` is a power cut and ``local boot`` the switch.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from runners import boot as launcher
from runners.processes import DIRECTORY_VARIABLE, kill_marked
from transport import tls

from .session import default_context

#: Machines one local cluster may have.
MACHINES_MAX = 99
#: Seconds between looks at the host processes.
WATCH_S = 0.2
HTTP, GRPC, TRANSPORT = 4000, 2378, 7000


class LocalError(Exception):
    """The local cluster cannot do that; the text says why."""


def create(folder: Path, machines: int, offset: int, engine: str = "", slots: bool = False) -> None:
    """Lay out a new cluster's directories; an existing one is left as it is.

    ``engine``: where its containers run; they reach the brain at the engine's bridge.
    ``slots``: its machines take releases.
    """
    if not 1 <= machines <= MACHINES_MAX:
        raise LocalError(f"--machines: 1 to {MACHINES_MAX}, not {machines}")
    if not 0 <= offset <= 50_000:
        raise LocalError(f"--port-offset: 0 to 50000, not {offset}")
    marker = folder / "cluster.json"
    if marker.exists():
        known = json.loads(marker.read_text())
        if known["machines"] != machines or known["offset"] != offset:
            raise LocalError(
                f"{folder} holds a cluster of {known['machines']} machines at port offset "
                f"{known['offset']}; use another --dir, or these numbers"
            )
        return
    from transport import ca  # as a host that founds a cluster; whoever only watches one needs neither

    from .host import Membership, write_context, write_founding

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cluster = secrets.token_hex(16)
    authority, key = ca.make_authority(cluster)
    ids = {n: secrets.token_hex(16) for n in range(1, machines + 1)}
    members = {
        ids[n]: (f"m{n}", f"127.0.0.1:{TRANSPORT + n + offset}", f"http://127.0.0.1:{HTTP + n + offset}")
        for n in ids
    }
    voters = frozenset(ids.values())
    for n, machine in ids.items():
        home = folder / f"m{n}"
        home.mkdir(mode=0o700, exist_ok=True)
        if slots:
            (home / "slots").mkdir(mode=0o700)
        tls.save(home / "identity", ca.issue(authority, key, machine, "machine"))
        tls.write_private(home / "identity" / "ca.key", key)
        write_founding(home, members, voters)
        Membership(machine, cluster, True).save(home)
        (home / "host.toml").write_text(
            f'name = "m{n}"\ndata-dir = {json.dumps(str(home))}\n'
            f'transport = "127.0.0.1:{TRANSPORT + n + offset}"\n'
            f'grpc = "127.0.0.1:{GRPC + n + offset}"\n'
            + _doors(HTTP + n + offset, engine)
        )
    endpoints = [members[ids[n]][1] for n in ids]
    write_context(folder, endpoints, authority, key)
    tls.write_private(marker, json.dumps({"machines": machines, "offset": offset, "cluster": cluster}).encode())


def _doors(port: int, engine: str) -> str:
    if not engine:
        return f'client = ["127.0.0.1:{port}"]\n'
    return f'client = ["127.0.0.1:{port}", "docker0:{port}"]\nengine = {json.dumps(engine)}\n'


def make_default(folder: Path) -> bool:
    """Make this cluster's context the user's, unless there is another; whether it was done."""
    path = default_context()
    if path.exists() or path.is_symlink():
        return path.is_symlink() and path.resolve() == (folder / "context.toml").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to((folder / "context.toml").absolute())
    return True


def homes(folder: Path) -> list[Path]:
    """The machines' directories, in order; raises :class:`LocalError` if there is no cluster."""
    marker = folder / "cluster.json"
    if not marker.exists():
        raise LocalError(f"{folder} holds no local cluster; 'argosy up --dir {folder}' makes one")
    count = json.loads(marker.read_text())["machines"]
    return [folder / f"m{n}" for n in range(1, count + 1)]


def cluster_of(folder: Path) -> str:
    """The id of the cluster in a directory; empty if there is none."""
    marker = folder / "cluster.json"
    return str(json.loads(marker.read_text())["cluster"]) if marker.exists() else ""


def home_of(folder: Path, machine: str) -> Path:
    """One machine's directory."""
    home = folder / machine
    if home not in homes(folder):
        raise LocalError(f"no machine {machine!r} in {folder}: {', '.join(h.name for h in homes(folder))}")
    return home


def host_pid(home: Path) -> int:
    """The host process of a machine; 0 if it does not run."""
    try:
        pid = int((home / "lock").read_text().strip() or 0)
        command = Path(f"/proc/{pid}/cmdline").read_bytes() if pid else b""
    except (OSError, ValueError):
        return 0
    return pid if str(home).encode() in command and b"start" in command else 0


def launch(home: Path) -> subprocess.Popen[bytes]:
    """Start a host process; it logs to ``host.log``.  One with slots is started by their launcher."""
    start = ["start", "--config", str(home / "host.toml")]
    program, more = ["-m", "cli.main"], {}
    if (home / "slots").is_dir():
        program, more = [launcher.__file__, str(home)], {DIRECTORY_VARIABLE: str(home)}
    with open(home / "host.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *program, *start],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**_clean_environment(), "PYTHONHASHSEED": "0", **more}, cwd="/",
        )  # fmt: skip


def _clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ARGOSY_")}
    root = str(Path(__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = root + (":" + kept["PYTHONPATH"] if kept.get("PYTHONPATH") else "")
    return kept


class Watcher:
    """Keeps the hosts of a local cluster running until told to stop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._last: dict[Path, float] = {}
        self._stopping = False

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT; then stop hosts and units."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        tls.write_private(self.folder / "up.pid", f"{os.getpid()}\n".encode())
        while not self._stopping:
            self.look()
            time.sleep(WATCH_S)
        self.stop_all()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def look(self) -> None:
        """Start every host that is not running and shall be."""
        for home in homes(self.folder):
            child = self._children.get(home)
            if child is not None and child.poll() is None:
                continue
            if (home / "off").exists():
                continue
            now = time.monotonic()
            if now - self._last.get(home, -10.0) < 0.5 or (child is None and host_pid(home)):
                continue
            self._last[home] = now
            self._children[home] = launch(home)

    def stop_all(self) -> None:
        """End the hosts, then everything that they ran."""
        stop_cluster(self.folder)
        for child in self._children.values():
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        (self.folder / "up.pid").unlink(missing_ok=True)


def stop_cluster(folder: Path) -> None:
    """End every host and unit of the cluster."""
    for home in homes(folder):
        pid = host_pid(home)
        if pid:
            _signal(pid, signal.SIGCONT)
            _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + 5
    while any(host_pid(home) for home in homes(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for home in homes(folder):
        pid = host_pid(home)
        if pid:
            _signal(pid, signal.SIGKILL)
        kill_marked(str(home))


def down(folder: Path) -> None:
    """Stop the watcher, the hosts and all that they ran."""
    pid_file = folder / "up.pid"
    try:
        watcher = int(pid_file.read_text())
    except (OSError, ValueError):
        watcher = 0
    homes(folder)
    if watcher and watcher != os.getpid():
        _signal(watcher, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while Path(f"/proc/{watcher}").exists() and pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    stop_cluster(folder)


def kill(folder: Path, machine: str) -> None:
    """A power cut: SIGKILL to the host process and all that it ran; it stays off."""
    home = home_of(folder, machine)
    (home / "off").touch()
    pid = host_pid(home)
    if pid:
        _signal(pid, signal.SIGKILL)
    kill_marked(str(home))
    pid = host_pid(home)
    if pid:
        _signal(pid, signal.SIGKILL)


def boot(folder: Path, machine: str) -> None:
    """Switch a machine on again; without a watcher the host is started here."""
    home = home_of(folder, machine)
    (home / "off").unlink(missing_ok=True)
    try:
        watched = Path(f"/proc/{int((folder / 'up.pid').read_text())}").exists()
    except (OSError, ValueError):
        watched = False
    if not watched and not host_pid(home):
        launch(home)


def pause(folder: Path, machine: str, stop: bool) -> None:
    """SIGSTOP or SIGCONT to the host process."""
    pid = host_pid(home_of(folder, machine))
    if not pid:
        raise LocalError(f"{machine} is not running")
    _signal(pid, signal.SIGSTOP if stop else signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
