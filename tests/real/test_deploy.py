"""Plan, apply, update, scale, drain, events and top, as an operator types them, on three real machines."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..waiting import wait_until
from .cluster import Cluster, argosy_command, environment

SERVER = """[Service]
Environment=V={version}
ExecStart=/usr/bin/python3 -c "import http.server, os; \\
H = type('H', (http.server.BaseHTTPRequestHandler,), {{'do_GET': lambda s: (s.send_response({code}), \\
s.end_headers(), s.wfile.write(os.environ['V'].encode()))[0], 'log_message': lambda *a: None}}); \\
http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()"
[X-Argosy]
Port=http
Announce=/services/api
HealthCheck=http://:PORT/
HealthInterval=200ms
HealthStartPeriod=1s
Replicas={replicas}
Update=monitor 300ms, deadline 3s
"""


def write(folder: Path, **more: Any) -> Path:
    values = {"version": "1", "code": 200, "replicas": 3, **more}
    file = folder / "api@.service"
    file.write_text(SERVER.format(**values))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "shop"
    made.mkdir()
    write(made)
    (made / "tidy.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n")
    (made / "tidy.timer").write_text("[Timer]\nOnCalendar=yearly\n")
    (made / "big.service").write_text("[Service]\nExecStart=/bin/sleep infinity\n[X-Argosy]\nMemory=900T\n")
    return made


@pytest.fixture(autouse=True)
def _clean(cluster: Cluster) -> Iterator[None]:
    yield
    known = [row["unit"] for row in cluster.json("unit", "files")]
    if known:
        cluster.ok("unit", "destroy", *known)
    for name in ("m1", "m2", "m3"):
        cluster.ok("machine", "undrain", name)


def running(cluster: Cluster) -> dict[str, str]:
    return {row["unit"]: row["machine"] for row in cluster.json("unit", "list") if row["active"] == "active" and row["machine"]}


def announced(cluster: Cluster) -> int:
    return len(cluster.json("kv", "ls", "/services/api"))


def test_a_directory_is_planned_applied_changed_and_pruned(cluster: Cluster, folder: Path) -> None:
    """Exit statuses of plan; a plan is applied only while it holds; what a timer starts is not started."""
    (folder / "big.service").unlink()
    plan = cluster.argosy("unit", "plan", str(folder), "--json")
    assert plan.returncode == 1, plan.stderr
    found = json.loads(plan.stdout)
    assert {row["unit"]: row["change"] for row in found["rows"]} == dict.fromkeys(("api@.service", "api@1.service", "api@2.service", "api@3.service", "tidy.service", "tidy.timer"), "create")
    machines = [row["machine"] for row in found["rows"] if row["unit"].startswith("api@") and row["unit"] != "api@.service"]
    assert sorted(machines) == ["m1", "m2", "m3"]
    assert not running(cluster), "a plan changes nothing"
    cluster.ok("unit", "apply", str(folder), "--plan", found["token"])
    assert sorted(running(cluster)) == ["api@1.service", "api@2.service", "api@3.service"]
    assert not [row for row in cluster.json("unit", "list") if row["unit"] == "tidy.service" and row["desired"] != "inactive"]
    assert {row["unit"]: row["machine"] for row in found["rows"] if row["unit"] in running(cluster)} == running(cluster)
    assert cluster.argosy("unit", "plan", str(folder)).returncode == 0
    stale = cluster.argosy("unit", "apply", str(folder), "--plan", found["token"])
    assert (stale.returncode, "changed since plan" in stale.stderr) == (1, True), stale.stderr

    write(folder, version="2", replicas=2)
    (folder / "tidy.timer").unlink()
    (folder / "tidy.service").unlink()
    shown = cluster.argosy("unit", "plan", str(folder), "--prune")
    assert shown.returncode == 1 and "-Environment=V=1" in shown.stdout and "+Environment=V=2" in shown.stdout
    cluster.ok("unit", "apply", str(folder), "--prune")
    assert sorted(running(cluster)) == ["api@1.service", "api@2.service"]
    wait_until("the instances announce themselves", lambda: announced(cluster) == 2)
    assert "V=2" in cluster.ok("unit", "cat", "api@1")
    assert [row["unit"] for row in cluster.json("unit", "files")] == ["api@.service", "api@1.service", "api@2.service"]

    (folder / "api@.service").write_text("[Service]\nExecStrt=/bin/a\n")
    wrong = cluster.argosy("unit", "plan", str(folder))
    assert wrong.returncode == 2 and "ExecStrt" in wrong.stderr
    assert cluster.argosy("unit", "plan", "/nowhere").returncode == 2


def test_a_version_that_answers_500_is_taken_back_and_others_never_stopped(cluster: Cluster, folder: Path) -> None:
    """By its health check; then by hand from a good one; events tell it all."""
    file = folder / "api@.service"
    cluster.ok("unit", "submit", str(file))
    cluster.ok("unit", "start", "api@")
    pids = {row["unit"]: row["pid_or_container"] for row in cluster.json("unit", "list")}
    write(folder, version="2", code=500)
    bad = cluster.argosy("unit", "update", str(file))
    assert bad.returncode == 1 and "rolled-back" in bad.stdout, bad.stdout + bad.stderr
    now = {row["unit"]: row["pid_or_container"] for row in cluster.json("unit", "list")}
    assert [unit for unit in pids if pids[unit] != now[unit]] == ["api@1.service"]
    assert [row["state"] for row in cluster.json("unit", "versions", "api@")] == ["current", "bad"]
    write(folder, version="3")
    cluster.ok("unit", "update", str(file))
    wait_until("all announce themselves", lambda: announced(cluster) == 3)
    cluster.ok("unit", "rollback", "api@")
    assert "V=1" in cluster.ok("unit", "cat", "api@2")
    told = [row["text"] for row in cluster.json("events", "--lines", "1000", "--unit", "api@.service")]
    assert any("is rolling-back: rolled back, because api@1.service" in text for text in told), told
    assert sum(text.endswith("is done: 3 of 3 are done") for text in told) == 2


def test_a_drained_machine_serves_no_more_and_says_what_could_not_leave(cluster: Cluster, folder: Path) -> None:
    """While another always answers; metadata and big units are told of in why."""
    cluster.argosy("--timeout", "3", "unit", "apply", str(folder))
    wait_until("three run", lambda: sum(unit.startswith("api@") for unit in running(cluster)) == 3)
    reasons = cluster.json("unit", "why", "big")["machines"]
    assert all(text.startswith("Memory=900T: ") and text.endswith(" are free") for text in reasons.values()), reasons
    cluster.ok("machine", "drain", "m1", "--reason", "test")
    assert {row["name"]: row["state"] for row in cluster.json("machine", "list")} == {"m1": "drained", "m2": "ready", "m3": "ready"}
    assert "m1" not in running(cluster).values() and len(running(cluster)) == 3
    assert cluster.ok("machine", "metadata", "m1", "zone=a", "rack=") == "zone=a\n"
    assert cluster.argosy("machine", "metadata", "m1", "zone").returncode == 2
    cluster.ok("machine", "undrain", "m1")
    moves = cluster.json("cluster", "rebalance")
    assert [move["to"] for move in moves] == ["m1"]
    cluster.ok("cluster", "rebalance", "--apply", "--per-minute", "600")
    wait_until("it is used again", lambda: "m1" in running(cluster).values() and len(running(cluster)) == 3)
    top = cluster.ok("top")
    assert "units 4 of 5 up" in top and "m1" in top, top
    assert cluster.json("cluster", "add")["command"].startswith("argosy start --join 127.0.0.1:")


def test_events_are_followed_from_a_revision(cluster: Cluster, folder: Path) -> None:
    """Each once, in order, also by one who was away."""
    (folder / "one.service").write_text("[Service]\nExecStart=/bin/sleep infinity\n")
    cluster.ok("unit", "submit", str(folder / "one.service"))
    first = cluster.json("events", "--lines", "1")[0]["revision"]
    command = [argosy_command(), "--context", str(cluster.context), "events", "--follow", "--json", "--since", str(first)]
    with subprocess.Popen(command, env=environment(cluster.home), stdout=subprocess.PIPE, text=True) as watcher:
        try:
            cluster.ok("unit", "start", "one")
            cluster.ok("unit", "stop", "one")
            rows = []
            assert watcher.stdout is not None
            while not rows or rows[-1]["kind"] != "inactive":
                rows.append(json.loads(watcher.stdout.readline()))
        finally:
            watcher.kill()
    texts = [row["text"] for row in rows if row["unit"] == "one.service"]
    assert texts[:2] == ["is to run", "placed"] and "active (running)" in texts and texts[-1] == "inactive (dead)"
    again = cluster.json("events", "--since", str(first))
    assert again[: len(rows)] == rows
    old = cluster.argosy("events", "--since", str(first), "--unit", "nobody")
    assert (old.returncode, old.stdout) == (0, "")
