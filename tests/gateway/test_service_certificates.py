"""Certificates of relays and gateways: renewed, revoked, and for how long."""

import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import select

from byoai_gateway.authorities import Subject
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.schema import audit_log
from byoai_gateway.service_certificates import current_revocations, revoke_service
from byoai_shared.errors import ConfigError
from byoai_shared.identity import GatewayIdentity, Identity, RelayIdentity
from byoai_shared.keys import new_key
from byoai_shared.revoked_services import MAX_ROWS, read_statement
from support.control import FakeClock

DAY = 86_400
RELAY = RelayIdentity("relay-1")
GATEWAY = GatewayIdentity("gateway")


def issued(control: ControlPlane, identity: Identity = RELAY) -> bytes:
    """A certificate (DER) that is good for a week from now."""
    subject = Subject(identity, new_key().public_key(), 7 * DAY, ("127.0.0.1", "relay.example"))
    return ssl.PEM_cert_to_DER_cert(
        control.authorities.services.issue(subject, control.clock()).pem
    )


async def revoke(control: ControlPlane, identity: GatewayIdentity | RelayIdentity) -> None:
    await revoke_service(control.database, control.audit, identity, control.clock())
    await control.services.refresh()


def own(control: ControlPlane) -> bytes:
    pem = control.own_identity.credentials.certificate_pem.decode()
    return ssl.PEM_cert_to_DER_cert(pem)


async def test_a_relays_certificate_is_renewed_after_half_of_its_life(
    control: ControlPlane, clock: FakeClock
) -> None:
    old = issued(control)
    clock.advance(3.5 * DAY - 1)
    assert control.services.renewed(old) == ""
    clock.advance(1)
    before = x509.load_der_x509_certificate(old)
    after = x509.load_pem_x509_certificate(control.services.renewed(old).encode())
    assert after.not_valid_after_utc.timestamp() == clock() + 7 * DAY
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert after.public_key().public_bytes(*form) == before.public_key().public_bytes(*form)
    names = x509.SubjectAlternativeName
    assert set(after.extensions.get_extension_for_class(names).value) == (
        set(before.extensions.get_extension_for_class(names).value)
    )


async def test_no_certificate_of_a_gateway_and_no_revoked_one_is_renewed(
    control: ControlPlane, clock: FakeClock
) -> None:
    relay, gateway = issued(control), issued(control, GATEWAY)
    await revoke(control, RELAY)
    clock.advance(4 * DAY)
    assert control.services.renewed(gateway) == ""
    assert control.services.renewed(relay) == ""


async def test_a_revocation_reaches_relays_as_a_statement_of_the_services_ca(
    control: ControlPlane, clock: FakeClock
) -> None:
    assert control.services.statement == ""
    old = issued(control)
    clock.advance(1)
    await revoke(control, RELAY)
    assert control.services.denies(old)
    clock.advance(1)
    assert not control.services.denies(issued(control))
    authority = x509.load_pem_x509_certificate(control.own_identity.services_ca_pem)
    (row,) = read_statement(control.services.statement, [authority.public_key()])  # type: ignore[list-item] # pyright: ignore[reportArgumentType] # the CA's key is P-256
    assert row.service == "byoai://relay/relay-1"
    async with control.database.reading() as connection:
        entries = (await connection.execute(select(audit_log))).all()
    assert [(it.action, it.actor, it.subject) for it in entries] == [
        ("service.revoked", "operator", "byoai://relay/relay-1")
    ]


async def test_a_gateway_whose_certificate_is_revoked_goes_on_with_a_new_one(
    control: ControlPlane, clock: FakeClock
) -> None:
    stolen = own(control)
    clock.advance(1)
    await revoke(control, GATEWAY)
    assert control.services.denies(stolen)
    clock.advance(1)
    control.own_identity.dialing_context()
    assert own(control) != stolen
    assert not control.services.denies(own(control))
    renewed = own(control)
    control.own_identity.renew_if_due()
    assert own(control) == renewed


async def test_who_waits_hears_of_a_revocation_by_another_process(control: ControlPlane) -> None:
    await revoke(control, RELAY)
    first = control.services.statement
    await control.services.refresh()
    assert control.services.statement == first, "nothing is new"
    await revoke(control, GATEWAY)
    assert control.services.statement != first


async def test_rows_are_one_for_each_name_bounded_and_expire(
    control: ControlPlane, clock: FakeClock
) -> None:
    for _ in range(3):
        clock.advance(1)
        await revoke(control, RELAY)
    async with control.database.reading() as connection:
        (row,) = await current_revocations(connection, clock())
    assert row.issued_until_ms == int(clock() * 1000)
    for number in range(MAX_ROWS - 1):
        await revoke(control, GatewayIdentity(f"gateway-{number}"))
    with pytest.raises(ConfigError, match=f"{MAX_ROWS} services are revoked"):
        await revoke(control, GatewayIdentity("one-more"))
    await revoke(control, RELAY)
    clock.advance(398 * DAY)
    await revoke(control, GatewayIdentity("one-more"))
    async with control.database.reading() as connection:
        rows = await current_revocations(connection, clock())
    assert [it.service for it in rows] == ["byoai://gateway/one-more"]
