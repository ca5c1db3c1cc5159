"""Two of three hosts are off: nothing hangs, nothing lies, and units do as they are told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from ..waiting import wait_until
from .cluster import Cluster, alive

UNIT = "[Service]\nExecStart=/bin/sleep 100000\nRestart=always\n[X-Fleet]\nMachineID={machine}\n"
KEEP = UNIT + "[X-Argosy]\nOnPartition=keep\n"


@dataclass
class Alone:
    """The one machine that is left, and what ran on it."""

    name: str
    number: int
    pids: dict[str, int]


@pytest.fixture(scope="module")
def alone(cluster: Cluster) -> Iterator[Alone]:
    """The leader, with a unit that shall stop without quorum and one that shall go on."""
    name = cluster.leader()
    number = int(name[1:])
    cluster.submit("obedient", UNIT.format(machine=name))
    cluster.submit("keeper", KEEP.format(machine=name))
    cluster.start("obedient", "keeper")
    cluster.ask("kv.put", key="/before", value="kept")
    assert cluster.http(number, "GET", "/v2/keys/before?quorum=true").status == 200
    wait_until("their processes", lambda: all(row["pid_or_container"] for row in cluster.units()))
    pids = {row["unit"]: row["pid_or_container"] for row in cluster.units()}
    for other in cluster.names():
        if other != name:
            cluster.local("kill", other)
    cluster.close()
    wait_until("the quorum to be missed", lambda: _health(cluster, number) == 503)
    yield Alone(name, number, pids)


def _health(cluster: Cluster, number: int) -> int:
    return cluster.http(number, "GET", "/health").status


COMMANDS = (
    "kv put /x 1", "kv get /before", "kv del /before", "unit stop obedient", "lock acquire m1",
    "lock set-max 2", "cluster token",
)  # fmt: skip
REQUESTS: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "PUT": ("PUT", "/v2/keys/x", {"value": "1"}),
    "POST": ("POST", "/v2/keys/x", {"value": "1"}),
    "DELETE": ("DELETE", "/v2/keys/before", None),
    "quorum GET": ("GET", "/v2/keys/before?quorum=true", None),
}
Timed = tuple[Any, float]


@pytest.fixture(scope="module")
def answers(cluster: Cluster, alone: Alone) -> dict[str, Timed]:
    """What each command and request was answered and after how many seconds; all asked at once."""

    def timed(ask: Callable[[], Any]) -> Timed:
        begun = time.monotonic()
        return ask(), time.monotonic() - begun

    asked: dict[str, Callable[[], Any]] = {
        command: partial(cluster.argosy, "--timeout", "3", *command.split()) for command in COMMANDS
    }
    for name, (method, path, form) in REQUESTS.items():
        asked[name] = partial(cluster.http, alone.number, method, path, form, 20)
    with ThreadPoolExecutor(len(asked)) as pool:
        futures = {name: pool.submit(timed, ask) for name, ask in asked.items()}
        return {name: future.result() for name, future in futures.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_need_a_quorum_end_with_3(answers: dict[str, Timed], command: str) -> None:
    """One sentence and status 3, within the time that was asked for and the start of the program."""
    done, seconds = answers[command]
    assert done.returncode == 3, (done.returncode, done.stderr)
    assert done.stderr.startswith("argosy: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert seconds < 12


@pytest.mark.parametrize("name", REQUESTS)
def test_http_that_needs_a_quorum_is_503(answers: dict[str, Timed], name: str) -> None:
    """etcd's error 300, within the door's own limit."""
    reply, seconds = answers[name]
    assert (reply.status, reply.json()["errorCode"]) == (503, 300)
    assert seconds < 8


def test_what_is_known_here_is_still_said(cluster: Cluster, alone: Alone) -> None:
    """A local read, the listings, the metrics and the status answer, and say how it is."""
    reply = cluster.http(alone.number, "GET", "/v2/keys/before")
    assert (reply.status, reply.json()["node"]["value"]) == (200, "kept")
    assert cluster.ok("kv", "get", "/before", "--local").strip() == "kept"
    assert _health(cluster, alone.number) == 503
    status: Any = cluster.json("cluster", "status")
    assert (status["leader"], status["quorum_margin"] < 0) == ("", True)
    assert "NO QUORUM" in cluster.ok("cluster", "status")
    assert [m["name"] for m in cluster.json("machine", "list")] == cluster.names()
    page = cluster.http(alone.number, "GET", "/metrics").text
    assert "\nargosy_raft_has_leader 0.0\n" in page
    assert "\netcd_server_has_leader 0.0\n" in page


def test_units_do_as_their_partition_policy_says(cluster: Cluster, alone: Alone) -> None:
    """The default is to stop, so that another machine may start it; ``OnPartition=keep`` goes on."""
    obedient, keeper = alone.pids["obedient.service"], alone.pids["keeper.service"]
    wait_until("the obedient unit to end", lambda: not alive(obedient))
    assert alive(keeper)


def test_with_the_others_back_everything_goes_on(cluster: Cluster, alone: Alone) -> None:
    """Writes are taken, the stopped unit runs again, and the one that was kept was never touched."""
    wait_until("the obedient unit to end", lambda: not alive(alone.pids["obedient.service"]))
    for name in cluster.names():
        if name != alone.name:
            cluster.local("boot", name)
    cluster.close()
    cluster.await_whole()
    assert cluster.http(1, "PUT", "/v2/keys/after", {"value": "1"}).status == 201
    assert cluster.http(2, "GET", "/v2/keys/x?quorum=true").status == 404, "a refused write was done all the same"
    assert cluster.http(2, "GET", "/v2/keys/before?quorum=true").json()["node"]["value"] == "kept"
    wait_until("the obedient unit to run", lambda: cluster.row("obedient")["active"] == "active")
    assert cluster.row("obedient")["machine"] == alone.name
    keeper = cluster.row("keeper")
    assert (keeper["pid_or_container"], keeper["restarts"]) == (alone.pids["keeper.service"], 0)
    assert alive(alone.pids["keeper.service"])
