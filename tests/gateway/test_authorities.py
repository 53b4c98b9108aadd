from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from byoai_gateway.authorities import Authority, Subject, host_name
from byoai_gateway.control_plane import ControlPlane
from byoai_shared.errors import ConfigError
from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    RelayIdentity,
    certificate_identity,
    certificate_thumbprint,
)
from byoai_shared.keys import new_key

AGENT = AgentIdentity("a" * 26, "one")


def issue(
    authority: Authority, identity: Identity, now: float, hosts: tuple[str, ...] = ()
) -> x509.Certificate:
    subject = Subject(identity, new_key().public_key(), 86_400, hosts)
    issued = authority.issue(subject, now)
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert issued.thumbprint == certificate_thumbprint(certificate.public_bytes(Encoding.DER))
    assert issued.expires_at == certificate.not_valid_after_utc.timestamp()
    return certificate


def is_trusted(certificate: x509.Certificate, authority: Authority, clock: float) -> bool:
    root = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    at = datetime.fromtimestamp(clock, UTC)
    verifier = PolicyBuilder().store(Store([root])).time(at).build_client_verifier()
    try:
        verifier.verify(certificate, [])
    except VerificationError:
        return False
    return True


async def test_each_authority_vouches_for_its_own_only(control: ControlPlane) -> None:
    now = control.clock()
    agents, services = control.authorities.agents, control.authorities.services
    agent = issue(agents, AGENT, now)
    gateway = issue(services, GatewayIdentity("g"), now)
    assert is_trusted(agent, agents, now)
    assert is_trusted(gateway, services, now)
    assert not is_trusted(agent, services, now)
    assert not is_trusted(gateway, agents, now)


async def test_a_certificate_names_its_holder_and_cannot_sign(control: ControlPlane) -> None:
    certificate = issue(control.authorities.agents, AGENT, control.clock())
    assert certificate_identity(certificate.public_bytes(Encoding.DER)) == AGENT
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign


async def test_who_dials_may_not_be_dialled_and_the_other_way_round(
    control: ControlPlane,
) -> None:
    authorities, now = control.authorities, control.clock()
    relay = issue(authorities.services, RelayIdentity("r"), now, hosts=("127.0.0.1", "r.example"))
    purposes = {
        "agent": issue(authorities.agents, AGENT, now),
        "gateway": issue(authorities.services, GatewayIdentity("g"), now),
        "relay": relay,
    }
    found = {
        name: list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        for name, certificate in purposes.items()
    }
    client, server = [ExtendedKeyUsageOID.CLIENT_AUTH], [ExtendedKeyUsageOID.SERVER_AUTH]
    assert found == {"agent": client, "gateway": client, "relay": server}
    names = relay.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["r.example"]
    assert [str(it) for it in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


async def test_a_certificate_begins_early_but_a_short_one_not_by_much(
    control: ControlPlane,
) -> None:
    now = control.clock()
    subject = Subject(AGENT, new_key().public_key(), 20)
    issued = control.authorities.agents.issue(subject, now)
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(
        seconds=21
    )


async def test_the_authorities_cannot_make_others(control: ControlPlane) -> None:
    for authority in (control.authorities.agents, control.authorities.services):
        root = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
        constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (constraints.ca, constraints.path_length) == (True, 0)
        assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)


def test_a_host_that_is_neither_name_nor_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="é"):
        host_name("é.example")
