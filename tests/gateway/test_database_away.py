"""Requests of users who are known go on while the database is stopped, frozen, faulty or full."""

import asyncio
import resource
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
from sqlalchemy import event

from byoai_gateway import availability
from byoai_gateway.control_plane import ControlPlane
from byoai_gateway.database import DatabaseUnavailable
from byoai_gateway.metrics import GatewayCollector, metrics_page
from byoai_gateway.presence import PresenceMap
from byoai_gateway.routes import RegistryRoutes
from byoai_gateway.vault import KeysUnavailable
from demo.processes import Process
from demo.settings import write_settings
from support.chain import bring_own, chain
from support.control import USERS_SECRET, FakeClock, bearer, joined_agent, sqlite
from support.gateway import CHAT, PREFERENCES, Gateway, open_gateway
from support.postgres import PostgresServer
from support.provider import Provider

WARM: Final = ("alice", "bob")
ROUNDS: Final = 10

Away = Callable[[PostgresServer], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def stopped(server: PostgresServer) -> AsyncGenerator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a database is back is found at once."""
    monkeypatch.setattr(availability, "PROBE_EVERY_S", 0.0)


def look_up_each_time(gateway: Gateway) -> None:
    """Let every request ask the database, as it is when users ask now and then."""
    gateway.control.preferences._known._fresh_s = -1.0


async def warmed_up(gateway: Gateway) -> None:
    await bring_own(gateway, user="alice")
    for user in WARM:
        assert (await gateway.chat(user=user)).status == 200
    look_up_each_time(gateway)


async def statuses(gateway: Gateway) -> list[int]:
    """What a stream of requests of users who are known is answered."""
    asked = [gateway.chat(user=user) for _ in range(ROUNDS) for user in WARM]
    return [answer.status for answer in await asyncio.gather(*asked)]


async def served_again(gateway: Gateway, user: str) -> None:
    while True:
        if (await gateway.chat(user=user)).status == 200:
            return


@pytest.mark.parametrize("away", [stopped, PostgresServer.frozen])
async def test_while_postgresql_is_away_users_who_are_known_are_served(
    tmp_path: Path, postgres: PostgresServer, default: Provider, own: Provider, away: Away
) -> None:
    async with postgres.database() as database:
        quick = msgspec.structs.replace(database, answer_timeout_s=0.3)
        config = chain(tmp_path, default, own, database=quick)
        async with open_gateway(config, FakeClock()) as gateway:
            await warmed_up(gateway)
            async with away(postgres):
                assert await statuses(gateway) == [200] * ROUNDS * len(WARM)
                unknown = await gateway.chat(user="carol")
                assert (unknown.status, unknown.error["code"]) == (503, "database_unavailable")
                assert unknown.headers["retry-after"] == "2"
                saving = await gateway.ask({"fallbackToDefault": False}, path=PREFERENCES)
                assert (saving.status, saving.error["code"]) == (503, "database_unavailable")
                assert await statuses(gateway) == [200] * ROUNDS * len(WARM)
                assert (
                    "the database has not answered" in await gateway.data_path.readiness.degraded()
                )
                page = metrics_page(GatewayCollector(gateway.data_path)).body.decode()
                assert "byoai_gateway_database_up 0.0" in page
                assert not await gateway.control.usage.flush()
            await served_again(gateway, "carol")
            await served_again(gateway, "alice")
            outcomes = [it.outcome for it in await gateway.records()]
            assert outcomes.count("ok") >= 2 * ROUNDS * len(WARM) + len(WARM) + 2
            assert gateway.control.usage.lost == 0
            assert gateway.control.database.availability.stale_answers > 0


async def test_a_frozen_postgresql_holds_up_nobody_who_is_known(
    tmp_path: Path, postgres: PostgresServer, default: Provider, own: Provider
) -> None:
    """The database would be waited for longer than this test may take."""
    async with postgres.database() as database:
        patient = msgspec.structs.replace(database, answer_timeout_s=500.0)
        config = chain(tmp_path, default, own, database=patient)
        async with open_gateway(config, FakeClock()) as gateway:
            await warmed_up(gateway)
            async with postgres.frozen():
                assert await statuses(gateway) == [200] * ROUNDS * len(WARM)
            await served_again(gateway, "carol")


async def test_while_sqlite_fails_users_who_are_known_are_served(
    tmp_path: Path, default: Provider, own: Provider
) -> None:
    is_faulty = False

    def execute(*_: Any) -> None:
        if is_faulty:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

    config = chain(tmp_path, default, own)
    async with open_gateway(config, FakeClock()) as gateway:
        event.listen(gateway.control.database._engine.sync_engine, "do_execute", execute)
        await warmed_up(gateway)
        is_faulty = True
        assert await statuses(gateway) == [200] * ROUNDS * len(WARM)
        unknown = await gateway.chat(user="carol")
        assert (unknown.status, unknown.error["code"]) == (503, "database_unavailable")
        is_faulty = False
        await served_again(gateway, "carol")
        outcomes = [it.outcome for it in await gateway.records()]
        assert outcomes.count("ok") == ROUNDS * len(WARM) + len(WARM) + 1


async def test_tunnels_that_are_known_are_used_for_as_long_as_revocations_allow(
    control: ControlPlane, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await joined_agent(control)
    routes = RegistryRoutes(control.lookup, PresenceMap(), stale_s=300.0)
    for known in (routes._routes, routes._pins):
        known._clock = clock
    before = await routes.route("alice", None)
    pins = await routes.pins(agent.tunnel_id)

    async def gone(_: str) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(control.lookup, "usable_of", gone)
    monkeypatch.setattr(routes._pins, "_look_up", gone)
    routes.forget_pins(agent.tunnel_id)  # as when the agent has reconnected
    clock.advance(300)
    assert await routes.route("alice", None) == before
    assert await routes.pins(agent.tunnel_id) == pins
    clock.advance(1)
    for late in (routes.route("alice", None), routes.pins(agent.tunnel_id)):
        with pytest.raises(DatabaseUnavailable):
            await late


async def test_who_has_a_route_has_the_certificates_to_connect_anew(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await joined_agent(control)
    routes = RegistryRoutes(control.lookup, PresenceMap())
    assert await routes.route("alice", None) is not None

    async def gone(_: str) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(routes._pins, "_look_up", gone)
    routes.forget_pins(agent.tunnel_id)
    assert await routes.pins(agent.tunnel_id) == (agent.end_to_end_pem.encode(),)


@pytest.mark.parametrize("away", [DatabaseUnavailable, KeysUnavailable])
async def test_what_goes_away_between_two_questions_is_not_a_revoked_tunnel(
    control: ControlPlane, monkeypatch: pytest.MonkeyPatch, away: type[Exception]
) -> None:
    await joined_agent(control)
    routes = RegistryRoutes(control.lookup, PresenceMap())
    before = await routes.route("alice", None)
    routes._routes._fresh_s = -1.0

    async def gone(_: str) -> None:
        raise away

    monkeypatch.setattr(control.lookup, "authentication_key", gone)
    assert await routes.route("alice", None) == before


# -- a full disk


@asynccontextmanager
async def gateway_process(directory: Path, default: Provider) -> AsyncGenerator[Process]:
    """A gateway of its own process: a limit on the sizes of its files concerns nobody else."""
    settings = directory / "gateway.toml"
    write_settings(
        settings,
        {
            "listen.port": 0,
            "ops.port": 0,
            "database.url": sqlite(directory).url,
            "vault.key_file": str(directory / "vault.key"),
            "users.secret": USERS_SECRET,
            "default_provider.base_url": default.url,
            "default_provider.model": "default-model",
            "log.form": "json",
        },
    )
    program = str(Path(sys.executable).with_name("byoai-gateway"))
    command = (program, "serve", "--config", str(settings))
    async with Process("gateway", command, directory=directory) as process:
        yield process


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limits of other processes here")
async def test_on_a_full_disk_requests_are_served_and_operators_are_told(
    tmp_path: Path, default: Provider
) -> None:
    clock = FakeClock()
    async with gateway_process(tmp_path, default) as process, aiohttp.ClientSession() as client:
        ready = await process.ready()
        public, ops = f"http://{ready['address']}", f"http://{ready['ops']}"

        async def ask(path: str, body: Any) -> tuple[int, Any]:
            headers = {"Authorization": bearer("alice", clock)}
            async with client.post(public + path, json=body, headers=headers) as response:
                return response.status, await response.json()

        async def readyz() -> tuple[int, str]:
            async with client.get(f"{ops}/readyz") as response:
                return response.status, await response.text()

        chat: dict[str, Any] = {"model": "default-model", "messages": []}
        assert (await ask(CHAT, chat))[0] == 200
        limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        status, answer = await ask(PREFERENCES, {"fallbackToDefault": True})
        assert (status, answer["error"]["code"]) == (503, "database_not_writable")
        status, text = await readyz()
        assert (status, text.splitlines()[0]) == (200, "ready")
        assert "degraded: the database takes no writes" in text
        assert [(await ask(CHAT, chat))[0] for _ in range(3)] == [200] * 3
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
        await process.event(lambda it: it["event"] == "database.writable_again")
        assert (await ask(PREFERENCES, {"fallbackToDefault": True}))[0] == 200
        assert "degraded" not in (await readyz())[1]
