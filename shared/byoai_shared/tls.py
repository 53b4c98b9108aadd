"""TLS contexts, made by hand: TLS 1.3 only, no session tickets, no key log.

`ssl.create_default_context` is avoided on purpose: it honours `SSLKEYLOGFILE`, and with it
anyone who can set an environment variable could read every session. Tickets are off because a
resumed TLS 1.3 session skips the check of an expired client certificate.
"""

import os
import secrets
import ssl
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.tls_errors import CERTIFICATE_ALERTS, TlsPeerRefusedCertificate


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate (PEM, leaf first) and its private key (PEM, not encrypted)."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


def server_context(
    credentials: Credentials, *, client_ca_pem: bytes | None, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """Make a server's context; with `client_ca_pem` it takes only clients that this CA signed.

    Raises:
        ConfigError: a certificate or key cannot be used.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_SERVER, alpn)
    context.num_tickets = 0
    replace_credentials(context, credentials)
    if client_ca_pem is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, client_ca_pem)
    return context


def client_context(
    *,
    server_ca_pem: bytes | None,
    credentials: Credentials | None = None,
    alpn: Sequence[str] = (),
    check_hostname: bool = True,
) -> ssl.SSLContext:
    """Make a client's context; without `server_ca_pem` it trusts what the system trusts.

    Raises:
        ConfigError: a certificate or key cannot be used.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT, alpn)
    context.check_hostname = check_hostname
    # RFC 9525 section 2: a host name stands in the SAN; the common name is prose.
    context.hostname_checks_common_name = False
    if server_ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, server_ca_pem)
    if credentials is not None:
        replace_credentials(context, credentials)
    return context


def pinned_client_context(
    pinned_pems: Sequence[bytes], credentials: Credentials, *, alpn: Sequence[str] = ("http/1.1",)
) -> ssl.SSLContext:
    """Make a client's context that trusts these certificates, and nobody else at all.

    Raises:
        ConfigError: a certificate or key cannot be used.
    """
    pins = b"\n".join(pinned_pems)
    return client_context(server_ca_pem=pins, credentials=credentials, alpn=alpn)


def replace_credentials(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Use a certificate for handshakes from now on; sessions that stand are not touched.

    Raises:
        ConfigError: certificate and key do not fit each other, or cannot be read.
        ByoaiError: there is no place for a temporary file; trying again may help.
    """
    key = _key_of(credentials)
    try:
        if not _loaded_from_memory(context, credentials):
            _load_from_disk(context, credentials, key)
    except ssl.SSLError as error:
        reason = getattr(error, "reason", None) or "the certificate is not PEM"
        reason = "they do not belong together" if reason == "KEY_VALUES_MISMATCH" else reason
        raise _unusable(reason) from error
    except OSError as error:
        raise ByoaiError(
            "the certificate and its key cannot be loaded: a temporary file cannot be written "
            f"({error.strerror}); check the disk of $TMPDIR"
        ) from error


def _loaded_from_memory(context: ssl.SSLContext, credentials: Credentials) -> bool:
    """Load credentials from a file in memory; False where the system has no such files.

    The ssl module reads key files only. This kind never reaches a disk, so its key need not be
    encrypted, which would take twice as long as all the rest.
    """
    # Python lacks the call where it was built for an older C library, as uv's builds are.
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return False
    try:
        with os.fdopen(os.memfd_create("byoai"), "wb") as file:
            file.write(_joined(credentials.key_pem, credentials.certificate_pem))
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password=b"")
    except ssl.SSLError:
        raise
    except OSError:  # a sandbox forbids it, or has no /proc
        return False
    return True


def _load_from_disk(
    context: ssl.SSLContext, credentials: Credentials, key: PrivateKeyTypes
) -> None:
    """Load credentials from a file that is removed at once, with the key encrypted.

    The passphrase is never written: what a SIGKILL leaves behind, or a disk keeps, tells nothing.
    """
    passphrase = secrets.token_hex(32).encode("ascii")
    encryption = BestAvailableEncryption(passphrase)
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    descriptor, name = tempfile.mkstemp(prefix="byoai-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_joined(sealed, credentials.certificate_pem))
        context.load_cert_chain(name, password=passphrase)
    finally:
        with suppress(OSError):
            Path(name).unlink()


def _joined(key_pem: bytes, certificate_pem: bytes) -> bytes:
    return key_pem.rstrip() + b"\n" + certificate_pem


def _key_of(credentials: Credentials) -> PrivateKeyTypes:
    """Read the private key, so that what is wrong with it gets a better sentence than OpenSSL's."""
    try:
        return load_pem_private_key(credentials.key_pem, None)
    except TypeError as error:
        raise _unusable("the key is encrypted; give it without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unusable("the key is not a private key in PEM") from error


def _unusable(reason: str) -> ConfigError:
    return ConfigError(f"the certificate and its key cannot be used: {reason}")


def peer_refused_us(error: BaseException) -> bool:
    """Say whether an error, or what caused it, means that the peer refused our certificate.

    A TLS 1.3 client learns it only at its first read, as an alert (RFC 8446 section 6.2).
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TlsPeerRefusedCertificate):
            return True
        # Not every SSLError has a reason, whatever its annotation says.
        if isinstance(cause, ssl.SSLError) and getattr(cause, "reason", "") in CERTIFICATE_ALERTS:
            return True
        cause = cause.__cause__
    return False


def _bare_context(protocol: int, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # A CA of ours may be an intermediate of the operator's; trust it without its own root.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _trust(context: ssl.SSLContext, ca_pem: bytes) -> None:
    try:
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError("the CA certificates to trust are not PEM") from error
