"""Answers of status 200 that are errors after all."""

import msgspec
import pytest

from byoai_gateway.router.dialects import MalformedEvent, Usage
from byoai_gateway.router.endpoints import CHAT, Endpoint, find
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
    _, found = check(CHAT, body)
    assert (None if found is None else bytes(found)) == error


def test_an_empty_answer_that_ended_with_an_error_is_one() -> None:
    body = b'{"choices":[{"message":{"content":""},"native_finish_reason":"error"}]}'
    assert check(CHAT, body)[1] is not None


def endpoint(path: str, method: str = "POST") -> Endpoint:
    found = find(method, f"/v1/{path}")
    assert found is not None
    return found


def test_usage_is_read() -> None:
    body = b'{"data":[],"usage":{"prompt_tokens":7}}'
    assert check(endpoint("embeddings"), body) == (Usage(7), None)


@pytest.mark.parametrize(
    ("body", "what"),
    [(b"{", "it is not JSON"), (b"<html>", "it is a web page"), (b" ", "it is empty")],
)
def test_what_is_not_json_is_malformed_where_json_is_due(body: bytes, what: str) -> None:
    for path in ("chat/completions", "embeddings", "rerank", "messages/count_tokens"):
        with pytest.raises(MalformedEvent, match=what):
            check(endpoint(path), body)


ANSWERS = {
    "chat/completions": (b'{"choices":[]}', b'{"choices":null}'),
    "completions": (b'{"choices":[]}', b'{"object":"text_completion"}'),
    "embeddings": (b'{"data":[]}', b'{"data":{}}'),
    "responses": (b'{"object":"response","output":null}', b'{"id":"x"}'),
    "messages": (b'{"type":"message","content":[]}', b'{"type":"message"}'),
    "messages/count_tokens": (b'{"input_tokens":0}', b'{"input_tokens":"0"}'),
    "rerank": (b'{"results":[]}', b'{"ok":true}'),
    "score": (b'{"anything":1}', b'"text"'),
    "classify": (b"[]", b"7"),
    "images/generations": (b'{"created":1,"data":[{}]}', b'{"created":1}'),
    "images/edits": (b'{"images":[{}]}', b'{"created":1}'),
    "images/variations": (b'{"data":[]}', b"[]"),
    "audio/transcriptions": (b'{"text":""}', b'{"language":"en"}'),
    "audio/translations": (b'{"text":"a","segments":[]}', b'{"text":null}'),
}


@pytest.mark.parametrize(("path", "bodies"), ANSWERS.items(), ids=ANSWERS)
def test_each_endpoint_has_what_an_answer_of_it_must_hold(
    path: str, bodies: tuple[bytes, bytes]
) -> None:
    right, wrong = bodies
    assert check(endpoint(path), right) == (None, None)
    with pytest.raises(MalformedEvent, match=r"^it has "):
        check(endpoint(path), wrong)


@pytest.mark.parametrize("body", [b'{"object":"list","data":[]}', b'{"data":null}', b"[]"])
def test_a_list_of_models_may_be_bare_or_null(body: bytes) -> None:
    assert check(endpoint("models", "GET"), body) == (None, None)


def test_a_transcript_may_be_a_text_whatever_its_label_says() -> None:
    for body in (b'"spoken"', b"1\n00:00:00,000 --> 00:00:01,000\nspoken\n", b""):
        assert check(endpoint("audio/transcriptions"), body) == (None, None)
    with pytest.raises(MalformedEvent, match="it is a web page"):
        check(endpoint("audio/transcriptions"), b"<html>")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"code":429,"msg":"too many"}', {"code": 429, "message": "too many"}),
        (b'{"status_code":503,"message":"full"}', {"code": 503, "message": "full"}),
        (b'{"error_code":18,"error_msg":"limit"}', {"code": 18, "message": "limit"}),
        (b'{"code":"Throttling.RateQuota","message":"slow"}', {"code": 429, "message": "slow"}),
        (b'{"code":"InvalidApiKey","message":"no"}', {"code": 401, "message": "no"}),
        (b'{"detail":"broken"}', {"code": None, "message": "broken"}),
        (
            b'{"choices":null,"base_resp":{"status_code":1002,"status_msg":"rpm"}}',
            {"code": 429, "message": "rpm"},
        ),
        (
            b'{"choices":[{"message":{"content":"a"}}],"base_resp":{"status_code":9,"status_msg":"m"}}',
            {"code": 9, "message": "m"},
        ),
        (b'[{"error":{"code":400}}]', {"code": 400}),
        (b'{"error":{"code":7}}\n\ndata: [DONE]\n', {"code": 7}),
    ],
)
def test_an_error_of_a_vendors_own_shape_is_found(body: bytes, error: dict[str, object]) -> None:
    _, found = check(CHAT, body)
    assert found is not None
    assert error.items() <= msgspec.json.decode(found).items()


def test_a_vendors_word_that_all_is_well_is_no_error() -> None:
    choices = b'"choices":[{"message":{"content":"a"}}]'
    for more in (b'"base_resp":{"status_code":0,"status_msg":""}', b'"code":200,"msg":"ok"'):
        assert check(CHAT, b"{" + choices + b"," + more + b"}")[1] is None


@pytest.mark.parametrize("escape", [rb"\ud83d", rb"\uDE00", rb"\ud83d\ud83d\ude00", rb"\\\ud83d"])
def test_half_a_surrogate_pair_is_no_fault(escape: bytes) -> None:
    body = b'{"choices":[{"message":{"content":"a%b"}}],"usage":{"prompt_tokens":1}}' % escape
    assert check(CHAT, body) == (Usage(1), None)
