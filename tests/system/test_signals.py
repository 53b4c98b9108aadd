"""Ctrl-C at a terminal where a program waits for an answer under way: once, and again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from demo.processes import Process, is_named
from demo.settings import Settings
from demo.stack import Stack, Tunnel
from support.canaries import PROMPT, Canaries
from support.house import ClientErrors, StackMaker, client_of, read_into
from support.model_server import MODELS, FakeModelServer, Seen

pytestmark = pytest.mark.asyncio(loop_scope="session")

NEVER_S: Final = 3600.0
ENDED_S: Final = 60.0
"""For a program that was told to end at once: below what it would wait for answers."""
PATIENT_GATEWAY: Final[Settings] = {"listen.drain_s": NEVER_S}
PATIENT_RELAY: Final[Settings] = {"drain_s": NEVER_S}
PATIENT_AGENT: Final[Settings] = {"limits.drain_s": NEVER_S}
DRAINING: Final = {
    "gateway": "gateway.stopping",
    "relay-1": "relay.draining",
    "agent-alice": "agent.stopping",
}


@asynccontextmanager
async def answering(
    stack: Stack, tunnel: Tunnel, model_server: FakeModelServer, tag: str
) -> AsyncGenerator[tuple[Seen, list[str], "asyncio.Task[None]"]]:
    """An answer that goes on until the test ends it."""
    async with client_of(stack, tunnel) as client:
        stream = await client.chat.completions.create(
            model=MODELS[0],
            messages=[{"role": "user", "content": PROMPT}],
            stream=True,
            extra_body={"fake": {"tag": tag, "does": "go_on_until_ended", "every_s": 0.02}},
        )
        pieces: list[str] = []
        reading = asyncio.create_task(read_into(pieces, stream))
        yield await model_server.arrival(tag), pieces, reading


@pytest.mark.parametrize("name", DRAINING)
async def test_a_second_ctrl_c_ends_a_program_that_waits_for_an_answer(
    name: str, make_stack: StackMaker, model_server: FakeModelServer, canaries: Canaries
) -> None:
    async with AsyncExitStack() as parts:
        stack = await parts.enter_async_context(
            make_stack(gateway=PATIENT_GATEWAY, relay=PATIENT_RELAY, agent=PATIENT_AGENT)
        )
        tunnel = await stack.open_tunnel("alice", [model_server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        seen, pieces, reading = await parts.enter_async_context(
            answering(stack, tunnel, model_server, f"ctrl-c {name}")
        )
        (program,) = (it for it in programs(stack) if it.name == name)
        program.interrupt()
        await program.event(lambda event: is_named(event, DRAINING[name]))
        heard = len(pieces)
        # The stream goes on while a program drains; a list has no event for one more item.
        while len(pieces) < heard + 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        program.interrupt()
        assert await program.ended(ENDED_S) == 0
        assert "Traceback" not in "".join(program.lines)
        seen.told.set()
        with pytest.raises(ClientErrors):
            await reading


def programs(stack: Stack) -> list[Process]:
    return [stack.gateway, *stack.relays, *stack.agents.values()]
