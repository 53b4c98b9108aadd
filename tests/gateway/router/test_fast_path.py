"""Events that continue an answer are recognized at a glance, and never wrongly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.router.dialects import Seen, reader
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.fast_path import continued_events
from byoai_gateway.router.sse import EventSplitter
from byoai_gateway.router.usage_hiding import without_null

CONTENT = Seen(has_content=True)
NOTHING = Seen()
MORE = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'


PIECES = (
    *(MORE, MORE[:20], MORE[20:], b"data: ", b"\n", b"\n\n", b"{", b"}", b'{"choices":[]}', b" "),
    *(b'"choices":', b"[]", b'{"choices":', b'"error":{"message":"m"}', b",", b"\xff", b"\xc3\xa9"),
    *(b'{"delta":7}', b'{"finish_reason":"stop"}', b'"usage":{"cost":1}', b"data: [DONE]\n\n"),
)


@pytest.mark.parametrize("dialect", [Dialect.CHAT, Dialect.COMPLETION])
def test_events_that_say_more_of_the_same_are_seen_at_a_glance(dialect: Dialect) -> None:
    go_on = continued_events(dialect, hide_usage=False)
    assert go_on is not None
    odd = MORE.replace(b'"delta"', b'"text":"a\\n\\ndata: b","usage":null,"error":null,"delta"')
    for events in (MORE, MORE * 3, odd):
        assert go_on(events) == events


@pytest.mark.parametrize(
    "other",
    [
        MORE.replace(b"null", b'"stop"'),
        MORE.replace(b'"id":"1"', b'"error":{"message":"m"}'),
        MORE.replace(b'"id":"1"', b'"usage":{"prompt_tokens":1}'),
        MORE.replace(b'"index":0', b'"error":{"message":"m"}'),
        MORE.replace(b'"index":0', b'"native_finish_reason":"error"'),
        b"data: [DONE]\n\n",
        b": a comment\n\n",
        b"event: error\n" + MORE,
        MORE.replace(b"\n\n", b"\nid: 7\n\n"),
        b'data: {"choices":\ndata: []}\n\n',
        b"data: {\n\n",
        b"data: 7\n\n",
        b'data: {"choices":null}\n\n',
        b'data: {"choices":[]} {"choices":[]}\n\n',
        b"\n\n",
        b"data:" + MORE[6:],
        MORE.replace(b'{"content":"a"}', b"7"),
        MORE.replace(b'"id":"1"', b'"base_resp":{"status_code":1002}'),
        MORE.replace(b'"a"', b'"\xff"'),
        b'data: {"choices":\n[]}\n\n',
        b'data: {"choices":\n\ndata: []} {"choices":[]}\n\n',
    ],
)
def test_whatever_else_an_event_may_say_is_read(other: bytes) -> None:
    go_on = continued_events(Dialect.CHAT, hide_usage=False)
    assert go_on is not None
    for events in (other, MORE + other, other + MORE, MORE + other + MORE):
        assert go_on(events) is None


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12))
def test_what_is_seen_at_a_glance_is_what_reading_each_would_say(pieces: list[bytes]) -> None:
    go_on, read = continued_events(Dialect.CHAT, hide_usage=False), reader(Dialect.CHAT)
    assert go_on is not None
    events = b"".join(pieces)
    if go_on(events) is not None:
        for event in EventSplitter(10_000).feed(events):
            seen = read(event)
            assert seen in {CONTENT, NOTHING}


def test_other_dialects_are_read_event_by_event() -> None:
    assert all(
        continued_events(it, hide_usage=False) is None
        for it in (Dialect.RESPONSES, Dialect.MESSAGES)
    )


NULL = MORE.replace(b'"id":"1",', b'"id":"1","usage":null,')
NESTED = MORE.replace(b'"index":0,', b'"index":0,"usage":null,')
WORD = MORE.replace(b'"a"', b'"usage"')
QUOTED = MORE.replace(b'"a"', rb'"a,\"usage\":null"')


def test_the_null_that_we_asked_for_is_taken_out_at_a_glance() -> None:
    go_on = continued_events(Dialect.CHAT, hide_usage=True)
    assert go_on is not None
    spaced = NULL.replace(b'"usage":null', b' "usage" : null')
    for events in (NULL, NULL * 3, spaced * 2, MORE + NULL, NULL + MORE, QUOTED + NULL):
        cut = events.replace(b',"usage":null', b"").replace(b', "usage" : null', b"")
        assert go_on(events) == cut
    for events in (MORE + QUOTED, NESTED, WORD, WORD + NESTED):
        assert go_on(events) == events
    last = NESTED.replace(b"]}", b'],"usage":null}')
    assert go_on(last) == NESTED


@pytest.mark.parametrize(
    "other", [NESTED + NULL, WORD + NULL, NESTED.replace(b"]}", b'],"usage":null,"x":1}')]
)
def test_what_cannot_be_told_at_a_glance_is_left_to_the_reader(other: bytes) -> None:
    go_on = continued_events(Dialect.CHAT, hide_usage=True)
    assert go_on is not None
    assert go_on(other) is None


@given(st.lists(st.sampled_from([MORE, NULL, NESTED, WORD, QUOTED]), min_size=1, max_size=6))
def test_a_glance_takes_out_what_reading_each_would(pieces: list[bytes]) -> None:
    go_on = continued_events(Dialect.CHAT, hide_usage=True)
    assert go_on is not None
    found = go_on(b"".join(pieces))
    assert found is None or found == b"".join(without_null(it) for it in pieces)
