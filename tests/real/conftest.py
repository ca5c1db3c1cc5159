"""Fixtures of the tests with real processes: whole clusters, one per module where it may be."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .cluster import Cluster, port_offset

Made = Callable[..., Cluster]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the hosts said beside a failed test."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Cluster):
                report.sections.append((f"hosts in {value.dir}", value.host_logs()))
    return report


@contextmanager
def running(
    folder: Path, machines: int = 3, metadata: dict[str, dict[str, str]] | None = None
) -> Iterator[Cluster]:
    """A cluster that is up, and is gone afterwards."""
    with port_offset(machines) as offset:
        cluster = Cluster(folder, offset, machines)
        try:
            if metadata:
                cluster.create(metadata)
            cluster.up()
            yield cluster
        finally:
            cluster.down()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three machines, shared by the tests of a module; each leaves it whole."""
    with running(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def fresh_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three machines of one test's own."""
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def make_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Makes clusters of other sizes, or with metadata."""
    with ExitStack() as stack:

        def make(machines: int = 3, metadata: dict[str, dict[str, str]] | None = None) -> Cluster:
            folder = tmp_path_factory.mktemp("cluster")
            return stack.enter_context(running(folder, machines, metadata))

        yield make
