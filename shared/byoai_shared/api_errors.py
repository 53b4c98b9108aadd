"""Errors as every HTTP answer of ours tells them: OpenAI's shape, all four keys of it.

Client libraries read `type` to choose an exception and `code` to decide what to do, so both
follow from one place. A message is a sentence for people; no secret and no payload in it.
"""

import msgspec

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(msgspec.Struct, frozen=True):
    """The inside of an error answer."""

    message: str
    type: str
    code: str
    param: str | None = None


class ApiErrorBody(msgspec.Struct, frozen=True):
    """An error answer."""

    error: ApiError
    fields: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """What is wrong with each field of a body, where that is what the error is about."""


def api_error(status: int, code: str, message: str, *, param: str | None = None) -> ApiError:
    """Return an error whose type follows from the status it is answered with."""
    return ApiError(message, _type(status), code, param)


def error_body(status: int, code: str, message: str, *, param: str | None = None) -> bytes:
    """Return the JSON of an error answer with this status."""
    return msgspec.json.encode(ApiErrorBody(api_error(status, code, message, param=param)))


def _type(status: int) -> str:
    return "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
