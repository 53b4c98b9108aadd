from collections.abc import AsyncGenerator
from typing import Final

import pytest
from sqlalchemy import insert, select, update

from byoai_gateway import deletion
from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.database import Database
from byoai_gateway.provider_config import RecordsSection
from byoai_gateway.records import forget_old_records
from byoai_gateway.schema import agents, audit_log, denials, tunnels, usage_records
from support.control import FakeClock, joined_agent

DAY: Final = 86_400


KEEP: Final = RecordsSection(usage_days=2, audit_days=5)


@pytest.fixture
async def opened(config: GatewayConfig) -> AsyncGenerator[Database]:
    database = await Database.open(config.database)
    yield database
    await database.close()


async def note(database: Database, at: int, name: str) -> None:
    """Write a record of both kinds, of now."""
    async with database.writing() as connection:
        await connection.execute(
            insert(usage_records).values(
                request_id=name,
                user_id="alice",
                started_at=at,
                endpoint="/models",
                provider="default",
                duration_ms=1,
                attempts=1,
                outcome="ok",
            )
        )
        await connection.execute(
            insert(audit_log).values(
                at=at,
                actor="user",
                user_id="alice",
                action="tunnel.register",
                subject=name,
                fields=[],
            )
        )


async def names(database: Database) -> tuple[list[str], list[str]]:
    """What is there of requests, and of changes."""
    async with database.reading() as connection:
        requests = await connection.execute(
            select(usage_records.c.request_id).order_by(usage_records.c.record_id)
        )
        changes = await connection.execute(
            select(audit_log.c.subject).order_by(audit_log.c.entry_id)
        )
        return list(requests.scalars()), list(changes.scalars())


async def test_records_are_deleted_when_their_time_is_over(opened: Database) -> None:
    await note(opened, 0, "old")
    await note(opened, DAY, "new")
    await forget_old_records(opened, KEEP, 2 * DAY)
    assert await names(opened) == (["old", "new"], ["old", "new"])
    await forget_old_records(opened, KEEP, 2 * DAY + 1)
    assert await names(opened) == (["new"], ["old", "new"])
    await forget_old_records(opened, KEEP, 5 * DAY + 1)
    assert await names(opened) == ([], ["new"])


async def test_many_are_deleted_some_at_a_time(
    opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "BATCH", 2)
    for number in range(5):
        await note(opened, number, f"old-{number}")
    await note(opened, 10 * DAY, "new")
    await forget_old_records(opened, KEEP, 10 * DAY)
    assert await names(opened) == (["new"], ["new"])


async def tunnels_left(control: ControlPlane) -> tuple[set[str], set[str]]:
    """The ids of the tunnels that have rows, and of those that have agents."""
    async with control.database.reading() as connection:
        rows = await connection.scalars(select(tunnels.c.tunnel_id))
        of_agents = await connection.scalars(select(agents.c.tunnel_id))
        return set(rows), set(of_agents)


async def test_a_tunnel_is_deleted_with_the_record_of_its_revocation(
    control: ControlPlane, clock: FakeClock
) -> None:
    revoked, denied, live = [(await joined_agent(control, user)).tunnel_id for user in "abc"]
    for user, tunnel_id in (("a", revoked), ("b", denied)):
        await control.registry.revoke(user, tunnel_id)
    all_of_them = {revoked, denied, live}
    async with control.database.writing() as connection:
        await connection.execute(
            update(denials)
            .where(denials.c.subject == denied)
            .values(denied_until=int(clock()) + 9 * DAY)
        )
    clock.advance(5 * DAY)
    await forget_old_records(control.database, KEEP, clock())
    assert await tunnels_left(control) == (all_of_them, all_of_them)
    clock.advance(1)
    await forget_old_records(control.database, KEEP, clock())
    assert await tunnels_left(control) == ({denied, live}, {denied, live})
    clock.advance(5 * DAY)
    await forget_old_records(control.database, KEEP, clock())
    assert await tunnels_left(control) == ({live}, {live})


async def test_the_control_plane_sees_to_it(control: ControlPlane, clock: FakeClock) -> None:
    await note(control.database, int(clock()), "old")
    clock.advance(1000 * DAY)
    await control.tidy()
    assert await names(control.database) == ([], [])
