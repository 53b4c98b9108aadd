"""Tokens and certificates with lifetimes of seconds, while one stream runs across their ends."""

import pytest

from demo.settings import Settings
from support.canaries import PROMPT, Canaries
from support.house import StackMaker, client_of, read_into
from support.model_server import MODELS, FakeModelServer, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN_S = 3
CERTIFICATE_S = 5
SHORT_LIVES: Settings = {
    "tunnels.token_lifetime_s": TOKEN_S,
    "tunnels.certificate_lifetime_s": CERTIFICATE_S,
}
STREAM_S = 9


async def test_a_stream_runs_across_rotations_without_a_missing_byte(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    async with make_stack(gateway=SHORT_LIVES) as stack:
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        agent = stack.agents["agent-alice"]
        async with client_of(stack, tunnel) as client:
            stream = await client.chat.completions.create(
                model=MODELS[0],
                messages=[{"role": "user", "content": PROMPT}],
                stream=True,
                extra_body={"fake": {"tokens": STREAM_S * 50, "every_s": 0.02}},
            )
            pieces: list[str] = []
            await read_into(pieces, stream)
        names = [event["event"] for event in agent.events]
    assert "".join(pieces) == text(STREAM_S * 50)
    assert names.count("token.refreshed") >= 2
    assert names.count("certificate.renewed") >= 1
