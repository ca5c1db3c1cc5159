"""The process shim: the parent of one unit's processes, which outlives the host process.

Runs as a small program of its own (standard library only).  It starts commands when told,
owns their output, reaps whatever they leave behind (it is a sub-reaper), and answers on a
Unix socket.  It also holds the fence: when the machine's lease file is not renewed in time
it ends the unit by itself, so a frozen or dead host process cannot make a second copy.

usage: shim.py DIRECTORY LEASE_FILE|-     (DIRECTORY: the unit's own)
"""

import ctypes
import errno
import fcntl
import grp
import json
import os
import pwd
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time

#: Bytes of one log file, and how many older ones are kept.
LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_KEPT = 3
#: Runs of the unit of which the log can be told apart.
RUNS_MAX = 1000
#: Seconds a shim whose unit has ended waits for a host process.
LONELY_S_MAX = 120.0
#: Seconds after which a unit that outlived the fence's SIGTERM under a renewed lease ends by itself again.
FENCE_S_MAX = 90.0
#: Events kept for a host process that is away.
EVENTS_MAX = 256
#: Longest command from the host process, and what may wait to be read by it, in bytes.
LINE_BYTES_MAX = 4 * 1024 * 1024
WAITING_BYTES_MAX = 1024 * 1024
#: Bytes of output taken in one turn, so that a unit that shouts does not hold up its fence.
OUTPUT_BYTES_TURN = 1024 * 1024
#: Longest message of a service about itself, and longest STATUS= kept, in bytes.
NOTIFY_BYTES_MAX = 4096
STATUS_BYTES_MAX = 512
#: Exit statuses of a process that could not be set up (systemd.exec(5)).
CHDIR, LIMITS, EXEC, STDOUT, GROUP, USER, CGROUP, DIRECTORY = 200, 205, 203, 209, 216, 217, 219, 233
#: Exit status when there is a shim of this folder.
BUSY = 75
LEASE = struct.Struct("<dd")  # CLOCK_BOOTTIME seconds: when to stop, when to kill
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_HANDLED = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
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


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rsplit(b")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def descendants(root: int) -> list[int]:
    """All processes below ``root``, by parent links in /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        children.setdefault(parent_of(int(name)), []).append(int(name))
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

    def flush(self) -> None:
        """The last line, which nobody will end any more."""
        if self.partial:
            partial, self.partial = self.partial, b""
            self.write([partial])

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
        """Begin a new file, if there is room for one; else it goes on with the old."""
        try:
            new = os.open(f"{self.path}.new", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError:
            self.size = 0  # tried again after as much
            return
        for number in range(LOG_FILES_KEPT, 0, -1):
            older = f"{self.path}.{number}"
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            try:
                os.replace(newer, older)
            except OSError:
                pass
        try:
            os.replace(f"{self.path}.new", self.path)
        except OSError:
            pass
        os.close(self.fd)
        self.fd, self.size = new, 0


class Group:
    """A control group of one unit, in the unified hierarchy or in those of version 1."""

    ROOT = "/sys/fs/cgroup"
    #: key of a limit -> (controller, file, value) in version 2 and in version 1
    V2 = {"memory_max": "memory.max", "memory_high": "memory.high", "memory_swap_max": "memory.swap.max",
          "cpu_weight": "cpu.weight", "tasks_max": "pids.max"}

    def __init__(self, name: str) -> None:
        self.unified = os.path.exists(f"{self.ROOT}/cgroup.controllers")
        controllers = ("",) if self.unified else ("memory", "cpu", "pids")
        self.folders = {c: os.path.join(self.ROOT, c, name) for c in controllers}
        self.oom_kills = 0

    def make(self, limits: dict) -> None:
        """Create it with these limits; raises ``OSError`` for one that the kernel cannot keep."""
        for folder in self.folders.values():
            os.makedirs(folder, exist_ok=True)
        if self.unified:
            at = self.ROOT
            for part in os.path.relpath(self.folders[""], self.ROOT).split("/"):
                self.put(at, "cgroup.subtree_control", "+memory +cpu +pids")
                at = os.path.join(at, part)
        for key, value in limits.items():
            self.limit(key, value)

    def limit(self, key: str, value: float) -> None:
        if key == "cpu_quota":  # processors, per tenth of a second
            quota = max(int(value * 100_000), 1000)
            if self.unified:
                self.put(self.folders[""], "cpu.max", f"{quota} 100000")
            else:
                self.put(self.folders["cpu"], "cpu.cfs_period_us", "100000")
                self.put(self.folders["cpu"], "cpu.cfs_quota_us", str(quota))
        elif self.unified:
            self.put(self.folders[""], self.V2[key], str(int(value)))
        elif key == "memory_max":
            self.put(self.folders["memory"], "memory.limit_in_bytes", str(int(value)))
        elif key == "memory_high":
            self.put(self.folders["memory"], "memory.soft_limit_in_bytes", str(int(value)))
        elif key == "cpu_weight":
            self.put(self.folders["cpu"], "cpu.shares", str(max(int(value * 1024 / 100), 2)))
        elif key == "tasks_max":
            self.put(self.folders["pids"], "pids.max", str(int(value)))
        else:
            raise OSError(errno.ENOTSUP, f"{key} needs the unified hierarchy of control groups")

    @staticmethod
    def put(folder: str, name: str, value: str) -> None:
        with open(os.path.join(folder, name), "w") as f:
            f.write(value)

    def join(self) -> None:
        """Called by the process that becomes one of the unit's."""
        for folder in self.folders.values():
            self.put(folder, "cgroup.procs", "0")

    def members(self) -> list[int]:
        try:
            with open(os.path.join(next(iter(self.folders.values())), "cgroup.procs")) as f:
                return [int(line) for line in f]
        except OSError:
            return []

    def count_oom_kills(self) -> int:
        folder = self.folders["" if self.unified else "memory"]
        try:
            with open(os.path.join(folder, "memory.events" if self.unified else "memory.oom_control")) as f:
                return sum(int(n) for key, n in (line.split() for line in f) if key == "oom_kill")
        except (OSError, ValueError):
            return 0

    def had_oom_kill(self) -> bool:
        """Whether there was one since this was asked last."""
        before, self.oom_kills = self.oom_kills, self.count_oom_kills()
        return self.oom_kills > before

    def remove(self) -> None:
        for folder in self.folders.values():
            try:
                os.rmdir(folder)
            except OSError:
                pass  # something is left in it: it goes with the next run


def remove_tree(path: str) -> None:
    """A runtime directory and what is in it; links are removed, not followed, whoever swaps them in."""
    for _, folders, files, at in os.fwalk(path, topdown=False):
        for name in files:
            os.unlink(name, dir_fd=at)
        for name in folders:
            if stat.S_ISLNK(os.lstat(name, dir_fd=at).st_mode):
                os.unlink(name, dir_fd=at)
            else:
                os.rmdir(name, dir_fd=at)
    os.rmdir(path)


def read_small(path: str) -> bytes:
    """The beginning of a plain file; never waits, as a pipe of that name would."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(handle, 64)
    finally:
        os.close(handle)


def make_folder(root: str, name: str) -> int:
    """A directory below ``root``, opened; no link on the way is followed."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in name.split("/"):
        try:
            os.mkdir(part, 0o755, dir_fd=at)
        except FileExistsError:
            pass
        inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        os.close(at)
        at = inner
    return at


class SetupError(Exception):
    """A process could not be made what its unit file says; ``status`` is its exit status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def find_user(command: dict) -> tuple[int, int, list[int], dict[str, str]] | None:
    """(uid, gid, groups, variables) of User= and its kin; None for the shim's own."""
    user, group = command.get("user"), command.get("group")
    names = command.get("groups") or []
    if not user and not group and not names:
        return None
    try:
        def gid_of(name: str) -> int:
            return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid

        status, name = USER, user or str(os.getuid())
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        status, name = GROUP, group
        gid = gid_of(group) if group else entry.pw_gid
        groups = os.getgrouplist(entry.pw_name, gid)
        for name in names:
            groups.append(gid_of(name))
    except KeyError:
        raise SetupError(status, f"no such {'user' if status == USER else 'group'}: {name}") from None
    variables = {}
    if user:
        variables = {"USER": entry.pw_name, "LOGNAME": entry.pw_name, "HOME": entry.pw_dir, "SHELL": entry.pw_shell}
    return entry.pw_uid, gid, groups, variables


class Shim:
    def __init__(self, lease_path: str, lock: int) -> None:
        self.lease_path = lease_path
        self.lock = lock  # held for as long as this is the only shim of its folder
        self.processes: dict[int, dict] = {}  # pid -> {step, main, start}
        self.starting: dict[int, dict] = {}  # pipe of a process that is being set up -> {pid, program, text}
        self.aliens: dict[int, int] = {}  # pidfd of a main process that is no child of ours -> pid
        self.events: list[dict] = []
        self.meta: dict = {}
        self.ends: dict[str, dict] = {}  # how what this run had started ended, by step
        self.client: socket.socket | None = None
        self.buffer = b""
        self.waiting = b""  # for the host process to read
        self.group: Group | None = None
        self.notified: dict[str, str] = {}  # what the service said of itself in this run
        self.candidate = 0  # for the main process of a forking service
        self.access = "none"  # whose word counts: NotifyAccess=
        self.quitting = False
        self.quit_deadline = 0.0
        self.was_empty = True
        self.fence_stage = 0
        self.fence_signalled = False  # what ends from here on, until all is gone, was ended by the fence
        self.relented_at = 0.0
        self.lonely_since = boottime()
        self.log = Log("log")
        with open("/proc/sys/kernel/random/boot_id") as f:
            self.boot_id = f.read().strip()
        self.me = {"pid": os.getpid(), "start": start_time(os.getpid()), "boot_id": self.boot_id}
        self.out_read, self.out_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.out_read, False)
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for handled in _HANDLED:
            signal.signal(handled, lambda *_: None)
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
        self.read_word()
        self.save()

    # -- the loop --------------------------------------------------------------------

    def run(self) -> None:
        while True:
            readers = [self.server, self.out_read, self.wake_read, self.notify, *self.starting, *self.aliens]
            writers = []
            if self.client is not None:
                readers.append(self.client)
                if self.waiting:
                    writers.append(self.client)
            try:
                ready, _, _ = select.select(readers, writers, [], self.patience())
            except InterruptedError:
                ready = []
            if self.out_read in ready:
                self.read_output()
            if self.wake_read in ready:
                os.read(self.wake_read, 4096)
            for pipe in [pipe for pipe in self.starting if pipe in ready]:
                self.look_at_start(pipe)
            if self.notify in ready:
                self.hear()  # before the end of who spoke is
            self.reap()
            for handle in [handle for handle in self.aliens if handle in ready]:
                self.alien_ended(handle)
            self.send()
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
        if alone and boottime() - self.lonely_since > LONELY_S_MAX:
            return self.leave_word()
        return False

    def leave_word(self) -> bool:
        """For the next shim: how the last run ended, so that it is not begun again; whether it is written."""
        try:
            with open("left.json.new", "w") as f:
                json.dump({"boot_id": self.boot_id, "meta": self.meta, "ends": self.ends, "said": self.notified}, f)
            os.replace("left.json.new", "left.json")
        except OSError:
            self.lonely_since = boottime()  # tried again after as long
            return False
        return True

    def read_word(self) -> None:
        """What the last shim left, if the machine has not booted since."""
        try:
            with open("left.json") as f:
                left = json.load(f)
            os.unlink("left.json")
        except (OSError, ValueError):
            return
        if left["boot_id"] == self.boot_id:
            self.meta, self.ends, self.notified = left["meta"], left["ends"], left["said"]

    # -- children ---------------------------------------------------------------------

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                if not self.was_empty:
                    self.was_empty = True
                    self.read_output()
                    self.log.flush()
                    self.emit({"ev": "empty", **self.by_fence()})
                    self.fence_signalled = False
                return
            if pid == 0:
                return
            for pipe in [pipe for pipe, about in self.starting.items() if about["pid"] == pid]:
                while pipe in self.starting:  # it is closed by now: all that was said can be read
                    self.look_at_start(pipe)
            known = self.processes.pop(pid, None)
            if known is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            event = {"ev": "ended", "step": known["step"], "main": known["main"],
                     "code": max(code, 0), "signal": max(-code, 0), **self.by_fence()}
            if os.WIFSIGNALED(status) and os.WCOREDUMP(status):
                event["dumped"] = True
            if self.group is not None and self.group.had_oom_kill():
                event["oom"] = True
            self.ends["main" if known["main"] else known["step"]] = event
            self.read_output()
            self.emit(event)

    def start(self, command: dict) -> None:
        if self.lease_path != "-" and boottime() >= self.read_lease()[0]:
            # asked for by a host process that stood still meanwhile: another machine may run it by now
            self.log.write([b"argosy: the machine's lease is over: not started"])
            self.emit({"ev": "ended", "step": command["step"], "main": command["main"],
                       "code": 0, "signal": int(signal.SIGKILL), "fenced": True})
            return
        if command["main"]:
            self.access = command.get("access", "none")
            self.notified = {}
        if command.get("access", "none") != "none":
            command["env"]["NOTIFY_SOCKET"] = "@" + self.notify_name
        if command.get("cgroup"):
            self.group = self.group or Group(command["cgroup"]["name"])
            self.group.had_oom_kill()  # what an earlier run had is no news
        # a signal that comes before the child has set its own handlers waits until it has
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        pipe: tuple[int, ...] = ()
        try:
            pipe = error_read, error_write = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                self.become(command, error_write)
        except OSError as error:  # no more processes, or descriptors
            for end in pipe:
                os.close(end)
            self.failed(command["step"], command["main"], EXEC, f"{command['argv'][0]}: {error.strerror}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        os.close(error_write)
        os.set_blocking(error_read, False)
        self.was_empty = False
        # whatever its set-up waits for, the fence and the rest of the unit do not wait with it
        self.processes[pid] = {"step": command["step"], "main": command["main"], "start": start_time(pid)}
        self.starting[error_read] = {"pid": pid, "program": command["argv"][0], "text": b""}

    def look_at_start(self, pipe: int) -> None:
        """A process that is being set up runs its program now (the pipe ends), or says why not."""
        about = self.starting[pipe]
        try:
            data = os.read(pipe, 65536)
        except BlockingIOError:
            return
        if data:
            about["text"] += data
            return
        os.close(pipe)
        del self.starting[pipe]
        pid, known = about["pid"], self.processes.get(about["pid"])
        if known is None:
            return
        if not about["text"]:
            self.emit({"ev": "started", "step": known["step"], "main": known["main"], "pid": pid})
            return
        del self.processes[pid]  # its end is told here
        status, _, text = about["text"].decode("utf-8", "replace").partition(" ")
        self.log.write([f"{about['program']}: {text}".encode()])
        self.failed(known["step"], known["main"], int(status), text)

    def failed(self, step: str, main: bool, code: int, text: str) -> None:
        """A process could not be made what was asked for."""
        self.ends["main" if main else step] = {"code": code, "signal": 0}
        self.emit({"ev": "failed", "step": step, "main": main, "error": text, "code": code})

    def adopt(self, pid: int, step: str, main: bool) -> None:
        self.processes[pid] = {"step": step, "main": main, "start": start_time(pid)}
        self.emit({"ev": "started", "step": step, "main": main, "pid": pid})

    def become(self, command: dict, error_write: int) -> None:
        status = EXEC
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for handle in (self.server, self.client, self.notify):  # nobody is to take it for the shim
                if handle is not None:
                    os.close(handle.fileno())
            os.close(self.lock)
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in _HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            status = CGROUP
            if self.group is not None and command.get("cgroup"):
                self.group.make(command["cgroup"]["limits"])
                self.group.join()
            self.set_limits(command)
            status = USER
            found = find_user(command)
            status = DIRECTORY
            self.make_directories(command, found)
            status = STDOUT
            self.set_streams(command)
            environment = command["env"]
            status = GROUP
            if found is not None:
                uid, gid, groups, variables = found
                environment.update({**variables, **environment})
                if os.getuid() == 0:
                    os.setgroups(groups)
                os.setgid(gid)
                status = USER
                os.setuid(uid)
            os.umask(command.get("umask", 0o022))
            status = CHDIR
            self.change_directory(command, environment)
            status = EXEC
            if command.get("no_new_privileges"):
                _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # another user's process has lost it
            if os.getppid() != self.me["pid"]:
                os._exit(203)
            if environment.get("WATCHDOG_USEC"):
                environment["WATCHDOG_PID"] = str(os.getpid())
            environment["SYSTEMD_EXEC_PID"] = str(os.getpid())
            self.execute(command, environment)
        except SetupError as error:
            os.write(error_write, f"{error.status} {error}".encode())
        except (OSError, ValueError) as error:
            where = getattr(error, "filename", None)
            text = getattr(error, "strerror", None) or str(error)
            shown = f"{where}: {text}" if where and status != EXEC else text
            os.write(error_write, f"{status} {shown}".encode())
        finally:
            os._exit(203)

    @staticmethod
    def set_limits(command: dict) -> None:
        try:  # the host process may be protected from the OOM killer; its units are not
            with open("/proc/self/oom_score_adj", "w") as f:
                f.write(str(command.get("oom_score_adjust", 0)))
        except OSError as error:
            if command.get("oom_score_adjust"):
                raise SetupError(206, f"OOMScoreAdjust: {error.strerror}") from None
        for name, (soft, hard) in (command.get("limits") or {}).items():
            try:
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))
            except (OSError, ValueError, AttributeError) as error:
                raise SetupError(LIMITS, f"Limit{name}: {error}") from None
        if "nice" in command and command["nice"] != os.getpriority(os.PRIO_PROCESS, 0):
            try:
                os.setpriority(os.PRIO_PROCESS, 0, command["nice"])
            except OSError as error:
                raise SetupError(201, f"Nice: {error.strerror}") from None

    @staticmethod
    def make_directories(command: dict, found: tuple[int, int, list[int], dict[str, str]] | None) -> None:
        """RuntimeDirectory= and its kin, owned by the service's user."""
        for root, name, mode, is_owned in command.get("directories") or []:
            try:
                folder = make_folder(root, name)
            except OSError as error:
                raise SetupError(DIRECTORY, f"{root}/{name} is no directory of its own: {error.strerror}") from None
            os.fchmod(folder, mode)
            if is_owned and found is not None:
                os.fchown(folder, found[0], found[1])
            os.close(folder)

    def set_streams(self, command: dict) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        streams = {"stdout": 1, "stderr": 2}
        for name, number in streams.items():
            kind, path = command.get(name) or ("log", "")
            if kind == "log" or (kind == "inherit" and number == 1):
                os.dup2(self.out_write, number)
            elif kind == "inherit":
                os.dup2(1, number)
            elif kind == "null":
                os.dup2(null, number)
            else:
                flags = {"append": os.O_APPEND, "truncate": os.O_TRUNC}.get(kind, 0)
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644), number)

    @staticmethod
    def change_directory(command: dict, environment: dict) -> None:
        directory = command.get("cwd") or "/"
        if directory.startswith("~"):
            directory = environment.get("HOME", "/root") + directory[1:]
        try:
            os.chdir(directory)
        except OSError:
            if not command.get("cwd_optional"):
                raise
            os.chdir("/")

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

    def everything(self) -> list[int]:
        """All processes of the unit."""
        found = descendants(os.getpid())
        if self.group is not None:
            found += [pid for pid in self.group.members() if pid not in found]
        return found

    def signal_all(self, number: int) -> None:
        for pid in self.everything():
            self.signal_one(pid, number)

    # -- what the service says, and which process it is ----------------------------------------

    def hear(self) -> None:
        """One message of sd_notify(3), from a process whose word counts."""
        try:
            data, ancillary, _, _ = self.notify.recvmsg(NOTIFY_BYTES_MAX, 4096, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return
        sender = 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                for (fd,) in struct.iter_unpack("i", content[: len(content) // 4 * 4]):
                    os.close(fd)  # BARRIER=1 waits for just that; stores of descriptors are not kept
        if not self.may_speak(sender):
            return
        said = {}
        for line in data.decode("utf-8", "replace").split("\n"):
            key, equals, value = line.partition("=")
            if equals and key.isascii() and key.replace("_", "").isalnum():
                said[key] = value[:STATUS_BYTES_MAX]
        pid = said.get("MAINPID", "")
        if pid.isascii() and pid.isdigit() and len(pid) <= 10:
            self.name_main(int(pid))
        if set(said) <= {"WATCHDOG"}:  # often, and of no use later
            if said and self.client is not None:
                self.push({"ev": "notify", "said": said})
            return
        self.notified.update({k: v for k, v in said.items() if k in ("READY", "STATUS", "WATCHDOG_USEC")})
        self.emit({"ev": "notify", "said": said})

    def may_speak(self, sender: int) -> bool:
        known = self.processes.get(sender)
        if self.access == "main":
            return known is not None and known["main"]
        if self.access == "exec":
            return known is not None
        return self.access == "all" and sender in self.everything()

    def name_main(self, pid: int) -> bool:
        """Another process of the unit is the main one from now on."""
        if pid not in self.everything():
            return False
        if self.processes.get(pid, {}).get("main"):
            return True
        for known in self.processes.values():
            if known["main"]:
                known.update(main=False, step="former")
        self.adopt(pid, "start.0", True)
        if parent_of(pid) != os.getpid() and pid not in self.aliens.values():
            try:
                self.aliens[os.pidfd_open(pid)] = pid
            except OSError:
                pass  # gone already; or a kernel without them, which says nothing of its end
        return True

    def alien_ended(self, handle: int) -> None:
        """A main process ended whose parent, not we, hears how."""
        pid = self.aliens.pop(handle)
        os.close(handle)
        known = self.processes.pop(pid, None)
        if known is not None:  # else it had become a child of ours, and was reaped
            event = {"ev": "ended", "step": known["step"], "main": known["main"],
                     "code": 0, "signal": 0, **self.by_fence()}
            self.ends["main" if known["main"] else known["step"]] = event
            self.emit(event)

    def find_main(self, command: dict) -> None:
        """The process that a forking service left: named in its file, or the only one there is."""
        path = command.get("pid_file")
        if path:
            try:
                pid = int(read_small(path).strip())
            except (OSError, ValueError) as error:
                self.emit({"ev": "main", "found": False, "error": f"PIDFile {path}: {error}"})
                return
            found = self.name_main(pid)
            error = "" if found else f"PIDFile {path}: process {pid} is none of this unit"
            self.emit({"ev": "main", "found": found, "error": error})
            return
        left = self.everything()
        children = [pid for pid in left if parent_of(pid) == os.getpid()]
        # seen twice: on the way to a daemon there is a process that is gone a moment later
        candidate, self.candidate = self.candidate, children[0] if len(children) == 1 else 0
        if command.get("guess") and candidate and candidate == self.candidate:
            self.emit({"ev": "main", "found": self.name_main(candidate), "error": ""})
        else:
            self.emit({"ev": "main", "found": False, "running": bool(left), "error": ""})

    def tidy(self, command: dict) -> None:
        """After a run: runtime directories and files go, and the control group."""
        left = [(remove_tree, path) for path in command["directories"]]
        for remove, path in [*left, *((os.unlink, path) for path in command["files"])]:
            try:
                remove(path)
            except OSError:
                pass
        if self.group is not None and self.was_empty:
            self.group.remove()

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
            for pid, known in list(self.processes.items()):  # the main process, and a step that runs
                if known["step"] != "former":
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
            self.fence_signalled = True
            self.signal_all(signal.SIGKILL)
        elif now >= stop_at:
            if self.fence_stage == 0:
                self.fence_stage = 1
                self.fence_signalled = True
                self.log.write([b"argosy: the machine's lease runs out: stopping"])
                self.signal_all(signal.SIGTERM)
        elif self.fence_stage == 1:
            self.fence_stage = 0
            self.relented_at = now

    def by_fence(self) -> dict:
        """The mark of what ends now, if the fence has sent it a signal."""
        late = self.fence_stage == 0 and boottime() - self.relented_at > FENCE_S_MAX
        return {"fenced": True} if self.fence_signalled and not late else {}

    # -- the host process ----------------------------------------------------------------

    def accept(self) -> None:
        connection, _ = self.server.accept()
        if self.client is not None:
            self.client.close()
        connection.setblocking(False)
        self.client = connection
        self.buffer = self.waiting = b""
        pending, self.events = self.events, []
        self.emit({"ev": "hello", "me": self.me, "meta": self.meta, "pending": pending,
                   "processes": {str(p): k for p, k in self.processes.items()},
                   "ends": self.ends, "empty": self.was_empty, "said": self.notified,
                   "fenced": self.lease_path != "-"})

    def receive(self) -> None:
        try:
            data = self.client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self.buffer) > LINE_BYTES_MAX:
            self.drop_client()
            return
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            self.obey(json.loads(line))

    def drop_client(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None
            self.waiting = b""

    def push(self, event: dict) -> None:
        """Hand an event to the host process, when it reads; one that does not is let go."""
        self.waiting += json.dumps(event).encode() + b"\n"
        if len(self.waiting) > WAITING_BYTES_MAX:
            self.drop_client()
        else:
            self.send()

    def send(self) -> None:
        if self.client is None or not self.waiting:
            return
        try:
            sent = self.client.send(self.waiting)
            self.waiting = self.waiting[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.drop_client()

    def obey(self, command: dict) -> None:
        op = command["op"]
        if op == "run":
            self.start(command)
        elif op == "kill":
            self.kill(command)
        elif op == "find_main":
            self.find_main(command)
        elif op == "tidy":
            self.tidy(command)
        elif op == "meta":
            invocation = command["meta"].get("invocation")
            if invocation != self.meta.get("invocation"):
                self.ends = {}
                self.notified = {}
                self.note_run(str(invocation))
            self.meta = command["meta"]
        elif op == "quit":
            self.quitting = True
            self.signal_all(signal.SIGKILL)
            self.quit_deadline = boottime() + 0.2
        self.save()

    @staticmethod
    def note_run(invocation: str) -> None:
        """From now on this run of the unit writes the log."""
        try:
            with open("runs", "a+") as f:
                f.write(f"{time.time():.6f} {invocation}\n")
                f.seek(0)
                rows = f.readlines()
            if len(rows) > 2 * RUNS_MAX:
                with open("runs.new", "w") as f:
                    f.writelines(rows[-RUNS_MAX:])
                os.replace("runs.new", "runs")
        except OSError:
            pass  # a full disk loses this, not the unit

    def emit(self, event: dict) -> None:
        """Tell the host process; what it is away for is told when it is back."""
        if self.client is not None:
            self.push(event)
        if self.client is None and event["ev"] != "hello":
            self.events.append(event)
            del self.events[:-EVENTS_MAX]
        self.save()

    def save(self) -> None:
        """What is known, for whoever looks at the directory; atomically."""
        state = {"shim": self.me, "meta": self.meta,
                 "processes": {str(p): k for p, k in self.processes.items()}}
        try:
            with open("state.json.new", "w") as f:
                json.dump(state, f)
            os.replace("state.json.new", "state.json")
        except OSError:
            pass  # a full disk loses this, not the unit

    def read_output(self) -> None:
        for _ in range(OUTPUT_BYTES_TURN // 65536):
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
        sys.exit({b".": 0, b"b": BUSY}.get(os.read(ready_read, 1), 1))
    os.close(ready_read)
    os.setsid()
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
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
    shim = Shim(lease_path, lock)
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
