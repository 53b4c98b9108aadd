"""The commands on disks that are full, read-only or without locks: real processes, real disks."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from byoai_agent.exits import FAILED, OK
from byoai_agent.state import StateDirectory
from support.agent_commands import (
    AGENT,
    ENDED_S,
    agent,
    code_of,
    joined,
    outcome_of,
    started,
)
from support.disks import NEEDS_MOUNTS
from support.fake_gateway import FakeGateway
from support.model_server import FakeModelServer

if sys.platform == "linux":
    import resource

LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="it uses prlimit(2)")
NO_LOCKS = """
import errno, fcntl, os
def flock(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


class Running:
    """A running agent and the JSON lines that it logs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def line(self, event: str) -> dict[str, Any]:
        """The next line of an event."""
        assert self.process.stderr is not None
        while True:
            self.lines.append(json.loads(await self.process.stderr.readline()))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]

    async def stopped(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        _, err = await self.process.communicate()
        self.lines += [json.loads(line) for line in err.splitlines()]
        assert self.process.returncode is not None
        return self.process.returncode

    def events(self, event: str) -> int:
        """How often an event was logged."""
        return sum(line["event"] == event for line in self.lines)


@asynccontextmanager
async def run(*command: str, **env: str) -> AsyncGenerator[Running]:
    async with (
        started(*command, BYOAI_AGENT_LOG__FORM="json", **env) as process,
        asyncio.timeout(ENDED_S),
    ):
        yield Running(process)


@LINUX_ONLY
async def test_a_disk_that_fills_up_stops_nothing(
    gateway: FakeGateway, server: FakeModelServer, state: str
) -> None:
    """The limit makes the kernel refuse every byte that this process writes to a file."""
    await joined(gateway, state, "--upstream", server.url)
    async with run(*AGENT, "run", "--state-dir", state) as one:
        await one.line("link.unreachable")
        pid, limit = one.process.pid, resource.RLIMIT_FSIZE
        _, most = resource.prlimit(pid, limit)
        resource.prlimit(pid, limit, (0, most))
        told = await one.line("state.not_written")
        assert "status.json: File too large" in told["reason"]
        assert "the agent goes on" in told["reason"]
        resource.prlimit(pid, limit, (most, most))
        await one.line("state.written")
        assert await one.stopped() == OK
    assert one.events("state.not_written") == 1
    assert one.events("agent.ended") == 0
    assert not list(Path(state).glob(".*"))


def on_a_disk(state: str, work: str, *command: str, size: str = "256k") -> list[str]:
    """Run a command where a copy of the state is on a small file system of its own."""
    script = (
        'set -e; cp -a "$1" "$1.copy"; mount -t tmpfs -o size="$2",mode=700 tmpfs "$1"; '
        f'cp -a "$1.copy/." "$1"; {work}; shift 2; exec "$@"'
    )
    return ["unshare", "--mount", "sh", "-c", script, "sh", state, size, *command]


READ_ONLY = 'mount -o remount,ro "$1"'
FULL = 'dd if=/dev/zero of="$1/filler" bs=4k 2>/dev/null || true'


@NEEDS_MOUNTS
@pytest.mark.parametrize(
    ("work", "reason"),
    [(READ_ONLY, "Read-only file system"), (FULL, "No space left on device")],
    ids=["read-only", "full"],
)
async def test_an_agent_starts_on_a_disk_that_takes_nothing(
    gateway: FakeGateway, server: FakeModelServer, state: str, work: str, reason: str
) -> None:
    await joined(gateway, state, "--upstream", server.url)
    async with run(*on_a_disk(state, work, *AGENT, "run", "--state-dir", state)) as one:
        told = await one.line("state.not_written")
        assert reason in told["reason"]
        await one.line("link.unreachable")
        assert await one.stopped() == OK


@NEEDS_MOUNTS
@pytest.mark.parametrize(
    ("work", "reason"),
    [(READ_ONLY, "mount it writable"), (FULL, "free some space")],
    ids=["read-only", "full"],
)
async def test_checking_names_a_disk_that_takes_nothing(
    gateway: FakeGateway, state: str, work: str, reason: str
) -> None:
    await joined(gateway, state)
    ended = await outcome_of(*on_a_disk(state, work, *AGENT, "check", "--state-dir", state))
    assert ended.code == FAILED
    assert f"✗ cannot write {state}" in ended.said
    assert reason in ended.said
    assert "all is well" not in ended.said


async def test_checking_leaves_nothing_on_the_disk(gateway: FakeGateway, state: str) -> None:
    await joined(gateway, state)
    before = sorted(Path(state).iterdir())
    ended = await agent("check", "--state-dir", state)
    assert "✓ the state directory" in ended.said
    assert sorted(Path(state).iterdir()) == before


@NEEDS_MOUNTS
@pytest.mark.parametrize("work", [READ_ONLY, FULL], ids=["read-only", "full"])
async def test_a_join_code_is_not_spent_on_a_disk_that_takes_nothing(
    gateway: FakeGateway, state: str, work: str
) -> None:
    Path(state).mkdir(mode=0o700)
    command = (*AGENT, "join", code_of(gateway), "--state-dir", state)
    ended = await outcome_of(*on_a_disk(state, work, *command))
    assert ended.code == FAILED
    assert "✗ cannot write" in ended.said
    assert "Traceback" not in ended.said
    assert gateway.calls == []


@pytest.fixture
def no_locks(tmp_path: Path) -> dict[str, str]:
    """What makes flock(2) fail as on NFS without its lock service."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NO_LOCKS)
    return {"PYTHONPATH": str(folder), "TMPDIR": str(tmp_path)}


@pytest.mark.skipif(os.name != "posix", reason="flock(2) is POSIX")
async def test_a_file_system_without_locks_is_locked_elsewhere(
    gateway: FakeGateway, server: FakeModelServer, state: str, no_locks: dict[str, str]
) -> None:
    await joined(gateway, state, "--upstream", server.url)
    async with run(*AGENT, "run", "--state-dir", state, **no_locks) as one:
        told = await one.line("state.notice")
        assert "cannot be locked (No locks available)" in told["reason"]
        assert "no agent on another host" in told["reason"]
        second = await agent("run", "--state-dir", state, **no_locks)
        assert second.code == FAILED
        assert "another byoai-agent runs" in second.said
        assert await one.stopped() == OK


@pytest.mark.skipif(os.name != "posix", reason="no mode bits on Windows")
async def test_a_directory_as_systemd_makes_it_is_mended_and_told(
    gateway: FakeGateway, server: FakeModelServer, state: str
) -> None:
    await joined(gateway, state, "--upstream", server.url)
    Path(state).chmod(0o755)
    async with run(*AGENT, "run", "--state-dir", state) as one:
        told = await one.line("state.notice")
        assert "StateDirectoryMode=0700" in told["reason"]
        await one.line("link.unreachable")
        assert await one.stopped() == OK
    assert Path(state).stat().st_mode & 0o777 == 0o700


STALE: list[Callable[[Path], object]] = [
    lambda report: report.unlink(),
    lambda report: report.write_text(
        re.sub('"written_at":[0-9]+', '"written_at":5', report.read_text())
    ),
]


@pytest.mark.parametrize("spoil", STALE, ids=["no report", "an old report"])
async def test_status_knows_a_running_agent_that_cannot_write_its_report(
    gateway: FakeGateway, server: FakeModelServer, state: str, spoil: Callable[[Path], object]
) -> None:
    await joined(gateway, state, "--upstream", server.url)
    async with run(*AGENT, "run", "--state-dir", state) as one:
        await one.line("link.unreachable")
        assert await one.stopped() == OK
    spoil(Path(state) / "status.json")
    ended = await agent("status", "--state-dir", state)
    assert "the agent does not run" in ended.said
    lock = StateDirectory(Path(state)).lock()
    ended = await agent("status", "--state-dir", state)
    lock.release()
    assert ended.code == FAILED
    assert "problem the agent runs, but has not written its report" in ended.said
    assert "byoai-agent check" in ended.said
