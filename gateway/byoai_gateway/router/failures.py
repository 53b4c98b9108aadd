"""How asking a provider can fail, as values: what the rules decide by and what the client is told.

A failure carries the error that is shown if nothing else helps. Whose fault it was and what may be
done about it is in its kind; `decision` knows the rest.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from byoai_shared.api_errors import ApiError
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.head import Headers


class FailureKind(StrEnum):
    """What went wrong; the words stand in `x-byoai-fallback-reason`, records and metrics."""

    # On the way there: not a byte of the request was acted upon.
    UNREACHABLE = "unreachable"
    """Refused, no such name, TLS failed, or no connection in time."""
    ADDRESS_REFUSED = "address_refused"
    """A user's own address leads where we do not go."""
    AGENT_OFFLINE = "agent_offline"
    """The agent left, or was not seen."""
    NO_RELAY_CONNECTED = "no_relay_connected"
    """Our own fault: the gateway has lost all its relays."""
    AGENT_UNREACHABLE = "agent_unreachable"
    """The relays that the gateway reaches do not know the tunnel."""
    AGENT_NEVER_JOINED = "agent_never_joined"
    AGENT_LOCKED = "agent_locked"
    TUNNEL_BUSY = "tunnel_busy"
    BREAKER_OPEN = "breaker_open"
    NOT_READY = "not_ready"
    """The model is still loading, or the server's queue is full: it has taken nothing."""
    OVERLOADED = "overloaded"
    """Our own: there is no room here to keep more of the answer."""
    # After the request was sent.
    CONNECTION_LOST = "connection_lost"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 -- a token of text
    SILENCE = "silence"
    """Nothing between two events for too long."""
    # Said by a status.
    SERVER_ERROR = "server_error"
    """500, 502, 503, 529."""
    PROVIDER_TIMEOUT = "provider_timeout"
    """408, 504, 524."""
    RATE_LIMITED = "rate_limited"
    REJECTED = "rejected"
    """400, 413, 422, moderation and other refusals of this very request."""
    KEY_REFUSED = "key_refused"
    CREDITS_SPENT = "credits_spent"
    FORBIDDEN = "forbidden"
    MODEL_NOT_FOUND = "model_not_found"
    # Said inside an answer of 200.
    ERROR_IN_ANSWER = "error_in_answer"
    MALFORMED = "malformed_answer"
    TRUNCATED = "truncated"
    # Said by our own clock.
    DEADLINE = "deadline"
    """The time of the whole request was over, however little of it this provider had."""


ABSENCES: Final = frozenset(
    {
        FailureKind.AGENT_OFFLINE,
        FailureKind.NO_RELAY_CONNECTED,
        FailureKind.AGENT_UNREACHABLE,
        FailureKind.AGENT_NEVER_JOINED,
        FailureKind.AGENT_LOCKED,
    }
)
"""No agent of the user's tunnel can be reached; nothing was sent, and nothing dialled."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One attempt that failed."""

    kind: FailureKind
    status: int
    """What the client is answered, if this is the last word."""
    error: ApiError
    retry_after_s: float | None = None
    headers: Headers = ()
    """Of the provider's answer, those that the client may see: `x-ratelimit-*`."""
    is_final: bool = False
    """Whether it is known that the same request would fail again, whatever its status."""
    model: str | None = None
    """The model that the provider is known not to have."""


class AttemptFailed(ByoaiError):
    """An attempt at a provider failed before its answer began."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure
