"""Keys and the certificates that their holders make themselves: P-256, and no other kind."""

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from byoai_shared.errors import ByoaiError

CLOCK_SKEW: Final = timedelta(days=1)
"""How far back a self-signed certificate's life begins.

It is trusted because it is pinned, not because of its dates; a GPU host whose clock is ahead
must not be refused for that.
"""


class KeyFormatError(ByoaiError):
    """A private key is not one that we use."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, PKCS #8, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key.

    Raises:
        KeyFormatError: it is not a P-256 key in PEM.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise KeyFormatError("this is not a private key in PEM without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key.public_key()):
        raise KeyFormatError("this private key is not a P-256 key")
    return key


def is_p256(public_key: ec.EllipticCurvePublicKey) -> bool:
    """Say whether a key is on the one curve that we use."""
    return isinstance(public_key.curve, ec.SECP256R1)


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a signing request (PEM) that proves possession of `key` and says nothing else."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def self_signed_certificate(
    key: ec.EllipticCurvePrivateKey, hostname: str, lifetime: timedelta
) -> bytes:
    """Return a certificate (PEM) of `key` for `hostname`, signed by itself: to be pinned."""
    # A common name holds 64 characters at most (X.520), and nobody reads it here.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(hostname)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
