"""What the scripted provider answers to a client's case, and what it saw of it.

The prompt of a case says what is to happen and names the case: `[[chat openai/tunnel/stream]]`.
Prompts reach a provider unchanged on every path and from every library. A case is complete in
itself: what the provider answers depends on no other case.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from support.provider import Request
from support.provider_script import MODEL, Script, Until, refusal, stream, whole

from . import anthropic_shapes, openai_shapes
from .faults import FAULTS, script_of
from .openai_shapes import PNG

TEXT: Final = "Hello there"
CALLS: Final = (("get_weather", {"city": "Paris"}), ("get_time", {"zone": "CET"}))
CITY: Final = '{"city":"Paris","population":2100000}'
WRONG_KEY: Final = "wrong-key"
_SILENCE: Final = Until(asyncio.Event())
"""Nothing more until the client leaves; no clock is moved, as other cases wait meanwhile."""
_ORDER: Final = re.compile(rb"\[\[(\S+) (\S+)\]\]")


@dataclass(frozen=True, slots=True)
class Order:
    """What one request is to get."""

    does: str = "chat"
    tag: str = ""


def order_of(request: Request) -> Order:
    """Read the order in a request's prompt."""
    found = _ORDER.search(request.body)
    return Order(found[1].decode(), found[2].decode()) if found else Order()


class Answers:
    """Answers requests by their orders and remembers each under its tag."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Request]] = defaultdict(list)

    def __call__(self, request: Request) -> Script:
        """The steps for one request."""
        if request.target.partition("?")[0] == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "scripted"}
            return whole({"object": "list", "data": [model]})
        order = order_of(request)
        self.seen[order.tag].append(request)
        if WRONG_KEY in request.headers.get("authorization", request.headers.get("x-api-key", "")):
            return _wrong_key(request)
        how, _, fault = order.does.partition(":")
        if how == "always" or (how == "once" and len(self.seen[order.tag]) == 1):
            return script_of(FAULTS[fault], is_anthropic=is_anthropic(request))
        if how == "left":
            return (Until(_left(self.seen[order.tag][0])), *_sound(request, "chat"))
        return _sound(request, order.does)


def _left(request: Request) -> asyncio.Event:
    """Set once the client of a request has left: who asks for it is still running by then."""
    left = asyncio.Event()
    request.gone.add_done_callback(lambda _: left.set())
    return left


def is_anthropic(request: Request) -> bool:
    """Whether the call belongs to Anthropic's API."""
    return request.target.startswith("/v1/messages")


def _wrong_key(request: Request) -> Script:
    if is_anthropic(request):
        error = {"type": "authentication_error", "message": "invalid x-api-key"}
        return whole({"type": "error", "error": error}, 401)
    return refusal(401, "Incorrect API key provided.", code="invalid_api_key")


def _sound(request: Request, does: str) -> Script:
    body: Mapping[str, Any] = request.json
    match request.target.partition("?")[0]:
        case "/v1/embeddings":
            return whole(openai_shapes.embeddings(body.get("encoding_format")))
        case "/v1/images/generations":
            return whole(openai_shapes.images())
        case "/v1/messages":
            return _message(body, does, request.body)
        case _:
            return _chat(body, does, request.body)


def _text(body: Mapping[str, Any], does: str, raw: bytes) -> str:
    """The text for an order; it shows whether what matters of the request has arrived."""
    match does:
        case "json_schema":
            return CITY if has_schema(body) else "no schema arrived"
        case "image":
            return "one pixel" if PNG.encode() in raw else "no picture arrived"
        case _:
            return TEXT


def has_schema(body: Mapping[str, Any]) -> bool:
    """Whether the request asks for an object with a city and its population."""
    asked = body.get("response_format") or body.get("output_config") or body
    written = str(asked)
    return "json_schema" in written and "population" in written


def _chat(body: Mapping[str, Any], does: str, raw: bytes) -> Script:
    text = _text(body, does, raw)
    calls: Sequence[tuple[str, Mapping[str, str]]] = CALLS if does == "tools" else ()
    if not body.get("stream"):
        return whole(openai_shapes.chat(None if calls else text, calls))
    if does == "abort":
        return stream(*openai_shapes.text_chunks(text), _SILENCE)
    options: Mapping[str, Any] = body.get("stream_options") or {}
    with_usage = options.get("include_usage") is True
    return stream(*openai_shapes.whole_stream(text, calls, with_usage=with_usage))


def _message(body: Mapping[str, Any], does: str, raw: bytes) -> Script:
    blocks = [anthropic_shapes.text_block(_text(body, does, raw))]
    if does == "tools":
        called = (anthropic_shapes.tool_block(n, *call) for n, call in enumerate(CALLS))
        blocks = list(called)
    if not body.get("stream"):
        reason = anthropic_shapes.stop_reason_of(blocks)
        return whole(anthropic_shapes.message(blocks, reason))
    if does == "abort":
        return stream(*anthropic_shapes.opening(blocks), _SILENCE)
    return stream(*anthropic_shapes.whole_stream(blocks))
