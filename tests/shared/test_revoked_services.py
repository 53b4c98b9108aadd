"""Which certificates of services are revoked, and who can say so."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from byoai_shared.certificate_life import issue_serial
from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    RelayIdentity,
    identity_uri,
)
from byoai_shared.keys import new_key
from byoai_shared.protocol.control import Services, encode_control
from byoai_shared.protocol.frames import MAX_PAYLOAD_BYTES
from byoai_shared.revoked_services import (
    MAX_ROWS,
    RevokedService,
    RevokedServices,
    StatementRefused,
    read_statement,
    sign_statement,
)

CA_KEY = new_key()
NOW = 1_800_000_000.0
GATEWAY = GatewayIdentity("gateway-1")


def issued(identity: Identity, at: float) -> bytes:
    """A certificate (DER) that was issued at a moment."""
    start = datetime.fromtimestamp(int(at), UTC)
    uri = x509.UniformResourceIdentifier(identity_uri(identity))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(new_key().public_key())
        .serial_number(issue_serial(at))
        .not_valid_before(start - timedelta(hours=8))
        .not_valid_after(start + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=True)
        .sign(CA_KEY, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


def row(
    identity: Identity = GATEWAY, until: float = NOW, expires_at: float = NOW + 100
) -> RevokedService:
    return RevokedService(identity_uri(identity), int(until * 1000), int(expires_at))


def test_certificates_until_the_moment_are_revoked_and_later_ones_are_not() -> None:
    revoked = RevokedServices()
    before, after = issued(GATEWAY, NOW - 0.5), issued(GATEWAY, NOW + 0.5)
    assert not revoked.denies(before)
    revoked.add([row()], NOW)
    assert revoked.denies(before)
    assert not revoked.denies(after)


@pytest.mark.parametrize(
    "other",
    [
        GatewayIdentity("gateway-2"),
        RelayIdentity("gateway-1"),
        AgentIdentity("a" * 26, "gateway-1"),
    ],
)
def test_no_other_name_is_revoked_with_it(other: Identity) -> None:
    revoked = RevokedServices()
    revoked.add([row()], NOW)
    assert not revoked.denies(issued(other, NOW - 10))
    assert not revoked.denies(b"no certificate")


def test_an_older_statement_takes_nothing_back() -> None:
    revoked = RevokedServices()
    revoked.add([row()], NOW)
    revoked.add([row(until=NOW - 100)], NOW)
    revoked.add([], NOW)
    assert revoked.denies(issued(GATEWAY, NOW - 50))


def test_a_row_is_forgotten_when_it_expires() -> None:
    revoked = RevokedServices()
    revoked.add([row(expires_at=NOW + 100)], NOW)
    revoked.add([], NOW + 99)
    assert revoked.denies(issued(GATEWAY, NOW - 50))
    revoked.add([], NOW + 100)
    assert not revoked.denies(issued(GATEWAY, NOW - 50))


def test_a_statement_of_the_services_ca_is_read() -> None:
    rows = (row(), row(RelayIdentity("relay-1")))
    keys = (new_key().public_key(), CA_KEY.public_key())
    assert read_statement(sign_statement(rows, CA_KEY), keys) == rows


def test_a_gateways_own_key_signs_no_statement() -> None:
    forged = sign_statement((row(),), new_key())
    with pytest.raises(StatementRefused):
        read_statement(forged, (CA_KEY.public_key(),))


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "a.b.c",
        sign_statement((row(),), CA_KEY)[:-4],
        jwt.encode({"revoked": []}, CA_KEY, "ES256"),
        jwt.encode({"revoked": 7}, CA_KEY, "ES256", {"typ": "revoked-services+jwt"}),
        jwt.encode({"revoked": [{}]}, CA_KEY, "ES256", {"typ": "revoked-services+jwt"}),
        jwt.encode({"revoked": []}, "x" * 32, "HS256", {"typ": "revoked-services+jwt"}),
        jwt.encode({"revoked": []}, "", "none", {"typ": "revoked-services+jwt"}),
    ],
)
def test_anything_else_is_refused(statement: str) -> None:
    with pytest.raises(StatementRefused):
        read_statement(statement, (CA_KEY.public_key(),))


def test_the_largest_statement_fits_a_frame_with_a_certificate() -> None:
    rows = tuple(row(GatewayIdentity(f"{number:063}")) for number in range(MAX_ROWS))
    services = Services(revoked=sign_statement(rows, CA_KEY), certificate="x" * 4096)
    assert len(encode_control(services)) <= MAX_PAYLOAD_BYTES
    assert read_statement(services.revoked, (CA_KEY.public_key(),)) == rows
