"""Errors as Anthropic's clients read them: its words for `type`, and `type` beside the error.

Only the shape is Anthropic's: message, code and param are those of every other error.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Literal

import msgspec

from byoai_shared.api_errors import ApiError

_TYPES: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
    529: "overloaded_error",  # Anthropic's own
}


class MessagesErrorBody(msgspec.Struct, frozen=True):
    """An error answer, or the data of an event that ends a stream with one."""

    type: Literal["error"]
    error: ApiError


def messages_error(error: ApiError, status: int) -> MessagesErrorBody:
    """Say an error in Anthropic's shape; its type follows from `status`, as everywhere."""
    otherwise = "invalid_request_error" if status < 500 else "api_error"
    named = msgspec.structs.replace(error, type=_TYPES.get(status, otherwise))
    return MessagesErrorBody("error", named)
