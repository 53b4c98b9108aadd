"""Checks who an agent is from its assertion, against the keys it has had; each is taken once."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from byoai_gateway.clock import Clock
from byoai_gateway.database import Database
from byoai_gateway.link_keys import LinkKey, load_keys
from byoai_gateway.refusals import Refusal
from byoai_shared.assertion import Assertion, assertion_subject, verify_assertion
from byoai_shared.identity import AgentIdentity
from byoai_shared.tokens import LEEWAY_S, TokenFault, TokenRefused

_MOST_REMEMBERED: Final = 100_000


class ReplayGuard:
    """Remembers ids of assertions until they have expired.

    In this process only. Behind several gateways an assertion could be shown once to each;
    what it brings (a token bound to a certificate) is of no use without the agent's key.
    """

    def __init__(self, limit: int = _MOST_REMEMBERED) -> None:
        self._limit = limit
        self._seen: dict[str, float] = {}

    def take(self, assertion: Assertion, now: float) -> bool:
        """Remember an assertion; False when it was taken before, or there is no room left."""
        key = f"{assertion.identity.agent_id}/{assertion.token_id}"
        if len(self._seen) >= self._limit:
            self._seen = {it: until for it, until in self._seen.items() if until > now}
        if key in self._seen or len(self._seen) >= self._limit:
            return False
        self._seen[key] = assertion.expires_at + LEEWAY_S
        return True


@dataclass(frozen=True, slots=True)
class Proven:
    """An agent that has proven who it is, and the key it did it with."""

    identity: AgentIdentity
    signer: LinkKey


class AssertionCheck:
    """Checks assertions meant for the endpoints under one public address."""

    def __init__(self, database: Database, public_url: str, clock: Clock) -> None:
        self._database = database
        self._public_url = public_url
        self._clock = clock
        self._replays = ReplayGuard()

    async def check(self, text: str, path: str) -> Proven:
        """Find out who signed an assertion for `path`, with whichever key they ever had.

        Raises:
            Refusal: nobody we know, or not for this endpoint, or not now, or not any more.
        """
        now = self._clock()
        try:
            identity = assertion_subject(text)
            async with self._database.reading() as connection:
                keys = await load_keys(connection, identity.agent_id)
            proven, assertion = self._signer(text, self._public_url + path, keys, now)
        except TokenRefused as error:
            raise _refused(str(error)) from error
        if not self._replays.take(assertion, now):
            raise _refused("the assertion was used before; sign a new one for each call")
        return proven

    def _signer(
        self, text: str, audience: str, keys: list[LinkKey], now: float
    ) -> tuple[Proven, Assertion]:
        for key in keys:
            try:
                assertion = verify_assertion(
                    text, public_key=key.load(), audience=audience, now=now
                )
            except TokenRefused as error:
                if error.fault is not TokenFault.BAD_SIGNATURE:
                    raise
            else:
                return Proven(assertion.identity, key), assertion
        raise TokenRefused(TokenFault.BAD_SIGNATURE)


def _refused(message: str) -> Refusal:
    return Refusal(HTTPStatus.UNAUTHORIZED, "assertion_refused", message, param="assertion")
