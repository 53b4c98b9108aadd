"""An answer in one piece, said as a stream to a client that asked for one.

Some providers do not stream, whatever they are asked. Client libraries that were promised events
read nothing else: they would take the answer for an empty one, and not complain. Pure.
"""

from codecs import BOM_UTF8
from typing import Final

import msgspec

from byoai_gateway.router.dialects import DONE
from byoai_gateway.router.endpoints import Dialect

_CHUNK: Final = msgspec.Raw(b'"chat.completion.chunk"')
_NONE: Final = msgspec.Raw(b"[]")

_Fields = dict[str, msgspec.Raw]
_fields: Final = msgspec.json.Decoder(_Fields)
_list: Final = msgspec.json.Decoder(list[_Fields])


def as_events(dialect: Dialect, body: bytes, *, hide_usage: bool) -> bytes:
    """Return the events that say what `body`, JSON of this dialect, says; to their end.

    Where it has a shape that cannot be read, or the dialect has no event for all of it, it is
    one event as it came.
    """
    body = body.removeprefix(BOM_UTF8)
    match dialect:
        case Dialect.CHAT:
            return _event(_chunk(body, hide_usage=hide_usage)) + DONE
        case Dialect.COMPLETION:  # its chunks have the shape of the whole
            return _event(body) + DONE
        case Dialect.RESPONSES:
            return _completed(body)
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


def _as_delta(choice: _Fields) -> _Fields:
    message = _fields.decode(choice.pop("message", msgspec.Raw(b"{}")))
    calls = message.get("tool_calls")
    if calls is not None and bytes(calls) != b"null":
        numbered = [
            {"index": msgspec.Raw(b"%d" % index)} | call
            for index, call in enumerate(_list.decode(calls))
        ]
        message["tool_calls"] = msgspec.Raw(msgspec.json.encode(numbered))
    return choice | {"delta": msgspec.Raw(msgspec.json.encode(message))}


def _completed(body: bytes) -> bytes:
    try:
        status = bytes(_fields.decode(body).get("status", msgspec.Raw(b"null")))
    except msgspec.MsgspecError:
        return _event(body)
    kind = "response.incomplete" if status == b'"incomplete"' else "response.completed"
    event = {"type": kind, "sequence_number": 0, "response": msgspec.Raw(body)}
    return b"event: %b\n%b" % (kind.encode(), _event(msgspec.json.encode(event)))


def _event(data: bytes) -> bytes:
    return b"".join(b"data: %b\n" % line for line in data.splitlines()) + b"\n"
