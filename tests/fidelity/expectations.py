"""How each allowed difference changes what is expected of an answer, and of a request.

Every function makes the expected view out of the one without a gateway, so that what is allowed is
exact.
"""

import re
from dataclasses import replace
from typing import Any, Final
from unittest.mock import ANY

import msgspec

from fidelity.model import EVENTS, Case, Outcome, Received, Seen
from support.provider_script import DONE

RAISED: Final = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
}
ORDERS: Final = re.compile(
    r"access-control-.*|alt-svc|link|location|openai-organization|openai-project|refresh"
    r"|set-cookie|strict-transport-security|via|www-authenticate|x-sendfile|x-should-retry"
)
OF_ERRORS: Final = re.compile(
    r"retry-after|retry-after-ms|openai-processing-ms|x-should-retry"
    r"|(?:x|anthropic)-ratelimit-.*"
)
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def raised(status: int) -> str:
    """The class that the official client raises for a status."""
    return RAISED.get(status, "InternalServerError" if status >= 500 else "APIStatusError")


def answered_with_error(case: Case, seen: Seen) -> Seen:
    """An error answer of the gateway's own making."""
    error = {"error.message": ANY, "error.type": ANY, **case.error}
    outcome = Outcome(
        raised(case.answered),
        case.answered,
        case.error.get("error.code"),
        case.error.get("error.type"),
        case.error.get("error.param"),
    )
    return replace(
        seen,
        status=case.answered,
        content_type="",
        headers={},
        body=b"",
        error=error,
        is_cut=False,
        outcome=None if seen.outcome is None else outcome,
    )


def key_refused(case: Case, seen: Seen) -> Seen:
    """403 in place of 401."""
    return answered_with_error(
        replace(case, answered=403, error={"error.code": "key_refused"}), seen
    )


def misconfigured(case: Case, seen: Seen) -> Seen:
    """502 in place of what is the operator's business."""
    error = {"error.code": "provider_misconfigured"}
    return answered_with_error(replace(case, answered=502, error=error), seen)


def unsupported(case: Case, seen: Seen) -> Seen:
    """404 without asking."""
    error = {"error.code": "endpoint_not_found"}
    return not_received(replace(case, answered=404, error=error), seen)


def unoffered(case: Case, seen: Seen) -> Seen:
    """404 without asking."""
    error = {"error.code": "model_not_found", "error.param": "model"}
    return not_received(replace(case, answered=404, error=error), seen)


def ended_with_error(case: Case, seen: Seen) -> Seen:
    """A stream that ends with an error event in place of a broken connection or nothing."""
    error = {"error.message": ANY, "error.code": "truncated", **case.error}
    code = case.error.get("error.code", "truncated")
    outcome = None if seen.outcome is None else Outcome("APIError", code=code)
    return replace(seen, body=case.becomes or seen.body, error=error, is_cut=False, outcome=outcome)


def account_hidden(case: Case, seen: Seen) -> Seen:
    """The error event says nothing of the account."""
    return ended_with_error(replace(case, error={"error.code": "provider_misconfigured"}), seen)


def not_received(case: Case, seen: Seen) -> Seen:
    """Refused before a provider was asked."""
    return replace(answered_with_error(case, seen), received=())


def field_refused(case: Case, seen: Seen) -> Seen:
    """400 without asking, with the name of the field."""
    error = {"error.code": "field_not_allowed", **case.error}
    return not_received(replace(case, answered=400, error=error), seen)


def not_to_repeat(_: Case, seen: Seen) -> Seen:
    """The client is told not to ask again."""
    return replace(seen, headers={**seen.headers, "x-should-retry": "false"})


def own_limit(_: Case, seen: Seen) -> Seen:
    """A message of the gateway's own."""
    return replace(seen, error={**(seen.error or {}), "error.message": ANY})


def id_inside(_: Case, seen: Seen) -> Seen:
    """The id of the request stands in the error."""
    error = dict(seen.error or {})
    error["error.request_id"] = error.pop("request_id")
    return replace(seen, error=error)


def without_coding(_: Case, seen: Seen) -> Seen:
    """The header that names no coding is left out."""
    kept = {name: value for name, value in seen.headers.items() if name != "content-encoding"}
    return replace(seen, headers=kept)


def without_orders(_: Case, seen: Seen) -> Seen:
    """Headers that are not a provider's to send are taken out."""
    kept = {name: value for name, value in seen.headers.items() if not ORDERS.fullmatch(name)}
    return replace(seen, headers=kept)


def with_limits_only(_: Case, seen: Seen) -> Seen:
    """Of the headers of an error those stay that clients go by."""
    kept = {name: value for name, value in seen.headers.items() if OF_ERRORS.fullmatch(name)}
    return replace(seen, headers=kept)


def rebuilt(_: Case, seen: Seen) -> Seen:
    """The provider gets the same fields, without blanks and each of them once."""
    asked = [replace(it, body=msgspec.json.encode(_fields.decode(it.body))) for it in seen.received]
    return replace(seen, received=tuple(asked))


def waited_for(case: Case, seen: Seen) -> Seen:
    """The provider is asked again, and the client gets the second answer."""
    return replace(
        asked_twice(case, seen),
        status=200,
        content_type="application/json",
        headers={},
        body=case.becomes,
        error=None,
        outcome=sound(seen),
    )


def reshaped(case: Case, seen: Seen) -> Seen:
    """An error in the shape that the official clients read, with the provider's own status."""
    kept = {name: value for name, value in (seen.error or {}).items() if "." in name}
    outcome = seen.outcome
    if outcome is not None:
        outcome = replace(
            outcome,
            code=case.error.get("error.code", outcome.code),
            type=case.error.get("error.type", outcome.type),
            param=case.error.get("error.param", outcome.param),
        )
    return replace(seen, error=kept | dict(case.error), outcome=outcome)


def with_usage_asked(case: Case, seen: Seen) -> Seen:
    """The provider is asked for the usage."""
    asked = [replace(it, body=usage_asked(it.body)) for it in seen.received]
    return replace(seen, received=tuple(asked))


def usage_asked(body: bytes) -> bytes:
    """A body with the one option; every other field keeps its bytes."""
    fields = _fields.decode(body)
    options: dict[str, Any] = {}
    said = fields.get("stream_options")
    if said is not None and bytes(said) != b"null":
        options = msgspec.json.decode(said)
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode({**options, "include_usage": True}))
    return msgspec.json.encode(fields)


def with_body(case: Case, seen: Seen) -> Seen:
    """The client gets the body of the case."""
    return replace(seen, body=case.becomes)


def as_events(case: Case, seen: Seen) -> Seen:
    """The client gets the body of the case, as events."""
    headers = {**seen.headers, "cache-control": "no-cache"}
    return replace(seen, body=case.becomes, content_type=EVENTS, headers=headers)


def with_done(_: Case, seen: Seen) -> Seen:
    """`[DONE]` is added."""
    return replace(seen, body=seen.body + DONE, is_cut=False, outcome=sound(seen))


def sound(seen: Seen) -> Outcome | None:
    """The official client raises nothing."""
    return None if seen.outcome is None else Outcome(None)


def with_label(_: Case, seen: Seen) -> Seen:
    """A stream is labelled as one."""
    return replace(seen, content_type=EVENTS)


def with_model(_: Case, seen: Seen) -> Seen:
    """The provider is asked for the model that is meant."""
    return _changed(seen, {"model": msgspec.Raw(b'"provider-model"')})


def without_model(_: Case, seen: Seen) -> Seen:
    """The provider is left to choose the model."""
    return _changed(seen, {})


def _changed(seen: Seen, more: dict[str, msgspec.Raw]) -> Seen:
    asked: list[Received] = []
    for it in seen.received:
        fields = _fields.decode(it.body)
        if not more:
            fields.pop("model", None)
        asked.append(replace(it, body=msgspec.json.encode(fields | more)))
    return replace(seen, received=tuple(asked))


def asked_without(_: Case, seen: Seen) -> Seen:
    """The provider is asked once with the option, and then without."""
    (asked,) = seen.received
    return replace(seen, received=(replace(asked, body=usage_asked(asked.body)), asked))


def asked_twice(_: Case, seen: Seen) -> Seen:
    """The provider is asked once more."""
    return replace(seen, received=seen.received * 2)


def ended_properly(_: Case, seen: Seen) -> Seen:
    """The end is framed as one."""
    return replace(seen, is_cut=False, outcome=sound(seen))


def without_query(_: Case, seen: Seen) -> Seen:
    """The path ends before its query."""
    asked = tuple(replace(it, path=it.path.partition("?")[0]) for it in seen.received)
    return replace(seen, received=asked)


def without_mark(_: Case, seen: Seen) -> Seen:
    """The byte order mark is taken off."""
    return replace(seen, body=seen.body.removeprefix(b"\xef\xbb\xbf"), outcome=sound(seen))


def own_list(case: Case, seen: Seen) -> Seen:
    """The gateway, or the agent, answers without asking the provider again."""
    del case
    return replace(seen, content_type="application/json", body=ANY, received=())


def other_path(_: Case, seen: Seen) -> Seen:
    """OpenRouter's list of the models that this key may use."""
    asked = tuple(replace(it, path="/models/user") for it in seen.received)
    return replace(seen, received=asked)
