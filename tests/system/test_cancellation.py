"""A client that goes away stops the model server's work, wherever the answer stands."""

import asyncio
import time

import pytest
from openai import AsyncOpenAI

from support.canaries import PROMPT
from support.house import House
from support.model_server import MODELS

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = MODELS[0]
LIMIT_S = 0.1


TRIES = 3
"""The best of these counts: what else the machine does can only add to a delay."""


async def test_closing_a_stream_reaches_the_model_server_within_100_ms(
    house: House, alice: AsyncOpenAI
) -> None:
    delays = [await closing_a_stream(house, alice, f"close-{n}") for n in range(TRIES)]
    assert min(delays) < LIMIT_S


async def closing_a_stream(house: House, client: AsyncOpenAI, tag: str) -> float:
    """How long the model server works on after a client closed its stream, in seconds."""
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": {"tag": tag, "tokens": 10_000, "every_s": 0.01}},
    )
    seen = await house.model_server.arrival(tag)
    async for _ in stream:
        break
    left = time.monotonic()
    await stream.close()
    async with asyncio.timeout(5):
        return await seen.gone - left


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_cancelling_in_silent_prefill_reaches_it_within_100_ms(
    house: House, alice: AsyncOpenAI, is_streamed: bool
) -> None:
    """No byte of an answer has been sent yet, so no write can fail: it has to be noticed."""
    tags = [f"silent-{is_streamed}-{n}" for n in range(TRIES)]
    delays = [await cancelling(house, alice, tag, is_streamed=is_streamed) for tag in tags]
    assert min(delays) < LIMIT_S


async def cancelling(house: House, client: AsyncOpenAI, tag: str, *, is_streamed: bool) -> float:
    """How long a silent model server works on after a request was cancelled, in seconds."""
    request = asyncio.create_task(
        client.post(
            "/chat/completions",
            body={
                "model": MODEL,
                "stream": is_streamed,
                "messages": [{"role": "user", "content": PROMPT}],
                "fake": {"does": "stay_silent", "tag": tag},
            },
            cast_to=object,
        )
    )
    seen = await house.model_server.arrival(tag)
    left = time.monotonic()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    async with asyncio.timeout(5):
        return await seen.gone - left
