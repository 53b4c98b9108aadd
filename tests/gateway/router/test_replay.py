import json
from typing import Any

import pytest

from byoai_gateway.router.dialects import DONE, Usage, reader
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.replay import as_events
from support.gateway import Gateway
from support.provider import Provider
from support.provider_script import chat_answer, whole

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TEXT = {
    "object": "text_completion",
    "choices": [{"index": 0, "text": "a", "finish_reason": "stop"}],
}
SAID: dict[str, Any] = {
    "type": "message",
    "id": "m",
    "role": "assistant",
    "status": "completed",
    "content": [],
}
RESPONSE: dict[str, Any] = {
    "id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed",
    "output": [SAID], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
}  # fmt: skip


def events(dialect: Dialect, body: Any, *, hide_usage: bool = True) -> list[bytes]:
    said = as_events(dialect, json.dumps(body, indent=1).encode(), hide_usage=hide_usage)
    assert said.endswith(b"\n\n")
    return said.removesuffix(b"\n\n").split(b"\n\n")


def data(event: bytes) -> Any:
    lines = [it for it in event.split(b"\n") if it.startswith(b"data: ")]
    return json.loads(b"\n".join(it.removeprefix(b"data: ") for it in lines))


@pytest.mark.parametrize("hide_usage", [True, False])
def test_a_message_becomes_a_delta(*, hide_usage: bool) -> None:
    chunk, done = events(Dialect.CHAT, chat_answer(), hide_usage=hide_usage)
    assert done + b"\n\n" == DONE
    told = data(chunk)
    assert told["object"] == "chat.completion.chunk"
    assert told["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "Hello there"},
            "finish_reason": "stop",
        }
    ]
    assert ("usage" in told) is not hide_usage


def test_calls_of_tools_are_numbered() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    calls = data(events(Dialect.CHAT, body)[0])["choices"][0]["delta"]["tool_calls"]
    assert calls == [{"index": 0, **CALL}, {"index": 1, **CALL}]


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (Dialect.CHAT, {"choices": None}),
        (Dialect.CHAT, {"choices": [{"message": {"tool_calls": 5}}]}),
        (Dialect.CHAT, [1]),
        (Dialect.COMPLETION, TEXT),
        (Dialect.RESPONSES, [1]),
        (Dialect.MESSAGES, {"content": "odd"}),
        (Dialect.MESSAGES, [1]),
    ],
)
def test_what_needs_no_change_or_allows_none_is_one_event(dialect: Dialect, body: Any) -> None:
    assert data(events(dialect, body)[0]) == body


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("completed", "response.completed"),
        ("incomplete", "response.incomplete"),
        ("cancelled", "response.incomplete"),
    ],
)
def test_a_response_is_the_last_event_of_its_stream(status: str, kind: str) -> None:
    (event,) = events(Dialect.RESPONSES, {"status": status})
    assert event.startswith(b"event: %b\n" % kind.encode())
    assert data(event) == {
        "type": kind,
        "sequence_number": 0,
        "response": {"status": status},
    }


MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "a\nb"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": [1, "ü"]}},
    ],
    "stop_reason": "tool_use", "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip


def test_a_message_is_said_block_by_block() -> None:
    told = events(Dialect.MESSAGES, MESSAGE)
    said = [data(it) for it in told]
    for event, body in zip(told, said, strict=True):
        assert event.startswith(b"event: %b\n" % body["type"].encode())
    start, *blocks, delta, stop = said
    assert start["message"] == MESSAGE | {"content": [], "stop_reason": None}
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"] == MESSAGE["usage"]
    assert stop == {"type": "message_stop"}
    begun = [it["content_block"] for it in blocks if it["type"] == "content_block_start"]
    assert begun == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    ]
    assert [it["index"] for it in blocks if it["type"] == "content_block_stop"] == [0, 1, 2, 3]
    pieces = [(it["index"], it["delta"]) for it in blocks if "delta" in it]
    *others, (index, of_input) = pieces
    assert others == [
        (0, {"type": "thinking_delta", "thinking": "hm"}),
        (0, {"type": "signature_delta", "signature": "s"}),
        (2, {"type": "text_delta", "text": "a\nb"}),
    ]
    assert (index, of_input["type"]) == (3, "input_json_delta")
    assert json.loads(of_input["partial_json"]) == {"x": [1, "ü"]}


def test_what_is_said_of_a_message_is_read_as_a_whole_answer() -> None:
    read = reader(Dialect.MESSAGES)
    seen = [read(it + b"\n\n") for it in events(Dialect.MESSAGES, MESSAGE)]
    assert any(it.has_content for it in seen)
    assert seen[-2].usage == Usage(3, 2)
    assert (bool(seen[-1].finished), seen[-1].is_done) == (True, True)
    assert not any(it.error for it in seen)


async def test_a_message_that_was_to_be_streamed_comes_as_events(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(whole(MESSAGE))
    body: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [], "stream": True}
    answer = await gateway.ask(body, path="/v1/messages")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert json.loads(answer.events[0])["type"] == "message_start"
    assert json.loads(answer.events[-1])["type"] == "message_stop"
    (record,) = await gateway.records()
    assert (record.outcome, record.completion_tokens) == ("ok", 2)


async def test_the_official_client_gets_what_a_provider_that_does_not_stream_said(
    gateway: Gateway, default: Provider
) -> None:
    limits = {"x-ratelimit-remaining-requests": "5"}
    default.expect(*[whole(chat_answer(), headers=limits)] * 2, whole(TEXT), whole(RESPONSE))
    answer = await gateway.chat()
    assert (answer.text, answer.events[-1]) == ("Hello there", b"[DONE]")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-byoai-provider"] == "default"
    assert limits.items() <= dict(answer.headers).items()
    async with gateway.client(max_retries=0) as client:
        chat = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert [it.choices[0].delta.content async for it in chat] == ["Hello there"]
        text = await client.completions.create(model="m", prompt="p", stream=True)
        assert [it.choices[0].text async for it in text] == ["a"]
        response = await client.responses.create(model="m", input="p", stream=True)
        assert [it.type async for it in response] == ["response.completed"]
    records = await gateway.records()
    assert [it.outcome for it in records] == ["ok"] * 4
    assert records[0].completion_tokens == 2
