"""The reboot lock through the command line, on three real hosts."""

from __future__ import annotations

import json
import subprocess
from http.client import HTTPConnection

from ..waiting import wait_until
from .cluster import Cluster, argosy_command, environment, request, signal_process


def group(cluster: Cluster, name: str) -> dict:  # type: ignore[type-arg]
    return cluster.json("lock", "status", "--group", name)[0]


def test_one_holder_at_a_time_and_its_token(cluster: Cluster) -> None:
    """Idempotent for its holder, refused for others, released with the token only."""
    first = cluster.json("lock", "acquire", "alpha", "--group", "a", "--reason", "kernel")
    assert first["granted"]
    again = cluster.json("lock", "acquire", "alpha", "--group", "a")
    assert (again["granted"], again["token"]) == (True, first["token"])
    refused = cluster.argosy("lock", "acquire", "beta", "--group", "a")
    assert refused.returncode == 1
    assert "held by alpha" in refused.stderr
    wrong = cluster.argosy("lock", "release", "alpha", "--group", "a", "--token", "1")
    assert wrong.returncode != 0
    assert f"token {first['token']}, not 1" in wrong.stderr
    shown = group(cluster, "a")
    assert [h["machine"] for h in shown["holders"]] == ["alpha"]
    assert (shown["max"], shown["available"], shown["holders"][0]["reason"]) == (1, 0, "kernel")
    cluster.ok("lock", "release", "alpha", "--group", "a", "--token", str(first["token"]))
    assert cluster.ok("lock", "release", "alpha", "--group", "a").strip() == "was not held"


def test_a_waiting_machine_is_granted_at_once(cluster: Cluster) -> None:
    """It waits in the queue, and the release of the one before it is its grant."""
    token = cluster.json("lock", "acquire", "alpha", "--group", "q")["token"]
    command = [argosy_command(), "--context", str(cluster.context), "lock", "acquire", "beta"]
    waiting = subprocess.Popen(
        [*command, "--group", "q", "--wait", "30", "--json"],
        env=environment(cluster.dir), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until("beta in the queue", lambda: group(cluster, "q")["queue"] == ["beta"])
    cluster.ok("lock", "release", "alpha", "--group", "q", "--token", str(token))
    answer, _ = waiting.communicate(timeout=10)
    assert waiting.returncode == 0 and '"granted": true' in answer
    assert [h["machine"] for h in group(cluster, "q")["holders"]] == ["beta"]


def test_set_max(cluster: Cluster) -> None:
    """0 pauses, fewer than holders grants nothing, nonsense is refused."""
    assert cluster.ok("lock", "set-max", "2", "--group", "m").split() == ["Old-Max:", "1", "Max:", "2"]
    for name in ("a", "b"):
        cluster.ok("lock", "acquire", name, "--group", "m")
    cluster.ok("lock", "set-max", "1", "--group", "m")
    shown = group(cluster, "m")
    assert (len(shown["holders"]), shown["available"]) == (2, -1)
    cluster.ok("lock", "release", "a", "--group", "m", "--force")
    assert cluster.argosy("lock", "acquire", "c", "--group", "m").returncode == 1
    assert cluster.argosy("lock", "set-max", "--group", "m", "--", "-3").returncode == 2
    assert cluster.argosy("lock", "status", "--group", "no/such").returncode in (0, 2)
    assert cluster.argosy("lock", "acquire", "a", "--group", "no/such").returncode == 2


def test_waiting_for_a_lock_to_be_free(cluster: Cluster) -> None:
    """Or for one machine to be through."""
    token = cluster.json("lock", "acquire", "a", "--group", "wait")["token"]
    assert cluster.argosy("lock", "wait", "--group", "wait", "--wait", "0.3").returncode == 4
    refused = cluster.argosy("lock", "wait", "a", "--group", "wait", "--wait", "0")
    assert refused.returncode == 4 and "a is holding it still" in refused.stderr
    cluster.ok("lock", "wait", "b", "--group", "wait")
    assert not group(cluster, "wait")["stale"]
    cluster.ok("lock", "release", "a", "--group", "wait", "--token", str(token))
    cluster.ok("lock", "wait", "--group", "wait")


def test_a_grant_survives_the_leader(cluster: Cluster) -> None:
    """Same holder, same token, and the next one is still refused."""
    token = cluster.json("lock", "acquire", "alpha", "--group", "s")["token"]
    signal_process(cluster.host_pid(cluster.leader()), 9)
    cluster.await_whole()
    holders = group(cluster, "s")["holders"]
    assert [(h["machine"], h["token"]) for h in holders] == [("alpha", token)]
    assert cluster.argosy("lock", "acquire", "beta", "--group", "s").returncode == 1


def _fleet_lock(cluster: Cluster, machine: int, path: str, host: str, group_: str, **headers: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    connection = HTTPConnection("127.0.0.1", cluster.client_port(machine), timeout=10)
    try:
        body = json.dumps({"client_params": {"id": host, "group": group_}})
        connection.request("POST", f"/v1/{path}", body, {"fleet-lock-protocol": "true", **headers})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else {}
    finally:
        connection.close()


def test_l18_fleet_lock_and_locksmith_share_the_lock(cluster: Cluster) -> None:
    """Through any door; repeated and unbalanced calls are legal; the record at locksmith's key is the same truth."""
    ask = _fleet_lock
    assert ask(cluster, 1, "pre-reboot", "aa", "z") == (200, {})
    assert ask(cluster, 2, "pre-reboot", "aa", "z") == (200, {})
    status, refused = ask(cluster, 3, "pre-reboot", "bb", "z")
    assert (status, refused["kind"]) == (423, "lock_held") and "aa" in refused["value"]
    assert ask(cluster, 1, "pre-reboot", "bb", "y")[0] == 200, "another group"
    assert ask(cluster, 3, "steady-state", "bb", "z") == (200, {}), "it holds nothing"
    assert group(cluster, "z")["holders"][0]["machine"] == "aa"
    door = cluster.client_port(2)
    key = "/v2/keys/coreos.com/updateengine/rebootlock/groups/z/semaphore"
    node = request(door, "GET", key).json()["node"]
    assert json.loads(node["value"]) == {"semaphore": 0, "max": 1, "holders": ["aa"]}
    changed = '{"semaphore": 1, "max": 1, "holders": []}'  # as locksmithctl unlock does
    assert request(door, "PUT", f"{key}?prevIndex={node['modifiedIndex']}", {"value": changed}).status == 200
    assert ask(cluster, 3, "pre-reboot", "bb", "z") == (200, {})
    assert ask(cluster, 1, "steady-state", "bb", "z") == (200, {})
    events = [(row["event"], row["machine"], row["by"]) for row in cluster.json("lock", "history", "--group", "z")]
    assert events == [("granted", "aa", "FleetLock"), ("released", "aa", "locksmith"), ("granted", "bb", "FleetLock"),
                      ("released", "bb", "FleetLock")]  # fmt: skip

    assert ask(cluster, 1, "pre-reboot", "aa", "z", **{"fleet-lock-protocol": "no"})[1]["kind"] == "missing_header"
    assert ask(cluster, 1, "pre-reboot", "aa", "no/such")[0] == 400
    assert ask(cluster, 1, "pre-reboot", "", "z")[0] == 400
    assert request(door, "GET", "/v1/pre-reboot").status == 405
    assert request(door, "POST", "/v1/pre-reboot", b"{").status == 400


def test_the_lock_never_costs_the_quorum(cluster: Cluster) -> None:
    """Three voters, one of them down: none of the others may go, whatever max is."""
    cluster.ok("lock", "set-max", "3", "--group", "g")
    assert cluster.json("lock", "acquire", "m1", "--group", "g")["granted"]
    refused = cluster.argosy("lock", "acquire", "m2", "--group", "g")
    assert refused.returncode == 1 and "2 of 3 voters must stay up" in refused.stderr
    assert cluster.json("lock", "acquire", "elsewhere", "--group", "g")["granted"]
    with subprocess.Popen(
        [argosy_command(), "--context", str(cluster.context), "lock", "acquire", "m3", "--group", "g", "--wait", "60", "--reason", "why"],
        env=environment(cluster.dir), stdout=subprocess.DEVNULL,
    ) as waiting:  # fmt: skip
        wait_until("m3 in the queue", lambda: [row["reason"] for row in cluster.json("lock", "queue", "--group", "g")] == ["why"])
        cluster.ok("lock", "release", "m1", "--group", "g", "--force")
        assert waiting.wait(10) == 0
