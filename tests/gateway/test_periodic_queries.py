"""What a gateway asks its database again and again, it finds by an index.

Every statement of the upkeep is noted while it runs, and the database is asked how it would go
about it; so a query that is new is found here as well.
"""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from sqlalchemy import event, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection

from byoai_gateway import deletion
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.join_codes import forget_old_codes
from byoai_gateway.readiness import Readiness
from byoai_gateway.schema import denials, join_codes, secrets
from byoai_gateway.usage import UsageRecord
from support.control import FakeClock, RelayLinksAsTold, invitation, joined_agent
from support.garbage import cyclic_garbage

FEW_ROWS: Final = frozenset({"signing_keys", "revoked_services"})
"""Tables that stay small whatever users do.

They hold the signing key in use and those that were before, and a row for each gateway or relay
whose certificate an operator revoked.
"""

Asked = dict[str, Any]
"""Statements and what they were asked with."""


@asynccontextmanager
async def noted(control: ControlPlane) -> AsyncGenerator[Asked]:
    """Note every statement meanwhile."""
    asked: Asked = {}
    engine = control.database._engine.sync_engine

    def note(
        _connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool
    ) -> None:
        asked[statement] = values[0] if many else values

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def upkeep(control: ControlPlane, readiness: Readiness) -> None:
    """Everything that `ControlPlane.keep_up` and the doors do without being asked by a user."""
    await control._look()()
    await control.trust.refresh()
    await control.renew()
    await control.tidy()
    await control.name_claim.refresh()
    await control.usage.flush()
    assert await readiness.why_not() == ""


def record(clock: FakeClock) -> UsageRecord:
    return UsageRecord(
        request_id="1", user_id="alice", started_at=int(clock()), endpoint="/models",
        provider="default", duration_ms=1, attempts=1, outcome="ok",
    )  # fmt: skip


async def all_asked(control: ControlPlane, clock: FakeClock) -> Asked:
    """What the upkeep asks when there is something of everything to do."""
    agent = await joined_agent(control)
    await control.registry.remove_agent("alice", agent.tunnel_id, agent.agent_id)
    await control.registry.revoke("alice", agent.tunnel_id)
    async with control.database.writing() as connection:
        await connection.execute(update(secrets).values(key_id="older"))
    async with noted(control) as asked:
        control.usage.add(record(clock))
        await upkeep(control, Readiness(control.database, RelayLinksAsTold()))
    return asked


def sqlite_scans(details: list[str]) -> Iterator[str]:
    """The tables that a plan of SQLite reads whole."""
    for detail in details:
        found = re.match(r"SCAN (?!CONSTANT)(\w+)", detail)
        if found:
            yield found.group(1)


async def scanned_by_sqlite(connection: AsyncConnection, statement: str, values: Any) -> list[str]:
    plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
    return list(sqlite_scans([row.detail for row in plan]))


def postgresql_scans(plan: dict[str, Any]) -> Iterator[str]:
    """The tables that a plan of PostgreSQL reads whole, by an index or without; not its own."""
    kind = plan["Node Type"]
    name = plan.get("Relation Name") or plan.get("Index Name", "")
    is_whole = kind == "Seq Scan" or ("Index" in kind and "Index Cond" not in plan)
    if is_whole and not name.startswith("pg_"):
        yield name
    for below in plan.get("Plans", ()):
        yield from postgresql_scans(below)


async def scanned_by_postgresql(
    connection: AsyncConnection, statement: str, values: Any
) -> list[str]:
    # With so few rows it would read any table whole; so it does that only where nothing else works.
    await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    found = await connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", values)
    plans: list[dict[str, Any]] = found.scalar_one()
    return [table for it in plans for table in postgresql_scans(it["Plan"])]


def is_query(statement: str) -> bool:
    return statement.split(maxsplit=1)[0] in {"SELECT", "UPDATE", "DELETE", "INSERT"}


async def test_no_periodic_query_reads_a_table_whole(
    control: ControlPlane, clock: FakeClock
) -> None:
    asked = await all_asked(control, clock)
    queries = {it: values for it, values in asked.items() if is_query(it)}
    assert len(queries) > 10
    is_sqlite = control.database.dialect.name == "sqlite"
    scanned = scanned_by_sqlite if is_sqlite else scanned_by_postgresql
    wrong: dict[str, list[str]] = {}
    async with control.database.writing() as connection:
        for statement, values in queries.items():
            tables = await scanned(connection, statement, values)
            if not FEW_ROWS.issuperset(tables):
                wrong[statement] = tables
    assert wrong == {}


async def test_no_periodic_query_compares_each_row_with_all_denials(
    control: ControlPlane, clock: FakeClock
) -> None:
    """PostgreSQL does that with NOT IN when they do not fit its memory for one query."""
    if control.database.dialect.name != "postgresql":
        pytest.skip("SQLite makes an index for it")
    asked = await all_asked(control, clock)
    until = int(clock()) + 1000
    many = [
        {"subject": f"t{n}", "user_id": "m", "revision": 1, "denied_at": 1, "denied_until": until}
        for n in range(10_000)
    ]
    async with control.database.writing() as connection:
        await connection.execute(insert(denials), many)
        await connection.exec_driver_sql("ANALYZE denials")
        await connection.exec_driver_sql("SET LOCAL work_mem = '64kB'")
        for statement, values in asked.items():
            if is_query(statement):
                found = await connection.exec_driver_sql(f"EXPLAIN {statement}", values)
                assert "Materialize" not in "".join(found.scalars()), statement


async def test_the_upkeep_leaves_nothing_in_reference_cycles(
    control: ControlPlane, clock: FakeClock
) -> None:
    readiness = Readiness(control.database, RelayLinksAsTold())
    await upkeep(control, readiness)  # what is made once
    with cyclic_garbage() as left:
        for _ in range(3):
            control.usage.add(record(clock))
            await upkeep(control, readiness)
    assert not left


async def test_a_users_tunnels_are_counted_without_those_that_are_revoked(
    control: ControlPlane,
) -> None:
    async with noted(control) as asked:
        await invitation(control)
    (counting,) = [it for it in asked if re.match(r"SELECT count.*\sFROM tunnels\s", it)]
    index = "ix_tunnels_live_user_id"
    async with control.database.writing() as connection:
        if control.database.dialect.name == "postgresql":
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            found = await connection.exec_driver_sql(f"EXPLAIN {counting}", asked[counting])
            assert index in "".join(found.scalars())
        else:
            plan = await connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {counting}", asked[counting]
            )
            assert [index in row.detail for row in plan] == [True]


async def test_what_is_over_is_deleted_some_at_a_time(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "BATCH", 2)
    tunnel_id = (await invitation(control)).tunnel_id
    rows = [
        {"secret_hash": str(it), "tunnel_id": tunnel_id, "expires_at": int(clock())}
        for it in range(5)
    ]
    async with control.database.writing() as connection:
        await connection.execute(join_codes.delete())
        await connection.execute(insert(join_codes), rows)
    clock.advance(2 * 86_400)
    stops = iter((False, True))
    await forget_old_codes(control.database, clock(), lambda: next(stops))
    assert await remaining(control) == 3
    await forget_old_codes(control.database, clock())
    assert await remaining(control) == 0


async def remaining(control: ControlPlane) -> int:
    """How many codes there are."""
    async with control.database.reading() as connection:
        return len((await connection.execute(join_codes.select())).all())
