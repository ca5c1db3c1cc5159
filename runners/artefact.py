"""A release in one file: its signed statement, its manifest, and each of its chunks once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet import release
from fleet.release import CHUNK_BYTES, Entry, ReleaseError, Statement

from . import slots

_MAGIC = b"argosy-release 1\n"
#: Bytes of the first line, with the statement and its signatures.
HEADER_BYTES_MAX = 64 * 1024


def make_key() -> tuple[bytes, str]:
    """(private key, public key in hexadecimal) of somebody who signs."""
    private = Ed25519PrivateKey.generate().private_bytes_raw()
    return private, release.public_of(private)


class Artefact:
    """One that was read; raises :class:`ReleaseError` for what is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            if file.readline(len(_MAGIC)) != _MAGIC:
                raise ReleaseError("malformed", f"{path} is no release")
            line = file.readline(HEADER_BYTES_MAX)
            try:
                header = json.loads(line)
                self.envelope: dict[str, Any] = header["envelope"]
                size = header["manifest_bytes"]
                if type(size) is not int or not isinstance(self.envelope["signatures"], dict):
                    raise TypeError
                signed = self.envelope["signed"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise ReleaseError("malformed", f"{path}: its first lines are damaged") from None
            if not 0 < size <= release.MANIFEST_BYTES_MAX:
                raise ReleaseError("malformed", f"{path}: manifest_bytes_max: {release.MANIFEST_BYTES_MAX}")
            self.manifest = file.read(size)
            self._begin = file.tell()
        self.statement: Statement = release.statement(signed)
        self.entries = release.manifest(self.manifest, self.statement.manifest)

    def chunks(self) -> Iterator[tuple[str, bytes]]:
        """(hash, bytes) of each chunk, verified."""
        with open(self.path, "rb") as file:
            file.seek(self._begin)
            for name, size in chunk_sizes(self.entries).items():
                data = file.read(size)
                if release.digest(data) != name:
                    raise ReleaseError("damaged", f"{self.path}: chunk {name[:12]} is damaged")
                yield name, data


def chunk_sizes(entries: list[Entry]) -> dict[str, int]:
    """Bytes of each chunk of an image, in the order of their first use."""
    sizes: dict[str, int] = {}
    for entry in entries:
        for number, chunk in enumerate(entry.chunks):
            sizes.setdefault(chunk, min(CHUNK_BYTES, entry.size - number * CHUNK_BYTES))
    return sizes


def build(
    tree: Path, out: Path, product: str, version: str, sequence: int, floor: int, created: int, expires: int
) -> Statement:
    """Make a release of a directory tree; it is signed by nobody yet.

    Raises ``OSError``, and :class:`ReleaseError` for a tree or numbers that make no release.
    """
    entries, where = slots.scan(tree)
    data = release.manifest_bytes(entries)
    entries = release.manifest(data, release.digest(data))
    sizes = chunk_sizes(entries)
    made = Statement(product, version, sequence, floor, created, expires, release.digest(data), sum(sizes.values()))
    envelope = {"signed": json.loads(made.signed()), "signatures": {}}
    release.statement(envelope["signed"])

    def rest(file: BinaryIO) -> None:
        for chunk, size in sizes.items():
            path, number = where[chunk]
            with open(path, "rb") as source:
                source.seek(number * CHUNK_BYTES)
                piece = source.read(size)
            if release.digest(piece) != chunk:
                raise ReleaseError("damaged", f"{path} changed while the release was made")
            file.write(piece)

    _write(out, envelope, data, rest)
    return made


def sign(path: Path, private: bytes) -> dict[str, Any]:
    """Add a signature to a release; returns its envelope."""
    artefact = Artefact(path)
    envelope = release.sign(artefact.envelope, private)

    def rest(file: BinaryIO) -> None:
        for _, data in artefact.chunks():
            file.write(data)

    _write(path, envelope, artefact.manifest, rest)
    return envelope


def _write(path: Path, envelope: dict[str, Any], manifest: bytes, rest: Any) -> None:
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            header = {"envelope": envelope, "manifest_bytes": len(manifest)}
            file.write(_MAGIC + release.canonical(header) + b"\n" + manifest)
            rest(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
