"""The cluster's certificate authority: makes it, and signs what machines and clients ask for.

Apart from the rest of TLS because few who speak it ever sign anything, and loading this takes time.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .tls import Identity, IdentityError

#: Days a machine's or client's certificate is good for.
CERTIFICATE_DAYS = 365
#: Days the authority is good for.
AUTHORITY_DAYS = 3650


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
