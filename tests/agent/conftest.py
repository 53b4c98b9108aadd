"""What the agent's tests share."""

import pytest

from support.disks import FailingDisk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    """The disk that the agent's state is on; it fails when told to."""
    return FailingDisk(monkeypatch)
