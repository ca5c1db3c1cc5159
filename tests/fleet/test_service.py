"""The service state machine against systemd.service(5)."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import keys, unitfile
from fleet.service import ACTIVE, Arm, Disarm, Exit, Extend, FindMain, Kill, Run, Service, Sub


def make(text: str) -> Service:
    return Service(unitfile.load("x.service", f"[Service]\n{text}")[0])


def runs(actions: list[Any]) -> list[str]:
    return [action.step for action in actions if isinstance(action, Run)]


def started(text: str = "ExecStart=/bin/a\n") -> Service:
    service = make(text)
    service.start(0.0)
    assert service.sub is Sub.RUNNING
    return service


def test_a_simple_service_is_active_right_after_its_process_began() -> None:
    """Type=simple does not wait."""
    service = make("ExecStart=/bin/a\n")
    assert runs(service.start(0.0)) == ["start.0"]
    assert (service.active, service.sub) == ("active", Sub.RUNNING)


def test_steps_run_one_after_another() -> None:
    """ExecStartPre, then ExecStart, then ExecStartPost."""
    service = make("ExecStartPre=/bin/p\nExecStartPre=/bin/q\nExecStart=/bin/a\nExecStartPost=/bin/z\n")
    assert runs(service.start(0.0)) == ["start-pre.0"]
    assert runs(service.ended("start-pre.0", False, Exit())) == ["start-pre.1"]
    assert runs(service.ended("start-pre.1", False, Exit())) == ["start.0", "start-post.0"]
    assert service.sub is Sub.START_POST
    service.ended("start-post.0", False, Exit())
    assert service.sub is Sub.RUNNING


def test_a_failed_pre_step_skips_exec_stop_but_not_exec_stop_post() -> None:
    """ExecStopPost runs after a failed start, too."""
    service = make("ExecStartPre=/bin/p\nExecStart=/bin/a\nExecStop=/bin/s\nExecStopPost=/bin/t\n")
    service.start(0.0)
    actions = service.ended("start-pre.0", False, Exit(code=1))
    assert service.sub is Sub.STOP_SIGTERM and runs(actions) == []
    assert runs(service.group_empty()) == ["stop-post.0"]
    service.ended("stop-post.0", False, Exit())
    assert (service.sub, service.result) == (Sub.FAILED, "exit-code")


def test_a_dash_ignores_the_failure_of_a_step() -> None:
    """``-`` before the path."""
    service = make("ExecStartPre=-/bin/p\nExecStart=/bin/a\n")
    service.start(0.0)
    assert runs(service.ended("start-pre.0", False, Exit(code=1))) == ["start.0"]


def test_stop_asks_then_kills_the_whole_group() -> None:
    """SIGTERM to all, SIGKILL after TimeoutStopSec."""
    service = started("ExecStart=/bin/a\nTimeoutStopSec=3s\n")
    actions = service.stop()
    assert Kill(signal.SIGTERM, True) in actions and Arm(3.0) in actions
    assert Kill(signal.SIGKILL, True) in service.timer(3.0)
    service.ended("start.0", True, Exit(signal=9))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.FAILED, "timeout")


def test_exec_stop_runs_before_anything_is_killed() -> None:
    """And what is left afterwards is asked to end."""
    service = started("ExecStart=/bin/a\nExecStop=/bin/s\n")
    assert runs(service.stop()) == ["stop.0"]
    assert Kill(signal.SIGTERM, True) in service.ended("stop.0", False, Exit())


def test_oneshot_with_remain_after_exit() -> None:
    """Active (exited) until it is stopped."""
    service = make("Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/a\nExecStart=/bin/b\n")
    service.start(0.0)
    assert service.active == "activating"
    assert runs(service.ended("start.0", False, Exit())) == ["start.1"]
    service.ended("start.1", False, Exit())
    assert (service.active, service.sub) == ("active", Sub.EXITED)


def test_start_limit() -> None:
    """More than StartLimitBurst starts in the interval; the result is that of the first failure."""
    service = make("ExecStart=/bin/a\nRestart=always\nStartLimitBurst=3\nStartLimitIntervalSec=10\n")
    service.start(0.0)
    for at in (1.0, 2.0, 3.0):
        service.ended("start.0", True, Exit(code=1))
        service.group_empty()
        assert service.sub is Sub.AUTO_RESTART
        service.timer(at)
    assert (service.sub, service.result) == (Sub.FAILED, "exit-code")
    service = make("ExecStart=/bin/a\nRestart=always\nStartLimitBurst=1\nStartLimitIntervalSec=10\n")
    service.start(0.0)
    service.ended("start.0", True, Exit())
    service.group_empty()
    service.timer(1.0)
    assert (service.sub, service.result) == (Sub.FAILED, "start-limit-hit")


def test_restart_steps_grow_to_the_maximum() -> None:
    """RestartSteps= and RestartMaxDelaySec= together."""
    service = started(
        "ExecStart=/bin/a\nRestart=always\nRestartSec=1\nRestartSteps=2\nRestartMaxDelaySec=4\nStartLimitBurst=0\n"
    )
    delays = []
    for at in range(4):
        service.ended("start.0", True, Exit(code=1))
        actions = service.group_empty()
        delays.append(next(a.seconds for a in actions if isinstance(a, Arm)))
        service.timer(float(at))
    assert delays == pytest.approx([1.0, 2.0, 4.0, 4.0])


#: systemd.service(5), table 1: which exit restarts under which setting.
MATRIX = {
    "clean": (Exit(), {"always", "on-success"}),
    "unclean code": (Exit(code=3), {"always", "on-failure"}),
    "unclean signal": (Exit(signal=9), {"always", "on-failure", "on-abnormal", "on-abort"}),
    "clean signal": (Exit(signal=15), {"always", "on-success"}),
}


@pytest.mark.parametrize("setting", keys.RESTART)
@pytest.mark.parametrize("cause", sorted(MATRIX))
def test_restart_matrix(setting: str, cause: str) -> None:
    """Every form of Restart= with every cause of exit."""
    how, restarting = MATRIX[cause]
    service = started(f"ExecStart=/bin/a\nRestart={setting}\n")
    service.ended("start.0", True, how)
    service.group_empty()
    assert (service.sub is Sub.AUTO_RESTART) == (setting in restarting)


@pytest.mark.parametrize("setting", ["always", "on-failure", "on-abnormal"])
def test_a_timeout_restarts(setting: str) -> None:
    """A start that takes too long is a cause of its own."""
    service = make(f"ExecStartPre=/bin/p\nExecStart=/bin/a\nRestart={setting}\nTimeoutStartSec=1\n")
    service.start(0.0)
    service.timer(1.0)
    service.ended("start-pre.0", False, Exit(signal=15))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.AUTO_RESTART, "timeout")


def test_a_stop_by_hand_is_never_followed_by_a_restart() -> None:
    """Whatever Restart= says."""
    service = started("ExecStart=/bin/a\nRestart=always\n")
    service.stop()
    service.ended("start.0", True, Exit(signal=15))
    service.group_empty()
    assert service.sub is Sub.DEAD


def test_prevent_and_force_go_before_restart() -> None:
    """RestartPreventExitStatus= and RestartForceExitStatus= look at the main process."""
    service = started("ExecStart=/bin/a\nRestart=always\nRestartPreventExitStatus=3 SIGKILL\n")
    service.ended("start.0", True, Exit(code=3))
    service.group_empty()
    assert service.sub is Sub.FAILED
    service = started("ExecStart=/bin/a\nRestartForceExitStatus=TEMPFAIL\n")
    service.ended("start.0", True, Exit(code=75))
    service.group_empty()
    assert service.sub is Sub.AUTO_RESTART


def test_success_exit_status() -> None:
    """Other exits may be clean, too."""
    service = started("ExecStart=/bin/a\nSuccessExitStatus=7 SIGUSR1\n")
    service.ended("start.0", True, Exit(code=7))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.DEAD, "success")


EVENTS = st.lists(
    st.sampled_from(["start", "stop", "reload", "main", "main9", "step", "stepfail", "empty", "timer"]),
    max_size=40,
)


@given(EVENTS)
def test_no_sequence_of_events_breaks_the_table(events: list[str]) -> None:
    """Every move is one of the table's; a timer that matters is always armed."""
    service = make(
        "ExecStartPre=/bin/p\nExecStart=/bin/a\nExecStartPost=/bin/z\nExecReload=/bin/r\nExecStop=/bin/s\n"
        "ExecStopPost=/bin/t\nRestart=always\nStartLimitBurst=0\n"
    )
    armed = False
    for now, event in enumerate(events):
        step = f"{service.sub.value}.{service._step}"
        actions = {
            "start": lambda now=now: service.start(float(now)),
            "stop": service.stop,
            "reload": service.reload,
            "main": lambda: service.ended("start.0", True, Exit()),
            "main9": lambda: service.ended("start.0", True, Exit(signal=9)),
            "step": lambda step=step: service.ended(step, False, Exit()),
            "stepfail": lambda step=step: service.ended(step, False, Exit(code=1)),
            "empty": lambda: service.group_empty() if not service.main_running else [],
            "timer": lambda now=now: service.timer(float(now)) if armed else [],
        }[event]()
        if event == "timer":
            armed = False
        for action in actions:
            if isinstance(action, (Arm, Disarm)):
                armed = isinstance(action, Arm)
        assert service.active == ACTIVE[service.sub]
        if service.active in ("activating", "deactivating", "reloading"):
            assert armed, f"{service.sub} waits for ever"


# -- what a service says of itself, and services that fork -------------------------------------------


def test_a_service_that_notifies_is_started_when_it_says_so() -> None:
    """READY=1, and not before; ExecStartPost comes then."""
    service = make("Type=notify\nExecStart=/bin/a\nExecStartPost=/bin/z\n")
    assert runs(service.start(0.0)) == ["start.0"]
    assert service.sub is Sub.START
    service.notified({"STATUS": "warming up"})
    assert (service.sub, service.status) == (Sub.START, "warming up")
    assert runs(service.notified({"READY": "1"})) == ["start-post.0"]
    service.ended("start-post.0", False, Exit())
    assert service.sub is Sub.RUNNING


@pytest.mark.parametrize(("how", "result"), [(Exit(), "protocol"), (Exit(code=2), "exit-code")])
def test_a_service_that_ends_before_it_is_ready_has_failed(how: Exit, result: str) -> None:
    """Cleanly or not; ExecStop is not for it."""
    service = make("Type=notify\nExecStart=/bin/a\nExecStop=/bin/s\n")
    service.start(0.0)
    assert runs(service.ended("start.0", True, how)) == []
    service.group_empty()
    assert (service.sub, service.result) == (Sub.FAILED, result)


def test_an_exec_service_is_started_when_its_program_runs() -> None:
    """Type=exec waits for execve, no more."""
    service = make("Type=exec\nExecStart=/bin/a\n")
    service.start(0.0)
    assert service.sub is Sub.START
    service.main_started()
    assert service.sub is Sub.RUNNING


def test_a_service_may_ask_for_more_time() -> None:
    """EXTEND_TIMEOUT_USEC= while it starts, stops or reloads, or for its longest life."""
    service = make("Type=notify\nExecStart=/bin/a\nRuntimeMaxSec=5\n")
    service.start(0.0)
    assert service.notified({"EXTEND_TIMEOUT_USEC": "7000000"}) == [Extend(7.0)]
    assert Arm(5.0, "runtime") in service.notified({"READY": "1"})
    assert service.notified({"EXTEND_TIMEOUT_USEC": "9000000"}) == [Extend(9.0, "runtime")]
    assert service.notified({"EXTEND_TIMEOUT_USEC": "soon"}) == []
    service.timer(5.0, "runtime")
    service.ended("start.0", True, Exit(signal=15))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.FAILED, "timeout")


def test_a_service_that_stops_saying_that_it_is_well_is_ended() -> None:
    """WATCHDOG=1 puts it off; a miss sends WatchdogSignal= and the result is watchdog."""
    service = make("Type=notify\nExecStart=/bin/a\nWatchdogSec=2\nRestart=on-watchdog\n")
    service.start(0.0)
    assert Arm(2.0, "watchdog") in service.notified({"READY": "1"})
    assert service.notified({"WATCHDOG": "1"}) == [Arm(2.0, "watchdog")]
    assert service.notified({"WATCHDOG_USEC": "500000"}) == [Arm(0.5, "watchdog")]
    assert service.notified({"WATCHDOG_USEC": "never"}) == []
    actions = service.timer(9.0, "watchdog")
    assert Kill(signal.SIGABRT, True) in actions and service.sub is Sub.STOP_WATCHDOG
    service.ended("start.0", True, Exit(signal=6, dumped=True))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.AUTO_RESTART, "watchdog")


def test_a_service_may_reload_and_stop_of_itself() -> None:
    """RELOADING=1 until READY=1; STOPPING=1 gives it TimeoutStopSec=, without a signal."""
    service = make("Type=notify\nExecStart=/bin/a\nTimeoutStopSec=3\n")
    service.start(0.0)
    service.notified({"READY": "1"})
    service.notified({"RELOADING": "1"})
    assert (service.active, service.sub) == ("reloading", Sub.RELOAD)
    service.notified({"READY": "1"})
    assert service.sub is Sub.RUNNING
    actions = service.notified({"STOPPING": "1"})
    assert Arm(3.0) in actions and not any(isinstance(action, Kill) for action in actions)
    service.ended("start.0", True, Exit())
    service.group_empty()
    assert (service.sub, service.result) == (Sub.DEAD, "success")


def test_a_reload_by_signal() -> None:
    """Type=notify-reload."""
    service = make("Type=notify-reload\nExecStart=/bin/a\n")
    service.start(0.0)
    service.notified({"READY": "1"})
    assert Kill(signal.SIGHUP, False) in service.reload()
    service.notified({"RELOADING": "1"})
    service.notified({"READY": "1"})
    assert service.sub is Sub.RUNNING


def test_a_forking_service_lives_as_what_it_left_behind() -> None:
    """Its first process ends cleanly, and the other one is the main process from then on."""
    service = make("Type=forking\nExecStart=/bin/a\n")
    assert [run.main for run in service.start(0.0) if isinstance(run, Run)] == [False]
    assert any(isinstance(action, FindMain) for action in service.ended("start.0", False, Exit()))
    service.main_found(known=True, running=True)
    assert service.sub is Sub.RUNNING
    service.ended("start.0", True, Exit(code=1))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.FAILED, "exit-code")


def test_a_forking_service_whose_main_process_cannot_be_told() -> None:
    """It runs as long as anything of it does; with nothing at all it did not start."""
    service = make("Type=forking\nExecStart=/bin/a\n")
    service.start(0.0)
    service.ended("start.0", False, Exit())
    service.main_found(known=False, running=True)
    assert service.sub is Sub.RUNNING
    service.group_empty()
    service.group_empty()
    assert (service.sub, service.result) == (Sub.DEAD, "success")
    service = make("Type=forking\nExecStart=/bin/a\n")
    service.start(0.0)
    service.ended("start.0", False, Exit())
    service.main_found(known=False, running=False)
    service.group_empty()
    assert (service.sub, service.result) == (Sub.DEAD, "success"), "what leaves nothing behind has done its work"
    service = make("Type=forking\nPIDFile=/run/a.pid\nExecStart=/bin/a\n")
    service.start(0.0)
    service.ended("start.0", False, Exit())
    service.main_found(known=False, running=False)
    service.group_empty()
    assert (service.sub, service.result) == (Sub.FAILED, "protocol")


@pytest.mark.parametrize(
    ("how", "sub", "result"),
    [
        (Exit(code=1), Sub.DEAD, "exec-condition"), (Exit(code=254), Sub.DEAD, "exec-condition"),
        (Exit(code=255), Sub.FAILED, "exit-code"), (Exit(signal=9), Sub.FAILED, "signal"),
    ],
)  # fmt: skip
def test_exec_condition(how: Exit, sub: Sub, result: str) -> None:
    """1 to 254 passes the unit over, and nothing starts it again; all else fails it."""
    service = make("ExecCondition=/bin/c\nExecStart=/bin/a\nRestart=on-failure\nRestartPreventExitStatus=255 KILL\n")
    assert runs(service.start(0.0)) == ["condition.0"]
    assert runs(service.ended("condition.0", False, how)) == []
    service.group_empty()
    restarts = sub is Sub.FAILED
    assert service.result == result
    assert service.sub is (Sub.AUTO_RESTART if restarts else sub)


def test_a_process_killed_for_want_of_memory() -> None:
    """The result says so, whatever signal or code its main process ended with."""
    service = started("ExecStart=/bin/a\nRestart=on-abnormal\n")
    service.ended("start.0", True, Exit(signal=9, oom=True))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.AUTO_RESTART, "oom-kill")


def test_what_exec_stop_post_is_told() -> None:
    """EXIT_CODE and EXIT_STATUS of systemd.exec(5)."""
    assert Exit(code=3).variables == {"EXIT_CODE": "exited", "EXIT_STATUS": "3"}
    assert Exit(signal=9).variables == {"EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}
    assert Exit(signal=6, dumped=True).variables == {"EXIT_CODE": "dumped", "EXIT_STATUS": "ABRT"}


def test_a_stop_for_a_restart_may_have_its_own_signal() -> None:
    """RestartKillSignal=, and SendSIGHUP= beside it."""
    service = started("ExecStart=/bin/a\nRestartKillSignal=SIGUSR1\nSendSIGHUP=yes\n")
    actions = service.stop(restarting=True)
    assert actions[:2] == [Kill(signal.SIGUSR1, True), Kill(signal.SIGHUP, True)]


def test_a_unit_whose_shim_is_lost_is_over_in_every_state() -> None:
    """Nothing waits for ever for a process that is gone."""
    for text in (
        "ExecStartPre=/bin/p\nExecStart=/bin/a\n", "Type=oneshot\nExecStart=/bin/a\n",
        "ExecStart=/bin/a\n", "Type=notify\nExecStart=/bin/a\n",
    ):  # fmt: skip
        service = make(text)
        service.start(0.0)
        service.lost()
        assert (service.sub, service.result) == (Sub.FAILED, "signal")


def test_the_rest_of_a_service_that_stops_by_itself_is_asked_to_end() -> None:
    """Its main process has ended; what it had started would be waited for until the timeout."""
    service = make("Type=notify\nNotifyAccess=all\nExecStart=/bin/a\n")
    service.start(0.0)
    service.notified({"READY": "1"})
    service.notified({"STOPPING": "1"})
    assert service.sub is Sub.STOP_SIGTERM
    assert Kill(signal.SIGTERM, True) in service.ended("start.0", True, Exit(0))
    service.group_empty()
    assert (service.sub, service.result) == (Sub.DEAD, "success")


@pytest.mark.parametrize(("mode", "main", "kills"), [
    ("control-group", True, [Kill(signal.SIGTERM, True)]), ("control-group", False, [Kill(signal.SIGTERM, True)]),
    ("mixed", True, [Kill(signal.SIGTERM, False)]), ("process", True, [Kill(signal.SIGTERM, False)]),
    ("process", False, []),
])  # fmt: skip
def test_a_stop_that_a_new_life_finds_goes_on(mode: str, main: bool, kills: list[Kill]) -> None:
    """With what was wanted and known before; what has ended by itself may be restarted, what was stopped not."""
    for wanted, result, sub in ((True, "exit-code", Sub.AUTO_RESTART), (False, "success", Sub.DEAD)):
        service = make(f"KillMode={mode}\nRestart=on-failure\nTimeoutStopSec=infinity\nExecStart=/bin/a\n")
        actions = service.resume_stop(wanted, result, main)
        assert [action for action in actions if isinstance(action, Kill)] == kills
        if main:
            service.ended("start.0", True, Exit(0))
        service.group_empty()
        assert (service.sub, service.result) == (sub, result)


def test_a_shim_that_is_lost_at_the_very_end() -> None:
    """Everything was being killed."""
    service = make("ExecStart=/bin/a\nExecStopPost=/bin/p\nTimeoutStopSec=1s\n")
    service.start(0.0)
    service.ended("start.0", True, Exit(0))
    service.group_empty()
    service.timer(1.0)
    assert service.sub is Sub.FINAL_SIGTERM
    service.timer(2.0)
    assert service.sub is Sub.FINAL_SIGKILL
    service.lost()
    assert service.sub is Sub.FAILED


@pytest.mark.parametrize(
    ("mode", "after", "signals"),
    [("control-group", [Sub.FINAL_SIGTERM, Sub.FINAL_SIGKILL], [(15, True), (9, True)]), ("mixed", [Sub.FINAL_SIGKILL, Sub.FAILED], [(9, True)]),
     ("process", [Sub.DEAD], []), ("none", [Sub.DEAD], [])],
)  # fmt: skip
def test_what_the_last_step_leaves_behind_is_ended(mode: str, after: list[Sub], signals: list[tuple[int, bool]]) -> None:
    """By KillMode=, in time."""
    service = make(f"ExecStart=/bin/a\nExecStopPost=/bin/p\nTimeoutStopSec=1s\nKillMode={mode}\n")
    service.start(0.0)
    service.ended("start.0", True, Exit(0))
    service.group_empty()
    actions = service.ended("stop-post.0", False, Exit(0), left=True)
    seen, sent = [service.sub], [(a.signal, a.whole) for a in actions if isinstance(a, Kill)]
    if service.active == "deactivating":
        sent += [(a.signal, a.whole) for a in service.timer(2.0) if isinstance(a, Kill)]
        seen.append(service.sub)
    assert (seen, sent) == (after, signals)
    service.group_empty()
    assert service.active in ("inactive", "failed")


def test_a_service_that_was_skipped_is_found_so() -> None:
    """An ExecCondition= that held it back is no failure, also for a new life."""
    service = make("ExecStart=/bin/a\n")
    service.settled("exec-condition", Exit(1))
    assert (service.sub, service.last_exit) == (Sub.DEAD, Exit(1))


def test_a_stop_for_its_health_leaves_the_rest_to_restart() -> None:
    """As if it had ended by itself."""
    for setting, sub in (("always", Sub.AUTO_RESTART), ("no", Sub.DEAD)):
        service = make(f"Restart={setting}\nExecStart=/bin/a\n")
        service.start(0.0)
        service.end()
        service.ended("start.0", True, Exit(0, signal.SIGTERM))
        service.group_empty()
        assert (service.sub, service.wanted) == (sub, True)
