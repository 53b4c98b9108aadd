"""How many connections a listener keeps open, and which of them it closes for a new one.

Pure. A connection waits until its request is being answered, and again afterwards: silence, half
a head and an idle keep-alive connection are the same. Waiting connections are worth the least, so
when there is no room it is the one that has waited longest that is closed, first of all among
those of the new connection's own address. A connection that is being answered is never closed.
Hence no number of silent connections keeps a client out.

The last places are reserved for addresses with few connections, so that a health check gets in
also when the others are all being answered.
"""

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

RESERVED: Final = 16
"""Places for addresses with fewer than `FEW` connections."""
FEW: Final = 4

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """How many connections there may be."""

    in_all: int
    """Open ones, more than `RESERVED`."""
    waiting_per_address: int
    """Of one IPv4 address or IPv6 network of 64 bits."""
    waiting_per_proxy: int
    """The same for proxies, which come for many clients."""


class Place:
    """One open connection."""

    __slots__ = ("_close", "_descriptor", "_room", "address")

    def __init__(
        self, room: "ConnectionRoom", descriptor: int, address: str, close: Callable[[], None]
    ) -> None:
        self._room = room
        self._descriptor = descriptor
        self._close = close
        self.address = address

    def set_busy(self, is_busy: bool) -> None:  # noqa: FBT001 -- the one thing that it sets
        """Say whether a request is being answered on it; idempotent."""
        self._room.note(self._descriptor, self, is_busy=is_busy)

    def leave(self) -> None:
        """The connection is closed; idempotent."""
        self._room.leave(self._descriptor, self)

    def close(self) -> None:
        """Have its owner close the connection."""
        self._close()


class ConnectionRoom:
    """The open connections of one listener, by their file descriptors."""

    def __init__(self, limits: RoomLimits, proxies: Sequence[str] = ()) -> None:
        """`proxies` are the networks (CIDR) of proxies."""
        self._limits = limits
        self._proxies = networks(proxies)
        self._places: dict[int, Place] = {}
        self._open_by: Counter[str] = Counter()
        self._waiting: OrderedDict[Place, None] = OrderedDict()
        self._waiting_by: dict[str, OrderedDict[Place, None]] = {}
        self.refused = 0
        self.closed = 0
        """Waiting connections that were closed for new ones."""

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._places)

    def enter(self, address: str, descriptor: int, close: Callable[[], None]) -> Place | None:
        """Take a new connection in; None if all others are being answered.

        `close` is called, once at most, when the connection is to make room for another; it has
        left the room by then.
        """
        home = home_of(address)
        own = self._waiting_by.get(home, ())
        if len(own) >= self._most_waiting(address):
            self._close_one(next(iter(own)))
        elif len(self._places) >= self._most_open(home):
            if not self._waiting:
                self.refused += 1
                return None
            self._close_one(next(iter(self._waiting)))
        place = Place(self, descriptor, home, close)
        self._places[descriptor] = place
        self._open_by[home] += 1
        self._wait(place)
        return place

    def place(self, descriptor: int) -> Place | None:
        """Return the connection of a descriptor."""
        return self._places.get(descriptor)

    def note(self, descriptor: int, place: Place, *, is_busy: bool) -> None:
        """See `Place.set_busy`."""
        if self._places.get(descriptor) is not place:
            return
        if not is_busy:
            self._wait(place)
        elif place in self._waiting:
            self._stop_waiting(place)

    def leave(self, descriptor: int, place: Place) -> None:
        """See `Place.leave`."""
        if self._places.get(descriptor) is not place:
            return
        del self._places[descriptor]
        self._open_by[place.address] -= 1
        if not self._open_by[place.address]:
            del self._open_by[place.address]
        if place in self._waiting:
            self._stop_waiting(place)

    def _most_waiting(self, address: str) -> int:
        is_proxys = is_within(address, self._proxies)
        limits = self._limits
        return limits.waiting_per_proxy if is_proxys else limits.waiting_per_address

    def _most_open(self, home: str) -> int:
        return self._limits.in_all - (0 if self._open_by[home] < FEW else RESERVED)

    def _close_one(self, place: Place) -> None:
        self.closed += 1
        place.leave()
        place.close()

    def _wait(self, place: Place) -> None:
        if place not in self._waiting:
            self._waiting[place] = None
            self._waiting_by.setdefault(place.address, OrderedDict())[place] = None

    def _stop_waiting(self, place: Place) -> None:
        del self._waiting[place]
        own = self._waiting_by[place.address]
        del own[place]
        if not own:
            del self._waiting_by[place.address]


def home_of(address: str) -> str:
    """Return what a connection is counted by: an IPv4 address, or an IPv6 network of 64 bits.

    Whoever has one IPv6 address has all of its network, and could use a fresh one each time.
    """
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address if parsed is None else str(parsed)


def site_of(address: str) -> str | None:
    """Return the IPv6 network of 48 bits, the most that one subscriber is given; None for IPv4."""
    parsed = _parsed(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 48), strict=False))
    return None


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Read networks (CIDR). Raises ValueError for what is none."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def is_within(address: str, within: Sequence[Network]) -> bool:
    """Say whether an address is in one of the networks."""
    if not within:
        return False
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in within)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed
