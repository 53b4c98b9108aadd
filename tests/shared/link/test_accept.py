"""Who is let in, and how fast."""

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.connection_room import SITE_SHARE
from byoai_shared.link import accept, websocket
from byoai_shared.link.accept import ConnectionRate, listen
from byoai_shared.link.errors import LinkRefused
from byoai_shared.logs import configure
from support.links import AGENT, PATIENCE_S, Driver, certificates, listening, no_limit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_rate(clock: Clock, *, burst: float = 100.0, per_address: float = 3.0) -> ConnectionRate:
    return ConnectionRate(
        per_s=10.0,
        burst=burst,
        per_address_per_s=1.0,
        per_address_burst=per_address,
        clock=clock,
    )


def test_one_address_is_limited_and_others_are_not() -> None:
    clock = Clock()
    rate = a_rate(clock)
    assert [rate.admit("10.0.0.1") for _ in range(5)] == [True] * 3 + [False] * 2
    assert rate.admit("10.0.0.2")
    assert rate.refused == 2
    clock.now += 1.0
    assert rate.admit("10.0.0.1")
    assert not rate.admit("10.0.0.1")


def test_an_ipv6_network_is_one_address_and_a_mapped_one_is_ipv4() -> None:
    rate = a_rate(Clock())
    assert [rate.admit(f"2001:db8:1:2::{n:x}") for n in range(1, 6)] == [True] * 3 + [False] * 2
    assert rate.admit("2001:db8:1:3::1")
    assert rate.admit("fe80::1%eth0")
    assert [rate.admit("::ffff:10.0.0.9") for _ in range(3)] == [True] * 3
    assert not rate.admit("10.0.0.9")


def test_all_together_are_limited() -> None:
    clock = Clock()
    rate = a_rate(clock, burst=5.0)
    assert sum(rate.admit(f"10.0.0.{n}") for n in range(20)) == 5
    clock.now += 0.5
    assert sum(rate.admit(f"10.0.1.{n}") for n in range(20)) == 5


def test_one_that_is_refused_for_itself_takes_nothing_from_the_others() -> None:
    rate = a_rate(Clock(), burst=10.0)
    for _ in range(100):
        rate.admit("10.0.0.1")
    assert sum(rate.admit(f"10.0.1.{n}") for n in range(20)) == 7


def flooded(flooders: list[str], honest: str, *, proxies: list[str]) -> int:
    """How many of 50 connections get in, ten a second, beside 3000 a second of the flooders'."""
    clock = Clock()
    rate = ConnectionRate(
        per_s=1000.0,
        burst=4000.0,
        per_address_per_s=200.0,
        per_address_burst=2000.0,
        proxies=proxies,
        clock=clock,
    )
    several = itertools.cycle(flooders)
    admitted = 0
    for ms in range(15_000):
        clock.now = ms / 1000
        for _ in range(3):
            rate.admit(next(several))
        if ms >= 10_000 and ms % 100 == 0:
            admitted += rate.admit(honest)
    return admitted


ONE_SITE = [f"2001:db8:0:{n:x}::1" for n in range(256)]
FIVE_HOSTS = [f"198.51.100.{n}" for n in range(5)]


@pytest.mark.parametrize("flooders", [ONE_SITE, FIVE_HOSTS], ids=["IPv6 /56", "five IPv4"])
def test_a_proxy_gets_in_beside_a_few_busy_addresses(flooders: list[str]) -> None:
    assert flooded(flooders, "10.0.0.1", proxies=["10.0.0.1/32"]) == 50


@pytest.mark.parametrize("flooders", [ONE_SITE, FIVE_HOSTS], ids=["IPv6 /56", "five IPv4"])
def test_an_address_with_few_connections_gets_in_beside_a_few_busy_ones(
    flooders: list[str],
) -> None:
    # Beyond its first 8 it is as busy as the others, but for one connection a second.
    assert flooded(flooders, "203.0.113.9", proxies=[]) >= 8 + 4


def test_busy_addresses_leave_a_part_to_the_others() -> None:
    rate = a_rate(Clock(), burst=100.0, per_address=1000.0)
    assert sum(rate.admit("10.0.0.1") for _ in range(200)) == 75
    assert sum(rate.admit(f"10.0.1.{n}") for n in range(50)) == 25


def test_an_ipv6_network_of_48_bits_has_the_share_of_a_few_addresses() -> None:
    rate = a_rate(Clock())
    assert sum(rate.admit(f"2001:db8:1:{n:x}::1") for n in range(100)) == 3 * SITE_SHARE
    assert rate.admit("2001:db8:2::1")


@given(st.lists(st.integers(0, 50), max_size=300))
def test_addresses_are_remembered_in_bounded_number(addresses: list[int]) -> None:
    rate = a_rate(Clock(), burst=1e9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accept, "MAX_TRACKED_ADDRESSES", 10)
        for address in addresses:
            rate.admit(str(address))
            assert len(rate._addresses) <= 10


@pytest.fixture
def no_descriptors() -> Iterator[Callable[[], None]]:
    """Use up all that this process may open, when told to; give them back at the end."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def take_all() -> None:
        taken.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 8, limits[1]))
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))

    yield take_all
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for descriptor in taken:
        os.close(descriptor)


def test_without_descriptors_the_queue_is_emptied_and_said_once(
    no_descriptors: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What stays in the queue wakes the event loop again at once: thousands of times a second."""
    configure(form="json")
    rate = a_rate(Clock())
    with ExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0, rate))
        address = listener.getsockname()
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
        no_descriptors()
        with pytest.raises(BlockingIOError):
            listener.accept()
        for client in clients:
            client.settimeout(PATIENCE_S)
            assert client.recv(1) == b""
    assert rate.refused == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "LimitNOFILE" in line


def test_the_address_that_was_silent_longest_is_forgotten_first() -> None:
    rate = a_rate(Clock(), per_address=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accept, "MAX_TRACKED_ADDRESSES", 2)
        assert [rate.admit(name) for name in ("a", "b", "a", "c", "a")] == [
            True,
            True,
            False,
            True,
            False,
        ]
        assert rate.admit("b")


def test_port_0_is_the_kernels_choice_and_a_taken_port_is_an_error() -> None:
    rate = a_rate(Clock())
    with closing(listen("127.0.0.1", 0, rate)) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert not listener.getblocking()
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", port, rate)


def test_the_others_are_closed_without_a_byte() -> None:
    with closing(listen("127.0.0.1", 0, a_rate(Clock()))) as listener:
        address = listener.getsockname()
        clients = [socket.create_connection(address) for _ in range(5)]
        accepted: list[socket.socket] = []
        with suppress(BlockingIOError):
            while True:
                accepted.append(listener.accept()[0])
        assert len(accepted) == 3
        assert [client.recv(1) for client in clients[3:]] == [b"", b""]
        for sock in clients + accepted:
            sock.close()


def test_a_turn_of_the_event_loop_takes_a_limited_number() -> None:
    """Those that are closed for new ones are gone only in the next turn."""
    clients: list[socket.socket] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        closing(listen("127.0.0.1", 0, no_limit())) as listener,
    ):
        patch.setattr(accept, "PER_TURN", 3)
        address = listener.getsockname()
        clients += [socket.create_connection(address) for _ in range(7)]
        assert [len(accepted_now(listener)) for _ in range(4)] == [3, 3, 1, 0]
    for client in clients:
        client.close()


def accepted_now(listener: socket.socket) -> list[socket.socket]:
    accepted: list[socket.socket] = []
    with suppress(BlockingIOError):
        while True:
            accepted.append(listener.accept()[0])
    for connection in accepted:
        connection.close()
    return accepted


async def test_the_guard_stands_before_the_handshake_on_either_event_loop() -> None:
    rate = a_rate(Clock(), per_address=2.0)
    context = certificates().client(AGENT)
    async with listening(rate) as there:
        for _ in range(2):
            await websocket.connect(there.url, Driver, ssl_context=context)
        for _ in range(2):
            with pytest.raises(LinkRefused):
                await websocket.connect(there.url, Driver, ssl_context=context)
        assert rate.refused == 2
        assert len(there.drivers) == 2


async def test_a_plain_connection_that_is_turned_away_hears_nothing() -> None:
    rate = a_rate(Clock(), per_address=0.0)
    async with listening(rate) as there, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", there.port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
