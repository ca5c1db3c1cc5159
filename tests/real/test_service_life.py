"""What systemd promises a service, kept for real processes: readiness, limits, directories, streams."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..waiting import wait_until
from .cluster import Cluster, alive
from .conftest import running

UNIT = f"{sys.executable} -S -E {Path(__file__).parent / 'data' / 'unit.py'}"
#: Control groups that this machine can limit things with; the reason of a skip if there are none.
GROUPS = Path("/sys/fs/cgroup")
HAS_GROUPS = os.getuid() == 0 and any(
    os.access(GROUPS / place, os.W_OK) for place in ("memory", "cgroup.controllers")
)
needs_groups = pytest.mark.skipif(not HAS_GROUPS, reason="needs root and writable control groups (memory, cpu, pids)")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One machine is enough: a service's life is the same on each."""
    with running(tmp_path_factory.mktemp("cluster"), machines=1) as made:
        yield made


@pytest.fixture(autouse=True)
def _no_units_are_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.destroy_all()


def submit(cluster: Cluster, unit: str, *lines: str, about: str = "") -> None:
    """A service of these lines."""
    cluster.submit(unit, f"[Unit]\n{about}\n[Service]\n" + "\n".join(lines) + "\n")


def begin(cluster: Cluster, unit: str) -> None:
    """Ask for it to run, and do not wait."""
    cluster.ask("unit.start", units=[unit], no_block=True)


def sub(cluster: Cluster, unit: str) -> str:
    """ACTIVE/SUB of a unit."""
    row = cluster.row(unit)
    return f"{row['active']}/{row['sub']}"


def reaches(cluster: Cluster, unit: str, wanted: str) -> dict[str, Any]:
    """Wait until a unit is so."""
    wait_until(f"{unit} to be {wanted}", lambda: sub(cluster, unit) == wanted, 20)
    return cluster.row(unit)


def shown(cluster: Cluster, unit: str) -> str:
    """What its status says, whatever the exit status."""
    return cluster.argosy("unit", "status", unit).stdout


def found(path: Path) -> dict[str, Any]:
    """What a unit wrote down of itself."""
    wait_until(f"{path.name}", path.exists, 20)
    return json.loads(path.read_text())  # type: ignore[no-any-return]


# -- readiness -------------------------------------------------------------------------------------


def test_a_service_is_active_when_it_says_that_it_is_ready(cluster: Cluster, tmp_path: Path) -> None:
    """And its own words are in its status."""
    go = tmp_path / "go"
    submit(cluster, "ready", "Type=notify", f"ExecStart={UNIT} notify STATUS=warming await {go} notify READY=1,STATUS=up sleep")
    begin(cluster, "ready")
    reaches(cluster, "ready", "activating/start")
    wait_until("its words", lambda: "warming" in shown(cluster, "ready"))
    go.touch()
    reaches(cluster, "ready", "active/running")
    assert "up" in shown(cluster, "ready")


def test_words_of_others_do_not_count(cluster: Cluster, tmp_path: Path) -> None:
    """With NotifyAccess=main a child cannot say that the service is ready; with all it can."""
    child = f'{UNIT} notify READY=1 mark {tmp_path}/said'
    for access, wanted in (("main", "activating/start"), ("all", "active/running")):
        unit = f"child-{access}"
        submit(cluster, unit, "Type=notify", f"NotifyAccess={access}", f"ExecStart=/bin/sh -c '{child}; exec {UNIT} sleep'")
        begin(cluster, unit)
        wait_until("the child", lambda: (tmp_path / "said").exists())
        reaches(cluster, unit, wanted)
        (tmp_path / "said").unlink()
    assert sub(cluster, "child-main") == "activating/start"


def test_a_service_that_never_gets_ready_is_ended(cluster: Cluster) -> None:
    """After TimeoutStartSec=, with the result timeout; one that ends before has broken the protocol."""
    submit(cluster, "late", "Type=notify", "TimeoutStartSec=300ms", f"ExecStart={UNIT} sleep")
    submit(cluster, "early", "Type=notify", f"ExecStart={UNIT} exit 0")
    for unit, result in (("late", "timeout"), ("early", "protocol")):
        begin(cluster, unit)
        assert reaches(cluster, unit, "failed/failed")["result"] == result


def test_readiness_outlives_the_host_process(cluster: Cluster, tmp_path: Path) -> None:
    """Said while the host process was away, it is known when that is back; the process is the same."""
    go = tmp_path / "go"
    submit(cluster, "patient", "Type=notify", f"ExecStart={UNIT} await {go} notify READY=1,STATUS=here sleep")
    begin(cluster, "patient")
    pid = reaches(cluster, "patient", "activating/start")["pid_or_container"]
    old = cluster.kill_host("m1")
    go.touch()
    cluster.await_new_host("m1", old)
    assert reaches(cluster, "patient", "active/running")["pid_or_container"] == pid
    assert "here" in shown(cluster, "patient")


def test_a_watchdog_that_is_not_fed(cluster: Cluster) -> None:
    """SIGABRT, result watchdog, and a restart as Restart= says."""
    submit(cluster, "dog", "Type=notify", "WatchdogSec=300ms", "Restart=on-watchdog", "RestartSec=60s",
           f"ExecStart={UNIT} notify READY=1 sleep")  # fmt: skip
    begin(cluster, "dog")
    assert reaches(cluster, "dog", "activating/auto-restart")["result"] == "watchdog"


def test_daemons(cluster: Cluster, tmp_path: Path) -> None:
    """Type=forking: by PIDFile=, or the only process that is left; its end is the service's."""
    pid_file = tmp_path / "daemon.pid"
    submit(cluster, "filed", "Type=forking", f"PIDFile={pid_file}", f"ExecStart={UNIT} daemon {pid_file} sleep")
    submit(cluster, "guessed", "Type=forking", f"ExecStart={UNIT} daemon {tmp_path}/other await {tmp_path}/end exit 3")
    for unit, path in (("filed", pid_file), ("guessed", tmp_path / "other")):
        begin(cluster, unit)
        assert reaches(cluster, unit, "active/running")["pid_or_container"] == int(path.read_text())
    cluster.await_new_host("m1", cluster.kill_host("m1"))
    assert reaches(cluster, "filed", "active/running")["pid_or_container"] == int(pid_file.read_text())
    (tmp_path / "end").touch()
    assert reaches(cluster, "guessed", "failed/failed")["result"] == "exit-code"
    cluster.ok("unit", "stop", "filed")
    wait_until("the file to go", lambda: not pid_file.exists())


# -- conditions ------------------------------------------------------------------------------------


def test_conditions_pass_a_unit_over_and_asserts_fail_it(cluster: Cluster, tmp_path: Path) -> None:
    """Before anything is run; what does not hold is said."""
    there, missing = tmp_path, tmp_path / "missing"
    submit(cluster, "holds", f"ExecStart={UNIT} sleep", about=(
        f"ConditionPathIsDirectory={there}\nConditionPathExists=!{missing}\nConditionPathExists=|{missing}\n"
        f"ConditionPathExists=|{there}\nAssertCPUs=>=1\nConditionHost=m1"
    ))  # fmt: skip
    submit(cluster, "skipped", f"ExecStart={UNIT} mark {tmp_path}/ran sleep", about=f"ConditionPathExists={missing}")
    submit(cluster, "refused", f"ExecStart={UNIT} mark {tmp_path}/ran sleep", about=f"AssertFileNotEmpty={missing}")
    submit(cluster, "asked", "ExecCondition=/bin/false", f"ExecStart={UNIT} mark {tmp_path}/ran sleep")
    for unit, wanted, words in (
        ("holds", "active/running", ""), ("skipped", "inactive/dead", "ConditionPathExists="),
        ("refused", "failed/failed", "AssertFileNotEmpty="), ("asked", "inactive/dead", "exec-condition"),
    ):  # fmt: skip
        begin(cluster, unit)
        wait_until(f"{unit}", lambda unit=unit, words=words: words in shown(cluster, unit))
        reaches(cluster, unit, wanted)
    assert not (tmp_path / "ran").exists()


# -- what a process finds ----------------------------------------------------------------------------


def test_limits_groups_and_privileges(cluster: Cluster, tmp_path: Path) -> None:
    """As systemd.exec(5) has them."""
    submit(cluster, "limited", "Type=oneshot", "RemainAfterExit=yes", "LimitNOFILE=100:200", "LimitCORE=0",
           "OOMScoreAdjust=300", "NoNewPrivileges=yes", "SupplementaryGroups=daemon", "PassEnvironment=NOT_THERE",
           "Environment=A=1 B=2", "UnsetEnvironment=A LANG", f"ExecStart={UNIT} env {tmp_path}/seen")  # fmt: skip
    begin(cluster, "limited")
    reaches(cluster, "limited", "active/exited")
    seen = found(tmp_path / "seen")
    assert (seen["nofile"], seen["core"], seen["oom"]) == ([100, 200], [0, 0], "300")
    assert seen["no_new_privileges"] and 1 in seen["groups"]
    assert seen["env"]["B"] == "2" and not {"A", "LANG", "NOT_THERE"} & set(seen["env"])


def test_directories(cluster: Cluster, tmp_path: Path) -> None:
    """Made before the start with owner and mode, named in the environment; the runtime one goes at the end."""
    name = f"argosy-test-{os.getpid()}"
    script = "echo $RUNTIME_DIRECTORY $STATE_DIRECTORY > $RUNTIME_DIRECTORY/new; cd $RUNTIME_DIRECTORY; mv new seen; exec sleep 999"
    submit(cluster, "housed", "User=nobody", f"RuntimeDirectory={name}", "RuntimeDirectoryMode=0750",
           f"StateDirectory={name}", f"ExecStart=/bin/sh -c '{script}'")  # fmt: skip
    runtime, state = Path("/run", name), Path("/var/lib", name)
    try:
        cluster.start("housed")
        wait_until("what it saw", lambda: (runtime / "seen").exists())
        assert (runtime / "seen").read_text().split() == [str(runtime), str(state)]
        assert runtime.stat().st_mode & 0o7777 == 0o750 and runtime.owner() == "nobody"
        cluster.ok("unit", "stop", "housed")
        wait_until("the runtime directory to go", lambda: not runtime.exists())
        assert state.is_dir()
    finally:
        if state.exists():
            state.rmdir()


def test_a_directory_that_is_a_link_is_not_given_away(cluster: Cluster, tmp_path: Path) -> None:
    """What it points to keeps its owner and mode."""
    link = Path("/run", f"argosy-link-{os.getpid()}")
    link.symlink_to(tmp_path)
    before = tmp_path.stat()
    try:
        submit(cluster, "tricked", "User=nobody", f"RuntimeDirectory={link.name}", "RuntimeDirectoryMode=0777",
               "ExecStart=/bin/true")  # fmt: skip
        begin(cluster, "tricked")
        reaches(cluster, "tricked", "failed/failed")
        assert "is no directory of its own" in shown(cluster, "tricked")
        after = tmp_path.stat()
        assert (after.st_uid, after.st_mode) == (before.st_uid, before.st_mode)
    finally:
        link.unlink(missing_ok=True)


def test_streams(cluster: Cluster, tmp_path: Path) -> None:
    """To files, to nowhere, to the unit's log; an unended last line is kept."""
    out = tmp_path / "out"
    submit(cluster, "spoken", "Type=oneshot", f"StandardOutput=append:{out}", "StandardError=journal",
           f"ExecStart={UNIT} say one complain two", "ExecStart=/bin/sh -c 'printf three >&2'")  # fmt: skip
    submit(cluster, "silent", "Type=oneshot", "StandardOutput=null", f"ExecStart={UNIT} say four complain five")
    for unit in ("spoken", "silent", "spoken"):
        cluster.ok("unit", "start", unit)
    assert out.read_text() == "one\none\n"
    wait_until("the log", lambda: cluster.ok("unit", "logs", "spoken").count("three") == 2)
    assert "two" in cluster.ok("unit", "logs", "spoken")
    assert not {"four", "five"} & set(cluster.ok("unit", "logs", "silent").split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("User=no-such-user-here", "no such user"), ("Group=no-such-group", "no such group"),
        ("WorkingDirectory=/no/such/place", "No such file"), ("StandardOutput=file:/no/such/place", "No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_up_is_said(cluster: Cluster, line: str, words: str) -> None:
    """The unit fails with systemd's exit status for it, and with the reason."""
    submit(cluster, "impossible", line, "ExecStart=/bin/true")
    begin(cluster, "impossible")
    reaches(cluster, "impossible", "failed/failed")
    assert words in shown(cluster, "impossible")


@needs_groups
def test_control_groups(cluster: Cluster, tmp_path: Path) -> None:
    """MemoryMax=, CPUQuota=, TasksMax=: kept by the kernel, and gone with the unit."""
    submit(cluster, "grouped", "MemoryMax=64M", "CPUQuota=20%", "TasksMax=9", f"ExecStart={UNIT} env {tmp_path}/seen sleep")
    cluster.start("grouped")
    name = next(line.split(":")[2] for line in found(tmp_path / "seen")["cgroups"].splitlines() if "argosy" in line)
    version_1 = GROUPS / "memory" / name.lstrip("/")
    if version_1.exists():
        limit, tasks = version_1 / "memory.limit_in_bytes", GROUPS / "pids" / name.lstrip("/") / "pids.max"
    else:
        limit, tasks = (GROUPS / name.lstrip("/") / file for file in ("memory.max", "pids.max"))
    assert (int(limit.read_text()), int(tasks.read_text())) == (64 * 1024 * 1024, 9)
    cluster.ok("unit", "stop", "grouped")
    wait_until("the group to go", lambda: not limit.exists())


@needs_groups
def test_a_service_that_eats_too_much(cluster: Cluster) -> None:
    """The kernel ends it, the result says why, and nothing else suffers."""
    submit(cluster, "greedy", "MemoryMax=50M", f"ExecStart={UNIT} eat 200 sleep")
    begin(cluster, "greedy")
    row = reaches(cluster, "greedy", "failed/failed")
    assert row["result"] == "oom-kill"
    assert alive(cluster.host_pid("m1"))


# -- logs ------------------------------------------------------------------------------------------


def test_a_unit_that_shouts_is_stopped_as_any_other(cluster: Cluster) -> None:
    """Endless output holds up neither its shim nor the host."""
    submit(cluster, "loud", "ExecStart=/usr/bin/yes")
    cluster.start("loud")
    cluster.ok("unit", "stop", "loud")
    assert sub(cluster, "loud") == "inactive/dead"


def test_logs_of_instances_are_merged_and_outlive_their_unit(cluster: Cluster) -> None:
    """By time, with the unit in front; as JSON with the invocation; --since leaves out the old."""
    submit(cluster, "teller@", "Type=oneshot", f"ExecStart={UNIT} say I-am-%i")
    for instance in ("a", "b", "a"):
        cluster.ok("unit", "start", f"teller@{instance}")
    lines = cluster.ok("unit", "logs", "teller@").splitlines()
    assert [line.split()[-2:] for line in lines] == [
        ["teller@a.service", "I-am-a"], ["teller@b.service", "I-am-b"], ["teller@a.service", "I-am-a"],
    ]  # fmt: skip
    rows = cluster.json("unit", "logs", "teller@*")
    assert len({row["invocation"] for row in rows}) == 3 and rows[0]["machine"] == "m1"
    assert cluster.ok("unit", "logs", "--since", "2999-01-01 00:00", "teller@a") == ""
    cluster.destroy("teller@a")
    submit(cluster, "teller@a", "ExecStart=/bin/true")
    assert cluster.ok("unit", "logs", "--lines", "1", "teller@a").endswith("I-am-a\n")
    bad = cluster.argosy("unit", "logs", "--since", "yesterday-ish", "teller@a")
    assert bad.returncode == 2 and "a time span like 10min" in bad.stderr


def test_reload(cluster: Cluster, tmp_path: Path) -> None:
    """ExecReload= runs with MAINPID beside the service, which goes on; what does not run is refused."""
    submit(cluster, "supple", f"ExecStart={UNIT} sleep", f"ExecReload={UNIT} env {tmp_path}/seen")
    assert cluster.argosy("unit", "reload", "supple").returncode == 1
    cluster.start("supple")
    pid = cluster.row("supple")["pid_or_container"]
    assert "supple.service on m1" in cluster.ok("unit", "reload", "supple")
    assert found(tmp_path / "seen")["env"]["MAINPID"] == str(pid)
    assert reaches(cluster, "supple", "active/running")["pid_or_container"] == pid
