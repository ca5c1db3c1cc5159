"""Members that can be hurt one by one, and clients that keep a history of what they were told.

A client thread writes, reads, swaps and deletes a few shared keys through any member, over
both doors (v2 and v3), and notes when it asked and when it was answered; it also writes keys
that nobody else touches.  :meth:`Load.judge` then checks three things: the history of every
shared key is linearizable; every acknowledged key of one's own is there with the revision
that was told; and nothing happened twice.
"""

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ..answers import Answer
from ..judges.environment import etcd_under_test
from ..judges.servers import Server, plain_variables
from ..sim.linearizability import FOREVER, UNKNOWN, Operation, Verdict, check
from ..waiting import wait_until
from .cluster import port_offset, signal_process

#: Seconds within which a cluster has a leader again, or a member is up.
SOON_S = 15.0
#: Ports of third-party suites that may run beside this.
_TAKEN = (range(6001, 6104), range(8001, 8104))


def b64(data: bytes | str) -> str:
    """Bytes as the v3 gateway takes them."""
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


def prefix(start: str) -> dict[str, str]:
    """The v3 range of all keys that start so."""
    return {"key": b64(start), "range_end": b64(start[:-1].encode() + bytes([ord(start[-1]) + 1]))}


# -- members ---------------------------------------------------------------------------------------


class Members(Server):
    """``etcd`` processes, numbered from 0, each of which may be stopped, killed, paused and replaced."""

    def __init__(
        self, folder: Path, offset: int, founders: int, spare: int = 0, flags: Sequence[str] = ()
    ) -> None:
        super().__init__(etcd_under_test(), offset, founders + spare)
        self.folder = folder
        self.founders = founders
        self.flags = list(flags)
        self.homes: dict[int, Path] = {}
        self.ids: dict[int, str] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    # -- processes -----------------------------------------------------------------------------

    def home(self, number: int) -> Path:
        """The data directory of a member."""
        return self.homes.get(number, self.folder / f"j{number}")

    def log(self, number: int) -> str:
        """What a member has said up to now."""
        return (self.folder / f"j{number}.log").read_text(errors="replace")

    def start(self, number: int, beside: Sequence[int] | None = None) -> None:
        """Start a member, for the first time or again; with ``beside`` it was added to those."""
        command = self.command(number, self.folder)
        command[command.index("--data-dir") + 1] = self.home(number)
        members = range(self.founders) if beside is None else sorted({*beside, number})
        listed = ",".join(f"j{n}=http://127.0.0.1:{self.peer_ports[n]}" for n in members)
        command[command.index("--initial-cluster") + 1] = listed
        command[command.index("--initial-cluster-state") + 1] = "new" if beside is None else "existing"
        command[command.index("--initial-cluster-token") + 1] = self.folder.name
        with (self.folder / f"j{number}.log").open("ab") as output:
            self.processes[number] = subprocess.Popen(
                [*command, *self.flags], cwd=self.folder, env=plain_variables(), stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def stop(self, number: int) -> int:
        """SIGTERM; its exit status."""
        process = self.processes.pop(number)
        process.terminate()
        try:
            return process.wait(SOON_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise AssertionError(f"member {number} did not end within {SOON_S} s of SIGTERM") from None

    def kill(self, number: int) -> None:
        """SIGKILL."""
        process = self.processes.pop(number)
        process.kill()
        process.wait(10)

    def kill_all(self) -> None:
        """The end of everything that was started here."""
        for process in self.processes.values():
            process.kill()
        for number in list(self.processes):
            self.kill(number)

    def pause(self, number: int) -> None:
        """SIGSTOP."""
        signal_process(self.processes[number].pid, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """SIGCONT."""
        signal_process(self.processes[number].pid, signal.SIGCONT)

    # -- asking --------------------------------------------------------------------------------

    def call(
        self, number: int, method: str, target: str, body: bytes | None = None, seconds: float = 8.0
    ) -> Answer:
        """One request on a connection of its own, from any thread."""
        connection = HTTPConnection("127.0.0.1", self.client_ports[number], timeout=seconds)
        try:
            return exchange(connection, method, target, body)
        finally:
            connection.close()

    def did(self, number: int, path: str, message: dict[str, Any], seconds: float = 8.0) -> Any:
        """One message to the v3 gateway, which must succeed."""
        answer = self.call(number, "POST", f"/v3/{path}", json.dumps(message).encode(), seconds)
        assert answer.status == 200, f"{path} at member {number}: {answer.status} {answer.text}"
        return answer.json()

    def put(self, number: int, key: str, value: str, seconds: float = 8.0) -> Answer:
        """A v2 write."""
        body = urlencode({"value": value}).encode()
        return self.call(number, "PUT", f"/v2/keys{key}", body, seconds)

    # -- looking -------------------------------------------------------------------------------

    def status(self, number: int) -> Any:
        """Of one member, as it sees itself."""
        return self.did(number, "maintenance/status", {}, 2.0)

    def leader(self, among: Sequence[int] | None = None, seconds: float = SOON_S) -> int:
        """The number of the member that all running ones (or these) agree leads."""
        asked = list(self.processes if among is None else among)

        def look() -> list[int]:
            found = {n: self.status(n) for n in asked}
            leaders = {s.get("leader", "0") for s in found.values()}
            return [n for n, s in found.items() if leaders == {s["header"]["member_id"]}]

        return wait_until("one leader", look, seconds)[0]

    def await_up(self, number: int) -> None:
        """Wait until a member is healthy."""
        wait_until(f"member {number}", lambda: self.is_healthy(number), SOON_S)

    def is_healthy(self, number: int) -> bool:
        """Whether a member says so."""
        if number in self.processes and self.processes[number].poll() is not None:
            raise AssertionError(f"member {number} ended: {self.log(number)[-2000:]}")
        return self.call(number, "GET", "/health", seconds=2.0).status == 200

    def voters(self, number: int) -> dict[str, str]:
        """Ids (in decimal) of the members that vote, with their peer URLs, as a member knows them."""
        found = self.did(number, "cluster/member/list", {}, 2.0)["members"]
        return {m["ID"]: m["peerURLs"][0] for m in found if not m.get("isLearner")}

    def id_of(self, number: int) -> str:
        """A member's id, in decimal; it may have ended since it was first asked."""
        if number not in self.ids:
            self.ids[number] = self.status(number)["header"]["member_id"]
        return self.ids[number]

    def metric(self, number: int, name: str) -> float:
        """A metric without labels."""
        for line in self.call(number, "GET", "/metrics").text.splitlines():
            if line.split(" ")[0] in (name, f"{name}_total"):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def assert_unbroken(self) -> None:
        """No member has logged a fault of its own making."""
        for path in sorted(self.folder.glob("j*.log")):
            said = path.read_text(errors="replace").splitlines()
            broken = [line for line in said if "Traceback" in line or "CRITICAL" in line]
            assert not broken, f"{path.name}: " + "\n".join(said[-40:])


@contextmanager
def members_up(
    folder: Path, founders: int = 3, spare: int = 0, flags: Sequence[str] = (),
    homes: dict[int, Path] | None = None,
) -> Iterator[Members]:  # fmt: skip
    """Members that are up, and gone afterwards in every case."""
    with ExitStack() as stack:
        count = founders + spare
        while True:
            offset = stack.enter_context(port_offset(count))
            members = Members(folder, offset, founders, spare, flags)
            ports = [*members.client_ports, *members.peer_ports]
            if not any(port in taken for port in ports for taken in _TAKEN):
                break
        members.homes = dict(homes or {})
        stack.callback(members.kill_all)
        for number in range(founders):
            members.start(number)
        for number in range(founders):
            members.await_up(number)
            members.id_of(number)
        members.leader()
        yield members


def exchange(connection: HTTPConnection, method: str, target: str, body: bytes | None) -> Answer:
    """One request on a connection."""
    kind = "application/json" if target.startswith("/v3/") else "application/x-www-form-urlencoded"
    if target.startswith("/v2/members"):
        kind = "application/json"
    connection.request(method, target, body, {} if body is None else {"Content-Type": kind})
    return Answer.read(connection.getresponse(), errors="backslashreplace")


# -- clients ---------------------------------------------------------------------------------------


class UnansweredError(Exception):
    """Nobody can say whether it was done."""


class NotDoneError(Exception):
    """It was refused in words that say that nothing was done."""


#: Words of the brain in v2's errors, and v3's sentences, that promise that nothing was changed.
_NOT_DONE = ("no_leader: ", "overloaded: ", "no_space: ", "etcdserver: no leader", "too many requests")


def _refusal(text: str) -> Exception:
    if any(word in text for word in _NOT_DONE) and "may still happen" not in text:
        return NotDoneError(text)
    return UnansweredError(text)


class Client:
    """One user: one request at a time, over kept connections, each operation noted."""

    def __init__(self, load: Load, name: str, rng: random.Random) -> None:
        self.name = name
        self._load = load
        self._rng = rng
        self._count = 0
        self._seen: dict[str, bytes | None] = {}
        self._connections: dict[int, HTTPConnection] = {}

    def run(self) -> None:
        """Ask until told to stop."""
        load, rng = self._load, self._rng
        actions = (self._get, self._put, self._swap, self._delete, self._own)
        while not load.stopping.wait(load.rest_s):
            (action,) = rng.choices(actions, (30, 25, 22, 3, 20))
            key = rng.choice(load.keys)
            try:
                action(rng.choice(load.doors), key)
            except Exception as error:  # an answer that is no answer: the test must hear of it
                load.surprises.append(f"{self.name}: {action.__name__}: {error!r}")
        self.close()

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def look(self, number: int, key: str) -> None:
        """One read more, by whoever owns this client."""
        self._get(number, key)

    # -- the wire ------------------------------------------------------------------------------

    def _ask(self, number: int, method: str, target: str, body: bytes | None = None) -> Answer:
        connection = self._connections.get(number)
        if connection is None:
            port = self._load.members.client_ports[number]
            connection = HTTPConnection("127.0.0.1", port, timeout=self._load.seconds)
            try:
                connection.connect()
            except OSError as error:
                raise NotDoneError(f"no connection: {error!r}") from None
            self._connections[number] = connection
        try:
            return exchange(connection, method, target, body)
        except (OSError, HTTPException) as error:
            self._connections.pop(number).close()
            raise UnansweredError(repr(error)) from None

    def _v2(self, number: int, method: str, target: str, form: dict[str, str] | None = None) -> Any:
        body = None if form is None else urlencode(form).encode()
        answer = self._ask(number, method, f"/v2/keys{target}", body)
        found = answer.json()
        if found.get("errorCode") == 300:
            raise _refusal(answer.text)
        return found

    def _v3(self, number: int, path: str, message: dict[str, Any]) -> Any:
        answer = self._ask(number, "POST", f"/v3/{path}", json.dumps(message).encode())
        if answer.status != 200:
            raise _refusal(answer.text)
        return answer.json()

    def _note(self, kind: str, key: str, arguments: tuple[Any, ...], action: Callable[[], Any]) -> None:
        load = self._load
        name = key.encode()
        called = time.monotonic()
        try:
            output = action()
        except NotDoneError as error:
            load.errors[f"not done: {str(error)[:140]}"] += 1
        except UnansweredError as error:
            load.errors[f"unknown: {str(error)[:140]}"] += 1
            if kind != "get":
                load.operations.append(Operation(self.name, name, kind, arguments, called))
        else:
            returned = time.monotonic()
            load.operations.append(Operation(self.name, name, kind, arguments, called, returned, output))
            if kind != "get":
                load.acknowledged.append(returned)

    # -- what it does --------------------------------------------------------------------------

    def _value(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    def _get(self, number: int, key: str) -> None:
        def v2() -> bytes | None:
            found = self._v2(number, "GET", f"{key}?quorum=true")
            if found.get("errorCode") == 100:
                return None
            return found["node"]["value"].encode()  # type: ignore[no-any-return]

        def v3() -> bytes | None:
            return _first(self._v3(number, "kv/range", {"key": b64(key)}).get("kvs"))

        def read() -> bytes | None:
            self._seen[key] = self._rng.choice((v2, v3))()
            return self._seen[key]

        self._note("get", key, (), read)

    def _put(self, number: int, key: str, _: Any = None) -> None:
        value = self._value()

        def v2() -> bytes | None:
            return _before(self._v2(number, "PUT", key, {"value": value}))

        def v3() -> bytes | None:
            asked = {"key": b64(key), "value": b64(value), "prev_kv": True}
            found = self._v3(number, "kv/put", asked).get("prev_kv")
            return _first([found] if found else [])

        self._note("put", key, (value.encode(),), self._rng.choice((v2, v3)))

    def _delete(self, number: int, key: str) -> None:
        def v2() -> bytes | None:
            found = self._v2(number, "DELETE", key)
            return None if found.get("errorCode") == 100 else _before(found)

        def v3() -> bytes | None:
            found = self._v3(number, "kv/deleterange", {"key": b64(key), "prev_kv": True})
            return _first(found.get("prev_kvs"))

        self._note("delete", key, (), self._rng.choice((v2, v3)))

    def _swap(self, number: int, key: str) -> None:
        value = self._value()
        expected = self._seen.get(key)

        def v2() -> tuple[bool, bytes | None]:
            assert expected is not None
            found = self._v2(number, "PUT", f"{key}?prevValue={expected.decode()}", {"value": value})
            if found.get("errorCode") == 100:
                return False, None
            if found.get("errorCode") == 101:
                return False, found["cause"].strip("[]").split(" != ")[1].encode()
            return True, _before(found)

        def v3() -> tuple[bool, bytes | None]:
            test: dict[str, Any] = {"key": b64(key), "target": "VALUE", "value": b64(expected or b"")}
            if expected is None:
                test = {"key": b64(key), "target": "VERSION", "version": 0}
            put = {"request_put": {"key": b64(key), "value": b64(value), "prev_kv": True}}
            look = {"request_range": {"key": b64(key)}}
            found = self._v3(number, "kv/txn", {"compare": [test], "success": [put], "failure": [look]})
            answer = found["responses"][0]
            if found.get("succeeded"):
                before = answer["response_put"].get("prev_kv")
                return True, _first([before] if before else [])
            return False, _first(answer["response_range"].get("kvs"))

        action = v3 if expected is None else self._rng.choice((v2, v3))
        self._note("cas", key, (expected, value.encode()), action)

    def _own(self, number: int, _: str) -> None:
        load = self._load
        value = self._value()
        key = f"{load.prefix}own/{value}"
        value = value.ljust(load.value_bytes, ".")
        try:
            if self._rng.random() < 0.5:
                revision = self._v2(number, "PUT", key, {"value": value})["node"]["modifiedIndex"]
            else:
                asked = {"key": b64(key), "value": b64(value)}
                revision = int(self._v3(number, "kv/put", asked)["header"]["revision"])
        except NotDoneError as error:
            load.refused.add(key)
            load.errors[f"not done: {str(error)[:140]}"] += 1
        except UnansweredError as error:
            load.errors[f"unknown: {str(error)[:140]}"] += 1
        else:
            load.kept[key] = (value, revision)
            load.acknowledged.append(time.monotonic())


def _first(pairs: list[dict[str, Any]] | None) -> bytes | None:
    return base64.b64decode(pairs[0].get("value", "")) if pairs else None


def _before(found: dict[str, Any]) -> bytes | None:
    assert "node" in found, found
    previous = found.get("prevNode")
    return previous["value"].encode() if previous else None


class Load:
    """Clients at work; see the module docstring."""

    def __init__(
        self, members: Members, clients: int = 6, keys: int = 3, seconds: float = 4.0, rest_s: float = 0.01,
        value_bytes: int = 0, doors: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.members = members
        self.doors = list(members.processes if doors is None else doors)
        self.seed = random.randrange(1 << 32)
        self.prefix = "/load/"
        self.keys = [f"{self.prefix}shared/{n}" for n in range(keys)]
        self.seconds = seconds
        self.rest_s = rest_s
        self.value_bytes = value_bytes
        self.stopping = threading.Event()
        self.operations: list[Operation] = []
        self.acknowledged: list[float] = []
        self.kept: dict[str, tuple[str, int]] = {}
        self.refused: set[str] = set()
        self.errors: Counter[str] = Counter()
        self.surprises: list[str] = []
        rng = random.Random(self.seed)
        workers = [Client(self, f"c{n}", random.Random(rng.random())) for n in range(clients)]
        self._threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
        self._reader = Client(self, "reader", random.Random(rng.random()))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(self.seconds * 2 + 5)
            assert not thread.is_alive(), "a client does not end"

    def await_more(self, count: int, seconds: float = SOON_S) -> None:
        """Wait until so many further writes were acknowledged."""
        target = len(self.acknowledged) + count
        wait_until(f"{count} more writes ({self})", lambda: len(self.acknowledged) >= target, seconds)

    def longest_pause(self) -> float:
        """The longest time without an acknowledged write."""
        at = sorted(self.acknowledged)
        return max((b - a for a, b in zip(at, at[1:])), default=0.0)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {len(self.operations)} operations on shared keys, {len(self.kept)} keys kept, "
            f"longest pause {self.longest_pause():.2f} s, errors {dict(self.errors)}"
        )

    def judge(self, numbers: Sequence[int] | None = None) -> None:
        """Read everything through these members (all that run), then check; see the module docstring."""
        readers = list(self.members.processes if numbers is None else numbers)
        assert not self.surprises, self.surprises[:10]
        for number in readers:
            for key in self.keys:
                self._reader.look(number, key)
        self._reader.close()
        for number in readers:
            self._judge_kept(number)
        findings = check(self.operations)
        bad = [str(f) for f in findings if f.verdict is not Verdict.LEGAL]
        assert not bad, f"{self}\n" + "\n".join(bad)

    def _judge_kept(self, number: int) -> None:
        found = self.members.did(number, "kv/range", prefix(f"{self.prefix}own/"), 15.0).get("kvs", [])
        there = {base64.b64decode(pair["key"]).decode(): pair for pair in found}
        lost = sorted(key for key in self.kept if key not in there)
        assert not lost, f"member {number}: acknowledged and lost: {lost[:10]} ({len(lost)}); {self}"
        for key, (value, revision) in self.kept.items():
            pair = there[key]
            assert base64.b64decode(pair["value"]).decode() == value, f"member {number}: {key}"
            told = (int(pair["mod_revision"]), int(pair["version"]))
            assert told == (revision, 1), f"member {number}: {key}: told {revision}, found {told}"
        twice = sorted(key for key, pair in there.items() if int(pair["version"]) != 1)
        assert not twice, f"member {number}: happened twice: {twice[:10]}"
        undead = sorted(self.refused & there.keys())
        assert not undead, f"member {number}: refused in words and done all the same: {undead[:10]}; {self}"


__all__ = [
    "FOREVER", "SOON_S", "UNKNOWN", "Load", "Members", "b64", "exchange", "members_up", "prefix",
]  # fmt: skip
