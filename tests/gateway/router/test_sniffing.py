"""What bytes are is seen at once, however few have come."""

import pytest

from byoai_gateway.router.sniffing import (
    MOST_BLANK_BYTES,
    Bytes,
    is_readable,
    relabelled,
    sniffed,
)
from byoai_shared.http1.head import ResponseHead

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"data: {", Bytes.EVENTS),
        (b"data:", Bytes.EVENTS),
        (b": note", Bytes.EVENTS),
        (b":", Bytes.EVENTS),
        (b"\r\n\n: note", Bytes.EVENTS),
        (BOM + b"event: x", Bytes.EVENTS),
        (b"retry: 1", Bytes.EVENTS),
        (b"id:", Bytes.EVENTS),
        (b"error: {}", Bytes.EVENTS),
        (b"{", Bytes.JSON),
        (BOM + b" \n[", Bytes.JSON),
        (b"<", Bytes.OTHER),
        (b"dates", Bytes.OTHER),
        (b"Data:", Bytes.OTHER),
        (b"data", None),
        (b"e", None),
        (b"", None),
        (b" \r\n\t", None),
        (BOM[:2], None),
        (BOM, None),
        (b" " * MOST_BLANK_BYTES, None),
        (b" " * (MOST_BLANK_BYTES + 1), Bytes.OTHER),
    ],
)
def test_the_first_bytes_tell(begin: bytes, kind: Bytes | None) -> None:
    assert sniffed(begin) is kind


def test_every_beginning_of_what_is_known_is_waited_for() -> None:
    for whole in (BOM + b"\n\ndata:", b"event:", b" \n{"):
        for size in range(len(whole)):
            assert sniffed(whole[:size]) is None


@pytest.mark.parametrize(
    ("value", "is_said"),
    [
        *((it, True) for it in (b"", b"none", b"identity", b"utf-8", b"UTF-8, none", b"binary")),
        *((it, False) for it in (b"gzip", b"GZIP", b"identity, gzip", b"br", b"x-gzip", b"zstd ")),
    ],
)
def test_only_a_compression_is_unreadable(value: bytes, *, is_said: bool) -> None:
    assert is_readable(((b"content-encoding", value),)) is is_said
    assert is_readable(((b"content-encoding", b"none"), (b"content-encoding", value))) is is_said


def test_only_a_wrong_label_is_put_right() -> None:
    events = ResponseHead(200, ((b"content-type", b"Text/Event-Stream; charset=utf-8"),))
    text = ResponseHead(200, ((b"x", b"1"), (b"content-type", b"text/plain")))
    assert relabelled(events, Bytes.EVENTS) is events
    assert relabelled(text, Bytes.JSON) is text
    assert relabelled(text, Bytes.OTHER) is text
    right = ((b"content-type", b"text/event-stream"), (b"x", b"1"))
    assert relabelled(text, Bytes.EVENTS).headers == right
    assert relabelled(events, Bytes.JSON).headers == ((b"content-type", b"application/json"),)
