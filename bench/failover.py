"""The leader is killed: how long until a follower's door acknowledges a write again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from .lab import Lab, median
from .table import Row
from .waiting import OverdueError

#: Seconds between attempts, each on a connection of its own, and the most to wait.
_ATTEMPT_S, _PATIENCE_S = 0.01, 30.0
_GOAL = 0.5


async def _put(url: str, number: int) -> bool:
    """One write; whether it was acknowledged."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        body = f"value={number}".encode()
        writer.write(
            b"PUT /v2/keys/failover HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        status = (await reader.readline()).split(b" ", 2)
        return len(status) > 1 and status[1] in (b"200", b"201")
    finally:
        writer.close()


async def _first_write(url: str, kill: Callable[[], None]) -> float:
    """Kill, then try again and again without waiting for earlier tries; seconds to the first yes."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    tasks: set[asyncio.Task[None]] = set()

    async def attempt(number: int) -> None:
        try:
            acknowledged = await _put(url, number)
        except OSError:
            return
        if acknowledged and not done.done():
            done.set_result(time.perf_counter())

    await asyncio.to_thread(kill)
    begun = time.perf_counter()
    number = 0
    while not done.done():
        if time.perf_counter() - begun > _PATIENCE_S:
            raise OverdueError(f"a write after the leader's death: not within {_PATIENCE_S:g} s")
        number += 1
        task = asyncio.create_task(attempt(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(_ATTEMPT_S)
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return done.result() - begun


def _argosy_once(lab: Lab) -> float:
    cluster = lab.argosy
    cluster.await_whole()
    leader = cluster.leader()
    taken = asyncio.run(_first_write(cluster.url((leader + 1) % 3), lambda: cluster.kill_host(leader)))
    cluster.boot(leader)
    cluster.await_whole()
    return taken


def _etcd_once(lab: Lab) -> float:
    cluster = lab.etcd
    cluster.await_whole()
    leader = cluster.leader()
    assert leader is not None
    taken = asyncio.run(_first_write(cluster.url((leader + 1) % 3), lambda: cluster.kill(leader)))
    cluster.boot(leader)
    cluster.await_whole()
    return taken


def failover(lab: Lab) -> list[Row]:
    """SIGKILL to the leader, again and again, in turn with etcd at its defaults."""
    lab.need("etcd")
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(lab.effort.kills):
        ours.append(_argosy_once(lab))
        theirs.append(_etcd_once(lab))
    ratio = median(ours) / median(theirs)
    return [
        Row(
            "leader SIGKILL -> first acknowledged write at a follower",
            f"{median(ours):.2f} s (max {max(ours):.2f})",
            f"etcd {median(theirs):.2f} s (max {max(theirs):.2f})",
            f"{ratio:.2f}x", f"<= {_GOAL:g}x", ratio <= _GOAL,
            data={"argosy_s": ours, "etcd_s": theirs},
        )
    ]  # fmt: skip
