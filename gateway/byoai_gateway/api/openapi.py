"""The OpenAPI 3.1 document, made from the calls themselves and from the table of `/v1`."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from byoai_gateway.api import surface
from byoai_gateway.api.bodies import MAX_BODY_BYTES, AskedByUser
from byoai_gateway.api.calls import Access, AnyCall, NoBody
from byoai_gateway.api.described import (
    HEADERS,
    MALFORMED,
    Described,
    answer,
    headers_of_error,
    operation_id,
    path_parameters,
)
from byoai_shared.api_errors import ApiErrorBody

PEM: Final = "application/x-pem-file"
_JSON: Final = "application/json"
_REF: Final = "#/components/schemas/{name}"
_NAMES = re.compile(r"\{(\w+)\}")
_ALWAYS: Final = (
    *MALFORMED,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    # The database.
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_HEALTH: Final = "Health"
_TAGS: Final[Mapping[str, tuple[str, str]]] = {
    "/v1/": (surface.TAG, "The OpenAI-compatible API, for the provider that the user chose"),
    "/api/user-preferences/": ("Settings", "Which provider answers a user, and with which key"),
    "/api/ai/": ("Providers", "What a provider offers, and whether it works"),
    "/api/tunnel": ("Tunnels", "The users' own model servers, behind agents"),
    "/agent/": ("Agents", "What agents call; the proof of who calls is in the body"),
    "/": (_HEALTH, "For load balancers, and this document"),
}
"""By the beginning of a path; the first that fits."""

_ABOUT: Final = """\
One address for every AI provider of the product. A user's settings decide who answers: the \
service's own provider, OpenRouter with the user's key, or the user's own model server behind a \
tunnel.

Users say who they are with the main application's token, and a token speaks for its own user \
only: a `userId` in a body or query may be left out, and any other than the token's is answered \
404.

Every error has one shape, `error` with `message`, `type`, `param` and `code`. An error about a \
body's fields also has `fields`, with a sentence for each. Paths that are not described here are \
answered 404, and other methods 405, in the same shape. The head of a request may have {head} \
bytes at most; the bodies' limits stand with them."""


def document(
    calls: Sequence[AnyCall], version: str, *, max_head_bytes: int, max_body_bytes: int
) -> Described:
    """Describe the calls and all that is served besides them; the limits are those of `/v1`."""
    types: set[type[msgspec.Struct]] = {*surface.TYPES, AskedByUser}
    for call in calls:
        types |= {call.takes, call.gives}
    ordered = sorted(types - {NoBody}, key=lambda type_: type_.__name__)
    refs, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    ref_of: dict[type[Any], Described] = dict(zip(ordered, refs, strict=True))
    paths = surface.paths(ref_of, max_body_bytes)
    for call in calls:
        operation = _operation(call, ref_of, schemas)
        paths.setdefault(call.path, {})[call.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "BYOAI gateway",
            "version": version,
            "description": _ABOUT.format(head=max_head_bytes),
        },
        "tags": [{"name": name, "description": about} for name, about in _TAGS.values()],
        "paths": {**paths, **_others(ref_of[ApiErrorBody])},
        "components": {
            "schemas": schemas,
            "headers": dict(HEADERS),
            "securitySchemes": {
                "user": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The main application's token",
                },
                "userKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "The same token, where Anthropic's clients send it; not read "
                    "if there is an `Authorization`",
                },
            },
        },
    }


def _operation(
    call: AnyCall, ref_of: Mapping[type[Any], Described], schemas: Described
) -> Described:
    error = ref_of[ApiErrorBody]
    refusals = {str(int(status)): _error(status, error) for status in sorted(_refusals(call))}
    success = answer(call.status.phrase, {_JSON: ref_of[call.gives]}, {"x-request-id": True})
    operation = _base(call.method, call.path, call.summary)
    operation["responses"] = {str(int(call.status)): success, **refusals}
    if call.access is Access.USER:
        operation["security"] = [{"user": []}]
    if call.takes_body or call.may_say_who:
        operation["requestBody"] = {
            "description": f"At most {MAX_BODY_BYTES} bytes.",
            "required": call.takes_body,
            "content": {_JSON: {"schema": ref_of[call.takes if call.takes_body else AskedByUser]}},
        }
    parameters = path_parameters(_NAMES.findall(call.path))
    if call.takes_query:
        parameters += _in_query(schemas[call.takes.__name__])
    if parameters:
        operation["parameters"] = parameters
    return operation


def _in_query(schema: Described) -> list[Described]:
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": of_field}
        for name, of_field in schema["properties"].items()
    ]


def _refusals(call: AnyCall) -> set[HTTPStatus]:
    # Not found: a `userId` that is not the token's.
    own = (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND) if call.access is Access.USER else ()
    has_body = call.takes_body or call.may_say_who
    with_body = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE,) if has_body else ()
    limited = (HTTPStatus.TOO_MANY_REQUESTS,) if call.is_change or call.is_removal else ()
    return {*_ALWAYS, *own, *with_body, *limited, *call.refusals}


def _others(error: Described) -> dict[str, Described]:
    """What `app` serves besides calls."""
    a_status: Described = {"type": "object", "required": ["status"]}
    alive, ready = (
        {**a_status, "properties": {"status": {"const": word}}} for word in ("alive", "ready")
    )
    unready, no_ca = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.NOT_FOUND
    served = (
        ("/healthz", "Whether the process lives", _JSON, alive, ()),
        ("/readyz", "Whether it can serve", _JSON, ready, (unready,)),
        ("/openapi.json", "This document", _JSON, {"type": "object"}, ()),
        ("/agent/v1/ca", "The gateway's own CA, if it has one", PEM, {"type": "string"}, (no_ca,)),
    )
    found: dict[str, Described] = {}
    for path, summary, kind, schema, refusals in served:
        statuses = sorted({*MALFORMED, HTTPStatus.INTERNAL_SERVER_ERROR, *refusals})
        operation = _base("GET", path, summary)
        operation["responses"] = {
            "200": answer("OK", {kind: schema}, {"x-request-id": True}),
            **{str(int(status)): _error(status, error) for status in statuses},
        }
        found[path] = {"get": operation}
    return found


def _base(method: str, path: str, summary: str) -> Described:
    tag = next(name for beginning, (name, _) in _TAGS.items() if path.startswith(beginning))
    return {"operationId": operation_id(method, path), "tags": [tag], "summary": summary}


def _error(status: HTTPStatus, schema: Described) -> Described:
    sentence = MALFORMED.get(status, status.phrase)
    return answer(sentence, {_JSON: schema}, headers_of_error(status))
