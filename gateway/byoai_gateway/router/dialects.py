"""What one event of a streamed answer says, dialect by dialect; and how an error is said in each.

Pure. Only the few fields that decide something are decoded, by types that skip the rest, so that
an event costs about a microsecond. It refuses what is not JSON where JSON is due; it does not
check that an event is what the documents promise, since no two servers agree on that.
"""

from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.error_details import members
from byoai_gateway.router.messages_error import messages_error
from byoai_gateway.router.vendor_errors import vendor_error
from byoai_shared.api_errors import ApiError
from byoai_shared.errors import ByoaiError
from byoai_shared.lone_surrogates import decode

DONE: Final = b"data: [DONE]\n\n"
_DONE_WORD: Final = b"[DONE]"
_FALSE: Final = frozenset({b"", b"null", b'""', b"{}", b"[]", b"false", b"0"})
_BARE_ERROR: Final = msgspec.Raw(b'{"message":"it ended its answer with an error"}')


class MalformedEvent(ByoaiError):
    """An event's data is not what its dialect can be read from."""


class Usage(msgspec.Struct, frozen=True):
    """What an answer cost, as far as the provider said."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    """In US dollars; OpenRouter says it."""

    def updated(self, later: "Usage") -> "Usage":
        """Return the later figures, and these where it has none."""
        return Usage(
            self.prompt_tokens if later.prompt_tokens is None else later.prompt_tokens,
            self.completion_tokens if later.completion_tokens is None else later.completion_tokens,
            self.cost if later.cost is None else later.cost,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """What one event says."""

    has_content: bool = False
    """Text, a tool call, reasoning, a refusal: what commits to this provider."""
    finished: tuple[int, ...] = ()
    """The choices with which the model says that it is through; 0 where there is no choice."""
    is_done: bool = False
    """Nothing comes behind it."""
    error: msgspec.Raw | None = None
    is_ending: bool = False
    """Its error is its dialect's own way to end a stream that failed."""
    usage: Usage | None = None
    is_usage_only: bool = False
    is_comment: bool = False
    """It carries no data: a comment, or nothing at all."""


Reader = Callable[[bytes], Seen]
_Shape = TypeVar("_Shape")

CONTENT: Final = Seen(has_content=True)
"""What most events say, and nothing else."""
_NOTHING: Final = Seen()
_COMMENT: Final = Seen(is_comment=True)
_DONE: Final = Seen(is_done=True)
_ALONE: Final = (0,)
_RESPONSE_ENDS: Final = frozenset(
    {"response.completed", "response.incomplete", "response.cancelled"}
)


def reader(dialect: Dialect) -> Reader:
    """Return what reads one whole event of a dialect, as `sse` cuts it.

    The reader raises MalformedEvent.
    """
    return _READERS[dialect]


def error_event(dialect: Dialect, error: ApiError, status: int) -> bytes:
    """Return the event that ends a stream with an error; nothing where a dialect has none.

    `status` is what the error would have been answered with, had no stream begun.
    """
    inside = members(error)
    match dialect:
        case Dialect.CHAT:
            choice = {"index": 0, "delta": {"content": ""}, "finish_reason": "error"}
            return _event({"object": "chat.completion.chunk", "error": inside, "choices": [choice]})
        case Dialect.COMPLETION:
            choice = {"index": 0, "text": "", "finish_reason": "error"}
            return _event({"object": "text_completion", "error": inside, "choices": [choice]})
        case Dialect.RESPONSES:
            # Flat is how it is documented; client libraries look for `error` as everywhere.
            flat = {"code": error.code, "message": error.message, "param": error.param}
            return _event({"type": "error", **flat, "error": inside}, name=b"error")
        case Dialect.MESSAGES:
            return _event(messages_error(error, status), name=b"error")
        case Dialect.PLAIN:
            return b""


def usage_of(raw: msgspec.Raw) -> Usage | None:
    """Read a `usage` object of any dialect; None if there is nothing in it that can be read."""
    try:
        said = _USAGE.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if said is None:
        return None
    usage = Usage(
        _tokens(said.input_tokens if said.prompt_tokens is None else said.prompt_tokens),
        _tokens(said.output_tokens if said.completion_tokens is None else said.completion_tokens),
        _dollars(said.cost),
    )
    return None if usage == Usage() else usage


def _number(value: object) -> float | None:
    """Read a number, also one that is written as a text."""
    if type(value) is int:
        return value
    if isinstance(value, str) and len(value) <= _MOST_DIGITS:
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tokens(value: object) -> int | None:
    if value is None:
        return None
    if type(value) is int:
        return value if 0 <= value <= _MOST_TOKENS else None
    number = _number(value)
    if number is None or not 0 <= number <= _MOST_TOKENS:
        return None
    return int(number) if number == int(number) else None


def _dollars(value: object) -> float | None:
    if value is None:
        return None
    number = _number(value)
    return float(number) if number is not None and 0 <= number <= _MOST_DOLLARS else None


def is_true(raw: msgspec.Raw | None) -> bool:
    """Say whether a client would take a field for set, if it is there at all."""
    return raw is not None and raw is not _NULL and bytes(raw) not in _FALSE


# ---- the shapes: values whose type differs between servers are taken as whatever they are. They
# live for one event and hold no cycle, so the garbage collector is spared them.


# Figures that a database takes; a provider may say anything.
_MOST_TOKENS: Final = 2**31 - 1
_MOST_DOLLARS: Final = 1e9
_MOST_DIGITS: Final = 40


# A union with null is no place for `Raw`: msgspec would take null only.
_NULL: Final = msgspec.Raw(b"null")


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: object = None
    completion_tokens: object = None
    input_tokens: object = None
    output_tokens: object = None
    cost: object = None


class _Delta(msgspec.Struct, gc=False):
    content: object = None
    tool_calls: object = None
    reasoning_content: object = None
    reasoning: object = None
    reasoning_details: object = None
    refusal: object = None
    function_call: object = None
    audio: object = None
    images: object = None


class _Choice(msgspec.Struct, gc=False):
    index: object = None
    delta: _Delta | None = None
    text: object = None
    finish_reason: object = None
    native_finish_reason: object = None
    error: msgspec.Raw = _NULL


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL
    base_resp: msgspec.Raw = _NULL


class _Item(msgspec.Struct, gc=False):
    type: object = None
    content: object = None


class _Response(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL


class _ResponseEvent(msgspec.Struct, gc=False):
    type: str = ""
    delta: object = None
    item: _Item | None = None
    response: _Response | None = None
    error: msgspec.Raw = _NULL


class _Block(msgspec.Struct, gc=False):
    type: object = None
    text: object = None
    thinking: object = None


class _MessageDelta(msgspec.Struct, gc=False):
    stop_reason: object = None


class _Message(msgspec.Struct, gc=False):
    usage: msgspec.Raw = _NULL


class _MessageEvent(msgspec.Struct, gc=False):
    type: str = ""
    delta: _MessageDelta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: msgspec.Raw = _NULL
    error: msgspec.Raw = _NULL


_USAGE: Final = msgspec.json.Decoder(_Usage | None)
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_CHUNK: Final = msgspec.json.Decoder(_Chunk)
_RESPONSE_EVENT: Final = msgspec.json.Decoder(_ResponseEvent)
_MESSAGE_EVENT: Final = msgspec.json.Decoder(_MessageEvent)


# ---- one event


def _event(data: object, *, name: bytes = b"") -> bytes:
    line = b"event: %b\n" % name if name else b""
    return line + b"data: " + msgspec.json.encode(data) + b"\n\n"


def _data(event: bytes) -> tuple[bytes, bytes]:
    """Return an event's name and its data; no data is a comment."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return b"", event[6:-2]
    name, data = b"", list[bytes]()
    for line in event.removeprefix(BOM_UTF8).splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field == b"error":  # older llama.cpp: a field instead of an event
            return b"error", value
        elif line.startswith(b"{") and _is_error(line):
            return b"error", line
    return name, b"\n".join(data)


def _is_error(text: bytes) -> bool:
    """Say whether a line that is no field is an error all the same; a client skips such lines."""
    try:
        fields = decode(_FIELDS, text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return is_true(fields.get("error")) or vendor_error(fields) is not None


def _is_done_word(data: bytes) -> bool:
    return not data.startswith(b"{") and data.strip() == _DONE_WORD


def _decoded(decoder: msgspec.json.Decoder[_Shape], data: bytes) -> _Shape:
    try:
        return decode(decoder, data)
    except msgspec.ValidationError:  # its message would quote the answer
        raise MalformedEvent("an event of it has a shape that cannot be read") from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise MalformedEvent("an event of it is not JSON") from None


def _told_by_vendor(data: bytes) -> msgspec.Raw | None:
    fields = _decoded(_FIELDS, data)
    return vendor_error(fields)


def _read_chunk(name: bytes, data: bytes) -> Seen:
    chunk = _decoded(_CHUNK, data)
    if is_true(chunk.error):
        return Seen(error=chunk.error)
    if name == b"error":
        return Seen(error=msgspec.Raw(data))
    if chunk.choices is None or chunk.base_resp is not _NULL:
        told = _told_by_vendor(data)
        if told is not None:
            return Seen(error=told)
    usage = None if chunk.usage is _NULL else usage_of(chunk.usage)
    if not chunk.choices:
        return Seen(usage=usage, is_usage_only=True) if is_true(chunk.usage) else _NOTHING
    return _read_choices(chunk.choices, usage)


def _read_choices(choices: list[_Choice], usage: Usage | None) -> Seen:
    has_content = False
    finished: tuple[int, ...] = ()
    for choice in choices:
        if is_true(choice.error):
            return Seen(error=choice.error)
        if choice.finish_reason or choice.native_finish_reason:
            if "error" in (choice.finish_reason, choice.native_finish_reason):
                return Seen(error=_BARE_ERROR)
            if choice.finish_reason:
                finished += (choice.index if isinstance(choice.index, int) else 0,)
        if _has_content(choice):
            has_content = True
    if finished or usage is not None:
        return Seen(has_content=has_content, finished=finished, usage=usage)
    return CONTENT if has_content else _NOTHING


def _has_content(choice: _Choice) -> bool:
    it = choice.delta
    return bool(choice.text) or (
        it is not None
        and bool(
            it.content
            or it.tool_calls
            or it.reasoning_content
            or it.reasoning
            or it.refusal
            or it.reasoning_details
            or it.function_call
            or it.audio
            or it.images
        )
    )


def _read_response(name: bytes, data: bytes) -> Seen:
    it = _decoded(_RESPONSE_EVENT, data)
    if it.type.endswith(".delta"):
        return CONTENT if it.delta else _NOTHING
    inner = _Response() if it.response is None else it.response
    if it.type == "response.failed":
        error = inner.error if is_true(inner.error) else _BARE_ERROR
        return Seen(error=error, is_ending=True, usage=usage_of(inner.usage))
    if it.type == "error" or name == b"error" or is_true(it.error):
        return Seen(error=it.error if is_true(it.error) else msgspec.Raw(data))
    if not it.type:
        return Seen(error=_told_by_vendor(data))
    if it.type in _RESPONSE_ENDS:
        return Seen(finished=_ALONE, usage=usage_of(inner.usage))
    return CONTENT if _is_content_item(it.item) else _NOTHING


def _is_content_item(item: _Item | None) -> bool:
    """Say whether an output item is more than the frame of a message still to come."""
    return item is not None and (item.type != "message" or bool(item.content))


def _read_message(name: bytes, data: bytes) -> Seen:
    it = _decoded(_MESSAGE_EVENT, data)
    if it.type == "content_block_delta":
        return CONTENT
    if it.type == "error" or name == b"error" or is_true(it.error):
        return Seen(error=it.error if is_true(it.error) else msgspec.Raw(data))
    if not it.type:
        return Seen(error=_told_by_vendor(data))
    if it.type == "message_stop":
        return Seen(finished=_ALONE, is_done=True)
    if it.type == "content_block_start":
        return CONTENT if _is_content_block(it.content_block) else _NOTHING
    return _read_frame(it)


def _read_frame(it: _MessageEvent) -> Seen:
    """Read what surrounds the content: `message_start`, `message_delta`, `ping`."""
    said = it.usage if it.message is None else it.message.usage
    return Seen(
        finished=_ALONE if it.delta is not None and it.delta.stop_reason else (),
        usage=usage_of(said),
    )


def _is_content_block(block: _Block | None) -> bool:
    if block is None:
        return False
    return block.type not in ("text", "thinking") or bool(block.text or block.thinking)


def _read_bytes(event: bytes) -> Seen:
    return CONTENT if event else _NOTHING


def _of_events(read: Callable[[bytes, bytes], Seen]) -> Reader:
    """Make a reader of whole events out of what reads a name and data that say something."""

    def read_event(event: bytes) -> Seen:
        name, data = _data(event)
        if not data:
            bare = event.strip()  # JSON in several lines
            if not (bare.startswith(b"{") and _is_error(bare)):
                return _COMMENT
            name, data = b"error", bare
        return _DONE if _is_done_word(data) else read(name, data)

    return read_event


_READERS: Final[dict[Dialect, Reader]] = {
    Dialect.CHAT: _of_events(_read_chunk),
    Dialect.COMPLETION: _of_events(_read_chunk),
    Dialect.RESPONSES: _of_events(_read_response),
    Dialect.MESSAGES: _of_events(_read_message),
    Dialect.PLAIN: _read_bytes,
}
