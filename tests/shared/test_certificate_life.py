"""When certificates were issued, are renewed, and end."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_shared.certificate_life import CertificateLife, issue_serial, read_life
from byoai_shared.identity import GatewayIdentity, IdentityError
from byoai_shared.keys import new_key
from support.authority import Authority


def test_a_serial_number_holds_the_moment_of_issue_and_fits_a_certificate() -> None:
    serial = issue_serial(1_800_000_000.25)
    assert serial >> 64 == 1_800_000_000_250
    assert serial.bit_length() <= 159
    assert issue_serial(1_800_000_000.25) != serial


def test_a_certificate_with_a_random_serial_number_counts_from_its_beginning() -> None:
    made = Authority("services").certificate(GatewayIdentity("g"), new_key())
    life = read_life(made.public_bytes(Encoding.DER))
    assert life.issued_ms == made.not_valid_before_utc.timestamp() * 1000
    assert life.expires_at == made.not_valid_after_utc.timestamp()


def test_it_is_renewed_when_half_of_its_life_is_over() -> None:
    assert CertificateLife(issued_ms=1_000_000, expires_at=3000.0).renew_at == 2000.0
    week = timedelta(days=7).total_seconds()
    assert CertificateLife(issued_ms=0, expires_at=week).renew_at == week / 2
    year = timedelta(days=397).total_seconds()
    assert CertificateLife(issued_ms=0, expires_at=year).renew_at == week / 2


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(IdentityError):
        read_life(b"no certificate")
