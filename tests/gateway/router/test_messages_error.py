import pytest

from byoai_gateway.router.messages_error import messages_error
from byoai_shared.api_errors import api_error


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
    said = messages_error(api_error(status, "some_code", "it failed", param="model"), status)
    assert (said.type, said.error.type) == ("error", kind)
    assert (said.error.code, said.error.message, said.error.param) == (
        "some_code",
        "it failed",
        "model",
    )
