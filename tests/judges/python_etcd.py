"""What python-etcd's suite is, and what it insists on."""

from __future__ import annotations

import socket

from ..waiting import wait_until

SUITE = "etcd.tests.integration.test_simple"
TESTS = 17
TEST = "test_python_etcd_cannot_tell_us_from_etcd"
#: The suite has them in its text; clusters of other tests keep off them (``port_offset``).
PORTS = (6001, 6002, 6003, 8001, 8002, 8003)


def ports_are_free() -> None:
    """Wait until they are."""

    def free() -> bool:
        for port in PORTS:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        return True

    wait_until(f"ports {PORTS}, which the suite insists on, to be free", free)
