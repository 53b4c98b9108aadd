"""One chain for all cases."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio

from fidelity.chain import Chain, open_chain


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Chain]:
    """A gateway with all routes; what a case leaves behind is in no other's way."""
    async with open_chain(tmp_path_factory.mktemp("fidelity")) as opened:
        yield opened


def is_last(item: pytest.Item) -> bool:
    """Whether the gateway learns from a case, which must then come behind all others."""
    spec: Any = getattr(item, "callspec", None)
    return spec is not None and getattr(spec.params.get("case"), "is_last", False) is True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever the order is, cases that teach the gateway something come last."""
    items.sort(key=is_last)
