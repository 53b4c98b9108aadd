"""What the bytes of an answer are, where the labels on it cannot be trusted.

Servers and proxies label events as text or JSON, errors in JSON as events, and plain bytes with a
content coding that is none. Pure: the first bytes tell events and JSON apart.
"""

from codecs import BOM_UTF8
from enum import Enum, auto
from typing import Final

from byoai_shared.http1.head import Headers, ResponseHead

MOST_BLANK_BYTES: Final = 4096
"""After so many bytes of nothing the label decides; some servers send blanks while they work."""
_BLANK: Final = b" \t\r\n"
_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b"error:")
"""`error` is older llama.cpp's."""
_COMMENT: Final = b":"
_CODINGS: Final = frozenset(
    {
        *(b"aes128gcm", b"br", b"compress", b"dcb", b"dcz", b"deflate", b"exi", b"gzip"),
        *(b"pack200-gzip", b"x-compress", b"x-gzip", b"zstd"),
    }
)
"""IANA's content codings, without `identity`: what else a header names changes no byte."""
_ENCODING: Final = b"content-encoding"
_TYPE: Final = b"content-type"
_EVENTS: Final = b"text/event-stream"
_JSON: Final = b"application/json"
_PLAIN_JSON: Final = frozenset(
    {_JSON, b"application/json; charset=utf-8", b"application/json;charset=utf-8"}
)
_PAGES: Final = frozenset({b"text/html", b"application/xhtml+xml"})


class Bytes(Enum):
    """What a body is."""

    EVENTS = auto()
    JSON = auto()
    OTHER = auto()


def is_readable(headers: Headers) -> bool:
    """Say whether a body is not compressed; some servers compress without being asked to."""
    for name, value in headers:
        if name == _ENCODING:
            codings = {it.strip(b" \t").lower() for it in value.split(b",")}
            if not _CODINGS.isdisjoint(codings):
                return False
    return True


def is_labelled_events(head: ResponseHead) -> bool:
    """Say whether an answer calls itself a stream of events."""
    return _media_type(head) == _EVENTS


def is_labelled_json(head: ResponseHead) -> bool:
    """Say whether an answer calls itself JSON."""
    return _media_type(head) == _JSON


def is_plain_json(head: ResponseHead) -> bool:
    """Say whether an answer calls itself JSON and names no content coding, as nearly all do."""
    is_json = False
    for name, value in head.headers:
        if name == _ENCODING:
            return False
        if name == _TYPE:
            is_json = value in _PLAIN_JSON
    return is_json


def is_labelled_page(head: ResponseHead) -> bool:
    """Say whether an answer calls itself a web page, which no endpoint answers with."""
    return _media_type(head) in _PAGES


def sniffed(begin: bytes) -> Bytes | None:
    """Say what a body is that begins like this; None if too little of it has come."""
    text = begin.removeprefix(BOM_UTF8).lstrip(_BLANK)
    if not text or BOM_UTF8.startswith(text):
        return Bytes.OTHER if len(begin) > MOST_BLANK_BYTES else None
    if text.startswith((b"{", b"[")):
        return Bytes.JSON
    if text.startswith((_COMMENT, *_FIELDS)):
        return Bytes.EVENTS
    return None if any(it.startswith(text) for it in _FIELDS) else Bytes.OTHER


def relabelled(head: ResponseHead, kind: Bytes) -> ResponseHead:
    """Return a readable answer's head for the client: a label that is wrong is put right.

    JSON under another type than that of events keeps it.
    """
    headers = tuple(pair for pair in head.headers if pair[0] != _ENCODING)
    is_events = is_labelled_events(head)
    if kind is Bytes.EVENTS and not is_events:
        headers = _with_type(headers, _EVENTS)
    elif kind is Bytes.JSON and is_events:
        headers = _with_type(headers, _JSON)
    return head if headers == head.headers else ResponseHead(head.status, headers, head.reason)


def _with_type(headers: Headers, kind: bytes) -> Headers:
    return ((_TYPE, kind), *(pair for pair in headers if pair[0] != _TYPE))


def _media_type(head: ResponseHead) -> bytes:
    return (head.header(_TYPE) or b"").partition(b";")[0].strip(b" \t").lower()
