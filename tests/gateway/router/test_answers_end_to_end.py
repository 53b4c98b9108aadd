"""Answers as real servers give them, through a running gateway: read for what they are.

The files in `inputs` are answers on the wire, byte for byte.
"""

from pathlib import Path
from typing import Any

import pytest

from support.gateway import Gateway
from support.provider import ANSWERS, Provider
from support.provider_script import (
    DONE,
    Close,
    Die,
    Hang,
    Script,
    Step,
    bytewise,
    chat_answer,
    chat_events,
    chunk,
    event,
    finish,
    framed,
    head,
    refusal,
    stream,
    token,
    usage,
    whole,
)

INPUTS = Path(__file__).parent / "inputs"
EMBEDDINGS = "/v1/embeddings"
BOM = b"\xef\xbb\xbf"
CHUNKED = {"transfer-encoding": "chunked"}


def on_the_wire(name: str) -> bytes:
    return (INPUTS / name).read_bytes()


def body_of(name: str) -> bytes:
    """The body of an answer in chunks, put together."""
    rest, body = on_the_wire(name).partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


async def whole_chat(gateway: Gateway) -> tuple[int, str | None]:
    answer = await gateway.chat(stream=False)
    return answer.status, None if answer.status == 200 else answer.error["code"]


# -- what it is, whatever its label says

LABELLED_WRONG = ["04_sse_as_json.http", "04_sse_as_text_plain.http", "04_sse_no_type.http"]


@pytest.mark.parametrize("name", LABELLED_WRONG)
@pytest.mark.parametrize("is_bytewise", [False, True])
async def test_events_under_another_label_are_passed_on_as_events(
    gateway: Gateway, default: Provider, name: str, *, is_bytewise: bool
) -> None:
    script: Script = (on_the_wire(name),)
    default.expect(tuple(bytewise(script)) if is_bytewise else script)
    answer = await gateway.chat()
    assert (answer.status, answer.body) == (200, body_of(name))
    assert answer.headers["content-type"] == "text/event-stream"
    assert len(default.requests) == 1


@pytest.mark.parametrize("name", LABELLED_WRONG)
async def test_events_where_one_piece_was_asked_for_are_no_answer(
    gateway: Gateway, default: Provider, name: str
) -> None:
    default.always((on_the_wire(name),))
    assert await whole_chat(gateway) == (502, "malformed_answer")


@pytest.mark.parametrize(
    "begin",
    [b": a comment\n\n", b"event: x\n", b"id: 1\n", b"retry: 9\n", b"\n\n", BOM, BOM + b"\r\n"],
)
@pytest.mark.parametrize("is_bytewise", [False, True])
async def test_whatever_a_stream_begins_with_is_known_and_passed_on(
    gateway: Gateway, default: Provider, begin: bytes, *, is_bytewise: bool
) -> None:
    steps = (begin + token("all"), finish(), DONE, b"")
    script = (head(200, {"content-type": "text/plain", **CHUNKED}), *map(framed, steps))
    default.expect((*bytewise(script), b"\r\n") if is_bytewise else script)
    answer = await gateway.chat()
    assert (answer.text, answer.events[-1]) == ("all", b"[DONE]")


async def test_a_stream_is_known_by_its_first_bytes_and_not_waited_for(
    gateway: Gateway, default: Provider
) -> None:
    kind = {"content-type": "application/octet-stream", **CHUNKED}
    default.expect((head(200, kind), framed(token("a")), Hang()))
    async with gateway.client().chat.completions.stream(
        model="m", messages=[{"role": "user", "content": "x"}]
    ) as events:
        async for event in events:
            assert event.type == "chunk"
            break


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_json_under_the_label_of_events_is_an_answer(
    gateway: Gateway, default: Provider, *, is_stream: bool
) -> None:
    default.expect(whole(chat_answer(), kind="text/event-stream; charset=utf-8"))
    answer = await gateway.chat(stream=is_stream)
    if is_stream:
        assert (answer.text, answer.events[-1]) == ("Hello there", b"[DONE]")
    else:
        assert answer.json == chat_answer()
        assert answer.headers["content-type"] == "application/json"


async def test_an_error_under_the_label_of_events_is_the_error(
    gateway: Gateway, default: Provider
) -> None:
    told = b'{"error":{"message":"too long","code":"context_length_exceeded"}}'
    for behind in (b"", b"\n\n" + DONE):
        default.expect(whole(told + behind, kind="text/event-stream"))
        answer = await gateway.chat()
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


# -- where it ends


async def test_a_stream_may_end_with_its_connection_without_saying_so(
    gateway: Gateway, default: Provider
) -> None:
    raw = on_the_wire("05_close_delimited.http")
    default.expect((raw, Close()))
    answer = await gateway.chat()
    assert (answer.status, answer.body) == (200, raw.partition(b"\r\n\r\n")[2])
    assert (await gateway.chat()).status == 200
    assert default.connections == 2


@pytest.mark.parametrize("last", [Close(), Die(with_reset=True)], ids=["closed", "reset"])
async def test_a_stream_that_ends_with_its_connection_too_early_is_cut_short(
    gateway: Gateway, default: Provider, last: Step
) -> None:
    begun = on_the_wire("05_close_delimited.http").partition(b"\n\n")[0] + b"\n\n"
    default.expect((begun, last))
    answer = await gateway.chat()
    assert (answer.text, answer.stream_error["code"]) == ("Hi", "truncated")


async def test_json_that_ends_with_its_connection_is_whole_if_it_is_json(
    gateway: Gateway, default: Provider
) -> None:
    raw = on_the_wire("M3_no_length_then_close.bin")
    default.expect((raw, Close()), (raw[:-2], Close()), (raw, Die(with_reset=True)))
    answer = await gateway.chat(stream=False)
    assert answer.body == raw.partition(b"\r\n\r\n")[2]
    assert await whole_chat(gateway) == (502, "truncated")
    assert await whole_chat(gateway) == (502, "truncated")


# -- a content coding that is none


@pytest.mark.parametrize("coding", ["none", "utf-8", "identity", "", "UTF-8, none"])
async def test_a_coding_that_is_none_changes_nothing(
    gateway: Gateway, default: Provider, coding: str
) -> None:
    raw = on_the_wire("11_content_encoding_none.http").replace(
        b"content-encoding: none", f"content-encoding: {coding}".encode()
    )
    default.expect((raw,), whole(chat_answer(), headers={"content-encoding": coding}))
    answer = await gateway.chat()
    assert (answer.status, answer.body) == (200, body_of("11_content_encoding_none.http"))
    assert "content-encoding" not in answer.headers
    answer = await gateway.chat(stream=False)
    assert answer.json == chat_answer()
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_a_page_with_a_coding_that_is_none_is_no_answer(
    bring_own: Gateway, own: Provider, *, is_stream: bool
) -> None:
    own.always((on_the_wire("11_html_with_content_encoding_none.http"),))
    answer = await bring_own.chat(stream=is_stream)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "default")
    assert answer.headers["x-byoai-fallback-reason"] == "malformed_answer"


# -- an answer that is none


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("script", "reason", "tries"),
    [
        ((on_the_wire("09_choices_null.http"),), "malformed_answer", 1),
        ((on_the_wire("09_flat_429.http"),), "rate_limited", 1),
        (whole({"code": 503, "msg": "full"}), "error_in_answer", 2),
        (whole({"base_resp": {"status_code": 1002, "status_msg": "rpm"}}), "rate_limited", 1),
        (whole({"base_resp": {"status_code": 1004, "status_msg": "no"}}), "key_refused", 1),
        (whole({"base_resp": {"status_code": 1013, "status_msg": "no"}}), "error_in_answer", 2),
        (whole(b""), "malformed_answer", 1),
        (whole(b"OK", kind="text/plain"), "malformed_answer", 1),
    ],
)
async def test_a_chat_that_is_none_moves_to_the_fallback(
    bring_own: Gateway,
    own: Provider,
    script: Script,
    reason: str,
    tries: int,
    is_stream: bool,
) -> None:
    own.always(script)
    answer = await bring_own.chat(stream=is_stream)
    assert (answer.status, answer.headers["x-byoai-provider"]) == (200, "default")
    assert answer.headers["x-byoai-fallback-reason"] == reason
    assert len(own.requests) == tries


async def test_what_a_vendor_says_of_itself_is_told(gateway: Gateway, default: Provider) -> None:
    default.always(whole({"code": 503, "msg": "the pool is full"}))
    answer = await gateway.chat()
    assert (answer.status, answer.error["message"]) == (503, "the pool is full")


NO_VECTORS = [
    (on_the_wire("10_embeddings_html.http"),),
    whole(b""),
    whole({"object": "list"}),
    whole(b"[1,"),
    whole(b"[]"),
    whole({"code": 500, "msg": "no"}),
]


@pytest.mark.parametrize("script", NO_VECTORS)
async def test_vectors_that_are_none_move_to_the_fallback(
    bring_own: Gateway, own: Provider, script: Script
) -> None:
    own.always(script)
    answer = await bring_own.ask({"model": "m", "input": "i"}, path=EMBEDDINGS)
    assert (answer.status, answer.json) == (200, ANSWERS["/embeddings"])
    assert answer.headers["x-byoai-provider"] == "default"


@pytest.mark.parametrize("script", NO_VECTORS[:3])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/rerank"), ("POST", "/v1/images/generations")],
)
async def test_no_endpoint_answers_with_a_page_or_with_nothing(
    gateway: Gateway, default: Provider, script: Script, method: str, path: str
) -> None:
    default.always(script)
    body: Any = None if method == "GET" else {"model": "m"}
    answer = await gateway.ask(body, path=path, method=method)
    assert (answer.status, answer.error["code"]) == (502, "malformed_answer")


async def test_a_vendors_error_in_mid_stream_ends_it(gateway: Gateway, default: Provider) -> None:
    flat = b'data: {"code":429,"msg":"too many"}\n\n'
    base = b'data: {"choices":[],"base_resp":{"status_code":1002,"status_msg":"rpm"}}\n\n'
    for told in (flat, base):
        default.expect(stream(token("a"), told, finish(), DONE))
        answer = await gateway.chat()
        assert (answer.text, answer.stream_error["code"]) == ("a", "rate_limited")


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_bare_line_with_an_error_ends_a_stream(
    gateway: Gateway, default: Provider, *, is_chunked: bool
) -> None:
    raw = on_the_wire("O1_bare_error_line_in_stream.sse")
    closed = (head(200, {"content-type": "text/event-stream"}), raw, Close())
    default.expect(stream(raw) if is_chunked else closed)
    answer = await gateway.chat()
    assert answer.text == "hel"
    assert answer.stream_error["message"].endswith("CUDA error")


async def test_a_bare_line_with_an_error_before_content_is_a_failure(
    gateway: Gateway, default: Provider
) -> None:
    default.always(stream(b": note\n\n", b'{"error":{"message":"CUDA error"}}\n\n', DONE))
    answer = await gateway.chat()
    assert (answer.status, answer.error["message"]) == (502, "CUDA error")


# -- what is passed on unchanged


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_halves_of_a_character_pass_as_they_came(
    gateway: Gateway, default: Provider, *, is_stream: bool
) -> None:
    name = "12_surrogate_halves.http" if is_stream else "12_surrogate_whole.http"
    default.expect((on_the_wire(name),))
    answer = await gateway.chat(stream=is_stream)
    passed = body_of(name) if is_stream else on_the_wire(name).partition(b"\r\n\r\n")[2]
    assert (answer.status, answer.body) == (200, passed)


async def test_half_a_character_in_one_piece_passes_into_events(
    gateway: Gateway, default: Provider
) -> None:
    default.expect((on_the_wire("12_surrogate_whole.http"),))
    answer = await gateway.chat()
    assert (answer.status, len(answer.events), answer.events[-1]) == (200, 2, b"[DONE]")
    assert rb'"content":"Hello \ud83d"' in answer.events[0].replace(b'": "', b'":"')


@pytest.mark.parametrize(
    ("name", "cost"), [("15_usage_float.http", None), ("15_cost_string.http", 0.01)]
)
async def test_usage_is_read_however_its_figures_are_written(
    gateway: Gateway, default: Provider, name: str, cost: float | None
) -> None:
    default.expect((on_the_wire(name),))
    assert (await gateway.chat()).text == "Hi"
    (record,) = await gateway.records()
    assert (record.prompt_tokens, record.completion_tokens) == (3, 2)
    assert record.cost == cost


@pytest.mark.parametrize("wants_usage", [True, False])
async def test_who_did_not_ask_for_usage_sees_no_word_of_it(
    gateway: Gateway, default: Provider, *, wants_usage: bool
) -> None:
    def nulled(event: bytes) -> bytes:
        return event.replace(b"}\n\n", b', "usage": null}\n\n')

    quoted = chunk({"content": ', "usage": null'})
    events = [token("a"), token("usage"), quoted, finish()]
    timed = chunk(usage=usage(), timings={"prompt_ms": 5})
    default.expect(stream(*map(nulled, events), timed, chunk(usage=usage()), DONE))
    answer = await gateway.chat(stream_options={"include_usage": wants_usage})
    asked = (*map(nulled, events), timed, chunk(usage=usage()), DONE)
    not_asked = (*events, chunk(timings={"prompt_ms": 5}), DONE)
    assert answer.body == b"".join(asked if wants_usage else not_asked)


async def test_a_refusal_with_a_coding_that_is_none_is_read(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(refusal(400, "too hot", headers={"content-encoding": "utf-8"}))
    assert (await gateway.chat()).error["message"] == "too hot"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/responses", {"object": "error", "message": "slow down", "code": 429}),
        ("/v1/responses", {"code": 429, "msg": "slow down", "status": "error"}),
        ("/v1/score", {"code": 429, "msg": "slow down"}),
        ("/v1/embeddings", {"object": "error", "message": "slow down", "code": 429}),
    ],
)
async def test_an_error_in_a_vendors_shape_is_no_answer_of_any_endpoint(
    gateway: Gateway, default: Provider, path: str, said: dict[str, Any]
) -> None:
    default.always(whole(said))
    answer = await gateway.ask({"model": "m", "input": "x"}, path=path)
    assert (answer.status, answer.error["message"]) == (429, THE_OPERATORS)


THE_OPERATORS = "the rate limit of the default provider is exceeded; try again later"


async def test_a_chunk_that_tells_its_state_is_no_error(
    gateway: Gateway, default: Provider
) -> None:
    state = event({"status": "in_progress", "message": "searching"})
    default.expect(stream(state, *chat_events("Hi")))
    answer = await gateway.chat()
    assert (answer.status, answer.text) == (200, "Hi")
    assert answer.headers["x-byoai-attempts"] == "1"
