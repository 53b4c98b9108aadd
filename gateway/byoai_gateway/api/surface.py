"""The `/v1` surface in the OpenAPI document, made from the table that routes it.

What a provider answers is the provider's: it passes as it came, and is described no further than
the gateway itself looks at it.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from byoai_gateway.api.described import (
    MALFORMED,
    Described,
    answer,
    headers_of_error,
    operation_id,
    path_parameters,
)
from byoai_gateway.router.answering import is_anthropics
from byoai_gateway.router.endpoints import (
    ENDPOINTS,
    EVENTS,
    JSON,
    PREFIX,
    BodyKind,
    Dialect,
    Endpoint,
)
from byoai_gateway.router.messages_error import MessagesErrorBody
from byoai_gateway.router.payload import FieldsRead, FormRead
from byoai_shared.api_errors import ApiErrorBody

TAG: Final = "AI"
TYPES: Final = (ApiErrorBody, FieldsRead, FormRead, MessagesErrorBody)
"""Whose schemas the document needs."""

_TALE: Final = (
    "x-byoai-provider",
    "x-byoai-attempts",
    "x-byoai-fallback-reason",
    "x-byoai-model",
)
_OF_ERRORS: Final = (*_TALE, "x-should-retry", "x-byoai-provider-request-id", "retry-after-ms")
_NOT_ALWAYS: Final = dict.fromkeys(
    ("x-byoai-fallback-reason", "x-byoai-model", "x-byoai-provider-request-id"), False
)
_REFUSALS: Final[Mapping[HTTPStatus, str]] = {
    **MALFORMED,
    HTTPStatus.BAD_REQUEST: "The request is malformed, or the provider says that it is",
    HTTPStatus.UNAUTHORIZED: "There is no token, or it does not hold",
    HTTPStatus.PAYMENT_REQUIRED: "The provider says that the credits of the user's key are spent",
    HTTPStatus.FORBIDDEN: "The user's plan does not include this, or the provider refuses their "
    "key, or a setting is missing",
    HTTPStatus.NOT_FOUND: "The provider does not have this model or this call, or the user's "
    "tunnel is no more",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large for the gateway or the provider",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests of this user, at the gateway, their tunnel "
    "or their provider",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something went wrong at the gateway",
    HTTPStatus.NOT_IMPLEMENTED: "The provider says that it cannot do this",
    HTTPStatus.BAD_GATEWAY: "The provider cannot be reached, or failed",
    HTTPStatus.SERVICE_UNAVAILABLE: "The provider, the user's agent or the gateway cannot serve "
    "now",
    HTTPStatus.GATEWAY_TIMEOUT: "The provider did not begin to answer in time",
}
# Said by the connection in place of a call that did not get to the end of its request.
_WITHOUT_ID: Final = frozenset(
    {
        *MALFORMED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_TIMEOUT: Final[Described] = {
    "name": "x-byoai-timeout",
    "in": "header",
    "description": "how many seconds this request may take until its answer begins, up to what the "
    "operator allows; in place of the operator's own limit",
    "required": False,
    "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,8}$"},
}
_OF_THE_PROVIDER: Final = {
    "4XX": "Another refusal of this very request by the provider, as it said it",
    "5XX": "Another failure of the provider, as it said it",
}


def paths(refs: Mapping[type[Any], Described], max_body_bytes: int) -> dict[str, Described]:
    """Describe every endpoint of the table; `refs` are the schemas of `TYPES`."""
    found: dict[str, Described] = {}
    for endpoint in ENDPOINTS:
        operations = found.setdefault(PREFIX + endpoint.path, {})
        operations[endpoint.method.lower()] = _operation(endpoint, refs, max_body_bytes)
    return found


def _operation(
    endpoint: Endpoint, refs: Mapping[type[Any], Described], max_body_bytes: int
) -> Described:
    path = PREFIX + endpoint.path
    operation: Described = {
        "operationId": operation_id(endpoint.method, path),
        "tags": [TAG],
        "summary": endpoint.summary,
        "description": "Answered by the provider that the user chose, which may not have it (404).",
        "security": [{"user": []}, {"userKey": []}] if is_anthropics(path) else [{"user": []}],
        "responses": {"200": _success(endpoint), **_errors(endpoint, refs)},
    }
    in_path = [path.partition("{")[2].rstrip("}")] if "{" in path else []
    operation["parameters"] = [*path_parameters(in_path), _TIMEOUT]
    if endpoint.body is not BodyKind.NONE:
        is_form = endpoint.body is BodyKind.MULTIPART
        kind, read = ("multipart/form-data", FormRead) if is_form else (JSON, FieldsRead)
        operation["requestBody"] = {
            "description": f"At most {max_body_bytes} bytes. What is not described here is the "
            "provider's to read, and to refuse.",
            "required": True,
            "content": {kind: {"schema": refs[read]}},
        }
    return operation


def _success(endpoint: Endpoint) -> Described:
    # A stream may begin with comments before it is known who answers: its head cannot say.
    headers = {"x-request-id": True, **dict.fromkeys(_TALE, EVENTS not in endpoint.answers)}
    headers |= _NOT_ALWAYS
    headers.update(_request_id(endpoint))
    content = {kind: _body(kind, endpoint.dialect) for kind in endpoint.answers}
    return answer("The provider's answer as it came", content, headers)


def _body(kind: str, dialect: Dialect) -> Described:
    if kind == JSON:
        return {} if dialect is Dialect.PLAIN else {"type": "object"}
    if kind != EVENTS:
        return {"type": "string"}
    # Without a type: some readers take the whole stream for the value, and some each event.
    return {
        "description": "Server-sent events. A stream that fails after it began ends with an event "
        "that carries an `error`. Comments may stand between events, `: keep-alive` while nobody "
        "has answered yet; in such a stream the `x-byoai-*` headers are comments too.",
    }


def _errors(endpoint: Endpoint, refs: Mapping[type[Any], Described]) -> dict[str, Described]:
    schema = refs[ApiErrorBody]
    if endpoint.dialect is Dialect.MESSAGES:
        # What the connection refuses, before it is known for which call, has OpenAI's.
        schema = {"anyOf": [refs[MessagesErrorBody], schema]}
    found = {
        str(int(status)): answer(sentence, {JSON: schema}, _headers(endpoint, status))
        for status, sentence in sorted(_REFUSALS.items())
    }
    told = {**dict.fromkeys((*_OF_ERRORS, "retry-after"), False), **_request_id(endpoint)}
    for statuses, sentence in _OF_THE_PROVIDER.items():
        found[statuses] = answer(sentence, {JSON: schema}, {"x-request-id": True, **told})
    return found


def _headers(endpoint: Endpoint, status: HTTPStatus) -> dict[str, bool]:
    told = dict.fromkeys((*_OF_ERRORS, "retry-after"), False)
    has_id = status not in _WITHOUT_ID
    ids = {name: always and has_id for name, always in _request_id(endpoint).items()}
    return {**told, **headers_of_error(status), **ids, "x-request-id": has_id}


def _request_id(endpoint: Endpoint) -> dict[str, bool]:
    """The name under which Anthropic's clients read our id."""
    return {"request-id": True} if is_anthropics(PREFIX + endpoint.path) else {}
