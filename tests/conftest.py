"""How the tests are shared among worker processes (`make test` runs one for each processor)."""

from pathlib import Path
from typing import Final

import pytest

_ONE_AFTER_THE_OTHER: Final = ("demo", "hostile", "system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that start whole chains of programs to one worker.

    They share a chain, and the last of them reads the logs of all.
    """
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in _ONE_AFTER_THE_OTHER:
            item.add_marker(pytest.mark.xdist_group("chains"))
