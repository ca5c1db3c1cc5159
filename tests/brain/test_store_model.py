"""The store against a naive model: complete copies of the state at every revision."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from brain import kv  # noqa: F401 - registers its commands
from brain.store import Item, Store, StoreError

KEYS = [b"/a", b"/a/b", b"/a/c", b"/b", b"k", b"k\x00", b"\xff"]
keys = st.sampled_from(KEYS)
ends = st.none() | st.sampled_from([b"", *KEYS, b"/b0", b"z"])
values = st.binary(max_size=3)
leases = st.sampled_from([0, 1, 2, 3])

Items = dict[bytes, Item]


class StoreAgainstModel(RuleBasedStateMachine):
    """Every command is applied to both; any past revision must read the same in both."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.now: Items = {}
        self.past: dict[int, Items] = {1: {}}
        self.held: set[int] = set()
        self.compacted = 0

    @initialize()
    def grant(self) -> None:
        """Lease 3 never exists."""
        for lease in (1, 2):
            self.store.apply(0, ["lease_grant", lease, 5000])
            self.held.add(lease)

    # -- the model's own idea of the rules --------------------------------------------------

    def _put(self, items: Items, key: bytes, value: bytes, lease: int, revision: int) -> None:
        old = items.get(key)
        create, version = (old.create, old.version + 1) if old else (revision, 1)
        items[key] = Item(value, create, revision, version, lease, 0)

    @staticmethod
    def _in(key: bytes, low: bytes, end: bytes | None) -> bool:
        return key == low if end is None else low <= key and (not end or key < end)

    def _advance(self, items: Items) -> None:
        if items != self.now:
            self.now = items
            self.past[max(self.past) + 1] = items

    # -- commands -------------------------------------------------------------------------------

    @rule(key=keys, value=values, lease=leases)
    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """One key."""
        result, events = self.store.apply(0, ["put", key, value, lease])
        if lease and lease not in self.held:
            assert isinstance(result, StoreError)
            return
        items = dict(self.now)
        self._put(items, key, value, lease, max(self.past) + 1)
        assert result["prev"] == self.now.get(key)
        self._advance(items)
        assert [event.revision for event in events] == [max(self.past)]

    @rule(key=keys, end=ends)
    def delete(self, key: bytes, end: bytes | None) -> None:
        """A key or a range."""
        doomed = [k for k in self.now if self._in(k, key, end)]
        result, events = self.store.apply(0, ["delete", key, end])
        assert result["deleted"] == len(doomed)
        assert len(events) == bool(doomed)
        self._advance({k: item for k, item in self.now.items() if k not in doomed})

    @rule(key=keys, version=st.integers(0, 3), puts=st.dictionaries(keys, values, max_size=3), other=keys)
    def txn(self, key: bytes, version: int, puts: dict[bytes, bytes], other: bytes) -> None:
        """Several puts if a version is as expected, else a deletion."""
        steps = [["put", k, v] for k, v in puts.items()]
        result, events = self.store.apply(
            0, ["txn", [[key, "version", "=", version]], steps, [["delete", other]]]
        )
        held = (self.now[key].version if key in self.now else 0) == version
        assert result["succeeded"] is held
        items = dict(self.now)
        if held:
            for k, v in puts.items():
                self._put(items, k, v, 0, max(self.past) + 1)
        else:
            items.pop(other, None)
        assert len(events) == (items != self.now)
        self._advance(items)

    @rule(lease=st.sampled_from([1, 2]))
    def revoke(self, lease: int) -> None:
        """A lease with all its keys; it is granted again at once."""
        result, _ = self.store.apply(0, ["lease_revoke", [lease]])
        assert result["revoked"] == 1
        self._advance({k: item for k, item in self.now.items() if item.lease != lease})
        self.store.apply(0, ["lease_grant", lease, 5000])

    @rule(back=st.integers(-1, 8))
    def compact(self, back: int) -> None:
        """Forget the past up to some revisions ago."""
        revision = max(self.past) - back
        result, _ = self.store.apply(0, ["compact", revision])
        if back < 0:
            assert isinstance(result, StoreError)
        elif revision > self.compacted and len(self.past) > 1 and revision >= 2:
            self.compacted = revision

    # -- questions --------------------------------------------------------------------------------

    @rule(back=st.integers(-1, 12), key=keys, end=ends, limit=st.integers(0, 3))
    def read(self, back: int, key: bytes, end: bytes | None, limit: int) -> None:
        """Any range at any revision, retained or not."""
        revision = max(self.past) - back
        try:
            found: Any = self.store.range(key, end, max(revision, 1), limit)
        except StoreError as error:
            found = error.code
        if back < 0:
            assert found == "future_revision"
        elif max(revision, 1) < self.compacted:
            assert found == "compacted"
        else:
            items = self.past[max(revision, 1)]
            wanted = sorted((k, item) for k, item in items.items() if self._in(k, key, end))
            assert found == (wanted[:limit] if limit else wanted)

    @rule(back=st.integers(0, 10))
    def replay(self, back: int) -> None:
        """The events from a revision on lead from the state before it to the present one."""
        start = max(max(self.past) - back, 2)
        if start <= self.compacted:
            return
        items = dict(self.past[start - 1])
        for expected, event in enumerate(self.store.events_since(start), start):
            assert event.revision == expected
            for key, item, prev in event.changes:
                assert items.get(key) == prev
                if item is None:
                    del items[key]
                else:
                    items[key] = item
        assert items == self.now

    @invariant()
    def the_present_is_the_same(self) -> None:
        """Revision, keys, and which lease holds which key."""
        assert self.store.revision == max(self.past)
        assert dict(self.store.live) == self.now
        for lease in (1, 2):
            if lease in self.held:
                assert self.store.leases[lease].keys == {k for k, i in self.now.items() if i.lease == lease}


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
