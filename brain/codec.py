"""CBOR for values inside the brain: strict both ways, plain data only.

The transport reads frames with the same rules; see ``transport/codec.py``.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import cbor2

#: How deep a value may nest.
DEPTH_MAX = 16

_BUILT_IN_TAGS = (
    *range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 43000, 55799,
)  # fmt: skip


class DecodeError(ValueError):
    """The bytes are not one plain CBOR value."""


def _refuse_tag(*_: Any) -> Any:
    raise DecodeError("a tagged CBOR value is not accepted")


_SEMANTIC = dict.fromkeys(_BUILT_IN_TAGS, _refuse_tag)


def encode(value: Any) -> bytes:
    """Plain data (numbers, text, bytes, lists, maps, None, booleans) as CBOR."""
    return cbor2.dumps(value)


def decode(data: bytes) -> Any:
    """One plain CBOR value; raises :class:`DecodeError` on anything else.

    No tags, no indefinite lengths, no duplicate keys, no trailing bytes, bounded depth.
    """
    stream = BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            tag_hook=_refuse_tag,
            semantic_decoders=_SEMANTIC,
            max_depth=DEPTH_MAX,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            str_errors="strict",
        ).decode()
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"not a plain CBOR value: {error}") from None
    if stream.tell() != len(data):
        raise DecodeError(f"{len(data) - stream.tell()} bytes follow the CBOR value")
    return value
