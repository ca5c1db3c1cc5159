"""Frames on a byte stream: a length of four bytes, then that many bytes.

The length is checked before anything is buffered for it.
"""

from __future__ import annotations

import struct

from .codec import FrameError

#: Largest frame, in bytes; a value of 1.5 MiB in one entry fits several times.
FRAME_BYTES_MAX = 16 * 1024 * 1024
_LENGTH = struct.Struct(">I")


def frame(payload: bytes) -> bytes:
    """A payload ready to be sent."""
    if len(payload) > FRAME_BYTES_MAX:
        raise FrameError(f"frame_bytes_max: {FRAME_BYTES_MAX} bytes, this one has {len(payload)}")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a stream into payloads, however it is chopped."""

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX, first_bytes_max: int | None = None) -> None:
        """``first_bytes_max``: a lower limit for the first frame, from somebody unknown."""
        self._buffer = bytearray()
        self._bytes_max = bytes_max
        self._limit = first_bytes_max if first_bytes_max is not None else bytes_max

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads that are complete now; raises :class:`FrameError` on an illegal length."""
        buffer = self._buffer
        buffer += data
        out: list[bytes] = []
        at = 0
        while len(buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > self._limit:
                raise FrameError(
                    f"frame_bytes_max: a frame of {length} bytes was announced, {self._limit} are accepted"
                )
            if len(buffer) - at - 4 < length:
                break
            out.append(bytes(buffer[at + 4 : at + 4 + length]))
            at += 4 + length
            self._limit = self._bytes_max
        if at:
            del buffer[:at]
        return out
