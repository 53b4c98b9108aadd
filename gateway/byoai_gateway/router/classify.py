"""What a provider's failure means: from a status, an error in an answer, or silence to a `Failure`.

A provider's 401 never reaches a client as 401: that is the client's own session, and an
application would log its user out. What the operator's own account did wrong is no business of
users: they learn that the default provider is misconfigured. The text of an error about a key is
replaced by a sentence of ours, because providers like to quote the key.

Refusals of this very request keep the provider's code (`context_length_exceeded`); every other
error has the code of its kind, whoever was asked.
"""

from http import HTTPStatus
from typing import Final

import msgspec

from byoai_gateway.router.error_headers import rate_limits, retry_after_s
from byoai_gateway.router.error_shapes import Told, read_body, read_error, sentence
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
_ANSWERED: Final = {
    FailureKind.KEY_REFUSED: HTTPStatus.FORBIDDEN,
    FailureKind.CREDITS_SPENT: HTTPStatus.PAYMENT_REQUIRED,
    FailureKind.FORBIDDEN: HTTPStatus.FORBIDDEN,
    FailureKind.MODEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    FailureKind.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    FailureKind.PROVIDER_TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    FailureKind.NOT_READY: HTTPStatus.SERVICE_UNAVAILABLE,
}
_UNAVAILABLE: Final = frozenset({503, 529})
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
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
}
_NO_MODEL: Final = ("not found", "does not exist", "not a valid model", "no endpoints found for ")
_PRIVACY: Final = ("data policy", "guardrail restrictions")
_NAMES: Final = {
    ProviderName.DEFAULT: "the default provider",
    ProviderName.OPENROUTER: "OpenRouter",
    ProviderName.SELF_HOSTED: "the self-hosted model server",
}
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
    return _failure(
        provider,
        _kind(provider, status, told),
        status,
        told,
        told.retry_after_s if wait_s is None else wait_s,
        rate_limits(headers),
    )


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


def agent_offline() -> Failure:
    """The user's agent is not connected."""
    return _ours(
        FailureKind.AGENT_OFFLINE,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "your agent is not connected; start it with `byoai-agent run` on its host",
        wait_s=5.0,
    )


def tunnel_busy() -> Failure:
    """The user's tunnel carries as many requests as it may, or too many began at once."""
    return _ours(
        FailureKind.TUNNEL_BUSY,
        HTTPStatus.TOO_MANY_REQUESTS,
        "your tunnel takes no more requests at this moment: too many are under way, or began "
        "within one second; try again in a second",
        wait_s=1.0,
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


def model_not_found(provider: ProviderName, model: str | None) -> Failure:
    """The provider is not asked for this model, because we know that it does not have it."""
    asked = f"the model {model[:100]!r}" if model else "a model without a name"
    return _ours(
        FailureKind.MODEL_NOT_FOUND,
        HTTPStatus.NOT_FOUND,
        f"{_NAMES[provider]} does not offer {asked}; GET /v1/models lists what it does",
        param="model",
    )


def endpoint_not_found(provider: ProviderName, path: str) -> Failure:
    """The provider does not have this call."""
    return _ours(
        FailureKind.REJECTED,
        HTTPStatus.NOT_FOUND,
        f"{_NAMES[provider]} does not offer {path}; choose another provider for it",
        code="endpoint_not_found",
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
    if told.kind == "insufficient_quota" or told.code == "insufficient_quota":
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
    if kind is FailureKind.REJECTED:
        return Failure(kind, status, _rejection(told, status), wait_s, headers)
    if provider is ProviderName.DEFAULT and kind in _OPERATORS:
        return _misconfigured(kind)
    answered = _ANSWERED.get(kind, HTTPStatus.BAD_GATEWAY)
    if kind is FailureKind.SERVER_ERROR and status in _UNAVAILABLE:
        answered = HTTPStatus.SERVICE_UNAVAILABLE
    message = _message(provider, kind, told, status)
    if kind is FailureKind.ERROR_IN_ANSWER and told.code is not None:
        error = api_error(answered, told.code, message, param=told.param)
    else:
        error = api_error(answered, kind.value, message, param=told.param)
    return Failure(kind, answered, error, wait_s, headers)


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


def _rejection(told: Told, status: int) -> ApiError:
    if not _is_privacy(told, told.message.lower()):
        return _passed_on(told, status)
    message = told.message or "no provider of this model agrees with your privacy settings"
    if PRIVACY_SETTINGS not in message:
        message = f"{message}; change them at {PRIVACY_SETTINGS}"
    return api_error(status, "privacy_restricted", message)


def _passed_on(told: Told, status: int) -> ApiError:
    code = told.code or (told.kind if told.kind not in _GENERIC else None)
    if code is None and told.is_moderation:
        code = "moderation"
    return api_error(
        status,
        code or _CODES.get(status, "provider_error"),
        told.message or sentence(status),
        param=told.param,
    )


def _message(provider: ProviderName, kind: FailureKind, told: Told, status: int) -> str:
    name = _NAMES[provider]
    said = f": {told.message}" if told.message else ""
    match kind:
        case FailureKind.KEY_REFUSED:
            return f"{name} refused the key; enter one that is valid in the settings"
        case FailureKind.CREDITS_SPENT:
            return f"{name} says that your credits or the limit of your key are spent{said}"
        case FailureKind.FORBIDDEN:
            return f"{name} does not allow this to your key{said}"
        case FailureKind.RATE_LIMITED if provider is ProviderName.DEFAULT:
            # Providers name the account in it, which is the operator's.
            return f"{name} is asked too often; try again later"
        case FailureKind.RATE_LIMITED:
            return f"{name} is asked too often by you{said}"
        case _:
            return told.message or sentence(status)
