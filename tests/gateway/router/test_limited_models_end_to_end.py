"""What the operator does not list is not reached, by whatever way a body names it."""

import asyncio
import io
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from support.control import FakeClock, bearer, gateway_config
from support.gateway import CHAT, Answer, Gateway, open_gateway
from support.provider import Provider
from support.provider_script import refusal

TRANSCRIPTIONS = "/v1/audio/transcriptions"
FORM_TYPE = "multipart/form-data; boundary=XbX"
LISTED = {"small": "vendor/small-1", "whisper": "whisper"}


@pytest.fixture
async def limited(
    tmp_path: Path, clock: FakeClock, default: Provider, own: Provider
) -> AsyncGenerator[Gateway]:
    """A gateway whose operator lists two models."""
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        relays=(),
        default_provider=DefaultProviderSection(
            base_url=default.url, model="small", models=LISTED, anthropic_messages=True
        ),
        openrouter=OpenRouterSection(base_url=own.url),
    )
    async with open_gateway(config, clock) as gateway:
        yield gateway


def part(head: str, value: bytes) -> bytes:
    return b"--XbX\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (head.encode(), value)


END = b"--XbX--\r\n"
FILE = part('name="file"; filename="a.wav"', b"RIFF")
WHISPER = part('name="model"', b"whisper")
HUGE = part('name="model"', b"gpt-4o-transcribe")


async def upload(gateway: Gateway, form: bytes) -> Answer:
    return await send(gateway, io.BytesIO(form))


async def send(gateway: Gateway, form: Any, **headers: str) -> Answer:
    sent = {"authorization": bearer("alice", gateway.clock), "content-type": FORM_TYPE, **headers}
    url = gateway.url + TRANSCRIPTIONS
    async with gateway.http.post(url, data=form, headers=sent) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize(
    ("form", "status", "code", "sentence"),
    [
        (WHISPER + FILE + HUGE + END, 400, "invalid_body", "more than one field 'model'"),
        (
            part('name="x"; filename="model"', b"whisper") + HUGE + FILE + END,
            404,
            "model_not_found",
            "'gpt-4o-transcribe'",
        ),
        (
            part('name="prompt"', b"name=model\r\n\r\nwhisper\r\n--x") + HUGE + FILE + END,
            404,
            "model_not_found",
            "'gpt-4o-transcribe'",
        ),
        (WHISPER + part('name="Model"', b"huge") + FILE + END, 400, "invalid_body", "'Model'"),
        (WHISPER + part('name="model[]"', b"huge") + END, 400, "invalid_body", "'model[]'"),
        (WHISPER + FILE + END + HUGE + END, 400, "invalid_body", "goes on after"),
        (HUGE.replace(b"XbX", b"YbY") + WHISPER + END, 400, "invalid_body", "does not begin"),
        (WHISPER + FILE, 400, "invalid_body", "closing boundary"),
        (
            WHISPER + part('name="fallbacks[]"', b"huge") + FILE + END,
            400,
            "field_not_allowed",
            "fallbacks[]",
        ),
        (
            WHISPER + part('name="api_base"', b"x") + END,
            400,
            "field_not_allowed",
            "api_base",
        ),
    ],
)
async def test_a_form_does_not_pass_the_list(
    limited: Gateway, default: Provider, form: bytes, status: int, code: str, sentence: str
) -> None:
    answer = await upload(limited, form)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert sentence in answer.error["message"]
    assert not default.requests


@pytest.mark.parametrize(
    "form",
    [
        WHISPER + FILE + END,
        FILE + WHISPER + END,
        part('name="x"; filename="model"', b"gpt-4o-transcribe") + WHISPER + FILE + END,
        part('name="prompt"', b"name=model\r\n\r\ngpt-4o\r\n--x") + WHISPER + FILE + END,
        part('name="file"; filename="a.wav"', b"R" * 5_000_000) + WHISPER + END,
    ],
    ids=["first", "last", "a decoy's name", "a decoy", "after a large file"],
)
async def test_a_form_with_a_listed_model_passes_as_it_came(
    limited: Gateway, default: Provider, form: bytes
) -> None:
    assert (await upload(limited, form)).status == 200
    assert (await default.request()).body == form


async def test_the_official_clients_upload_passes(limited: Gateway, default: Provider) -> None:
    async with limited.client() as client:
        await client.audio.transcriptions.create(
            model="whisper", file=("größe.wav", b"R" * 100_000), timestamp_granularities=["word"]
        )
        with pytest.raises(openai.NotFoundError):
            await client.audio.transcriptions.create(model="huge", file=("a.wav", b"R"))
    assert len(default.requests) == 1


@pytest.mark.parametrize(
    ("headers", "status", "code", "advice"),
    [
        ({}, 411, "length_required", "send Content-Length"),
        ({"content-length": str(100_000_000)}, 413, "upload_too_large", "send a smaller file"),
    ],
    ids=["in chunks", "too large"],
)
async def test_an_upload_that_is_not_kept_says_what_to_do(
    limited: Gateway,
    default: Provider,
    headers: dict[str, str],
    status: int,
    code: str,
    advice: str,
) -> None:
    async def begun() -> AsyncGenerator[bytes]:
        yield WHISPER + FILE
        await asyncio.Event().wait()  # another model may follow

    answer = await send(limited, begun(), **headers)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert advice in answer.error["message"]
    assert not default.requests


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        (b'"model":"small","Model":"vendor/huge"', "invalid_body", "model"),
        (b'"model":"vendor/huge","model":"small"', "invalid_body", "model"),
        (b'"model":"small","mode\\u006c":"vendor/huge"', "invalid_body", "model"),
        (b'"model":"small","models":["vendor/huge"],"route":"fallback"', None, "models"),
        (b'"model":"small","fallbacks":["vendor/huge"]', None, "fallbacks"),
        (b'"model":"small","Fallbacks":["vendor/huge"]', None, "Fallbacks"),
        (b'"model":"small","extra_body":{"model":"vendor/huge"}', None, "extra_body"),
        (b'"model":"small","tools":[{"type":"image_generation","model":"h"}]', None, "tools[0]"),
    ],
)
async def test_json_does_not_pass_the_list(
    limited: Gateway, default: Provider, fields: bytes, code: str | None, param: str
) -> None:
    answer = await limited.ask(b'{%b,"messages":[]}' % fields)
    error = answer.error
    assert (answer.status, error["code"], error["param"]) == (
        400,
        code or "field_not_allowed",
        param,
    )
    assert not default.requests


async def test_json_that_is_called_a_form_is_not_read_as_one(
    limited: Gateway, default: Provider
) -> None:
    body = b'{"model":"small","x":"&model=vendor/huge&"}'
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert (await limited.ask(body, **kind)).status == 200
    request = await default.request()
    assert request.headers["content-type"] == "application/json"
    assert request.json["model"] == "vendor/small-1"
    assert (await limited.ask(body, **{"content-encoding": "deflate"})).status == 400


@pytest.mark.parametrize(
    ("path", "sent", "expected"),
    [
        (CHAT, {"reasoning": {"effort": "low"}}, {}),
        (CHAT, {"usage": {"include": True}}, {}),
        (
            CHAT,
            {
                "models": ["x/z"],
                "provider": {"order": ["a"]},
                "plugins": [{"id": "web"}],
                "include_reasoning": True,
                "top_a": 0.1,
                "top_k": 5,
                "transforms": [],
                "session_id": "s",
                "debug": {},
                "prediction": {"type": "content", "content": "x"},
                "reasoning_effort": "low",
            },
            {"prediction": {"type": "content", "content": "x"}, "reasoning_effort": "low"},
        ),
        (
            "/v1/responses",
            {"reasoning": {"effort": "low"}, "trace": {}},
            {"reasoning": {"effort": "low"}},
        ),
        ("/v1/messages", {"top_k": 5, "fallbacks": [{"model": "x"}]}, {"top_k": 5}),
    ],
)
async def test_a_fallback_leaves_out_what_only_openrouter_knows(
    limited: Gateway,
    default: Provider,
    own: Provider,
    path: str,
    sent: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    await limited.prefer(
        aiProvider="openrouter", openRouterApiKey="sk-or-v1-own-key-of-x", fallbackToDefault=True
    )
    own.expect(refusal(401))
    answer = await limited.ask({"model": "x/y", "messages": [], **sent}, path=path)
    assert answer.headers["x-byoai-provider"] == "default"
    asked = (await own.request()).json
    assert {name: asked[name] for name in sent} == sent  # OpenRouter itself gets all of it
    assert (await default.request()).json == {
        "model": "vendor/small-1",
        "messages": [],
        **expected,
    }
