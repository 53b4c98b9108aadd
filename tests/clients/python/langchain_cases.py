"""LangChain's integration of OpenAI for Python, `langchain-openai`."""

from typing import Any

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_openai.chat_models.base import OpenAIAuthenticationError, OpenAIRateLimitError
from pydantic import BaseModel

from . import cases
from .cases import CALLS, CITY, SURVIVED, TEXT, VECTOR, Case, equal, raises

SPEC = cases.spec()
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": name,
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


def model(key: str = SPEC.key, **more: Any) -> ChatOpenAI:
    """The chat model as an application makes it."""
    return ChatOpenAI(base_url=SPEC.base_url, api_key=key, model=SPEC.model, **more)


def embedder(**more: Any) -> OpenAIEmbeddings:
    """Embeddings of the text itself: its tokens would be those of an OpenAI model."""
    return OpenAIEmbeddings(
        base_url=SPEC.base_url,
        api_key=SPEC.key,
        model=SPEC.model,
        check_embedding_ctx_length=False,
        **more,
    )


async def ask(chat_model: Any, does: str, case: str) -> Any:
    """One answer."""
    return await chat_model.ainvoke(SPEC.prompt(does, case))


async def collect(chat_model: Any, does: str, case: str) -> Any:
    """A streamed answer, its chunks added up as an application does it."""
    whole: Any = None
    async for chunk in chat_model.astream(SPEC.prompt(does, case)):
        whole = chunk if whole is None else whole + chunk
    return whole


def called(answer: Any) -> object:
    """Names and arguments of the called tools."""
    return [(it["name"], it["args"]) for it in answer.tool_calls]


async def chat() -> None:
    equal((await ask(model(), "chat", "chat")).content, TEXT)


async def stream() -> None:
    answer = await collect(model(stream_usage=True), "chat", "stream")
    equal((answer.content, answer.usage_metadata["total_tokens"]), (TEXT, 17))


async def tools() -> None:
    equal(called(await ask(model().bind_tools(TOOLS), "tools", "tools")), CALLS)


async def tools_stream() -> None:
    equal(called(await collect(model().bind_tools(TOOLS), "tools", "tools_stream")), CALLS)


async def json_schema() -> None:
    structured = model().with_structured_output(City, method="json_schema")
    equal(await ask(structured, "json_schema", "json_schema"), City.model_validate(CITY))


async def json_schema_stream() -> None:
    structured = model().with_structured_output(City, method="json_schema")
    prompt = SPEC.prompt("json_schema", "json_schema_stream")
    parsed = [it async for it in structured.astream(prompt)]
    equal(parsed[-1], City.model_validate(CITY))


async def embeddings_float() -> None:
    asked = embedder(model_kwargs={"encoding_format": "float"})
    found = await asked.aembed_documents([SPEC.prompt("embed", "embeddings_float")])
    equal(found, [VECTOR])


async def embeddings_base64() -> None:
    """The library asks for base64 by itself and decodes it."""
    found = await embedder().aembed_documents([SPEC.prompt("embed", "embeddings_base64")])
    equal(found, [VECTOR])


async def image_input() -> None:
    picture = {"type": "image", "base64": SPEC.png, "mime_type": "image/png"}
    text = {"type": "text", "text": SPEC.prompt("image", "image_input")}
    answer = await model().ainvoke([HumanMessage(content=[text, picture])])
    equal(answer.content, "one pixel")


async def abort() -> None:
    """Leave after the first text; the provider then waits for its connection to end."""
    answer = model().astream(SPEC.prompt("abort", "abort"))
    async for chunk in answer:
        if chunk.content:
            break
    await answer.aclose()
    equal((await ask(model(), "left", "abort")).content, TEXT)


async def wrong_key() -> None:
    asked = ask(model(SPEC.wrong_key), "chat", "wrong_key")
    await raises(OpenAIAuthenticationError, asked)


async def rate_limit() -> None:
    asked = ask(model(max_retries=0), "always:429-retry-after-1", "rate_limit")
    error = await raises(OpenAIRateLimitError, asked)
    equal(error.response.headers["retry-after"], "1")


def survives(fault: str, case: str) -> Case:
    """The library's own retry must succeed after one fault."""

    async def survive() -> None:
        equal((await ask(model(), f"once:{fault}", case)).content, TEXT)

    return survive


if __name__ == "__main__":
    cases.run(
        "langchain-openai",
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
            "abort": abort,
            "wrong_key": wrong_key,
            "rate_limit": rate_limit,
            "survives_429": survives("429-retry-after-1", "survives_429"),
            **{f"survives_{it}": survives(it, f"survives_{it}") for it in SURVIVED},
        },
    )
