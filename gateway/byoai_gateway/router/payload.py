"""Reads of a request what the router has to know: its model, and whether it wants a stream.

A body that is small enough is kept whole, so that it can be sent again (`keeping`), and read by
`byoai_shared.request_body`. A large upload is not kept and not read: it goes to one provider, once.
JSON is cut at its top level only; the values stay the bytes they came in.
"""

import re
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec

from byoai_gateway.model_names import RULE, ModelName, is_model_name
from byoai_gateway.refusals import Refusal
from byoai_gateway.router.endpoints import BodyKind, Dialect, Endpoint
from byoai_gateway.router.keeping import Held
from byoai_gateway.router.upstream import Call, Fields
from byoai_shared.http1.framing import Open
from byoai_shared.http1.head import Headers
from byoai_shared.http1.incoming import IncomingBody
from byoai_shared.http1.request import ServerRequest
from byoai_shared.request_body.errors import NotJson, UnreadableBody
from byoai_shared.request_body.form import FormBody
from byoai_shared.request_body.json_object import JsonBody
from byoai_shared.request_body.reading import read_json, read_upload

REPLAYABLE_UPLOAD_BYTES: Final = 32 * 1024 * 1024
_STATE_FIELDS: Final = ("previous_response_id", "conversation", "container")
_STATE_NAMES: Final = (
    b'"file_id"',
    b'"vector_store_ids"',
    b'"item_reference"',
    b'"encrypted_content"',  # only who encrypted it can read it
)
"""What names something that is kept, or whose kind is something kept, however deep it stands."""
_STATE_VALUES: Final = (
    # A tool's container that is there already; an object asks for a new one.
    (b'"container"', re.compile(rb'"container"\s*:\s*"')),
    # An answer that was spoken before.
    (b'"audio"', re.compile(rb'"audio"\s*:\s*\{\s*"id"')),
)
_NULL: Final = b"null"
_NONE: Final = msgspec.Raw(_NULL)
_WITH_CHOICES: Final = frozenset({Dialect.CHAT, Dialect.COMPLETION})
_PROMPTS: Final = re.compile(rb'\[\s*["\[]')
"""Several of them: texts, or lists of tokens. A list of numbers is one."""


class StreamOptions(msgspec.Struct):
    """What is read of `stream_options`."""

    include_usage: Annotated[
        bool | None, msgspec.Meta(description="whether the stream is to end with its usage")
    ] = None


class FieldsRead(msgspec.Struct):
    """What is read of a JSON body; every other field goes to the provider as it came."""

    model: ModelName | None = None
    stream: Annotated[
        bool | None, msgspec.Meta(description="whether to answer with server-sent events")
    ] = None
    stream_options: StreamOptions | None = None


class FormRead(msgspec.Struct):
    """What is read of a form; it goes to the provider as it came."""

    model: ModelName | msgspec.UnsetType = msgspec.UNSET


_prompts: Final = msgspec.json.Decoder(list[msgspec.Raw])
_n: Final = msgspec.json.Decoder(int | None)
_READERS: Final = {
    it.encode_name: msgspec.json.Decoder(it.type) for it in msgspec.structs.fields(FieldsRead)
}


def kept_bytes(request: ServerRequest, endpoint: Endpoint) -> int:
    """How many bytes a request says will be kept beyond what its connection holds already."""
    framing = request.body.framing
    if isinstance(framing, Open) or request.body.complete or not _is_kept(request, endpoint):
        return 0
    return framing


async def read_call(
    request: ServerRequest, endpoint: Endpoint, request_id: str, held: Held
) -> Call:
    """Read a request as far as its route asks for it.

    Raises:
        Refusal: it is not what the endpoint takes, or there is no room for it.
        HttpError: its body breaks off or is too large.
    """
    body = request.body.take() if request.body.complete else request.body
    if not isinstance(body, bytes) and _is_kept(request, endpoint):
        body = await held.keep(request.body)
    head = request.head
    read = _read(endpoint, head.headers, body)
    if read is None:
        return Call(endpoint, head, body, None, None, False, False, request_id, held)
    _check_model(read.model)
    if isinstance(read, FormBody):
        model, form = read.model, read.names
        return Call(endpoint, head, body, None, model, False, False, request_id, held, form=form)
    fields = read.fields
    is_stream = _field(fields, "stream", "true or false") or False
    options: StreamOptions | None = _field(fields, "stream_options", "an object")
    wants_usage = options is not None and options.include_usage is True
    return Call(endpoint, head, body, fields, read.model, is_stream, wants_usage, request_id, held)


def is_bound_to_state(call: Call) -> bool:
    """Whether only the provider that keeps what a request refers to can answer it.

    A schema that uses one of the words as a name counts too: a fallback that does not happen is
    told, one that should not have is not.
    """
    fields, body = call.fields, call.body
    if fields is None or not isinstance(body, bytes):
        return False
    if any(bytes(fields.get(name, msgspec.Raw(_NULL))) != _NULL for name in _STATE_FIELDS):
        return True
    # A prompt that is kept is named by an object; any other is the text itself.
    if bytes(fields.get("prompt", msgspec.Raw(_NULL))).startswith(b"{"):
        return True
    return any(name in body for name in _STATE_NAMES) or any(
        name in body and value.search(body) is not None for name, value in _STATE_VALUES
    )


def keeps_state(call: Call) -> bool:
    """Whether answering a request changes what its provider keeps.

    The Responses API stores every answer unless it is asked not to.
    """
    fields = call.fields
    if fields is None:
        return False
    stores = bytes(fields.get("store", _NONE))
    is_stored = stores == b"true" or (
        call.endpoint.dialect is Dialect.RESPONSES and stores != b"false"
    )
    in_background = bytes(fields.get("background", _NONE)) == b"true"
    return is_stored or in_background or is_bound_to_state(call)


def choices_asked(call: Call) -> int:
    """How many answers a request asks for at once: `n` of each prompt."""
    fields, dialect = call.fields, call.endpoint.dialect
    if fields is None or dialect not in _WITH_CHOICES:
        return 1
    prompts = 1
    if dialect is Dialect.COMPLETION and _PROMPTS.match(fields.get("prompt", _NONE)):
        prompts = len(_prompts.decode(fields["prompt"]))
    return prompts * _number(fields.get("n"))


def _number(raw: msgspec.Raw | None) -> int:
    """What `n` says; whether it may be that is the provider's to say."""
    try:
        return 1 if raw is None else max(1, _n.decode(raw) or 1)
    except msgspec.MsgspecError:
        return 1


def _is_kept(request: ServerRequest, endpoint: Endpoint) -> bool:
    if endpoint.body is not BodyKind.MULTIPART:
        return True
    framing = request.body.framing
    return not isinstance(framing, Open) and framing <= REPLAYABLE_UPLOAD_BYTES


def _read(
    endpoint: Endpoint, headers: Headers, body: bytes | IncomingBody
) -> JsonBody | FormBody | None:
    """Read a body; None if it is not kept, or there is none."""
    if endpoint.body is BodyKind.NONE or not isinstance(body, bytes):
        return None
    try:
        is_form = endpoint.body is BodyKind.MULTIPART
        return read_upload(headers, body) if is_form else read_json(headers, body)
    except NotJson as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "invalid_json", str(error)) from None
    except UnreadableBody as error:
        raise _invalid(str(error), error.param) from None


def _field(fields: Fields, name: str, wanted: str) -> Any:
    """The value of a field of `FieldsRead`, of its type there; None if it is not given."""
    raw = fields.get(name)
    if raw is None or bytes(raw) == _NULL:
        return None
    try:
        return _READERS[name].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _invalid(f"{name} must be {wanted}", name) from None


def _check_model(model: str | None) -> None:
    # Nothing at all leaves the choice to the provider.
    if model and not is_model_name(model):
        raise _invalid(f"model must have {RULE}", "model")


def _invalid(message: str, param: str | None = None) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "invalid_body", message, param=param)
