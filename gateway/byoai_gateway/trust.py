"""What relays are to believe: the snapshot that the gateway sends over its links.

It is read from the database whole and carries the revision of its last change. In one process a
change is published by whoever made it; changes of other processes (another gateway, the command
line) are found by asking for the revision, one tiny question every few seconds.
"""

import asyncio

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.clock import Clock
from byoai_gateway.config import TokensSection
from byoai_gateway.database import Database
from byoai_gateway.revision import trust_changed, trust_revision
from byoai_gateway.schema import denied_certificates, signing_keys, tunnels
from byoai_shared.protocol.control import Trust


class TrustSource:
    """Gives the snapshot in force, and wakes those who wait for the next."""

    def __init__(self, database: Database, rules: TokensSection, clock: Clock) -> None:
        self._database = database
        self._rules = rules
        self._clock = clock
        self._snapshot = Trust(revision=0, issuer=rules.issuer, audience=rules.audience)
        self._refreshing = asyncio.Lock()
        self._newer = asyncio.Event()

    async def current(self) -> Trust:
        """The snapshot in force, as of the last `refresh`."""
        return self._snapshot

    async def changed(self, revision: int) -> Trust:
        """Wait for a snapshot newer than `revision`."""
        while self._snapshot.revision <= revision:
            await self._newer.wait()
        return self._snapshot

    async def refresh(self) -> bool:
        """Read the snapshot again if its revision moved; answers whether it did."""
        async with self._refreshing:
            async with self._database.reading() as connection:
                if await trust_revision(connection) == self._snapshot.revision:
                    return False
                snapshot = await self._read(connection)
            self._snapshot = snapshot
            # An event each: those who wait for this one wake, later comers wait for the next.
            woken, self._newer = self._newer, asyncio.Event()
            woken.set()
            return True

    async def forget_expired(self) -> None:
        """Drop denials of what has expired anyway, so that the lists stay short."""
        now = int(self._clock())
        async with self._database.writing() as connection:
            certificates = await connection.execute(
                delete(denied_certificates).where(denied_certificates.c.denied_until < now)
            )
            revoked = await connection.execute(
                update(tunnels).where(tunnels.c.denied_until < now).values(denied_until=None)
            )
            if certificates.rowcount or revoked.rowcount:
                await trust_changed(connection, now)

    async def _read(self, connection: AsyncConnection) -> Trust:
        denied = tunnels.c.denied_until.is_not(None)
        return Trust(
            revision=await trust_revision(connection),
            issuer=self._rules.issuer,
            audience=self._rules.audience,
            keys=tuple(
                await connection.scalars(
                    select(signing_keys.c.public_jwk).order_by(
                        signing_keys.c.active_from, signing_keys.c.kid
                    )
                )
            ),
            denied_tunnels=tuple(
                await connection.scalars(
                    select(tunnels.c.tunnel_id).where(denied).order_by(tunnels.c.tunnel_id)
                )
            ),
            denied_certificates=tuple(
                await connection.scalars(
                    select(denied_certificates.c.thumbprint).order_by(
                        denied_certificates.c.thumbprint
                    )
                )
            ),
        )
