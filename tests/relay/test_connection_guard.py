"""The listeners of a relay beside connections that never become links, and too many that do."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from byoai_relay.config import Limits
from byoai_relay.connection_guard import link_guards
from byoai_relay.relay import AUTH_TIMEOUT_S
from byoai_shared.identity import AgentIdentity
from byoai_shared.link import websocket
from byoai_shared.link.errors import LinkLost
from byoai_shared.logs import report_loop_error
from byoai_shared.protocol.errors import CloseCode
from support.links import AGENT, GATEWAY, PATIENCE_S, TUNNEL_ID
from support.relays import Rig, fetch, hello_of, relaying

LISTENERS: Final = ("agents", "gateways")
HALF_A_HEAD: Final = b"GET /link HTTP/1.1\r\nHost: a\r\nX-Slow: "
FAST: Final = 1e6
REFUSED: Final = 'byoai_relay_connections_refused_total{listener="agents",reason="room"}'
OTHER: Final = AgentIdentity(TUNNEL_ID, "other")


@pytest.fixture(autouse=True)
async def as_programs_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake that a client leaves is reported to the loop's handler, which programs set."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)
    asyncio.get_running_loop().set_exception_handler(report_loop_error)


def limits(**values: object) -> Limits:
    """Limits without a rate."""
    rates = {
        "connections_per_s": FAST,
        "connections_burst": FAST,
        "address_connections_per_s": FAST,
        "address_connections_burst": FAST,
    }
    return Limits(**{**rates, **values})  # type: ignore[arg-type] # as the caller names them


def address_of(rig: Rig, listener: str) -> tuple[str, int]:
    url = rig.agents_url if listener == "agents" else rig.gateways_url
    host, _, port = url.removeprefix("wss://").rpartition(":")
    return host, int(port)


@asynccontextmanager
async def flood(
    address: tuple[str, int], sources: Sequence[str], count: int
) -> AsyncGenerator[list[socket.socket]]:
    """Hold connections that say nothing."""
    loop = asyncio.get_running_loop()
    with_each: list[socket.socket] = []
    try:
        for n in range(count):
            it = socket.socket()
            with_each.append(it)
            it.setblocking(False)
            it.bind((sources[n % len(sources)], 0))
            await loop.sock_connect(it, address)
        yield with_each
    finally:
        for it in with_each:
            it.close()


async def ends(connection: socket.socket) -> None:
    """Wait until the relay has closed a connection to which it never said anything."""
    async with asyncio.timeout(PATIENCE_S):
        with suppress(ConnectionResetError):
            assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""


def is_open(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True


async def link(rig: Rig, listener: str) -> None:
    """Link one more peer by a listener: it takes links also now."""
    if listener == "agents":
        with suppress(LinkLost):  # NOT_READY: no gateway is here; it was let in
            await rig.agent(identity=OTHER)
    else:
        await rig.gateway(trusting=False)


@pytest.mark.parametrize("listener", LISTENERS)
async def test_connections_of_one_address_that_do_not_become_links_are_limited(
    tmp_path: Path, listener: str
) -> None:
    async with relaying(tmp_path, limits(address_connections=8)) as rig:
        async with flood(address_of(rig, listener), ("127.0.0.1",), 100) as silent:
            for closed in silent[:92]:
                await ends(closed)
            assert all(is_open(it) for it in silent[92:])
            await link(rig, listener)
        assert rig.service.relay.links_accepted == 1


@pytest.mark.parametrize("listener", LISTENERS)
async def test_connections_of_all_addresses_are_limited_and_links_outlive_them(
    tmp_path: Path, listener: str
) -> None:
    async with relaying(tmp_path, limits(connections=64, address_connections=16)) as rig:
        await rig.gateway()
        agent = await rig.agent()
        sources = [f"127.0.1.{n}" for n in range(1, 101)]
        async with flood(address_of(rig, listener), sources, 200) as silent:
            for closed in silent[: 200 - 63]:
                await ends(closed)
            assert all(is_open(it) for it in silent[-40:])
            await link(rig, listener)
        assert rig.service.relay.links_accepted == 3
        assert agent.is_usable


async def test_links_of_one_address_are_limited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with relaying(tmp_path, limits(address_links=4)) as rig:
        gateway, _ = await rig.gateway()
        agents = [await rig.agent(identity=an_agent(number)) for number in range(4)]
        for number in range(4, 7):
            with pytest.raises(LinkLost) as lost:
                await rig.agent(identity=an_agent(number))
            assert lost.value.code is CloseCode.OVERLOADED
            assert "too many links from this address" in str(lost.value)
        assert f"{REFUSED} 3.0" in (await fetch(rig.ops, "/metrics"))[1]
        assert caplog.text.count("links.over_limit") == 1
        await rig.gateway()  # its listener counts for itself
        assert gateway.is_usable
        assert all(agent.is_usable for agent in agents)
        agents[0].abort()
        await rig.until(lambda: rig.service.relay.link_count == 5)
        await rig.agent(identity=an_agent(8))


async def test_links_of_gateways_of_one_address_are_limited(tmp_path: Path) -> None:
    async with relaying(tmp_path, limits(address_links=4)) as rig:
        gateways = [(await rig.gateway())[0] for _ in range(4)]
        one_more, _ = await rig.gateway(trusting=False)
        async with asyncio.timeout(PATIENCE_S):
            assert (await asyncio.shield(one_more.closed)).code is CloseCode.OVERLOADED
        assert all(it.is_usable for it in gateways)


async def test_a_link_without_a_token_is_closed_for_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A revoked agent still has its certificate, and must not keep others out with it."""
    async with relaying(tmp_path, limits(connections=64, address_links=1000)) as rig:
        await rig.gateway()
        agent = await rig.agent()
        silent = [
            await rig._connect(
                rig.agents_url, rig.certificates.of(OTHER), hello_of(OTHER), None, None
            )
            for _ in range(70)
        ]
        async with asyncio.timeout(PATIENCE_S):
            for closed in silent[:20]:
                await asyncio.shield(closed.closed)
        assert all(it.is_usable for it in silent[30:])
        newcomer = await rig.agent(identity=an_agent(2))
        assert agent.is_usable
        assert newcomer.is_usable
        assert "links.over_limit" not in caplog.text


async def test_a_link_that_was_closed_for_another_is_not_one_too_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with relaying(tmp_path, limits()) as rig:
        await rig.gateway()
        own = rig.certificates.of(OTHER)
        session = await rig._connect(rig.agents_url, own, hello_of(OTHER), None, None)
        link = next(it.link for it in rig.service.relay.links() if it.port.tunnel_id)
        assert link._place is not None
        link._place.leave()  # as if its token had come in the same turn of the loop
        with pytest.raises(LinkLost):
            await session.authenticate(rig.token(own))
        assert "links.over_limit" not in caplog.text


async def test_a_load_balancer_that_is_named_has_no_limit_of_links(tmp_path: Path) -> None:
    named = limits(
        address_links=4,
        address_connections=4,
        trusted_proxies=("127.0.0.0/8",),
        address_connections_burst=4.0,
        address_connections_per_s=0.001,
    )
    async with relaying(tmp_path, named) as rig:
        await rig.gateway()
        agents = [await rig.agent(identity=an_agent(number)) for number in range(12)]
        assert all(agent.is_usable for agent in agents)


@pytest.mark.parametrize("listener", LISTENERS)
async def test_connections_of_a_load_balancer_that_do_not_become_links_are_limited(
    tmp_path: Path, listener: str
) -> None:
    named = limits(address_connections=4, proxy_connections=8, trusted_proxies=("127.0.0.0/8",))
    async with (
        relaying(tmp_path, named) as rig,
        flood(address_of(rig, listener), ("127.0.0.1",), 20) as silent,
    ):
        for closed in silent[:12]:
            await ends(closed)
        assert all(is_open(it) for it in silent[12:])
        await link(rig, listener)


async def test_a_certificate_of_the_wrong_kind_takes_no_place_of_a_link(tmp_path: Path) -> None:
    async with relaying(tmp_path, limits(address_links=4)) as rig:
        await rig.gateway()
        for _ in range(6):
            with pytest.raises(LinkLost) as lost:
                await rig.agent(identity=an_agent(0), credentials=rig.certificates.of(OTHER))
            assert lost.value.code is CloseCode.WRONG_ROLE
        assert f"{REFUSED} 0.0" in (await fetch(rig.ops, "/metrics"))[1]


def an_agent(number: int) -> AgentIdentity:
    return AgentIdentity(TUNNEL_ID, f"agent-{number}")


def silent(_: ssl.SSLContext) -> bytes:
    return b""


def half_a_client_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    hello = outgoing.read()
    return hello[: len(hello) // 2]


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("said", [silent, half_a_client_hello])
async def test_a_tls_handshake_that_is_not_completed_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    listener: str,
    said: Callable[[ssl.SSLContext], bytes],
) -> None:
    monkeypatch.setattr(websocket, "HANDSHAKE_TIMEOUT_S", 0.02)
    async with (
        relaying(tmp_path, limits()) as rig,
        flood(address_of(rig, listener), ("127.0.0.1",), 1) as (connection,),
    ):
        context = rig.certificates.client(AGENT if listener == "agents" else GATEWAY)
        await asyncio.get_running_loop().sock_sendall(connection, said(context))
        await ends(connection)


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("drip", [b"", b"x"], ids=["stops", "drips"])
async def test_a_head_that_is_not_completed_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: str, drip: bytes
) -> None:
    monkeypatch.setattr(websocket, "HEAD_TIMEOUT_S", 0.02)
    async with AsyncExitStack() as stack:
        rig = await stack.enter_async_context(relaying(tmp_path, limits()))
        identity = AGENT if listener == "agents" else GATEWAY
        host, port = address_of(rig, listener)
        context = rig.certificates.client(identity)
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        stack.callback(writer.transport.abort)
        writer.write(HALF_A_HEAD)
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(PATIENCE_S):
            while not ended.done():
                writer.write(drip)
                await asyncio.sleep(0.001)
        with suppress(ConnectionError):
            assert not ended.result().startswith(b"HTTP/1.1 101")
        assert rig.service.relay.links_accepted == 0


def test_the_rate_of_an_address_fills_no_room_within_the_time_to_become_a_link() -> None:
    """Or agents behind one NAT, at a busy relay, closed one another's connections for ever."""
    default = Limits()
    longest_s = websocket.HANDSHAKE_TIMEOUT_S + websocket.HEAD_TIMEOUT_S + AUTH_TIMEOUT_S
    most = default.address_connections_burst + default.address_connections_per_s * longest_s
    assert most <= default.address_connections


@pytest.mark.parametrize(("files", "expected"), [(None, 20_000), (1024, 448), (100, 64)])
def test_there_is_no_more_room_than_descriptors(
    monkeypatch: pytest.MonkeyPatch, files: int | None, expected: int
) -> None:
    monkeypatch.setattr("byoai_relay.connection_guard.open_files_limit", lambda: files)
    guards = link_guards(Limits())
    for room in (guards.agents.room, guards.gateways.room):
        for n in range(expected + 10):
            room.enter(f"10.{n >> 8}.{n & 255}.1", n, lambda: None)
        assert len(room) == expected
