"""The shim's beginning, and its guard: a parent that does nothing, until the shim dies.

What a unit needs to go on is held by both: the pipe of its output, its notify socket, the door for the host process,
the lock of its folder, and output that was read and is not in the log yet.  Both are sub-reapers, so when the shim is
killed the unit's processes become the guard's own: it goes on as their shim, and hears how they end.  It has no guard
itself; what it starts dies with it, as the fence asks for.
"""

import fcntl
import os
import signal
import socket
import sys

from . import child
from .facts import BUSY
from .log import Spool
from .shim import Shim


class Doors:
    """What a shim and its guard both hold."""

    def __init__(self, lock: int) -> None:
        self.lock = lock  # held for as long as one of them is left
        self.spool = Spool()
        self.out_read, self.out_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.out_read, False)
        try:
            os.unlink("shim.sock")
        except OSError:
            pass
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old = os.umask(0o177)
        self.server.bind("shim.sock")
        os.umask(old)
        self.server.listen(4)
        self.server.setblocking(False)
        # an abstract name: whatever user the service runs as may reach it, and no path is too long
        self.notify_name = f"argosy-notify-{os.getpid()}-{os.urandom(8).hex()}"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.bind("\0" + self.notify_name)
        self.notify.setblocking(False)

    def close(self) -> None:
        """The unit is through with them, and so is the other one."""
        for name in ("shim.sock", "state.json"):
            try:
                os.unlink(name)
            except OSError:
                pass
        fcntl.flock(self.lock, fcntl.LOCK_UN)


def main() -> None:
    """``DIRECTORY LEASE_FILE|-``: returns in the first process once there is a shim."""
    directory, lease_path = sys.argv[1], sys.argv[2]
    os.chdir(directory)
    ready_read, ready_write = os.pipe()
    if os.fork():
        os.close(ready_write)
        sys.exit({b".": 0, b"b": BUSY}.get(os.read(ready_read, 1), 1))
    os.close(ready_read)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, ready_write)
    lock = os.open("shim.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(ready_write, b"b")
        return
    doors = Doors(lock)
    shim = os.fork()
    child.libc.prctl(child.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if shim == 0:
        made = Shim(lease_path, doors, guarded=True)
        os.write(ready_write, b".")
        os.close(ready_write)
        doors.spool.begun = True
        made.run()
        doors.close()
        return
    os.close(ready_write)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(shim, 0)
    if status == 0 or not doors.spool.begun:
        return
    heir = Shim(lease_path, doors, guarded=False)
    heir.inherit()
    heir.run()
    doors.close()
