"""Joining while the disk fails after the code is spent."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from byoai_agent.config import AgentConfig
from byoai_agent.join import Joining
from byoai_agent.state import StateDirectory, StateError
from support.agent_commands import code_of
from support.disks import FailingDisk
from support.fake_gateway import FakeGateway, running


class Clumsy:
    """A person who mends the disk while `join` waits, or does not."""

    def __init__(self, disk: FailingDisk, *, mends_at: int) -> None:
        self.waits = 0
        self._disk = disk
        self._mends_at = mends_at

    async def pause(self, _delay_s: float) -> None:
        self.waits += 1
        if self.waits == self._mends_at:
            self._disk.mend()


async def join(state: StateDirectory, person: Clumsy, disk: FailingDisk) -> str:
    """Join; the disk takes the reserved room and nothing after it."""
    said = io.StringIO()
    console = Console(file=said, width=400)
    joining = Joining(console, state, AgentConfig(), (), replace=False, pause=person.pause)
    async with running(FakeGateway()) as gateway:
        disk.fail(after=1)
        try:
            await joining.run(code_of(gateway))
        finally:
            assert len(gateway.enrolled) == 1
    return said.getvalue()


@pytest.mark.parametrize("mends_at", [1, 3])
async def test_the_keys_of_a_spent_code_wait_for_the_disk(
    tmp_path: Path, disk: FailingDisk, mends_at: int
) -> None:
    state, person = StateDirectory(tmp_path / "state"), Clumsy(disk, mends_at=mends_at)
    said = await join(state, person, disk)
    assert person.waits == mends_at
    assert said.count("No space left on device; free some space") == 1
    assert "The join code is used, so the keys are kept in memory" in said
    assert state.membership().agent_id == "agent-1"
    assert not (state.path / "reserved").exists()


async def test_a_disk_that_stays_full_ends_the_wait(tmp_path: Path, disk: FailingDisk) -> None:
    state, person = StateDirectory(tmp_path / "state"), Clumsy(disk, mends_at=-1)
    with pytest.raises(StateError, match="No space left"):
        await join(state, person, disk)
    assert person.waits == 119
    assert not state.is_joined


async def test_the_keys_get_the_room_that_was_reserved_for_them(
    tmp_path: Path, disk: FailingDisk
) -> None:
    """The disk has room for the reserve or for the keys, not for both."""
    state, person = StateDirectory(tmp_path / "state"), Clumsy(disk, mends_at=-1)
    disk.fill_up(state.path, 40 * 1024)
    said = io.StringIO()
    joining = Joining(
        Console(file=said), state, AgentConfig(), (), replace=False, pause=person.pause
    )
    async with running(FakeGateway()) as gateway:
        await joining.run(code_of(gateway))
    assert person.waits == 0
    assert "No space left" not in said.getvalue()
    assert state.membership().agent_id == "agent-1"
    assert not (state.path / "reserved").exists()
