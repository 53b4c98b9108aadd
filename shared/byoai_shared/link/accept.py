"""A listening socket that turns away connections which come too fast.

The check is made at accept(2), before the TLS handshake, which is what an attacker would
make us pay for. What is refused is closed without a byte; so is what the process has no file
descriptor left for, which would otherwise stay in the queue and wake the event loop for ever.
"""

import errno
import ipaddress
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from byoai_shared.logs import get_logger
from byoai_shared.protocol.budget import TokenBucket

MAX_TRACKED_ADDRESSES: Final = 10_000
MAX_REFUSED_IN_A_ROW: Final = 64
WARN_EVERY_S: Final = 60.0

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._all = TokenBucket(burst, per_s, now=clock())
        self._per_address = (per_address_burst, per_address_per_s)
        self._addresses: OrderedDict[str, TokenBucket] = OrderedDict()
        self.refused = 0

    def admit(self, address: str) -> bool:
        """Count a connection from `address`; False when it must be turned away."""
        now = self._clock()
        home = _home(address)
        bucket = self._addresses.pop(home, None)
        if bucket is None:
            bucket = TokenBucket(*self._per_address, now=now)
        self._addresses[home] = bucket
        if len(self._addresses) > MAX_TRACKED_ADDRESSES:
            self._addresses.popitem(last=False)
        if bucket.spend(1, now) and self._all.spend(1, now):
            return True
        self.refused += 1
        return False


class GuardedSocket(socket.socket):
    """A listening socket whose `accept` answers only with connections that were admitted."""

    rate: ConnectionRate
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
            if self.rate.admit(address[0] if address else ""):
                return connection, address
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


def _home(address: str) -> str:
    """What a connection is counted by: an IPv4 address, or an IPv6 network of 64 bits.

    Whoever has one IPv6 address has all of its network, and could use a fresh one each time.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


def listen(host: str, port: int, rate: ConnectionRate, *, backlog: int = 1024) -> GuardedSocket:
    """Bind and listen; port 0 lets the kernel choose.

    Raises:
        OSError: the address is taken or not ours.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = GuardedSocket(family, kind, proto)
    listener.rate = rate
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(backlog)
        listener.keep_spare()
    except BaseException:
        listener.close()
        raise
    return listener
