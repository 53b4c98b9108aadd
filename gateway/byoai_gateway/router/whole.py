"""An answer in one piece whose status says that all went well: whether that is so.

Some providers send an error with status 200, in place of the answer or inside its only choice.
Pure. It refuses what is not JSON where the endpoint answers with JSON, and what lacks the members
that the endpoint's schema requires; it does not check that the rest is what the documents promise.
"""

from codecs import BOM_UTF8
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from byoai_gateway.router.dialects import MalformedEvent, Usage, is_true, usage_of
from byoai_gateway.router.endpoints import Dialect, Endpoint, Member, Schema
from byoai_gateway.router.vendor_errors import Fields, error_in_place, vendor_error
from byoai_shared.lone_surrogates import decode

# A union with null is no place for `Raw`: msgspec would take null only.
_NULL: Final = msgspec.Raw(b"null")
_EMPTY: Final = msgspec.Raw(b'{"message":"its answer is empty, because of an error"}')
_FAILED: Final = msgspec.Raw(b'{"message":"its answer says only that it failed"}')


_STATUS_FAILED: Final = msgspec.Raw(b'"failed"')
_TYPE_ERROR: Final = msgspec.Raw(b'"error"')
_NONE: Final = msgspec.Raw(b"?")
"""What no value begins with."""
_Shape = TypeVar("_Shape")


class NotJson(MalformedEvent):
    """What came where JSON is due; the sentence does not quote it."""

    def __init__(self, body: bytes) -> None:
        begin = body.lstrip()[:1]
        self.is_begun = begin in (b"{", b"[")
        if begin == b"<":
            super().__init__("it is a web page, not JSON; check the provider's address")
        else:
            super().__init__("it is not JSON" if begin else "it is empty")


class _Message(msgspec.Struct):
    content: object = None
    tool_calls: object = None
    reasoning: object = None
    reasoning_content: object = None
    refusal: object = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: object = None
    finish_reason: object = None
    native_finish_reason: object = None
    error: msgspec.Raw = _NULL

    @property
    def is_empty(self) -> bool:
        it = self.message
        said = it and (
            it.content or it.tool_calls or it.reasoning or it.reasoning_content or it.refusal
        )
        return not (self.text or said)


class _Answer(msgspec.Struct):
    """An answer with choices, as nearly all are."""

    choices: list[_Choice]
    error: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    base_resp: msgspec.Raw = _NULL
    kind: object = msgspec.field(default=None, name="object")


_ANSWER: Final = msgspec.json.Decoder(_Answer)
_WITH_CHOICES: Final = frozenset({Dialect.CHAT, Dialect.COMPLETION})
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_CHOICES: Final = msgspec.json.Decoder(list[_Choice])


def check(endpoint: Endpoint, body: bytes) -> tuple[Usage | None, msgspec.Raw | None]:
    """Return what an answer of status 200 cost, and the error that it is after all.

    Raises:
        MalformedEvent: it cannot be read, or is no answer of this endpoint.
    """
    body = body.removeprefix(BOM_UTF8)  # clients read past it, so it is no fault
    if endpoint.dialect in _WITH_CHOICES and (answer := _plain_answer(body)) is not None:
        usage = None if answer.usage is _NULL else usage_of(answer.usage)
        return usage, _error_of_choices(answer.choices)
    fields = _fields(body, endpoint.schema) if endpoint.is_json else _fields_of_text(body)
    if fields is None:
        return None, None
    usage = usage_of(fields["usage"]) if "usage" in fields else None
    return usage, _error(endpoint, fields)


def _plain_answer(body: bytes) -> _Answer | None:
    """Read an answer with choices in one step; None where more must be looked at."""
    try:
        answer = _ANSWER.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    is_odd = is_true(answer.error) or answer.base_resp is not _NULL or answer.kind == "error"
    return None if is_odd else answer


def _fields(body: bytes, schema: Schema) -> Fields | None:
    """Return the top level of an object; None for another value that is an answer."""
    try:
        if body.lstrip()[:1] == b"[":
            return _fields_of_array(_read(_ITEMS, body), schema)
        return _read(_FIELDS, body)
    except NotJson:
        # An error in one line, and something else behind it.
        line, _, rest = body.partition(b"\n")
        fields = _read(_FIELDS, line) if rest else {}
        if not is_true(fields.get("error")):
            raise
        return fields


def _fields_of_text(body: bytes) -> Fields | None:
    """Where a text is an answer too, only an object is read; and a web page is none."""
    begin = body.lstrip()[:1]
    if begin == b"<":
        raise NotJson(body)
    try:
        return _read(_FIELDS, body) if begin == b"{" else None
    except NotJson:
        return None


def _fields_of_array(items: list[msgspec.Raw], schema: Schema) -> Fields | None:
    """Google wraps an error in a list; some servers answer with a bare list."""
    fields = _read(_FIELDS, bytes(items[0])) if items and bytes(items[0])[:1] == b"{" else {}
    if is_true(fields.get("error")):
        return fields
    if not schema.may_be_array:
        raise MalformedEvent("it has a shape that cannot be read")
    return None


def _read(decoder: msgspec.json.Decoder[_Shape], data: bytes) -> _Shape:
    try:
        return decode(decoder, data)
    except msgspec.ValidationError:  # its message would quote the answer
        raise MalformedEvent("it has a shape that cannot be read") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise NotJson(data) from None


def _error(endpoint: Endpoint, fields: Fields) -> msgspec.Raw | None:
    error = fields.get("error")
    if is_true(error):
        return error
    dialect = endpoint.dialect
    if dialect is Dialect.RESPONSES and fields.get("status") == _STATUS_FAILED:
        return _FAILED
    if dialect is Dialect.MESSAGES and fields.get("type") == _TYPE_ERROR:
        return _FAILED
    if fields.get("object") == _TYPE_ERROR:  # SGLang's, and older vLLM's
        return error_in_place(fields) or _FAILED
    missing = _missing(endpoint.schema, fields)
    if not missing:
        is_told = "base_resp" in fields or not endpoint.schema.required
        told = vendor_error(fields) if is_told else None
        if told is not None or dialect not in _WITH_CHOICES:
            return told
        return _error_of_choices(_read(_CHOICES, bytes(fields["choices"])))
    told = error_in_place(fields)
    if told is None:
        raise MalformedEvent(f"it has no {missing}")
    return told


def _missing(schema: Schema, fields: Fields) -> str:
    """Name what is required and not there."""
    for group in schema.required:
        if not _has_one(group, fields):
            return " or ".join(f"`{it.name}`" for it in group)
    return ""


def _has_one(group: Iterable[Member], fields: Fields) -> bool:
    for member in group:  # noqa: SIM110 -- `any` costs every answer twice as much
        if bytes(fields.get(member.name, _NONE))[:1] in member.begins:
            return True
    return False


def _error_of_choices(choices: list[_Choice]) -> msgspec.Raw | None:
    for choice in choices[:1]:
        if is_true(choice.error):
            return choice.error
        if "error" in (choice.finish_reason, choice.native_finish_reason) and choice.is_empty:
            return _EMPTY
    return None
