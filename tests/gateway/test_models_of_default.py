"""`/v1/models` where the operator has given names of their own to the models."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import openai
import pytest

from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from support.control import FakeClock, gateway_config
from support.gateway import Gateway, open_gateway
from support.provider import Provider, providing
from support.provider_script import MODEL, refusal

NAMES = {"fast": "secret-vendor/small-1", "org/deep": "secret-vendor/large-9"}


@pytest.fixture
async def provider() -> AsyncGenerator[Provider]:
    async with providing() as made:
        yield made


def default(provider: Provider, names: dict[str, str]) -> DefaultProviderSection:
    return DefaultProviderSection(base_url=provider.url, model="fast", models=names)


@asynccontextmanager
async def opened(
    directory: Path, clock: FakeClock, section: DefaultProviderSection, own: Provider
) -> AsyncGenerator[Gateway]:
    config = msgspec.structs.replace(
        gateway_config(directory),
        relays=(),
        default_provider=section,
        openrouter=OpenRouterSection(base_url=own.url),
    )
    async with open_gateway(config, clock) as gateway:
        yield gateway


@pytest.fixture
async def gateway(
    tmp_path: Path, clock: FakeClock, provider: Provider, own: Provider
) -> AsyncGenerator[Gateway]:
    async with opened(tmp_path, clock, default(provider, NAMES), own) as gateway:
        yield gateway


@pytest.fixture
async def unmapped(
    tmp_path: Path, clock: FakeClock, provider: Provider, own: Provider
) -> AsyncGenerator[Gateway]:
    async with opened(tmp_path, clock, default(provider, {}), own) as gateway:
        yield gateway


async def test_the_list_is_the_maps_names_and_nobody_is_asked(
    gateway: Gateway, provider: Provider
) -> None:
    answer = await gateway.ask(path="/v1/models", method="GET", **{"x-request-id": "id-7"})
    assert answer.status == 200
    assert answer.json["object"] == "list"
    assert [card["id"] for card in answer.json["data"]] == ["fast", "org/deep"]
    assert all(
        (card["object"], card["created"], card["owned_by"]) == ("model", 0, "default")
        for card in answer.json["data"]
    )
    assert b"secret-vendor" not in answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-byoai-provider"] == "default"
    assert answer.headers["x-byoai-attempts"] == "0"
    assert answer.headers["x-request-id"] == "id-7"
    assert not provider.requests
    assert not provider.connections


@pytest.mark.parametrize("path", ["fast", "org/deep", "org%2Fdeep"])
async def test_one_of_the_maps_names_is_shown(gateway: Gateway, path: str) -> None:
    answer = await gateway.ask(path=f"/v1/models/{path}", method="GET")
    assert (answer.status, answer.json["object"]) == (200, "model")
    assert answer.json["id"] == path.replace("%2F", "/")


@pytest.mark.parametrize(
    "name", ["secret-vendor/small-1", "deep", "x%2F..%2Ffast", "a%00b", "default"]
)
async def test_what_is_no_name_of_the_map_is_not_found(
    gateway: Gateway, provider: Provider, name: str
) -> None:
    answer = await gateway.ask(path=f"/v1/models/{name}", method="GET")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-byoai-provider"] == "default"
    assert not provider.requests


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", ["secret-vendor/small-1", "gpt-unknown"])
async def test_a_request_for_no_name_of_the_map_reaches_nobody(
    gateway: Gateway, provider: Provider, name: str, *, is_stream: bool
) -> None:
    answer = await gateway.chat(model=name, stream=is_stream)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["param"] == "model"
    assert provider.connections == 0


async def test_the_official_client_reads_list_and_card(gateway: Gateway) -> None:
    async with gateway.client() as client:
        listed = [model.id async for model in client.models.list()]
        assert listed == ["fast", "org/deep"]
        assert (await client.models.retrieve("fast")).id == "fast"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("slow")


async def test_a_usage_record_tells_of_it(gateway: Gateway) -> None:
    await gateway.ask(path="/v1/models", method="GET")
    await gateway.ask(path="/v1/models/slow", method="GET")
    listed, missing = await gateway.records()
    assert (listed.endpoint, listed.provider, listed.outcome) == ("/models", "default", "ok")
    assert (listed.user_id, listed.attempts) == ("alice", 0)
    assert listed.first_token_ms is not None
    assert (missing.outcome, missing.attempts) == ("model_not_found", 0)


async def test_a_broken_provider_does_not_hide_the_list_nor_is_it_mended_by_it(
    gateway: Gateway, provider: Provider
) -> None:
    provider.always(refusal(500))
    codes: list[str] = []
    for _ in range(6):
        assert (await gateway.ask(path="/v1/models", method="GET")).status == 200
        answer = await gateway.chat(stream=False, model="fast")
        codes.append(answer.error["code"])
    assert codes[-1] == "breaker_open"
    assert (await gateway.ask(path="/v1/models", method="GET")).status == 200


async def test_a_list_that_falls_back_is_the_maps_too(gateway: Gateway, own: Provider) -> None:
    await gateway.prefer(
        aiProvider="openrouter", openRouterApiKey="sk-or-v1-mine", fallbackToDefault=True
    )
    own.always(refusal(429, headers={"retry-after": "60"}))
    answer = await gateway.ask(path="/v1/models", method="GET")
    assert [card["id"] for card in answer.json["data"]] == list(NAMES)
    assert answer.headers["x-byoai-provider"] == "default"
    assert answer.headers["x-byoai-fallback-reason"] == "rate_limited"
    assert answer.headers["x-byoai-attempts"] == "1"


async def test_without_a_map_the_provider_answers(unmapped: Gateway, provider: Provider) -> None:
    answer = await unmapped.ask(path="/v1/models", method="GET")
    assert [card["id"] for card in answer.json["data"]] == [MODEL]
    assert answer.headers["x-byoai-attempts"] == "1"
    assert (await provider.request()).target == "/v1/models"
    await unmapped.ask(path="/v1/models/anything", method="GET")
    assert (await provider.request(1)).target == "/v1/models/anything"
