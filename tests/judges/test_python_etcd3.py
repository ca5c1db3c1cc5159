"""python-etcd3's tests: a client of the v3 API over gRPC, pointed at one of three members.

It stops two of the three, which it finds by the names that it gives to members.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import environment, suite
from .servers import debian_program
from .test_etcd3gw import running

TESTS = 75
#: Tests that fail beside a real etcd 3.4 as well, or ask for what is no part of the API, and why.
LEFT_OUT = {
    "TestAlarms": "asks at etcd's default port, whatever it is told; and no alarm is raised by hand here",
    "test_compact": "asks at etcd's default port, whatever it is told",
    "test_user_pwd_auth": "needs a program that types, of a package that it does not name",
    "test_snapshot": "reads the snapshot as a file of bbolt, which ours is not",
}


@pytest.mark.timeout(300)
def test_python_etcd3_cannot_tell_us_from_etcd(tmp_path: Path) -> None:
    """All others, unchanged, and none of them skipped."""
    debian_program("etcdctl")
    home = environment.python_of_judges(environment.REQUIREMENTS_OF_V3).parent.parent
    (package,) = home.glob(f"lib/python*/site-packages/{environment.V3_SUITE}")
    (tmp_path / "tests").symlink_to(package)  # where it looks for certificates
    with running(tmp_path, environment.variables(tmp_path), stem="pifpaf", first=0) as members:
        variables = environment.variables(
            tmp_path, PYTHON_ETCD_HTTP_URL=members[0].client, TEST_ETCD_VERSION="v3.4.23", ETCDCTL_API="3"
        )
        verdict = suite.run(
            environment.V3_SUITE, tmp_path, variables, environment.REQUIREMENTS_OF_V3,
            "-p", "no:hypothesispytest", "-k", " and ".join(f"not {name}" for name in LEFT_OUT),
        )  # fmt: skip
    suite.assert_all_passed(verdict, TESTS)
