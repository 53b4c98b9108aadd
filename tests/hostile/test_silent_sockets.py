"""A flood of sockets that say nothing, or half of something, beside other users' requests."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from byoai_gateway.config import LimitsSection
from byoai_gateway.provider_config import DefaultProviderSection, RouterSection
from support.control import FakeClock, gateway_config
from support.gateway import Gateway, open_gateway
from support.loop_clock import NEVER_S
from support.provider import HOST, Provider, providing
from support.provider_script import Until, chat_events, stream
from support.waiting import until

IS_FULL = os.environ.get("BYOAI_HOSTILE_FULL") == "1"
SOCKETS = 6000 if IS_FULL else 300
LIMITS = LimitsSection() if IS_FULL else LimitsSection(connections=64, address_connections=16)
ONE = ("127.0.0.66",)
MANY = tuple(f"127.0.1.{n}" for n in range(1, 101))


@asynccontextmanager
async def scene(directory: Path) -> AsyncGenerator[tuple[Gateway, Provider]]:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(providing())
        config = msgspec.structs.replace(
            gateway_config(directory),
            relays=(),
            limits=LIMITS,
            default_provider=DefaultProviderSection(base_url=provider.url),
            router=RouterSection(connect_s=NEVER_S, silence_s=NEVER_S, whole_answer_s=NEVER_S),
        )
        yield await stack.enter_async_context(open_gateway(config, FakeClock())), provider


class Flood:
    """Sockets of an attacker, from one address or many."""

    def __init__(self, gateway: Gateway, sources: Sequence[str], said: bytes) -> None:
        self._port = int(gateway.url.rpartition(":")[2])
        self._sources = sources
        self._said = said
        self._sockets: list[socket.socket] = []

    async def open(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        for n in range(count):
            it = socket.socket()
            self._sockets.append(it)
            it.setblocking(False)
            it.bind((self._sources[n % len(self._sources)], 0))
            await loop.sock_connect(it, (HOST, self._port))
            if self._said:
                await loop.sock_sendall(it, self._said)

    def close(self) -> None:
        for it in self._sockets:
            it.close()


@pytest.mark.parametrize("sources", [ONE, MANY], ids=["one address", "many addresses"])
@pytest.mark.parametrize(
    "said",
    [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: "],
    ids=["silent", "half a head"],
)
async def test_a_flood_of_sockets_keeps_no_client_out(
    tmp_path: Path, sources: Sequence[str], said: bytes
) -> None:
    async with scene(tmp_path) as (gateway, provider):
        flood = Flood(gateway, sources, said)
        try:
            await flood.open(SOCKETS)
            for path in ("/healthz", "/readyz"):
                assert (await gateway.ask(path=path, method="GET")).status == 200
            answer = await gateway.chat()
            assert (answer.status, answer.text, answer.is_whole) == (200, "Hello there", True)
            room = gateway.data_path.guard.room
            assert len(room) <= LIMITS.connections
            assert room.refused == 0
            assert len(provider.requests) == 1
        finally:
            flood.close()


async def test_streams_of_others_go_on_during_a_flood(tmp_path: Path) -> None:
    async with scene(tmp_path) as (gateway, provider):
        goes_on = asyncio.Event()
        first, *rest, last = chat_events("Hello", " there")
        provider.always(stream(first, Until(goes_on), *rest, last))
        streams = [asyncio.ensure_future(gateway.chat(user=f"user-{n}")) for n in range(8)]
        await until(lambda: len(provider.requests) == 8)
        flood = Flood(gateway, MANY, b"")
        try:
            await flood.open(SOCKETS)
            assert not any(it.done() for it in streams)
            goes_on.set()
            answers = await asyncio.gather(*streams)
        finally:
            flood.close()
        assert {(it.status, it.text, it.is_whole) for it in answers} == {(200, "Hello there", True)}


async def test_the_flooding_address_itself_still_gets_an_answer(tmp_path: Path) -> None:
    """Attackers share addresses with others: a company, a mobile network."""
    async with scene(tmp_path) as (gateway, _):
        flood = Flood(gateway, ("127.0.0.1",), b"")
        try:
            await flood.open(SOCKETS)
            assert (await gateway.ask(path="/healthz", method="GET")).status == 200
        finally:
            flood.close()
