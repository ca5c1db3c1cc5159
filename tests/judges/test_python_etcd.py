"""python-etcd's integration tests: a client of the v2 API, clusters of three, members that are killed."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from ..waiting import wait_until
from . import environment, suite

SUITE = "etcd.tests.integration.test_simple"
TESTS = 17
#: The suite has them in its text.
PORTS = (6001, 6002, 6003, 8001, 8002, 8003)


def _ports_are_free() -> bool:
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    return True


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the suite calls assertEquals, which Python 3.12 removed"
)
def test_python_etcd_cannot_tell_us_from_etcd(tmp_path: Path) -> None:
    """All seventeen, unchanged."""
    variables = environment.variables(tmp_path)
    wait_until(f"ports {PORTS}, which the suite insists on, to be free", _ports_are_free)
    try:
        verdict = suite.run(SUITE, tmp_path, variables)
    finally:
        shutil.rmtree(tmp_path / "tmp", ignore_errors=True)
    suite.assert_all_passed(verdict, TESTS)
