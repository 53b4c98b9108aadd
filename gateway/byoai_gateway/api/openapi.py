"""The OpenAPI 3.1 document, made from the calls themselves."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec

from byoai_gateway.api.calls import Access, AnyCall, NoBody
from byoai_shared.api_errors import ApiErrorBody

_REF: Final = "#/components/schemas/{name}"
_NAMES = re.compile(r"\{(\w+)\}")
_ALWAYS: Final = (HTTPStatus.INTERNAL_SERVER_ERROR,)
_WITH_BODY: Final = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
)


def document(calls: Sequence[AnyCall], version: str) -> dict[str, Any]:
    """Describe the calls."""
    types: set[type[msgspec.Struct]] = {ApiErrorBody}
    for call in calls:
        types |= {call.takes, call.gives}
    ordered = sorted(types - {NoBody}, key=lambda type_: type_.__name__)
    refs, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    ref_of = dict(zip(ordered, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for call in calls:
        operation = _operation(call, ref_of, schemas)
        paths.setdefault(call.path, {})[call.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "BYOAI gateway", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "user": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
        },
    }


def _operation(
    call: AnyCall, ref_of: dict[Any, dict[str, Any]], schemas: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": call.summary,
        "responses": {
            str(int(call.status)): _content(call.status, ref_of[call.gives]),
            **{
                str(int(status)): _content(status, ref_of[ApiErrorBody])
                for status in sorted(_refusals(call))
            },
        },
    }
    if call.access is Access.USER:
        operation["security"] = [{"user": []}]
    if call.takes_body:
        body = {"application/json": {"schema": ref_of[call.takes]}}
        operation["requestBody"] = {"required": True, "content": body}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _NAMES.findall(call.path)
    ]
    if call.takes_query:
        parameters += _in_query(schemas[call.takes.__name__])
    if parameters:
        operation["parameters"] = parameters
    return operation


def _in_query(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", ())
    return [
        {"name": name, "in": "query", "required": name in required, "schema": of_field}
        for name, of_field in schema["properties"].items()
    ]


def _refusals(call: AnyCall) -> set[HTTPStatus]:
    # Not found: a `userId` that is not the token's.
    own = (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND) if call.access is Access.USER else ()
    with_body = _WITH_BODY if call.takes_body else ()
    with_query = (HTTPStatus.BAD_REQUEST,) if call.takes_query else ()
    return {*_ALWAYS, *own, *with_body, *with_query, *call.refusals}


def _content(status: HTTPStatus, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": status.phrase, "content": {"application/json": {"schema": schema}}}
