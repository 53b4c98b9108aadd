"""What the official `openai` client makes of an answer."""

import asyncio
import json
from typing import Any, Final, cast

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, BaseModel
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from fidelity.model import Ask, Outcome

WHOLES: Final[dict[str, type[BaseModel]]] = {
    "/chat/completions": ChatCompletion,
    "/completions": Completion,
    "/embeddings": CreateEmbeddingResponse,
    "/responses": Response,
}
STREAMS: Final[dict[str, tuple[type[BaseModel], Any]]] = {
    "/chat/completions": (ChatCompletionChunk, AsyncStream[ChatCompletionChunk]),
    "/completions": (Completion, AsyncStream[Completion]),
    "/responses": (BaseModel, AsyncStream[BaseModel]),
}


async def outcome_of(client: AsyncOpenAI, ask: Ask, marker: str, reads: asyncio.Event) -> Outcome:
    """Send a request, read its answer to the end, and say what was raised.

    `reads` is set when the first event has come.
    """
    body: Any = json.loads(ask.body)
    options: Any = {"headers": {"User-Agent": marker}}
    try:
        if ask.is_stream:
            shape, stream = STREAMS[ask.path]
            chunks = cast(
                "AsyncStream[Any]",
                await client.post(
                    ask.path,
                    cast_to=shape,
                    body=body,
                    options=options,
                    stream=True,
                    stream_cls=stream,
                ),
            )
            async for _ in chunks:
                reads.set()
        else:
            await client.post(ask.path, cast_to=WHOLES[ask.path], body=body, options=options)
    except openai.APIError as error:
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        return Outcome(type(error).__name__, status, error.code, error.type, error.param)
    except (httpx2.HTTPError, ValueError) as error:  # ValueError: what is no JSON
        return Outcome(type(error).__name__)
    return Outcome(None)
