"""Checks who an agent is from its assertion, against the keys it has had; each is taken once."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from http import HTTPStatus
from math import ceil
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
_MOST_OF_AN_AGENT: Final = 128
"""Assertions of one agent that may be remembered; so no agent takes the room of the others."""
_TOLERATED_CLOCKS_S: Final = 300
"""How far gateways' clocks may differ: so much longer the shared store remembers."""


class ReplayGuard:
    """Remembers ids of assertions until they have expired: here, and in the shared store if any.

    Without a store, or while it is away, an assertion could be shown once to each gateway; what it
    brings (a token bound to a certificate) is of no use without the agent's key.
    """

    def __init__(self, shared: SharedStore, limit: int = _MOST_REMEMBERED) -> None:
        self._shared = shared
        self._limit = limit
        self._seen: dict[str, dict[str, float]] = {}
        """Ids and the ends of their lives, by agent."""
        self._ends: list[tuple[float, str, str]] = []
        """The same as a heap, the next to end first: (end, agent, id)."""

    def knows(self, assertion: Assertion) -> bool:
        """Whether this gateway has taken an assertion before."""
        return assertion.token_id in self._seen.get(assertion.identity.agent_id, ())

    async def take(self, assertion: Assertion, now: float) -> bool:
        """Remember an assertion; False when it was taken before, or there is no room left.

        Raises:
            Refusal: the agent has too many that have not expired (429).
        """
        key = f"{assertion.identity.agent_id}/{assertion.token_id}"
        # Here as well, for when the store is away or has forgotten.
        if not self._take_here(assertion, now):
            return False
        store = self._shared.store
        if store is None:
            return True
        for_s = assertion.expires_at + LEEWAY_S + _TOLERATED_CLOCKS_S - now
        return await self._shared.ask_for_agent(
            partial(store.take_once, f"assertion:{key}", for_s), _nothing_known
        )

    def _take_here(self, assertion: Assertion, now: float) -> bool:
        self._forget_ended(now)
        agent_id, token_id = assertion.identity.agent_id, assertion.token_id
        own = self._seen.get(agent_id, {})
        if token_id in own or len(self._ends) >= self._limit:
            return False
        if len(own) >= _MOST_OF_AN_AGENT:
            raise _too_many(min(own.values()) - now)
        end = assertion.expires_at + LEEWAY_S
        self._seen.setdefault(agent_id, own)[token_id] = end
        heappush(self._ends, (end, agent_id, token_id))
        return True

    def _forget_ended(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, agent_id, token_id = heappop(self._ends)
            own = self._seen[agent_id]
            del own[token_id]
            if not own:
                del self._seen[agent_id]


async def _nothing_known() -> bool:
    """Answer for this gateway, which has not taken the assertion before."""
    return True


_USED: Final = "the assertion was used before; sign a new one for each call"


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

    async def check(
        self, text: str, path: str, count: Callable[[AgentIdentity], Awaitable[None]]
    ) -> Proven:
        """Find out who signed an assertion for `path`, with whichever key they ever had.

        A stranger's costs one read of the database and one signature: the header names the key.
        `count` counts the agent's call and refuses one too many, before the assertion takes room;
        an assertion that is known to have been used is not counted.

        Raises:
            Refusal: nobody we know, or not for this endpoint, or not now, or not any more; or the
                agent calls too often (429); or one of `count`.
        """
        now, audience = self._clock(), self._public_url + path
        try:
            claimed = read_assertion(text, audience=audience, now=now)
            async with self._database.reading() as connection:
                keys = await load_keys(connection, claimed.identity.agent_id)
            proven, assertion = _signer(text, audience, signers(keys, claimed.key_id), now)
        except TokenRefused as error:
            raise _refused(str(error)) from error
        if self._replays.knows(assertion):
            raise _refused(_USED)
        await count(proven.identity)
        if not await self._replays.take(assertion, now):
            raise _refused(_USED)
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


def _too_many(left_s: float) -> Refusal:
    wait_s = max(1, ceil(left_s))
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_exceeded",
        f"this agent has used {_MOST_OF_AN_AGENT} assertions that have not expired; "
        f"try again in {wait_s} s",
        retry_after_s=wait_s,
    )
