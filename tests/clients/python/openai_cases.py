"""The official `openai` library for Python."""

import base64
import json
from typing import Any

import openai
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageToolCallUnion
from pydantic import BaseModel

from . import cases
from .cases import CALLS, CITY, SURVIVED, TEXT, VECTOR, Case, equal, raises

SPEC = cases.spec()
CLIENT = AsyncOpenAI(base_url=SPEC.base_url, api_key=SPEC.key)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string"} for key in arguments},
                "required": list(arguments),
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
    for name, arguments in CALLS
]


class City(BaseModel):
    """What the model is to return."""

    city: str
    population: int


def messages(does: str, case: str) -> Any:
    """A conversation of one prompt."""
    return [{"role": "user", "content": SPEC.prompt(does, case)}]


async def ask(client: AsyncOpenAI, does: str, case: str) -> str | None:
    """A chat in one piece."""
    answer = await client.chat.completions.create(model=SPEC.model, messages=messages(does, case))
    return answer.choices[0].message.content


def called(calls: list[ChatCompletionMessageToolCallUnion] | None) -> object:
    """Names and arguments of the called functions."""
    functions = [it.function for it in calls or [] if it.type == "function"]
    return [(it.name, json.loads(it.arguments)) for it in functions]


async def chat() -> None:
    equal(await ask(CLIENT, "chat", "chat"), TEXT)


async def stream() -> None:
    pieces: list[str] = []
    totals: list[int] = []
    answer = await CLIENT.chat.completions.create(
        model=SPEC.model,
        messages=messages("chat", "stream"),
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in answer:
        pieces += [it.delta.content for it in chunk.choices if it.delta.content]
        totals += [chunk.usage.total_tokens] if chunk.usage else []
    equal(("".join(pieces), totals), (TEXT, [17]))


async def tools() -> None:
    answer = await CLIENT.chat.completions.create(
        model=SPEC.model,
        messages=messages("tools", "tools"),
        tools=TOOLS,
        parallel_tool_calls=True,
    )
    equal(called(answer.choices[0].message.tool_calls), CALLS)


async def tools_stream() -> None:
    async with CLIENT.chat.completions.stream(
        model=SPEC.model, messages=messages("tools", "tools_stream"), tools=TOOLS
    ) as answer:
        whole = await answer.get_final_completion()
    equal(called(list(whole.choices[0].message.tool_calls or [])), CALLS)


async def json_schema() -> None:
    answer = await CLIENT.chat.completions.parse(
        model=SPEC.model, messages=messages("json_schema", "json_schema"), response_format=City
    )
    equal(answer.choices[0].message.parsed, City.model_validate(CITY))


async def json_schema_stream() -> None:
    async with CLIENT.chat.completions.stream(
        model=SPEC.model,
        messages=messages("json_schema", "json_schema_stream"),
        response_format=City,
    ) as answer:
        whole = await answer.get_final_completion()
    equal(whole.choices[0].message.parsed, City.model_validate(CITY))


async def embeddings_float() -> None:
    answer = await CLIENT.embeddings.create(
        model=SPEC.model,
        input=SPEC.prompt("embed", "embeddings_float"),
        encoding_format="float",
    )
    equal(answer.data[0].embedding, VECTOR)


async def embeddings_base64() -> None:
    """The library asks for base64 by itself and decodes it."""
    answer = await CLIENT.embeddings.create(
        model=SPEC.model, input=SPEC.prompt("embed", "embeddings_base64")
    )
    equal(answer.data[0].embedding, VECTOR)


async def image_input() -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{SPEC.png}"}}
    text = {"type": "text", "text": SPEC.prompt("image", "image_input")}
    content: Any = [text, picture]
    answer = await CLIENT.chat.completions.create(
        model=SPEC.model, messages=[{"role": "user", "content": content}]
    )
    equal(answer.choices[0].message.content, "one pixel")


async def image_generation() -> None:
    answer = await CLIENT.images.generate(
        model=SPEC.model, prompt=SPEC.prompt("picture", "image_generation")
    )
    data = answer.data or []
    equal(base64.b64decode(data[0].b64_json or ""), base64.b64decode(SPEC.png))


async def abort() -> None:
    """Leave after the first text; the provider then waits for its connection to end."""
    answer = await CLIENT.chat.completions.create(
        model=SPEC.model, messages=messages("abort", "abort"), stream=True
    )
    async for chunk in answer:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await answer.close()
    equal(await ask(CLIENT, "left", "abort"), TEXT)


async def wrong_key() -> None:
    client = CLIENT.with_options(api_key=SPEC.wrong_key)
    await raises(openai.AuthenticationError, ask(client, "chat", "wrong_key"))


async def rate_limit() -> None:
    client = CLIENT.with_options(max_retries=0)
    refused = ask(client, "always:429-retry-after-1", "rate_limit")
    error = await raises(openai.RateLimitError, refused)
    equal(error.response.headers["retry-after"], "1")


def survives(fault: str, case: str) -> Case:
    """The library's own retry must succeed after one fault."""

    async def survive() -> None:
        equal(await ask(CLIENT, f"once:{fault}", case), TEXT)

    return survive


if __name__ == "__main__":
    cases.run(
        "openai",
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
