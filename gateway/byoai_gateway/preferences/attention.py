"""What stopped working of a user's settings: noted, shown, and forgotten when it is saved anew.

Callers bring the transaction.
"""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.preferences.preferences import Attention, Setting
from byoai_gateway.preferences.rows import insert_if_absent

TUNNEL_NOT_FOUND: Final = "tunnel_not_found"
ADDRESS_CHANGED: Final = "address_changed"
AGENT_LOCKED: Final = "agent_locked"


async def note_attention(connection: AsyncConnection, user_id: str, noted: Attention) -> None:
    """Remember why a setting does not work: the newest reason, and since when it has not."""
    table = schema.attention
    await insert_if_absent(
        connection,
        table,
        user_id=user_id,
        setting=noted.setting,
        code=noted.code,
        noticed_at=noted.since,
    )
    await connection.execute(
        update(table)
        .where(
            table.c.user_id == user_id,
            table.c.setting == noted.setting,
            table.c.code != noted.code,
        )
        .values(code=noted.code)
    )


async def attention_of(connection: AsyncConnection, user_id: str) -> tuple[Attention, ...]:
    """What was noted of a user's settings."""
    table = schema.attention
    rows = await connection.execute(
        select(table).where(table.c.user_id == user_id).order_by(table.c.setting)
    )
    return tuple(Attention(row.setting, row.code, row.noticed_at) for row in rows)


async def attention_for_tunnel(connection: AsyncConnection, row: Row[Any]) -> tuple[Attention, ...]:
    """Say that the chosen tunnel is gone, or all its agents locked, before a request fails.

    This is derived at each look and never stored: no request that works can make it false.
    """
    table, agents = schema.tunnels, schema.agents
    found = (
        await connection.execute(
            select(table.c.revoked_at).where(
                table.c.tunnel_id == row.tunnel_id, table.c.user_id == row.user_id
            )
        )
    ).one_or_none()
    if found is None or found.revoked_at is not None:
        since = row.updated_at if found is None else found.revoked_at
        return (Attention(Setting.TUNNEL, TUNNEL_NOT_FOUND, since),)
    joined, locked, since = (
        await connection.execute(
            select(
                func.count(), func.count(agents.c.locked_at), func.max(agents.c.locked_at)
            ).where(agents.c.tunnel_id == row.tunnel_id, agents.c.removed_at.is_(None))
        )
    ).one()
    if joined and locked == joined:
        return (Attention(Setting.TUNNEL, AGENT_LOCKED, since),)
    return ()


async def forget_attention(
    connection: AsyncConnection, user_id: str, settings: Iterable[str]
) -> None:
    """Forget what was noted of some settings."""
    table = schema.attention
    await connection.execute(
        delete(table).where(
            table.c.user_id == user_id, table.c.setting.in_([str(it) for it in settings])
        )
    )
