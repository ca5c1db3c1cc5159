"""The real systemd, as the first process of a namespace of its own, with nothing but what tests give it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from ..waiting import wait_until

PROGRAM = Path("/lib/systemd/systemd")
HIERARCHY = Path("/sys/fs/cgroup/systemd")
#: Units that others are ordered after by default, and that are not wanted here.
_EMPTY = ("default", "sysinit", "basic", "shutdown", "multi-user", "timers", "paths", "sockets", "slices", "local-fs", "swap")
_SCRIPT = r"""set -e
R=$1; OUT=$2; shift 2
mount -t tmpfs tmpfs $R
mkdir -p $R/usr $R/etc/systemd/system $R/proc $R/sys $R/dev $R/run $R/tmp $R/var/lib $R/root $R$OUT
mount --bind -o ro /usr $R/usr
for link in bin sbin lib lib64; do if [ -L /$link ]; then ln -s $(readlink /$link) $R/$link; fi; done
cp /etc/passwd /etc/group /etc/nsswitch.conf $R/etc/
echo 0123456789abcdef0123456789abcdef > $R/etc/machine-id
for name; do printf '[Unit]\nDescription=%s\n' $name > $R/etc/systemd/system/$name.target; done
mount --bind $OUT $R$OUT
mount -t proc proc $R/proc
mount --rbind /dev $R/dev
mount -t tmpfs tmpfs $R/sys
mkdir -p $R/sys/fs/cgroup
mount -t tmpfs tmpfs $R/sys/fs/cgroup
mkdir $R/sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup $R/sys/fs/cgroup/systemd
mount -t tmpfs tmpfs $R/run
cd $R; mkdir old; pivot_root . old; umount -l /old
exec env -i container=argosy PATH=/usr/bin:/usr/sbin /lib/systemd/systemd --system --unit=default.target \
  --log-target=null --show-status=no
"""


def missing() -> str:
    """Why it cannot run here; empty if it can."""
    if not PROGRAM.exists():
        return "apt-get install systemd"
    if os.geteuid() != 0:
        return "namespaces need root"
    if not (HIERARCHY.is_dir() and os.access(HIERARCHY / "cgroup.procs", os.W_OK)):
        return "there is no hierarchy of control groups named systemd that may be written"
    return ""


class Systemd:
    """One; ``out`` is a directory that its services see under the same name."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder = folder
        self._out = out
        self._group = HIERARCHY / f"argosy-judge-{os.getpid()}"
        self._outer: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self._keepers: list[str] = []

    def start(self) -> None:
        """Up, and answering."""
        root = self._folder / "root"
        root.mkdir()
        self._group.mkdir()
        with (self._folder / "log").open("wb") as log:
            self._outer = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--mount", "--ipc", "--uts", "--cgroup", "--kill-child",
                 "--propagation", "private", "/bin/sh", "-c", _SCRIPT, "sh", str(root), str(self._out), *_EMPTY],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=lambda: (self._group / "cgroup.procs").write_text("0") and None,
            )  # fmt: skip
        self.pid = wait_until("systemd began", self._find)
        wait_until("systemd answers", lambda: "argosy" not in self.ask("is-system-running") and self.ask("list-units"))

    def _find(self) -> int:
        assert self._outer is not None
        assert self._outer.poll() is None, (self._folder / "log").read_text()
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        found = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"]
        return found[0] if found else 0

    def _enter(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-u", "--", *command],
                              capture_output=True, text=True, timeout=60, check=False)  # fmt: skip

    def ask(self, *words: str) -> str:
        """What systemctl prints."""
        return self._enter("systemctl", "--no-pager", *words).stdout

    def submit(self, name: str, text: str) -> None:
        """Put a unit file where it is looked for; :meth:`reload` makes it known."""
        path = f"/etc/systemd/system/{name}"
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-p", "--", "/bin/sh", "-c", f"cat > '{path}'"],
                              input=text, text=True, check=False)  # fmt: skip
        assert done.returncode == 0
        # what nobody refers to and does not run is forgotten, and its result with it
        keeper = f"[Unit]\nAfter={name}\n"
        subprocess.run(["nsenter", "-t", str(self.pid), "-m", "-p", "--", "/bin/sh", "-c",
                        f"cat > '/etc/systemd/system/keeps-{name}.target'"], input=keeper, text=True, check=False)  # fmt: skip
        self._keepers.append(f"keeps-{name}.target")

    def reload(self) -> None:
        """Read all files; what runs meanwhile would have its starts counted from nought."""
        self._enter("systemctl", "daemon-reload")
        self._enter("systemctl", "start", *self._keepers)

    def show(self, name: str) -> dict[str, str]:
        """A unit's properties."""
        text = self.ask("show", name, "-p", "ActiveState,SubState,Result,NRestarts,MainPID")
        return dict(line.split("=", 1) for line in text.splitlines())

    def end(self) -> None:
        """Nothing is left of it."""
        if self._outer is not None:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            self._outer.wait(20)
        deadline = time.monotonic() + 10
        while self._group.exists() and time.monotonic() < deadline:
            for folder in [*sorted(self._group.glob("**/"), reverse=True)]:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            time.sleep(0.05)
        shutil.rmtree(self._folder / "root", ignore_errors=True)
