"""Revoking by the operator: tunnels and agents by name, or all that came since some moment.

For the hours after a restore, when what users revoked since the backup is active again, and for
incidents. It works on the database; running gateways publish it within a second.
"""

from collections.abc import AsyncGenerator, Iterable

from sqlalchemy import select

from byoai_gateway.audit import Action
from byoai_gateway.database import Database
from byoai_gateway.registry import Registry
from byoai_gateway.schema import agents, tunnels
from byoai_shared.protocol.trust import agent_subject


class OperatorRevocation:
    """Revokes what is named, of any user."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database = database
        self._registry = registry

    async def since(self, moment: float) -> list[str]:
        """Name the tunnels that were registered since a moment, and agents that joined others."""
        async with self._database.reading() as connection:
            new_tunnels = await connection.scalars(
                select(tunnels.c.tunnel_id)
                .where(tunnels.c.created_at >= int(moment), tunnels.c.revoked_at.is_(None))
                .order_by(tunnels.c.created_at, tunnels.c.tunnel_id)
            )
            new_agents = await connection.execute(
                select(agents.c.tunnel_id, agents.c.agent_id)
                .join(tunnels, tunnels.c.tunnel_id == agents.c.tunnel_id)
                .where(
                    agents.c.enrolled_at >= int(moment),
                    agents.c.removed_at.is_(None),
                    tunnels.c.created_at < int(moment),
                    tunnels.c.revoked_at.is_(None),
                )
                .order_by(agents.c.enrolled_at, agents.c.agent_id)
            )
            return [*new_tunnels, *(agent_subject(it.tunnel_id, it.agent_id) for it in new_agents)]

    async def revoke(self, names: Iterable[str]) -> AsyncGenerator[tuple[str, bool]]:
        """Revoke each `TUNNEL` or `TUNNEL/AGENT`; yield it, and whether it was active."""
        for name in names:
            tunnel_id, _, agent_id = name.partition("/")
            owner = await self._owner(tunnel_id, agent_id)
            if owner is None:
                yield name, False
                continue
            if agent_id:
                action = Action.AGENT_REMOVED_BY_OPERATOR
                await self._registry.remove_agent(owner, tunnel_id, agent_id, action)
            else:
                action = Action.TUNNEL_REVOKED_BY_OPERATOR
                await self._registry.revoke(owner, tunnel_id, action)
            yield name, True

    async def _owner(self, tunnel_id: str, agent_id: str) -> str | None:
        """Whose it is; None if it is not active."""
        query = select(tunnels.c.user_id).where(
            tunnels.c.tunnel_id == tunnel_id, tunnels.c.revoked_at.is_(None)
        )
        if agent_id:
            query = query.join(agents, agents.c.tunnel_id == tunnels.c.tunnel_id).where(
                agents.c.agent_id == agent_id, agents.c.removed_at.is_(None)
            )
        async with self._database.reading() as connection:
            owner: str | None = await connection.scalar(query)
        return owner
