"""The database: connections, transactions and the schema's version.

A transaction says at its start whether it will write. On SQLite that matters: one that begins
by reading and then writes fails at once when another wrote in between, whatever the busy
timeout; one that begins with BEGIN IMMEDIATE waits its turn. Other databases ignore it.

It refuses to guess: a newer schema than this program knows stops the start.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from byoai_gateway.config import DatabaseSection
from byoai_shared.errors import ByoaiError

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_WRITES: Final = "byoai_writes"


class DatabaseError(ByoaiError):
    """The database cannot be used; the sentence says what to look at."""


class Database:
    """An engine and its two kinds of transaction; close it with `close`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @classmethod
    async def open(cls, settings: DatabaseSection) -> Self:
        """Connect, and bring the schema up to date.

        Raises:
            DatabaseError: it cannot be reached, or its schema is newer than this program.
        """
        database = cls(_engine(settings))
        try:
            async with database.writing() as connection:
                await connection.run_sync(_upgrade)
        except (DBAPIError, CommandError) as error:
            await database.close()
            shown = make_url(settings.url).render_as_string(hide_password=True)
            raise DatabaseError(f"cannot use the database {shown}: {_cause(error)}") from error
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncConnection]:
        """Open a transaction that only reads."""
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncConnection]:
        """Open a transaction that may write; it is committed unless an exception leaves it."""
        async with self._engine.connect() as connection:
            await connection.execution_options(**{_WRITES: True})
            async with connection.begin():
                yield connection

    async def ping(self) -> None:
        """Ask the smallest question there is; raises what the database raises."""
        async with self.reading() as connection:
            await connection.execute(text("SELECT 1"))


def _engine(settings: DatabaseSection) -> AsyncEngine:
    try:
        engine = create_async_engine(settings.url, hide_parameters=True)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise DatabaseError(
            f"database.url cannot be used ({error}); for example sqlite+aiosqlite:///gateway.db"
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_file(engine.url.database)
        _prepare_sqlite(engine, busy_ms=round(settings.busy_timeout_s * 1000))
    return engine


def _prepare_file(name: str | None) -> None:
    """Make the database's file, for its owner only; SQLite's own would be for everybody."""
    if not name or name == ":memory:":
        raise DatabaseError("database.url: give a file; what is in memory only would be lost")
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise DatabaseError(f"cannot open the database {name}: {error.strerror}") from error


def _prepare_sqlite(engine: AsyncEngine, *, busy_ms: int) -> None:
    """Write-ahead log, waiting instead of failing, foreign keys, and our own BEGIN."""
    pragmas = (
        f"busy_timeout = {busy_ms}",
        "journal_mode = WAL",
        "synchronous = FULL",  # a used join code stays used after a power cut
        "foreign_keys = ON",
    )

    def on_connect(connection: Any, _record: object) -> None:  # Any: SQLAlchemy's DBAPI adapter
        # The driver must not begin transactions of its own; see `on_begin`.
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except BaseException:
            connection.close()  # SQLAlchemy does not own it yet
            raise

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _cause(error: DBAPIError | CommandError) -> str:
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)
