"""Events come out whole, as they came in, however the bytes are cut."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.router import sse
from byoai_gateway.router.sse import _END as END
from byoai_gateway.router.sse import EventSplitter, EventTooLarge

LIMIT = 16 * 1024 * 1024


def split(*pieces: bytes, limit: int = LIMIT) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter(limit)
    events = [event for piece in pieces for event in splitter.feed(piece)]
    stream = b"".join(pieces)
    return events, stream[len(stream) - splitter.kept_bytes :]


@pytest.mark.parametrize(
    "events",
    [
        [b"data: a\n\n"],
        [b"data: a\n\n", b"data: b\n\n"],
        [b"event: x\ndata: a\n\n", b": comment\n\n", b"data: [DONE]\n\n"],
        [b"data: a\r\n\r\n", b"event: x\r\ndata: b\r\n\r\n"],
        [b"data: a\r\r", b"event: x\rdata: b\r\r"],
        [b"data: a\r\n\n", b"data: b\n\r\n", b"data: c\n\n"],
        [b"data: a\n\n", b"\ndata: b\n\n"],
    ],
)
def test_events_are_cut_at_blank_lines_whole_and_byte_by_byte(events: list[bytes]) -> None:
    stream = b"".join(events)
    assert split(stream) == (events, b"")
    assert split(*(stream[i : i + 1] for i in range(len(stream)))) == (events, b"")
    assert split(stream + b"data: half") == (events, b"data: half")


def test_a_read_of_exactly_one_event_is_not_copied() -> None:
    data = b"data: {}\n\n"
    assert EventSplitter(LIMIT).feed(data)[0] is data


def test_an_event_ends_with_its_second_cr_and_the_lf_behind_it_is_not_the_next_ones() -> None:
    assert split(b"data: a\r\r", b"\n", b"data: b\r\r") == ([b"data: a\r\r", b"data: b\r\r"], b"")


def test_half_a_crlf_waits_for_the_other_half() -> None:
    splitter = EventSplitter(LIMIT)
    assert splitter.feed(b"data: a\r\n\r") == []
    assert splitter.feed(b"\n") == [b"data: a\r\n\r\n"]


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 6] * 2, [b"x" * 9 + b"\n\n"]])
def test_an_event_beyond_the_limit_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(EventTooLarge, match="exceeds the limit of 10 bytes"):
        split(*pieces, limit=10)


def test_the_limit_is_for_one_event_not_for_a_read() -> None:
    events, _ = split(b"12345678\n\n" * 100, limit=10)
    assert len(events) == 100


class Metered:
    """The search for an event's end, with how many bytes it has looked at."""

    def __init__(self) -> None:
        self.searched_bytes = 0

    def search(self, data: bytes, begin: int) -> "re.Match[bytes] | None":
        found = END.search(data, begin)
        self.searched_bytes += (len(data) if found is None else found.end()) - begin
        return found


@pytest.mark.parametrize("size", [20_000, 160_000])
def test_a_long_line_in_many_pieces_costs_linear_work(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    metered = Metered()
    monkeypatch.setattr(sse, "_END", metered)
    stream = b"data: " + b"x" * size + b"\n\n"
    splitter = EventSplitter(LIMIT)
    events = [event for byte in stream for event in splitter.feed(bytes([byte]))]
    assert events == [stream]
    assert size < metered.searched_bytes < 6 * size


def test_a_line_of_five_megabytes_comes_whole() -> None:
    stream = b"data: " + b"x" * 5_000_000 + b"\n\n"
    pieces = [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)]
    assert split(*pieces) == ([stream], b"")


@given(
    st.lists(st.sampled_from([b"d", b"\n", b"\r", b"\r\n", b"\n\n"]), max_size=30),
    st.data(),
)
def test_where_the_reads_were_cut_changes_no_content(
    parts: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    bounds = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(bounds)]

    def lines(found: tuple[list[bytes], bytes]) -> list[list[bytes]]:
        events, tail = found
        return [it for it in ([x for x in e.splitlines() if x] for e in [*events, tail]) if it]

    assert lines(split(*pieces)) == lines(split(stream))


def test_whole_events_are_seen_in_one_piece_and_taken_only_when_told() -> None:
    splitter = EventSplitter(1000)
    assert splitter.whole(b"data: a\n\ndata: b\n\n") == (b"data: a\n\ndata: b\n\n", b"")
    assert splitter.whole(b"data: a\n\ndat") == (b"data: a\n\n", b"dat")
    assert splitter.kept_bytes == 0
    splitter.go_on(b"dat")
    assert splitter.kept_bytes == len(b"dat")
    assert splitter.whole(b"a: b\n\n") == (b"data: b\n\n", b"")
    assert splitter.feed(b"a: b\n\ndata: c\n\n") == [b"data: b\n\n", b"data: c\n\n"]


@pytest.mark.parametrize("data", [b"", b"data: a", b"data: a\n", b"data: a\r\n\r\n", b"x" * 1001])
def test_what_is_not_plainly_whole_is_left_to_the_cutting(data: bytes) -> None:
    assert EventSplitter(1000).whole(data) is None


def test_an_event_beyond_the_limit_is_not_whole_wherever_it_began() -> None:
    splitter = EventSplitter(10)
    assert splitter.feed(b"12345") == []
    assert splitter.whole(b"678\n\n") == (b"12345678\n\n", b"")
    assert splitter.whole(b"6789\n\n") is None
    with pytest.raises(EventTooLarge):
        splitter.feed(b"6789\n\n")
