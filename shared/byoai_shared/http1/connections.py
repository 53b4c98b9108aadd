"""The connections of one listener: who owns them, and how they end."""

import asyncio

from byoai_shared.http1.server import ServerConnection

_ENDING_S = 5.0


class Connections:
    """A listener's connections. What makes them gives `lost` as their `on_lost`."""

    def __init__(self) -> None:
        self._open: set[ServerConnection] = set()

    def add(self, connection: ServerConnection) -> ServerConnection:
        """Own one more; returns it."""
        self._open.add(connection)
        return connection

    def lost(self, connection: ServerConnection) -> None:
        """Own one less: it is closed, or was handed over to another protocol."""
        self._open.discard(connection)

    async def drain(self, timeout_s: float) -> None:
        """Take no further request, wait for the answers under way, then cut what is left."""
        for connection in tuple(self._open):
            connection.drain()
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        cut = self._tasks()
        for connection in tuple(self._open):
            connection.abort()
        if cut:
            # Their handlers are cancelled by the loss; they may have something to put away.
            await asyncio.wait(cut, timeout=_ENDING_S)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [connection.task for connection in self._open if connection.task]
