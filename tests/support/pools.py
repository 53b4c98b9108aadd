"""What tests do with a pool again and again."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypeVar

from byoai_shared.http1.client import ClientConnection
from byoai_shared.http1.pool import Pool

K = TypeVar("K")


@asynccontextmanager
async def lease(pool: Pool[K], key: K) -> AsyncGenerator[ClientConnection]:
    """Acquire for a block and release after it, however it ends."""
    connection = await pool.acquire(key)
    try:
        yield connection
    finally:
        pool.release(key, connection)


async def warm(pool: Pool[K], key: K, count: int = 1) -> None:
    """Leave that many idle."""
    for connection in [await pool.acquire(key) for _ in range(count)]:
        pool.release(key, connection)


def idle(pool: Pool[K]) -> list[ClientConnection]:
    """Those that it keeps, by looking at each when asked which of them are unwanted."""
    kept: list[ClientConnection] = []

    def look(connection: ClientConnection) -> bool:
        kept.append(connection)
        return False

    pool.close_idle(look)
    return kept
