"""The two certificate authorities, held by the gateway.

*agents* signs agents' link certificates, *services* those of relays and gateways. Each listener
trusts only the one it needs. Their keys are made at the first start and lie sealed in the
database. Nothing in a certificate comes from whoever asked for it but the public key.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.database import Database
from byoai_gateway.sealed_secrets import SealedSecrets
from byoai_gateway.secret_owners import AUTHORITY
from byoai_gateway.vault import Place
from byoai_shared.certificate_life import issue_serial
from byoai_shared.errors import ConfigError
from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    RelayIdentity,
    certificate_thumbprint,
    identity_uri,
)
from byoai_shared.keys import CLOCK_SKEW, key_from_pem, key_to_pem, new_key
from byoai_shared.revoked_services import RevokedService, sign_statement

_CA_LIFE: Final = timedelta(days=3650)
_CA_KEY: Final = "ca-key"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just signed."""

    pem: str
    thumbprint: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class Subject:
    """For whom a certificate is, and for how long."""

    identity: Identity
    public_key: ec.EllipticCurvePublicKey
    lifetime_s: float
    hosts: tuple[str, ...] = ()
    """Names and addresses a relay is reached by."""


class Authority:
    """One CA: its certificate and the key that signs."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @property
    def certificate_pem(self) -> str:
        """What those who trust this CA need."""
        return self._certificate.public_bytes(Encoding.PEM).decode("ascii")

    def issue(self, subject: Subject, now: float) -> Issued:
        """Sign a certificate.

        Its life begins a little early, for hosts whose clock is behind; but by a twentieth of
        it at most, so that the holder of a short one can still tell its age by it.
        """
        start = datetime.fromtimestamp(int(now), UTC)
        life = timedelta(seconds=int(subject.lifetime_s))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._certificate.subject)
            .public_key(subject.public_key)
            .serial_number(issue_serial(now))
            .not_valid_before(start - min(CLOCK_SKEW, life / 20))
            .not_valid_after(start + life)
            # Critical because the subject is empty (RFC 5280 section 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(_names(subject)), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(_purpose(subject.identity), critical=False)
            .add_extension(_key_id(subject.public_key), critical=False)
            .add_extension(self._authority_key_id(), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate.public_bytes(Encoding.PEM).decode("ascii"),
            certificate_thumbprint(certificate.public_bytes(Encoding.DER)),
            int((start + life).timestamp()),
        )

    def sign_revocations(self, rows: tuple[RevokedService, ...]) -> str:
        """Sign what relays are to know of services whose certificates are revoked."""
        return sign_statement(rows, self._key)

    def _authority_key_id(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


@dataclass(frozen=True, slots=True)
class Authorities:
    """Both of them."""

    agents: Authority
    services: Authority


async def open_authorities(database: Database, secrets: SealedSecrets, now: float) -> Authorities:
    """Load both authorities; make those that do not exist yet."""
    async with database.writing() as connection:
        return Authorities(
            await _open(connection, secrets, "agents", now),
            await _open(connection, secrets, "services", now),
        )


async def _open(
    connection: AsyncConnection, secrets: SealedSecrets, name: str, now: float
) -> Authority:
    place = Place(f"{AUTHORITY}{name}", _CA_KEY)
    pem: str | None = await connection.scalar(
        select(schema.authorities.c.certificate_pem).where(schema.authorities.c.name == name)
    )
    if pem is not None:
        key = key_from_pem(await secrets.get(connection, place))
        return Authority(x509.load_pem_x509_certificate(pem.encode()), key)
    key = new_key()
    authority = Authority(_self_signed(key, name, now), key)
    await connection.execute(
        insert(schema.authorities).values(name=name, certificate_pem=authority.certificate_pem)
    )
    await secrets.put(connection, place, key_to_pem(key))
    return authority


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str, now: float) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"BYOAI {name} CA")])
    start = datetime.fromtimestamp(int(now), UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(start + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_key_id(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _names(subject: Subject) -> Sequence[x509.GeneralName]:
    uri = x509.UniformResourceIdentifier(identity_uri(subject.identity))
    return [uri, *(host_name(host) for host in subject.hosts)]


def host_name(host: str) -> x509.GeneralName:
    """Read an address or a DNS name for a certificate.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"{host!r} is neither an address nor a DNS name") from error


def _purpose(identity: Identity) -> x509.ExtendedKeyUsage:
    """Agents and gateways dial; relays are dialled."""
    match identity:
        case AgentIdentity() | GatewayIdentity():
            return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        case RelayIdentity():
            return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def _key_id(key: ec.EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
