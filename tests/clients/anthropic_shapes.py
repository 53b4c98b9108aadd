"""Answers of Anthropic's Messages API, whole and as the documented sequence of events."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from support.provider_script import MODEL, typed

Block = Mapping[str, Any]
USAGE: Final = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 5,
}


def text_block(text: str) -> Block:
    """A block of text."""
    return {"type": "text", "text": text}


def tool_block(number: int, name: str, arguments: Mapping[str, str]) -> Block:
    """A call of a tool."""
    return {"type": "tool_use", "id": f"toolu_{number:024}", "name": name, "input": arguments}


def message(blocks: Sequence[Block], stop_reason: str | None, **more: object) -> dict[str, Any]:
    """A message with its envelope."""
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": list(blocks),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": USAGE,
        **more,
    }


def stop_reason_of(blocks: Sequence[Block]) -> str:
    """Why a model stops after these blocks."""
    return "tool_use" if any(it["type"] == "tool_use" for it in blocks) else "end_turn"


def opening(blocks: Sequence[Block]) -> tuple[bytes, ...]:
    """The events of a stream up to the end of its last block."""
    events = [typed("message_start", message=message([], None)), typed("ping")]
    for index, block in enumerate(blocks):
        events.extend(block_events(index, block))
    return tuple(events)


def whole_stream(blocks: Sequence[Block]) -> tuple[bytes, ...]:
    """All events of a stream."""
    delta = {"stop_reason": stop_reason_of(blocks), "stop_sequence": None}
    end = typed("message_delta", delta=delta, usage={"output_tokens": 5})
    return (*opening(blocks), end, typed("message_stop"))


def block_events(index: int, block: Block) -> list[bytes]:
    """One block: its start, its content in pieces, and its end."""
    if block["type"] == "text":
        start: Block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": it} for it in pieces(block["text"])]
    else:
        start = {**block, "input": {}}
        written = ["", *pieces(json.dumps(block["input"]))]
        deltas = [{"type": "input_json_delta", "partial_json": it} for it in written]
    return [
        typed("content_block_start", index=index, content_block=start),
        *(typed("content_block_delta", index=index, delta=it) for it in deltas),
        typed("content_block_stop", index=index),
    ]


def pieces(text: str, size: int = 6) -> list[str]:
    """The text as a model would stream it."""
    return [text[at : at + size] for at in range(0, len(text), size)]
