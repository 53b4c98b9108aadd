"""Connections by real sockets, on either event loop, before anything of them is read."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from byoai_shared.connection_room import FEW, RESERVED, ConnectionRoom, RoomLimits
from byoai_shared.http1.connections import Connections
from byoai_shared.http1.head import HttpLimits
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.link.accept import ConnectionRate
from byoai_shared.listener import ConnectionGuard, GuardedServer, TlsSettings
from support.authority import tls_contexts
from support.loop_clock import NEVER_S, settle
from support.waiting import until

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK"
LIMITS = HttpLimits(head_timeout_s=NEVER_S, keep_alive_timeout_s=NEVER_S)
UNLIMITED = 1e9


@dataclass
class Served:
    """A server whose requests are answered when `release` is set."""

    server: GuardedServer
    guard: ConnectionGuard
    release: asyncio.Event
    under_way: int = 0
    clients: list[socket.socket] = field(default_factory=list[socket.socket])

    @property
    def port(self) -> int:
        return int(self.server.address.rpartition(":")[2])

    async def connect(self, source: str = "127.0.0.1", said: bytes = b"") -> socket.socket:
        """A client that has said something, or nothing."""
        client = socket.socket()
        self.clients.append(client)
        client.setblocking(False)
        client.bind((source, 0))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", self.port))
        if said:
            await loop.sock_sendall(client, said)
        return client

    async def flood(self, source: str, count: int, said: bytes = b"") -> Sequence[socket.socket]:
        return [await self.connect(source, said) for _ in range(count)]

    async def asked(self, source: str) -> bytes:
        """What a new client is answered."""
        return await received(await self.connect(source, GET))


async def received(client: socket.socket) -> bytes:
    """The next bytes; empty at the end."""
    try:
        return await asyncio.get_running_loop().sock_recv(client, 65536)
    except ConnectionResetError:
        return b""


@asynccontextmanager
async def serving(
    room: RoomLimits,
    *,
    tls: TlsSettings | None = None,
    proxies: Sequence[str] = (),
    per_address_burst: float = UNLIMITED,
    burst: float = UNLIMITED,
    host: str = "127.0.0.1",
) -> AsyncGenerator[Served]:
    rate = ConnectionRate(
        per_s=0.001,
        burst=burst,
        per_address_per_s=0.001,
        per_address_burst=per_address_burst,
        proxies=proxies,
    )
    guard = ConnectionGuard(rate, ConnectionRoom(room, proxies))
    connections = Connections()

    async def answer(request: ServerRequest) -> None:
        served.under_way += 1
        try:
            await served.release.wait()
            request.respond(200)
        finally:
            served.under_way -= 1

    def make() -> ServerConnection:
        return connections.add(
            ServerConnection(answer, LIMITS, on_lost=connections.lost, busy_of=guard.busy_of)
        )

    served = Served(GuardedServer.listen(host, 0, guard, make, tls), guard, asyncio.Event())
    served.release.set()
    try:
        yield served
    finally:
        served.server.close()
        await connections.drain(0)
        for client in served.clients:
            client.close()
        await until(lambda: not len(guard.room))


async def test_silent_connections_of_one_address_keep_nobody_out() -> None:
    async with serving(RoomLimits(100, 8, 8)) as it:
        silent = await it.flood("127.0.0.2", 300)
        assert (await it.asked("127.0.0.1")).startswith(OK)
        assert (await it.asked("127.0.0.2")).startswith(OK)
        assert len(it.guard.room) <= 10
        # Those that waited longest were closed, without a byte.
        assert [await received(client) for client in silent[:290]] == [b""] * 290
        assert (it.guard.room.closed, it.guard.room.refused) == (293, 0)


@pytest.mark.parametrize("said", [b"", b"G", GET], ids=["silent", "half a head", "kept alive"])
async def test_waiting_connections_of_many_addresses_keep_nobody_out(said: bytes) -> None:
    async with serving(RoomLimits(64, 8, 8)) as it:
        for n in range(2, 22):
            await it.flood(f"127.0.0.{n}", 8, said)
        await settle()
        assert len(it.guard.room) <= 64
        assert (await it.asked("127.0.1.1")).startswith(OK)


async def test_what_is_being_answered_is_not_closed_for_a_flood() -> None:
    async with serving(RoomLimits(64, 8, 8)) as it:
        it.release.clear()
        busy = await it.flood("127.0.0.2", 20, GET)
        await until(lambda: it.under_way == 20)
        for n in range(3, 23):
            await it.flood(f"127.0.0.{n}", 10)
        await settle()
        it.release.set()
        answers = [await received(client) for client in busy]
        assert all(answer.startswith(OK) for answer in answers)


async def test_when_all_are_being_answered_another_address_still_finds_a_place() -> None:
    async with serving(RoomLimits(64, 64, 64)) as it:
        it.release.clear()
        await it.flood("127.0.0.2", 64 - RESERVED, GET)
        await until(lambda: it.under_way == 64 - RESERVED)
        assert await it.asked("127.0.0.2") == b""
        others = await it.flood("127.0.0.1", FEW, GET)
        await until(lambda: it.under_way == 64 - RESERVED + FEW)
        it.release.set()
        assert all([(await received(client)).startswith(OK) for client in others])
        assert it.guard.room.refused == 1


async def test_a_handshake_that_does_not_come_keeps_nobody_out() -> None:
    server_side, client_side = tls_contexts()
    tls = TlsSettings(server_side, handshake_timeout_s=NEVER_S)
    async with serving(RoomLimits(64, 8, 8), tls=tls) as it:
        for n in range(2, 22):
            await it.flood(f"127.0.0.{n}", 10, b"\x16\x03")
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", it.port, ssl=client_side, server_hostname="127.0.0.1"
        )
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n")).startswith(OK)
        writer.transport.abort()


async def test_connections_that_come_too_fast_are_closed_without_a_byte() -> None:
    async with serving(RoomLimits(100, 50, 50), per_address_burst=3) as it:
        answers = [await it.asked("127.0.0.2") for _ in range(5)]
        assert [answer[:15] for answer in answers] == [OK] * 3 + [b""] * 2
        assert (await it.asked("127.0.0.3")).startswith(OK)
        assert it.guard.rate.refused == 2


async def test_all_together_come_no_faster_than_they_may() -> None:
    async with serving(RoomLimits(100, 50, 50), burst=5) as it:
        answers = [await it.asked(f"127.0.0.{n}") for n in range(2, 12)]
        assert sum(answer.startswith(OK) for answer in answers) == 5


async def test_a_proxy_is_limited_by_its_own_number_and_not_by_an_address_rate() -> None:
    async with serving(
        RoomLimits(100, 4, 20), proxies=("127.0.0.2/32",), per_address_burst=2
    ) as it:
        await it.flood("127.0.0.2", 20)
        await until(lambda: len(it.guard.room) == 20)
        assert it.guard.room.closed == 0
        await it.flood("127.0.0.2", 5)
        await until(lambda: it.guard.room.closed == 5)


async def test_a_name_with_several_addresses_is_listened_at_on_each() -> None:
    async with serving(RoomLimits(100, 50, 50), host="localhost") as it:
        families = {listener.family for listener in it.server._listeners}
        expected = {found[0] for found in socket.getaddrinfo("localhost", 0)}
        assert families == expected


async def test_closing_drops_handshakes_and_takes_no_more() -> None:
    server_side, _ = tls_contexts()
    tls = TlsSettings(server_side, handshake_timeout_s=NEVER_S)
    async with serving(RoomLimits(64, 8, 8), tls=tls) as it:
        clients = await it.flood("127.0.0.2", 3)
        await until(lambda: len(it.guard.room) == 3)
        it.server.close()
        it.server.close()
        assert [await received(client) for client in clients] == [b""] * 3
        with pytest.raises(ConnectionRefusedError):
            await it.connect()
