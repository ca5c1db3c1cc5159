"""A store that is not what was decided serves nobody."""

from __future__ import annotations

from typing import Any

import pytest

from actors.comparison import COMPARE_S
from actors.raft_messages import Propose, Query

from .peers import Cluster


def peer_of(cluster: Cluster, name: str) -> Any:
    """The actor itself."""
    return cluster.ref(name)._mailbox.actor  # type: ignore[union-attr] # noqa: SLF001


@pytest.mark.parametrize("odd", ["follower", "leader"])
def test_the_peer_whose_store_differs_is_put_to_rest(odd: str) -> None:
    """The majority goes on, also when the odd one leads; it says why, and refuses."""
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        [leader] = [name for name in "abc" if cluster.leads(name)]
        victim = leader if odd == "leader" else next(name for name in "abc" if name != leader)
        for number in range(5):
            cluster.ref(leader).ask(Propose(["put", b"k", b"%d" % number, 0], 5.0), block=False)
        cluster.world.run(COMPARE_S * 2)
        assert [peer_of(cluster, name).quarantine for name in "abc"] == [""] * 3, "nothing differs yet"
        assert peer_of(cluster, leader).comparison.done
        store = peer_of(cluster, victim).store
        store.live[b"k"] = store.live[b"k"]._replace(value=b"flipped")
        store.hash ^= 1 << 7  # as if that had been so when it was hashed
        cluster.ref(leader).ask(Propose(["put", b"other", b"", 0], 5.0), block=False)
        cluster.world.run(COMPARE_S * 2 + 3)
        assert peer_of(cluster, victim).quarantine
        others = [name for name in "abc" if name != victim]
        assert [peer_of(cluster, name).quarantine for name in others] == [""] * 2
        cluster.until(lambda: any(cluster.leads(name) for name in others), "nobody else leads")
        read = cluster.ref(victim).ask(Query(lambda store: store.revision), block=False)
        write = cluster.ref(victim).ask(Propose(["put", b"k", b"", 0], 5.0), block=False)
        good = cluster.ref(others[0]).ask(Propose(["put", b"k", b"", 0], 5.0), block=False)
        cluster.world.run(2)
        assert getattr(read.error, "code", "") == getattr(write.error, "code", "") == "corrupt"
        assert good.error is None
