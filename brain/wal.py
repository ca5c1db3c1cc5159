"""The write-ahead log: segments of checksummed records, and how to read them after a crash.

Pure bytes: this module makes the bytes to write and judges the bytes that were read; the
actor moves them through the disk port.  A segment is allocated full of zeros, and records
are only ever added in the zeros, so a torn write leaves a sector of zeros inside a record
while a flipped bit does not: the first is cut, the second refuses to start.

Record: length (4 bytes), CRC-32 (4 bytes) of the body seeded with the record's offset,
body.  Every batch starts with a mark that says up to where this segment was durable when
the batch was made; a bad record below such a mark was durable once, so it is damage.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from .raft import HardState
from .raftlog import Entry

MAGIC = b"argosy-wal-1\n\0\0\0"
#: A segment after an installed snapshot: what earlier segments hold is void.
FRESH_MAGIC = b"argosy-wal-1f\n\0\0"
HEADER = struct.Struct("<16sQQ")  # magic, sequence number of the segment, first index
_RECORD = struct.Struct("<II")
_ENTRY = struct.Struct("<BQQB")  # type, index, term, kind
_STATE = struct.Struct("<BQ")  # type, term; then the vote
_MARK = struct.Struct("<BQ")  # type, durable offset
_T_ENTRY, _T_STATE, _T_MARK = 1, 2, 3

SECTOR = 512
#: Size of a segment in bytes; a batch larger than what is left opens the next one.
SEGMENT_BYTES = 16 * 1024 * 1024
#: Largest record a reader accepts, in bytes.
RECORD_BYTES_MAX = 64 * 1024 * 1024


class DamagedLogError(Exception):
    """A log file was changed after it was written; starting from it could lose writes."""

    def __init__(self, path: str, offset: int, what: str) -> None:
        super().__init__(f"{path}: {what} at offset {offset}")
        self.path = path
        self.offset = offset


class Recovered(NamedTuple):
    """What a log holds: the state, and the entries after ``first_index - 1``."""

    hard_state: HardState
    first_index: int
    entries: list[Entry]
    sequence: int  # of the last segment
    end: int  # where the next record goes in it
    starts: dict[int, int]  # sequence -> first index of each segment
    has_state: bool  # whether the last segment holds term and vote


def segment_name(sequence: int) -> str:
    """File name of a segment."""
    return f"wal-{sequence:010d}.log"


def segment_sequence(name: str) -> int | None:
    """The reverse of :func:`segment_name`; None for other files."""
    if name.startswith("wal-") and name.endswith(".log") and name[4:-4].isdigit():
        return int(name[4:-4])
    return None


def header(sequence: int, first_index: int, fresh: bool = False) -> bytes:
    """The first bytes of a segment; ``fresh``: the log starts anew here."""
    body = HEADER.pack(FRESH_MAGIC if fresh else MAGIC, sequence, first_index)
    return body + struct.pack("<I", zlib.crc32(body))


HEADER_BYTES = len(header(0, 0))


def _record(body: bytes, offset: int) -> bytes:
    return _RECORD.pack(len(body), zlib.crc32(body, offset & 0xFFFFFFFF)) + body


def batch(
    offset: int, durable: int, state: HardState | None, first_index: int, entries: list[Entry]
) -> bytes:
    """The bytes of one batch that starts at ``offset`` of its segment."""
    out = bytearray(_record(_MARK.pack(_T_MARK, durable), offset))
    if state is not None:
        body = _STATE.pack(_T_STATE, state.term) + state.vote.encode()
        out += _record(body, offset + len(out))
    for position, (term, kind, data) in enumerate(entries):
        body = _ENTRY.pack(_T_ENTRY, first_index + position, term, kind) + data
        out += _record(body, offset + len(out))
    return bytes(out)


class _Reader:
    """Walks the records of one segment and stops at the first that is not whole."""

    def __init__(self, path: str, data: bytes, sequence: int) -> None:
        self.path = path
        self.data = data
        self.end = HEADER_BYTES
        self.durable = HEADER_BYTES
        self.fresh = False
        if len(data) < HEADER_BYTES or not any(data[:HEADER_BYTES]):
            self.first_index = -1  # never became durable
            return
        body, check = data[: HEADER.size], data[HEADER.size : HEADER_BYTES]
        magic, number, self.first_index = HEADER.unpack(body)
        self.fresh = magic == FRESH_MAGIC
        if magic not in (MAGIC, FRESH_MAGIC) or struct.pack("<I", zlib.crc32(body)) != check:
            raise DamagedLogError(path, 0, "the header is damaged")
        if number != sequence:
            raise DamagedLogError(path, 16, f"the header says segment {number}")

    def records(self) -> Iterator[bytes]:
        """Bodies in order; afterwards ``end`` is where they stop."""
        while (body := self._at(self.end)) is not None:
            if body[0] == _T_MARK:
                self.durable = max(self.durable, _MARK.unpack(body)[1])
            yield body
            self.end += _RECORD.size + len(body)

    def _at(self, offset: int) -> bytes | None:
        if offset + _RECORD.size > len(self.data):
            return None
        length, check = _RECORD.unpack_from(self.data, offset)
        start = offset + _RECORD.size
        if not 0 < length <= RECORD_BYTES_MAX or start + length > len(self.data):
            return None
        body = self.data[start : start + length]
        return body if zlib.crc32(body, offset & 0xFFFFFFFF) == check else None

    def judge_end(self, is_last: bool) -> None:
        """Raise :class:`DamagedLogError` unless what stopped the reader is a torn write."""
        rest = self.data[self.end :]
        if not any(rest):
            return
        if not is_last:
            raise DamagedLogError(self.path, self.end, "a record is damaged")
        self._refuse_marks_beyond()
        length = struct.unpack_from("<I", self.data.ljust(self.end + 4, b"\0"), self.end)[0]
        span = _RECORD.size + (length if 0 < length <= RECORD_BYTES_MAX else 0)
        if not _has_zero_sector(self.data, self.end, min(self.end + span, len(self.data))):
            if self.end + span <= len(self.data):
                raise DamagedLogError(self.path, self.end, "a record is damaged")

    def _refuse_marks_beyond(self) -> None:
        """A later batch that calls this place durable proves damage."""
        pattern = _RECORD.pack(_MARK.size, 0)[:4]
        at = self.data.find(pattern, self.end + 1)
        while at >= 0:
            body = self._at(at)
            if body is not None and body[0] == _T_MARK and _MARK.unpack(body)[1] > self.end:
                raise DamagedLogError(self.path, self.end, "a record is damaged")
            at = self.data.find(pattern, at + 1)


def _has_zero_sector(data: bytes, start: int, end: int) -> bool:
    """Whether a sector's share of [start, end) was never written."""
    at = start
    while at < end:
        stop = min((at // SECTOR + 1) * SECTOR, end)
        if not any(data[at:stop]):
            return True
        at = stop
    return False


def recover(segments: list[tuple[str, int, bytes]]) -> Recovered | None:
    """Read segments, given as (path, sequence, content) in order; None for an empty log.

    Cuts a torn tail; raises :class:`DamagedLogError` on anything else that is wrong.
    """
    state = HardState(0, "")
    entries: list[Entry] = []
    base = -1
    starts: dict[int, int] = {}
    has_state = False
    end = sequence = 0
    for position, (path, number, data) in enumerate(segments):
        is_last = position == len(segments) - 1
        reader = _Reader(path, data, number)
        if reader.first_index < 0:
            if not is_last:
                raise DamagedLogError(path, 0, "the segment is empty but not the last one")
            break  # allocated, but its header never became durable: its number is used again
        if sequence and number != sequence + 1:
            raise DamagedLogError(path, 0, f"segment {sequence + 1} is missing before this one")
        starts[number] = reader.first_index
        has_state = False
        if base < 0 or reader.fresh:
            base, entries = reader.first_index, []
        for body in reader.records():
            if body[0] == _T_STATE:
                has_state = True
                state = HardState(_STATE.unpack_from(body)[1], body[_STATE.size :].decode())
            elif body[0] == _T_ENTRY:
                _, index, term, kind = _ENTRY.unpack_from(body)
                at = index - base
                if not entries or at < 0:  # the first one counts, whatever the header says; or it replaces all of them
                    base, at, entries = index, 0, []
                if at > len(entries):
                    raise DamagedLogError(path, reader.end, f"entry {index} does not follow")
                del entries[at:]
                entries.append((term, kind, body[_ENTRY.size :]))
        reader.judge_end(is_last)
        sequence, end = number, reader.end
    if not starts:
        return None
    return Recovered(state, base, entries, sequence, end, starts, has_state)
