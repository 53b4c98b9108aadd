"""The database, SQLite or PostgreSQL: connections, transactions and the schema's version.

A transaction says at its start whether it will write, and on both databases means the same: a
reader sees one moment and waits for nobody; writers take turns, also those of other gateways, so
that what a writer has read stays true until it is done. `engines` says how each does that.

A database that does not answer is `DatabaseUnavailable`, whatever its driver raised; while it is
known to be away that is said at once (`availability`). Nothing is tried again here: only who asked
knows whether a transaction that may have been committed can be repeated. It refuses to guess: a
newer schema than this program knows stops the start.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Final, Self, assert_never

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, insert, inspect, text, update
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from byoai_gateway.availability import Availability, Question
from byoai_gateway.config import DatabaseSection
from byoai_gateway.engines import (
    DatabaseError,
    Fault,
    TurnMissed,
    begin,
    fault_of,
    make_engine,
    no_database,
)
from byoai_gateway.refusals import Refusal
from byoai_gateway.schema import counters
from byoai_shared.logs import get_logger

_MIGRATIONS: Final = Path(__file__).with_name("migrations")

TOLD_AGAIN_S: Final = 60.0
"""How often the log says that the database is away; otherwise every question would."""

_WRITE_TRIAL: Final = "write_trial"

log = get_logger("gateway")


_TOLD: Final[Mapping[Fault, tuple[str, str, int]]] = {
    Fault.AWAY: (
        "database_unavailable",
        "the gateway's database does not answer now; try again in a moment",
        2,
    ),
    Fault.BUSY: (
        "database_busy",
        "the gateway's database had no turn for this in time; try again in a moment",
        1,
    ),
    Fault.UNWRITABLE: (
        "database_not_writable",
        "the gateway's database takes no changes now; nothing was saved, try again later",
        30,
    ),
}
"""Code, sentence, and when to try again (s)."""

_NEXT: Final[Mapping[Fault, str]] = {
    Fault.AWAY: "see that the database runs and that database.url leads to it; what was read "
    "before is used for database.stale_s; other requests are answered with 503",
    Fault.BUSY: "requests that needed it are answered with 503; see what holds the database's "
    "locks",
    Fault.UNWRITABLE: "make room on the database's disk, and see that it is not read-only; /v1 "
    "goes on, tunnels only until their agents' tokens expire (tunnels.token_lifetime_s); changes "
    "are refused, and records of requests wait in memory",
}


class DatabaseUnavailable(Refusal):
    """The database cannot do what was asked now; nothing of it was done, as far as is known."""

    def __init__(self, fault: Fault = Fault.AWAY) -> None:
        code, sentence, retry_after_s = _TOLD[fault]
        super().__init__(
            HTTPStatus.SERVICE_UNAVAILABLE, code, sentence, retry_after_s=retry_after_s
        )
        self.fault = fault


class Database:
    """An engine and its two kinds of transaction; close it with `close`."""

    def __init__(self, engine: AsyncEngine, *, turn_s: float) -> None:
        self._engine = engine
        self._turn_s = turn_s
        # Waiting here costs no connection, which readers may need.
        self._turn = asyncio.Lock()
        self._told_at: dict[Fault, float] = {}
        self.availability = Availability()

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
        async with self._asked(writes=False), self._transaction(writes=False) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncConnection]:
        """Open a transaction that may write; it is committed unless an exception leaves it.

        Raises:
            DatabaseUnavailable: the database does not answer, or its turn did not come in time.
        """
        async with (
            self._asked(writes=True),
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
            raise OperationalError("wait for other writers", None, TurnMissed()) from error
        try:
            yield
        finally:
            self._turn.release()

    async def try_to_write(self, now: float) -> None:
        """Find out whether the database takes writes, by writing one row.

        `availability` tells what was found. Transactions that change nothing succeed on a full
        disk, so only this trial says that there is room again.
        """
        try:
            async with self.writing() as connection:
                await _write_trial(connection, int(now))
        except DatabaseUnavailable:
            return
        if self.availability.write_fault is not None:
            self.availability.write_fault = None
            self._told_at.pop(Fault.UNWRITABLE, None)
            log.info("database.writable_again")

    @asynccontextmanager
    async def _asked(self, *, writes: bool) -> AsyncGenerator[None]:
        """Note whether the database answers, and say in one way that it does not."""
        question = self.availability.ask(is_read=not writes)
        if question is None:
            raise DatabaseUnavailable
        try:
            yield
        except (DBAPIError, OSError) as error:  # a TimeoutError is an OSError
            fault = fault_of(error, writes=writes)
            if fault is None:
                self._note_answer(question)
                raise
            self._note_fault(question, fault, error)
            raise DatabaseUnavailable(fault) from error
        except BaseException:
            self.availability.drop(question)
            raise
        self._note_answer(question)

    def _note_answer(self, question: Question) -> None:
        self.availability.answered(question)
        told = [self._told_at.pop(it, None) for it in (Fault.AWAY, Fault.BUSY)]
        if any(it is not None for it in told):
            log.info("database.back")

    def _note_fault(self, question: Question, fault: Fault, error: DBAPIError | OSError) -> None:
        match fault:
            case Fault.AWAY:
                self.availability.failed(question)
            case Fault.BUSY:
                self.availability.drop(question)
            case Fault.UNWRITABLE:
                self.availability.answered(question)
                self.availability.write_fault = "its disk is full or read-only"
            case _:
                assert_never(fault)
        now, told_at = time.monotonic(), self._told_at.get(fault)
        if told_at is not None and now - told_at < TOLD_AGAIN_S:
            return
        self._told_at[fault] = now
        cause = error.orig if isinstance(error, DBAPIError) else error
        log.warning(
            "database.unavailable",
            setting="database.url",
            fault=fault.value,
            reason=type(cause).__name__,
            next=_NEXT[fault],
        )


async def _write_trial(connection: AsyncConnection, value: int) -> None:
    row = counters.c.name == _WRITE_TRIAL
    tried = await connection.execute(update(counters).where(row).values(value=value))
    if tried.rowcount == 0:
        await connection.execute(insert(counters).values(name=_WRITE_TRIAL, value=value))


def _check_tables(connection: Connection, shown: str) -> None:
    """Refuse a database in which no gateway has made its tables."""
    if not inspect(connection).has_table("alembic_version"):
        raise no_database(shown)


def _upgrade(connection: Connection) -> None:
    if MigrationContext.configure(connection).get_current_revision() == _newest_revision():
        return
    config = _migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@cache
def _newest_revision() -> str | None:
    return ScriptDirectory.from_config(_migrations()).get_current_head()


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _cause(error: DBAPIError | CommandError) -> str:
    return str(error.orig) if isinstance(error, DBAPIError) else str(error)
