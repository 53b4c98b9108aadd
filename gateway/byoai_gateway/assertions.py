"""Checks who an agent is from its assertion, against the keys it has had; each is taken once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

from byoai_gateway.clock import Clock
from byoai_gateway.database import Database
from byoai_gateway.link_keys import LinkKey, load_keys, signers
from byoai_gateway.refusals import Refusal
from byoai_gateway.shared_store import SharedStore
from byoai_shared.assertion import Assertion, read_assertion, verify_assertion
from byoai_shared.identity import AgentIdentity
from byoai_shared.tokens import LEEWAY_S, TokenFault, TokenRefused

_MOST_REMEMBERED: Final = 100_000
_TOLERATED_CLOCKS_S: Final = 300
"""How far gateways' clocks may differ: so much longer the shared store remembers."""


class ReplayGuard:
    """Remembers ids of assertions until they have expired: here, and in the shared store if any.

    Without a store, or while it is away and `limits.when_store_is_down` is `open`, an assertion
    could be shown once to each gateway; what it brings (a token bound to a certificate) is of no
    use without the agent's key.
    """

    def __init__(self, shared: SharedStore, limit: int = _MOST_REMEMBERED) -> None:
        self._shared = shared
        self._limit = limit
        self._seen: dict[str, float] = {}

    async def take(self, assertion: Assertion, now: float) -> bool:
        """Remember an assertion; False when it was taken before, or there is no room left.

        Raises:
            Refusal: the store is away, and this gateway may not answer alone (503).
        """
        key = f"{assertion.identity.agent_id}/{assertion.token_id}"
        # Here as well, for when the store is away or has forgotten.
        if not self._take_here(key, assertion, now):
            return False
        store = self._shared.store
        if store is None:
            return True
        for_s = assertion.expires_at + LEEWAY_S + _TOLERATED_CLOCKS_S - now
        return await self._shared.ask(
            partial(store.take_once, f"assertion:{key}", for_s), _nothing_known
        )

    def _take_here(self, key: str, assertion: Assertion, now: float) -> bool:
        if len(self._seen) >= self._limit:
            self._seen = {it: until for it, until in self._seen.items() if until > now}
        if key in self._seen or len(self._seen) >= self._limit:
            return False
        self._seen[key] = assertion.expires_at + LEEWAY_S
        return True


async def _nothing_known() -> bool:
    """Answer for this gateway, which has not taken the assertion before."""
    return True


@dataclass(frozen=True, slots=True)
class Proven:
    """An agent that has proven who it is, and the key it did it with."""

    identity: AgentIdentity
    signer: LinkKey


class AssertionCheck:
    """Checks assertions meant for the endpoints under one public address."""

    def __init__(
        self, database: Database, public_url: str, clock: Clock, shared: SharedStore
    ) -> None:
        self._database = database
        self._public_url = public_url
        self._clock = clock
        self._replays = ReplayGuard(shared)

    async def check(self, text: str, path: str) -> Proven:
        """Find out who signed an assertion for `path`, with whichever key they ever had.

        A stranger's costs one read of the database and one signature: the header names the key.

        Raises:
            Refusal: nobody we know, or not for this endpoint, or not now, or not any more; or the
                shared store is away (503).
        """
        now, audience = self._clock(), self._public_url + path
        try:
            claimed = read_assertion(text, audience=audience, now=now)
            async with self._database.reading() as connection:
                keys = await load_keys(connection, claimed.identity.agent_id)
            proven, assertion = _signer(text, audience, signers(keys, claimed.key_id), now)
        except TokenRefused as error:
            raise _refused(str(error)) from error
        if not await self._replays.take(assertion, now):
            raise _refused("the assertion was used before; sign a new one for each call")
        return proven


def _signer(
    text: str, audience: str, keys: Sequence[LinkKey], now: float
) -> tuple[Proven, Assertion]:
    for key in keys:
        try:
            assertion = verify_assertion(text, public_key=key.load(), audience=audience, now=now)
        except TokenRefused as error:
            if error.fault is not TokenFault.BAD_SIGNATURE:
                raise
        else:
            return Proven(assertion.identity, key), assertion
    raise TokenRefused(TokenFault.BAD_SIGNATURE)


def _refused(message: str) -> Refusal:
    return Refusal(HTTPStatus.UNAUTHORIZED, "assertion_refused", message, param="assertion")
