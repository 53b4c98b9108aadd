import json

import pytest

from byoai_gateway.providers.model_lists import (
    MAX_MODELS,
    ListedModel,
    MalformedList,
    card_body,
    list_body,
    read_list,
)


def read(*entries: object) -> tuple[ListedModel, ...]:
    return read_list(json.dumps({"object": "list", "data": entries}).encode())


def test_what_is_written_can_be_read() -> None:
    assert read_list(list_body(["b", "a"])) == (ListedModel("b"), ListedModel("a"))
    assert json.loads(card_body("b")) == {
        "id": "b",
        "object": "model",
        "created": 0,
        "owned_by": "default",
    }


@pytest.mark.parametrize(
    ("said", "length"),
    [
        ({}, None),
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 8192}, 8192),
        ({"max_model_len": None, "context_length": 8192}, 8192),
        ({"max_model_len": True}, None),
        ({"max_model_len": "4096"}, None),
        ({"max_model_len": -1}, None),
        ({"max_model_len": 10**30}, None),
    ],
)
def test_the_contexts_length_is_taken_where_it_is_said(
    said: dict[str, object], length: int | None
) -> None:
    assert read({"id": "m", **said}) == (ListedModel("m", length),)


@pytest.mark.parametrize(
    "odd", [{}, 7, None, {"id": 7}, {"id": ""}, {"id": "a\0"}, {"id": "n" * 201}]
)
def test_one_odd_entry_does_not_hide_the_others(odd: object) -> None:
    assert read({"id": "a"}, odd, {"id": "b"}) == (ListedModel("a"), ListedModel("b"))


def test_a_name_is_listed_once_and_a_list_ends_somewhere() -> None:
    assert read({"id": "a"}, {"id": "a"}) == (ListedModel("a"),)
    assert len(read(*({"id": f"m{number}"} for number in range(MAX_MODELS + 5)))) == MAX_MODELS


def test_a_server_that_has_none_says_null() -> None:
    assert read_list(b'{"object":"list","data":null}') == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>canary", b"[]", b"{}", b'{"data":"canary"}', b'{"data":[' + b"[" * 9999, b"\xff"],
)
def test_what_is_no_list_is_malformed_and_not_quoted(body: bytes) -> None:
    with pytest.raises(MalformedList) as caught:
        read_list(body)
    assert "canary" not in str(caught.value)
