"""The control actor: what an operator may ask of a host, one verb at a time.

Every command of the command line is one :class:`Command` to this actor.  It checks input,
reads the mirrors, commits changes, and waits for what the operator waits for; nothing here
decides where a unit runs or whether it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from brain.store import Item, Store
from fleet import names, syntax
from kernel.actor import handles
from kernel.mailbox import Promise
from kernel.ports import Ports
from transport.router import FromAgent, FromClient, Router

from .brain_client import (
    ALIVE,
    DONE,
    MACHINES,
    MOVES,
    ORDERS,
    PLACES,
    ROLLOUTS,
    STATES,
    TIMERS,
    UNITS,
    UPDATES,
    BrainActor,
)
from .command import Command
from .raft_messages import (
    TIMED_OUT,
    BrainError,
    Query,
)


class BadRequest(Exception):
    """The operator's input is wrong; the text says what is accepted."""

    code = "bad_request"


class Missing(Exception):
    """What was named does not exist."""

    code = "missing"


class Failed(Exception):
    """It was tried and did not work."""

    code = "failed"


_Verb: TypeAlias = Callable[["Control", dict[str, Any]], Any]
VERBS: dict[str, _Verb] = {}
#: Seconds to collect changes before what somebody waits for is looked at again.
CHECK_S = 0.01
#: What listings show.
MIRRORED = (UNITS, PLACES, STATES, MACHINES, ALIVE, TIMERS, MOVES, ORDERS, ROLLOUTS, DONE, UPDATES)
#: Values of keys that are kept decoded; all are dropped when there are more.
VALUES_MAX = 200_000


def verb(name: str) -> Callable[[_Verb], _Verb]:
    """Register what carries out an operator's verb."""

    def register(function: _Verb) -> _Verb:
        VERBS[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Authority:
    """What a host needs to let others in; the key only where this host may sign."""

    certificate: bytes
    sign: Callable[[bytes, str, str], bytes] | None  # request, name, role


def _machine_in(prefix: bytes, key: bytes) -> str:
    return key[len(prefix) :].decode().partition("/")[0]


class Control(BrainActor):
    """See the module docstring."""

    def __init__(
        self, machine: str, cluster: str, ports: Ports, raft_ref: Any, router: Router,
        authority: Authority | None, version: str,
    ) -> None:  # fmt: skip
        super().__init__(raft_ref)
        self.machine = machine
        self.cluster = cluster
        self.ports = ports
        self.router = router
        self.authority = authority
        self.version = version
        self.saved: dict[str, list[bytes]] = {}  # a snapshot that an operator fetches
        self._waits: list[tuple[Callable[[], Any], Promise, float, Callable[[], str]]] = []
        self._pictures: dict[bytes, Any] = {}
        self._keys: dict[bytes, dict[str, dict[bytes, None]]] = {}  # of places and states, by unit
        self._checking = False
        self._values: dict[bytes, tuple[int, Any]] = {}  # by key: revision, and what the value says

    def on_start(self) -> None:
        """Mirror what listings show."""
        for prefix in MIRRORED:
            self._pictures[prefix] = self.mirror(prefix, partial(self._begun, prefix), partial(self._changed, prefix))
        self.every(0.25, self._check_waits)

    # -- entrance ---------------------------------------------------------------------------

    @handles(FromClient)
    def _from_client(self, message: FromClient) -> Any:
        command = message.message
        if not isinstance(command, Command):
            raise BadRequest("a client sends commands only")
        if message.client.startswith("guest") and command.verb not in ("authority", "join"):
            raise BadRequest(f"a client without a certificate may join, not {command.verb!r}")
        return self._on_command(command)

    @handles(FromAgent)
    def _from_agent(self, message: FromAgent) -> Any:
        command = message.message
        if not isinstance(command, Command) or command.verb != "host.chunks":
            raise BadRequest("an agent asks another machine for pieces of releases only")
        return self._on_command(command)

    @handles(Command)
    def _on_command(self, command: Command) -> Any:
        function = VERBS.get(command.verb)
        if function is None:
            raise BadRequest(f"no command is called {command.verb!r}; this host has version {self.version}")
        try:
            return function(self, command.args)
        except (KeyError, TypeError) as error:
            raise BadRequest(f"{command.verb}: an argument is missing or of a wrong type: {error}") from None
        except (syntax.UnitFileError, names.NameError_) as error:
            raise BadRequest(str(error)) from None

    def forget_saved(self, token: str) -> None:
        """Nobody fetched it in time, or all of it."""
        self.saved.pop(token, None)

    def _begun(self, prefix: bytes, items: dict[bytes, Item]) -> None:
        self._keys[prefix] = {}
        for key in items:
            self._note(prefix, key, True)
        self._arm_check()

    def _changed(self, prefix: bytes, key: bytes, item: Item | None, _: Item | None) -> None:
        self._note(prefix, key, item is not None)
        self._arm_check()

    def _note(self, prefix: bytes, key: bytes, is_there: bool) -> None:
        """Keep the keys of a unit together: there may be thousands of units, and a look at each of them."""
        if prefix not in (PLACES, STATES):
            return
        unit = key[len(prefix) :].decode().partition("/")[2]
        if is_there:
            self._keys[prefix].setdefault(unit, {})[key] = None
            return
        kept = self._keys[prefix].get(unit, {})
        kept.pop(key, None)
        if not kept:
            self._keys[prefix].pop(unit, None)

    def _arm_check(self) -> None:
        if self._waits and not self._checking:
            self._checking = True
            self.after(CHECK_S, self._check_waits)

    # -- helpers ----------------------------------------------------------------------------

    def items(self, prefix: bytes) -> dict[bytes, Item]:
        """The mirror of one of Argosy's prefixes."""
        items: dict[bytes, Item] = self._pictures[prefix].items
        return items

    def seen(self, prefix: bytes) -> int:
        """The revision up to which the mirror of a prefix is known to be complete."""
        revision: int = self._pictures[prefix].revision
        return revision

    def units(self) -> dict[str, dict[str, Any]]:
        """What is wanted, by unit; to be read, not changed."""
        return {k[len(UNITS) :].decode(): self._decoded(k, i) for k, i in self.items(UNITS).items()}

    def states(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What is true, by (unit, machine); to be read, not changed."""
        out = {}
        for key, item in self.items(STATES).items():
            machine, _, unit = key[len(STATES) :].decode().partition("/")
            out[unit, machine] = self._decoded(key, item)
        return out

    def states_of(self, unit: str) -> dict[str, dict[str, Any]]:
        """What is true of one unit, by machine; to be read, not changed."""
        items = self.items(STATES)
        return {_machine_in(STATES, key): self._decoded(key, items[key]) for key in self._keys.get(STATES, {}).get(unit, ())}

    def places_of(self, unit: str) -> list[str]:
        """The machines that one unit is placed on."""
        return [_machine_in(PLACES, key) for key in self._keys.get(PLACES, {}).get(unit, ())]

    def wanted(self, unit: str) -> dict[str, Any] | None:
        """What is wanted of one unit; to be read, not changed."""
        key = UNITS + unit.encode()
        item = self.items(UNITS).get(key)
        return self._decoded(key, item) if item is not None else None

    def _decoded(self, key: bytes, item: Item) -> Any:
        """A value, read once for each of its versions."""
        known = self._values.get(key)
        if known is None or known[0] != item.mod:
            if len(self._values) > VALUES_MAX:
                self._values.clear()
            known = self._values[key] = (item.mod, json.loads(item.value))
        return known[1]

    def places(self) -> dict[str, list[str]]:
        """What was decided: unit -> machines."""
        out: dict[str, list[str]] = {}
        for key in self.items(PLACES):
            machine, _, unit = key[len(PLACES) :].decode().partition("/")
            out.setdefault(unit, []).append(machine)
        return out

    def placed(self, unit: str) -> list[Item]:
        """What the machines that a unit is placed on are told of it."""
        items = self.items(PLACES)
        return [items[key] for key in self._keys.get(PLACES, {}).get(unit, ())]

    def machines(self) -> dict[str, dict[str, Any]]:
        """Every machine that ever registered, by id."""
        return {k[len(MACHINES) :].decode(): json.loads(i.value) for k, i in self.items(MACHINES).items()}

    def machine_name(self, machine: str) -> str:
        """The name of a machine, or its id if it has none."""
        key = MACHINES + machine.encode()
        item = self.items(MACHINES).get(key)
        return str(self._decoded(key, item)["name"]) if item is not None else machine

    def find_machine(self, text: str) -> str:
        """A machine's id from its name, id or a unique prefix of it."""
        known = self.machines()
        if text in known:
            return text
        named = [m for m, about in known.items() if about["name"] == text]
        found = named or [m for m in known if m.startswith(text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise BadRequest(f"machine {text!r} is ambiguous: {', '.join(sorted(found))}")
        raise Missing(f"no machine is called {text!r}")

    def commit(self, command: list[Any], promise: Promise, then: Callable[[Any], None]) -> None:
        """Commit, then go on; a refusal answers the asker."""

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
                return
            try:
                then(value)
            except Exception as failure:  # noqa: BLE001 - the asker must hear of it
                promise.fail(failure)

        self.propose(command, done)

    def wait_for(
        self, condition: Callable[[], Any], promise: Promise, timeout: float, why_not: Callable[[], str]
    ) -> None:
        """Answer with the condition's value as soon as it is not None."""
        self._waits.append((condition, promise, self.now() + timeout, why_not))
        self._check_waits()

    def _check_waits(self) -> None:
        self._checking = False
        if not self._waits:
            return
        left = []
        now = self.now()
        for condition, promise, deadline, why_not in self._waits:
            value = condition()
            if value is not None:
                promise.reply(value)
            elif now >= deadline:
                promise.fail(BrainError(TIMED_OUT, why_not()))
            else:
                left.append((condition, promise, deadline, why_not))
        self._waits = left

    def query(self, function: Callable[[Store], Any], promise: Promise, linearizable: bool) -> None:
        """Read the store, then answer."""

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                promise.reply(value)

        self.ask_then(self.raft_ref, Query(function, linearizable), 6.0, done)

    def relay(self, ref: Any, message: Any, promise: Promise, timeout: float = 6.0) -> None:
        """Let another actor answer."""

        def done(value: Any, error: BaseException | None) -> None:
            if error is not None:
                promise.fail(error)
            else:
                promise.reply(value)

        self.ask_then(ref, message, timeout, done)

    def on(self, machine: str, command: Command, promise: Promise, timeout: float = 6.0) -> None:
        """Carry a command out on another machine."""
        ref = self.actor_ref if machine == self.machine else self.router.ref(machine, "control")
        if machine == self.machine:
            try:
                value = self._on_command(command)
            except Exception as error:  # noqa: BLE001
                promise.fail(error)
                return
            if isinstance(value, Promise):
                value.chain(promise)
            else:
                promise.reply(value)
            return
        self.relay(ref, command, promise, timeout)


class Then:
    """Calls one of two functions with an outcome."""

    def __init__(self, then: Callable[[Any], None], otherwise: Callable[[BaseException], None]) -> None:
        self._then = then
        self._otherwise = otherwise

    def set(self, value: Any) -> None:
        """Answered."""
        self._then(value)

    def set_exception(self, exc_info: Any) -> None:
        """Refused."""
        self._otherwise(exc_info[1])
