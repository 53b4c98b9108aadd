"""Waiting for what nothing tells of."""

import asyncio
from collections.abc import Callable

LONGEST_S = 50.0
"""A limit for what hangs, below that of a test."""


async def until(holds: Callable[[], bool]) -> None:
    """Look again and again; raises TimeoutError when it does not come to hold."""
    async with asyncio.timeout(LONGEST_S):
        while not holds():  # noqa: ASYNC110 -- a counter has no event
            await asyncio.sleep(0.001)
