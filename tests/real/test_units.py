"""The life of units as real processes on three machines."""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fleet.keys import RESTART

from ..answers import Answer
from ..waiting import wait_until
from .cluster import Cluster, alive, port_offset, processes_of, signal_process

UNIT = f"{sys.executable} -S -E {Path(__file__).parent / 'data' / 'unit.py'}"
METADATA = {"m1": {"zone": "a"}, "m2": {"zone": "b"}, "m3": {"zone": "b", "disk": "ssd"}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three machines with metadata in their configuration."""
    with port_offset() as offset:
        made = Cluster(tmp_path_factory.mktemp("cluster"), offset)
        try:
            made.create(METADATA)
            made.up()
            yield made
        finally:
            made.down()


@pytest.fixture(autouse=True)
def _no_units_are_left(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.destroy_all()


def _service(*lines: str, fleet: str = "", own: str = "") -> str:
    return "[Service]\n" + "\n".join(lines) + f"\n[X-Fleet]\n{fleet}\n[X-Argosy]\n{own}\n"


def _marks(path: Path) -> list[int]:
    """Process ids that units wrote down, one for each start."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _pid(cluster: Cluster, unit: str) -> int:
    return wait_until(f"the process of {unit}", lambda: int(cluster.row(unit)["pid_or_container"] or 0))


# -- Restart= --------------------------------------------------------------------------------------

#: systemd.service(5), "Exit causes and the effect of the Restart= settings".
CAUSES: dict[str, tuple[str, set[str]]] = {
    "clean-exit": ("exit 0", {"always", "on-success"}),
    "clean-signal": (f"signal {signal.SIGTERM.value}", {"always", "on-success"}),
    "unclean-exit": ("exit 3", {"always", "on-failure"}),
    "unclean-signal": (f"signal {signal.SIGKILL.value}", {"always", "on-failure", "on-abnormal", "on-abort"}),
}


def test_restart_forms(cluster: Cluster, tmp_path: Path) -> None:
    """Every Restart= setting with every way in which a process ends, as systemd's table says."""
    expected: dict[str, bool] = {}
    for cause, (words, restarting) in CAUSES.items():
        for setting in RESTART:
            name = f"{cause}-{setting}"
            cluster.submit(name, _service(
                f"ExecStart={UNIT} mark {tmp_path}/{name}.runs once {tmp_path}/{name} {words}",
                f"Restart={setting}", "RestartSec=50ms",
            ))
            expected[name] = setting in restarting
    cluster.ask("unit.start", units=list(expected), no_block=True)

    def settled() -> bool:
        rows = {row["unit"].removesuffix(".service"): row for row in cluster.units()}
        return all(
            (rows[name]["active"], rows[name]["restarts"], len(_marks(tmp_path / f"{name}.runs")))
            == (("active", 1, 2) if restarts else
                ("failed" if name.startswith("unclean") else "inactive", 0, 1))
            for name, restarts in expected.items()
        )

    wait_until("every unit to be as the table says", settled)


def test_start_limit(cluster: Cluster, tmp_path: Path) -> None:
    """After StartLimitBurst starts within the interval the unit has failed, with the result of its runs; another
    ``unit start`` is another try."""
    runs = tmp_path / "runs"
    cluster.submit("limited", _service(
        f"ExecStart={UNIT} mark {runs} exit 1", "Restart=always", "RestartSec=20ms",
        "StartLimitBurst=3", "StartLimitIntervalSec=60",
    ))
    cluster.ask("unit.start", units=["limited"], no_block=True)
    wait_until("the limit", lambda: cluster.row("limited")["active"] == "failed")
    row = cluster.row("limited")
    assert (row["result"], len(_marks(runs))) == ("exit-code", 3)
    shown = cluster.argosy("unit", "status", "limited")
    assert shown.returncode == 1
    assert "failed" in shown.stdout
    cluster.ok("unit", "start", "--no-block", "limited")
    wait_until("three more", lambda: len(_marks(runs)) == 6 and cluster.row("limited")["active"] == "failed")


def _restarted(cluster: Cluster, unit: str, count: int, old: int) -> bool:
    row = cluster.row(unit)
    return (row["restarts"], row["active"]) == (count, "active") and row["pid_or_container"] not in (None, old)


def test_a_killed_process_is_restarted_in_place(cluster: Cluster) -> None:
    """The counter grows with each restart; machine and fence stay."""
    cluster.submit("phoenix", _service(f"ExecStart={UNIT} sleep", "Restart=on-failure", "RestartSec=50ms"))
    cluster.start("phoenix")
    first = cluster.row("phoenix")
    for count in (1, 2):
        old = _pid(cluster, "phoenix")
        signal_process(old, signal.SIGKILL)
        wait_until("the restart", partial(_restarted, cluster, "phoenix", count, old))
    last = cluster.row("phoenix")
    assert (last["machine"], last["fence"]) == (first["machine"], first["fence"])


# -- starting and stopping -------------------------------------------------------------------------


def test_failed_start_pre(cluster: Cluster, tmp_path: Path) -> None:
    """The main process is not started, ExecStopPost is, and ``-`` lets a failure pass."""
    cluster.submit("refused", _service(
        f"ExecStartPre={UNIT} exit 4", f"ExecStart={UNIT} mark {tmp_path}/main sleep",
        f"ExecStopPost={UNIT} mark {tmp_path}/post",
    ))
    done = cluster.argosy("unit", "start", "refused")
    assert done.returncode == 1
    assert "refused.service failed: exit-code" in done.stderr
    wait_until("ExecStopPost", lambda: (tmp_path / "post").exists())
    assert not (tmp_path / "main").exists()
    assert (cluster.row("refused")["active"], cluster.row("refused")["result"]) == ("failed", "exit-code")
    cluster.submit("lenient", _service(f"ExecStartPre=-{UNIT} exit 4", f"ExecStart={UNIT} sleep"))
    cluster.start("lenient")


def test_program_that_is_not_there(cluster: Cluster) -> None:
    """The unit fails with the program and the reason in its log, and the command says so."""
    cluster.submit("nowhere", _service("ExecStart=/no/such/program"))
    done = cluster.argosy("unit", "start", "nowhere")
    assert done.returncode == 1
    assert "nowhere.service failed" in done.stderr
    assert cluster.log("nowhere") == ["/no/such/program: No such file or directory"]


def test_start_timeout(cluster: Cluster) -> None:
    """A start that takes longer than TimeoutStartSec is ended and has failed with ``timeout``."""
    cluster.submit("slow", _service(
        f"ExecStartPre={UNIT} sleep", f"ExecStart={UNIT} sleep", "TimeoutStartSec=300ms"))
    done = cluster.argosy("unit", "start", "slow")
    assert done.returncode == 1
    assert cluster.row("slow")["result"] == "timeout"


def test_stop_kills_the_whole_group(cluster: Cluster, tmp_path: Path) -> None:
    """What ignores SIGTERM is killed after TimeoutStopSec, grandchildren in other sessions too."""
    child = tmp_path / "child"
    cluster.submit("tough", _service(
        f"ExecStart={UNIT} ignore child {child} sleep", "TimeoutStopSec=500ms", "Restart=always"))
    cluster.start("tough")
    main = _pid(cluster, "tough")
    (grandchild,) = wait_until("the grandchild", lambda: _marks(child))
    assert alive(main)
    assert alive(grandchild)
    cluster.ok("unit", "stop", "tough")
    assert not alive(main)
    assert not alive(grandchild)
    row = cluster.row("tough")
    assert (row["active"], row["result"], row["desired"]) == ("failed", "timeout", "loaded")


@pytest.mark.parametrize("mode", ["process", "mixed"])
def test_kill_modes(cluster: Cluster, tmp_path: Path, mode: str) -> None:
    """``process`` asks and ends the main process only; ``mixed`` kills what is left at once."""
    child = tmp_path / "child"
    cluster.submit("moded", _service(
        f"ExecStart={UNIT} child {child} sleep", f"KillMode={mode}", "TimeoutStopSec=30s"))
    cluster.start("moded")
    (grandchild,) = wait_until("the grandchild", lambda: _marks(child))
    cluster.ask("unit.stop", 25, units=["moded"], within=20)
    assert (cluster.row("moded")["active"], cluster.row("moded")["result"]) == ("inactive", "success")
    assert alive(grandchild) == (mode == "process")
    cluster.destroy("moded")
    assert not alive(grandchild), "nothing of a destroyed unit is left"


def _start_another_on(cluster: Cluster, machine: str) -> None:
    """What the machine would have started of itself before this, it has started by then."""
    name = f"later-{machine}"
    cluster.submit(name, _service(f"ExecStart={UNIT} sleep", fleet=f"MachineID={machine}"))
    cluster.start(name)


def test_oneshot(cluster: Cluster, tmp_path: Path) -> None:
    """A oneshot is done when its commands are; with RemainAfterExit it counts as active. None runs a
    second time, or is cut short, because a supervisor or a host process began a new life."""
    runs = {name: tmp_path / name for name in ("job", "setup")}
    cluster.submit("job", _service("Type=oneshot", f"ExecStart={UNIT} mark {runs['job']}"))
    cluster.submit("setup", _service(
        "Type=oneshot", "RemainAfterExit=yes",
        f"ExecStart={UNIT} mark {runs['setup']}", f"ExecStart={UNIT} mark {runs['setup']}",
        f"ExecStop={UNIT} mark {tmp_path}/undone",
    ))
    gate = tmp_path / "gate"
    cluster.submit("long", _service(
        "Type=oneshot", "RemainAfterExit=yes",
        f"ExecStart={UNIT} mark {tmp_path}/long await {gate}", f"ExecStart={UNIT} mark {tmp_path}/long",
    ))
    cluster.start("job", "setup")
    cluster.ask("unit.start", units=["long"], no_block=True)
    (working,) = wait_until("the long one to work", lambda: _marks(tmp_path / "long"))
    assert (cluster.row("job")["active"], cluster.row("job")["result"]) == ("inactive", "success")
    assert (cluster.row("setup")["active"], cluster.row("setup")["sub"]) == ("active", "exited")
    for unit in ("job", "setup"):
        cluster.ask("actor.kill", path=f"{cluster.row(unit)['machine']}/units/{unit}.service")
    for machine in {row["machine"] for row in cluster.units()}:
        cluster.await_new_host(machine, cluster.kill_host(machine))
        cluster.await_whole()
    wait_until("setup to be known again", lambda: cluster.row("setup")["sub"] == "exited")
    wait_until("job to be known again", lambda: cluster.row("job")["sub"] == "dead")
    for unit in runs:
        _start_another_on(cluster, cluster.row(unit)["machine"])
    assert {name: len(_marks(path)) for name, path in runs.items()} == {"job": 1, "setup": 2}
    assert alive(working), "a oneshot that works is left to work"
    assert cluster.row("long")["active"] == "activating"
    gate.touch()
    wait_until("the long one to be done", lambda: cluster.row("long")["sub"] == "exited")
    assert len(_marks(tmp_path / "long")) == 2
    cluster.ok("unit", "stop", "setup")
    assert (tmp_path / "undone").exists()


def test_failed_unit_stays_failed_when_its_host_restarts(cluster: Cluster, tmp_path: Path) -> None:
    """A new life of the host process is no reason to try again what has failed or ended."""
    runs = tmp_path / "runs"
    cluster.submit("once", _service(f"ExecStart={UNIT} mark {runs} exit 5"))
    cluster.ask("unit.start", units=["once"], no_block=True)
    wait_until("the failure", lambda: cluster.row("once")["active"] == "failed")
    machine = cluster.row("once")["machine"]
    cluster.await_new_host(machine, cluster.kill_host(machine))
    cluster.await_whole()
    _start_another_on(cluster, machine)
    assert cluster.row("once")["active"] == "failed"
    assert len(_marks(runs)) == 1


def test_a_stop_that_ends_in_failure_does_not_keep_the_unit_from_its_next_start(cluster: Cluster) -> None:
    """It was stopped all the same; one start is enough."""
    cluster.submit("grumpy", _service("ExecStart=/bin/sh -c 'trap \"exit 3\" TERM; while :; do sleep 0.05; done'"))
    cluster.start("grumpy")
    cluster.ok("unit", "stop", "grumpy")
    assert cluster.row("grumpy")["active"] == "failed"
    cluster.start("grumpy")
    assert cluster.row("grumpy")["active"] == "active"


def test_a_unit_whose_shim_died_goes_on_and_one_that_lost_its_guard_too_comes_back_whole(cluster: Cluster, tmp_path: Path) -> None:
    """With its port and its key, and so that the next life of its host leaves it alone."""
    cluster.submit("web@.service", _service(
        f"ExecStart={UNIT} serve {tmp_path}", "Restart=always", "RestartSec=100ms",
        own="Port=http\nAnnounce=/services/web\nHealthCheck=tcp://:PORT\nHealthInterval=100ms",
    ))
    cluster.start("web@3")
    machine, pid = cluster.row("web@3")["machine"], _pid(cluster, "web@3")
    file = cluster.dir / machine / "units" / "web@3.service" / "state.json"
    before = cluster.row("web@3")["restarts"]
    shim = json.loads(file.read_text())["shim"]["pid"]
    signal_process(shim, signal.SIGKILL)
    heir = wait_until("its guard", lambda: {json.loads(file.read_text())["shim"]["pid"]} - {shim}).pop()
    cluster.ok("unit", "exec", "web@3", "--", "/bin/true")  # the host has the link to it
    row = cluster.row("web@3")
    assert (row["pid_or_container"], row["active"], row["restarts"]) == (pid, "active", before), "nothing was restarted"
    signal_process(heir, signal.SIGKILL)
    wait_until("it to be back", lambda: _pid(cluster, "web@3") not in (0, pid), 20)
    again, port = _pid(cluster, "web@3"), cluster.row("web@3")["ports"]["http"]
    wait_until("its key", lambda: _announced(cluster) == {"/services/web/3": f"127.0.0.1:{port}"})
    cluster.await_new_host(machine, cluster.kill_host(machine))
    cluster.await_whole()
    wait_until("it to be found", lambda: cluster.row("web@3")["active"] == "active")
    assert _pid(cluster, "web@3") == again and alive(again)


def test_how_a_unit_ended_is_known_to_the_next_life_of_its_host(cluster: Cluster, tmp_path: Path) -> None:
    """Timers count from there."""
    cluster.submit("brief", _service(f"ExecStart={UNIT} mark {tmp_path}/runs exit 5"))
    cluster.ask("unit.start", units=["brief"], no_block=True)
    wait_until("the failure", lambda: cluster.row("brief")["active"] == "failed")
    ended = time.time()
    machine, reason = cluster.row("brief")["machine"], cluster.ask("unit.why", unit="brief")["reason"]
    assert "exit status 5" in reason
    cluster.await_new_host(machine, cluster.kill_host(machine))
    cluster.await_whole()
    _start_another_on(cluster, machine)
    assert cluster.ask("unit.why", unit="brief")["reason"] == reason
    assert cluster.row("brief")["since_s"] >= time.time() - ended - 0.5


# -- what a unit is given --------------------------------------------------------------------------


def _given(path: Path) -> dict[str, Any]:
    wait_until("the unit's report", path.exists)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_environment_and_specifiers(cluster: Cluster, tmp_path: Path) -> None:
    """systemd's variables and specifiers, Argosy's own, Environment= and EnvironmentFile=."""
    (tmp_path / "vars").write_text("# comment\nFROM_FILE='a b'\nBOTH=file\n")
    cluster.submit("env@.service", _service(
        f"ExecStart={UNIT} env {tmp_path}/%i.json sleep",
        'Environment="QUOTED=two words" PLAIN=%n-%i BOTH=line', f"EnvironmentFile={tmp_path}/vars",
        "EnvironmentFile=-/no/such/file", "Environment=WHERE=%H:%m:%b:%p:%N",
        f"WorkingDirectory={tmp_path}", "UMask=0027", "Nice=3",
    ))
    cluster.start("env@blue")
    given = _given(tmp_path / "blue.json")
    row = cluster.row("env@blue")
    machine = next(m for m in cluster.ask("machine.list") if m["name"] == row["machine"])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    env = given["env"]
    assert env["QUOTED"] == "two words"
    assert env["PLAIN"] == "env@blue.service-blue"
    assert env["FROM_FILE"] == "a b"
    assert env["BOTH"] == "file", "a file is read when the unit starts and wins, as in systemd"
    assert env["WHERE"] == f"{row['machine']}:{machine['id']}:{boot}:env:env@blue"
    assert env["ARGOSY_MACHINE"] == row["machine"]
    assert env["ARGOSY_UNIT"] == "env@blue.service"
    assert env["ARGOSY_FENCE"] == str(row["fence"])
    assert env["ARGOSY_ENDPOINT"] == f"http://127.0.0.1:{cluster.client_port(int(row['machine'][1:]))}"
    assert len(env["INVOCATION_ID"]) == 32
    assert (given["cwd"], given["umask"], given["nice"]) == (str(tmp_path), 0o027, 3)
    assert given["session"]
    cluster.submit("missing", _service(f"ExecStart={UNIT} sleep", "EnvironmentFile=/no/such/file"))
    assert cluster.argosy("unit", "start", "missing").returncode == 1


@pytest.mark.skipif(os.getuid() != 0, reason="User= needs root; run the tests as root")
def test_user(cluster: Cluster) -> None:
    """User= runs the unit as somebody else, with that one's groups and variables."""
    cluster.submit("nobody", _service(
        "ExecStart=/bin/sh -c 'echo $$(id -u) $$(id -g) $$USER'",
        "User=nobody", "Type=oneshot"))
    cluster.start("nobody")
    entry = pwd.getpwnam("nobody")
    assert cluster.log("nobody") == [f"{entry.pw_uid} {entry.pw_gid} nobody"]
    cluster.submit("stranger", _service(f"ExecStart={UNIT} sleep", "User=no-such-user"))
    done = cluster.argosy("unit", "start", "stranger")
    assert done.returncode == 1
    assert "no such user" in "".join(cluster.log("stranger"))


def test_ports(cluster: Cluster, tmp_path: Path) -> None:
    """Each Port= is a free one of its own, given by name, listed, and kept over a restart of the
    process; one with a number is that number."""
    with port_offset(1) as offset:
        fixed = 4001 + offset
        cluster.submit("ports@.service", _service(
            f"ExecStart={UNIT} env {tmp_path}/%i.json sleep", "Restart=always", "RestartSec=20ms",
            own=f"Port=http admin\nPort=fixed:{fixed}",
        ))
        cluster.start("ports@1", "ports@2")
        seen = []
        for instance in ("1", "2"):
            env = _given(tmp_path / f"{instance}.json")["env"]
            ports = cluster.row(f"ports@{instance}")["ports"]
            assert env["PORT"] == env["PORT_HTTP"] == str(ports["http"])
            assert env["PORT_ADMIN"] == str(ports["admin"])
            assert env["PORT_FIXED"] == str(fixed) == str(ports["fixed"])
            seen += [ports["http"], ports["admin"]]
        assert len(set(seen)) == 4


# -- health and announcement -----------------------------------------------------------------------


def _announced(cluster: Cluster, number: int = 1) -> dict[str, str]:
    reply: Answer = cluster.http(number, "GET", "/v2/keys/services/web?recursive=true&quorum=true")
    if reply.status == 404:
        return {}
    return {node["key"]: node["value"] for node in reply.json()["node"].get("nodes", [])}


def test_announced_while_healthy(cluster: Cluster, tmp_path: Path) -> None:
    """A unit's key is there when its check passes, goes when it fails or stops, and comes back;
    ``unit start`` waits for it."""
    flag = tmp_path / "well"
    cluster.submit("web@.service", _service(
        f"ExecStart={UNIT} serve {flag}",
        own="Port=http\nAnnounce=/services/web\nHealthCheck=http://:PORT/\n"
            "HealthInterval=100ms\nHealthRetries=2\nHealthTimeout=2s",
    ))
    cluster.ask("unit.start", units=["web@1"], no_block=True)
    wait_until("the process", lambda: cluster.row("web@1")["sub"] == "running")
    wait_until("the verdict", lambda: "HTTP 500" in cluster.ask("unit.why", unit="web@1")["reason"])
    assert cluster.row("web@1")["health"] == "failing"
    assert _announced(cluster) == {}
    flag.touch()
    cluster.start("web@1")
    assert cluster.row("web@1")["health"] == "passing"
    port = cluster.row("web@1")["ports"]["http"]
    wait_until("the key", lambda: _announced(cluster) == {"/services/web/1": f"127.0.0.1:{port}"})
    flag.unlink()
    wait_until("the key to go", lambda: _announced(cluster) == {})
    assert cluster.row("web@1")["health"] == "failing"
    assert cluster.row("web@1")["active"] == "active", "an unhealthy unit is withdrawn, not killed"
    flag.touch()
    wait_until("the key to be back", lambda: _announced(cluster) != {})
    cluster.ok("unit", "stop", "web@1")
    assert _announced(cluster) == {}


def test_announcement_goes_with_the_process(cluster: Cluster, tmp_path: Path) -> None:
    """A unit that dies is withdrawn at once, without waiting for a check."""
    cluster.submit("web@.service", _service(
        f"ExecStart={UNIT} serve {tmp_path}", "Restart=no",
        own="Port=http\nAnnounce=/services/web\nHealthCheck=tcp://:PORT\nHealthInterval=60s",
    ))
    cluster.start("web@2")
    wait_until("the key", lambda: "/services/web/2" in _announced(cluster))
    signal_process(_pid(cluster, "web@2"), signal.SIGKILL)
    wait_until("the key to go", lambda: _announced(cluster) == {}, 10)


def test_exec_health_check(cluster: Cluster, tmp_path: Path) -> None:
    """A command's exit status is a verdict, too."""
    flag = tmp_path / "well"
    flag.touch()
    cluster.submit("checked", _service(
        f"ExecStart={UNIT} sleep",
        own=f"HealthCheck=exec:/usr/bin/test -e {flag}\nHealthInterval=100ms\nHealthRetries=1"))
    cluster.start("checked")
    assert cluster.row("checked")["health"] == "passing"
    flag.unlink()
    wait_until("the verdict", lambda: cluster.row("checked")["health"] == "failing")


# -- what operators do -----------------------------------------------------------------------------


def test_restart_and_replace(cluster: Cluster) -> None:
    """``unit restart`` gives another process in the same place; ``submit`` changes nothing that is
    known unless ``--replace`` says so, and then the new content runs."""
    path = cluster.write_unit("content.service", _service(f"ExecStart={UNIT} sleep", "Environment=A=1"))
    cluster.ok("unit", "start", str(path))
    before = cluster.row("content")
    first = _pid(cluster, "content")
    cluster.ok("unit", "restart", "content")
    second = _pid(cluster, "content")
    after = cluster.row("content")
    assert second != first
    assert not alive(first)
    assert (after["machine"], after["fence"], after["hash"]) == (before["machine"], before["fence"], before["hash"])

    other = _service(f"ExecStart={UNIT} sleep", "Environment=A=2")
    path.write_text(other)
    kept = cluster.argosy("unit", "submit", str(path))
    assert kept.returncode == 0
    assert "--replace" in kept.stderr
    assert cluster.row("content")["hash"] == before["hash"]
    assert _pid(cluster, "content") == second
    cluster.ok("unit", "submit", "--replace", str(path))
    assert cluster.ok("unit", "cat", "content") == other
    wait_until(
        "the new content to run",
        lambda: (r := cluster.row("content"))["hash"] != before["hash"] and r["active"] == "active"
        and r["pid_or_container"] not in (None, second),
    )  # fmt: skip
    assert not alive(second)
    environ = Path(f"/proc/{_pid(cluster, 'content')}/environ").read_bytes().split(b"\0")
    assert b"A=2" in environ
    cluster.ok("unit", "submit", "--replace", str(path))  # the same again is no change
    assert cluster.json("unit", "submit", "--replace", str(path)) == [{"unit": "content.service", "change": "none"}]


def test_load_stop_unload_destroy(cluster: Cluster) -> None:
    """fleetctl's states: placed without running, running, placed again, nowhere, forgotten; a
    destroyed unit leaves no process and no key, and its placements only grow in number."""
    path = cluster.write_unit("life.service", _service(f"ExecStart={UNIT} sleep"))
    cluster.ok("unit", "submit", str(path))
    assert (cluster.row("life")["desired"], cluster.row("life")["machine"]) == ("inactive", "")
    assert "nobody asked" in cluster.ok("unit", "why", "life")
    cluster.ok("unit", "load", "life")
    row = cluster.row("life")
    assert (row["desired"], row["active"], row["machine"] != "") == ("loaded", "inactive", True)
    cluster.ok("unit", "start", "life")
    pid = _pid(cluster, "life")
    assert cluster.argosy("unit", "status", "life").returncode == 0
    cluster.ok("unit", "stop", "life")
    stopped = cluster.row("life")
    assert (stopped["desired"], stopped["active"], stopped["machine"]) == ("loaded", "inactive", row["machine"])
    assert not alive(pid)
    cluster.ok("unit", "start", "life")
    fence = cluster.row("life")["fence"]
    cluster.ok("unit", "unload", "life")
    assert (cluster.row("life")["desired"], cluster.row("life")["machine"]) == ("inactive", "")
    cluster.ok("unit", "start", "life")
    assert cluster.row("life")["fence"] > fence
    cluster.ok("unit", "destroy", "life")
    assert cluster.rows("life") == []
    assert [p for p in processes_of(cluster.dir) if "unit.py" in p.command or "life" in p.command] == []
    assert list(cluster.dir.glob("m*/units/life*")) == []
    gone = cluster.argosy("unit", "destroy", "life")
    assert gone.returncode == 1
    assert "no unit is called life.service" in gone.stderr


def test_ranges_and_listings(cluster: Cluster) -> None:
    """A range starts that many instances, spread evenly; the listing has the contract's keys."""
    cluster.submit("many@.service", _service(f"ExecStart={UNIT} sleep"))
    cluster.ok("unit", "start", "many@{1..6}")
    rows = cluster.json("unit", "list")
    assert [row["unit"] for row in rows] == [f"many@{n}.service" for n in range(1, 7)]
    assert sorted(row["machine"] for row in rows) == ["m1", "m1", "m2", "m2", "m3", "m3"]
    wanted = {"unit", "machine", "desired", "load", "active", "sub", "health", "restarts", "hash",
              "pid_or_container", "since_s"}  # fmt: skip
    assert all(wanted <= set(row) for row in rows)
    files = {row["unit"]: row for row in cluster.json("unit", "files")}
    assert files["many@.service"]["desired"] == "inactive"
    assert files["many@3.service"]["hash"] == files["many@.service"]["hash"]
    machines = {row["name"]: row for row in cluster.json("machine", "list")}
    assert {name: row["units"] for name, row in machines.items()} == {"m1": 2, "m2": 2, "m3": 2}
    assert {name: row["metadata"] for name, row in machines.items()} == METADATA


def test_logs(cluster: Cluster) -> None:
    """What a unit prints, in order, from whichever machine; ``-n`` limits it."""
    cluster.submit("talker", _service(
        "Type=oneshot", "RemainAfterExit=yes",
        "ExecStart=/bin/sh -c 'for i in 1 2 3 4 5; do echo line $$i; done; echo last >&2'"))
    cluster.start("talker")
    wait_until("the lines", lambda: cluster.log("talker")[-1:] == ["last"])
    assert cluster.log("talker") == [*(f"line {n}" for n in range(1, 6)), "last"]
    shown = cluster.json("unit", "logs", "-n", "2", "talker")
    assert [line["text"] for line in shown] == ["line 5", "last"]


# -- placement -------------------------------------------------------------------------------------


def test_global_units_run_everywhere(cluster: Cluster) -> None:
    """Global=true is one on each machine that fits, also on one that comes back."""
    cluster.submit("agent", _service(f"ExecStart={UNIT} sleep", fleet="Global=true"))
    cluster.submit("ssd", _service(f"ExecStart={UNIT} sleep", fleet="Global=true\nMachineMetadata=disk=ssd"))
    cluster.start("agent", "ssd")

    def everywhere() -> bool:
        rows = [row for row in cluster.rows("agent") if row["active"] == "active"]
        return sorted(row["machine"] for row in rows) == cluster.names()

    wait_until("one on each machine", everywhere)
    assert [row["machine"] for row in cluster.rows("ssd")] == ["m3"]
    victim = next(m for m in cluster.names() if m != cluster.leader())
    cluster.local("kill", victim)
    wait_until("the machine to be lost", lambda: cluster.states()[victim] == "lost")
    cluster.local("boot", victim)
    cluster.await_whole()
    wait_until("one on each machine again", everywhere)


def test_conflicts(cluster: Cluster) -> None:
    """Units that exclude each other are on different machines; one too many waits, and says why."""
    cluster.submit("alone@.service", _service(f"ExecStart={UNIT} sleep", fleet="Conflicts=alone@*.service"))
    cluster.start("alone@1", "alone@2", "alone@3")
    assert sorted(row["machine"] for row in cluster.units()) == cluster.names()
    done = cluster.argosy("--timeout", "2", "unit", "start", "alone@4")
    assert done.returncode == 4
    assert "no machine qualifies" in done.stderr
    why = cluster.ask("unit.why", unit="alone@4")
    assert all("Conflicts=alone@*.service matches alone@" in text for text in why["machines"].values())
    freed = cluster.row("alone@2")["machine"]
    cluster.destroy("alone@2")
    wait_until("the place to be taken", lambda: cluster.row("alone@4")["active"] == "active")
    assert cluster.row("alone@4")["machine"] == freed


def test_units_that_depend_on_each_other_on_different_machines(cluster: Cluster, tmp_path: Path) -> None:
    """Started in order, held with a reason, stopped in the other order, and bound together."""
    ready = tmp_path / "ready"
    db = f"ExecStart={UNIT} await {ready} notify READY=1 sleep"
    cluster.submit("db", _service(db, "Type=notify", f"ExecStopPost=/bin/sh -c 'echo db >> {tmp_path}/stopped'", fleet="Conflicts=web*"))
    web = _service(f"ExecStart={UNIT} mark {tmp_path}/web sleep", f"ExecStopPost=/bin/sh -c 'sleep 0.3; echo web >> {tmp_path}/stopped'")
    cluster.submit("web", f"[Unit]\nBindsTo=db.service\nAfter=docker.service\n{web}")
    cluster.ask("unit.start", units=["web"], no_block=True)
    wait_until("db to start", lambda: cluster.row("db")["sub"] == "start")
    wait_until("the reason", lambda: "it comes after db.service, which is starting" in cluster.ask("unit.why", unit="web")["reason"])
    assert _marks(tmp_path / "web") == []
    ready.touch()
    cluster.start("web")
    assert cluster.row("web")["machine"] != cluster.row("db")["machine"]
    wait_until("web's mark", lambda: len(_marks(tmp_path / "web")) == 1)
    signal_process(_pid(cluster, "db"), signal.SIGKILL)
    wait_until("web to stop", lambda: not cluster.row("web")["pid_or_container"])
    assert "BindsTo=db.service, which is failed" in cluster.ask("unit.why", unit="web")["reason"]
    cluster.start("db")
    wait_until("web to be back", lambda: len(_marks(tmp_path / "web")) == 2)
    (tmp_path / "stopped").unlink()
    cluster.ok("unit", "stop", "db")
    assert (tmp_path / "stopped").read_text().split() == ["web", "db"]


def test_machine_of_and_metadata(cluster: Cluster) -> None:
    """A unit with MachineOf= follows another one; metadata choose the machine, or none."""
    cluster.submit("lead", _service(f"ExecStart={UNIT} sleep", fleet="MachineMetadata=zone=a"))
    cluster.submit("follow", _service(f"ExecStart={UNIT} sleep", fleet="MachineOf=lead.service"))
    cluster.submit("fast", _service(
        f"ExecStart={UNIT} sleep", fleet="MachineMetadata=zone=a zone=b\nMachineMetadata=disk=ssd"))
    cluster.submit("never", _service(f"ExecStart={UNIT} sleep", fleet="MachineMetadata=zone=z"))
    cluster.ask("unit.start", units=["follow", "never"], no_block=True)
    wait_until("the reason", lambda: "no machine qualifies" in cluster.ask("unit.why", unit="follow")["reason"])
    cluster.start("lead", "fast")
    assert (cluster.row("lead")["machine"], cluster.row("fast")["machine"]) == ("m1", "m3")
    wait_until("the follower", lambda: cluster.row("follow")["active"] == "active")
    assert cluster.row("follow")["machine"] == "m1"
    why = cluster.ask("unit.why", unit="never")
    assert (cluster.row("never")["machine"], set(why["machines"])) == ("", set(cluster.names()))
    assert "zone=z: it is a" in why["machines"]["m1"]
    cluster.ok("unit", "unload", "lead")
    wait_until("the follower to leave with it", lambda: cluster.row("follow")["machine"] == "")


# -- what an operator sees -------------------------------------------------------------------------


def test_status_shows_processes_and_history(cluster: Cluster) -> None:
    """The tree with memory and time; each run with how it ended; the move from a machine that was lost."""
    script = "sleep 300 & wait"
    cluster.submit("tree.service", _service(f"ExecStart=/bin/sh -c '{script}'", "Restart=always", "RestartSec=50ms"))
    cluster.start("tree")
    before = _pid(cluster, "tree.service")
    shown = cluster.ok("unit", "status", "tree")
    assert f"sh -c {script}" in shown and "└ sleep 300" in shown and "MiB" in shown, shown
    os.kill(before, signal.SIGKILL)
    wait_until("it runs again", lambda: _pid(cluster, "tree.service") != before)

    def events() -> list[list[str]]:
        return [[row["event"], row["detail"]] for row in cluster.json("unit", "history", "tree")]

    wanted = [["started", ""], ["ended", "signal, SIGKILL"], ["started", ""]]
    wait_until("its history", lambda: events() == wanted)
    [row] = cluster.rows("tree.service")
    cluster.local("kill", row["machine"])
    try:
        wait_until("it moved", lambda: cluster.row("tree.service")["machine"] not in ("", row["machine"])
                   and cluster.row("tree.service")["active"] == "active")  # fmt: skip
        left = [r for r in cluster.json("unit", "history", "tree") if r["event"] == "left"]
        assert [(r["machine"], "its machine was lost" in r["detail"]) for r in left] == [(row["machine"], True)]
    finally:
        cluster.local("boot", row["machine"])
        cluster.await_ready("m1", "m2", "m3")


def test_drop_ins_and_other_names(cluster: Cluster, tmp_path: Path) -> None:
    """A drop-in comes along at submit; a unit answers to its Alias=, also as a dependency of another."""
    path = cluster.write_unit("main.service", f"[Service]\nExecStart={UNIT} hold\n[Install]\nAlias=other.service\n")
    folder = path.with_name("main.service.d")
    folder.mkdir()
    (folder / "10-more.conf").write_text("[Service]\nExecStart=\nExecStart=/bin/sleep 777\n")
    (folder / "20-bad.conf").write_text("[Service]\nNoSuchKey=1\n")
    refused = cluster.argosy("unit", "submit", str(path))
    assert (refused.returncode, "20-bad.conf:2:11: NoSuchKey" in refused.stderr) == (2, True), refused.stderr
    (folder / "20-bad.conf").unlink()
    cluster.ok("unit", "submit", str(path))
    cluster.submit("user.service", "[Unit]\nRequires=other.service\nAfter=other.service\n[Service]\nExecStart=/bin/sleep 778\n")
    cluster.start("user")
    assert cluster.row("main.service")["active"] == "active"
    assert "sleep 777" in cluster.ok("unit", "status", "other")
    assert "# main.service.d/10-more.conf" in cluster.ok("unit", "cat", "other")
    clash = cluster.argosy("unit", "submit", str(cluster.write_unit("other.service", "[Service]\nExecStart=/bin/true\n")))
    assert "other.service is another name of main.service" in clash.stderr
    cluster.ok("unit", "stop", "other")
    assert [cluster.row(u)["active"] for u in ("main.service", "user.service")] == ["inactive", "inactive"]


def test_a_unit_leaves_several_machines_at_once(cluster: Cluster) -> None:
    """A global unit that may be in one place only from now on: both moves are noted, and nothing else waits for it."""
    everywhere = _service("ExecStart=/bin/sleep 999", fleet="Global=true")
    cluster.submit("all.service", everywhere)
    cluster.start("all")
    assert len(cluster.rows("all.service")) == 3
    cluster.submit("all.service", everywhere.replace("Global=true", "Global=true\nMachineMetadata=disk=ssd"))
    wait_until("it is in one place", lambda: [row["machine"] for row in cluster.rows("all.service")] == ["m3"])
    left = [row["machine"] for row in cluster.json("unit", "history", "all") if row["event"] == "left"]
    assert sorted(left) == ["m1", "m2"]
