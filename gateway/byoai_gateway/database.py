"""The database, SQLite or PostgreSQL: connections, transactions and the schema's version.

A transaction says at its start whether it will write, and on both databases means the same: a
reader sees one moment and waits for nobody; writers take turns, also those of other gateways, so
that what a writer has read stays true until it is done. `engines` says how each does that.

A database that does not answer is `DatabaseUnavailable`, whatever its driver raised. Nothing is
tried again here: only who asked knows whether a transaction that may have been committed can be
repeated. It refuses to guess: a newer schema than this program knows stops the start.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from byoai_gateway.config import DatabaseSection
from byoai_gateway.engines import DatabaseError, begin, make_engine, no_database, went_away
from byoai_gateway.refusals import Refusal
from byoai_shared.logs import get_logger

_MIGRATIONS: Final = Path(__file__).with_name("migrations")

TOLD_AGAIN_S: Final = 60.0
"""How often the log says that the database is away; otherwise every question would."""

log = get_logger("gateway")


class DatabaseUnavailable(Refusal):
    """The database does not answer; nothing is known of what was asked for."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "unavailable",
            "the gateway's database does not answer now; try again in a moment",
            retry_after_s=1,
        )


class Database:
    """An engine and its two kinds of transaction; close it with `close`."""

    def __init__(self, engine: AsyncEngine, *, turn_s: float) -> None:
        self._engine = engine
        self._turn_s = turn_s
        # Waiting here costs no connection, which readers may need.
        self._turn = asyncio.Lock()
        self._told_at: float | None = None
        self._is_away = False

    @classmethod
    async def open(cls, settings: DatabaseSection, *, may_create: bool = True) -> Self:
        """Connect, and bring the schema up to date; of several at once one does, others wait.

        Raises:
            DatabaseError: it cannot be reached, its schema is newer than this program, or there
                is none and it may not be made.
        """
        engine = make_engine(settings, may_create=may_create)
        database = cls(engine, turn_s=settings.busy_timeout_s)
        try:
            async with database._transaction(writes=True) as connection:
                if not may_create:
                    await connection.run_sync(_check_tables, engine.url.render_as_string())
                await connection.run_sync(_upgrade)
        except (DBAPIError, CommandError) as error:
            await database.close()
            shown = make_url(settings.url).render_as_string(hide_password=True)
            raise DatabaseError(f"cannot use the database {shown}: {_cause(error)}") from error
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def dialect(self) -> Dialect:
        """The SQL that it speaks, and its driver's way to pass values."""
        return self._engine.dialect

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncConnection]:
        """Open a transaction that only reads.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        async with self._unavailable_told(), self._transaction(writes=False) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncConnection]:
        """Open a transaction that may write; it is committed unless an exception leaves it.

        Raises:
            DatabaseUnavailable: the database does not answer, or its turn did not come in time.
        """
        async with (
            self._unavailable_told(),
            self._own_turn(),
            self._transaction(writes=True) as connection,
        ):
            yield connection

    async def ping(self) -> None:
        """Ask the smallest question there is.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        async with self.reading() as connection:
            await connection.execute(text("SELECT 1"))

    @asynccontextmanager
    async def _transaction(self, *, writes: bool) -> AsyncGenerator[AsyncConnection]:
        connection = self._engine.connect()
        try:
            await connection.start()
        except DBAPIError:
            raise
        except Exception as error:
            # Drivers raise what they like while there is no connection yet.
            raise OperationalError("connect", None, error) from error
        try:
            async with begin(connection, writes=writes):
                yield connection
        finally:
            await connection.close()

    @asynccontextmanager
    async def _own_turn(self) -> AsyncGenerator[None]:
        """Wait for the other writers of this process."""
        try:
            async with asyncio.timeout(self._turn_s):
                await self._turn.acquire()
        except TimeoutError as error:
            raise OperationalError("wait for other writers", None, error) from error
        try:
            yield
        finally:
            self._turn.release()

    @asynccontextmanager
    async def _unavailable_told(self) -> AsyncGenerator[None]:
        try:
            yield
        except (DBAPIError, OSError) as error:  # a TimeoutError is an OSError
            if isinstance(error, DBAPIError) and not went_away(error):
                raise
            self._tell_away(error.orig if isinstance(error, DBAPIError) else error)
            raise DatabaseUnavailable from error
        if self._is_away:
            self._is_away = False
            log.info("database.back")

    def _tell_away(self, cause: BaseException | None) -> None:
        now = time.monotonic()
        if self._told_at is not None and now - self._told_at < TOLD_AGAIN_S:
            return
        self._told_at, self._is_away = now, True
        log.warning(
            "database.unavailable",
            setting="database.url",
            reason=type(cause).__name__,
            next="see that the database runs and that database.url leads to it; until then "
            "whoever needs it is told to try again",
        )


def _check_tables(connection: Connection, shown: str) -> None:
    """Refuse a database in which no gateway has made its tables."""
    if not inspect(connection).has_table("alembic_version"):
        raise no_database(shown)


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _cause(error: DBAPIError | CommandError) -> str:
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)
