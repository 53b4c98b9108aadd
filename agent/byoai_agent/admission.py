"""How many requests the model server works on at once, and how many may wait.

A model server that is handed more than it can batch makes everybody wait and tells nobody.
So the agent admits a bounded number, keeps a bounded queue in order of arrival, and turns the
rest away at once with the time after which another try makes sense. It knows nothing of HTTP.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from byoai_shared.errors import ByoaiError

_MIN_RETRY_S: Final = 1
_MAX_RETRY_S: Final = 60
_SMOOTHING: Final = 0.2


class Busy(ByoaiError):
    """No place: the queue is full or the wait was too long."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return (
            "the model server is working on as many requests as it may; "
            f"try again in {self.retry_after_s} s"
        )


class Admission:
    """Places for requests, first come, first served."""

    def __init__(
        self,
        *,
        concurrent: int,
        queued: int,
        wait_s: float,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = concurrent
        self._queue_limit = queued
        self._wait_s = wait_s
        self._on_change = on_change
        self._clock = clock
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_service_s = 1.0

    @property
    def in_flight(self) -> int:
        """Requests that hold a place now."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Hold one place; waits for it in the queue.

        Raises:
            Busy: the queue is full, or no place came free in time.
        """
        await self._enter()
        self._on_change()
        started = self._clock()
        try:
            yield
        finally:
            taken = self._clock() - started
            self._mean_service_s += _SMOOTHING * (taken - self._mean_service_s)
            self._leave()
            self._on_change()

    async def _enter(self) -> None:
        if self._in_flight < self.capacity:
            self._in_flight += 1
            return
        if len(self._waiting) >= self._queue_limit:
            raise Busy(self._retry_after_s())
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            self._give_up(turn)
            if isinstance(error, TimeoutError):
                raise Busy(self._retry_after_s()) from error
            raise

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        """Leave the queue; a place that was handed over in the same turn goes to the next."""
        if turn.done() and not turn.cancelled():
            self._leave()
        elif turn in self._waiting:
            self._waiting.remove(turn)

    def _leave(self) -> None:
        """Hand the place straight to the next in the queue, so that nobody overtakes."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._in_flight -= 1

    def _retry_after_s(self) -> int:
        ahead = len(self._waiting) + 1
        guess = math.ceil(self._mean_service_s * ahead / self.capacity)
        return min(max(guess, _MIN_RETRY_S), _MAX_RETRY_S)
