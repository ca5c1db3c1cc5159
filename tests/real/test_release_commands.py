"""``argosy release``, as an operator types it, on one machine with slots; what is refused changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..waiting import wait_until
from .cluster import Cluster, port_offset, processes_of, run_argosy


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One machine with slots."""
    with port_offset(1) as offset:
        made = Cluster(tmp_path_factory.mktemp("cluster"), offset, machines=1)
        made.dir.parent.mkdir(exist_ok=True)
        done = run_argosy(made.home, "up", "--machines", "1", "--dir", str(made.dir), "--port-offset", str(offset), "--detach", "--slots")
        assert done.returncode == 0, done.stderr
        try:
            yield made
        finally:
            made.down()
            assert not processes_of(made.dir / "m1")


def test_a_release_from_a_key_to_the_machine(cluster: Cluster, tmp_path: Path) -> None:
    """Made, signed, refused while nobody is trusted or too few signed, published, listed, rolled out, held, let go."""
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "tool").write_text("#!/bin/sh\n")
    keys = [cluster.ok("release", "keygen", str(tmp_path / f"key{n}")).strip() for n in (1, 2)]
    assert (tmp_path / "key1").stat().st_mode & 0o777 == 0o600
    assert cluster.argosy("release", "keygen", str(tmp_path / "key1")).returncode == 2, "a key is never overwritten"
    file = str(tmp_path / "r.release")
    cluster.ok("release", "build", str(tree), file, "--version", "2.0", "--sequence", "4")
    cluster.ok("release", "sign", file, "--key", str(tmp_path / "key1"))
    refused = cluster.argosy("release", "publish", file)
    assert refused.returncode == 2 and "no-key" in refused.stderr
    assert cluster.argosy("release", "trust").returncode == 1
    public = [word for key in keys for word in ("--public", key)]
    signers = [word for n in (1, 2) for word in ("--key", str(tmp_path / f"key{n}"))]
    cluster.ok("release", "trust", *public, "--threshold", "2", *signers)
    refused = cluster.argosy("release", "publish", file)
    assert refused.returncode == 2 and "threshold: 2 signatures" in refused.stderr
    assert cluster.json("release", "list") == []
    cluster.ok("release", "sign", file, "--key", str(tmp_path / "key2"))
    cluster.ok("release", "publish", file)
    [row] = cluster.json("release", "list")
    assert (row["version"], row["sequence"], row["expired"], row["rollout"]) == ("2.0", 4, False, False)

    cluster.ok("release", "policy", "--window", "2031-01-01 00:00 UTC for 1h", "--commit-after", "2s", "--rate", "10M")
    assert cluster.json("release", "policy")["rate"] == 10 * 1024**2
    assert cluster.argosy("release", "policy", "--window", "sometimes").returncode == 2
    assert cluster.argosy("release", "rollout", "9.9").returncode == 1
    assert cluster.argosy("release", "rollout", "2.0", "--waves", "50,10").returncode == 2
    cluster.ok("release", "rollout", "2.0", "--soak", "1s")

    def state() -> str:
        return str(cluster.json("release", "status")["machines"][0]["state"])

    wait_until("it waits for its window", lambda: state() == "wait-window")
    assert (cluster.dir / "m1" / "slots" / "A" / "bin" / "tool").read_text() == "#!/bin/sh\n"
    cluster.ok("release", "pause")
    wait_until("it waits for its permit", lambda: state() == "wait-permit")
    assert cluster.argosy("release", "pause").returncode == 1
    cluster.ok("release", "halt", "--reason", "a bad day")
    wait_until("it is halted", lambda: state() == "halted")
    assert "a bad day" in cluster.ok("release", "status")
    cluster.ok("release", "resume")
    wait_until("it waits for its window again", lambda: state() == "wait-window")
    cluster.ok("release", "forget", "m1")
    assert not cluster.json("lock", "history"), "the lock was never asked for"

    rotated = cluster.argosy("release", "trust", "--public", keys[0], "--key", str(tmp_path / "key1"))
    assert rotated.returncode == 2 and "threshold" in rotated.stderr, "the old keys did not agree"
    cluster.ok("release", "trust", "--public", keys[0], *signers)
    assert json.loads(cluster.ok("release", "trust", "--json"))["version"] == 2
    data = bytearray(Path(file).read_bytes())
    data[-1] ^= 1
    Path(file).write_bytes(data)
    damaged = cluster.argosy("release", "sign", file, "--key", str(tmp_path / "key1"))
    assert damaged.returncode == 2 and "damaged" in damaged.stderr and "Traceback" not in damaged.stderr, damaged.stderr
    assert not Path(f"{file}.part").exists()


def test_a_machine_is_rebooted_by_its_command(cluster: Cluster, tmp_path: Path) -> None:
    """As configured; when it is back it runs the new version, and keeps it."""
    marker, script = tmp_path / "marker", tmp_path / "reboot"
    home = cluster.dir / "m1"
    script.write_text(f"#!/bin/sh\necho $1 >> {marker}\nkill -KILL $PPID\n")
    script.chmod(0o755)
    with open(home / "host.toml", "r+") as config:
        text = config.read()
        config.seek(0)
        config.write(f'reboot-command = "{script} now"\n' + text)
    cluster.ok("local", "kill", "m1", "--dir", str(cluster.dir))
    cluster.ok("local", "boot", "m1", "--dir", str(cluster.dir))
    cluster.await_ready("m1")
    tree, key, file = tmp_path / "tree", tmp_path / "key", str(tmp_path / "r.release")
    tree.mkdir()
    (tree / "hello").write_text("world")
    public = cluster.ok("release", "keygen", str(key)).strip()
    cluster.ok("release", "trust", "--public", public, "--key", str(key))
    cluster.ok("release", "build", str(tree), file, "--version", "3.0", "--sequence", "1")
    cluster.ok("release", "sign", file, "--key", str(key))
    cluster.ok("release", "publish", file)
    cluster.ok("release", "policy", "--commit-after", "1s")
    cluster.ok("release", "rollout", "3.0")

    def row() -> tuple[str, str, str] | None:
        done = cluster.argosy("release", "status", "--json")  # which nobody answers while it reboots
        if done.returncode:
            return None
        machine = json.loads(done.stdout)["machines"][0]
        return machine["version"], machine["slot"], machine["state"]

    wait_until("it runs the new version", lambda: row() == ("3.0", "A", "idle"), 60)
    assert marker.read_text() == "now\n"
    assert not cluster.json("lock", "status")[0]["holders"]
