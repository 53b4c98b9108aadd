"""A relay with real sockets in the test's own process, and links to it."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_relay.config import (
    AgentsListener,
    GatewaysListener,
    IdentityFiles,
    Limits,
    OpsListener,
    RelayConfig,
)
from byoai_relay.service import RelayService
from byoai_shared.identity import AgentIdentity, Identity, certificate_thumbprint
from byoai_shared.keys import new_key
from byoai_shared.link.session import AcceptStream, LinkSession, connect
from byoai_shared.protocol.control import Hello, Presence, Role
from byoai_shared.protocol.trust import Denial, Trust
from byoai_shared.tls import Credentials, client_context
from byoai_shared.tokens import TunnelClaims, public_jwk, sign_token
from support.links import AGENT, GATEWAY, PATIENCE_S, TUNNEL_ID, Certificates, certificates
from support.trusts import AUDIENCE, ISSUER, denials, whole

KEY_ID = "k1"


@dataclass
class Clock:
    """A clock that stands still until it is told otherwise."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Rig:
    """A relay and what is needed to link to it."""

    service: RelayService
    agents_url: str
    gateways_url: str
    ops: str
    certificates: Certificates
    signing_key: ec.EllipticCurvePrivateKey
    monotonic: Clock = field(default_factory=Clock)
    unix: Clock = field(default_factory=lambda: Clock(time.time()))
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    revision: int = 0

    def pass_time(self, seconds: float) -> None:
        """Move both of the relay's clocks, and let it look at them."""
        self.monotonic.now += seconds
        self.unix.now += seconds
        self.service.relay.tick()

    def trust(self, *denied: str | Denial) -> Trust:
        """The next revision, whole: our key, and whom to deny."""
        self.revision += 1
        named = [it for one in denied for it in (denials(one) if isinstance(one, str) else (one,))]
        return whole(self.revision, (self.jwk,), named)

    @property
    def jwk(self) -> dict[str, str]:
        """The public key that verifies this gateway's tokens."""
        return public_jwk(KEY_ID, self.signing_key.public_key())

    def token(
        self,
        credentials: Credentials,
        *,
        tunnel_id: str = TUNNEL_ID,
        lifetime_s: int = 900,
        audience: str = AUDIENCE,
        key_id: str = KEY_ID,
    ) -> str:
        """A tunnel token that is bound to a link certificate."""
        now = int(self.unix.now)
        claims = TunnelClaims(
            issuer=ISSUER,
            audience=audience,
            tunnel_id=tunnel_id,
            issued_at=now,
            not_before=now,
            expires_at=now + lifetime_s,
            token_id="jti",
            certificate_thumbprint=certificate_thumbprint(der_of(credentials)),
            generation=1,
        )
        return sign_token(claims, self.signing_key, key_id)

    async def gateway(self, *, trusting: bool = True) -> tuple[LinkSession, list[Presence]]:
        """Link a gateway, which tells the relay what to believe unless told otherwise."""
        seen: list[Presence] = []
        session = await self._connect(
            self.gateways_url, self.certificates.of(GATEWAY), hello_of(GATEWAY), None, seen.append
        )
        if trusting:
            session.send_trust(self.trust())
            await self.until(lambda: self.service.relay.trust.revision == self.revision)
        return session, seen

    async def agent(
        self,
        accept: AcceptStream | None = None,
        *,
        identity: AgentIdentity = AGENT,
        instance: str = "run-1",
        epoch: int = 0,
        credentials: Credentials | None = None,
    ) -> LinkSession:
        """Link an agent and authenticate it."""
        credentials = credentials or self.certificates.of(identity)
        hello = hello_of(identity, instance=instance, epoch=epoch)
        session = await self._connect(self.agents_url, credentials, hello, accept, None)
        await session.authenticate(self.token(credentials, tunnel_id=identity.tunnel_id))
        return session

    async def _connect(
        self,
        url: str,
        credentials: Credentials,
        hello: Hello,
        accept: AcceptStream | None,
        on_presence: Callable[[Presence], None] | None,
    ) -> LinkSession:
        context = client_context(
            server_ca_pem=self.certificates.services.pem, credentials=credentials
        )
        session = await connect(
            url, ssl_context=context, hello=hello, accept=accept, on_presence=on_presence
        )
        self.stack.push_async_callback(end, session)
        return session

    async def tick_until(self, what: Callable[[], bool]) -> None:
        """Let the relay look at its clocks, which stand still, until something is so."""

        def looked() -> bool:
            self.service.relay.tick()
            return what()

        await self.until(looked)

    async def until(self, what: Callable[[], bool]) -> None:
        """Let the loop turn until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not what():  # noqa: ASYNC110 - many things change it, and none of them waits
                await asyncio.sleep(0)


async def end(session: LinkSession) -> None:
    """Cut a link, and wait until it is gone."""
    session.abort()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.shield(session.closed)


def der_of(credentials: Credentials) -> bytes:
    """The leaf certificate, DER."""
    leaf = x509.load_pem_x509_certificate(credentials.certificate_pem)
    return leaf.public_bytes(Encoding.DER)


def hello_of(identity: Identity, *, instance: str = "run-1", epoch: int = 0) -> Hello:
    """The HELLO that fits a certificate."""
    if isinstance(identity, AgentIdentity):
        return Hello(role=Role.AGENT, node=identity.agent_id, instance=instance, epoch=epoch)
    return Hello(role=Role.GATEWAY, node=identity.name, instance=instance, epoch=epoch)


def config_in(folder: Path, limits: Limits | None = None) -> RelayConfig:
    """Write a relay's files, and settings that listen on ports of the kernel's choice."""
    made = certificates()
    contents = {
        "relay.pem": made.relay.certificate_pem,
        "relay-key.pem": made.relay.key_pem,
        "agents-ca.pem": made.agents.pem,
        "services-ca.pem": made.services.pem,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "relay-key.pem").chmod(0o600)
    return RelayConfig(
        agents=AgentsListener(host="127.0.0.1", port=0),
        gateways=GatewaysListener(host="127.0.0.1", port=0),
        ops=OpsListener(port=0),
        identity=IdentityFiles(
            certificate=folder / "relay.pem",
            key=folder / "relay-key.pem",
            agents_ca=folder / "agents-ca.pem",
            services_ca=folder / "services-ca.pem",
        ),
        limits=limits or Limits(address_connections_burst=1000.0, address_connections_per_s=1000.0),
    )


@asynccontextmanager
async def relaying(folder: Path, limits: Limits | None = None) -> AsyncGenerator[Rig]:
    """Run a relay without its ticker: time passes when the test says so."""
    service = RelayService(config_in(folder, limits))
    async with service._listening() as (agents, gateways), service._ops() as ops:
        rig = Rig(service, f"wss://{agents}", f"wss://{gateways}", ops, certificates(), new_key())
        service.relay.now = rig.monotonic
        service.relay._unix_now = rig.unix
        try:
            yield rig
        finally:
            await rig.stack.aclose()
            for link in service.relay.links():
                link.link.abort()
            await rig.until(lambda: service.relay.link_count == 0)


async def fetch(address: str, path: str) -> tuple[int, str]:
    """GET from the ops listener."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def fetch_json(address: str, path: str) -> dict[str, object]:
    """GET a JSON object."""
    answer: dict[str, object] = json.loads((await fetch(address, path))[1])
    return answer
