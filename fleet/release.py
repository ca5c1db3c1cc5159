"""Releases: what is signed, what a machine accepts, and what an image is made of.  Pure.

A *statement* is small and signed: product, version, sequence, expiry, and the hash of the
*manifest*, which lists every file of the image with the hashes of its chunks.  So nothing is
fetched before its signatures hold, and nothing is written whose hash was not signed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Bytes of a chunk; the last one of a file may be shorter.
CHUNK_BYTES = 64 * 1024
#: Limits of one release.
MANIFEST_BYTES_MAX, FILES_MAX, FILE_BYTES_MAX, SIGNATURES_MAX = 8 * 1024 * 1024, 200_000, 8 * 1024**3, 32
#: Steps of a path that are followed to see where a link leads; more are taken for a circle.
STEPS_MAX = 4096
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_PRODUCT = re.compile(r"[a-z0-9][a-z0-9.-]{0,31}")
_HASH = re.compile(r"[0-9a-f]{64}")


#: What a channel is called.
CHANNEL_FORM = "small letters, digits, '.' and '-', at most 32 of them"


class ReleaseError(ValueError):
    """A release that is not accepted; ``code`` is stable: malformed, no-key, forged, threshold, expired, product, downgrade, floor, bad, damaged."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def is_channel(name: str) -> bool:
    """Whether a channel can be called so."""
    return _PRODUCT.fullmatch(name) is not None


def canonical(value: Any) -> bytes:
    """The one form in which a value is hashed and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(data: bytes) -> str:
    """What names a chunk, and a manifest."""
    return hashlib.sha256(data).hexdigest()


def _malformed(text: str) -> ReleaseError:
    return ReleaseError("malformed", text)


# -- statements and who may sign them --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed of a release; times are Unix times."""

    product: str
    version: str
    #: grows with every release of the product; a machine never goes back by itself
    sequence: int
    #: the lowest sequence from which a machine may come to this one in one step
    floor: int
    created: int
    expires: int
    manifest: str
    #: bytes of all chunks, each counted once
    size: int

    def signed(self) -> bytes:
        """The bytes under the signatures."""
        return canonical({"format": 1, **{name: getattr(self, name) for name in self.__dataclass_fields__}})


def statement(data: Mapping[str, Any]) -> Statement:
    """A statement as it was published; raises :class:`ReleaseError` for one that is not exactly one."""
    kinds: dict[str, type] = {
        "product": str, "version": str, "sequence": int, "floor": int, "created": int, "expires": int, "manifest": str, "size": int,
    }  # fmt: skip
    if not isinstance(data, dict) or {k: type(v) for k, v in data.items()} != {"format": int, **kinds} or data["format"] != 1:
        raise _malformed(f"a statement has format 1 and {', '.join(kinds)}")
    made = Statement(**{key: data[key] for key in kinds})
    if not _VERSION.fullmatch(made.version) or not _PRODUCT.fullmatch(made.product) or not _HASH.fullmatch(made.manifest):
        raise _malformed("product, version or manifest of the statement is not well formed")
    if not (0 < made.sequence < 2**53 and 0 <= made.floor < made.sequence and 0 <= made.size < 2**53 and made.created < made.expires):
        raise _malformed("sequence, floor, size or times of the statement are out of range")
    return made


def public_of(private: bytes) -> str:
    """The public key of a private one, in hexadecimal."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    """What a key is called."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def sign(envelope: Mapping[str, Any], private: bytes) -> dict[str, Any]:
    """An envelope (``signed`` and ``signatures``) with one more signature."""
    signature = Ed25519PrivateKey.from_private_bytes(private).sign(canonical(envelope["signed"]))
    return {**envelope, "signatures": {**envelope.get("signatures", {}), key_id(public_of(private)): signature.hex()}}


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count, and how many are needed.  ``version`` grows with every rotation."""

    version: int
    threshold: int
    keys: tuple[str, ...]  # public keys, in hexadecimal

    def record(self) -> dict[str, Any]:
        """As it is stored, and signed for a rotation."""
        return {"format": 1, "version": self.version, "threshold": self.threshold, "keys": list(self.keys)}


def trust(data: Any) -> Trust:
    """Trust as it was stored; raises :class:`ReleaseError`."""
    try:
        keys = tuple(data["keys"])
        made = Trust(int(data["version"]), int(data["threshold"]), keys)
        if data["format"] != 1 or len(set(keys)) != len(keys) or any(len(bytes.fromhex(key)) != 32 for key in keys):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise _malformed("trust has format 1, a version, a threshold, and keys of 32 bytes in hexadecimal") from None
    if not 1 <= made.threshold <= len(keys) <= SIGNATURES_MAX or made.version < 1:
        raise _malformed("the threshold is between 1 and the number of keys")
    return made


def check_signatures(envelope: Any, trusted: Trust | None) -> None:
    """Whether enough of the trusted keys signed; raises :class:`ReleaseError`.  No key is no trust."""
    if trusted is None:
        raise ReleaseError("no-key", "this machine trusts no key: no release is accepted (release trust)")
    if not isinstance(envelope, dict) or set(envelope) != {"signed", "signatures"} or not isinstance(envelope["signatures"], dict):
        raise _malformed("a signed record has signed and signatures")
    if len(envelope["signatures"]) > SIGNATURES_MAX:
        raise _malformed(f"signatures_max: {SIGNATURES_MAX}")
    known = {key_id(key): key for key in trusted.keys}
    good = 0
    for name, signature in envelope["signatures"].items():
        if name not in known:
            continue  # of somebody we do not know: counts for nothing
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(known[name])).verify(
                bytes.fromhex(signature), canonical(envelope["signed"])
            )
        except (InvalidSignature, ValueError, TypeError):
            raise ReleaseError("forged", f"the signature of key {name} does not fit what is signed") from None
        good += 1
    if good < trusted.threshold:
        raise ReleaseError("threshold", f"{trusted.threshold} signatures of trusted keys are needed, there are {good}")


def accept(envelope: Any, trusted: Trust | None, product: str, installed: int, now: float) -> Statement:
    """The statement of a release that a machine may install; raises :class:`ReleaseError` with the reason if not.

    ``installed``: the sequence of what runs; 0 for what was there before the first release.
    """
    check_signatures(envelope, trusted)
    made = statement(envelope["signed"])
    check_statement(made, product, installed, now)
    return made


def check_statement(made: Statement, product: str, installed: int, now: float) -> None:
    """Whether a statement whose signatures hold is for this machine, now; raises :class:`ReleaseError`."""
    if made.product != product:
        raise ReleaseError("product", f"it is a release of {made.product}, and this machine runs {product}")
    if now >= made.expires:
        raise ReleaseError("expired", f"version {made.version} expired; publish it again, signed anew")
    if made.sequence < installed:
        raise ReleaseError("downgrade", f"version {made.version} has sequence {made.sequence}; {installed} runs already")
    if installed < made.floor:
        raise ReleaseError("floor", f"version {made.version} is reached from sequence {made.floor} or later; {installed} runs")


def rotate(old: Trust, envelope: Any) -> Trust:
    """The next trust: signed by enough keys of the old one, and of itself; raises :class:`ReleaseError`."""
    check_signatures(envelope, old)
    new = trust(envelope["signed"])
    check_signatures(envelope, new)
    if new.version != old.version + 1:
        raise ReleaseError("downgrade", f"the next trust has version {old.version + 1}, not {new.version}")
    return new


# -- manifests ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One file (``chunks``), directory, or symbolic link (``target``) of an image."""

    path: str
    kind: str
    mode: int = 0o755
    size: int = 0
    chunks: tuple[str, ...] = ()
    target: str = ""

    def record(self) -> list[Any]:
        """As it is in the manifest."""
        if self.kind == "file":
            return ["file", self.path, self.mode, self.size, list(self.chunks)]
        return ["dir", self.path, self.mode] if self.kind == "dir" else ["link", self.path, self.target]


def manifest_bytes(entries: list[Entry]) -> bytes:
    """The manifest of an image."""
    return canonical({"format": 1, "chunk": CHUNK_BYTES, "entries": [e.record() for e in sorted(entries, key=lambda e: e.path)]})


def manifest(data: bytes, expected: str) -> list[Entry]:
    """The entries of a manifest whose hash is ``expected``; raises :class:`ReleaseError`."""
    if len(data) > MANIFEST_BYTES_MAX:
        raise _malformed(f"manifest_bytes_max: {MANIFEST_BYTES_MAX}")
    if digest(data) != expected:
        raise ReleaseError("damaged", "the manifest is not the one that was signed")
    try:
        raw = json.loads(data)
        if raw["format"] != 1 or raw["chunk"] != CHUNK_BYTES or len(raw["entries"]) > FILES_MAX:
            raise ValueError
        entries = [_entry(row) for row in raw["entries"]]
    except ReleaseError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise _malformed("the manifest is not one of this format") from None
    check_tree(entries)
    return entries


def _entry(row: list[Any]) -> Entry:
    match row:
        case ["file", str(path), mode, int(size), list(chunks)]:
            wanted = -(-size // CHUNK_BYTES)
            if not (0 <= size <= FILE_BYTES_MAX) or len(chunks) != wanted or not all(_HASH.fullmatch(chunk) for chunk in chunks):
                raise _malformed(f"{path!r}: its chunks do not make up its size")
            return Entry(path, "file", _mode(mode), size, tuple(chunks))
        case ["dir", str(path), mode]:
            return Entry(path, "dir", _mode(mode))
        case ["link", str(path), str(target)]:
            return Entry(path, "link", target=target)
    raise _malformed("an entry is a file, a dir or a link, with what belongs to it")


def _mode(mode: Any) -> int:
    if type(mode) is not int or not 0 <= mode <= 0o777:
        raise _malformed("a mode is between 0 and 0777")
    return mode


def check_tree(entries: list[Entry]) -> None:
    """Every path is inside the image, once, and below directories of the image; no link leads out of it."""
    kinds: dict[str, str] = {"": "dir"}
    for entry in sorted(entries, key=lambda one: one.path):
        parts = entry.path.split("/")
        if any(part in ("", ".", "..") for part in parts) or len(entry.path) > 1024:
            raise _malformed(f"{entry.path!r} is not a path inside the image")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in entry.path + entry.target):
            raise _malformed(f"{entry.path!r}: a name with control characters")
        if entry.path in kinds:
            raise _malformed(f"{entry.path} is there twice")
        if kinds.get("/".join(parts[:-1])) != "dir":
            raise _malformed(f"{entry.path} is not in a directory of the image")
        kinds[entry.path] = entry.kind
    links = {entry.path: entry.target for entry in entries if entry.kind == "link"}
    for path, target in links.items():
        if _leaves(path, links):
            raise _malformed(f"{path} links to {target!r}, which is outside of the image")


def _leaves(path: str, links: Mapping[str, str]) -> bool:
    """Whether a link leads out of its image, followed as a system follows it: through other links, in order."""
    here: list[str] = []
    left = path.split("/")
    for _ in range(STEPS_MAX):
        if not left:
            return False
        part = left.pop(0)
        if part == "..":
            if not here:
                return True
            here.pop()
        elif part not in ("", "."):
            here.append(part)
            target = links.get("/".join(here))
            if target is not None:
                if not target or target.startswith("/"):
                    return True
                here.pop()
                left[:0] = target.split("/")
    return True  # a circle, or as good as one
