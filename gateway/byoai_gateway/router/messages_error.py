"""Errors as Anthropic's clients read them: its words for `type`, and `type` beside the error.

Only the shape is Anthropic's: message, code, param and details are those of every other error.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Literal

import msgspec

from byoai_gateway.router.error_details import REQUEST_ID, DetailedError, members
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


_KNOWN: Final = frozenset({*_TYPES.values(), "api_error"})
"""`invalid_request_error` is not among them: it is also what OpenAI's shape calls most errors."""


class MessagesErrorBody(msgspec.Struct, frozen=True):
    """An error answer, or the data of an event that ends a stream with one."""

    type: Literal["error"]
    error: ApiError
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    """Anthropic's own id of the request, where its error carries one."""


def messages_error(error: ApiError, status: int) -> dict[str, object]:
    """Say an error in Anthropic's shape, ready to be encoded; see `MessagesErrorBody`.

    Its type is the provider's if that is a word of Anthropic's; otherwise it follows from `status`.
    """
    inside = members(error)
    if error.type not in _KNOWN:
        otherwise = "invalid_request_error" if status < 500 else "api_error"
        inside["type"] = _TYPES.get(status, otherwise)
    body: dict[str, object] = {"type": "error", "error": inside}
    if isinstance(error, DetailedError) and error.request_id is not None:
        del inside[REQUEST_ID]
        body[REQUEST_ID] = error.request_id
    return body
