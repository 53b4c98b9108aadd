"""Reads request bodies: bounded in size and time, strict in shape.

Errors name the field and never repeat its value.
"""

import asyncio
from http import HTTPStatus
from typing import Annotated, Final, TypeVar

import msgspec
from aiohttp import web

from byoai_gateway.api.field_errors import VISIBLE_ASCII, errors_of_fields, told
from byoai_gateway.refusals import Refusal, invalid_fields

MAX_BODY_BYTES: Final = 64 * 1024
_READ_S: Final = 10.0

ApiKey = Annotated[str, msgspec.Meta(max_length=4096, pattern=VISIBLE_ASCII)]
"""Any provider's key: it stands in a header."""

_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A body from outside: camelCase, nothing unknown."""


class AskedByUser(Asked, frozen=True):
    """A body from a user, who may say in it who they are; the token decides."""

    user_id: Annotated[
        str | None, msgspec.Meta(description="may be left out; another than the token's is unknown")
    ] = None


_Body = TypeVar("_Body", bound=msgspec.Struct)


async def read_body(request: web.Request, type_: type[_Body]) -> _Body:
    """Read and check a JSON body.

    Raises:
        Refusal: it is too large, too slow, no JSON, or has another shape.
    """
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large()
    try:
        async with asyncio.timeout(_READ_S):
            raw = await request.read()
    except TimeoutError:
        message = f"the body did not arrive within {_READ_S:g} s"
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "body_timeout", message) from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large() from None
    except web.RequestPayloadError:
        message = "the body is not framed as HTTP/1.1 says, or breaks off"
        raise Refusal(HTTPStatus.BAD_REQUEST, "bad_request", message) from None
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        raise _wrong_shape(raw, type_, error) from None
    except _NOT_JSON:
        raise _not_json() from None


def read_query(request: web.Request, type_: type[_Body]) -> _Body:
    """Check a query: texts only, each name once.

    Raises:
        Refusal: it has another shape.
    """
    query = request.query
    given = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
    twice = {name: "it may be given once" for name in given if len(query.getall(name)) > 1}
    if twice:
        raise invalid_fields(twice, "invalid_query")
    try:
        return msgspec.convert(given, type_)
    except msgspec.ValidationError:
        found = errors_of_fields(msgspec.json.encode(given), type_)
        raise invalid_fields(found, "invalid_query") from None


def too_large() -> Refusal:
    """Said before the body is read when its length is given, else as soon as it is too long."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the body is larger than {MAX_BODY_BYTES} bytes",
    )


def _wrong_shape(
    raw: bytes, type_: type[msgspec.Struct], error: msgspec.ValidationError
) -> Refusal:
    try:
        of_fields = errors_of_fields(raw, type_)
    except _NOT_JSON:  # behind what was found to be wrong first
        return _not_json()
    if of_fields:
        return invalid_fields(of_fields)
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_body", told(error, type_))


def _not_json() -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not JSON")
