"""Containers as units of the cluster, in a real engine: everything that a service can, and adoption."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from ..waiting import wait_until
from .cluster import Cluster, argosy_command, environment, port_offset
from .engine import IMAGE, EngineHere, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineHere]:
    """An engine with one image."""
    made = EngineHere()
    try:
        made.start()
        made.make_image()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, engine: EngineHere) -> Iterator[Cluster]:
    """One machine whose units may be containers."""
    with port_offset(1) as offset:
        made = Cluster(tmp_path_factory.mktemp("cluster"), offset, 1)
        try:
            made.create()
            with (made.dir / "m1" / "host.toml").open("a") as file:
                file.write(f"engine = {json.dumps(engine.url)}\n")
            made.up()
            yield made
        finally:
            made.down()


@pytest.fixture(autouse=True)
def _no_units_are_left(cluster: Cluster, engine: EngineHere) -> Iterator[None]:
    yield
    cluster.destroy_all()
    client = engine.client()
    wait_until("every container to be gone", lambda: not client.containers(all=True))
    client.close()


def submit(cluster: Cluster, name: str, *lines: str, service: str = "", own: str = "") -> None:
    """A file ``NAME.container``."""
    text = f"[Container]\nImage={IMAGE}\nNetwork=host\nPull=never\n" + "\n".join(lines)
    path = cluster.write_unit(f"{name}.container", f"{text}\n[Service]\n{service}\n[X-Argosy]\n{own}\n")
    cluster.ok("unit", "submit", "--replace", str(path))


def reaches(cluster: Cluster, unit: str, wanted: str) -> dict[str, Any]:
    """Wait until a unit is so."""
    def so() -> bool:
        row = cluster.row(unit)
        return f"{row['active']}/{row['sub']}" == wanted

    wait_until(f"{unit} to be {wanted}", so, 30)
    return cluster.row(unit)


def containers(engine: EngineHere) -> list[dict[str, Any]]:
    """What runs in the engine."""
    client = engine.client()
    try:
        return client.containers()  # type: ignore[no-any-return]
    finally:
        client.close()


def test_a_container_is_a_unit_like_any_other(cluster: Cluster, engine: EngineHere) -> None:
    """Port=, HealthCheck=, Announce=, logs, status, restart and stop; labels say whose it is."""
    submit(
        cluster, "web", """Exec=sh -c 'trap "exit 0" TERM; httpd -f -p ${PORT} -h /www & wait'""",
        own="Port=http\nHealthCheck=tcp://:PORT\nAnnounce=/services/web",
    )  # fmt: skip
    cluster.start("web")
    row = cluster.row("web")
    [inside] = containers(engine)
    assert (row["unit"], row["health"], row["pid_or_container"]) == ("web.service", "passing", inside["Id"])
    assert inside["Labels"]["argosy.unit"] == "web.service"
    announced = cluster.http(1, "GET", "/v2/keys/services/web/web").json()["node"]["value"]
    assert announced.endswith(f":{row['ports']['http']}")
    with pytest.raises(OSError, match="404"):
        urlopen(f"http://127.0.0.1:{row['ports']['http']}/", timeout=5)
    cluster.ok("unit", "restart", "web")
    assert cluster.row("web")["pid_or_container"] not in (None, inside["Id"])
    cluster.ok("unit", "stop", "web")
    reaches(cluster, "web", "inactive/dead")
    assert not containers(engine)


def test_a_container_outlives_its_host_process(cluster: Cluster, engine: EngineHere) -> None:
    """The same container goes on, is adopted by its labels, and no log line is lost or doubled."""
    submit(cluster, "steady", "Exec=sh -c 'n=0; while true; do n=$$((n+1)); echo line $$n; sleep 0.1; done'")
    cluster.start("steady")
    before = cluster.row("steady")
    old = cluster.kill_host("m1")
    cluster.await_new_host("m1", old)
    row = reaches(cluster, "steady", "active/running")
    assert (row["pid_or_container"], row["restarts"]) == (before["pid_or_container"], 0)
    assert len(containers(engine)) == 1
    wait_until("more lines", lambda: len(cluster.log("steady")) > 20)
    numbers = [int(line.split()[1]) for line in cluster.log("steady")]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("words", "service", "wanted", "result"),
    [
        ("sh -c 'exit 3'", "", "failed/failed", "exit-code"),
        ("true", "Type=oneshot", "inactive/dead", "success"),
        ("true", "Type=oneshot\nRemainAfterExit=yes", "active/exited", "success"),
        ("sh -c 'exit 1'", "Restart=on-failure\nRestartSec=60", "activating/auto-restart", "exit-code"),
    ],
)
def test_how_a_container_ends(cluster: Cluster, words: str, service: str, wanted: str, result: str) -> None:
    """Its exit code or signal is the unit's result, and Restart= decides as for processes."""
    submit(cluster, "ends", f"Exec={words}", service=service)
    cluster.ask("unit.start", units=["ends"], no_block=True)
    assert reaches(cluster, "ends", wanted)["result"] == result


def test_its_own_health(cluster: Cluster) -> None:
    """Notify=healthy waits for the first healthy look; HealthOnFailure=kill and Restart= replace it."""
    submit(
        cluster, "well", "Exec=sh -c 'touch /tmp/well; sleep 999'", "HealthCmd=test -f /tmp/well", "Notify=healthy",
        "HealthInterval=200ms", "HealthRetries=1", "HealthOnFailure=kill", "ReloadCmd=rm /tmp/well",
        service="Restart=on-failure\nRestartSec=100ms",
    )  # fmt: skip
    cluster.start("well")
    row = reaches(cluster, "well", "active/running")
    assert row["health"] == "passing"
    first = row["pid_or_container"]
    cluster.ok("unit", "reload", "well")

    def replaced() -> bool:
        row = cluster.row("well")
        return row["active"] == "active" and row["pid_or_container"] not in (None, first)

    wait_until("another container", replaced, 30)
    assert cluster.row("well")["restarts"] == 1


def test_what_cannot_be_is_said(cluster: Cluster) -> None:
    """A missing image with Pull=never; and what is for processes only is refused at submit."""
    submit(cluster, "absent", "Image=argosy.test/none:1")
    cluster.ask("unit.start", units=["absent"], no_block=True)
    reaches(cluster, "absent", "failed/failed")
    assert "argosy.test/none:1" in cluster.argosy("unit", "status", "absent").stdout
    bad = cluster.write_unit("bad.container", f"[Container]\nImage={IMAGE}\nImge=x\n[Service]\nExecStart=/bin/a\nUser=x\n")
    done = cluster.argosy("unit", "submit", str(bad))
    assert done.returncode == 2
    for part in ("Imge: unknown key in [Container] (did you mean Image?)", "ExecStart: is for processes"):
        assert part in done.stderr


def test_a_process_may_become_a_container(cluster: Cluster, engine: EngineHere) -> None:
    """And the reverse: the old one is gone before the new one runs."""
    cluster.submit("shape", "[Service]\nExecStart=/bin/sleep 999\n")
    cluster.start("shape")
    assert isinstance(cluster.row("shape")["pid_or_container"], int)
    submit(cluster, "shape", "Exec=sleep 999")
    wait_until("a container", lambda: isinstance(cluster.row("shape")["pid_or_container"], str), 30)
    assert len(containers(engine)) == 1
    cluster.submit("shape", "[Service]\nExecStart=/bin/sleep 998\n")
    wait_until("a process", lambda: isinstance(cluster.row("shape")["pid_or_container"], int), 30)
    assert not containers(engine)


def test_the_engine_ends_and_comes_back(cluster: Cluster, engine: EngineHere) -> None:
    """Its containers end with it: Restart= brings the unit back when the engine is there again, once."""
    submit(cluster, "survivor", "Exec=sleep 999", service="Restart=always\nRestartSec=200ms\nStartLimitBurst=0")
    cluster.start("survivor")
    first = cluster.row("survivor")["pid_or_container"]
    engine.stop()
    wait_until("its end", lambda: cluster.row("survivor")["pid_or_container"] != first, 30)
    engine.start()

    def again() -> bool:
        row = cluster.row("survivor")
        return row["active"] == "active" and row["pid_or_container"] not in (None, first)

    wait_until("the unit to run again", again, 60)
    assert len(containers(engine)) == 1


def test_a_session_inside_a_container(cluster: Cluster) -> None:
    """With pipes: input, both outputs apart, the exit status; and nothing runs on when the operator is gone."""
    submit(cluster, "c", "Exec=/bin/sleep 1000\nEnvironment=A=b")
    cluster.start("c")
    words = ["unit", "exec", "c", "--", "/bin/sh", "-c", 'read x; echo "$A $x $ARGOSY_UNIT"; echo wrong >&2; exit 9']
    run = [argosy_command(), "--context", str(cluster.context), *words]
    done = subprocess.run(run, input="in\n", capture_output=True, text=True, timeout=60, check=False,
                          env=environment(cluster.home))  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (9, "b in c.service\n", "wrong\n")
    data = os.urandom(3_000_000)
    run = [argosy_command(), "--context", str(cluster.context), "unit", "exec", "c", "--", "/bin/cat"]
    echo = subprocess.run(run, input=data, capture_output=True, timeout=60, check=False, env=environment(cluster.home))
    assert echo.stdout == data
    assert "/bin/sleep 1000" in cluster.ok("unit", "status", "c")
    done = cluster.argosy("unit", "exec", "c", "--", "no-such-program")
    assert done.returncode in (126, 127), done


def test_secrets_of_the_brain(cluster: Cluster, engine: EngineHere) -> None:
    """As a file and as a variable; shown to nobody, gone from the machine with the container; a missing one is said."""
    run = [argosy_command(), "--context", str(cluster.context)]
    subprocess.run([*run, "secret", "set", "pw"], input=b"s3cret\n", check=True, env=environment(cluster.home), timeout=30)
    lines = "Secret=pw,mode=0400\nSecret=pw,type=env,target=PW\nExec=/bin/sleep 1000"
    submit(cluster, "s", lines)
    cluster.start("s")
    script = 'cat /run/secrets/pw; echo "$PW"; touch /run/secrets/pw'
    inside = cluster.argosy("unit", "exec", "s", "--", "/bin/sh", "-c", script)
    assert inside.stdout == "s3cret\ns3cret\n"
    assert inside.returncode != 0, "a secret could be written"
    assert "s3cret" not in cluster.ok("kv", "ls", "/_argosy/secrets/") + cluster.ok("unit", "status", "s") + cluster.host_logs()
    assert [row["name"] for row in cluster.json("secret", "list")] == ["pw"]
    [machine] = {row["id"] for row in cluster.ask("machine.list") if row["name"] == cluster.row("s")["machine"]}
    files = Path("/run/argosy-secrets") / machine
    assert [path.name for path in files.iterdir()] == ["s.service"]
    cluster.ok("unit", "stop", "s")
    assert list(files.iterdir()) == []
    cluster.ok("secret", "delete", "pw")
    refused = cluster.argosy("unit", "start", "s")
    assert (refused.returncode, "secret pw is not kept in the cluster" in refused.stderr) == (1, True), refused.stderr


def test_the_login_of_a_registry(cluster: Cluster) -> None:
    """The engine shows it to the registry that the image names, and to that one only."""
    seen: list[str] = []

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(401 if not seen[-1] else 404)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        run = [argosy_command(), "--context", str(cluster.context), "registry", "login", host, "-u", "me", "--password-stdin"]
        subprocess.run(run, input=b"p4ss\n", check=True, env=environment(cluster.home), timeout=30)
        cluster.submit("r.service", f"[Container]\nImage={host}/some/thing:1\nRetry=0\n[X-Argosy]\n")
        refused = cluster.argosy("unit", "start", "r")
        assert refused.returncode == 1, refused.stderr
        server.shutdown()
    assert f"Basic {b64encode(b'me:p4ss').decode()}" in seen
    assert [row["name"] for row in cluster.json("registry", "list")] == [host]
    cluster.ok("registry", "logout", host)
    assert cluster.json("registry", "list") == []
