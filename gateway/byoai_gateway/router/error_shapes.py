"""The shapes in which providers tell an error, read into one.

OpenAI's, Azure's, vLLM's and SGLang's (integer codes, or without a wrapper), llama.cpp's, Ollama's
bare string, TGI's `error_type`, KoboldCpp's `detail.msg`, OpenRouter's `metadata`, Anthropic's,
FastAPI's `detail`, Google's list, plain text and web pages.
Nothing is taken on trust: whatever is not of the expected type is as good as absent. What an
error repeats of the request (OpenRouter's `flagged_input`, FastAPI's `input`) is never kept.
"""

from codecs import BOM_UTF8
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec

from byoai_gateway.router.error_details import REQUEST_ID, Details, read_details
from byoai_shared.lone_surrogates import decode

MOST_CHARACTERS: Final = 2000
_MOST_CODE_CHARACTERS: Final = 64
_MOST_DETAILS: Final = 5
_DEPTH: Final = 3
"""Errors wrapped into errors, as gateways of gateways do."""
_ELLIPSIS: Final = "…"
_JSON: Final = msgspec.json.Decoder()
_WRAPPERS: Final = ("error", "detail", "message", "base_resp")
_MESSAGES: Final = ("message", "msg", "status_msg")
_READ: Final = frozenset({*_MESSAGES, "type", "code", "param"})
"""Members that are no details: what they say is in the fields of `Told`."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a provider said about an error; every part may be missing."""

    message: str = ""
    code: str | None = None
    kind: str | None = None
    """The word that classifies it: OpenRouter's `metadata.error_type`, its `type`, or a status in
    words."""
    type: str | None = None
    """Its `type`, or TGI's `error_type`, as it was sent."""
    status: int | None = None
    """An HTTP status in the place of a code."""
    param: str | None = None
    is_moderation: bool = False
    retry_after_s: float | None = None
    behind_code: str | None = None
    """The code of the provider behind OpenRouter. It explains the error and nothing else: a quota
    that is used up there is not this account's."""
    details: Details = field(default_factory=dict[str, msgspec.Raw])
    """The other members of the error object."""


NOTHING: Final = Told()


def read_body(body: bytes) -> Told:
    """Read the body of an error answer; a web page or half a JSON document says nothing."""
    text = body.removeprefix(BOM_UTF8).strip()
    if not text or text.startswith(b"<"):
        return NOTHING
    try:
        value: Any = decode(_JSON, text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        is_half = text.startswith((b"{", b"["))
        return NOTHING if is_half else Told(_clean(text.decode(errors="replace")))
    return _read(value, _DEPTH)


def read_error(error: msgspec.Raw) -> Told:
    """Read the value of `error` in an answer of 200."""
    return read_body(bytes(error))


def sentence(status: int) -> str:
    """What is said for an error answer that says nothing itself."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    return f"the provider answered {status}{phrase} without saying why"


def _read(value: Any, depth: int) -> Told:
    if isinstance(value, str):
        return Told(_clean(value))
    if isinstance(value, list):
        return _read_list(cast("list[object]", value), depth)
    if isinstance(value, dict):
        return _read_object(cast("dict[str, Any]", value), depth)
    return NOTHING


def _read_list(items: list[Any], depth: int) -> Told:
    """Google wraps an error in a list; FastAPI lists what is wrong with each field."""
    if not items or depth == 0:
        return NOTHING
    first = items[0]
    if not (isinstance(first, dict) and "msg" in first):
        return _read(first, depth - 1)
    details = [cast("dict[str, Any]", it) for it in items[:_MOST_DETAILS] if isinstance(it, dict)]
    places = [_place(it) for it in details]
    said = [
        f"{place}: {it.get('msg')}" if place else str(it.get("msg"))
        for place, it in zip(places, details, strict=True)
    ]
    return Told(_clean("; ".join(said)), param=places[0] or None)


def _place(detail: dict[str, Any]) -> str:
    location = detail.get("loc")
    if not isinstance(location, list):
        return ""
    parts = [str(it) for it in cast("list[object]", location) if isinstance(it, str | int)]
    return ".".join(parts[1:] if parts[:1] == ["body"] else parts)[:200]


def _read_object(fields: dict[str, Any], depth: int) -> Told:
    for name in _WRAPPERS:
        inner = fields.get(name)
        is_wrapped = bool(inner) and (isinstance(inner, dict | list) or name != "message")
        if not is_wrapped or depth == 0:
            continue
        told = _read(inner, depth - 1)
        if isinstance(inner, dict):
            # Anthropic's stands beside the error.
            beside = read_details({REQUEST_ID: fields.get(REQUEST_ID)}, known=())
            return replace(told, details={**beside, **told.details})
        is_list = isinstance(inner, list)
        return _join(told, fields, known=_READ if is_list else _READ | {name})
    return _read_plain(fields, depth)


def _join(told: Told, fields: dict[str, Any], *, known: frozenset[str]) -> Told:
    """A bare string or a list, and perhaps a code beside it."""
    code, status = _code(fields.get("code"))
    kind = _word(fields.get("type")) or _word(fields.get("error_type"))
    details = read_details(fields, known=known)
    return replace(told, code=code, kind=kind, type=kind, status=status, details=details)


def _read_plain(fields: dict[str, Any], depth: int) -> Told:
    metadata = _object(fields.get("metadata"))
    inner = _behind(metadata, depth)
    code, status = _code(_first(fields, "code", "status_code"))
    type_ = _word(fields.get("type"))
    kind = _word(metadata.get("error_type")) or type_
    availability = _object(fields.get("availability"))
    code = code or _word(availability.get("code"))
    return Told(
        _message(fields, metadata, inner),
        code,
        kind or _word(fields.get("status")),
        type_ or inner.type,
        status,
        _word(fields.get("param")) or inner.param,
        bool(metadata.get("reasons")) or _is_moderation(code, kind),
        _seconds(availability.get("retry_after")),
        inner.code or inner.behind_code,
        read_details(fields, known=_READ),
    )


def _first(fields: dict[str, Any], *names: str) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _behind(metadata: dict[str, Any], depth: int) -> Told:
    """Read what the provider behind OpenRouter answered."""
    raw = metadata.get("raw")
    if depth == 0 or not isinstance(raw, str | dict):
        return NOTHING
    if isinstance(raw, dict):
        return _read(raw, depth - 1)
    return read_body(raw.encode(errors="replace"))


def _message(fields: dict[str, Any], metadata: dict[str, Any], inner: Told) -> str:
    """The message, with what OpenRouter knows about the provider behind it."""
    message = next((it for name in _MESSAGES if isinstance(it := fields.get(name), str)), "")
    said = message
    reasons = metadata.get("reasons")
    if isinstance(reasons, list):
        words = [it for it in cast("list[object]", reasons) if isinstance(it, str)]
        said += f" (reasons: {', '.join(words[:_MOST_DETAILS])})" if words else ""
    if "raw" in metadata:
        name = _word(metadata.get("provider_name"))
        said += f" ({name})" if name else ""
        said += f": {inner.message}" if inner.message else ""
    return _clean(said)


def _is_moderation(code: str | None, kind: str | None) -> bool:
    words = f"{code} {kind}".lower()
    return any(it in words for it in ("moderation", "content_policy", "content_filter"))


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _code(value: Any) -> tuple[str | None, int | None]:
    """Return a code, or the HTTP status that stands in its place."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value[:4])
    if isinstance(value, int) and not isinstance(value, bool):
        return None, value if 400 <= value < 600 else None
    return _word(value), None


def _word(value: Any) -> str | None:
    return _clean(value)[:_MOST_CODE_CHARACTERS] or None if isinstance(value, str) else None


def _seconds(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e9 else None


def _clean(text: str) -> str:
    """Make one bounded line of it, without control characters."""
    line = " ".join(text[: 2 * MOST_CHARACTERS].split())
    line = "".join(it for it in line if it.isprintable())
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1] + _ELLIPSIS
