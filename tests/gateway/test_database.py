import asyncio
import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from byoai_gateway.config import DatabaseSection
from byoai_gateway.database import Database, DatabaseError
from byoai_gateway.schema import authentication_keys, counters, metadata


def settings(directory: Path, **changes: float) -> DatabaseSection:
    return DatabaseSection(url=f"sqlite+aiosqlite:///{directory / 'test.db'}", **changes)


async def test_the_migrations_make_exactly_the_schema(tmp_path: Path) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    database = await Database.open(settings(tmp_path))
    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    first = await Database.open(settings(tmp_path))
    async with first.writing() as connection:
        await connection.execute(insert(counters).values(name="kept", value=7))
    await first.close()
    second = await Database.open(settings(tmp_path))
    async with second.reading() as connection:
        assert await connection.scalar(select(counters.c.value)) == 7
    await second.close()


async def test_a_schema_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path))
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(DatabaseError, match="9999"):
        await Database.open(settings(tmp_path))


async def test_a_database_that_cannot_be_opened_is_named_without_its_password(
    tmp_path: Path,
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"
    with pytest.raises(DatabaseError, match=r"folder\.db: No such file"):
        await Database.open(DatabaseSection(url=url))
    with pytest.raises(DatabaseError, match=r"database\.url"):
        await Database.open(DatabaseSection(url="nonsense"))


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        await Database.open(settings(tmp_path))
    with pytest.raises(DatabaseError, match="give a file"):
        await Database.open(DatabaseSection(url="sqlite+aiosqlite://"))


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    await database.close()


async def test_an_exception_undoes_the_transaction(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path))

    async def fail_half_way() -> None:
        async with database.writing() as connection:
            await connection.execute(insert(counters).values(name="undone", value=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_half_way()
    async with database.reading() as connection:
        assert (await connection.execute(select(counters))).all() == []
    await database.close()


async def test_writers_that_read_first_wait_for_each_other(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path))
    async with database.writing() as connection:
        await connection.execute(insert(counters).values(name="n", value=0))

    async def increment() -> None:
        async with database.writing() as connection:
            value = await connection.scalar(select(counters.c.value))
            assert value is not None
            await connection.execute(update(counters).values(value=value + 1))

    await asyncio.gather(*(increment() for _ in range(40)))
    async with database.reading() as connection:
        assert await connection.scalar(select(counters.c.value)) == 40
    await database.close()


async def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path, busy_timeout_s=0.001))
    async with database.writing() as writer:
        await writer.execute(insert(counters).values(name="n", value=1))
        async with database.reading() as reader:
            assert (await reader.execute(select(counters))).all() == []
    await database.close()


async def test_foreign_keys_are_enforced(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path))
    orphan = insert(authentication_keys).values(tunnel_id="none", version=1, created_at=0)
    with pytest.raises(IntegrityError):
        async with database.writing() as connection:
            await connection.execute(orphan)
    await database.close()


async def test_an_error_does_not_quote_what_was_stored(tmp_path: Path) -> None:
    database = await Database.open(settings(tmp_path))
    canary = insert(authentication_keys).values(tunnel_id="canary", version=1, created_at=0)
    with pytest.raises(IntegrityError) as caught:
        async with database.writing() as connection:
            await connection.execute(canary)
    assert "canary" not in str(caught.value)
    await database.close()


def test_the_schema_can_be_made_on_postgresql_too() -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call] # SQLAlchemy's own gap
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
