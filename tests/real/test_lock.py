"""The reboot lock through the command line, on three real hosts."""

from __future__ import annotations

import subprocess

from ..waiting import wait_until
from .cluster import Cluster, argosy_command, environment, signal_process


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


def test_a_grant_survives_the_leader(cluster: Cluster) -> None:
    """Same holder, same token, and the next one is still refused."""
    token = cluster.json("lock", "acquire", "alpha", "--group", "s")["token"]
    signal_process(cluster.host_pid(cluster.leader()), 9)
    cluster.await_whole()
    holders = group(cluster, "s")["holders"]
    assert [(h["machine"], h["token"]) for h in holders] == [("alpha", token)]
    assert cluster.argosy("lock", "acquire", "beta", "--group", "s").returncode == 1
