"""A control plane whose trust feeds a real relay, and agents of it on that relay."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from unittest.mock import patch

from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.relay_links import GatewayName, RelayLinks
from byoai_shared.identity import AgentIdentity, certificate_thumbprint
from byoai_shared.link.session import AcceptStream, LinkSession, connect
from byoai_shared.protocol.trust import Trust
from byoai_shared.tls import client_context
from byoai_shared.tokens import TunnelClaims
from support.gateway_links import Services, gateway_context
from support.links import GATEWAY
from support.relays import Rig, der_of, end, hello_of


@asynccontextmanager
async def linked(control: ControlPlane, rig: Rig) -> AsyncGenerator[RelayLinks]:
    """Keep the gateway's link to the relay, with its own trust."""
    name = GatewayName(GATEWAY.name, gateway_context)
    links = RelayLinks((rig.gateways_url,), name, control.trust, Services())
    gateways = rig.service.relay.directory.gateways
    before = len(list(gateways()))
    keeping = asyncio.ensure_future(links.keep())
    try:
        await rig.until(lambda: is_agreed(control, rig))
        yield links
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await rig.until(lambda: len(list(gateways())) <= before)


def is_agreed(control: ControlPlane, rig: Rig) -> bool:
    """Whether the relay believes exactly what the database has."""
    held, ours = rig.service.relay.trust.held, control.trust.held
    return held.digest == ours.digest and held.revision <= ours.revision


async def agent_of(
    control: ControlPlane, rig: Rig, identity: AgentIdentity, accept: AcceptStream | None = None
) -> LinkSession:
    """Link an agent with a token of this control plane.

    Raises:
        LinkLost: the relay refused it.
    """
    credentials = rig.certificates.of(identity)
    context = client_context(server_ca_pem=rig.certificates.services.pem, credentials=credentials)
    session = await connect(
        rig.agents_url, ssl_context=context, hello=hello_of(identity), accept=accept
    )
    rig.stack.push_async_callback(end, session)
    rig.unix.now = control.clock()
    now = int(control.clock())
    claims = TunnelClaims(
        issuer=control.config.tokens.issuer,
        audience=control.config.tokens.audience,
        tunnel_id=identity.tunnel_id,
        issued_at=now,
        not_before=now,
        expires_at=now + 900,
        token_id="jti",
        certificate_thumbprint=certificate_thumbprint(der_of(credentials)),
        generation=1,
    )
    await session.authenticate(control.signing_keys.sign(claims))
    return session


@contextmanager
def sent_trusts() -> Generator[list[Trust]]:
    """Note every TRUST that gateways send."""
    sent: list[Trust] = []
    send = LinkSession.send_trust

    def noted(session: LinkSession, trust: Trust) -> None:
        sent.append(trust)
        send(session, trust)

    with patch.object(LinkSession, "send_trust", noted):
        yield sent
