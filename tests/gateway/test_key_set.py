"""What is read from a JSON Web Key Set, whatever stands in it."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from byoai_gateway.key_set import KeySet, read_key_set

EC_KEY = ec.generate_private_key(ec.SECP256R1())
SOUND = {**ECAlgorithm.to_jwk(EC_KEY.public_key(), as_dict=True), "kid": "sound"}


def number(value: int) -> str:
    raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def rsa(bits: int, exponent: int = 65537) -> dict[str, Any]:
    modulus = (1 << bits) - 1
    return {"kty": "RSA", "kid": "odd", "n": number(modulus), "e": number(exponent)}


def read(*entries: object) -> KeySet:
    return read_key_set(json.dumps({"keys": entries}).encode())


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (7, "not a key"),
        (None, "not a key"),
        ([], "not a key"),
        ({}, "no key id"),
        ({**SOUND, "kid": ""} | {"kid": 5}, "no key id"),
        ({**SOUND, "kty": "future"}, "not a key"),
        ({**SOUND, "kty": "EC", "crv": "P-521"}, "not a key"),
        ({**SOUND, "x": "AAAA"}, "not a key"),
        ({**SOUND, "alg": "RS256"}, "not a key"),
        ({**rsa(2048), "alg": "none"}, "not a key"),
        ({**rsa(2048), "alg": "HS256"}, "not a key"),
        ({**rsa(2048), "alg": "RS512"}, "another algorithm"),
        ({"kty": "oct", "kid": "odd", "k": "AAAA"}, "another algorithm"),
        ({**SOUND, "d": number(7)}, "a private key"),
        (rsa(1024), "2048 to 8192 bits"),
        (rsa(16384), "2048 to 8192 bits"),
        (rsa(1_000_000), "2048 to 8192 bits"),
        (rsa(4096, (1 << 2048) - 1), "exponent"),
    ],
)
def test_an_unusable_key_costs_no_other_and_is_counted(entry: object, reason: str) -> None:
    found = read(entry, SOUND, entry)
    assert list(found.keys) == ["sound"]
    ((why, count),) = found.unusable.items()
    assert reason in why
    assert count == 2


def test_a_key_for_another_use_is_no_fault() -> None:
    found = read({**SOUND, "kid": "other", "use": "enc"}, SOUND)
    assert list(found.keys) == ["sound"]
    assert not found.unusable


def test_the_reasons_hold_nothing_of_the_keys() -> None:
    found = read({**SOUND, "alg": "canary-1", "kty": "canary-2"}, {"kid": "canary-3"})
    assert "canary" not in "".join(found.unusable)
