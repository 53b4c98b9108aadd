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

from byoai_shared.connection_room import (
    SITE_SHARE,
    ConnectionRoom,
    Place,
    home_of,
    is_within,
    networks,
    site_of,
)
from byoai_shared.logs import get_logger
from byoai_shared.protocol.budget import TokenBucket

MAX_TRACKED_ADDRESSES: Final = 10_000
FEW: Final = 8
FEW_PER_S: Final = 1.0
"""An address with no more connections, at once and per second, is not busy."""
RESERVED_SHARE: Final = 0.25
"""What busy addresses leave of all connections in a burst."""
MAX_REFUSED_IN_A_ROW: Final = 64
PER_TURN: Final = 64
"""Connections taken in one turn of the event loop; those closed for them are gone in the next."""
WARN_EVERY_S: Final = 60.0
BACKLOG: Final = 1024
_NEXT_TURN: Final = "the next turn of the event loop takes more"

_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
"""As `getaddrinfo` has it."""

log = get_logger("link")


class _Source:
    """The recent connections of an address or of a network."""

    __slots__ = ("_all", "_few")

    def __init__(self, burst: float, per_s: float, share: int, now: float) -> None:
        self._all = TokenBucket(burst * share, per_s * share, now=now)
        self._few = TokenBucket(FEW * share, FEW_PER_S * share, now=now)

    def admit(self, now: float) -> bool:
        return self._all.spend(1, now)

    def is_busy(self, now: float) -> bool:
        """Whether one more connection makes more than a few; counts it."""
        return not self._few.spend(1, now)


class ConnectionRate:
    """Decides whether one more connection is welcome; pure, time is injected.

    IPv6 addresses count by their networks of 64 and of 48 bits. Busy addresses leave a part of the
    total rate to proxies and to addresses with few recent connections, so a few busy ones keep no
    other client out.
    """

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
        self._reserved = max(0.0, min(burst * RESERVED_SHARE, burst - 1))
        self._addresses: OrderedDict[str, _Source] = OrderedDict()
        self.refused = 0

    def admit(self, address: str) -> bool:
        """Count a connection from `address`; False when it must be turned away."""
        now = self._clock()
        sources = self._sources(address, now)
        if all(it.admit(now) for it in sources):
            is_busy = any(it.is_busy(now) for it in sources)
            if self._all.spend(1, now, keep=self._reserved if is_busy else 0.0):
                return True
        self.refused += 1
        return False

    def _sources(self, address: str, now: float) -> Sequence[_Source]:
        """Return what a connection is counted by; nothing for one of a proxy."""
        if is_within(address, self._proxies):
            return ()
        home, site = home_of(address), site_of(address)
        found = [self._source(home, 1, now)]
        if site is not None:
            found.append(self._source(site, SITE_SHARE, now))
        while len(self._addresses) > MAX_TRACKED_ADDRESSES:
            self._addresses.popitem(last=False)
        return found

    def _source(self, name: str, share: int, now: float) -> _Source:
        source = self._addresses.pop(name, None) or _Source(*self._per_address, share, now)
        self._addresses[name] = source
        return source


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
    _taken = 0
    """Connections since the queue was empty, or the turn over."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Take the next admitted connection, closing the others (socket.accept).

        Raises:
            BlockingIOError: none is there, or the next turn of the event loop takes more.
        """
        if self._taken >= PER_TURN:
            self._taken = 0
            raise BlockingIOError(_NEXT_TURN)
        try:
            admitted = self._next_admitted()
        except BlockingIOError:
            self._taken = 0
            raise
        self._taken += 1
        return admitted

    def keep_spare(self) -> None:
        """Put a descriptor by, if there is one to be had."""
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        """Close the socket and the spare (socket.close)."""
        self._give_up_spare()
        super().close()

    def _next_admitted(self) -> tuple[socket.socket, Any]:
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
        raise BlockingIOError(_NEXT_TURN)

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
    room: ConnectionRoom | None = None,
    *,
    backlog: int = BACKLOG,
) -> GuardedSocket:
    """Bind and listen at the first address of a name; port 0 lets the kernel choose.

    Raises:
        OSError: the address is taken or not ours.
    """
    return _listen(_addresses(host, port)[0], rate, room, backlog)


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
            # The IPv4 addresses of the same name have sockets of their own.
            listeners.append(_listen(address, rate, room, BACKLOG, is_v6_only=True))  # noqa: PERF401 -- see below
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _addresses(host: str, port: int) -> list[_Address]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))


def _listen(
    address: _Address,
    rate: ConnectionRate,
    room: ConnectionRoom | None,
    backlog: int,
    *,
    is_v6_only: bool = False,
) -> GuardedSocket:
    family, kind, proto, _, name = address
    listener = GuardedSocket(family, kind, proto)
    listener.rate, listener.room = rate, room
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and is_v6_only:
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
