"""Tries the relays' listeners, and reads the gateway's own certificates.

A relay proves who it is when the gateway connects with its own certificate; here only a TLS
handshake is made, nothing is sent, and what is presented is looked at.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from byoai_gateway.config import ListenSection, RelaySection
from byoai_gateway.control_plane import read_private_ca
from byoai_gateway.preflight.findings import Finding, Verdict, doubtful, failed, passed
from byoai_gateway.server import https_context
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.identity import RelayIdentity, certificate_identity

_CONNECT_S: Final = 5.0
_SOON_S: Final = 14 * 86_400.0
_WSS_PORT: Final = 443


async def check_relay(relay: RelaySection) -> Sequence[Finding]:
    """Connect to both listeners of a relay."""
    of_gateways, of_agents = await asyncio.gather(
        _check_listener("relays.gateway_address", relay.gateway_address),
        _check_listener("relays.address", relay.address),
    )
    if of_agents.verdict is Verdict.FAILED:
        # Agents come from outside: that there is no way to it from here proves nothing.
        fix = "see that agents can reach this address from where they are"
        of_agents = doubtful(of_agents.setting, of_agents.message, fix)
    return (of_gateways, of_agents)


async def check_certificates(section: ListenSection) -> Sequence[Finding]:
    """Read the files of the public listener's certificate."""
    found: list[Finding] = []
    if section.certificate is not None:
        found.append(_check_certificate(section, section.certificate))
    if section.ca is not None:
        try:
            read_private_ca(section.ca)
        except ConfigError as error:
            found.append(failed("listen.ca", str(error), "correct the file, or listen.ca"))
        else:
            found.append(_of_dates("listen.ca", section.ca))
    return tuple(found)


async def _check_listener(setting: str, address: str) -> Finding:
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or _WSS_PORT
    try:
        async with asyncio.timeout(_CONNECT_S):
            presented = await _presented(host, port)
    except socket.gaierror:
        fix = f"check the host name in {setting}, and this host's DNS"
        return failed(setting, f"{address}: the host name does not resolve", fix)
    except (ssl.SSLError, ConnectionResetError):
        fix = "check that the port is the relay's, and no proxy that ends TLS is before it"
        return failed(setting, f"{address}: the TLS handshake failed", fix)
    except ConnectionRefusedError:
        fix = "start the relay, or check host and port"
        return failed(setting, f"{address}: the connection is refused", fix)
    except TimeoutError:
        fix = "check the host, the port and the firewall"
        return failed(setting, f"{address}: no answer within {_CONNECT_S:g} s", fix)
    except OSError as error:
        fix = "check the host, the port and the network"
        return failed(setting, f"{address}: no connection ({type(error).__name__})", fix)
    return _of_presented(setting, address, presented)


async def _presented(host: str, port: int) -> bytes:
    """Return the certificate that a listener presents (DER)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # see the module: nothing is sent, nothing believed
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    session: ssl.SSLObject = writer.get_extra_info("ssl_object")
    presented = session.getpeercert(binary_form=True) or b""
    writer.transport.abort()
    return presented


def _of_presented(setting: str, address: str, presented: bytes) -> Finding:
    fix = "give the address of a relay; its certificate comes from issue-relay-certificate"
    try:
        identity = certificate_identity(presented)
        expires_at = x509.load_der_x509_certificate(presented).not_valid_after_utc.timestamp()
    except (ByoaiError, ValueError):
        return failed(setting, f"{address}: the server there is not a relay", fix)
    if not isinstance(identity, RelayIdentity):
        return failed(setting, f"{address}: the server there is not a relay", fix)
    if expires_at <= time.time():
        renew = f"issue a new one: byoai-gateway issue-relay-certificate {identity.name}"
        return failed(setting, f"{address}: the relay's certificate has expired", renew)
    return passed(setting, f"{address}: the relay {identity.name} answers")


def _check_certificate(section: ListenSection, certificate: Path) -> Finding:
    setting = "listen.certificate"
    try:
        https_context(section)
    except ConfigError as error:
        fix = "give a PEM certificate chain, and the private key that belongs to it"
        return failed(setting, str(error), fix)
    return _of_dates(setting, certificate)


def _of_dates(setting: str, path: Path) -> Finding:
    (certificate, *_) = x509.load_pem_x509_certificates(path.read_bytes())
    left_s = certificate.not_valid_after_utc.timestamp() - time.time()
    day = certificate.not_valid_after_utc.strftime("%Y-%m-%d")
    if left_s <= 0:
        return failed(setting, f"{path} expired on {day}", "renew the certificate")
    if left_s < _SOON_S:
        return doubtful(setting, f"{path} expires on {day}", "renew the certificate")
    return passed(setting, f"{path} is valid until {day}")
