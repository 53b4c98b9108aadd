"""The headers of requests and answers through a running gateway."""

from collections.abc import AsyncGenerator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from multidict import CIMultiDictProxy

from byoai_gateway.provider_config import RouterSection
from support.chain import bring_own, chain
from support.control import FakeClock, bearer
from support.gateway import CHAT, Answer, Gateway, open_gateway
from support.provider import Provider
from support.provider_script import (
    chat_answer,
    chat_events,
    error_event,
    refusal,
    stream,
    whole,
)

MESSAGES = "/v1/messages"
BODY: dict[str, Any] = {"model": "m", "messages": [], "max_tokens": 9}
ANCIENT = "Sun, 06 Nov 1994 08:49:37 GMT"
REFUSED = {
    "date": ANCIENT,
    "retry-after": "Tue, 14 Nov 2023 22:13:30 GMT",
    "retry-after-ms": "90000.5",
    "openai-processing-ms": "17",
    "x-ratelimit-remaining-requests": "0",
    "anthropic-ratelimit-requests-remaining": "0",
    "x-request-id": "req_of_the_provider",
    "openai-organization": "org-of-the-operator",
}


@pytest.fixture
async def gateway(tmp_path: Path, default: Provider, own: Provider) -> AsyncGenerator[Gateway]:
    config = chain(
        tmp_path, default, own, router=RouterSection(request_headers=("x-tenant", "x-trace"))
    )
    section = msgspec.structs.replace(config.default_provider, anthropic_messages=True)
    config = msgspec.structs.replace(config, default_provider=section)
    async with open_gateway(config, FakeClock()) as opened:
        yield opened


async def asked(gateway: Gateway, path: str, **headers: str) -> tuple[int, Any]:
    """Ask with these headers and no others that say who asks."""
    sent = {"content-type": "application/json", **headers}
    data = msgspec.json.encode(BODY)
    async with gateway.http.post(gateway.url + path, data=data, headers=sent) as response:
        return response.status, await response.json(content_type=None)


def dates(answer: Answer) -> list[str]:
    assert isinstance(answer.headers, CIMultiDictProxy)
    return answer.headers.getall("date")


@pytest.mark.parametrize(
    "script",
    [
        whole(chat_answer(), headers={"date": ANCIENT, "x-request-id": "req_1"}),
        stream(*chat_events("Hi"), headers={"date": ANCIENT, "x-request-id": "req_1"}),
    ],
)
async def test_an_answer_has_our_date_and_both_ids(
    gateway: Gateway, default: Provider, script: Any
) -> None:
    default.expect(script)
    answer = await gateway.chat(stream=b"event-stream" in script[0])
    assert answer.status == 200
    (date,) = dates(answer)
    assert parsedate_to_datetime(date) > parsedate_to_datetime(ANCIENT)
    assert answer.headers["x-byoai-provider-request-id"] == "req_1"
    assert answer.headers["x-request-id"] not in {"", "req_1"}
    assert "request-id" not in answer.headers


async def test_an_error_has_the_headers_that_the_provider_sent(
    gateway: Gateway, default: Provider
) -> None:
    default.always(refusal(429, headers=REFUSED))
    answer = await gateway.chat()
    assert answer.status == 429
    assert len(dates(answer)) == 1
    assert ANCIENT not in dates(answer)
    assert answer.headers["retry-after"] == REFUSED["retry-after"]
    for name in REFUSED.keys() - {"date", "retry-after", "x-request-id", "openai-organization"}:
        assert answer.headers[name] == REFUSED[name]
    assert answer.headers["x-byoai-provider-request-id"] == "req_of_the_provider"
    assert "openai-organization" not in answer.headers


async def test_an_error_about_the_operators_account_has_the_providers_id_only(
    gateway: Gateway, default: Provider
) -> None:
    default.always(refusal(401, headers=REFUSED))
    answer = await gateway.chat()
    assert (answer.status, answer.error["code"]) == (502, "provider_misconfigured")
    assert answer.headers["x-byoai-provider-request-id"] == "req_of_the_provider"
    assert "x-ratelimit-remaining-requests" not in answer.headers


async def test_refusals_of_ours_have_a_date(gateway: Gateway) -> None:
    refused = await gateway.ask(BODY, authorization="Bearer no")
    assert refused.status == 401
    assert len(dates(refused)) == 1
    assert len(dates(await gateway.ask(path="/healthz", method="GET"))) == 1


async def test_anthropics_clients_find_the_id_under_their_name(
    gateway: Gateway, default: Provider
) -> None:
    sound = whole({"type": "message", "content": []}, headers={"request-id": "req_of_the_provider"})
    default.expect(sound, refusal(400, headers={"request-id": "req_of_the_provider"}))
    answers = [await gateway.ask(BODY, path=MESSAGES) for _ in range(2)]
    answers.append(await gateway.ask(BODY, path=MESSAGES, authorization="Bearer no"))
    assert [it.status for it in answers] == [200, 400, 401]
    for answer in answers:
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    for answer in answers[:2]:
        assert answer.headers["x-byoai-provider-request-id"] == "req_of_the_provider"


async def test_headers_that_the_operator_named_go_to_every_provider(
    gateway: Gateway, default: Provider, own: Provider
) -> None:
    sent = {"x-tenant": "a", "x-trace": "b", "x-other": "c"}
    await gateway.ask(BODY, **sent)
    await bring_own(gateway)
    await gateway.ask(BODY, **sent)
    for provider in (default, own):
        headers = (await provider.request()).headers
        assert (headers["x-tenant"], headers["x-trace"]) == ("a", "b")
        assert "x-other" not in headers


async def test_anthropics_clients_may_send_the_token_as_a_key(
    gateway: Gateway, default: Provider
) -> None:
    token = bearer("alice", gateway.clock).removeprefix("Bearer ")
    default.always(whole({"type": "message", "content": [], "input_tokens": 3}))
    for path in (MESSAGES, MESSAGES + "/count_tokens", MESSAGES + "?beta=true"):
        status, _ = await asked(gateway, path, **{"x-api-key": token})
        assert status == 200, path
        assert "x-api-key" not in default.requests[-1].headers
        assert default.requests[-1].headers["authorization"] == "Bearer the-operators-key"
        assert token not in str(default.requests[-1])


async def test_a_key_that_is_no_token_is_refused_in_anthropics_shape(gateway: Gateway) -> None:
    status, body = await asked(gateway, MESSAGES, **{"x-api-key": "sk-ant-SECRET"})
    assert (status, body["type"], body["error"]["type"]) == (401, "error", "authentication_error")
    assert "SECRET" not in str(body)


async def test_authorization_counts_where_both_are_sent(
    gateway: Gateway, default: Provider
) -> None:
    valid = bearer("alice", gateway.clock)
    default.always(whole({"type": "message", "content": []}))
    both = {"authorization": valid, "x-api-key": "sk-ant-of-somebody"}
    assert (await asked(gateway, MESSAGES, **both))[0] == 200
    both = {"authorization": "Bearer no", "x-api-key": valid.removeprefix("Bearer ")}
    assert (await asked(gateway, MESSAGES, **both))[0] == 401


async def test_a_key_says_nothing_on_calls_that_are_not_anthropics(gateway: Gateway) -> None:
    token = bearer("alice", gateway.clock).removeprefix("Bearer ")
    assert (await asked(gateway, CHAT, **{"x-api-key": token}))[0] == 401


async def test_anthropics_clients_list_models_with_their_key(gateway: Gateway) -> None:
    token = bearer("alice", gateway.clock).removeprefix("Bearer ")
    for more, status in (({"anthropic-version": "2023-06-01"}, 200), ({}, 401)):
        sent = {"x-api-key": token, **more}
        async with gateway.http.get(gateway.url + "/v1/models", headers=sent) as response:
            assert response.status == status


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize(
    "error",
    [
        {"error": "Incorrect API key provided: the-operators-key"},
        {"error": {"message": "no", "innererror": {"key": "the-operators-key"}}},
        {"error": {"message": "the-operators-key is wrong", "code": "invalid_api_key"}},
    ],
)
async def test_the_operators_key_reaches_nobody(
    gateway: Gateway, default: Provider, status: int, error: dict[str, Any]
) -> None:
    default.always(whole(error, status))
    answer = await gateway.chat()
    assert (answer.status, answer.error["code"]) == (502, "provider_misconfigured")
    assert b"the-operators-key" not in answer.body


async def test_an_event_that_quotes_the_operators_key_reaches_nobody(
    gateway: Gateway, default: Provider
) -> None:
    broken = error_event("the-operators-key is wrong")
    default.expect(stream(*chat_events("Hi")[:2], broken))
    answer = await gateway.chat()
    assert answer.stream_error["code"] == "provider_misconfigured"
    assert b"the-operators-key" not in answer.body
