"""Certificates of gateways and relays that are revoked, and the statement that spreads them.

A revocation names a service and a moment: every certificate that the service had until then is
revoked, and none that it gets later. So one row for each name is enough, and a gateway whose
certificate was stolen goes on with a new one.

Gateways give relays the rows as a JWS (RFC 7515) that the services CA signed. A gateway's
certificate is not enough to make one: who stole it cannot revoke the other gateways'. Rows are only
ever added until they expire, so an old statement that is replayed takes nothing back.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.api_jws import PyJWS

from byoai_shared.certificate_life import read_life
from byoai_shared.errors import ByoaiError
from byoai_shared.identity import certificate_identity, identity_uri

MAX_ROWS: Final = 128
"""What fits a frame with room for a certificate."""
_ALGORITHM: Final = "ES256"
_TYPE: Final = "revoked-services+jwt"
_SIGNATURES: Final = PyJWS(algorithms=[_ALGORITHM])

_Time = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class StatementRefused(ByoaiError):
    """A statement of revoked services is not one of the services CA."""


class RevokedService(msgspec.Struct, frozen=True):
    """All certificates that a service had until a moment."""

    service: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    """Its SAN URI."""
    issued_until_ms: _Time
    """Unix milliseconds."""
    expires_at: _Time
    """When the last of them has expired, Unix seconds."""


class _Statement(msgspec.Struct, frozen=True):
    revoked: Annotated[tuple[RevokedService, ...], msgspec.Meta(max_length=MAX_ROWS)]


class RevokedServices:
    """The revocations that are known; asked about each certificate."""

    def __init__(self) -> None:
        self._rows: dict[str, RevokedService] = {}

    def add(self, rows: Iterable[RevokedService], now: float) -> bool:
        """Learn of rows, and forget those that have expired; return whether any row was news."""
        is_news = False
        for row in rows:
            known = self._rows.get(row.service)
            is_newer = known is None or known.issued_until_ms < row.issued_until_ms
            if is_newer and row.expires_at > now:
                self._rows[row.service] = row
                is_news = True
        self._rows = {name: row for name, row in self._rows.items() if row.expires_at > now}
        return is_news

    def denies(self, certificate: bytes) -> bool:
        """Whether a certificate (DER) was revoked."""
        try:
            row = self._rows.get(identity_uri(certificate_identity(certificate)))
            return row is not None and read_life(certificate).issued_ms <= row.issued_until_ms
        except ByoaiError:
            return False  # it names no service; others refuse it for that


def sign_statement(rows: tuple[RevokedService, ...], ca_key: ec.EllipticCurvePrivateKey) -> str:
    """Sign rows with the key of the services CA."""
    payload = msgspec.json.encode(_Statement(rows))
    return _SIGNATURES.encode(payload, ca_key, _ALGORITHM, {"typ": _TYPE})


def read_statement(
    statement: str, ca_keys: Iterable[ec.EllipticCurvePublicKey]
) -> tuple[RevokedService, ...]:
    """Read the rows of a statement that one of these CAs signed.

    Raises:
        StatementRefused: none of them did, or it is something else.
    """
    for key in ca_keys:
        try:
            signed = _SIGNATURES.decode_complete(statement, key, [_ALGORITHM])
            if signed["header"].get("typ") == _TYPE:
                return msgspec.json.decode(signed["payload"], type=_Statement).revoked
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, msgspec.MsgspecError, ValueError, RecursionError):
            break
    raise StatementRefused("the services CA did not sign this statement of revoked services")
