"""A command that peers could not read must not get into the log: all of them would apply it."""

from __future__ import annotations

from typing import Any

import pytest

from actors.raft_messages import Propose

from .peers import Cluster

UNREADABLE: dict[str, list[Any]] = {
    "a number above 64 bits": ["put", b"k", b"v", 2**70],
    "an index above 64 bits": ["v2_cas", "/k", b"", None, None, 10**30, False],
    "a number as a key": ["lock", "g", "acquire", {1: 2}],
    "a set": ["put", b"k", {1, 2}],
    "too deep": ["put", b"k", [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]],
}


@pytest.mark.parametrize("command", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_command_is_refused_and_no_peer_fails(command: list[Any]) -> None:
    """The asker hears it at once, and the next write goes through."""
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        [leader] = [name for name in "abc" if cluster.leads(name)]
        bad = cluster.ref(leader).ask(Propose(command, 2.0), block=False)
        cluster.world.run(1)
        assert bad.error is not None
        assert [cluster.ref(name)._mailbox.restarts for name in "abc"] == [0, 0, 0]  # noqa: SLF001
        good = cluster.ref(leader).ask(Propose(["put", b"k", b"good"], 2.0), block=False)
        cluster.world.run(1)
        assert good.error is None
        assert [cluster.value(name) for name in "abc"] == [[b"good"]] * 3


def test_a_malformed_command_is_refused_and_no_peer_fails() -> None:
    """Readable, and still not what the command takes: refused when it is applied, by all alike."""
    cluster = Cluster("abc")
    with cluster.world:
        cluster.until(lambda: any(cluster.leads(name) for name in "abc"), "no leader")
        [leader] = [name for name in "abc" if cluster.leads(name)]
        for command in (["put", b"k"], ["put", 1, 2], ["nonsense"], ["compact", "now"]):
            bad = cluster.ref(leader).ask(Propose(command, 2.0), block=False)
            cluster.world.run(0.5)
            assert bad.error is not None
        assert [cluster.ref(name)._mailbox.restarts for name in "abc"] == [0, 0, 0]  # noqa: SLF001
