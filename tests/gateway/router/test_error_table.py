"""What each family of providers sends as an error, and what the client gets: one row each.

The official client raises the same class as it does directly, except where a row says why not.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import msgspec
import openai
import pytest

from byoai_gateway.router.answering import error_body
from byoai_gateway.router.classify import failure_of_error, failure_of_status
from byoai_gateway.router.dialects import error_event, reader
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.upstream import ProviderName

DEFAULT, OPENROUTER, OWN = ProviderName
CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = "/v1/messages"
NONE: Final[dict[str, Any]] = {}
INVALID: Final = "invalid_request_error"


@dataclass(frozen=True)
class Row:
    """One error as it is sent, and as it arrives."""

    family: str
    sent_status: int
    sent: object
    """JSON, or text."""
    code: str
    type: str
    message: str
    param: str | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    provider: ProviderName = OWN
    status: int | None = None
    """None: as it was sent."""
    why_not_the_same: str = ""
    """Why the client raises another class than directly."""


def e(**members: object) -> dict[str, object]:
    return {"error": members}


ROWS: Final = (
    Row("openai context", 400, e(message="too long", type=INVALID, param="messages",
                                 code="context_length_exceeded"),
        "context_length_exceeded", INVALID, "too long", "messages"),
    Row("openai rate limit", 429, e(message="Rate limit reached", type="tokens", param=None,
                                    code="rate_limit_exceeded"),
        "rate_limit_exceeded", "tokens", "Rate limit reached"),
    Row("openai quota", 429, e(message="You exceeded your current quota",
                               type="insufficient_quota", param=None, code="insufficient_quota"),
        "insufficient_quota", "insufficient_quota", "You exceeded your current quota"),
    Row("openai model", 404, e(message="The model `x` does not exist", type=INVALID, param=None,
                               code="model_not_found"),
        "model_not_found", INVALID, "The model `x` does not exist"),
    Row("openai key", 401, e(message="Incorrect API key: sk-SECRET", type=INVALID, param=None,
                             code="invalid_api_key", hint="sk-SECRET"),
        "key_refused", "permission_error",
        "the self-hosted model server refused the key; enter one that is valid in the settings",
        status=403, why_not_the_same="401 means the session with the application"),
    Row("openai conflict", 409, e(message="locked", type="conflict", param=None, code=None),
        "conflict", "conflict", "locked"),
    Row("openai server error", 500, e(message="The server had an error", type="server_error",
                                      param=None, code=None),
        "server_error", "server_error", "The server had an error"),
    Row("operator's quota", 429, e(message="org-SECRET exceeded its quota",
                                   type="insufficient_quota", code="insufficient_quota",
                                   org="org-SECRET"),
        "provider_misconfigured", "server_error",
        "the default provider is misconfigured; its operator must see to it",
        provider=DEFAULT, status=502, why_not_the_same="the operator's account"),
    Row("operator's rate limit", 429, e(message="Rate limit of org-SECRET", type="requests",
                                        code="rate_limit_exceeded", org="org-SECRET"),
        "rate_limit_exceeded", "requests",
        "the rate limit of the default provider is exceeded; try again later", provider=DEFAULT),
    Row("azure content filter", 400,
        e(message="The response was filtered", type=None, param="prompt", code="content_filter",
          status=400, innererror={"code": "ResponsibleAIPolicyViolation",
                                  "revised_prompt": "SECRET",
                                  "content_filter_result": {"hate": {"filtered": True,
                                                                     "severity": "high"}}}),
        "content_filter", INVALID, "The response was filtered", "prompt",
        {"status": 400, "innererror": {"code": "ResponsibleAIPolicyViolation",
                                       "content_filter_result": {"hate": {"filtered": True,
                                                                          "severity": "high"}}}}),
    Row("azure rate limit", 429, e(code="429", message="Requests have exceeded call rate limit"),
        "rate_limited", "rate_limit_error", "Requests have exceeded call rate limit"),
    Row("azure deployment", 404, e(code="DeploymentNotFound", message="No such deployment"),
        "DeploymentNotFound", INVALID, "No such deployment"),
    Row("anthropic overloaded", 529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"},
         "request_id": "req_1"},
        "server_error", "overloaded_error", "Overloaded", details={"request_id": "req_1"}),
    Row("anthropic invalid", 400,
        {"type": "error", "error": {"type": INVALID, "message": "max_tokens: Field required"}},
        "invalid_request", INVALID, "max_tokens: Field required"),
    Row("anthropic credits", 400,
        {"type": "error", "error": {"type": INVALID, "message": "Your credit balance is too low"}},
        "credits_spent", INVALID, "Your credit balance is too low"),
    Row("llama.cpp context", 400, e(code=400, message="the request exceeds the context size",
                                    type="exceed_context_size_error", n_prompt_tokens=9000,
                                    n_ctx=4096),
        "exceed_context_size_error", "exceed_context_size_error",
        "the request exceeds the context size", details={"n_prompt_tokens": 9000, "n_ctx": 4096}),
    Row("llama.cpp loading", 503, e(code=503, message="Loading model", type="unavailable_error"),
        "not_ready", "unavailable_error", "Loading model"),
    Row("openrouter raw", 400,
        e(code=400, message="Provider returned error", metadata={
            "raw": '{"error":{"message":"This model\'s maximum context length is 8192 tokens",'
                   '"code":"context_length_exceeded"}}', "provider_name": "OpenAI"}),
        "context_length_exceeded", INVALID,
        "Provider returned error (OpenAI): This model's maximum context length is 8192 tokens",
        details={"metadata": {
            "raw": '{"error":{"message":"This model\'s maximum context length is 8192 tokens",'
                   '"code":"context_length_exceeded"}}', "provider_name": "OpenAI"}},
        provider=OPENROUTER),
    Row("openrouter raw repeats the request", 422,
        e(code=422, message="Provider returned error", metadata={
            "raw": '{"detail":[{"loc":["body","n"],"msg":"bad","input":"SECRET"}]}'}),
        "invalid_request", INVALID, "Provider returned error: n: bad", "n",
        {"metadata": {"raw": '{"detail":[{"loc":["body","n"],"msg":"bad"}]}'}}, OPENROUTER),
    Row("openrouter quota behind it", 429,
        e(code=429, message="Provider returned error", metadata={
            "raw": '{"error":{"code":"insufficient_quota"}}', "provider_name": "OpenAI"}),
        "insufficient_quota", "rate_limit_error", "Provider returned error (OpenAI)",
        details={"metadata": {"raw": '{"error":{"code":"insufficient_quota"}}',
                              "provider_name": "OpenAI"}}, provider=OPENROUTER),
    Row("openrouter moderation", 403,
        e(code=403, message="flagged", metadata={"reasons": ["violence"],
                                                 "flagged_input": "SECRET"}),
        "moderation", "permission_error", "flagged (reasons: violence)",
        details={"metadata": {"reasons": ["violence"]}}, provider=OPENROUTER),
    Row("openrouter error type", 503,
        e(code=503, message="none left", metadata={"error_type": "provider_unavailable"}),
        "server_error", "server_error", "none left",
        details={"metadata": {"error_type": "provider_unavailable"}}, provider=OPENROUTER),
    Row("openrouter credits", 402, e(code=402, message="Insufficient credits"),
        "credits_spent", INVALID, "Insufficient credits", provider=OPENROUTER),
    Row("openrouter late", 408, e(code=408, message="Request timed out"),
        "provider_timeout", INVALID, "Request timed out", provider=OPENROUTER),
    Row("openrouter model", 400, e(code=400, message="a/b is not a valid model ID"),
        "model_not_found", INVALID, "a/b is not a valid model ID", provider=OPENROUTER),
    Row("koboldcpp busy", 503,
        {"detail": {"msg": "Server is busy; please try again later.",
                    "type": "service_unavailable"}},
        "server_error", "service_unavailable", "Server is busy; please try again later."),
    Row("vllm", 400, e(message="bad", type="BadRequestError", param=None, code=400),
        "BadRequestError", "BadRequestError", "bad"),
    Row("vllm, older", 400,
        {"object": "error", "message": "bad", "type": "BadRequestError", "param": None,
         "code": 400},
        "BadRequestError", "BadRequestError", "bad", details={"object": "error"}),
    Row("vllm model", 404, e(message="The model `x` does not exist.", type="NotFoundError",
                             param="model", code=404),
        "model_not_found", "NotFoundError", "The model `x` does not exist.", "model"),
    Row("sglang", 500, {"object": "error", "message": "broke", "type": "InternalServerError",
                        "param": None, "code": 500},
        "server_error", "InternalServerError", "broke", details={"object": "error"}),
    Row("ollama", 404, {"error": "model 'x' not found, try pulling it first"},
        "model_not_found", INVALID, "model 'x' not found, try pulling it first"),
    Row("ollama, compatible", 500, e(message="CUDA error", type="api_error", param=None, code=None),
        "server_error", "api_error", "CUDA error"),
    Row("tgi", 422, {"error": "Input validation error", "error_type": "validation"},
        "validation", "validation", "Input validation error",
        details={"error_type": "validation"}),
    Row("lm studio", 400, e(message="Failed to load model", type=INVALID, param="model",
                            code="model_not_found"),
        "model_not_found", INVALID, "Failed to load model", "model"),
    Row("fastapi", 422, {"detail": [{"type": "missing", "loc": ["body", "messages"],
                                     "msg": "Field required", "input": "SECRET"}]},
        "invalid_request", INVALID, "messages: Field required", "messages",
        {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]}),
    Row("fastapi text", 404, {"detail": "Not Found"}, "not_found", INVALID, "Not Found"),
    Row("google", 400, [e(code=400, message="bad", status="INVALID_ARGUMENT",
                          details=[{"@type": "t", "field": "x"}])],
        "INVALID_ARGUMENT", INVALID, "bad",
        details={"status": "INVALID_ARGUMENT", "details": [{"@type": "t", "field": "x"}]}),
    Row("google key", 400, [e(code=400, message="API key not valid: SECRET",
                              status="INVALID_ARGUMENT")],
        "provider_misconfigured", "server_error",
        "the default provider is misconfigured; its operator must see to it",
        provider=DEFAULT, status=502, why_not_the_same="the operator's account"),
    Row("plain text", 500, "Internal Server Error", "server_error", "server_error",
        "Internal Server Error"),
    Row("web page", 504, "<html>late</html>", "provider_timeout", "server_error",
        "the provider answered 504 Gateway Timeout without saying why"),
    Row("half a surrogate pair", 400, '{"error": {"message": "bad\\ud83d", "at": "\\ud83d"}}',
        "invalid_request", INVALID, "bad\ufffd", details={"at": "\ufffd"}),
    Row("proxy", 407, "", "forbidden", "permission_error",
        "the self-hosted model server does not allow this with your key",
        status=403, why_not_the_same="407 is about a proxy of the client's"),
)  # fmt: skip


def encoded(sent: object) -> bytes:
    return sent.encode() if isinstance(sent, str) else msgspec.json.encode(sent)


def raised(status: int, body: bytes) -> openai.APIStatusError:
    """What the official client raises for an answer."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, request=request)

    http = openai.DefaultHttpxClient(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="k", base_url="http://test", http_client=http, max_retries=0)
    with client, pytest.raises(openai.APIStatusError) as error:
        client.models.list()
    return error.value


@pytest.mark.parametrize("row", ROWS, ids=[row.family for row in ROWS])
def test_a_client_gets_what_the_provider_sent(row: Row) -> None:
    failure = failure_of_status(row.provider, row.sent_status, (), encoded(row.sent))
    assert failure.status == (row.status or row.sent_status)
    body = error_body(CHAT, failure.error, failure.status)
    four = {"message": row.message, "type": row.type, "code": row.code, "param": row.param}
    assert msgspec.json.decode(body) == {"error": {**four, **row.details}}
    assert b"SECRET" not in body


@pytest.mark.parametrize("row", ROWS, ids=[row.family for row in ROWS])
def test_the_official_client_raises_what_it_does_directly(row: Row) -> None:
    sent = encoded(row.sent)
    failure = failure_of_status(row.provider, row.sent_status, (), sent)
    directly = raised(row.sent_status, sent)
    by_us = raised(failure.status, error_body(CHAT, failure.error, failure.status))
    assert (type(by_us) is type(directly)) == (not row.why_not_the_same)
    assert (by_us.code, by_us.type, by_us.param) == (row.code, row.type, row.param)


def test_anthropics_error_arrives_in_anthropics_shape() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    sent = msgspec.json.encode({"type": "error", "error": error, "request_id": "req_1"})
    failure = failure_of_status(OWN, 529, (), sent)
    assert failure.status == 529
    assert msgspec.json.decode(error_body(MESSAGES, failure.error, failure.status)) == {
        "type": "error",
        "error": {
            "type": "overloaded_error",
            "message": "Overloaded",
            "code": "server_error",
            "param": None,
        },
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("dialect", "event", "status", "code", "type_", "details"),
    [
        pytest.param(
            Dialect.MESSAGES,
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
            b'"message":"Overloaded"}}\n\n',
            *(529, "error_in_answer", "overloaded_error", NONE),
            id="anthropic",
        ),
        pytest.param(
            Dialect.CHAT,
            b'data: {"error":{"message":"slow","type":"requests","code":"rate_limit_exceeded",'
            b'"retry":{"in":"1s"}}}\n\n',
            *(429, "rate_limit_exceeded", "requests", {"retry": {"in": "1s"}}),
            id="openai",
        ),
        pytest.param(
            Dialect.CHAT,
            b'data: {"id":"g","error":{"code":502,"message":"gone","metadata":'
            b'{"provider_name":"Acme"}},"choices":[]}\n\n',
            *(502, "error_in_answer", "server_error", {"metadata": {"provider_name": "Acme"}}),
            id="openrouter",
        ),
        pytest.param(
            Dialect.RESPONSES,
            b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded",'
            b'"message":"slow"}}}\n\n',
            *(429, "rate_limit_exceeded", "rate_limit_error", NONE),
            id="responses",
        ),
        pytest.param(
            Dialect.COMPLETION,
            b'data: {"error":{"code":400,"message":"long","type":"exceed_context_size_error",'
            b'"n_ctx":8}}\n\n',
            *(400, "exceed_context_size_error", "exceed_context_size_error", {"n_ctx": 8}),
            id="llama.cpp",
        ),
    ],
)
def test_an_error_in_a_stream_is_told_with_its_details(
    dialect: Dialect, event: bytes, status: int, code: str, type_: str, details: dict[str, Any]
) -> None:
    seen = reader(dialect)(event).error
    assert seen is not None
    failure = failure_of_error(OWN, seen)
    assert (failure.status, failure.error.code, failure.error.type) == (status, code, type_)
    last = error_event(dialect, failure.error, failure.status)
    said = msgspec.json.decode(last[last.index(b"data: ") + 6 :])["error"]
    assert said.items() >= {"code": code, "type": type_, **details}.items()


def test_a_flat_429_in_an_answer_of_200_is_one() -> None:
    failure = failure_of_error(OWN, msgspec.Raw(b'{"code": 429, "msg": "too many"}'))
    assert (failure.status, failure.error.code) == (429, "rate_limited")
    assert failure.error.message == "too many"


def test_a_vendors_base_resp_is_read() -> None:
    sent = b'{"base_resp": {"status_code": 1004, "status_msg": "not authorized"}}'
    failure = failure_of_error(OWN, msgspec.Raw(sent))
    assert (failure.status, failure.error.message) == (502, "not authorized")
