"""The cluster's own authority: what it signs, what it refuses, and how keys lie on disk."""

from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from transport import ca, tls

from .nets import Cluster


def _names(certificate: bytes) -> tuple[str, str]:
    subject = x509.load_pem_x509_certificate(certificate).subject
    return (
        str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value),
        str(subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value),
    )


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a TLS connection in memory, after the handshake and one byte each way."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server),
    )
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
    assert not waiting
    ends[1].write(b"?")
    assert ends[0].read(1) == b"?"
    return ends


def test_the_signer_decides_name_and_role(cluster: Cluster) -> None:
    """Whatever the request says of itself, the certificate says what the signer wrote."""
    request, _ = ca.make_request()
    certificate = ca.sign(cluster.authority, cluster.key, request, "m7", "machine")
    assert _names(certificate) == ("m7", "machine")
    parsed = x509.load_pem_x509_certificate(certificate)
    assert parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_a_certificate_belongs_to_the_requests_key(cluster: Cluster) -> None:
    """The key never leaves the machine that made it."""
    request, key = ca.make_request()
    certificate = x509.load_pem_x509_certificate(
        ca.sign(cluster.authority, cluster.key, request, "m7", "machine")
    )
    private = serialization.load_pem_private_key(key, None)
    assert certificate.public_key() == private.public_key()


def test_a_request_not_signed_by_its_own_key_is_refused(cluster: Cluster) -> None:
    """Or one could have somebody else's key certified under one's own name."""
    request, _ = ca.make_request()
    parsed = x509.load_pem_x509_csr(request)
    der = bytearray(parsed.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(tls.IdentityError, match="not signed by its own key"):
        ca.sign(cluster.authority, cluster.key, forged, "m7", "machine")


def test_validity_is_bounded(cluster: Cluster) -> None:
    """A year for a machine, ten for the authority, and one day of tolerance for slow clocks."""
    now = datetime.datetime.now(datetime.timezone.utc)
    issued = x509.load_pem_x509_certificate(
        ca.issue(cluster.authority, cluster.key, "m1", "machine").certificate
    )
    authority = x509.load_pem_x509_certificate(cluster.authority)
    for certificate, days in ((issued, ca.CERTIFICATE_DAYS), (authority, ca.AUTHORITY_DAYS)):
        left = certificate.not_valid_after_utc - now
        assert datetime.timedelta(days=days - 1) < left <= datetime.timedelta(days=days)
        assert certificate.not_valid_before_utc < now


@pytest.mark.parametrize("role", ["machine", "client"])
def test_both_ends_see_each_others_name_and_role(cluster: Cluster, role: str) -> None:
    """TLS 1.3 with certificates of one authority on both sides."""
    server = tls.server_context(cluster.identity("m1"))
    client = tls.client_context(cluster.identity("x", role))
    served, connected = _handshake(server, client)
    assert served.version() == "TLSv1.3"
    assert tls.identity_of(served.getpeercert()) == ("x", role)
    assert tls.identity_of(connected.getpeercert()) == ("m1", "machine")


def test_a_server_of_another_authority_is_refused(cluster: Cluster, strangers: Cluster) -> None:
    """The same names, another key: the client says no."""
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(tls.server_context(strangers.identity("m1")), tls.client_context(cluster.identity("m2")))


def test_a_client_of_another_authority_is_refused(cluster: Cluster, strangers: Cluster) -> None:
    """A certificate is optional at the door, but one that is shown must be good."""
    client = tls.client_context(strangers.identity("m2"))
    client.load_verify_locations(cluster.identity("m1") / "ca.crt")
    with pytest.raises(ssl.SSLError):
        _handshake(tls.server_context(cluster.identity("m1")), client)


def test_a_peer_without_a_certificate_is_nobody(cluster: Cluster) -> None:
    """The door lets it in, as nobody; what it may do is the handshake's matter."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cluster.identity("m1") / "ca.crt")
    served, _ = _handshake(tls.server_context(cluster.identity("m1")), client)
    assert tls.identity_of(served.getpeercert()) is None


def test_a_machine_certificate_cannot_sign_others(cluster: Cluster) -> None:
    """Whoever steals one machine's key has one machine, not the cluster."""
    folder = cluster.identity("m1")
    thief_key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]))
        .sign(thief_key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    forged = ca.sign(
        (folder / "host.crt").read_bytes(), (folder / "host.key").read_bytes(), request, "m9", "machine"
    )
    thief = cluster.folder / "thief"
    key = thief_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = forged + (folder / "host.crt").read_bytes()
    tls.save(thief, tls.Identity(cluster.authority, chain, key))
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(tls.server_context(thief), tls.client_context(cluster.identity("m2")))


def test_an_older_tls_is_refused(cluster: Cluster) -> None:
    """1.3 and nothing below."""
    client = tls.client_context(cluster.identity("m2"))
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        _handshake(tls.server_context(cluster.identity("m1")), client)


def test_an_identity_is_saved_for_its_owner_alone(cluster: Cluster, tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700, replaced as a whole, and read back as it was."""
    identity = ca.issue(cluster.authority, cluster.key, "m1", "machine")
    folder = tmp_path / "identity"
    for _ in range(2):
        tls.save(folder, identity)
    assert tls.load(folder) == identity
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["ca.crt", "host.crt", "host.key"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_private_even_over_a_file_that_was_not(tmp_path: Path) -> None:
    """An old, readable file in the way, of either name, must not lend its mode to the key."""
    for name in ("host.key", "host.key.new"):
        (tmp_path / name).write_bytes(b"old")
        (tmp_path / name).chmod(0o644)
    tls.write_private(tmp_path / "host.key", b"secret")
    assert (tmp_path / "host.key").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "host.key").stat().st_mode) == 0o600


def test_a_missing_identity_is_said(tmp_path: Path) -> None:
    """The text names the file."""
    with pytest.raises(tls.IdentityError, match=r"ca\.crt"):
        tls.load(tmp_path)


def test_a_key_of_another_certificate_is_said(cluster: Cluster, tmp_path: Path) -> None:
    """Files that were mixed up are refused when they are loaded, by name."""
    good = ca.issue(cluster.authority, cluster.key, "m1", "machine")
    other = ca.issue(cluster.authority, cluster.key, "m1", "machine")
    tls.save(tmp_path, tls.Identity(good.authority, good.certificate, other.key))
    for context in (tls.server_context, tls.client_context):
        with pytest.raises(tls.IdentityError, match=r"host\.crt and host\.key do not work together"):
            context(tmp_path)


def test_the_fingerprint_is_of_the_certificate(cluster: Cluster, strangers: Cluster) -> None:
    """What a token pins: stable for one authority, different for another of the same name."""
    assert tls.fingerprint(cluster.authority) == tls.fingerprint(cluster.authority)
    assert tls.fingerprint(cluster.authority) != tls.fingerprint(strangers.authority)
    expected = x509.load_pem_x509_certificate(cluster.authority).fingerprint(hashes.SHA256())
    assert tls.fingerprint(cluster.authority) == expected.hex()
