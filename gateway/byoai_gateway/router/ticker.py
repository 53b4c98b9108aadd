"""A timer that calls something after a first wait, and then at regular intervals."""

import asyncio
from collections.abc import Callable
from typing import Self


class Ticker:
    """Calls `tick` `first_s` after `start`, then every `period_s`; a period of 0 never ticks.

    Leaving its context stops it.
    """

    def __init__(self, tick: Callable[[], None], first_s: float, period_s: float) -> None:
        self._tick = tick
        self._first_s = first_s
        self._period_s = period_s
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Tick from now on; a ticker that runs goes on as before."""
        if self._timer is None and self._period_s:
            self._arm(self._first_s)

    def postpone(self) -> None:
        """Let a whole period pass before the next tick, if it runs."""
        if self._timer is not None:
            self._timer.cancel()
            self._arm(self._period_s)

    def stop(self) -> None:
        """Stop ticking; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._ticked)

    def _ticked(self) -> None:
        self._arm(self._period_s)
        self._tick()
