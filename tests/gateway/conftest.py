from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from byoai_gateway.config import GatewayConfig
from byoai_gateway.control_plane import ControlPlane, open_control_plane
from support.control import Api, FakeClock, gateway_config, open_api


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def config(tmp_path: Path) -> GatewayConfig:
    return gateway_config(tmp_path)


@pytest.fixture
async def control(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[ControlPlane]:
    async with open_control_plane(config, clock) as opened:
        yield opened


@pytest.fixture
async def api(config: GatewayConfig, clock: FakeClock) -> AsyncGenerator[Api]:
    async with open_api(config, clock) as opened:
        yield opened
