"""A service's life as a table: what systemd's service state machine does, without a process.

:class:`Service` takes events (start, stop, a step ended, a timer fired) and gives actions
(run a step, send a signal, arm a timer).  Sub-states, results and the restart rules carry
systemd's names and defaults (systemd.service(5), systemd.kill(5)).  No clock, no process.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .spec import Command, UnitSpec


class Sub(StrEnum):
    """systemd's SUB column for services."""

    DEAD = "dead"
    CONDITION = "condition"
    START_PRE = "start-pre"
    START = "start"
    START_POST = "start-post"
    RUNNING = "running"
    EXITED = "exited"
    RELOAD = "reload"
    STOP = "stop"
    STOP_WATCHDOG = "stop-watchdog"
    STOP_SIGTERM = "stop-sigterm"
    STOP_SIGKILL = "stop-sigkill"
    STOP_POST = "stop-post"
    FINAL_SIGTERM = "final-sigterm"
    FINAL_SIGKILL = "final-sigkill"
    FAILED = "failed"
    AUTO_RESTART = "auto-restart"


#: ACTIVE for each SUB.
ACTIVE = {
    Sub.DEAD: "inactive", Sub.CONDITION: "activating", Sub.START_PRE: "activating", Sub.START: "activating",
    Sub.START_POST: "activating", Sub.RUNNING: "active", Sub.EXITED: "active",
    Sub.RELOAD: "reloading", Sub.STOP: "deactivating", Sub.STOP_WATCHDOG: "deactivating",
    Sub.STOP_SIGTERM: "deactivating",
    Sub.STOP_SIGKILL: "deactivating", Sub.STOP_POST: "deactivating",
    Sub.FINAL_SIGTERM: "deactivating", Sub.FINAL_SIGKILL: "deactivating", Sub.FAILED: "failed", Sub.AUTO_RESTART: "activating",
}  # fmt: skip

#: Which sub-states may follow which; every move is checked against it and the docs draw it.
TRANSITIONS: dict[Sub, tuple[Sub, ...]] = {
    Sub.DEAD: (Sub.CONDITION, Sub.START, Sub.START_PRE, Sub.START_POST, Sub.FAILED, Sub.RUNNING, Sub.EXITED),
    Sub.CONDITION: (Sub.START_PRE, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.START_PRE: (Sub.START, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.START: (Sub.START_POST, Sub.STOP_SIGTERM, Sub.STOP_POST, Sub.STOP),
    Sub.START_POST: (Sub.RUNNING, Sub.EXITED, Sub.STOP, Sub.STOP_WATCHDOG, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.RUNNING: (Sub.RELOAD, Sub.STOP, Sub.STOP_WATCHDOG, Sub.STOP_SIGTERM, Sub.STOP_POST, Sub.EXITED),
    Sub.EXITED: (Sub.RELOAD, Sub.STOP, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.RELOAD: (
        Sub.RUNNING, Sub.EXITED, Sub.STOP, Sub.STOP_WATCHDOG, Sub.STOP_SIGTERM, Sub.STOP_POST,
    ),
    Sub.STOP: (Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.STOP_WATCHDOG: (Sub.STOP_SIGKILL, Sub.STOP_POST),
    Sub.STOP_SIGTERM: (Sub.STOP_SIGKILL, Sub.STOP_POST),
    Sub.STOP_SIGKILL: (Sub.STOP_POST,),
    Sub.STOP_POST: (Sub.FINAL_SIGTERM, Sub.FINAL_SIGKILL, Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART),
    Sub.FINAL_SIGTERM: (Sub.FINAL_SIGKILL, Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART),
    Sub.FINAL_SIGKILL: (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART),
    Sub.FAILED: (Sub.CONDITION, Sub.FAILED, Sub.DEAD),
    Sub.AUTO_RESTART: (Sub.CONDITION, Sub.DEAD, Sub.FAILED),
}  # fmt: skip

#: In these a process was asked to end, and its end is awaited.
_ASKED = (Sub.STOP_WATCHDOG, Sub.STOP_SIGTERM, Sub.STOP_SIGKILL)
#: In these the service is up, or about to be: its watchdog and its longest life count.
_UP = (Sub.START_POST, Sub.RUNNING, Sub.RELOAD)
#: Seconds that a process has to be gone after SIGKILL.
_KILLED_S = 10.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit code, or the number of a signal."""

    code: int = 0
    signal: int = 0
    dumped: bool = False
    #: the kernel killed it, or another process of the unit, for want of memory
    oom: bool = False

    def is_clean(self, spec: UnitSpec, main: bool) -> bool:
        """systemd's idea of a clean exit of this service."""
        if self.signal:
            clean = main and spec.type != "oneshot" and self.signal in (
                signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE,
            )  # fmt: skip
            return clean or self._named(spec.success_exit_status)
        return self.code == 0 or self._named(spec.success_exit_status)

    def _named(self, statuses: frozenset[int | str]) -> bool:
        if self.signal:
            try:
                return signal.Signals(self.signal).name in statuses
            except ValueError:
                return False
        return self.code in statuses

    def matches(self, statuses: frozenset[int | str]) -> bool:
        """Whether a list of exit statuses names this one."""
        return self._named(statuses)

    @property
    def result(self) -> str:
        """The unit's result if this exit decides it."""
        if self.oom:
            return "oom-kill"
        if self.signal:
            return "core-dump" if self.dumped else "signal"
        return "exit-code"

    @property
    def variables(self) -> dict[str, str]:
        """What ExecStop= and ExecStopPost= are told of it (systemd.exec(5))."""
        if not self.signal:
            return {"EXIT_CODE": "exited", "EXIT_STATUS": str(self.code)}
        name = str(self).removeprefix("SIG").removeprefix("signal ")
        return {"EXIT_CODE": "dumped" if self.dumped else "killed", "EXIT_STATUS": name}

    def __str__(self) -> str:
        if not self.signal:
            return f"exit status {self.code}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


# -- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Run a command; its end comes back as ``ended(step, exit)``."""

    step: str
    command: Command
    main: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal to the main process, or to all of the unit."""

    signal: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Arm:
    """Let ``timer(kind)`` be called in ``seconds``; replaces the one of that kind armed before.

    Kinds: ``state`` (how long this state may last), ``watchdog``, ``runtime``.
    """

    seconds: float
    kind: str = "state"


@dataclass(frozen=True, slots=True)
class Extend:
    """The timer of this kind must not fire within ``seconds``; one that fires later stays."""

    seconds: float
    kind: str = "state"


@dataclass(frozen=True, slots=True)
class Disarm:
    """No timer of this kind is needed."""

    kind: str = "state"


@dataclass(frozen=True, slots=True)
class FindMain:
    """Find the process that a forking service left behind: ``main_found`` says which."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The state is worth reporting."""


Action = Any
_LISTS = {
    Sub.CONDITION: "exec_condition", Sub.START_PRE: "exec_start_pre", Sub.START: "exec_start", Sub.START_POST: "exec_start_post",
    Sub.RELOAD: "exec_reload", Sub.STOP: "exec_stop", Sub.STOP_POST: "exec_stop_post",
}  # fmt: skip


@dataclass(slots=True)
class Service:
    """See the module docstring; every method returns the actions to take, in order."""

    spec: UnitSpec
    sub: Sub = Sub.DEAD
    result: str = "success"
    main_running: bool = False
    main_known: bool = True  # False: a forking service whose main process could not be told
    step_running: bool = False
    status: str = ""  # what the service says of itself (STATUS=)
    watchdog_sec: float = 0.0
    last_exit: Exit | None = None
    restarts: int = 0
    wanted: bool = False
    _step: int = 0
    _reloads_itself: bool = False
    _restarting: bool = False
    _stops_itself: bool = False
    _left: bool = False  # whether others were there still when the last process ended
    _starts: list[float] = field(default_factory=list)
    _auto_restarts: int = 0

    @property
    def active(self) -> str:
        """systemd's ACTIVE column."""
        return ACTIVE[self.sub]

    def start(self, now: float) -> list[Action]:
        """An operator (or a placement) wants it to run."""
        self.wanted = True
        if self.sub in (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART):
            self._auto_restarts = 0
            return self._begin(now)
        return []

    def adopt(self, main_running: bool, known: bool = True) -> list[Action]:
        """Found as it was left: running, or (oneshot) done."""
        self.wanted = True
        self.main_running, self.main_known = main_running, known
        self._move(Sub.RUNNING if main_running else Sub.EXITED)
        return [*self._guards(), Changed()]

    def resume_main(self) -> list[Action]:
        """Found running, and it has not said yet that it is ready."""
        self.wanted = True
        self.main_running = True
        self.watchdog_sec = self.watchdog_sec or self.spec.watchdog_sec
        self._move(Sub.START)
        return [self._limit(self.spec.timeout_start_sec), Changed()]

    def resume(self, step: str) -> list[Action]:
        """Found in the middle of its start: this command runs, or its end is told next."""
        self.wanted = True
        name, _, number = step.rpartition(".")
        self._move(Sub(name))
        self._step = int(number)
        self.step_running = True
        return [self._limit(self.spec.timeout_start_sec), Changed()]

    def resume_stop(self, wanted: bool, result: str, main_running: bool) -> list[Action]:
        """Found in the middle of its stop, by itself (``wanted``) or not: ExecStop is not run again."""
        self._move(Sub.RUNNING)
        self._move(Sub.STOP_SIGTERM)
        self.wanted, self.result, self.main_running = wanted, result, main_running
        if self.spec.kill_mode in ("process", "none") and not main_running:
            return self._steps(Sub.STOP_POST)
        whole = self.spec.kill_mode == "control-group"
        return [Kill(self.spec.kill_signal, whole), self._limit(self.spec.timeout_stop_sec), Changed()]

    def resume_stopped(self, result: str, last_exit: Exit | None, cleaned: bool) -> list[Action]:
        """Found where nothing was left of it; ``cleaned``: ExecStopPost has been run."""
        self._move(Sub.RUNNING)
        self._move(Sub.STOP_SIGTERM)
        self.wanted, self.result, self.last_exit = True, result, last_exit
        if not cleaned:
            return self._steps(Sub.STOP_POST)
        self._move(Sub.STOP_POST)
        return self._finish()

    def lost(self) -> list[Action]:
        """Everything of it was killed from outside, and nothing can be run for it."""
        self.main_running = self.step_running = False
        if self.sub in (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART, Sub.EXITED):
            return []
        self._fail("signal")
        if self.sub not in (Sub.FINAL_SIGTERM, Sub.FINAL_SIGKILL):
            self._move(Sub.STOP_POST)
        return self._finish()

    def settled(self, result: str, last_exit: Exit | None = None) -> list[Action]:
        """Found as it had ended by itself: it stays so until somebody asks for it again."""
        self.wanted = True
        self.result, self.last_exit = result, last_exit
        self._move(Sub.DEAD if result in ("success", "exec-condition") else Sub.FAILED)
        return [Changed()]

    def skip(self, result: str = "success") -> list[Action]:
        """A Condition or an Assert does not hold: it is not started, and stays so."""
        self.wanted = True
        self.result = result
        self._move(Sub.FAILED if result != "success" else Sub.DEAD)
        return [Changed()]

    def stop(self, restarting: bool = False) -> list[Action]:
        """Stop it and do not restart it; ``restarting``: somebody starts it again afterwards."""
        self.wanted = False
        self._restarting = restarting
        if self.sub in (Sub.AUTO_RESTART, Sub.FAILED):
            self._move(Sub.DEAD)
            return [Disarm(), Changed()]
        if self.sub in (Sub.RUNNING, Sub.EXITED, Sub.RELOAD, Sub.START_POST):
            return self._enter_stop()
        if self.sub in (Sub.CONDITION, Sub.START_PRE, Sub.START):
            return self._kill()  # not started yet: ExecStop is not for this
        return []

    def end(self) -> list[Action]:
        """Stop it, as if it had ended by itself: what comes of that is for Restart= to say."""
        wanted = self.wanted
        actions = self.stop()
        self.wanted = wanted
        return actions

    def reload(self) -> list[Action]:
        """Run ExecReload in a running service, or send the signal that means it."""
        if self.sub is not Sub.RUNNING:
            return []
        if self.spec.type == "notify-reload":
            self._move(Sub.RELOAD)
            self._reloads_itself = True
            signalled = Kill(self.spec.reload_signal, False)
            return [signalled, self._limit(self.spec.timeout_start_sec), Changed()]
        if not self.spec.exec_reload:
            return []
        self._reloads_itself = False
        return self._steps(Sub.RELOAD)

    def main_started(self) -> list[Action]:
        """The main process runs its program."""
        if self.sub is Sub.START and self.spec.type == "exec":
            return self._steps(Sub.START_POST)
        return []

    def main_found(self, known: bool, running: bool) -> list[Action]:
        """What :class:`FindMain` gave: the main process, or only that something runs, or nothing."""
        if self.sub is not Sub.START or self.spec.type != "forking":
            return []
        if not running and self.spec.pid_file:
            self._fail("protocol")
            return self._kill()
        self.main_running, self.main_known = running, known  # of what left nothing, the start was all
        return self._steps(Sub.START_POST)

    def notified(self, said: dict[str, str]) -> list[Action]:
        """What the service says of itself (sd_notify(3)); the main process is not found here."""
        actions: list[Action] = []
        if "STATUS" in said:
            self.status = said["STATUS"]
            actions.append(Changed())
        period = seconds_of(said.get("WATCHDOG_USEC", ""))
        if period:
            self.watchdog_sec = period
        if said.get("WATCHDOG") == "trigger" and self.sub in _UP:
            return actions + self._watchdog()
        if ("WATCHDOG" in said or period) and self.watchdog_sec and self.sub in _UP:
            actions.append(Arm(self.watchdog_sec, "watchdog"))
        extended = seconds_of(said.get("EXTEND_TIMEOUT_USEC", ""))
        if extended and self.sub is Sub.RUNNING and math.isfinite(self.spec.runtime_max_sec):
            actions.append(Extend(extended, "runtime"))
        elif extended and self.active in ("activating", "deactivating", "reloading"):
            actions.append(Extend(extended))
        if said.get("RELOADING") == "1" and self.sub is Sub.RUNNING:
            self._move(Sub.RELOAD)
            self._reloads_itself = True
            actions += [self._limit(self.spec.timeout_start_sec), Changed()]
        if said.get("READY") == "1":
            actions += self._ready()
        if said.get("STOPPING") == "1" and self.sub in (Sub.RUNNING, Sub.RELOAD):
            self._move(Sub.STOP_SIGTERM)
            self._stops_itself = True
            actions += [self._limit(self.spec.timeout_stop_sec), Changed()]
        return actions

    def _ready(self) -> list[Action]:
        if self.sub is Sub.START and self.spec.notifies and self.main_running:
            return self._steps(Sub.START_POST)
        if self.sub is Sub.RELOAD and self._reloads_itself:
            return self._reloaded()
        return []

    def refused(self, step: str, main: bool, how: Exit) -> list[Action]:
        """A process could not even be begun: what it was to be given is not there."""
        self._fail("resources")
        self.main_running = self.main_running or main
        return self.ended(step, main, how)

    def ended(self, step: str, main: bool, how: Exit, left: bool = False) -> list[Action]:
        """A process of ours has ended; ``left``: others of the unit's are there still."""
        self._left = left
        if step == "former":  # it was the main process until the unit named another
            return []
        if main and self._main_ended(how):
            return self._after_main(how)
        if not main:
            self.step_running = False
            if self.sub in _ASKED and not how.is_clean(self.spec, False):
                self._fail(how.result)
            if self.sub in _ASKED and not self.main_running:
                return self._after_asked()
            if self.sub is Sub.FINAL_SIGTERM and self.spec.kill_mode != "control-group":  # the rest has not been asked
                return self._final_sigkill() if left and self.spec.kill_mode == "mixed" else self._finish()
        if not main and self.sub in _LISTS and step == f"{self.sub.value}.{self._step}":
            return self._after_step(how)
        return []

    def group_empty(self) -> list[Action]:
        """Nothing of the unit runs any more."""
        self._left = False
        if self.main_running and not self.main_known:
            self.main_running = False
            if self.sub in (*_UP, Sub.EXITED):
                return self._enter_stop()
        if self.sub in _ASKED:
            return self._steps(Sub.STOP_POST)
        if self.sub in (Sub.FINAL_SIGTERM, Sub.FINAL_SIGKILL):
            return self._finish()
        return []

    def timer(self, now: float, kind: str = "state") -> list[Action]:
        """An armed timer fired."""
        if kind == "watchdog":
            return self._watchdog() if self.sub in _UP else []
        if kind == "runtime":
            if self.sub not in _UP:
                return []
            self._fail("timeout")
            return self._enter_stop()
        if self.sub is Sub.AUTO_RESTART:
            self.restarts += 1
            return self._begin(now)
        if self.sub is Sub.RELOAD:
            return self._reloaded()
        if self.sub in (Sub.CONDITION, Sub.START_PRE, Sub.START, Sub.START_POST, Sub.STOP):
            self._fail("timeout")
            return self._kill()
        if self.sub in (Sub.STOP_WATCHDOG, Sub.STOP_SIGTERM):
            self._fail("timeout")
            if not self.spec.send_sigkill:
                return self._steps(Sub.STOP_POST)
            self._move(Sub.STOP_SIGKILL)
            return [Kill(self.spec.final_kill_signal, self.spec.kill_mode != "process"), Arm(_KILLED_S), Changed()]
        if self.sub is Sub.STOP_SIGKILL:
            self._fail("timeout")
            return self._steps(Sub.STOP_POST)
        if self.sub is Sub.STOP_POST:
            self._fail("timeout")
            self._move(Sub.FINAL_SIGTERM)
            whole = self.spec.kill_mode == "control-group"
            return [Kill(self.spec.kill_signal, whole), self._limit(self.spec.timeout_stop_sec), Changed()]
        if self.sub is Sub.FINAL_SIGTERM:
            self._fail("timeout")
            return self._final_sigkill() if self.spec.send_sigkill else self._finish()
        if self.sub is Sub.FINAL_SIGKILL:
            self._fail("timeout")
            return self._finish()
        return []

    def _final_sigkill(self) -> list[Action]:
        self._move(Sub.FINAL_SIGKILL)
        return [Kill(self.spec.final_kill_signal, self.spec.kill_mode != "process"), Arm(_KILLED_S), Changed()]

    def _clean_up(self) -> list[Action]:
        """After the last of ExecStopPost=: what it has left behind is asked to end, by KillMode=."""
        if not self._left or self.spec.kill_mode in ("none", "process"):
            return self._finish()
        if self.spec.kill_mode == "mixed":
            return self._final_sigkill()
        self._move(Sub.FINAL_SIGTERM)
        return [Kill(self.spec.kill_signal, True), self._limit(self.spec.timeout_stop_sec), Changed()]

    # -- moving ---------------------------------------------------------------------------------

    def _move(self, to: Sub) -> None:
        if to is not self.sub and to not in TRANSITIONS[self.sub]:
            raise AssertionError(f"{self.spec.name.full}: {self.sub.value} -> {to.value} is no transition")
        self.sub = to

    def _fail(self, result: str) -> None:
        if self.result == "success":
            self.result = result

    def _begin(self, now: float) -> list[Action]:
        spec = self.spec
        interval = spec.start_limit_interval_sec
        if interval and spec.start_limit_burst:
            self._starts = [at for at in self._starts if now - at < interval]
            if len(self._starts) >= spec.start_limit_burst:
                self._fail("start-limit-hit")  # what failed before says more
                self._move(Sub.FAILED)
                return [Disarm(), Changed()]
            self._starts.append(now)
        self.result = "success"
        self.last_exit = None
        self.status = ""
        self.main_known = True
        self._restarting = self._stops_itself = False
        self.watchdog_sec = self.spec.watchdog_sec
        return [Disarm("watchdog"), Disarm("runtime"), *self._steps(Sub.CONDITION)]

    def _steps(self, state: Sub) -> list[Action]:
        """Enter a state that runs a list of commands; skip it when there are none."""
        self._move(state)
        self._step = 0
        return self._next_step([])

    def _next_step(self, before: list[Action]) -> list[Action]:
        state = self.sub
        commands: list[Command] = getattr(self.spec, _LISTS[state])
        if self._step >= len(commands):
            return before + self._steps_done(state)
        is_main = state is Sub.START and self.spec.type not in ("oneshot", "forking")
        run = Run(f"{state.value}.{self._step}", commands[self._step], is_main)
        stopping = state in (Sub.STOP, Sub.STOP_POST)
        limit = self.spec.timeout_stop_sec if stopping else self.spec.timeout_start_sec
        actions = [*before, run, self._limit(limit), Changed()]
        if is_main:
            self.main_running = True
            if self.spec.type != "simple":
                return actions  # it is started when its program runs, or when it says so
            return actions + self._steps(Sub.START_POST)
        self.step_running = True
        return actions

    def _steps_done(self, state: Sub) -> list[Action]:
        if state is Sub.CONDITION:
            return self._steps(Sub.START_PRE)
        if state is Sub.START_PRE:
            return self._steps(Sub.START)
        if state is Sub.START:
            if self.spec.type == "forking":
                return [FindMain()]
            return self._steps(Sub.START_POST)
        if state is Sub.START_POST:
            return self._started()
        if state is Sub.RELOAD:
            return self._reloaded()
        if state is Sub.STOP:
            return self._kill()
        return self._clean_up()

    def _started(self) -> list[Action]:
        if self.main_running:
            self._move(Sub.RUNNING)
            return [Disarm(), *self._guards(), Changed()]
        if self.spec.type == "oneshot" and not self.spec.remain_after_exit:
            return [Disarm(), *self._enter_stop()]
        if self.spec.remain_after_exit:
            self._move(Sub.EXITED)
            return [Disarm(), Changed()]
        return self._enter_stop()

    def _guards(self) -> list[Action]:
        """The timers of a service that is up."""
        longest = self.spec.runtime_max_sec
        actions: list[Action] = [Arm(longest, "runtime")] if math.isfinite(longest) else []
        return [*actions, Arm(self.watchdog_sec, "watchdog")] if self.watchdog_sec else actions

    @staticmethod
    def _limit(seconds: float) -> Arm | Disarm:
        """How long the state that was just entered may last."""
        return Arm(seconds) if math.isfinite(seconds) else Disarm()

    def _reloaded(self) -> list[Action]:
        self._reloads_itself = False
        self._move(Sub.RUNNING if self.main_running else Sub.EXITED)
        return [Disarm(), Changed()]

    def _main_ended(self, how: Exit) -> bool:
        if not self.main_running:
            return False
        self.main_running = False
        self.last_exit = how
        return True

    def _after_main(self, how: Exit) -> list[Action]:
        if self.sub in (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART, Sub.CONDITION, Sub.START_PRE):
            return []  # it outlived its run
        commands = self.spec.exec_start
        clean = how.is_clean(self.spec, True) or bool(commands and commands[-1].ignore_failure)
        if how.oom or not clean:
            self._fail(how.result)
        if self.sub in _ASKED:
            return self._after_asked()
        if self.sub is Sub.START:  # before it was ready: ExecStop is not for this
            self._fail("protocol")
            return self._kill()
        if self.sub in (Sub.STOP, Sub.STOP_POST, Sub.FINAL_SIGTERM, Sub.FINAL_SIGKILL):
            return []  # expected: the commands' end moves on
        if self.sub is Sub.START_POST and self._step < len(self.spec.exec_start_post):
            return self._kill() if not clean else []
        if clean and self.spec.remain_after_exit:
            self._move(Sub.EXITED)
            return [Disarm(), Changed()]
        return self._enter_stop() if clean else self._kill()  # ExecStop= is for what runs, or has run to its end

    def _after_asked(self) -> list[Action]:
        """The process that was asked to end did: what of the rest, by KillMode=."""
        if self._stops_itself:  # nobody has asked the rest to end yet
            self._stops_itself = False
            return self._kill()
        if self.spec.kill_mode == "process":
            return self._steps(Sub.STOP_POST)  # the rest is none of our business
        if self.spec.kill_mode == "mixed" and self.sub is not Sub.STOP_SIGKILL:
            self._move(Sub.STOP_SIGKILL)
            return [Kill(self.spec.final_kill_signal, True), Arm(_KILLED_S), Changed()]
        return []  # expected: group_empty moves on

    def _after_step(self, how: Exit) -> list[Action]:
        command = getattr(self.spec, _LISTS[self.sub])[self._step]
        self.last_exit = how if self.sub is Sub.START else self.last_exit
        if not how.is_clean(self.spec, False) and not command.ignore_failure:
            if self.sub is Sub.RELOAD:
                return self._reloaded()  # a failed reload leaves the service running
            skipped = self.sub is Sub.CONDITION and not how.signal and how.code < 255
            self._fail("exec-condition" if skipped else how.result)
            if self.sub is Sub.STOP:
                return self._kill()
            if self.sub is Sub.STOP_POST:
                return self._clean_up()
            return self._kill()
        self._step += 1
        return self._next_step([])

    # -- stopping -------------------------------------------------------------------------------

    def _enter_stop(self) -> list[Action]:
        return self._steps(Sub.STOP)

    def _kill(self) -> list[Action]:
        """Ask what is left to end; ``group_empty`` or the timer moves on."""
        mode = self.spec.kill_mode
        gone = not self.main_running and not self.step_running
        if mode == "none" or (mode == "process" and gone):
            return self._steps(Sub.STOP_POST)
        self._move(Sub.STOP_SIGTERM)
        if mode == "mixed" and gone:
            return [Kill(self.spec.final_kill_signal, True), Arm(_KILLED_S), Changed()]
        asked = self.spec.restart_kill_signal if self._restarting else 0
        whole = mode == "control-group"
        actions: list[Action] = [Kill(asked or self.spec.kill_signal, whole)]
        if self.spec.send_sighup:
            actions.append(Kill(signal.SIGHUP, whole))
        return [*actions, self._limit(self.spec.timeout_stop_sec), Changed()]

    def _watchdog(self) -> list[Action]:
        """It has not said in time that it is well."""
        self._fail("watchdog")
        self._move(Sub.STOP_WATCHDOG)
        limit = self.spec.timeout_abort_sec or self.spec.timeout_stop_sec
        whole = self.spec.kill_mode == "control-group"
        return [Kill(self.spec.watchdog_signal, whole), self._limit(limit), Changed()]

    def _finish(self) -> list[Action]:
        if self._should_restart():
            self._move(Sub.AUTO_RESTART)
            delay = self._restart_delay()
            self._auto_restarts += 1
            return [Arm(delay), Changed()]
        self._move(Sub.DEAD if self.result in ("success", "exec-condition") else Sub.FAILED)
        return [Disarm(), Changed()]

    def _should_restart(self) -> bool:
        """The table of causes in systemd.service(5), Restart=."""
        spec = self.spec
        how = self.last_exit
        if not self.wanted or self.result == "exec-condition":
            return False
        if how is not None and how.matches(spec.restart_prevent_exit_status):
            return False
        if how is not None and how.matches(spec.restart_force_exit_status):
            return True
        causes = {
            "always": True,
            "on-success": self.result == "success",
            "on-failure": self.result != "success",
            "on-abnormal": self.result not in ("success", "exit-code"),
            "on-abort": self.result in ("signal", "core-dump"),
            "on-watchdog": self.result == "watchdog",
            "no": False,
        }
        return causes[spec.restart]

    def _restart_delay(self) -> float:
        """RestartSec, growing to RestartMaxDelaySec over RestartSteps if both are given."""
        first, last, steps = (
            self.spec.restart_sec, self.spec.restart_max_delay_sec, self.spec.restart_steps,
        )  # fmt: skip
        if not steps or not math.isfinite(last) or first <= 0 or last <= first:
            return first
        if self._auto_restarts >= steps:
            return last
        return float(first * (last / first) ** (self._auto_restarts / steps))


def seconds_of(microseconds: str) -> float:
    """Seconds of what sd_notify(3) gives in microseconds; 0 for what is no such number (of 64 bits)."""
    is_number = microseconds.isascii() and microseconds.isdigit() and len(microseconds) <= 20
    return int(microseconds) / 1e6 if is_number else 0.0
