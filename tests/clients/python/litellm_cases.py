"""LiteLLM's library as a client of an OpenAI-compatible address."""

import base64
import json
from typing import Any

import litellm
from pydantic import BaseModel

from . import cases
from .cases import CALLS, CITY, SURVIVED, TEXT, VECTOR, Case, equal, raises

SPEC = cases.spec()
MODEL = f"openai/{SPEC.model}"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in arguments},
                "required": list(arguments),
            },
        },
    }
    for name, arguments in CALLS
]


class City(BaseModel):
    """What the model is to return."""

    city: str
    population: int


def calling(**more: Any) -> Any:
    """The arguments that every call has."""
    return {"model": MODEL, "api_base": SPEC.base_url, "api_key": SPEC.key, **more}


async def ask(does: str, case: str, **more: Any) -> Any:
    """A chat; a stream when it is asked for."""
    messages = [{"role": "user", "content": SPEC.prompt(does, case)}]
    return await litellm.acompletion(**calling(messages=messages, **more))


async def collect(does: str, case: str, **more: Any) -> Any:
    """A streamed chat, put together by the library."""
    chunks = [it async for it in await ask(does, case, stream=True, **more)]
    return litellm.stream_chunk_builder(chunks)


def called(answer: Any) -> object:
    """Names and arguments of the called functions."""
    functions = [it.function for it in answer.choices[0].message.tool_calls]
    return [(it.name, json.loads(it.arguments)) for it in functions]


async def chat() -> None:
    equal((await ask("chat", "chat")).choices[0].message.content, TEXT)


async def stream() -> None:
    answer = await collect("chat", "stream", stream_options={"include_usage": True})
    equal((answer.choices[0].message.content, answer.usage.total_tokens), (TEXT, 17))


async def tools() -> None:
    equal(called(await ask("tools", "tools", tools=TOOLS, parallel_tool_calls=True)), CALLS)


async def tools_stream() -> None:
    equal(called(await collect("tools", "tools_stream", tools=TOOLS)), CALLS)


async def json_schema() -> None:
    answer = await ask("json_schema", "json_schema", response_format=City)
    equal(json.loads(answer.choices[0].message.content), CITY)


async def json_schema_stream() -> None:
    answer = await collect("json_schema", "json_schema_stream", response_format=City)
    equal(json.loads(answer.choices[0].message.content), CITY)


async def embeddings_float() -> None:
    prompt = SPEC.prompt("embed", "embeddings_float")
    answer = await litellm.aembedding(**calling(input=[prompt], encoding_format="float"))
    equal(answer.data[0]["embedding"], VECTOR)


async def embeddings_base64() -> None:
    """The library returns the text as it came."""
    prompt = SPEC.prompt("embed", "embeddings_base64")
    answer = await litellm.aembedding(**calling(input=[prompt], encoding_format="base64"))
    equal(answer.data[0]["embedding"], "AACAPgAAAL8AAIA/")


async def image_input() -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{SPEC.png}"}}
    text = {"type": "text", "text": SPEC.prompt("image", "image_input")}
    messages = [{"role": "user", "content": [text, picture]}]
    answer = await litellm.acompletion(**calling(messages=messages))
    equal(answer.choices[0].message.content, "one pixel")


async def image_generation() -> None:
    prompt = SPEC.prompt("picture", "image_generation")
    answer = await litellm.aimage_generation(**calling(prompt=prompt))
    equal(base64.b64decode(answer.data[0].b64_json), base64.b64decode(SPEC.png))


async def abort() -> None:
    """Leave after the first text; the provider then waits for its connection to end."""
    answer = await ask("abort", "abort", stream=True)
    async for chunk in answer:
        if chunk.choices[0].delta.content:
            break
    await answer.aclose()
    equal((await ask("left", "abort")).choices[0].message.content, TEXT)


async def wrong_key() -> None:
    asked = ask("chat", "wrong_key", api_key=SPEC.wrong_key)
    await raises(litellm.AuthenticationError, asked)


async def rate_limit() -> None:
    asked = ask("always:429-retry-after-1", "rate_limit", max_retries=0)
    await raises(litellm.RateLimitError, asked)


def survives(fault: str, case: str) -> Case:
    """The library's own retry must succeed after one fault."""

    async def survive() -> None:
        answer = await ask(f"once:{fault}", case, max_retries=2)
        equal(answer.choices[0].message.content, TEXT)

    return survive


if __name__ == "__main__":
    cases.run(
        "litellm",
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "tools_stream": tools_stream,
            "json_schema": json_schema,
            "json_schema_stream": json_schema_stream,
            "embeddings_float": embeddings_float,
            "embeddings_base64": embeddings_base64,
            "image_input": image_input,
            "image_generation": image_generation,
            "abort": abort,
            "wrong_key": wrong_key,
            "rate_limit": rate_limit,
            "survives_429": survives("429-retry-after-1", "survives_429"),
            **{f"survives_{it}": survives(it, f"survives_{it}") for it in SURVIVED},
        },
    )
