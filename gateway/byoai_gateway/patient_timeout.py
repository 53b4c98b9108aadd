"""A limit for a wait that does not count the time for which this process was busy itself.

`asyncio.timeout` compares clocks: where the event loop was held up for longer than the limit, it
ends a wait whose answer lay in the socket all the while. Here the limit is cut into slices; a loop
that was held up sees one of them end, however long that took.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

_SLICES: Final = 10


class _Slices:
    """Timers, one after the other; the last one ends the wait."""

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._slice_s = seconds / _SLICES
        self._left = _SLICES
        self._timer = self._loop.call_later(self._slice_s, self._end_slice)

    def cancel(self) -> None:
        """Start no more of them."""
        self._timer.cancel()

    def _end_slice(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(self._slice_s, self._end_slice)
        else:
            self._limit.reschedule(self._loop.time())


@asynccontextmanager
async def patient_timeout(seconds: float) -> AsyncGenerator[None]:
    """End the block with a TimeoutError once the loop has attended to it for that long."""
    async with asyncio.timeout(None) as limit:
        slices = _Slices(limit, seconds)
        try:
            yield
        finally:
            slices.cancel()
