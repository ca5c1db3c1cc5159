"""Snapshot files: the store at one index, in checksummed records, with a proper end.

Pure bytes, like the log: a file without its end record was never finished.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from .codec import decode, encode
from .image import Image
from .raft import Config
from .store import Store
from .wal import DamagedLogError

MAGIC = b"argosy-snapshot-2\n"
_RECORD = struct.Struct("<II")
#: Bytes of one piece on its way to disk or to another peer.
CHUNK_BYTES = 256 * 1024


class Meta(NamedTuple):
    """What the snapshot stands for: all entries up to ``index``."""

    index: int  # type: ignore[assignment]
    term: int
    config: Config


def file_name(index: int) -> str:
    """File name of the snapshot at ``index``."""
    return f"snap-{index:016d}.snap"


def file_index(name: str) -> int | None:
    """The reverse of :func:`file_name`; None for other files."""
    if name.startswith("snap-") and name.endswith(".snap") and name[5:-5].isdigit():
        return int(name[5:-5])
    return None


def _record(body: bytes) -> bytes:
    return _RECORD.pack(len(body), zlib.crc32(body)) + body


def pieces(meta: Meta, image: Image) -> Iterator[bytes]:
    """The file, piece by piece; the state is the image's, however long it takes."""
    yield MAGIC + _record(encode(["meta", meta.index, meta.term, meta.config.dump()]))
    count = 0
    for record in image.records():
        yield _record(record)
        count += 1
    yield _record(encode(["end", count]))


def dump(meta: Meta, store: Store) -> bytes:
    """The whole file at once."""
    return b"".join(pieces(meta, Image(store)))


def load(path: str, data: bytes) -> tuple[Meta, Store]:
    """Read a file; raises :class:`DamagedLogError` if a bit of it is wrong."""
    steps = loading(path, data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def loading(path: str, data: bytes) -> Generator[None, None, tuple[Meta, Store]]:
    """The same in steps."""
    records = _records(path, data)
    first = next(records, None)
    if first is None or first[0] != "meta":
        raise DamagedLogError(path, len(MAGIC), "the snapshot has no head")
    meta = Meta(first[1], first[2], Config.load(first[3]))
    store = Store()
    yield from store.loading(records)
    return meta, store


def _records(path: str, data: bytes) -> Iterator[list[Any]]:
    if not data.startswith(MAGIC):
        raise DamagedLogError(path, 0, "this is not a snapshot")
    offset = len(MAGIC)
    count = -1  # the head is not counted
    while True:
        if offset + _RECORD.size > len(data):
            raise DamagedLogError(path, offset, "the snapshot ends early")
        length, check = _RECORD.unpack_from(data, offset)
        body = data[offset + _RECORD.size : offset + _RECORD.size + length]
        if len(body) != length or zlib.crc32(body) != check:
            raise DamagedLogError(path, offset, "a record is damaged")
        record: list[Any] = decode(body)
        offset += _RECORD.size + length
        if record[0] == "end":
            if record[1] != count or offset != len(data):
                raise DamagedLogError(path, offset, "the snapshot's end does not fit")
            return
        count += 1
        yield record
