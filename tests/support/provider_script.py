"""What a scripted provider is told to do, and the answers a real one would give.

An answer is a sequence of steps. Bytes are written as they are; every other step is one way of
being slow, stuck or broken. The functions make whole answers, with HTTP's framing, out of events.
"""

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from support.loop_clock import NEVER_S


@dataclass(frozen=True, slots=True)
class Pause:
    """Some seconds of silence by the loop's clock, which is moved on instead of waited for.

    Several `times` let a timer fire that is set again each time.
    """

    seconds: float
    times: int = 1


@dataclass(frozen=True, slots=True)
class Until:
    """Silence until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Hang:
    """Silence until the client has gone; the loop's clock is moved on by so many seconds at once.

    The default is beyond the timers of a gateway under test. With 0 none of them fires.
    """

    seconds: float = 1.2 * NEVER_S


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is closed in order, once all is written."""


@dataclass(frozen=True, slots=True)
class Die:
    """The connection ends without a word, as when a process is killed; nothing follows."""

    with_reset: bool = False


@dataclass(frozen=True, slots=True)
class Endless:
    """The same bytes again and again, no faster than they are read, until the client has gone."""

    data: bytes


Step = bytes | Pause | Until | Hang | Close | Die | Endless
Script = tuple[Step, ...]

DONE: Final = b"data: [DONE]\n\n"
MODEL: Final = "provider-model"
Json = Mapping[str, Any]


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """A response's head; the reason phrase is nobody's business."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Order\r\n{lines}\r\n".encode()


def whole(
    body: Json | bytes,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    kind: str = "application/json",
) -> Script:
    """An answer with its length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    framing = {"content-type": kind, "content-length": str(len(data))}
    return (head(status, framing | dict(headers or {})) + data,)


def refusal(
    status: int,
    message: str = "no",
    headers: Mapping[str, str] | None = None,
    code: str | int | None = None,
    kind: str = "some_error",
) -> Script:
    """An error as OpenAI writes it."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return whole({"error": error}, status, headers)


def half(body: Json, headers: Mapping[str, str] | None = None) -> Script:
    """An answer that promises its whole length and dies after the first half."""
    (data,) = whole(body, headers=headers)
    assert isinstance(data, bytes)
    end_of_head = data.index(b"\r\n\r\n") + 4
    return data[: (end_of_head + len(data)) // 2], Die()


def stream(*events: Step, headers: Mapping[str, str] | None = None) -> Script:
    """An SSE stream in chunks, each piece of bytes one chunk, with its proper end.

    What follows `Die`, `Close`, `Hang` or `Endless` is never reached, the end included.
    """
    framing = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
    steps = [framed(event) for event in events]
    return (head(200, framing | dict(headers or {})), *steps, b"0\r\n\r\n")


def stream_to_close(*events: Step, headers: Mapping[str, str] | None = None) -> Script:
    """An SSE stream without framing: the closed connection is its end."""
    framing = {"content-type": "text/event-stream", "connection": "close"}
    return (head(200, framing | dict(headers or {})), *events, Close())


def framed(step: Step) -> Step:
    """A step of a body in HTTP's chunked coding."""
    match step:
        case bytes():
            return b"%x\r\n%b\r\n" % (len(step), step)
        case Endless(data):
            return Endless(b"%x\r\n%b\r\n" % (len(data), data))
        case _:
            return step


def bytewise(steps: Iterable[Step]) -> Iterator[Step]:
    """The same steps with every byte written by itself."""
    for step in steps:
        if isinstance(step, bytes):
            yield from (step[at : at + 1] for at in range(len(step)))
        else:
            yield step


def event(data: Json | bytes, name: str | None = None) -> bytes:
    """One SSE event; `name` as Anthropic and the Responses API give it."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + body + b"\n\n"


def chunk(
    delta: Json | None = None, finish: str | None = None, usage: Json | None = None, **more: Any
) -> bytes:
    """One chunk of a streamed chat; without delta and finish it only carries the usage."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    is_usage_only = delta is None and finish is None
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [] if is_usage_only else [choice],
    }
    return event(body | ({} if usage is None else {"usage": usage}) | more)


def role() -> bytes:
    """The first chunk of most providers: it says who speaks, and nothing yet."""
    return chunk({"role": "assistant", "content": ""})


def token(text: str) -> bytes:
    """One token."""
    return chunk({"content": text})


def finish(reason: str = "stop") -> bytes:
    """The chunk that ends an answer."""
    return chunk({}, reason)


def long_token(size: int = 5_000_000) -> bytes:
    """One event that is a single line of about this many bytes."""
    return token("x" * size)


def error_event(message: str = "it broke", code: str | int = 502) -> bytes:
    """An error in the middle of a stream, as OpenRouter sends it."""
    error = {"code": code, "message": message}
    return chunk({"content": ""}, "error", error=error)


def usage(prompt: int = 3, completion: int = 2, **more: Any) -> dict[str, Any]:
    """OpenAI's count of tokens."""
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {**counts, "total_tokens": prompt + completion, **more}


def chat_events(*tokens: str) -> tuple[bytes, ...]:
    """A whole streamed chat."""
    return (role(), *(token(it) for it in tokens), finish(), chunk(usage=usage()), DONE)


def chat_stream(*tokens: str) -> Script:
    """A whole streamed chat as it should be."""
    return stream(*chat_events(*tokens))


def chat_answer(text: str = "Hello there", **more: Any) -> dict[str, Any]:
    """A whole chat answer that is not streamed."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    common = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return {**common, "choices": [choice], "usage": usage(), **more}


def completion_events(*tokens: str) -> tuple[bytes, ...]:
    """A whole stream of the old completions."""
    common = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}

    def piece(text: str, reason: str | None) -> bytes:
        return event({**common, "choices": [{"index": 0, "text": text, "finish_reason": reason}]})

    return (*(piece(it, None) for it in tokens), piece("", "stop"), DONE)


def messages_events(*tokens: str) -> tuple[bytes, ...]:
    """A whole stream as Anthropic sends it."""
    start = {"id": "msg_1", "type": "message", "role": "assistant", "usage": {"input_tokens": 3}}
    block = {"index": 0, "content_block": {"type": "text", "text": ""}}
    end = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": len(tokens)}}
    deltas = [{"index": 0, "delta": {"type": "text_delta", "text": it}} for it in tokens]
    return (
        typed("message_start", message=start),
        typed("ping"),
        typed("content_block_start", **block),
        *(typed("content_block_delta", **it) for it in deltas),
        typed("content_block_stop", index=0),
        typed("message_delta", **end),
        typed("message_stop"),
    )


def responses_events(*tokens: str) -> tuple[bytes, ...]:
    """A whole stream of the Responses API."""
    counts = {"input_tokens": 3, "output_tokens": len(tokens), "total_tokens": 3 + len(tokens)}
    common = {"id": "resp_1", "object": "response", "model": MODEL}
    deltas = [{"item_id": "msg_1", "output_index": 0, "delta": it} for it in tokens]
    return (
        typed("response.created", response={**common, "status": "in_progress"}),
        *(typed("response.output_text.delta", **it) for it in deltas),
        typed("response.completed", response={**common, "status": "completed", "usage": counts}),
    )


def typed(name: str, **more: Any) -> bytes:
    """An event whose name stands in its data, too."""
    return event({"type": name, **more}, name)
