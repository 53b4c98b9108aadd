import msgspec
import pytest

from byoai_gateway.router.error_details import DetailedError
from byoai_gateway.router.messages_error import MessagesErrorBody, messages_error
from byoai_shared.api_errors import ApiError, api_error


def told(error: ApiError, status: int) -> MessagesErrorBody:
    body = msgspec.json.encode(messages_error(error, status))
    return msgspec.json.decode(body, type=MessagesErrorBody)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_an_errors_type_is_anthropics_word_for_its_status(status: int, kind: str) -> None:
    said = told(api_error(status, "some_code", "it failed", param="model"), status)
    assert (said.type, said.error.type) == ("error", kind)
    assert (said.error.code, said.error.message, said.error.param) == (
        "some_code",
        "it failed",
        "model",
    )


@pytest.mark.parametrize(
    ("status", "sent", "kept"),
    [
        (500, "overloaded_error", "overloaded_error"),
        (400, "billing_error", "billing_error"),
        (500, "api_error", "api_error"),
        (404, "invalid_request_error", "not_found_error"),
        (429, "tokens", "rate_limit_error"),
    ],
)
def test_a_type_of_the_providers_is_kept_if_it_is_anthropics(
    status: int, sent: str, kept: str
) -> None:
    said = told(DetailedError("it failed", sent, "some_code", None), status)
    assert said.error.type == kept


def test_a_request_id_of_the_providers_stands_beside_the_error() -> None:
    details = {"request_id": msgspec.Raw(b'"req_1"'), "n_ctx": msgspec.Raw(b"8")}
    error = DetailedError("it failed", "api_error", "some_code", None, details)
    assert msgspec.json.decode(msgspec.json.encode(messages_error(error, 500))) == {
        "type": "error",
        "error": {
            "message": "it failed",
            "type": "api_error",
            "code": "some_code",
            "param": None,
            "n_ctx": 8,
        },
        "request_id": "req_1",
    }


def test_a_request_id_that_is_no_text_is_a_detail_like_others() -> None:
    error = DetailedError("it failed", "t", "c", None, {"request_id": msgspec.Raw(b"5")})
    said = msgspec.json.decode(msgspec.json.encode(messages_error(error, 500)))
    assert (said["error"]["request_id"], "request_id" in said) == (5, False)
