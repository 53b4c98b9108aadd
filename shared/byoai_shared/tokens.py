"""Tunnel tokens: a JWT profile strict enough to be safe in the hands of a lenient library.

ES256 (RFC 7518 section 3.4), `typ: tunnel+jwt`, a known `kid`; every claim required and of one
type; a bounded life; bound to the link certificate (`cnf.x5t#S256`, RFC 8705 section 3.1), so
that a stolen token is of no use. PyJWT signs, and checks the signature; it reads neither header
nor claims for us: it would accept a wrong `typ`, a list as audience, text for a time, a megabyte
of token, and falls over JSON that is nested deeply.
"""

import base64
import hmac
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from jwt.api_jws import PyJWS

from byoai_shared.errors import ByoaiError
from byoai_shared.keys import is_p256

ALGORITHM: Final = "ES256"
TOKEN_TYPE: Final = "tunnel+jwt"  # noqa: S105 - a media type
MAX_TOKEN_BYTES: Final = 4096
MAX_LIFE_S: Final = 3600
LEEWAY_S: Final = 10

_SIGNATURES: Final = PyJWS(algorithms=[ALGORITHM])

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
    BAD_CLAIMS = "a claim of the token is missing, superfluous, or of the wrong type or range"
    WRONG_ISSUER = "the token was issued by another gateway"
    WRONG_AUDIENCE = "the token is meant for another audience"
    NOT_YET_VALID = "the token is not valid yet; check the clocks"
    EXPIRED = "the token has expired"
    LIFE_TOO_LONG = "the token lives longer than an hour"
    WRONG_CERTIFICATE = "the token is bound to another certificate"
    BEFORE_REVOCATIONS = (
        "the token was issued before so many revocations that it must be fetched again"
    )


class TokenRefused(ByoaiError):
    """A token or an assertion does not hold."""

    def __init__(self, fault: TokenFault, issued_at: int | None = None) -> None:
        super().__init__(fault.value)
        self.fault = fault
        self.issued_at = issued_at
        """When the issuer's clock says it was made, if it is the time that was at fault."""


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
        bound_to = wire.cnf.thumbprint.encode()
        if not hmac.compare_digest(bound_to, certificate_thumbprint.encode()):
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
    try:
        header = msgspec.json.decode(_segment(token, 0), type=TokenHeader)
    except (msgspec.MsgspecError, ValueError, RecursionError):
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
        payload: bytes = _SIGNATURES.decode(token, key, algorithms=[ALGORITHM])
    except jwt.InvalidSignatureError:
        raise TokenRefused(TokenFault.BAD_SIGNATURE) from None
    except (jwt.PyJWTError, ValueError):
        raise TokenRefused(TokenFault.MALFORMED) from None
    return _parse_claims(payload, shape)


def read_unverified_claims(token: str, shape: type[_Shape]) -> _Shape:
    """Read claims that anybody may have written, to find out whose key to verify them with.

    Raises:
        TokenRefused: they have another shape.
    """
    return _parse_claims(_segment(token, 1), shape)


def _parse_claims(payload: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(payload, type=shape)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise TokenRefused(TokenFault.BAD_CLAIMS) from None


def _segment(token: str, index: int) -> bytes:
    """Return one of the three parts of a compact JWS (RFC 7515 section 7.1), decoded."""
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRefused(TokenFault.TOO_LARGE)
    parts = token.split(".")
    if len(parts) != 3:
        raise TokenRefused(TokenFault.MALFORMED)
    part = parts[index]
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise TokenRefused(TokenFault.MALFORMED) from None


def check_times(*, issued: int, expires: int, now: float) -> None:
    """Check a life span against the clock, with `LEEWAY_S` for clocks that differ.

    Raises:
        TokenRefused: it has not begun, is over, or is over before it begins.
    """
    if expires <= issued:
        raise TokenRefused(TokenFault.BAD_CLAIMS)
    if issued > now + LEEWAY_S:
        raise TokenRefused(TokenFault.NOT_YET_VALID, issued)
    if expires <= now - LEEWAY_S:
        raise TokenRefused(TokenFault.EXPIRED, issued)


def public_jwk(kid: str, public_key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """Return a key as a JWK (RFC 7517) of text fields only."""
    jwk: dict[str, str] = ECAlgorithm.to_jwk(public_key, as_dict=True)
    return {**jwk, "kid": kid, "alg": ALGORITHM, "use": "sig"}


def keys_from_jwks(
    jwks: Sequence[Mapping[str, str]],
) -> dict[str, ec.EllipticCurvePublicKey]:
    """Read public P-256 keys by their key id.

    Raises:
        TokenRefused: one of them is not such a key, or has no id of its own.
    """
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for jwk in jwks:
        try:
            key = ECAlgorithm(ECAlgorithm.SHA256).from_jwk(dict(jwk))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            raise TokenRefused(TokenFault.UNKNOWN_KEY) from None
        # from_jwk() takes other curves too, and makes a private key of one with a `d`.
        if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
            raise TokenRefused(TokenFault.UNKNOWN_KEY)
        if not jwk.get("kid") or jwk["kid"] in keys:
            raise TokenRefused(TokenFault.UNKNOWN_KEY)
        keys[jwk["kid"]] = key
    return keys
