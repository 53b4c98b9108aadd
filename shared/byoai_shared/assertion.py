"""How an agent proves itself to the gateway: an assertion signed by its link key.

`private_key_jwt` (RFC 7523 section 3): it passes any load balancer that ends TLS, lives for a
minute at most, is meant for one endpoint, and carries an id so that it is taken once. Its header
names the key that signed it, so that a forged one costs its reader one signature at most.
"""

import secrets
from dataclasses import dataclass
from typing import Annotated, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from byoai_shared.identity import (
    AgentIdentity,
    IdentityError,
    identity_uri,
    key_thumbprint,
    parse_identity_uri,
)
from byoai_shared.tokens import (
    ALGORITHM,
    TokenFault,
    TokenRefused,
    check_times,
    read_claims,
    read_header,
    read_unverified_claims,
)

ASSERTION_TYPE: Final = "byoai-agent+jwt"
MAX_ASSERTION_LIFE_S: Final = 60

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _WireClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    iss: _Text
    sub: _Text
    aud: _Text
    iat: _Time
    exp: _Time
    jti: _Text


@dataclass(frozen=True, slots=True)
class Assertion:
    """A verified assertion; the gateway refuses a `token_id` it saw before."""

    identity: AgentIdentity
    token_id: str
    expires_at: int
    """Unix seconds; it is taken until `LEEWAY_S` later, so remember `token_id` until then."""


@dataclass(frozen=True, slots=True)
class UnverifiedAssertion:
    """What an assertion says of itself, for looking up the key to verify it with."""

    identity: AgentIdentity
    key_id: str
    """The `key_thumbprint` of the signer's key; empty in the assertions of older agents."""


def sign_assertion(
    *, identity: AgentIdentity, key: ec.EllipticCurvePrivateKey, audience: str, now: float
) -> str:
    """Make an assertion for the endpoint whose URL is `audience`."""
    uri = identity_uri(identity)
    claims = {
        "iss": uri,
        "sub": uri,
        "aud": audience,
        "iat": int(now),
        "exp": int(now) + MAX_ASSERTION_LIFE_S,
        "jti": secrets.token_urlsafe(16),
    }
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    headers = {"typ": ASSERTION_TYPE, "kid": key_thumbprint(spki)}
    return jwt.encode(claims, key, ALGORITHM, headers=headers)


def read_assertion(token: str, *, audience: str, now: float) -> UnverifiedAssertion:
    """Check everything of an assertion but its signature, which costs the most. Not verified!

    Raises:
        TokenRefused: with the first fault found.
    """
    header = read_header(token, ASSERTION_TYPE)
    claims = read_unverified_claims(token, _WireClaims)
    return UnverifiedAssertion(_checked(claims, audience, now).identity, header.kid)


def verify_assertion(
    token: str, *, public_key: ec.EllipticCurvePublicKey, audience: str, now: float
) -> Assertion:
    """Check an assertion against one of its agent's link keys.

    Raises:
        TokenRefused: with the first fault found.
    """
    read_header(token, ASSERTION_TYPE)
    return _checked(read_claims(token, public_key, _WireClaims), audience, now)


def _checked(claims: _WireClaims, audience: str, now: float) -> Assertion:
    if claims.iss != claims.sub:
        raise TokenRefused(TokenFault.WRONG_ISSUER)
    if claims.aud != audience:
        raise TokenRefused(TokenFault.WRONG_AUDIENCE)
    check_times(issued=claims.iat, expires=claims.exp, now=now)
    if claims.exp - claims.iat > MAX_ASSERTION_LIFE_S:
        raise TokenRefused(TokenFault.LIFE_TOO_LONG)
    # iss and sub are one and the same; whose key this is, the caller looked up by them.
    return Assertion(_agent(claims.sub), claims.jti, claims.exp)


def _agent(uri: str) -> AgentIdentity:
    try:
        identity = parse_identity_uri(uri)
    except IdentityError:
        raise TokenRefused(TokenFault.BAD_CLAIMS) from None
    if not isinstance(identity, AgentIdentity):
        raise TokenRefused(TokenFault.BAD_CLAIMS)
    return identity
