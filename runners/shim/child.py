"""How a process becomes what its unit file says, between fork and exec."""

import ctypes
import errno
import grp
import os
import pwd
import resource
import signal
import stat
from typing import NoReturn

from .groups import Group

#: Exit statuses of a process that could not be set up (systemd.exec(5)).
CHDIR, LIMITS, EXEC, STDOUT, GROUP, USER, CGROUP, DIRECTORY = 200, 205, 203, 209, 216, 217, 219, 233
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Signals that a shim handles, and its children do not.
HANDLED = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
libc = ctypes.CDLL(None, use_errno=True)


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


def set_streams(command: dict, output: int) -> None:
    """``output``: where the log of the unit is fed from."""
    if command.get("tty"):  # of a session that an operator opened: the first terminal of a new session is its own
        terminal = os.open(command["tty"], os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(terminal, number)
        return
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(open_pipe(command["stdin"], os.O_RDONLY) if command.get("stdin") else null, 0)
    streams = {"stdout": 1, "stderr": 2}
    for name, number in streams.items():
        kind, path = command.get(name) or ("log", "")
        if kind == "log" or (kind == "inherit" and number == 1):
            os.dup2(output, number)
        elif kind == "inherit":
            os.dup2(1, number)
        elif kind == "null":
            os.dup2(null, number)
        elif kind == "fifo":
            os.dup2(open_pipe(path, os.O_WRONLY), number)
        else:
            flags = {"append": os.O_APPEND, "truncate": os.O_TRUNC}.get(kind, 0)
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644), number)


def open_pipe(path: str, flags: int) -> int:
    """An end of a session's pipe: neither made nor waited for if the other end is gone."""
    pipe = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(pipe, True)
    return pipe


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


def become(command: dict, parent: int, group: Group | None, output: int, error_write: int) -> NoReturn:
    """Run a command in this process; what goes wrong is told and ends it.

    ``parent``: the shim with which it dies, as nobody else would end it when the lease is over; 0 if there is a guard.

    ``output``: where the log of the unit is fed from.  ``error_write``: a pipe that takes the
    exit status and the reason, and that closes when the program runs.
    """
    status = EXEC
    try:
        if parent:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        status = CGROUP
        if group is not None and command.get("cgroup"):
            group.make(command["cgroup"]["limits"])
            group.join()
        set_limits(command)
        status = USER
        found = find_user(command)
        status = DIRECTORY
        make_directories(command, found)
        status = STDOUT
        set_streams(command, output)
        environment = command["env"]
        status = GROUP
        if found is not None:
            uid, gid, groups, variables = found
            environment.update({**variables, **environment})
            if os.getuid() == 0:
                if command.get("tty"):
                    os.fchown(0, uid, -1)
                os.setgroups(groups)
            os.setgid(gid)
            status = USER
            os.setuid(uid)
        os.umask(command.get("umask", 0o022))
        status = CHDIR
        change_directory(command, environment)
        status = EXEC
        if command.get("no_new_privileges"):
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if parent:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # another user's process has lost it
            if os.getppid() != parent:
                os._exit(203)
        if environment.get("WATCHDOG_USEC"):
            environment["WATCHDOG_PID"] = str(os.getpid())
        environment["SYSTEMD_EXEC_PID"] = str(os.getpid())
        execute(command, environment)
    except SetupError as error:
        os.write(error_write, f"{error.status} {error}".encode())
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None)
        text = getattr(error, "strerror", None) or str(error)
        shown = f"{where}: {text}" if where and status != EXEC else text
        os.write(error_write, f"{status} {shown}".encode())
    finally:
        os._exit(203)
