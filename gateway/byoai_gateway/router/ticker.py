"""Calls something every so often, for as long as it is told to."""

import asyncio
from collections.abc import Callable
from typing import Self


class Ticker:
    """A timer that goes on until it is stopped, or left; without a period it never ticks."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._every_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def every(self, period_s: float | None) -> None:
        """Tick with this period from now on; None or 0 is never."""
        self.stop()
        self._every_s = period_s
        self._arm()

    def stop(self) -> None:
        """Tick no more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._every_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._every_s, self._ticked)

    def _ticked(self) -> None:
        self._arm()
        self._tick()
