"""Identities in TLS, and contexts made from them; what signs them is in ``ca.py``.

A certificate names who it is for (common name: machine id or client) and in which role
(organisational unit: machine or client).  Keys are ECDSA P-256, files are mode 0600.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class IdentityError(Exception):
    """A certificate or key is missing, unreadable or of another cluster."""


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM texts of one party: its certificate and key, and the authority it trusts."""

    authority: bytes
    certificate: bytes
    key: bytes


def fingerprint(authority: bytes) -> str:
    """SHA-256 of the authority's certificate, in hexadecimal: what a join token pins."""
    der = ssl.PEM_cert_to_DER_cert(authority.decode())
    return hashlib.sha256(der).hexdigest()


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, atomically; an ``OSError`` names it."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)  # whatever was left there must not lend its mode
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(handle)
    os.replace(temporary, path)


def save(folder: Path, identity: Identity) -> None:
    """Keep an identity as ``ca.crt``, ``host.crt`` and ``host.key``."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / "ca.crt", identity.authority)
    write_private(folder / "host.crt", identity.certificate)
    write_private(folder / "host.key", identity.key)


def load(folder: Path) -> Identity:
    """The reverse of :func:`save`; raises :class:`IdentityError`."""
    try:
        return Identity(
            (folder / "ca.crt").read_bytes(),
            (folder / "host.crt").read_bytes(),
            (folder / "host.key").read_bytes(),
        )
    except OSError as error:
        raise IdentityError(f"cannot read the host's identity: {error}") from None


def _with_certificate(context: ssl.SSLContext, folder: Path) -> None:
    try:
        context.load_cert_chain(folder / "host.crt", folder / "host.key")
    except (ssl.SSLError, OSError) as error:
        raise IdentityError(f"{folder}/host.crt and host.key do not work together: {error}") from None


def server_context(folder: Path) -> ssl.SSLContext:
    """For the transport door: peers show a certificate, or stay guests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    _with_certificate(context, folder)
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(folder: Path) -> ssl.SSLContext:
    """For links to other hosts: they must be of this cluster's authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are machine ids, compared in the handshake
    _with_certificate(context, folder)
    context.load_verify_locations(folder / "ca.crt")
    return context


def identity_of(peer_certificate: Any) -> tuple[str, str] | None:
    """(common name, role) in a verified certificate; None without one."""
    if not peer_certificate:
        return None
    fields = {key: value for part in peer_certificate.get("subject", ()) for key, value in part}
    return fields.get("commonName", ""), fields.get("organizationalUnitName", "")
