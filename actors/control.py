"""The control actor: what an operator may ask of a host, one verb at a time.

Every command of the command line is one :class:`Command` to this actor.  It checks input,
reads the mirrors, commits changes, and waits for what the operator waits for; nothing here
decides where a unit runs or whether it does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from brain.store import OWN_PREFIX, Item, Store, StoreError, prefix_end
from fleet import names, placement, unitfile
from fleet.placement import Candidate, Placements
from kernel.actor import handles
from kernel.mailbox import Promise
from kernel.ports import Ports
from transport.codec import wire
from transport.router import FromClient, Router

from .brain_client import ALIVE, MACHINES, PLACES, STATES, TOKENS, UNITS, BrainActor
from .lock_manager import Acquire, LockStatus, Release, SetMax
from .raft_messages import (
    TIMED_OUT,
    BrainError,
    ChangeConfig,
    Propose,
    Query,
    Status,
    TransferLeadership,
)

#: Largest value and key an operator may write, in bytes.
VALUE_BYTES_MAX = 1536 * 1024
KEY_BYTES_MAX = 4096
#: Units one command may name.
UNITS_MAX = 10_000
DESIRED = {"inactive": 0, "loaded": 1, "launched": 2}


@wire(30)
@dataclass(frozen=True, slots=True)
class Command:
    """Ask: carry out an operator's verb.  Answer: plain data for the terminal."""

    verb: str
    args: dict[str, Any]


class BadRequest(Exception):
    """The operator's input is wrong; the text says what is accepted."""

    code = "bad_request"


class Missing(Exception):
    """What was named does not exist."""

    code = "missing"


class Failed(Exception):
    """It was tried and did not work."""

    code = "failed"


_VERBS: dict[str, Callable[[Control, dict[str, Any]], Any]] = {}


def _verb(name: str) -> Any:
    def register(function: Any) -> Any:
        _VERBS[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Authority:
    """What a host needs to let others in; the key only where this host may sign."""

    certificate: bytes
    sign: Callable[[bytes, str, str], bytes] | None  # request, name, role


class Control(BrainActor):
    """See the module docstring."""

    def __init__(
        self, machine: str, cluster: str, ports: Ports, raft_ref: Any, router: Router,
        authority: Authority | None, version: str,
    ) -> None:  # fmt: skip
        super().__init__(raft_ref)
        self.machine = machine
        self.cluster = cluster
        self._ports = ports
        self._router = router
        self._authority = authority
        self._version = version
        self._waits: list[tuple[Callable[[], Any], Promise, float, Callable[[], str]]] = []
        self._pictures: dict[bytes, Any] = {}

    def on_start(self) -> None:
        """Mirror what listings show."""
        for prefix in (UNITS, PLACES, STATES, MACHINES, ALIVE):
            self._pictures[prefix] = self.mirror(
                prefix, lambda items: self._check_waits(), lambda key, item, prev: self._check_waits()
            )
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

    @handles(Command)
    def _on_command(self, command: Command) -> Any:
        function = _VERBS.get(command.verb)
        if function is None:
            raise BadRequest(f"no command is called {command.verb!r}; this host has version {self._version}")
        try:
            return function(self, command.args)
        except (KeyError, TypeError) as error:
            raise BadRequest(f"{command.verb}: an argument is missing or of a wrong type: {error}") from None
        except (unitfile.UnitFileError, names.NameError_) as error:
            raise BadRequest(str(error)) from None

    # -- helpers ----------------------------------------------------------------------------

    def _items(self, prefix: bytes) -> dict[bytes, Item]:
        items: dict[bytes, Item] = self._pictures[prefix].items
        return items

    def units(self) -> dict[str, dict[str, Any]]:
        """What is wanted, by unit."""
        return {k[len(UNITS) :].decode(): json.loads(i.value) for k, i in self._items(UNITS).items()}

    def states(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What is true, by (unit, machine)."""
        out = {}
        for key, item in self._items(STATES).items():
            machine, _, unit = key[len(STATES) :].decode().partition("/")
            out[unit, machine] = json.loads(item.value)
        return out

    def places(self) -> dict[str, list[str]]:
        """What was decided: unit -> machines."""
        out: dict[str, list[str]] = {}
        for key in self._items(PLACES):
            machine, _, unit = key[len(PLACES) :].decode().partition("/")
            out.setdefault(unit, []).append(machine)
        return out

    def machines(self) -> dict[str, dict[str, Any]]:
        """Every machine that ever registered, by id."""
        return {k[len(MACHINES) :].decode(): json.loads(i.value) for k, i in self._items(MACHINES).items()}

    def machine_name(self, machine: str) -> str:
        """The name of a machine, or its id if it has none."""
        item = self._items(MACHINES).get(MACHINES + machine.encode())
        return json.loads(item.value)["name"] if item is not None else machine

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
        ref = self.actor_ref if machine == self.machine else self._router.ref(machine, "control")
        if machine == self.machine:
            try:
                value = self._on_command(command)
            except Exception as error:  # noqa: BLE001
                promise.fail(error)
                return
            if isinstance(value, Promise):
                value.bind(_Chain(promise))
            else:
                promise.reply(value)
            return
        self.relay(ref, command, promise, timeout)


class _Chain:
    """Hands one promise's outcome to another."""

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def set(self, value: Any) -> None:
        """Answered."""
        self._promise.reply(value)

    def set_exception(self, exc_info: Any) -> None:
        """Refused."""
        self._promise.fail(exc_info[1])


# -- cluster and machines ----------------------------------------------------------------------


@_verb("version")
def _version(control: Control, _: dict[str, Any]) -> Any:
    return {"version": control._version, "machine": control.machine}  # noqa: SLF001


@_verb("cluster.status")
def _cluster_status(control: Control, _: dict[str, Any]) -> Promise:
    """The leader's view if it can be had, else this host's own, which says so."""
    promise = Promise()

    def own(status: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        leader = status["leader"]
        if not leader or leader == control.machine:
            promise.reply(_status(control, status))
            return

        def leaders(answer: Any, trouble: BaseException | None) -> None:
            if trouble is None:
                answer["leader"] = leader
                promise.reply(_status(control, answer))
            else:
                promise.reply(_status(control, {**status, "leader": ""}))

        ref = control._router.ref(leader, "control")  # noqa: SLF001
        control.ask_then(ref, Command("raft.status", {}), 2.0, leaders)

    control.ask_then(control.raft_ref, Status(), 6.0, own)
    return promise


@_verb("raft.status")
def _raft_status(control: Control, _: dict[str, Any]) -> Promise:
    promise = Promise()
    control.relay(control.raft_ref, Status(), promise)
    return promise


def _status(control: Control, status: dict[str, Any]) -> dict[str, Any]:
    voters, leader = status["voters"], status["leader"]
    up = {*status["active"], status["id"]} if leader == status["id"] else {status["id"]}
    members = []
    for member in sorted({*voters, *status["learners"]}):
        name, address, _ = status["info"].get(member, ["", "", ""])
        state = "unknown" if not leader else "active" if member in up else "unreachable"
        members.append(
            {
                "id": member, "name": name, "address": address,
                "role": "leader" if member == leader else "voter" if member in voters else "learner",
                "state": state,
            }
        )  # fmt: skip
    quorum = len(voters) // 2 + 1
    return {
        "name": control.cluster,
        "members": members,
        "leader": status["info"].get(leader, [leader])[0] if leader else "",
        "term": status["term"],
        "commit_index": status["commit_index"],
        "revision": status["revision"],
        "quorum_margin": len(up & set(voters)) - quorum if leader else -1,
    }


@_verb("cluster.token")
def _cluster_token(control: Control, args: dict[str, Any]) -> Promise:
    """A token that lets one host join within its time: id, secret and the authority's digest."""
    promise = Promise()
    if control._authority is None:  # noqa: SLF001
        raise BadRequest("this cluster runs without TLS: a host joins without a token")
    ttl_s = int(args.get("ttl_s", 3600))
    if not 60 <= ttl_s <= 7 * 86400:
        raise BadRequest(f"--ttl: 60 to 604800 seconds, not {ttl_s}")
    draw = control._ports.rng.token  # noqa: SLF001
    ident, secret = draw()[:12], draw()
    record = {"hash": hashlib.sha256(secret.encode()).hexdigest(), "role": args.get("role", "voter")}
    lease = int(draw()[:15], 16) + 1

    def granted(_: Any) -> None:
        value = json.dumps(record).encode()
        control.commit(["put", TOKENS + ident.encode(), value, lease], promise, written)

    def written(_: Any) -> None:
        pin = _pin(control._authority.certificate)  # type: ignore[union-attr] # noqa: SLF001
        promise.reply({"token": f"{ident}.{secret}.{pin}", "ttl_s": ttl_s})

    control.commit(["lease_grant", lease, ttl_s * 1000], promise, granted)
    return promise


def _pin(certificate: bytes) -> str:
    from transport.tls import fingerprint

    return fingerprint(certificate)


@_verb("authority")
def _authority(control: Control, _: dict[str, Any]) -> Any:
    if control._authority is None:  # noqa: SLF001
        raise BadRequest("this cluster runs without TLS")
    return {"certificate": control._authority.certificate, "cluster": control.cluster}  # noqa: SLF001


@_verb("join")
def _join(control: Control, args: dict[str, Any]) -> Promise:
    """A guest with a token becomes a member: its certificate, and where the others are."""
    promise = Promise()
    authority = control._authority  # noqa: SLF001
    if authority is None or authority.sign is None:
        raise BadRequest("this host cannot sign; ask a voter")
    ident, _, secret = str(args["token"]).partition(".")
    name, address, url = str(args["name"]), str(args["address"]), str(args["url"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", name):
        raise BadRequest(f"--name {name!r}: letters, digits, '.' and '-'")
    machine = str(args["machine"])
    if not re.fullmatch(r"[0-9a-f]{32}", machine):
        raise BadRequest("a machine id is 32 hexadecimal digits")
    if any(a["name"] == name and m != machine for m, a in control.machines().items()):
        raise BadRequest(f"--name {name}: another machine has this name")
    request = args["request"]

    def read(store: Store) -> Any:
        item = store.live.get(TOKENS + ident.encode())
        return item.value if item is not None else None

    def checked(value: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        record = json.loads(value) if value is not None else None
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if record is None or record["hash"] != digest:
            promise.fail(BadRequest("--token: unknown, used up or expired"))
            return
        assert authority is not None and authority.sign is not None
        certificate = authority.sign(request, machine, "machine")
        change = ChangeConfig("add_learner", machine, (name, address, url))

        def added(_: Any, trouble: BaseException | None) -> None:
            if trouble is not None:
                promise.fail(trouble)
                return
            control.propose(["delete", TOKENS + ident.encode()])
            promise.reply(
                {"certificate": certificate, "cluster": control.cluster, "role": record["role"]}
            )

        control.ask_then(control.raft_ref, change, 6.0, added)

    control.ask_then(control.raft_ref, Query(read, True), 6.0, checked)
    return promise


@_verb("cluster.promote")
def _promote(control: Control, args: dict[str, Any]) -> Promise:
    """A learner that has caught up becomes a voter (a joining host asks this for itself)."""
    promise = Promise()
    control.relay(control.raft_ref, ChangeConfig("promote", str(args["machine"])), promise)
    return promise


@_verb("cluster.transfer")
def _transfer(control: Control, args: dict[str, Any]) -> Any:
    to = control.find_machine(str(args["to"])) if args.get("to") else ""
    control.raft_ref.tell(TransferLeadership(to))
    return True


@_verb("machine.list")
def _machine_list(control: Control, _: dict[str, Any]) -> Promise:
    promise = Promise()

    def done(status: Any, error: BaseException | None) -> None:
        voters = set(status["voters"]) if error is None else set()
        promise.reply([_machine(control, m, a, voters) for m, a in sorted(
            control.machines().items(), key=lambda pair: pair[1]["name"])])  # fmt: skip

    control.ask_then(control.raft_ref, Status(), 6.0, done)
    return promise


def _machine(control: Control, machine: str, about: dict[str, Any], voters: set[str]) -> dict[str, Any]:
    alive = control._items(ALIVE).get(ALIVE + machine.encode())  # noqa: SLF001
    count = sum(machine in where for where in control.places().values())
    return {
        "id": machine, "name": about["name"], "address": about["address"],
        "metadata": about["metadata"], "state": "ready" if alive is not None else "lost",
        "voter": machine in voters, "units": count, "version": about["version"], "slot": "",
        "last_seen_s": 0.0 if alive is not None else None, "endpoint": about["endpoint"],
    }  # fmt: skip


@_verb("machine.show")
def _machine_show(control: Control, args: dict[str, Any]) -> Any:
    machine = control.find_machine(str(args["machine"]))
    about = control.machines()[machine]
    shown = _machine(control, machine, about, set())
    del shown["voter"]
    shown["running"] = sorted(u for u, where in control.places().items() if machine in where)
    return shown


@_verb("machine.remove")
def _machine_remove(control: Control, args: dict[str, Any]) -> Promise:
    """Take a lost machine out of the cluster for good."""
    machine = control.find_machine(str(args["machine"]))
    if ALIVE + machine.encode() in control._items(ALIVE):  # noqa: SLF001
        raise BadRequest(f"{control.machine_name(machine)} is alive; stop its host first")
    promise = Promise()

    def removed(_: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        control.propose(["lock", "default", "forget", {"machine": control.machine_name(machine)}])
        control.commit(["delete", MACHINES + machine.encode()], promise, lambda _: promise.reply(True))

    control.ask_then(control.raft_ref, ChangeConfig("remove", machine), 6.0, removed)
    return promise


# -- units -------------------------------------------------------------------------------------


def _unit_names(args: dict[str, Any]) -> list[str]:
    out: list[str] = []
    for pattern in args["units"]:
        out += [names.parse(name).full for name in names.expand(str(pattern))]
    if not out:
        raise BadRequest("name at least one unit")
    if len(out) > UNITS_MAX:
        raise BadRequest(f"units_max: {UNITS_MAX} units in one command, these are {len(out)}")
    return list(dict.fromkeys(out))


@_verb("unit.submit")
def _unit_submit(control: Control, args: dict[str, Any]) -> Promise:
    """Check and store unit files; an equal one is no change, another one needs ``replace``."""
    promise = Promise()
    known = control.units()
    warnings: list[str] = []
    problems: list[unitfile.Problem] = []
    steps: list[Any] = []
    answers: list[dict[str, Any]] = []
    for file in args["files"]:
        name = names.parse(str(file["name"]))
        try:
            warnings += unitfile.load(name.full, str(file["content"]), file=str(file.get("path", "")))[1]
        except unitfile.UnitFileError as error:
            problems += error.problems
            continue
        digest = unitfile.content_hash(file["content"])
        old = known.get(name.full)
        change = "none" if old and old["hash"] == digest else "replaced" if old else "created"
        if change == "replaced" and not args.get("replace"):
            warnings.append(f"{name.full} differs from what is stored; --replace takes the new one")
            change = "kept"
        answers.append({"unit": name.full, "change": change})
        if change in ("created", "replaced"):
            record = {
                "content": file["content"], "hash": digest,
                "desired": old["desired"] if old else "inactive",
                "restarts": old.get("restarts", 0) if old else 0,
            }  # fmt: skip
            steps.append(["put", UNITS + name.full.encode(), _json(record)])
    if problems:
        raise unitfile.UnitFileError(problems)
    _commit_steps(control, steps, promise, lambda: promise.reply({"units": answers, "warnings": warnings}))
    return promise


def _commit_steps(
    control: Control, steps: list[Any], promise: Promise, then: Callable[[], None]
) -> None:
    """Commit in transactions of at most 100 steps, one after another."""
    if not steps:
        then()
        return
    control.commit(
        ["txn", [], steps[:100], []], promise,
        lambda _: _commit_steps(control, steps[100:], promise, then),
    )  # fmt: skip


def _desire(control: Control, args: dict[str, Any], desired: str, bump: bool = False) -> list[Any]:
    """The steps that make units wanted in a state; instances are made from templates."""
    known = control.units()
    steps: list[Any] = []
    for unit in _unit_names(args):
        record = known.get(unit)
        if record is None:
            record = _from_template(known, unit)
        parsed = names.parse(unit)
        if parsed.is_template:
            raise BadRequest(f"{unit} is a template: name an instance like {parsed.prefix}@1.service")
        changed = {**record, "desired": desired}
        failed = any(s["active"] == "failed" for s in _states_of(control, unit))
        if bump or (desired == "launched" and failed):  # starting what failed is another try
            changed["restarts"] = record.get("restarts", 0) + 1
        if changed != known.get(unit):
            steps.append(["put", UNITS + unit.encode(), _json(changed)])
    return steps


def _from_template(known: dict[str, Any], unit: str) -> dict[str, Any]:
    template = names.parse(unit).template
    if not template or template not in known:
        also = f", nor its template {template}" if template else ""
        raise Missing(f"no unit is called {unit}{also}; submit its file first")
    content = known[template]["content"]
    unitfile.load(unit, content)
    return {"content": content, "hash": unitfile.content_hash(content), "desired": "inactive", "restarts": 0}


def _change(desired: str, settled: Callable[[Control, str], Any], bump: bool = False) -> Any:
    """A verb that changes what is wanted and waits until it is so."""

    def run(control: Control, args: dict[str, Any]) -> Promise:
        promise = Promise()
        units = _unit_names(args)
        steps = _desire(control, args, desired, bump)
        timeout = float(args.get("within", 60.0))

        def committed() -> None:
            if args.get("no_block"):
                promise.reply(_rows(control, units))
                return

            def condition() -> Any:
                failures = [f for u in units if (f := settled(control, u)) not in (True, False)]
                if failures:
                    raise_later(Failed("; ".join(failures)))
                    return None
                done = all(settled(control, u) is True for u in units)
                return _rows(control, units) if done else None

            def raise_later(error: Exception) -> None:
                promise.fail(error)

            control.wait_for(
                lambda: True if promise.done else condition(), promise, timeout,
                lambda: _why_not(control, [u for u in units if settled(control, u) is not True]),
            )  # fmt: skip

        _commit_steps(control, steps, promise, committed)
        return promise

    return run


def _why_not(control: Control, units: list[str]) -> str:
    lines = [f"{unit}: {_why(control, unit)['reason']}" for unit in units[:10]]
    return "not done in time: " + "; ".join(lines)


def _states_of(control: Control, unit: str) -> list[dict[str, Any]]:
    return [s for (u, _), s in control.states().items() if u == unit]


def _is_started(control: Control, unit: str) -> Any:
    record = control.units().get(unit)
    if record is None or unit not in control.places():
        return False
    current = (record["hash"], record.get("restarts", 0))
    states = [s for s in _states_of(control, unit) if (s["hash"], s.get("asked", 0)) == current]
    if not states or len(states) < len(_states_of(control, unit)):
        return False
    for state in states:
        if state["active"] == "failed":
            return f"{unit} failed: {state.get('problem') or state['result']} ({state.get('last_exit', 'no exit')})"
        done_oneshot = state["sub"] == "dead" and state["result"] == "success" and state.get("last_exit")
        if not (state["active"] == "active" and state["health"] != "failing") and not done_oneshot:
            return False
    return True


def _is_stopped(control: Control, unit: str) -> Any:
    return all(s["active"] in ("inactive", "failed") for s in _states_of(control, unit))


def _is_loaded(control: Control, unit: str) -> Any:
    return unit in control.places() and bool(_states_of(control, unit)) and _is_stopped(control, unit)


def _is_off(control: Control, unit: str) -> Any:
    return unit not in control.places() and not _states_of(control, unit)


_VERBS["unit.start"] = _change("launched", _is_started)
_VERBS["unit.stop"] = _change("loaded", _is_stopped)
_VERBS["unit.load"] = _change("loaded", _is_loaded)
_VERBS["unit.unload"] = _change("inactive", _is_off)
_VERBS["unit.restart"] = _change("launched", _is_started, bump=True)


@_verb("unit.destroy")
def _unit_destroy(control: Control, args: dict[str, Any]) -> Promise:
    """Forget units; what runs is stopped, and gone when this answers."""
    promise = Promise()
    known = control.units()
    units = _unit_names(args)
    missing = [u for u in units if u not in known]
    if missing:
        raise Missing(f"no unit is called {', '.join(missing)}")
    steps = [["delete", UNITS + u.encode()] for u in units]

    def committed() -> None:
        if args.get("no_block"):
            promise.reply(True)
            return
        control.wait_for(
            lambda: True if all(_is_off(control, u) for u in units) else None, promise,
            float(args.get("within", 60.0)), lambda: "still stopping: " + ", ".join(units),
        )  # fmt: skip

    _commit_steps(control, steps, promise, committed)
    return promise


@_verb("unit.cat")
def _unit_cat(control: Control, args: dict[str, Any]) -> Any:
    unit = names.parse(str(args["unit"])).full
    record = control.units().get(unit)
    if record is None:
        raise Missing(f"no unit is called {unit}")
    return record["content"]


@_verb("unit.list")
def _unit_list(control: Control, _: dict[str, Any]) -> Any:
    known = control.units()
    placed = control.places()
    return _rows(control, sorted(u for u in known if not names.parse(u).is_template or u in placed))


@_verb("unit.files")
def _unit_files(control: Control, _: dict[str, Any]) -> Any:
    return [
        {"unit": u, "hash": r["hash"], "desired": r["desired"], "machines": sorted(
            control.machine_name(m) for m in control.places().get(u, ()))}
        for u, r in sorted(control.units().items())
    ]  # fmt: skip


def _rows(control: Control, units: list[str]) -> list[dict[str, Any]]:
    """One row per unit and machine, with the contract's keys."""
    known, states, placed = control.units(), control.states(), control.places()
    now = control._ports.clock.wall()  # noqa: SLF001
    by_unit: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for (unit, machine), state in states.items():
        by_unit.setdefault(unit, []).append((machine, state))
    rows = []
    for unit in units:
        record = known.get(unit, {"desired": "inactive", "hash": ""})
        seen = sorted(by_unit.get(unit, []), key=lambda pair: control.machine_name(pair[0]))
        waiting = sorted(set(placed.get(unit, ())) - {m for m, _ in seen})
        if not seen and not waiting:
            rows.append(_row(unit, "", record, None, now))
        rows += [_row(unit, control.machine_name(m), record, s, now) for m, s in seen]
        rows += [_row(unit, control.machine_name(m), record, None, now) for m in waiting]
    return rows


def _row(
    unit: str, machine: str, record: dict[str, Any], state: dict[str, Any] | None, now: float
) -> dict[str, Any]:
    seen = state or {}
    return {
        "unit": unit, "machine": machine, "desired": record["desired"],
        "load": seen.get("load", "loaded"), "active": seen.get("active", "inactive"),
        "sub": seen.get("sub", "dead"), "health": seen.get("health", "none"),
        "restarts": seen.get("restarts", 0), "hash": seen.get("hash", record["hash"]),
        "pid_or_container": seen.get("pid") or None,
        "since_s": round(max(0.0, now - seen["since"]), 1) if "since" in seen else None,
        "result": seen.get("result", "success"), "ports": seen.get("ports", {}),
        "fence": seen.get("fence", 0),
    }  # fmt: skip


@_verb("unit.status")
def _unit_status(control: Control, args: dict[str, Any]) -> Promise:
    """Rows of a unit with why it is so and its last log lines."""
    promise = Promise()
    unit = _known_unit(control, args)
    rows = _rows(control, [unit])
    status = {"unit": unit, "rows": rows, "why": _why(control, unit), "log": []}
    machines = [m for (u, m) in control.states() if u == unit]
    if not machines:
        promise.reply(status)
        return promise
    logs = Promise()
    logs.bind(_Then(lambda value: promise.reply({**status, "log": value["lines"]}),
                    lambda error: promise.reply(status)))  # fmt: skip
    control.on(machines[0], Command("host.log", {"unit": unit, "lines": 10}), logs)
    return promise


class _Then:
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


def _known_unit(control: Control, args: dict[str, Any]) -> str:
    unit = names.parse(str(args["unit"])).full
    if unit not in control.units() and not _states_of(control, unit):
        raise Missing(f"no unit is called {unit}")
    return unit


@_verb("unit.logs")
def _unit_logs(control: Control, args: dict[str, Any]) -> Promise:
    """The last lines, or what came after a position, from the machine that runs the unit."""
    unit = names.parse(str(args["unit"])).full
    machines = [m for (u, m) in control.states() if u == unit] or control.places().get(unit, [])
    if args.get("machine"):
        machines = [control.find_machine(str(args["machine"]))]
    if not machines:
        _known_unit(control, args)
        machines = [control.machine]
    promise = Promise()
    target = sorted(machines)[0]
    inner = Promise()
    inner.bind(_Then(
        lambda value: promise.reply({**value, "machine": control.machine_name(target)}), promise.fail
    ))  # fmt: skip
    control.on(target, Command("host.log", {**args, "unit": unit}), inner)
    return promise


@_verb("host.log")
def _host_log(control: Control, args: dict[str, Any]) -> Any:
    lines = int(args.get("lines", 10))
    if not 0 <= lines <= 100_000:
        raise BadRequest(f"--lines: 0 to 100000, not {lines}")
    processes = control._ports.processes  # noqa: SLF001
    position, found = processes.read_log(str(args["unit"]), lines, args.get("after"))
    return {"position": position, "lines": found}


@_verb("unit.why")
def _unit_why(control: Control, args: dict[str, Any]) -> Any:
    return _why(control, _known_unit(control, args))


def _why(control: Control, unit: str) -> dict[str, Any]:
    """Why a unit is where it is, or is nowhere: one sentence, and one per machine."""
    record = control.units().get(unit)
    if record is None:
        return {"unit": unit, "reason": "it was destroyed and is being stopped", "machines": {}}
    if names.parse(unit).is_template:
        return {"unit": unit, "reason": "it is a template: instances of it run, not itself", "machines": {}}
    if record["desired"] == "inactive":
        return {"unit": unit, "reason": "nobody asked for it to be loaded or started", "machines": {}}
    where = control.places().get(unit, [])
    picture = _placements(control)
    spec = picture.units.get(unit)
    machines: dict[str, str] = {}
    if spec is not None:
        for machine, candidate in sorted(picture.machines.items()):
            refused = placement.refusal(spec, candidate, picture)
            machines[candidate.name] = refused or (
                "runs it" if machine in where else f"may run it ({len(picture.on.get(machine, ()))} units)"
            )
    alive = [m for m in where if m in picture.machines]
    if not where:
        reason = "no machine qualifies" if machines else "no machine is alive"
        if any(text.startswith("may run it") for text in machines.values()):
            reason = "it is about to be placed"
        return {"unit": unit, "reason": reason, "machines": machines}
    if not alive:
        lost = ", ".join(control.machine_name(m) for m in where)
        return {"unit": unit, "reason": f"its machine {lost} is lost; it will be moved", "machines": machines}
    seen = _states_of(control, unit)
    state = seen[0] if seen else None
    on = ", ".join(control.machine_name(m) for m in alive)
    if state is None:
        return {"unit": unit, "reason": f"placed on {on}, which has not started it yet", "machines": machines}
    detail = f"{state['active']} ({state['sub']})"
    for key in ("problem", "last_exit", "health_detail"):
        if state.get(key):
            detail += f", {key.replace('_', ' ')}: {state[key]}"
    return {"unit": unit, "reason": f"on {on}: {detail}", "machines": machines}


def _placements(control: Control) -> Placements:
    picture = Placements()
    for machine, about in control.machines().items():
        if ALIVE + machine.encode() in control._items(ALIVE):  # noqa: SLF001
            metadata = tuple(sorted(about["metadata"].items()))
            picture.machines[machine] = Candidate(machine, about["name"], metadata)
    for unit, record in control.units().items():
        try:
            picture.units[unit] = unitfile.load(unit, record["content"])[0]
        except ValueError:
            continue
    for unit, machines in control.places().items():
        for machine in machines:
            picture.place(unit, machine)
    return picture


# -- keys --------------------------------------------------------------------------------------


def _key(args: dict[str, Any], own: bool = False) -> bytes:
    key = str(args["key"]).encode()
    if not key or len(key) > KEY_BYTES_MAX:
        raise BadRequest(f"a key has 1 to {KEY_BYTES_MAX} bytes")
    if key.startswith(OWN_PREFIX) and not own:
        raise BadRequest("keys below /_argosy/ are Argosy's own and change by its commands only")
    return key


def _shown(key: bytes, item: Item) -> dict[str, Any]:
    try:
        value: Any = item.value.decode()
    except UnicodeDecodeError:
        value = item.value
    return {
        "key": key.decode("utf-8", "replace"), "value": value, "create_revision": item.create,
        "mod_revision": item.mod, "version": item.version, "lease": item.lease,
    }  # fmt: skip


@_verb("kv.get")
def _kv_get(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    key = _key(args, own=True)

    def read(store: Store) -> Any:
        item = store.live.get(key)
        return _shown(key, item) if item is not None else None

    control.query(read, promise, not args.get("local"))
    return promise


@_verb("kv.ls")
def _kv_ls(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    prefix = str(args.get("key") or "/").encode()
    limit = int(args.get("limit", 10_000))

    def read(store: Store) -> Any:
        found = store.range(prefix, prefix_end(prefix), 0, limit)
        return {
            "revision": store.revision,
            "items": [
                _shown(k, i) for k, i in found
                if prefix.startswith(OWN_PREFIX) or not k.startswith(OWN_PREFIX)
            ],
        }  # fmt: skip

    control.query(read, promise, not args.get("local"))
    return promise


@_verb("kv.put")
def _kv_put(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    value = args["value"]
    data = value if isinstance(value, bytes) else str(value).encode()
    if len(data) > VALUE_BYTES_MAX:
        raise BadRequest(f"a value has at most {VALUE_BYTES_MAX} bytes, this one {len(data)}")
    key = _key(args)
    ttl = args.get("ttl")
    if ttl is not None:
        text = key.decode("utf-8")
        if not text.startswith("/"):
            raise BadRequest("--ttl: only keys that start with /")
        command = ["v2_set", text, data, int(float(ttl) * 1000), False]
        control.commit(command, promise, lambda out: promise.reply({"revision": out.index}))
    else:
        control.commit(
            ["put", key, data, 0], promise, lambda out: promise.reply({"revision": out["revision"]})
        )
    return promise


@_verb("kv.del")
def _kv_del(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    key = _key(args)
    if args.get("prefix"):
        if OWN_PREFIX.startswith(key):
            raise BadRequest("this prefix would delete Argosy's own keys")
        end: bytes | None = prefix_end(key)
    else:
        end = None
    control.commit(
        ["delete", key, end], promise,
        lambda out: promise.reply({"revision": out["revision"], "deleted": out["deleted"]}),
    )  # fmt: skip
    return promise


@_verb("kv.watch")
def _kv_watch(control: Control, args: dict[str, Any]) -> Promise:
    """Long poll: events of a prefix from a revision on; empty after ``wait`` seconds."""
    promise = Promise()
    key = str(args["key"]).encode()
    end = prefix_end(key) if args.get("prefix") else None
    start = int(args.get("revision", 0))
    wait = min(float(args.get("wait", 20.0)), 60.0)

    def events(store: Store) -> Any:
        first = start or store.revision + 1
        out = []
        for event in store.events_since(first) if first <= store.revision else ():
            for change in event.changes:
                inside = change.key == key if end is None else key <= change.key and (not end or change.key < end)
                if not inside or change.key.startswith(OWN_PREFIX) and not key.startswith(OWN_PREFIX):
                    continue
                shown = _shown(change.key, change.item or change.prev)  # type: ignore[arg-type]
                if change.item is None:
                    shown.update(value=None, mod_revision=event.revision)
                out.append({"type": "put" if change.item else "delete", **shown})
        return store.revision, out

    poll = _Poll(control, events, promise, control.now() + wait)
    poll.look()
    return promise


class _Poll:
    """Looks at the store until something is there or the time is over."""

    def __init__(self, control: Control, function: Any, promise: Promise, deadline: float) -> None:
        self._control = control
        self._function = function
        self._promise = promise
        self._deadline = deadline
        self._first = 0

    def look(self) -> None:
        """Once more."""

        def read(store: Store) -> Any:
            if self._first == 0:
                self._first = store.revision
            return self._function(store)

        def seen(value: Any, error: BaseException | None) -> None:
            if error is not None:
                self._promise.fail(error)
            elif value[1] or self._control.now() >= self._deadline:
                self._promise.reply({"revision": value[0], "events": value[1]})
            else:
                self._control.after(0.05, self.look)

        self._control.ask_then(self._control.raft_ref, Query(read), 6.0, seen)


# -- locks -------------------------------------------------------------------------------------


def _locks(control: Control) -> Any:
    ref = control.system.find("lock-manager")
    if ref is None:
        raise Failed("the lock manager is not running on this host")
    return ref


@_verb("lock.status")
def _lock_status(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    control.relay(_locks(control), LockStatus(str(args.get("group") or "")), promise)
    return promise


@_verb("lock.acquire")
def _lock_acquire(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    wait = float(args.get("wait", 0.0))
    message = Acquire(
        str(args.get("group") or "default"), str(args["machine"]), str(args.get("reason", "")), wait
    )
    control.relay(_locks(control), message, promise, wait + 6.0)
    return promise


@_verb("lock.release")
def _lock_release(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    message = Release(
        str(args.get("group") or "default"), str(args["machine"]), int(args.get("token") or 0),
        bool(args.get("force")),
    )  # fmt: skip
    control.relay(_locks(control), message, promise)
    return promise


@_verb("lock.set-max")
def _lock_set_max(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    message = SetMax(str(args.get("group") or "default"), int(args["max"]))
    control.relay(_locks(control), message, promise)
    return promise


# -- actors ------------------------------------------------------------------------------------


@_verb("actor.list")
def _actor_list(control: Control, args: dict[str, Any]) -> Promise:
    """Actors of all machines that answer, or of this host only."""
    promise = Promise()
    own = [
        {
            "path": box.path, "class": type(box.actor).__name__,
            "machine": control.machine_name(control.machine), "mailbox": len(box.user),
            "handled": box.handled, "restarts": box.restarts,
            "state": "suspended" if box.suspended else "running",
        }
        for box in control.system.mailboxes()
    ]  # fmt: skip
    if args.get("here"):
        promise.reply(own)
        return promise
    others = [
        m for m in control.machines()
        if m != control.machine and ALIVE + m.encode() in control._items(ALIVE)  # noqa: SLF001
    ]
    waiting = len(others)

    def answered(rows: Any, error: BaseException | None) -> None:
        nonlocal waiting
        waiting -= 1
        if error is None:
            own.extend(rows)
        if not waiting:
            promise.reply(sorted(own, key=lambda row: row["path"]))

    if not others:
        promise.reply(own)
    for machine in others:
        ref = control._router.ref(machine, "control")  # noqa: SLF001
        control.ask_then(ref, Command("actor.list", {"here": True}), 3.0, answered)
    return promise


def _actor(control: Control, args: dict[str, Any], verb: str) -> Any:
    """Find the actor here, or hand the command to its machine."""
    path = str(args["path"])
    machine_part, _, rest = path.partition("/")
    if not rest:
        raise BadRequest(f"{path!r}: an actor's path is MACHINE/NAME, see 'argosy actor list'")
    machine = control.find_machine(machine_part)
    if machine != control.machine:
        promise = Promise()
        control.on(machine, Command(verb, args), promise)
        return None, promise
    ref = control.system.find(rest)
    if ref is None:
        raise Missing(f"no actor is at {path}")
    return ref, None


@_verb("actor.tell")
def _actor_tell(control: Control, args: dict[str, Any]) -> Any:
    ref, elsewhere = _actor(control, args, "actor.tell")
    if elsewhere is not None:
        return elsewhere
    ref.tell(_message(args))
    return True


@_verb("actor.ask")
def _actor_ask(control: Control, args: dict[str, Any]) -> Any:
    ref, elsewhere = _actor(control, args, "actor.ask")
    if elsewhere is not None:
        return elsewhere
    promise = Promise()
    control.relay(ref, _message(args), promise)
    return promise


def _message(args: dict[str, Any]) -> Any:
    """Only messages that are meant for operators: ``{"type": "Status"}`` and the like."""
    body = args["message"]
    if not isinstance(body, dict) or body.get("type") not in _OPEN_MESSAGES:
        known = ", ".join(sorted(_OPEN_MESSAGES))
        raise BadRequest(f'a message is {{"type": NAME, ...}} with one of: {known}')
    fields = {k: v for k, v in body.items() if k != "type"}
    try:
        return _OPEN_MESSAGES[body["type"]](**fields)
    except TypeError as error:
        raise BadRequest(f"{body['type']}: {error}") from None


_OPEN_MESSAGES: dict[str, Any] = {
    "Status": Status,
    "TransferLeadership": TransferLeadership,
    "LockStatus": LockStatus,
    "Command": Command,
}


@_verb("actor.kill")
def _actor_kill(control: Control, args: dict[str, Any]) -> Any:
    ref, elsewhere = _actor(control, args, "actor.kill")
    if elsewhere is not None:
        return elsewhere
    promise = Promise()
    control.after(0.01, ref.kill)  # so that killing the control actor still answers
    promise.reply(True)
    return promise


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


__all__ = ["Authority", "BadRequest", "Command", "Control", "Failed", "Missing", "Propose", "StoreError"]
