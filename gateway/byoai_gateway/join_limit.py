"""How often one address may try a join code: a brake on guessing, counted in memory."""

import time
from http import HTTPStatus

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from byoai_gateway.refusals import Refusal


class JoinLimit:
    """Counts tries by address; the minute begins with the first one."""

    def __init__(self, tries_per_minute: int) -> None:
        self._limit = RateLimitItemPerMinute(tries_per_minute, namespace="join")
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    async def count(self, address: str) -> None:
        """Count one try.

        Raises:
            Refusal: it is one too many; it says when to come back.
        """
        if await self._limiter.hit(self._limit, address):
            return
        window = await self._limiter.get_window_stats(self._limit, address)
        wait_s = max(1, round(window.reset_time - time.time()))
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too_many_tries",
            f"too many join codes were tried from this address; try again in {wait_s} s",
            retry_after_s=wait_s,
        )
