"""Each way of answering through a running gateway: sound, broken early, broken late, refused."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from support.gateway import Answer, Gateway
from support.loop_clock import NEVER_S
from support.provider import Provider
from support.provider_script import (
    DONE,
    Die,
    Hang,
    Pause,
    Script,
    Step,
    bytewise,
    chat_answer,
    chat_events,
    chunk,
    completion_events,
    error_event,
    event,
    messages_events,
    refusal,
    responses_events,
    role,
    stream,
    token,
    typed,
    usage,
    whole,
)


@dataclass(frozen=True, eq=False)
class Way:
    """One call of the surface, and what providers send in it."""

    path: str
    begin: bytes
    """Events that are no answer yet."""
    content: bytes
    error: bytes
    events: tuple[bytes, ...]
    answer: dict[str, Any]
    """In one piece; 3 tokens in and 2 out."""

    @property
    def body(self) -> dict[str, Any]:
        return {"model": "m", "messages": [], "prompt": "p", "input": "i", "max_tokens": 9}


def piece(text: str, usage: Any = None) -> bytes:
    choices = [] if usage else [{"index": 0, "text": text, "finish_reason": None}]
    more = {} if usage is None else {"usage": usage}
    return event({"object": "text_completion", "choices": choices, **more})


COUNTS = {"input_tokens": 3, "output_tokens": 2}
CHAT = Way(
    "/v1/chat/completions", role(), token("a"), error_event(), chat_events("a", "b"), chat_answer()
)
COMPLETION = Way(
    "/v1/completions",
    piece(""),
    piece("a"),
    event({"error": {"message": "it broke", "code": 502}}),
    (*completion_events("a", "b")[:-1], piece("", usage()), DONE),
    {"object": "text_completion", "choices": [{"text": "ab"}], "usage": usage()},
)
RESPONSES = Way(
    "/v1/responses",
    responses_events()[0] + typed("response.in_progress", response={"status": "in_progress"}),
    typed("response.output_text.delta", delta="a"),
    typed("error", error={"code": "server_error", "message": "it broke"}),
    responses_events("a", "b"),
    {"object": "response", "status": "completed", "output": [], "usage": COUNTS},
)
MESSAGES = Way(
    "/v1/messages",
    messages_events()[0] + typed("ping"),
    typed("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"}),
    typed("error", error={"type": "overloaded_error", "message": "it broke"}),
    messages_events("a", "b"),
    {"type": "message", "content": [], "stop_reason": "end_turn", "usage": COUNTS},
)
WAYS = pytest.mark.parametrize(
    "way", [CHAT, COMPLETION, RESPONSES, MESSAGES], ids=["chat", "completion", "responses", "msgs"]
)


async def ask(gateway: Gateway, way: Way, *, is_stream: bool = True, **more: Any) -> Answer:
    return await gateway.ask({**way.body, "stream": is_stream, **more}, path=way.path)


def told(way: Way, answer: Answer) -> dict[str, Any]:
    """The error that ends a stream, read as the clients of its dialect read it."""
    assert answer.is_whole
    assert b"[DONE]" not in answer.events
    last = answer.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    name, _, data = last.rpartition(b"data: ")
    said: dict[str, Any] = msgspec.json.decode(data)
    if way in {RESPONSES, MESSAGES}:
        assert (name, said["type"]) == (b"event: error\n", "error")
    else:
        assert (name, said["choices"][0]["finish_reason"]) == (b"", "error")
    if way is RESPONSES:
        assert said["message"] == said["error"]["message"]
    error: dict[str, Any] = said["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# -- sound


@WAYS
async def test_a_stream_passes_byte_for_byte(gateway: Gateway, default: Provider, way: Way) -> None:
    default.expect(stream(*way.events))
    answer = await ask(gateway, way, stream_options={"include_usage": True})
    assert (answer.status, answer.body) == (200, b"".join(way.events))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-byoai-provider"] == "default"


@WAYS
@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_what_an_answer_cost_is_written_down(
    gateway: Gateway, default: Provider, way: Way, *, is_stream: bool
) -> None:
    default.expect(stream(*way.events) if is_stream else whole(way.answer))
    answer = await ask(gateway, way, is_stream=is_stream)
    if not is_stream:
        assert answer.json == way.answer
    (record,) = await gateway.records()
    assert record.endpoint == way.path.removeprefix("/v1")
    assert (record.prompt_tokens, record.completion_tokens) == (3, 2)
    assert (record.outcome, record.attempts, record.provider) == ("ok", 1, "default")
    assert 0 <= record.first_token_ms <= record.duration_ms


@pytest.mark.parametrize("way", [CHAT, COMPLETION], ids=["chat", "completion"])
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": True}])
async def test_usage_is_passed_on_only_to_who_asked(
    gateway: Gateway, default: Provider, way: Way, options: Any
) -> None:
    default.expect(stream(*way.events))
    answer = await ask(gateway, way, stream_options=options)
    asked = (await default.request()).json["stream_options"]
    assert asked["include_usage"] is True
    is_wanted = bool(options and options["include_usage"])
    kept = way.events if is_wanted else (*way.events[:-2], DONE)
    assert answer.body == b"".join(kept)


@WAYS
async def test_whole_answers_and_other_dialects_are_not_asked_for_usage(
    gateway: Gateway, default: Provider, way: Way
) -> None:
    await ask(gateway, way, is_stream=way in {RESPONSES, MESSAGES})
    assert "stream_options" not in (await default.request()).json


async def test_usage_that_comes_beside_content_stays(gateway: Gateway, default: Provider) -> None:
    running = chunk({"content": "a"}, usage=usage(3, 1))
    default.expect(stream(running, chunk({}, "stop", usage=usage(3, 7, cost=0.5)), DONE))
    answer = await ask(gateway, CHAT)
    assert answer.body.startswith(running)
    (record,) = await gateway.records()
    assert (record.prompt_tokens, record.completion_tokens, record.cost) == (3, 7, 0.5)


async def test_pings_keep_anthropics_stream_alive_and_do_not_begin_it(
    bring_own: Gateway, own: Provider
) -> None:
    beats = [step for _ in range(4) for step in (typed("ping"), Pause(0.3 * NEVER_S))]
    begin, *rest = MESSAGES.events
    own.expect(stream(begin, MESSAGES.content, *beats, *rest))
    answer = await ask(bring_own, MESSAGES)
    assert answer.headers["x-byoai-provider"] == "openrouter"
    assert answer.body.endswith(typed("message_stop"))
    assert answer.body.count(b"event: ping\n") == 5
    own.expect(stream(begin, *beats, Hang()))
    answer = await ask(bring_own, MESSAGES)
    assert answer.headers["x-byoai-fallback-reason"] == "first_token_timeout"


@WAYS
async def test_single_bytes_are_put_together(gateway: Gateway, default: Provider, way: Way) -> None:
    events = tuple(it.replace(b"\n", b"\r\n") for it in way.events)
    default.expect(tuple(bytewise(stream(*events))))
    answer = await ask(gateway, way, stream_options={"include_usage": True})
    assert answer.body == b"".join(events)


# -- broken


@WAYS
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("error", "error_in_answer"),
        ("dies", "truncated"),
        ("ends", "truncated"),
        ("malformed", "malformed_answer"),
        ("silent", "first_token_timeout"),
    ],
)
async def test_what_breaks_before_content_moves_to_the_fallback(
    bring_own: Gateway, own: Provider, way: Way, kind: str, reason: str
) -> None:
    own.always(stream(way.begin, *_breaks(way, kind)))
    answer = await ask(bring_own, way)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "default")
    assert answer.headers["x-byoai-fallback-reason"] == reason
    assert way.begin not in answer.body or way.begin in b"".join(way.events)
    assert b"it broke" not in answer.body
    (record,) = await bring_own.records()
    assert (record.outcome, record.fallback_reason) == ("ok", reason)


@WAYS
@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("error", "error_in_answer"),
        ("dies", "truncated"),
        ("ends", "truncated"),
        ("malformed", "malformed_answer"),
        ("silent", "silence"),
    ],
)
async def test_what_breaks_after_content_is_told_in_the_streams_own_words(
    bring_own: Gateway, own: Provider, default: Provider, way: Way, kind: str, outcome: str
) -> None:
    own.expect(stream(way.begin, way.content, *_breaks(way, kind)))
    answer = await ask(bring_own, way)
    assert answer.body.startswith(way.begin + way.content)
    error = told(way, answer)
    assert error["code"] in {outcome, "server_error"}  # a provider's own word is kept
    assert ("it broke" in error["message"]) == (kind == "error")
    assert (len(own.requests), len(default.requests)) == (1, 0)
    (record,) = await bring_own.records()
    assert (record.outcome, record.attempts, record.fallback_reason) == (outcome, 1, None)


def _breaks(way: Way, kind: str) -> tuple[Step, ...]:
    endings: dict[str, tuple[Step, ...]] = {
        "error": (way.error, *way.events[-1:]),
        "dies": (way.content[:-3], Die()),
        "ends": (),
        "malformed": (event(b"{not json"), way.content),
        "silent": (Hang(),),
    }
    return endings[kind]


@pytest.mark.parametrize("way", [CHAT, COMPLETION], ids=["chat", "completion"])
async def test_an_answer_of_which_one_choice_is_missing_is_no_whole_one(
    gateway: Gateway, default: Provider, way: Way
) -> None:
    def end(index: int) -> bytes:
        return event({"choices": [{"index": index, "finish_reason": "stop"}]})

    default.expect(stream(way.content, end(0)), stream(way.content, end(0), end(1)))
    assert told(way, await ask(gateway, way, n=2))["code"] == "truncated"
    assert (await ask(gateway, way, n=2)).body == way.content + end(0) + end(1) + DONE
    assert [it.outcome for it in await gateway.records()] == ["truncated", "ok"]


def failed(code: str) -> bytes:
    return typed("response.failed", response={"error": {"code": code, "message": "it broke"}})


async def test_a_response_that_failed_ends_as_the_provider_ended_it(
    gateway: Gateway, default: Provider
) -> None:
    events = (RESPONSES.begin, RESPONSES.content, failed("server_error"))
    default.expect(stream(*events))
    answer = await ask(gateway, RESPONSES)
    assert answer.body == b"".join(events)
    assert [it.outcome for it in await gateway.records()] == ["error_in_answer"]


async def test_what_a_failed_response_says_of_the_operators_account_is_not_passed_on(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(stream(RESPONSES.begin, RESPONSES.content, failed("invalid_api_key")))
    answer = await ask(gateway, RESPONSES)
    assert told(RESPONSES, answer)["code"] == "provider_misconfigured"
    assert b"it broke" not in answer.body


async def test_a_flat_error_event_of_the_responses_api_is_an_error(
    gateway: Gateway, default: Provider
) -> None:
    flat = typed("error", code="server_error", message="it broke", param=None)
    default.expect(stream(RESPONSES.begin, RESPONSES.content, flat))
    assert "it broke" in told(RESPONSES, await ask(gateway, RESPONSES))["message"]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (RESPONSES, {"status": "failed", "error": {"code": "server_error", "message": "no"}}),
        (RESPONSES, {"status": "failed", "error": None}),
        (MESSAGES, {"type": "error", "error": {"type": "api_error", "message": "no"}}),
        (COMPLETION, {"error": "no"}),
    ],
)
async def test_a_whole_answer_that_is_an_error_moves_to_the_fallback(
    bring_own: Gateway, own: Provider, default: Provider, way: Way, said: dict[str, Any]
) -> None:
    own.always(whole(said))
    default.expect(whole(way.answer))
    answer = await ask(bring_own, way, is_stream=False)
    assert (answer.status, answer.json) == (200, way.answer)
    assert answer.headers["x-byoai-fallback-reason"] == "error_in_answer"


@WAYS
@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_a_web_page_is_no_answer(
    bring_own: Gateway, own: Provider, way: Way, *, is_stream: bool
) -> None:
    own.always(whole(b"<html>sign in</html>", kind="text/html; charset=utf-8"))
    answer = await ask(bring_own, way, is_stream=is_stream)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "default")
    assert answer.headers["x-byoai-fallback-reason"] == "malformed_answer"


@WAYS
async def test_events_where_one_piece_was_asked_for_are_no_answer(
    bring_own: Gateway, own: Provider, default: Provider, way: Way
) -> None:
    own.always(stream(*way.events))
    default.expect(whole(way.answer))
    answer = await ask(bring_own, way, is_stream=False)
    assert (answer.status, answer.json) == (200, way.answer)
    assert answer.headers["x-byoai-fallback-reason"] == "malformed_answer"


# -- refused


async def test_a_providers_refusal_is_told_in_anthropics_shape(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(refusal(400, "max_tokens is missing"))
    answer = await ask(gateway, MESSAGES)
    assert (answer.status, answer.json["type"]) == (400, "error")
    assert answer.error["message"] == "max_tokens is missing"
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("script", "status", "kind"),
    [
        (refusal(404), 404, "not_found_error"),
        (refusal(413), 413, "request_too_large"),
        (refusal(400), 400, "invalid_request_error"),
    ],
)
async def test_errors_of_messages_have_anthropics_types(
    gateway: Gateway, default: Provider, script: Script, status: int, kind: str
) -> None:
    default.expect(script)
    answer = await ask(gateway, MESSAGES)
    assert (answer.status, answer.error["type"]) == (status, kind)


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"body": b"{", "path": "/v1/messages"}, 400, "invalid_json"),
        ({"body": {}, "path": "/v1/messages?beta=true", "authorization": "Bearer no"}, 401,
         "invalid_api_key"),
        ({"body": {"stream": 1}, "path": "/v1/messages"}, 400, "invalid_body"),
        ({"method": "PUT", "path": "/v1/messages"}, 405, "method_not_allowed"),
        ({"body": b"[]", "path": "/v1/messages/count_tokens"}, 400, "invalid_body"),
    ],
)  # fmt: skip
async def test_the_gateways_own_refusals_of_messages_have_anthropics_shape(
    gateway: Gateway, asked: dict[str, Any], status: int, code: str
) -> None:
    answer = await gateway.ask(**asked)
    assert (answer.status, answer.json["type"]) == (status, "error")
    assert answer.error["code"] == code


async def test_other_refusals_have_openais_shape(gateway: Gateway) -> None:
    for path in ("/v1/chat/completions", "/v1/messages-of-others", "/v1/responses"):
        answer = await gateway.ask(b"{", path=path)
        assert answer.error["code"] in {"invalid_json", "not_found"}
        assert "type" not in answer.json
