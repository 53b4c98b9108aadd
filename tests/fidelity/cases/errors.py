"""Error answers: every status, and every shape in which a kind of server writes them."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from unittest.mock import ANY

from fidelity.cases.building import (
    BOTH,
    CHAT,
    NOTHING,
    SOUND,
    Differs,
    compact,
    everywhere,
    in_one_piece,
    on,
)
from fidelity.cases.endpoints import MESSAGE, MESSAGE_STREAM, NOT_AT_OPENROUTER, SPEECH, VECTOR
from fidelity.differences import (
    ERROR_HEADERS,
    ID_INSIDE,
    KEY_REFUSED,
    MISCONFIGURED,
    NOT_TO_REPEAT,
    OWN_LIMIT,
    RESHAPED,
    RETRIED,
    WAITED,
)
from fidelity.model import USERS_OWN, Ask, Case, Naming, Route
from support.provider_script import whole

STATUSES: Final = (400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529)
OPERATORS: Final = on((Route.DEFAULT,), MISCONFIGURED)
ACCOUNTS: Final[Differs] = {**OPERATORS, **on(USERS_OWN, NOT_TO_REPEAT)}
LIMITED: Final = on((Route.DEFAULT,), OWN_LIMIT)
LIMITS: Final = {
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "openai-processing-ms": "3",
}


def said(**more: Any) -> bytes:
    """An error as OpenAI writes it."""
    error = {"message": "Something", "type": "a_type", "param": "a.b", "code": "a_code", **more}
    return compact({"error": error})


def failing(
    name: str,
    status: int,
    body: bytes,
    *,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
    differs: Differs = NOTHING,
    **more: Any,
) -> list[Case]:
    """One error for a whole answer and for a stream."""
    return [
        in_one_piece(
            f"error {name} {how}", body, ask, status=status, kind=kind, headers=headers,
            differs=differs, **more,
        )
        for ask, how in BOTH
    ]  # fmt: skip


def reshaped(
    name: str, status: int, body: bytes, *, kind: str = "application/json", **error: Any
) -> list[Case]:
    """An error that is not in OpenAI's shape, and what clients get of it."""
    members = {f"error.{key}": value for key, value in error.items()}
    return failing(name, status, body, kind=kind, differs=everywhere(RESHAPED), error=members)


def by_status() -> list[Case]:
    """Every status in OpenAI's shape."""
    found: list[Case] = []
    for status in STATUSES:
        differs = ACCOUNTS if status in {402, 403} else NOTHING
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            differs = LIMITED
        if status == HTTPStatus.UNAUTHORIZED:
            differs = {**OPERATORS, **on(USERS_OWN, KEY_REFUSED)}
        found += failing(str(status), status, said(), differs=differs)
    return found


QUOTA: Final = compact({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}})  # fmt: skip
RATE: Final = compact({"error": {"message": "Rate limit reached for m", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}})  # fmt: skip
AZURE: Final = compact({"error": {"message": "The response was filtered", "type": None, "param": "prompt", "code": "content_filter", "status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}}})  # fmt: skip
LLAMA: Final = compact({"error": {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}})  # fmt: skip
LOADING: Final = compact(
    {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
)
FULL: Final = compact(
    {"error": "server busy, please try again.  maximum pending requests exceeded"}
)
TOO_LATE: Final = {"retry-after": "86400"}
"""More than the deadline of any request."""
RAW: Final = b'{"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": "{\\"error\\":{\\"message\\":\\"This model\'s maximum context length is 8192 tokens\\",\\"code\\":\\"context_length_exceeded\\"}}", "provider_name": "OpenAI"}}}'
MODERATED: Final = compact({"error": {"code": 403, "message": "Your input was flagged", "metadata": {"reasons": ["violence"], "flagged_input": "…", "provider_name": "OpenAI"}}, "user_id": "user_1"})  # fmt: skip
VLLM: Final = compact(
    {
        "error": {
            "message": "maximum context length is 4096",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        }
    }
)
OLD_VLLM: Final = compact(
    {
        "object": "error",
        "message": "The model `x` is busy",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
)
NO_MODEL: Final = compact(
    {
        "error": {
            "message": "The model `x` does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
)
KOBOLD: Final = compact(
    {"detail": {"msg": "Server is busy; please try again later.", "type": "service_unavailable"}}
)
FASTAPI: Final = compact(
    {
        "detail": [
            {
                "type": "extra_forbidden",
                "loc": ["body", "seed"],
                "msg": "Extra inputs are not permitted",
                "input": 1,
            }
        ]
    }
)
TGI: Final = compact(
    {"error": "Input validation error: `inputs` must be shorter", "error_type": "validation"}
)
GOOGLE: Final = compact(
    [{"error": {"code": 400, "message": "Invalid value", "status": "INVALID_ARGUMENT"}}]
)
WORDS: Final = compact(
    {
        "error": {
            "message": "No such thing",
            "type": "invalid_request_error",
            "param": "x",
            "code": None,
        }
    }
)
EXTRA: Final = compact({"error": {"message": "m", "type": "t", "param": None, "code": "c", "doc_url": "https://a.example", "details": [{"a": 1}]}, "request_id": "req_1"})  # fmt: skip

SHAPES: Final = (
    *failing("OpenAI's rate limit", 429, RATE, headers=LIMITS, differs=LIMITED),
    *failing("OpenAI's quota", 429, QUOTA, differs=ACCOUNTS),
    *failing("with other headers", 400, said(), headers={**LIMITS, "cache-control": "no-store", "x-vendor-trace": "abc", "x-should-retry": "true", "set-cookie": "a=b"}, differs=everywhere(ERROR_HEADERS)),
    *failing("Azure's filter", 400, AZURE),
    *failing("llama.cpp's context", 400, LLAMA, differs=everywhere(RESHAPED), error={"error.code": ANY}),
    *failing("llama.cpp that loads for long", 503, LOADING, headers=TOO_LATE, differs=everywhere(RESHAPED), error={"error.code": ANY}),
    *failing("OpenRouter's raw", 400, RAW, differs=everywhere(RESHAPED), error={"error.code": "context_length_exceeded", "error.message": ANY}),
    *failing("OpenRouter's moderation", 403, MODERATED, differs=everywhere(RESHAPED), error={"error.code": ANY, "error.message": ANY, "error.metadata": ANY}),
    *failing("vLLM's", 400, VLLM, differs=everywhere(RESHAPED), error={"error.code": ANY}),
    *failing("a missing model", 404, NO_MODEL),
    *failing("a code of null", 400, WORDS),
    *failing("unknown members", 400, EXTRA, differs=everywhere(ID_INSIDE)),
    *reshaped("older vLLM's", 400, OLD_VLLM, message="The model `x` is busy", type="BadRequestError", code=ANY),
    *reshaped("Ollama's", 404, compact({"error": "model 'x' not found"}), message="model 'x' not found"),
    *failing("Ollama's full queue", 503, FULL, headers=TOO_LATE, differs=everywhere(RESHAPED), error={"error.message": Naming("server busy, please try again.")}),
    *reshaped("KoboldCpp's", 503, KOBOLD, message="Server is busy; please try again later."),
    *reshaped("FastAPI's", 422, FASTAPI, message="seed: Extra inputs are not permitted", param="seed"),
    *reshaped("TGI's", 422, TGI, message="Input validation error: `inputs` must be shorter"),
    *reshaped("Google's list", 400, GOOGLE, message="Invalid value"),
    *reshaped("plain text", 500, b"upstream connect error", kind="text/plain", message="upstream connect error"),
    *reshaped("a page", 502, b"<html><h1>Bad Gateway</h1></html>", kind="text/html", message=ANY),
    *failing("an empty body", 500, b""),
    *reshaped("half a body", 500, b'{"error": {"mess', message=ANY),
)  # fmt: skip

ANTHROPIC: Final = compact({"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: required"}, "request_id": "req_1"})  # fmt: skip
OVERLOADED: Final = compact({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"})  # fmt: skip

OTHERS: Final = (
    in_one_piece("error Anthropic's 400 whole", ANTHROPIC, MESSAGE, status=400),
    in_one_piece("error Anthropic's 400 streamed", ANTHROPIC, MESSAGE_STREAM, status=400),
    in_one_piece("error Anthropic's 529 whole", OVERLOADED, MESSAGE, status=529),
    in_one_piece("error Anthropic's 529 streamed", OVERLOADED, MESSAGE_STREAM, status=529),
    in_one_piece("error of vectors", RATE, VECTOR, status=429, headers=LIMITS, differs=LIMITED),
    in_one_piece("error of an upload", said(), SPEECH, status=413, **NOT_AT_OPENROUTER),
)


def unannounced(
    name: str, status: int, *, is_repeated: bool, headers: Mapping[str, str] | None = None
) -> Case:
    """An error for a client that does not announce retries."""
    ask = Ask(CHAT.path, CHAT.body, headers=())
    retried = (RETRIED,) if is_repeated else ()
    limited = (OWN_LIMIT,) if status == HTTPStatus.TOO_MANY_REQUESTS else ()
    differs = {**everywhere(*retried), **on((Route.DEFAULT,), *retried, *limited)}
    return in_one_piece(
        f"no announced retries, {name}", said(), ask, status=status, headers=headers,
        differs=differs, has_sdk=False,
    )  # fmt: skip


REPEATED: Final = (
    unannounced("400", 400, is_repeated=False),
    unannounced("409", 409, is_repeated=False),
    unannounced("429 to come back at once", 429, is_repeated=True, headers={"retry-after": "0"}),
    unannounced("429 to come back later", 429, is_repeated=False, headers={"retry-after": "6"}),
    unannounced("500", 500, is_repeated=True),
    unannounced("503", 503, is_repeated=True),
    unannounced("503 to come back later", 503, is_repeated=False, headers={"retry-after": "6"}),
    unannounced("504", 504, is_repeated=False),
)


def not_ready(name: str, body: bytes) -> Case:
    """A server that takes nothing at first, and answers when it is asked again."""
    return in_one_piece(
        f"not ready, {name}", body, status=503, headers={"retry-after": "0"},
        differs=everywhere(WAITED), then=whole(SOUND), becomes=SOUND,
    )  # fmt: skip


NOT_READY: Final = (
    not_ready("llama.cpp that loads", LOADING),
    not_ready("Ollama's full queue", FULL),
)

CASES: Final[tuple[Case, ...]] = (*by_status(), *SHAPES, *OTHERS, *REPEATED, *NOT_READY)
