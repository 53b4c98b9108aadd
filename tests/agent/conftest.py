"""What the agent's tests share."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from support.disks import FailingDisk
from support.fake_gateway import FakeGateway, running
from support.model_server import FakeModelServer, serving


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """The disk that the agent's state is on; it fails when told to."""
    return FailingDisk(monkeypatch)


@pytest.fixture
def state(tmp_path: Path) -> str:
    """Where an agent of the test keeps its state."""
    return str(tmp_path / "state")


@pytest_asyncio.fixture
async def gateway() -> AsyncGenerator[FakeGateway]:
    """A control plane to order."""
    async with running(FakeGateway()) as one:
        yield one


@pytest_asyncio.fixture
async def server() -> AsyncGenerator[FakeModelServer]:
    """A model server to order."""
    async with serving() as one:
        yield one
