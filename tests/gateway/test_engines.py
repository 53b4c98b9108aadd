import sqlite3

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from byoai_gateway.config import DatabaseSection
from byoai_gateway.engines import Fault, TurnMissed, fault_of, make_engine
from byoai_shared.secret import Secret


class PostgresError(Exception):
    """An error as the driver makes it."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "fault"),
    [
        ("08006", Fault.AWAY),
        ("40001", Fault.BUSY),
        ("40P01", Fault.BUSY),
        ("53300", Fault.AWAY),
        ("53100", Fault.UNWRITABLE),
        ("57P01", Fault.AWAY),
        ("57014", Fault.BUSY),
        ("55P03", Fault.BUSY),
        ("25P03", Fault.BUSY),
        ("25006", Fault.UNWRITABLE),
        ("23505", None),
        ("42P01", None),
        ("22001", None),
        ("", None),
        (None, None),
    ],
)
def test_a_fault_of_postgresql_is_told_from_a_wrong_question(
    sqlstate: str | None, fault: Fault | None
) -> None:
    error = DBAPIError("INSERT", None, PostgresError(sqlstate))
    assert fault_of(error, writes=True) is fault


def test_who_only_reads_is_not_told_that_it_cannot_write() -> None:
    error = DBAPIError("INSERT", None, PostgresError("25006"))
    assert fault_of(error, writes=False) is None


@pytest.mark.parametrize(
    ("code", "of_writer", "of_reader"),
    [
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Fault.BUSY, Fault.BUSY),
        (sqlite3.SQLITE_LOCKED, Fault.BUSY, Fault.BUSY),
        (sqlite3.SQLITE_FULL, Fault.UNWRITABLE, Fault.AWAY),
        (sqlite3.SQLITE_READONLY, Fault.UNWRITABLE, Fault.AWAY),
        (sqlite3.SQLITE_IOERR_WRITE, Fault.UNWRITABLE, Fault.AWAY),
        (sqlite3.SQLITE_CANTOPEN, Fault.UNWRITABLE, Fault.AWAY),
        (sqlite3.SQLITE_CORRUPT, Fault.AWAY, Fault.AWAY),
        (sqlite3.SQLITE_ERROR, None, None),
        (sqlite3.SQLITE_CONSTRAINT, None, None),
    ],
)
def test_a_fault_of_sqlite_is_told_from_a_wrong_question(
    code: int, of_writer: Fault | None, of_reader: Fault | None
) -> None:
    cause = sqlite3.OperationalError("what it says")
    cause.sqlite_errorcode = code
    error = OperationalError("SELECT", None, cause)
    assert fault_of(error, writes=True) is of_writer
    assert fault_of(error, writes=False) is of_reader


def test_a_lost_connection_is_away_and_a_missed_turn_is_busy() -> None:
    gone = DBAPIError("SELECT", None, Exception("gone"), connection_invalidated=True)
    assert fault_of(gone, writes=False) is Fault.AWAY
    assert fault_of(TimeoutError(), writes=False) is Fault.AWAY
    assert fault_of(OperationalError("turn", None, TurnMissed()), writes=True) is Fault.BUSY


async def test_the_password_need_not_stand_in_the_address() -> None:
    settings = DatabaseSection(
        url="postgresql+asyncpg://byoai@db.internal/byoai", password=Secret("a p@ss/word")
    )
    engine = make_engine(settings)
    assert engine.url.password == "a p@ss/word"
    assert "word" not in repr(engine) + repr(settings).replace("password", "")
    await engine.dispose()


async def test_the_pool_is_as_large_as_it_is_set() -> None:
    settings = DatabaseSection(url="postgresql+asyncpg://db.internal/byoai", connections=3)
    engine = make_engine(settings)
    assert "size: 3" in engine.pool.status()
    await engine.dispose()
