"""What a provider's failure means: from a status, an error in an answer, or silence to a `Failure`.

A client gets the provider's status, code, type, message and details, so that it does what it would
do without us. The exceptions: a provider's 401 never reaches a client as 401, because 401 means the
client's own session, and an application would log its user out. What the operator's own account did
wrong is no business of users: they learn that the default provider is misconfigured. The text of an
error about a key is replaced by a sentence of ours, because providers like to quote the key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import msgspec

from byoai_gateway.router.error_details import DetailedError
from byoai_gateway.router.error_headers import (
    forbids_repeat,
    headers_for_client,
    provider_request_id,
    retry_after_s,
)
from byoai_gateway.router.error_shapes import NOTHING, Told, read_body, read_error, sentence
from byoai_gateway.router.failures import Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName
from byoai_shared.api_errors import ApiError, api_error
from byoai_shared.http1.head import Headers

PRIVACY_SETTINGS: Final = "https://openrouter.ai/settings/privacy"

_BY_STATUS: Final = {
    HTTPStatus.UNAUTHORIZED: FailureKind.KEY_REFUSED,
    HTTPStatus.PAYMENT_REQUIRED: FailureKind.CREDITS_SPENT,
    HTTPStatus.FORBIDDEN: FailureKind.FORBIDDEN,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: FailureKind.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT: FailureKind.PROVIDER_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS: FailureKind.RATE_LIMITED,
    HTTPStatus.NOT_IMPLEMENTED: FailureKind.REJECTED,
    HTTPStatus.LOOP_DETECTED: FailureKind.REJECTED,
    HTTPStatus.GATEWAY_TIMEOUT: FailureKind.PROVIDER_TIMEOUT,
    524: FailureKind.PROVIDER_TIMEOUT,
}
_REPLACED_STATUSES: Final[Mapping[int, HTTPStatus]] = {
    # Both would speak of the connection between the client and us.
    HTTPStatus.UNAUTHORIZED: HTTPStatus.FORBIDDEN,
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: HTTPStatus.FORBIDDEN,
}
_NOT_READY: Final = ("loading model", "model is loading", "maximum pending requests exceeded")
"""How llama.cpp, text-generation-inference and Ollama say that they took nothing, with 503."""
_OPERATORS: Final = frozenset(
    {FailureKind.KEY_REFUSED, FailureKind.CREDITS_SPENT, FailureKind.FORBIDDEN}
)
_STATUS_OF_WORD: Final = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "billing_error": 402,
    "insufficient_quota": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "timeout_error": 504,
    "overloaded_error": 529,
    "service_unavailable": 503,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
}
_QUOTA: Final = "insufficient_quota"
_OF_A_KEY: Final = frozenset({"invalid_api_key", "authentication_error"})
"""What is said of a key by whatever status; such errors quote it."""
_SAID_AS_BAD_REQUEST: Final = {
    "your credit balance is too low": FailureKind.CREDITS_SPENT,
    "api key not valid": FailureKind.KEY_REFUSED,
}
"""How Anthropic and Google begin a 400 that is not about the request but about the account."""
_NAMES_SHOWN: Final = 20
_SEE_MODELS: Final = "GET /v1/models lists what it does"
_NO_MODEL: Final = ("not found", "does not exist", "not a valid model", "no endpoints found for ")
_PRIVACY: Final = ("data policy", "guardrail restrictions")
_NAMES: Final = {
    ProviderName.DEFAULT: "the default provider",
    ProviderName.OPENROUTER: "OpenRouter",
    ProviderName.SELF_HOSTED: "the self-hosted model server",
}
_SENTENCES: Final = {
    FailureKind.CREDITS_SPENT: "your credits at {name}, or the limit of your key, are used up",
    FailureKind.FORBIDDEN: "{name} does not allow this with your key",
    FailureKind.RATE_LIMITED: "you have exceeded the rate limit of {name}; try again later",
}
"""For errors that come without a message."""
_GENERIC: Final = frozenset({None, "invalid_request_error", "error", "api_error", "server_error"})
_CODES: Final = {400: "invalid_request", 404: "not_found", 413: "too_large", 422: "invalid_request"}


def failure_of_status(
    provider: ProviderName, status: int, headers: Headers, body: bytes
) -> Failure:
    """Say what an answer that is no success means."""
    if status < HTTPStatus.BAD_REQUEST:
        return _no_answer(provider, status)
    told = read_body(body)
    wait_s = retry_after_s(headers)
    failure = _failure(
        provider,
        _kind(provider, status, told),
        status,
        told,
        told.retry_after_s if wait_s is None else wait_s,
        headers,
    )
    return replace(failure, is_final=True) if forbids_repeat(headers) else failure


def key_quoted(provider: ProviderName) -> Failure:
    """The provider's error quotes the key that it was asked with: no word of it is passed on."""
    if provider is ProviderName.DEFAULT:
        return _misconfigured(FailureKind.KEY_REFUSED)
    return _failure(provider, FailureKind.KEY_REFUSED, HTTPStatus.UNAUTHORIZED, NOTHING)


def failure_of_error(provider: ProviderName, error: msgspec.Raw) -> Failure:
    """Say what an error inside an answer of 200, or an event, means."""
    told = read_error(error)
    status = told.status or _status_of_words(told)
    if status is None:
        return _failure(provider, FailureKind.ERROR_IN_ANSWER, HTTPStatus.BAD_GATEWAY, told)
    kind = _kind(provider, status, told)
    if kind is FailureKind.SERVER_ERROR:
        kind = FailureKind.ERROR_IN_ANSWER
    return _failure(provider, kind, status, told, told.retry_after_s)


def timed_out(provider: ProviderName, limit_s: float) -> Failure:
    """The provider let the time for the beginning of an answer pass."""
    return _ours(
        FailureKind.FIRST_TOKEN_TIMEOUT,
        HTTPStatus.GATEWAY_TIMEOUT,
        f"{_NAMES[provider]} had not begun to answer after {limit_s:g} s; a shorter request or a "
        "smaller model may be answered in time",
    )


def out_of_time(provider: ProviderName) -> Failure:
    """The time of the whole request was over before the provider's answer began."""
    return _ours(
        FailureKind.DEADLINE,
        HTTPStatus.GATEWAY_TIMEOUT,
        f"the time for this request was over before {_NAMES[provider]} began to answer; ask again, "
        "or ask for less at once",
    )


def silent(provider: ProviderName, limit_s: float) -> Failure:
    """Nothing came between two events of a stream for too long."""
    return _ours(
        FailureKind.SILENCE,
        HTTPStatus.GATEWAY_TIMEOUT,
        f"{_NAMES[provider]} sent nothing for {limit_s:g} s in the middle of its answer; ask again",
    )


def connection_lost(provider: ProviderName) -> Failure:
    """The connection ended after the request had been sent and before an answer began."""
    return _ours(
        FailureKind.CONNECTION_LOST,
        HTTPStatus.BAD_GATEWAY,
        f"the connection to {_NAMES[provider]} was lost before it answered; the request may have "
        "been acted upon, ask again if that does no harm",
    )


def unreachable(provider: ProviderName, reason: str | None = None) -> Failure:
    """There was no way to the provider; `reason` is a sentence that people may read."""
    why = f": {reason}" if reason else ""
    return _ours(
        FailureKind.UNREACHABLE,
        HTTPStatus.BAD_GATEWAY,
        f"{_NAMES[provider]} cannot be reached{why}; try again later, or check its address",
    )


def address_refused(provider: ProviderName, reason: str) -> Failure:
    """The user's address leads where we do not go; `reason` is a sentence for people."""
    return _ours(
        FailureKind.ADDRESS_REFUSED,
        HTTPStatus.BAD_GATEWAY,
        f"{_NAMES[provider]} is not asked: {reason}; change its address in the settings",
        is_final=True,
    )


def truncated(provider: ProviderName) -> Failure:
    """The answer ended before its end."""
    return _ours(
        FailureKind.TRUNCATED,
        HTTPStatus.BAD_GATEWAY,
        f"{_NAMES[provider]} broke off its answer; what came is not all of it, ask again",
    )


def malformed(
    provider: ProviderName, what: str = "it cannot be read", *, is_final: bool = True
) -> Failure:
    """The answer is not what the endpoint answers; `what` says how, without quoting it.

    Clients do not repeat a request for such an answer, which they may have paid for.
    """
    return _ours(
        FailureKind.MALFORMED,
        HTTPStatus.BAD_GATEWAY,
        f"{_NAMES[provider]} gave a malformed answer: {what}",
        is_final=is_final,
    )


def malformed_http(provider: ProviderName) -> Failure:
    """The response is not valid HTTP; clients treat this as a lost connection."""
    return malformed(provider, "it breaks the rules of HTTP", is_final=False)


def breaker_open(provider: ProviderName, wait_s: float) -> Failure:
    """The provider failed this user too often in a row and is left alone for a while."""
    return _ours(
        FailureKind.BREAKER_OPEN,
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"{_NAMES[provider]} failed several times in a row and is not asked for now; try again "
        f"in {max(1, round(wait_s))} s",
        wait_s=wait_s,
    )


def agent_absent(kind: FailureKind, message: str, wait_s: float) -> Failure:
    """No agent of the user's tunnel can be reached; `message` says whose fault that is."""
    return _ours(kind, HTTPStatus.SERVICE_UNAVAILABLE, message, wait_s=wait_s)


def tunnel_busy() -> Failure:
    """The user's tunnel carries as many requests as it may, or too many began at once."""
    return _ours(
        FailureKind.TUNNEL_BUSY,
        HTTPStatus.TOO_MANY_REQUESTS,
        "your tunnel takes no more requests at this moment: too many are under way, or began "
        "within one second; try again in a second",
        wait_s=1.0,
    )


def tunnel_throttled() -> Failure:
    """Too many requests to the user's tunnel ended before its agent answered any."""
    return _ours(
        FailureKind.TUNNEL_BUSY,
        HTTPStatus.TOO_MANY_REQUESTS,
        "too many requests to your tunnel were canceled before your agent answered; check that "
        "the agent responds (`byoai-agent status` on its host) and try again in 10 s",
        wait_s=10.0,
        code="tunnel_throttled",
    )


def untrusted(reason: str) -> Failure:
    """Whoever answered at the end of the tunnel did not prove to be the user's agent."""
    return _ours(
        FailureKind.AGENT_OFFLINE,
        HTTPStatus.BAD_GATEWAY,
        reason,
        code="tunnel_untrusted",
        is_final=True,
    )


def model_not_found(
    provider: ProviderName,
    model: str | None,
    offered: Sequence[str] = (),
    *,
    is_preferred: bool = False,
) -> Failure:
    """The provider is not asked for this model, because we know that it does not have it.

    `is_preferred`: the user's settings name it, and not the request.
    """
    asked = f"the model {model[:100]!r}" if model else "a model without a name"
    if is_preferred:
        asked = f"your preferred model {(model or '')[:100]!r}"
    advice = "choose another in the settings" if is_preferred else "request one of those"
    lists = f"it offers {_listed(offered)}; {advice}" if offered else _SEE_MODELS
    failure = _ours(
        FailureKind.MODEL_NOT_FOUND,
        HTTPStatus.NOT_FOUND,
        f"{_NAMES[provider]} does not offer {asked}; {lists}",
        param="model",
    )
    return replace(failure, model=model)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown


def endpoint_not_found(provider: ProviderName, path: str) -> Failure:
    """The provider does not have this call."""
    return _ours(
        FailureKind.REJECTED,
        HTTPStatus.NOT_FOUND,
        f"{_NAMES[provider]} does not offer {path}; choose another provider for it",
        code="endpoint_not_found",
    )


def field_refused(provider: ProviderName, field: str, reason: str) -> Failure:
    """The provider is not asked with this field, because of what it would do there."""
    return _ours(
        FailureKind.REJECTED,
        HTTPStatus.BAD_REQUEST,
        f"{_NAMES[provider]} does not take {field}: {reason}; leave it out",
        code="field_not_allowed",
        param=field,
    )


def upload_too_large(provider: ProviderName, limit_bytes: int) -> Failure:
    """The provider takes only models that it lists, and the upload is too large to be read."""
    return _ours(
        FailureKind.REJECTED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"{_NAMES[provider]} takes uploads of at most {limit_bytes} bytes, because the gateway "
        "must read which model they name; send a smaller file",
        code="upload_too_large",
    )


def upload_without_length(provider: ProviderName) -> Failure:
    """The provider takes only models that it lists, and the upload may be too large to be read."""
    return _ours(
        FailureKind.REJECTED,
        HTTPStatus.LENGTH_REQUIRED,
        f"{_NAMES[provider]} takes only uploads that declare their length, because the gateway "
        "must read which model they name; send Content-Length instead of chunks",
        code="length_required",
    )


def _ours(
    kind: FailureKind,
    status: HTTPStatus,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    wait_s: float | None = None,
    is_final: bool = False,
) -> Failure:
    error = api_error(status, code or kind.value, message, param=param)
    return Failure(kind, status, error, wait_s, is_final=is_final)


def _kind(provider: ProviderName, status: int, told: Told) -> FailureKind:
    text = told.message.lower()
    if status == HTTPStatus.SERVICE_UNAVAILABLE and any(it in text for it in _NOT_READY):
        return FailureKind.NOT_READY
    if status == HTTPStatus.FORBIDDEN and told.is_moderation:
        return FailureKind.REJECTED
    if status == HTTPStatus.BAD_REQUEST:
        for beginning, kind in _SAID_AS_BAD_REQUEST.items():
            if text.startswith(beginning):
                return kind
    if _OF_A_KEY & {told.kind, told.code}:
        return FailureKind.KEY_REFUSED
    if _QUOTA in {told.kind, told.code}:
        return FailureKind.CREDITS_SPENT
    if status == HTTPStatus.FORBIDDEN and _is_cap(provider, text):
        return FailureKind.CREDITS_SPENT
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND} and _is_model(status, told, text):
        return FailureKind.MODEL_NOT_FOUND
    is_server = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    other = FailureKind.SERVER_ERROR if is_server else FailureKind.REJECTED
    return _BY_STATUS.get(status, other)


def _is_cap(provider: ProviderName, text: str) -> bool:
    """OpenRouter answers 403, not 402, when the limit that a key was given is reached."""
    return provider is ProviderName.OPENROUTER and "key limit exceeded" in text


def _is_model(status: int, told: Told, text: str) -> bool:
    if _is_privacy(told, text):
        return False
    if told.code == "model_not_found" or "not a valid model" in text:
        return True
    is_named = "model" in text or "no endpoints found for " in text
    return status == HTTPStatus.NOT_FOUND and (
        (is_named and any(it in text for it in _NO_MODEL))
        # Anthropic says no more than `model: its-name`.
        or (told.kind == "not_found_error" and text.startswith("model:"))
    )


def _is_privacy(told: Told, text: str) -> bool:
    is_said = "privacy_restricted" in {told.code, told.kind}
    return is_said or ("no endpoints" in text and any(it in text for it in _PRIVACY))


def _status_of_words(told: Told) -> int | None:
    for word in (told.code, told.kind):
        if word is not None and word in _STATUS_OF_WORD:
            return _STATUS_OF_WORD[word]
    return None


def _failure(  # noqa: PLR0917 -- the parts of one failure
    provider: ProviderName,
    kind: FailureKind,
    status: int,
    told: Told,
    wait_s: float | None = None,
    headers: Headers = (),
) -> Failure:
    if provider is ProviderName.DEFAULT and kind in _OPERATORS:
        return replace(_misconfigured(kind), headers=provider_request_id(headers))
    answered = _REPLACED_STATUSES.get(status, status)
    if kind is FailureKind.REJECTED and _is_privacy(told, told.message.lower()):
        error = _privacy(told, answered)
    else:
        error = _error(provider, kind, told, status)
    return Failure(kind, answered, error, wait_s, headers_for_client(headers))


def _error(provider: ProviderName, kind: FailureKind, told: Told, said_status: int) -> ApiError:
    message = _message(provider, kind, told, said_status)
    status = _REPLACED_STATUSES.get(said_status, said_status)
    if kind is FailureKind.KEY_REFUSED:
        return api_error(status, kind.value, message)
    code = told.code or told.behind_code or _code_of_kind(kind, told, status)
    error = api_error(status, code, message, param=told.param)
    # The operator's limits are described by words about the operator's account.
    is_operators = provider is ProviderName.DEFAULT and kind is FailureKind.RATE_LIMITED
    return DetailedError(
        error.message,
        told.type or error.type,
        error.code,
        error.param,
        {} if is_operators else told.details,
    )


def _code_of_kind(kind: FailureKind, told: Told, status: int) -> str:
    """Return the code of an error that came without one."""
    if kind is FailureKind.CREDITS_SPENT and told.kind == _QUOTA:
        return _QUOTA
    if kind is not FailureKind.REJECTED:
        return kind.value
    if told.kind is not None and told.kind not in _GENERIC:
        return told.kind
    return "moderation" if told.is_moderation else _CODES.get(status, "provider_error")


def _misconfigured(kind: FailureKind) -> Failure:
    return _ours(
        kind,
        HTTPStatus.BAD_GATEWAY,
        "the default provider is misconfigured; its operator must see to it",
        code="provider_misconfigured",
        is_final=True,
    )


def _no_answer(provider: ProviderName, status: int) -> Failure:
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        return malformed(
            provider, f"a redirect ({status}), which is not followed; check the address"
        )
    return malformed(provider, f"status {status} where an answer was due")


def _privacy(told: Told, status: int) -> ApiError:
    message = told.message or "no provider of this model agrees with your privacy settings"
    if PRIVACY_SETTINGS not in message:
        message = f"{message}; change them at {PRIVACY_SETTINGS}"
    return api_error(status, "privacy_restricted", message)


def _message(provider: ProviderName, kind: FailureKind, told: Told, status: int) -> str:
    name = _NAMES[provider]
    if kind is FailureKind.KEY_REFUSED:
        return f"{name} refused the key; enter one that is valid in the settings"
    if kind is FailureKind.RATE_LIMITED and provider is ProviderName.DEFAULT:
        # Providers name the account in it, which is the operator's.
        return f"the rate limit of {name} is exceeded; try again later"
    return told.message or _SENTENCES.get(kind, sentence(status)).format(name=name)
