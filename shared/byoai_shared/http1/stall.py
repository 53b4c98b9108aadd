"""Finds a peer that takes nothing of what is being written to it.

A limit on the whole of a long answer would cut whoever reads slowly; this one counts from the last
byte that was taken. It looks once per limit, so that a stall is found after one to two of them.
What it sees is what the system takes from us, which on a fast network comes in lumps of up to
some megabytes: let the limit be minutes.
"""

import asyncio
from collections.abc import Callable

from byoai_shared.http1.deadline import Deadline


class StallWatch:
    """Calls `on_stall` when, while writing is paused, nothing was taken for `limit_s` seconds."""

    __slots__ = ("_deadline", "_limit_s", "_on_stall", "_transport", "_unsent")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_s: float, on_stall: Callable[[], None]
    ) -> None:
        self._limit_s = limit_s
        self._on_stall = on_stall
        self._deadline = Deadline(loop, self._look)
        self._transport: asyncio.Transport | None = None
        self._unsent = 0

    def paused(self, transport: asyncio.Transport) -> None:
        """Begin: more is written than is taken."""
        self._transport = transport
        self._unsent = transport.get_write_buffer_size()
        self._deadline.set(self._limit_s)

    def resumed(self) -> None:
        """End it: the peer has read on."""
        self._deadline.clear()

    def stop(self) -> None:
        """Let go of the event loop's timer and of `on_stall`, as `Deadline.stop` does and why."""
        self._deadline.stop()
        self._on_stall = _do_nothing
        self._transport = None

    def _look(self) -> None:
        transport = self._transport
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._unsent = unsent
            self._deadline.set(self._limit_s)
        else:
            self._on_stall()


def _do_nothing() -> None:
    """Stand in for the callback of a watch that is stopped."""
