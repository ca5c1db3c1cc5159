"""The service state machine against systemd.service(5)."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import unitfile
from fleet.service import ACTIVE, Arm, Disarm, Exit, Kill, Run, Service, Sub


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
    """More than StartLimitBurst starts in the interval: start-limit-hit."""
    service = make("ExecStart=/bin/a\nRestart=always\nStartLimitBurst=3\nStartLimitIntervalSec=10\n")
    service.start(0.0)
    for at in (1.0, 2.0, 3.0):
        service.ended("start.0", True, Exit(code=1))
        service.group_empty()
        assert service.sub is Sub.AUTO_RESTART
        service.timer(at)
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


@pytest.mark.parametrize("setting", unitfile.RESTART)
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
