"""When a certificate was issued, when it should be renewed, and when it ends.

A certificate's validity begins before it is issued, for hosts whose clock is behind, so the moment
of issue is part of the serial number (RFC 5280 section 4.1.2.2 leaves its content to the CA): this
is what lets a revocation name all certificates that a service had until a moment, and none that it
gets afterwards.
"""

import secrets
from dataclasses import dataclass
from typing import Final

from cryptography import x509

from byoai_shared.identity import IdentityError

MAX_SERVICE_LIFETIME_S: Final = 7 * 86_400
"""The longest life of a relay's or a gateway's certificate."""
_RENEWED_AFTER: Final = 0.5
_RANDOM_BITS: Final = 64
_TIME_BITS: Final = 48


@dataclass(frozen=True, slots=True)
class CertificateLife:
    """Times of one certificate, Unix seconds, and Unix milliseconds of its issue."""

    issued_ms: int
    expires_at: float

    @property
    def renew_at(self) -> float:
        """When half of its life is over: early enough to try for days.

        A certificate of an earlier version may live longer than is allowed now; it is renewed as
        if it did not.
        """
        issued_at = self.issued_ms / 1000
        life_s = min(self.expires_at - issued_at, MAX_SERVICE_LIFETIME_S)
        return issued_at + life_s * _RENEWED_AFTER


def issue_serial(now: float) -> int:
    """Return a serial number: the moment of issue, then 64 random bits."""
    return int(now * 1000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)


def read_life(der: bytes) -> CertificateLife:
    """Read the times of a certificate (DER).

    Raises:
        IdentityError: it cannot be read.
    """
    try:
        return life_of(x509.load_der_x509_certificate(der))
    except ValueError as error:
        raise IdentityError("the certificate cannot be read") from error


def life_of(certificate: x509.Certificate) -> CertificateLife:
    """Read the times of a certificate."""
    issued_ms = certificate.serial_number >> _RANDOM_BITS
    if issued_ms.bit_length() > _TIME_BITS:
        # Of another CA or of an earlier version: all of its serial number is random.
        issued_ms = int(certificate.not_valid_before_utc.timestamp() * 1000)
    return CertificateLife(issued_ms, certificate.not_valid_after_utc.timestamp())
