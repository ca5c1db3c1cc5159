"""Fixtures of the transport's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .nets import Cluster, Loopback


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster that most tests are in."""
    return Cluster(tmp_path_factory.mktemp("identities"))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Another authority of the same cluster name: what a forger would make."""
    return Cluster(Path(tmp_path_factory.mktemp("forged")))


@pytest.fixture
def loopback(cluster: Cluster) -> Loopback:
    """Opens nets of that cluster."""
    return Loopback(cluster)
