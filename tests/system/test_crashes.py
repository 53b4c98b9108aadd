"""Parts that die without a goodbye, and what comes back by itself."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from demo.stack import Stack, Tunnel
from support.canaries import PROMPT, Canaries
from support.house import (
    ClientErrors,
    StackMaker,
    answered,
    answered_again,
    client_of,
    read_into,
)
from support.model_server import MODELS, FakeModelServer, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = MODELS[0]


async def opened(stack: Stack, canaries: Canaries, url: str) -> Tunnel:
    """A tunnel whose secrets the canary test knows."""
    tunnel = await stack.open_tunnel("alice", [url])
    canaries.add(tunnel.token, tunnel.join_code)
    return tunnel


async def test_a_killed_agent_is_an_error_and_its_next_start_resumes(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    async with make_stack() as stack, AsyncExitStack() as clients:
        tunnel = await opened(stack, canaries, model_server.url)
        agent = stack.agents["agent-alice"]
        client = await clients.enter_async_context(client_of(stack, tunnel))
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPT}],
            stream=True,
            extra_body={"fake": {"does": "go_on_until_ended", "every_s": 0.01}},
        )
        await anext(aiter(stream))
        await agent.kill()
        with pytest.raises(ClientErrors):
            await read_into([], stream)
        await agent.start()
        assert await answered_again(stack, tunnel) == text(5)


async def test_a_relay_restarted_under_load_is_found_again_by_all(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    """Each answer under way either comes whole or fails: none is cut and looks whole."""
    async with make_stack() as stack:
        tunnel = await opened(stack, canaries, model_server.url)
        wrong: list[str] = []
        counts = {"whole": 0, "failed": 0}
        is_over = asyncio.Event()

        async def ask_on() -> None:
            while not is_over.is_set():
                try:
                    content = await answered(stack, tunnel)
                except ClientErrors:
                    counts["failed"] += 1
                    await asyncio.sleep(0.05)
                    continue
                counts["whole"] += 1
                if content != text(5):
                    wrong.append(str(content))

        async with asyncio.TaskGroup() as load:
            for _ in range(8):
                load.create_task(ask_on())
            (relay,) = stack.relays
            await relay.kill()
            await relay.start()
            await relay.ready()
            assert await answered_again(stack, tunnel) == text(5)
            is_over.set()
        assert wrong == []
        assert counts["whole"] > 0


async def test_a_gateway_restarted_finds_its_tunnels_again(
    make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    """What it must remember is in its database, encrypted."""
    async with make_stack() as stack:
        tunnel = await opened(stack, canaries, model_server.url)
        await stack.gateway.kill()
        await stack.gateway.start()
        await stack.gateway.ready()
        assert await answered_again(stack, tunnel) == text(5)
