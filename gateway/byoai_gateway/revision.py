"""The number of the trust snapshot: it rises with every change of what relays must believe.

Kept in the database and changed in the transaction of the change itself, so that all gateways
count together and none of them can publish a change without its number.
"""

from sqlalchemy import case, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway.schema import counters

_TRUST = "trust"


async def trust_revision(connection: AsyncConnection) -> int:
    """The number of the last change; 0 before the first."""
    value = await connection.scalar(select(counters.c.value).where(counters.c.name == _TRUST))
    return value or 0


async def trust_changed(connection: AsyncConnection, now: float) -> None:
    """Count a change.

    Never below the clock: a database restored from a backup must not go back to numbers that
    the relays have already seen, for they keep the highest.
    """
    # One statement: two changes at once must get two numbers, or the second would go unseen.
    following = counters.c.value + 1
    counted = await connection.execute(
        update(counters)
        .where(counters.c.name == _TRUST)
        .values(value=case((following > int(now), following), else_=int(now)))
    )
    if counted.rowcount == 0:
        await connection.execute(insert(counters).values(name=_TRUST, value=int(now)))
