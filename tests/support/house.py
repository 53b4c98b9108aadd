"""A running chain as the system tests see it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httpx2
import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from demo.settings import Settings
from demo.stack import HttpsFiles, Stack, Tunnel

from .canaries import PROMPT
from .model_server import MODELS, FakeModelServer

ClientErrors: Final = (openai.APIError, httpx2.HTTPError)
"""What the official client raises for an answer that is an error, breaks off or never comes."""
_BACK_S: Final = 120.0

# A client that hangs must not hang the suite.
CLIENT_S = 200.0


@dataclass(frozen=True, slots=True)
class House:
    """A running chain: two users, each with a tunnel, before one model server."""

    stack: Stack
    model_server: FakeModelServer
    alice: Tunnel
    bob: Tunnel


def client_of(stack: Stack, tunnel: Tunnel) -> AsyncOpenAI:
    """The official client as a user's application has it; a retry would hide a failure."""
    return AsyncOpenAI(
        base_url=f"{stack.gateway_url}/v1",
        api_key=tunnel.token,
        max_retries=0,
        timeout=CLIENT_S,
    )


async def answered(stack: Stack, tunnel: Tunnel) -> str | None:
    """One small chat."""
    async with client_of(stack, tunnel) as client:
        answer = await client.chat.completions.create(
            model=MODELS[0], messages=[{"role": "user", "content": PROMPT}]
        )
    return answer.choices[0].message.content


async def answered_again(stack: Stack, tunnel: Tunnel) -> str | None:
    """The same, as soon as the chain is whole again."""
    async with asyncio.timeout(_BACK_S):
        while True:
            try:
                return await answered(stack, tunnel)
            except ClientErrors:
                await asyncio.sleep(0.1)


async def read_into(pieces: list[str], stream: AsyncIterable[ChatCompletionChunk]) -> None:
    """Collect the text of a streamed chat as far as it comes."""
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)  # noqa: PERF401 -- kept when it breaks off


@asynccontextmanager
async def endless_stream(
    client: AsyncOpenAI, model_server: FakeModelServer, tag: str
) -> AsyncGenerator[list[str]]:
    """A streamed chat that runs as long as this context, and ends well; its text so far."""
    stream = await client.chat.completions.create(
        model=MODELS[0],
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": {"tag": tag, "does": "go_on_until_ended", "every_s": 0.02}},
    )
    pieces: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read_into(pieces, stream))
        seen = await model_server.arrival(tag)
        yield pieces
        seen.told.set()


def error_keys(error: openai.APIStatusError) -> set[str]:
    """The fields of OpenAI's error object, which clients read; none when it has another shape."""
    body: object = error.body
    return set(cast("dict[str, object]", body)) if isinstance(body, dict) else set()


class StackMaker(Protocol):
    """Makes a chain of a test's own, to break; settings are laid over the usual ones."""

    def __call__(
        self,
        *,
        gateway: Settings | None = None,
        relay: Settings | None = None,
        agent: Settings | None = None,
        https: HttpsFiles | None = None,
    ) -> Stack: ...
