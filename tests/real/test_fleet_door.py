"""fleet's HTTP API, as fleetctl used it: units, states, machines, metadata, pages, refusals (fleet's tests 39 to 43)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from ..waiting import wait_until
from .cluster import Cluster

SLEEP = [
    {"section": "Service", "name": "ExecStart", "value": "/bin/sleep infinity"},
    {"section": "X-Fleet", "name": "Conflicts", "value": "loop@*.service"},
]


class Fleet:
    """A client of one door."""

    def __init__(self, cluster: Cluster, number: int = 1) -> None:
        self.cluster = cluster
        self.port = cluster.client_port(number)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            sent = {"Content-Type": "application/json"} if body is not None else {}
            data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            connection.request(method, f"/fleet/v1{path}", data, {**sent, **{k.replace("_", "-"): v for k, v in headers.items()}})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def put(self, name: str, state: str, options: Any = None) -> int:
        body = {"name": name, "desiredState": state} | ({"options": options} if options is not None else {})
        return self.ask("PUT", f"/units/{name}", body)[0]

    def states(self, **query: str) -> dict[str, dict[str, Any]]:
        text = "&".join(f"{key}={value}" for key, value in query.items())
        return {row["name"]: row for row in self.ask("GET", f"/state?{text}")[1]["states"]}

    def everything(self, what: str) -> list[dict[str, Any]]:
        """All pages of a listing."""
        found: list[dict[str, Any]] = []
        status, page = self.ask("GET", f"/{what}")
        while True:
            assert status == 200
            found += page[what]
            if "nextPageToken" not in page:
                return found
            status, page = self.ask("GET", f"/{what}?nextPageToken={page['nextPageToken']}")


@pytest.fixture
def fleet(cluster: Cluster) -> Iterator[Fleet]:
    client = Fleet(cluster)
    yield client
    for unit in client.everything("units"):
        assert client.ask("DELETE", f"/units/{unit['name']}")[0] == 204
    wait_until("all units are gone", lambda: not client.everything("units") and not client.states())


def test_a_unit_is_created_started_stopped_replaced_and_destroyed(fleet: Fleet) -> None:
    """With fleet's statuses."""
    name = "loop@1.service"
    assert fleet.put(name, "inactive") == 409  # no options
    assert fleet.put(name, "launched", SLEEP) == 201
    wait_until("it runs", lambda: fleet.states().get(name, {}).get("systemdSubState") == "running")
    status, unit = fleet.ask("GET", f"/units/{name}")
    machines = {row["id"] for row in fleet.ask("GET", "/machines")[1]["machines"]}
    assert status == 200 and unit["machineID"] in machines and len(machines) == 3
    assert (unit["desiredState"], unit["currentState"], unit["options"]) == ("launched", "launched", SLEEP)
    state = fleet.ask("GET", f"/state/{name}")[1]
    assert (state["systemdLoadState"], state["systemdActiveState"], len(state["hash"])) == ("loaded", "active", 40)
    assert fleet.states(machineID=unit["machineID"]) and not fleet.states(unitName="other.service")
    assert fleet.put(name, "loaded") == 204
    wait_until("it stopped", lambda: fleet.ask("GET", f"/units/{name}")[1]["currentState"] == "loaded")
    other = [*SLEEP, {"section": "Service", "name": "Environment", "value": "A=1"}]
    assert fleet.put(name, "launched", other) == 201
    wait_until("it runs anew", lambda: fleet.ask("GET", f"/units/{name}")[1]["currentState"] == "launched")
    assert fleet.ask("GET", f"/units/{name}")[1]["options"] == other
    assert fleet.put(name, "inactive") == 204
    wait_until("it is nowhere", lambda: fleet.ask("GET", f"/units/{name}")[1]["currentState"] == "inactive")
    assert fleet.ask("DELETE", f"/units/{name}")[0] == 204
    assert [fleet.ask(method, f"/units/{name}")[0] for method in ("DELETE", "GET")] == [404, 404]


def test_what_is_wrong_is_refused_and_changes_nothing(fleet: Fleet) -> None:
    """A sentence in fleet's form, and its status."""
    wrong = [
        (400, "PUT", "/units/a.service", {"name": "b.service", "desiredState": "launched", "options": SLEEP}),
        (400, "PUT", "/units/a.service", {"desiredState": "flying", "options": SLEEP}),
        (400, "PUT", "/units/a.service", {"desiredState": "launched", "options": [{"section": "Service", "name": "ExecStrt", "value": "/a"}]}),
        (400, "PUT", "/units/a.service", {"desiredState": "launched", "options": [{"section": "Service"}]}),
        (400, "PUT", "/units/a.target", {"desiredState": "launched", "options": SLEEP}),
        (400, "PUT", "/units/a@.service", {"desiredState": "launched", "options": SLEEP}),
        (400, "PUT", "/units/a.service", b"{"),
        (400, "PUT", "/units/a.service", {"options": SLEEP}),
        (400, "GET", "/units?nextPageToken=nonsense", None),
        (405, "POST", "/units", {}), (404, "GET", "/nothing", None), (404, "GET", "/units/none.service", None),
        (400, "PATCH", "/machines", [{"op": "noop", "path": "/x/metadata/a", "value": "1"}]),
        (400, "PATCH", "/machines", [{"op": "add", "path": "/x/foo", "value": "1"}]),
        (400, "PATCH", "/machines", [{"op": "add", "path": "/x/metadata/a", "value": ""}]),
        (400, "PATCH", "/machines", [{"op": "add", "path": "/nobody/metadata/a", "value": "1"}]),
    ]  # fmt: skip
    for expected, method, path, body in wrong:
        status, answer = fleet.ask(method, path, body)
        assert (status, answer["error"]["code"]) == (expected, expected) and answer["error"]["message"], (method, path, body, answer)
    assert fleet.ask("PUT", "/units/a.service", b"{}", Content_Type="text/plain")[0] == 415
    assert fleet.ask("PUT", "/units/a.service", {"desiredState": "launched", "options": SLEEP}, Origin="http://evil")[0] == 403
    assert not fleet.everything("units")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else: run as root")
def test_only_root_and_the_hosts_own_user_may_change_anything(fleet: Fleet) -> None:
    """A unit's process, or anybody else on the machine, could start units as root otherwise."""
    body = json.dumps({"desiredState": "launched", "options": SLEEP})
    for door in (f"http://127.0.0.1:{fleet.port}",):
        code = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT",
             "-H", "Content-Type: application/json", "-d", body, f"{door}/fleet/v1/units/evil.service"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert code == "403"
    assert not fleet.everything("units")


def test_metadata_is_patched_and_units_obey(fleet: Fleet) -> None:
    """Both forms of a value; a machine of the wrong kind is left."""
    ids = sorted(row["id"] for row in fleet.ask("GET", "/machines")[1]["machines"])
    assert fleet.put("fast.service", "launched", [SLEEP[0], {"section": "X-Fleet", "name": "MachineMetadata", "value": "disk=ssd"}]) == 201
    path = f"/{ids[1]}/metadata/disk"
    assert fleet.ask("PATCH", "/machines", [{"op": "add", "path": path, "value": "ssd"}, {"op": "add", "path": f"/{ids[0]}/metadata/a", "value": {"value": "1"}}])[0] == 204
    wait_until("it runs there", lambda: fleet.states().get("fast.service", {}).get("systemdActiveState") == "active")
    assert fleet.states()["fast.service"]["machineID"] == ids[1]
    shown = {row["id"]: row["metadata"] for row in fleet.ask("GET", "/machines")[1]["machines"]}
    assert (shown[ids[0]], shown[ids[1]]) == ({"a": "1"}, {"disk": "ssd"})
    assert fleet.ask("PATCH", "/machines", [{"op": "remove", "path": path}, {"op": "remove", "path": f"/{ids[0]}/metadata/a"}])[0] == 204
    wait_until("it left", lambda: not fleet.states())


def test_listings_come_in_pages_and_every_door_shows_the_same(fleet: Fleet, cluster: Cluster) -> None:
    """A hundred at a time; fleetctl's directory of methods."""
    files = []
    for number in range(120):
        file = cluster.dir / f"p{number:03}.service"
        file.write_text("[Service]\nExecStart=/bin/true\n")
        files.append(str(file))
    cluster.ok("unit", "submit", *files)
    names = [row["name"] for row in fleet.everything("units")]
    assert len(names) == 120 and names == sorted(names)
    assert len(fleet.ask("GET", "/units")[1]["units"]) == 100
    assert [row["name"] for row in Fleet(cluster, 3).everything("units")] == names
    assert fleet.ask("GET", "/discovery")[1]["resources"]["units"]["methods"]["put2"]["httpMethod"] == "PUT"
