"""Free TCP ports on loopback, below the range that the kernel hands out by itself."""

from __future__ import annotations

import random
import socket

from cli.local import HTTP, TRANSPORT

#: Where to look; outgoing connections get their ports above it.
_LOWEST, _HIGHEST = 8_000, 32_000


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """So many ports, next to each other."""
    for _ in range(1000):
        first = random.randrange(_LOWEST, _HIGHEST - count)
        ports = list(range(first, first + count))
        if all(map(_is_free, ports)):
            return ports
    raise OSError("no free ports on loopback")


def free_offset(machines: int) -> int:
    """A ``--port-offset`` whose ports are all free."""
    for _ in range(1000):
        offset = random.randrange(_LOWEST - HTTP, _HIGHEST - TRANSPORT - machines)
        wanted = [base + offset + n for base in (HTTP, TRANSPORT) for n in range(1, machines + 1)]
        if all(map(_is_free, wanted)):
            return offset
    raise OSError("no free ports on loopback")
