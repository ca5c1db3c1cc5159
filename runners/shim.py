"""The process shim: the parent of one unit's processes, which outlives the host process.

Runs as a small program of its own (standard library only).  It starts commands when told,
owns their output, reaps whatever they leave behind (it is a sub-reaper), and answers on a
Unix socket.  It also holds the fence: when the machine's lease file is not renewed in time
it ends the unit by itself, so a frozen or dead host process cannot make a second copy.

usage: shim.py DIRECTORY LEASE_FILE|-     (DIRECTORY: the unit's own)
"""

import ctypes
import errno
import grp
import json
import os
import pwd
import select
import signal
import socket
import struct
import sys
import time

#: Bytes of one log file, and how many older ones are kept.
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_KEPT = 3
#: Events kept for a host process that is away.
EVENTS_MAX = 256
#: Longest command from the host process, in bytes.
LINE_BYTES_MAX = 4 * 1024 * 1024
LEASE = struct.Struct("<dd")  # CLOCK_BOOTTIME seconds: when to stop, when to kill
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def start_time(pid: int) -> str:
    """The kernel's start time of a process: with boot id and pid it names it for ever."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return ""


def descendants(root: int) -> list[int]:
    """All processes below ``root``, by parent links in /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                parent = int(f.read().rsplit(b")", 1)[1].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), ()):
            found.append(child)
            queue.append(child)
    return found


class Log:
    """Lines with their time, in a file that is rotated by size."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.partial = b""
        self._open()

    def _open(self) -> None:
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self.size = os.fstat(self.fd).st_size

    def feed(self, data: bytes) -> None:
        lines = (self.partial + data).split(b"\n")
        self.partial = lines.pop()
        if len(self.partial) > 65536:
            lines.append(self.partial)
            self.partial = b""
        if lines:
            self.write(lines)

    def write(self, lines: list[bytes]) -> None:
        stamp = b"%.6f " % time.time()
        out = b"".join(stamp + line + b"\n" for line in lines)
        if self.size + len(out) > LOG_BYTES_MAX:
            self._rotate()
        try:
            os.write(self.fd, out)
            self.size += len(out)
        except OSError:
            pass  # a full disk loses log lines, not the unit

    def _rotate(self) -> None:
        os.close(self.fd)
        for number in range(LOG_FILES_KEPT, 0, -1):
            older = f"{self.path}.{number}"
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            try:
                os.replace(newer, older)
            except OSError:
                pass
        self._open()


class Shim:
    def __init__(self, lease_path: str) -> None:
        self.lease_path = lease_path
        self.processes: dict[int, dict] = {}  # pid -> {step, main, start}
        self.events: list[dict] = []
        self.meta: dict = {}
        self.ends: dict[str, dict] = {}  # how what this run had started ended, by step
        self.client: socket.socket | None = None
        self.buffer = b""
        self.quitting = False
        self.quit_deadline = 0.0
        self.was_empty = True
        self.fence_stage = 0
        self.lonely_since = boottime()
        self.log = Log("log")
        with open("/proc/sys/kernel/random/boot_id") as f:
            self.boot_id = f.read().strip()
        self.me = {"pid": os.getpid(), "start": start_time(os.getpid()), "boot_id": self.boot_id}
        self.out_read, self.out_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.out_read, False)
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(ignored, lambda *_: None)
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
        self.save()

    # -- the loop --------------------------------------------------------------------

    def run(self) -> None:
        while True:
            readers = [self.server, self.out_read, self.wake_read]
            if self.client is not None:
                readers.append(self.client)
            try:
                ready, _, _ = select.select(readers, [], [], self.patience())
            except InterruptedError:
                ready = []
            if self.out_read in ready:
                self.read_output()
            if self.wake_read in ready:
                os.read(self.wake_read, 4096)
            self.reap()
            if self.server in ready:
                self.accept()
            if self.client is not None and self.client in ready:
                self.receive()
            self.check_fence()
            if self.may_end():
                self.read_output()
                return

    def patience(self) -> float:
        if self.quitting:
            return 0.05
        if self.lease_path == "-" or (not self.processes and self.was_empty):
            return 30.0
        stop_at, kill_at = self.read_lease()
        due = kill_at if self.fence_stage else stop_at
        return min(max(due - boottime(), 0.02), 30.0)

    def may_end(self) -> bool:
        if self.quitting:
            if self.was_empty:
                return True
            if boottime() > self.quit_deadline:
                self.signal_all(signal.SIGKILL)
                self.quit_deadline = boottime() + 0.2
            return False
        # nobody came back for a unit that has ended: do not stay for ever
        alone = self.client is None and self.was_empty
        if not alone:
            self.lonely_since = boottime()
        return alone and boottime() - self.lonely_since > 120

    # -- children ---------------------------------------------------------------------

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if not self.was_empty:
                    self.was_empty = True
                    self.read_output()
                    self.emit({"ev": "empty"})
                return
            if pid == 0:
                return
            known = self.processes.pop(pid, None)
            if known is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            event = {"ev": "ended", "step": known["step"], "main": known["main"],
                     "code": max(code, 0), "signal": max(-code, 0)}
            if self.fence_stage and known["main"]:
                event["fenced"] = True
            self.ends["main" if known["main"] else known["step"]] = event
            self.read_output()
            self.emit(event)

    def start(self, command: dict) -> None:
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            self.become(command, error_write)
        os.close(error_write)
        with os.fdopen(error_read, "rb") as pipe:
            error = pipe.read().decode("utf-8", "replace")
        self.was_empty = False
        if error:
            os.waitpid(pid, 0)
            self.log.write([f"{command['argv'][0]}: {error}".encode()])
            self.ends["main" if command["main"] else command["step"]] = {"code": 203, "signal": 0}
            self.emit({"ev": "failed", "step": command["step"], "main": command["main"], "error": error})
            self.reap()
            return
        self.processes[pid] = {"step": command["step"], "main": command["main"],
                               "start": start_time(pid)}
        self.emit({"ev": "started", "step": command["step"], "main": command["main"], "pid": pid})

    def become(self, command: dict, error_write: int) -> None:
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(self.out_write, 1)
            os.dup2(self.out_write, 2)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            try:  # the host process may be protected from the OOM killer; its units are not
                with open("/proc/self/oom_score_adj", "w") as f:
                    f.write("0")
            except OSError:
                pass
            os.umask(command.get("umask", 0o022))
            if command.get("nice"):
                os.nice(command["nice"])
            environment = command["env"]
            user = command.get("user")
            if user:
                entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
                group = command.get("group")
                gid = entry.pw_gid
                if group:
                    gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
                os.initgroups(entry.pw_name, gid)
                os.setgid(gid)
                os.setuid(entry.pw_uid)
                environment.update(USER=entry.pw_name, LOGNAME=entry.pw_name,
                                   HOME=entry.pw_dir, SHELL=entry.pw_shell)
            directory = command.get("cwd") or "/"
            if directory.startswith("~"):
                directory = environment.get("HOME", "/root") + directory[1:]
            os.chdir(directory)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            self.execute(command, environment)
        except KeyError as error:
            os.write(error_write, f"no such user or group: {error}".encode())
        except OSError as error:
            os.write(error_write, (error.strerror or str(error)).encode())
        finally:
            os._exit(203)

    @staticmethod
    def execute(command: dict, environment: dict) -> None:
        argv = list(command["argv"])
        program = argv[0]
        if command.get("argv0"):
            argv[0] = command["argv0"]
        if program.startswith("/"):
            os.execve(program, argv, environment)
        for folder in SEARCH_PATH.split(":"):
            try:
                os.execve(f"{folder}/{program}", argv, environment)
            except (FileNotFoundError, NotADirectoryError):
                continue
        raise FileNotFoundError(errno.ENOENT, "no such program in " + SEARCH_PATH)

    def signal_all(self, number: int) -> None:
        for pid in descendants(os.getpid()):
            self.signal_one(pid, number)

    @staticmethod
    def signal_one(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
            if number not in (signal.SIGKILL, signal.SIGCONT):
                os.kill(pid, signal.SIGCONT)
        except OSError:
            pass

    def kill(self, command: dict) -> None:
        if command["whole"]:
            self.signal_all(command["signal"])
        else:
            for pid in list(self.processes):  # the main process, and a step that runs
                self.signal_one(pid, command["signal"])
        self.reap()
        if self.was_empty:
            self.emit({"ev": "empty"})

    # -- the fence ---------------------------------------------------------------------

    def read_lease(self) -> tuple[float, float]:
        try:
            with open(self.lease_path, "rb") as f:
                return LEASE.unpack(f.read(LEASE.size))
        except (OSError, struct.error):
            return (0.0, 0.0)

    def check_fence(self) -> None:
        if self.lease_path == "-" or self.was_empty:
            self.fence_stage = 0
            return
        stop_at, kill_at = self.read_lease()
        now = boottime()
        if now >= kill_at:
            if self.fence_stage < 2:
                self.log.write([b"argosy: the machine's lease is over: killed"])
            self.fence_stage = 2
            self.signal_all(signal.SIGKILL)
        elif now >= stop_at:
            if self.fence_stage == 0:
                self.fence_stage = 1
                self.log.write([b"argosy: the machine's lease runs out: stopping"])
                self.signal_all(signal.SIGTERM)
        elif self.fence_stage == 1:
            self.fence_stage = 0

    # -- the host process ----------------------------------------------------------------

    def accept(self) -> None:
        connection, _ = self.server.accept()
        if self.client is not None:
            self.client.close()
        connection.setblocking(True)
        connection.settimeout(5)
        self.client = connection
        self.buffer = b""
        pending, self.events = self.events, []
        self.emit({"ev": "hello", "me": self.me, "meta": self.meta, "pending": pending,
                   "processes": {str(p): k for p, k in self.processes.items()},
                   "ends": self.ends, "empty": self.was_empty})

    def receive(self) -> None:
        try:
            data = self.client.recv(65536)
        except OSError:
            data = b""
        if not data or len(self.buffer) > LINE_BYTES_MAX:
            self.client.close()
            self.client = None
            return
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            self.obey(json.loads(line))

    def obey(self, command: dict) -> None:
        op = command["op"]
        if op == "run":
            self.start(command)
        elif op == "kill":
            self.kill(command)
        elif op == "meta":
            if command["meta"].get("invocation") != self.meta.get("invocation"):
                self.ends = {}
            self.meta = command["meta"]
        elif op == "quit":
            self.quitting = True
            self.signal_all(signal.SIGKILL)
            self.quit_deadline = boottime() + 0.2
        self.save()

    def emit(self, event: dict) -> None:
        if self.client is not None:
            try:
                self.client.sendall(json.dumps(event).encode() + b"\n")
                self.save()
                return
            except OSError:
                self.client.close()
                self.client = None
        if event["ev"] != "hello":
            self.events.append(event)
            del self.events[:-EVENTS_MAX]
        self.save()

    def save(self) -> None:
        """What is known, for whoever looks at the directory; atomically."""
        state = {"shim": self.me, "meta": self.meta,
                 "processes": {str(p): k for p, k in self.processes.items()}}
        with open("state.json.new", "w") as f:
            json.dump(state, f)
        os.replace("state.json.new", "state.json")

    def read_output(self) -> None:
        while True:
            try:
                data = os.read(self.out_read, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            self.log.feed(data)


def main() -> None:
    directory, lease_path = sys.argv[1], sys.argv[2]
    os.chdir(directory)
    ready_read, ready_write = os.pipe()
    if os.fork():
        os.close(ready_write)
        sys.exit(0 if os.read(ready_read, 1) else 1)
    os.close(ready_read)
    os.setsid()
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, ready_write)
    shim = Shim(lease_path)
    os.write(ready_write, b".")
    os.close(ready_write)
    shim.run()
    for name in ("shim.sock", "state.json"):
        try:
            os.unlink(name)
        except OSError:
            pass


if __name__ == "__main__":
    main()
