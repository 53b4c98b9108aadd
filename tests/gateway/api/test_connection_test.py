"""Tests of connections, as the settings page asks for them: nothing is saved, and all is told."""

import asyncio
import io
import socket
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from byoai_gateway.absence import all_locked, no_relay, not_connected
from byoai_gateway.config import LimitsSection
from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RouterSection,
    SelfHostedSection,
)
from byoai_gateway.providers.outbound import AddressInfo
from byoai_gateway.tunnel_client import (
    TunnelBusy,
    TunnelError,
    TunnelLost,
    TunnelOffline,
    TunnelUntrusted,
)
from byoai_shared import logs
from byoai_shared.secret import Secret
from support.control import FakeClock, gateway_config
from support.gateway import PREFERENCES, Answer, Gateway, open_gateway
from support.internet import https, trusted_authority
from support.loop_clock import NEVER_S
from support.openrouter import (
    GENEROUS,
    KEY,
    MANAGEMENT_KEY,
    FakeOpenRouter,
    Reply,
    error,
    serving_openrouter,
)
from support.provider import Provider, providing
from support.provider_script import (
    Close,
    Die,
    Hang,
    Script,
    head,
    refusal,
    role,
    stream,
    token,
    whole,
)
from support.tunnels import through

PATH = "/api/ai/test-connection"
STAGES = ["reachable", "authenticated", "model", "answer"]
PASSED = ["passed"] * 4
OPERATORS_KEY = "the-operators-own-key"
SERVERS_KEY = "the-key-of-alices-server"
ABSENT = "t" + "a" * 20
MODELS = whole({"object": "list", "data": [{"id": "qwen3:8b"}, {"id": "llama3.2:latest"}]})
TOKEN = stream(role(), token("OK"), Hang(0))


@pytest.fixture
async def openrouter() -> AsyncGenerator[FakeOpenRouter]:
    async with serving_openrouter() as service:
        yield service


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    return trusted_authority(tmp_path, monkeypatch)


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncGenerator[Provider]:
    """Alice's model server, on the internet."""
    async with providing(https(authority, "127.0.0.1", "llm.example.com")) as provider:
        yield provider


@pytest.fixture
async def gateway(
    tmp_path: Path,
    clock: FakeClock,
    default: Provider,
    openrouter: FakeOpenRouter,
    authority: trustme.CA,
) -> AsyncGenerator[Gateway]:
    del authority  # whom the system trusts is read when the gateway starts
    config = msgspec.structs.replace(
        gateway_config(tmp_path),
        relays=(),
        router=RouterSection(connect_s=NEVER_S, silence_s=NEVER_S, whole_answer_s=NEVER_S),
        default_provider=DefaultProviderSection(
            base_url=default.url,
            key=Secret(OPERATORS_KEY),
            model="fast",
            models={"fast": "operators-secret-name", "smart": "another-secret-name"},
        ),
        openrouter=OpenRouterSection(base_url=openrouter.url),
        self_hosted=SelfHostedSection(url_networks=("127.0.0.1/32",)),
        limits=LimitsSection(connection_tests_per_minute=3),
    )
    async with open_gateway(config, clock) as gateway:
        yield gateway


async def ask(gateway: Gateway, provider: str, plan: str = "pro", **fields: Any) -> Answer:
    return await gateway.ask({"provider": provider, **fields}, path=PATH, plan=plan)


async def report_of(gateway: Gateway, provider: str, **fields: Any) -> dict[str, Any]:
    """What a test found; every secret that it was given must be missing in it."""
    answer = await ask(gateway, provider, **fields)
    assert answer.status == 200, answer.body
    told: dict[str, Any] = answer.json
    assert [it["stage"] for it in told["stages"]] == STAGES
    assert told["provider"] == provider
    assert told["ok"] is all(it["status"] != "failed" for it in told["stages"])
    for it in told["stages"]:
        assert (it["latencyMs"] is None) is (it["status"] == "skipped")
        assert (it["code"] is not None) is (it["status"] == "failed")
        assert it["message"]
    secrets = [OPERATORS_KEY, "secret-name", fields.get("apiKey") or OPERATORS_KEY]
    assert not any(secret.encode() in answer.body for secret in secrets)
    return told


def statuses(told: dict[str, Any]) -> list[str]:
    return [it["status"] for it in told["stages"]]


def failed(told: dict[str, Any]) -> tuple[str, str, str]:
    """The stage that failed, its code and its sentence; behind it all is skipped."""
    at = statuses(told).index("failed")
    assert set(statuses(told)[at + 1 :]) <= {"skipped"}
    it = told["stages"][at]
    return it["stage"], it["code"], it["message"]


def sentence(told: dict[str, Any], stage: str) -> str:
    message: str = told["stages"][STAGES.index(stage)]["message"]
    return message


# -- OpenRouter


async def test_a_good_key_passes_every_stage_and_shows_what_is_left(
    gateway: Gateway, openrouter: FakeOpenRouter
) -> None:
    told = await report_of(gateway, "openrouter", apiKey=KEY, modelId="acme/small")
    assert (told["ok"], told["model"], statuses(told)) == (True, "acme/small", PASSED)
    assert "$74.50 of its monthly limit of $100.00 are left" in sentence(told, "authenticated")
    assert GENEROUS["label"] not in str(told)
    assert openrouter.paths() == ["/key", "/models/user", "/chat/completions"]
    asked = openrouter.asked[-1]
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["x-title"] == "BYOAI"
    assert (asked.body["model"], asked.body["stream"]) == ("acme/small", True)
    assert asked.body["max_tokens"] <= 16


async def test_without_a_model_the_accounts_default_is_asked(
    gateway: Gateway, openrouter: FakeOpenRouter
) -> None:
    told = await report_of(gateway, "openrouter", apiKey=KEY)
    assert (told["model"], statuses(told)) == (None, ["passed", "passed", "skipped", "passed"])
    assert "model" not in openrouter.asked[-1].body


@pytest.mark.parametrize(
    ("fields", "stage", "code", "words"),
    [
        ({"apiKey": "sk-or-v1-wrong"}, "authenticated", "key_refused", "copy it again"),
        ({"apiKey": MANAGEMENT_KEY}, "authenticated", "management_key", "ordinary key"),
        ({"modelId": "acme/smal"}, "model", "model_not_found", "'acme/small'"),
        ({"modelId": "large"}, "model", "model_not_found", "'acme/large'"),
        ({"modelId": "fault/credits"}, "answer", "credits_spent", "add credits"),
        ({"modelId": "fault/forbidden"}, "answer", "forbidden", "another model"),
        ({"modelId": "fault/privacy"}, "answer", "privacy_restricted", "settings/privacy"),
        ({"modelId": "fault/rate_limit"}, "answer", "rate_limited", "in a moment"),
        ({"modelId": "fault/internal"}, "answer", "server_error", "in a moment"),
        ({"modelId": "fault/bad_request"}, "answer", "invalid_request", "max_tokens"),
        ({"modelId": "fault/error_first"}, "answer", "error_in_answer", "another model"),
        ({"modelId": "fault/only_comments"}, "answer", "truncated", "in a moment"),
    ],
)
async def test_what_openrouter_refuses_is_told_at_its_stage(
    gateway: Gateway,
    openrouter: FakeOpenRouter,
    fields: dict[str, str],
    stage: str,
    code: str,
    words: str,
) -> None:
    if fields.get("modelId", "").startswith("fault/"):
        openrouter.pages = [[{"id": fields["modelId"]}]]
    found = failed(await report_of(gateway, "openrouter", **{"apiKey": KEY, **fields}))
    assert found[:2] == (stage, code)
    assert words in found[2]


@pytest.mark.parametrize(
    ("reply", "stage", "code"),
    [
        (error(500, "Internal Server Error"), "authenticated", "server_error"),
        (Reply(200, "<html>"), "authenticated", "malformed_answer"),
        (error(429, "slow down"), "authenticated", "rate_limited"),
    ],
)
async def test_an_answer_of_any_kind_shows_that_openrouter_is_reached(
    gateway: Gateway, openrouter: FakeOpenRouter, reply: Reply, stage: str, code: str
) -> None:
    openrouter.instead("/key", reply)
    told = await report_of(gateway, "openrouter", apiKey=KEY)
    assert failed(told)[:2] == (stage, code)


async def test_a_list_that_cannot_be_had_does_not_fail_the_test(
    gateway: Gateway, openrouter: FakeOpenRouter
) -> None:
    openrouter.instead("/models/user", error(500, "no"))
    openrouter.instead("/models", error(500, "no"))
    told = await report_of(gateway, "openrouter", apiKey=KEY, modelId="acme/small")
    assert (told["ok"], statuses(told)) == (True, ["passed", "passed", "skipped", "passed"])


async def test_a_routing_suffix_is_part_of_no_list(gateway: Gateway) -> None:
    told = await report_of(gateway, "openrouter", apiKey=KEY, modelId="acme/small:nitro")
    assert (told["model"], statuses(told)) == ("acme/small:nitro", PASSED)


@pytest.mark.parametrize("submitted", ["sk-or-v1-mistyped", None])
async def test_a_saved_key_never_stands_in_for_the_submitted_one(
    gateway: Gateway, openrouter: FakeOpenRouter, submitted: str | None
) -> None:
    await gateway.prefer(
        aiProvider="openrouter", openRouterApiKey=KEY, openRouterModelPreference="acme/large"
    )
    if submitted is None:
        answer = await ask(gateway, "openrouter", modelId="acme/small")
        assert (answer.status, set(answer.json["fields"])) == (400, {"apiKey"})
    else:
        told = await report_of(gateway, "openrouter", apiKey=submitted)
        assert (told["model"], failed(told)[0]) == (None, "authenticated")
    assert KEY not in str(openrouter.asked)


async def test_a_failed_test_leaves_what_is_saved_as_it_was(gateway: Gateway) -> None:
    await gateway.prefer(aiProvider="openrouter", openRouterApiKey=KEY)
    before = (await gateway.ask(path=PREFERENCES, method="GET")).json
    await report_of(gateway, "openrouter", apiKey="sk-or-v1-mistyped")
    assert (await gateway.ask(path=PREFERENCES, method="GET")).json == before
    assert await gateway.records() == []


# -- the default provider


async def test_the_default_provider_is_asked_by_the_operators_name_which_stays_hidden(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(MODELS, TOKEN)
    told = await report_of(gateway, "default")
    assert (told["model"], statuses(told)) == ("fast", PASSED)
    request = await default.request(1)
    assert request.json["model"] == "operators-secret-name"
    assert request.headers["authorization"] == f"Bearer {OPERATORS_KEY}"
    await request.client_gone()  # one token was enough


@pytest.mark.parametrize(
    ("scripts", "fields", "stage", "code"),
    [
        ([(Die(),)], {}, "reachable", "connection_lost"),
        ([refusal(401, OPERATORS_KEY)], {}, "authenticated", "provider_misconfigured"),
        ([refusal(402)], {}, "authenticated", "provider_misconfigured"),
        ([MODELS], {"modelId": "fasst"}, "model", "model_not_found"),
        ([MODELS, refusal(401)], {}, "answer", "provider_misconfigured"),
        ([MODELS, refusal(404, "no model operators-secret-name", code="model_not_found")],
         {}, "answer", "model_not_found"),
        ([MODELS, refusal(500, "operators-secret-name broke")], {}, "answer", "server_error"),
        ([MODELS, refusal(400, "operators-secret-name is odd")], {}, "answer", "rejected"),
        ([MODELS, whole(b"<html>", kind="text/html")], {}, "answer", "malformed_answer"),
    ],
)  # fmt: skip
async def test_the_operators_trouble_is_told_without_blame_and_without_detail(
    gateway: Gateway,
    default: Provider,
    scripts: list[Script],
    fields: dict[str, str],
    stage: str,
    code: str,
) -> None:
    default.expect(*scripts)
    found = failed(await report_of(gateway, "default", **fields))
    assert found[:2] == (stage, code)
    assert "choose another" in found[2] or "did you mean 'fast'" in found[2]


# -- a server at an address


async def test_a_server_passes_with_its_own_key_and_the_first_model_of_its_list(
    gateway: Gateway, server: Provider
) -> None:
    server.expect(MODELS, TOKEN)
    told = await report_of(gateway, "self-hosted", selfHostedUrl=server.url, apiKey=SERVERS_KEY)
    assert (told["model"], statuses(told)) == ("qwen3:8b", PASSED)
    request = await server.request(1)
    assert request.headers["authorization"] == f"Bearer {SERVERS_KEY}"
    assert (request.target, request.json["model"]) == ("/v1/chat/completions", "qwen3:8b")
    await request.client_gone()


async def test_a_saved_server_and_its_key_stay_out_of_it(
    gateway: Gateway, server: Provider
) -> None:
    await gateway.prefer(
        aiProvider="self-hosted", selfHostedUrl=server.url, selfHostedAuthKey=SERVERS_KEY
    )
    server.expect(refusal(401))
    found = failed(await report_of(gateway, "self-hosted", selfHostedUrl=server.url))
    assert found[:2] == ("authenticated", "key_missing")
    assert "authorization" not in (await server.request()).headers
    assert (await ask(gateway, "self-hosted")).status == 400


async def test_a_server_without_a_list_is_none_the_worse_for_it(
    gateway: Gateway, server: Provider
) -> None:
    server.expect(refusal(404, "Not Found"), TOKEN)
    told = await report_of(gateway, "self-hosted", selfHostedUrl=server.url, modelId="mine")
    assert (told["model"], statuses(told)) == ("mine", ["passed", "passed", "skipped", "passed"])


async def test_a_server_that_wants_another_limit_is_asked_without(
    gateway: Gateway, server: Provider
) -> None:
    server.expect(MODELS, refusal(400, "Unsupported parameter: 'max_tokens'"), TOKEN)
    told = await report_of(gateway, "self-hosted", selfHostedUrl=server.url)
    assert statuses(told) == PASSED
    assert "max_tokens" not in (await server.request(2)).json


@pytest.mark.parametrize(
    ("scripts", "fields", "stage", "code", "words"),
    [
        ([(Die(),)], {}, "reachable", "connection_lost", "check the address"),
        ([(b"SSH-2.0-OpenSSH_9.6\r\n", Close())], {}, "reachable", "connection_lost", "the port"),
        ([refusal(401)], {"apiKey": SERVERS_KEY}, "authenticated", "key_refused", "enter it again"),
        ([refusal(403, f"no {SERVERS_KEY}")], {"apiKey": SERVERS_KEY}, "authenticated", "forbidden",
         "no ***"),
        ([MODELS], {"modelId": "qwen3:9b"}, "model", "model_not_found", "'qwen3:8b'"),
        ([whole({"data": None})], {}, "model", "model_not_found", "no models at all"),
        ([MODELS, refusal(500, "out of memory.")], {}, "answer", "server_error",
         "out of memory; look into the log"),
        ([MODELS, (Die(),), (Die(),)], {}, "answer", "connection_lost", "check the address"),
        ([MODELS, stream(role())], {}, "answer", "truncated", "test again"),
        ([MODELS, (head(302, {"location": "https://other", "content-length": "0"}),)], {},
         "answer", "malformed_answer", "redirect"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_server_is_told_at_its_stage(
    gateway: Gateway,
    server: Provider,
    scripts: list[Script],
    fields: dict[str, str],
    stage: str,
    code: str,
    words: str,
) -> None:
    server.expect(*scripts)
    told = await report_of(gateway, "self-hosted", selfHostedUrl=server.url, **fields)
    found = failed(told)
    assert found[:2] == (stage, code)
    assert words in found[2]


class Names:
    """A name server that has one answer."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(self, host: str, port: int) -> Sequence[AddressInfo]:
        del host
        if not self.addresses:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (it, port)) for it in self.addresses]


@pytest.mark.parametrize(
    ("addresses", "host", "code", "words"),
    [
        ((), "nowhere.example.com", "name_unknown", "spelt"),
        (("10.0.0.1",), "llm.example.com", "address_refused", "public internet"),
        (("127.0.0.1",), "other.example.com", "tls_failed", "certificate"),
    ],
)
async def test_each_reason_why_a_server_cannot_be_reached_has_its_sentence(
    gateway: Gateway,
    server: Provider,
    monkeypatch: pytest.MonkeyPatch,
    addresses: tuple[str, ...],
    host: str,
    code: str,
    words: str,
) -> None:
    outbound = gateway.data_path.ways.outbound
    monkeypatch.setattr(outbound, "_resolve", Names(*addresses).resolve)
    url = f"https://{host}:{server.port}/v1"
    found = failed(await report_of(gateway, "self-hosted", selfHostedUrl=url))
    assert found[:2] == ("reachable", code)
    assert words in found[2]
    assert server.requests == []


async def test_a_port_where_nobody_listens_and_one_that_speaks_no_tls_are_told_apart(
    gateway: Gateway,
) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(plain, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    async with listener:
        found = failed(await report_of(gateway, "self-hosted", selfHostedUrl=url))
        assert found[:2] == ("reachable", "tls_failed")
    found = failed(await report_of(gateway, "self-hosted", selfHostedUrl=url))
    assert found[:2] == ("reachable", "connection_refused")


# -- a tunnel


async def tunnel_of(gateway: Gateway, user: str = "alice") -> str:
    body = {"modelInfo": {"name": "qwen3:8b", "capabilities": ["text-generation"]}}
    answer = await gateway.ask(body, path="/api/tunnel/register", user=user)
    tunnel_id: str = answer.json["tunnelId"]
    return tunnel_id


async def test_a_tunnel_passes_with_its_own_key_and_the_model_it_was_registered_for(
    gateway: Gateway, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    tunnel = through(gateway, default, monkeypatch, None)
    default.expect(MODELS, TOKEN)
    tunnel_id = await tunnel_of(gateway)
    told = await report_of(gateway, "self-hosted", tunnelId=tunnel_id)
    assert (told["model"], statuses(told)) == ("qwen3:8b", PASSED)
    request = await default.request(1)
    assert request.json["model"] == "qwen3:8b"
    key = request.headers["authorization"].removeprefix("Bearer ")
    assert key not in str(told)
    assert len(tunnel.given_back) == 3
    await request.client_gone()


async def test_a_registered_model_that_is_not_there_is_stood_in_for_as_in_requests(
    gateway: Gateway, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(gateway, default, monkeypatch, None)
    default.expect(whole({"data": [{"id": "bge-m3"}, {"id": "qwen2:8b"}]}), TOKEN)
    told = await report_of(gateway, "self-hosted", tunnelId=await tunnel_of(gateway))
    assert (told["model"], statuses(told)) == ("qwen2:8b", PASSED)
    assert "does not have the model 'qwen3:8b'" in sentence(told, "model")
    assert (await default.request(1)).json["model"] == "qwen2:8b"


async def test_a_preferred_model_that_is_not_there_fails_with_near_names(
    gateway: Gateway, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(gateway, default, monkeypatch, None)
    default.expect(whole({"data": [{"id": "qwen2:8b"}]}))
    tunnel_id = await tunnel_of(gateway)
    told = await report_of(gateway, "self-hosted", tunnelId=tunnel_id, modelId="qwen:8b")
    assert failed(told)[:2] == ("model", "model_not_found")
    assert "'qwen2:8b'" in failed(told)[2]


async def test_a_tunnel_that_no_agent_has_joined_says_so(gateway: Gateway) -> None:
    tunnel_id = await tunnel_of(gateway)
    found = failed(await report_of(gateway, "self-hosted", tunnelId=tunnel_id))
    assert found[:2] == ("reachable", "agent_never_joined")
    assert "run the join command" in found[2]


@pytest.mark.parametrize(
    ("error", "scripts", "stage", "code", "words"),
    [
        (TunnelOffline(not_connected()), [], "reachable", "agent_offline", "byoai-agent run"),
        (TunnelOffline(no_relay(2)), [], "reachable", "no_relay_connected", "not the cause"),
        (TunnelOffline(all_locked()), [], "reachable", "agent_locked", "unlock it"),
        (TunnelBusy("busy"), [], "reachable", "tunnel_busy", "try again in a second"),
        (TunnelLost("lost"), [], "reachable", "unreachable", "try again"),
        (TunnelUntrusted("who"), [], "authenticated", "tunnel_untrusted", "start the agent"),
        (None, [refusal(401, code="invalid_authentication_key")], "authenticated", "key_refused",
         "authentication key"),
        (None, [refusal(502, "no model server answers on the agent's host",
                        code="upstream_unreachable")], "model", "upstream_unreachable",
         "start the model"),
        (None, [whole({"data": []})], "model", "model_not_found", "lists no models"),
        (None, [MODELS, refusal(500, "broke")], "answer", "server_error", "log"),
        (None, [MODELS, refusal(401)], "answer", "key_refused", "the agent's settings"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_tunnel_is_told_at_its_stage(
    gateway: Gateway,
    default: Provider,
    monkeypatch: pytest.MonkeyPatch,
    error: TunnelError | None,
    scripts: list[Script],
    stage: str,
    code: str,
    words: str,
) -> None:
    through(gateway, default, monkeypatch, error)
    default.expect(*scripts)
    found = failed(await report_of(gateway, "self-hosted", tunnelId=await tunnel_of(gateway)))
    assert found[:2] == (stage, code)
    assert words in found[2]


async def test_somebody_elses_tunnel_is_not_found_in_the_words_for_none(gateway: Gateway) -> None:
    bobs = await ask(gateway, "self-hosted", tunnelId=await tunnel_of(gateway, "bob"))
    none = await ask(gateway, "self-hosted", tunnelId=ABSENT)
    assert (bobs.status, bobs.error["code"]) == (404, "tunnel_not_found")
    assert (none.status, none.body) == (bobs.status, bobs.body)


async def test_no_key_is_logged_whatever_goes_wrong(
    gateway: Gateway, default: Provider, server: Provider
) -> None:
    log = io.StringIO()
    logs.configure(form="json", stream=log)
    server.expect(refusal(403, f"no {SERVERS_KEY}"))
    await ask(gateway, "self-hosted", selfHostedUrl=server.url, apiKey=SERVERS_KEY)
    await ask(gateway, "openrouter", apiKey="sk-or-v1-mistyped")
    default.expect((Die(),))
    await ask(gateway, "default")
    secrets = (SERVERS_KEY, "sk-or-v1-mistyped", OPERATORS_KEY)
    assert not any(secret in log.getvalue() for secret in secrets)


async def test_a_tunnel_to_a_model_that_writes_no_text_is_not_asked_for_any(
    gateway: Gateway, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    through(gateway, default, monkeypatch, None)
    body = {"modelInfo": {"name": "qwen3:8b", "capabilities": ["embeddings"]}}
    made = await gateway.ask(body, path="/api/tunnel/register")
    default.expect(MODELS)
    told = await report_of(gateway, "self-hosted", tunnelId=made.json["tunnelId"])
    assert (told["ok"], statuses(told)) == (True, [*["passed"] * 3, "skipped"])
    assert "writes no text" in told["stages"][3]["message"]
    assert len(default.requests) == 1
    # Of another model it was not said what it can do.
    default.expect(MODELS, TOKEN)
    told = await report_of(
        gateway, "self-hosted", tunnelId=made.json["tunnelId"], modelId="llama3.2"
    )
    assert statuses(told) == PASSED


async def test_a_server_that_is_a_gateway_is_told_as_a_loop(
    gateway: Gateway, server: Provider
) -> None:
    server.expect(MODELS, refusal(508, "loop"))
    found = failed(await report_of(gateway, "self-hosted", selfHostedUrl=server.url))
    assert found[:2] == ("answer", "loop_detected")
    assert "leads back to a gateway" in found[2]


async def test_a_test_ends_when_its_client_hangs_up(gateway: Gateway, server: Provider) -> None:
    server.expect(MODELS, stream(role(), Hang(0)))
    asking = asyncio.ensure_future(ask(gateway, "self-hosted", selfHostedUrl=server.url))
    request = await server.request(1)
    asking.cancel()
    async with asyncio.timeout(50):
        await request.client_gone()
    with pytest.raises(asyncio.CancelledError):
        await asking


# -- who may ask what


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"provider"}),
        ({"provider": "none"}, {"provider"}),
        ({"provider": "openrouter"}, {"apiKey"}),
        ({"provider": "openrouter", "apiKey": None}, {"apiKey"}),
        ({"provider": "openrouter", "apiKey": "a b"}, {"apiKey"}),
        ({"provider": "openrouter", "apiKey": "k" * 4097}, {"apiKey"}),
        ({"provider": "openrouter", "apiKey": "k", "modelId": ""}, {"modelId"}),
        ({"provider": "openrouter", "apiKey": "k", "modelId": "  "}, {"modelId"}),
        ({"provider": "openrouter", "modelId": "\u202e\u0085x"}, {"apiKey", "modelId"}),
        ({"provider": "openrouter", "apiKey": "k", "tunnelId": ABSENT}, {"tunnelId"}),
        ({"provider": "default", "apiKey": "k"}, {"apiKey"}),
        ({"provider": "default", "model": "m"}, {"model"}),
        ({"provider": "self-hosted"}, {"tunnelId"}),
        ({"provider": "self-hosted", "apiKey": "k"}, {"tunnelId"}),
        ({"provider": "self-hosted", "tunnelId": ABSENT, "apiKey": "k"}, {"apiKey"}),
        ({"provider": "self-hosted", "tunnelId": ABSENT, "selfHostedUrl": "https://a.example.com"},
         {"selfHostedUrl"}),
        ({"provider": "self-hosted", "selfHostedUrl": "http://a.example.com"}, {"selfHostedUrl"}),
        ({"provider": "self-hosted", "selfHostedUrl": "https://10.0.0.1/v1"}, {"selfHostedUrl"}),
    ],
)  # fmt: skip
async def test_what_does_not_go_together_is_told_field_by_field(
    gateway: Gateway, body: dict[str, Any], fields: set[str]
) -> None:
    answer = await gateway.ask(body, path=PATH)
    assert (answer.status, set(answer.json["fields"])) == (400, fields)


async def test_self_hosting_needs_its_plan_and_the_token_is_its_users(gateway: Gateway) -> None:
    answer = await ask(gateway, "self-hosted", plan="free", tunnelId=ABSENT)
    assert (answer.status, answer.error["code"]) == (403, "plan_required")
    answer = await ask(gateway, "default", userId="bob")
    assert (answer.status, answer.error["code"]) == (404, "user_not_found")


async def test_a_service_without_an_ai_of_its_own_says_so_at_the_first_stage(
    tmp_path: Path, clock: FakeClock
) -> None:
    config = msgspec.structs.replace(gateway_config(tmp_path), relays=())
    async with open_gateway(config, clock) as gateway:
        found = failed(await report_of(gateway, "default", modelId="fast"))
    assert found[:2] == ("reachable", "no_default_provider")


async def test_while_nobody_can_count_nobody_is_asked(
    tmp_path: Path, clock: FakeClock, openrouter: FakeOpenRouter
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = f"redis://127.0.0.1:{unused.getsockname()[1]}/0"
        config = msgspec.structs.replace(
            gateway_config(tmp_path),
            relays=(),
            openrouter=OpenRouterSection(base_url=openrouter.url),
            limits=LimitsSection(store=Secret(away), when_store_is_down="closed"),
        )
        async with open_gateway(config, clock) as gateway:
            answer = await ask(gateway, "openrouter", apiKey=KEY)
    assert (answer.status, answer.error["code"]) == (503, "limits_unavailable")
    assert openrouter.asked == []


async def test_tests_are_counted_before_anybody_is_asked(
    gateway: Gateway, openrouter: FakeOpenRouter
) -> None:
    for _ in range(3):
        assert (await ask(gateway, "openrouter", apiKey="wrong")).status == 200
    asked = len(openrouter.asked)
    answer = await ask(gateway, "openrouter", apiKey=KEY)
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert int(answer.headers["retry-after"]) >= 1
    assert len(openrouter.asked) == asked
