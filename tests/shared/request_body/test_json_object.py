"""What is read of a JSON body, and what two readers could read differently."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_shared.request_body.errors import NotJson, UnreadableBody
from byoai_shared.request_body.json_object import MAX_FIELDS, read_object
from byoai_shared.request_body.names import folded


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"messages": [{"model": "inner", "Model": "x"}], "model": "m"}', "m"),
        (b'{"messages": [{"content": "\\"model\\": \\"a\\", \\"model\\": \\"b\\""}]}', None),
        (b'{"messages": []}', None),
        (b'{"model": null}', None),
        (b'{"model": ""}', ""),
        (b'{"options": {"Model": "x"}, "model": "m"}', "m"),
        (b'{"\\u006dode\\u006c": "m\\u0031"}', "m1"),
        (b' {"x":\n1 ,"model":"m"}\r\n', "m"),
        (b'{"x": 1, "x": 2, "model": "m"}', "m"),
        (b'{"models": ["a"], "model": "m", "model_x": "b"}', "m"),
    ],
)
def test_the_model_of_a_json_body(body: bytes, expected: str | None) -> None:
    assert read_object(body).model == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model": "a", "model": "b"}', "more than one field 'model'"),
        (b'{"model": "a", "x": [1, {}], "model": "a"}', "more than one field 'model'"),
        (b'{"model": null, "model": "b"}', "more than one field 'model'"),
        (b'{"model": "a", "\\u006dodel": "b"}', "more than one field 'model'"),
        (b'{"model": "a", "Model": "b"}', "'Model', which some readers take for 'model'"),
        (b'{"MODEL": "b"}', "'MODEL', which some"),
        (b'{"model": "a", "\\u004dodel": "b"}', "'Model', which some"),
        ('{"model": "a", "\uff4dodel": "b"}'.encode(), r"'\\uff4dodel', which some"),
        (b'{"model": "a", "model\\u0000": "b"}', r"'model\\x00', which some"),
        (b'{"model": "a", " model": "b"}', "' model', which some"),
        (b'{"model": 5}', "model must be a string"),
        (b'{"model": ["a"]}', "model must be a string"),
        (b'{"model": {"a": 1}}', "model must be a string"),
        (b'{"model": true}', "model must be a string"),
    ],
)
def test_a_model_that_two_readers_could_read_differently(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadableBody, match=reason) as refused:
        read_object(body)
    assert refused.value.param == "model"
    assert not isinstance(refused.value, NotJson)


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b'{"model": "a"', b'{"model": "a"} {}', b"\xef\xbb\xbf{}", b'{"x": NaN}'],
)
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(NotJson):
        read_object(body)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"7", b"[" * 100_000])
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(UnreadableBody, match="JSON object"):
        read_object(body)


@pytest.mark.parametrize("body", [b'{"model": "\xff"}', b'{"model": %b}' % (b"[" * 100_000)])
def test_what_breaks_off_inside(body: bytes) -> None:
    with pytest.raises(UnreadableBody):
        read_object(body)


def test_fields_stay_the_bytes_that_they_came_in() -> None:
    fields = read_object(b'{ "x": [1.0, 2e3], "y":"\\u00e9" }').fields
    assert {name: bytes(value) for name, value in fields.items()} == {
        "x": b"[1.0, 2e3]",
        "y": b'"\\u00e9"',
    }


def test_of_other_equal_names_the_last_is_kept() -> None:
    assert bytes(read_object(b'{"stream": false, "stream": true}').fields["stream"]) == b"true"


def test_fields_are_limited() -> None:
    def body(count: int) -> bytes:
        return msgspec.json.encode({f"x{number}": 0 for number in range(count)})

    assert len(read_object(body(MAX_FIELDS)).fields) == MAX_FIELDS
    with pytest.raises(UnreadableBody, match=f"more than {MAX_FIELDS} fields"):
        read_object(body(MAX_FIELDS + 1))
    with pytest.raises(UnreadableBody, match=f"more than {MAX_FIELDS} fields"):
        read_object(b'{"":0' + b',"":0' * MAX_FIELDS + b"}")


def test_other_names_can_be_asked_for_once() -> None:
    with pytest.raises(UnreadableBody, match="more than one field 'type'"):
        read_object(b'{"type": "a", "type": "b"}', ("type",))
    assert read_object(b'{"Model": "a", "type": "b"}', ("type",)).model is None


def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found.setdefault(name.casefold(), value)
    return found


def last_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name.casefold(): value for name, value in pairs}


_WORDS = st.sampled_from(["model", "Model", "MODEL", "\uff4dodel", "messages", "models", "x"])
_VALUES = st.none() | st.integers() | st.text(max_size=4) | st.just({"model": "inner"})


@given(st.lists(st.tuples(_WORDS | st.text(max_size=6), _VALUES), max_size=6), st.booleans())
def test_what_is_accepted_lenient_readers_read_as_we_do(
    pairs: list[tuple[str, Any]], is_ascii: bool
) -> None:
    members = (f"{json.dumps(n, ensure_ascii=is_ascii)}: {json.dumps(v)}" for n, v in pairs)
    body = f"{{{', '.join(members)}}}".encode()
    try:
        model = read_object(body).model
    except UnreadableBody:
        spelled = [value for name, value in pairs if folded(name) == "model"]
        assert len(spelled) > 1 or "model" not in dict(pairs) or not isinstance(spelled[0], str)
        return
    for reader in (first_wins, last_wins):
        assert json.loads(body, object_pairs_hook=reader).get("model") == model


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(), max_size=6), st.text())
def test_the_model_is_found_among_anything(fields: dict[str, Any], model: str) -> None:
    others = {name: value for name, value in fields.items() if folded(name) != "model"}
    assert read_object(msgspec.json.encode({**others, "model": model})).model == model


@pytest.mark.parametrize(
    "value",
    [rb'"Hi \ud83d"', rb'["\ude00", "\ufdd0"]', rb'{"a\udead": 1}', rb'"\ud83d\ude00 \\ud83d"'],
)
def test_half_a_character_stays_as_it_came(value: bytes) -> None:
    read = read_object(b'{"model": "m", "messages": ' + value + b"}")
    assert read.model == "m"
    assert bytes(read.fields["messages"]) == value


def test_what_is_no_json_with_half_a_character_is_none() -> None:
    with pytest.raises(NotJson):
        read_object(rb'{"model": "m", "messages": "\ud83d"')
