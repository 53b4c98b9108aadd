"""What users are told of their provider's models, whoever it is."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from byoai_gateway.asked_models import FAILED_S
from byoai_gateway.config import GatewayConfig
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    SelfHostedSection,
)
from byoai_gateway.providers import openrouter_account
from byoai_shared.protocol.control import Presence, PresenceState, Status, UpstreamHealth
from byoai_shared.tls import Credentials, replace_credentials
from support.control import Api, FakeClock, bearer, gateway_config, open_api
from support.openrouter import KEY, FakeOpenRouter, error, serving_openrouter
from support.provider import Provider, providing
from support.provider_script import MODEL, Hang, refusal, whole

PATH = "/api/ai/models"
PREFERENCES = "/api/user-preferences/ai-provider"
UNKNOWN: dict[str, Any] = {
    "name": None,
    "contextLength": None,
    "inputModalities": None,
    "outputModalities": None,
    "promptPrice": None,
    "completionPrice": None,
    "supportedParameters": None,
    "expiresOn": None,
}
NOTHING: dict[str, Any] = {
    "models": [],
    "isPublicList": None,
    "fetchedAt": None,
    "defaultModel": None,
    "note": None,
}
Opening = Callable[..., AbstractAsyncContextManager[Api]]


@pytest.fixture
async def openrouter() -> AsyncGenerator[FakeOpenRouter]:
    async with serving_openrouter() as service:
        yield service


@pytest.fixture
async def provider() -> AsyncGenerator[Provider]:
    """The operator's own."""
    async with providing() as made:
        yield made


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def server(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Provider]:
    """A user's model server at an https address; the system trusts its certificate."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made = authority.issue_cert("127.0.0.1")
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    replace_credentials(context, Credentials(chain, made.private_key_pem.bytes()))
    async with providing(context) as served:
        yield served


@pytest.fixture
def config(tmp_path: Path, openrouter: FakeOpenRouter, provider: Provider) -> GatewayConfig:
    return msgspec.structs.replace(
        gateway_config(tmp_path),
        default_provider=DefaultProviderSection(base_url=provider.url, model="main"),
        openrouter=OpenRouterSection(base_url=openrouter.url, models_fresh_s=300),
        self_hosted=SelfHostedSection(url_networks=("127.0.0.1/32",)),
    )


@pytest.fixture
def opening(config: GatewayConfig, clock: FakeClock) -> Opening:
    """Opens the API with other settings of the default provider."""

    def opened(**settings: Any) -> AbstractAsyncContextManager[Api]:
        section = msgspec.structs.replace(config.default_provider, **settings)
        return open_api(msgspec.structs.replace(config, default_provider=section), clock)

    return opened


async def prefer(api: Api, **settings: Any) -> None:
    status, answer = await api.call("POST", PREFERENCES, "alice", settings)
    assert status == 200, answer


async def models(api: Api, query: str = "") -> Any:
    status, answer = await api.call("GET", PATH + query, "alice")
    assert status == 200, answer
    return answer


async def refused(api: Api, query: str = "") -> tuple[int, str]:
    status, answer = await api.call("GET", PATH + query, "alice")
    return status, answer["error"]["code"]


async def attention(api: Api) -> dict[str, str]:
    _, shown = await api.call("GET", PREFERENCES, "alice")
    return {it["setting"]: it["code"] for it in shown["needsAttention"]}


def ids(answer: Any) -> list[str]:
    return [model["id"] for model in answer["models"]]


class TestOpenRouter:
    async def test_the_list_is_the_keys_own_and_says_what_is_known(
        self, api: Api, openrouter: FakeOpenRouter
    ) -> None:
        await prefer(
            api,
            aiProvider="openrouter",
            openRouterApiKey=KEY,
            openRouterModelPreference="acme/large",
        )
        answer = await models(api)
        assert ids(answer) == ["acme/small", "acme/large"]
        assert answer["models"][0] == {
            "id": "acme/small",
            "name": "Acme/Small",
            "contextLength": 128000,
            "inputModalities": ["text"],
            "outputModalities": ["text"],
            "promptPrice": "0.0000007",
            "completionPrice": "0.0000007",
            "supportedParameters": ["temperature", "tools"],
            "expiresOn": None,
        }
        assert (answer["provider"], answer["defaultModel"]) == ("openrouter", "acme/large")
        assert (answer["isPublicList"], answer["note"]) == (False, None)
        assert answer["fetchedAt"] == api.clock()
        assert openrouter.asked[0].headers["authorization"] == f"Bearer {KEY}"

    @pytest.mark.parametrize(
        ("preferred", "words"), [("acme/x", "not in this list"), (None, "your account's default")]
    )
    async def test_a_default_that_the_list_lacks_is_explained(
        self, api: Api, preferred: str | None, words: str
    ) -> None:
        await prefer(
            api,
            aiProvider="openrouter",
            openRouterApiKey=KEY,
            openRouterModelPreference=preferred,
        )
        answer = await models(api)
        assert answer["defaultModel"] is None
        assert words in answer["note"]

    async def test_a_known_list_does_not_wait_for_openrouter(
        self, api: Api, clock: FakeClock, openrouter: FakeOpenRouter
    ) -> None:
        await prefer(api, aiProvider="openrouter", openRouterApiKey=KEY)
        fetched_at = (await models(api))["fetchedAt"]
        clock.advance(3600)
        openrouter.gate.clear()
        try:
            answer = await models(api)
            assert (ids(answer)[0], answer["fetchedAt"]) == ("acme/small", fetched_at)
        finally:
            openrouter.gate.set()

    async def test_the_list_for_everybody_stands_in_and_says_so(
        self, api: Api, openrouter: FakeOpenRouter
    ) -> None:
        await prefer(api, aiProvider="openrouter", openRouterApiKey=KEY)
        openrouter.instead("/models/user", error(503, "away"))
        answer = await models(api)
        assert answer["isPublicList"] is True
        assert "everybody" in answer["note"]

    async def test_a_refused_key_is_said_and_noted(self, api: Api) -> None:
        await prefer(api, aiProvider="openrouter", openRouterApiKey="sk-or-v1-a-canary-unknown")
        status, answer = await api.call("GET", PATH, "alice")
        assert (status, answer["error"]["code"]) == (403, "key_refused")
        assert answer["error"]["param"] == "openRouterApiKey"
        assert "canary" not in str(answer)
        assert await attention(api) == {"openRouterApiKey": "key_refused"}

    async def test_without_a_key_there_is_nothing_to_look_at(self, api: Api) -> None:
        assert await refused(api, "?provider=openrouter") == (403, "key_missing")

    async def test_a_first_list_that_takes_too_long_is_an_honest_503(
        self, api: Api, openrouter: FakeOpenRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openrouter_account, "FIRST_WAIT_S", 0.05)
        await prefer(api, aiProvider="openrouter", openRouterApiKey=KEY)
        openrouter.gate.clear()
        try:
            headers = {"Authorization": bearer("alice", api.clock)}
            async with api.http.get(PATH, headers=headers) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "5"
                told = (await response.json())["error"]
            assert told["code"] == "models_unavailable"
            assert "try again" in told["message"]
        finally:
            openrouter.gate.set()
        assert ids(await models(api))

    async def test_a_service_that_is_away_is_no_fault_of_any_setting(
        self, api: Api, openrouter: FakeOpenRouter
    ) -> None:
        await prefer(
            api, aiProvider="openrouter", openRouterApiKey=KEY, openRouterModelPreference="a/b"
        )
        openrouter.instead("/models/user", error(404, "model not found"))
        openrouter.instead("/models", error(404, "model not found"))
        assert await refused(api) == (503, "models_unavailable")
        assert await attention(api) == {}


class TestDefault:
    async def test_the_maps_names_are_shown_and_what_is_behind_them_is_not(
        self, opening: Opening, provider: Provider
    ) -> None:
        async with opening(models={"main": "secret/main-7", "small": "secret/small-1"}) as api:
            answer = await models(api)
        assert answer == {
            **NOTHING,
            "provider": "default",
            "models": [{"id": "main", **UNKNOWN}, {"id": "small", **UNKNOWN}],
            "defaultModel": "main",
        }
        assert not provider.requests

    async def test_without_a_map_the_provider_is_asked_once_for_all_users(
        self, api: Api, provider: Provider
    ) -> None:
        answer = await models(api)
        assert (ids(answer), answer["defaultModel"]) == ([MODEL], None)
        assert "not in this list" in answer["note"]
        assert answer["fetchedAt"] == api.clock()
        status, of_bob = await api.call("GET", PATH, "bob")
        assert (status, of_bob) == (200, answer)
        assert len(provider.requests) == 1

    async def test_when_it_gives_no_list_the_default_model_is_known_still(
        self, api: Api, provider: Provider
    ) -> None:
        provider.expect(refusal(401, "the operator's key canary is wrong"))
        answer = await models(api)
        assert (ids(answer), answer["fetchedAt"]) == (["main"], None)
        assert "names none" in answer["note"]
        assert "canary" not in str(answer)

    async def test_when_nothing_is_known_of_it_that_is_said(
        self, opening: Opening, provider: Provider
    ) -> None:
        provider.expect(refusal(500, "a canary of the operator's"))
        async with opening(model=None) as api:
            status, answer = await api.call("GET", PATH, "alice")
        assert (status, answer["error"]["code"]) == (503, "models_unavailable")

    async def test_it_is_shown_to_those_who_may_use_it(self, opening: Opening) -> None:
        async with opening(plans=("gold",)) as api:
            assert await refused(api) == (403, "plan_required")
        async with opening(base_url=None) as api:
            assert await refused(api) == (503, "no_default_provider")


async def online(api: Api, tunnel_id: str, agent_id: str, *names: str, **status: Any) -> None:
    presence = Presence(
        tunnel_id=tunnel_id,
        agent_id=agent_id,
        instance="i",
        epoch=1,
        state=PresenceState.ONLINE,
        status=Status(models=names, **status),
    )
    api.presence.update("wss://relay:2", presence)


class TestTunnel:
    @pytest.fixture
    async def tunnel_id(self, api: Api) -> str:
        tunnel_id: str = (await api.register("alice"))["tunnelId"]
        await prefer(api, aiProvider="self-hosted", tunnelId=tunnel_id)
        return tunnel_id

    async def test_the_models_are_those_that_its_agents_report(
        self, api: Api, tunnel_id: str
    ) -> None:
        await online(api, tunnel_id, "a", "llama3", "smollm2", health=UpstreamHealth.HEALTHY)
        await online(api, tunnel_id, "b", "llama3", "qwen3")
        answer = await models(api)
        assert answer == {
            **NOTHING,
            "provider": "self-hosted",
            "models": [{"id": name, **UNKNOWN} for name in ("llama3", "qwen3", "smollm2")],
            "defaultModel": "smollm2",
        }

    @pytest.mark.parametrize(
        ("preferred", "expected"),
        [(None, "llama3.2:3b"), ("qwen3", "qwen3:latest"), ("smollm2", None)],
    )
    async def test_the_default_model_is_one_of_the_list_or_none(
        self, api: Api, tunnel_id: str, preferred: str | None, expected: str | None
    ) -> None:
        await online(api, tunnel_id, "a", "nomic-embed-text", "llama3.2:3b", "qwen3:latest")
        await prefer(api, selfHostedModelPreference=preferred)
        answer = await models(api)
        assert answer["defaultModel"] == expected
        assert (answer["note"] is None) is (expected is not None)
        lacks = {} if expected else {"selfHostedModelPreference": "model_not_found"}
        assert await attention(api) == lacks

    async def test_what_an_agent_reports_decides_whether_the_preferred_model_is_there(
        self, api: Api, tunnel_id: str
    ) -> None:
        await prefer(api, selfHostedModelPreference="qwen3")
        assert await attention(api) == {"tunnelId": "agent_never_joined"}
        await online(api, tunnel_id, "a", "llama3")
        assert await attention(api) == {"selfHostedModelPreference": "model_not_found"}
        await online(api, tunnel_id, "a", "llama3", "qwen3")
        assert await attention(api) == {}

    async def test_while_it_is_offline_the_registered_model_stands_in(
        self, api: Api, tunnel_id: str
    ) -> None:
        assert tunnel_id
        answer = await models(api)
        assert (ids(answer), answer["defaultModel"]) == (["smollm2"], "smollm2")
        assert "no agent has joined this tunnel yet" in answer["note"]

    async def test_an_agent_that_reports_nothing_is_told_from_one_that_is_offline(
        self, api: Api, tunnel_id: str
    ) -> None:
        await online(api, tunnel_id, "a")
        answer = await models(api)
        assert ids(answer) == ["smollm2"]
        assert "reports no models" in answer["note"]

    async def test_a_model_server_that_is_down_is_said_beside_its_models(
        self, api: Api, tunnel_id: str
    ) -> None:
        await online(api, tunnel_id, "a", "llama3", health=UpstreamHealth.DOWN)
        answer = await models(api)
        assert ids(answer) == ["llama3"]
        assert "does not answer" in answer["note"]

    async def test_another_users_tunnel_is_none(self, api: Api, tunnel_id: str) -> None:
        await online(api, tunnel_id, "a", "llama3")
        status, answer = await api.call("GET", PATH + "?provider=self-hosted", "bob")
        assert (status, answer["error"]["code"]) == (404, "tunnel_not_found")

    async def test_a_plan_that_lapsed_shows_nothing(self, api: Api, tunnel_id: str) -> None:
        assert tunnel_id
        lapsed = {"Authorization": bearer("alice", api.clock, plan="free")}
        status, answer = await api.call("GET", PATH, None, **lapsed)
        assert (status, answer["error"]["code"]) == (403, "plan_required")


class TestUrl:
    @pytest.fixture
    async def served(self, server: Provider, api: Api) -> Provider:
        """Alice's server is chosen; made before the API, which looks once whom to trust."""
        await prefer(
            api,
            aiProvider="self-hosted",
            selfHostedUrl=server.url,
            selfHostedAuthKey="alices-key-of-some-length",
        )
        return server

    @pytest.fixture
    async def api(
        self, config: GatewayConfig, clock: FakeClock, server: Provider
    ) -> AsyncGenerator[Api]:
        assert server.port
        async with open_api(config, clock) as opened:
            yield opened

    async def test_the_server_is_asked_with_the_users_key_and_not_again_at_once(
        self, api: Api, served: Provider
    ) -> None:
        served.expect(whole({"data": [{"id": "llama3", "max_model_len": 8192}]}))
        answer = await models(api)
        assert answer == {
            **NOTHING,
            "provider": "self-hosted",
            "models": [{"id": "llama3", **UNKNOWN, "contextLength": 8192}],
            "fetchedAt": api.clock(),
            "defaultModel": "llama3",
        }
        assert await models(api) == answer
        (request,) = served.requests
        assert request.headers["authorization"] == "Bearer alices-key-of-some-length"

    @pytest.mark.parametrize(
        ("preferred", "expected"), [(None, "llama3"), ("phi4", "phi4:latest"), ("gone", None)]
    )
    async def test_the_default_model_is_the_one_that_an_unnamed_request_gets(
        self, api: Api, served: Provider, preferred: str | None, expected: str | None
    ) -> None:
        names = ("nomic-embed-text", "llama3", "phi4:latest")
        served.expect(whole({"data": [{"id": name} for name in names]}))
        await prefer(api, selfHostedModelPreference=preferred)
        answer = await models(api)
        assert answer["defaultModel"] == expected
        assert ("not in this list" in (answer["note"] or "")) is (expected is None)

    async def test_what_is_preferred_of_a_server_without_a_list_is_known(
        self, api: Api, served: Provider
    ) -> None:
        served.expect(refusal(404, "not found"))
        await prefer(api, selfHostedModelPreference="mine")
        answer = await models(api)
        assert (ids(answer), answer["defaultModel"]) == (["mine"], "mine")

    async def test_another_key_is_asked_with_at_once(self, api: Api, served: Provider) -> None:
        served.expect(refusal(401))
        assert await refused(api) == (403, "key_refused")
        assert await attention(api) == {"selfHostedAuthKey": "key_refused"}
        await prefer(api, selfHostedAuthKey="another-key-of-some-length")
        assert ids(await models(api)) == [MODEL]

    async def test_a_server_without_a_list_is_not_called_broken(
        self, api: Api, served: Provider
    ) -> None:
        served.expect(refusal(404, "not found"))
        answer = await models(api)
        assert (answer["models"], answer["fetchedAt"]) == ([], None)
        assert "name the one you want" in answer["note"]

    async def test_a_server_that_is_away_is_asked_again_a_little_later(
        self, api: Api, clock: FakeClock, served: Provider
    ) -> None:
        served.expect(refusal(503))
        assert await refused(api) == (503, "models_unavailable")
        assert await refused(api) == (503, "models_unavailable")
        assert len(served.requests) == 1
        clock.advance(FAILED_S)
        assert ids(await models(api)) == [MODEL]
        assert await attention(api) == {}

    async def test_who_leaves_takes_the_question_along(self, api: Api, served: Provider) -> None:
        served.expect((Hang(0),))
        asking = asyncio.ensure_future(api.call("GET", PATH, "alice"))
        request = await served.request()
        asking.cancel()
        await asyncio.wait((asking,))
        await request.client_gone()
