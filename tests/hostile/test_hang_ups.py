"""A user hangs up at a silent agent by the hundred; another user's requests go on being answered.

The gateway's own client of tunnels, its link, a relay and two agents, over real sockets. The
relay's clock stands still unless the test moves it.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from byoai_gateway.absence import Absence
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_gateway.tunnel_client import TunnelClient, TunnelThrottled
from byoai_shared.http1.head import RequestHead
from byoai_shared.http1.request import ServerRequest
from byoai_shared.http1.server import ServerConnection
from byoai_shared.identity import AgentIdentity, tunnel_hostname
from byoai_shared.keys import key_to_pem, new_key, self_signed_certificate
from byoai_shared.link import websocket
from byoai_shared.link.stream import StreamTransport
from byoai_shared.tls import Credentials, server_context
from byoai_shared.tls_transport import TlsTransport
from support.gateway_links import Feed, Services, gateway_context
from support.links import GATEWAY, TUNNEL_ID, certificates
from support.relays import Rig, relaying

HANG_UPS: Final = 5_000 if os.environ.get("BYOAI_HOSTILE_FULL") else 250
NEIGHBOUR: Final = AgentIdentity("bcdefghijklmnopqrstuvwxyza", "agent-2")
ANSWER: Final = bytes(at % 251 for at in range(50_000))


class Pins:
    """Each tunnel's certificate."""

    def __init__(self) -> None:
        self.credentials = {name: end_to_end(name) for name in (TUNNEL_ID, NEIGHBOUR.tunnel_id)}

    async def pins(self, tunnel_id: str) -> tuple[bytes, ...]:
        return (self.credentials[tunnel_id].certificate_pem,)

    def forget_pins(self, tunnel_id: str) -> None:
        assert tunnel_id in self.credentials

    async def why_none(self, tunnel_id: str) -> Absence:
        raise AssertionError(f"{tunnel_id} has a certificate")


def end_to_end(tunnel_id: str) -> Credentials:
    key = new_key()
    certificate = self_signed_certificate(key, tunnel_hostname(tunnel_id), timedelta(days=1))
    return Credentials(certificate, key_to_pem(key))


@dataclass
class Users:
    """A user whose agent is silent, and one whose agent answers."""

    rig: Rig
    links: RelayLinks
    client: TunnelClient
    silent: list[StreamTransport]

    async def hang_up(self) -> None:
        """Ask the silent agent, and leave once it has the stream."""
        before = len(self.silent)
        asking = asyncio.ensure_future(self.client.acquire(TUNNEL_ID))
        await self.rig.until(lambda: len(self.silent) > before or asking.done())
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await self.rig.until(self.silent[-1].is_closing)

    async def ask_neighbour(self) -> None:
        """Ask the other user's agent, and compare the answer."""
        name = NEIGHBOUR.tunnel_id
        connection = await self.client.acquire(name)
        head = RequestHead("GET", "/v1/models", ((b"host", tunnel_hostname(name).encode()),))
        response = await connection.request(head)
        assert await response.read(len(ANSWER)) == ANSWER
        self.client.release(name, connection)


@pytest.fixture
async def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Users]:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)
    own, pins = certificates().of(GATEWAY), Pins()
    context = server_context(
        pins.credentials[NEIGHBOUR.tunnel_id],
        client_ca_pem=certificates().services.pem,
        alpn=("http/1.1",),
    )
    silent: list[StreamTransport] = []

    def take(stream: StreamTransport) -> asyncio.Protocol:
        silent.append(stream)
        return asyncio.Protocol()

    async def answer(request: ServerRequest) -> None:
        request.respond(200, (), ANSWER)

    async with relaying(tmp_path) as rig:
        name = GatewayName(GATEWAY.name, gateway_context)
        links = RelayLinks([rig.gateways_url], name, Feed(rig.trust()), Services())
        keeper = asyncio.ensure_future(links.keep())
        client = TunnelClient(links, pins, lambda: own, connect_s=50.0)
        await rig.until(lambda: rig.service.relay.trust.is_known)
        await rig.agent(take)
        await rig.agent(
            lambda _: TlsTransport(ServerConnection(answer), context, server_side=True),
            identity=NEIGHBOUR,
        )
        await rig.until(lambda: links.presence.tunnel_count == 2)
        yield Users(rig, links, client, silent)
        client.close()
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def test_a_user_who_hangs_up_by_the_hundred_costs_no_other_user_a_byte(users: Users) -> None:
    is_throttled = False
    for number in range(HANG_UPS):
        users.rig.monotonic.now += 6.0 / 250
        try:
            await users.hang_up()
        except TunnelThrottled:
            is_throttled = True
        if number % 25 == 0:
            await users.ask_neighbour()
    assert is_throttled
    assert users.links.dials == {"connected": 1}
    await users.ask_neighbour()
    users.rig.monotonic.now += 11.0
    await users.hang_up()
