"""What is waited for, for how long, and how often a provider is asked: in a running gateway."""

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from byoai_gateway.provider_config import OpenRouterSection, RouterSection
from byoai_gateway.refusals import Refusal
from byoai_gateway.router import decision
from byoai_gateway.router.request_timeout import request_timeout_s
from byoai_shared.http1.head import RequestHead
from support.chain import bring_own, chain
from support.control import FakeClock
from support.gateway import Answer, Gateway, open_gateway
from support.provider import Provider
from support.provider_script import Hang, chat_answer, refusal, whole

LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
FULL = {"error": "server busy, please try again.  maximum pending requests exceeded"}
SOON = {"retry-after-ms": "1"}
RETRYING = {"x-stainless-retry-count": "0"}
NO_OPTIONS = {
    "detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra"}]
}


@pytest.fixture
async def gateway(tmp_path: Path, default: Provider, own: Provider) -> AsyncGenerator[Gateway]:
    """Alice's OpenRouter has no time to lose."""
    config = chain(
        tmp_path,
        default,
        own,
        router=RouterSection(deadline_s=60.0, whole_answer_s=60.0, breaker_failures=100),
        openrouter=OpenRouterSection(base_url=own.url, first_token_s=60.0),
    )
    async with open_gateway(config, FakeClock()) as gateway:
        yield gateway


async def chat(
    gateway: Gateway, headers: Mapping[str, str] | None = None, *, stream: bool = True
) -> Answer:
    """Ask for a chat, with more headers."""
    body: dict[str, Any] = {"model": "provider-model", "stream": stream, "messages": []}
    return await gateway.ask(body, **(headers or {}))


# -- a request's own time


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"900", 900.0), (b"0.25", 0.25), (b"3601", 3600.0), (b"999999999", 3600.0)],
)
def test_a_requests_time_is_what_it_says_up_to_what_the_operator_allows(
    value: bytes, expected: float
) -> None:
    head = RequestHead("POST", "/v1/chat/completions", ((b"x-byoai-timeout", value),))
    assert request_timeout_s(head, 3600.0) == expected


def test_without_a_word_it_is_the_operators() -> None:
    assert request_timeout_s(RequestHead("POST", "/v1/chat/completions"), 3600.0) is None


@pytest.mark.parametrize(
    "value", [b"", b"0", b"0.000", b"-1", b"soon", b"1e3", b"inf", b"nan", b"1s", b"1.", b"1" * 10]
)
def test_what_is_no_time_is_refused(value: bytes) -> None:
    head = RequestHead("POST", "/v1/chat/completions", ((b"x-byoai-timeout", value),))
    with pytest.raises(Refusal, match="a number of seconds") as caught:
        request_timeout_s(head, 3600.0)
    assert (caught.value.status, caught.value.param) == (400, "x-byoai-timeout")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_ends_when_its_own_time_is_over(
    gateway: Gateway, default: Provider, *, stream: bool
) -> None:
    default.always((Hang(0.1),))
    answer = await chat(gateway, {"x-byoai-timeout": "0.05"}, stream=stream)
    assert (answer.status, answer.error["code"]) == (504, "deadline")
    await (await default.request()).client_gone()
    assert "x-byoai-timeout" not in default.requests[0].headers


async def test_a_wrong_time_asks_nobody_and_is_recorded(
    gateway: Gateway, default: Provider
) -> None:
    answer = await chat(gateway, {"x-byoai-timeout": "soon"})
    assert (answer.status, answer.error["code"]) == (400, "invalid_header")
    assert default.requests == []
    assert [it.outcome for it in await gateway.records()] == ["invalid_header"]


# -- a model that loads


@pytest.mark.parametrize("told", [LOADING, FULL], ids=["llama.cpp", "Ollama"])
@pytest.mark.parametrize("headers", [{}, RETRYING], ids=["a plain client", "an official client"])
async def test_a_model_that_loads_is_waited_for(
    gateway: Gateway, default: Provider, told: dict[str, Any], headers: dict[str, str]
) -> None:
    default.expect(*[whole(told, 503, SOON)] * 2)
    answer = await chat(gateway, headers)
    assert (answer.status, answer.text) == (200, "Hello there")
    assert answer.headers["x-byoai-attempts"] == "3"


async def test_a_model_that_does_not_say_when_is_asked_again_after_a_pause(
    gateway: Gateway, default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "LOADING_PAUSE_S", 0.001)
    default.expect(*[whole(LOADING, 503)] * 2)
    assert (await chat(gateway)).status == 200


async def test_it_is_not_waited_for_beyond_the_requests_time(
    gateway: Gateway, default: Provider, own: Provider
) -> None:
    default.always(whole(LOADING, 503, {"retry-after": "61"}))
    answer = await chat(gateway)
    assert (answer.status, answer.error["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "61"
    assert "x-should-retry" not in answer.headers
    await bring_own(gateway)
    own.always(whole(LOADING, 503, {"retry-after": "61"}))
    default.always(whole(chat_answer()))
    answer = await chat(gateway, stream=False)
    assert answer.headers["x-byoai-fallback-reason"] == "not_ready"
    assert len(own.requests) == 1


# -- retries of the client, and ours


@pytest.mark.parametrize(
    ("headers", "attempts"), [({}, "2"), (RETRYING, "1")], ids=["plain", "official"]
)
async def test_our_retry_is_for_clients_that_have_none(
    gateway: Gateway, default: Provider, headers: dict[str, str], attempts: str
) -> None:
    default.always(refusal(503))
    answer = await chat(gateway, headers)
    assert (answer.status, answer.headers["x-byoai-attempts"]) == (503, attempts)
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize("headers", [{}, RETRYING], ids=["plain", "official"])
async def test_a_fallback_is_for_all_and_says_that_it_was_spent(
    gateway: Gateway, default: Provider, own: Provider, headers: dict[str, str]
) -> None:
    await bring_own(gateway)
    own.always(refusal(503))
    default.always(refusal(503))
    answer = await chat(gateway, headers)
    assert answer.headers["x-byoai-fallback-reason"] == "server_error"
    assert answer.headers["x-should-retry"] == "false"
    default.always(whole(chat_answer()))
    answer = await chat(gateway, headers, stream=False)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "default")


# -- usage that is asked for


async def test_a_provider_that_refuses_to_say_the_usage_is_asked_without_it_from_then_on(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(whole(NO_OPTIONS, 422))
    assert (await chat(gateway, RETRYING)).text == "Hello there"
    assert (await chat(gateway, RETRYING)).text == "Hello there"
    asked = ["stream_options" in it.json for it in default.requests]
    assert asked == [True, False, False]
    assert [it.attempts for it in await gateway.records()] == [2, 1]


async def test_a_request_that_is_refused_for_itself_says_nothing_of_the_provider(
    gateway: Gateway, default: Provider
) -> None:
    """One user's odd request must not take the usage out of others' records."""
    default.expect(*[refusal(400, "Invalid value: 'stream_options'")] * 2)
    assert (await chat(gateway, RETRYING)).status == 400
    assert (await chat(gateway, RETRYING)).status == 200
    asked = ["stream_options" in it.json for it in default.requests]
    assert asked == [True, False, True]


async def test_what_a_client_is_told_of_repeats_is_what_the_provider_said(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(refusal(503, headers={"x-should-retry": "false"}))
    answer = await chat(gateway)
    assert (answer.status, answer.headers["x-should-retry"]) == (503, "false")
    assert answer.headers["x-byoai-attempts"] == "1"
    default.expect(refusal(400, headers={"x-should-retry": "true"}))
    assert (await chat(gateway)).headers["x-should-retry"] == "true"


async def test_a_clients_own_options_are_refused_as_the_provider_refuses_them(
    gateway: Gateway, default: Provider
) -> None:
    default.always(whole(NO_OPTIONS, 422))
    options = {"include_usage": True}
    answer = await gateway.ask(
        {"model": "m", "messages": [], "stream": True, "stream_options": options}
    )
    assert (answer.status, answer.error["param"]) == (422, "stream_options")
    assert len(default.requests) == 1


async def test_another_models_usage_is_asked_for_all_the_same(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(whole(NO_OPTIONS, 422))
    await chat(gateway)
    body: dict[str, Any] = {"model": "another", "messages": [], "stream": True}
    assert (await gateway.ask(body)).status == 200
    assert "stream_options" in msgspec.json.decode(default.requests[-1].body)
