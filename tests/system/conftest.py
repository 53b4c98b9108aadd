"""One chain of real processes for most system tests, and what every test may ask of it."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from demo.settings import Settings
from demo.stack import HttpsFiles, Stack
from support.canaries import Canaries
from support.house import House, StackMaker, client_of
from support.model_server import FakeModelServer, serving

LONGEST_S = 300.0
RELAY_SETTINGS: Settings = {"log.level": "debug", "limits.streams_per_tunnel": 160}
AGENT_SETTINGS: Settings = {"log.level": "debug", "limits.concurrent_requests": 160}
GATEWAY_SETTINGS: Settings = {"log.level": "debug", "limits.concurrent_requests": 160}
# Its model server fails to order, for many tests in a row: that is no reason to leave it alone.
HOUSE_SETTINGS: Settings = {**GATEWAY_SETTINGS, "router.breaker_failures": 1000}


@pytest.fixture(scope="session")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Canaries:
    """The secrets of this run; the canary test looks for them in every log."""
    return Canaries(tmp_path_factory.getbasetemp())


@pytest.fixture
def make_stack(tmp_path: Path) -> StackMaker:
    def make(
        *,
        gateway: Settings | None = None,
        relay: Settings | None = None,
        agent: Settings | None = None,
        https: HttpsFiles | None = None,
    ) -> Stack:
        return Stack(
            tmp_path,
            https=https,
            gateway={**GATEWAY_SETTINGS, **(gateway or {})},
            relay={**RELAY_SETTINGS, **(relay or {})},
            agent={**AGENT_SETTINGS, **(agent or {})},
        )

    return make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def model_server() -> AsyncGenerator[FakeModelServer, None]:
    """A model server to order, shared by all."""
    async with serving() as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(
    model_server: FakeModelServer,
    canaries: Canaries,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[House, None]:
    """The chain that tests share which leave it as they found it."""
    directory = tmp_path_factory.mktemp("house")
    async with Stack(
        directory, gateway=HOUSE_SETTINGS, relay=RELAY_SETTINGS, agent=AGENT_SETTINGS
    ) as stack:
        alice = await stack.open_tunnel("alice", [model_server.url])
        bob = await stack.open_tunnel("bob", [model_server.url])
        for tunnel in (alice, bob):
            canaries.add(tunnel.token, tunnel.join_code)
        yield House(stack, model_server, alice, bob)


@pytest_asyncio.fixture(loop_scope="session")
async def alice(house: House) -> AsyncGenerator[AsyncOpenAI, None]:
    """The official client of the first user."""
    async with client_of(house.stack, house.alice) as client:
        yield client


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The canary test reads what all the others have left, so it comes last of all.

    The limit is for what hangs: starting programs takes a slow machine long.
    """
    items.sort(key=lambda item: item.path.name == "test_canary.py")
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(LONGEST_S))
