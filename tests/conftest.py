"""What concerns every test: the worker that runs it, and the log of the process.

`make test` runs a worker process for each processor.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_ONE_AFTER_THE_OTHER: Final = ("demo", "hostile", "system")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Take back what `logs.configure` sets, or a later test would miss what it looks for."""
    root, ours = logging.getLogger(), logging.getLogger("byoai")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that start whole chains of programs to one worker.

    They share a chain, and the last of them reads the logs of all.
    """
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in _ONE_AFTER_THE_OTHER:
            item.add_marker(pytest.mark.xdist_group("chains"))
