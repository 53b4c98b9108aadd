"""What single events say, in each dialect, and how an error is said in it."""

import msgspec
import pytest

from byoai_gateway.router.dialects import (
    MalformedEvent,
    Seen,
    Usage,
    error_event,
    reader,
)
from byoai_gateway.router.endpoints import Dialect
from byoai_shared.api_errors import ApiError

CONTENT = Seen(has_content=True)
NOTHING = Seen()
FINISH = Seen(finished=(0,))


def delta(inner: str, finish: str = "null") -> str:
    return f'{{"choices":[{{"index":0,"delta":{inner},"finish_reason":{finish}}}]}}'


@pytest.mark.parametrize(
    ("dialect", "data", "seen"),
    [
        (Dialect.CHAT, delta('{"role":"assistant","content":""}'), NOTHING),
        (Dialect.CHAT, delta('{"content":null}'), NOTHING),
        (Dialect.CHAT, delta('{"content":"a"}'), CONTENT),
        (Dialect.CHAT, delta('{"tool_calls":[{"index":0}]}'), CONTENT),
        (Dialect.CHAT, delta('{"reasoning_content":"a"}'), CONTENT),
        (Dialect.CHAT, delta('{"reasoning":"a"}'), CONTENT),
        (Dialect.CHAT, delta('{"refusal":"no"}'), CONTENT),
        (Dialect.CHAT, delta("{}", '"stop"'), FINISH),
        (Dialect.CHAT, delta("{}", '["odd"]'), FINISH),
        (Dialect.CHAT, '{"choices":[{"index":2,"finish_reason":"stop"}]}', Seen(finished=(2,))),
        (Dialect.CHAT, '{"choices":[{"index":"odd","finish_reason":"stop"}]}', FINISH),
        (Dialect.CHAT, '{"choices":[],"usage":null,"error":null}', NOTHING),
        (Dialect.CHAT, "[DONE]", Seen(is_done=True)),
        (Dialect.COMPLETION, '{"choices":[{"text":"a"}]}', CONTENT),
        (Dialect.COMPLETION, '{"choices":[{"text":""}]}', NOTHING),
        (Dialect.RESPONSES, '{"type":"response.created","response":{"error":null}}', NOTHING),
        (Dialect.RESPONSES, '{"type":"response.output_text.delta","delta":"a"}', CONTENT),
        (Dialect.RESPONSES, '{"type":"x","item":{"type":"message","content":[]}}', NOTHING),
        (Dialect.RESPONSES, '{"type":"x","item":{"type":"function_call"}}', CONTENT),
        (Dialect.RESPONSES, '{"type":"response.incomplete","response":{}}', FINISH),
        (Dialect.RESPONSES, '{"type":"response.cancelled","response":{}}', FINISH),
        (Dialect.MESSAGES, '{"type":"ping"}', NOTHING),
        (
            Dialect.MESSAGES,
            '{"type":"content_block_start","content_block":{"type":"text","text":""}}',
            NOTHING,
        ),
        (
            Dialect.MESSAGES,
            '{"type":"content_block_start","content_block":{"type":"tool_use"}}',
            CONTENT,
        ),
        (Dialect.MESSAGES, '{"type":"content_block_delta","delta":{"text":"a"}}', CONTENT),
        (Dialect.MESSAGES, '{"type":"message_delta","delta":{"stop_reason":"end_turn"}}', FINISH),
        (Dialect.MESSAGES, '{"type":"message_stop"}', Seen(finished=(0,), is_done=True)),
    ],
)
def test_an_event_is_read(dialect: Dialect, data: str, seen: Seen) -> None:
    for end in ("\n\n", "\r\n\r\n"):
        assert reader(dialect)(f"data: {data}{end}".encode()) == seen


@pytest.mark.parametrize("event", [b": OPENROUTER PROCESSING\n\n", b"\n\n", b"event: x\n\n"])
def test_what_carries_no_data_is_a_comment(event: bytes) -> None:
    for dialect in (Dialect.CHAT, Dialect.RESPONSES, Dialect.MESSAGES):
        assert reader(dialect)(event).is_comment


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":[]}\n\n',
        b"{not json}\n\n",
        b'{"code":200,"msg":"ok"}\n\n',
        b'data: {"choices":[{"delta":{}}],"base_resp":{"status_code":0,"status_msg":""}}\n\n',
        b'data: {"code":0,"msg":"ok"}\n\n',
    ],
)
def test_what_only_looks_like_an_error_is_none(event: bytes) -> None:
    assert reader(Dialect.CHAT)(event).error is None


@pytest.mark.parametrize("half", [rb"\ud83d", rb"\ude00"])
def test_half_a_surrogate_pair_is_content(half: bytes) -> None:
    chat = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % half
    delta = b'data: {"type":"response.output_text.delta","delta":"%b"}\n\n' % half
    block = b'data: {"type":"content_block_delta","delta":{"text":"%b"}}\n\n' % half
    assert reader(Dialect.CHAT)(chat) == CONTENT
    assert reader(Dialect.RESPONSES)(delta) == CONTENT
    assert reader(Dialect.MESSAGES)(block) == CONTENT


@pytest.mark.parametrize(
    ("dialect", "event", "error"),
    [
        (Dialect.CHAT, b'data: {"error":"text"}\n\n', b'"text"'),
        (Dialect.CHAT, b'data: {"choices":[{"error":{"code":1}}]}\n\n', b'{"code":1}'),
        (Dialect.CHAT, b'error: {"code":500}\n\n', b'{"code":500}'),
        (Dialect.CHAT, b'event: error\ndata: {"message":"x"}\n\n', b'{"message":"x"}'),
        (Dialect.CHAT, b'{"error":{"code":1}}\n\n', b'{"code":1}'),
        (Dialect.CHAT, b'{\n "error": {"code":1}\n}\n\n', b'{"code":1}'),
        (Dialect.CHAT, b'{"error":{"code":1}}\ndata: [DONE]\n\n', b'{"code":1}'),
        (Dialect.CHAT, b'data: {"code":7,"msg":"m"}\n\n', b'{"code":7,"message":"m","type":null}'),
        (
            Dialect.CHAT,
            b'data: {"choices":[],"base_resp":{"status_code":1002,"status_msg":"m"}}\n\n',
            b'{"code":429,"message":"m","type":null}',
        ),
        (
            Dialect.RESPONSES,
            b'data: {"code":7,"msg":"m"}\n\n',
            b'{"code":7,"message":"m","type":null}',
        ),
        (
            Dialect.MESSAGES,
            b'data: {"code":7,"msg":"m"}\n\n',
            b'{"code":7,"message":"m","type":null}',
        ),
        (
            Dialect.RESPONSES,
            b'data: {"type":"error","code":"x"}\n\n',
            b'{"type":"error","code":"x"}',
        ),
        (
            Dialect.RESPONSES,
            b'data: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n',
            b'{"code":"x"}',
        ),
        (
            Dialect.MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"x"}}\n\n',
            b'{"type":"x"}',
        ),
    ],
)
def test_an_error_is_seen(dialect: Dialect, event: bytes, error: bytes) -> None:
    seen = reader(dialect)(event).error
    assert seen is not None
    assert bytes(seen) == error


@pytest.mark.parametrize(
    ("dialect", "data", "usage"),
    [
        (
            Dialect.CHAT,
            '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"cost":0.5}}',
            Usage(1, 2, 0.5),
        ),
        (Dialect.CHAT, '{"choices":[],"usage":{"prompt_tokens":"many"}}', None),
        (
            Dialect.CHAT,
            '{"choices":[],"usage":{"prompt_tokens":3.0,"completion_tokens":"2","cost":"0.01"}}',
            Usage(3, 2, 0.01),
        ),
        (
            Dialect.CHAT,
            '{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":2}}',
            Usage(None, 2),
        ),
        (Dialect.CHAT, '{"choices":[],"usage":{"prompt_tokens":2.5,"cost":true}}', None),
        (Dialect.CHAT, '{"choices":[],"usage":{"prompt_tokens":2147483648,"cost":"nan"}}', None),
        (Dialect.CHAT, '{"choices":[],"usage":{"prompt_tokens":1e999,"cost":"inf"}}', None),
        (
            Dialect.RESPONSES,
            '{"type":"response.completed","response":{"usage":{"input_tokens":1}}}',
            Usage(1),
        ),
        (
            Dialect.MESSAGES,
            '{"type":"message_start","message":{"usage":{"input_tokens":3}}}',
            Usage(3),
        ),
        (Dialect.MESSAGES, '{"type":"message_delta","usage":{"output_tokens":4}}', Usage(None, 4)),
    ],
)
def test_usage_is_read_under_each_name(dialect: Dialect, data: str, usage: Usage | None) -> None:
    assert reader(dialect)(f"data: {data}\n\n".encode()).usage == usage


@pytest.mark.parametrize("data", [b"{", b"text", b"5", b'{"choices":1}', b"[" * 100_000])
def test_what_cannot_be_read_is_refused_and_not_quoted(data: bytes) -> None:
    with pytest.raises(MalformedEvent, match=r"^an event of it "):
        reader(Dialect.CHAT)(b"data: " + data + b"\n\n")


@pytest.mark.parametrize("dialect", [it for it in Dialect if it is not Dialect.PLAIN])
def test_our_error_is_an_error_in_each_dialect(dialect: Dialect) -> None:
    error = ApiError("it broke", "server_error", "truncated")
    seen = reader(dialect)(error_event(dialect, error, 502)).error
    assert seen is not None
    word = "api_error" if dialect is Dialect.MESSAGES else "server_error"
    expected = msgspec.structs.replace(error, type=word)
    assert msgspec.json.decode(seen, type=ApiError) == expected
