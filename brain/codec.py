"""CBOR for values inside the brain: the strict rules of ``kernel.cbor`` at the brain's depth."""

from __future__ import annotations

from typing import Any

from kernel import cbor
from kernel.cbor import DecodeError

__all__ = ["DEPTH_MAX", "DecodeError", "decode", "decode_own", "encode", "encode_own"]

#: How deep a value may nest.
DEPTH_MAX = 16
#: For values whose every part comes from a decoded entry: they are known to be plain.
encode_own = cbor.encode
#: For bytes that :func:`encode` of this cluster made and whose checksum was right: no checks, a
#: tenth of the time.  Raises any exception on bytes that are not CBOR.
decode_own = cbor.decode_trusted


def encode(value: Any) -> bytes:
    """Plain data as CBOR; raises ``ValueError`` for what :func:`decode` would refuse."""
    cbor.check_plain(value, DEPTH_MAX)
    return cbor.encode(value)


def decode(data: bytes) -> Any:
    """One plain CBOR value; raises :class:`DecodeError` on anything else."""
    return cbor.decode(data, DEPTH_MAX)
