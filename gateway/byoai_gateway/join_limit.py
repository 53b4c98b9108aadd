"""How often one address may try a join code: a brake on guessing, counted in memory."""

from http import HTTPStatus
from math import ceil

from byoai_gateway.rate_windows import MemoryWindows
from byoai_gateway.refusals import Refusal


class JoinLimit:
    """Counts tries by address; the minute begins with the first one."""

    def __init__(self, tries_per_minute: int) -> None:
        self._windows = MemoryWindows(tries_per_minute)

    async def count(self, address: str) -> None:
        """Count one try.

        Raises:
            Refusal: it is one too many; it says when to come back.
        """
        left_s = await self._windows.hit(address)
        if left_s is None:
            return
        wait_s = max(1, ceil(left_s))
        raise Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            "too_many_tries",
            f"too many join codes were tried from this address; try again in {wait_s} s",
            retry_after_s=wait_s,
        )
