"""python-etcd's integration tests: a client of the v2 API, clusters of three, members that are killed."""

from __future__ import annotations

import sys
from concurrent.futures import Future

import pytest

from . import suite
from .python_etcd import TESTS


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="the suite calls assertEquals, which Python 3.12 removed"
)
def test_python_etcd_cannot_tell_us_from_etcd(python_etcd: Future[suite.Verdict]) -> None:
    """All seventeen, unchanged."""
    suite.assert_all_passed(python_etcd.result(), TESTS)
