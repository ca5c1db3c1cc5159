"""Faults under load: whatever happens to members, nothing acknowledged is lost and no read is stale.

Every test has members of its own and clients that keep a history (see ``load.py``).  What is
promised under each fault stands in the test's first line.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from .cluster import wait_until
from .load import SOON_S, Load, Members, b64, exchange, members_up, prefix

#: Clients of the tests that hurt members.
CLIENTS = 6


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose name is short: it is the cluster's token as well."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def members(folder: Path) -> Iterator[Members]:
    """Three members."""
    with members_up(folder) as made:
        yield made
        made.assert_unbroken()


# -- members that end, stand still, and are replaced ---------------------------------------------


def test_rolling_restart_under_load(members: Members) -> None:
    """Each member is told to end, and started again: no write is lost, and no pause is long."""
    with Load(members) as load:
        load.await_more(50)
        for number in range(3):
            assert members.stop(number) == 0, members.log(number)[-2000:]
            load.await_more(30)
            members.start(number)
            members.await_up(number)
            members.leader()
            load.await_more(30)
    load.judge()
    # leadership is handed over before the end, so nobody waits for an election
    assert load.longest_pause() < 3.0, str(load)


def test_leader_is_killed_three_times_under_load(members: Members) -> None:
    """SIGKILL to whoever leads, again and again."""
    with Load(members) as load:
        load.await_more(50)
        for _ in range(3):
            leader = members.leader()
            members.kill(leader)
            load.await_more(30)
            members.start(leader)
            members.await_up(leader)
            load.await_more(30)
    load.judge()
    assert load.longest_pause() < 6.0, str(load)


def test_leader_is_killed_and_stays_away_longer_than_its_successor(members: Members) -> None:
    """The whole cluster is killed at once under load: what was acknowledged was on the disks."""
    with Load(members) as load:
        load.await_more(150)
        members.kill_all()
        for number in range(3):
            members.start(number)
        for number in range(3):
            members.await_up(number)
        load.await_more(50)
    load.judge()


class _Asker:
    """One read in a thread of its own, asked while nobody can answer it."""

    def __init__(self, members: Members, number: int, target: str, body: bytes | None, seconds: float) -> None:
        self.status = 0
        self.text = ""
        self.returned = 0.0
        self._members = members
        self._asked = (number, "GET" if body is None else "POST", target, body, seconds)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            answer = self._members.call(*self._asked)
        except OSError as error:
            self.text = repr(error)
        else:
            self.status, self.text = answer.status, answer.text
        self.returned = time.monotonic()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(20)
        assert not self._thread.is_alive()

    def value(self) -> str | None:
        """What was read; None for no answer."""
        if self.status != 200:
            return None
        found = json.loads(self.text)
        if "node" in found:
            return found["node"]["value"]  # type: ignore[no-any-return]
        return _decoded(found["kvs"][0]["value"])


def _decoded(text: str) -> str:
    import base64

    return base64.b64decode(text).decode()


def _reads(members: Members, number: int, key: str, count: int, seconds: float) -> list[_Asker]:
    """Linearizable reads of a key through one member, half of each door."""
    body = json.dumps({"key": b64(key)}).encode()
    out = []
    for n in range(count):
        if n % 2:
            out.append(_Asker(members, number, f"/v2/keys{key}?quorum=true", None, seconds))
        else:
            out.append(_Asker(members, number, "/v3/kv/range", body, seconds))
    return out


def test_leader_stands_still_for_five_seconds(members: Members) -> None:
    """Nothing that is asked of it meanwhile, or right after it wakes, is answered from the past."""
    key = "/still"
    leader = members.leader()
    others = [n for n in range(3) if n != leader]
    assert members.put(leader, key, "before").status == 201
    with Load(members, seconds=9.0, clients=8) as load:
        load.await_more(50)
        members.pause(leader)
        asleep = time.monotonic()
        load.doors = others  # those that asked the leader already wait for it
        wait_until("a leader elsewhere", lambda: members.leader(others) in others, SOON_S)
        assert wait_until("a write", lambda: members.put(others[0], key, "after")).status == 200
        load.await_more(50)
        early = _reads(members, leader, key, 20, 15.0)  # they lie in its sockets when it wakes
        load.doors = [leader, *others]
        time.sleep(max(0.0, asleep + 5.0 - time.monotonic()))
        members.resume(leader)
        woken = time.monotonic()
        late: list[_Asker] = []
        while time.monotonic() < woken + 0.5:
            late += _reads(members, leader, key, 2, 9.0)
            time.sleep(0.02)
        for asker in early + late:
            asker.join()
        load.await_more(30)
    seen = [asker.value() for asker in early + late]
    assert "before" not in seen, [(a.text, a.returned - woken) for a in early + late if a.value() == "before"][:3]
    assert seen.count("after") >= 10, [asker.text for asker in early + late][:10]
    members.leader()
    load.judge()


def test_members_are_replaced_under_load(folder: Path) -> None:
    """Three new members come and the three old ones go, the leader among them."""
    with members_up(folder, spare=3) as members, Load(members) as load:
        load.await_more(50)
        current = [0, 1, 2]
        for new in (3, 4, 5):
            leads = members.leader(current)
            old = leads if new == 4 and leads < 3 else min(current)
            assert old < 3
            _add(members, current[-1], new, current)
            current.append(new)
            load.doors = list(current)
            load.await_more(20)
            _remove(members, next(n for n in current if n != old), old)
            load.await_more(20)  # the one that was removed still answers, or says why not
            current.remove(old)
            load.doors = list(current)
            members.stop(old)
            members.leader(current)
            load.await_more(20)
        assert current == [3, 4, 5]
        load.stopping.set()
        voters = {members.id_of(n) for n in current}
        assert all(set(members.voters(n)) == voters for n in current)
        load.__exit__()
        load.judge()
        members.assert_unbroken()


def _add(members: Members, door: int, new: int, beside: list[int]) -> None:
    """A member that votes."""
    url = f"http://127.0.0.1:{members.peer_ports[new]}"
    body = json.dumps({"peerURLs": [url]}).encode()

    def added() -> bool:
        answer = members.call(door, "POST", "/v2/members", body)
        assert answer.status in (201, 409), answer.text  # 409: an earlier attempt did it
        return True

    wait_until("the member to be added", added)
    members.start(new, beside)
    wait_until(
        f"member {new} to vote (see {members.folder})",
        lambda: url in members.voters(door).values(), SOON_S,
    )  # fmt: skip
    members.await_up(new)
    members.id_of(new)


def _remove(members: Members, door: int, old: int) -> None:
    """A member that is no member any more."""
    ident = f"{int(members.id_of(old)):x}"

    def removed() -> bool:
        answer = members.call(door, "DELETE", f"/v2/members/{ident}")
        return answer.status in (204, 404, 410)

    wait_until(f"member {old} to be removed", removed)
