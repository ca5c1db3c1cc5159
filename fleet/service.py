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

from .unitfile import Command, UnitSpec


class Sub(StrEnum):
    """systemd's SUB column for services."""

    DEAD = "dead"
    START_PRE = "start-pre"
    START = "start"
    START_POST = "start-post"
    RUNNING = "running"
    EXITED = "exited"
    RELOAD = "reload"
    STOP = "stop"
    STOP_SIGTERM = "stop-sigterm"
    STOP_SIGKILL = "stop-sigkill"
    STOP_POST = "stop-post"
    FINAL_SIGKILL = "final-sigkill"
    FAILED = "failed"
    AUTO_RESTART = "auto-restart"


#: ACTIVE for each SUB.
ACTIVE = {
    Sub.DEAD: "inactive", Sub.START_PRE: "activating", Sub.START: "activating",
    Sub.START_POST: "activating", Sub.RUNNING: "active", Sub.EXITED: "active",
    Sub.RELOAD: "reloading", Sub.STOP: "deactivating", Sub.STOP_SIGTERM: "deactivating",
    Sub.STOP_SIGKILL: "deactivating", Sub.STOP_POST: "deactivating",
    Sub.FINAL_SIGKILL: "deactivating", Sub.FAILED: "failed", Sub.AUTO_RESTART: "activating",
}  # fmt: skip

#: Which sub-states may follow which; every move is checked against it and the docs draw it.
TRANSITIONS: dict[Sub, tuple[Sub, ...]] = {
    Sub.DEAD: (Sub.START_PRE, Sub.START, Sub.FAILED, Sub.RUNNING, Sub.EXITED),
    Sub.START_PRE: (Sub.START, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.START: (Sub.START_POST, Sub.RUNNING, Sub.EXITED, Sub.STOP_SIGTERM, Sub.STOP_POST, Sub.STOP),
    Sub.START_POST: (Sub.RUNNING, Sub.EXITED, Sub.STOP, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.RUNNING: (Sub.RELOAD, Sub.STOP, Sub.STOP_SIGTERM, Sub.STOP_POST, Sub.EXITED),
    Sub.EXITED: (Sub.RELOAD, Sub.STOP, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.RELOAD: (Sub.RUNNING, Sub.EXITED, Sub.STOP, Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.STOP: (Sub.STOP_SIGTERM, Sub.STOP_POST),
    Sub.STOP_SIGTERM: (Sub.STOP_SIGKILL, Sub.STOP_POST),
    Sub.STOP_SIGKILL: (Sub.STOP_POST,),
    Sub.STOP_POST: (Sub.FINAL_SIGKILL, Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART),
    Sub.FINAL_SIGKILL: (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART),
    Sub.FAILED: (Sub.START_PRE, Sub.START, Sub.FAILED, Sub.DEAD),
    Sub.AUTO_RESTART: (Sub.START_PRE, Sub.START, Sub.DEAD, Sub.FAILED),
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit code, or the number of a signal."""

    code: int = 0
    signal: int = 0

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
        return "signal" if self.signal else "exit-code"

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
    """Let ``timer(kind)`` be called in ``seconds``; replaces the one armed before."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Disarm:
    """No timer is needed."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The state is worth reporting."""


Action = Any
_LISTS = {
    Sub.START_PRE: "exec_start_pre", Sub.START: "exec_start", Sub.START_POST: "exec_start_post",
    Sub.RELOAD: "exec_reload", Sub.STOP: "exec_stop", Sub.STOP_POST: "exec_stop_post",
}  # fmt: skip


@dataclass(slots=True)
class Service:
    """See the module docstring; every method returns the actions to take, in order."""

    spec: UnitSpec
    sub: Sub = Sub.DEAD
    result: str = "success"
    main_running: bool = False
    step_running: bool = False
    last_exit: Exit | None = None
    restarts: int = 0
    wanted: bool = False
    _step: int = 0
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

    def adopt(self, main_running: bool) -> list[Action]:
        """Found as it was left: running, or (oneshot) done."""
        self.wanted = True
        self.main_running = main_running
        self._move(Sub.RUNNING if main_running else Sub.EXITED)
        return [Changed()]

    def resume(self, step: str) -> list[Action]:
        """Found in the middle of its start: this command runs, or its end is told next."""
        self.wanted = True
        name, _, number = step.rpartition(".")
        self._move(Sub(name))
        self._step = int(number)
        self.step_running = True
        limit = self.spec.timeout_start_sec
        return [Arm(limit) if math.isfinite(limit) else Disarm(), Changed()]

    def settled(self, result: str) -> list[Action]:
        """Found as it had ended by itself: it stays so until somebody asks for it again."""
        self.wanted = True
        self.result = result
        self._move(Sub.DEAD if result == "success" else Sub.FAILED)
        return [Changed()]

    def stop(self) -> list[Action]:
        """Stop it and do not restart it."""
        self.wanted = False
        if self.sub in (Sub.AUTO_RESTART, Sub.FAILED):
            self._move(Sub.DEAD)
            return [Disarm(), Changed()]
        if self.sub in (Sub.RUNNING, Sub.EXITED, Sub.RELOAD, Sub.START_POST):
            return self._enter_stop()
        if self.sub in (Sub.START_PRE, Sub.START):
            return self._kill()  # not started yet: ExecStop is not for this
        return []

    def reload(self) -> list[Action]:
        """Run ExecReload in a running service."""
        if self.sub is not Sub.RUNNING or not self.spec.exec_reload:
            return []
        return self._steps(Sub.RELOAD)

    def ended(self, step: str, main: bool, how: Exit) -> list[Action]:
        """A process of ours has ended."""
        if main and self._main_ended(how):
            return self._after_main(how)
        if not main:
            self.step_running = False
            if self.sub in (Sub.STOP_SIGTERM, Sub.STOP_SIGKILL) and not self.main_running:
                return self._after_asked()
        if not main and self.sub in _LISTS and step == f"{self.sub.value}.{self._step}":
            return self._after_step(how)
        return []

    def group_empty(self) -> list[Action]:
        """Nothing of the unit runs any more."""
        if self.sub in (Sub.STOP_SIGTERM, Sub.STOP_SIGKILL):
            return self._steps(Sub.STOP_POST)
        if self.sub is Sub.FINAL_SIGKILL:
            return self._finish()
        return []

    def timer(self, now: float) -> list[Action]:
        """The armed timer fired."""
        if self.sub is Sub.AUTO_RESTART:
            self.restarts += 1
            return self._begin(now)
        if self.sub in (Sub.START_PRE, Sub.START, Sub.START_POST):
            self._fail("timeout")
            return self._kill()
        if self.sub is Sub.RELOAD:
            return self._reloaded()
        if self.sub is Sub.STOP:
            self._fail("timeout")
            return self._kill()
        if self.sub is Sub.STOP_SIGTERM:
            self._fail("timeout")
            if not self.spec.send_sigkill:
                return self._steps(Sub.STOP_POST)
            self._move(Sub.STOP_SIGKILL)
            return [Kill(signal.SIGKILL, self.spec.kill_mode != "process"), Arm(10.0), Changed()]
        if self.sub is Sub.STOP_SIGKILL:
            self._fail("timeout")
            return self._steps(Sub.STOP_POST)
        if self.sub is Sub.STOP_POST:
            self._fail("timeout")
            self._move(Sub.FINAL_SIGKILL)
            return [Kill(signal.SIGKILL, True), Arm(10.0), Changed()]
        if self.sub is Sub.FINAL_SIGKILL:
            return self._finish()
        return []

    def could_not_run(self, step: str, main: bool, why: str) -> list[Action]:
        """A command could not be executed at all (203/EXEC)."""
        del why
        return self.ended(step, main, Exit(code=203))

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
                self.result = "start-limit-hit"
                self._move(Sub.FAILED)
                return [Disarm(), Changed()]
            self._starts.append(now)
        self.result = "success"
        self.last_exit = None
        return self._steps(Sub.START_PRE)

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
        is_main = state is Sub.START and self.spec.type != "oneshot"
        run = Run(f"{state.value}.{self._step}", commands[self._step], is_main)
        stopping = state in (Sub.STOP, Sub.STOP_POST)
        limit = self.spec.timeout_stop_sec if stopping else self.spec.timeout_start_sec
        actions = [*before, run, Arm(limit) if math.isfinite(limit) else Disarm(), Changed()]
        if is_main:
            self.main_running = True
            return actions + self._steps(Sub.START_POST)
        self.step_running = True
        return actions

    def _steps_done(self, state: Sub) -> list[Action]:
        if state is Sub.START_PRE:
            return self._steps(Sub.START)
        if state is Sub.START:
            return self._steps(Sub.START_POST)
        if state is Sub.START_POST:
            return self._started()
        if state is Sub.RELOAD:
            return self._reloaded()
        if state is Sub.STOP:
            return self._kill()
        return self._finish()

    def _started(self) -> list[Action]:
        if self.main_running:
            self._move(Sub.RUNNING)
            return [Disarm(), Changed()]
        if self.spec.type == "oneshot" and not self.spec.remain_after_exit:
            return [Disarm(), *self._enter_stop()]
        if self.spec.remain_after_exit:
            self._move(Sub.EXITED)
            return [Disarm(), Changed()]
        return self._enter_stop()

    def _reloaded(self) -> list[Action]:
        self._move(Sub.RUNNING if self.main_running else Sub.EXITED)
        return [Disarm(), Changed()]

    def _main_ended(self, how: Exit) -> bool:
        if not self.main_running:
            return False
        self.main_running = False
        self.last_exit = how
        return True

    def _after_main(self, how: Exit) -> list[Action]:
        commands = self.spec.exec_start
        clean = how.is_clean(self.spec, True) or bool(commands and commands[-1].ignore_failure)
        if not clean:
            self._fail(how.result)
        if self.sub in (Sub.STOP_SIGTERM, Sub.STOP_SIGKILL):
            return self._after_asked()
        if self.sub in (Sub.STOP, Sub.STOP_POST, Sub.FINAL_SIGKILL):
            return []  # expected: the commands' end moves on
        if self.sub is Sub.START_POST and self._step < len(self.spec.exec_start_post):
            return self._kill() if not clean else []
        if clean and self.spec.remain_after_exit:
            self._move(Sub.EXITED)
            return [Disarm(), Changed()]
        return self._enter_stop()

    def _after_asked(self) -> list[Action]:
        """The process that was asked to end did: what of the rest, by KillMode=."""
        if self.spec.kill_mode == "process":
            return self._steps(Sub.STOP_POST)  # the rest is none of our business
        if self.spec.kill_mode == "mixed" and self.sub is Sub.STOP_SIGTERM:
            self._move(Sub.STOP_SIGKILL)
            return [Kill(signal.SIGKILL, True), Arm(10.0), Changed()]
        return []  # expected: group_empty moves on

    def _after_step(self, how: Exit) -> list[Action]:
        command = getattr(self.spec, _LISTS[self.sub])[self._step]
        self.last_exit = how if self.sub is Sub.START else self.last_exit
        if not how.is_clean(self.spec, False) and not command.ignore_failure:
            if self.sub is Sub.RELOAD:
                return self._reloaded()  # a failed reload leaves the service running
            self._fail(how.result)
            if self.sub is Sub.STOP:
                return self._kill()
            if self.sub is Sub.STOP_POST:
                return self._finish()
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
            return [Kill(signal.SIGKILL, True), Arm(10.0), Changed()]
        limit = self.spec.timeout_stop_sec
        timer: Action = Arm(limit) if math.isfinite(limit) else Disarm()
        return [Kill(self.spec.kill_signal, mode == "control-group"), timer, Changed()]

    def _finish(self) -> list[Action]:
        if self._should_restart():
            self._move(Sub.AUTO_RESTART)
            delay = self._restart_delay()
            self._auto_restarts += 1
            return [Arm(delay), Changed()]
        self._move(Sub.FAILED if self.result != "success" else Sub.DEAD)
        return [Disarm(), Changed()]

    def _should_restart(self) -> bool:
        """The table of causes in systemd.service(5), Restart=."""
        spec = self.spec
        how = self.last_exit
        if not self.wanted:
            return False
        if how is not None and how.matches(spec.restart_prevent_exit_status):
            return False
        if how is not None and how.matches(spec.restart_force_exit_status):
            return True
        causes = {
            "always": True,
            "on-success": self.result == "success",
            "on-failure": self.result != "success",
            "on-abnormal": self.result in ("signal", "timeout", "watchdog", "core-dump"),
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
