"""The number of the trust: it rises with every change of what relays must believe.

Kept in the database and changed in the transaction of the change itself, so that all gateways
count together and none of them can publish a change without its number. It is a time in
milliseconds, or one more than the number before where that is higher.
"""

from typing import Final

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.schema import counters

_TRUST: Final = "trust"


async def trust_revision(connection: AsyncConnection) -> int:
    """Return the number of the last change; 0 before the first."""
    return await counter(connection, _TRUST)


async def trust_changed(connection: AsyncConnection, now: float) -> int:
    """Count a change, in a writing transaction, and return its number."""
    revision = max(await trust_revision(connection) + 1, int(now * 1000))
    await set_counter(connection, _TRUST, revision)
    return revision


async def raise_revision(connection: AsyncConnection, above: int, now: float) -> None:
    """Make the number of the last change higher than `above`, in a writing transaction."""
    if await trust_revision(connection) <= above:
        await set_counter(connection, _TRUST, max(above + 1, int(now * 1000)))


async def counter(connection: AsyncConnection, name: str) -> int:
    """Return a counter; 0 before it was set."""
    value = await connection.scalar(select(counters.c.value).where(counters.c.name == name))
    return value or 0


async def set_counter(connection: AsyncConnection, name: str, value: int) -> None:
    """Set a counter, in a writing transaction: those take turns, in all gateways."""
    changed = await connection.execute(
        update(counters).where(counters.c.name == name).values(value=value)
    )
    if changed.rowcount == 0:
        await connection.execute(insert(counters).values(name=name, value=value))
