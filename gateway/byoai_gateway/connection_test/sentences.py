"""What a provider's failure means to a user who tests settings, and what to do about it.

Pure. A failure of the operator's own provider is nobody's fault who reads this, and none of their
business beyond that there is one: what it says of itself is not passed on.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from byoai_gateway.connection_test.report import StageFailed
from byoai_gateway.providers.outbound import Unreachable, UnreachableReason
from byoai_gateway.router.failures import AttemptFailed, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName

NAMES: Final = {
    ProviderName.DEFAULT: "the default provider",
    ProviderName.OPENROUTER: "OpenRouter",
    ProviderName.SELF_HOSTED: "the model server",
}
_BY_REASON: Final[Mapping[UnreachableReason, str]] = {
    UnreachableReason.NAME_UNKNOWN: "check how it is spelt in the address",
    UnreachableReason.ADDRESS_REFUSED: (
        "give an address on the public internet, or register a tunnel"
    ),
    UnreachableReason.CONNECTION_REFUSED: "check that the server runs, and on which port",
    UnreachableReason.TLS_FAILED: (
        "give the server a certificate for this name that public authorities vouch for, or "
        "register a tunnel"
    ),
    UnreachableReason.TIMED_OUT: "check that no firewall keeps this service away from the server",
    UnreachableReason.BROKEN_OFF: "check that an OpenAI-compatible API listens at this address",
}
_AGAIN: Final = "test again in a moment"
_SERVERS_LOG: Final = "look into the log of the model server, then test again"
_NEXT: Final[Mapping[FailureKind, str]] = {
    FailureKind.CREDITS_SPENT: "add credits, or raise the limit of the key, then test again",
    FailureKind.FORBIDDEN: "use a key that may do this, or choose another model",
    FailureKind.RATE_LIMITED: _AGAIN,
    FailureKind.SERVER_ERROR: _AGAIN,
    FailureKind.PROVIDER_TIMEOUT: _AGAIN,
    FailureKind.REJECTED: "choose another model, or change what it names",
    FailureKind.MODEL_NOT_FOUND: "choose another model",
    FailureKind.ERROR_IN_ANSWER: "test again, or choose another model",
    FailureKind.MALFORMED: "check that the address is that of an OpenAI-compatible API",
}
_NEXT_AT_HOME: Final[Mapping[FailureKind, str]] = {
    **_NEXT,
    FailureKind.CREDITS_SPENT: _SERVERS_LOG,
    FailureKind.SERVER_ERROR: _SERVERS_LOG,
    FailureKind.ERROR_IN_ANSWER: _SERVERS_LOG,
}
_KEY_REFUSED: Final = {
    ProviderName.OPENROUTER: (
        "OpenRouter refuses this key; copy it again, or make a new one at "
        "https://openrouter.ai/settings/keys"
    ),
    ProviderName.SELF_HOSTED: "the model server refuses this key; check it and enter it again",
}
_SAYS_ENOUGH: Final = frozenset({"privacy_restricted", "management_key"})
"""Codes of errors that say what to do by themselves."""
_OPERATORS: Final = frozenset(
    {FailureKind.KEY_REFUSED, FailureKind.CREDITS_SPENT, FailureKind.FORBIDDEN}
)
_LOOP: Final = (
    "this leads back to a gateway like this one, which would pass requests on without end; let it "
    "lead to the model server itself"
)
_NO_ANSWER: Final = (
    "{name} took the connection but gave no whole HTTP answer; check the address and the port, "
    "then test again"
)


def told(provider: ProviderName, error: AttemptFailed) -> StageFailed:
    """Say what a failed attempt means."""
    failure = error.failure
    if provider is ProviderName.DEFAULT:
        return _of_the_operators(failure)
    if failure.status == HTTPStatus.LOOP_DETECTED:
        return StageFailed("loop_detected", _LOOP)
    if isinstance(error.__cause__, Unreachable):
        return _unreachable(provider, error.__cause__)
    return StageFailed(failure.error.code, _sentence(provider, failure))


def too_slow(provider: ProviderName, limit_s: float) -> StageFailed:
    """Say that a stage took longer than it may."""
    after = f"{NAMES[provider]} had not answered after {limit_s:g} s"
    if provider is ProviderName.SELF_HOSTED:
        return StageFailed("timed_out", f"{after}; if a model still loads, test again when it has")
    return StageFailed("timed_out", f"{after}; {_AGAIN}")


def _of_the_operators(failure: Failure) -> StageFailed:
    if failure.kind in _OPERATORS:
        sentence = (
            "the default provider is misconfigured, which is not your doing; its operator must "
            "see to it, or choose another provider meanwhile"
        )
        return StageFailed("provider_misconfigured", sentence)
    if failure.kind is FailureKind.MODEL_NOT_FOUND:
        sentence = "the default provider does not offer this model; choose another"
    else:
        sentence = (
            "the default provider does not answer as it should, which is not your doing; test "
            "again later, or choose another provider"
        )
    return StageFailed(failure.kind.value, sentence)


def _unreachable(provider: ProviderName, error: Unreachable) -> StageFailed:
    is_users = provider is ProviderName.SELF_HOSTED
    return StageFailed(
        error.reason.value, f"{error}; {_BY_REASON[error.reason] if is_users else _AGAIN}"
    )


def _sentence(provider: ProviderName, failure: Failure) -> str:
    is_users = provider is ProviderName.SELF_HOSTED
    message = failure.error.message.rstrip(". ")
    if failure.error.code in _SAYS_ENOUGH:
        return message
    match failure.kind:
        case FailureKind.KEY_REFUSED:
            return _KEY_REFUSED[provider]
        case FailureKind.CONNECTION_LOST if is_users:
            return _NO_ANSWER.format(name=NAMES[provider])
        case FailureKind.FIRST_TOKEN_TIMEOUT | FailureKind.TRUNCATED | FailureKind.CONNECTION_LOST:
            return f"{message.partition(';')[0]}; {_AGAIN}"
        case kind:
            advice = (_NEXT_AT_HOME if is_users else _NEXT).get(kind)
            if advice is None and ";" in message:  # a sentence of ours, with its own advice
                return message
            return f"{message}; {advice or _AGAIN}"
