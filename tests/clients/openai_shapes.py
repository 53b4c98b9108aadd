"""Answers of OpenAI's chat, embeddings and images APIs, with the fields the reference names."""

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from support.provider_script import DONE, MODEL, chunk, finish, role, token, usage

from .anthropic_shapes import pieces

Calls = Sequence[tuple[str, Mapping[str, str]]]
VECTOR: Final = (0.25, -0.5, 1.0)
PNG: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
"""A picture of one pixel, in base64."""


def call_of(number: int, name: str, arguments: str) -> dict[str, Any]:
    """A call of a function."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number:024}", "type": "function", "function": function}


def chat(text: str | None, calls: Calls = ()) -> dict[str, Any]:
    """A whole chat answer."""
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    message["annotations"] = []
    if calls:
        message["tool_calls"] = [
            call_of(number, name, json.dumps(arguments))
            for number, (name, arguments) in enumerate(calls)
        ]
    reason = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1741569952,
        "model": MODEL,
        "choices": [choice],
        "usage": usage(12, 5),
        "service_tier": "default",
        "system_fingerprint": "fp_44709d6fcb",
    }


def text_chunks(text: str) -> tuple[bytes, ...]:
    """The role and the text of a streamed chat."""
    return (role(), *(token(it) for it in pieces(text)))


def call_chunks(calls: Calls) -> tuple[bytes, ...]:
    """Parallel calls: each begins with its name, then its arguments come in pieces."""
    events = [chunk({"role": "assistant", "content": None})]
    for index, (name, arguments) in enumerate(calls):
        events.append(chunk({"tool_calls": [{"index": index, **call_of(index, name, "")}]}))
        for piece in pieces(json.dumps(arguments)):
            delta = {"index": index, "function": {"arguments": piece}}
            events.append(chunk({"tool_calls": [delta]}))
    return tuple(events)


def whole_stream(text: str, calls: Calls, *, with_usage: bool) -> tuple[bytes, ...]:
    """All events of a streamed chat; the usage only for a client that asked for it."""
    body = call_chunks(calls) if calls else text_chunks(text)
    counts = (chunk(usage=usage(12, 5)),) if with_usage else ()
    return (*body, finish("tool_calls" if calls else "stop"), *counts, DONE)


def embeddings(encoding: object) -> dict[str, Any]:
    """One vector, as a list of numbers or as little-endian 32-bit floats in base64."""
    packed = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    vector = packed if encoding == "base64" else list(VECTOR)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": MODEL,
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }


def images() -> dict[str, Any]:
    """One generated picture."""
    counts = {"input_tokens": 50, "output_tokens": 50, "total_tokens": 100}
    details = {"input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}
    return {"created": 1713833628, "data": [{"b64_json": PNG}], "usage": {**counts, **details}}
