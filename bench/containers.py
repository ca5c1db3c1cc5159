"""Containers beside Docker Swarm on the same engine: how long until n run, and until one that was killed runs again."""

from __future__ import annotations

import time
from typing import Any

import docker.types as kinds

from tests.real import engine
from tests.real.engine import IMAGE, EngineHere

from .hosts import ArgosyCluster
from .lab import Lab, MissingError, median
from .table import Row
from .waiting import until

SIZES = (20, 50)
#: Of Swarm's time, at most.
START_GOAL, AGAIN_GOAL = 0.7, 1.0
#: Turns of each; Swarm takes a minute for one.  Containers killed, one after another.
ROUNDS, KILLS = 2, 5
_PATIENCE_S = 120.0
_UNIT = f"""
[Container]
Image={IMAGE}
Exec=/bin/sleep 1000000
Network=host
Pull=never
StopTimeout=1
[Service]
Restart=always
RestartSec=0
TimeoutStopSec=1
"""


class _Swarm:
    """One service of the engine's own orchestrator."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.init_swarm(advertise_addr="127.0.0.1", listen_addr="127.0.0.1:2377")
        self._service = ""

    def start(self, count: int) -> None:
        """Until so many containers run."""
        task = kinds.TaskTemplate(
            kinds.ContainerSpec(IMAGE, command=["/bin/sleep", "1000000"], stop_grace_period=1_000_000_000),
            restart_policy=kinds.RestartPolicy("any", delay=0), networks=[kinds.NetworkAttachmentConfig("host")],
        )  # fmt: skip
        made = self._client.create_service(task, name="bench", mode=kinds.ServiceMode("replicated", count))
        self._service = made["ID"]
        _await(self._client, count)

    def stop(self) -> None:
        """Until none is left."""
        self._client.remove_service(self._service)
        _await(self._client, 0)


class _Argosy:
    """One machine, and units in containers."""

    def __init__(self, cluster: ArgosyCluster, client: Any) -> None:
        self._cluster, self._client = cluster, client
        file = {"name": "box@.container", "content": _UNIT, "path": "box@.container"}
        cluster.ask("unit.submit", files=[file], replace=True)
        self._units: list[str] = []

    def start(self, count: int) -> None:
        """Until so many containers run, by the engine's word and by ours."""
        self._units = [f"box@{{1..{count}}}"]
        self._cluster.ask("unit.start", None, _PATIENCE_S, units=self._units, within=_PATIENCE_S - 5)
        _await(self._client, count)

    def stop(self) -> None:
        """Until none is left."""
        self._cluster.ask("unit.unload", None, _PATIENCE_S, units=self._units, within=_PATIENCE_S - 5)
        _await(self._client, 0)


def _running(client: Any) -> dict[str, str]:
    return {found["Id"]: found["State"] for found in client.containers(all=True)}


def _await(client: Any, count: int) -> None:
    def so_many() -> bool:
        states = list(_running(client).values())
        return states.count("running") == count and (count > 0 or not states)

    until(f"{count} containers", so_many, _PATIENCE_S, 0.02)


def _again(client: Any) -> float:
    """Kill one; seconds until as many run as before, one of them new."""
    before = [one for one, state in _running(client).items() if state == "running"]
    victim = before[-1]  # the oldest: no limit on starts is reached
    born = client.inspect_container(victim)["State"]["StartedAt"]
    begun = time.perf_counter()
    client.kill(victim)

    def new() -> bool:
        now = [one for one, state in _running(client).items() if state == "running"]
        return len(now) == len(before) and any(one not in before or client.inspect_container(one)["State"]["StartedAt"] > born for one in now)

    until("the container again", new, _PATIENCE_S, 0.01)
    return time.perf_counter() - begun


def containers(lab: Lab) -> list[Row]:
    """Both through the same dockerd, in turn."""
    if engine.missing():
        raise MissingError(engine.missing())
    here = EngineHere()
    cluster = ArgosyCluster(lab.folder / "containers", machines=1, engine=here.url)
    try:
        here.start()
        here.make_image()
        client = here.client()
        cluster.start()
        systems: dict[str, _Argosy | _Swarm] = {"argosy": _Argosy(cluster, client), "swarm": _Swarm(client)}
        rows = []
        for size in SIZES:
            taken: dict[str, list[float]] = {name: [] for name in systems}
            for _ in range(ROUNDS):
                for name, system in systems.items():
                    begun = time.perf_counter()
                    system.start(size)
                    taken[name].append(time.perf_counter() - begun)
                    system.stop()
            lab.say(f"{size} containers: {taken}")
            rows.append(_row(f"{size} containers run, one engine", taken, START_GOAL))
        taken = {name: [] for name in systems}
        for name, system in systems.items():
            system.start(5)
            taken[name] = [_again(client) for _ in range(KILLS)]
            system.stop()
        rows.append(_row("a container that was killed runs again", taken, AGAIN_GOAL))
        client.close()
        return rows
    finally:
        cluster.stop()
        here.end()


def _row(work: str, taken: dict[str, list[float]], goal: float) -> Row:
    ours, theirs = median(taken["argosy"]), median(taken["swarm"])
    return Row(
        work, f"{ours:.2f} s", f"Docker Swarm {theirs:.2f} s", f"{ours / theirs:.2f}x", f"<= {goal:g}x", ours / theirs <= goal,
        data={"seconds": taken},
    )  # fmt: skip
