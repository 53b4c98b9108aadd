"""An answer in one piece, said as a stream to a client that asked for one.

Some providers do not stream, whatever they are asked. Client libraries that were promised events
read nothing else: they would take the answer for an empty one, and not complain. Pure.
"""

from codecs import BOM_UTF8
from functools import partial
from typing import Final

import msgspec

from byoai_gateway.router.dialects import DONE
from byoai_gateway.router.endpoints import Dialect
from byoai_shared.lone_surrogates import rebuilt

_CHUNK: Final = msgspec.Raw(b'"chat.completion.chunk"')
_NONE: Final = msgspec.Raw(b"[]")
_NULL: Final = msgspec.Raw(b"null")
_NO_TEXT: Final = msgspec.Raw(b'""')
_NO_FIELDS: Final = msgspec.Raw(b"{}")
_NO_TOKENS: Final = msgspec.Raw(b'{"output_tokens":0}')
_ENDED_EARLY: Final = frozenset({b'"incomplete"', b'"cancelled"'})
_TOOLS: Final = frozenset({b'"tool_use"', b'"server_tool_use"', b'"mcp_tool_use"'})
_SAID_IN_PIECES: Final = {
    b'"text"': (("text", "text_delta"),),
    b'"thinking"': (("thinking", "thinking_delta"), ("signature", "signature_delta")),
}
"""Of Anthropic's blocks: the fields that begin empty, and the deltas that fill them."""

_Fields = dict[str, msgspec.Raw]
_fields: Final = msgspec.json.Decoder(_Fields)
_list: Final = msgspec.json.Decoder(list[_Fields])


def as_events(dialect: Dialect, body: bytes, *, hide_usage: bool) -> bytes:
    """Return the events that say what `body`, JSON of this dialect, says; to their end.

    Where it has a shape that cannot be read, or the dialect has no event for all of it, it is
    one event as it came.
    """
    body = body.removeprefix(BOM_UTF8)
    made = partial(_made, dialect, hide_usage=hide_usage)
    try:
        _fields.decode(body)
    except msgspec.MsgspecError:
        return rebuilt(body, made)
    return made(body)


def _made(dialect: Dialect, body: bytes, *, hide_usage: bool) -> bytes:
    match dialect:
        case Dialect.CHAT:
            return _event(_chunk(body, hide_usage=hide_usage)) + DONE
        case Dialect.COMPLETION:  # its chunks have the shape of the whole
            return _event(_without_usage(body) if hide_usage else body) + DONE
        case Dialect.RESPONSES:
            return _completed(body)
        case Dialect.MESSAGES:
            return _message(body)
        case _:
            return _event(body)


def _chunk(body: bytes, *, hide_usage: bool) -> bytes:
    try:
        fields = _fields.decode(body)
        choices = [_as_delta(it) for it in _list.decode(fields.get("choices", _NONE))]
    except msgspec.MsgspecError:
        return body
    if hide_usage:
        fields.pop("usage", None)
    chunk = fields | {"object": _CHUNK, "choices": msgspec.Raw(msgspec.json.encode(choices))}
    return msgspec.json.encode(chunk)


def _without_usage(body: bytes) -> bytes:
    try:
        fields = _fields.decode(body)
    except msgspec.MsgspecError:
        return body
    return body if fields.pop("usage", None) is None else msgspec.json.encode(fields)


def _as_delta(choice: _Fields) -> _Fields:
    message = _fields.decode(choice.pop("message", _NO_FIELDS))
    calls = message.get("tool_calls")
    if calls is not None and bytes(calls) != _NULL:
        numbered = [
            {"index": msgspec.Raw(b"%d" % index)} | call
            for index, call in enumerate(_list.decode(calls))
        ]
        message["tool_calls"] = msgspec.Raw(msgspec.json.encode(numbered))
    return choice | {"delta": msgspec.Raw(msgspec.json.encode(message))}


def _completed(body: bytes) -> bytes:
    try:
        status = bytes(_fields.decode(body).get("status", _NULL))
    except msgspec.MsgspecError:
        return _event(body)
    kind = "response.incomplete" if status in _ENDED_EARLY else "response.completed"
    return _named(kind, sequence_number=0, response=msgspec.Raw(body))


def _message(body: bytes) -> bytes:
    try:
        fields = _fields.decode(body)
        blocks = _list.decode(fields.get("content", _NONE))
        content = b"".join(_block(index, block) for index, block in enumerate(blocks))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _event(body)
    reason = {name: fields.get(name, _NULL) for name in ("stop_reason", "stop_sequence")}
    begun = fields | dict.fromkeys(reason, _NULL) | {"content": _NONE}
    usage = fields.get("usage", _NO_TOKENS)
    return (
        _named("message_start", message=begun)
        + content
        + _named("message_delta", delta=reason, usage=usage)
        + _named("message_stop")
    )


def _block(index: int, block: _Fields) -> bytes:
    kind = bytes(block.get("type", _NULL))
    begun, deltas = dict(block), list[dict[str, object]]()
    if kind in _TOOLS and "input" in block:
        begun["input"] = _NO_FIELDS
        said = bytes(block["input"]).decode()
        deltas.append({"type": "input_json_delta", "partial_json": said})
    for name, delta in _SAID_IN_PIECES.get(kind, ()):
        if name in block:
            begun[name] = _NO_TEXT
            deltas.append({"type": delta, name: block[name]})
    return b"".join(
        (
            _named("content_block_start", index=index, content_block=begun),
            *(_named("content_block_delta", index=index, delta=it) for it in deltas),
            _named("content_block_stop", index=index),
        )
    )


def _named(kind: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: %b\n%b" % (kind.encode(), _event(data))


def _event(data: bytes) -> bytes:
    return b"".join(b"data: %b\n" % line for line in data.splitlines()) + b"\n"
