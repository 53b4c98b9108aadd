"""Make throw-away certificates for running a part by hand; see README.md beside it.

For development only: the two authorities' keys are forgotten as soon as it ends, so nothing can
be added to a set later; run it again and replace all of it. A real installation gets its
certificates from the gateway.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from byoai_shared.identity import (
    AgentIdentity,
    GatewayIdentity,
    Identity,
    RelayIdentity,
    identity_uri,
    new_tunnel_id,
    tunnel_hostname,
)
from byoai_shared.keys import key_from_pem, key_to_pem, new_key, self_signed_certificate

LIFE = timedelta(days=30)
DEFAULT_OUT = Path(__file__).parent / "out"
DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1")


def main() -> None:
    """Write a fresh set and say where."""
    parser = argparse.ArgumentParser(description="Make throw-away certificates (30 days).")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="directory to write to")
    parser.add_argument(
        "--host",
        action="append",
        default=[],
        help="one more host name or address of the relay and the gateway",
    )
    options = parser.parse_args()
    out: Path = options.out
    hosts: list[str] = options.host
    tunnel_id = make_all(out, (*DEFAULT_HOSTS, *hosts))
    print(f"wrote certificates for relay-dev, gateway-dev and tunnel {tunnel_id} to {out}")


def make_all(out: Path, hosts: Sequence[str]) -> str:
    """Write both authorities and what they sign; return the agent's tunnel id."""
    # The library calls one authority by its organisation; two need two names.
    agents = trustme.CA(organization_name="BYOAI dev agents")
    services = trustme.CA(organization_name="BYOAI dev services")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "agents-ca.pem", agents.cert_pem.bytes())
    _write(out / "services-ca.pem", services.cert_pem.bytes())
    tunnel_id = new_tunnel_id()
    _issue(out, "relay", services, RelayIdentity("relay-dev"), hosts)
    _issue(out, "gateway", services, GatewayIdentity("gateway-dev"), hosts)
    _issue(out, "agent", agents, AgentIdentity(tunnel_id, "agent-dev"), ())
    key = new_key()
    certificate = self_signed_certificate(key, tunnel_hostname(tunnel_id), LIFE)
    _write(out / "agent-end-to-end.pem", certificate)
    _write(out / "agent-end-to-end-key.pem", key_to_pem(key))
    return tunnel_id


def _issue(
    out: Path, name: str, authority: trustme.CA, identity: Identity, hosts: Sequence[str]
) -> None:
    """Sign a certificate ourselves: trustme puts no URI into a SAN."""
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    issuer_key = key_from_pem(authority.private_key_pem.bytes())
    key = new_key()
    names = [x509.UniformResourceIdentifier(identity_uri(identity)), *map(_name, hosts)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFE)
        # Critical, because the subject is empty (RFC 5280 section 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    _write(out / f"{name}.pem", certificate.public_bytes(Encoding.PEM))
    _write(out / f"{name}-key.pem", key_to_pem(key))


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, in place of one of an earlier set."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
