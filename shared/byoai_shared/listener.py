"""A server whose connections are limited before anything of them is read, on any event loop.

asyncio's own servers cannot do that on every loop: uvloop's does not ask a listening socket of
Python's.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from byoai_shared.connection_room import ConnectionRoom
from byoai_shared.link.accept import ConnectionRate, GuardedSocket, listen_everywhere
from byoai_shared.sockets import address_of


@dataclass(frozen=True, slots=True)
class ConnectionGuard:
    """What a listener lets in: how fast, and how many at once."""

    rate: ConnectionRate
    room: ConnectionRoom

    def busy_of(self, transport: asyncio.BaseTransport) -> Callable[[bool], None]:
        """Return the `Place.set_busy` of a connection; it does nothing for one that has left."""
        found: Any = transport.get_extra_info("socket")
        place = None if found is None else self.room.place(found.fileno())
        return _ignore if place is None else place.set_busy


def _ignore(is_busy: bool) -> None:  # noqa: FBT001 -- in the place of `Place.set_busy`
    pass


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How connections are encrypted."""

    context: ssl.SSLContext
    handshake_timeout_s: float


class GuardedServer:
    """Gives each connection that its guard lets in a protocol; close it with `close`."""

    def __init__(
        self,
        listeners: list[GuardedSocket],
        make_protocol: Callable[[], asyncio.Protocol],
        tls: TlsSettings | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listeners = listeners
        self._make_protocol = make_protocol
        self._tls = tls
        self._connecting: set[asyncio.Task[None]] = set()
        self.address = address_of(listeners[0])
        """Where it listens, `host:port`; the first of several."""

    @classmethod
    def listen(
        cls,
        host: str,
        port: int,
        guard: ConnectionGuard,
        make_protocol: Callable[[], asyncio.Protocol],
        tls: TlsSettings | None = None,
    ) -> Self:
        """Begin to take connections at every address of a name.

        Raises:
            OSError: an address is taken or not ours.
        """
        listeners = listen_everywhere(host, port, guard.rate, guard.room)
        server = cls(listeners, make_protocol, tls)
        for listener in listeners:
            server._loop.add_reader(listener, server._take, listener)
        return server

    def close(self) -> None:
        """Take no more connections, and drop those whose TLS handshake is not over; idempotent."""
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self._loop.remove_reader(listener)
                listener.close()
        for task in self._connecting:
            task.cancel()

    def _take(self, listener: GuardedSocket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(connection))
            self._connecting.add(task)
            task.add_done_callback(partial(self._connected, connection))

    def _connected(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if task.cancelled():
            # It may not even have begun: then the connection has no other owner.
            connection.close()

    async def _connect(self, connection: socket.socket) -> None:
        tls = self._tls
        # A failed handshake is the client's affair, and closes the connection.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=None if tls is None else tls.context,
                ssl_handshake_timeout=None if tls is None else tls.handshake_timeout_s,
                ssl_shutdown_timeout=None if tls is None else tls.handshake_timeout_s,
            )
