from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_gateway.router.error_details import (
    MOST_BYTES,
    MOST_MEMBERS,
    DetailedError,
    members,
    read_details,
)
from byoai_shared.api_errors import api_error


def read(value: Mapping[str, object]) -> object:
    return msgspec.json.decode(msgspec.json.encode(read_details(value, known={"message"})))


def test_what_is_known_or_null_is_no_detail() -> None:
    assert read({"message": "m", "n_ctx": 8, "param": None}) == {"n_ctx": 8}


@pytest.mark.parametrize(
    "value",
    [
        {"flagged_input": "SECRET"},
        {"Input": "SECRET"},
        {"a": {"b": [{"input": "SECRET"}]}},
        {"raw": '{"detail":[{"input":"SECRET"}]}'},
        {"raw": '{"a":"{\\\\"prompt\\\\":\\\\"SECRET\\\\"}"}'},
        {"raw": '{"prompt":"SECRET" and more'},
        {"prompt": ["SECRET"]},
    ],
)
def test_what_repeats_the_request_is_left_out_wherever_it_stands(value: dict[str, object]) -> None:
    assert "SECRET" not in str(read(value))


def test_json_in_a_text_stays_as_it_is_when_nothing_is_left_out() -> None:
    value = {"raw": '{"error": {"code":  "c"}}'}
    assert read(value) == value


def test_members_are_bounded_in_number_and_bytes() -> None:
    assert len(read_details({str(n): n for n in range(100)}, known=())) == MOST_MEMBERS
    large: dict[str, object] = {str(n): "x" * 1500 for n in range(10)}
    kept = read_details(large, known=())
    assert 0 < sum(len(bytes(it)) for it in kept.values()) <= MOST_BYTES
    assert read({"large": ["x" * 1500] * 10, "n_ctx": 8}) == {"n_ctx": 8}
    assert read({"x" * 65: 1, "new\nline": 1, "n_ctx": 8}) == {"n_ctx": 8}


def test_a_detail_never_takes_the_place_of_what_every_error_has() -> None:
    details = {"code": msgspec.Raw(b'"theirs"'), "n_ctx": msgspec.Raw(b"8")}
    own = api_error(400, "ours", "it failed")
    told = members(DetailedError(own.message, own.type, own.code, own.param, details))
    assert told == {**members(own), "n_ctx": msgspec.Raw(b"8")}
    assert list(told) == ["message", "type", "code", "param", "n_ctx"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text(max_size=8), JSON))
def test_details_are_json_of_a_bounded_size_whatever_was_sent(value: dict[str, object]) -> None:
    kept = read_details(value, known=())
    assert len(msgspec.json.encode(kept)) <= MOST_BYTES + 8 * MOST_MEMBERS
    assert kept.keys() <= value.keys()
