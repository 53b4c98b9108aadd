"""Reads a JSON Web Key Set (RFC 7517): keys that check users' tokens, and why others cannot.

One entry never costs the others: RFC 7517 section 5 has implementations ignore what they do not
understand. Entries that are unusable are counted by reason, for one warning to the operator.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from byoai_shared.errors import ByoaiError

_LEAST_RSA_BITS: Final = 2048
_MOST_RSA_BITS: Final = 8192
"""To check one signature with a key of a million bits would stop the gateway for minutes."""
_MOST_EXPONENT_BITS: Final = 64
_ALGORITHMS: Final = frozenset({"ES256", "RS256", "PS256"})
_NOT_A_KEY: Final = "not a key that can be read"


@dataclass(frozen=True, slots=True)
class KeySet:
    """Usable keys by their ids, and how many others there are for each reason."""

    keys: Mapping[str, jwt.PyJWK]
    unusable: Mapping[str, int]


class _Document(msgspec.Struct):
    keys: list[Any]


class _Unusable(ByoaiError):
    """An entry is no key to check tokens with."""


def read_key_set(document: bytes) -> KeySet:
    """Read a set whose entries may be anything.

    Raises:
        msgspec.MsgspecError: it is not a JSON object with a list `keys`.
        RecursionError: it is nested too deeply.
    """
    keys: dict[str, jwt.PyJWK] = {}
    unusable: Counter[str] = Counter()
    for entry in msgspec.json.decode(document, type=_Document).keys:
        try:
            keys.update(_read(entry))
        except _Unusable as reason:
            unusable[str(reason)] += 1
    return KeySet(keys, unusable)


def _read(entry: object) -> dict[str, jwt.PyJWK]:
    """Return the key of an entry by its id; nothing for one that is not for signatures."""
    if not isinstance(entry, dict):
        raise _Unusable(_NOT_A_KEY)
    jwk = cast("dict[str, Any]", entry)
    if jwk.get("use", "sig") != "sig":
        return {}
    key_id = jwk.get("kid")
    if not isinstance(key_id, str):
        raise _Unusable("no key id (`kid`)")
    if "d" in jwk:
        raise _Unusable("a private key, which must not be published")
    try:
        key = jwt.PyJWK(jwk)
    except (jwt.PyJWTError, UnsupportedAlgorithm, NotImplementedError, ValueError, TypeError):
        raise _Unusable(_NOT_A_KEY) from None
    _require_usable(key)
    return {key_id: key}


def _require_usable(key: jwt.PyJWK) -> None:
    """Refuse a key that is too weak, or too expensive, to check a signature with."""
    if key.algorithm_name not in _ALGORITHMS:
        raise _Unusable("another algorithm than ES256, RS256 and PS256")
    public: object = key.key
    if isinstance(public, rsa.RSAPublicKey):
        if not _LEAST_RSA_BITS <= public.key_size <= _MOST_RSA_BITS:
            raise _Unusable(f"an RSA key without {_LEAST_RSA_BITS} to {_MOST_RSA_BITS} bits")
        if public.public_numbers().e.bit_length() > _MOST_EXPONENT_BITS:
            raise _Unusable(f"an RSA exponent of more than {_MOST_EXPONENT_BITS} bits")
    elif not isinstance(public, ec.EllipticCurvePublicKey):
        raise _Unusable(_NOT_A_KEY)
