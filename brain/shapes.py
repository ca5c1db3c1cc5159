"""What a command may look like.

A committed command is applied by every peer, at every start: one that raises would stop
them all.  So its form is checked before anything is touched, and a wrong one is a refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def data(value: Any) -> bool:
    """Bytes."""
    return type(value) is bytes


def text(value: Any) -> bool:
    """Text."""
    return type(value) is str


def number(value: Any) -> bool:
    """A number from zero on, of 63 bits; True is none."""
    return type(value) is int and 0 <= value < 2**63


def whole(value: Any) -> bool:
    """A whole number of either sign, of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def flag(value: Any) -> bool:
    """True or false."""
    return type(value) is bool


def table(value: Any) -> bool:
    """A map."""
    return type(value) is dict


def optional(check: Check) -> Check:
    """None, or what ``check`` takes."""
    return lambda value: value is None or check(value)


def each(check: Check) -> Check:
    """A list of what ``check`` takes."""
    return lambda value: type(value) is list and all(check(item) for item in value)


def compare(value: Any) -> bool:
    """``[key, target, operator, operand, end]``: values compare with bytes, the rest with numbers."""
    if type(value) is not list or not 4 <= len(value) <= 5 or not data(value[0]):
        return False
    operand_fits = data(value[3]) if value[1] == "value" else whole(value[3])
    targets = ("value", "create", "mod", "version", "lease")
    known = value[1] in targets and value[2] in ("=", "!=", "<", ">")
    return operand_fits and known and all(map(optional(data), value[4:]))


def options(value: Any) -> bool:
    """The fields of ``kv.Options``, in order."""
    if type(value) is not list or len(value) != 10 or type(value[9]) is not bool:
        return False
    numbers = (*value[:2], *value[5:9])
    orders = ("", "ascend", "descend")
    targets = ("key", "version", "create", "mod", "value")
    return all(map(number, numbers)) and value[2] in orders and value[3] in targets and flag(value[4])


def step(value: Any) -> bool:
    """One operation of a transaction."""
    if type(value) is not list or len(value) < 2 or not text(value[0]):
        return False
    verb, rest = value[0], value[2:]
    if verb == "txn":
        return len(value) == 4 and each(compare)(value[1]) and all(map(each(step), rest))
    if not data(value[1]):
        return False
    if verb == "put":
        return 1 <= len(rest) <= 2 and optional(data)(rest[0]) and all(map(optional(number), rest[1:]))
    if verb == "range":
        return len(rest) <= 2 and all(map(optional(data), rest[:1])) and all(map(options, rest[1:]))
    return verb == "delete" and len(rest) <= 1 and all(map(optional(data), rest))


#: name -> (checks of the arguments, how many of them may be left out)
SHAPES: dict[str, tuple[tuple[Check, ...], int]] = {
    "put": ((data, optional(data), optional(number)), 1),
    "txn": ((each(compare), each(step), each(step), flag), 1),
    "delete": ((data, optional(data), flag), 2),
    "lease_grant": ((number, whole), 0),
    "lease_revoke": ((each(number), flag), 1),
    "compact": ((whole, flag), 1),
    "history": ((number, number), 0),
    "lock": ((text, text, table), 0),
    "auth": ((text, table), 0),
    "expire": ((), 0),
    "v2_set": ((text, data, optional(number), flag, flag), 1),
    "v2_create": ((text, data, optional(number), flag, flag), 0),
    "v2_update": ((text, optional(data), optional(number), flag), 0),
    "v2_cas": ((text, data, optional(number), optional(data), number, flag), 0),
    "v2_delete": ((text, flag, flag), 0),
    "v2_cad": ((text, optional(data), number), 0),
}


def fits(name: str, arguments: list[Any]) -> bool:
    """Whether a command of this name may have these arguments."""
    checks, optional_count = SHAPES[name]
    if not len(checks) - optional_count <= len(arguments) <= len(checks):
        return False
    for check, argument in zip(checks, arguments, strict=False):  # noqa: SIM110 - a hot path
        if not check(argument):
            return False
    return True
