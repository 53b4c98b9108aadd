"""Who calls the gateway's API: the main application's user, by its token (JWT).

Checked with a shared HS256 secret or against the application's JWKS. Algorithms follow from
that choice, never from the token. A token that was checked is remembered for a minute, by its
hash, so that thousands of requests a second with one token cost one check.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import jwt
from jwt.types import Options

from byoai_gateway.clock import Clock
from byoai_gateway.config import UsersSection
from byoai_shared.errors import ByoaiError

PRO: Final = "pro"
MAX_TOKEN_BYTES: Final = 8192
MAX_USER_ID: Final = 255
_REMEMBERED_S: Final = 60.0
_MOST_REMEMBERED: Final = 50_000
_JWKS_ALGORITHMS: Final = ("ES256", "RS256", "PS256")

# The times are ours to check: with the injected clock, and strictly.
_OPTIONS: Final[Options] = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
    "verify_jti": False,
    "verify_aud": False,
    "verify_iss": False,
}


class UserRefused(ByoaiError):
    """A request does not say who it is from, or cannot prove it."""


@dataclass(frozen=True, slots=True)
class User:
    """A user of the main application."""

    user_id: str
    plan: str

    @property
    def may_self_host(self) -> bool:
        """Whether the plan includes tunnels."""
        return self.plan == PRO


class KeyProvider(Protocol):
    """Where the key that a token names is found."""

    async def key(self, token: str) -> object:
        """The key to check a token with.

        Raises:
            UserRefused: there is none.
            Refusal: it cannot be looked up now.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Remembered:
    user: User
    until: float


class Users:
    """Checks users' tokens."""

    def __init__(self, settings: UsersSection, keys: KeyProvider | None, clock: Clock) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        self._remembered: dict[bytes, _Remembered] = {}

    async def authenticate(self, authorization: str | None) -> User:
        """Find out whose request it is from its Authorization field.

        Raises:
            UserRefused: the sentence is fit for the client.
            Refusal: it cannot be found out now.
        """
        token = _bearer(authorization)
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = self._clock()
        known = self._remembered.get(digest)
        if known is not None and now < known.until:
            return known.user
        user, expires_at = await self._check(token, now)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._forget(now)
        self._remembered[digest] = _Remembered(user, min(now + _REMEMBERED_S, expires_at))
        return user

    async def _check(self, token: str, now: float) -> tuple[User, float]:
        if len(token) > MAX_TOKEN_BYTES:
            raise UserRefused(f"the token is longer than {MAX_TOKEN_BYTES} characters")
        claims = await self._claims(token)
        leeway_s = self._settings.leeway_s
        expires_at = _time(claims, "exp") + leeway_s
        if now >= expires_at:
            raise UserRefused("the token has expired")
        if "nbf" in claims and now < _time(claims, "nbf") - leeway_s:
            raise UserRefused("the token is not valid yet")
        self._check_names(claims)
        return self._user(claims), expires_at

    async def _claims(self, token: str) -> Mapping[str, Any]:
        if self._settings.secret is not None:
            key: Any = self._settings.secret.reveal()
            algorithms = ["HS256"]
        elif self._keys is not None:
            key, algorithms = await self._keys.key(token), list(_JWKS_ALGORITHMS)
        else:
            raise UserRefused("this gateway knows no users; set users.secret or users.jwks_url")
        try:
            with warnings.catch_warnings():
                # Weak keys are refused where settings and key sets are read.
                warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
                return jwt.decode(token, key, algorithms=algorithms, options=_OPTIONS)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise UserRefused("the token does not hold; sign in again") from None

    def _check_names(self, claims: Mapping[str, Any]) -> None:
        if self._settings.issuer is not None and claims.get("iss") != self._settings.issuer:
            raise UserRefused("the token was issued by somebody else")
        wanted = self._settings.audience
        audience = claims.get("aud")
        if wanted is None:
            return
        if not (audience == wanted or (isinstance(audience, list) and wanted in audience)):
            raise UserRefused("the token is meant for somebody else")

    def _user(self, claims: Mapping[str, Any]) -> User:
        user_id: object = claims.get(self._settings.user_claim)
        if isinstance(user_id, int) and not isinstance(user_id, bool):
            user_id = str(user_id)
        # What is not printable cannot be stored by every database.
        if (
            not isinstance(user_id, str)
            or not 0 < len(user_id) <= MAX_USER_ID
            or not user_id.isprintable()
        ):
            raise UserRefused(f"the token has no usable claim {self._settings.user_claim!r}")
        plan: object = claims.get(self._settings.plan_claim)
        return User(user_id, plan if isinstance(plan, str) else "")

    def _forget(self, now: float) -> None:
        """Make room: what is over first, then the older half."""
        kept = [item for item in self._remembered.items() if now < item[1].until]
        if len(kept) >= _MOST_REMEMBERED:
            kept = kept[len(kept) // 2 :]
        self._remembered = dict(kept)


def mint(user: User, settings: UsersSection, now: float, lifetime_s: float) -> str:
    """Sign a token as the main application would, for development.

    Raises:
        UserRefused: there is no shared secret to sign with.
    """
    if settings.secret is None:
        raise UserRefused(
            "only a gateway with users.secret can mint tokens; "
            "with a JWKS the main application does"
        )
    claims: dict[str, Any] = {
        settings.user_claim: user.user_id,
        settings.plan_claim: user.plan,
        "iat": int(now),
        "exp": int(now + lifetime_s),
    }
    if settings.issuer is not None:
        claims["iss"] = settings.issuer
    if settings.audience is not None:
        claims["aud"] = settings.audience
    return jwt.encode(claims, settings.secret.reveal(), "HS256")


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UserRefused("send the user's token as: Authorization: Bearer TOKEN")
    return token.strip()


def _time(claims: Mapping[str, Any], name: str) -> float:
    """A time claim that is a plain number, as RFC 7519 has it."""
    value: object = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        raise UserRefused(f"the token has no usable claim {name!r}")
    return value
