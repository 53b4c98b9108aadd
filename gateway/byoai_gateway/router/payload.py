"""Reads of a request what the router has to know: its model, and whether it wants a stream.

A body that is small enough is kept whole, so that it can be sent again; all that is kept counts
against one budget of the process. A large upload is not kept: it goes to one provider, once.
JSON is cut at its top level only; the values stay the bytes they came in.
"""

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from byoai_gateway.refusals import Refusal
from byoai_gateway.router.endpoints import BodyKind, Endpoint
from byoai_gateway.router.upstream import Call, Fields
from byoai_shared.http1.framing import Open
from byoai_shared.http1.request import ServerRequest

REPLAYABLE_UPLOAD_BYTES: Final = 32 * 1024 * 1024
_FORM_HEAD_BYTES: Final = 64 * 1024
_MAX_MODEL: Final = 200
_MODEL_FIELD: Final = re.compile(
    rb'name="?model"?[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,200})\r\n--'
)
_STATE_FIELDS: Final = ("previous_response_id", "conversation")
_NULL: Final = b"null"

_Value = TypeVar("_Value")
_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class Budget:
    """How many bytes of bodies all requests together keep."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.used = 0

    @contextmanager
    def hold(self, size: int) -> Generator[None]:
        """Count `size` bytes meanwhile.

        Raises:
            Refusal: there is no room for them now.
        """
        if self.used + size > self._most:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "overloaded",
                "the gateway keeps as many large requests as it can now; try again in a moment",
                retry_after_s=1,
            )
        self.used += size
        try:
            yield
        finally:
            self.used -= size


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What of a body may be kept."""

    max_bytes: int
    budget: Budget


def kept_bytes(request: ServerRequest, endpoint: Endpoint, limits: BodyLimits) -> int:
    """How many bytes of a request have to be kept beyond what its connection holds already."""
    framing = request.body.framing
    if request.body.complete or not _is_kept(request, endpoint):
        return 0
    return framing if isinstance(framing, int) else limits.max_bytes


async def read_call(
    request: ServerRequest, endpoint: Endpoint, request_id: str, limits: BodyLimits
) -> Call:
    """Read a request as far as its route asks for it.

    Raises:
        Refusal: it is not what the endpoint takes.
        HttpError: its body breaks off or is too large.
    """
    body = request.body.take() if request.body.complete else request.body
    if not isinstance(body, bytes) and _is_kept(request, endpoint):
        body = await request.read(limits.max_bytes)
    fields: Fields | None = None
    model: str | None = None
    is_stream = wants_usage = False
    if endpoint.body is BodyKind.JSON and isinstance(body, bytes):
        fields = _fields(body)
        model = _field(fields, "model", str, "a text")
        is_stream = _field(fields, "stream", bool, "true or false") or False
        options = _field(fields, "stream_options", _StreamOptions, "an object")
        wants_usage = options is not None and options.include_usage is True
    elif endpoint.body is BodyKind.MULTIPART and isinstance(body, bytes):
        model = _form_model(body)
    _check_model(model)
    return Call(endpoint, request.head, body, fields, model, is_stream, wants_usage, request_id)


def is_bound_to_state(call: Call) -> bool:
    """Whether only the provider that keeps what a request refers to can answer it."""
    if call.fields is None:
        return False
    named = any(bytes(call.fields.get(name, msgspec.Raw(_NULL))) != _NULL for name in _STATE_FIELDS)
    return named or (isinstance(call.body, bytes) and b'"file_id"' in call.body)


def _is_kept(request: ServerRequest, endpoint: Endpoint) -> bool:
    if endpoint.body is not BodyKind.MULTIPART:
        return True
    framing = request.body.framing
    return not isinstance(framing, Open) and framing <= REPLAYABLE_UPLOAD_BYTES


def _fields(body: bytes) -> Fields:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        raise _invalid("the body must be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not JSON") from None


def _field(fields: Fields, name: str, type_: type[_Value], wanted: str) -> _Value | None:
    raw = fields.get(name)
    if raw is None or bytes(raw) == _NULL:
        return None
    try:
        return msgspec.json.decode(raw, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _invalid(f"{name} must be {wanted}", name) from None


def _form_model(body: bytes) -> str | None:
    found = _MODEL_FIELD.search(body, 0, _FORM_HEAD_BYTES)
    return found[1].decode("utf-8", "replace").strip() if found else None


def _check_model(model: str | None) -> None:
    if model is not None and (len(model) > _MAX_MODEL or not model.isprintable()):
        raise _invalid(f"model must be at most {_MAX_MODEL} printable characters", "model")


def _invalid(message: str, param: str | None = None) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_body", message, param=param)
