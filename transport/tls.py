"""The cluster's own certificate authority, and TLS contexts made from it.

A certificate names who it is for (common name: machine id or client) and in which role
(organisational unit: machine or client).  Keys are ECDSA P-256, files are mode 0600.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Days a machine's or client's certificate is good for.
CERTIFICATE_DAYS = 365
#: Days the authority is good for.
AUTHORITY_DAYS = 3650


class IdentityError(Exception):
    """A certificate or key is missing, unreadable or of another cluster."""


@dataclass(frozen=True, slots=True)
class Identity:
    """PEM texts of one party: its certificate and key, and the authority it trusts."""

    authority: bytes
    certificate: bytes
    key: bytes


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "argosy"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _validity(days: int) -> tuple[datetime.datetime, datetime.datetime]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return now - datetime.timedelta(days=1), now + datetime.timedelta(days=days)


def make_authority(cluster: str) -> tuple[bytes, bytes]:
    """A new authority: (certificate, key) in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    start, end = _validity(AUTHORITY_DAYS)
    name = _name(cluster, "authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def make_request() -> tuple[bytes, bytes]:
    """A new key and a signing request for it: (request, key) in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name("request", "request"))
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def sign(authority: bytes, authority_key: bytes, request: bytes, common: str, role: str) -> bytes:
    """A certificate for the request's key; name and role are the signer's decision."""
    issuer = x509.load_pem_x509_certificate(authority)
    issuer_key = serialization.load_pem_private_key(authority_key, None)
    csr = x509.load_pem_x509_csr(request)
    if not csr.is_signature_valid:
        raise IdentityError("the signing request is not signed by its own key")
    start, end = _validity(CERTIFICATE_DAYS)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(common, role))
        .issuer_name(issuer.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())  # type: ignore[arg-type]
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def issue(authority: bytes, authority_key: bytes, common: str, role: str) -> Identity:
    """A key and certificate made in one place (local clusters, bootstrap)."""
    request, key = make_request()
    return Identity(authority, sign(authority, authority_key, request, common, role), key)


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
