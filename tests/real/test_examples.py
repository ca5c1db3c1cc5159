"""The unit files under ``examples/units`` are accepted, and run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import Cluster, port_offset
from .engine import IMAGE, EngineHere, missing

EXAMPLES = Path(__file__).parents[2] / "examples" / "units"
DISKS = {"m1": {"disk": "ssd"}, "m2": {"disk": "tape"}, "m3": {"disk": "hdd"}}


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineHere | None]:
    """An engine with the image that the examples name, where there can be one."""
    if missing():
        yield None
        return
    made = EngineHere()
    try:
        made.start()
        made.make_image()
        client = made.client()
        client.tag(IMAGE, "busybox", "latest")
        client.close()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, engine: EngineHere | None) -> Iterator[Cluster]:
    """Three machines with different disks."""
    with port_offset() as offset:
        made = Cluster(tmp_path_factory.mktemp("cluster"), offset)
        try:
            made.create(DISKS)
            if engine is not None:
                for machine in DISKS:
                    path = made.dir / machine / "host.toml"
                    path.write_text(f"engine = {json.dumps(engine.url)}\n{path.read_text()}")
            made.up()
            yield made
            made.destroy_all()
        finally:
            made.down()


def _files(folder: str) -> list[str]:
    return sorted(str(path) for path in (EXAMPLES / folder).iterdir())


def test_they_are_accepted(cluster: Cluster) -> None:
    """With nothing wrong in any of them."""
    files = _files("fleet") + _files("quadlet")
    assert len(files) >= 9
    found = cluster.json("unit", "verify", *files)
    assert [row["problems"] for row in found] == [[] for _ in files]


def test_what_fleets_users_wrote(cluster: Cluster) -> None:
    """One of a kind on each machine, sidekicks beside their partners, everywhere where it may be, and time."""
    cluster.ok("unit", "submit", *_files("fleet"))
    cluster.ok("unit", "start", "hello", "web@{1..3}", "web-sidekick@{1..3}", "monitor", "tick.timer")
    assert sorted(cluster.row(f"web@{n}")["machine"] for n in (1, 2, 3)) == ["m1", "m2", "m3"]
    assert sorted(row["machine"] for row in cluster.rows("monitor")) == ["m1", "m3"]
    wait_until("hello", lambda: "Hello World" in cluster.log("hello"))

    def announced() -> dict[str, str]:
        answer = cluster.http(1, "GET", "/v2/keys/sidekick/web")
        nodes = answer.json()["node"].get("nodes", []) if answer.status == 200 else []
        return {node["key"].rsplit("/", 1)[1]: node["value"] for node in nodes}

    where = {str(n): cluster.row(f"web@{n}")["machine"] for n in (1, 2, 3)}
    wait_until("all three are announced", lambda: announced() == where)
    cluster.ok("unit", "stop", "web@2")
    wait_until("its sidekick went with it", lambda: cluster.row("web-sidekick@2")["active"] == "inactive")
    wait_until("it is announced no more", lambda: "2" not in announced())
    wait_until("a tick", lambda: bool(cluster.log("tick")))


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_what_quadlets_users_wrote(cluster: Cluster) -> None:
    """A sleeper, a web server with few rights and a health of its own, and a job."""
    for path in _files("quadlet"):
        text = Path(path).read_text()
        # the engine of the tests has no bridge
        bridged = text if "Network=" in text else text.replace("[Container]\n", "[Container]\nNetwork=none\n")
        cluster.write_unit(Path(path).name, bridged)
        cluster.ok("unit", "submit", str(cluster.home / Path(path).name))
    cluster.ok("unit", "start", "sleep", "web", "job")
    assert cluster.row("sleep")["sub"] == "running"
    row = cluster.row("web")
    assert (row["active"], row["health"]) == ("active", "passing")
    assert cluster.http(1, "GET", "/v2/keys/services/web/web").json()["node"]["value"].endswith(f":{row['ports']['http']}")
    assert cluster.row("job")["sub"] == "exited"
    wait_until("what it did", lambda: "done by job.service" in cluster.log("job"))
