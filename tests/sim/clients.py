"""Clients of the brain, and the history of what they saw.

A client asks one machine for one thing, waits for the answer (or gives up waiting), and
goes on.  It records the call, the answer and what it knows when there is none; it never
looks inside a peer.  All values are unique, so a value tells which write made it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pykka import ActorDeadError

from actors.raft_messages import (
    NO_LEADER,
    OVERLOADED,
    TIMED_OUT,
    TOO_LARGE,
    BrainError,
    KeepAlive,
    Propose,
    Query,
    Range,
)
from brain.store import Item, StoreError

from .linearizability import FOREVER, UNKNOWN, Operation, State

if TYPE_CHECKING:
    from .cluster import SimCluster

#: Outcomes of a call.
OPEN, DONE, REFUSED, NEVER, LOST = "open", "done", "refused", "never", "lost"
#: Error codes that promise that a write was not and will not be done.
_CERTAINLY_NOT = (NO_LEADER, TOO_LARGE, OVERLOADED)


@dataclass(slots=True)
class Call:
    """One operation of one client; ``called`` and ``returned`` number the run's events."""

    number: int
    client: str
    machine: str
    kind: str
    key: bytes
    arguments: tuple[Any, ...]
    called: int
    called_s: float
    command: list[Any] | None = None
    #: the term a fenced write is bound to, 0 for others
    term: int = 0
    linearizable: bool = True
    returned: float = FOREVER
    outcome: str = OPEN
    #: what the register model calls the output
    output: Any = UNKNOWN
    #: the answer as it came
    answer: Any = None
    error: str = ""
    #: the store's revision that the answer names, 0 if none
    revision: int = 0

    def __str__(self) -> str:
        words = " ".join(str(a) for a in self.arguments)
        fence = f" in term {self.term}" if self.term else ""
        return f"{self.client} at {self.machine} #{self.number}: {self.kind} {self.key!r} {words}{fence}"


class History:
    """All calls of a run, on one clock of events."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._events = 0

    def tick(self) -> int:
        """The number of the next event."""
        self._events += 1
        return self._events

    def completed(self) -> list[Call]:
        """Calls that were answered with success."""
        return [call for call in self.calls if call.outcome == DONE]

    def operations(self) -> list[Operation]:
        """The register's part of the history: what the checker judges.

        Writes that were refused, or failed with the promise that they never happen, are
        left out: that nothing of them is in the log is checked elsewhere.
        """
        out = []
        for call in self.calls:
            if call.kind not in ("put", "get", "delete", "cas") or not call.linearizable:
                continue
            if call.outcome in (REFUSED, NEVER) or (call.kind == "get" and call.outcome != DONE):
                continue
            arguments = call.arguments[:1] if call.kind == "put" else call.arguments
            out.append(
                Operation(
                    call.client, call.key, call.kind, arguments, call.called, call.returned,
                    call.output,
                )
            )  # fmt: skip
        return out


def _value(item: Item | None) -> State:
    return item.value if item is not None else None


def _first(found: list[tuple[bytes, Item]]) -> State:
    return found[0][1].value if found else None


class Client:
    """One sequential user of the cluster."""

    def __init__(self, cluster: SimCluster, number: int) -> None:
        self.name = f"c{number}"
        self._cluster = cluster
        self._world = cluster.world
        self._history = cluster.history
        self._rng = random.Random(f"client {cluster.size} {cluster.seed} {number}")
        self._options = cluster.options
        self._machine = self._rng.choice(cluster.names)
        self._made = 0
        self._seen: dict[bytes, State] = {}
        self._lease = 0
        self._lease_number = 0
        self._tokens: dict[str, int] = {}
        self._stopped = False

    def start(self) -> None:
        """Begin after a moment."""
        self._world.call_later(self._rng.random() * self._options.think_s, self._next)

    def stop(self) -> None:
        """Call nothing new; answers are still taken."""
        self._stopped = True

    # -- choosing -------------------------------------------------------------------------

    def _next(self) -> None:
        if self._stopped:
            return
        if self._rng.random() < 0.15:
            self._machine = self._rng.choice(self._cluster.names)
        if self._cluster.peer_ref(self._machine) is None:  # connection refused
            self._machine = self._rng.choice(self._cluster.names)
            self._later()
            return
        kinds = list(self._options.work)
        kind = self._rng.choices(kinds, [self._options.work[k] for k in kinds])[0]
        work: Callable[[], None] = getattr(self, f"_work_{kind}")
        work()

    def _later(self) -> None:
        self._world.call_later(self._rng.expovariate(1 / self._options.think_s), self._next)

    def _key(self) -> bytes:
        return b"/k%d" % self._rng.randrange(self._options.keys)

    def _new_value(self) -> bytes:
        self._made += 1
        return f"{self.name}-{self._made}".encode()

    def _timeout(self) -> float:
        return self._rng.choice([0.5, 2.0, 5.0, 9.0])

    # -- the kinds of work ------------------------------------------------------------------

    def _work_put(self) -> None:
        key, value = self._key(), self._new_value()
        self._write("put", key, (value,), ["put", key, value, 0])

    def _work_fenced(self) -> None:
        """A write that is only meant while this machine leads in this term."""
        term = self._cluster.leading.get(self._machine, 0)
        if not term:
            self._work_put()
            return
        key, value = self._key(), self._new_value()
        self._write("put", key, (value,), ["put", key, value, 0], term=term)

    def _work_cas(self) -> None:
        key, value = self._key(), self._new_value()
        expected = self._seen.get(key)
        compare = [key, "value", "=", expected] if expected is not None else [key, "create", "=", 0]
        command = ["txn", [compare], [["range", key], ["put", key, value]], [["range", key]]]
        self._write("cas", key, (expected, value), command)

    def _work_delete(self) -> None:
        key = self._key()
        if self._rng.random() < 0.3:
            self._write("delete", key, (), ["delete", key])
        else:
            self._write("delete", key, (), ["txn", [], [["range", key], ["delete", key]], []])

    def _work_get(self) -> None:
        self._read(self._key(), linearizable=True)

    def _work_peek(self) -> None:
        self._read(self._key(), linearizable=False)

    def _work_lease(self) -> None:
        """Take a lease; write below it, keep it alive, now and then give it back."""
        draw = self._rng.random()
        if not self._lease:
            self._lease_number += 1
            lease = int(self.name[1:]) * 1_000_000 + self._lease_number
            ttl_ms = self._rng.choice([1000, 1500, 2500])
            self._write("lease_grant", b"", (lease,), ["lease_grant", lease, ttl_ms])
        elif draw < 0.5:
            key, value = self._key(), self._new_value()
            self._write("put", key, (value, self._lease), ["put", key, value, self._lease])
        elif draw < 0.9:
            call = self._call("keep_alive", b"", (self._lease,))
            self._ask(call, KeepAlive([self._lease]), 2.5)
        else:
            lease, self._lease = self._lease, 0
            self._cluster.watchtower.given_back.add(lease)
            self._write("lease_revoke", b"", (lease,), ["lease_revoke", [lease]])

    def _work_lock(self) -> None:
        """Take the lock, or give back what is held."""
        group = self._rng.choice(["reboot", "pair"])
        token = self._tokens.get(group, 0)
        if self._rng.random() < 0.03:
            wider = {"max_holders": 2}
            self._write("lock_max", b"", ("pair", 2), ["lock", "pair", "set_max", wider])
        elif not token:
            wanted = {
                "machine": self.name, "reason": self._new_value().decode(), "boot_id": "",
                "wait": self._rng.random() < 0.5,
            }  # fmt: skip
            self._write("acquire", b"", (group,), ["lock", group, "acquire", wanted])
        else:
            back = {"machine": self.name, "token": token, "force": False}
            del self._tokens[group]
            self._write("release", b"", (group, token), ["lock", group, "release", back])

    # -- asking -----------------------------------------------------------------------------

    def _call(self, kind: str, key: bytes, arguments: tuple[Any, ...]) -> Call:
        calls = self._history.calls
        call = Call(
            len(calls), self.name, self._machine, kind, key, arguments, self._history.tick(),
            self._world.now,
        )  # fmt: skip
        calls.append(call)
        return call

    def _write(
        self, kind: str, key: bytes, arguments: tuple[Any, ...], command: list[Any], term: int = 0
    ) -> None:
        call = self._call(kind, key, arguments)
        call.command = command
        call.term = term
        timeout = self._timeout()
        self._ask(call, Propose(command, timeout, term), timeout)

    def _read(self, key: bytes, linearizable: bool) -> None:
        call = self._call("get", key, ())
        call.linearizable = linearizable
        if self._rng.random() < 0.5:
            self._ask(call, Range(key, None, 0, 0, linearizable), 5.0)
        else:
            read = Query(
                lambda store: (store.revision, store.range(key)), linearizable, self._timeout()
            )
            self._ask(call, read, 5.0)

    def _ask(self, call: Call, message: Any, timeout: float) -> None:
        self._world.note(f"call {call}")
        ref = self._cluster.peer_ref(self._machine)
        assert ref is not None
        went_on = False

        def go_on() -> None:
            nonlocal went_on
            if not went_on:
                went_on = True
                if call.outcome != DONE:
                    self._machine = self._rng.choice(self._cluster.names)
                self._later()

        def answered(future: Any) -> None:
            call.returned = self._history.tick()
            self._take(call, future.value, future.error)
            self._world.note(f"back {call} -> {call.outcome} {call.error or call.answer}")
            go_on()

        ref.ask(message, block=False).on_done(answered)
        self._world.call_later(timeout + 1.0, go_on)

    def _take(self, call: Call, answer: Any, error: BaseException | None) -> None:
        call.answer = answer
        if error is None:
            call.outcome = DONE
            self._understand(call, answer)
            return
        code = getattr(error, "code", "")
        call.error = f"{code or type(error).__name__}: {error}"
        if type(error) is StoreError:
            call.outcome = REFUSED
            if code == "lease_not_found":
                self._lease = 0
        elif type(error) is BrainError and code in _CERTAINLY_NOT:
            call.outcome = NEVER
        elif (type(error) is BrainError and code == TIMED_OUT) or isinstance(error, ActorDeadError):
            call.outcome = LOST
            call.returned = FOREVER
        else:
            self._cluster.watchtower.accuse(f"{call} was answered with {error!r}")

    def _understand(self, call: Call, answer: Any) -> None:
        """Translate the answer into the model's output."""
        kind = call.kind
        if kind == "get":
            call.revision, found = answer
            call.output = self._seen[call.key] = _first(found)
        elif kind == "keep_alive":
            self._cluster.watchtower.lease_kept(call, answer.get(str(call.arguments[0]), 0))
            if not answer.get(str(call.arguments[0]), 0) and self._lease == call.arguments[0]:
                self._lease = 0
        elif kind == "lease_grant":
            self._lease = call.arguments[0]
        else:
            call.revision = answer["revision"]
            self._understand_write(call, answer)

    def _understand_write(self, call: Call, answer: dict[str, Any]) -> None:
        if call.kind == "put":
            call.output = _value(answer["prev"])
            self._seen[call.key] = call.arguments[0]
        elif call.kind == "cas":
            before = _first(answer["responses"][0].items)
            call.output = (answer["succeeded"], before)
            self._seen[call.key] = call.arguments[1] if answer["succeeded"] else before
        elif call.kind == "delete":
            if "deleted" in answer:
                call.output = None if not answer["deleted"] else UNKNOWN
            else:
                call.output = _first(answer["responses"][0].items)
            self._seen[call.key] = None
        elif call.kind == "acquire" and answer["granted"]:
            self._tokens[call.arguments[0]] = answer["token"]
