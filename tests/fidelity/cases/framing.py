"""Labels and HTTP framing: what is said about a body outside of it, rightly and wrongly."""

import gzip
from typing import Final

from fidelity.cases.building import (
    CHAT,
    HELLO,
    SOUND,
    STREAM,
    everywhere,
    in_events,
    in_one_piece,
    on,
    raw,
    start,
)
from fidelity.cases.endpoints import MESSAGE_STREAM, RESPONSE_STREAM, VECTOR
from fidelity.differences import (
    COMPRESSED,
    LABELLED,
    MALFORMED,
    NO_ANSWER,
    NO_CODING,
    NO_STREAM,
    OWN_LIST,
    PROPER_END,
    REDIRECT,
    USERS_LIST,
)
from fidelity.model import CLIENT_READS, Ask, Case, OneOf, Route
from support.provider_script import Close, framed, messages_events, responses_events

EVENTS: Final = b"".join(HELLO)
TYPE: Final = {"content-type": "text/event-stream"}
JSON: Final = {"content-type": "application/json"}
CHUNKED: Final = {"transfer-encoding": "chunked"}
LAST: Final = b"0\r\n\r\n"
BAD: Final = {"error.code": "malformed_answer"}
PAGE: Final = b"<!doctype html><title>Open WebUI</title>"
PACKED: Final = gzip.compress(SOUND, mtime=0)


def labelled(label: str) -> Case:
    """A stream with another media type."""
    return in_events(
        f"label {label or 'absent'}",
        *HELLO,
        headers={"content-type": label} if label else {"x-vendor-a": "1"},
        differs=everywhere(LABELLED),
    )


def chunks(*steps: bytes) -> tuple[bytes, ...]:
    """Bytes in chunks, with their end."""
    pieces = [framed(it) for it in steps]
    return (*(it for it in pieces if isinstance(it, bytes)), LAST)


LABELS: Final = (
    labelled("text/plain"),
    labelled("application/json"),
    labelled("application/octet-stream"),
    raw("label absent", STREAM, start(CHUNKED), *chunks(*HELLO), differs=everywhere(LABELLED)),
    raw("label absent, ended by close", STREAM, start({}), EVENTS, Close(), differs=everywhere(LABELLED)),
    in_events("label with a charset", *HELLO, headers={"content-type": "Text/Event-Stream; charset=UTF-8"}),
    in_one_piece("label text/plain of JSON", SOUND, kind="text/plain"),
    in_one_piece("label application/problem of JSON", SOUND, kind="application/octet-stream"),
    raw("label absent of JSON", CHAT, start({"content-length": str(len(SOUND))}) + SOUND),
    in_events("events labelled JSON for a response", *responses_events("Hi"), ask=RESPONSE_STREAM, headers={"content-type": "application/json"}, differs=everywhere(LABELLED)),
    in_events("events labelled text for a message", *messages_events("Hi"), ask=MESSAGE_STREAM, headers={"content-type": "text/plain"}, differs=everywhere(LABELLED)),
)  # fmt: skip


def coded(coding: str) -> tuple[Case, ...]:
    """A coding that codes nothing, on a stream and on one piece."""
    headers, differs = {"content-encoding": coding}, everywhere(NO_CODING)
    return (
        in_events(f"coding {coding} streamed", *HELLO, headers=headers, differs=differs),
        in_one_piece(f"coding {coding} whole", SOUND, headers=headers, differs=differs),
    )


CODINGS: Final = (
    *coded("none"),
    *coded("utf-8"),
    *coded("identity"),
    in_one_piece("a page with the coding none", b"<html>", kind="text/html", headers={"content-encoding": "none"}, differs=everywhere(MALFORMED), error=BAD),
    in_events("a compressed stream", gzip.compress(EVENTS, mtime=0), headers={"content-encoding": "gzip"}, differs=everywhere(COMPRESSED), error=BAD),
    in_one_piece("a compressed answer", PACKED, headers={"content-encoding": "gzip"}),
)  # fmt: skip

FRAMED: Final = (
    raw("close-delimited stream", STREAM, start(TYPE), EVENTS, Close()),
    raw("close-delimited stream that says so", STREAM, start({**TYPE, "connection": "close"}), EVENTS, Close()),
    raw("close-delimited whole", CHAT, start(JSON), SOUND, Close()),
    raw("close-delimited vectors", VECTOR, start(JSON), b'{"object":"list","data":[]}', Close()),
    raw("close-delimited half of JSON", CHAT, start(JSON), SOUND[:50], Close(), differs={**everywhere(NO_ANSWER), **on((Route.TUNNEL,), MALFORMED)}, error={"error.code": OneOf("truncated", "malformed_answer")}),
    raw("a stream with a length", STREAM, start({**TYPE, "content-length": str(len(EVENTS))}) + EVENTS),
    raw("a whole answer in chunks", CHAT, start({**JSON, **CHUNKED}), *chunks(SOUND[:9], SOUND[9:])),
    raw("chunks with extensions and trailers", STREAM, start({**TYPE, **CHUNKED}), b"%x;a=b\r\n%b\r\n" % (len(EVENTS), EVENTS), b"0\r\nx-trailer: 1\r\n\r\n"),
    raw("an interim answer first", CHAT, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + start({**JSON, "content-length": str(len(SOUND))}) + SOUND, has_sdk=False),
    raw("chunks without their end behind DONE", STREAM, start({**TYPE, **CHUNKED}), *chunks(*HELLO)[:-1], CLIENT_READS, Close(), awaited=b"[DONE]", has_sdk=False, differs=everywhere(PROPER_END)),
    raw("two lengths that agree", CHAT, start({**JSON, "content-length": f"{len(SOUND)}\r\ncontent-length: {len(SOUND)}"}) + SOUND, Close(), differs=everywhere(NO_ANSWER), error=BAD),
    raw("a length and chunks", CHAT, start({**JSON, "content-length": "5", **CHUNKED}), *chunks(SOUND), Close(), differs=everywhere(NO_ANSWER), error=BAD),
)  # fmt: skip

NO_CHOICES: Final = {
    "choices null": b'{"id": "x", "object": "chat.completion", "choices": null}',
    "no choices": b'{"id":"x","object":"chat.completion"}',
    "an empty object": b"{}",
    "a list": b"[]",
    "null": b"null",
    "text": b"Hello",
    "half of it": SOUND[:40],
    "nothing": b"",
    "a page": PAGE,
}
"""Answers with status 200 that are no chat."""


def no_answers() -> list[Case]:
    """Each of them for one piece and for a stream."""
    return [
        in_one_piece(
            f"no answer: {name} {how}",
            body,
            ask,
            kind="text/html" if body == PAGE else "application/json",
            differs=everywhere(MALFORMED),
            error=BAD,
        )
        for name, body in NO_CHOICES.items()
        for ask, how in ((CHAT, "whole"), (STREAM, "streamed"))
    ]


CASES: Final = (
    *LABELS,
    *CODINGS,
    *FRAMED,
    *no_answers(),
    in_one_piece("no answer: a page for vectors", PAGE, VECTOR, kind="text/html", differs=everywhere(MALFORMED), error=BAD),
    in_one_piece("no answer: nothing for vectors", b"", VECTOR, differs=everywhere(MALFORMED), error=BAD),
    in_one_piece(
        "no answer: a page for models",
        PAGE,
        Ask("/models", method="GET"),
        kind="text/html",
        differs={
            **on((Route.DEFAULT, Route.TUNNEL), OWN_LIST),
            **on((Route.OPENROUTER,), USERS_LIST, MALFORMED),
            **on((Route.URL,), MALFORMED),
        },
        error=BAD,
    ),
    in_events("events for one piece", *HELLO, ask=CHAT, differs=everywhere(NO_STREAM), error=BAD),
    in_one_piece("a redirect", b"", status=307, headers={"location": "https://elsewhere.example/v1"}, differs=everywhere(REDIRECT), error=BAD, has_sdk=False),
)  # fmt: skip
