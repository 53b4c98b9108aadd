"""Reads request bodies: bounded in size and time, strict in shape.

Errors name the field and never repeat its value.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from byoai_gateway.refusals import Refusal

MAX_BODY_BYTES: Final = 64 * 1024
_READ_S: Final = 10.0

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
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not JSON") from None


def too_large() -> Refusal:
    """Said before the body is read when its length is given, else as soon as it is too long."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"the body is larger than {MAX_BODY_BYTES} bytes",
    )


def _wrong_shape(sentence: str) -> Refusal:
    """Say what msgspec found; its sentences name types and fields, not values."""
    place = _PLACE.search(sentence)
    field = _FIELD.search(sentence)
    parts = (place["path"] if place else "", field["field"] if field else "")
    name = ".".join(part for part in parts if part)
    what = _PLACE.sub("", sentence)
    message = f"{name}: {what}" if name else what
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_body", message, param=name or None)
