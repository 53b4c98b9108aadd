"""The allow-list: every way in which an answer, or a request, may differ through the gateway.

Each entry makes the expected view out of the one without a gateway, so that what is allowed is
exact: a case where the difference does not show fails, too. `docs/fidelity.md` is made of it.
"""

from dataclasses import replace
from typing import Any, Final
from unittest.mock import ANY

import msgspec

from fidelity.model import EVENTS, Case, Difference, Outcome, Received, Route, Seen
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
WITH_OPTION: Final = frozenset({"/chat/completions", "/completions"})
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def automatic(case: Case, route: Route) -> tuple[Difference, ...]:
    """The differences that follow from the request alone."""
    if not (case.ask.is_stream and case.ask.path in WITH_OPTION):
        return ()
    if {OPTION_REFUSED, AMBIGUOUS} & set(case.differs.get(route, ())):
        return ()
    return () if b'"include_usage":true' in case.ask.body.replace(b" ", b"") else (USAGE_ASKED,)


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
    return useless_to_repeat(replace(case, answered=403, error={"error.code": "key_refused"}), seen)


def misconfigured(case: Case, seen: Seen) -> Seen:
    """502 in place of what is the operator's business."""
    error = {"error.code": "provider_misconfigured"}
    return useless_to_repeat(replace(case, answered=502, error=error), seen)


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


def useless_to_repeat(case: Case, seen: Seen) -> Seen:
    """An error of the gateway's own making that a client may be told not to repeat."""
    return replace(answered_with_error(case, seen), headers=ANY)


def not_received(case: Case, seen: Seen) -> Seen:
    """Refused before a provider was asked."""
    return replace(useless_to_repeat(case, seen), received=())


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
    return replace(seen, body=case.becomes, content_type=EVENTS)


def with_done(_: Case, seen: Seen) -> Seen:
    """`[DONE]` is added."""
    return replace(seen, body=seen.body + DONE, is_cut=False, outcome=sound(seen))


def sound(seen: Seen) -> Outcome | None:
    """The official client raises nothing."""
    return None if seen.outcome is None else Outcome(None)


def with_provider_body(case: Case, seen: Seen) -> Seen:
    """The provider gets the body of the case."""
    return replace(seen, received=tuple(replace(it, body=case.becomes) for it in seen.received))


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


KEY_REFUSED: Final = Difference(
    "key-refused",
    "401 becomes 403 with the code `key_refused` and a message of the gateway's own",
    "A 401 means to an application that its user's session has ended, and it would log the user "
    "out. Providers quote keys in this message.",
    key_refused,
)
MISCONFIGURED: Final = Difference(
    "provider-misconfigured",
    "on the default provider 401, 402, 403 and a spent quota become 502 `provider_misconfigured`",
    "The account is the operator's. Users can do nothing about it, and its balance and keys are "
    "not theirs to read; the operator finds the reason in the log.",
    misconfigured,
)
REDIRECT: Final = Difference(
    "redirect",
    "a redirect becomes 502 `malformed_answer`",
    "The gateway does not follow redirects, which could lead inside its network, and a client "
    "that followed one would send its token there.",
    useless_to_repeat,
)
MALFORMED: Final = Difference(
    "malformed-answer",
    "an answer with a success status that the endpoint cannot give (no JSON, no `choices`, a web "
    "page, broken HTTP) becomes 502 `malformed_answer`",
    "Client libraries return such answers as empty objects or fail while reading them. A typed "
    "error can be retried and moved to the fallback.",
    answered_with_error,
)
NO_ANSWER: Final = Difference(
    "no-answer",
    "a connection that ends before the whole answer has come becomes an error answer of 502",
    "The client's own connection is not broken. The error says what happened, and that the "
    "request may have been processed.",
    answered_with_error,
)
ERROR_INSIDE: Final = Difference(
    "error-inside-success",
    "an error inside an answer with status 200 becomes an error answer with a status that fits",
    "Official clients take status 200 for success and return an object without content.",
    answered_with_error,
)
TRUNCATED: Final = Difference(
    "truncated-stream",
    "a stream that stops before the model said that it had finished ends with an error event, "
    "`truncated`",
    "Half an answer must not look like a whole one. Official clients raise an error for the event.",
    ended_with_error,
)
BROKEN_EVENT: Final = Difference(
    "malformed-event",
    "a stream with an event that is not JSON ends there with an error event, `malformed_answer`",
    "Official clients raise a decoding error at the same place; the event raises `APIError`.",
    ended_with_error,
)
DONE_ADDED: Final = Difference(
    "done-added",
    "`data: [DONE]` is added to a stream that ended after its `finish_reason` without it, and an "
    "end without proper framing becomes a proper one",
    "Clients wait for `[DONE]`. The model said that it had finished, so nothing is missing.",
    with_done,
)
RESHAPED: Final = Difference(
    "error-shape",
    "an error in another shape than OpenAI's comes as `error` with `message`, `type`, `param` and "
    "`code`; its status and exception class stay, and so do the members of an error object",
    "Official clients find message and code only there. Numbers in the place of a code repeat the "
    "status, and the clients declare the code as text.",
    reshaped,
)
USAGE_ASKED: Final = Difference(
    "usage-asked",
    "the provider is asked for the usage of a stream (`stream_options.include_usage`)",
    "The usage record needs it, and OpenAI sends it only on request.",
    with_usage_asked,
)
USAGE_HIDDEN: Final = Difference(
    "usage-hidden",
    "`usage` is taken out of a stream whose client did not ask for it; what else is in that event "
    "stays",
    "The gateway asked for it. Without the gateway it would not be there.",
    with_body,
)
AS_EVENTS: Final = Difference(
    "whole-as-events",
    "an answer in one piece to a request for a stream comes as events",
    "Client libraries that asked for events read nothing else, and would return an empty answer.",
    as_events,
)
NO_STREAM: Final = Difference(
    "events-refused",
    "a stream in answer to a request for one piece becomes 502 `malformed_answer`",
    "Client libraries would return the events as text, or fail while reading them.",
    answered_with_error,
)
LABELLED: Final = Difference(
    "stream-labelled",
    "a stream without the media type `text/event-stream` gets it",
    "Browsers and proxies go by it.",
    with_label,
)
COMPRESSED: Final = Difference(
    "compressed-stream",
    "a compressed stream becomes 502 `malformed_answer`",
    "The gateway asks for uncompressed answers: it has to read events to see how they end.",
    answered_with_error,
)
PROPER_END: Final = Difference(
    "proper-end",
    "a connection that breaks behind `[DONE]` is a proper end",
    "The answer was whole. What comes behind its end is not waited for.",
    ended_properly,
)
QUERY_DROPPED: Final = Difference(
    "query-dropped",
    "a query (`?a=b`) does not reach the default provider, nor a server behind a tunnel",
    "Some servers switch features on by one, which is for their owner to decide.",
    without_query,
)
NO_MARK: Final = Difference(
    "byte-order-mark",
    "a byte order mark at the start of a stream is taken off",
    "Comments may be sent before it, and in the middle of a stream it would be part of a name.",
    without_mark,
)
UNSUPPORTED: Final = Difference(
    "endpoint-not-found",
    "a call that OpenRouter does not have becomes 404 `endpoint_not_found` without asking it",
    "Its own answer would be a web page.",
    unsupported,
)
OWN_LIST: Final = Difference(
    "own-model-list",
    "the default provider's models are those that the operator offers, a tunnel's those that its "
    "agent found",
    "Users must not see, or ask for, models that the operator pays for and does not offer. An "
    "agent may stand before several model servers.",
    own_list,
)
USERS_LIST: Final = Difference(
    "openrouter-user-models",
    "OpenRouter is asked for `/models/user`",
    "`/models` is public there: it would accept any key.",
    other_path,
)
AMBIGUOUS: Final = Difference(
    "ambiguous-request",
    "a request that names its model in two ways is refused with 400",
    "Two readers would read two models, and one of them could be a model that is not allowed.",
    not_received,
)
DROPPED: Final = Difference(
    "steering-fields",
    "fields that choose another model or provider (`models`, `route`, `fallbacks`) do not reach "
    "the default provider",
    "They would pass by the operator's list of models.",
    with_provider_body,
)
UNOFFERED: Final = Difference(
    "model-not-offered",
    "a model that the operator does not offer becomes 404 `model_not_found` without asking the "
    "default provider",
    "The operator pays, and decides which models users may ask for.",
    unoffered,
)
MODEL_CHOSEN: Final = Difference(
    "model-chosen",
    "a missing model, and the name `default`, become the user's preferred model at that provider",
    "Application code does not change with the choice of a provider.",
    with_model,
)
MODEL_LEFT_OUT: Final = Difference(
    "model-left-out",
    "the model name `default` is left out for OpenRouter, when the user prefers none there",
    "OpenRouter then takes the default model of the user's account.",
    without_model,
)
OPTION_REFUSED: Final = Difference(
    "usage-option-refused",
    "a provider that refuses `stream_options` is asked once more without it",
    "The gateway added it, so the client must not see the refusal. The gateway remembers it.",
    asked_without,
)
RETRIED: Final = Difference(
    "retry",
    "a client that does not announce retries of its own (`x-stainless-retry-count`) gets one",
    "A request that was refused for the moment often succeeds a moment later.",
    asked_twice,
)

ALLOWED: Final = (
    KEY_REFUSED,
    MISCONFIGURED,
    REDIRECT,
    MALFORMED,
    NO_ANSWER,
    ERROR_INSIDE,
    TRUNCATED,
    BROKEN_EVENT,
    DONE_ADDED,
    RESHAPED,
    USAGE_ASKED,
    USAGE_HIDDEN,
    AS_EVENTS,
    NO_STREAM,
    LABELLED,
    COMPRESSED,
    PROPER_END,
    QUERY_DROPPED,
    NO_MARK,
    UNSUPPORTED,
    OWN_LIST,
    USERS_LIST,
    AMBIGUOUS,
    DROPPED,
    UNOFFERED,
    MODEL_CHOSEN,
    MODEL_LEFT_OUT,
    OPTION_REFUSED,
    RETRIED,
)
