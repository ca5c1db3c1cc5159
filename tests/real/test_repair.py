"""Backups, a host that is rebuilt, and a cluster that begins anew from its last survivor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brain import wal

from ..waiting import wait_until
from .cluster import Cluster, argosy_command, environment, port_offset, request, run_argosy

Made = Callable[..., Cluster]


@contextmanager
def host(folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """``argosy start`` in the foreground of a process of its own."""
    with (folder / "start.log").open("ab") as log:
        process = subprocess.Popen(
            [argosy_command(), "start", *words], env=environment(folder), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(15)


def fill(cluster: Cluster, prefix: str, count: int = 20) -> dict[str, str]:
    """Keys below a prefix, acknowledged."""
    written = {f"/{prefix}/{number}": str(number) for number in range(count)}
    for key, value in written.items():
        assert cluster.http(1, "PUT", f"/v2/keys{key}", {"value": value}).status == 201
    return written


def read_all(port: int, prefix: str) -> dict[str, str]:
    """What a door shows below a prefix, by quorum."""
    reply = request(port, "GET", f"/v2/keys/{prefix}?quorum=true")
    assert reply.status == 200, reply.text
    return {node["key"]: node["value"] for node in reply.json()["node"]["nodes"]}


def test_a_snapshot_is_saved_and_restored_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    """The new cluster has every key, at revisions far beyond, and its watches know that."""
    cluster.await_whole()
    written = fill(cluster, "saved")
    index = cluster.http(1, "GET", "/v2/keys/saved?quorum=true").index
    file = tmp_path / "backup.snap"
    assert str(file) in cluster.ok("cluster", "snapshot", "save", str(file))
    assert file.stat().st_mode & 0o077 == 0
    with port_offset(1) as offset:
        home = tmp_path / "new"
        where = ["--data-dir", str(home), "--name", "again", "--transport", f"127.0.0.1:{7001 + offset}",
                 "--client", f"127.0.0.1:{4001 + offset}"]  # fmt: skip
        done = run_argosy(tmp_path, "cluster", "snapshot", "restore", str(file), *where, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["revision"] > index + 900_000
        again = run_argosy(tmp_path, "cluster", "snapshot", "restore", str(file), *where)
        assert again.returncode == 1
        assert "belongs to a cluster already" in again.stderr
        with host(tmp_path, *where):
            assert wait_until("the keys", lambda: read_all(4001 + offset, "saved")) == written
            gone = request(4001 + offset, "GET", f"/v2/keys/saved?wait=true&recursive=true&waitIndex={index}")
            assert gone.json()["errorCode"] == 401
            put = request(4001 + offset, "PUT", "/v2/keys/saved/more", {"value": "1"})
            assert put.json()["node"]["modifiedIndex"] > index + 900_000


def test_a_damaged_backup_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """It names the file and the place, and makes nothing."""
    cluster.await_whole()
    file = tmp_path / "backup.snap"
    cluster.ok("cluster", "snapshot", "save", str(file))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    home = tmp_path / "new"
    done = run_argosy(tmp_path, *"cluster snapshot restore".split(), str(file), "--data-dir", str(home), "--name", "x")
    assert done.returncode == 1
    assert str(file) in done.stderr
    assert "offset" in done.stderr
    assert not home.exists()


def test_a_host_with_a_damaged_log_is_rebuilt_from_the_others(cluster: Cluster) -> None:
    """It says what is damaged; with ``--resync`` it gives its vote back, and gets it and all keys anew."""
    cluster.await_whole()
    written = fill(cluster, "resync")
    cluster.local("kill", "m2")
    home = cluster.dir / "m2"
    segment = sorted((home / "raft").glob("wal-*.log"))[-1]
    data = bytearray(segment.read_bytes())
    data[wal.HEADER_BYTES + 40] ^= 1
    segment.write_bytes(data)
    text = (home / "host.toml").read_text()
    assert "127.0.0.1" in text
    config = ["--config", str(home / "host.toml")]
    refused = run_argosy(cluster.home, "start", *config)
    assert refused.returncode == 1
    assert segment.name in refused.stderr
    assert "offset" in refused.stderr
    with host(cluster.home, *config, "--resync"):
        port = cluster.client_port(2)
        wait_until("the keys", lambda: read_all(port, "resync") == written)
        wait_until(
            "its vote",
            lambda: all(m["role"] != "learner" for m in cluster.ask("cluster.status")["members"])
            and len(cluster.ask("cluster.status")["members"]) == 3,
        )
    assert list(home.glob("raft.*")), "the damaged state is kept"
    cluster.local("boot", "m2")
    cluster.await_whole()
    assert read_all(cluster.client_port(2), "resync") == written


def test_the_last_survivor_begins_anew(fresh_cluster: Cluster) -> None:
    """Refused while a majority can be reached, and without the host's name; then nothing known is lost."""
    cluster = fresh_cluster
    cluster.await_whole()
    written = fill(cluster, "kept")
    index = cluster.http(1, "GET", "/v2/keys/kept?quorum=true").index
    cluster.local("kill", "m1")
    words = ["cluster", "recover", "--data-dir", str(cluster.dir / "m1"), "--confirm"]
    alive = cluster.argosy(*words, "m1")
    assert alive.returncode == 1
    assert "can be reached" in alive.stderr
    for name in ("m2", "m3"):
        cluster.local("kill", name)
    unsure = cluster.argosy(*words, "yes")
    assert unsure.returncode == 1
    assert "--confirm" in unsure.stderr
    done = cluster.argosy(*words, "m1")
    assert done.returncode == 0, done.stderr
    cluster.local("boot", "m1")
    port = cluster.client_port(1)
    assert wait_until("the keys", lambda: read_all(port, "kept")) == written
    assert request(port, "GET", "/v2/keys/kept").index > index + 900_000
    wait_until("one voter", lambda: len(cluster.ask("cluster.status")["members"]) == 1)
    cluster.local("boot", "m2")  # it comes back from the lost part: a stranger now
    cluster.local("boot", "m3")
    assert wait_until("a write", lambda: request(port, "PUT", "/v2/keys/kept/new", {"value": "1"})).status == 201
    assert len(cluster.ask("cluster.status")["members"]) == 1
