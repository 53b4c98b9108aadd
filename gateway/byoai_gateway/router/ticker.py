"""Calls something every so often, for as long as it is entered."""

import asyncio
from collections.abc import Callable
from typing import Self


class Ticker:
    """A timer that goes on until it is left; one without a period never ticks."""

    def __init__(self, every_s: float | None, tick: Callable[[], None]) -> None:
        self._every_s = every_s
        self._tick = tick
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
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
