"""A user's settings as they are stored: rows, and keys still sealed.

Nothing here opens a key: who holds the key-encryption keys may take seconds to answer, and these
functions work within transactions. Callers bring the transaction.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Row, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import schema
from byoai_gateway.preferences.preferences import Setting
from byoai_gateway.router.upstream import ProviderName
from byoai_gateway.secret_owners import LONG_USER, USER
from byoai_gateway.vault import Place

_COLUMNS: Final = {
    Setting.PROVIDER: "ai_provider",
    Setting.OPENROUTER_MODEL: "openrouter_model",
    Setting.FALLBACK: "fallback_to_default",
    Setting.SELF_HOSTED_MODEL: "self_hosted_model",
    Setting.ALWAYS_MY_MODEL: "always_use_my_model",
    Setting.TUNNEL: "tunnel_id",
    Setting.SELF_HOSTED_URL: "self_hosted_url",
}
_LONGEST_OWNER: Final = 200


def place_of(user_id: str, setting: Setting) -> Place:
    """Where a user's key is stored; ids that are too long for the column stand as their hash."""
    if len(user_id) <= _LONGEST_OWNER:
        return Place(f"{USER}{user_id}", setting.value)
    return Place(f"{LONG_USER}{hashlib.sha256(user_id.encode()).hexdigest()}", setting.value)


async def find_row(connection: AsyncConnection, user_id: str) -> Row[Any] | None:
    """The row of a user who has saved anything."""
    table = schema.preferences
    found = await connection.execute(select(table).where(table.c.user_id == user_id))
    return found.one_or_none()


async def make_row(connection: AsyncConnection, user_id: str, now: float) -> None:
    """Give a user the row of who chose nothing, unless there is one."""
    await insert_if_absent(
        connection,
        schema.preferences,
        user_id=user_id,
        ai_provider=ProviderName.DEFAULT.value,
        fallback_to_default=False,
        always_use_my_model=False,
        updated_at=int(now),
    )


async def update_row(
    connection: AsyncConnection,
    user_id: str,
    changes: Mapping[Setting, str | bool | None],
    now: float,
) -> None:
    """Store the settings that are no keys."""
    table = schema.preferences
    values: dict[str, Any] = {_COLUMNS[it]: value for it, value in changes.items()}
    await connection.execute(
        update(table).where(table.c.user_id == user_id).values(updated_at=int(now), **values)
    )


async def has_tunnel(connection: AsyncConnection, user_id: str, tunnel_id: str) -> bool:
    """Whether a tunnel is the user's, and not revoked."""
    table = schema.tunnels
    found = await connection.scalar(
        select(table.c.tunnel_id).where(
            table.c.tunnel_id == tunnel_id,
            table.c.user_id == user_id,
            table.c.revoked_at.is_(None),
        )
    )
    return found is not None


async def insert_if_absent(connection: AsyncConnection, table: Table, **values: object) -> None:
    """Insert a row unless its key is taken; SQL has no common word for it."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    await connection.execute(make(table).values(**values).on_conflict_do_nothing())
