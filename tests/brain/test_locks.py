"""The reboot lock: behaviours L1 to L5 and L9 of the acceptance list, as pure decisions."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from brain import kv, locks, snapshot
from brain.locks import LockError, available, decide, dump, load
from brain.raft import Config
from brain.snapshot import Meta
from brain.store import LOCKS_PREFIX, Store, StoreError, prefix_end

GROUP = "default"
assert kv  # its commands (put, delete) are registered by the import


class Lock:
    """One group, driven through the store as a peer would."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.now = 0

    def _do(self, verb: str, **arguments: Any) -> dict[str, Any]:
        self.now += 1000
        result, _ = self.store.apply(self.now, ["lock", GROUP, verb, arguments])
        if isinstance(result, StoreError):
            raise result
        return dict(result)

    def acquire(self, machine: str, wait: bool = True) -> dict[str, Any]:
        """Ask for a slot."""
        return self._do("acquire", machine=machine, reason="update", boot_id=f"boot-{machine}", wait=wait)

    def release(self, machine: str, token: int = 0, force: bool = False) -> dict[str, Any]:
        """Give a slot back."""
        return self._do("release", machine=machine, token=token, force=force)

    def set_max(self, number: Any) -> dict[str, Any]:
        """Change the number of slots."""
        return self._do("set_max", max_holders=number)

    def forget(self, machine: str) -> dict[str, Any]:
        """The machine is gone for good."""
        return self._do("forget", machine=machine)

    @property
    def state(self) -> dict[str, Any]:
        """The stored state."""
        item = self.store.live.get(LOCKS_PREFIX + GROUP.encode())
        return load(item.value if item is not None else None, GROUP)

    @property
    def holders(self) -> list[str]:
        """Who holds."""
        return sorted(self.state["holders"])

    @property
    def queue(self) -> list[str]:
        """Who waits, in order."""
        return [entry["machine"] for entry in self.state["queue"]]


@pytest.fixture
def lock() -> Lock:
    """A new group with one slot."""
    return Lock()


# -- L1: mutual exclusion --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_l1_never_more_holders_than_slots(seed: int) -> None:
    """Fifty machines at random, with changes of the maximum: no grant ever exceeds it.

    Also: tokens only grow, nobody holds and waits at once, and no slot is free while
    somebody waits for it.
    """
    rng = random.Random(seed)
    lock = Lock()
    machines = [f"m{n}" for n in range(50)]
    newest = 0
    for _ in range(400):
        before = lock.state
        machine = rng.choice(machines)
        fate = rng.random()
        if fate < 0.55:
            lock.acquire(machine, wait=rng.random() < 0.7)
        elif fate < 0.9:
            held = before["holders"].get(machine)
            lock.release(machine, held["token"] if held else 0)
        elif fate < 0.97:
            lock.set_max(rng.randint(0, 4))
        else:
            lock.forget(machine)
        after = lock.state
        granted = set(after["holders"]) - set(before["holders"])
        if granted:
            assert len(after["holders"]) <= after["max"]
            tokens = {after["holders"][name]["token"] for name in granted}
            assert min(tokens) > newest
            newest = max(tokens)
            assert newest == lock.store.revision
        assert len(lock.queue) == len(set(lock.queue))
        assert not set(lock.queue) & set(lock.holders)
        assert not (lock.queue and available(after) > 0)


# -- L2: idempotent --------------------------------------------------------------------------------


def test_l2_acquiring_twice_gives_the_same_token_and_no_revision(lock: Lock) -> None:
    """The holder may ask again, waiting or not, and nothing is written."""
    token = lock.acquire("a")["token"]
    revision = lock.store.revision
    assert token == revision
    for wait in (True, False):
        assert lock.acquire("a", wait) == {"granted": True, "token": token, "revision": revision}
    assert lock.store.revision == revision


def test_l2_waiting_twice_keeps_the_place(lock: Lock) -> None:
    """Asking again does not move one back or forward, and nothing is written."""
    for machine in ("a", "b", "c"):
        lock.acquire(machine)
    revision = lock.store.revision
    assert lock.acquire("b")["position"] == 1
    assert lock.acquire("c")["position"] == 2
    assert lock.queue == ["b", "c"]
    assert lock.store.revision == revision


def test_l2_a_release_by_a_non_holder_succeeds_and_changes_nothing(lock: Lock) -> None:
    """No error, no revision, the holder holds."""
    lock.acquire("a")
    before, revision = lock.state, lock.store.revision
    for machine in ("b", "", "nobody"):
        assert lock.release(machine, token=5)["released"] is False
    assert lock.state == before
    assert lock.store.revision == revision


# -- L3: the maximum -------------------------------------------------------------------------------


def test_l3_a_maximum_below_the_holders_takes_nothing_away(lock: Lock) -> None:
    """Three hold, max becomes 1: all keep, -2 are free, and a grant comes only when none holds."""
    lock.set_max(3)
    tokens = {machine: lock.acquire(machine)["token"] for machine in ("a", "b", "c")}
    lock.acquire("d")
    assert lock.set_max(1) == {"old_max": 3, "max": 1, "revision": lock.store.revision}
    assert lock.holders == ["a", "b", "c"]
    assert available(lock.state) == -2
    for machine, free in (("a", -1), ("b", 0)):
        lock.release(machine, tokens[machine])
        assert available(lock.state) == free
        assert "d" not in lock.holders
    lock.release("c", tokens["c"])
    assert lock.holders == ["d"]


def test_l3_a_maximum_of_zero_is_a_pause(lock: Lock) -> None:
    """Nobody is granted anything until it is raised; then those that waited come in order."""
    lock.set_max(0)
    assert lock.acquire("a")["granted"] is False
    assert lock.acquire("b")["position"] == 2
    lock.set_max(5)
    assert lock.holders == ["a", "b"]
    assert lock.queue == []


def test_l3_setting_the_same_maximum_writes_nothing(lock: Lock) -> None:
    """No revision for no change."""
    lock.set_max(2)
    revision = lock.store.revision
    assert lock.set_max(2) == {"old_max": 2, "max": 2, "revision": revision}
    assert lock.store.revision == revision


@pytest.mark.parametrize("number", [-1, locks.HOLDERS_MAX + 1, -(10**9), math.nan, math.inf, -math.inf])
def test_l3_a_maximum_out_of_range_is_refused(lock: Lock, number: float) -> None:
    """With the accepted range in the text; the group stays as it was."""
    lock.set_max(2)
    before = lock.state
    with pytest.raises(StoreError, match="max: a number from 0 to 1000") as caught:
        lock.set_max(number)
    assert caught.value.code == "lock_max"
    assert lock.state == before


@pytest.mark.parametrize("number", [1.5, 2.0, True, "2", None])
def test_l3_a_maximum_that_is_no_whole_number_is_refused(lock: Lock, number: Any) -> None:
    """Half a slot is none."""
    with pytest.raises(StoreError, match="max: a number from 0 to 1000"):
        lock.set_max(number)
    assert lock.state["max"] == 1


# -- L4, L5: what survives -------------------------------------------------------------------------


def test_l4_every_peer_decides_alike() -> None:
    """The same commands on two stores: the same holders, tokens, queue and hash."""
    one, two = Lock(), Lock()
    for lock in (one, two):
        lock.set_max(2)
        for machine in ("a", "b", "c", "d"):
            lock.acquire(machine)
        lock.release("a", force=True)
    assert one.state == two.state
    assert one.store.hash == two.store.hash


def test_l5_everything_survives_a_restart_from_a_snapshot(lock: Lock) -> None:
    """Holders, their tokens, maximum, queue and times; and the next decision is the same."""
    lock.set_max(2)
    for machine in ("a", "b", "c", "d"):
        lock.acquire(machine)
    data = snapshot.dump(Meta(9, 1, Config(frozenset({"m1"}))), lock.store)
    again = Lock(snapshot.load("snap", data)[1])
    again.now = lock.now
    assert again.state == lock.state
    token = lock.state["holders"]["a"]["token"]
    assert lock.release("a", token) == again.release("a", token)
    assert again.state == lock.state
    assert again.holders == ["b", "c"]


def test_l5_the_stored_form_is_stable() -> None:
    """Sorted, compact JSON: equal states are equal bytes."""
    state = {"group": "g", "max": 2, "queue": [], "holders": {"b": {"token": 2}, "a": {"token": 1}}}
    assert load(dump(state), "g") == {**state, "history": []}
    assert dump(state) == dump(dict(reversed(state.items())))
    assert load(None, "new") == {"group": "new", "max": 1, "holders": {}, "queue": [], "history": []}


def test_a_grant_says_who_why_and_since_when(lock: Lock) -> None:
    """What status and metrics are derived from."""
    token = lock.acquire("a")["token"]
    assert lock.state["holders"]["a"] == {
        "token": token, "boot_id": "boot-a", "reason": "update", "since_ms": 1000,
        "deadline_s": locks.DEADLINE_S, "phase": "held", "by": "",
    }  # fmt: skip
    lock.acquire("b")
    lock.release("a", token)
    assert lock.state["holders"]["b"]["since_ms"] == 3000, "since the grant, not since it waited"


# -- the fencing token -----------------------------------------------------------------------------


def test_a_stale_holder_is_fenced(lock: Lock) -> None:
    """Its lock was taken by force, the next holds: its own release with the old token is refused."""
    old = lock.acquire("a")["token"]
    lock.release("a", force=True)
    lock.acquire("b")
    new = lock.acquire("a")
    assert new["granted"] is False
    lock.release("b", force=True)
    assert lock.holders == ["a"]
    with pytest.raises(StoreError, match=rf"a holds this lock with token \d+, not {old}") as caught:
        lock.release("a", old)
    assert caught.value.code == "lock_token"
    assert lock.holders == ["a"]


def test_a_token_grows_with_every_grant(lock: Lock) -> None:
    """It is the revision of the grant, so later grants have larger ones, over all groups."""
    tokens = []
    for _ in range(5):
        tokens.append(lock.acquire("a")["token"])
        lock.release("a", tokens[-1])
    assert tokens == sorted(set(tokens))
    other, _ = lock.store.apply(0, ["lock", "other", "acquire",
                                    {"machine": "a", "reason": "", "boot_id": "", "wait": True}])  # fmt: skip
    assert other["token"] > tokens[-1]


# -- the queue -------------------------------------------------------------------------------------


def test_the_queue_is_first_come_first_served(lock: Lock) -> None:
    """Each release grants to the one that has waited longest, in the same revision."""
    order = ["a", "b", "c", "d"]
    lock.acquire("a")
    assert [lock.acquire(machine)["position"] for machine in order[1:]] == [1, 2, 3]
    for number, machine in enumerate(order):
        assert lock.holders == [machine]
        assert lock.queue == order[number + 1 :]
        revision = lock.store.revision
        lock.release(machine, lock.state["holders"][machine]["token"])
        assert lock.store.revision == revision + 1
        if number + 1 < len(order):
            assert lock.state["holders"][order[number + 1]]["token"] == revision + 1


def test_whoever_does_not_wait_does_not_queue(lock: Lock) -> None:
    """The refusal says who holds, and nothing is written."""
    lock.acquire("a")
    revision = lock.store.revision
    assert lock.acquire("b", wait=False) == {
        "granted": False, "position": 0, "holders": ["a"], "revision": revision,
    }  # fmt: skip
    assert lock.queue == []


def test_nobody_jumps_the_queue() -> None:
    """A free slot with somebody waiting for it, as after a repair by hand, is not for the next comer."""
    state = {
        "group": GROUP,
        "max": 1,
        "holders": {},
        "queue": [{"machine": "first", "reason": "", "boot_id": "", "since_ms": 0}],
    }
    asked = {"reason": "", "boot_id": "", "wait": False}
    changed, result = decide(state, "acquire", {"machine": "late", **asked}, 9, 0)
    assert (changed, result["granted"]) == (None, False)
    changed, result = decide(state, "acquire", {"machine": "first", **asked}, 9, 0)
    assert result == {"granted": True, "token": 9}
    assert changed is not None
    assert changed["queue"] == []


def test_whoever_waits_may_give_up(lock: Lock) -> None:
    """A release by a waiting machine takes it out of the queue; it held nothing."""
    for machine in ("a", "b", "c"):
        lock.acquire(machine)
    assert lock.release("b")["released"] is False
    assert lock.queue == ["c"]
    assert lock.holders == ["a"]


def test_l9_a_forgotten_machine_holds_and_awaits_nothing(lock: Lock) -> None:
    """Its slot goes to the next in the same revision; forgetting twice writes nothing."""
    for machine in ("a", "b", "c"):
        lock.acquire(machine)
    assert lock.forget("a")["released"] is True
    assert lock.holders == ["b"]
    assert lock.forget("c")["released"] is True
    assert lock.queue == []
    revision = lock.store.revision
    assert lock.forget("a")["released"] is False
    assert lock.store.revision == revision


def test_the_queue_is_bounded(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused by the limit's name; those that wait may ask again."""
    monkeypatch.setattr(locks, "QUEUE_MAX", 2)
    for machine in ("a", "b", "c"):
        lock.acquire(machine)
    with pytest.raises(StoreError, match="queue_max: 2 machines") as caught:
        lock.acquire("d")
    assert caught.value.code == "lock_queue"
    assert lock.acquire("c")["position"] == 2


def test_groups_do_not_know_each_other(lock: Lock) -> None:
    """One slot each: two machines hold at once, in two groups."""
    lock.acquire("a")
    arguments = {"machine": "b", "reason": "", "boot_id": "", "wait": False}
    result, _ = lock.store.apply(0, ["lock", "controllers", "acquire", arguments])
    assert result["granted"] is True
    assert lock.acquire("b", wait=False)["granted"] is False


@pytest.mark.parametrize("group", ["default", "a", "A-1.b", "x" * 64])
def test_legal_groups(group: str) -> None:
    """Letters, digits, dots and dashes."""
    locks.check_group(group)


@pytest.mark.parametrize("group", ["", "x" * 65, "a/b", "a b", "ä", "a_b", "../etc"])
def test_illegal_groups_are_refused(lock: Lock, group: str) -> None:
    """With the accepted form in the text, and nothing is written."""
    with pytest.raises(LockError, match="letters, digits"):
        locks.check_group(group)
    result, events = lock.store.apply(0, ["lock", group, "set_max", {"max_holders": 2}])
    assert isinstance(result, StoreError)
    assert result.code == "lock_group"
    assert events == []


def test_a_group_does_not_end_in_a_newline() -> None:
    """It would be a group of its own that looks like another."""
    with pytest.raises(LockError):
        locks.check_group("default\n")


def test_a_lock_needs_a_machine_and_a_known_verb(lock: Lock) -> None:
    """Refused by code."""
    with pytest.raises(StoreError, match="needs the name") as caught:
        lock.acquire("")
    assert caught.value.code == "lock_machine"
    result, _ = lock.store.apply(0, ["lock", GROUP, "steal", {}])
    assert isinstance(result, StoreError)
    assert result.code == "lock_verb"


# -- the quorum, and locksmith's own record ------------------------------------------------------------


VOTERS = ["m1", "m2", "m3", "m4", "m5"]


def ask(lock: Lock, verb: str, **more: Any) -> dict[str, Any]:
    given = {"acquire": {"reason": "r", "boot_id": "b", "wait": True}, "release": {"token": 0, "force": True}}.get(verb, {})
    return lock._do(verb, **{**given, **more, "voters": VOTERS})


def alive(lock: Lock, *names: str) -> None:
    prefix = b"/_argosy/alive/"
    for key, _ in lock.store.range(prefix, prefix_end(prefix)):
        lock.store.apply(lock.now, ["delete", key])
    for name in names:
        lock.store.apply(lock.now, ["put", prefix + f"id-{name}".encode(), json.dumps({"name": name}).encode()])


def test_l17_a_grant_never_costs_the_quorum(lock: Lock) -> None:
    """Holders and machines that are down count; others may go meanwhile, and a return lets the next go."""
    lock.set_max(5)
    alive(lock, *VOTERS)
    assert ask(lock, "acquire", machine="m1")["granted"] and ask(lock, "acquire", machine="m2")["granted"]
    refused = ask(lock, "acquire", machine="m3")
    assert not refused["granted"] and refused["quorum"] == "quorum: 3 of 5 voters must stay up; with m1, m2, m3 down there are 2"
    assert ask(lock, "acquire", machine="agent")["granted"], "it does not vote"
    assert ask(lock, "release", machine="m1")["released"] and lock.holders == ["agent", "m2", "m3"]
    alive(lock, "m1", "m2", "m3", "m4")
    assert not ask(lock, "acquire", machine="m1")["granted"]
    ask(lock, "release", machine="m3")
    assert lock.holders == ["agent", "m2"] and lock.queue == ["m1"], "m5 is down"
    assert ask(lock, "look") == {"changed": False, "revision": lock.store.revision}
    alive(lock, *VOTERS)
    assert ask(lock, "look")["changed"] and lock.holders == ["agent", "m1", "m2"]
    assert [row["event"] for row in lock.state["history"]][-3:] == ["granted", "released", "granted"]


def test_holders_of_other_groups_count_for_the_quorum(lock: Lock) -> None:
    """A group is a label; the brain is one."""
    alive(lock, "m1", "m2", "m3")
    voters = ["m1", "m2", "m3"]
    wanted = {"reason": "", "boot_id": "", "wait": False, "voters": voters}
    first, _ = lock.store.apply(1, ["lock", "web", "acquire", {"machine": "m1", **wanted}])
    second, _ = lock.store.apply(2, ["lock", "db", "acquire", {"machine": "m2", **wanted}])
    assert first["granted"] and not second["granted"] and "with m1, m2 down" in second["quorum"]


def test_waiters_of_machines_that_are_gone_leave_the_queue(lock: Lock) -> None:
    """Nobody waits behind the dead."""
    alive(lock, "m1", "m2")
    ask(lock, "acquire", machine="a", via="m1")
    ask(lock, "acquire", machine="b", via="m3")
    ask(lock, "acquire", machine="c", via="m2")
    assert lock.queue == ["b", "c"]
    ask(lock, "look")
    assert lock.queue == ["c"]


SEMAPHORE = b"/coreos.com/updateengine/rebootlock/semaphore"


def test_locksmith_sees_and_changes_the_same_lock(lock: Lock) -> None:
    """What it writes counts at the next decision, though nobody here saw it before."""

    def record() -> dict[str, Any]:
        return dict(json.loads(lock.store.live[SEMAPHORE].value))

    def write(**value: Any) -> None:
        lock.store.apply(lock.now, ["put", SEMAPHORE, json.dumps(value).encode()])

    alive(lock, *VOTERS)
    token = lock.acquire("m1")["token"]
    assert record() == {"semaphore": 0, "max": 1, "holders": ["m1"]}
    lock.set_max(2)
    write(semaphore=0, max=2, holders=["m1", "smith"])
    assert not lock.acquire("m2")["granted"] and lock.holders == ["m1", "smith"]
    write(semaphore=1, max=2, holders=["smith"])  # locksmithctl unlock m1
    assert lock.acquire("m3", wait=False)["granted"] is False, "m2 waits longer"
    ask(lock, "look")
    assert lock.holders == ["m2", "smith"] and record()["holders"] == ["m2", "smith"]
    assert not lock.release("m1", token)["released"], "locksmith did that already"
    for nonsense in ({"max": "x", "holders": ["y"]}, {"holders": [7], "max": 1}, {"max": 1}):
        lock.store.apply(lock.now, ["put", SEMAPHORE, json.dumps(nonsense).encode()])
        ask(lock, "look")
        assert lock.holders == ["m2", "smith"]
    assert {row["by"] for row in lock.state["history"] if row["machine"] == "smith"} == {"locksmith"}


def test_phases_are_the_holders_own(lock: Lock) -> None:
    """With its token; each gives it more time."""
    token = lock.acquire("m1")["token"]
    with pytest.raises(StoreError, match="with token 0"):
        lock._do("phase", machine="m1", token=0, phase="rebooting", deadline_s=60)
    lock.now += 100_000
    lock._do("phase", machine="m1", token=token, phase="rebooting", deadline_s=60)
    assert lock.state["holders"]["m1"]["phase"] == "rebooting"
    assert 160 <= lock.state["holders"]["m1"]["deadline_s"] <= 162


def test_fleet_lock_gives_back_what_it_took_and_nothing_else(lock: Lock) -> None:
    """It has no tokens; also one that waited, and was let go by it, is not its own."""
    token = lock.acquire("m1")["token"]
    assert not lock._do("release", machine="m1", token=0, force=True, by=locks.FLEET_LOCK)["released"]
    assert lock.holders == ["m1"] and lock.release("m1", token)["released"]
    lock._do("acquire", machine="zincati", reason="", boot_id="", wait=False, by=locks.FLEET_LOCK)
    lock._do("acquire", machine="m2", reason="update", boot_id="", wait=True, by="updater")
    assert lock._do("release", machine="zincati", token=0, force=True, by=locks.FLEET_LOCK)["released"]
    assert lock.holders == ["m2"]
    assert not lock._do("release", machine="m2", token=0, force=True, by=locks.FLEET_LOCK)["released"]
    lock._do("acquire", machine="m3", reason="", boot_id="", wait=True, by="operator")
    lock._do("acquire", machine="z2", reason="", boot_id="", wait=True, by=locks.FLEET_LOCK)
    for machine in ("m3", "z2"):
        lock._do("release", machine=machine, token=0, force=True, by=locks.FLEET_LOCK)
    assert [entry["machine"] for entry in lock.state["queue"]] == ["m3"], "nor is the wish of an operator"
