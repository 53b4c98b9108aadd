"""One application, with one name for its model, whichever provider its user chooses."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from byoai_gateway import asked_models
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    SelfHostedSection,
)
from support.control import FakeClock, gateway_config
from support.gateway import PREFERENCES, Answer, Gateway, open_gateway
from support.internet import https, trusted_authority
from support.openrouter import KEY, FakeOpenRouter, serving_openrouter
from support.provider import Provider, providing
from support.provider_script import Hang, refusal, whole
from support.tunnels import report, through

TRANSCRIPTIONS = "/v1/audio/transcriptions"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    return trusted_authority(tmp_path, monkeypatch)


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncGenerator[Provider]:
    """A model server at an address of Alice's."""
    async with providing(https(authority, "127.0.0.1")) as provider:
        yield provider


@pytest.fixture
async def openrouter() -> AsyncGenerator[FakeOpenRouter]:
    async with serving_openrouter() as service:
        yield service


@pytest.fixture
async def gateway(
    tmp_path: Path,
    clock: FakeClock,
    default: Provider,
    openrouter: FakeOpenRouter,
    authority: trustme.CA,
) -> AsyncGenerator[Gateway]:
    del authority  # whom the system trusts is read when the gateway starts
    config = gateway_config(
        tmp_path,
        default_provider=DefaultProviderSection(
            base_url=default.url, model="small", models={"small": "vendor/small-8b"}
        ),
        openrouter=OpenRouterSection(base_url=openrouter.url),
        self_hosted=SelfHostedSection(url_networks=("127.0.0.1/32",)),
    )
    async with open_gateway(msgspec.structs.replace(config, relays=()), clock) as opened:
        yield opened


@pytest.fixture
async def agent() -> AsyncGenerator[Provider]:
    """What answers at the far end of Alice's tunnel."""
    async with providing() as provider:
        yield provider


@pytest.fixture
async def tunnel_id(gateway: Gateway, agent: Provider, monkeypatch: pytest.MonkeyPatch) -> str:
    """Alice chose her tunnel, which was registered for a model that is not there."""
    through(gateway, agent, monkeypatch)
    body = {"modelInfo": {"name": "smollm2", "capabilities": ["text-generation"]}}
    made = await gateway.ask(body, path="/api/tunnel/register")
    found: str = made.json["tunnelId"]
    await gateway.prefer(aiProvider="self-hosted", tunnelId=found)
    return found


async def attention(gateway: Gateway) -> dict[str, str]:
    shown = (await gateway.ask(path=PREFERENCES, method="GET")).json
    return {it["setting"]: it["code"] for it in shown["needsAttention"]}


def asked(provider: Provider) -> Any:
    """What the provider was asked for last."""
    return provider.requests[-1].json


def refused(answer: Answer) -> str:
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.error["param"] == "model"
    assert answer.headers["x-byoai-attempts"] == "0"
    assert "x-byoai-model" not in answer.headers
    message: str = answer.error["message"]
    return message


# -- the same request everywhere


async def test_the_operators_name_is_answered_by_whoever_is_chosen(
    gateway: Gateway,
    default: Provider,
    agent: Provider,
    server: Provider,
    openrouter: FakeOpenRouter,
    tunnel_id: str,
) -> None:
    report(gateway, tunnel_id, "nomic-embed-text", "llama3.2:3b")
    answer = await gateway.chat(model="small")
    assert (answer.status, answer.headers["x-byoai-model"]) == (200, "llama3.2:3b")
    assert asked(agent)["model"] == "llama3.2:3b"

    await gateway.prefer(tunnelId=None, selfHostedUrl=server.url)
    server.expect(whole({"data": [{"id": "bge-m3"}, {"id": "phi4"}]}))
    answer = await gateway.chat(model="small")
    assert (answer.status, answer.headers["x-byoai-model"]) == (200, "phi4")

    await gateway.prefer(
        aiProvider="openrouter", openRouterApiKey=KEY, openRouterModelPreference="acme/small"
    )
    answer = await gateway.chat(model="small")
    assert (answer.status, answer.headers["x-byoai-model"]) == (200, "acme/small")
    assert openrouter.asked[-1].body["model"] == "acme/small"

    await gateway.prefer(aiProvider="default")
    answer = await gateway.chat(model="small")
    assert (answer.status, answer.headers["x-byoai-model"]) == (200, "vendor/small-8b")
    assert asked(default)["model"] == "vendor/small-8b"


# -- a tunnel


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}, {"model": "default"}])
async def test_a_request_without_a_name_gets_the_model_that_list_and_router_agree_on(
    gateway: Gateway, agent: Provider, tunnel_id: str, named: dict[str, Any]
) -> None:
    report(gateway, tunnel_id, "nomic-embed-text", "llama3.2:3b", "qwen3")
    listed = (await gateway.ask(path="/api/ai/models", method="GET")).json
    answer = await gateway.ask({"messages": [], **named})
    assert answer.headers["x-byoai-model"] == "llama3.2:3b" == listed["defaultModel"]
    assert asked(agent)["model"] == "llama3.2:3b"
    embedded = await gateway.ask({"input": "x", **named}, path="/v1/embeddings")
    assert embedded.headers["x-byoai-model"] == "nomic-embed-text"
    records = await gateway.records()
    assert [it.model for it in records] == ["llama3.2:3b", "nomic-embed-text"]


async def test_a_name_that_is_not_there_is_refused_with_those_that_are(
    gateway: Gateway, agent: Provider, tunnel_id: str
) -> None:
    report(gateway, tunnel_id, *(f"model-{number}" for number in range(25)))
    message = refused(await gateway.chat(model="gpt-4o"))
    assert "'gpt-4o'" in message
    assert "model-0, model-1," in message
    assert "model-19, and 5 more" in message
    assert "model-20" not in message
    assert not agent.requests
    assert await attention(gateway) == {}


async def test_a_preferred_model_answers_for_no_name_and_for_any_if_it_always_should(
    gateway: Gateway, tunnel_id: str
) -> None:
    report(gateway, tunnel_id, "llama3.2:3b", "qwen3:latest")
    await gateway.prefer(selfHostedModelPreference="qwen3")
    assert (await gateway.chat(model="small")).headers["x-byoai-model"] == "qwen3"
    assert (await gateway.chat(model="llama3.2:3b")).headers["x-byoai-model"] == "llama3.2:3b"
    refused(await gateway.chat(model="gpt-4o"))
    await gateway.prefer(alwaysUseMyModel=True)
    assert (await gateway.chat(model="gpt-4o")).headers["x-byoai-model"] == "qwen3"
    assert (await gateway.chat(model="llama3.2:3b")).headers["x-byoai-model"] == "qwen3"


async def test_a_preferred_model_that_is_not_there_is_told_and_shown(
    gateway: Gateway, tunnel_id: str
) -> None:
    report(gateway, tunnel_id, "llama3.2:3b")
    await gateway.prefer(selfHostedModelPreference="gone")
    message = refused(await gateway.chat(model="small"))
    assert "your preferred model 'gone'" in message
    assert "llama3.2:3b" in message
    assert await attention(gateway) == {"selfHostedModelPreference": "model_not_found"}
    assert (await gateway.chat(model="llama3.2:3b")).status == 200
    report(gateway, tunnel_id, "llama3.2:3b", "gone")
    assert await attention(gateway) == {}


async def test_an_agent_that_reports_nothing_decides_by_itself(
    gateway: Gateway, agent: Provider, tunnel_id: str
) -> None:
    report(gateway, tunnel_id)
    assert (await gateway.chat(model="gpt-4o")).headers["x-byoai-model"] == "gpt-4o"
    assert (await gateway.chat(model="small")).headers["x-byoai-model"] == "smollm2"
    await gateway.prefer(selfHostedModelPreference="qwen3")
    agent.expect(refusal(404, "no model server of this agent has it", code="model_not_found"))
    assert (await gateway.chat(model="gpt-4o")).status == 404
    assert await attention(gateway) == {}
    agent.expect(refusal(404, "no model server of this agent has it", code="model_not_found"))
    answer = await gateway.chat(model="default")
    assert (answer.status, answer.headers["x-byoai-model"]) == (404, "qwen3")
    assert await attention(gateway) == {"selfHostedModelPreference": "model_not_found"}
    assert (await gateway.chat(model="gpt-4o")).status == 200
    assert await attention(gateway) == {"selfHostedModelPreference": "model_not_found"}
    assert (await gateway.chat(model="default")).status == 200
    assert await attention(gateway) == {}


def form(*fields: tuple[str, str]) -> tuple[bytes, str]:
    parts = [
        f'--B\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields
    ]
    return f"{''.join(parts)}--B--\r\n".encode(), "multipart/form-data; boundary=B"


@pytest.mark.parametrize(
    ("fields", "status", "model"),
    [
        ((("model", "whisper-1"),), 200, "whisper-1"),
        ((("language", "en"),), 200, None),
        ((("model", "small"),), 404, None),
    ],
)
async def test_a_form_goes_as_it_is_or_not_at_all(
    gateway: Gateway,
    agent: Provider,
    tunnel_id: str,
    fields: tuple[tuple[str, str], ...],
    status: int,
    model: str | None,
) -> None:
    report(gateway, tunnel_id, "whisper-1", "llama3.2:3b")
    await gateway.prefer(selfHostedModelPreference="llama3.2:3b", alwaysUseMyModel=True)
    body, kind = form(*fields)
    answer = await gateway.ask(body, path=TRANSCRIPTIONS, **{"content-type": kind})
    assert answer.status == status
    assert answer.headers.get("x-byoai-model") == model
    assert [it.body for it in agent.requests] == ([body] if status == 200 else [])


# -- a server at an address


@pytest.fixture
async def by_url(gateway: Gateway, server: Provider) -> Provider:
    await gateway.prefer(aiProvider="self-hosted", selfHostedUrl=server.url)
    return server


async def test_a_servers_list_is_asked_for_once_and_only_for_requests_without_a_name(
    gateway: Gateway, by_url: Provider
) -> None:
    assert (await gateway.chat(model="mine")).headers["x-byoai-model"] == "mine"
    assert [it.target for it in by_url.requests] == ["/v1/chat/completions"]
    for _ in range(2):
        assert (await gateway.chat(model="small")).headers["x-byoai-model"] == "provider-model"
    paths = [it.target for it in by_url.requests]
    assert paths == ["/v1/chat/completions", "/v1/models", *["/v1/chat/completions"] * 2]
    assert "provider-model" in refused(await gateway.chat(model="mine"))


async def test_a_preferred_model_needs_no_list(gateway: Gateway, by_url: Provider) -> None:
    await gateway.prefer(selfHostedModelPreference="mine")
    assert (await gateway.chat(model="default")).headers["x-byoai-model"] == "mine"
    assert [it.target for it in by_url.requests] == ["/v1/chat/completions"]


async def test_a_preferred_model_that_cannot_do_it_leaves_it_to_the_list(
    gateway: Gateway, by_url: Provider
) -> None:
    await gateway.prefer(selfHostedModelPreference="mine")
    by_url.expect(whole({"data": [{"id": "mine"}, {"id": "bge-m3"}]}))
    embedded = await gateway.ask({"input": "x", "model": "small"}, path="/v1/embeddings")
    assert embedded.headers["x-byoai-model"] == "bge-m3"
    assert [it.target for it in by_url.requests] == ["/v1/models", "/v1/embeddings"]


async def test_a_server_without_a_list_is_asked_without_a_model(
    gateway: Gateway, by_url: Provider
) -> None:
    by_url.expect(refusal(404, "not found"))
    answer = await gateway.chat(model="small")
    assert answer.status == 200
    assert "x-byoai-model" not in answer.headers
    assert "model" not in asked(by_url)


async def test_a_list_that_does_not_come_is_not_waited_for(
    gateway: Gateway, by_url: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both times are shorter than the first comment's, which would begin the answer.
    monkeypatch.setattr(asked_models, "ASK_S", 1.5)
    by_url.expect((Hang(2.0),))
    answer = await gateway.chat(model="small")
    assert (answer.status, answer.headers["x-byoai-attempts"]) == (200, "1")
    assert "model" not in asked(by_url)


async def test_a_list_that_has_aged_rules_no_name_out(
    gateway: Gateway, by_url: Provider, clock: FakeClock
) -> None:
    await gateway.ask(path="/api/ai/models", method="GET")
    refused(await gateway.chat(model="mine"))
    clock.advance(61)
    assert (await gateway.chat(model="mine")).headers["x-byoai-model"] == "mine"


# -- OpenRouter


async def test_openrouters_list_is_used_when_it_is_known_and_never_fetched_for_a_request(
    gateway: Gateway, openrouter: FakeOpenRouter
) -> None:
    await gateway.prefer(
        aiProvider="openrouter", openRouterApiKey=KEY, openRouterModelPreference="acme/large"
    )
    for named, model in (("acme/unheard", "acme/unheard"), ("gpt-4o", "acme/large")):
        assert (await gateway.chat(model=named)).headers["x-byoai-model"] == model
    assert openrouter.paths() == ["/chat/completions"] * 2
    await gateway.ask(path="/api/ai/models", method="GET")
    assert (await gateway.chat(model="acme/small")).headers["x-byoai-model"] == "acme/small"
    for named in ("acme/unheard", "gpt-4o"):
        assert "acme/small, acme/large" in refused(await gateway.chat(model=named))
    await gateway.prefer(alwaysUseMyModel=True)
    for named in ("acme/small", "gpt-4o"):
        assert (await gateway.chat(model=named)).headers["x-byoai-model"] == "acme/large"


async def test_a_name_of_the_requests_own_marks_no_preference(
    gateway: Gateway, openrouter: FakeOpenRouter
) -> None:
    await gateway.prefer(
        aiProvider="openrouter",
        openRouterApiKey=KEY,
        openRouterModelPreference="fault/no_such_model",
    )
    assert (await gateway.chat(model="default")).error["code"] == "model_not_found"
    assert await attention(gateway) == {"openRouterModelPreference": "model_not_found"}
    assert (await gateway.chat(model="acme/small")).status == 200
    assert await attention(gateway) == {"openRouterModelPreference": "model_not_found"}
    await gateway.prefer(openRouterModelPreference="acme/small")
    assert (await gateway.chat(model="fault/no_such_model")).error["code"] == "model_not_found"
    assert await attention(gateway) == {}
    assert openrouter.asked


# -- the default provider


async def test_the_default_provider_refuses_with_the_names_that_users_may_give(
    gateway: Gateway, default: Provider
) -> None:
    assert "it offers small;" in refused(await gateway.chat(model="gpt-4o"))
    assert not default.requests


async def test_a_fallback_says_which_model_answered(
    gateway: Gateway, tunnel_id: str, default: Provider
) -> None:
    report(gateway, tunnel_id, "llama3.2:3b")
    await gateway.prefer(fallbackToDefault=True)
    answer = await gateway.chat(model="gpt-4o")
    assert answer.headers["x-byoai-fallback-reason"] == "model_not_found"
    assert answer.headers["x-byoai-model"] == "vendor/small-8b"
    assert len(default.requests) == 1
