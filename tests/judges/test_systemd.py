"""The same unit files under the real systemd and under Argosy: the same steps, states and results."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..real.cluster import Cluster, port_offset
from ..waiting import wait_until
from .systemd import Systemd, missing

if os.environ.get("CI") and missing().startswith("apt-get"):
    pytest.fail(missing())
pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

#: Seconds for which a unit must not change to count as settled.
STILL_S = 0.6
#: Services that are played at the same time.
AT_ONCE = 6
MOVING = ("activating", "deactivating", "reloading")


@dataclass(frozen=True)
class Case:
    """Lines of [Service] (``@say@ X`` writes X down), what is done with the unit (``!``: without waiting), and of [Unit]."""

    name: str
    service: str
    actions: tuple[str, ...] = ("start",)
    unit: str = ""


CASES = [
    Case("exits-well", "ExecStart=/bin/sh -c '@say@ ran'"),
    Case("exits-badly", "ExecStart=/bin/sh -c '@say@ ran; exit 3'"),
    Case("kills-itself", "ExecStart=/bin/sh -c '@say@ ran; kill -KILL $$$$'"),
    Case("ends-by-sigterm", "ExecStart=/bin/sh -c '@say@ ran; kill -TERM $$$$; sleep 1'"),
    Case("stays", "ExecStart=/bin/sleep 100"),
    Case("remains", "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c '@say@ one'\nExecStart=/bin/sh -c '@say@ two'"),
    Case("remains-and-stops", "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c '@say@ on'\nExecStop=/bin/sh -c '@say@ off'",
         ("start", "stop")),
    Case("second-fails", "Type=oneshot\nExecStart=/bin/sh -c '@say@ one; exit 1'\nExecStart=/bin/sh -c '@say@ two'"),
    Case("second-may-fail", "Type=oneshot\nExecStart=-/bin/sh -c '@say@ one; exit 1'\nExecStart=/bin/sh -c '@say@ two'"),
    Case("pre-fails", "ExecStartPre=/bin/sh -c '@say@ pre; exit 2'\nExecStart=/bin/sh -c '@say@ start'\n"
         "ExecStopPost=/bin/sh -c '@say@ post $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS'"),
    Case("post-fails", "ExecStart=/bin/sleep 100\nExecStartPost=/bin/sh -c '@say@ post; exit 2'\n"
         "ExecStopPost=/bin/sh -c '@say@ cleaned $SERVICE_RESULT'"),
    Case("condition-says-no", "ExecCondition=/bin/sh -c '@say@ asked; exit 1'\nExecStart=/bin/sh -c '@say@ start'"),
    Case("condition-fails", "ExecCondition=/bin/sh -c '@say@ asked; exit 255'\nExecStart=/bin/sh -c '@say@ start'"),
    Case("a-path-is-missing", "ExecStart=/bin/sh -c '@say@ start'", unit="ConditionPathExists=/no/such/path"),
    Case("stopped", "ExecStart=/bin/sleep 100\nExecStop=/bin/sh -c '@say@ stop $SERVICE_RESULT'\n"
         "ExecStopPost=/bin/sh -c '@say@ post $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS'", ("start", "stop")),
    Case("deaf", "ExecStart=/bin/sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'\nTimeoutStopSec=1\n"
         "ExecStopPost=/bin/sh -c '@say@ post $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS'", ("start", "stop")),
    Case("forty-two-is-fine", "ExecStart=/bin/sh -c 'exit 42'\nSuccessExitStatus=42"),
    Case("usr1-is-fine", "ExecStart=/bin/sh -c 'kill -USR1 $$$$; sleep 1'\nSuccessExitStatus=SIGUSR1"),
    Case("restarts-until-the-limit", "ExecStart=/bin/sh -c '@say@ ran; exit 1'\nRestart=on-failure\nRestartSec=10ms",
         unit="StartLimitBurst=3\nStartLimitIntervalSec=60"),
    Case("restart-is-prevented", "ExecStart=/bin/sh -c '@say@ ran; exit 7'\nRestart=always\nRestartPreventExitStatus=7"),
    Case("restart-is-forced", "ExecStart=/bin/sh -c '@say@ ran; exit 0'\nRestartForceExitStatus=0\nRestartSec=10ms",
         unit="StartLimitBurst=2\nStartLimitIntervalSec=60"),
    Case("no-restart-after-success", "ExecStart=/bin/sh -c '@say@ ran'\nRestart=on-failure\nRestartSec=10ms"),
    Case("no-such-program", "ExecStart=/no/such/program"),
    Case("no-such-program-exec", "Type=exec\nExecStart=/no/such/program"),
    Case("no-such-directory", "WorkingDirectory=/no/such/place\nExecStart=/bin/true"),
    Case("a-directory-that-may-be-missing", "WorkingDirectory=-/no/such/place\nExecStart=/bin/sh -c '@say@ $(pwd)'"),
    Case("no-such-user", "User=nosuchuserhere\nExecStart=/bin/true"),
    Case("starts-too-slowly", "Type=oneshot\nTimeoutStartSec=1\nExecStart=/bin/sleep 30\nExecStopPost=/bin/sh -c '@say@ $SERVICE_RESULT'"),
    Case("pre-is-too-slow", "TimeoutStartSec=1\nExecStartPre=/bin/sleep 30\nExecStart=/bin/true"),
    Case("runs-too-long", "RuntimeMaxSec=1\nExecStart=/bin/sleep 30\nExecStopPost=/bin/sh -c '@say@ $SERVICE_RESULT'"),
    Case("watched", "WatchdogSec=1\nExecStart=/bin/sleep 30\nExecStopPost=/bin/sh -c '@say@ $SERVICE_RESULT'"),
    Case("never-ready", "Type=notify\nTimeoutStartSec=1\nExecStart=/bin/sleep 30"),
    Case("ready", "Type=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep 100'\n"
         "ExecStartPost=/bin/sh -c '@say@ after'"),
    Case("ends-before-it-is-ready", "Type=notify\nExecStart=/bin/true"),
    Case("a-daemon", "Type=forking\nPIDFile=@out@/daemon.pid\nExecStart=/bin/sh -c 'sleep 100 & echo $! > @out@/daemon.pid'"),
    Case("a-daemon-of-which-nothing-stays", "Type=forking\nExecStart=/bin/true"),
    Case("a-daemon-that-fails", "Type=forking\nExecStart=/bin/false"),
    Case("killed-by-somebody", "ExecStart=/bin/sleep 100", ("start", "kill 9")),
    Case("told-to-end-by-somebody", "ExecStart=/bin/sleep 100", ("start", "kill 15")),
    Case("back-after-a-kill", "ExecStart=/bin/sleep 100\nRestart=on-failure\nRestartSec=10ms", ("start", "kill 9")),
    Case("reloaded", "ExecStart=/bin/sleep 100\nExecReload=/bin/sh -c '@say@ again'", ("start", "reload")),
    Case("restarted", "ExecStart=/bin/sh -c '@say@ up; exec sleep 100'\nExecStop=/bin/sh -c '@say@ down'", ("start", "restart")),
    Case("started-twice", "ExecStart=/bin/sh -c '@say@ up; exec sleep 100'", ("start", "start")),
    Case("fails-then-starts", "ExecStart=/bin/sh -c '@say@ up; test -e @out@/flag && exec sleep 100; touch @out@/flag; exit 1'", ("start", "start")),
    Case("its-own-signal", "ExecStart=/bin/sh -c 'trap \"@say@ int; exit 0\" INT; while :; do sleep 0.1; done'\nKillSignal=SIGINT", ("start", "stop")),
    Case("words", "Type=oneshot\nEnvironment=\"A=b  c\" D=$A\nExecStart=/bin/sh -c '@say@ \"$0|$1|$2|$3|$4\"' $A ${A} x${A}y $$A"),
    Case("escapes", "Type=oneshot\nExecStart=/bin/sh -c '@say@ \"$1|$2\"' - 'a\\x20b' \"c\\td\""),
    Case("files-of-variables", "Type=oneshot\nEnvironment=A=1 B=1\nEnvironmentFile=@out@/vars\nEnvironmentFile=-/no/such\n"
         "ExecStart=/bin/sh -c '@say@ \"$A|$B|$C|$D\"'"),
    Case("a-file-that-is-missing", "Type=oneshot\nEnvironmentFile=/no/such\nExecStart=/bin/sh -c '@say@ ran'"),
    Case("masks", "Type=oneshot\nUMask=0027\nNice=5\nUser=nobody\nExecStart=/bin/sh -c '@say@ $(umask) $(id -un) $(nice)'"),
    Case("a-folder-while-it-runs", "RuntimeDirectory=judged-a-folder-while-it-runs\nExecStart=/bin/sleep 100\nExecStopPost=/bin/sh -c '@say@ $RUNTIME_DIRECTORY'",
         ("start", "stop")),
    Case("leaves-behind", "ExecStart=/bin/true\nExecStopPost=/bin/sh -c '(trap \"@say@ asked; exit\" TERM; @say@ up; while :; do sleep 0.1; done) & sleep 0.5'"),
    Case("leaves-behind-what-is-deaf", "TimeoutStopSec=1\nExecStart=/bin/true\n"
         "ExecStopPost=/bin/sh -c '(trap \"@say@ asked\" TERM; @say@ up; while :; do sleep 0.1; done) & sleep 0.5'"),
    Case("leaves-behind-mixed", "KillMode=mixed\nExecStart=/bin/true\n"
         "ExecStopPost=/bin/sh -c '(trap \"@say@ asked\" TERM; @say@ up; while :; do sleep 0.1; done) & sleep 0.5'"),
    Case("stop-post-takes-too-long", "TimeoutStopSec=1\nExecStart=/bin/true\nExecStopPost=/bin/sh -c 'trap \"@say@ asked; exit\" TERM; @say@ up; while :; do sleep 0.1; done'"),
    Case("stop-after-a-crash", "ExecStart=/bin/sh -c 'sleep 0.2; exit 1'\nExecStop=/bin/sh -c '@say@ stop'\nExecStopPost=/bin/sh -c '@say@ post'"),
    Case("stop-after-the-end", "ExecStart=/bin/sh -c 'sleep 0.2'\nExecStop=/bin/sh -c '@say@ stop'\nExecStopPost=/bin/sh -c '@say@ post'"),
    Case("stop-fails", "ExecStart=/bin/sleep 100\nExecStop=/bin/sh -c '@say@ stop; exit 3'\nExecStopPost=/bin/sh -c '@say@ post $SERVICE_RESULT'", ("start", "stop")),
    Case("post-stop-fails", "ExecStart=/bin/sleep 100\nExecStopPost=/bin/sh -c '@say@ post; exit 3'", ("start", "stop")),
    Case("reload-fails", "ExecStart=/bin/sleep 100\nExecReload=/bin/sh -c '@say@ again; exit 1'", ("start", "reload")),
    Case("mixed", "KillMode=mixed\nExecStart=/bin/sh -c '(trap \"@say@ child\" TERM; sleep 100) & trap \"exit 0\" TERM; wait'", ("start", "stop")),
    Case("stopped-while-it-starts", "ExecStartPre=/bin/sh -c '@say@ pre; sleep 1'\nExecStart=/bin/sh -c '@say@ start'\nExecStopPost=/bin/sh -c '@say@ post'",
         ("start!", "stop")),
    Case("only-the-main-process", "KillMode=process\nExecStart=/bin/sh -c 'sleep 3 & exec sleep 100'", ("start", "stop")),
]  # fmt: skip


class Argosy:
    """One machine of ours, with the face of :class:`Systemd`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._turn = threading.Lock()  # one question at a time over its link

    def submit(self, name: str, text: str) -> None:
        with self._turn:
            self.cluster.submit(name, text)

    def act(self, name: str, action: str) -> None:
        with self._turn:
            self.cluster.ask(f"unit.{action}", 30.0, units=[name], no_block=True)

    def show(self, name: str) -> dict[str, str]:
        with self._turn:
            row = self.cluster.row(name)
        return {"ActiveState": row["active"], "SubState": row["sub"], "Result": row["result"],
                "NRestarts": str(row["restarts"]), "MainPID": str(row["pid_or_container"] or 0)}  # fmt: skip


def act(system: Systemd | Argosy, name: str, action: str) -> None:
    verb, _, number = action.removesuffix("!").partition(" ")
    if verb == "kill" and isinstance(system, Systemd):
        system.ask("kill", "--kill-who=main", f"--signal={number}", name)
    elif verb == "kill":
        os.kill(int(system.show(name)["MainPID"]), signal.Signals(int(number)))
    elif isinstance(system, Systemd):
        system.ask(verb, "--no-block", name)
    else:
        system.act(name, verb)


def settled(system: Systemd | Argosy, name: str) -> dict[str, str]:
    """Its state once that does not change any more."""
    seen: tuple[dict[str, str], float] = ({}, time.monotonic())

    def look() -> dict[str, str] | None:
        nonlocal seen
        now = system.show(name)
        if now != seen[0]:
            seen = (now, time.monotonic())
        rests = now["ActiveState"] not in MOVING and time.monotonic() - seen[1] > STILL_S
        return now if rests else None

    return wait_until(f"{name} has settled", look, 60)


def prepare(system: Systemd | Argosy, case: Case, out: Path) -> None:
    """Its file, and a directory of its own."""
    mine = out / case.name
    mine.mkdir(mode=0o777)
    mine.chmod(0o777)
    (mine / "vars").write_text("# comment\nB='2 3'\nC=\"4 \\\"5\"\nD=6 \\\n7\n")
    text = f"[Unit]\n{case.unit}\n[Service]\n{case.service}\n"
    text = text.replace("@say@", f">>{mine}/said echo").replace("@out@", str(mine))
    system.submit(f"judged-{case.name}.service", text)


def play(system: Systemd | Argosy, case: Case, out: Path) -> list[object]:
    """What a case does: the state after each action, and what the unit wrote down."""
    name, mine = f"judged-{case.name}.service", out / case.name
    states: list[object] = []
    for action in case.actions:
        act(system, name, action)
        time.sleep(0.25)  # until it has begun
        if action.endswith("!"):
            continue  # and not until it is done
        state = settled(system, name)
        states.append([state[key] for key in ("ActiveState", "SubState", "Result", "NRestarts")])
    said = (mine / "said").read_text().splitlines() if (mine / "said").exists() else []
    return [*states, said, Path(f"/run/judged-{case.name}").exists()]


Played = dict[str, tuple["Future[list[object]]", "Future[list[object]]"]]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Every case under both, some of them at a time: what they do is mostly to wait."""
    folder = Path(tempfile.mkdtemp(prefix="argosy-judge-"))  # where any user may look
    theirs, ours = folder / "theirs", folder / "ours"
    for path in (folder, theirs, ours):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    systemd = Systemd(folder, theirs)
    with port_offset() as offset:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), offset, machines=1)
        try:
            systemd.start()
            cluster.create()
            cluster.up()
            argosy = Argosy(cluster)
            for case in CASES:
                prepare(systemd, case, theirs)
                prepare(argosy, case, ours)
            systemd.reload()
            with ThreadPoolExecutor(AT_ONCE) as pool:
                yield {
                    case.name: (pool.submit(play, systemd, case, theirs), pool.submit(play, argosy, case, ours))
                    for case in CASES
                }
        finally:
            systemd.end()
            cluster.down()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_as_systemd(played: Played, case: Case) -> None:
    """State, result and restarts after each action, and every step that the unit took."""
    theirs, ours = played[case.name]
    assert ours.result() == theirs.result()
