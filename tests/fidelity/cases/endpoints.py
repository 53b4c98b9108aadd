"""Good answers of every other endpoint: completions, responses, messages, vectors, sound, images."""

import json
from dataclasses import replace
from typing import Any, Final

from fidelity.cases.building import (
    asked,
    compact,
    in_events,
    in_one_piece,
    on,
)
from fidelity.differences import OWN_LIST, QUERY_DROPPED, UNSUPPORTED, USERS_LIST
from fidelity.model import Ask, Case, Route
from support.provider_script import (
    DONE,
    completion_events,
    event,
    messages_events,
    responses_events,
    typed,
)

MODEL: Final = "provider-model"
OPTIONS: Final = {"stream": True, "stream_options": {"include_usage": True}}
NOT_AT_OPENROUTER: Final[dict[str, Any]] = {"differs": on((Route.OPENROUTER,), UNSUPPORTED)}


def form(*parts: tuple[str, bytes], path: str = "/audio/transcriptions") -> Ask:
    """An upload."""
    body = b"".join(b"--XbX\r\n%b\r\n\r\n%b\r\n" % (head.encode(), data) for head, data in parts)
    return Ask(path, body + b"--XbX--\r\n", content_type="multipart/form-data; boundary=XbX")


NAMED: Final = 'Content-Disposition: form-data; name="{}"'
WAV: Final = (
    'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav',
    b"RIFF\x00\xff\r\n--Xb",
)
WHISPER: Final = (NAMED.format("model"), b"whisper")
SPEECH: Final = form(WHISPER, WAV)

COMPLETION: Final = asked("/completions", model=MODEL, prompt="Hi")
COMPLETION_STREAM: Final = asked("/completions", model=MODEL, prompt="Hi", **OPTIONS)
RESPONSE: Final = asked("/responses", model=MODEL, input="Hi")
RESPONSE_STREAM: Final = asked("/responses", model=MODEL, input="Hi", stream=True)
MESSAGE: Final = asked("/messages", model=MODEL, max_tokens=9, messages=[])
MESSAGE_STREAM: Final = asked("/messages", model=MODEL, max_tokens=9, messages=[], stream=True)
VECTOR: Final = asked("/embeddings", model="vectors", input="Hi", encoding_format="float")

ANSWERED: Final[dict[str, Any]] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": MODEL,
    "status": "completed",
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hi", "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
}
SAID: Final[dict[str, Any]] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": MODEL,
    "content": [
        {"type": "thinking", "thinking": "Let me see", "signature": "x=="},
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "toolu_1", "name": "find", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1},
}
FUNCTION: Final = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f"}
TOOL_BLOCK: Final[dict[str, Any]] = {
    "type": "tool_use",
    "id": "toolu_1",
    "name": "find",
    "input": {},
}
TOOL_EVENTS: Final = (
    typed("message_start", message={"id": "msg_1", "type": "message", "usage": {"input_tokens": 3}}),
    typed("content_block_start", index=0, content_block=TOOL_BLOCK),
    typed("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"a"'}),
    typed("ping"),
    typed("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": ": 1}"}),
    typed("content_block_stop", index=0),
    typed("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 7}),
    typed("message_stop"),
)  # fmt: skip
FAILED: Final = {"code": "server_error", "message": "The model failed"}


def anthropics(ask: Ask) -> Ask:
    """A request as Anthropic's clients send it, which announce their retries, too."""
    headers = (*ask.headers, ("anthropic-version", "2023-06-01"))
    return replace(ask, headers=headers, key_header="x-api-key")


def listed(numbers: object) -> bytes:
    """Two vectors."""
    data = [{"object": "embedding", "index": index, "embedding": numbers} for index in (0, 1)]
    return compact({"object": "list", "data": data, "model": "vectors", "usage": {"prompt_tokens": 4, "total_tokens": 4}})  # fmt: skip


MODELS: Final = Ask("/models", method="GET")
OFFERED: Final = {
    "object": "list",
    "data": [{"id": "provider-model", "object": "model", "owned_by": "fake", "x": 3.0}],
}

OFFERED_MODEL: Final = Ask("/models/provider-model", method="GET")


WHOLE: Final = (
    in_one_piece(
        "completion whole",
        compact({"id": "c", "object": "text_completion", "created": 1, "model": MODEL, "choices": [
            {"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}]}),
        COMPLETION,
    ),
    in_one_piece("response whole", json.dumps(ANSWERED, indent=2).encode(), RESPONSE),
    in_one_piece(
        "response incomplete whole",
        compact({**ANSWERED, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
        RESPONSE,
    ),
    in_one_piece("message whole", compact(SAID), MESSAGE),
    in_one_piece("message whole, with x-api-key", compact(SAID), anthropics(MESSAGE)),
    in_one_piece("count_tokens", compact({"input_tokens": 7}), asked("/messages/count_tokens", model=MODEL, messages=[]), **NOT_AT_OPENROUTER),
    in_one_piece("embeddings as floats", listed([0.5, -1e-7, 3.0, 1e3]), VECTOR),
    in_one_piece("embeddings as base64", listed("AAAAPwAAgL8="), asked("/embeddings", model="vectors", input=["Hi", "Ho"], encoding_format="base64")),
    in_one_piece("embeddings of tokens", listed([]), asked("/embeddings", model="vectors", input=[[1, 2], [3]])),
    in_one_piece("rerank", compact({"results": [{"index": 1, "relevance_score": 0.9}]}), asked("/rerank", model=MODEL, query="q", documents=["a", "b"])),
    in_one_piece("image as base64", compact({"created": 1, "data": [{"b64_json": "iVBO" * 9}]}), asked("/images/generations", model="pictures", prompt="p"), **NOT_AT_OPENROUTER),
    in_one_piece("speech", b"ID3\x00\xff\xfb" * 999, asked("/audio/speech", model="speech", input="Hi", voice="alloy"), kind="audio/mpeg"),
    in_one_piece("transcription as JSON", compact({"text": "héllo"}), SPEECH, **NOT_AT_OPENROUTER),
    in_one_piece("transcription as text", "héllo\n".encode(), SPEECH, kind="text/plain; charset=utf-8", **NOT_AT_OPENROUTER),
    in_one_piece("transcription as subtitles", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n", SPEECH, kind="application/x-subrip", **NOT_AT_OPENROUTER),
    in_one_piece("translation", compact({"text": "hello"}), form(WHISPER, WAV, path="/audio/translations"), **NOT_AT_OPENROUTER),
)  # fmt: skip

STREAMED: Final = (
    in_events("completion streamed", *completion_events("Hel", "lo"), ask=COMPLETION_STREAM),
    in_events("response streamed", *responses_events("Hel", "lo"), ask=RESPONSE_STREAM),
    in_events(
        "response with reasoning and a tool streamed",
        typed("response.created", response={"id": "r", "status": "in_progress"}, sequence_number=0),
        typed(
            "response.output_item.added", output_index=0, item={"type": "reasoning", "summary": []}
        ),
        typed("response.reasoning_summary_text.delta", output_index=0, delta="Let me"),
        typed("response.output_item.added", output_index=1, item=FUNCTION),
        typed("response.function_call_arguments.delta", output_index=1, delta='{"a"'),
        typed("response.function_call_arguments.done", output_index=1, arguments='{"a":1}'),
        typed("response.vendor.unknown", anything=[1]),
        typed("response.completed", response={**ANSWERED}),
        ask=RESPONSE_STREAM,
    ),
    in_events(
        "response incomplete streamed",
        *responses_events("Hi")[:-1],
        typed("response.incomplete", response={**ANSWERED, "status": "incomplete"}),
        ask=RESPONSE_STREAM,
    ),
    in_events(
        "response failed streamed",
        *responses_events("Hi")[:-1],
        typed("response.failed", response={**ANSWERED, "status": "failed", "error": FAILED}),
        ask=RESPONSE_STREAM,
    ),
    in_events("response streamed with DONE", *responses_events("Hi"), DONE, ask=RESPONSE_STREAM),
    in_events("message streamed", *messages_events("Hel", "lo"), ask=MESSAGE_STREAM),
    in_events(
        "message streamed, with x-api-key",
        *messages_events("Hel", "lo"),
        ask=anthropics(MESSAGE_STREAM),
    ),
    in_events("message with a tool streamed", *TOOL_EVENTS, ask=MESSAGE_STREAM),
    in_events(
        "message without event names streamed",
        *(event(it.partition(b"data: ")[2].strip()) for it in messages_events("Hi")),
        ask=MESSAGE_STREAM,
    ),
    in_events(
        "speech as events",
        event({"type": "speech.audio.delta", "audio": "UklG"}),
        event({"type": "speech.audio.done"}),
        ask=asked("/audio/speech", model="speech", input="Hi", voice="alloy", stream_format="sse"),
    ),
    in_events(
        "image as events",
        typed("image_generation.partial_image", b64_json="iVBO", partial_image_index=0),
        typed("image_generation.completed", b64_json="iVBO"),
        ask=asked("/images/generations", model="pictures", prompt="p", stream=True),
        **NOT_AT_OPENROUTER,
    ),
)

CASES: Final[tuple[Case, ...]] = (
    *WHOLE,
    *STREAMED,
    in_one_piece(
        "models",
        compact(OFFERED),
        MODELS,
        differs={
            **on((Route.DEFAULT, Route.TUNNEL), OWN_LIST),
            **on((Route.OPENROUTER,), USERS_LIST),
        },
    ),
    in_one_piece(
        "one model",
        compact({"id": "provider-model", "object": "model", "owned_by": "fake", "x": 3.0}),
        OFFERED_MODEL,
        differs={
            **on((Route.DEFAULT, Route.TUNNEL), OWN_LIST),
            **on((Route.OPENROUTER,), UNSUPPORTED),
        },
    ),
    in_one_piece(
        "a query of Anthropic's clients",
        compact(SAID),
        anthropics(replace(MESSAGE, path="/messages?beta=true")),
        differs=on((Route.DEFAULT, Route.TUNNEL), QUERY_DROPPED),
    ),
    in_one_piece(
        "a query",
        compact({"object": "list", "data": []}),
        Ask("/embeddings?a=b", VECTOR.body),
        has_sdk=False,
        differs=on((Route.DEFAULT, Route.TUNNEL), QUERY_DROPPED),
    ),
)
