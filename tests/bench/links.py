"""What an idle agent link costs the relay: 2,000 of them, each with an identity of its own.

A process of its own that starts a relay, is the gateway that tells it whom to trust, and is all
the agents. There is no control plane: it is its own authority, because enrolling 2,000 agents
through the API would measure the API.
"""

import asyncio
import json
import os
import secrets
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    RelayIdentity,
    certificate_thumbprint,
    new_tunnel_id,
)
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol.control import Hello, Role
from byoai_shared.protocol.trust import DenialSet, Trust, trust_digest
from byoai_shared.tls import Credentials, client_context
from byoai_shared.tokens import TunnelClaims, public_jwk, sign_token
from demo.processes import Event, Process
from demo.settings import Value, write_settings
from demo.stack import HOST, RELAY_FILES, command_path
from support.authority import Authority, write_relay_files

from .meter import Meter, pin, spent
from .spec import Result

COUNT = 2000
AT_ONCE = 32
SETTLE_S = 2.0
KEY_ID = "bench"
ISSUER = "https://bench.test"
AUDIENCE = "byoai-relay"
TOKEN_S = 900
UNLIMITED = 1_000_000
UNLIMITED_RATES = (
    "connections_per_s",
    "connections_burst",
    "address_connections_per_s",
    "address_connections_burst",
    "connections",
    "address_links",
)


class Authorities:
    """All that the control plane would hold."""

    def __init__(self) -> None:
        self.agents = Authority("agents")
        self.services = Authority("services")
        self.signing_key = new_key()
        keys = (public_jwk(KEY_ID, self.signing_key.public_key()),)
        self.trust = Trust(
            revision=1,
            base=0,
            digest=trust_digest(ISSUER, AUDIENCE, keys, DenialSet()),
            issuer=ISSUER,
            audience=AUDIENCE,
            keys=keys,
        )

    def token(self, tunnel_id: str, thumbprint: str) -> str:
        """A tunnel token that outlives the measurement."""
        now = int(time.time())
        claims = TunnelClaims(
            issuer=ISSUER,
            audience=AUDIENCE,
            tunnel_id=tunnel_id,
            issued_at=now,
            not_before=now,
            expires_at=now + TOKEN_S,
            token_id=secrets.token_hex(8),
            certificate_thumbprint=thumbprint,
            generation=1,
        )
        return sign_token(claims, self.signing_key, KEY_ID)


class Agent:
    """One agent that only holds its link."""

    def __init__(self, authorities: Authorities) -> None:
        identity = AgentIdentity(new_tunnel_id(), secrets.token_hex(8))
        key = new_key()
        certificate = authorities.agents.certificate(identity, key)
        credentials = Credentials(certificate.public_bytes(Encoding.PEM), key_to_pem(key))
        thumbprint = certificate_thumbprint(certificate.public_bytes(Encoding.DER))
        self._context = context_for(authorities, credentials)
        self._token = authorities.token(identity.tunnel_id, thumbprint)
        self._hello = hello(Role.AGENT, identity.agent_id)

    async def link(self, url: str) -> LinkSession:
        """Connect and be accepted."""
        session = await connect(url, ssl_context=self._context, hello=self._hello)
        await session.authenticate(self._token)
        return session


def hello(role: Role, node: str) -> Hello:
    """How one of them introduces itself."""
    return Hello(role=role, node=node, instance=secrets.token_hex(8), epoch=1)


def context_for(authorities: Authorities, credentials: Credentials) -> ssl.SSLContext:
    """What a client of the relay trusts and shows."""
    return client_context(server_ca_pem=authorities.services.pem, credentials=credentials)


def relay_process(directory: Path, authorities: Authorities) -> Process:
    """A relay that takes as many links as come."""
    credentials = authorities.services.credentials(RelayIdentity("bench"))
    write_relay_files(
        directory, credentials, agents=authorities.agents, services=authorities.services
    )
    settings: dict[str, Value] = {"drain_s": 0.1}
    settings |= {f"limits.{name}": UNLIMITED for name in UNLIMITED_RATES}
    for listener in ("agents", "gateways", "ops"):
        settings |= {f"{listener}.host": HOST, f"{listener}.port": 0}
    settings |= {f"identity.{name}": str(directory / file) for name, file in RELAY_FILES.items()}
    write_settings(directory / "relay.toml", settings)
    command = [command_path("byoai-relay"), "serve", "--config", str(directory / "relay.toml")]
    return Process("relay", command, directory=directory)


async def measure(count: int, cores: Sequence[int]) -> Result:
    """Start a relay, link all agents to it, let them be, and look at what it holds."""
    authorities = Authorities()
    agents = [Agent(authorities) for _ in range(count)]
    with tempfile.TemporaryDirectory() as scratch:
        async with relay_process(Path(scratch), authorities) as relay:
            bound = await relay.ready()
            pin(relay.pid, cores)
            return await measured_links(agents, authorities, bound, Meter({"relay": [relay.pid]}))


async def measured_links(
    agents: Sequence[Agent], authorities: Authorities, bound: Event, meter: Meter
) -> Result:
    """The measurement itself: from the first connection until all are accepted, then a rest."""
    context = context_for(authorities, authorities.services.credentials(GatewayIdentity("bench")))
    gateway = await connect(
        f"wss://{bound['gateways']}", ssl_context=context, hello=hello(Role.GATEWAY, "bench")
    )
    gateway.send_trust(authorities.trust)
    rss_before, cpu = meter.rss(), meter.cpu_s()
    begin = time.monotonic()
    links = await all_linked(agents, f"wss://{bound['agents']}")
    seconds = time.monotonic() - begin
    result = Result(
        count=len(links),
        seconds=seconds,
        cpu_s=spent(cpu, meter.cpu_s()),
        rss_before=rss_before,
    )
    await asyncio.sleep(SETTLE_S)
    result.rss_after = meter.rss()
    if any(link.closed.done() for link in links):
        raise RuntimeError("a link was lost while idle")
    for link in (*links, gateway):
        link.abort()
    return result


async def all_linked(agents: Sequence[Agent], url: str) -> list[LinkSession]:
    """Connect them all, so many at once."""
    links: list[LinkSession] = []
    waiting = iter(agents)

    async def link_in_turn() -> None:
        for agent in waiting:
            links.append(await agent.link(url))  # noqa: PERF401 -- as each comes up

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(link_in_turn())
    return links


if __name__ == "__main__":
    own_cores, relay_cores = json.loads(sys.argv[1])
    if own_cores:
        os.sched_setaffinity(0, own_cores)
    outcome = uvloop.run(measure(COUNT, relay_cores))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))
