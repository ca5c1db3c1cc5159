"""A local cluster's directories: made once, refused when they are something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli import local
from cli.config import load
from cli.host import Membership


def test_layout(tmp_path: Path) -> None:
    """One directory, configuration and identity per machine; ports as the contract says; secrets
    are the owner's alone."""
    local.create(tmp_path / "c", 3, 100)
    homes = local.homes(tmp_path / "c")
    assert [home.name for home in homes] == ["m1", "m2", "m3"]
    machines = set()
    for number, home in enumerate(homes, 1):
        config = load(str(home / "host.toml"), {})
        assert (config.name, config.transport) == (f"m{number}", f"127.0.0.1:{7100 + number}")
        assert config.client == [f"127.0.0.1:{4100 + number}"]
        membership = Membership.load(home)
        assert membership is not None
        machines.add(membership.machine)
        for path in home.rglob("*"):
            if path.suffix == ".key":
                assert path.stat().st_mode & 0o077 == 0, path
    assert len(machines) == 3


def test_made_once(tmp_path: Path) -> None:
    """The same numbers again change nothing; others are refused with those that are in force."""
    local.create(tmp_path / "c", 3, 100)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    local.create(tmp_path / "c", 3, 100)
    with pytest.raises(local.LocalError, match="3 machines at port offset 100"):
        local.create(tmp_path / "c", 5, 100)
    with pytest.raises(local.LocalError, match="3 machines at port offset 100"):
        local.create(tmp_path / "c", 3, 200)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("machines", "offset"), [(0, 0), (100, 0), (3, -1), (3, 50_001)])
def test_numbers_out_of_range(tmp_path: Path, machines: int, offset: int) -> None:
    """Refused with what is accepted; nothing is made."""
    with pytest.raises(local.LocalError, match="0 to 50000|1 to 99"):
        local.create(tmp_path / "c", machines, offset)
    assert not (tmp_path / "c").exists()


def test_no_cluster_and_no_machine(tmp_path: Path) -> None:
    """Each says what there is, and what to do."""
    with pytest.raises(local.LocalError, match=r"'argosy up --dir .*' makes one"):
        local.kill(tmp_path, "m1")
    with pytest.raises(local.LocalError, match="holds no local cluster"):
        local.down(tmp_path)
    local.create(tmp_path, 2, 100)
    for name in ("m3", "m0", "../m1", ""):
        with pytest.raises(local.LocalError, match="m1, m2"):
            local.boot(tmp_path, name)
    with pytest.raises(local.LocalError, match="m1 is not running"):
        local.pause(tmp_path, "m1", True)


def test_default_context_is_not_taken_from_another_cluster(tmp_path: Path) -> None:
    """The first cluster becomes the user's default; a second one leaves that alone."""
    local.create(tmp_path / "one", 1, 100)
    local.create(tmp_path / "two", 1, 200)
    assert local.make_default(tmp_path / "one")
    assert local.default_context().resolve() == (tmp_path / "one" / "context.toml").resolve()
    assert local.make_default(tmp_path / "one")
    assert not local.make_default(tmp_path / "two")
    assert local.default_context().resolve() == (tmp_path / "one" / "context.toml").resolve()


def test_host_pid_is_not_fooled_by_a_reused_number(tmp_path: Path) -> None:
    """The number in the lock file counts only while that process is this host."""
    local.create(tmp_path, 1, 100)
    home = tmp_path / "m1"
    assert local.host_pid(home) == 0
    (home / "lock").write_text(f"{os.getpid()}\n")
    assert local.host_pid(home) == 0
    (home / "lock").write_text("nonsense\n")
    assert local.host_pid(home) == 0
