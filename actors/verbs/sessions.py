"""Verbs of sessions: a command that an operator runs inside a unit, wherever that runs."""

from __future__ import annotations

import math
from typing import Any

from fleet import names
from kernel.mailbox import Promise

from ..brain_client import UNITS
from ..command import Command
from ..control import BadRequest, Control, Failed, Missing, Then, verb
from ..sessions import WAIT_S_MAX
from ..unit_messages import Enter, Exchange
from ..wanted import Known

#: Words of one command, and characters of one of them.
WORDS_MAX, WORD_CHARS_MAX = 1000, 131_072


@verb("unit.enter")
def _unit_enter(control: Control, args: dict[str, Any]) -> Promise:
    """Begin a command inside a unit that runs; answers its name, the machine, and the session."""
    unit = Known(control.items(UNITS)).canonical(names.parse(str(args["unit"])).full)
    running = sorted(m for m, state in control.states_of(unit).items() if state["active"] != "inactive")
    if args.get("machine"):
        running = [m for m in running if m == control.find_machine(str(args["machine"]))]
    if not running and not control.states_of(unit) and control.wanted(unit) is None:
        raise Missing(f"no unit is called {unit}")
    if not running:
        raise Failed(f"{unit} does not run{' there' if args.get('machine') else ''}")
    if len(running) > 1:
        raise BadRequest(f"{unit} runs on several machines; --machine: {', '.join(map(control.machine_name, running))}")
    promise = Promise()
    inner = Promise()
    inner.bind(Then(lambda name: promise.reply({"unit": unit, "machine": running[0], "session": name}), promise.fail))
    about = {"unit": unit, "argv": args["argv"], "size": args.get("size")}
    control.on(running[0], Command("host.enter", about), inner)
    return promise


@verb("unit.exchange")
def _unit_exchange(control: Control, args: dict[str, Any]) -> Promise:
    """Input for a session's command and what it said; see :class:`Exchange`."""
    promise = Promise()
    wait = _wait(args.get("wait") or 0.0)
    control.on(str(args["machine"]), Command("host.exchange", args), promise, wait + 6.0)
    return promise


def _wait(value: Any) -> float:
    """Seconds that an exchange waits for news, as far as it may."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest("wait: a number of seconds")
    return min(max(float(value), 0.0), WAIT_S_MAX)


def _size(value: Any) -> tuple[int, int] | None:
    """Rows and columns of a terminal."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(number, int) for number in value):
        raise BadRequest("a terminal's size is two numbers: rows and columns")
    rows, columns = value
    if not (0 < rows < 65536 and 0 < columns < 65536):
        raise BadRequest(f"a terminal has 1 to 65535 rows and columns, not {rows} and {columns}")
    return rows, columns


def _supervisor(control: Control, unit: str) -> Any:
    ref = control.system.find(f"units/{unit}")
    if ref is None:
        raise Missing(f"{unit} is not on {control.machine_name(control.machine)}")
    return ref


@verb("host.enter")
def _host_enter(control: Control, args: dict[str, Any]) -> Promise:
    if not isinstance(args["argv"], list | tuple):
        raise BadRequest("a command is a list of words")
    argv = tuple(map(str, args["argv"]))
    if not argv or len(argv) > WORDS_MAX or max(map(len, argv)) > WORD_CHARS_MAX or any("\0" in word for word in argv):
        raise BadRequest(f"a command has 1 to {WORDS_MAX} words of at most {WORD_CHARS_MAX} characters")
    promise = Promise()
    control.relay(_supervisor(control, str(args["unit"])), Enter(argv, _size(args.get("size"))), promise)
    return promise


@verb("host.exchange")
def _host_exchange(control: Control, args: dict[str, Any]) -> Promise:
    promise = Promise()
    wait = None if args.get("wait") is None else _wait(args["wait"])
    data = args.get("data") or b""
    if not isinstance(data, bytes):
        raise BadRequest("a session's input is bytes")
    message = Exchange(
        str(args["session"]), data, bool(args.get("is_over")), _size(args.get("size")), wait
    )
    control.relay(_supervisor(control, str(args["unit"])), message, promise, (wait or 0.0) + 5.0)
    return promise
