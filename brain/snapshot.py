"""Snapshot files: the store at one index, in checksummed records, with a proper end.

Pure bytes, like the log: a file without its end record was never finished.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .codec import decode, encode
from .image import Image
from .loader import Loader
from .raft import Config
from .store import Store
from .wal import RECORD_BYTES_MAX, DamagedLogError

MAGIC = b"argosy-snapshot-3\n"
_RECORD = struct.Struct("<II")
#: A sealed file is a multiple of the one, and the other, bytes long.
_SEAL_BLOCK, _SEAL_SUM = 512, 32
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


def chunks(meta: Meta, image: Image) -> Iterator[tuple[bytes, bool]]:
    """The file in chunks of :data:`CHUNK_BYTES`, each with whether it is the last."""
    waiting = bytearray()
    for piece in pieces(meta, image):
        waiting += piece
        while len(waiting) > CHUNK_BYTES:
            yield bytes(memoryview(waiting)[:CHUNK_BYTES]), False
            del waiting[:CHUNK_BYTES]
    yield bytes(waiting), True


def dump(meta: Meta, store: Store) -> bytes:
    """The whole file at once."""
    return b"".join(pieces(meta, Image(store)))


def seal(size: int, digest: Callable[[bytes], bytes]) -> bytes:
    """What makes a file of ``size`` bytes one that etcd's tools take for a whole snapshot.

    They want its length to be 32 more than a multiple of 512, and SHA-256 of all before at its end.
    The last two bytes of the filling say how long it is.  ``digest(filling)``: the sum of the file and the filling.
    """
    length = 2 + -(size + 2) % _SEAL_BLOCK
    filling = bytes(length - 2) + length.to_bytes(2)
    return filling + digest(filling)


def unseal(data: bytes) -> bytes:
    """A file without its seal, if it has one; what is damaged stays as it is, for :func:`load` to say where."""
    content, said = data[:-_SEAL_SUM], data[-_SEAL_SUM:]
    if len(data) % _SEAL_BLOCK != _SEAL_SUM or hashlib.sha256(content).digest() != said:
        return data
    return content[: len(content) - int.from_bytes(content[-2:])]


def load(path: str, data: bytes) -> tuple[Meta, Store]:
    """Read a file; raises :class:`DamagedLogError` if a bit of it is wrong."""
    reader = Reader(path)
    reader.feed(data)
    return reader.finish()


def head(path: str, data: bytes) -> Meta:
    """What a file stands for; the state in it is not looked at."""
    reader = Reader(path)
    start = len(MAGIC) + _RECORD.size
    length = _RECORD.unpack(data[start - _RECORD.size : start].ljust(_RECORD.size, b"\0"))[0]
    reader.feed(data[: start + length])
    if reader.meta is None:
        raise DamagedLogError(path, len(MAGIC), "the snapshot has no head")
    return reader.meta


class Reader:
    """A snapshot read as it comes, in pieces of any size.

    ``path`` is what a :class:`DamagedLogError` calls it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._rest = bytearray()
        self._offset = 0  # of the rest, in the file
        self._count = -1  # records so far; the head is not counted
        self.meta: Meta | None = None
        self._loader = Loader()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """The next piece."""
        self._rest += data
        if not self._offset:
            if len(self._rest) < len(MAGIC):
                return
            if not self._rest.startswith(MAGIC):
                raise DamagedLogError(self._path, 0, "this is not a snapshot, or one of another version")
            self._skip(len(MAGIC))
        while self._rest:
            if self._ended:
                raise DamagedLogError(self._path, self._offset, "the snapshot's end does not fit")
            if len(self._rest) < _RECORD.size:
                return
            length, check = _RECORD.unpack_from(self._rest)
            if length > RECORD_BYTES_MAX:
                raise DamagedLogError(self._path, self._offset, "a record is damaged")
            if len(self._rest) < _RECORD.size + length:
                return
            body = bytes(memoryview(self._rest)[_RECORD.size : _RECORD.size + length])
            if zlib.crc32(body) != check:
                raise DamagedLogError(self._path, self._offset, "a record is damaged")
            self._take(body)
            self._skip(_RECORD.size + length)

    def _skip(self, count: int) -> None:
        del self._rest[:count]
        self._offset += count

    def _take(self, body: bytes) -> None:
        try:
            record: list[Any] = decode(body)
            if self.meta is None:
                if record[0] != "meta":
                    raise ValueError("the snapshot has no head")
                self.meta = Meta(record[1], record[2], Config.load(record[3]))
            elif record[0] == "end":
                if record[1] != self._count:
                    raise ValueError("the snapshot's end does not fit")
                self._ended = True
            else:
                self._loader.take(record)
        except (ValueError, TypeError, LookupError) as error:
            raise DamagedLogError(self._path, self._offset, str(error)) from None
        self._count += 1

    def finish(self) -> tuple[Meta, Store]:
        """What the file holds, once all of it was fed."""
        if self._rest or not self._ended or self.meta is None:
            raise DamagedLogError(self._path, self._offset, "the snapshot ends early")
        return self.meta, self._loader.finish()
