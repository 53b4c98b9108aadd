"""Slow and silent clients at the public port, and the settings that end them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from byoai_gateway import public_port
from byoai_gateway.config import LimitsSection, ListenSection
from byoai_gateway.metrics import GatewayCollector, metrics_page
from byoai_gateway.preferences.preferences import Saved
from byoai_gateway.preferences.store import PreferenceStore
from byoai_gateway.public_port import public_guard
from support.control import FakeClock, bearer, gateway_config
from support.gateway import CHAT, PREFERENCES, Gateway, open_gateway
from support.logged import Logged
from support.loop_clock import NEVER_S, pass_time, settle, while_time_passes
from support.provider import HOST
from support.waiting import until

HEAD_S, BODY_S, IDLE_S = NEVER_S, 2 * NEVER_S, 2.5 * NEVER_S


@asynccontextmanager
async def open_port(
    directory: Path, clock: FakeClock, limits: LimitsSection | None = None
) -> AsyncGenerator[Gateway]:
    listen = ListenSection(head_timeout_s=HEAD_S, body_timeout_s=BODY_S, keep_alive_s=IDLE_S)
    config = msgspec.structs.replace(
        gateway_config(directory), relays=(), listen=listen, limits=limits or LimitsSection()
    )
    async with open_gateway(config, clock) as gateway:
        yield gateway


@asynccontextmanager
async def connected(
    gateway: Gateway, said: bytes = b"", source: str = "127.0.0.1"
) -> AsyncGenerator[asyncio.StreamReader]:
    port = int(gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
    writer.write(said)
    try:
        yield reader
    finally:
        writer.transport.abort()


async def received(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    ("said", "after_s", "answer"),
    [
        (b"", HEAD_S, b""),
        (b"GET /healthz HT", HEAD_S, b"HTTP/1.1 408"),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX: ", HEAD_S, b"HTTP/1.1 408"),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n", IDLE_S, b"HTTP/1.1 401"),
    ],
    ids=["silent", "half a line", "half a head", "idle after an answer"],
)
async def test_a_client_that_says_no_more_is_let_go_of_after_its_time(
    tmp_path: Path, clock: FakeClock, said: bytes, after_s: float, answer: bytes
) -> None:
    async with open_port(tmp_path, clock) as gateway, connected(gateway, said) as reader:
        await settle()
        await pass_time(after_s * 0.9)
        assert not reader.at_eof()
        await pass_time(after_s * 0.2)
        assert (await received(reader)).startswith(answer)


async def test_a_body_that_does_not_come_is_let_go_of_after_its_time(
    tmp_path: Path, clock: FakeClock
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: {bearer('alice', clock)}\r\n"
    said = (head + "Content-Type: application/json\r\nContent-Length: 999\r\n\r\n{").encode()
    async with open_port(tmp_path, clock) as gateway, connected(gateway, said) as reader:
        await settle()
        # There is no provider here, which is said before the body comes; then it lingers.
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await reader.read(65536)
        await pass_time(BODY_S)
        await received(reader)
        assert len(gateway.data_path.guard.room) == 0


async def test_strangers_who_send_no_body_wait_no_longer_than_others(
    tmp_path: Path, clock: FakeClock
) -> None:
    said = b"POST /agent/v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
    async with open_port(tmp_path, clock) as gateway, connected(gateway, said) as reader:
        answer = await while_time_passes(received(reader), NEVER_S)
        assert answer.startswith(b"HTTP/1.1 408")


SMALL = LimitsSection(connections=64, address_connections=8)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /healthz HT",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /agent/v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{",
        b"POST /agent/v1/enrol HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1",
    ],
    ids=["silent", "half a head", "kept alive", "half a body", "half a chunk"],
)
async def test_what_strangers_keep_open_keeps_nobody_out(
    tmp_path: Path, clock: FakeClock, said: bytes
) -> None:
    async with open_port(tmp_path, clock, SMALL) as gateway:
        room = gateway.data_path.guard.room
        writers: list[asyncio.StreamWriter] = []
        port = int(gateway.url.rpartition(":")[2])
        for n in range(100):
            source = (f"127.0.0.{2 + n % 20}", 0)
            _, writer = await asyncio.open_connection(HOST, port, local_addr=source)
            writer.write(said)
            writers.append(writer)
        await settle()
        assert len(room) <= 64
        answer = await gateway.ask(path="/healthz", method="GET")
        assert (answer.status, room.refused) == (200, 0)
        metrics = metrics_page(GatewayCollector(gateway.data_path)).body.decode()
        assert f"byoai_gateway_connections {len(room)}.0" in metrics
        assert f"byoai_gateway_connections_closed_total {room.closed}.0" in metrics
        assert 'connections_refused_total{reason="rate"} 0.0' in metrics
        assert 'connections_refused_total{reason="room"} 0.0' in metrics
        for writer in writers:
            writer.transport.abort()


async def test_a_users_call_is_not_closed_for_a_strangers_connection(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_port(tmp_path, clock, SMALL) as gateway:
        begun, release = asyncio.Event(), asyncio.Event()
        show = PreferenceStore.show

        async def slow(store: PreferenceStore, user_id: str) -> Saved:
            begun.set()
            await release.wait()
            return await show(store, user_id)

        monkeypatch.setattr(PreferenceStore, "show", slow)
        asking = asyncio.ensure_future(gateway.ask(path=PREFERENCES, method="GET"))
        await begun.wait()
        await flood(gateway, 100)
        release.set()
        assert (await asking).status == 200


async def flood(gateway: Gateway, count: int) -> None:
    """Connections that are made, say nothing, and are gone again."""
    closed = gateway.data_path.guard.room.closed
    port = int(gateway.url.rpartition(":")[2])
    made = [await asyncio.open_connection(HOST, port) for _ in range(count)]
    await until(lambda: gateway.data_path.guard.room.closed > closed)
    for _, writer in made:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("files", "expected"), [(None, 4096), (1_000_000, 4096), (1024, 448), (100, 64)]
)
def test_there_is_no_more_room_than_descriptors(
    monkeypatch: pytest.MonkeyPatch, logged: Logged, files: int | None, expected: int
) -> None:
    monkeypatch.setattr(public_port, "open_files_limit", lambda: files)
    room = public_guard(LimitsSection()).room
    assert room._limits.in_all == expected
    assert bool(logged.lines("connections.limited")) is (expected < 4096)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("connections", (63, 1_000_001)),
        ("address_connections", (3,)),
        ("proxy_connections", (3,)),
        ("connections_per_second", (0,)),
        ("connections_burst", (0,)),
        ("address_connections_per_second", (0,)),
        ("address_connections_burst", (0,)),
    ],
)
def test_limits_have_bounds(name: str, values: Sequence[int]) -> None:
    for value in values:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({name: value}, LimitsSection)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("handshake_timeout_s", 60),
        ("head_timeout_s", 300),
        ("body_timeout_s", 600),
        ("keep_alive_s", 3600),
    ],
)
def test_times_have_bounds(name: str, most: int) -> None:
    for value in (0, most + 1):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({name: value}, ListenSection)
    assert getattr(msgspec.convert({name: most}, ListenSection), name) == most
