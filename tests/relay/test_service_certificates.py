"""Links end with certificates, by time and by revocation; gateways renew a relay's."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_shared.identity import GatewayIdentity, Identity, identity_uri
from byoai_shared.keys import key_from_pem, key_to_pem, new_key
from byoai_shared.link import websocket
from byoai_shared.link.errors import LinkLost
from byoai_shared.link.session import LinkSession, connect
from byoai_shared.protocol.control import Services
from byoai_shared.protocol.errors import CloseCode
from byoai_shared.revoked_services import RevokedService, RevokedServices, sign_statement
from byoai_shared.tls import Credentials, client_context
from support.authority import Authority
from support.links import AGENT, GATEWAY, PATIENCE_S, RELAY, TUNNEL_ID, certificates
from support.pipes import Pipe
from support.relays import Clock, Rig, hello_of, relaying

OTHER = GatewayIdentity("gateway-2")
HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def soon_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT_S", 0.05)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with relaying(tmp_path) as made:
        yield made


def statement(rig: Rig, identity: Identity, authority: Authority | None = None) -> Services:
    """Revoke every certificate that a service has had until now."""
    now = rig.unix.now
    row = RevokedService(identity_uri(identity), int(now * 1000), int(now + HOUR_S))
    signer = (authority or certificates().services)._key
    return Services(revoked=sign_statement((row,), signer))


async def lost(session: LinkSession) -> LinkLost:
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.shield(session.closed)


async def link(rig: Rig, identity: GatewayIdentity, credentials: Credentials) -> LinkSession:
    context = client_context(server_ca_pem=certificates().services.pem, credentials=credentials)
    session = await connect(rig.gateways_url, ssl_context=context, hello=hello_of(identity))
    rig.stack.callback(session.abort)
    return session


def lasting(identity: Identity, lifetime: timedelta) -> Credentials:
    made = certificates()
    authority = made.agents if identity == AGENT else made.services
    key = new_key()
    certificate = authority.certificate(identity, key, lifetime=lifetime)
    return Credentials(certificate.public_bytes(Encoding.PEM), key_to_pem(key))


# -- time


async def test_an_agents_link_ends_with_its_certificate(rig: Rig) -> None:
    await rig.gateway()
    credentials = lasting(AGENT, timedelta(hours=1))
    session = await rig.agent(credentials=credentials)
    await rig.until(lambda: rig.service.relay.directory.choose(TUNNEL_ID) is not None)
    await session.authenticate(rig.token(credentials, lifetime_s=3600))
    rig.unix.now += HOUR_S - 10
    rig.service.relay.tick()
    await asyncio.sleep(0)
    assert not session.closed.done()
    rig.unix.now += 11
    rig.service.relay.tick()
    assert (await lost(session)).code is CloseCode.CERTIFICATE_EXPIRED


async def test_a_gateways_link_ends_with_its_certificate_and_no_other_does(rig: Rig) -> None:
    short = await link(rig, OTHER, lasting(OTHER, timedelta(hours=1)))
    longer, _ = await rig.gateway()
    rig.unix.now += HOUR_S + 1
    rig.service.relay.tick()
    assert (await lost(short)).code is CloseCode.CERTIFICATE_EXPIRED
    assert longer.is_usable


async def test_a_link_ends_with_the_relays_certificate_at_the_other_side_too(rig: Rig) -> None:
    clock = Clock(time.time())
    session = await connect(
        rig.gateways_url,
        ssl_context=certificates().client(GATEWAY),
        hello=hello_of(GATEWAY),
        unix_now=clock,
    )
    clock.now += 12 * HOUR_S - 60
    session._watch_certificate()
    assert not session.aged.done(), "not before half of what is left"
    clock.now += 4 * HOUR_S
    session._watch_certificate()
    assert session.aged.done()
    assert session.is_usable, "it has time to be replaced"
    clock.now += 8 * HOUR_S + 61
    session._watch_certificate()
    end = await lost(session)
    assert end.code is CloseCode.CERTIFICATE_EXPIRED
    assert "the relay's certificate expired" in str(end)


async def test_a_link_ages_by_the_certificate_that_expires_first(rig: Rig) -> None:
    clock = Clock(time.time())
    session = await connect(
        rig.gateways_url,
        ssl_context=certificates().client(GATEWAY),
        hello=hello_of(GATEWAY),
        own_expires_at=clock.now + HOUR_S,
        unix_now=clock,
    )
    rig.stack.callback(session.abort)
    clock.now += 0.7 * HOUR_S
    session._watch_certificate()
    assert session.aged.done()
    assert session.is_usable


# -- revocation


async def test_a_revoked_gateways_link_ends_and_no_other(rig: Rig) -> None:
    stolen = await link(rig, OTHER, certificates().of(OTHER))
    honest, _ = await rig.gateway()
    honest.send_services(statement(rig, OTHER))
    end = await lost(stolen)
    assert end.code is CloseCode.REVOKED
    assert honest.is_usable
    again = await link_or_end(rig, OTHER)
    assert again is CloseCode.REVOKED


async def link_or_end(rig: Rig, identity: GatewayIdentity) -> CloseCode | None:
    """How the relay ends a link of credentials that were made a moment before."""
    try:
        session = await link(rig, identity, certificates().of(identity))
    except Exception as error:  # noqa: BLE001 -- whichever way it is refused
        code: CloseCode | None = getattr(error, "code", None)
        return code
    return (await lost(session)).code


async def test_streams_of_another_gateway_survive_a_revocation(rig: Rig) -> None:
    stolen = await link(rig, OTHER, certificates().of(OTHER))
    honest, _ = await rig.gateway()
    served: list[Pipe] = []

    def accept(_: object) -> Pipe:
        served.append(Pipe())
        return served[-1]

    await rig.agent(accept)
    mine = Pipe()
    await honest.open_stream(TUNNEL_ID, mine)
    honest.send_services(statement(rig, OTHER))
    await lost(stolen)
    served[0].transport.write(b"still here")
    await rig.until(lambda: bytes(mine.received) == b"still here")


async def test_a_statement_that_the_services_ca_did_not_sign_revokes_nothing(rig: Rig) -> None:
    victim = await link(rig, OTHER, certificates().of(OTHER))
    thief, _ = await rig.gateway()
    thief.send_services(statement(rig, OTHER, Authority("services")))
    thief.send_services(Services(revoked="garbage"))
    thief.send_trust(rig.trust())
    await rig.until(lambda: rig.service.relay.trust.revision == rig.revision)
    assert victim.is_usable
    assert thief.is_usable


async def test_a_statement_that_is_replayed_costs_no_look_at_the_links(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bytes] = []

    def denies(_: RevokedServices, certificate: bytes) -> bool:
        looked.append(certificate)
        return False

    honest, _ = await rig.gateway()
    known = statement(rig, OTHER)
    with monkeypatch.context() as patched:
        patched.setattr(RevokedServices, "denies", denies)
        for _ in range(3):
            honest.send_services(known)
        honest.send_trust(rig.trust())
        await rig.until(lambda: rig.service.relay.trust.revision == rig.revision)
    assert len(looked) == len(rig.service.relay.links())


async def test_an_agent_may_not_send_services(rig: Rig) -> None:
    await rig.gateway()
    agent = await rig.agent()
    agent.send_services(statement(rig, OTHER))
    assert (await lost(agent)).code is CloseCode.PROTOCOL_ERROR


# -- renewal


async def test_a_certificate_from_a_gateway_is_presented_to_the_next_link(rig: Rig) -> None:
    own = rig.service.certificate
    own._unix_now = lambda: time.time() + 15 * HOUR_S
    gateway, _ = await rig.gateway()
    before = gateway.peer_certificate
    key = key_from_pem(certificates().relay.key_pem)
    renewed = certificates().services.certificate(RELAY, key, lifetime=timedelta(days=2))
    pem = renewed.public_bytes(Encoding.PEM).decode()
    gateway.send_services(Services(certificate=pem))
    await rig.until(lambda: own.life.expires_at == renewed.not_valid_after_utc.timestamp())
    following, _ = await rig.gateway()
    assert following.peer_certificate == renewed.public_bytes(Encoding.DER)
    assert following.peer_certificate != before
    assert gateway.is_usable, "the link that brought it stands"
    agent = await rig.agent()
    assert agent.peer_certificate == following.peer_certificate
