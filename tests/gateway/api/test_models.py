"""`GET /api/ai/models`: who may ask, what may stand in the query, what the document says of it."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoai_gateway.config import LimitsSection
from byoai_gateway.provider_config import DefaultProviderSection
from support.control import Api, FakeClock, bearer, gateway_config, open_api

PATH = "/api/ai/models"
PREFERENCES = "/api/user-preferences/ai-provider"


@pytest.fixture
async def api(tmp_path: Path, clock: FakeClock) -> AsyncGenerator[Api]:
    default = DefaultProviderSection(
        base_url="http://127.0.0.1:9/v1", model="main", models={"main": "secret/main"}
    )
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        default_provider=default,
        limits=LimitsSection(requests_per_minute=5),
    )
    async with open_api(config, clock) as opened:
        yield opened


async def models(api: Api, query: str = "", user: str = "alice") -> tuple[int, Any]:
    return await api.call("GET", PATH + query, user)


async def test_it_is_about_the_chosen_provider_unless_another_is_named(api: Api) -> None:
    status, answer = await models(api)
    assert (status, answer["provider"]) == (200, "default")
    _, tunnel = await api.call(
        "POST", "/api/tunnel/register", "alice", {"modelInfo": {"name": "smollm2"}}
    )
    settings = {"aiProvider": "self-hosted", "tunnelId": tunnel["tunnelId"]}
    assert (await api.call("POST", PREFERENCES, "alice", settings))[0] == 200
    status, answer = await models(api)
    assert (status, answer["provider"]) == (200, "self-hosted")
    assert [model["id"] for model in answer["models"]] == ["smollm2"]
    status, answer = await models(api, "?provider=default")
    assert (status, answer["provider"]) == (200, "default")
    # Looking chooses nothing.
    assert (await api.call("GET", PREFERENCES, "alice"))[1]["aiProvider"] == "self-hosted"


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("provider=chatgpt", "provider"),
        ("provider=", "provider"),
        ("provider=Default", "provider"),
        ("provider=default%00", "provider"),
        ("provider=%ED%A0%80", "provider"),
        ("provider=default&provider=openrouter", "provider"),
        ("Provider=default", "Provider"),
        ("key=canary", "key"),
        ("userId=alice&userId=alice", "userId"),
    ],
)
async def test_a_query_of_another_shape_is_refused_by_its_name(
    api: Api, query: str, param: str
) -> None:
    status, answer = await models(api, "?" + query)
    assert (status, answer["error"]["code"]) == (400, "invalid_query")
    assert answer["error"]["param"] == param
    assert list(answer["fields"]) == [param]
    assert "canary" not in str(answer)


async def test_everything_wrong_with_a_query_is_told_at_once(api: Api) -> None:
    status, answer = await models(api, "?provider=chatgpt&sort=name")
    assert (status, list(answer["fields"])) == (400, ["provider", "sort"])


async def test_a_query_may_not_speak_for_another_user(api: Api) -> None:
    assert (await models(api, "?userId=alice"))[0] == 200
    status, answer = await models(api, "?userId=bob")
    assert (status, answer["error"]["code"]) == (404, "user_not_found")
    assert answer["error"]["param"] == "userId"


async def test_nobody_looks_without_a_token(api: Api) -> None:
    status, answer = await api.call("GET", PATH)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    # Not even to learn what a query may be.
    assert (await api.call("GET", PATH + "?provider=chatgpt"))[0] == 401


async def test_another_provider_is_shown_by_the_rules_of_choosing_it(api: Api) -> None:
    for provider, status, code in (
        ("openrouter", 403, "key_missing"),
        ("self-hosted", 404, "tunnel_not_found"),
    ):
        found, answer = await models(api, f"?provider={provider}")
        assert (found, answer["error"]["code"]) == (status, code)
    free = {"Authorization": bearer("alice", api.clock, plan="free")}
    status, answer = await api.call("GET", PATH + "?provider=self-hosted", None, **free)
    assert (status, answer["error"]["code"]) == (403, "plan_required")


async def test_looking_counts_as_a_request_because_somebody_may_be_asked(api: Api) -> None:
    for _ in range(5):
        assert (await models(api))[0] == 200
    status, answer = await models(api)
    assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
    assert (await models(api, user="bob"))[0] == 200


async def test_the_document_says_what_may_stand_in_the_query(api: Api) -> None:
    _, document = await api.call("GET", "/openapi.json")
    operation = document["paths"][PATH]["get"]
    parameters = {it["name"]: it for it in operation["parameters"] if it["in"] == "query"}
    assert set(parameters) == {"provider", "userId"}
    assert not any(it["required"] for it in parameters.values())
    assert "requestBody" not in operation
    assert {"200", "400", "401", "403", "404", "429", "503"} <= set(operation["responses"])
    providers = document["components"]["schemas"]["ProviderName"]
    assert set(providers["enum"]) == {"default", "openrouter", "self-hosted"}
