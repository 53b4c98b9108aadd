"""The official `anthropic` library for Python."""

from typing import Any

import anthropic
from anthropic import AsyncAnthropic, Omit
from pydantic import BaseModel

from . import cases
from .cases import CALLS, CITY, SURVIVED, TEXT, Case, equal, raises

SPEC = cases.spec()
ORIGIN = SPEC.base_url.removesuffix("/v1")  # the library adds /v1 itself
CLIENT = AsyncAnthropic(base_url=ORIGIN, auth_token=SPEC.key)
MAX_TOKENS = 1024
TOOLS: Any = [
    {
        "name": name,
        "input_schema": {
            "type": "object",
            "properties": {key: {"type": "string"} for key in arguments},
            "required": list(arguments),
        },
    }
    for name, arguments in CALLS
]


class City(BaseModel):
    """What the model is to return."""

    city: str
    population: int


def asking(does: str, case: str, **more: Any) -> Any:
    """The arguments of a call with one prompt."""
    messages = [{"role": "user", "content": SPEC.prompt(does, case)}]
    return {"model": SPEC.model, "max_tokens": MAX_TOKENS, "messages": messages, **more}


def text_of(answer: Any) -> str:
    """The text of a message."""
    return "".join(it.text for it in answer.content if it.type == "text")


def called(answer: Any) -> object:
    """Names and arguments of the called tools."""
    return [(it.name, it.input) for it in answer.content if it.type == "tool_use"]


async def ask(client: AsyncAnthropic, does: str, case: str) -> str:
    """A message in one piece."""
    return text_of(await client.messages.create(**asking(does, case)))


async def chat() -> None:
    equal(await ask(CLIENT, "chat", "chat"), TEXT)


async def stream() -> None:
    async with CLIENT.messages.stream(**asking("chat", "stream")) as answer:
        pieces = [piece async for piece in answer.text_stream]
        whole = await answer.get_final_message()
    equal(("".join(pieces), whole.stop_reason), (TEXT, "end_turn"))
    equal((whole.usage.input_tokens, whole.usage.output_tokens), (12, 5))


async def tools() -> None:
    equal(called(await CLIENT.messages.create(**asking("tools", "tools", tools=TOOLS))), CALLS)


async def tools_stream() -> None:
    async with CLIENT.messages.stream(**asking("tools", "tools_stream", tools=TOOLS)) as answer:
        equal(called(await answer.get_final_message()), CALLS)


async def json_schema() -> None:
    asked = asking("json_schema", "json_schema", output_format=City)
    answer = await CLIENT.messages.parse(**asked)
    equal(answer.parsed_output, City.model_validate(CITY))


async def json_schema_stream() -> None:
    asked = asking("json_schema", "json_schema_stream", output_format=City)
    async with CLIENT.messages.stream(**asked) as answer:
        whole = await answer.get_final_message()
    equal(whole.parsed_output, City.model_validate(CITY))


async def image_input() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": SPEC.png}
    text = {"type": "text", "text": SPEC.prompt("image", "image_input")}
    content = [{"type": "image", "source": source}, text]
    asked = asking("image", "image_input", messages=[{"role": "user", "content": content}])
    equal(text_of(await CLIENT.messages.create(**asked)), "one pixel")


async def abort() -> None:
    """Leave after the first text; the provider then waits for its connection to end."""
    async with CLIENT.messages.stream(**asking("abort", "abort")) as answer:
        async for _ in answer.text_stream:
            break
    equal(await ask(CLIENT, "left", "abort"), TEXT)


async def wrong_key() -> None:
    client = AsyncAnthropic(base_url=ORIGIN, auth_token=SPEC.wrong_key)
    await raises(anthropic.AuthenticationError, ask(client, "chat", "wrong_key"))


async def api_key() -> None:
    """As most applications configure the library."""
    client = AsyncAnthropic(base_url=ORIGIN, api_key=SPEC.key)
    equal(await ask(client, "chat", "api_key"), TEXT)


async def x_api_key() -> None:
    """The header in which earlier versions send the API key."""
    headers: Any = {"X-Api-Key": SPEC.key, "Authorization": Omit()}
    client = AsyncAnthropic(base_url=ORIGIN, auth_token="unused", default_headers=headers)
    equal(await ask(client, "chat", "x_api_key"), TEXT)


async def rate_limit() -> None:
    client = CLIENT.with_options(max_retries=0)
    refused = ask(client, "always:429-retry-after-1", "rate_limit")
    error = await raises(anthropic.RateLimitError, refused)
    equal(error.response.headers["retry-after"], "1")


def survives(fault: str, case: str) -> Case:
    """The library's own retry must succeed after one fault."""

    async def survive() -> None:
        equal(await ask(CLIENT, f"once:{fault}", case), TEXT)

    return survive


if __name__ == "__main__":
    cases.run(
        "anthropic",
        {
            "chat": chat,
            "stream": stream,
            "tools": tools,
            "tools_stream": tools_stream,
            "json_schema": json_schema,
            "json_schema_stream": json_schema_stream,
            "image_input": image_input,
            "abort": abort,
            "wrong_key": wrong_key,
            "api_key": api_key,
            "x_api_key": x_api_key,
            "rate_limit": rate_limit,
            "survives_429": survives("429-retry-after-1", "survives_429"),
            **{f"survives_{it}": survives(it, f"survives_{it}") for it in SURVIVED},
        },
    )
