"""Waiting for what nothing tells of."""

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], bool]) -> None:
    """Look again and again; the test's own limit ends a wait for what does not come to hold."""
    while not holds():  # noqa: ASYNC110 -- a counter has no event
        await asyncio.sleep(0.001)
