"""The main application's public keys, fetched from its JWKS address.

Kept for minutes, and for as long as the address does not answer: an application that is down
must not lock its users out of what works. An unknown key id is looked up again at once, but not
more often than every half minute, so that made-up tokens cause no storm.

While the address does not answer, nobody is told that their token is bad: what cannot be checked
is answered 503, and the address is asked again soon. Until the first keys have come no user can
sign in, so the gateway is not ready; afterwards an address that goes away leaves it ready. A set
whose keys are all unusable is treated like no answer, and `warnings` says so; an empty set
withdraws all keys.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import aiohttp
import jwt
import msgspec

from byoai_gateway.clock import Clock
from byoai_gateway.key_set import KeySet, read_key_set
from byoai_gateway.providers.outbound import system_context
from byoai_gateway.refusals import Refusal
from byoai_gateway.users import UserRefused
from byoai_shared.errors import ByoaiError
from byoai_shared.logs import get_logger

_FRESH_S: Final = 600.0
_AGAIN_S: Final = 30.0
_FAILED_S: Final = 2.0
"""Before an address that did not answer is asked again for a key that is not known."""
_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 1024 * 1024
_LOGGED_AGAIN_S: Final = 60.0
FIRST_KEYS_EVERY_S: Final = 2.0
"""How often to call `fetch_first` until it has been successful."""

log = get_logger("gateway")


class JwksUnavailable(ByoaiError):
    """An address gave no key set; the sentence says why, for the operator."""


_NO_KEY_ID: Final = ""
NO_USABLE_KEY: Final = "the key set has no usable key: ES256, RS256 or PS256 with a `kid`"
FORMER_KEYS: Final = (
    "users.jwks_url has no usable key any more; the keys fetched before are used, and tokens that "
    "other keys sign are refused; correct the key set"
)


class JwksKeys:
    """Keys by their id; see `byoai_gateway.users.KeyProvider`."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._warned_of: Mapping[str, int] = {}
        self._asked_at = float("-inf")
        self._has_failed = False
        self._has_only_unusable = False
        self._has_had_keys = False
        self._logged_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def fetch_first(self) -> None:
        """Fetch the keys unless some have come before, or the address was asked just now."""
        async with self._fetching:
            if not self._has_had_keys and self._is_due(_NO_KEY_ID):
                await self._fetch()

    async def why_not(self) -> str:
        """Say why no user can sign in; empty once keys have come."""
        if self._has_had_keys:
            return ""
        has_answered = self._asked_at > float("-inf") and not self._has_failed
        found = "has no usable key" if has_answered else "has not answered with a key set"
        return f"no user can sign in: users.jwks_url {found}"

    def warnings(self) -> tuple[str, ...]:
        """Return a sentence while former keys are used because all later ones are unusable."""
        return (FORMER_KEYS,) if self._has_only_unusable else ()

    async def key(self, token: str) -> object:
        """The key whose id stands in a token's header.

        Raises:
            UserRefused: there is no such key.
            Refusal: the address does not say now whether there is.
        """
        try:
            key_id: object = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise UserRefused("the token does not hold; sign in again") from None
        if not isinstance(key_id, str):
            raise UserRefused("the token names no key")
        if self._is_due(key_id):
            async with self._fetching:
                if self._is_due(key_id):
                    await self._fetch()
        if key_id not in self._keys:
            if self._has_failed:
                raise _unavailable()
            raise UserRefused("the token is signed with a key that is not known")
        return self._keys[key_id]

    def _is_due(self, key_id: str) -> bool:
        age_s = self._clock() - self._asked_at
        if key_id in self._keys:
            return age_s > _FRESH_S
        return age_s > (_FAILED_S if self._has_failed else _AGAIN_S)

    async def _fetch(self) -> None:
        self._asked_at = self._clock()
        self._has_failed = True  # until it has not; a client that leaves ends this anywhere
        try:
            found = await fetch_keys(self._url)
        except JwksUnavailable as error:
            self._log_failure(str(error))
            return
        self._has_only_unusable = bool(self._keys and found.unusable and not found.keys)
        self._warn_of_unusable(found)
        if self._has_only_unusable:
            return
        self._keys = found.keys
        self._has_failed = False
        self._logged_at = float("-inf")
        if found.keys:
            self._has_had_keys = True
        elif not self._has_had_keys:
            self._log_failure(NO_USABLE_KEY)

    def _warn_of_unusable(self, found: KeySet) -> None:
        """Warn of keys that are ignored, once for as long as they stay the same."""
        if found.unusable and found.unusable != self._warned_of:
            log.warning(
                "users.jwks_keys_ignored",
                setting="users.jwks_url",
                url=self._url,
                reason="; ".join(f"{count}: {why}" for why, count in found.unusable.items()),
                next=FORMER_KEYS
                if self._has_only_unusable
                else f"the other {len(found.keys)} keys are used; tokens that these keys sign "
                "are refused",
            )
        self._warned_of = found.unusable

    def _log_failure(self, reason: str) -> None:
        """Log it, unless that was done a moment ago: an address may be asked every 2 s."""
        now = self._clock()
        if now - self._logged_at < _LOGGED_AGAIN_S:
            return
        self._logged_at = now
        log.warning(
            "users.jwks_failed",
            setting="users.jwks_url",
            url=self._url,
            reason=reason,
            next="the keys fetched before are used"
            if self._has_had_keys
            else "no user can sign in until the address answers; see that users.jwks_url is right",
        )


def _unavailable() -> Refusal:
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        "users' tokens cannot be checked now; try again in a moment",
        retry_after_s=round(_FAILED_S),
    )


async def fetch_keys(url: str) -> KeySet:
    """Fetch a JWKS.

    Raises:
        JwksUnavailable: there is no key set at the address now.
    """
    try:
        # In a thread: thousands of keys take a while, and streams must not wait for that.
        return await asyncio.to_thread(read_key_set, await _download(url))
    except aiohttp.ClientResponseError as error:
        raise JwksUnavailable(f"the address answered with status {error.status}") from error
    except TimeoutError as error:
        raise JwksUnavailable(f"the address did not answer within {_TIMEOUT_S:g} s") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        raise JwksUnavailable("the answer is not a JSON Web Key Set") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:  # ValueError: what is no URL
        raise JwksUnavailable(f"the address did not answer ({type(error).__name__})") from error


async def _download(url: str) -> bytes:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, raise_for_status=True) as session,
        # Not aiohttp's own context, which would obey SSLKEYLOGFILE.
        session.get(url, allow_redirects=False, ssl=system_context()) as response,
    ):
        body = await response.content.read(_MAX_BYTES + 1)
        while len(body) <= _MAX_BYTES and (more := await response.content.read(_MAX_BYTES)):
            body += more
        if response.status != 200:
            raise JwksUnavailable(f"the address answered with status {response.status}")
        if len(body) > _MAX_BYTES:
            raise JwksUnavailable(f"the answer exceeds the limit of {_MAX_BYTES} bytes")
        return body
