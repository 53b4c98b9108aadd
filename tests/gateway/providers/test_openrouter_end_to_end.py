"""OpenRouter as a user of the gateway meets it: from the key in the settings to the last event.

Each user has a breaker of their own, so the faults of a table are asked for by one user each.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from byoai_gateway.provider_config import (
    DefaultProviderSection,
    OpenRouterSection,
    RouterSection,
)
from byoai_shared.secret import Secret
from support.control import PUBLIC_URL, FakeClock, gateway_config
from support.gateway import PREFERENCES, Answer, Gateway, open_gateway
from support.loop_clock import NEVER_S
from support.openrouter import (
    COMMENT,
    FAULTS,
    KEY,
    STREAMS,
    USAGE,
    WHOLES,
    FakeOpenRouter,
    error,
    serving_openrouter,
    whole,
)
from support.provider import Provider

NEVER_ELSEWHERE = {"bad_request", "moderation", "privacy", "privacy_older", "too_large"}
"""What is wrong with the request itself, or is the user's own rule."""


@pytest.fixture
async def service() -> AsyncGenerator[FakeOpenRouter]:
    async with serving_openrouter() as running:
        yield running


@pytest.fixture
async def gateway(
    tmp_path: Path, clock: FakeClock, service: FakeOpenRouter, default: Provider
) -> AsyncGenerator[Gateway]:
    config = gateway_config(
        tmp_path,
        router=RouterSection(
            silence_s=NEVER_S, whole_answer_s=NEVER_S, first_keep_alive_s=10 * NEVER_S
        ),
        default_provider=DefaultProviderSection(
            base_url=default.url, key=Secret("the-operators-key"), model="default-model"
        ),
        openrouter=OpenRouterSection(base_url=service.url, title="Notes", first_token_s=NEVER_S),
    )
    config = msgspec.structs.replace(config, relays=())
    async with open_gateway(config, clock) as opened:
        await choose(opened)
        yield opened


async def choose(gateway: Gateway, user: str = "alice", **settings: Any) -> None:
    await gateway.prefer(
        user=user, **{"aiProvider": "openrouter", "openRouterApiKey": KEY, **settings}
    )


async def attention(gateway: Gateway, user: str = "alice") -> dict[str, str]:
    answer = await gateway.ask(path=PREFERENCES, method="GET", user=user)
    return {it["setting"]: it["code"] for it in answer.json["needsAttention"]}


async def each(
    gateway: Gateway, faults: Iterable[str], *, stream: bool = True, **settings: Any
) -> dict[str, Answer]:
    """What each fault comes to, for a user who prefers the model that orders it."""

    async def one(fault: str) -> Answer:
        model = {"openRouterModelPreference": f"fault/{fault}"}
        await choose(gateway, fault, **model, **settings)
        return await gateway.chat(stream=stream, user=fault)

    faults = tuple(faults)
    # These move the clock on, which must not end what others have under way.
    slow = [fault for fault in faults if fault in {"slow", "late", "dead"}]
    others = [fault for fault in faults if fault not in slow]
    answers = dict(zip(others, await asyncio.gather(*map(one, others)), strict=True))
    return answers | {fault: await one(fault) for fault in slow}


# -- sound answers


async def test_a_stream_comes_as_openrouter_sends_it_and_says_who_answered(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    await choose(gateway, openRouterModelPreference="acme/large")
    answer = await gateway.chat(model="any", stream_options={"include_usage": True})
    assert (answer.status, answer.text, answer.events[-1]) == (200, "Hello", b"[DONE]")
    assert msgspec.json.decode(answer.events[-2])["usage"] == USAGE
    assert answer.headers["x-byoai-provider"] == "openrouter"
    assert answer.headers["x-byoai-attempts"] == "1"
    (asked,) = service.asked
    assert (asked.path, asked.body["model"]) == ("/chat/completions", "acme/large")


async def test_its_price_is_passed_on_and_kept(gateway: Gateway) -> None:
    answer = await gateway.chat(stream=False)
    assert answer.json == whole()
    assert b'"usage"' not in (await gateway.chat()).body  # nobody asked for it
    for record in await gateway.records():
        assert (record.provider, record.outcome) == ("openrouter", "ok")
        assert (record.prompt_tokens, record.completion_tokens) == (13, 2)
        assert record.cost == pytest.approx(USAGE["cost"])


async def test_requests_carry_the_users_key_the_applications_name_and_nothing_of_the_session(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    session = {"cookie": "session=1", "x-title": "Spoofed", "x-forwarded-for": "198.51.100.7"}
    body: dict[str, Any] = {"model": "acme/small", "messages": []}
    await gateway.ask(body, **session, **{"http-referer": "https://spoofed.example"})
    (asked,) = service.asked
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["http-referer"] == PUBLIC_URL
    assert asked.headers["x-openrouter-title"] == asked.headers["x-title"] == "Notes"
    assert not {"cookie", "x-forwarded-for"} & asked.headers.keys()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "expected"),
    [("/v1/responses", "/responses"), ("/v1/messages", "/messages")],
)
async def test_other_dialects_are_answered_in_their_own_words(
    gateway: Gateway, service: FakeOpenRouter, path: str, expected: str, *, stream: bool
) -> None:
    await choose(gateway, openRouterModelPreference="acme/large")
    body: dict[str, Any] = {
        "model": "m",
        "input": "hi",
        "messages": [],
        "max_tokens": 5,
        "stream": stream,
    }
    answer = await gateway.ask(body, path=path)
    assert answer.status == 200
    assert b"Hel" in answer.body
    assert b"error" not in answer.body
    assert [(it.path, it.body["model"]) for it in service.asked] == [(expected, "acme/large")]
    (record,) = await gateway.records()
    assert (record.outcome, record.completion_tokens) == ("ok", 2)


async def test_vectors_come_from_the_model_that_was_asked_for(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    await choose(gateway, openRouterModelPreference="acme/chat")
    answer = await gateway.ask({"model": "acme/vectors", "input": "hi"}, path="/v1/embeddings")
    assert answer.json["data"][0]["embedding"] == [0.5, -0.25]
    assert service.asked[0].body["model"] == "acme/vectors"
    (record,) = await gateway.records()
    assert (record.endpoint, record.cost) == ("/embeddings", pytest.approx(0.000013))


async def test_the_models_are_those_that_the_users_key_may_ask(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    answer = await gateway.ask(path="/v1/models", method="GET")
    assert [it["id"] for it in answer.json["data"]] == ["acme/small", "acme/large"]
    assert service.paths() == ["/models/user"]


async def test_what_openrouter_does_not_have_is_said_before_it_is_asked(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    answer = await gateway.ask({"model": "m", "text_1": "", "text_2": ""}, path="/v1/score")
    assert (answer.status, answer.error["code"]) == (404, "endpoint_not_found")
    assert service.asked == []


# -- errors that a status tells

ERRORS = {
    # fault: status, code, attempts
    "bad_request": (400, "invalid_request", 1),
    "no_such_model": (400, "model_not_found", 1),
    "key": (403, "key_refused", 1),
    "credits": (402, "credits_spent", 1),
    "moderation": (403, "moderation", 1),
    "forbidden": (403, "forbidden", 1),
    "no_endpoints": (404, "model_not_found", 1),
    "privacy": (404, "privacy_restricted", 1),
    "privacy_older": (404, "privacy_restricted", 1),
    "timeout": (408, "provider_timeout", 1),
    "too_large": (413, "too_large", 1),
    "rate_limit": (429, "rate_limited", 1),
    "internal": (500, "server_error", 2),
    "provider_down": (502, "server_error", 2),
    "edge_timeout": (524, "provider_timeout", 1),
    "overloaded": (529, "server_error", 2),
}
WAITED_FOR = {"in_flight_budget", "no_provider"}
"""Faults that say when to come back, within what is waited for."""


@pytest.mark.parametrize("stream", [True, False])
async def test_each_error_is_told_in_one_shape_after_as_many_tries_as_help(
    gateway: Gateway, default: Provider, *, stream: bool
) -> None:
    assert ERRORS.keys() | WAITED_FOR == FAULTS.keys()
    answers = await each(gateway, ERRORS, stream=stream)
    told = {
        fault: (it.status, it.error["code"], int(it.headers["x-byoai-attempts"]))
        for fault, it in answers.items()
    }
    assert told == ERRORS
    for answer in answers.values():
        assert answer.headers["x-byoai-provider"] == "openrouter"
        assert answer.headers["x-request-id"]
        assert KEY.encode() not in answer.body
    assert default.requests == []


async def test_only_with_the_users_word_is_somebody_else_asked_and_never_for_their_own_rules(
    gateway: Gateway, default: Provider
) -> None:
    answers = await each(gateway, ERRORS, fallbackToDefault=True)
    assert {
        fault
        for fault, it in answers.items()
        if it.headers["x-byoai-provider"] == "openrouter" and it.status != 200
    } == NEVER_ELSEWHERE
    for fault in ERRORS.keys() - NEVER_ELSEWHERE:
        _, code, attempts = ERRORS[fault]
        headers = answers[fault].headers
        assert headers["x-byoai-fallback-reason"] == code
        assert headers["x-byoai-attempts"] == str(attempts + 1)
        assert answers[fault].text == "Hello there"
    assert len(default.requests) == len(ERRORS) - len(NEVER_ELSEWHERE)


async def test_the_default_provider_sees_neither_the_users_key_nor_openrouters_own_fields(
    gateway: Gateway, default: Provider
) -> None:
    await choose(gateway, openRouterModelPreference="fault/credits", fallbackToDefault=True)
    answer = await gateway.chat(
        models=["acme/a"], provider={"sort": "price"}, route="fallback", transforms=[], plugins=[],
        preset="p", temperature=0.5,
    )  # fmt: skip
    assert answer.text == "Hello there"
    asked = await default.request()
    assert asked.headers["authorization"] == "Bearer the-operators-key"
    assert KEY not in repr(asked.headers) + asked.body.decode()
    assert not {"http-referer", "x-title", "x-openrouter-title"} & asked.headers.keys()
    assert asked.json == {
        "model": "default-model",
        "stream": True,
        "messages": [],
        "temperature": 0.5,
        "stream_options": {"include_usage": True},
    }


async def test_the_setting_that_is_to_blame_is_named_and_no_other(gateway: Gateway) -> None:
    await each(gateway, ERRORS)
    blamed = {fault: found for fault in ERRORS if (found := await attention(gateway, fault))}
    assert blamed == {
        "key": {"openRouterApiKey": "key_refused"},
        "credits": {"openRouterApiKey": "credits_spent"},
        "forbidden": {"openRouterApiKey": "forbidden"},
        "no_such_model": {"openRouterModelPreference": "model_not_found"},
        "no_endpoints": {"openRouterModelPreference": "model_not_found"},
    }


async def test_a_setting_is_good_again_when_it_works_or_is_saved_anew(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    service.instead("/chat/completions", FAULTS["credits"], FAULTS["key"])
    await gateway.chat()
    assert await attention(gateway) == {"openRouterApiKey": "credits_spent"}
    await choose(gateway, openRouterApiKey="sk-or-v1-another-one-altogether")
    assert await attention(gateway) == {}
    await gateway.chat()
    assert await attention(gateway) == {"openRouterApiKey": "key_refused"}
    service.keys["sk-or-v1-another-one-altogether"] = {}
    await gateway.chat()
    assert await attention(gateway) == {}


async def test_errors_say_what_to_do_about_them(gateway: Gateway) -> None:
    answers = await each(gateway, ("privacy", "privacy_older", "moderation", "provider_down"))
    for fault in ("privacy", "privacy_older"):
        assert "https://openrouter.ai/settings/privacy" in answers[fault].error["message"]
    said = answers["moderation"].error["message"]
    assert "(reasons: violence)" in said
    assert "..." not in said  # what was flagged is not repeated
    assert "Acme" in answers["provider_down"].error["message"]


async def test_a_limit_that_is_over_soon_is_waited_for_once(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    limited = error(429, "Rate limit exceeded", headers={"Retry-After": "0"})
    service.instead("/chat/completions", limited)
    answer = await gateway.chat()
    assert (answer.text, answer.headers["x-byoai-attempts"]) == ("Hello", "2")
    service.instead("/chat/completions", limited, limited)
    answer = await gateway.chat()
    assert (answer.status, answer.headers["x-byoai-attempts"]) == (429, "2")


async def test_a_limit_that_lasts_is_told_with_its_figures(gateway: Gateway) -> None:
    answer = (await each(gateway, ["rate_limit"]))["rate_limit"]
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["x-ratelimit-limit"] == "20"
    assert answer.headers["x-ratelimit-remaining"] == "0"


async def test_credit_that_is_only_held_is_waited_for_and_no_fault_of_the_key(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    held = error(402, "In-flight spending budget exceeded", headers={"Retry-After": "0"})
    service.instead("/chat/completions", held)
    assert (await gateway.chat()).headers["x-byoai-attempts"] == "2"
    service.instead("/chat/completions", held, held)
    answer = await gateway.chat()
    assert (answer.status, answer.error["code"]) == (402, "rate_limited")
    assert await attention(gateway) == {}


async def test_a_provider_that_names_a_moment_is_asked_at_that_moment(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    service.instead("/chat/completions", error(503, "No provider", headers={"Retry-After": "0"}))
    answer = await gateway.chat()
    assert (answer.text, answer.headers["x-byoai-attempts"]) == ("Hello", "2")


# -- errors inside a 200

INSIDE_FIRST = {
    # fault: streamed, code, attempts
    "error_first": (True, "error_in_answer", 2),
    "native_error_first": (True, "error_in_answer", 2),
    "credits_first": (True, "credits_spent", 1),
    "only_comments": (True, "truncated", 1),
    "dead": (True, "first_token_timeout", 1),
}
INSIDE_WHOLE = dict.fromkeys(WHOLES, (False, "error_in_answer", 2))


@pytest.mark.parametrize("faults", [INSIDE_FIRST, INSIDE_WHOLE], ids=["streamed", "whole"])
async def test_an_error_in_a_200_is_an_error_until_the_answer_has_begun(
    gateway: Gateway, faults: dict[str, tuple[bool, str, int]]
) -> None:
    stream = faults is INSIDE_FIRST
    told = await each(gateway, faults, stream=stream)
    for fault, (_, code, attempts) in faults.items():
        answer = told[fault]
        assert answer.status >= 400, fault
        assert answer.error["code"] == code
        assert answer.headers["x-byoai-attempts"] == str(attempts)
    moved = await each(gateway, faults, stream=stream, fallbackToDefault=True)
    for fault, (_, code, attempts) in faults.items():
        assert moved[fault].headers["x-byoai-fallback-reason"] == code
        assert moved[fault].headers["x-byoai-attempts"] == str(attempts + 1)
        assert moved[fault].headers["x-byoai-provider"] == "default"


async def test_credits_that_a_stream_says_are_spent_count_as_if_a_status_said_it(
    gateway: Gateway,
) -> None:
    await each(gateway, ["credits_first", "credits_in_the_middle", "held_credit_in_the_middle"])
    spent = {"openRouterApiKey": "credits_spent"}
    assert await attention(gateway, "credits_first") == spent
    assert await attention(gateway, "credits_in_the_middle") == spent
    assert await attention(gateway, "held_credit_in_the_middle") == {}


BROKEN = {
    # fault: code, what its message holds
    "error_in_the_middle": ("error_in_answer", "Provider disconnected unexpectedly"),
    "credits_in_the_middle": ("credits_spent", "credits"),
    "held_credit_in_the_middle": ("rate_limited", "holds your credit"),
    "moderation_in_the_middle": ("moderation", "(reasons: violence)"),
    "no_end": ("truncated", "broke off"),
}


async def test_what_breaks_in_the_middle_is_explained_like_anything_else_and_never_moves(
    gateway: Gateway, default: Provider
) -> None:
    answers = await each(gateway, BROKEN, fallbackToDefault=True)
    for fault, (code, words) in BROKEN.items():
        answer = answers[fault]
        assert (answer.status, answer.text) == (200, "Hello"), fault
        assert b"[DONE]" not in answer.body
        assert answer.stream_error.keys() >= {"message", "type", "param", "code"}
        assert answer.stream_error["code"] == code
        assert words in answer.stream_error["message"]
    assert default.requests == []
    outcomes = {record.user_id: record.outcome for record in await gateway.records()}
    assert outcomes["error_in_the_middle"] == "error_in_answer"
    assert outcomes["credits_in_the_middle"] == "credits_spent"


def test_every_fault_of_a_stream_is_looked_at() -> None:
    assert INSIDE_FIRST.keys() | BROKEN.keys() | {"slow", "late"} == STREAMS.keys()


async def test_comments_fill_a_silence_before_the_answer_and_in_it(
    gateway: Gateway, default: Provider
) -> None:
    answers = await each(gateway, ["slow", "late"], fallbackToDefault=True)
    for answer in answers.values():
        assert (answer.text, answer.events[-1]) == ("Hello", b"[DONE]")
        assert answer.body.startswith(COMMENT)
        assert answer.body.count(COMMENT) >= 5
    assert default.requests == []


async def test_a_user_who_stops_reading_does_not_speak_against_the_provider(
    gateway: Gateway, service: FakeOpenRouter
) -> None:
    await choose(gateway, openRouterModelPreference="fault/slow")
    headers = {"authorization": f"Bearer {gateway.client().api_key}"}
    body: dict[str, Any] = {"model": "m", "stream": True, "messages": []}
    for number in range(1, 7):
        async with gateway.http.post(
            gateway.url + "/v1/chat/completions", json=body, headers=headers
        ) as response:
            assert response.status == 200
            await response.content.readany()
            response.close()
        assert len(service.asked) == number
    await choose(gateway, openRouterModelPreference=None)
    assert (await gateway.chat()).text == "Hello"


@pytest.mark.parametrize(
    ("before", "then", "outcome", "is_marked"),
    [
        ("fault/credits", "acme/small", "ok", False),
        ("acme/small", "fault/credits_in_the_middle", "credits_spent", True),
    ],
)
async def test_what_an_answer_says_of_a_setting_is_noted_though_its_client_leaves_at_once(
    gateway: Gateway, before: str, then: str, outcome: str, is_marked: bool
) -> None:
    await gateway.prefer(aiProvider="openrouter", openRouterApiKey=KEY)
    await gateway.chat(model=before)
    async with gateway.control.database.writing():  # so that the note has to wait
        async with aiohttp.ClientSession() as http:
            await replace(gateway, http=http).chat(model=then)
        async with asyncio.timeout(50):
            while gateway.data_path.requests.in_flight:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.001)
    assert gateway.data_path.requests.outcomes[outcome] > 0
    assert gateway.data_path.requests.outcomes["client_left"] == 0
    await gateway.data_path.serving.router.settle()
    settings = (await gateway.ask(path=PREFERENCES, method="GET")).json
    assert bool(settings["needsAttention"]) is is_marked
    assert (await gateway.records())[-1].outcome == outcome
