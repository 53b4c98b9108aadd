import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from byoai_gateway.config import DatabaseSection
from byoai_gateway.engines import make_engine, went_away
from byoai_shared.secret import Secret


class PostgresError(Exception):
    """An error as the driver makes it."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "is_away"),
    [
        ("08006", True),
        ("40001", True),
        ("40P01", True),
        ("53300", True),
        ("57P01", True),
        ("57014", True),
        ("55P03", True),
        ("25P03", True),
        ("25006", False),
        ("23505", False),
        ("42P01", False),
        ("22001", False),
        ("", False),
        (None, False),
    ],
)
def test_a_database_that_refuses_is_not_taken_for_one_that_is_away(
    sqlstate: str | None, *, is_away: bool
) -> None:
    assert went_away(DBAPIError("SELECT", None, PostgresError(sqlstate))) is is_away


def test_a_lost_connection_and_a_locked_file_are_away() -> None:
    gone = DBAPIError("SELECT", None, Exception("gone"), connection_invalidated=True)
    assert went_away(gone)
    assert went_away(OperationalError("SELECT", None, Exception("database is locked")))


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
