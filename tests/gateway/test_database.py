import asyncio
import io
import json
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from byoai_gateway import availability
from byoai_gateway.config import DatabaseSection
from byoai_gateway.database import Database, DatabaseUnavailable
from byoai_gateway.engines import DatabaseError
from byoai_gateway.schema import authentication_keys, counters, metadata
from byoai_shared import logs
from support.control import sqlite
from support.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[DatabaseSection]:
    """A database without any table."""
    if request.param == "sqlite":
        yield sqlite(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    async with server.database("template0") as section:
        yield section


def settings(directory: Path) -> DatabaseSection:
    return DatabaseSection(url=f"sqlite+aiosqlite:///{directory / 'test.db'}")


async def test_the_migrations_make_exactly_the_schema(empty: DatabaseSection) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, metadata))

    database = await Database.open(empty)
    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_opening_again_keeps_what_is_there(database: DatabaseSection) -> None:
    first = await Database.open(database)
    async with first.writing() as connection:
        await connection.execute(insert(counters).values(name="kept", value=7))
    await first.close()
    second = await Database.open(database)
    async with second.reading() as connection:
        assert await connection.scalar(select(counters.c.value)) == 7
    await second.close()


async def test_a_schema_of_a_newer_program_is_refused(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    async with opened.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await opened.close()
    with pytest.raises(DatabaseError, match="9999"):
        await Database.open(database)


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


async def test_an_exception_undoes_the_transaction(database: DatabaseSection) -> None:
    opened = await Database.open(database)

    async def fail_half_way() -> None:
        async with opened.writing() as connection:
            await connection.execute(insert(counters).values(name="undone", value=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_half_way()
    async with opened.reading() as connection:
        assert (await connection.execute(select(counters))).all() == []
    await opened.close()


async def test_writers_that_read_first_wait_for_each_other(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    async with opened.writing() as connection:
        await connection.execute(insert(counters).values(name="n", value=0))

    async def increment() -> None:
        async with opened.writing() as connection:
            value = await connection.scalar(select(counters.c.value))
            assert value is not None
            await connection.execute(update(counters).values(value=value + 1))

    await asyncio.gather(*(increment() for _ in range(40)))
    async with opened.reading() as connection:
        assert await connection.scalar(select(counters.c.value)) == 40
    await opened.close()


async def test_a_reader_does_not_wait_for_a_writer(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    async with opened.writing() as writer:
        await writer.execute(insert(counters).values(name="n", value=1))
        async with opened.reading() as reader:
            assert (await reader.execute(select(counters))).all() == []
    await opened.close()


async def test_foreign_keys_are_enforced(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    orphan = insert(authentication_keys).values(tunnel_id="none", version=1, created_at=0)
    with pytest.raises(IntegrityError):
        async with opened.writing() as connection:
            await connection.execute(orphan)
    await opened.close()


async def test_an_error_does_not_quote_what_was_stored(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    canary = insert(authentication_keys).values(tunnel_id="canary", version=1, created_at=0)
    with pytest.raises(IntegrityError) as caught:
        async with opened.writing() as connection:
            await connection.execute(canary)
    assert "canary" not in str(caught.value)
    await opened.close()


async def test_gateways_that_start_at_once_make_the_schema_once(empty: DatabaseSection) -> None:
    opened = await asyncio.gather(*(Database.open(empty) for _ in range(4)))
    async with opened[0].reading() as connection:
        assert (await connection.execute(select(counters))).all() == []
    for database in opened:
        await database.close()


async def test_writers_of_several_gateways_take_turns(database: DatabaseSection) -> None:
    gateways = [await Database.open(database) for _ in range(3)]
    async with gateways[0].writing() as connection:
        await connection.execute(insert(counters).values(name="n", value=0))

    async def increment(gateway: Database) -> None:
        async with gateway.writing() as connection:
            value = await connection.scalar(select(counters.c.value))
            assert value is not None
            await connection.execute(update(counters).values(value=value + 1))

    await asyncio.gather(*(increment(gateway) for gateway in gateways * 5))
    async with gateways[0].reading() as connection:
        assert await connection.scalar(select(counters.c.value)) == 15
    for gateway in gateways:
        await gateway.close()


async def test_a_reader_sees_one_moment(database: DatabaseSection) -> None:
    opened = await Database.open(database)
    async with opened.reading() as reader:
        assert (await reader.execute(select(counters))).all() == []
        async with opened.writing() as writer:
            await writer.execute(insert(counters).values(name="n", value=1))
        assert (await reader.execute(select(counters))).all() == []
    async with opened.reading() as reader:
        assert len((await reader.execute(select(counters))).all()) == 1
    await opened.close()


async def test_a_turn_that_does_not_come_is_unavailable(database: DatabaseSection) -> None:
    impatient = msgspec.structs.replace(database, busy_timeout_s=0.05)
    one, other = await Database.open(impatient), await Database.open(impatient)
    async with one.writing():
        for waiting in (one, other):
            with pytest.raises(DatabaseUnavailable) as refused:
                async with waiting.writing():
                    pass
            assert refused.value.status == 503
    async with other.writing():
        pass
    await one.close()
    await other.close()


async def test_the_log_says_once_that_it_is_away_with_what_to_do_and_once_that_it_is_back(
    database: DatabaseSection,
) -> None:
    log = io.StringIO()
    logs.configure(form="json", stream=log)
    opened = await Database.open(msgspec.structs.replace(database, busy_timeout_s=0.01))
    async with opened.writing():
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                async with opened.writing():
                    pass
    for _ in range(2):
        await opened.ping()
    await opened.close()
    away, back = (json.loads(line) for line in log.getvalue().splitlines())
    assert (away["event"], back["event"]) == ("database.unavailable", "database.back")
    assert away["fault"] == "busy"
    assert "locks" in away["next"]


async def test_many_writers_leave_connections_to_readers(database: DatabaseSection) -> None:
    opened = await Database.open(msgspec.structs.replace(database, connections=2))

    async def write(name: str) -> None:
        async with opened.writing() as connection:
            await connection.execute(insert(counters).values(name=name, value=1))

    async with opened.writing():
        writers = [asyncio.ensure_future(write(str(number))) for number in range(10)]
        await opened.ping()
    await asyncio.gather(*writers)
    await opened.close()


async def test_a_reader_of_postgresql_cannot_write(postgres: PostgresServer) -> None:
    async with postgres.database() as section:
        opened = await Database.open(section)
        with pytest.raises(DBAPIError, match="read-only"):
            async with opened.reading() as connection:
                await connection.execute(insert(counters).values(name="n", value=1))
        await opened.close()


async def test_a_server_that_goes_away_is_unavailable_until_it_is_back(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "PROBE_EVERY_S", 0.0)
    async with postgres.database() as section:
        opened = await Database.open(section)
        await opened.ping()
        torn = torn_by(postgres, opened)
        try:
            with pytest.raises(DatabaseUnavailable):
                await torn
            with pytest.raises(DatabaseUnavailable):
                await opened.ping()
            with pytest.raises(DatabaseError, match=r"postgresql.*No such file|Connect"):
                await Database.open(section)
        finally:
            postgres.start()
        await opened.ping()
        async with opened.reading() as connection:
            assert (await connection.execute(select(counters))).all() == []
        await opened.close()


async def torn_by(postgres: PostgresServer, opened: Database) -> None:
    """A transaction in the middle of which the server ends."""
    async with opened.writing() as connection:
        await connection.execute(insert(counters).values(name="torn", value=1))
        postgres.stop()
        await connection.execute(select(counters))


async def test_a_password_is_not_shown(postgres: PostgresServer) -> None:
    url = postgres.settings("absent").url.replace("postgres@", "postgres:a-canary@")
    with pytest.raises(DatabaseError, match="absent") as refused:
        await Database.open(DatabaseSection(url=url))
    assert "canary" not in str(refused.value)
