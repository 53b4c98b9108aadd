"""Reduces an answer to what a client goes by, the same way straight and through the gateway."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from fidelity.model import EVENTS, Case, Outcome, Received, Seen
from fidelity.wire import Answer

OF_A_CONNECTION: Final = re.compile(
    r"connection|content-length|content-type|date|keep-alive|request-id|server"
    r"|transfer-encoding|x-accel-buffering|x-byoai-.*|x-request-id"
)
"""Headers that are the gateway's, and the one that is compared by itself."""
COMMENTS: Final = re.compile(rb"(?:(?<=\n\n)|(?<=\n\r\n)|\A)(?::[^\r\n]*\r?\n)+\r?\n")
"""Events that are only comments: they say that a connection is alive, and nothing to a client."""
BLANKS: Final = re.compile(rb"(?:(?<=\n\n)|(?<=\n\r\n)|\A)(?:\r?\n)+")
"""Blank lines between events; one ends an event, more mean nothing."""
EVENT: Final = re.compile(rb"(?s).*?(?:\r\n\r\n|\n\n|\r\r|\Z)")
LINE: Final = re.compile(rb"\r\n|\n|\r")


def seen(
    case: Case, answer: Answer, received: tuple[Received, ...], outcome: Outcome | None
) -> Seen:
    """What is compared of an answer."""
    headers = dict(answer.headers)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    body, error = answer.body, None
    if answer.status >= 300:
        body, error = b"", members(answer.body)
    elif case.ask.is_stream and looks_like_events(kind, body):
        body, error = without_error(without_comments(body))
    return Seen(
        status=answer.status,
        content_type=kind if answer.status < 300 else "",
        headers={
            name: value for name, value in headers.items() if not OF_A_CONNECTION.fullmatch(name)
        },
        body=body,
        error=error,
        is_cut=answer.is_cut,
        received=received,
        outcome=outcome,
    )


def looks_like_events(kind: str, body: bytes) -> bool:
    """Whether a client that asked for a stream would find events in an answer."""
    return kind == EVENTS or body.startswith((b"data:", b"event:", b":"))


def without_comments(body: bytes) -> bytes:
    """A stream without the events that are only comments or blank lines."""
    return BLANKS.sub(b"", COMMENTS.sub(b"", body))


def without_error(body: bytes) -> tuple[bytes, Mapping[str, Any] | None]:
    """A stream up to the event that ends it with an error, and the members of that error."""
    for found in EVENT.finditer(body):
        said = error_in(found[0])
        if said is not None:
            return body[: found.start()], said
    return body, None


def error_in(event: bytes) -> Mapping[str, Any] | None:
    """The members of the error that an event tells of, as the official clients look for it."""
    name, data = b"", b""
    for line in LINE.split(event):
        key, _, value = line.partition(b":")
        name = value.strip() if key == b"event" else name
        data += value.strip() if key == b"data" else b""
    value = decoded(data)
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    if fields.get("error"):
        return flat({"error": fields["error"]})
    return flat({"error": fields}) if name == b"error" else None


def members(body: bytes) -> Mapping[str, Any]:
    """The members of an error answer."""
    value = decoded(body)
    if isinstance(value, dict):
        return flat(cast("dict[str, Any]", value))
    return {"": body.decode(errors="replace")} if body else {}


def flat(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"error": {"code": 1}, "id": 2}` is `{"error.code": 1, "id": 2}`."""
    inner = fields.get("error")
    if not isinstance(inner, dict):
        return dict(fields)
    beside = {name: value for name, value in fields.items() if name != "error"}
    named = cast("dict[str, Any]", inner)
    return beside | {f"error.{name}": value for name, value in named.items()}


def decoded(data: bytes) -> object:
    """What a JSON text says; None if it is none."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value
