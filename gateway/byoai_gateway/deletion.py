"""Deletes rows whose time is over, some at a time, so that who else writes waits for none of it."""

from collections.abc import Callable
from typing import Final

from sqlalchemy import Column, ColumnElement, delete, select

from byoai_gateway.database import Database

BATCH: Final = 1_000
"""Rows of one transaction."""


async def delete_older(
    database: Database,
    at: Column[int],
    before: float,
    is_over: Callable[[], bool],
    *conditions: ColumnElement[bool],
) -> None:
    """Delete the rows of a table whose time `at` is before `before`; that column has an index.

    Rows that do not meet all `conditions` stay; few rows may be so old and not meet them.
    `is_over` is asked before each transaction, to stop early.
    """
    table = at.table
    (key,) = table.primary_key
    is_old = (at < int(before), *conditions)
    while not is_over():
        # Asked without the writers' turn: most of the time nothing is over.
        async with database.reading() as connection:
            query = select(key).where(*is_old).limit(BATCH)
            over = list(await connection.scalars(query))
        if over:
            async with database.writing() as connection:
                # Repeated: another writer may have replaced a row while we waited for our turn.
                await connection.execute(delete(table).where(key.in_(over), *is_old))
        if len(over) < BATCH:
            return
