"""A client that goes away stops the model server's work, wherever the answer stands.

None of the chain's timers would end that work within these tests: only the client's going does.
"""

import asyncio

import pytest
from openai import AsyncOpenAI

from support.canaries import PROMPT
from support.house import House
from support.model_server import MODELS

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = MODELS[0]


async def test_closing_a_stream_reaches_the_model_server(house: House, alice: AsyncOpenAI) -> None:
    stream = await alice.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": {"tag": "close", "does": "go_on_until_ended", "every_s": 0.01}},
    )
    seen = await house.model_server.arrival("close")
    async for _ in stream:
        break
    await stream.close()
    await seen.gone


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_cancelling_in_silent_prefill_reaches_it(
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
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await seen.gone
