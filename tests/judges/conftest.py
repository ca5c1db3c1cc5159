"""Fixtures of the tests that set our ``etcd`` beside Debian's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from . import environment, suite
from .python_etcd import SUITE, TEST, ports_are_free
from .servers import _nothing_is_left, pair


@pytest.fixture(scope="session", autouse=True)
def python_etcd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[suite.Verdict] | None]:
    """The verdict of python-etcd's suite, which mostly waits: it runs beside the other judges, if it is to run at all."""
    if not any(item.name == TEST for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("python-etcd")

    def play() -> suite.Verdict:
        try:
            ports_are_free()
            return suite.run(SUITE, folder, environment.variables(folder))
        finally:
            shutil.rmtree(folder / "tmp", ignore_errors=True)

    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(play)


__all__ = ["_nothing_is_left", "pair"]
