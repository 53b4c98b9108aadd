"""Certificates of relays and gateways: renewed for relays, revoked by an operator's command.

Revocations stand in the database, one row for each name. A gateway reads them every second, so that
a command takes effect everywhere within seconds: relays get them as a statement that the services
CA signed, and the gateway itself refuses a relay whose certificate was revoked.
"""

import asyncio
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.audit import Action, Audit
from byoai_gateway.authorities import Authority, Subject
from byoai_gateway.clock import Clock
from byoai_gateway.database import Database
from byoai_gateway.schema import revoked_services
from byoai_shared.certificate_life import life_of
from byoai_shared.errors import ConfigError
from byoai_shared.identity import GatewayIdentity, RelayIdentity, certificate_identity, identity_uri
from byoai_shared.logs import get_logger
from byoai_shared.revoked_services import MAX_ROWS, RevokedService, RevokedServices

_LONGEST_EVER_S: Final = 397 * 86_400
"""How long a certificate of an earlier version lived at most: a revocation is kept as long."""

log = get_logger("gateway")


class ServiceCertificates:
    """What links need to know of services' certificates; see `byoai_gateway.relay_links`."""

    def __init__(
        self, database: Database, authority: Authority, lifetime_s: float, clock: Clock
    ) -> None:
        self._database = database
        self._authority = authority
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._revoked = RevokedServices()
        self._rows: tuple[RevokedService, ...] = ()
        self._changed = asyncio.Event()
        self.statement = ""
        """What relays are given; empty while nothing is revoked."""

    def denies(self, certificate: bytes) -> bool:
        """Whether a certificate (DER) was revoked."""
        return self._revoked.denies(certificate)

    def renewed(self, certificate: bytes) -> str:
        """Return a new certificate (PEM) for a relay's key and names; empty if it is too soon."""
        presented = x509.load_der_x509_certificate(certificate)
        identity, key = certificate_identity(certificate), presented.public_key()
        now = self._clock()
        is_due = now >= life_of(presented).renew_at and not self.denies(certificate)
        if not (
            is_due
            and isinstance(identity, RelayIdentity)
            and isinstance(key, ec.EllipticCurvePublicKey)
        ):
            return ""
        log.info("relay.certificate_renewed", name=identity.name)
        subject = Subject(identity, key, self._lifetime_s, _hosts(presented))
        return self._authority.issue(subject, now).pem

    async def changed(self) -> None:
        """Wait for the next revocation."""
        await self._changed.wait()

    async def refresh(self) -> None:
        """Read the revocations; wake those who wait if there are others than before."""
        async with self._database.reading() as connection:
            rows = await current_revocations(connection, self._clock())
        if rows == self._rows:
            return
        self._rows = rows
        self._revoked.add(rows, self._clock())
        self.statement = self._authority.sign_revocations(rows) if rows else ""
        woken, self._changed = self._changed, asyncio.Event()
        woken.set()


async def current_revocations(
    connection: AsyncConnection, now: float
) -> tuple[RevokedService, ...]:
    """Read the revocations that have not expired, by name."""
    found = await connection.execute(
        select(revoked_services)
        .where(revoked_services.c.expires_at > int(now))
        .order_by(revoked_services.c.service)
    )
    return tuple(RevokedService(row.service, row.issued_until_ms, row.expires_at) for row in found)


async def revoke_service(
    database: Database, audit: Audit, identity: GatewayIdentity | RelayIdentity, now: float
) -> RevokedService:
    """Revoke every certificate that a service has had until now.

    Raises:
        ConfigError: too many services are revoked already.
    """
    row = RevokedService(identity_uri(identity), int(now * 1000), int(now + _LONGEST_EVER_S))
    table = revoked_services.c
    async with database.writing() as connection:
        await connection.execute(
            delete(revoked_services).where(
                or_(table.service == row.service, table.expires_at <= int(now))
            )
        )
        count = await connection.scalar(select(func.count()).select_from(revoked_services))
        if (count or 0) >= MAX_ROWS:
            raise ConfigError(f"{MAX_ROWS} services are revoked already, which is the limit")
        await connection.execute(
            insert(revoked_services).values(
                service=row.service,
                issued_until_ms=row.issued_until_ms,
                expires_at=row.expires_at,
            )
        )
        await audit.note(connection, None, Action.SERVICE_REVOKED, subject=row.service)
    return row


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that a relay's certificate already has."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    dns = names.get_values_for_type(x509.DNSName)
    return (*dns, *(str(address) for address in names.get_values_for_type(x509.IPAddress)))
