"""The allow-list: every way in which an answer, or a request, may differ through the gateway.

Each entry makes the expected view out of the one without a gateway, so that what is allowed is
exact: a case where the difference does not show fails, too. `docs/fidelity.md` is made of it.
"""

from typing import Final

from fidelity import expectations as made
from fidelity.model import Case, Difference, Route

WITH_OPTION: Final = frozenset({"/chat/completions", "/completions"})
WITHOUT_TEXT: Final = frozenset({"/embeddings", "/rerank", "/audio/speech"})
"""Endpoints of OpenRouter that the preferred model of the tests cannot serve."""


def automatic(case: Case, route: Route) -> tuple[Difference, ...]:
    """The differences that follow from the request alone."""
    if route is Route.OPENROUTER and case.ask.path.partition("?")[0] in WITHOUT_TEXT:
        return (MODEL_LEFT_OUT,)
    if not (case.ask.is_stream and case.ask.path in WITH_OPTION):
        return ()
    if {OPTION_REFUSED, AMBIGUOUS} & set(case.differs.get(route, ())):
        return ()
    return () if b'"include_usage":true' in case.ask.body.replace(b" ", b"") else (USAGE_ASKED,)


KEY_REFUSED: Final = Difference(
    "key-refused",
    "401 becomes 403 with the code `key_refused` and a message of the gateway's own",
    "A 401 means to an application that its user's session has ended, and it would log the user "
    "out. Providers quote keys in this message.",
    made.key_refused,
    is_final=True,
)
MISCONFIGURED: Final = Difference(
    "provider-misconfigured",
    "on the default provider 401, 402, 403 and a spent quota become 502 `provider_misconfigured`",
    "The account is the operator's. Users can do nothing about it, and its balance and keys are "
    "not theirs to read; the operator finds the reason in the log.",
    made.misconfigured,
    is_final=True,
)
ACCOUNT_HIDDEN: Final = Difference(
    "account-in-stream",
    "an error about the operator's account in a stream of the default provider comes as "
    "`provider_misconfigured`",
    "As before a stream: the account is the operator's.",
    made.account_hidden,
)
REDIRECT: Final = Difference(
    "redirect",
    "a redirect becomes 502 `malformed_answer`",
    "The gateway does not follow redirects, which could lead inside its network, and a client "
    "that followed one would send its token there.",
    made.answered_with_error,
    is_final=True,
)
MALFORMED: Final = Difference(
    "malformed-answer",
    "an answer with a success status that the endpoint cannot give (no JSON, no `choices`, a web "
    "page) becomes 502 `malformed_answer`",
    "Client libraries return such answers as empty objects or fail while reading them. A typed "
    "error can be retried and moved to the fallback.",
    made.answered_with_error,
    is_final=True,
)
NO_ANSWER: Final = Difference(
    "no-answer",
    "a connection that ends before the whole answer has come, or that breaks the rules of HTTP, "
    "becomes an error answer of 502",
    "The client's own connection is not broken. The error says what happened, and that the "
    "request may have been processed.",
    made.answered_with_error,
)
ERROR_INSIDE: Final = Difference(
    "error-inside-success",
    "an error inside an answer with status 200 becomes an error answer with a status that fits",
    "Official clients take status 200 for success and return an object without content.",
    made.answered_with_error,
)
TRUNCATED: Final = Difference(
    "truncated-stream",
    "a stream that stops before the model said that it had finished ends with an error event, "
    "`truncated`",
    "Half an answer must not look like a whole one. Official clients raise an error for the event.",
    made.ended_with_error,
)
BROKEN_EVENT: Final = Difference(
    "malformed-event",
    "a stream with an event that is not JSON ends there with an error event, `malformed_answer`",
    "Official clients raise a decoding error at the same place; the event raises `APIError`.",
    made.ended_with_error,
)
DONE_ADDED: Final = Difference(
    "done-added",
    "`data: [DONE]` is added to a stream that ended after its `finish_reason` without it, and an "
    "end without proper framing becomes a proper one",
    "Clients wait for `[DONE]`. The model said that it had finished, so nothing is missing.",
    made.with_done,
)
RESHAPED: Final = Difference(
    "error-shape",
    "an error in another shape than OpenAI's comes as `error` with `message`, `type`, `param` and "
    "`code`; its status and exception class stay, and so do the members of an error object",
    "Official clients find message and code only there. Numbers in the place of a code repeat the "
    "status, and the clients declare the code as text.",
    made.reshaped,
)
USAGE_ASKED: Final = Difference(
    "usage-asked",
    "the provider is asked for the usage of a stream (`stream_options.include_usage`)",
    "The usage record needs it, and OpenAI sends it only on request.",
    made.with_usage_asked,
)
USAGE_HIDDEN: Final = Difference(
    "usage-hidden",
    "`usage` is taken out of a stream whose client did not ask for it; what else is in that event "
    "stays",
    "The gateway asked for it. Without the gateway it would not be there.",
    made.with_body,
)
AS_EVENTS: Final = Difference(
    "whole-as-events",
    "an answer in one piece to a request for a stream comes as events",
    "Client libraries that asked for events read nothing else, and would return an empty answer.",
    made.as_events,
)
NO_STREAM: Final = Difference(
    "events-refused",
    "a stream in answer to a request for one piece becomes 502 `malformed_answer`",
    "Client libraries would return the events as text, or fail while reading them.",
    made.answered_with_error,
    is_final=True,
)
LABELLED: Final = Difference(
    "stream-labelled",
    "a stream without the media type `text/event-stream` gets it",
    "Browsers and proxies go by it.",
    made.with_label,
)
COMPRESSED: Final = Difference(
    "compressed-stream",
    "a compressed stream becomes 502 `malformed_answer`",
    "The gateway asks for uncompressed answers: it has to read events to see how they end.",
    made.answered_with_error,
    is_final=True,
)
PROPER_END: Final = Difference(
    "proper-end",
    "a connection that breaks behind `[DONE]` is a proper end",
    "The answer was whole. What comes behind its end is not waited for.",
    made.ended_properly,
)
QUERY_DROPPED: Final = Difference(
    "query-dropped",
    "a query (`?a=b`) does not reach the default provider, nor a server behind a tunnel",
    "Some servers switch features on by one, which is for their owner to decide.",
    made.without_query,
)
NO_MARK: Final = Difference(
    "byte-order-mark",
    "a byte order mark at the start of a stream is taken off",
    "Comments may be sent before it, and in the middle of a stream it would be part of a name.",
    made.without_mark,
)
UNSUPPORTED: Final = Difference(
    "endpoint-not-found",
    "a call that OpenRouter does not have becomes 404 `endpoint_not_found` without asking it",
    "Its own answer would be a web page.",
    made.unsupported,
)
OWN_LIST: Final = Difference(
    "own-model-list",
    "the default provider's models are those that the operator offers, a tunnel's those that its "
    "agent found",
    "Users must not see, or ask for, models that the operator pays for and does not offer. An "
    "agent may stand before several model servers.",
    made.own_list,
)
USERS_LIST: Final = Difference(
    "openrouter-user-models",
    "OpenRouter is asked for `/models/user`",
    "`/models` is public there: it would accept any key.",
    made.other_path,
)
AMBIGUOUS: Final = Difference(
    "ambiguous-request",
    "a request that names its model in two ways is refused with 400",
    "Two readers would read two models, and one of them could be a model that is not allowed.",
    made.not_received,
)
FIELD_REFUSED: Final = Difference(
    "field-not-allowed",
    "a field that chooses another model or provider (`models`, `route`, `fallbacks`) becomes 400 "
    "`field_not_allowed` with its name, without asking the default provider",
    "It would pass by the operator's list of models. A user's own providers get all fields.",
    made.field_refused,
)
REBUILT: Final = Difference(
    "json-rebuilt",
    "JSON for a default provider with `models` is written again: the blanks between fields are "
    "lost, and of a field that is given twice the last one stays",
    "No second reader may find another model in it. The values keep their bytes.",
    made.rebuilt,
)
NOT_TO_REPEAT: Final = Difference(
    "not-to-be-repeated",
    "`x-should-retry: false` is added to an error that the same request is known to meet again: "
    "an answer that is none, a redirect, a key, a balance or a quota that is refused; no other "
    "error has it",
    "Official clients repeat by status alone, and would wait and pay for the same answer.",
    made.not_to_repeat,
)
OWN_LIMIT: Final = Difference(
    "operators-limit",
    "on the default provider the message of a 429 is the gateway's",
    "Providers name the operator's account in it. Status, code, type and the time to come back "
    "stay.",
    made.own_limit,
)
ID_INSIDE: Final = Difference(
    "request-id-inside",
    "`request_id` beside an `error` comes inside of it; on `/v1/messages` it stays beside it",
    "Official clients show the error object and nothing beside it.",
    made.id_inside,
)
NO_CODING: Final = Difference(
    "no-coding",
    "a `content-encoding` that names no compression (`none`, `utf-8`, `identity`) is left out",
    "It names no coding (RFC 9110, section 8.4.1), and some clients refuse the answer for it.",
    made.without_coding,
)
ORDERS_REMOVED: Final = Difference(
    "headers-removed",
    "cookies, orders to browsers and proxies (`link`, `location`, `access-control-*`, "
    "`x-sendfile`, …), the name of the account (`openai-organization`) and `x-should-retry` are "
    "taken out of the headers",
    "They speak for the provider's own site, or to the gateway. Whether a request should be "
    "repeated is known when all providers were asked that it may be sent to.",
    made.without_orders,
)
ERROR_HEADERS: Final = Difference(
    "headers-of-errors",
    "of an error's headers those stay that say whether and when to come back, how much is left and "
    "how long it took",
    "The gateway writes errors itself; others describe a body that the client does not get.",
    made.with_limits_only,
)
WAITED: Final = Difference(
    "not-ready",
    "a 503 of a model that is loading, or of a full queue, is waited for if its `Retry-After` "
    "fits into the deadline; without one every 2 s",
    "The server has not taken the request, and answers it a moment later.",
    made.waited_for,
)
UNOFFERED: Final = Difference(
    "model-not-offered",
    "a model that the provider is known not to offer becomes 404 `model_not_found` with the names "
    "that are offered, without asking it",
    "The operator decides which models users may ask for. A user's own provider would refuse it "
    "as well, and not every one says what it has.",
    made.unoffered,
)
MODEL_CHOSEN: Final = Difference(
    "model-chosen",
    "a missing model, the name `default` and, at a user's own provider, a name of the operator's "
    "that it does not offer become the user's preferred model there; with `alwaysUseMyModel` "
    "every name does",
    "Application code does not change with the choice of a provider.",
    made.with_model,
)
MODEL_LEFT_OUT: Final = Difference(
    "model-left-out",
    "a name of the operator's is left out for OpenRouter at an endpoint that the user's preferred "
    "model cannot serve",
    "The name means nothing there. OpenRouter takes the default of the user's account, or says "
    "which model is missing.",
    made.without_model,
)
OPTION_REFUSED: Final = Difference(
    "usage-option-refused",
    "a provider that refuses `stream_options` is asked once more without it",
    "The gateway added it, so the client must not see the refusal. The gateway remembers it.",
    made.asked_without,
)
RETRIED: Final = Difference(
    "retry",
    "a client that does not announce retries of its own (`x-stainless-retry-count`) gets one",
    "A request that was refused for the moment often succeeds a moment later.",
    made.asked_twice,
)

ALLOWED: Final = (
    KEY_REFUSED,
    MISCONFIGURED,
    ACCOUNT_HIDDEN,
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
    FIELD_REFUSED,
    REBUILT,
    NOT_TO_REPEAT,
    OWN_LIMIT,
    ID_INSIDE,
    NO_CODING,
    WAITED,
    ORDERS_REMOVED,
    ERROR_HEADERS,
    UNOFFERED,
    MODEL_CHOSEN,
    MODEL_LEFT_OUT,
    OPTION_REFUSED,
    RETRIED,
)
