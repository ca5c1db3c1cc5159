"""Messages between hosts as CBOR: numbered types, plain fields, read strictly.

A type that crosses hosts is registered with :func:`wire` under a number that is never
used again for another type.  On the wire it is ``[number, field, field, ...]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from kernel import cbor

#: How deep a message may nest.
DEPTH_MAX = 24

T = TypeVar("T")


class FrameError(ValueError):
    """A peer sent bytes that are not a legal message; the link is closed."""


class _Type:
    __slots__ = ("cls", "from_wire", "number", "to_wire", "width")

    def __init__(
        self, number: int, cls: type, to_wire: Callable[[Any], list[Any]],
        from_wire: Callable[[list[Any]], Any], width: int,
    ) -> None:  # fmt: skip
        self.number = number
        self.cls = cls
        self.to_wire = to_wire
        self.from_wire = from_wire
        self.width = width


_by_number: dict[int, _Type] = {}
_by_class: dict[type, _Type] = {}


def wire(
    number: int,
    to_wire: Callable[[Any], list[Any]] | None = None,
    from_wire: Callable[[list[Any]], Any] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Register a dataclass or NamedTuple under a stable number."""

    def register(cls: type[T]) -> type[T]:
        register_type(number, cls, to_wire, from_wire)
        return cls

    return register


def register_type(
    number: int,
    cls: type,
    to_wire: Callable[[Any], list[Any]] | None = None,
    from_wire: Callable[[list[Any]], Any] | None = None,
) -> None:
    """Register a type of a room that must not know of the transport."""
    if number in _by_number:
        raise ValueError(f"message number {number} is {_by_number[number].cls.__name__} already")
    if is_dataclass(cls):
        names = [field.name for field in fields(cls)]
        to_wire = to_wire or (lambda m: [getattr(m, name) for name in names])
    else:
        names = list(cls._fields)  # type: ignore[attr-defined]
        to_wire = to_wire or list
    entry = _Type(number, cls, to_wire, from_wire or (lambda f: cls(*f)), len(names))
    _by_number[number] = entry
    _by_class[cls] = entry


def pack(value: Any) -> Any:
    """A registered message as ``[number, fields...]`` in an envelope; plain data as it is.

    Raises ``ValueError`` for data that no reader would accept.
    """
    kind = _by_class.get(type(value))
    if kind is None:
        cbor.check_plain(value, DEPTH_MAX - 2)  # an envelope and its frame are around it
        return [0, value]
    return [kind.number, *kind.to_wire(value)]


def unpack(packed: Any) -> Any:
    """The reverse of :func:`pack`; raises :class:`FrameError`."""
    if type(packed) is not list or not packed:
        raise FrameError("a message is an array that starts with its number")
    number = packed[0]
    if type(number) is not int:
        raise FrameError(f"a message starts with its number, not with {type(number).__name__}")
    if number == 0 and len(packed) == 2:
        return packed[1]
    kind = _by_number.get(number)
    if kind is None:
        raise FrameError(f"no message has the number {number!r}")
    if len(packed) != kind.width + 1:
        raise FrameError(
            f"{kind.cls.__name__} has {kind.width} fields, the message has {len(packed) - 1}"
        )
    try:
        return kind.from_wire(packed[1:])
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise FrameError(f"{kind.cls.__name__}: {error}") from None


#: Plain data as CBOR; what is packed has been checked.
encode = cbor.encode


def decode(data: bytes) -> Any:
    """One plain CBOR value; raises :class:`FrameError`."""
    try:
        return cbor.decode(data, DEPTH_MAX)
    except cbor.DecodeError as error:
        raise FrameError(str(error)) from None
