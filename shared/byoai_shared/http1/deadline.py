"""One limit in time that is moved often and reached seldom."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls `on_reached` when the time last set has come.

    A timer that fires too early looks again instead of being replaced at each `set`: making
    and cancelling one costs more than a small request has to spare.
    """

    __slots__ = ("_at", "_loop", "_on_reached", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_reached: Callable[[], None]) -> None:
        self._loop = loop
        self._on_reached = on_reached
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, after_s: float) -> None:
        """Move it to `after_s` from now."""
        self._at = self._loop.time() + after_s
        if self._timer is not None:
            if self._timer.when() <= self._at:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(self._at, self._look)

    def clear(self) -> None:
        """Let it never come, until it is set again."""
        self._at = None

    def stop(self) -> None:
        """Let go of the event loop's timer and of `on_reached`: there will be no other `set`.

        `on_reached` is nearly always a method of the object that holds this one. The two would
        keep each other, and a TLS session with them, until a full garbage collection.
        """
        self._at = None
        self._on_reached = _do_nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._loop.time() < self._at:
            self._timer = self._loop.call_at(self._at, self._look)
            return
        self._at = None
        self._on_reached()


def _do_nothing() -> None:
    """Stand in for the callback of a deadline that is stopped."""
