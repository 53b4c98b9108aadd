"""The rules: what to do after an attempt failed. Nothing here asks anybody anything.

A retry helps where the same provider may answer a moment later; a fallback where somebody else
would. What the provider says about this very request it would say again, and so would others:
that is returned as it is. A request whose connection was lost after it was sent is not repeated at
the same provider, nor is one that the provider failed and that changes what it keeps. Once an
answer has begun there is nothing left to decide.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from byoai_gateway.router.failures import ABSENCES, Failure, FailureKind
from byoai_gateway.router.upstream import ProviderName

MOST_PATIENCE_S: Final = 5.0
"""A provider that asks for a longer wait is not waited for."""
PAUSE_S: Final = 0.25
"""Before a retry, if the provider does not say."""
LOADING_PAUSE_S: Final = 2.0
"""Before a provider that is not ready yet is asked again, if it does not say when."""
MOST_FLOOR_S: Final = 8.0
"""The longest that such a provider is left alone though it says that it will be ready sooner."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request has come."""

    retries_left: int
    """For the request, not for each provider."""
    may_fall_back: bool
    """Whether the user allowed it, the request permits it, and it was not done yet."""
    committed: bool
    """Whether the client has something of an answer."""
    may_repeat_processed: bool = True
    """Whether a request that the provider processed and failed may be sent to it again.

    Not one that changes what the provider keeps.
    """
    loading_left_s: float = 0.0
    """How much longer a provider may go on saying that it is not ready."""
    times_not_ready: int = 0
    """How often the present provider has said so before."""
    has_other_agent: bool = False
    """Whether another agent of the provider may be asked, which did not fail this request."""
    added_usage: bool = False
    """Whether the request asked for a stream's usage though the client did not."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Ask the same provider again; by another agent where it has one."""

    after_s: float
    is_counted: bool = True
    """Whether it is the request's one retry; not where the provider surely did nothing."""


@dataclass(frozen=True, slots=True)
class FallBack:
    """Ask the default provider."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the client."""


Next = Retry | FallBack | GiveUp

_USAGE_FIELD: Final = re.compile(r"(?:body\.)?stream_options(?:\.include_usage)?")
_USAGE_REFUSED: Final = re.compile(
    r"(?:[\w ]{0,80}:? ?)['\"`]?stream_options(?:\.include_usage)?['\"`]?(?=$|[\s:.,])"
)
"""`stream_options: Extra inputs are not permitted`, `Unknown parameter: 'stream_options'`."""

# Whoever else is asked, it is our own memory that is full; and when the time is over, it is.
_FINAL: Final = frozenset({FailureKind.REJECTED, FailureKind.OVERLOADED, FailureKind.DEADLINE})
# What the provider has not begun to process, by its own word or because it never got it.
_UNPROCESSED: Final = frozenset(
    {FailureKind.UNREACHABLE, FailureKind.RATE_LIMITED, FailureKind.TUNNEL_BUSY}
)
# What another agent of the same provider may answer at once; it was surely not processed.
_OF_THE_AGENT: Final = ABSENCES | _UNPROCESSED | {FailureKind.NOT_READY}
_PASSES_BY_ITSELF: Final = frozenset({FailureKind.RATE_LIMITED, FailureKind.TUNNEL_BUSY})
_MAY_PASS: Final = frozenset(
    {FailureKind.UNREACHABLE, FailureKind.SERVER_ERROR, FailureKind.ERROR_IN_ANSWER}
)
_OF_THE_PROVIDER: Final = frozenset(
    {
        FailureKind.UNREACHABLE,
        FailureKind.CONNECTION_LOST,
        FailureKind.FIRST_TOKEN_TIMEOUT,
        FailureKind.SILENCE,
        FailureKind.SERVER_ERROR,
        FailureKind.PROVIDER_TIMEOUT,
        FailureKind.ERROR_IN_ANSWER,
        FailureKind.MALFORMED,
        FailureKind.TRUNCATED,
    }
)
_KNOWN_BEFOREHAND: Final = ABSENCES | {FailureKind.ADDRESS_REFUSED, FailureKind.TUNNEL_BUSY}
_OF_THE_KEY: Final = frozenset(
    {FailureKind.KEY_REFUSED, FailureKind.CREDITS_SPENT, FailureKind.FORBIDDEN}
)
_KEY_SETTINGS: Final = {
    ProviderName.OPENROUTER: "openRouterApiKey",
    ProviderName.SELF_HOSTED: "selfHostedAuthKey",
}


def decide(failure: Failure, progress: Progress) -> Next:
    """Return what to do next."""
    if progress.committed:
        return GiveUp()
    if progress.added_usage and _refuses_usage(failure):
        return Retry(0.0, is_counted=False)
    if failure.kind in _FINAL:
        return GiveUp()
    if progress.has_other_agent and failure.kind in _OF_THE_AGENT and not failure.is_final:
        return Retry(0.0, is_counted=False)
    return _retry(failure, progress) or (FallBack() if progress.may_fall_back else GiveUp())


def repeat_is_useless(failure: Failure) -> bool:
    """Whether it is known that the same request would fail again, whatever its status.

    Client libraries repeat by status: 408, 409, 429 and everything from 500.
    """
    is_final_rejection = (
        failure.kind is FailureKind.REJECTED and failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return failure.is_final or failure.kind in _OF_THE_KEY or is_final_rejection


def attention_for(provider: ProviderName, failure: Failure) -> tuple[str, str] | None:
    """Return the user's setting that is to blame, and a code that says why; None if none is.

    Whether the user has that setting at all is not known here: a model that is not found may
    have been the request's own choice.
    """
    kind = failure.kind
    if kind in _OF_THE_KEY and provider in _KEY_SETTINGS:
        return _KEY_SETTINGS[provider], kind.value
    if kind is FailureKind.MODEL_NOT_FOUND and provider is ProviderName.OPENROUTER:
        return "openRouterModelPreference", kind.value
    if provider is ProviderName.SELF_HOSTED:
        if kind is FailureKind.MODEL_NOT_FOUND:
            return "selfHostedModelPreference", kind.value
        if kind is FailureKind.ADDRESS_REFUSED:
            return "selfHostedUrl", kind.value
        if failure.status == HTTPStatus.LOOP_DETECTED:
            return "selfHostedUrl", "loop_detected"
    return None


def operators_setting(provider: ProviderName, failure: Failure) -> str | None:
    """Return the setting of the gateway that is to blame; None if none is."""
    is_operators = provider is ProviderName.DEFAULT and failure.kind in _OF_THE_KEY
    return "default_provider.key" if is_operators else None


def counts_for_breaker(failure: Failure) -> bool:
    """Whether a failure is the provider's own, so that the next request would meet it too.

    What is wrong with a request, a key or a balance says nothing about the provider's health; an
    agent that is offline is known at once and needs no breaker. That the request's own time was
    over says nothing either: others may have used it up.
    """
    return failure.kind in _OF_THE_PROVIDER


def counts_as_attempt(failure: Failure) -> bool:
    """Whether a provider to which there was no connection was asked for one all the same.

    A dial that was refused was one; an agent that is known to be away was not dialled.
    """
    return failure.kind not in _KNOWN_BEFOREHAND


def _retry(failure: Failure, progress: Progress) -> Retry | None:
    if failure.kind is FailureKind.NOT_READY:
        return _retry_when_ready(failure, progress)
    if progress.retries_left <= 0 or failure.is_final:
        return None
    if not progress.may_repeat_processed and failure.kind not in _UNPROCESSED:
        return None
    pause_s = _wait_s(failure)
    return None if pause_s is None else Retry(pause_s)


def _retry_when_ready(failure: Failure, progress: Progress) -> Retry | None:
    """Wait as long as the provider asks, but ever longer the more often it was not ready.

    One that says neither when, nor stops a fallback, is waited for as any other.
    """
    asked_s = failure.retry_after_s
    floor_s = min(PAUSE_S * 2**progress.times_not_ready, MOST_FLOOR_S)
    wait_s = max(LOADING_PAUSE_S if asked_s is None else asked_s, floor_s)
    left_s = progress.loading_left_s
    if asked_s is None and progress.may_fall_back:
        left_s = min(left_s, MOST_PATIENCE_S - LOADING_PAUSE_S * progress.times_not_ready)
    return Retry(wait_s, is_counted=False) if wait_s < left_s else None


def _refuses_usage(failure: Failure) -> bool:
    """Whether a provider refused a request because of the usage that it was asked for.

    By the place that it names, or by the first words of those that name none: what it quotes of
    a request is the user's.
    """
    if failure.kind is not FailureKind.REJECTED:
        return False
    error = failure.error
    if error.param is not None:
        return _USAGE_FIELD.fullmatch(error.param) is not None
    return _USAGE_REFUSED.match(error.message) is not None


def _wait_s(failure: Failure) -> float | None:
    """How long to wait before the same provider is asked again; None if it should not be."""
    asked_s = failure.retry_after_s
    if asked_s is not None and asked_s > MOST_PATIENCE_S:
        return None
    if failure.kind in _PASSES_BY_ITSELF:
        return asked_s
    if failure.kind in _MAY_PASS:
        return PAUSE_S if asked_s is None else asked_s
    return None
