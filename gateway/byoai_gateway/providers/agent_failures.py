"""What an error that the user's agent answered means to the router: pure.

The agent knows whether the model server may have processed the request. Only what surely was not
sent may be repeated, however its status reads.
"""

from dataclasses import replace
from http import HTTPStatus
from typing import Final

from byoai_gateway.router.failures import Failure, FailureKind
from byoai_shared.agent_errors import AgentErrorCode, Stage, agent_error
from byoai_shared.api_errors import ApiError

_KINDS: Final = {
    AgentErrorCode.AGENT_BUSY: FailureKind.TUNNEL_BUSY,
    AgentErrorCode.UPSTREAM_UNREACHABLE: FailureKind.UNREACHABLE,
    AgentErrorCode.UPSTREAM_TIMEOUT: FailureKind.FIRST_TOKEN_TIMEOUT,
    AgentErrorCode.UPSTREAM_DISCONNECTED: FailureKind.CONNECTION_LOST,
    AgentErrorCode.UPSTREAM_PROTOCOL_ERROR: FailureKind.MALFORMED,
}
"""The codes that are not told by their status, as for any provider."""


def failure_of_agent(failure: Failure, code: bytes, message: str) -> Failure:
    """Return what the agent's error means, given how its status alone would be read.

    `message` is the agent's own sentence; the client gets it.
    """
    known = agent_error(code)
    kind = None if known is None else _KINDS.get(known)
    stage = Stage.SENT if known is None else known.stage
    is_server = failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if kind is None and stage is Stage.SENT and is_server:
        kind = FailureKind.CONNECTION_LOST  # nothing is known of what became of the request
    if kind is None:
        return failure
    error = ApiError(message, failure.error.type, kind.value, failure.error.param)
    return replace(failure, kind=kind, error=error)
