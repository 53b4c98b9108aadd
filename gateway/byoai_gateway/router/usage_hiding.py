"""Takes the usage out of a chunk of a stream, for a client that did not ask for it.

The bytes around it stay as they came. Only the chunk's own member is meant: `usage` inside
another object, and the word in a text, are content. Pure. A chunk whose data takes several lines
keeps its null: no server is known to write it so.
"""

import re
from typing import Final, NamedTuple

import msgspec

from byoai_gateway.router.dialects import is_true
from byoai_shared.lone_surrogates import decode

_KEY: Final = b'"usage"'
_NULL: Final = b',"usage":null'
_END: Final = b"}\n\n"
_LAST: Final = _NULL + _END
_SPACED_NULL: Final = re.compile(rb',\s*"usage"\s*:\s*null')
_TOKEN: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)
_LINE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))data: ?(\{[^\r\n]*\})[ \t]*(?=[\r\n])")
_ENVELOPE: Final = frozenset(
    {
        *("id", "object", "created", "model", "choices", "usage", "system_fingerprint"),
        *("service_tier", "provider", "obfuscation"),
    }
)
"""What every chunk repeats, or fills itself up with."""
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_DATA: Final = re.compile(rb"(?:\A|(?<=[\r\n]))data:")


def may_have_usage(events: bytes) -> bool:
    """Say whether there is anything to take out: almost no cost, and seldom a false yes."""
    return _KEY in events


def without_nulls(events: bytes, count: int) -> bytes | None:
    """Take `"usage":null` out of events with `count` such members at their top level.

    The events are those of `fast_path`. None if one of the members cannot be told from another at
    a glance; then `without_null` can.
    """
    if count == 1 and events.endswith(_LAST):
        return events[: -len(_LAST)] + _END  # what stands before the last brace is the object's own
    if events.count(_KEY) != count:
        return None
    cut = events.replace(_NULL, b"")
    if len(events) - len(cut) == count * len(_NULL):
        return cut
    cut, taken = _SPACED_NULL.subn(b"", events)
    return cut if taken == count else None


def without_null(event: bytes) -> bytes:
    """Take `"usage":null` out of one event; any other usage stays."""
    found = _found(event)
    return event if found is None or found.value(event) != b"null" else found.cut(event)


def without_usage(event: bytes) -> bytes:
    """Take the usage out of an event that tells nothing else of the answer.

    Nothing is left of it unless the server adds something of its own, as llama.cpp does `timings`.
    """
    line, found = _data(event), _found(event)
    if line is None or found is None:
        return b""
    fields = decode(_FIELDS, line[1])
    is_more = any(name not in _ENVELOPE and is_true(value) for name, value in fields.items())
    return found.cut(event) if is_more else b""


class _Found(NamedTuple):
    """Where the member is in an event."""

    begin: int
    """With the comma before it, if there is one."""
    colon: int
    end: int
    is_first: bool

    def value(self, event: bytes) -> bytes:
        return event[self.colon + 1 : self.end].strip()

    def cut(self, event: bytes) -> bytes:
        rest = event[self.end :]
        if self.is_first:
            rest = rest.removeprefix(b",").lstrip(b" \t")
        return event[: self.begin] + rest


def _data(event: bytes) -> re.Match[bytes] | None:
    """Return the line of data; None if there are several, or it is no object."""
    line = _LINE.search(event)
    return line if line is not None and len(_DATA.findall(event)) == 1 else None


def _found(event: bytes) -> _Found | None:
    line = _data(event)
    return None if line is None else _member(event, *line.span(1))


def _member(event: bytes, begin: int, end: int) -> _Found | None:
    """Find the member at the top level of the object at this place."""
    depth, comma, key, colon = 0, -1, -1, -1
    is_key = False
    for token in _TOKEN.finditer(event, begin, end):
        word, at = token[0], token.start()
        if depth == 1 and colon >= 0 and word in b",}":
            return _Found(key if comma < 0 else comma, colon, at, comma < 0)
        if word in b"{[":
            depth += 1
            is_key = depth == 1
        elif word in b"}]":
            depth -= 1
        elif depth == 1 and word == b",":
            comma, is_key = at, True
        elif depth == 1 and word == b":" and key >= 0 and colon < 0:
            colon = at
        elif depth == 1 and is_key:
            key = at if word == _KEY else -1
            is_key = False
    return None
