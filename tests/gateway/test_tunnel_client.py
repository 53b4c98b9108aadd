"""Requests through a real relay to an agent's end of a stream, pinned end to end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from byoai_gateway import presence
from byoai_gateway.absence import Absence, never_joined
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.router.failures import FailureKind
from byoai_gateway.tunnel_client import (
    TunnelBusy,
    TunnelClient,
    TunnelError,
    TunnelLost,
    TunnelOffline,
    TunnelThrottled,
    TunnelUntrusted,
)
from byoai_shared.http1.errors import ConnectionClosed, HttpError, TruncatedMessage
from byoai_shared.http1.head import RequestHead, ResponseHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.identity import tunnel_hostname
from byoai_shared.keys import key_to_pem, new_key, self_signed_certificate
from byoai_shared.link import websocket
from byoai_shared.link.session import LinkSession
from byoai_shared.link.stream import StreamTransport
from byoai_shared.protocol.control import GoneReason
from byoai_shared.protocol.errors import CloseCode, ResetCode
from byoai_shared.tls import Credentials, server_context
from byoai_shared.tls_transport import TlsTransport
from support.garbage import cyclic_garbage
from support.gateway_links import Feed, Services, gateway_context
from support.links import GATEWAY, TUNNEL_ID, certificates
from support.relays import Rig, relaying
from support.wires import turns

CONNECT_S = 5.0
LAST_EVENTS = b'data: {"choices":[]}\n\n' * 1000 + b"data: [DONE]\n\n"
GET = RequestHead("GET", "/v1/models", ((b"host", tunnel_hostname(TUNNEL_ID).encode()),))


@dataclass
class Pins:
    """What the registry says of the tunnel's certificates, now and after another look."""

    now: tuple[bytes, ...]
    later: tuple[bytes, ...] | None = None

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        assert tunnel_id == TUNNEL_ID
        return self.now

    def forget_pins(self, tunnel_id: str) -> None:
        assert tunnel_id == TUNNEL_ID
        if self.later is not None:
            self.now = self.later

    async def why_none(self, tunnel_id: str) -> Absence:
        assert tunnel_id == TUNNEL_ID
        return never_joined()


@dataclass
class AgentEnd:
    """The agent's end of the streams, which answers every request with its path."""

    credentials: Credentials
    streams: list[StreamTransport] = field(default_factory=list[StreamTransport])
    is_silent: bool = False
    breaks_off: bool = False
    """Its answers end before their end, right behind what was written."""

    def accept(self, stream: StreamTransport) -> asyncio.Protocol:
        self.streams.append(stream)
        if self.is_silent:
            return asyncio.Protocol()
        context = server_context(
            self.credentials, client_ca_pem=certificates().services.pem, alpn=("http/1.1",)
        )
        return TlsTransport(ServerConnection(self._answer), context, server_side=True)

    async def _answer(self, request: ServerRequest) -> None:
        if self.breaks_off:
            body = request.start_response(ResponseHead(200, ()))
            body.write(LAST_EVENTS)
            body.fail(TruncatedMessage("broken off"))
            return
        request.respond(200, (), request.head.target.encode())


def end_to_end() -> Credentials:
    key = new_key()
    hostname = tunnel_hostname(TUNNEL_ID)
    return Credentials(self_signed_certificate(key, hostname, timedelta(days=1)), key_to_pem(key))


@dataclass
class House:
    """A gateway's half, its relay, and one agent."""

    rig: Rig
    links: RelayLinks
    agent: AgentEnd
    pins: Pins
    client: TunnelClient

    async def ask(self) -> tuple[int, bytes]:
        connection = await self.client.acquire(TUNNEL_ID)
        response = await connection.request(GET)
        answer = response.head.status, await response.read(1000)
        self.client.release(TUNNEL_ID, connection)
        return answer

    def impatient(self, connect_s: float) -> TunnelClient:
        """A client that waits no longer than that for a connection."""
        own = certificates().of(GATEWAY)
        return TunnelClient(self.links, self.pins, lambda: own, connect_s=connect_s)

    def found(self, monkeypatch: pytest.MonkeyPatch, *sessions: LinkSession) -> None:
        """Let the tunnel be reached by these links."""

        def sessions_for(tunnel_id: str, agent_id: str = "") -> list[LinkSession]:
            assert not agent_id
            assert tunnel_id == TUNNEL_ID
            return list(sessions)

        monkeypatch.setattr(self.links, "sessions_for", sessions_for)

    async def agent_comes(self) -> None:
        await self.rig.agent(self.agent.accept)
        await self.rig.until(lambda: bool(self.links.sessions_for(TUNNEL_ID)))


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)
    own = certificates().of(GATEWAY)
    async with relaying(tmp_path) as rig:
        name = GatewayName(GATEWAY.name, gateway_context)
        links = RelayLinks([rig.gateways_url], name, Feed(rig.trust()), Services())
        keeper = asyncio.ensure_future(links.keep())
        agent = AgentEnd(end_to_end())
        pins = Pins((agent.credentials.certificate_pem,))
        client = TunnelClient(links, pins, lambda: own, connect_s=CONNECT_S)
        await rig.until(lambda: rig.service.relay.trust.is_known)
        yield House(rig, links, agent, pins, client)
        client.close()
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def test_a_request_reaches_the_agent_and_its_connection_is_used_again(house: House) -> None:
    await house.agent_comes()
    assert await house.ask() == (200, b"/v1/models")
    assert await house.ask() == (200, b"/v1/models")
    assert house.client.dials == {"opened": 1}
    assert len(house.agent.streams) == 1


async def test_a_relay_that_drains_is_left_by_what_is_idle_and_by_what_becomes_so(
    house: House,
) -> None:
    await house.agent_comes()
    busy = await house.client.acquire(TUNNEL_ID)
    await house.ask()
    (session,) = house.links.sessions_for(TUNNEL_ID)
    (link,) = (one for one in house.rig.service.relay.links() if not one.port.tunnel_id)
    link.port.go_away(CloseCode.GOING_AWAY, "this relay is draining")
    link.link.flush_soon()
    idle_stream, busy_stream = reversed(house.agent.streams)
    await house.rig.until(idle_stream.is_closing)
    assert not busy_stream.is_closing()
    response = await busy.request(GET)
    assert await response.read(1000) == b"/v1/models"
    house.client.release(TUNNEL_ID, busy)
    await house.rig.until(lambda: session.stream_count == 0)
    assert house.links.sessions_for(TUNNEL_ID) == []


async def test_a_tunnel_without_an_agent_is_offline(house: House) -> None:
    with pytest.raises(TunnelOffline):
        await house.ask()


async def test_a_tunnel_that_no_agent_has_joined_says_so(house: House) -> None:
    house.pins.now = ()
    with pytest.raises(TunnelOffline) as caught:
        await house.ask()
    assert caught.value.absence.kind is FailureKind.AGENT_NEVER_JOINED


async def why_offline(house: House) -> Absence:
    with pytest.raises(TunnelOffline) as caught:
        await house.ask()
    return caught.value.absence


async def test_an_agent_that_left_is_told_with_its_reason(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The link to the relay is old enough: the agent will not come back by another one.
    monkeypatch.setattr(presence, "RETURN_S", 0.0)
    session = await house.rig.agent(house.agent.accept)
    await house.rig.until(lambda: bool(house.links.sessions_for(TUNNEL_ID)))
    await session.drain(1.0)
    await house.rig.until(lambda: not house.links.sessions_for(TUNNEL_ID))
    assert (await why_offline(house)).reason is GoneReason.STOPPED
    cut = await house.rig.agent(house.agent.accept)
    await house.rig.until(lambda: bool(house.links.sessions_for(TUNNEL_ID)))
    cut.abort()
    await house.rig.until(lambda: not house.links.sessions_for(TUNNEL_ID))
    assert (await why_offline(house)).reason is GoneReason.NETWORK_LOST


async def test_a_gateway_that_lost_its_relays_does_not_blame_the_agent(house: House) -> None:
    await house.agent_comes()
    house.links.presence.forget_relay(house.rig.gateways_url)
    assert (await why_offline(house)).kind is FailureKind.NO_RELAY_CONNECTED


async def test_whoever_has_another_certificate_is_not_the_agent(house: House) -> None:
    house.pins.now = (end_to_end().certificate_pem,)
    await house.agent_comes()
    with pytest.raises(TunnelUntrusted, match="end-to-end session failed"):
        await house.ask()
    assert house.client.dials == {"untrusted": 1}


async def test_a_certificate_that_was_pinned_a_moment_ago_is_looked_up(house: House) -> None:
    house.pins.now, house.pins.later = (end_to_end().certificate_pem,), house.pins.now
    await house.agent_comes()
    assert await house.ask() == (200, b"/v1/models")
    assert house.client.dials == {"untrusted": 1, "opened": 1}


async def test_an_agent_that_says_nothing_is_given_up(house: House) -> None:
    house.agent.is_silent = True
    await house.agent_comes()
    client = house.impatient(0.05)
    with pytest.raises(TunnelLost, match=r"did not answer within 0\.05 s"):
        await client.acquire(TUNNEL_ID)
    await house.rig.until(house.agent.streams[0].is_closing)
    assert client.dials == {"lost": 1}


@dataclass
class MuteSession:
    """A link by which nothing is answered; in `limits` stands how long each stream was given."""

    limits: list[float]
    is_over_at_once: bool = False

    async def open_stream(
        self, tunnel_id: str, protocol: asyncio.Protocol, *, agent_id: str, timeout_s: float
    ) -> StreamTransport:
        del tunnel_id, protocol, agent_id
        self.limits.append(timeout_s)
        if self.is_over_at_once:
            raise TimeoutError
        opened: asyncio.Future[StreamTransport] = asyncio.get_running_loop().create_future()
        return await opened


async def test_several_relays_that_say_nothing_share_the_time_that_one_would_have(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = MuteSession([])
    house.found(monkeypatch, *[cast("LinkSession", mute)] * 3)
    client = house.impatient(0.06)
    with pytest.raises(TunnelLost, match=r"did not answer within 0\.06 s"):
        await client.acquire(TUNNEL_ID)
    assert client.dials == {"lost": 3}
    assert mute.limits[0] == pytest.approx(0.02, rel=0.1)
    assert sum(mute.limits) <= 0.06


async def test_a_relay_that_says_nothing_leaves_time_for_the_next(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.agent_comes()
    mute = MuteSession([], is_over_at_once=True)
    (sound,) = house.links.sessions_for(TUNNEL_ID)
    house.found(monkeypatch, cast("LinkSession", mute), sound)
    assert await house.ask() == (200, b"/v1/models")
    assert house.client.dials == {"lost": 1, "opened": 1}
    assert mute.limits == [pytest.approx(CONNECT_S / 2, rel=0.1)]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (ResetCode.NOT_PROCESSED, TunnelBusy),
        (ResetCode.THROTTLED, TunnelThrottled),
        (ResetCode.INTERNAL_ERROR, TunnelLost),
    ],
)
async def test_a_stream_that_is_reset_says_what_became_of_it(
    house: House, code: ResetCode, error: type[TunnelError]
) -> None:
    def refuse(stream: StreamTransport) -> asyncio.Protocol:
        asyncio.get_running_loop().call_soon(stream.fail, code)
        return asyncio.Protocol()

    await house.rig.agent(refuse)
    await house.rig.until(lambda: bool(house.links.sessions_for(TUNNEL_ID)))
    with pytest.raises(error):
        await house.ask()


async def test_events_right_before_an_answer_breaks_off_arrive(house: House) -> None:
    house.agent.breaks_off = True
    await house.agent_comes()
    connection = await house.client.acquire(TUNNEL_ID)
    response = await connection.request(GET)
    # All of it, and then an error: it is no end of an answer.
    begin = await response.body.peek(lambda begin: len(begin) >= len(LAST_EVENTS))
    assert bytes(begin) == LAST_EVENTS
    with pytest.raises(HttpError):
        await response.read(10 * len(LAST_EVENTS))
    house.client.release(TUNNEL_ID, connection)
    await house.rig.until(lambda: house.rig.service.relay.switch.stream_count(TUNNEL_ID) == 0)


async def test_a_caller_that_goes_away_takes_its_stream_along(house: House) -> None:
    house.agent.is_silent = True
    await house.agent_comes()
    asking = asyncio.ensure_future(house.ask())
    await house.rig.until(lambda: bool(house.agent.streams))
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    await house.rig.until(house.agent.streams[0].is_closing)


async def test_what_ended_is_not_left_in_reference_cycles(house: House) -> None:
    await house.agent_comes()
    with cyclic_garbage() as left:
        for _ in range(5):
            await broken_off(house)
            await hung_up_on(house)
            await untrusted(house)
            await a_link(house)
        house.agent.streams.clear()
        await house.rig.until(lambda: len(house.rig.service.relay.links()) == 2)
        await turns(50)
    assert not left


async def a_link(house: House) -> None:
    kept, house.rig.stack = house.rig.stack, AsyncExitStack()
    await house.rig.gateway(trusting=False)
    await house.rig.stack.aclose()
    house.rig.stack = kept


async def broken_off(house: House) -> None:
    house.agent.breaks_off = True
    with pytest.raises(HttpError):
        await house.ask()
    house.agent.breaks_off = False


async def hung_up_on(house: House) -> None:
    connection = await house.client.acquire(TUNNEL_ID)
    asking = asyncio.ensure_future(connection.request(GET))
    await turns(1)
    house.agent.streams[-1].abort()
    with pytest.raises(ConnectionClosed):
        await asking
    del asking  # its error holds this frame
    house.client.release(TUNNEL_ID, connection)


async def untrusted(house: House) -> None:
    pins, house.pins.now = house.pins.now, (end_to_end().certificate_pem,)
    with pytest.raises(TunnelUntrusted):
        await house.ask()
    house.pins.now = pins
