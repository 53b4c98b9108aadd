"""How cases are written: requests, answers, and where which difference is allowed."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fidelity.model import Ask, Case, Difference, Route
from support.provider_script import DONE, Script, Step, head, stream, whole

Differs = Mapping[Route, tuple[Difference, ...]]
NOTHING: Final[Differs] = {}

CHAT: Final = Ask(
    "/chat/completions",
    b'{"model":"provider-model","messages":[{"role":"user","content":"Hi"}]}',
)
STREAM: Final = Ask(
    "/chat/completions",
    b'{"model":"provider-model","messages":[{"role":"user","content":"Hi"}],"stream":true,'
    b'"stream_options":{"include_usage":true}}',
    is_stream=True,
)
PLAIN_STREAM: Final = Ask(
    "/chat/completions",
    b'{"model":"provider-model","messages":[{"role":"user","content":"Hi"}],"stream":true}',
    is_stream=True,
)
BOTH: Final = ((CHAT, "whole"), (STREAM, "streamed"))

ROLE: Final = b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'
STOP: Final = b'{"index":0,"delta":{},"finish_reason":"stop"}'
USAGE: Final = b'{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'


def compact(value: object) -> bytes:
    """JSON without blanks, as it leaves a client."""
    return json.dumps(value, separators=(",", ":")).encode()


def asked(path: str, **fields: Any) -> Ask:
    """A JSON request of an endpoint."""
    return Ask(path, compact(fields), is_stream=fields.get("stream") is True)


def everywhere(*differences: Difference) -> Differs:
    """The same on every route."""
    return dict.fromkeys(Route, differences)


def on(routes: Iterable[Route], *differences: Difference) -> Differs:
    """The same on some routes."""
    return dict.fromkeys(routes, differences)


def chunk(choices: bytes, more: bytes = b"") -> bytes:
    """One event of a streamed chat, in exactly these bytes."""
    return (
        b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"provider-model",'
        b'"choices":[' + choices + b"]" + more + b"}\n\n"
    )


def delta(fields: bytes) -> bytes:
    """One event with content."""
    return chunk(b'{"index":0,"delta":' + fields + b',"finish_reason":null}')


def text(words: str) -> bytes:
    """One event with text."""
    return delta(b'{"content":' + json.dumps(words).encode() + b"}")


COUNTED: Final = chunk(b"", b',"usage":' + USAGE)
END: Final = (chunk(STOP), COUNTED, DONE)
HELLO: Final = (chunk(ROLE), text("Hel"), text("lo"), *END)


def answer(message: bytes, more: bytes = b',"usage":' + USAGE) -> bytes:
    """A whole chat, in exactly these bytes."""
    return (
        b'{"id":"c1","object":"chat.completion","created":1,"model":"provider-model","choices":'
        b'[{"index":0,"message":' + message + b',"finish_reason":"stop"}]' + more + b"}"
    )


SOUND: Final = answer(b'{"role":"assistant","content":"Hello"}')


def in_one_piece(
    name: str,
    body: bytes,
    ask: Ask = CHAT,
    *,
    status: int = 200,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
    differs: Differs = NOTHING,
    **more: Any,
) -> Case:
    """A case whose answer has a length."""
    return Case(name, ask, whole(body, status, headers, kind), differs, **more)


def in_events(
    name: str,
    *events: Step,
    ask: Ask = STREAM,
    headers: Mapping[str, str] | None = None,
    differs: Differs = NOTHING,
    **more: Any,
) -> Case:
    """A case whose answer is a stream in chunks, one for each event."""
    return Case(name, ask, stream(*events, headers=headers), differs, **more)


def raw(name: str, ask: Ask, *steps: Step, differs: Differs = NOTHING, **more: Any) -> Case:
    """A case whose answer is exactly these bytes, head and framing too."""
    script: Script = steps
    return Case(name, ask, script, differs, **more)


def start(headers: Mapping[str, str], status: int = 200) -> bytes:
    """The head of an answer."""
    return head(status, headers)
