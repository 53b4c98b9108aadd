"""Reads request bodies: bounded in size and time, strict in shape.

Errors name the field and never repeat its value.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

import msgspec
from aiohttp import web
from multidict import MultiMapping

from byoai_gateway.refusals import Refusal, invalid_fields

MAX_BODY_BYTES: Final = 64 * 1024
_READ_S: Final = 10.0
_UNKNOWN_NAMED: Final = 10
"""Somebody else's JSON may have any number of fields that we do not know."""


# A `$` alone also matches before a line break at the end.
PRINTABLE: Final = r"^[^\x00-\x1f\x7f]+$(?!\n)"
VISIBLE_ASCII: Final = r"^[\x21-\x7e]+$(?!\n)"


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A body from outside: camelCase, nothing unknown."""


class AskedByUser(Asked, frozen=True):
    """A body from a user, who may say in it who they are; the token decides."""

    user_id: Annotated[
        str | None, msgspec.Meta(description="may be left out; another than the token's is unknown")
    ] = None


_Body = TypeVar("_Body", bound=msgspec.Struct)
_PLACE = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_FIELD = re.compile(r"(?:required|unknown) field `(?P<field>[^`]*)`")


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
        raise _wrong_shape(str(error), _errors_of_fields(raw, type_)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not JSON") from None


def read_query(query: MultiMapping[str], type_: type[_Body]) -> _Body:
    """Check a query: texts only, each name once.

    Raises:
        Refusal: it has another shape.
    """
    given = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
    twice = {name: "it may be given once" for name in given if len(query.getall(name)) > 1}
    if twice:
        raise invalid_fields(twice, "invalid_query")
    try:
        return msgspec.convert(given, type_)
    except msgspec.ValidationError:
        found = _errors_of_fields(msgspec.json.encode(given), type_)
        raise invalid_fields(found, "invalid_query") from None


def too_large() -> Refusal:
    """Said before the body is read when its length is given, else as soon as it is too long."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the body is larger than {MAX_BODY_BYTES} bytes",
    )


def _wrong_shape(sentence: str, of_fields: dict[str, str]) -> Refusal:
    """Say what msgspec found; its sentences name types and fields, not values."""
    if of_fields:
        return invalid_fields(of_fields)
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_body", sentence)


def _errors_of_fields(raw: bytes, type_: type[msgspec.Struct]) -> dict[str, str]:
    """Look at each field by itself, so that all that is wrong is told at once."""
    try:
        given = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:  # not even an object
        return {}
    known = {field.encode_name: field for field in msgspec.structs.fields(type_)}
    found = [_error_of_field(name, field, given.get(name)) for name, field in known.items()]
    unknown = [(name, "there is no such field") for name in given if name not in known]
    return dict([error for error in found if error is not None] + unknown[:_UNKNOWN_NAMED])


def _error_of_field(
    name: str, field: msgspec.structs.FieldInfo, value: msgspec.Raw | None
) -> tuple[str, str] | None:
    if value is None:
        return (name, "it must be given") if field.required else None
    field_type: Any = field.type
    try:
        msgspec.json.decode(value, type=field_type)
    except msgspec.ValidationError as error:
        sentence = str(error)
        place, inner = _PLACE.search(sentence), _FIELD.search(sentence)
        parts = (name, place["path"] if place else "", inner["field"] if inner else "")
        return _joined(parts), _PLACE.sub("", sentence)
    return None


def _joined(parts: tuple[str, ...]) -> str:
    return ".".join(part for part in parts if part).replace(".[", "[")
