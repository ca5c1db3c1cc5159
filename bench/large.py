"""Values of a megabyte, on clusters of their own: they leave gigabytes behind, in memory as well."""

from __future__ import annotations

import shutil
from contextlib import ExitStack

from .doors import PEER, compare, take_turns
from .hosts import ArgosyCluster
from .lab import Lab
from .peers import EtcdCluster
from .table import Row

#: Bytes of a value, different keys, and clients.
BYTES, KEYS, CLIENTS = 1_000_000, 8, 4


def large(lab: Lab) -> list[Row]:
    """PUT of 1 MB values by four clients at the leader."""
    lab.need("wrk", "etcd")
    folder = lab.folder / "large"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ours, theirs = ArgosyCluster(folder / "argosy"), EtcdCluster(folder / "etcd")
        for cluster in (ours, theirs):
            stack.callback(cluster.stop)
            cluster.start()
        leader = theirs.leader()
        assert leader is not None
        urls = {"argosy": ours.url(ours.leader()), PEER: theirs.url(leader)}
        loads = take_turns(
            lab, urls, "put.lua", CLIENTS, rounds=lab.effort.few, seconds=lab.effort.heavy_s, keys=KEYS,
            value_bytes=BYTES,
        )  # fmt: skip
    row = compare(f"v2 PUT 1 MB, c={CLIENTS}", loads, PEER, None)
    row.goal = "say it"
    return [row]
