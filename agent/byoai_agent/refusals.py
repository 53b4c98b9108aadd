"""What the agent answers in its own name: OpenAI's error shape and a mark that it was the agent.

The gateway learns from the mark (`byoai_shared.agent_errors`) that the model server never said
this, and how far the request had got.
"""

from collections.abc import Iterable
from typing import Final

from byoai_shared.agent_errors import HEADER, AgentErrorCode
from byoai_shared.api_errors import error_body
from byoai_shared.errors import ByoaiError
from byoai_shared.http1.head import Headers
from byoai_shared.http1.refusal import Refusal

_READY_IN_S: Final = 5


class AgentRefusal(ByoaiError):
    """A request that the agent answers itself.

    `code` is an `AgentErrorCode`, or what the HTTP server of this agent calls its refusal.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    def headers(self) -> Headers:
        """The fields of the answer."""
        fields: Headers = ((b"content-type", b"application/json"), (HEADER, self.code.encode()))
        if self.retry_after_s is not None:
            fields = (*fields, (b"retry-after", b"%d" % self.retry_after_s))
        return fields

    def body(self) -> bytes:
        """The answer in OpenAI's shape."""
        return error_body(self.status, self.code, str(self))


def render(refusal: Refusal) -> tuple[Headers, bytes]:
    """What the HTTP server refuses before the agent is asked, in the same shape."""
    ours = AgentRefusal(refusal.status, refusal.code, refusal.sentence)
    return ours.headers(), ours.body()


def not_found(method: str, target: str) -> AgentRefusal:
    """A call outside the policy. The path may hold anything, so only its start is repeated."""
    shown = target.split("?", 1)[0][:80]
    return AgentRefusal(
        404, AgentErrorCode.NOT_FOUND, f"this agent does not pass on {method} {shown}"
    )


def wrong_key() -> AgentRefusal:
    """The caller's authentication key is missing or none of ours."""
    return AgentRefusal(
        401, AgentErrorCode.INVALID_AUTHENTICATION_KEY, "the authentication key is not valid"
    )


def unreadable(reason: str) -> AgentRefusal:
    """The body decides where the request goes, and cannot be read in exactly one way."""
    message = f"the request's model could not be read: {reason}"
    return AgentRefusal(400, AgentErrorCode.INVALID_BODY, message)


def no_upstream(faults: Iterable[str] = ()) -> AgentRefusal:
    """There is nobody to forward to; `faults` says what is known of those who should be."""
    known = "; ".join(faults)
    message = "no model server answers on the agent's host" + (f" ({known})" if known else "")
    return AgentRefusal(502, AgentErrorCode.UPSTREAM_UNREACHABLE, message)


def not_ready(faults: Iterable[str]) -> AgentRefusal:
    """The model servers are loading a model, or busy, and will be ready by themselves."""
    message = f"the model server on the agent's host is not ready yet ({'; '.join(faults)})"
    return AgentRefusal(503, AgentErrorCode.UPSTREAM_UNREACHABLE, message, _READY_IN_S)


def no_such_model(reason: str) -> AgentRefusal:
    """OpenAI's answer for an unknown model."""
    return AgentRefusal(404, AgentErrorCode.MODEL_NOT_FOUND, reason)
