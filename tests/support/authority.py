"""A certificate authority for tests, as strict about names as the gateway's own."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from byoai_shared.identity import GatewayIdentity, Identity, identity_uri
from byoai_shared.keys import key_to_pem, new_key
from byoai_shared.tls import Credentials, server_context

LOOPBACK = ("127.0.0.1", "localhost")


class Authority:
    """A CA with a fresh key; good for a day."""

    def __init__(self, name: str) -> None:
        self._key = new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key(), timedelta(days=1))
        certificate = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).sign(self._key, hashes.SHA256())
        self.pem = certificate.public_bytes(Encoding.PEM)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + lifetime)
        )

    def certificate(
        self,
        identity: Identity,
        key: ec.EllipticCurvePrivateKey,
        *,
        hosts: Sequence[str] = LOOPBACK,
        lifetime: timedelta = timedelta(days=1),
    ) -> x509.Certificate:
        """A certificate of `key` for `identity`, usable at both ends."""
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity_uri(identity))]
        names += [general_name(host) for host in hosts]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        return (
            self._builder(x509.Name([]), key.public_key(), lifetime)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def credentials(self, identity: Identity) -> Credentials:
        """A fresh key and its certificate."""
        key = new_key()
        certificate = self.certificate(identity, key)
        return Credentials(certificate.public_bytes(Encoding.PEM), key_to_pem(key))


def general_name(host: str) -> x509.GeneralName:
    """A host name or an address."""
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def write_relay_files(
    directory: Path, credentials: Credentials, *, agents: Authority, services: Authority
) -> None:
    """The four files that a relay is given."""
    (directory / "relay.pem").write_bytes(credentials.certificate_pem)
    (directory / "relay-key.pem").write_bytes(credentials.key_pem)
    (directory / "relay-key.pem").chmod(0o600)
    (directory / "agents-ca.pem").write_bytes(agents.pem)
    (directory / "services-ca.pem").write_bytes(services.pem)


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, named as a gateway, and that of a client that trusts it."""
    authority = Authority("services")
    server = server_context(authority.credentials(GatewayIdentity("gateway-1")), client_ca_pem=None)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=authority.pem.decode())
    return server, client
