from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from byoai_shared.keys import (
    KeyFormatError,
    is_p256,
    key_from_pem,
    key_to_pem,
    make_csr,
    new_key,
    self_signed_certificate,
)

HOSTNAME = "abcdefghijklmnopqrstuvwxya.tunnel.internal"


def pem(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey,
    password: bytes | None = None,
) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_keys_are_on_p256_and_differ() -> None:
    first, second = new_key(), new_key()
    assert is_p256(first.public_key())
    assert first.public_key() != second.public_key()


def test_a_key_survives_its_pem() -> None:
    key = new_key()
    assert key_from_pem(key_to_pem(key)).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(rsa.generate_private_key(65537, 2048)),
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(new_key(), b"password"),
        key_to_pem(new_key())[:-60],
    ],
    ids=["empty", "garbage", "ed25519", "rsa", "p384", "encrypted", "cut"],
)
def test_any_other_key_is_refused_without_being_shown(content: bytes) -> None:
    with pytest.raises(KeyFormatError) as refused:
        key_from_pem(content)
    assert "BEGIN" not in str(refused.value)


def test_a_request_proves_the_key_and_says_nothing_else() -> None:
    key = new_key()
    request = x509.load_pem_x509_csr(make_csr(key))
    assert request.is_signature_valid
    assert request.public_key() == key.public_key()
    assert not list(request.subject)
    assert not list(request.extensions)


def test_a_self_signed_certificate_is_of_its_host_and_no_authority() -> None:
    key = new_key()
    read = x509.load_pem_x509_certificate(self_signed_certificate(key, HOSTNAME, timedelta(days=7)))
    read.verify_directly_issued_by(read)
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOSTNAME]
    assert not read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert read.public_key() == key.public_key()


def test_a_self_signed_certificate_holds_for_its_life_and_forgives_a_fast_clock() -> None:
    read = x509.load_pem_x509_certificate(
        self_signed_certificate(new_key(), HOSTNAME, timedelta(days=7))
    )
    now = datetime.now(UTC)
    assert timedelta(days=6.9) < read.not_valid_after_utc - now <= timedelta(days=7)
    assert read.not_valid_before_utc < now - timedelta(hours=23)


def test_a_long_host_name_still_stands_in_full_where_it_counts() -> None:
    hostname = f"{'a' * 60}.{'b' * 60}.internal"
    read = x509.load_pem_x509_certificate(
        self_signed_certificate(new_key(), hostname, timedelta(days=1))
    )
    names = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [hostname]
