import asyncio
import io
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import aiosqlite
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from byoai_gateway import usage
from byoai_gateway.config import DatabaseSection, GatewayConfig
from byoai_gateway.control_plane import open_control_plane
from byoai_gateway.database import Database
from byoai_gateway.schema import usage_records
from byoai_gateway.usage import BATCH, UsageLog, UsageRecord, insertion
from byoai_shared import logs
from support.control import FakeClock
from support.postgres import PostgresServer


class Flaky(Database):
    """A database that is away when it is told to be."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        self.is_away = False
        self.hangs = False
        self.loses_the_answer = False
        self.writes = 0
        self.asked = asyncio.Event()

    @asynccontextmanager
    async def writing(self) -> AsyncGenerator[AsyncConnection]:
        self.writes += 1
        self.asked.set()
        if self.hangs:
            await asyncio.Event().wait()
        self._look()
        async with super().writing() as connection:
            yield connection
        if self.loses_the_answer:
            raise ConnectionResetError

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncConnection]:
        self._look()
        async with super().reading() as connection:
            yield connection

    def _look(self) -> None:
        if self.is_away:
            raise ConnectionRefusedError


@pytest.fixture
async def flaky(config: GatewayConfig) -> AsyncGenerator[Flaky]:
    async with opened_at(config.database) as opened:
        yield opened


@asynccontextmanager
async def opened_at(section: DatabaseSection) -> AsyncGenerator[Flaky]:
    opened = await Flaky.open(section)
    opened.asked.clear()
    try:
        yield opened
    finally:
        await opened.close()


def record(request_id: str = "r-1", **changes: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "request_id": request_id,
        "user_id": "alice",
        "started_at": 1_700_000_000,
        "endpoint": "/chat/completions",
        "provider": "openrouter",
        "outcome": "ok",
        "duration_ms": 1_500,
        "attempts": 1,
    }
    return UsageRecord(**values | changes)


async def rows(database: Database) -> Sequence[Any]:
    async with database.reading() as connection:
        found = await connection.execute(select(usage_records).order_by("record_id"))
        return found.all()


def spoil(log: UsageLog) -> None:
    """Note a record that no database takes."""
    log.add(record("spoilt", user_id=cast("str", None)))


async def test_a_record_is_kept_with_all_that_it_says(flaky: Flaky) -> None:
    log = UsageLog(flaky)
    log.add(
        record(
            model="vendor/model",
            prompt_tokens=10,
            completion_tokens=20,
            cost=0.0025,
            first_token_ms=300,
            attempts=2,
            fallback_reason="unreachable",
        )
    )
    assert await log.flush()
    (row,) = await rows(flaky)
    assert row.request_id == "r-1"
    assert row.user_id == "alice"
    assert row.started_at == 1_700_000_000
    assert (row.endpoint, row.provider) == ("/chat/completions", "openrouter")
    assert (row.model, row.prompt_tokens, row.completion_tokens) == ("vendor/model", 10, 20)
    assert (row.cost, row.first_token_ms, row.duration_ms) == (0.0025, 300, 1_500)
    assert (row.attempts, row.fallback_reason, row.outcome) == (2, "unreachable", "ok")


async def test_many_records_are_few_transactions(flaky: Flaky) -> None:
    log = UsageLog(flaky)
    before = flaky.writes
    for number in range(2 * BATCH + 1):
        log.add(record(f"r-{number}"))
    await log.flush()
    assert flaky.writes - before == 3
    assert [row.request_id for row in await rows(flaky)] == [
        f"r-{number}" for number in range(2 * BATCH + 1)
    ]


async def test_what_is_noted_is_written_by_itself_and_the_rest_at_the_end(
    flaky: Flaky,
) -> None:
    log = UsageLog(flaky, linger_s=0.001)
    before = flaky.writes
    async with log.written():
        log.add(record("first"))
        async with asyncio.timeout(50):
            await flaky.asked.wait()
            await log.flush()  # waits for the one that is under way
        assert flaky.writes - before == 1
    slow = UsageLog(flaky, linger_s=3600)
    async with slow.written():
        slow.add(record("last"))
    assert [row.request_id for row in await rows(flaky)] == ["first", "last"]


async def test_a_full_batch_does_not_wait(flaky: Flaky) -> None:
    log = UsageLog(flaky, linger_s=3600)
    before = flaky.writes
    async with log.written():
        for number in range(BATCH):
            log.add(record(f"r-{number}"))
        async with asyncio.timeout(50):
            await flaky.asked.wait()
            await log.flush()  # waits for the one that is under way
        assert flaky.writes - before == 1


async def test_records_wait_for_a_database_that_is_away(flaky: Flaky) -> None:
    log = UsageLog(flaky, linger_s=0.001)
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    flaky.is_away = True
    async with log.written():
        log.add(record())
        async with asyncio.timeout(50):
            await flaky.asked.wait()
        assert log.waiting == 1
        flaky.is_away = False
    assert len(await rows(flaky)) == 1
    assert log.lost == 0
    assert "usage.written_again" in stream.getvalue()


async def test_what_finds_no_room_is_counted_and_the_oldest_are_kept(flaky: Flaky) -> None:
    log = UsageLog(flaky, room=2, linger_s=3600)
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    async with log.written():
        for number in range(5):
            log.add(record(f"r-{number}"))
        assert (log.waiting, log.lost) == (2, 3)
    assert [row.request_id for row in await rows(flaky)] == ["r-0", "r-1"]
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["event"], last["count"]) == ("usage.lost", 3)


async def test_a_record_that_no_database_takes_holds_up_no_other(flaky: Flaky) -> None:
    log = UsageLog(flaky)
    log.add(record("before"))
    spoil(log)
    log.add(record("after"))
    assert not await log.flush()
    assert not await log.flush()
    assert await log.flush()
    assert [row.request_id for row in await rows(flaky)] == ["before", "after"]
    assert log.lost == 1


async def test_a_database_that_is_away_for_long_is_not_blamed_on_the_records(
    flaky: Flaky,
) -> None:
    log = UsageLog(flaky)
    log.add(record())
    flaky.is_away = True
    for _ in range(10):
        assert not await log.flush()
    flaky.is_away = False
    assert await log.flush()
    assert (len(await rows(flaky)), log.lost) == (1, 0)


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "postgresql+asyncpg://"])
def test_a_rows_values_stand_in_the_order_in_which_the_statement_takes_them(url: str) -> None:
    statement = insertion(create_async_engine(url).dialect)
    names = statement.partition("(")[2].partition(")")[0].split(", ")
    assert names == [it.name for it in msgspec.structs.fields(UsageRecord)]
    values = statement.partition("VALUES (")[2].partition(") ON CONFLICT")[0].split(", ")
    places = [value.partition("::")[0] for value in values]
    numbered = [f"${number}" for number in range(1, len(names) + 1)]
    assert places == (["?"] * len(names) if url.startswith("sqlite") else numbered)


def test_a_driver_that_takes_values_in_another_way_stops_the_start() -> None:
    with pytest.raises(RuntimeError, match="sqlite/aiosqlite takes the values"):
        insertion(aiosqlite.dialect(paramstyle="named"))


@pytest.fixture(params=["sqlite", "postgresql"])
async def either(request: pytest.FixtureRequest, config: GatewayConfig) -> AsyncGenerator[Flaky]:
    """A database of each kind."""
    if request.param == "sqlite":
        async with opened_at(config.database) as opened:
            yield opened
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    async with server.database() as section, opened_at(section) as opened:
        yield opened


async def test_a_batch_that_was_kept_without_anybody_being_told_is_not_kept_twice(
    either: Flaky,
) -> None:
    log = UsageLog(either)
    log.add(record("first"))
    log.add(record("second"))
    either.loses_the_answer = True
    assert not await log.flush()
    either.loses_the_answer = False
    log.add(record("first"))  # another request, whose client chose the same id
    assert await log.flush()
    kept = [row.request_id for row in await rows(either)]
    assert kept == ["first", "second", "first"]
    assert (log.lost, log.waiting) == (0, 0)


async def test_names_and_numbers_that_others_made_up_are_made_to_fit(flaky: Flaky) -> None:
    log = UsageLog(flaky)
    log.add(
        record(
            "r" * 500,
            model="a\0b\ud800" + "c" * 500,
            prompt_tokens=2**80,
            first_token_ms=2**40,
        )
    )
    assert await log.flush()
    (row,) = await rows(flaky)
    assert row.request_id == "r" * 128
    assert row.model == "ab?" + "c" * 197
    assert row.prompt_tokens == 2**63 - 1
    assert row.first_token_ms == 2**31 - 1


async def test_a_gateway_that_stops_does_not_wait_for_long(
    flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "LAST_WRITE_S", 0.01)
    log = UsageLog(flaky, linger_s=3600)
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    async with asyncio.timeout(50), log.written():
        flaky.hangs = True
        log.add(record())
    assert json.loads(stream.getvalue().splitlines()[-1])["event"] == "usage.lost"
    assert (log.lost, log.waiting) == (1, 0)


async def test_what_is_lost_is_said_while_it_happens_and_once(flaky: Flaky) -> None:
    log = UsageLog(flaky, room=BATCH, linger_s=3600)
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    async with asyncio.timeout(50), log.written():
        for number in range(BATCH + 7):
            log.add(record(f"r-{number}"))
        await flaky.asked.wait()
        await log.flush()
    lost = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["count"]) for line in lost] == [("usage.lost", 7)]


async def test_the_control_plane_writes_down_what_was_noted_before_it_closes(
    config: GatewayConfig, clock: FakeClock
) -> None:
    async with open_control_plane(config, clock) as control:
        control.usage.add(record(started_at=int(clock())))
    async with open_control_plane(config, clock) as control:
        assert len(await rows(control.database)) == 1
