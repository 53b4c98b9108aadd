from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from byoai_gateway.config import DatabaseSection, GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from byoai_shared import logs
from support.control import Api, FakeClock, gateway_config, migrated_sqlite, open_api
from support.logged import Logged
from support.postgres import PostgresServer, running_postgres
from support.provider import Provider, providing


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def logged() -> Logged:
    """What is logged from here on, whatever an earlier test configured."""
    log = Logged()
    logs.configure(form="json", stream=log.stream)
    return log


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncGenerator[DatabaseSection]:
    """Where the test keeps what must last: it runs once on each kind of database."""
    if request.param == "sqlite":
        yield migrated_sqlite(tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    async with server.database() as section:
        yield section


@pytest.fixture
def config(tmp_path: Path, database: DatabaseSection) -> GatewayConfig:
    return gateway_config(tmp_path, database=database)


@pytest.fixture
async def control(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[ControlPlane]:
    async with open_control_plane(config, clock) as opened:
        yield opened


@pytest.fixture
async def api(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[Api]:
    async with open_api(config, clock) as opened:
        yield opened


@pytest.fixture
async def default() -> AsyncGenerator[Provider]:
    """The operator's own provider."""
    async with providing() as provider:
        yield provider


@pytest.fixture
async def own() -> AsyncGenerator[Provider]:
    """Stands for OpenRouter: the one that the user's own key is for."""
    async with providing() as provider:
        yield provider
