"""Machines without a vote, as real hosts: three voters, two agents that hang on them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest

from ..waiting import wait_until
from .cluster import alive, port_offset, processes_of, request, run_argosy
from .hosts import Hosts
from .test_grpc import b64, client, watching

WEB = """[Service]
ExecStart=/usr/bin/env python3 -c 'import os,socket,time; s=socket.create_server(("127.0.0.1", int(os.environ["PORT"]))); print("serving", flush=True); time.sleep(9999)'
[X-Fleet]
{fleet}
[X-Argosy]
Port=web
Announce=/services/{name}
LostAfter=1s
"""  # fmt: skip


class AgentHosts(Hosts):
    """Three voters h1 to h3, and the agents h4 and h5."""

    def found(self) -> None:
        self.start(1, "--bootstrap")
        wait_until("the founder", lambda: self.voters() == 1)
        first = f"127.0.0.1:{7001 + self.offset}"
        self.start(2, "--join", first, "--token", self.token())
        self.start(3, "--join", first, "--token", self.token())
        wait_until("three voters", lambda: self.voters() == 3)
        for number in (4, 5):
            self.start(number, "--join", first, "--token", self.token("--role", "agent"))
        wait_until("five machines that are ready", lambda: self.ready() == [f"h{n}" for n in range(1, 6)])

    def ready(self) -> list[str]:
        return [row["name"] for row in self.json("machine", "list") if row["state"] == "ready"]

    def door(self, number: int) -> int:
        return 4000 + self.offset + number

    def unit(self, name: str) -> dict[str, object]:
        rows = [row for row in self.json("unit", "list") if row["unit"] == f"{name}.service"]
        return rows[0] if rows else {}

    def runs_on(self, name: str) -> str:
        row = self.unit(name)
        return str(row["machine"]) if row.get("sub") == "running" else ""

    def submit(self, name: str, fleet: str) -> None:
        path = self.folder / f"{name}.service"
        path.write_text(WEB.format(fleet=fleet, name=name))
        assert self.argosy("unit", "start", str(path), "--no-block").returncode in (0,), name

    def asked_by(self, number: int) -> float:
        """How often an agent went to another voter."""
        page = request(self.door(number), "GET", "/metrics").text
        return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith("argosy_agent_failovers"))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentHosts]:
    folder = tmp_path_factory.mktemp("agents")
    with ExitStack() as stack:
        made = AgentHosts(folder, stack.enter_context(port_offset(5)))
        stack.callback(_end, folder)
        stack.callback(made.stop)
        made.found()
        yield made


def _end(folder: Path) -> None:
    for process in processes_of(folder):
        os.kill(process.pid, signal.SIGKILL)


def test_an_agent_is_a_machine_like_any_other_but_votes_nowhere(hosts: AgentHosts) -> None:
    """It is listed, takes units, shows their logs; the brain has three members."""
    rows = {row["name"]: row for row in hosts.json("machine", "list")}
    assert [rows[f"h{n}"]["voter"] for n in range(1, 6)] == [True, True, True, False, False]
    assert {rows["h4"]["role"], rows["h5"]["role"]} == {"agent"}
    assert len(hosts.json("cluster", "status")["members"]) == 3
    assert not (hosts.folder / "h4" / "raft").exists() or not list((hosts.folder / "h4" / "raft").iterdir())
    hosts.submit("pinned", "MachineID=h4")
    wait_until("the unit to run on the agent", lambda: hosts.runs_on("pinned") == "h4")
    wait_until("its log", lambda: "serving" in hosts.argosy("unit", "logs", "pinned").stdout)
    done = hosts.argosy("unit", "exec", "pinned", "--", "sh", "-c", "echo here $((6 * 7))")
    assert done.stdout == "here 42\n", done
    actors = {row["path"] for row in hosts.json("actor", "list")}
    assert {"h4/machine", "h4/units/pinned.service", "h4/raft"} <= actors
    assert "h4/scheduler" not in actors
    announced = request(hosts.door(1), "GET", "/v2/keys/services/pinned").json()["node"]["nodes"]
    assert len(announced) == 1


def test_the_door_of_an_agent_is_the_brains(hosts: AgentHosts) -> None:
    """v2 and v3, reads, writes, refusals, long polls, streams, several requests on one connection."""
    agent, voter = hosts.door(4), hosts.door(2)
    assert request(agent, "PUT", "/v2/keys/agents/a", {"value": "1"}).status == 201
    assert request(voter, "GET", "/v2/keys/agents/a").json()["node"]["value"] == "1"
    refused = request(agent, "PUT", "/v2/keys/agents/a", {"value": "2", "prevValue": "9"})
    assert (refused.status, refused.json()["errorCode"]) == (412, 101)
    connection = HTTPConnection("127.0.0.1", agent, timeout=10)
    for number in range(20):  # one connection
        connection.request("PUT", f"/v2/keys/agents/n{number}", f"value={number}", {"Content-Type": "application/x-www-form-urlencoded"})
        answer = connection.getresponse()
        assert answer.status == 201 and json.loads(answer.read())["node"]["value"] == str(number)
    socket_before = connection.sock
    connection.request("GET", "/version")
    assert json.loads(connection.getresponse().read())["etcdserver"] == "3.4.23"
    assert connection.sock is socket_before, "the connection was not kept"
    connection.close()
    big = "x" * 900_000
    assert request(agent, "PUT", "/v2/keys/agents/big", {"value": big}).status == 201
    assert request(agent, "GET", "/v2/keys/agents/big").json()["node"]["value"] == big
    said: list[str] = []
    waiting = threading.Thread(
        target=lambda: said.append(request(agent, "GET", "/v2/keys/agents/w?wait=true", seconds=30).json()["node"]["value"])
    )
    waiting.start()
    time.sleep(0.3)  # either order is legal; this one is the subject
    request(voter, "PUT", "/v2/keys/agents/w", {"value": "told"})
    waiting.join(30)
    assert said == ["told"]
    assert b"argosy_agent_voters 3" in request(agent, "GET", "/metrics").text.encode()
    assert request(agent, "GET", "/health").json() == {"health": "true"}
    # the fleet's door takes changes from this host's own users, and an agent's are not the voter's
    assert request(agent, "PUT", "/fleet/v1/units/x.service", b"{}").status in (401, 403)


def test_the_grpc_door_of_an_agent_is_the_brains(hosts: AgentHosts) -> None:
    """Calls, refusals and a watch, which a voter answers."""
    with client(f"127.0.0.1:{2378 + hosts.offset + 4}") as agent, client(f"127.0.0.1:{2378 + hosts.offset + 2}") as voter:
        agent.put("/agents/grpc", "1")
        assert voter.get("/agents/grpc") == [("/agents/grpc", "1")]
        with pytest.raises(grpc.RpcError) as refused:
            agent.put("", "1")
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with watching(agent, {"create_request": {"key": b64("/agents/grpc")}}) as (said, ask):
            assert said.get(timeout=10)["created"]
            voter.put("/agents/grpc", "2")
            assert said.get(timeout=10)["events"][0]["kv"]["value"] == b64("2")
            ask(None)
            assert said.get(timeout=10) is None


def test_a_watch_of_v3_through_an_agent_is_one_stream(hosts: AgentHosts) -> None:
    """The body of the request stays open, events come as they happen."""
    from base64 import b64decode, b64encode

    connection = HTTPConnection("127.0.0.1", hosts.door(5), timeout=15)
    wanted = {"create_request": {"key": b64encode(b"agents3/").decode(), "range_end": b64encode(b"agents30").decode()}}
    connection.request("POST", "/v3/watch", json.dumps(wanted))
    answer = connection.getresponse()
    assert json.loads(answer.readline())["result"]["created"] is True
    for number in range(3):
        body = {"key": b64encode(f"agents3/{number}".encode()).decode(), "value": b64encode(b"v").decode()}
        assert request(hosts.door(1), "POST", "/v3/kv/put", json.dumps(body).encode()).status == 200
        event = json.loads(answer.readline())["result"]["events"][0]
        assert b64decode(event["kv"]["key"]) == f"agents3/{number}".encode()
    connection.close()


def test_an_operator_who_asks_an_agent_is_answered_by_a_voter(hosts: AgentHosts) -> None:
    """The command line goes on to those whom the agent names."""
    context = str(hosts.folder / "h1" / "context.toml")
    where = f"127.0.0.1:{7004 + hosts.offset}"
    done = run_argosy(hosts.folder, "--context", context, "--endpoint", where, "machine", "list", "--json")
    assert done.returncode == 0 and len(json.loads(done.stdout)) == 5, done.stderr


def test_the_actors_that_an_agent_stands_on_are_killed(hosts: AgentHosts) -> None:
    """The desks and relays of all voters, and the agent's own: its unit runs on, its door answers, it takes other units."""
    before = hosts.unit("pinned")["pid_or_container"]
    paths = [f"h{n}/{name}" for n in (1, 2, 3) for name in ("desk", "relay", "electorate")]
    for path in (*paths, "h4/raft", "h4/gateway", "h4/machine", "h4/control"):
        assert hosts.argosy("actor", "kill", path).returncode == 0, path
    wait_until("the door to answer", lambda: request(hosts.door(4), "PUT", "/v2/keys/agents/killed", {"value": "x"}).status in (200, 201))
    hosts.submit("later", "MachineID=h4")
    wait_until("another unit to run", lambda: hosts.runs_on("later") == "h4")
    assert hosts.unit("pinned")["pid_or_container"] == before
    assert hosts.argosy("unit", "destroy", "later").returncode == 0


def test_a_voter_dies_and_the_agents_notice_nothing_else(hosts: AgentHosts) -> None:
    """SIGKILL of each voter in turn, the leader among them: units stay, the door goes on."""
    hosts.submit("steady", "MachineID=h5")
    wait_until("the unit", lambda: hosts.runs_on("steady") == "h5")
    before = hosts.unit("steady")["pid_or_container"]
    for number in (1, 2, 3):
        victim = hosts.running[number]
        victim.kill()
        victim.wait(10)
        for agent in (4, 5):
            wait_until(
                f"a write through h{agent} without h{number}",
                lambda agent=agent: request(hosts.door(agent), "PUT", "/v2/keys/agents/after", {"value": "x"}).status in (200, 201),  # type: ignore[misc]
            )
        assert alive(int(str(before)))
        hosts.start(number)
        wait_until("all to be ready", lambda: len(hosts.ready()) == 5 and hosts.voters() == 3)
    row = hosts.unit("steady")
    assert (row["machine"], row["pid_or_container"], row["sub"]) == ("h5", before, "running")
    assert hosts.asked_by(4) + hosts.asked_by(5) >= 2  # each was on one of the three


def test_a_lost_agents_units_move_and_it_comes_back(hosts: AgentHosts) -> None:
    """Its machine's processes die with it; what ran there runs elsewhere, and it is used again."""
    hosts.submit("free", "[X-Argosy]\nAffinity=machine=h4:10")
    wait_until("the unit to be where it likes to be", lambda: hosts.runs_on("free") == "h4")
    victim = hosts.running[4]
    victim.kill()
    victim.wait(10)
    for process in processes_of(hosts.folder / "h4"):
        os.kill(process.pid, signal.SIGKILL)
    wait_until("the loss to be seen", lambda: "h4" not in hosts.ready())
    wait_until("the unit to run elsewhere", lambda: hosts.runs_on("free") not in ("", "h4"))
    hosts.start(4)
    wait_until("the agent to be back", lambda: "h4" in hosts.ready())
    wait_until("its unit to be back", lambda: hosts.runs_on("pinned") == "h4")


def test_an_agent_that_was_removed_is_told_and_cannot_ask_any_more(hosts: AgentHosts) -> None:
    """Its certificate is still good; the desk knows that it is none of ours."""
    hosts.argosy("unit", "destroy", "steady")
    victim = hosts.running[5]
    victim.kill()
    victim.wait(10)
    wait_until("the loss to be seen", lambda: "h5" not in hosts.ready())
    done = hosts.argosy("machine", "remove", "h5")
    assert done.returncode == 0, done.stderr
    hosts.start(5)
    assert hosts.running[5].wait(40) != 0
    assert "was removed from the cluster" in (hosts.folder / "h5.log").read_text()
    assert "h5" not in [row["name"] for row in hosts.json("machine", "list")]
