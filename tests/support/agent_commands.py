"""The agent's commands as real processes, each of which ends with its test."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from byoai_agent.exits import OK
from byoai_shared import joincode
from byoai_shared.identity import new_tunnel_id
from byoai_shared.joincode import JoinCode
from byoai_shared.secret import Secret
from demo.lifeline import Lifeline
from support.fake_gateway import FakeGateway

SECRET = "s" * 43
AGENT = (sys.executable, "-m", "byoai_agent")
ENDED_S = 50.0
"""A limit for what hangs, below that of a test."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Everything, in one line however the terminal wrapped it."""
        return " ".join((self.out + self.err).split())


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", **extra}


@asynccontextmanager
async def started(*command: str, **env: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process that ends with the test."""
    lifeline = Lifeline()
    with lifeline.tied(command) as (tied, stdin):
        process = await asyncio.create_subprocess_exec(
            *tied,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(**env),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        lifeline.cut()


async def outcome_of(*command: str, **env: str) -> Ended:
    async with started(*command, **env) as process, asyncio.timeout(ENDED_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def agent(*arguments: str, **env: str) -> Ended:
    return await outcome_of(*AGENT, *arguments, **env)


def code_of(gateway: FakeGateway) -> str:
    return joincode.encode(JoinCode(gateway.url, new_tunnel_id(), Secret(SECRET)))


async def joined(gateway: FakeGateway, state: str, *more: str) -> None:
    ended = await agent("join", code_of(gateway), "--state-dir", state, *more)
    assert ended.code == OK, ended.said
