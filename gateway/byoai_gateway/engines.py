"""What the databases do differently: how they are connected to, and how a transaction begins.

On SQLite a transaction that begins by reading and then writes fails at once when another wrote
in between, whatever the busy timeout; one that begins with BEGIN IMMEDIATE waits its turn. On
PostgreSQL two that read the same and then write would both succeed; so writers first take a
lock that lasts as long as their transaction. They are few and short, and need no repeating.

It refuses addresses of other databases, and SQLite without a file.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, cast

import aiosqlite
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from byoai_gateway.config import DatabaseSection
from byoai_shared.errors import ByoaiError

_WRITES: Final = "byoai_writes"
_WRITERS_LOCK: Final = 0x6279_6F61_69  # "byoai"; the lock's number in PostgreSQL
_RETRY_MS: Final = 10
_AWAY_CLASSES: Final = frozenset({"08", "53", "57"})
"""SQLSTATE classes: no connection, no room, told to stop."""
_ROLLED_BACK: Final = "40"
_BUSY_STATES: Final = frozenset({"55P03", "25P03", "57014"})
"""The writers' lock did not come in time; the transaction was idle or a statement ran too long."""
_UNWRITABLE_STATES: Final = frozenset({"53100", "25006"})
"""The disk is full; the server is a standby or was set to read only."""
_SQLITE_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_UNWRITABLE: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
_SQLITE_AWAY: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class TurnMissed(ByoaiError):
    """Other writers of this process took too long."""


class Fault(StrEnum):
    """Why a transaction could not be made, though nothing was wrong with what was asked."""

    AWAY = "away"
    """The database does not answer."""
    BUSY = "busy"
    """It answers, and other transactions kept this one from its turn."""
    UNWRITABLE = "unwritable"
    """It answers, and takes no writes: its disk is full or read-only."""


class DatabaseError(ByoaiError):
    """The database cannot be used; the sentence says what to look at."""


def make_engine(settings: DatabaseSection, *, may_create: bool = True) -> AsyncEngine:
    """Make an engine; it connects when it is first used.

    Raises:
        DatabaseError: the address is none, or the file cannot be opened or made.
    """
    try:
        url = make_url(settings.url)
        if settings.password is not None:
            url = url.set(password=settings.password.reveal())
        engine = create_async_engine(url, hide_parameters=True, **_options(settings))
    except (ArgumentError, ModuleNotFoundError) as error:
        raise DatabaseError(
            f"database.url cannot be used ({error}); for example sqlite+aiosqlite:///gateway.db"
        ) from error
    if engine.dialect.name == "sqlite":
        _prepare_file(engine.url.database, may_create=may_create)
        _prepare_sqlite(engine, busy_ms=round(settings.busy_timeout_s * 1000))
    return engine


@asynccontextmanager
async def begin(connection: AsyncConnection, *, writes: bool) -> AsyncGenerator[None]:
    """Begin a transaction; it is committed unless an exception leaves it."""
    is_postgresql = connection.dialect.name == "postgresql"
    options: dict[str, Any] = {_WRITES: writes}
    if is_postgresql and not writes:
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    await connection.execution_options(**options)
    async with connection.begin():
        if is_postgresql and writes:
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")
        yield


def fault_of(error: DBAPIError | OSError, *, writes: bool) -> Fault | None:
    """Tell why a transaction failed; None for what the database was asked wrongly."""
    if not isinstance(error, DBAPIError):
        return Fault.AWAY
    if isinstance(error.orig, TurnMissed):
        return Fault.BUSY
    code = cast("int | None", getattr(error.orig, "sqlite_errorcode", None))
    if code is not None:
        return _fault_of_sqlite(code & 0xFF, writes=writes)
    state = cast("str | None", getattr(error.orig, "sqlstate", None)) or ""
    if state in _BUSY_STATES or state[:2] == _ROLLED_BACK:
        return Fault.BUSY
    if writes and state in _UNWRITABLE_STATES:
        return Fault.UNWRITABLE
    if error.connection_invalidated or isinstance(error, OperationalError):
        return Fault.AWAY
    return Fault.AWAY if state[:2] in _AWAY_CLASSES else None


def _fault_of_sqlite(code: int, *, writes: bool) -> Fault | None:
    if code in _SQLITE_BUSY:
        return Fault.BUSY
    if code in _SQLITE_UNWRITABLE:
        return Fault.UNWRITABLE if writes else Fault.AWAY
    return Fault.AWAY if code in _SQLITE_AWAY else None


def _options(settings: DatabaseSection) -> dict[str, Any]:
    """Options of an engine: every wait for a connection or an answer has a limit."""
    answer_s = settings.answer_timeout_s
    if not settings.url.startswith("postgresql"):
        return {} if _is_in_memory(make_url(settings.url).database) else {"pool_timeout": answer_s}
    return {
        "pool_size": settings.connections,
        "max_overflow": 0,
        "pool_timeout": answer_s,
        "pool_pre_ping": True,  # a connection that died while idle is not handed out
        "pool_use_lifo": True,
        "connect_args": {
            "timeout": answer_s,
            "command_timeout": answer_s,
            "server_settings": {
                "application_name": "byoai-gateway",
                "lock_timeout": _ms(settings.busy_timeout_s),
                # A gateway that froze or vanished must not keep the writers' lock.
                "idle_in_transaction_session_timeout": _ms(answer_s),
                "statement_timeout": _ms(answer_s),
            },
        },
    }


def _is_in_memory(name: str | None) -> bool:
    return not name or name == ":memory:"


def _ms(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


def no_database(what: str) -> DatabaseError:
    """What to say where there should be one, and is none."""
    return DatabaseError(
        f"there is no database of a gateway in {what} (database.url); run this in the folder in "
        "which the gateway serves, or give its --config; the first `byoai-gateway serve` makes it"
    )


def _prepare_file(name: str | None, *, may_create: bool) -> None:
    """Make the database's file, for its owner only; SQLite's own would be for everybody."""
    if name is None or _is_in_memory(name):
        raise DatabaseError("database.url: give a file; what is in memory only would be lost")
    if not may_create and not Path(name).exists():
        raise no_database(str(Path(name).absolute()))
    try:
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass  # not opened again: closing it would drop the locks this process holds on it
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

    async def prepare(driver: aiosqlite.Connection) -> None:
        for pragma in pragmas:
            await _execute(driver, f"PRAGMA {pragma}", tries=busy_ms // _RETRY_MS)

    def on_connect(connection: Any, _record: object) -> None:  # Any: SQLAlchemy's DBAPI adapter
        # The driver must not begin transactions of its own; see `on_begin`.
        connection.isolation_level = None
        try:
            connection.run_async(prepare)
        except BaseException:
            connection.close()  # SQLAlchemy does not own it yet
            raise

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)


async def _execute(driver: aiosqlite.Connection, statement: str, tries: int) -> None:
    """Wait where SQLite does not by itself: when two make the write-ahead log at once."""
    while True:
        try:
            await (await driver.execute(statement)).close()
        except sqlite3.OperationalError as error:
            tries -= 1
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or tries < 0:
                raise
            await asyncio.sleep(_RETRY_MS / 1000)
        else:
            return
