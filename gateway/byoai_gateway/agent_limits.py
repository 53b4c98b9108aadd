"""How often agents may fetch tokens and renew certificates, each of them and all of one user.

Counted in memory, by each gateway for itself, whatever `limits.when_store_is_down` is: an agent
without a token loses its links, so a store that is away must not stop agents. They are counted
after they have proven who they are, so that no stranger can use up their share, and before the
assertion is remembered, so that an agent over its limit takes no room.
"""

from http import HTTPStatus
from math import ceil

from byoai_gateway.config import LimitsSection
from byoai_gateway.rate_windows import MemoryWindows
from byoai_gateway.refusals import Refusal


class AgentLimits:
    """Counts agents' calls; the minute begins with the first one."""

    def __init__(self, settings: LimitsSection) -> None:
        self._tokens = _Share(
            "tokens", settings.agent_tokens_per_minute, settings.user_tokens_per_minute
        )
        self._renewals = _Share(
            "certificates", settings.agent_renewals_per_minute, settings.user_renewals_per_minute
        )

    async def token(self, agent_id: str, user_id: str) -> None:
        """Count a request for a token.

        Raises:
            Refusal: it is one too many; it says when to come back.
        """
        await self._tokens.count(agent_id, user_id)

    async def renewal(self, agent_id: str, user_id: str) -> None:
        """Count a request for a certificate.

        Raises:
            Refusal: it is one too many; it says when to come back.
        """
        await self._renewals.count(agent_id, user_id)


class _Share:
    """What one agent, and all agents of one user, may ask for in a minute."""

    def __init__(self, what: str, per_agent: int, per_user: int) -> None:
        self._what = what
        self._agents = MemoryWindows(per_agent)
        self._users = MemoryWindows(per_user)

    async def count(self, agent_id: str, user_id: str) -> None:
        wait_s = await self._agents.hit(agent_id)
        if wait_s is not None:
            raise self._too_many("this agent", wait_s)
        wait_s = await self._users.hit(user_id)
        if wait_s is not None:
            raise self._too_many("this user's agents", wait_s)

    def _too_many(self, who: str, left_s: float) -> Refusal:
        wait_s = max(1, ceil(left_s))
        return Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            "rate_limit_exceeded",
            f"{who} asked for too many {self._what} in this minute; try again in {wait_s} s",
            retry_after_s=wait_s,
        )
