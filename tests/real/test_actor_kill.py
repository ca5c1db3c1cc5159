"""``actor kill`` of every actor of every machine while the founding picture serves its pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cli import demo
from cli.session import Session

from ..waiting import wait_until
from .cluster import Cluster

OWN_ACTORS = ("raft", "machine", "scheduler", "timers", "rollouts", "lock-manager", "updater", "control", "gateway")
#: Killed one by one with machines that need them (``test_agents``), and here all at once.
MORE_ACTORS = ("desk", "electorate", "relay")


@pytest.fixture(scope="module")
def picture(cluster: Cluster) -> Iterator[demo.Client]:
    """Six API servers behind two load balancers, and a client that never stops asking."""
    session = Session(str(cluster.context), "", 60.0)
    demo.submit(demo.Stage(session), session)
    session.ask("kv.put", key="/config/db", value="db.example:5432")
    client = demo.Client(demo.lb_ports(session))
    client.start()
    try:
        wait_until("six servers behind each balancer", lambda: all(_has_all(port) for port in client.ports))
        yield client
    finally:
        client.stop()
        session.client().close()


def _has_all(port: int) -> bool:
    return len({demo.fetch(port)["unit"] for _ in range(2 * len(demo.APIS))}) == len(demo.APIS)


def _actors(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in cluster.ask("actor.list")}


def _begin(cluster: Cluster, client: demo.Client) -> dict[str, Any]:
    """Forget single connections that a reload of a balancer refused before; the units as they are."""
    client.last_error = ""
    return _pids(cluster)


def _pids(cluster: Cluster) -> dict[str, Any]:
    return {row["unit"]: (row["machine"], row["pid_or_container"], row["restarts"]) for row in cluster.units()}


def _kill(cluster: Cluster, path: str) -> None:
    """Kill an actor by the command line; it must be back, in its next life."""
    before = wait_until("the actor to be listed", lambda: _actors(cluster).get(path))
    cluster.ask("actor.kill", path=path)
    wait_until(
        f"{path} to come back",
        lambda: (row := _actors(cluster).get(path)) is not None
        and row["restarts"] == before["restarts"] + 1 and row["state"] == "running",
    )  # fmt: skip


def _serves(cluster: Cluster, client: demo.Client, pids: dict[str, Any]) -> None:
    """Nobody noticed: more pages, not one connection failed at either balancer, the same processes,
    all healthy and announced."""
    good = client.good
    wait_until("more pages", lambda: client.good > good + 20)
    assert (client.failed, client.last_error) == (0, "")
    assert _pids(cluster) == pids
    rows = cluster.units()
    assert all((row["active"], row["health"]) == ("active", "passing") for row in rows), rows
    announced = {i["key"] for i in cluster.ask("kv.ls", key="/services/")["items"]}
    assert announced == {f"/services/api/{n}" for n in range(1, 7)} | {"/services/lb/1", "/services/lb/2"}


def _change_database(cluster: Cluster, client: demo.Client, address: str) -> None:
    """The API servers follow a key by long polls, which must have outlived the kill."""
    cluster.ask("kv.put", key="/config/db", value=address)
    wait_until(
        "the changed key on every page",
        lambda: all(demo.fetch(port)["database"] == address for port in client.ports for _ in demo.APIS), 10,
    )  # fmt: skip


@pytest.mark.parametrize("name", OWN_ACTORS)
def test_own_actor_is_killed_on_every_machine(
    cluster: Cluster, picture: demo.Client, name: str
) -> None:
    """The actor comes back on each machine, the leader's last; not one request fails; no unit is
    touched; and what the actor is for works afterwards."""
    pids = _begin(cluster, picture)
    leader = cluster.leader()
    for machine in sorted(cluster.names(), key=lambda m: m == leader):
        _kill(cluster, f"{machine}/{name}")
    cluster.await_whole()
    _serves(cluster, picture, pids)
    for number in range(1, 4):
        value = f"{name} {number}"
        assert cluster.http(number, "PUT", "/v2/keys/after", {"value": value}).status in (200, 201)
        assert cluster.http(number, "GET", "/v2/keys/after?quorum=true").json()["node"]["value"] == value
    granted = cluster.ask("lock.acquire", machine="m1", group=name)
    cluster.ask("lock.release", machine="m1", group=name, token=granted["token"])
    _change_database(cluster, picture, f"after-{name}.example")
    cluster.start("api@9")  # placing, starting and announcing go on
    cluster.destroy("api@9")


def test_unit_actors_are_killed(cluster: Cluster, picture: demo.Client) -> None:
    """A unit's supervisor finds its running process again: same pid, same counter, still announced."""
    pids = _begin(cluster, picture)
    for unit, (machine, _, _) in sorted(pids.items()):
        _kill(cluster, f"{machine}/units/{unit}")
    _serves(cluster, picture, pids)


def test_all_actors_of_the_leader_are_killed_at_once(cluster: Cluster, picture: demo.Client) -> None:
    """Every actor of the leader's host at the same time: still nobody notices."""
    pids = _begin(cluster, picture)
    leader = cluster.leader()
    before = _actors(cluster)
    mine = [path for path in before if path.startswith(f"{leader}/")]
    order = ["units", *(name for name in (*OWN_ACTORS, *MORE_ACTORS) if name != "control"), "control"]
    for path in sorted(mine, key=lambda path: order.index(path.split("/")[1])):
        cluster.ask("actor.kill", path=path)
    own = [path for path in mine if "/units/" not in path]  # a unit's may be a new child of a new parent
    wait_until(
        "all of them to come back",
        lambda: set(mine) <= set(now := _actors(cluster))
        and all(now[path]["restarts"] == before[path]["restarts"] + 1 for path in own),
    )
    cluster.await_whole()
    _serves(cluster, picture, pids)
