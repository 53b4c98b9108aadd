"""Tokens and certificates with short lifetimes, while one stream runs across their ends."""

import pytest

from demo.processes import Process, is_named
from demo.settings import Settings
from support.canaries import Canaries
from support.house import StackMaker, client_of, endless_stream
from support.model_server import FakeModelServer, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Renewed after two thirds at the latest: what is left is for a slow machine to do so in, and for
# the stream to end before its link does with its certificate.
TOKEN_S = 12
CERTIFICATE_S = 45
ROTATED_S = 120.0
SHORT_LIVES: Settings = {
    "tunnels.token_lifetime_s": TOKEN_S,
    "tunnels.certificate_lifetime_s": CERTIFICATE_S,
}


async def happens(agent: Process, name: str) -> None:
    """Wait for the next event of this name."""
    since = len(agent.events)
    await agent.event(lambda event: is_named(event, name), ROTATED_S, since)


async def test_a_stream_runs_across_rotations_without_a_missing_byte(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    async with make_stack(gateway=SHORT_LIVES) as stack:
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        agent = stack.agents["agent-alice"]
        async with (
            client_of(stack, tunnel) as client,
            endless_stream(client, model_server, "rotation") as pieces,
        ):
            for name in ("token.refreshed", "token.refreshed", "certificate.renewed"):
                await happens(agent, name)
    assert pieces
    assert "".join(pieces) == text(len(pieces))
