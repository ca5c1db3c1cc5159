"""The watch hub: every watch gets its events once, in order, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain import (
    kv,  # noqa: F401 - registers the commands of keys
    tree,  # noqa: F401 - registers the commands of the v2 tree
)
from brain import watch as watch_module
from brain.store import Event, Store
from brain.watch import TooManyWatchesError, WatchHub, select


def events_of(*commands: Any) -> list[Event]:
    """The events that these commands make on a fresh store."""
    store = Store()
    out: list[Event] = []
    for now, command in enumerate(commands):
        out += store.apply(now * 1000, list(command))[1]
    return out


def revisions(hub: WatchHub, events: list[Event]) -> dict[int, list[int]]:
    """Which watch hears of which revisions."""
    return {watch: [event.revision for event in found] for watch, found in hub.match(events).items()}


PUTS = events_of(
    ["put", b"a", b"1"], ["put", b"b", b"1"], ["put", b"a", b"2"], ["delete", b"a", b"c"], ["put", b"c", b"1"]
)


def test_watches_on_one_key() -> None:
    """Several on the same key each get their own list; an unknown key gets nothing."""
    hub = WatchHub()
    for number, key in enumerate((b"a", b"a", b"b", b"nosuch")):
        hub.add(number, key, None)
    assert revisions(hub, PUTS) == {0: [2, 4, 5], 1: [2, 4, 5], 2: [3, 5]}


def test_watches_on_ranges() -> None:
    """Half open; an empty end is no bound; a prefix is a range."""
    hub = WatchHub()
    for number, (low, high) in enumerate([(b"a", b"b"), (b"b", b""), (b"", b""), (b"c", b"d"), (b"x", b"z")]):
        hub.add(number, low, high)
    assert revisions(hub, PUTS) == {0: [2, 4, 5], 1: [3, 5, 6], 2: [2, 3, 4, 5, 6], 3: [6]}


def test_an_event_that_matches_twice_comes_once() -> None:
    """One revision with several changes inside a range is one event."""
    hub = WatchHub()
    hub.add(1, b"a", b"z")
    found = hub.match(PUTS)[1]
    assert [event.revision for event in found] == [2, 3, 4, 5, 6]
    assert len(found[3].changes) == 2


def test_a_removed_watch_hears_nothing() -> None:
    """Removing twice, or what never was, is no harm, and nothing stays behind."""
    hub = WatchHub()
    hub.add(1, b"a", None)
    hub.add(2, b"a", None)
    hub.add(3, b"a", b"b")
    assert len(hub) == 3
    for watch in (1, 1, 3, 99):
        hub.remove(watch)
    assert revisions(hub, PUTS) == {2: [2, 4, 5]}
    hub.remove(2)
    assert len(hub) == 0
    assert hub._by_key == {}  # noqa: SLF001


def test_the_number_of_watches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit has a name, counts both kinds, and a removed one makes room."""
    monkeypatch.setattr(watch_module, "WATCHES_MAX", 2)
    hub = WatchHub()
    hub.add(1, b"a", None)
    hub.add(2, b"a", b"b")
    with pytest.raises(TooManyWatchesError, match="watches_max: this peer serves 2 watches"):
        hub.add(3, b"c", None)
    hub.remove(1)
    hub.add(3, b"c", None)


def test_select_keeps_the_changes_of_a_range() -> None:
    """A watcher sees its part of a revision."""
    [both] = [event for event in PUTS if len(event.changes) == 2]
    assert [c.key for c in select(both, b"a", None).changes] == [b"a"]
    assert [c.key for c in select(both, b"a", b"b").changes] == [b"a"]
    assert [c.key for c in select(both, b"b", b"").changes] == [b"b"]
    assert [c.key for c in select(both, b"a", b"c").changes] == [b"a", b"b"]
    assert select(both, b"x", None).changes == ()
    assert select(both, b"a", None).revision == both.revision


keys = st.sampled_from([b"/a", b"/a/b", b"/a/b/c", b"/ab", b"/b", b"x"])
ends = st.none() | st.sampled_from([b"", b"/a0", b"/b", b"/a/c", b"z"])


@given(
    st.lists(st.tuples(keys, ends), max_size=6),
    st.lists(st.lists(keys, min_size=1, max_size=3, unique=True), max_size=6),
)
@settings(max_examples=150)
def test_matching_agrees_with_the_plain_definition(
    watches: list[tuple[bytes, bytes | None]], writes: list[list[bytes]]
) -> None:
    """For any watches and any writes: exactly the events with a change in the range."""
    hub = WatchHub()
    for number, (key, end) in enumerate(watches):
        hub.add(number, key, end)
    events = events_of(*(["txn", [], [["put", key, b""] for key in write], []] for write in writes))
    wanted: dict[int, list[int]] = {}
    for number, (key, end) in enumerate(watches):
        seen = [event.revision for event in events if select(event, key, end).changes]
        if seen:
            wanted[number] = seen
    assert revisions(hub, events) == wanted


def test_the_end_of_a_directory_reaches_watches_on_above_and_below_it() -> None:
    """etcd v2: whoever watches inside a deleted tree hears of its deletion, empty or not."""
    for content in ([], [["v2_set", "/d/e/x", b"", None, False]]):
        deletion = events_of(["v2_set", "/d/e", b"", None, True], *content, ["v2_delete", "/d", False, True])[
            -1
        ]
        hub = WatchHub()
        watches: list[tuple[bytes, bytes | None, bool]] = [
            (b"/d", None, True), (b"/d/", b"/d0", True), (b"/", b"0", True), (b"/d/e", None, True),
            (b"/d/e/", b"/d/e0", True), (b"/d/e/x", None, True), (b"/d/other", None, True),
            (b"/dd", None, False), (b"/d-x", None, False), (b"/dd/", b"/dd0", False), (b"/c", b"/d", False),
            (b"/x/d", None, False),
        ]  # fmt: skip
        for number, (key, end, _) in enumerate(watches):
            hub.add(number, key, end)
        heard = hub.match([deletion])
        assert [number in heard for number in range(len(watches))] == [hit for *_, hit in watches]
        assert all(found == [deletion] for found in heard.values())
