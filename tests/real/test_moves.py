"""Machines that are lost, frozen or without a quorum: units move, and never run twice."""

from __future__ import annotations

from pathlib import Path

from .cluster import Cluster, alive, wait_until

#: Appends its fence and the time, twenty times a second: whoever runs leaves a trace.
TRACER = """[Service]
ExecStart=/bin/sh -c 'while :; do echo $ARGOSY_FENCE $(date +%%s.%%N) >> {trace}; sleep 0.05; done'
Restart=always
TimeoutStopSec=1s
"""


def intervals(trace: Path) -> list[tuple[int, float, float]]:
    """(fence, first seen, last seen) of every copy that ever ran."""
    seen: dict[int, list[float]] = {}
    for line in trace.read_text().splitlines():
        fence, _, stamp = line.partition(" ")
        if fence.isdigit() and stamp:
            seen.setdefault(int(fence), []).append(float(stamp))
    return sorted((fence, min(at), max(at)) for fence, at in seen.items())


def assert_never_two(trace: Path, copies: int) -> None:
    """Fences grow, and each copy begins after the one before it has ended."""
    found = intervals(trace)
    assert len(found) >= copies, found
    for (_, _, ended), (_, begun, _) in zip(found, found[1:], strict=False):
        assert begun > ended, found


def start_tracers(cluster: Cluster, tmp_path: Path) -> dict[str, Path]:
    traces = {}
    for number in (1, 2, 3):
        name = f"t{number}.service"
        traces[name] = tmp_path / f"trace{number}"
        (tmp_path / name).write_text(TRACER.format(trace=traces[name]))
    cluster.ok("unit", "start", *[str(tmp_path / name) for name in traces])
    return traces


def test_a_power_cut(fresh_cluster: Cluster, tmp_path: Path) -> None:
    """The lost machine's unit runs elsewhere; the machine comes back and takes new ones."""
    cluster = fresh_cluster
    traces = start_tracers(cluster, tmp_path)
    victim = cluster.row("t1")["machine"]
    pid = cluster.row("t1")["pid_or_container"]
    cluster.local("kill", victim)
    assert not alive(pid)
    wait_until("t1 elsewhere", lambda: (r := cluster.row("t1"))["machine"] != victim and r["active"] == "active")
    assert cluster.states()[victim] == "lost"
    cluster.local("boot", victim)
    cluster.await_ready()
    (tmp_path / "n.service").write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    cluster.ok("unit", "start", str(tmp_path / "n.service"))
    assert cluster.row("n")["machine"] == victim
    assert_never_two(traces["t1.service"], 2)
    assert len(intervals(traces["t2.service"])) == 1, "only lost units move"


def test_a_frozen_host_is_fenced_by_its_shims(fresh_cluster: Cluster, tmp_path: Path) -> None:
    """SIGSTOP the host process: its unit is ended there before it begins elsewhere."""
    cluster = fresh_cluster
    traces = start_tracers(cluster, tmp_path)
    victim = cluster.row("t1")["machine"]
    cluster.local("pause", victim)
    cluster.close()
    wait_until("t1 elsewhere", lambda: (r := cluster.row("t1"))["machine"] not in ("", victim) and r["active"] == "active")
    cluster.local("resume", victim)
    cluster.await_ready()
    assert_never_two(traces["t1.service"], 2)


def test_without_a_quorum(fresh_cluster: Cluster, tmp_path: Path) -> None:
    """Writes and quorum reads fail in time, nothing hangs, and units do as their policy says."""
    cluster = fresh_cluster
    run = "[Service]\nExecStart=/bin/sleep 1000\n[X-Fleet]\nMachineID=m1\n[X-Argosy]\nOnPartition={}\n"
    for policy in ("keep", "stop"):
        (tmp_path / f"{policy}.service").write_text(run.format(policy))
    cluster.ok("unit", "start", str(tmp_path / "keep.service"), str(tmp_path / "stop.service"))
    kept, stopped = cluster.row("keep")["pid_or_container"], cluster.row("stop")["pid_or_container"]
    assert cluster.http(1, "PUT", "/v2/keys/a", {"value": "1"}).status == 201
    for machine in ("m2", "m3"):
        cluster.local("kill", machine)
    cluster.close()
    write = cluster.http(1, "PUT", "/v2/keys/a", {"value": "2"})
    assert write.status == 503
    assert write.json()["errorCode"] == 300
    assert cluster.http(1, "GET", "/v2/keys/a?quorum=true").status == 503
    assert cluster.http(1, "GET", "/v2/keys/a").json()["node"]["value"] == "1"
    assert cluster.http(1, "GET", "/health").status == 503
    done = cluster.argosy("--timeout", "10", "--endpoint", cluster.transport(1), "kv", "put", "/a", "3")
    assert done.returncode in (3, 4), done.stderr
    wait_until("the fence", lambda: not alive(stopped))
    assert alive(kept)
    for machine in ("m2", "m3"):
        cluster.local("boot", machine)
    cluster.await_ready()
    wait_until("stop runs again", lambda: cluster.row("stop")["active"] == "active" or None)
    assert cluster.row("keep")["pid_or_container"] == kept
    assert cluster.http(2, "GET", "/v2/keys/a?quorum=true").json()["node"]["value"] in ("1", "2", "3")
