"""CBOR for plain data, as strict when writing as when reading.

Frames between hosts and entries of the log use it alike: what one host writes, every
other must be able to read, so what a reader would refuse is refused where it is made.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Any

import cbor2

_BUILT_IN_TAGS = (
    *range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 43000, 55799,
)  # fmt: skip
#: First bytes of ``undefined`` and of simple values: without one of them there can be none.
_SIMPLE = re.compile(rb"[\xe0-\xf3\xf7\xf8]")
_SCALARS = frozenset((str, bytes, int, bool, float, type(None)))


class DecodeError(ValueError):
    """The bytes are not one plain CBOR value."""


def _refuse_tag(*_: Any) -> Any:
    raise DecodeError("a tagged CBOR value is not accepted")


_SEMANTIC = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)


def encode(value: Any) -> bytes:
    """CBOR of a value that the caller knows to be plain; see :func:`check_plain`."""
    return cbor2.dumps(value)


def check_plain(value: Any, depth: int) -> None:
    """Raise ``ValueError`` for what :func:`decode` with this ``depth`` would refuse.

    Plain are numbers of at most 64 bits, text, bytes, booleans, ``None``, and lists, tuples
    and maps of them whose keys are text or bytes.
    """
    kind = type(value)
    if kind in _SCALARS and kind is not int:
        return
    if isinstance(value, int):
        if not -(2**64) <= value < 2**64:
            raise ValueError("a number does not fit in 64 bits")
        return
    if not isinstance(value, (list, tuple, dict)):
        raise ValueError(f"{kind.__name__} is not plain data")
    if depth <= 1:
        raise ValueError("the value nests too deep")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str and type(key) is not bytes:
                raise ValueError(f"a key is text or bytes, not {type(key).__name__}")
        value = value.values()
    for item in value:
        check_plain(item, depth - 1)


def decode_trusted(data: bytes) -> Any:
    """The reverse of :func:`encode` for bytes that were checked when they came in."""
    return cbor2.loads(data)


def _is_data(value: Any) -> bool:
    kind = type(value)
    if kind is list:
        return all(map(_is_data, value))
    if kind is dict:
        return all(map(_is_data, value.values()))
    return kind in _SCALARS


def decode(data: bytes, depth: int) -> Any:
    """One plain CBOR value; raises :class:`DecodeError` on anything else.

    No tags, no simple values, no indefinite lengths, no duplicate keys, no trailing bytes,
    at most ``depth`` levels.
    """
    stream = BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            tag_hook=_refuse_tag,
            semantic_decoders=_SEMANTIC,
            max_depth=depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            str_errors="strict",
        ).decode()
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not a plain CBOR value: {error}") from None
    if _SIMPLE.search(data) and not _is_data(value):
        raise DecodeError("undefined and simple values are not accepted")
    if stream.tell() != len(data):
        raise DecodeError(f"{len(data) - stream.tell()} bytes follow the CBOR value")
    return value
