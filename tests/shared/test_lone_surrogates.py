"""Lone surrogates are read as replacement characters, and passed on as they are."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.providers.model_lists import ListedModel, read_list
from byoai_gateway.providers.openrouter_answers import models_page
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.error_shapes import read_body
from byoai_gateway.router.replay import as_events
from byoai_shared.lone_surrogates import decode, rebuilt

ANY = msgspec.json.Decoder()


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\ude00", "\ufffd"),
        (rb"\uD83D\uDE00", "\U0001f600"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\ud83d\u0041", "\ufffdA"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (rb"\\\ud83d", "\\\ufffd"),
    ],
)
def test_only_a_lone_half_is_replaced(text: bytes, read: str) -> None:
    assert decode(ANY, b'["%b"]' % text) == [read]


@pytest.mark.parametrize("data", [b"{", rb'"\ud83d', rb'["\ud83d",]', rb'"\u12"', b"\xff"])
def test_what_is_no_json_is_none_with_it_either(data: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        decode(ANY, data)


@given(
    st.text(
        st.characters(exclude_categories=()) | st.sampled_from("\ud83d\ude00\ufdd0\\u"), max_size=30
    )
)
def test_what_python_writes_is_read_and_rebuilt(text: str) -> None:
    data = json.dumps([text]).encode()
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert decode(ANY, data) == [whole]
    assert rebuilt(data, bytes) == data
    raws = msgspec.json.Decoder(list[msgspec.Raw])
    assert rebuilt(data, lambda it: msgspec.json.encode(raws.decode(it))) == data


HALF = rb'"a \ud83d \ufdd0 \\ud83d"'


@pytest.mark.parametrize(
    ("dialect", "body", "found"),
    [
        (
            Dialect.CHAT,
            b'{"choices":[{"message":{"content":%b},"finish_reason":"stop"}],"x":%b}',
            b'"delta":{"content":%b}',
        ),
        (Dialect.COMPLETION, b'{"choices":[{"text":%b}],"usage":{"x":%b}}', b'"text":%b'),
        (Dialect.RESPONSES, b'{"status":"completed","output":[%b,%b]}', b'"output":[%b'),
        (
            Dialect.MESSAGES,
            b'{"type":"message","content":[{"type":"text","text":%b}],"x":%b}',
            b'"text_delta","text":%b',
        ),
    ],
)
def test_an_answer_in_one_piece_keeps_its_halves_as_events(
    dialect: Dialect, body: bytes, found: bytes
) -> None:
    events = as_events(dialect, body % (HALF, HALF), hide_usage=True)
    assert found % HALF in events


def test_half_a_character_in_a_list_or_an_error_hides_nothing() -> None:
    models = rb'{"data":[{"id":"a","description":"\ud83d"},{"id":"b"}]}'
    assert read_list(models) == (ListedModel("a"), ListedModel("b"))
    assert [it.id for it in models_page(models).models] == ["a", "b"]
    assert read_body(rb'{"error":{"message":"no \ud83d","code":"c"}}').code == "c"
