"""Answers of status 200 that are errors after all."""

import pytest

from byoai_gateway.router.dialects import MalformedEvent, Usage
from byoai_gateway.router.endpoints import Dialect
from byoai_gateway.router.whole import check


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error":{"code":1}}', b'{"code":1}'),
        (b'{"choices":[{"error":{"code":2}}]}', b'{"code":2}'),
        (b'{"error":null,"choices":[{"message":{"content":"a"}}]}', None),
        (b'{"choices":[{"message":{"content":"a"},"native_finish_reason":"error"}]}', None),
    ],
)
def test_an_error_inside_is_found(body: bytes, error: bytes | None) -> None:
    _, found = check(Dialect.CHAT, body)
    assert (None if found is None else bytes(found)) == error


def test_an_empty_answer_that_ended_with_an_error_is_one() -> None:
    body = b'{"choices":[{"message":{"content":""},"native_finish_reason":"error"}]}'
    assert check(Dialect.CHAT, body)[1] is not None


def test_usage_is_read() -> None:
    assert check(Dialect.PLAIN, b'{"data":[],"usage":{"prompt_tokens":7}}') == (Usage(7), None)


def test_what_is_not_json_is_malformed_where_json_is_due() -> None:
    with pytest.raises(MalformedEvent, match="it is not JSON"):
        check(Dialect.CHAT, b"<html>")
    assert check(Dialect.PLAIN, b"<html>") == (None, None)
