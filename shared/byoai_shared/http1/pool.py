"""Idle client connections, kept by key until they are wanted, too old or too many.

A connection that the peer closes, or on which it says anything, while idle is dropped at once.
The last one used is the first one taken: the others may then grow old.

It does not retry: a request that was sent on a connection which then broke raises
`ConnectionClosed(request_sent=True)`, and only the caller knows whether a repetition is safe.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from byoai_shared.http1.client import ClientConnection

K = TypeVar("K", bound=Hashable)

# An idle connection younger than this is taken without looking for its end in the socket.
_FRESH_S = 1.0


class Pool(Generic[K]):
    """Connections by key, made by `connect` when none is idle.

    The owner closes it (`close`). How many are in use is not limited here.
    """

    def __init__(
        self,
        connect: Callable[[K], Awaitable[ClientConnection]],
        *,
        max_idle: int = 32,
        idle_timeout_s: float = 60.0,
    ) -> None:
        self._connect = connect
        self._max_idle = max_idle  # per key
        self._idle_timeout_s = idle_timeout_s
        self._idle: dict[K, list[ClientConnection]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take_fresh(self, key: K) -> ClientConnection | None:
        """Return a connection that was in use a moment ago, without waiting; None: `acquire` one.

        To be given back with `release`, whatever became of it.
        """
        idle = self._idle.get(key)
        if not idle:
            return None
        newest = idle[-1]
        if asyncio.get_running_loop().time() - newest.idle_since > _FRESH_S:
            return None
        self._pop(key)
        return newest if newest.is_reusable else None

    async def acquire(self, key: K) -> ClientConnection:
        """Return a connection that was usable a moment ago; new if `exchanges` is 0.

        To be given back with `release`, whatever became of it. Raises what `connect` raises.
        """
        now = asyncio.get_running_loop().time()
        while (connection := self._pop(key)) is not None:
            if now - connection.idle_since > _FRESH_S:
                # Its end may be in the socket, unread: two turns let the loop read it.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if connection.is_reusable:
                return connection
        return await self._connect(key)

    def release(self, key: K, connection: ClientConnection) -> None:
        """Take a connection back: keep it if another request may follow, else cut it."""
        if not connection.is_reusable or self._is_closed:
            connection.abort()
            return
        idle = self._idle.setdefault(key, [])
        if len(idle) >= self._max_idle:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        connection.on_lost = lambda: self._forget(key, connection)
        idle.append(connection)
        self._watch()

    def close_idle(self, is_unwanted: Callable[[ClientConnection], bool]) -> None:
        """Close the idle connections that somebody no longer wants, in order."""
        for key, idle in list(self._idle.items()):
            for connection in [one for one in idle if is_unwanted(one)]:
                self._forget(key, connection)
                _discard(connection)

    def drop(self, key: K) -> None:
        """Cut what is idle for `key`: its peer is gone, or no longer the right one."""
        for connection in self._idle.pop(key, []):
            _discard(connection)

    def close(self) -> None:
        """Cut everything idle, and what comes back from now on. Idempotent."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for key in list(self._idle):
            self.drop(key)

    def _pop(self, key: K) -> ClientConnection | None:
        idle = self._idle.get(key)
        if not idle:
            return None
        connection = idle.pop()
        connection.on_lost = None
        if not idle:
            del self._idle[key]
        return connection

    def _forget(self, key: K, connection: ClientConnection) -> None:
        idle = self._idle.get(key)
        if idle is not None and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[key]

    def _watch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._idle_timeout_s, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle too long, and look again when the next one will have."""
        self._timer = None
        loop = asyncio.get_running_loop()
        oldest_allowed = loop.time() - self._idle_timeout_s
        next_at: float | None = None
        for key, idle in list(self._idle.items()):
            # Oldest first: they are appended on release and taken from the end.
            while idle and idle[0].idle_since <= oldest_allowed:
                _discard(idle.pop(0))
            if not idle:
                del self._idle[key]
            elif next_at is None or idle[0].idle_since < next_at:
                next_at = idle[0].idle_since
        if next_at is not None:
            self._timer = loop.call_at(next_at + self._idle_timeout_s, self._sweep)


def _discard(connection: ClientConnection) -> None:
    connection.on_lost = None
    connection.close()
