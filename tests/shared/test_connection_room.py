"""Which connections a listener keeps, as decisions without sockets."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.connection_room import (
    FEW,
    RESERVED,
    SITE_SHARE,
    ConnectionRoom,
    Place,
    RoomLimits,
)

PROXIES = ("10.9.0.0/16", "2001:db8:9::/48")


@dataclass
class Port:
    """A listener whose connections are numbers."""

    room: ConnectionRoom
    closed: list[int] = field(default_factory=list[int])
    places: dict[int, Place] = field(default_factory=dict[int, Place])
    _next: int = 0

    def connect(self, address: str, *, is_busy: bool = False) -> int | None:
        """A new connection's number, or None if it was refused."""
        number = self._next = self._next + 1
        place = self.room.enter(address, number, lambda: self.closed.append(number))
        if place is None:
            return None
        self.places[number] = place
        if is_busy:
            place.set_busy(True)
        return number

    def flood(self, address: str, count: int, *, is_busy: bool = False) -> None:
        for _ in range(count):
            self.connect(address, is_busy=is_busy)


def port(
    *, in_all: int = 100, per_address: int = 10, per_proxy: int = 50, established: int | None = None
) -> Port:
    limits = RoomLimits(in_all, per_address, per_proxy, established)
    return Port(ConnectionRoom(limits, PROXIES))


def test_an_address_that_has_too_many_waiting_loses_the_one_that_waited_longest() -> None:
    it = port(per_address=3)
    it.flood("10.0.0.1", 5)
    assert it.connect("10.0.0.2") is not None
    assert (it.closed, len(it.room)) == ([1, 2], 4)


def test_an_answered_connection_is_never_closed_and_counts_for_no_address() -> None:
    it = port(per_address=3)
    it.flood("10.0.0.1", 20, is_busy=True)
    it.flood("10.0.0.1", 3)
    assert it.closed == []
    it.connect("10.0.0.1")
    assert it.closed == [21]


def test_a_connection_waits_again_after_its_answer_and_anew() -> None:
    it = port(per_address=3)
    it.flood("10.0.0.1", 3)
    it.places[1].set_busy(True)
    it.places[1].set_busy(False)
    it.flood("10.0.0.1", 2)
    assert it.closed == [2, 3]


def test_in_a_full_room_the_longest_wait_of_all_ends() -> None:
    it = port(in_all=40, per_address=10)
    for n in range(8):
        it.flood(f"10.0.0.{n}", 10)
    assert len(it.room) <= 40
    newcomer = it.connect("10.1.0.1")
    assert newcomer is not None
    assert newcomer not in it.closed
    assert it.closed == sorted(it.closed)


def test_when_all_are_being_answered_the_last_places_are_for_addresses_with_few() -> None:
    it = port(in_all=40)
    it.flood("10.0.0.1", 100, is_busy=True)
    assert len(it.room) == 40 - RESERVED
    assert it.connect("10.0.0.1") is None
    others = [it.connect("10.0.0.2", is_busy=True) for _ in range(FEW + 1)]
    assert others[-1] is None
    assert None not in others[:-1]
    for n in range(RESERVED):
        it.connect(f"10.0.1.{n}", is_busy=True)
    assert len(it.room) == 40
    assert it.connect("10.0.2.1") is None
    assert it.closed == []
    assert it.room.refused > 0


def test_a_proxy_has_a_limit_of_its_own() -> None:
    it = port(in_all=1000, per_address=3, per_proxy=20)
    it.flood("10.9.1.1", 20)
    it.flood("::ffff:10.9.1.2", 20)
    assert it.closed == []
    it.connect("10.9.1.1")
    assert it.closed == [1]


def test_an_ipv6_network_is_one_address() -> None:
    it = port(per_address=3)
    for n in range(5):
        it.connect(f"2001:db8:1:2::{n:x}")
    it.connect("2001:db8:1:3::1")
    assert it.closed == [1, 2]


def test_an_ipv6_site_has_the_share_of_a_few_addresses() -> None:
    it = port(per_address=3)
    numbers = [it.connect(f"2001:db8:1:{n:x}::1") for n in range(3 * SITE_SHARE + 2)]
    assert it.closed == numbers[:2]
    it.connect("2001:db8:2:1::1")
    assert it.closed == numbers[:2], "it is of another site"


def test_networks_of_one_site_do_not_take_the_places_for_addresses_with_few() -> None:
    it = port(in_all=100)
    for n in range(200):
        it.connect(f"2001:db8:1:{n:x}::1", is_busy=True)
    assert len(it.room) == 100 - RESERVED
    assert it.connect("10.0.0.1") is not None


def test_established_connections_of_one_address_are_limited_and_never_closed() -> None:
    it = port(in_all=1000, per_address=3, established=5)
    answers = [establish(it, "10.0.0.1") for _ in range(7)]
    assert answers == [True] * 5 + [False] * 2
    assert establish(it, "10.0.0.2")
    it.flood("10.0.0.1", 10)
    assert not {1, 2, 3, 4, 5} & set(it.closed)
    it.places[1].leave()
    assert establish(it, "10.0.0.1")
    assert not establish(it, "10.0.0.1")
    assert it.room.refused == 3


def test_established_connections_of_one_ipv6_site_are_limited() -> None:
    it = port(in_all=1000, established=2)
    answers = [establish(it, f"2001:db8:1:{n:x}::1") for n in range(2 * SITE_SHARE + 1)]
    assert answers == [True] * 2 * SITE_SHARE + [False]
    assert establish(it, "2001:db8:2:1::1")


def test_a_proxy_may_establish_as_many_as_there_is_room_for() -> None:
    it = port(in_all=100, established=2)
    answers = [establish(it, "10.9.1.1") for _ in range(100 - RESERVED)]
    assert all(answers)
    assert it.connect("10.9.1.1") is None


def test_a_connection_that_was_closed_for_another_is_not_established() -> None:
    it = port(per_address=1)
    it.flood("10.0.0.1", 2)
    assert it.closed == [1]
    assert not it.places[1].is_open
    assert not it.places[1].establish()
    assert it.places[2].is_open
    assert it.places[2].establish()
    assert it.places[2].establish()


def establish(it: Port, address: str) -> bool:
    number = it.connect(address)
    return number is not None and it.places[number].establish()


def test_what_has_left_is_forgotten_also_when_its_descriptor_is_used_again() -> None:
    it = port()
    old = it.room.enter("10.0.0.1", 7, lambda: None)
    assert old is not None
    old.leave()
    new = it.room.enter("10.0.0.2", 7, lambda: None)
    assert new is not None
    old.leave()
    old.set_busy(True)
    assert it.room.place(7) is new
    assert len(it.room) == 1
    new.leave()
    assert len(it.room) == 0
    assert it.room.place(7) is None


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["connect", "busy", "idle", "leave", "establish"]), st.integers(0, 9)
    ),
    max_size=200,
)


@given(_STEPS)
def test_the_counts_are_right_whatever_happens(steps: list[tuple[str, int]]) -> None:
    it = port(in_all=RESERVED + 8, per_address=3, established=2)
    busy: set[int] = set()
    established: set[int] = set()
    for step, n in steps:
        there = [number for number, place in it.places.items() if it.room.place(number) is place]
        number = there[n % len(there)] if there else None
        if step == "connect":
            it.connect(f"10.0.0.{n}" if n < 5 else f"2001:db8:1:{n}::1")
        elif number is not None:
            place = it.places[number]
            if step == "leave":
                place.leave()
                busy.discard(number)
                established.discard(number)
            elif step == "establish":
                if place.establish():
                    busy.add(number)
                    established.add(number)
            else:
                place.set_busy(step == "busy")
                (busy.add if step == "busy" else busy.discard)(number)
    open_now = {number for number, place in it.places.items() if it.room.place(number) is place}
    assert len(open_now) == len(it.room) <= RESERVED + 8
    assert busy <= open_now
    waiting = counted(it, open_now - busy)
    assert set(it.room._waiting) == {it.places[number] for number in open_now - busy}
    assert {home: len(own) for home, own in it.room._waiting_by.items()} == waiting
    assert it.room._open_by == counted(it, open_now)
    assert it.room._established_by == counted(it, established)


def counted(it: Port, numbers: set[int]) -> Counter[str]:
    return Counter(source.name for number in numbers for source in it.places[number].sources)
