"""The official `openai` client through all of it, as a user's application would call."""

import asyncio
import hashlib
import os
from collections import Counter

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from demo.stack import port_of
from support.canaries import PROMPT
from support.house import CLIENT_S, House, error_keys, read_into
from support.model_server import MODELS, text

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = MODELS[0]
MIB = 1024 * 1024


async def streamed(client: AsyncOpenAI, **fake: object) -> str:
    """A whole streamed chat as one text."""
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": fake},
    )
    pieces: list[str] = []
    await read_into(pieces, stream)
    return "".join(pieces)


async def test_lists_the_models_of_the_users_own_server(alice: AsyncOpenAI) -> None:
    models = await alice.models.list()
    assert {model.id for model in models.data} == set(MODELS)


async def test_tells_one_model(alice: AsyncOpenAI) -> None:
    assert (await alice.models.retrieve(MODEL)).id == MODEL


async def test_answers_a_chat_in_one_piece(alice: AsyncOpenAI) -> None:
    answer = await alice.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        extra_body={"fake": {"tokens": 7}},
    )
    assert answer.choices[0].message.content == text(7)


async def test_streams_a_chat_token_by_token(house: House, alice: AsyncOpenAI) -> None:
    """The second token is asked for only after the first has arrived."""
    stream = await alice.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": {"does": "wait_to_go_on", "tag": "token-by-token", "tokens": 2}},
    )
    seen = await house.model_server.arrival("token-by-token")
    tokens: list[str] = []
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            tokens.append(chunk.choices[0].delta.content)
            seen.told.set()
    assert "".join(tokens) == text(2)


async def test_answers_a_completion(alice: AsyncOpenAI) -> None:
    answer = await alice.completions.create(model=MODEL, prompt=PROMPT)
    assert answer.choices[0].text == text(5)


async def test_answers_embeddings(alice: AsyncOpenAI) -> None:
    answer = await alice.embeddings.create(model=MODEL, input=PROMPT, encoding_format="float")
    assert answer.data[0].embedding == [0.25, -0.5, 1.0]


async def test_answers_the_responses_api(alice: AsyncOpenAI) -> None:
    answer = await alice.responses.create(model=MODEL, input=PROMPT)
    assert answer.output_text == text(5)


async def test_carries_a_multipart_upload_of_20_mb_unchanged(alice: AsyncOpenAI) -> None:
    content = os.urandom(20 * MIB)
    answer = await alice.audio.transcriptions.create(model=MODEL, file=("speech.wav", content))
    assert answer.text == f"{len(content)} {hashlib.sha256(content).hexdigest()}"


async def test_carries_100_streams_at_once(alice: AsyncOpenAI) -> None:
    answers = await asyncio.gather(*(streamed(alice, tokens=20, every_s=0.05) for _ in range(100)))
    assert Counter(answers) == {text(20): 100}


async def test_gives_the_model_server_a_request_of_its_own(
    house: House, alice: AsyncOpenAI
) -> None:
    """Neither the user's token nor the tunnel's key is any business of the model server's."""
    client = alice.with_options(
        default_headers={"Cookie": "session=1", "Origin": "https://evil.test"}
    )
    await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        extra_body={"fake": {"tag": "own-request"}},
    )
    seen = await house.model_server.arrival("own-request")
    assert seen.headers["host"] == house.model_server.url.removeprefix("http://")
    assert not {"authorization", "cookie", "origin"} & seen.headers.keys()


async def test_refuses_a_path_outside_the_policy(house: House, alice: AsyncOpenAI) -> None:
    """vLLM loads code from there, and it stands under /v1."""
    with pytest.raises(openai.NotFoundError) as refused:
        await alice.post("/load_lora_adapter", body={"lora_name": "x"}, cast_to=object)
    assert error_keys(refused.value) >= {"message", "type", "param", "code"}
    assert not any("lora" in seen.path for seen in house.model_server.requests)


async def test_refuses_a_body_over_the_limit_before_it_is_read(house: House) -> None:
    """Only the head is sent: an answer shows that nobody waited for the body."""
    port = port_of(house.stack.gateway_url)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway.test\r\n"
            b"authorization: Bearer " + house.alice.token.encode() + b"\r\n"
            b"content-type: application/json\r\ncontent-length: 1073741824\r\n\r\n"
        )
        async with asyncio.timeout(CLIENT_S):
            status_line = await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()
    assert status_line.split()[1] == b"413"


async def test_refuses_a_user_without_a_valid_token(house: House, alice: AsyncOpenAI) -> None:
    client = alice.with_options(api_key=house.alice.token[:-4] + "AAAA")
    with pytest.raises(openai.AuthenticationError):
        await client.models.list()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tunnel/status/{}"),
        ("DELETE", "/api/tunnel/{}"),
        ("POST", "/api/tunnel/{}/rotate"),
        ("POST", "/api/tunnel/{}/agents"),
    ],
)
async def test_does_not_find_another_users_tunnel(house: House, method: str, path: str) -> None:
    """Not forbidden, not found: that it exists is already a secret."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(CLIENT_S)) as session,
        session.request(
            method,
            house.stack.gateway_url + path.format(house.alice.tunnel_id),
            headers={"authorization": f"Bearer {house.bob.token}"},
        ) as response,
    ):
        assert response.status == 404
        assert (await response.json())["error"].keys() >= {"message", "type", "param", "code"}
    assert await house.stack.is_online(house.alice)


async def test_answers_a_user_whose_agent_is_offline_at_once(
    house: House, alice: AsyncOpenAI
) -> None:
    token = await house.stack.user_token("carol")
    client = alice.with_options(api_key=token)
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": PROMPT}]
        )
    assert refused.value.status_code in {404, 503}
