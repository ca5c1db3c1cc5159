"""Faults under load: whatever happens to members, nothing acknowledged is lost and no read is stale.

Every test has members of its own and clients that keep a history (see ``load.py``).  What is
promised under each fault stands in the test's first line.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest

from brain import wal

from .cluster import wait_until
from .load import SOON_S, Load, Members, b64, exchange, members_up, prefix

#: A value that fills a log quickly.
LARGE = 100_000
#: Room on a small disk: a segment of the log, what else a member needs, and another segment.
DISK_MB, FILLER_MB = 48, 30


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


def test_all_are_killed_at_once_under_load(members: Members) -> None:
    """SIGKILL to every member in one moment: what was acknowledged is on the disks."""
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
        elected = time.monotonic()
        for number in others:
            assert members.put(number, key, "after").status == 200
        waited = time.monotonic() - elected
        load.await_more(50)
        early = _reads(members, leader, key, 20, 15.0)  # they lie in its sockets when it wakes
        load.doors = [leader, *others]
        wait_until("five seconds to pass", lambda: time.monotonic() >= asleep + 5.0)
        members.resume(leader)
        woken = time.monotonic()
        late: list[_Asker] = []

        def half_a_second_of_reads() -> bool:
            late.extend(_reads(members, leader, key, 2, 9.0))
            return time.monotonic() > woken + 0.5

        wait_until("half a second of reads", half_a_second_of_reads)
        for asker in early + late:
            asker.join()
        load.await_more(30)
    seen = [asker.value() for asker in early + late]
    assert "before" not in seen, [(a.text, a.returned - woken) for a in early + late if a.value() == "before"][:3]
    assert seen.count("after") >= 10, [asker.text for asker in early + late][:10]
    members.leader()
    load.judge()
    assert waited < 1.5, "a follower waited for the old leader's answer"


def test_members_are_replaced_under_load(folder: Path) -> None:
    """Three new members come and the three old ones go, the leader among them."""
    with members_up(folder, spare=3) as members, Load(members, seconds=1.5) as load:
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


def test_a_removed_member_knows_it(members: Members) -> None:
    """As etcd's, it ends and says why; or it refuses at once in words that say why."""
    leader = members.leader()
    old = (leader + 1) % 3
    assert members.put(leader, "/left", "1").status == 201
    _assert_reads(members, [old], "/left", "1")
    _remove(members, leader, old)
    assert members.put(leader, "/left", "2").status == 200

    def knows() -> bool:
        if members.processes[old].poll() is not None:
            return "removed" in members.log(old)
        return "removed" in members.put(old, "/left", "3", 1.0).text

    wait_until("the member to know that it was removed", knows, SOON_S)


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


# -- disks that are full -------------------------------------------------------------------------


class _Disks:
    """A small filesystem in memory for each member."""

    def __init__(self, folder: Path) -> None:
        self.folders = {n: folder / f"disk{n}" for n in range(3)}

    def mount(self, stack: ExitStack) -> None:
        """Mount them; skips where that is not permitted."""
        for place in self.folders.values():
            place.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "argosy-faults", str(place)]
            try:
                done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
            except OSError as error:
                pytest.skip(f"no small disk can be made: {error}")
            if done.returncode:
                pytest.skip(f"no small disk can be made: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", str(place)], check=True, timeout=10)

    def homes(self) -> dict[int, Path]:
        """The members' data directories."""
        return {n: place / "data" for n, place in self.folders.items()}

    def fill(self, number: int, megabytes: int = FILLER_MB) -> None:
        """Take room away, so that the next segment of the log finds none; or all that there is."""
        try:
            with (self.folders[number] / "filler").open("wb", buffering=0) as file:
                for _ in range(megabytes * 256):
                    file.write(bytes(4096))
        except OSError:
            assert megabytes > FILLER_MB

    def enlarge(self, number: int, megabytes: int) -> None:
        """A bigger disk."""
        words = ["mount", "-o", f"remount,size={megabytes}m", str(self.folders[number])]
        subprocess.run(words, check=True, timeout=10)

    def make_room(self, number: int) -> None:
        """Give it back."""
        (self.folders[number] / "filler").unlink()


class _Filler:
    """Writes of large values to a few keys, one after another, and what was said of them."""

    def __init__(self, members: Members, door: int) -> None:
        self._members = members
        self._door = door
        self._count = 0
        self.acknowledged: dict[str, int] = {}

    def write(self, seconds: float = 8.0) -> str:
        """One more write; an error's text, or nothing."""
        self._count += 1
        key = f"/fill/{self._count % 8}"
        try:
            answer = self._members.put(self._door, key, f"{self._count:08d}" + "x" * LARGE, seconds)
        except OSError as error:
            return repr(error)
        if answer.status not in (200, 201):
            return answer.text
        self.acknowledged[key] = self._count
        return ""

    def until(self, full: Callable[[], bool]) -> None:
        """Write until a disk is full."""
        for _ in range(600):
            self.write()
            if full():
                return
        raise AssertionError("60 MB were written, and no disk is full")

    def judge(self, door: int) -> None:
        """Every acknowledged value is there, or a later one whose fate was not known."""
        found = self._members.did(door, "kv/range", prefix("/fill/"), 15.0).get("kvs", [])
        there = {_decoded(kv["key"]): int(_decoded(kv["value"])[:8]) for kv in found}
        lost = {key: number for key, number in self.acknowledged.items() if there.get(key, 0) < number}
        assert not lost, f"member {door}: acknowledged and lost: {lost}, there is {there}"


@pytest.fixture
def disks(folder: Path) -> Iterator[_Disks]:
    """Three small disks, unmounted in every case."""
    made = _Disks(folder)
    with ExitStack() as stack:
        made.mount(stack)
        yield made


@pytest.fixture
def cramped(folder: Path, disks: _Disks) -> Iterator[Members]:
    """Three members on small disks."""
    with members_up(folder, homes=disks.homes()) as made:
        yield made
        made.assert_unbroken()


def _is_full(members: Members, number: int) -> bool:
    return members.metric(number, "argosy_raft_disk_full") == 1


def _alarms(members: Members, number: int, seconds: float = 8.0) -> list[str]:
    found = members.did(number, "maintenance/alarm", {"action": "GET"}, seconds).get("alarms", [])
    return [alarm["alarm"] for alarm in found]


def _place(members: Members, number: int) -> str:
    status = members.status(number)
    leads = status.get("leader") == status["header"]["member_id"]
    where = ", ".join(f"{name} {status[name]}" for name in ("raftTerm", "raftIndex", "raftAppliedIndex"))
    return f"member {number}: {where}{', leads' if leads else ''}"


def _names_the_disk(text: str) -> bool:
    return "disk full" in text or "database space exceeded" in text


def _assert_reads(members: Members, numbers: Sequence[int], key: str, value: str) -> None:
    """Linearizable reads are answered through these members, by both doors."""
    for number in numbers:
        asked = _reads(members, number, key, 4, 8.0)
        for asker in asked:
            asker.join()
        assert [asker.value() for asker in asked] == [value] * 4, f"member {number}: {[a.text for a in asked]}"


def _write_of_each_door(members: Members, number: int, seconds: float = 12.0) -> list[str]:
    """One write through each door of a member; for each nothing, or an error's text."""
    put = json.dumps({"key": b64("/probe/v3"), "value": b64("p")}).encode()
    with ThreadPoolExecutor(2) as pool:
        v2 = pool.submit(members.put, number, "/probe/v2", "p", seconds)
        v3 = pool.submit(members.call, number, "POST", "/v3/kv/put", put, seconds)
        answers = [v2.result(), v3.result()]
    return ["" if a.status in (200, 201) else a.text for a in answers]


@pytest.mark.parametrize("who", ["a follower", "the leader"])
def test_one_disk_is_full(cramped: Members, disks: _Disks, who: str) -> None:
    """The others go on; writes through the full one are done or name the disk, and reads are answered;
    with room again it catches up, and was never restarted."""
    members = cramped
    leader = members.leader()
    full = leader if who == "the leader" else (leader + 1) % 3
    others = [n for n in range(3) if n != full]
    assert members.put(leader, "/read/me", "1").status == 201
    started = members.processes[full].pid
    disks.fill(full)
    filler = _Filler(members, others[0])
    with Load(members, doors=others, seconds=8.0, clients=4) as load:
        load.await_more(20)
        filler.until(lambda: _is_full(members, full))
        load.await_more(50)  # the others go on
        assert "NOSPACE" in _alarms(members, full)
        assert members.leader(others) != full
        asked = _reads(members, full, "/read/me", 4, 8.0)
        assert '"value":"1"' in members.call(full, "GET", "/v2/keys/read/me").text  # a plain read
        said = _write_of_each_door(members, full)
        for asker in asked:
            asker.join()
        assert {asker.value() for asker in asked} == {"1"}, asked[0].text
        assert all(not text or _names_the_disk(text) for text in said), said
        load.await_more(20)
        disks.make_room(full)
        wait_until("the disk to be used again", lambda: not _is_full(members, full), SOON_S)
        assert _alarms(members, full) == []
        load.doors = [0, 1, 2]
        load.await_more(50)
    assert members.processes[full].pid == started and members.processes[full].poll() is None
    for number in range(3):
        filler.judge(number)
    load.judge()
    _assert_one_hash(members)


def test_a_snapshot_finds_no_room(folder: Path, disks: _Disks) -> None:
    """A member with a full disk falls so far behind that it is sent a snapshot: it goes on answering,
    the others go on, and with room it is whole again without a restart."""
    full = 2
    with members_up(folder, flags=["--snapshot-count", "200"], homes={full: disks.homes()[full]}) as members:
        if members.leader() == full:
            members.did(full, "maintenance/transfer-leadership", {"targetID": members.id_of(0)})
            wait_until("another leader", lambda: members.leader() != full, SOON_S)
        started = members.processes[full].pid
        assert members.put(0, "/read/me", "1").status == 201
        disks.fill(full)
        filler = _Filler(members, 0)
        filler.until(lambda: _is_full(members, full))
        members.pause(full)  # so that it does not take the entries into memory
        for _ in range(350):
            said = filler.write()
            assert not said, said
        members.resume(full)
        for _ in range(25):  # long enough for the leader to send one
            assert "NOSPACE" in _alarms(members, full, 3.0)
            assert '"value":"1"' in members.call(full, "GET", "/v2/keys/read/me", seconds=3.0).text
            assert not filler.write()
        disks.enlarge(full, 400)
        wait_until(
            "the member to catch up",
            lambda: len({members.status(n)["raftAppliedIndex"] for n in range(3)}) == 1, SOON_S,
        )  # fmt: skip
        assert members.processes[full].pid == started and members.processes[full].poll() is None
        for number in range(3):
            filler.judge(number)
        _assert_one_hash(members)
        members.assert_unbroken()


def test_a_start_on_a_full_disk_says_where(folder: Path, disks: _Disks) -> None:
    """A start that finds no room at all ends with a message that names the file."""
    with members_up(folder, founders=1, homes={0: disks.homes()[0]}) as members:
        assert members.put(0, "/read/me", "1").status == 201
        members.kill(0)
        disks.fill(0, DISK_MB * 2)
        before = len(members.log(0))
        members.start(0)
        try:
            members.await_up(0)
            said = ""
        except AssertionError:
            said = members.log(0)[before:]
            assert "Traceback" not in said, said
        disks.make_room(0)
        if members.processes[0].poll() is not None:
            members.start(0)
        members.await_up(0)
        assert '"value":"1"' in members.call(0, "GET", "/v2/keys/read/me?quorum=true").text
        assert not said or str(members.home(0)) in said, said


def test_all_disks_are_full(cramped: Members, disks: _Disks) -> None:
    """Reads go on, writes fail in words that name the disk; with room again everything goes on."""
    members = cramped
    leader = members.leader()
    assert members.put(leader, "/read/me", "1").status == 201
    pids = {n: process.pid for n, process in members.processes.items()}
    for number in range(3):
        disks.fill(number)
    filler = _Filler(members, leader)
    with Load(members, seconds=9.0, clients=3) as load:
        load.await_more(20)
        filler.until(lambda: all(_is_full(members, n) for n in range(3)))
        load.stopping.set()
    with ThreadPoolExecutor(6) as pool:
        writes = [pool.submit(_write_of_each_door, members, n) for n in range(3)]
        asked = [asker for n in range(3) for asker in _reads(members, n, "/read/me", 4, 8.0)]
        for asker in asked:
            asker.join()
        seen = [asker.value() for asker in asked]
        for number in range(3):  # a plain read
            assert '"value":"1"' in members.call(number, "GET", "/v2/keys/read/me").text
        places = [_place(members, n) for n in range(3)]
        said = [text for write in writes for text in write.result()]
    assert seen == ["1"] * 12, places
    assert all(map(_names_the_disk, said)), said
    assert all("NOSPACE" in _alarms(members, n) for n in range(3))
    for number in range(3):
        disks.make_room(number)
    wait_until("a write", lambda: members.put(0, "/read/me", "2").status == 200, SOON_S)
    wait_until("all alarms to end", lambda: not any(_alarms(members, n) for n in range(3)), SOON_S)
    assert {n: process.pid for n, process in members.processes.items()} == pids
    _assert_reads(members, range(3), "/read/me", "2")
    for number in range(3):
        filler.judge(number)
    load.judge()
    _assert_one_hash(members)


def _assert_one_hash(members: Members) -> None:
    """All members have the same store at the same revision."""
    seen: dict[str, list[tuple[str, str]]] = {}

    def same() -> bool:
        revision = members.did(members.leader(), "maintenance/hashkv", {})["header"]["revision"]
        found = [members.did(n, "maintenance/hashkv", {"revision": revision}) for n in members.processes]
        pairs = [(f["header"]["revision"], str(f["hash"])) for f in found]
        seen["last"] = pairs
        if len({r for r, _ in pairs}) > 1:
            return False
        assert len(set(pairs)) == 1, f"stores differ: {pairs}"
        return True

    wait_until(f"one revision everywhere: {seen}", same, SOON_S)


# -- damage --------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def _records(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of every record of a segment; the format is described in ``brain/wal.py``."""
    out = []
    at = wal.HEADER_BYTES
    while at + 8 <= len(data) and (length := int.from_bytes(data[at : at + 4], "little")):
        out.append((at, at + 8 + length))
        at = out[-1][1]
    return out


def _refusal(members: Members, number: int) -> str:
    """What a member says that does not start."""
    before = len(members.log(number))
    members.start(number)
    status = members.processes.pop(number).wait(SOON_S)
    said = members.log(number)[before:]
    assert status not in (0, None), said
    assert "Traceback" not in said, said
    return said


def test_a_flipped_bit_refuses_to_start(folder: Path) -> None:
    """In a segment of the log or in a snapshot: status and message name file and offset; the others
    go on, and with the bit as it was the member is one of them again."""
    with members_up(folder, flags=["--snapshot-count", "200"]) as members:
        with Load(members) as load:
            load.await_more(500)
            victim = (members.leader() + 1) % 3
            members.kill(victim)
            raft = members.home(victim) / "raft"
            segment = max(raft.glob("wal-*.log"))
            records = _records(segment.read_bytes())
            assert len(records) > 20
            start, end = max(records[: len(records) // 2], key=lambda r: r[1] - r[0])
            for at in (start + 1, start + 5, start + 8, (start + end) // 2):  # length, checksum, body
                _flip(segment, at)
                said = _refusal(members, victim)
                assert segment.name in said and f"offset {start}" in said, f"bit at {at}: {said}"
                _flip(segment, at)
            snapshots = [p for p in raft.iterdir() if not p.name.startswith("wal-") and p.suffix != ".part"]
            newest = max(snapshots)
            size = newest.stat().st_size
            assert size > 1000, f"{newest}: {size} bytes, after 500 writes and a snapshot each 200"
            for at in (3, size // 3, size // 2, size - 2):
                _flip(newest, at)
                said = _refusal(members, victim)
                assert newest.name in said and "offset" in said, f"bit at {at} of {size}: {said}"
                _flip(newest, at)
            load.await_more(20)
            members.start(victim)
            members.await_up(victim)
            load.await_more(20)
        load.judge()
        _assert_one_hash(members)
        members.assert_unbroken()


# -- snapshots, leases ---------------------------------------------------------------------------


def test_a_follower_that_was_away_gets_a_snapshot(folder: Path) -> None:
    """The others have cut off what it lacks; afterwards its store is theirs, at every revision asked."""
    with members_up(folder, flags=["--snapshot-count", "200"]) as members:
        with Load(members) as load:
            load.await_more(50)
            leader = members.leader()
            away = (leader + 1) % 3
            rest = [n for n in range(3) if n != away]
            load.doors = rest
            members.stop(away)
            fillers = [_Filler(members, door) for door in rest]
            with ThreadPoolExecutor(2) as pool:  # more than the 16 MB that are kept for such a follower
                list(pool.map(lambda f: [f.write() for _ in range(200)], fillers))
            load.await_more(50)
            members.start(away)
            members.await_up(away)
            load.doors = [0, 1, 2]
            load.await_more(50)
            revision = members.status(leader)["header"]["revision"]
            load.await_more(30)
        raft = members.home(away) / "raft"
        fresh = [p for p in raft.glob("wal-*.log") if p.read_bytes()[:16] == wal.FRESH_MAGIC]
        assert fresh, f"it came back without a snapshot: {sorted(p.name for p in raft.iterdir())}"
        load.judge()
        _assert_one_hash(members)
        asked = {"revision": revision}
        found = [members.did(n, "maintenance/hashkv", asked) for n in range(3)]
        assert len({f["hash"] for f in found}) == 1 and found[0]["hash"], found
        members.assert_unbroken()


LEASES, LEASE_TTL_S, PUTS_PER_TXN = 10_000, 12, 100


def _grant(members: Members, door: int, first: int, count: int) -> None:
    """Leases ``first`` up to ``first + count``, each with a key."""
    connection = HTTPConnection("127.0.0.1", members.client_ports[door], timeout=20)
    try:
        for lease in range(first, first + count):
            body = json.dumps({"ID": lease, "TTL": LEASE_TTL_S}).encode()
            answer = exchange(connection, "POST", "/v3/lease/grant", body)
            assert answer.status == 200, answer.text
        for at in range(first, first + count, PUTS_PER_TXN):
            leases = range(at, min(at + PUTS_PER_TXN, first + count))
            puts = [{"request_put": {"key": b64(f"/leased/{n}"), "value": b64("v"), "lease": n}} for n in leases]
            answer = exchange(connection, "POST", "/v3/kv/txn", json.dumps({"success": puts}).encode())
            assert answer.status == 200, answer.text
    finally:
        connection.close()


def test_ten_thousand_leases_end_together(members: Members) -> None:
    """They end in one moment: the leader stays leader, others are served, and all keys are gone."""
    part = LEASES // 10
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda n: _grant(members, n % 3, 1 + n * part, part), range(10)))
    old = members.leader()
    target = (old + 1) % 3
    # a new leader gives every lease its whole time again, so now all end in one tick
    members.did(old, "maintenance/transfer-leadership", {"targetID": members.id_of(target)})
    wait_until("the new leader", lambda: members.leader() == target, SOON_S)
    armed = time.monotonic()
    count = {**prefix("/leased/"), "count_only": True}
    assert int(members.did(target, "kv/range", count)["count"]) == LEASES, "granting took longer than the TTL"
    term = members.status(target)["raftTerm"]
    changes = [members.metric(n, "argosy_raft_leader_changes") for n in range(3)]
    elections = [members.metric(n, "argosy_raft_elections") for n in range(3)]
    wait_until("the leases to be near their end", lambda: time.monotonic() >= armed + LEASE_TTL_S - 2)
    with Load(members, clients=3) as load:
        def left() -> int:
            return int(members.did(target, "kv/range", count).get("count", 0))

        wait_until("all keys to be gone", lambda: left() == 0, SOON_S)
        load.await_more(20)
    assert members.leader() == target
    assert members.status(target)["raftTerm"] == term
    assert [members.metric(n, "argosy_raft_leader_changes") for n in range(3)] == changes
    assert [members.metric(n, "argosy_raft_elections") for n in range(3)] == elections
    for number in range(3):
        assert "count" not in members.did(number, "kv/range", count)
        wait_until("no lease to be left", lambda: members.metric(number, "argosy_store_leases") == 0, SOON_S)
    load.judge()
    _assert_one_hash(members)
    assert load.longest_pause() < 1.0, str(load)
