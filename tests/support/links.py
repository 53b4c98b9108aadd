"""Real links on loopback: certificates, listeners, and drivers that note what they see."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

from byoai_shared.identity import AgentIdentity, GatewayIdentity, Identity, RelayIdentity
from byoai_shared.link import websocket
from byoai_shared.link.accept import ConnectionRate, listen
from byoai_shared.link.websocket import WebSocketLink
from byoai_shared.protocol.outbox import Outbox
from byoai_shared.tls import Credentials, client_context, server_context
from support.authority import Authority

TUNNEL_ID = "abcdefghijklmnopqrstuvwxyz"
AGENT = AgentIdentity(TUNNEL_ID, "agent-1")
GATEWAY = GatewayIdentity("gateway-1")
RELAY = RelayIdentity("relay-1")
PATIENCE_S = 50.0
"""How long a test waits for what must come; nothing takes as long when it works."""


@dataclass(frozen=True)
class Certificates:
    """The two authorities, and a relay."""

    agents: Authority
    services: Authority
    relay: Credentials

    def of(self, identity: Identity) -> Credentials:
        """Fresh credentials, from the authority in charge."""
        authority = self.agents if isinstance(identity, AgentIdentity) else self.services
        return authority.credentials(identity)

    def client(self, identity: Identity) -> ssl.SSLContext:
        """A client's context for dialling the relay."""
        return client_context(server_ca_pem=self.services.pem, credentials=self.of(identity))

    def server(self, client_ca: Authority | None = None) -> ssl.SSLContext:
        """The relay's context for a listener, agents' unless said otherwise."""
        return server_context(self.relay, client_ca_pem=(client_ca or self.agents).pem)


@cache
def certificates() -> Certificates:
    """Make the certificates of this test run."""
    services = Authority("services")
    return Certificates(Authority("agents"), services, services.credentials(RELAY))


def no_limit() -> ConnectionRate:
    """Admit everyone."""
    return ConnectionRate(
        per_s=1e9, burst=1e9, per_address_per_s=1e9, per_address_burst=1e9, clock=lambda: 0.0
    )


class Driver:
    """A link's driver that keeps what comes."""

    def __init__(self, link: WebSocketLink) -> None:
        self.link = link
        self.outbox = Outbox()
        self.messages: list[bytes] = []
        self.flushes = 0
        self.closed: asyncio.Future[tuple[int | None, str]] = (
            asyncio.get_running_loop().create_future()
        )
        self._changed = asyncio.Event()

    def message_received(self, message: bytes) -> None:
        self.messages.append(message)
        self._changed.set()

    def flushed(self) -> None:
        self.flushes += 1
        self._changed.set()

    def link_closed(self, code: int | None, reason: str) -> None:
        self.closed.set_result((code, reason))
        self._changed.set()

    async def until(self, what: Callable[[], bool]) -> None:
        """Wait for something that a message, a flush or the end brings."""
        async with asyncio.timeout(PATIENCE_S):
            while not what():
                self._changed.clear()
                await self._changed.wait()

    async def end(self) -> tuple[int | None, str]:
        """Wait for the link's end; the peer's close code and reason."""
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.shield(self.closed)


@dataclass
class Listening:
    """A listener that takes links."""

    url: str
    port: int
    drivers: list[Driver]
    arrived: asyncio.Event

    async def driver(self) -> Driver:
        """The driver of the link that comes next."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.drivers:
                self.arrived.clear()
                await self.arrived.wait()
        return self.drivers.pop(0)


@asynccontextmanager
async def listening(
    rate: ConnectionRate | None = None, context: ssl.SSLContext | None = None
) -> AsyncGenerator[Listening]:
    """Take links on a port of the kernel's choice."""
    sock = listen("127.0.0.1", 0, rate or no_limit())
    made: list[Driver] = []
    port: int = sock.getsockname()[1]
    there = Listening(f"wss://127.0.0.1:{port}", port, [], asyncio.Event())

    def attach(link: WebSocketLink) -> Driver:
        driver = Driver(link)
        made.append(driver)
        there.drivers.append(driver)
        there.arrived.set()
        return driver

    server = await websocket.serve(sock, attach, ssl_context=context or certificates().server())
    try:
        yield there
    finally:
        server.close()
        for driver in made:
            driver.link.abort()
            await driver.end()
        async with asyncio.timeout(PATIENCE_S):
            await server.wait_closed()


@asynccontextmanager
async def linked() -> AsyncGenerator[tuple[Driver, Driver]]:
    """Join two drivers by a real link: (client, server)."""
    drivers: list[Driver] = []

    def attach(link: WebSocketLink) -> Driver:
        drivers.append(Driver(link))
        return drivers[0]

    async with listening() as there:
        await websocket.connect(there.url, attach, ssl_context=certificates().client(AGENT))
        try:
            yield drivers[0], await there.driver()
        finally:
            drivers[0].link.abort()
            await drivers[0].end()
