"""Good streams, however their events are written, cut and counted."""

from typing import Final

from fidelity.cases.building import (
    COUNTED,
    END,
    HELLO,
    PLAIN_STREAM,
    ROLE,
    SOUND,
    STOP,
    STREAM,
    USAGE,
    chunk,
    delta,
    everywhere,
    in_events,
    in_one_piece,
    text,
)
from fidelity.differences import AS_EVENTS, DONE_ADDED, NO_MARK, USAGE_HIDDEN
from fidelity.model import Case
from support.provider_script import DONE, Step

BEGUN: Final = (chunk(ROLE), text("Hi"))
TIMINGS: Final = (
    b',"usage":{"prompt_tokens":3,"completion_tokens":2},"timings":{"predicted_ms":1.5}'
)


def written(replaced: bytes, by: bytes) -> bytes:
    """The sound stream with other bytes between its lines and words."""
    return b"".join(HELLO).replace(replaced, by)


def in_pieces(data: bytes, size: int) -> tuple[Step, ...]:
    """Bytes cut without regard to events."""
    return tuple(data[at : at + size] for at in range(0, len(data), size))


WRITTEN: Final = {
    "CRLF": (written(b"\n", b"\r\n"),),
    "CR": (written(b"\n", b"\r"),),
    "no blank behind the colon": (written(b"data: ", b"data:"),),
    "more blank lines": (written(b"\n\n", b"\n\n\n\n"),),
    "blank lines first": (b"\n\n" + b"".join(HELLO),),
    "comments between": (b": OPENROUTER PROCESSING\n\n", *HELLO[:2], b": ping\n\n", *HELLO[2:]),
    "a comment inside an event": (written(b"data: {", b": inside\ndata: {"),),
    "id and retry fields": (written(b"data: {", b"id: 7\nretry: 100\ndata: {"),),
    "event names": (written(b"data: {", b"event: message\ndata: {"),),
    "data in two lines": (written(b',"choices"', b',\ndata: "choices"'),),
    "unknown fields of SSE": (written(b"data: {", b"x-vendor: 1\nsingle\ndata: {"),),
    "one event in many chunks": in_pieces(b"".join(HELLO), 7),
    "byte by byte": in_pieces(b"".join(HELLO), 1),
    "all events in one chunk": (b"".join(HELLO),),
    "a huge event": (chunk(ROLE), text("x" * 1_000_000), *END),
    "characters cut in the middle": in_pieces(b"".join((chunk(ROLE), delta('{"content":"世界"}'.encode()), *END)), 5),
    "two halves of a surrogate pair": (
        chunk(ROLE),
        delta(b'{"content":"\\ud83d"}'),
        delta(b'{"content":"\\ude00"}'),
        *END,
    ),
    "empty deltas": (chunk(ROLE), delta(b"{}"), delta(b'{"content":""}'), text("Hi"), *END),
    "tool calls in pieces": (
        chunk(ROLE),
        delta(b'{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":""}}]}'),
        delta(b'{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\""}}]}'),
        delta(b'{"tool_calls":[{"index":1,"id":"d","type":"function","function":{"name":"g","arguments":"{}"}}]}'),
        delta(b'{"tool_calls":[{"index":0,"function":{"arguments":": 1}"}}]}'),
        chunk(b'{"index":0,"delta":{},"finish_reason":"tool_calls"}'),
        DONE,
    ),
    "reasoning before content": (
        chunk(ROLE),
        delta(b'{"reasoning_content":"Let me"}'),
        delta(b'{"reasoning_content":" see","content":null}'),
        text("Hi"),
        *END,
    ),
    "no role": (text("Hi"), *END),
    "no choices first": (chunk(b"", b',"prompt_filter_results":[{"prompt_index":0}]'), *HELLO),
    "a finish reason in the last content": (chunk(b'{"index":0,"delta":{"content":"Hi"},"finish_reason":"length"}'), DONE),
    "usage beside the finish reason": (*BEGUN, chunk(STOP, b',"usage":' + USAGE), DONE),
    "usage null in every event": (
        chunk(ROLE, b',"usage":null'),
        chunk(b'{"index":0,"delta":{"content":"Hi"},"finish_reason":null}', b',"usage":null'),
        chunk(STOP, b',"usage":null'),
        COUNTED,
        DONE,
    ),
    "usage in every event": (
        chunk(ROLE, b',"usage":' + USAGE),
        chunk(b'{"index":0,"delta":{"content":"Hi"},"finish_reason":null}', b',"usage":' + USAGE),
        *END,
    ),
    "unknown members": (chunk(ROLE, b',"obfuscation":"xyz","service_tier":"default"'), text("Hi"), *END),
    "content behind a finish reason": (*BEGUN, chunk(STOP), text("!"), chunk(STOP), DONE),
    "no text at all": (chunk(ROLE), *END),
    "content and then the end without a finish reason": (*BEGUN, DONE),
    "blanks around the end": (*BEGUN, chunk(STOP), b"data:  [DONE] \n\n"),
}  # fmt: skip


def hidden(name: str, *events: bytes, seen: tuple[bytes, ...]) -> Case:
    """A stream whose client did not ask for usage; `seen` is what it gets."""
    return in_events(
        f"usage not asked for, {name}",
        *events,
        ask=PLAIN_STREAM,
        differs=everywhere(USAGE_HIDDEN),
        becomes=b"".join(seen),
    )


WITHOUT_DONE: Final = {
    "properly": (*BEGUN, chunk(STOP)),
    "with usage": (*BEGUN, chunk(STOP), COUNTED),
}

CASES: Final = (
    *(in_events(f"stream {name}", *events) for name, events in WRITTEN.items()),
    in_events(
        "stream with a byte order mark",
        b"\xef\xbb\xbf" + b"".join(HELLO),
        differs=everywhere(NO_MARK),
    ),
    *(
        in_events(f"stream without DONE, {name}", *events, differs=everywhere(DONE_ADDED))
        for name, events in WITHOUT_DONE.items()
    ),
    in_events("usage not asked for and not sent", *BEGUN, chunk(STOP), DONE, ask=PLAIN_STREAM),
    hidden("alone", *HELLO, seen=(*HELLO[:-2], DONE)),
    in_events(
        "usage not asked for, beside the finish reason",
        *(*BEGUN, chunk(STOP, b',"usage":' + USAGE), DONE),
        ask=PLAIN_STREAM,
    ),
    hidden(
        "null in every event",
        chunk(ROLE, b',"usage":null'),
        chunk(b'{"index":0,"delta":{"content":"Hi"},"finish_reason":null}', b',"usage":null'),
        chunk(STOP, b',"usage":null'),
        COUNTED,
        DONE,
        seen=(*BEGUN, chunk(STOP), DONE),
    ),
    hidden(
        "beside timings",
        *(*BEGUN, chunk(STOP), chunk(b"", TIMINGS), DONE),
        seen=(*BEGUN, chunk(STOP), chunk(b"", b',"timings":{"predicted_ms":1.5}'), DONE),
    ),
    in_one_piece(
        "a stream asked for and one piece given",
        SOUND,
        STREAM,
        differs=everywhere(AS_EVENTS),
        becomes=chunk(
            b'{"index":0,"finish_reason":"stop","delta":{"role":"assistant","content":"Hello"}}',
            b',"usage":' + USAGE,
        )
        + DONE,
    ),
)
