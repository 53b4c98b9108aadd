"""What a provider's error says besides `message`, `type`, `code` and `param`.

Clients read some of it (Azure's `innererror`, llama.cpp's `n_ctx`, OpenRouter's `metadata`), so
members that we do not know are kept: bounded in number, depth and bytes, and without those in which
a provider repeats the request. Pure; it decides nothing about whose error it is.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final, cast

import msgspec

from byoai_shared.api_errors import ApiError

MOST_MEMBERS: Final = 16
MOST_BYTES: Final = 4096
"""Of all kept members together, as JSON."""
REQUEST_ID: Final = "request_id"
_MOST_CHARACTERS: Final = 2000
_MOST_NAME_CHARACTERS: Final = 64
_MOST_ITEMS: Final = 32
_DEPTH: Final = 6
_REQUEST: Final = frozenset(
    {
        "body",
        "flagged_input",
        "input",
        "input_value",
        "inputs",
        "messages",
        "prompt",
        "request",
        "request_body",
        "revised_prompt",
    }
)
"""Members that repeat the request, as OpenRouter, FastAPI and Azure name them."""

Details = Mapping[str, msgspec.Raw]
"""Members by name, each as JSON."""


class DetailedError(ApiError, frozen=True):
    """An error with members of the provider's own.

    Encode `members(error)`, not the error: the details are members beside the other four.
    """

    details: Details = msgspec.field(default_factory=dict[str, msgspec.Raw])

    @property
    def request_id(self) -> msgspec.Raw | None:
        """The provider's own id of the request, as JSON, if it is a text."""
        raw = self.details.get(REQUEST_ID)
        return raw if raw is not None and bytes(raw).startswith(b'"') else None


def members(error: ApiError) -> dict[str, object]:
    """Return the members of an error object, ready to be encoded."""
    own: dict[str, object] = {
        "message": error.message,
        "type": error.type,
        "code": error.code,
        "param": error.param,
    }
    return {**own, **error.details, **own} if isinstance(error, DetailedError) else own


def read_details(fields: Mapping[str, object], *, known: Collection[str]) -> Details:
    """Return the members of an error object but the `known` ones; what exceeds the limits is out.

    A member that does not fit is left out as a whole, so that what is kept can be read.
    """
    kept: dict[str, msgspec.Raw] = {}
    left = MOST_BYTES
    for name, value in fields.items():
        if name in known or value is None or not _is_kept(name):
            continue
        encoded = _encoded(_without_request(value, _DEPTH))
        size = len(encoded) + len(name)
        if size <= left and len(kept) < MOST_MEMBERS:
            kept[name] = encoded
            left -= size
    return kept


def _is_kept(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and len(name) <= _MOST_NAME_CHARACTERS
        and name.lower() not in _REQUEST
    )


def _without_request(value: Any, depth: int) -> object:
    match value:
        case str():
            return _text(value, depth)
        case dict() if depth > 0:
            items = list(cast("dict[str, object]", value).items())[:_MOST_ITEMS]
            return {name: _without_request(it, depth - 1) for name, it in items if _is_kept(name)}
        case list() if depth > 0:
            listed = cast("list[object]", value)[:_MOST_ITEMS]
            return [_without_request(it, depth - 1) for it in listed]
        case bool() | int() | float():
            return value
        case _:
            return None


def _text(value: str, depth: int) -> str | None:
    """Bound a text; JSON in it, as in OpenRouter's `raw`, must not repeat the request either."""
    text = value.encode(errors="replace").decode()  # half a surrogate pair cannot be encoded
    if not text.lstrip().startswith(("{", "[")):
        return text[:_MOST_CHARACTERS]
    if len(text) > MOST_BYTES or depth == 0:
        return None
    try:
        inner: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    kept = _without_request(inner, depth - 1)
    return text if kept == inner else msgspec.json.encode(kept).decode()


def _encoded(value: object) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(value))
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return msgspec.Raw(b"null")
