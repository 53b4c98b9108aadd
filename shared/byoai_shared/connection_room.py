"""How many connections a listener keeps open, and which of them it closes for a new one.

Pure. A connection waits until its request is being answered, and again afterwards: silence, half
a head and an idle keep-alive connection are the same. Waiting connections are worth the least, so
when there is no room it is the one that has waited longest that is closed, first of all among
those of the new connection's own address or site. A connection that is being answered is never
closed. Hence no number of silent connections keeps a client out.

A connection that carries a link waits until the peer has proved who it is; then it is established
until it ends. Established ones have a limit of their own: they are refused, not closed.

The last places are reserved for addresses with few connections, so that a health check gets in
also when the others are all being answered.
"""

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

SITE_SHARE: Final = 4
"""An IPv6 network of 48 bits may have as many connections as so many single addresses."""
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
    established_per_address: int | None = None
    """Of one such address that is not a proxy's; None is no limit."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a connection is counted by: an address, or a site of several."""

    name: str
    share: int
    """As many connections as so many addresses."""


class Place:
    """One open connection."""

    __slots__ = ("_close", "_descriptor", "_room", "is_established", "is_proxys", "sources")

    def __init__(
        self,
        room: "ConnectionRoom",
        descriptor: int,
        sources: tuple[Source, ...],
        close: Callable[[], None],
        *,
        is_proxys: bool,
    ) -> None:
        self._room = room
        self._descriptor = descriptor
        self._close = close
        self.sources = sources
        self.is_proxys = is_proxys
        self.is_established = False

    @property
    def is_open(self) -> bool:
        """Whether the connection is still in the room."""
        return self._room.place(self._descriptor) is self

    def set_busy(self, is_busy: bool) -> None:  # noqa: FBT001 -- the one thing that it sets
        """Say whether a request is being answered on it; idempotent."""
        self._room.note(self._descriptor, self, is_busy=is_busy)

    def establish(self) -> bool:
        """The peer has proved who it is; False if its address has too many such connections.

        False as well for a connection that has left.
        """
        return self._room.establish(self._descriptor, self)

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
        self._established_by: Counter[str] = Counter()
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
        is_proxys = is_within(address, self._proxies)
        sources = _sources(address, has_site=not is_proxys)
        crowded = self._crowded(sources, is_proxys=is_proxys)
        if crowded is not None:
            self._close_one(next(iter(self._waiting_by[crowded.name])))
        elif len(self._places) >= self._most_open(sources):
            if not self._waiting:
                self.refused += 1
                return None
            self._close_one(next(iter(self._waiting)))
        place = Place(self, descriptor, sources, close, is_proxys=is_proxys)
        self._places[descriptor] = place
        self._open_by.update(source.name for source in sources)
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

    def establish(self, descriptor: int, place: Place) -> bool:
        """See `Place.establish`."""
        if self._places.get(descriptor) is not place:
            return False
        if not place.is_established and self._has_all_established(place):
            self.refused += 1
            return False
        if not place.is_established:
            place.is_established = True
            self._established_by.update(source.name for source in place.sources)
        self.note(descriptor, place, is_busy=True)
        return True

    def leave(self, descriptor: int, place: Place) -> None:
        """See `Place.leave`."""
        if self._places.get(descriptor) is not place:
            return
        del self._places[descriptor]
        _take_off(self._open_by, place)
        if place.is_established:
            _take_off(self._established_by, place)
        if place in self._waiting:
            self._stop_waiting(place)

    def _crowded(self, sources: tuple[Source, ...], *, is_proxys: bool) -> Source | None:
        """Return what has as many waiting connections as it may, if any of them has."""
        limits = self._limits
        most = limits.waiting_per_proxy if is_proxys else limits.waiting_per_address
        for source in sources:
            if len(self._waiting_by.get(source.name, ())) >= most * source.share:
                return source
        return None

    def _has_all_established(self, place: Place) -> bool:
        most = self._limits.established_per_address
        if most is None or place.is_proxys:
            return False
        return any(self._established_by[it.name] >= most * it.share for it in place.sources)

    def _most_open(self, sources: tuple[Source, ...]) -> int:
        has_few = all(self._open_by[source.name] < FEW * source.share for source in sources)
        return self._limits.in_all - (0 if has_few else RESERVED)

    def _close_one(self, place: Place) -> None:
        self.closed += 1
        place.leave()
        place.close()

    def _wait(self, place: Place) -> None:
        if place not in self._waiting:
            self._waiting[place] = None
            for source in place.sources:
                self._waiting_by.setdefault(source.name, OrderedDict())[place] = None

    def _stop_waiting(self, place: Place) -> None:
        del self._waiting[place]
        for source in place.sources:
            own = self._waiting_by[source.name]
            del own[place]
            if not own:
                del self._waiting_by[source.name]


def _take_off(counts: Counter[str], place: Place) -> None:
    for source in place.sources:
        counts[source.name] -= 1
        if not counts[source.name]:
            del counts[source.name]


def _sources(address: str, *, has_site: bool) -> tuple[Source, ...]:
    home = Source(home_of(address), 1)
    site = site_of(address) if has_site else None
    return (home,) if site is None else (home, Source(site, SITE_SHARE))


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
