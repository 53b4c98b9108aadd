"""A PostgreSQL that is restored from a dump, by the commands of docs/operations.md, under a chain.

Only the gateway stops meanwhile. The relay holds newer trust than the restored database has.
"""

import os
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest
from sqlalchemy.engine import make_url

from byoai_agent.exits import FATAL
from demo.processes import ProcessError, is_named, output_of
from demo.stack import Stack, Tunnel, command_path
from support.canaries import Canaries
from support.house import StackMaker, answered_again
from support.model_server import FakeModelServer, text
from support.postgres import (
    PostgresServer,
    postgres_programs,
    require_programs,
    running_postgres,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROJECT = Path(__file__).resolve().parents[2]
OPERATIONS = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^( *)```\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_EXAMPLE_TIME: Final = "2026-11-28T10:00"
_ENDS_S: Final = 60.0


def recipe(first_word: str) -> str:
    """The first block of commands in the document that begins with a word."""
    blocks = (dedent(block) for _, block in _BLOCK.findall(OPERATIONS))
    return next(block for block in blocks if block.startswith(f"{first_word} "))


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@dataclass(frozen=True, slots=True)
class Operator:
    """Someone who types the document's commands, in the directory where the gateway's files are."""

    stack: Stack
    environ: dict[str, str]

    async def types(self, commands: str) -> None:
        """Run commands in a shell, up to the first one that fails."""
        script = f"set -eu; cd '{self.stack.directory}'\n{commands}"
        await output_of(["/bin/sh", "-c", script], environ=self.environ)

    async def asks_gateway(self, *words: str) -> str:
        """Run a command of the gateway."""
        config = str(self.stack.directory / "gateway.toml")
        return await output_of([command_path("byoai-gateway"), *words, "--config", config])

    async def drops_the_signing_key(self) -> None:
        """Have tokens signed with a new key, which no earlier backup knows."""
        (line,) = (await self.asks_gateway("keys", "list")).splitlines()
        await self.asks_gateway("keys", "drop", line.split()[0])

    async def restores(self) -> None:
        """Stop the gateway, and nothing else, and restore its database."""
        await self.stack.gateway.stop()
        await self.types(recipe("psql"))

    async def starts_the_gateway(self) -> None:
        await self.stack.gateway.start()
        await self.stack.gateway.ready()


@asynccontextmanager
async def operated(make_stack: StackMaker, postgres: PostgresServer) -> AsyncGenerator[Operator]:
    """A chain whose gateway keeps its data in a PostgreSQL database of its own."""
    ours = Path(command_path("byoai-gateway")).parent
    # The server's own programs first: others may be of an older version.
    path = f"{postgres_programs()}:{ours}:{os.environ['PATH']}"
    require_programs(path, "pg_dump", "pg_restore", "psql", "createdb", "jq", "xargs")
    async with postgres.database() as section:
        url = make_url(section.url)
        environ = {
            "PATH": path,
            "PGHOST": str(url.query["host"]),
            "PGUSER": str(url.username),
            "PGDATABASE": str(url.database),
        }
        async with make_stack(gateway={"database.url": section.url}) as stack:
            yield Operator(stack, environ)


class Tenants:
    """The tunnels of a chain, named for what happens to them after the backup."""

    def __init__(self, stack: Stack, model_server: FakeModelServer, canaries: Canaries) -> None:
        self._stack = stack
        self._model_server = model_server
        self._canaries = canaries

    async def opens(self, user: str) -> Tunnel:
        tunnel = await self._stack.open_tunnel(user, [self._model_server.url])
        self._canaries.add(tunnel.token, tunnel.join_code)
        return tunnel

    async def revokes(self, tunnel: Tunnel) -> None:
        """Let its owner revoke a tunnel; returns when its agent has ended for it."""
        await self._stack.call("DELETE", f"/api/tunnel/{tunnel.tunnel_id}", tunnel.token)
        assert await self.ended(tunnel) == FATAL

    async def ended(self, tunnel: Tunnel) -> int:
        return await self._stack.agents[f"agent-{tunnel.user}"].ended(_ENDS_S)

    async def starts_agent(self, tunnel: Tunnel) -> None:
        await self._stack.agents[f"agent-{tunnel.user}"].start()


async def test_a_restored_database_is_believed_by_a_relay_that_holds_newer_trust(
    make_stack: StackMaker,
    postgres: PostgresServer,
    model_server: FakeModelServer,
    canaries: Canaries,
) -> None:
    async with operated(make_stack, postgres) as operator:
        stack, (relay,) = operator.stack, operator.stack.relays
        tenants = Tenants(stack, model_server, canaries)
        kept, revoked = await tenants.opens("kept"), await tenants.opens("revoked")
        await operator.types(recipe("pg_dump"))
        relays_process = relay.pid
        await tenants.revokes(revoked)
        await operator.drops_the_signing_key()
        late = await tenants.opens("late")
        await operator.restores()
        await operator.starts_the_gateway()
        await stack.gateway.event(lambda event: is_named(event, "trust.raised"))
        assert await answered_again(stack, kept) == text(5)
        await tenants.starts_agent(revoked)
        assert await answered_again(stack, revoked) == text(5)
        with pytest.raises(ProcessError, match="answered 404"):
            await stack.is_online(late)
        assert relay.is_running
        assert relay.pid == relays_process


async def test_what_was_revoked_since_the_backup_is_revoked_again_by_the_recipe(
    make_stack: StackMaker,
    postgres: PostgresServer,
    model_server: FakeModelServer,
    canaries: Canaries,
) -> None:
    async with operated(make_stack, postgres) as operator:
        stack = operator.stack
        tenants = Tenants(stack, model_server, canaries)
        kept, revoked = await tenants.opens("kept"), await tenants.opens("revoked")
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        await operator.types(recipe("pg_dump"))
        await tenants.revokes(revoked)
        await operator.restores()
        again = recipe("jq")
        assert _EXAMPLE_TIME in again
        await operator.types(again.replace(_EXAMPLE_TIME, since))
        await operator.starts_the_gateway()
        assert await answered_again(stack, kept) == text(5)
        await tenants.starts_agent(revoked)
        assert await tenants.ended(revoked) == FATAL
