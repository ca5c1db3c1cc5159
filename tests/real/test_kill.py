"""SIGKILL to host processes: nothing acknowledged is lost, and no unit notices."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..waiting import wait_until
from .cluster import Cluster, alive

#: Prints a number each 50 ms, from 1 on.
COUNTER = """
[Service]
ExecStart=/bin/sh -c 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done'
Restart=always
"""


def _printed(cluster: Cluster, unit: str, number: int) -> bool:
    return int(cluster.log(unit, 1)[0]) > number


def test_leader_is_killed_while_a_client_writes(cluster: Cluster) -> None:
    """The others elect a leader and go on within seconds; every acknowledged write is there."""
    cluster.await_whole()
    victim = cluster.leader()
    with cluster.writer("/leader-killed") as writer:
        writer.await_more(20)
        old = cluster.kill_host(victim)
        successor = wait_until(
            "another leader", lambda: n if (n := cluster.ask("cluster.status")["leader"]) != victim else ""
        )
        writer.await_more(20)
        cluster.await_new_host(victim, old)
    assert successor
    cluster.await_whole()
    cluster.assert_kept(writer, "/leader-killed")
    number = int(victim[1:])
    for key, value in writer.acknowledged.items():  # the one that was away has caught up
        assert cluster.http(number, "GET", f"/v2/keys{key}").json()["node"]["value"] == value


def test_follower_is_killed_while_a_client_writes(cluster: Cluster) -> None:
    """The other doors do not refuse one write meanwhile, and the leader stays."""
    cluster.await_whole()
    leader = cluster.leader()
    term = cluster.ask("cluster.status")["term"]
    victim = next(name for name in cluster.names() if name != leader)
    others = [n for n in range(1, 4) if f"m{n}" != victim]
    with cluster.writer("/follower-killed", *others) as writer:
        writer.await_more(20)
        old = cluster.kill_host(victim)
        writer.await_more(40)
        cluster.await_new_host(victim, old)
        cluster.await_whole()
        writer.await_more(10)
    assert not writer.failures
    cluster.assert_kept(writer, "/follower-killed")
    status = cluster.ask("cluster.status")
    assert (status["leader"], status["term"]) == (leader, term), "a follower's return deposed the leader"


def test_all_hosts_are_killed_at_once(cluster: Cluster) -> None:
    """All come back by themselves with every acknowledged write, in a later term, and take more."""
    cluster.await_whole()
    term = cluster.ask("cluster.status")["term"]
    with cluster.writer("/all-killed") as writer:
        writer.await_more(30)
        old = {name: cluster.kill_host(name) for name in cluster.names()}
        for name, pid in old.items():
            cluster.await_new_host(name, pid)
        cluster.await_whole()
        writer.await_more(10)
    cluster.assert_kept(writer, "/all-killed")
    assert cluster.ask("cluster.status")["term"] > term


def test_a_host_that_comes_back_does_not_show_the_past(cluster: Cluster) -> None:
    """The first answer of a door that opens again knows every acknowledged write, also without
    ``quorum``: its log is read, but how much of it is decided it must have heard from the leader."""
    cluster.await_whole()
    written = {}
    for number in range(10):
        written[f"/past/{number}"] = str(number)
        assert cluster.http(1, "PUT", f"/v2/keys/past/{number}", {"value": str(number)}).status == 201
    index = cluster.http(1, "GET", "/v2/keys/past?quorum=true").index
    for name in cluster.names():
        cluster.await_new_host(name, cluster.kill_host(name))
        reply = wait_until("the door to open", partial(cluster.http, int(name[1:]), "GET", "/v2/keys/past"))
        assert reply.status == 200, reply.text
        assert {n["key"]: n["value"] for n in reply.json()["node"]["nodes"]} == written
        assert reply.index >= index
        cluster.await_whole()


def test_units_outlive_their_host_process(cluster: Cluster) -> None:
    """Host processes are killed one after another: no pid changes, no restart, no line is missing."""
    cluster.await_whole()
    cluster.submit("count@.service", COUNTER)
    units = [f"count@{n}" for n in range(1, 4)]
    cluster.start(*units)
    cluster.ask("unit.restart", 60, units=units, within=50)  # their history has more than one start
    before = {unit: cluster.row(unit) for unit in units}
    assert {row["machine"] for row in before.values()} == set(cluster.names())
    for name in cluster.names():
        old = cluster.kill_host(name)
        cluster.await_new_host(name, old)
        cluster.await_whole()
    for unit in units:
        seen = int(cluster.log(unit, 1)[0])
        wait_until("the unit to go on", partial(_printed, cluster, unit, seen + 5))
        after = cluster.row(unit)
        for key in ("pid_or_container", "restarts", "machine", "fence", "active", "hash"):
            assert after[key] == before[unit][key], f"{unit}: {key} changed"
        printed = [int(line) for line in cluster.log(unit, 100_000)]
        begins = [position for position, number in enumerate(printed) if number == 1]
        assert len(begins) == 2, f"{unit}: it began other than by our start and restart"
        last = printed[begins[1] :]
        assert last == list(range(1, len(last) + 1)), f"{unit}: lines are missing or doubled"
    cluster.destroy_all()


def test_a_unit_that_ends_while_its_host_is_away_is_restarted_once(
    fresh_cluster: Cluster, tmp_path: Path
) -> None:
    """What happened to a unit while nobody watched is learned from its shim, and acted on."""
    cluster = fresh_cluster
    mark = tmp_path / "go"
    cluster.submit("mortal", f"""
[Service]
ExecStart=/bin/sh -c 'echo began; while [ ! -e {mark} ]; do sleep 0.05; done; rm {mark}; echo ends; exit 3'
Restart=on-failure
RestartSec=100ms
""")
    cluster.start("mortal")
    machine = cluster.row("mortal")["machine"]
    first = cluster.row("mortal")["pid_or_container"]
    cluster.local("pause", machine)
    mark.touch()
    wait_until("the unit to end", lambda: not mark.exists() and not alive(first))
    cluster.kill_host(machine)  # what its shim had told it is lost with it
    wait_until(
        "the restart",
        lambda: (r := cluster.row("mortal"))["restarts"] == 1 and r["active"] == "active"
        and r["pid_or_container"] not in (None, first),
    )  # fmt: skip
    wait_until("its log", lambda: cluster.log("mortal") == ["began", "ends", "began"])
