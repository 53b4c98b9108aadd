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


async def test_closing_a_stream_reaches_the_model_server_within_100_ms(
    house: House, alice: AsyncOpenAI
) -> None:
    stream = await alice.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": {"tag": "close-stream", "tokens": 10_000, "every_s": 0.01}},
    )
    seen = await house.model_server.arrival("close-stream")
    async for _ in stream:
        break
    left = time.monotonic()
    await stream.close()
    async with asyncio.timeout(5):
        gone = await seen.gone
    assert gone - left < LIMIT_S


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_cancelling_in_silent_prefill_reaches_it_within_100_ms(
    house: House, alice: AsyncOpenAI, is_streamed: bool
) -> None:
    """No byte of an answer has been sent yet, so no write can fail: it has to be noticed."""
    tag = f"silent-{is_streamed}"
    request = asyncio.create_task(
        alice.post(
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
        gone = await seen.gone
    assert gone - left < LIMIT_S
