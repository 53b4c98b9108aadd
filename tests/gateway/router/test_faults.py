"""Providers that fail in every way, as a client of the gateway sees it."""

import asyncio
from typing import Any

import pytest

from support.gateway import Gateway
from support.loop_clock import NEVER_S
from support.provider import Provider
from support.provider_script import (
    DONE,
    Die,
    Endless,
    Hang,
    Pause,
    Script,
    Step,
    bytewise,
    chat_answer,
    chat_events,
    chat_stream,
    error_event,
    event,
    finish,
    half,
    long_token,
    refusal,
    role,
    stream,
    stream_to_close,
    token,
    usage,
    whole,
)

GOOD = chat_stream("Hello", " there")
STATUSES_RETRIED = (500, 502, 503)


def is_final(answer: Any) -> bool:
    """Whether official clients are told not to repeat the request."""
    return bool(answer.headers.get("x-should-retry") == "false")


# -- a sound provider


async def test_a_stream_passes_through_and_says_who_answered(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(GOOD)
    answer = await gateway.chat(stream_options={"include_usage": True})
    assert (answer.status, answer.text, answer.events[-1]) == (200, "Hello there", b"[DONE]")
    assert answer.body == b"".join(chat_events("Hello", " there"))
    assert answer.headers["x-byoai-provider"] == "default"
    assert answer.headers["x-byoai-attempts"] == "1"
    assert "x-byoai-fallback-reason" not in answer.headers
    request = await default.request()
    assert request.target == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer the-operators-key"


async def test_usage_is_asked_for_always_and_stripped_if_nobody_asked(
    gateway: Gateway, default: Provider
) -> None:
    answer = await gateway.chat()
    assert (await default.request()).json["stream_options"] == {"include_usage": True}
    assert b'"usage"' not in answer.body
    assert (answer.text, answer.events[-1]) == ("Hello there", b"[DONE]")
    (record,) = await gateway.records()
    assert (record.prompt_tokens, record.completion_tokens) == (3, 2)
    assert (record.user_id, record.provider, record.model) == ("alice", "default", "provider-model")
    assert record.attempts == 1
    assert record.first_token_ms is not None


async def test_a_whole_answer_passes_unchanged(gateway: Gateway, default: Provider) -> None:
    body = chat_answer(usage=usage(7, 9, cost=0.25))
    default.expect(whole(body, headers={"x-ratelimit-remaining-requests": "5"}))
    answer = await gateway.chat(stream=False)
    assert (answer.status, answer.json) == (200, body)
    assert answer.headers["x-ratelimit-remaining-requests"] == "5"
    (record,) = await gateway.records()
    assert (record.prompt_tokens, record.completion_tokens, record.cost) == (7, 9, 0.25)


async def test_one_byte_at_a_time_is_an_answer(gateway: Gateway, default: Provider) -> None:
    default.expect(tuple(bytewise(GOOD)))
    answer = await gateway.chat()
    assert (answer.text, answer.events[-1]) == ("Hello there", b"[DONE]")


async def test_a_line_of_5_mb_is_an_answer(gateway: Gateway, default: Provider) -> None:
    default.expect(stream(role(), long_token(), finish(), DONE))
    answer = await gateway.chat()
    assert len(answer.text) == 5_000_000
    assert answer.events[-1] == b"[DONE]"


async def test_a_missing_done_is_added(gateway: Gateway, default: Provider) -> None:
    default.expect(stream(token("all"), finish()))
    answer = await gateway.chat()
    assert (answer.text, answer.events[-1]) == ("all", b"[DONE]")


# -- before the answer has begun


@pytest.mark.parametrize("wants_stream", [True, False])
@pytest.mark.parametrize("status", STATUSES_RETRIED)
async def test_a_server_error_is_tried_once_more(
    gateway: Gateway, default: Provider, status: int, *, wants_stream: bool
) -> None:
    default.expect(refusal(status))
    answer = await gateway.chat(stream=wants_stream)
    assert answer.status == 200
    assert answer.headers["x-byoai-attempts"] == "2"


@pytest.mark.parametrize("status", STATUSES_RETRIED)
async def test_two_server_errors_are_the_end(
    gateway: Gateway, default: Provider, status: int
) -> None:
    default.always(refusal(status))
    answer = await gateway.chat()
    assert answer.status >= 500
    assert answer.error["code"]
    assert not is_final(answer)
    assert len(default.requests) == 2


@pytest.mark.parametrize(
    ("script", "reason", "tries"),
    [
        (refusal(500), "server_error", 2),
        (refusal(502), "server_error", 2),
        (refusal(503), "server_error", 2),
        (refusal(504), "provider_timeout", 1),
        (refusal(408), "provider_timeout", 1),
        (refusal(401), "key_refused", 1),
        (refusal(402), "credits_spent", 1),
        (refusal(403), "forbidden", 1),
        (refusal(404, "The model `own/model` does not exist", code="model_not_found"),
         "model_not_found", 1),
        (refusal(429), "rate_limited", 1),
        (refusal(429, headers={"retry-after": "60"}), "rate_limited", 1),
        (refusal(429, headers={"retry-after": "0"}), "rate_limited", 2),
        ((Hang(),), "first_token_timeout", 1),
        (stream(role(), Hang()), "first_token_timeout", 1),
        ((Die(),), "connection_lost", 1),
        (stream(role(), Die()), "truncated", 1),
        (stream(role()), "truncated", 1),
        (stream(role(), event(b"{not json")), "malformed_answer", 1),
        (stream(error_event("upstream failed")), "error_in_answer", 2),
        (stream(role(), error_event("upstream failed")), "error_in_answer", 2),
        (whole({"error": {"code": 502, "message": "bad"}}), "error_in_answer", 2),
        (whole(b"<html>"), "malformed_answer", 1),
        (whole({"choices": [{"error": {"code": 502, "message": "bad"}}]}), "error_in_answer", 2),
    ],
)  # fmt: skip
async def test_a_failure_before_the_first_token_moves_to_the_fallback(
    bring_own: Gateway, own: Provider, default: Provider, script: Script, reason: str, tries: int
) -> None:
    own.always(script)
    answer = await bring_own.chat(provider={"sort": "price"})
    assert (answer.status, answer.text, answer.events[-1]) == (200, "Hello there", b"[DONE]")
    assert answer.headers["x-byoai-provider"] == "default"
    assert answer.headers["x-byoai-fallback-reason"] == reason
    assert answer.headers["x-byoai-attempts"] == str(tries + 1)
    assert len(own.requests) == tries
    request = await default.request()
    assert request.headers["authorization"] == "Bearer the-operators-key"
    assert b"alices-own-key" not in request.body + str(request.headers).encode()
    assert request.json["model"] == "default-model"
    (record,) = await bring_own.records()
    assert (record.provider, record.fallback_reason) == ("default", reason)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_answered_as_it_is(
    bring_own: Gateway, own: Provider, default: Provider, status: int
) -> None:
    own.always(refusal(status, "temperature must be below 2", code="bad", kind="odd_error"))
    answer = await bring_own.chat()
    assert answer.status == status
    assert (answer.error["message"], answer.error["code"]) == ("temperature must be below 2", "bad")
    assert (len(own.requests), len(default.requests)) == (1, 0)


async def test_without_the_users_word_nothing_falls_back(
    bring_own: Gateway, own: Provider, default: Provider
) -> None:
    await bring_own.prefer(fallbackToDefault=False)
    own.always(refusal(503))
    answer = await bring_own.chat()
    assert answer.status >= 500
    assert not is_final(answer)
    assert answer.headers["x-byoai-provider"] == "openrouter"
    assert len(default.requests) == 0


async def test_a_request_bound_to_a_providers_state_never_falls_back(
    bring_own: Gateway, own: Provider, default: Provider
) -> None:
    own.always(refusal(503))
    body = {"model": "m", "input": "and then?", "previous_response_id": "resp_1"}
    answer = await bring_own.ask(body, path="/v1/responses")
    assert answer.status >= 500
    assert len(default.requests) == 0


async def test_a_provider_that_resets_its_connections_moves_to_the_fallback(
    bring_own: Gateway, own: Provider
) -> None:
    own.greeting = (Die(with_reset=True),)
    answer = await bring_own.chat()
    assert answer.status == 200
    # Whether the request went out before the reset came is a race.
    assert answer.headers["x-byoai-fallback-reason"] in {"unreachable", "connection_lost"}


async def test_both_failing_is_told_by_the_last(
    bring_own: Gateway, own: Provider, default: Provider
) -> None:
    own.always(refusal(504))
    default.always(refusal(504))
    answer = await bring_own.chat(stream=False)
    assert answer.status >= 500
    assert answer.headers["x-byoai-fallback-reason"] == "provider_timeout"
    assert is_final(answer)
    assert (len(own.requests), len(default.requests)) == (1, 1)


async def test_the_operators_own_trouble_is_not_the_clients(
    gateway: Gateway, default: Provider
) -> None:
    for status in (401, 402, 403):
        default.expect(refusal(status, "key sk-operators is wrong"))
        answer = await gateway.chat()
        assert answer.status == 502
        assert b"sk-operators" not in answer.body


async def test_a_refused_key_marks_the_setting_until_it_works_again(
    bring_own: Gateway, own: Provider
) -> None:
    async def marked() -> list[str]:
        answer = await bring_own.ask(path="/api/user-preferences/ai-provider", method="GET")
        return [it["setting"] for it in answer.json["needsAttention"]]

    own.expect(refusal(401))
    assert (await bring_own.chat()).status == 200
    assert await marked() == ["openRouterApiKey"]
    own.expect(GOOD)
    await bring_own.chat()
    assert await marked() == []


# -- after the answer has begun


@pytest.mark.parametrize(
    "broken",
    [
        (Die(),),
        (),
        (Hang(),),
        (b'data: {"choices": [{"delta": {"cont', Die()),
        (event(b"{not json"), finish(), DONE),
        (error_event("upstream failed"), finish(), DONE),
    ],
    ids=["dies", "no finish_reason", "silent", "in mid-event", "malformed", "error"],
)
async def test_what_breaks_later_is_said_in_the_stream(
    bring_own: Gateway, own: Provider, default: Provider, broken: tuple[Step, ...]
) -> None:
    own.expect(stream(token("so"), token(" far"), *broken))
    answer = await bring_own.chat()
    assert (answer.status, answer.is_whole) == (200, True)
    assert answer.text == "so far"
    assert answer.stream_error["message"]
    assert answer.headers["x-byoai-provider"] == "openrouter"
    assert len(default.requests) == 0
    (record,) = await bring_own.records()
    assert record.outcome not in {"answered", "ok"}


async def test_a_stream_that_its_closed_connection_ends_is_whole(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(stream_to_close(token("all"), finish(), DONE))
    answer = await gateway.chat()
    assert (answer.text, answer.events[-1]) == ("all", b"[DONE]")


async def test_comments_keep_a_stream_alive_and_do_not_begin_it(
    bring_own: Gateway, own: Provider
) -> None:
    processing = b": OPENROUTER PROCESSING\n\n"
    beats = [step for _ in range(4) for step in (processing, Pause(0.3 * NEVER_S))]
    own.expect(stream(token("a"), *beats, token("b"), finish(), DONE))
    assert (await bring_own.chat()).text == "ab"
    # Longer than the time for a first token: comments are signs of life.
    own.expect(stream(*beats, token("c"), finish(), DONE))
    answer = await bring_own.chat()
    assert (answer.text, answer.headers["x-byoai-provider"]) == ("c", "openrouter")
    own.expect(stream(*beats, Hang()))
    answer = await bring_own.chat()
    assert answer.headers["x-byoai-fallback-reason"] == "first_token_timeout"


async def test_half_a_whole_answer_is_a_failure(
    bring_own: Gateway, own: Provider, default: Provider
) -> None:
    own.always(half(chat_answer()))
    answer = await bring_own.chat(stream=False)
    assert answer.status == 200
    assert answer.headers["x-byoai-fallback-reason"] == "truncated"


# -- clients


async def test_a_client_that_leaves_ends_the_work(gateway: Gateway, default: Provider) -> None:
    for script in ((Hang(0),), stream(role(), Hang(0)), stream(token("a"), Hang(0))):
        default.expect(script)
        number = len(default.requests)
        asking = asyncio.create_task(gateway.chat())
        request = await default.request(number)
        asking.cancel()
        await request.client_gone()
        await asyncio.gather(asking, return_exceptions=True)


async def test_an_answer_that_never_stops_goes_on_until_the_client_leaves(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(stream(Endless(token("again"))))
    body: dict[str, Any] = {"model": "m", "stream": True, "messages": []}
    fields = {"authorization": f"Bearer {gateway.client().api_key}"}
    async with gateway.http.post(
        gateway.url + "/v1/chat/completions", json=body, headers=fields
    ) as response:
        taken = 0
        async for piece in response.content.iter_any():
            taken += len(piece)
            if taken > 1_000_000:
                break
        response.close()
    await (await default.request()).client_gone()


async def test_the_official_client_does_not_multiply_the_chain(
    gateway: Gateway, default: Provider
) -> None:
    default.always(refusal(503))
    async with gateway.client(max_retries=2) as client:
        with pytest.raises(Exception, match=r"503|502"):
            await client.chat.completions.create(model="m", messages=[])
    # As many as it would make without us.
    assert len(default.requests) == 3


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"{nonsense", 400, "invalid_json"), (b"[]", 400, "invalid_body")],
)
async def test_rubbish_never_reaches_a_provider(
    gateway: Gateway, default: Provider, body: bytes, status: int, code: str
) -> None:
    answer = await gateway.ask(body)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert len(default.requests) == 0


async def test_a_body_of_200_mb_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url[-5:]))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000\r\n\r\n"
    writer.write(head.encode())
    assert b"413" in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_unknown_paths_are_answered_in_openais_shape(gateway: Gateway) -> None:
    for path, method, status in (("/v1/nothing", "POST", 404), ("/v1/models", "PUT", 405)):
        answer = await gateway.ask({}, path=path, method=method)
        assert answer.status == status
        assert answer.error["code"]
        assert answer.headers.get("allow") == ("GET" if status == 405 else None)


async def test_a_provider_that_keeps_failing_is_left_alone(
    bring_own: Gateway, own: Provider
) -> None:
    own.always(refusal(504))
    for _ in range(5):
        assert (await bring_own.chat()).headers["x-byoai-fallback-reason"] == "provider_timeout"
    asked = len(own.requests)
    answer = await bring_own.chat()
    assert answer.headers["x-byoai-fallback-reason"] == "breaker_open"
    assert len(own.requests) == asked
    await bring_own.prefer(
        user="bob", aiProvider="openrouter", openRouterApiKey="sk-or-v1-bobs-very-own-key"
    )
    own.always(GOOD)
    assert (await bring_own.chat(user="bob")).headers["x-byoai-provider"] == "openrouter"
