"""Where uvloop does not exist (Windows), asyncio's own loop has to do."""

import pytest

from support.canaries import PROMPT, Canaries
from support.house import StackMaker, client_of
from support.model_server import MODELS, FakeModelServer, text

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_whole_chain_runs_without_uvloop(
    make_stack: StackMaker,
    model_server: FakeModelServer,
    canaries: Canaries,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BYOAI_EVENT_LOOP", "asyncio")
    async with make_stack() as stack:
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        async with client_of(stack, tunnel) as client:
            stream = await client.chat.completions.create(
                model=MODELS[0],
                messages=[{"role": "user", "content": PROMPT}],
                stream=True,
                extra_body={"fake": {"tokens": 50}},
            )
            tokens = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(tokens) == text(50)
