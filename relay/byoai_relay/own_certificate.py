"""The relay's own certificate: read from its files, renewed by gateways, put into the listeners.

A gateway sends a new certificate for the key that the relay presented, when half of the old one's
life is over. It is taken if the services CA signed it for this relay and this key, used for new
links at once, and written over the old file; the key stays where it is. Where the file cannot be
written the new certificate is used until the relay stops. A certificate that is changed on disk by
hand is taken as well: this is the way back for a relay that was down for too long.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from byoai_relay.config import IdentityFiles
from byoai_shared.certificate_life import CertificateLife, life_of
from byoai_shared.errors import ByoaiError, ConfigError
from byoai_shared.identity import RelayIdentity, certificate_identity
from byoai_shared.logs import get_logger
from byoai_shared.private_files import (
    check_directory,
    read_key_file,
    remove_leftovers,
    replace_file,
)
from byoai_shared.tls import Credentials, replace_credentials, server_context

CERTIFICATE_CHECK_S: Final = 30.0
WARNED_AGAIN_S: Final = 3600.0

log = get_logger("relay")


class OwnCertificate:
    """The relay's credentials, and the contexts of both listeners, which follow them."""

    def __init__(self, files: IdentityFiles, unix_now: Callable[[], float] = time.time) -> None:
        self._files = files
        self._unix_now = unix_now
        self._warned_at = float("-inf")
        credentials = read_credentials(files.certificate, files.key)
        self.agents_context = _listeners_context(files, credentials, files.agents_ca)
        self.gateways_context = _listeners_context(files, credentials, files.services_ca)
        self.services_ca = tuple(x509.load_pem_x509_certificates(read_file(files.services_ca)))
        self._seen: int = files.certificate.stat().st_mtime_ns
        self._key_pem = credentials.key_pem
        self._leaf = _leaf(credentials.certificate_pem)
        self.name = relay_name(self._leaf)
        self._require_unexpired()

    @property
    def life(self) -> CertificateLife:
        """The times of the certificate in use."""
        return life_of(self._leaf)

    @property
    def services_ca_keys(self) -> tuple[ec.EllipticCurvePublicKey, ...]:
        """The keys of the CAs that may sign statements about services."""
        keys = (certificate.public_key() for certificate in self.services_ca)
        return tuple(key for key in keys if isinstance(key, ec.EllipticCurvePublicKey))

    def take(self, pem: str) -> None:
        """Use a certificate that a gateway sent, unless the one in use is as young."""
        if self._unix_now() < self.life.renew_at:
            return  # another gateway was sooner
        try:
            leaf = _leaf(pem.encode("ascii", "replace"))
            self._require_ours(leaf)
            self._use(Credentials(pem.encode("ascii"), self._key_pem))
        except ByoaiError as error:
            log.warning("certificate.refused", reason=str(error), next="kept the old one")
            return
        self._leaf = leaf
        log.info("certificate.renewed", expires_at=_date(self.life))
        self._save(pem.encode("ascii"))

    async def watch(self) -> None:
        """Follow the files, and warn when no gateway renews the certificate; never returns."""
        remove_leftovers(self._files.certificate)
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_S)
            self.look()

    def look(self) -> None:
        """Take a certificate that was changed on disk into use for new links."""
        files = self._files
        try:
            changed = files.certificate.stat().st_mtime_ns
            if changed != self._seen:
                credentials = read_credentials(files.certificate, files.key)
                leaf = _leaf(credentials.certificate_pem)
                self._use(credentials)
                self._seen, self._key_pem, self._leaf = changed, credentials.key_pem, leaf
                log.info("certificate.reloaded", expires_at=_date(self.life))
        except (OSError, ByoaiError) as error:
            log.warning("certificate.reload_failed", reason=str(error), next="kept the old one")
        self._warn_if_late()

    def _use(self, credentials: Credentials) -> None:
        # Tried on a context of its own: a pair that does not fit would spoil the first listener.
        server_context(credentials, client_ca_pem=None)
        for context in (self.agents_context, self.gateways_context):
            replace_credentials(context, credentials)

    def _save(self, pem: bytes) -> None:
        try:
            replace_file(self._files.certificate, pem)
            self._seen = self._files.certificate.stat().st_mtime_ns
        except OSError as error:
            log.warning(
                "certificate.not_saved",
                path=str(self._files.certificate),
                reason=error.strerror,
                next="it is used until the relay stops; let the relay write this file, or a start "
                "finds the old certificate",
            )

    def _require_ours(self, leaf: x509.Certificate) -> None:
        """Refuse a certificate that is not a younger one of this relay and its key."""
        if _spki(leaf) != _spki(self._leaf) or relay_name(leaf) != self.name:
            raise ConfigError("a gateway sent a certificate of another relay or key")
        life = life_of(leaf)
        is_older = leaf == self._leaf or life.issued_ms < self.life.issued_ms
        if is_older or life.expires_at <= self._unix_now():
            raise ConfigError("a gateway sent a certificate that is no younger, or has expired")
        if not any(_is_signed_by(leaf, authority) for authority in self.services_ca):
            raise ConfigError("a gateway sent a certificate that the services CA did not sign")

    def _require_unexpired(self) -> None:
        if self._unix_now() >= self.life.expires_at:
            raise ConfigError(
                f"the certificate in {self._files.certificate} expired on {_date(self.life)}; "
                f"make a new one on a gateway's host (byoai-gateway issue-relay-certificate "
                f"{self.name}) and put its files in the place of the old ones"
            )

    def _warn_if_late(self) -> None:
        """Warn when a quarter of the life is left and still no gateway has renewed it."""
        now, life = self._unix_now(), self.life
        late_at = (life.renew_at + life.expires_at) / 2
        if now < late_at or now - self._warned_at < WARNED_AGAIN_S:
            return
        self._warned_at = now
        log.warning(
            "certificate.not_renewed",
            expires_at=_date(life),
            reason="no gateway has sent a new certificate",
            next="all links end when it expires; see that a gateway of the same version connects, "
            "or replace the files (byoai-gateway issue-relay-certificate)",
        )


def read_file(path: Path) -> bytes:
    """Read a PEM file.

    Raises:
        ConfigError: it cannot be read.
    """
    return _read(path, Path.read_bytes)


def read_credentials(certificate: Path, key: Path) -> Credentials:
    """Read the relay's certificate and key.

    Raises:
        NotPrivate: the key, or the directory that it is in, is open to other accounts.
        ConfigError: one of them cannot be read.
    """
    key_pem = _read(key, read_key_file)
    check_directory(key.absolute().parent, is_only_read=True)
    return Credentials(certificate_pem=read_file(certificate), key_pem=key_pem)


def relay_name(certificate: x509.Certificate) -> str:
    """Take the relay's name from its own certificate.

    Raises:
        ConfigError: the certificate is not a relay's.
    """
    named = certificate_identity(certificate.public_bytes(Encoding.DER))
    if not isinstance(named, RelayIdentity):
        raise ConfigError(f"the certificate names {named}, not a relay")
    return named.name


def _read(path: Path, read: Callable[[Path], bytes]) -> bytes:
    try:
        return read(path)
    except OSError as error:
        raise ConfigError(
            f"reading {path} failed: {error.strerror}; set it in [identity], or make the "
            "files with `byoai-gateway issue-relay-certificate`"
        ) from error


def _listeners_context(
    files: IdentityFiles, credentials: Credentials, client_ca: Path
) -> ssl.SSLContext:
    """Make the context of a listener that takes clients of one CA.

    Raises:
        ConfigError: the files are not what they should be; it names them.
    """
    client_ca_pem = read_file(client_ca)
    try:
        return server_context(credentials, client_ca_pem=client_ca_pem)
    except ConfigError as error:
        raise ConfigError(
            f"{error} (read from {files.certificate}, {files.key} and {client_ca}); set the right "
            "ones in [identity], or make new ones with `byoai-gateway issue-relay-certificate`"
        ) from error


def _leaf(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError as error:
        raise ConfigError("the certificate is not PEM") from error


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_signed_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _date(life: CertificateLife) -> str:
    return datetime.fromtimestamp(life.expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
