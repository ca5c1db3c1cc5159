"""``argosy kv watch-exec``: through the transport, as an operator, and through HTTP, as in a unit."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import Cluster, argosy_command, environment, port_offset


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One machine."""
    with port_offset() as offset:
        made = Cluster(tmp_path_factory.mktemp("cluster"), offset, machines=1)
        try:
            made.create()
            made.up()
            yield made
        finally:
            made.down()


@pytest.mark.parametrize("door", ["transport", "http"])
def test_a_command_for_each_change(cluster: Cluster, tmp_path: Path, door: str) -> None:
    """In order, none twice, none missed, also what came while a command ran; a failure ends nothing."""
    key, out = f"/watched/{door}", tmp_path / "out"
    script = f'sleep 0.05; echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE" >> {out}; exit 3'
    more = {"ARGOSY_ENDPOINT": f"http://127.0.0.1:{cluster.client_port(1)}"} if door == "http" else {}
    where = [] if more else ["--context", str(cluster.context)]
    first = cluster.json("kv", "put", f"{key}/first", "x")["revision"]
    watcher = subprocess.Popen(
        [argosy_command(), *where, "kv", "watch-exec", "--prefix", "--revision", str(first), key,
         "--", "/bin/sh", "-c", script],
        env=environment(cluster.home, **more), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wanted = [f"PUT {key}/first x", *(f"PUT {key}/a {number} \u00fc" for number in range(20)), f"DELETE {key}/a "]
    try:
        for number in range(20):
            cluster.ok("kv", "put", f"{key}/a", f"{number} \u00fc")
        cluster.ok("kv", "del", f"{key}/a")
        wait_until("all of it was seen", lambda: out.exists() and len(out.read_text().splitlines()) >= len(wanted))
        assert out.read_text().splitlines() == wanted
    finally:
        watcher.kill()
        said = watcher.communicate()[1]
    assert "exited with 3" in said


def test_it_ends_when_it_was_told_to(cluster: Cluster) -> None:
    """After so many changes; and what is no command is said."""
    first = cluster.json("kv", "put", "/counted", "x")["revision"]
    done = cluster.argosy("kv", "watch-exec", "--revision", str(first), "--count", "1", "/counted", "--", "no-such-program")
    assert (done.returncode, "no-such-program: No such file" in done.stderr) == (0, True), done.stderr
    assert cluster.argosy("kv", "watch-exec", "/counted").returncode == 2
