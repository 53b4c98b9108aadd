import msgspec
import pytest

from byoai_gateway.router.error_shapes import MOST_CHARACTERS, read_body, read_error
from byoai_shared.api_errors import ApiError


def body_of(value: object) -> bytes:
    return msgspec.json.encode(value)


@pytest.mark.parametrize(
    ("value", "message", "code", "param"),
    [
        pytest.param(
            {"error": {"message": "too long", "type": "t", "param": "messages", "code": "c"}},
            "too long",
            "c",
            "messages",
            id="openai",
        ),
        pytest.param(
            {"error": {"message": "bad", "type": "BadRequestError", "param": None, "code": 400}},
            "bad",
            None,
            None,
            id="vllm",
        ),
        pytest.param(
            {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400},
            "bad",
            None,
            None,
            id="vllm-without-a-wrapper",
        ),
        pytest.param(
            {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}},
            "too long",
            None,
            None,
            id="llama.cpp",
        ),
        pytest.param({"error": "model is loading"}, "model is loading", None, None, id="ollama"),
        pytest.param(
            {"error": "no", "code": "why", "type": "t"}, "no", "why", None, id="string-with-a-code"
        ),
        pytest.param(
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            "Overloaded",
            None,
            None,
            id="anthropic",
        ),
        pytest.param({"detail": "Not Found"}, "Not Found", None, None, id="fastapi"),
        pytest.param(
            {"detail": [{"loc": ["body", "messages", 0], "msg": "required", "input": "SECRET"}]},
            "messages.0: required",
            None,
            "messages.0",
            id="fastapi-fields",
        ),
        pytest.param(
            [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}],
            "bad",
            None,
            None,
            id="google",
        ),
        pytest.param(
            {
                "error": {
                    "code": 429,
                    "message": "Provider returned error",
                    "metadata": {
                        "provider_name": "Cloudly",
                        "raw": '{"error": {"message": "slow down"}}',
                    },
                }
            },
            "Provider returned error (Cloudly): slow down",
            None,
            None,
            id="openrouter-raw",
        ),
        pytest.param(
            {
                "error": {
                    "code": 403,
                    "message": "flagged",
                    "metadata": {"reasons": ["violence"], "flagged_input": "SECRET"},
                }
            },
            "flagged (reasons: violence)",
            None,
            None,
            id="openrouter-moderation",
        ),
    ],
)
def test_every_shape_is_read(
    value: object, message: str, code: str | None, param: str | None
) -> None:
    told = read_body(body_of(value))
    assert (told.message, told.code, told.param) == (message, code, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"<html>Bad Gateway</html>", b'{"error": {"mess', b"[1", b"null", b"[]", b"{}"],
)
def test_what_says_nothing_is_read_as_nothing(body: bytes) -> None:
    told = read_body(body)
    assert (told.message, told.code, told.status) == ("", None, None)


@pytest.mark.parametrize(
    "value",
    [
        {"error": {"message": {"a": 1}, "code": [], "type": 5, "param": {}, "metadata": "x"}},
        {"error": {"message": None, "code": True, "metadata": {"reasons": 5, "raw": 7}}},
        {"error": {"message": None, "availability": {"retry_after": "soon", "code": 3}}},
        {"detail": [{"msg": None, "loc": None}, 5]},
        {"error": [[[[[["deep"]]]]]]},
        {"error": {"error": {"error": {"error": {"error": {"message": "deep"}}}}}},
    ],
)
def test_wrong_types_are_as_good_as_absent(value: object) -> None:
    told = read_body(body_of(value))
    assert told.code is None
    assert told.status is None
    assert isinstance(told.message, str)


def test_an_integer_code_is_a_status() -> None:
    assert read_error(msgspec.Raw(b'{"code": 502, "message": "down"}')).status == 502
    assert read_error(msgspec.Raw(b'{"code": "429", "message": "slow"}')).status == 429
    assert read_error(msgspec.Raw(b'{"code": 12, "message": "slow"}')).status is None


def test_an_error_may_be_a_bare_string() -> None:
    assert read_error(msgspec.Raw(b'"out of memory"')).message == "out of memory"


def test_a_message_is_one_bounded_line_without_control_characters() -> None:
    assert read_body(b"one\n two\x1b[31m\x00three").message == "one two[31mthree"
    long = read_body(body_of({"error": {"message": "x" * 100_000, "code": "c" * 1000}}))
    assert len(long.message) == MOST_CHARACTERS
    assert long.code == "c" * 64


def test_nesting_without_end_is_read_as_nothing() -> None:
    assert read_body(b'{"error":' * 100_000 + b"1" + b"}" * 100_000).message == ""


def test_openrouters_newer_answers_say_what_and_until_when() -> None:
    told = read_body(
        body_of(
            {
                "error": {
                    "code": 503,
                    "message": "none left",
                    "metadata": {"error_type": "provider_unavailable"},
                    "availability": {"code": "all_down", "retry_after": 3},
                }
            }
        )
    )
    assert (told.kind, told.code, told.retry_after_s) == ("provider_unavailable", "all_down", 3.0)


def test_the_shape_that_is_made_of_it_has_four_keys() -> None:
    assert ApiError.__struct_fields__ == ("message", "type", "code", "param")
