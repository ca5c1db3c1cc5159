"""Bad input: one sentence, the right exit status, and nothing is changed."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from .cluster import Cluster, argosy_command, environment, run_argosy


def revision(cluster: Cluster) -> int:
    return int(cluster.ask("cluster.status")["revision"])


def test_a_bad_unit_file_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Every problem with file and line, exit 2; a good file beside it is not stored either."""
    bad, good = tmp_path / "bad.service", tmp_path / "good.service"
    bad.write_text("[Service]\nExecStart=/bin/true\nRestrt=always\n[X-Argosy]\nPort=1x\n")
    good.write_text("[Service]\nExecStart=/bin/true\n")
    before = revision(cluster)
    done = cluster.argosy("unit", "submit", str(good), str(bad))
    assert done.returncode == 2
    assert "bad.service:3:8: Restrt: unknown key in [Service] (did you mean Restart?)" in done.stderr
    assert "bad.service:5:6: Port: '1x' is not NAME or NAME:NUMBER" in done.stderr
    assert revision(cluster) == before
    assert cluster.argosy("unit", "cat", "good").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["unit", "submit", "/no/such.service"], 2, "No such file"),
        (["unit", "start", "bad name"], 2, "letters, digits"),
        (["unit", "start", "ghost"], 1, "no unit is called ghost.service"),
        (["unit", "start", "ghost@1"], 1, "nor its template ghost@.service"),
        (["unit", "start", "x{1..99999}"], 2, "10000 names"),
        (["unit", "why", "ghost"], 1, "no unit is called"),
        (["unit", "destroy", "ghost"], 1, "no unit is called"),
        (["machine", "show", "m9"], 1, "no machine is called 'm9'"),
        (["machine", "remove", "m1"], 2, "is alive"),
        (["kv", "put", "/_argosy/x", "1"], 2, "Argosy's own"),
        (["kv", "del", "/", "--prefix"], 2, "would delete Argosy's own"),
        (["kv", "get", "/no/such"], 1, "no key"),
        (["kv", "put", "/a", "1", "--ttl", "-5"], 2, "ttl"),
        (["actor", "kill", "nonsense"], 2, "MACHINE/NAME"),
        (["actor", "kill", "m1/nobody"], 1, "no actor is at"),
        (["actor", "tell", "m1/raft", "{"], 2, "not JSON"),
        (["actor", "ask", "m1/raft", '{"type": "os.system"}'], 2, "with one of"),
        (["nonsense"], 2, "No such command"),
        (["unit", "list", "--nonsense"], 2, "No such option"),
        (["--endpoint", "nonsense", "unit", "list"], 3, "HOST:PORT"),
        (["--context", "/no/such", "unit", "list"], 2, "No such file"),
    ],
)
def test_refusals(cluster: Cluster, arguments: list[str], status: int, part: str) -> None:
    """Usage and input: 2; not true: 1; unreachable: 3."""
    before = revision(cluster)
    done = cluster.argosy(*arguments)
    assert (done.returncode, part in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
    assert revision(cluster) == before


def test_nobody_there_is_exit_3(tmp_path: Path) -> None:
    """The endpoint and the reason are named."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    done = run_argosy(tmp_path, *["--endpoint", f"127.0.0.1:{port}", "unit", "list"])
    assert done.returncode == 3
    assert f"127.0.0.1:{port}: connection refused" in done.stderr


def test_a_context_of_another_cluster_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """Wrong authority: named, exit 3."""
    from transport import ca, tls

    authority, key = ca.make_authority("other")
    tls.save(tmp_path / "id", ca.issue(authority, key, "administrator", "client"))
    context = tmp_path / "context.toml"
    context.write_text(
        f'endpoints = ["{cluster.transport(1)}"]\nca = "{tmp_path}/id/ca.crt"\n'
        f'certificate = "{tmp_path}/id/host.crt"\nkey = "{tmp_path}/id/host.key"\n'
    )
    done = run_argosy(tmp_path, *["--context", str(context), "unit", "list"])
    assert done.returncode == 3
    assert "not signed by the context's authority" in done.stderr


def start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [argosy_command(), "start", *arguments], env=environment(tmp_path), capture_output=True,
        text=True, timeout=30, check=False,
    )  # fmt: skip


def test_start_refuses_what_cannot_work(cluster: Cluster, tmp_path: Path) -> None:
    """Every problem of a configuration at once; taken ports and directories; open doors."""
    done = start(tmp_path, "--transport", "nonsense", "--role", "votter", "--token", "x")
    assert done.returncode == 2
    for part in ("--name: a host needs a name", "--data-dir", "HOST:PORT", "did you mean voter?", "only with --join"):
        assert part in done.stderr
    home = cluster.dir / "m1"
    done = start(tmp_path, "--config", str(home / "host.toml"))
    assert done.returncode == 1
    assert "is in use by process" in done.stderr
    data = str(tmp_path / "data")
    done = start(tmp_path, "--name", "x", "--data-dir", data, "--transport", cluster.transport(1), "--bootstrap")
    assert done.returncode == 1
    assert f"--transport {cluster.transport(1)}" in done.stderr
    done = start(tmp_path, "--name", "x", "--data-dir", data, "--client", "0.0.0.0:4999", "--transport", "127.0.0.1:0")
    assert done.returncode == 2
    done = start(tmp_path, "--name", "x", "--data-dir", data, "--client", "0.0.0.0:4999", "--transport", "127.0.0.1:7999")
    assert done.returncode == 1
    assert "--insecure" in done.stderr
    done = start(tmp_path, "--name", "x", "--data-dir", str(tmp_path / "new"))
    assert done.returncode == 1
    assert "--bootstrap founds one, --join" in done.stderr


def test_check_config_names_line_and_key(tmp_path: Path) -> None:
    """The file's own words, with the nearest known key."""
    path = tmp_path / "host.toml"
    path.write_text('name = "a"\ndata-dir = "/x"\ntransprt = "127.0.0.1:1"\nclient = 5\n')
    done = run_argosy(tmp_path, *["check-config", str(path)])
    assert done.returncode == 2
    assert f"{path}:3: unknown key 'transprt' (did you mean transport?)" in done.stderr
    assert f"{path}:4: client is a list of texts, not 5" in done.stderr
    path.write_text('name = "a"\ndata-dir = "/x"\n')
    assert run_argosy(tmp_path, *["check-config", str(path)]).returncode == 0


def talk(cluster: Cluster, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", cluster.client_port(1)), 10) as raw:
        raw.sendall(data)
        raw.settimeout(10)
        out = b""
        try:
            while chunk := raw.recv(65536):
                out += chunk
        except OSError:
            pass
        return out


def test_broken_http_is_refused_and_harms_nobody(cluster: Cluster) -> None:
    """Not HTTP, endless headers, a body beyond the limit: told, disconnected."""
    assert talk(cluster, b"\x00\x01garbage\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert talk(cluster, b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431")
    head = b"PUT /v2/keys/big HTTP/1.1\r\nHost: x\r\nContent-Length: 11000000\r\n\r\n"
    assert b"HTTP/1.1 413" in talk(cluster, head + os.urandom(10_600_000))
    assert cluster.http(1, "GET", "/version").status == 200


def test_garbage_at_the_transport_door(cluster: Cluster) -> None:
    """Neither TLS nor frames: the link ends, the host goes on."""
    host, _, port = cluster.transport(1).rpartition(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(os.urandom(4096))
        raw.settimeout(10)
        try:
            raw.recv(1)
        except OSError:
            pass
    assert cluster.argosy("cluster", "status").returncode == 0
