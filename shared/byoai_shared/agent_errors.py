"""The errors that an agent answers in its own name, and how far the request had got by then.

An agent marks such an answer with `HEADER`, so that a gateway can tell it from one that the model
server gave: only the agent knows whether the model server may have processed a request.
"""

from enum import Enum, StrEnum, auto
from typing import Final

HEADER: Final = b"x-byoai-agent-error"
"""Holds an `AgentErrorCode`. An agent removes it from what a model server answers."""


class Stage(Enum):
    """How far a request had got when it failed."""

    NOT_SENT = auto()
    """Not a byte of it reached a model server: it can be repeated."""
    SENT = auto()
    """A model server may have processed it: it must not be repeated."""


class AgentErrorCode(StrEnum):
    """Why the agent, and not a model server, answered."""

    INVALID_AUTHENTICATION_KEY = "invalid_authentication_key"
    NOT_FOUND = "not_found"
    INVALID_BODY = "invalid_body"
    MODEL_NOT_FOUND = "model_not_found"
    AGENT_BUSY = "agent_busy"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_DISCONNECTED = "upstream_disconnected"
    UPSTREAM_PROTOCOL_ERROR = "upstream_protocol_error"

    @property
    def stage(self) -> Stage:
        """How far the request had got."""
        return Stage.SENT if self in _SENT else Stage.NOT_SENT


_SENT: Final = frozenset(
    {
        AgentErrorCode.UPSTREAM_TIMEOUT,
        AgentErrorCode.UPSTREAM_DISCONNECTED,
        AgentErrorCode.UPSTREAM_PROTOCOL_ERROR,
    }
)


def agent_error(value: bytes) -> AgentErrorCode | None:
    """Read the value of `HEADER`; None for a code that is not known here.

    That may be an error of the agent's HTTP server, or a newer agent's: the stage is then unknown,
    and the request must not be repeated.
    """
    try:
        return AgentErrorCode(value.decode("ascii"))
    except ValueError:
        return None
