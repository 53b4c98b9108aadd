"""OpenAI's own client before a running gateway: what it gets, raises, and does not repeat."""

import openai
import pytest

from support.gateway import Gateway
from support.provider import Provider
from support.provider_script import (
    Die,
    Hang,
    Script,
    chat_answer,
    error_event,
    half,
    refusal,
    responses_events,
    role,
    stream,
    token,
    whole,
)


async def chat(gateway: Gateway, *, is_stream: bool = False) -> str:
    """One chat with the client's own three tries."""
    async with gateway.client(max_retries=2) as client:
        if not is_stream:
            answer = await client.chat.completions.create(model="m", messages=[])
            return answer.choices[0].message.content or ""
        said: list[str] = []
        chunks = await client.chat.completions.create(model="m", messages=[], stream=True)
        async for chunk in chunks:
            said += [it.delta.content or "" for it in chunk.choices]
        return "".join(said)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_it_gets_its_answer(gateway: Gateway, *, is_stream: bool) -> None:
    assert await chat(gateway, is_stream=is_stream) == "Hello there"


async def test_it_gets_the_usage_it_asks_for(gateway: Gateway) -> None:
    async with gateway.client() as client:
        chunks = await client.chat.completions.create(
            model="m", messages=[], stream=True, stream_options={"include_usage": True}
        )
        usages = [it.usage async for it in chunks]
    assert usages[-1] is not None
    assert usages[-1].total_tokens == 5


LATER = {"retry-after-ms": "10"}


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(
    ("script", "error", "asked"),
    [
        (refusal(400, "too long"), openai.BadRequestError, 1),
        (refusal(401), openai.InternalServerError, 1),
        (refusal(404, "The model `m` does not exist"), openai.NotFoundError, 1),
        (refusal(422), openai.UnprocessableEntityError, 1),
        (refusal(501, headers=LATER), openai.InternalServerError, 1),
        (refusal(409, headers=LATER), openai.ConflictError, 3),
        (refusal(429, headers=LATER), openai.RateLimitError, 3),
        (refusal(500, headers=LATER), openai.InternalServerError, 3),
        (refusal(503, headers=LATER), openai.InternalServerError, 3),
        (refusal(504, headers=LATER), openai.InternalServerError, 3),
        ((Die(),), openai.InternalServerError, 3),
        (whole(b"<html>"), openai.InternalServerError, 1),
    ],
)
async def test_it_raises_what_fits_and_asks_as_often_as_it_would_without_us(
    gateway: Gateway,
    default: Provider,
    script: Script,
    error: type[openai.APIStatusError],
    asked: int,
    *,
    is_stream: bool,
) -> None:
    default.always(script)
    with pytest.raises(error):
        await chat(gateway, is_stream=is_stream)
    assert len(default.requests) == asked


@pytest.mark.parametrize(
    "fault",
    [
        refusal(408, headers=LATER),
        refusal(409, headers=LATER),
        refusal(429, headers=LATER),
        refusal(500, headers=LATER),
        refusal(502, headers=LATER),
        refusal(503, headers=LATER),
        refusal(504, headers=LATER),
        refusal(529, headers=LATER),
        (Die(),),
    ],
)
async def test_it_survives_by_its_own_policy_what_passes(
    gateway: Gateway, default: Provider, fault: Script
) -> None:
    default.expect(fault)
    assert await chat(gateway) == "Hello there"
    assert len(default.requests) == 2


async def test_a_fallback_that_was_spent_is_not_repeated(
    bring_own: Gateway, own: Provider, default: Provider
) -> None:
    own.always(refusal(503))
    default.always(refusal(503))
    with pytest.raises(openai.InternalServerError):
        await chat(bring_own)
    assert (len(own.requests), len(default.requests)) == (1, 1)


@pytest.mark.parametrize(
    "broken",
    [
        stream(role(), token("so"), error_event("it broke")),
        stream(role(), token("so"), Die()),
        stream(role(), token("so")),
        stream(role(), token("so"), Hang()),
        stream(role(), token("so"), b"data: {no\n\n"),
    ],
    ids=["error", "dies", "no finish_reason", "silent", "malformed"],
)
async def test_a_stream_that_breaks_raises_and_is_not_repeated(
    gateway: Gateway, default: Provider, broken: Script
) -> None:
    default.always(broken)
    with pytest.raises(openai.APIError) as caught:
        await chat(gateway, is_stream=True)
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert caught.value.code
    assert len(default.requests) == 1


async def test_half_an_answer_is_a_lost_connection_to_it(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(half(chat_answer()))
    assert await chat(gateway) == "Hello there"
    assert len(default.requests) == 2


# -- other calls


async def test_responses_stream(gateway: Gateway, default: Provider) -> None:
    async with gateway.client() as client:
        events = await client.responses.create(model="m", input="i", stream=True)
        kinds = [it.type async for it in events]
    assert kinds == [
        "response.created",
        *["response.output_text.delta"] * 2,
        "response.completed",
    ]
    begun = responses_events("so")[:-1]
    default.expect(stream(*begun, Die()))
    async with gateway.client() as client:
        with pytest.raises(openai.APIError, match="the default provider"):
            async for _ in await client.responses.create(model="m", input="i", stream=True):
                pass


async def test_completions_stream(gateway: Gateway) -> None:
    async with gateway.client() as client:
        chunks = await client.completions.create(model="m", prompt="p", stream=True)
        said = [it.choices[0].text async for it in chunks]
    assert "".join(said) == "Hello there"


async def test_speech_and_transcripts(gateway: Gateway, default: Provider) -> None:
    default.expect(whole(b"sound", kind="audio/mpeg"), whole({"text": "hello"}))
    async with gateway.client() as client:
        speech = await client.audio.speech.create(model="m", input="i", voice="alloy")
        assert speech.content == b"sound"
        said = await client.audio.transcriptions.create(
            model="whisper", file=("a.wav", b"sound" * 1000)
        )
    assert said.text == "hello"
    request = await default.request(1)
    assert b"sound" * 1000 in request.body
    (_, record) = await gateway.records()
    assert record.model == "whisper"


async def test_embeddings(gateway: Gateway, default: Provider) -> None:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}
    counts = {"prompt_tokens": 4, "total_tokens": 4}
    default.expect(whole({"object": "list", "data": [vector], "model": "m", "usage": counts}))
    async with gateway.client() as client:
        found = await client.embeddings.create(model="m", input="i", encoding_format="float")
    assert found.data[0].embedding == [0.5, 1.0]
