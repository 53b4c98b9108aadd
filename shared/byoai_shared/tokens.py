"""Tunnel tokens: a JWT profile strict enough to be safe in the hands of a lenient library.

ES256 (RFC 7518 section 3.4), `typ: tunnel+jwt`, a known `kid`; every claim required and of one
type; a bounded life; bound to the link certificate (`cnf.x5t#S256`, RFC 8705 section 3.1), so
that a stolen token is of no use. PyJWT checks the signature only: it would by default accept a
wrong `typ`, a list as audience, text for a time and a megabyte of token.
"""

import hmac
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from jwt.types import Options

from byoai_shared.errors import ByoaiError

ALGORITHM: Final = "ES256"
TOKEN_TYPE: Final = "tunnel+jwt"  # noqa: S105 - a media type
MAX_TOKEN_BYTES: Final = 4096
MAX_LIFE_S: Final = 3600
LEEWAY_S: Final = 10

# The claims are ours to check: PyJWT reads them leniently.
_SIGNATURE_ONLY: Final[Options] = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}

_Shape = TypeVar("_Shape")
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class TokenFault(StrEnum):
    """Why a token was refused; safe to log and to tell."""

    TOO_LARGE = "the token is larger than 4096 bytes"
    MALFORMED = "the token is not a token of ours"
    WRONG_ALGORITHM = "the token is not signed with ES256"
    WRONG_TYPE = "the token is of another type"
    UNKNOWN_KEY = "the token is signed with a key that is not trusted"
    BAD_SIGNATURE = "the token's signature does not hold"
    BAD_CLAIMS = "a claim of the token is missing, superfluous or of the wrong type"
    WRONG_ISSUER = "the token was issued by another gateway"
    WRONG_AUDIENCE = "the token is meant for another audience"
    NOT_YET_VALID = "the token is not valid yet; check the clocks"
    EXPIRED = "the token has expired"
    LIFE_TOO_LONG = "the token lives longer than an hour"
    WRONG_CERTIFICATE = "the token is bound to another certificate"


class TokenRefused(ByoaiError):
    """A token or an assertion does not hold."""

    def __init__(self, fault: TokenFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class TunnelClaims(msgspec.Struct, frozen=True):
    """What a tunnel token says. Times are Unix seconds."""

    issuer: str
    audience: str
    tunnel_id: str
    issued_at: int
    not_before: int
    expires_at: int
    token_id: str
    certificate_thumbprint: str
    generation: int
    """Which of the agent's certificates it goes with, counted from 1."""


class _Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    thumbprint: _Text = msgspec.field(name="x5t#S256")


class _WireClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    iss: _Text
    aud: _Text
    sub: _Text
    iat: _Time
    nbf: _Time
    exp: _Time
    jti: _Text
    cnf: _Confirmation
    gen: Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class TokenHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The header of a token; nothing else may stand in it."""

    alg: str
    typ: str
    kid: str = ""


def sign_token(claims: TunnelClaims, key: ec.EllipticCurvePrivateKey, kid: str) -> str:
    """Make a token."""
    payload: dict[str, Any] = {
        "iss": claims.issuer,
        "aud": claims.audience,
        "sub": claims.tunnel_id,
        "iat": claims.issued_at,
        "nbf": claims.not_before,
        "exp": claims.expires_at,
        "jti": claims.token_id,
        "cnf": {"x5t#S256": claims.certificate_thumbprint},
        "gen": claims.generation,
    }
    return jwt.encode(payload, key, ALGORITHM, headers={"typ": TOKEN_TYPE, "kid": kid})


class TokenVerifier:
    """Checks tunnel tokens against a set of trusted keys, by key id."""

    def __init__(
        self, *, issuer: str, audience: str, keys: Mapping[str, ec.EllipticCurvePublicKey]
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._keys = dict(keys)

    def key_id(self, token: str) -> str:
        """Return the id of the key that a token names; it is not verified by this.

        Raises:
            TokenRefused: it has no header of ours.
        """
        return read_header(token, TOKEN_TYPE).kid

    def verify(self, token: str, *, certificate_thumbprint: str, now: float) -> TunnelClaims:
        """Return what a token says, if all of it holds at `now` (Unix seconds).

        Raises:
            TokenRefused: with the first fault found, cheap checks before the signature.
        """
        key = self._keys.get(self.key_id(token))
        if key is None:
            raise TokenRefused(TokenFault.UNKNOWN_KEY)
        wire = read_claims(token, key, _WireClaims)
        if wire.iss != self._issuer:
            raise TokenRefused(TokenFault.WRONG_ISSUER)
        if wire.aud != self._audience:
            raise TokenRefused(TokenFault.WRONG_AUDIENCE)
        check_times(issued=max(wire.iat, wire.nbf), expires=wire.exp, now=now)
        if wire.exp - min(wire.iat, wire.nbf) > MAX_LIFE_S:
            raise TokenRefused(TokenFault.LIFE_TOO_LONG)
        if not hmac.compare_digest(wire.cnf.thumbprint, certificate_thumbprint):
            raise TokenRefused(TokenFault.WRONG_CERTIFICATE)
        return TunnelClaims(
            issuer=wire.iss,
            audience=wire.aud,
            tunnel_id=wire.sub,
            issued_at=wire.iat,
            not_before=wire.nbf,
            expires_at=wire.exp,
            token_id=wire.jti,
            certificate_thumbprint=wire.cnf.thumbprint,
            generation=wire.gen,
        )


def read_header(token: str, expected_type: str) -> TokenHeader:
    """Read a token's header, which is not verified by this.

    Raises:
        TokenRefused: size, shape, algorithm or type is not ours.
    """
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused(TokenFault.TOO_LARGE)
    try:
        raw = jwt.get_unverified_header(token)
        header = msgspec.convert(raw, TokenHeader)
    except (jwt.PyJWTError, msgspec.MsgspecError, ValueError):
        raise TokenRefused(TokenFault.MALFORMED) from None
    if header.alg != ALGORITHM:
        raise TokenRefused(TokenFault.WRONG_ALGORITHM)
    if header.typ != expected_type:
        raise TokenRefused(TokenFault.WRONG_TYPE)
    return header


def read_claims(token: str, key: ec.EllipticCurvePublicKey, shape: type[_Shape]) -> _Shape:
    """Verify a token's signature and read its claims into `shape`, strictly.

    Raises:
        TokenRefused: the signature does not hold, or the claims have another shape.
    """
    try:
        payload = jwt.decode(token, key, algorithms=[ALGORITHM], options=_SIGNATURE_ONLY)
    except jwt.InvalidSignatureError:
        raise TokenRefused(TokenFault.BAD_SIGNATURE) from None
    except (jwt.PyJWTError, ValueError):
        raise TokenRefused(TokenFault.MALFORMED) from None
    try:
        return msgspec.convert(payload, shape, strict=True)
    except msgspec.MsgspecError:
        raise TokenRefused(TokenFault.BAD_CLAIMS) from None


def check_times(*, issued: int, expires: int, now: float) -> None:
    """Check a life span against the clock, with `LEEWAY_S` for clocks that differ.

    Raises:
        TokenRefused: it has not begun, or is over.
    """
    if issued > now + LEEWAY_S:
        raise TokenRefused(TokenFault.NOT_YET_VALID)
    if expires <= now - LEEWAY_S:
        raise TokenRefused(TokenFault.EXPIRED)


def public_jwk(kid: str, public_key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Return a key as a JWK (RFC 7517) of text fields only."""
    jwk: dict[str, str] = ECAlgorithm.to_jwk(public_key, as_dict=True)
    return {**jwk, "kid": kid, "alg": ALGORITHM, "use": "sig"}


def keys_from_jwks(
    jwks: Sequence[Mapping[str, str]],
) -> dict[str, ec.EllipticCurvePublicKey]:
    """Read public P-256 keys by their key id.

    Raises:
        TokenRefused: one of them is not such a key, or has no id.
    """
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for jwk in jwks:
        try:
            key = ECAlgorithm(ECAlgorithm.SHA256).from_jwk(dict(jwk))
        except (jwt.PyJWTError, ValueError, KeyError):
            raise TokenRefused(TokenFault.UNKNOWN_KEY) from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not jwk.get("kid"):
            raise TokenRefused(TokenFault.UNKNOWN_KEY)
        keys[jwk["kid"]] = key
    return keys
