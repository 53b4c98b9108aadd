"""OpenRouter on loopback: its documented answers and its documented faults, replayed.

A fault is ordered by the model's name, `fault/credits`, so that a request through a whole gateway
can order one; or with `instead`, for a path. It notes every request. Keys that it does not know
are refused, apart from `GET /models`, which is public there too.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from support.loop_clock import NEVER_S, pass_time
from support.provider_script import messages_events, responses_events

BASE_PATH: Final = "/api/v1"
KEY: Final = "sk-or-v1-of-a-test"
MANAGEMENT_KEY: Final = "sk-or-v1-management"
GENEROUS: Final[Mapping[str, Any]] = {
    "label": "sk-or-v1-0e6...1c96",
    "limit": 100,
    "limit_remaining": 74.5,
    "limit_reset": "monthly",
    "usage": 25.5,
    "usage_daily": 25.5,
    "usage_weekly": 25.5,
    "usage_monthly": 25.5,
    "byok_usage": 0,
    "is_free_tier": False,
    "is_management_key": False,
    "is_provisioning_key": False,
    "expires_at": None,
    "rate_limit": {"requests": -1, "interval": "10s", "note": "deprecated"},
}
COMMENT: Final = b": OPENROUTER PROCESSING\n\n"
USAGE: Final = {
    "prompt_tokens": 13,
    "completion_tokens": 2,
    "total_tokens": 15,
    "cost": 0.000093,
    "is_byok": False,
    "cost_details": {"upstream_inference_cost": None},
}


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, whole."""

    status: int
    body: object
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def error(
    status: int, message: str, metadata: object = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """An error in OpenRouter's shape: an integer for a code, and maybe metadata."""
    inside: dict[str, object] = {"code": status, "message": message}
    if metadata is not None:
        inside["metadata"] = metadata
    return Reply(status, {"error": inside, "user_id": "user_2abc"}, headers or {})


UNKNOWN_KEY: Final = error(401, "User not found.")
FAULTS: Final[Mapping[str, Reply]] = {
    "bad_request": error(400, "max_tokens must be at least 1"),
    "no_such_model": error(400, "fault/no_such_model is not a valid model ID"),
    "key": UNKNOWN_KEY,
    "credits": error(402, "Insufficient credits. Add more using https://openrouter.ai/credits"),
    "in_flight_budget": error(
        402,
        "In-flight spending budget exceeded",
        {"limit_source": "openrouter_in_flight_budget"},
        {"Retry-After": "2"},
    ),
    "moderation": error(
        403,
        "fault/moderation requires moderation. Your input was flagged",
        {
            "reasons": ["violence"],
            "flagged_input": "...",
            "provider_name": "OpenAI",
            "model_slug": "fault/moderation",
        },
    ),
    "forbidden": error(403, "This key may not use this model"),
    "no_endpoints": error(404, "No endpoints found for fault/no_endpoints."),
    "privacy": error(
        404,
        "No endpoints available matching your guardrail restrictions and data policy",
        {"error_type": "privacy_restricted"},
    ),
    "privacy_older": error(404, "No endpoints found matching your data policy (Free models)"),
    "timeout": error(408, "Request timed out"),
    "too_large": error(413, "Payload too large"),
    "rate_limit": error(
        429,
        "Rate limit exceeded: free-models-per-min",
        {"headers": {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0"}},
        {
            "X-RateLimit-Limit": "20",
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": "1741305600000",
            "Retry-After": "30",
        },
    ),
    "internal": error(500, "Internal Server Error"),
    "provider_down": error(
        502, "Provider returned error", {"provider_name": "Acme", "raw": "upstream broke"}
    ),
    "no_provider": error(
        503, "No available model provider that meets your routing requirements", None,
        {"Retry-After": "1"},
    ),
    "edge_timeout": Reply(524, "<html><title>524: A timeout occurred</title></html>"),
    "overloaded": error(529, "Provider overloaded"),
}  # fmt: skip

_MID_ERROR: Final = {"code": 502, "message": "Provider disconnected unexpectedly"}
_SPENT: Final = {"code": 402, "message": "Insufficient credits"}
_HELD: Final = {**_SPENT, "availability": {"retry_after": 2}}
_FLAGGED: Final = {"code": 403, "message": "Flagged", "metadata": {"reasons": ["violence"]}}


def chunk(choices: list[dict[str, object]], **more: object) -> bytes:
    """One event of a streamed conversation."""
    content = {
        "id": "gen-1",
        "object": "chat.completion.chunk",
        "created": 1741305600,
        "model": "acme/small",
        "provider": "Acme",
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> dict[str, object]:
    """The choice of a chunk."""
    return {
        "index": 0,
        "delta": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "native_finish_reason": finish,
    }


DONE: Final = b"data: [DONE]\n\n"
_LAST: Final = (chunk([delta("", "stop")]), chunk([], usage=USAGE), DONE)
_ERROR_EVENT: Final = chunk([delta("", "error")], error=_MID_ERROR)
ANSWER: Final = (COMMENT, chunk([delta("")]), chunk([delta("Hel")]), COMMENT, chunk([delta("lo")]))
_PATIENT: Final = (COMMENT, 0.3 * NEVER_S) * 4
STREAMS: Final[Mapping[str, tuple[bytes | float, ...]]] = {
    "error_first": (COMMENT, _ERROR_EVENT),
    "error_in_the_middle": (*ANSWER, _ERROR_EVENT),
    "only_comments": (COMMENT, COMMENT),
    "no_end": ANSWER,
    "native_error_first": (
        COMMENT,
        chunk([{"index": 0, "delta": {"content": ""}, "native_finish_reason": "error"}]),
    ),
    "credits_first": (COMMENT, chunk([], error=_SPENT)),
    "credits_in_the_middle": (*ANSWER, chunk([delta("", "error")], error=_SPENT)),
    "held_credit_in_the_middle": (*ANSWER, chunk([delta("", "error")], error=_HELD)),
    "moderation_in_the_middle": (*ANSWER, chunk([delta("", "error")], error=_FLAGGED)),
    "late": (*_PATIENT, *ANSWER, *_LAST),
    "dead": (*_PATIENT, 2 * NEVER_S),
    "slow": (*ANSWER, *_PATIENT, *_LAST),
}
"""Numbers are pauses in seconds."""
_IN_OTHER_DIALECTS: Final = {
    "/responses": responses_events("Hel", "lo"),
    "/messages": messages_events("Hel", "lo"),
}
_WHOLE_IN_OTHER_DIALECTS: Final[Mapping[str, dict[str, object]]] = {
    "/embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "model": "acme/small",
        "usage": {"prompt_tokens": 13, "total_tokens": 13, "cost": 0.000013},
    },
    "/responses": {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}],
        "usage": {"input_tokens": 13, "output_tokens": 2, "total_tokens": 15, "cost": 0.000093},
    },
    "/messages": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 13, "output_tokens": 2, "cost": 0.000093},
    },
}


def whole(**choice: object) -> dict[str, object]:
    """An answer that is not streamed; its choice may be changed."""
    first = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello"},
        "finish_reason": "stop",
        "native_finish_reason": "stop",
        **choice,
    }
    return {
        "id": "gen-1",
        "object": "chat.completion",
        "created": 1741305600,
        "model": "acme/small",
        "provider": "Acme",
        "choices": [first],
        "usage": USAGE,
    }


WHOLES: Final[Mapping[str, dict[str, object]]] = {
    "error_first": {"error": _MID_ERROR},
    "error_in_choice": whole(error=_MID_ERROR, finish_reason="error"),
    "empty": whole(
        message={"role": "assistant", "content": ""}, native_finish_reason="error"
    ),
}  # fmt: skip


def model(model_id: str, **more: object) -> dict[str, object]:
    """One entry of a list of models."""
    return {
        "id": model_id,
        "canonical_slug": model_id,
        "name": model_id.title(),
        "created": 1741305600,
        "description": "a model",
        "context_length": 128000,
        "architecture": {
            "modality": "text->text",
            "input_modalities": ["text"],
            "output_modalities": ["text"],
            "tokenizer": "GPT",
            "instruct_type": None,
        },
        "pricing": {"prompt": "0.0000007", "completion": "0.0000007", "request": "0"},
        "top_provider": {"context_length": 128000, "is_moderated": True},
        "per_request_limits": None,
        "supported_parameters": ["temperature", "tools"],
        "expiration_date": None,
        **more,
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    """With its query, below the base path."""
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class FakeOpenRouter:
    """The service's state; `serving_openrouter` runs it."""

    url: str = ""
    """Up to and with /v1."""
    keys: dict[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            KEY: GENEROUS,
            MANAGEMENT_KEY: {**GENEROUS, "is_management_key": True},
        }
    )
    pages: list[list[dict[str, object]]] = field(
        default_factory=lambda: [[model("acme/small"), model("acme/large")]]
    )
    """Of the user's list; the public one is the same and one model more."""
    asked: list[Asked] = field(default_factory=list[Asked])
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Lists of models wait for it."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by the first request."""
    _instead: dict[str, deque[Reply]] = field(default_factory=dict[str, deque[Reply]])

    def __post_init__(self) -> None:
        self.gate.set()

    def instead(self, path: str, *replies: Reply) -> None:
        """Let the next requests of a path get these, one each."""
        self._instead.setdefault(path, deque()).extend(replies)

    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [it.path for it in self.asked]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer anything."""
        raw = await request.read()
        body: dict[str, Any] = json.loads(raw) if raw else {}
        headers = {name.lower(): value for name, value in request.headers.items()}
        path = request.path_qs.removeprefix(BASE_PATH)
        self.asked.append(Asked(request.method, path, headers, body))
        self.arrived.set()
        path = path.partition("?")[0]
        ordered = self._instead.get(path)
        if ordered:
            return _send(ordered.popleft())
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if path == "/models":
            return await self._models(request, [*self.pages[:-1], self._last_public()])
        if key not in self.keys:
            return _send(UNKNOWN_KEY)
        return await self._answer_user(request, path, body, key)

    async def _answer_user(
        self, request: web.Request, path: str, body: Mapping[str, Any], key: str
    ) -> web.StreamResponse:
        if path == "/key":
            return web.json_response({"data": self.keys[key]})
        if path == "/models/user":
            return await self._models(request, self.pages)
        fault = str(body.get("model", "")).removeprefix("fault/")
        if fault in FAULTS:
            return _send(FAULTS[fault])
        if body.get("stream"):
            sound = _IN_OTHER_DIALECTS.get(path, (*ANSWER, *_LAST))
            return await _stream(request, STREAMS.get(fault, sound))
        return web.json_response(WHOLES.get(fault, _WHOLE_IN_OTHER_DIALECTS.get(path, whole())))

    def _last_public(self) -> list[dict[str, object]]:
        return [*self.pages[-1], model("acme/for-nobody")]

    async def _models(
        self, request: web.Request, pages: list[list[dict[str, object]]]
    ) -> web.Response:
        await self.gate.wait()
        number = int(request.query.get("page", "0"))
        following = f"{self.url}{request.path.removeprefix(BASE_PATH)}?page={number + 1}"
        return web.json_response(
            {
                "data": pages[number],
                "links": {"next": following if number + 1 < len(pages) else None},
            }
        )


def _send(reply: Reply) -> web.Response:
    if isinstance(reply.body, str):
        return web.Response(status=reply.status, text=reply.body, content_type="text/html")
    return web.json_response(reply.body, status=reply.status, headers=reply.headers)


async def _stream(request: web.Request, events: tuple[bytes | float, ...]) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "X-Generation-Id": "gen-1"}
    )
    await response.prepare(request)
    for event in events:
        if isinstance(event, bytes):
            await response.write(event)
        else:
            await pass_time(event)
    await response.write_eof()
    return response


@asynccontextmanager
async def serving_openrouter() -> AsyncGenerator[FakeOpenRouter]:
    """Serve on loopback, on a port of the kernel's choice."""
    service = FakeOpenRouter()
    app = web.Application()
    app.router.add_route("*", BASE_PATH + "/{path:.*}", service.answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        service.url = f"http://{host}:{port}{BASE_PATH}"
        yield service
    finally:
        await runner.cleanup()
