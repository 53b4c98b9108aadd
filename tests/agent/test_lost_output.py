"""The agent while what it prints is lost or not read: it serves, and finishes its work."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from byoai_agent.exits import OK
from byoai_agent.state import StateDirectory
from byoai_agent.statusfile import AgentReport
from support.agent_commands import AGENT, ENDED_S, code_of, environment, joined
from support.fake_gateway import FakeGateway
from support.waiting import until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it fills and closes pipes by number")


def gone() -> tuple[int, int]:
    """A pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    return -1, writer


def unread() -> tuple[int, int]:
    """A pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("pipe", [gone, unread], ids=["reader gone", "nobody reads"])
async def test_an_agent_runs_without_its_log(
    gateway: FakeGateway, state: str, pipe: Callable[[], tuple[int, int]], form: str
) -> None:
    await joined(gateway, state)
    reader, writer = pipe()
    process = await asyncio.create_subprocess_exec(
        *(*AGENT, "run", "--state-dir", state, "--log-format", form),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        env=environment(),
    )
    try:
        async with asyncio.timeout(ENDED_S):
            await until(lambda: has_failed_to_link(state))
            assert "/agent/v1/token" in gateway.calls
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == OK
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        for descriptor in {reader, writer} - {-1}:
            os.close(descriptor)


def has_failed_to_link(state: str) -> bool:
    """It has told of this already, and went on to write it down."""
    content = StateDirectory(Path(state)).status()
    if content is None:
        return False
    return any(link.fault for link in msgspec.json.decode(content, type=AgentReport).links)


async def test_joining_is_finished_when_its_reader_has_gone(
    gateway: FakeGateway, state: str
) -> None:
    """`join | head -1`: the code is spent, so the keys must be saved."""
    _, writer = gone()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "byoai_agent"),
        *("join", code_of(gateway), "--state-dir", state),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    os.close(writer)
    async with asyncio.timeout(ENDED_S):
        _, err = await process.communicate()
    assert (process.returncode, err) == (OK, b"")
    assert StateDirectory(Path(state)).membership().agent_id == "agent-1"
