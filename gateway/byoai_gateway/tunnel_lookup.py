"""What the data path asks of tunnels: which may be used, who answers there, and with what key.

It only reads. A tunnel that is revoked is not there, nor is an agent that is locked.
"""

from sqlalchemy import func, select

from byoai_gateway.authentication_keys import AuthenticationKeys
from byoai_gateway.availability import Availability
from byoai_gateway.clock import Clock
from byoai_gateway.database import Database
from byoai_gateway.refusals import tunnel_revoked
from byoai_gateway.schema import agents, tunnels
from byoai_gateway.tunnel_rows import NEWEST_FIRST, Tunnel, is_owned, is_usable, tunnel_from
from byoai_shared.secret import Secret


class TunnelLookup:
    """Finds tunnels in the database."""

    def __init__(self, database: Database, keys: AuthenticationKeys, clock: Clock) -> None:
        self._database = database
        self._keys = keys
        self._clock = clock

    @property
    def availability(self) -> Availability:
        """Whether the database answers."""
        return self._database.availability

    async def usable_of(self, user_id: str) -> list[Tunnel]:
        """A user's tunnels, the newest first."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(tunnels).where(is_owned(user_id)).order_by(*NEWEST_FIRST)
            )
            return [tunnel_from(row) for row in rows]

    async def pinned_certificates(self, tunnel_id: str) -> tuple[bytes, ...]:
        """The end-to-end certificates (PEM) that count as this tunnel, and no others."""
        async with self._database.reading() as connection:
            rows = await connection.execute(
                select(agents.c.end_to_end_pem, agents.c.previous_end_to_end_pem)
                .join(tunnels, tunnels.c.tunnel_id == agents.c.tunnel_id)
                .where(
                    is_usable(tunnel_id),
                    agents.c.removed_at.is_(None),
                    agents.c.locked_at.is_(None),
                )
                .order_by(agents.c.agent_id)
            )
            return tuple(pem.encode("ascii") for row in rows for pem in row if pem is not None)

    async def has_agents(self, tunnel_id: str) -> bool:
        """Whether any agent has joined the tunnel and was not removed since, locked or not."""
        async with self._database.reading() as connection:
            joined = await connection.scalar(
                select(func.count())
                .select_from(agents)
                .where(agents.c.tunnel_id == tunnel_id, agents.c.removed_at.is_(None))
            )
            return bool(joined)

    async def authentication_key(self, tunnel_id: str) -> Secret:
        """The key to send to a tunnel's agents now.

        Raises:
            Refusal: the tunnel was revoked.
        """
        async with self._database.reading() as connection:
            usable = await connection.scalar(
                select(func.count()).select_from(tunnels).where(is_usable(tunnel_id))
            )
            if not usable:
                raise tunnel_revoked()
            force = await self._keys.in_force(connection, tunnel_id, self._clock())
            return await self._keys.open(connection, tunnel_id, force.sent)
