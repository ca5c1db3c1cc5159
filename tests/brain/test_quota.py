"""A store that is full refuses to grow, and recovers as soon as something is deleted."""

from __future__ import annotations

import dataclasses
from typing import Any

from actors.raft_messages import Propose

from .peers import Cluster


def test_the_quota_refuses_growth_and_clears_itself() -> None:
    """Deleting passes; history goes by itself when it alone keeps the store over its quota."""
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        [leader] = [name for name in "abc" if cluster.leads(name)]
        peers: list[Any] = [cluster.ref(name)._mailbox.actor for name in "abc"]  # type: ignore[union-attr] # noqa: SLF001
        for peer in peers:
            peer.settings = dataclasses.replace(peer.settings, quota_bytes=10_000)

        def ask(command: list[Any], bounded: bool = True) -> Any:
            future = cluster.ref(leader).ask(Propose(command, 5.0, bounded=bounded), block=False)
            cluster.world.run(1)
            return getattr(future.error, "code", None)

        assert ask(["put", b"k", bytes(9_000), 0]) is None
        assert ask(["put", b"x", bytes(2_000), 0]) is None, "what begins below the quota passes"
        assert ask(["put", b"y", b"", 0]) == "no_space"
        assert ask(["put", b"/_argosy/own", b"", 0], bounded=False) is None, "Argosy's own writes pass"
        assert ask(["delete", b"k"], bounded=False) is None
        cluster.world.run(1)
        assert peers[0].store.size < 10_000
        assert ask(["put", b"y", b"", 0]) is None
        assert len({peer.store.compacted for peer in peers}) == 1
