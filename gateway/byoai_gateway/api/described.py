"""Parts of the OpenAPI document that many operations share: headers, error answers, names.

All of it says what answers look like whoever makes them; it makes none.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from byoai_gateway.router.failures import FailureKind
from byoai_gateway.router.upstream import ProviderName

Described = dict[str, Any]
"""A part of the document."""

_WORDS = re.compile(r"[A-Za-z0-9]+")
_HEADER_REF: Final = "#/components/headers/{name}"

HEADERS: Final[Mapping[str, Described]] = {
    "x-request-id": {
        "description": "the id of this request in every log; the caller's own `x-request-id`, if "
        "it sent one of at most 128 printable ASCII characters",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "request-id": {
        "description": "the same as `x-request-id`, where Anthropic's clients look for it",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "x-byoai-provider-request-id": {
        "description": "the provider's own id of the request, if it named one; for its support",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    },
    "retry-after": {
        "description": "after how many seconds to try again; from a provider as it said it, "
        "perhaps a date",
        "schema": {"type": "string", "minLength": 1},
    },
    "retry-after-ms": {
        "description": "the same in milliseconds, if the provider said it",
        "schema": {"type": "string", "minLength": 1},
    },
    "www-authenticate": {
        "description": "how to say who asks",
        "schema": {"type": "string", "const": "Bearer"},
    },
    "x-should-retry": {
        "description": "`false`: a fallback was spent on this request, or the same request is "
        "known to fail again, so that a client library should not repeat it",
        "schema": {"type": "string", "const": "false"},
    },
    "x-byoai-provider": {
        "description": "who answered, or was asked last",
        "schema": {"type": "string", "enum": [it.value for it in ProviderName]},
    },
    "x-byoai-attempts": {
        "description": "how many times a provider was asked for this request; 0 if what was wrong "
        "was known before",
        "schema": {"type": "integer", "minimum": 0},
    },
    "x-byoai-model": {
        "description": "the model that the provider was asked for, percent-encoded where it is not "
        "visible ASCII; absent if the provider took its own",
        "schema": {"type": "string"},
    },
    "x-byoai-fallback-reason": {
        "description": "why the default provider answered in place of the user's own; absent if "
        "it did not",
        "schema": {"type": "string", "enum": [it.value for it in FailureKind]},
    },
}

# Said by the connection, which has read no more than a part of a request.
MALFORMED: Final[Mapping[HTTPStatus, str]] = {
    HTTPStatus.BAD_REQUEST: "The request is not what this call takes, or not HTTP/1.1",
    HTTPStatus.REQUEST_TIMEOUT: "The request did not arrive in time",
    HTTPStatus.EXPECTATION_FAILED: "An `Expect` other than `100-continue`",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "Method, path and headers are too large",
}


def answer(
    description: str, content: Mapping[str, Described], headers: Mapping[str, bool]
) -> Described:
    """Describe one answer; the headers by name, with whether they are always there."""
    refs = {name: header(name, is_always_there=always) for name, always in headers.items()}
    bodies = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"description": description, "headers": refs, "content": bodies}


def header(name: str, *, is_always_there: bool) -> Described:
    """Describe one header of an answer."""
    return (
        {**HEADERS[name], "required": True}
        if is_always_there
        else {"$ref": _HEADER_REF.format(name=name)}
    )


def headers_of_error(status: int) -> dict[str, bool]:
    """The headers of an error answer, whoever refuses."""
    headers = {"x-request-id": status not in MALFORMED}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = True
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        headers["retry-after"] = False
    return headers


def path_parameters(names: Iterable[str]) -> list[Described]:
    """Describe the names in a path."""
    schema = {"type": "string", "minLength": 1}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def operation_id(method: str, path: str) -> str:
    """Name an operation by what it is: `getApiTunnelStatusTunnelId`."""
    words = _WORDS.findall(path)
    return method.lower() + "".join(word[0].upper() + word[1:] for word in words)
