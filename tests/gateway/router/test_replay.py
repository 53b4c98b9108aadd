import json
from typing import Any

import pytest

from byoai_gateway.router.dialects import DONE
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
        (Dialect.MESSAGES, {"type": "message"}),
    ],
)
def test_what_needs_no_change_or_allows_none_is_one_event(dialect: Dialect, body: Any) -> None:
    assert data(events(dialect, body)[0]) == body


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_response_is_the_last_event_of_its_stream(status: str) -> None:
    (event,) = events(Dialect.RESPONSES, {"status": status})
    assert event.startswith(b"event: response.%b\n" % status.encode())
    assert data(event) == {
        "type": f"response.{status}",
        "sequence_number": 0,
        "response": {"status": status},
    }


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
