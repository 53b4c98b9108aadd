"""A listening socket that turns away connections which come too fast, or are too many.

The check is made at accept(2), before the TLS handshake, which is what an attacker would
make us pay for. What is refused is closed without a byte; so is what the process has no file
descriptor left for, which would otherwise stay in the queue and wake the event loop for ever.

uvloop takes connections from a listening socket without calling `accept` of Python's: serve one
with `byoai_shared.listener`, or with picows, which both call it.
"""

import errno
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from byoai_shared.connection_room import ConnectionRoom, Place, home_of, is_within, networks
from byoai_shared.logs import get_logger
from byoai_shared.protocol.budget import TokenBucket

MAX_TRACKED_ADDRESSES: Final = 10_000
MAX_REFUSED_IN_A_ROW: Final = 64
WARN_EVERY_S: Final = 60.0
BACKLOG: Final = 1024

_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""As `getaddrinfo` has it."""

log = get_logger("link")


class ConnectionRate:
    """Decides whether one more connection is welcome; pure, time is injected."""

    def __init__(
        self,
        *,
        per_s: float,
        burst: float,
        per_address_per_s: float,
        per_address_burst: float,
        proxies: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`proxies` are networks (CIDR) whose addresses are limited all together only."""
        self._clock = clock
        self._proxies = networks(proxies)
        self._all = TokenBucket(burst, per_s, now=clock())
        self._per_address = (per_address_burst, per_address_per_s)
        self._addresses: OrderedDict[str, TokenBucket] = OrderedDict()
        self.refused = 0

    def admit(self, address: str) -> bool:
        """Count a connection from `address`; False when it must be turned away."""
        now = self._clock()
        if self._spend_own(address, now) and self._all.spend(1, now):
            return True
        self.refused += 1
        return False

    def _spend_own(self, address: str, now: float) -> bool:
        if is_within(address, self._proxies):
            return True
        home = home_of(address)
        bucket = self._addresses.pop(home, None)
        if bucket is None:
            bucket = TokenBucket(*self._per_address, now=now)
        self._addresses[home] = bucket
        if len(self._addresses) > MAX_TRACKED_ADDRESSES:
            self._addresses.popitem(last=False)
        return bucket.spend(1, now)


class PlacedSocket(socket.socket):
    """A connection with a place in a room, which it leaves when it is closed."""

    place: Place | None = None

    def shut(self) -> None:
        """End the connection for both sides: its owner reads the end, and closes it."""
        with suppress(OSError):  # the client was faster
            self.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave the room and close (socket.close)."""
        self._leave()
        super().close()

    def detach(self) -> int:
        """Leave the room; whoever takes the descriptor closes it (socket.detach)."""
        self._leave()
        return super().detach()

    def _leave(self) -> None:
        place, self.place = self.place, None  # which keeps this socket
        if place is not None:
            place.leave()


class GuardedSocket(socket.socket):
    """A listening socket whose `accept` answers only with connections that were admitted."""

    rate: ConnectionRate
    room: ConnectionRoom | None = None
    """Where the connections that are open are counted, if they are."""
    _spare: int | None = None
    """A descriptor given up for a moment to take, and close, what there is no room for."""
    _warned_at = -WARN_EVERY_S

    def accept(self) -> tuple[socket.socket, Any]:
        """Take the next admitted connection, closing the others (socket.accept)."""
        for _ in range(MAX_REFUSED_IN_A_ROW):
            try:
                connection, address = super().accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                self._turn_away()
                continue
            name = address[0] if address else ""
            if self.rate.admit(name):
                placed = self._placed(connection, name)
                if placed is not None:
                    return placed, address
            connection.close()
        raise BlockingIOError("the next turn of the event loop takes more")

    def keep_spare(self) -> None:
        """Put a descriptor by, if there is one to be had."""
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close the socket and the spare (socket.close)."""
        self._give_up_spare()
        super().close()

    def _placed(self, connection: socket.socket, address: str) -> socket.socket | None:
        if self.room is None:
            return connection
        placed = PlacedSocket(fileno=connection.detach())
        place = self.room.enter(address, placed.fileno(), placed.shut)
        if place is None:
            placed.close()
            return None
        placed.place = place
        return placed

    def _turn_away(self) -> None:
        """Close the next connection in the queue, with the spare descriptor's place.

        Raises:
            BlockingIOError: there is none, or not even that place; accept(2) asks for a
                descriptor before it looks into the queue.
        """
        self._give_up_spare()
        try:
            connection, _ = super().accept()
            connection.close()
        except OSError as error:
            raise BlockingIOError("no connection can be taken now") from error
        finally:
            self.keep_spare()
        self.rate.refused += 1
        self._warn()

    def _give_up_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare)

    def _warn(self) -> None:
        now = time.monotonic()
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            log.warning(
                "connections.turned_away",
                reason="this process has no file descriptor left",
                next="raise its limit of open files (ulimit -n, LimitNOFILE)",
            )


def listen(
    host: str,
    port: int,
    rate: ConnectionRate,
    *,
    backlog: int = BACKLOG,
) -> GuardedSocket:
    """Bind and listen at the first address of a name; port 0 lets the kernel choose.

    Raises:
        OSError: the address is taken or not ours.
    """
    return _listen(_addresses(host, port)[0], rate, None, backlog)


def listen_everywhere(
    host: str, port: int, rate: ConnectionRate, room: ConnectionRoom
) -> list[GuardedSocket]:
    """Bind and listen at each address of a name, as asyncio's servers do.

    Raises:
        OSError: an address is taken or not ours.
    """
    listeners: list[GuardedSocket] = []
    try:
        for address in _addresses(host, port):
            listeners.append(_listen(address, rate, room, BACKLOG))  # noqa: PERF401 -- see below
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _addresses(host: str, port: int) -> list[_Address]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))


def _listen(
    address: _Address, rate: ConnectionRate, room: ConnectionRoom | None, backlog: int
) -> GuardedSocket:
    family, kind, proto, _, name = address
    listener = GuardedSocket(family, kind, proto)
    listener.rate, listener.room = rate, room
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and room is not None:
            # The IPv4 addresses of the same name have sockets of their own.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(name)
        listener.listen(backlog)
        listener.keep_spare()
    except OSError as error:
        listener.close()
        where = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error
    return listener
