import json

import pytest

from byoai_shared.api_errors import error_body


def test_an_error_has_all_four_keys_of_openai() -> None:
    assert json.loads(error_body(400, "nope", "it failed")) == {
        "error": {
            "message": "it failed",
            "type": "invalid_request_error",
            "param": None,
            "code": "nope",
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_client_libraries_can_tell_by_the_type_whose_fault_it_was(status: int, kind: str) -> None:
    assert json.loads(error_body(status, "code", "sentence"))["error"]["type"] == kind
