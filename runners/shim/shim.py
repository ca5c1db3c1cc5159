"""The process shim: the parent of one unit's processes, which outlives the host process.

Runs as a small program of its own (standard library only).  It starts commands when told,
owns their output, reaps whatever they leave behind (it is a sub-reaper), and answers on a
Unix socket.  It also holds the fence: when the machine's lease file is not renewed in time
it ends the unit by itself, so a frozen or dead host process cannot make a second copy.
"""

import json
import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

from . import child
from .child import EXEC, HANDLED
from .facts import LEASE, boottime, descendants, parent_of, start_time
from .groups import Group
from .log import READ_BYTES, Log

if TYPE_CHECKING:
    from .guard import Doors

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
#: How steps are called that are sessions of operators, and no part of the service.
SESSION = "exec."
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Shim:
    def __init__(self, lease_path: str, doors: "Doors", guarded: bool) -> None:
        """``guarded``: another process goes on with the unit should this one die."""
        self.lease_path = lease_path
        self.doors = doors
        self.guarded = guarded
        self.server, self.notify, self.out_read = doors.server, doors.notify, doors.out_read
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
        self.wake_read, self.wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        for handled in HANDLED:
            signal.signal(handled, lambda *_: None)
        if guarded:
            self.read_word()
            self.save()

    def inherit(self) -> None:
        """Go on where the shim left off whose guard this was; its children are ours now."""
        self.log.feed(self.doors.spool.left())
        self.doors.spool.keep(self.log.partial)
        self.log.write([b"argosy: the shim of this unit was killed; its guard goes on"])
        try:
            with open("state.json") as f:
                state = json.load(f)
        except (OSError, ValueError):
            state = {}
        self.meta, self.ends, self.notified = state.get("meta", {}), state.get("ends", {}), state.get("said", {})
        self.access, self.events = state.get("access", "none"), state.get("events", [])
        self.fence_signalled = state.get("fenced", False)
        if state.get("cgroup"):
            self.group = Group(state["cgroup"])
            self.group.had_oom_kill()
        known = {int(pid): about for pid, about in state.get("processes", {}).items()}
        self.processes = {pid: about for pid, about in known.items() if start_time(pid) == about["start"]}
        self.was_empty = not self.everything()
        for pid, about in self.processes.items():
            self.watch_alien(pid, about["main"])
        for about in [about for pid, about in known.items() if pid not in self.processes]:  # how, nobody can say any more
            self.note_end(about["step"], about["main"], {"code": 0, "signal": 0})
            self.emit({"ev": "ended", "step": about["step"], "main": about["main"], "code": 0, "signal": 0})
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
        ended: list[dict] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                for event in ended:
                    self.emit(event)
                if not self.was_empty:
                    self.was_empty = True
                    self.read_output()
                    self.log.flush()
                    self.doors.spool.keep(b"")
                    self.emit({"ev": "empty", **self.by_fence()})
                    self.fence_signalled = False
                return
            if pid == 0:
                for event in ended:
                    self.emit({**event, "left": True})
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
            self.note_end(known["step"], known["main"], event)
            self.read_output()
            ended.append(event)

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
            command["env"]["NOTIFY_SOCKET"] = "@" + self.doors.notify_name
        if command.get("cgroup"):
            self.group = self.group or Group(command["cgroup"]["name"])
            self.group.had_oom_kill()  # what an earlier run had is no news
        # a signal that comes before the child has set its own handlers waits until it has
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        pipe: tuple[int, ...] = ()
        try:
            pipe = error_read, error_write = os.pipe2(os.O_CLOEXEC)
            pid = os.fork()
            if pid == 0:
                for handle in (self.server, self.client, self.notify):  # nobody is to take it for the shim
                    if handle is not None:
                        os.close(handle.fileno())
                os.close(self.doors.lock)
                child.become(command, 0 if self.guarded else self.me["pid"], self.group, self.doors.out_write, error_write)
        except OSError as error:  # no more processes, or descriptors
            for end in pipe:
                os.close(end)
            self.failed(command["step"], command["main"], EXEC, f"{command['argv'][0]}: {error.strerror}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
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
        self.note_end(step, main, {"code": code, "signal": 0})
        self.emit({"ev": "failed", "step": step, "main": main, "error": text, "code": code})

    def note_end(self, step: str, main: bool, event: dict) -> None:
        """For a host process that was away."""
        if not step.startswith(SESSION):
            self.ends["main" if main else step] = event

    def adopt(self, pid: int, step: str, main: bool) -> None:
        self.processes[pid] = {"step": step, "main": main, "start": start_time(pid)}
        self.emit({"ev": "started", "step": step, "main": main, "pid": pid})

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
        self.watch_alien(pid, True)
        return True

    def watch_alien(self, pid: int, main: bool) -> None:
        """Hear of the end of a main process that is no child of ours."""
        if main and parent_of(pid) != os.getpid() and pid not in self.aliens.values():
            try:
                self.aliens[os.pidfd_open(pid)] = pid
            except OSError:
                pass  # gone already; or a kernel without them, which says nothing of its end

    def alien_ended(self, handle: int) -> None:
        """A main process ended whose parent, not we, hears how."""
        pid = self.aliens.pop(handle)
        os.close(handle)
        known = self.processes.pop(pid, None)
        if known is not None:  # else it had become a child of ours, and was reaped
            event = {"ev": "ended", "step": known["step"], "main": known["main"],
                     "code": 0, "signal": 0, **self.by_fence()}
            self.note_end(known["step"], known["main"], event)
            self.emit(event)

    def find_main(self, command: dict) -> None:
        """The process that a forking service left: named in its file, or the only one there is."""
        path = command.get("pid_file")
        if path:
            try:
                pid = int(child.read_small(path).strip())
            except (OSError, ValueError) as error:
                self.emit({"ev": "main", "found": False, "error": f"PIDFile {path}: {error}"})
                return
            found = self.name_main(pid)
            error = "" if found else f"PIDFile {path}: process {pid} is none of this unit"
            self.emit({"ev": "main", "found": found, "error": error})
            return
        sessions = {pid for pid, known in self.processes.items() if known["step"].startswith(SESSION)}
        left = [pid for pid in self.everything() if pid not in sessions]
        children = [pid for pid in left if parent_of(pid) == os.getpid()]
        # seen twice: on the way to a daemon there is a process that is gone a moment later
        candidate, self.candidate = self.candidate, children[0] if len(children) == 1 else 0
        if command.get("guess") and candidate and candidate == self.candidate:
            self.emit({"ev": "main", "found": self.name_main(candidate), "error": ""})
        else:
            self.emit({"ev": "main", "found": False, "running": bool(left), "error": ""})

    def tidy(self, command: dict) -> None:
        """After a run: runtime directories and files go, and the control group."""
        left = [(child.remove_tree, path) for path in command["directories"]]
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
        if command.get("step"):  # an operator's session ends
            for pid in [pid for pid, known in self.processes.items() if known["step"] == command["step"]]:
                self.signal_one(-pid, command["signal"])  # each is the first of a group of its own
        elif command["whole"]:
            self.signal_all(command["signal"])
        else:
            for pid, known in list(self.processes.items()):  # the main process, and a step that runs
                if known["step"] != "former" and not known["step"].startswith(SESSION):
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
        state = {"shim": self.me, "meta": self.meta, "ends": self.ends, "said": self.notified, "access": self.access,
                 "events": self.events, "fenced": self.fence_signalled, "cgroup": self.group.name if self.group else "",
                 "processes": {str(p): k for p, k in self.processes.items()}}
        try:
            with open("state.json.new", "w") as f:
                json.dump(state, f)
            os.replace("state.json.new", "state.json")
        except OSError:
            pass  # a full disk loses this, not the unit

    def read_output(self) -> None:
        for _ in range(OUTPUT_BYTES_TURN // READ_BYTES):
            try:
                if not self.doors.spool.take(self.out_read, self.log):
                    return
            except BlockingIOError:
                return
